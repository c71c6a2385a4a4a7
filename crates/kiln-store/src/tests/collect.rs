use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use kiln_core::release::{ReleasedService, Settings};
use kiln_core::{Digest, ImageConfig, ImageId, Release};

use super::{file, small, store};
use crate::{Backing, Error, GcOptions, Pointer, Store};

/// A release of these images.
pub(super) fn release(images: &[ImageId]) -> Release {
    let settings = Settings { argv: vec!["/bin/true".into()], ..Settings::default() };
    let services = images.iter().enumerate().map(|(nth, image)| {
        (format!("s{nth}"), ReleasedService { image: *image, settings: settings.clone() })
    });
    Release {
        project: "shop".into(),
        services: services.collect::<BTreeMap<_, _>>(),
        ..Release::default()
    }
}

fn image(store: &Store, content: &str) -> ImageId {
    let tree = store.put_tree(&small(store, content)).unwrap();
    let mut config = ImageConfig::default();
    config.env_set("CONTENT", content);
    ImageId { tree, config: store.put_config(&config).unwrap() }
}

#[test]
fn what_roots_lead_to_stays_and_the_rest_goes() {
    for backing in [Backing::Composefs, Backing::Links] {
        let (_dir, store) = store(backing);
        let (kept, gone) = (image(&store, "kept"), image(&store, "gone"));
        let (active, referred) = (image(&store, "active"), store.put(b"package").unwrap());
        for image in [&kept, &gone, &active] {
            store.lower(&image.tree).unwrap();
        }
        let (old_key, new_key) = (Digest::of("old"), Digest::of("new"));
        store.set_step_result(&old_key, &gone).unwrap();
        store.set_step_result(&new_key, &kept).unwrap();
        let release_digest = store.put_release(&release(&[kept])).unwrap();
        let active_digest = store.put_release(&release(&[active])).unwrap();
        let pointer = Pointer { standby: Some(active_digest), ..Pointer::default() };
        store.move_pointer("shop", "dev", &pointer, &[], 0).unwrap();
        store.set_ref("locks", "shop", &BTreeSet::from([referred])).unwrap();

        let keep = BTreeSet::from([release_digest]);
        let before = store.check().unwrap().objects;
        let dry = store.gc(&keep, true).unwrap();
        assert_eq!(store.check().unwrap().objects, before);
        let report = store.gc(&keep, false).unwrap();
        assert_eq!(
            (dry.objects, dry.steps, dry.images),
            (report.objects, report.steps, report.images)
        );
        // Listing, config and the one file of the image.
        assert_eq!((report.objects, report.steps, report.images), (3, 1, 1), "{backing:?}");
        assert!(report.bytes > 0);
        assert_eq!(store.check().unwrap().objects, before - 3);
        assert_eq!((store.step_result(&old_key), store.step_result(&new_key)), (None, Some(kept)));
        for image in [&kept, &active] {
            assert!(store.contains(&image.tree) && store.contains(&image.config));
            assert!(store.contains(&Digest::of(if *image == kept { "kept" } else { "active" })));
        }
        assert!(store.contains(&referred) && store.contains(&release_digest));
        assert!(!store.contains(&gone.tree) && !store.contains(&Digest::of("gone")));
        // What went can be made again, mounts included.
        assert!(matches!(store.lower(&gone.tree), Err(Error::Missing(_))));
        let again = image(&store, "gone");
        crate::mount::mount_image(&store.lower(&again.tree).unwrap(), None).unwrap();
    }
}

#[test]
fn trees_and_files_are_roots_too() {
    let (_dir, store) = store(Backing::Links);
    let tree = store.put_tree(&small(&store, "in tree")).unwrap();
    let lone = store.put(b"lone").unwrap();
    store.put(b"nobody's").unwrap();
    let report = store.gc(&BTreeSet::from([tree, lone]), false).unwrap();
    assert_eq!((report.objects, report.kept_objects), (1, 3));
    assert!(store.contains(&Digest::of("in tree")));
}

#[test]
fn copies_for_links_go_with_their_last_tree() {
    let (_dir, store) = store(Backing::Links);
    let mut tree = small(&store, "x");
    tree.insert(b"bin/tool", file(&store, b"tool", 0o755));
    let digest = store.put_tree(&tree).unwrap();
    store.lower(&digest).unwrap();
    let copies = || {
        let shards = fs::read_dir(store.root().join("links/objects")).unwrap();
        shards.map(|shard| fs::read_dir(shard.unwrap().path()).unwrap().count()).sum::<usize>()
    };
    assert_eq!(copies(), 1);
    store.gc(&BTreeSet::from([digest]), false).unwrap();
    assert_eq!(copies(), 1);
    store.gc(&BTreeSet::new(), false).unwrap();
    assert_eq!(copies(), 0);
}

#[test]
fn collection_waits_for_leases() {
    let (_dir, store) = store(Backing::Links);
    let other = Store::open_with(store.root(), Some(Backing::Links)).unwrap();
    let leases = (store.lease().unwrap(), other.lease().unwrap());
    let digest = other.put(b"in flight").unwrap();
    let options = GcOptions { wait: Duration::from_millis(30), ..GcOptions::default() };
    assert!(matches!(store.gc_with(&crate::Roots::default, &options), Err(Error::Busy(30))));
    assert!(store.contains(&digest));
    std::thread::scope(|scope| {
        let collecting = scope.spawn(|| store.gc(&BTreeSet::new(), false).unwrap());
        drop(leases);
        assert_eq!(collecting.join().unwrap().objects, 1);
    });
    drop(store.lease().unwrap());
}

/// Changes one bit of a file in place, as a disk or an editor would.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_is_kept_and_cannot_be_read_stops_collection() {
    let (_dir, store) = store(Backing::Links);
    let kept = image(&store, "kept");
    let digest = store.put_release(&release(&[kept])).unwrap();
    let pointer = Pointer { active: Some(digest), ..Pointer::default() };
    store.move_pointer("shop", "dev", &pointer, &[], 0).unwrap();
    let other = store.put(b"other").unwrap();
    let stopped = |damaged: &Path, named: &str| {
        let before = fs::read(damaged).unwrap();
        for damage in [flip as fn(&Path), |path| fs::remove_file(path).unwrap()] {
            damage(damaged);
            let error = store.gc(&BTreeSet::new(), false).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
            fs::write(damaged, &before).unwrap();
        }
    };
    // The listing of an image that serves: without it nobody knows its contents.
    stopped(&store.object_path(&kept.tree), "stage shop/dev");
    fs::remove_file(store.spare(&digest)).unwrap();
    stopped(&store.object_path(&digest), "stage shop/dev");
    fs::create_dir_all(store.root().join("refs/locks")).unwrap();
    fs::write(store.root().join("refs/locks/broken"), "sha256:nonsense\n").unwrap();
    assert!(store.gc(&BTreeSet::new(), false).is_err());
    assert!(store.contains(&other) && store.contains(&Digest::of("kept")));
    fs::remove_file(store.root().join("refs/locks/broken")).unwrap();
    store.gc(&BTreeSet::new(), false).unwrap();
    assert!(!store.contains(&other) && store.contains(&Digest::of("kept")));
}

#[test]
fn a_root_of_an_older_kiln_gets_second_copies() {
    let (_dir, store) = store(Backing::Links);
    let kept = image(&store, "kept");
    let digest = store.put_release(&release(&[kept])).unwrap();
    let pointer = Pointer { active: Some(digest), ..Pointer::default() };
    store.move_pointer("shop", "dev", &pointer, &[], 0).unwrap();
    assert_eq!(store.second_copies().unwrap(), 0);
    // As it was before there were any.
    fs::remove_file(store.spare(&digest)).unwrap();
    assert_eq!(store.second_copies().unwrap(), 1);
    assert_eq!(store.fsck(false).unwrap().damage, []);
    // Nothing is copied that is damaged itself.
    fs::remove_file(store.spare(&digest)).unwrap();
    flip(&store.object_path(&digest));
    assert_eq!(store.second_copies().unwrap(), 0);
    assert!(!store.spare(&digest).exists());
}

#[test]
fn a_release_is_healed_from_its_second_copy_and_that_is_said() {
    let (_dir, store) = store(Backing::Links);
    let kept = image(&store, "kept");
    let digest = store.put_release(&release(&[kept])).unwrap();
    let path = store.object_path(&digest);
    for damage in [flip as fn(&Path), |path| fs::remove_file(path).unwrap()] {
        damage(&path);
        store.gc(&BTreeSet::from([digest]), true).ok();
        assert_eq!(store.get_release(&digest).unwrap(), release(&[kept]));
        assert_eq!(store.check().unwrap().corrupt, []);
    }
    let said = store.ledger().read().unwrap().map(Result::unwrap);
    let said: Vec<_> = said.filter(|entry| entry.kind == "damage.healed").collect();
    assert_eq!(said.len(), 2);
    // It goes with the release.
    store.gc(&BTreeSet::new(), false).unwrap();
    assert!(!store.spare(&digest).exists());
}

#[test]
fn references_are_listed_replaced_and_removed() {
    let (_dir, store) = store(Backing::Links);
    let (one, two) = (Digest::of("1"), Digest::of("2"));
    store.set_ref("locks", "shop", &BTreeSet::from([one])).unwrap();
    store.set_ref("locks", "shop", &BTreeSet::from([two, one])).unwrap();
    store.set_ref("pins", "x", &BTreeSet::new()).unwrap();
    let refs = store.refs().unwrap();
    assert_eq!(refs.len(), 2);
    assert_eq!(refs[&("locks".into(), "shop".into())], BTreeSet::from([one, two]));
    store.remove_ref("locks", "shop").unwrap();
    store.remove_ref("locks", "shop").unwrap();
    assert_eq!(store.refs().unwrap().len(), 1);
}

#[test]
fn images_are_listed_with_their_sizes() {
    let (_dir, store) = store(Backing::Links);
    let mut tree = small(&store, "12345");
    tree.insert(b"same", file(&store, b"12345", 0o644));
    let digest = store.put_tree(&tree).unwrap();
    store.put(b"#mtree\nbut no listing").unwrap();
    store.put(b"#mtree 2\nnor this").unwrap();
    let images = store.images().unwrap();
    assert_eq!(images.len(), 1);
    assert_eq!((images[0].tree, images[0].files, images[0].bytes), (digest, 2, 5));
    // With times it is listed too, and keeps what it names where its bytes alone say what it is.
    tree.insert(b"old", file(&store, b"old", 0o644).with_archive_time(1));
    let timed = store.put_tree(&tree).unwrap();
    assert_eq!(store.images().unwrap().len(), 2);
    store.gc(&BTreeSet::from([timed]), false).unwrap();
    assert_eq!(*store.get_tree(&timed).unwrap(), tree);
    for object in tree.objects() {
        assert!(store.contains(&object));
    }
}

#[test]
fn old_caches_of_contexts_go() {
    let (_dir, store) = store(Backing::Links);
    let dir = store.root().join("cache/contexts");
    fs::create_dir_all(&dir).unwrap();
    let now = std::time::SystemTime::now();
    let day = Duration::from_secs(24 * 60 * 60);
    for days in 0..40 {
        let file = fs::File::create(dir.join(format!("{days}"))).unwrap();
        file.set_modified(now - day * days).unwrap();
    }
    assert_eq!(store.gc(&BTreeSet::new(), true).unwrap().contexts, 10);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 40);
    assert_eq!(store.gc(&BTreeSet::new(), false).unwrap().contexts, 10);
    assert!(dir.join("29").exists() && !dir.join("30").exists());
    for n in 0..300 {
        fs::write(dir.join(format!("new {n}")), "x").unwrap();
    }
    assert_eq!(store.gc(&BTreeSet::new(), false).unwrap().contexts, 130);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 200);
}

#[test]
fn what_has_come_of_a_transfer_stays_for_a_day() {
    let (_dir, store) = super::store(Backing::Links);
    let digests = [Digest::of("fresh"), Digest::of("old")];
    for digest in &digests {
        store.partial(digest, 2 << 20).unwrap().add(b"the beginning");
    }
    let path = |digest: &Digest| store.root().join("cache/partial").join(digest.hex());
    let old = std::fs::File::options().write(true).open(path(&digests[1])).unwrap();
    old.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(25 * 60 * 60))
        .unwrap();
    assert_eq!(store.gc(&BTreeSet::new(), true).unwrap().bytes, 13);
    assert!(path(&digests[1]).exists());
    assert_eq!(store.gc(&BTreeSet::new(), false).unwrap().bytes, 13);
    assert!(path(&digests[0]).exists() && !path(&digests[1]).exists());
}
