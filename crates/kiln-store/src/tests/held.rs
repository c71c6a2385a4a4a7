//! References: what they say, how damage shows, and how long they stand.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::mpsc;

use kiln_core::Digest;

use super::{small, store};
use crate::refs::PROJECTS;
use crate::{Backing, Error, GcOptions, Reference, Roots, Store};

fn name(kind: &str, name: &str) -> (String, String) {
    (kind.to_owned(), name.to_owned())
}

fn set(store: &Store, kind: &str, at: &str, content: &str) -> Digest {
    let digest = store.put(content.as_bytes()).unwrap();
    store.set_ref(kind, at, &BTreeSet::from([digest])).unwrap();
    digest
}

/// Makes so many days go by.
fn days(store: &Store, count: u64) {
    let text = fs::read_to_string(store.root().join("days")).unwrap_or_default();
    let date = text.split_whitespace().nth(3).and_then(|date| date.parse().ok()).unwrap_or(0);
    for day in 1..=count {
        store.day_at(date + day, true).unwrap();
    }
}

fn collect(store: &Store, roots: &Roots, unused: u64) -> u64 {
    let options = GcOptions { unused, ..GcOptions::default() };
    let dry = GcOptions { dry_run: true, ..options.clone() };
    let would = store.gc_with(&|| roots.clone(), &dry).unwrap();
    let did = store.gc_with(&|| roots.clone(), &options).unwrap();
    assert_eq!((would.references, would.objects), (did.references, did.objects));
    did.references
}

#[test]
fn what_a_reference_says_comes_back_and_every_change_of_it_shows() {
    let (_dir, store) = store(Backing::Links);
    let (one, two) = (Digest::of("1"), Digest::of("2"));
    let said = Reference {
        digests: BTreeSet::from([one, two]),
        needs: BTreeSet::from([name("locks", "x"), name("bases", "y z")]),
        folder: Some("/srv/a b%\n\u{e9}".into()),
        used: None,
    };
    store.set_reference(PROJECTS, "shop", said.clone()).unwrap();
    let back = store.reference(PROJECTS, "shop").unwrap().unwrap();
    assert_eq!(back, Reference { used: Some(0), ..said });
    let path = store.root().join("refs/projects/shop");
    let whole = fs::read(&path).unwrap();
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &bytes).unwrap();
        assert!(store.refs().is_err(), "bit {bit}");
    }
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(store.refs().is_err(), "cut to {length}");
    }
    fs::write(&path, &whole).unwrap();
    store.refs().unwrap();
    // Whole, but another one's.
    fs::copy(&path, path.with_file_name("other")).unwrap();
    let error = store.refs().unwrap_err().to_string();
    assert!(error.contains("other") && error.contains("its sum"), "{error}");
    // What is no file is not waited for.
    fs::remove_file(path.with_file_name("other")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        path.with_file_name("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    assert!(matches!(store.refs(), Err(Error::Reference { .. })));
}

#[test]
fn those_of_version_1_are_read_and_get_a_sum_and_a_day() {
    let (_dir, store) = store(Backing::Links);
    let kept = store.put(b"package").unwrap();
    let dir = store.root().join("refs/locks");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("old"), format!("{kept}\n")).unwrap();
    assert_eq!(store.reference("locks", "old").unwrap().unwrap().used, None);
    assert_eq!(collect(&store, &Roots::default(), 1), 0);
    assert!(fs::read_to_string(dir.join("old")).unwrap().starts_with("kiln-ref 2\nused 0\n"));
    days(&store, 2);
    assert_eq!(collect(&store, &Roots::default(), 1), 1);
    assert!(!store.contains(&kept));
}

#[test]
fn what_took_from_outside_is_kept_by_need_and_by_use() {
    let (_dir, store) = store(Backing::Links);
    let mut kept = Vec::new();
    for (kind, at) in [("locks", "p"), ("bases", "p"), ("remotes", "r"), ("imports", "i")] {
        kept.push(set(&store, kind, at, &format!("{kind} {at}")));
    }
    let gone = [set(&store, "locks", "old", "a"), set(&store, "bases", "old", "b")];
    let project = Reference {
        needs: BTreeSet::from([name("locks", "p"), name("bases", "p")]),
        folder: Some("/srv/shop".into()),
        ..Reference::default()
    };
    store.set_reference(PROJECTS, "shop", project.clone()).unwrap();
    let roots = Roots { needs: BTreeSet::from([name("remotes", "r")]), ..Roots::default() };
    assert_eq!(collect(&store, &roots, 30), 0, "all of it was used today");
    days(&store, 40);
    let damaged = Roots { unknown: true, ..roots.clone() };
    assert_eq!(collect(&store, &damaged, 30), 0, "nobody can say what is needed");
    // Used again.
    store.set_ref("bases", "old", &BTreeSet::from([gone[1]])).unwrap();
    assert_eq!(collect(&store, &roots, 30), 1);
    assert!(!store.contains(&gone[0]) && store.contains(&gone[1]));
    assert_eq!(collect(&store, &roots, 0), 1);
    assert!(!store.contains(&gone[1]));
    assert!(kept.iter().all(|digest| store.contains(digest)));
    // The project was just asked for; a while later it is not there any more.
    let away = Roots { gone: BTreeSet::from(["shop".to_owned()]), ..roots.clone() };
    store.set_reference(PROJECTS, "shop", project).unwrap();
    assert_eq!(collect(&store, &away, 30), 0);
    days(&store, 40);
    assert_eq!(collect(&store, &roots, 30), 0, "it is back");
    assert_eq!(collect(&store, &away, 30), 3, "the project and what it took");
    let left: Vec<bool> = kept.iter().map(|digest| store.contains(digest)).collect();
    assert_eq!(left, [false, false, true, true]);
}

#[test]
fn days_that_are_counted_anew_make_nothing_old() {
    let (_dir, store) = store(Backing::Links);
    days(&store, 50);
    let kept = set(&store, "locks", "p", "package");
    fs::remove_file(store.root().join("days")).unwrap();
    assert_eq!(collect(&store, &Roots::default(), 1), 0);
    assert_eq!(store.reference("locks", "p").unwrap().unwrap().used, Some(0));
    days(&store, 3);
    assert!(store.contains(&kept));
    assert_eq!(collect(&store, &Roots::default(), 1), 1);
}

/// What was named by whoever held a lease as the collection began stays: the lease's stamp was
/// there before, and is the same afterwards.
#[test]
fn what_an_older_lease_names_late_stays() {
    let (_dir, store) = store(Backing::Links);
    let lease = store.lease().unwrap();
    let tree = store.put_tree(&small(&store, "named late")).unwrap();
    let (looked, marked) = mpsc::channel();
    std::thread::scope(|scope| {
        let collecting = scope.spawn(|| {
            let roots = || {
                looked.send(()).unwrap();
                Roots::default()
            };
            store.gc_with(&roots, &GcOptions::default()).unwrap()
        });
        marked.recv().unwrap();
        store.flush().unwrap();
        store.set_ref("imports", "late", &BTreeSet::from([tree])).unwrap();
        drop(lease);
        assert_eq!(collecting.join().unwrap().objects, 0);
    });
    assert!(store.contains(&tree) && store.contains(&Digest::of("named late")));
}

#[test]
fn one_that_only_looks_needs_no_lease_and_writes_nothing() {
    let (_dir, store) = store(Backing::Links);
    let _lease = store.lease().unwrap();
    store.put(b"nobody's").unwrap();
    let files = || {
        let mut names: Vec<_> =
            fs::read_dir(store.root()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = files();
    let alone = store.lock_alone("gc.lock", std::time::Duration::ZERO).unwrap();
    let options = GcOptions { dry_run: true, unused: 0, ..GcOptions::default() };
    assert_eq!(store.gc_with(&Roots::default, &options).unwrap().objects, 1);
    drop(alone);
    let written: Vec<_> = files().into_iter().filter(|name| !before.contains(name)).collect();
    assert_eq!(written, [Path::new("gc.lock").as_os_str()], "which the test took");
}

#[test]
fn a_reference_that_something_needs_and_that_is_not_there_stops_collection() {
    let (_dir, store) = store(Backing::Links);
    let kept = set(&store, "locks", "p", "package");
    let needs = BTreeSet::from([name("locks", "p")]);
    let project = Reference { needs, folder: Some("/srv/shop".into()), ..Reference::default() };
    store.set_reference(PROJECTS, "shop", project).unwrap();
    assert_eq!(collect(&store, &Roots::default(), 0), 0);
    let path = store.root().join("refs/locks/p");
    let text = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let error = store.gc(&BTreeSet::new(), false).unwrap_err().to_string();
    assert!(error.contains("locks/p") && error.contains("refs/projects/shop"), "{error}");
    assert_eq!(store.fsck(false).unwrap().damage[0].path, "refs/locks/p");
    fs::write(&path, text).unwrap();
    collect(&store, &Roots::default(), 0);
    assert!(store.contains(&kept));
    fs::remove_file(&path).unwrap();
    assert!(store.fsck(true).unwrap().damage[0].healed.is_some());
    assert_eq!(store.fsck(false).unwrap().damage, []);
    collect(&store, &Roots::default(), 0);
    assert!(!store.contains(&kept));
}

#[test]
fn fsck_tells_of_each_damaged_reference_and_mends_what_can_be_known() {
    let (_dir, store) = store(Backing::Links);
    let tree = store.put_tree(&small(&store, "x")).unwrap();
    let config = store.put_config(&kiln_core::ImageConfig::default()).unwrap();
    let release = super::collect::release(&[kiln_core::ImageId { tree, config }]);
    let release = store.put_release(&release).unwrap();
    let at = format!("shop.0000000000001.{}", &release.hex()[..16]);
    store.set_ref("releases", &at, &BTreeSet::from([release])).unwrap();
    set(&store, "locks", "p", "package");
    set(&store, "imports", "i", "image");
    for path in [format!("releases/{at}"), "locks/p".into(), "imports/i".into()] {
        let path = store.root().join("refs").join(path);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replacen("sha256:", "sha256;", 1)).unwrap();
    }
    assert!(matches!(store.gc(&BTreeSet::new(), false), Err(Error::Reference { .. })));
    let told = store.fsck(false).unwrap().damage;
    assert_eq!(told.len(), 3, "{told:?}");
    let healed = store.fsck(true).unwrap().damage;
    assert_eq!(healed.iter().filter(|one| one.healed.is_some()).count(), 2, "{healed:?}");
    assert_eq!(store.refs().err().map(|error| error.to_string().contains("imports/i")), Some(true));
    store.remove_ref("imports", "i").unwrap();
    let refs = store.refs().unwrap();
    assert_eq!(
        refs.into_iter().collect::<Vec<_>>(),
        [(name("releases", &at), BTreeSet::from([release]))]
    );
    assert_eq!(store.fsck(false).unwrap().damage, []);
}
