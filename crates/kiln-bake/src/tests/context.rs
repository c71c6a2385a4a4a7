//! Snapshots: the same source gives the same tree; what is unchanged is not read.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use kiln_core::Digest;
use kiln_store::Store;

use super::fake::summary;
use crate::context::Snapshot;
use crate::ignore::Ignore;
use crate::statcache::{Stamp, StatCache};

fn set_times(root: &Path, time: SystemTime) {
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            set_times(&path, time);
        } else {
            File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        }
    }
}

fn fill(root: &Path, backwards: bool, file: u32, program: u32, dir: u32, time: SystemTime) {
    let mut names: Vec<String> = (0..40).map(|n| format!("d{}/f{n}", n % 5)).collect();
    if backwards {
        names.reverse();
    }
    for name in names {
        let path = root.join(&name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &name).unwrap();
        let mode = if name.ends_with('7') { program } else { file };
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        fs::set_permissions(path.parent().unwrap(), Permissions::from_mode(dir)).unwrap();
    }
    symlink("d1/f1", root.join("link")).unwrap();
    set_times(root, time);
}

#[test]
fn umask_order_and_times_do_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("root")).unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    fill(&one, false, 0o644, 0o755, 0o755, SystemTime::now());
    let past = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    fill(&two, true, 0o600, 0o700, 0o700, past);
    let take = |root: &Path| Snapshot::take(&store, root, &Ignore::default()).unwrap().tree;
    let tree = take(&one);
    assert_eq!(tree.digest(), take(&two).digest());
    let lines = summary(&tree);
    assert!(lines.contains(&"d2/f7 755 0:0 file 5".to_owned()), "{lines:?}");
    assert!(lines.contains(&"d2/f2 644 0:0 file 5".to_owned()), "{lines:?}");
    assert!(lines.contains(&"link 777 0:0 -> d1/f1".to_owned()), "{lines:?}");
}

#[test]
fn the_stat_cache_is_used_and_never_believed_too_early() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("root")).unwrap();
    let context = dir.path().join("app");
    fs::create_dir(&context).unwrap();
    let file = context.join("f");
    let take = || Snapshot::take(&store, &context, &Ignore::default()).unwrap().tree.digest();
    // Same size, changed again and again within a tick: each must be seen.
    let mut seen = BTreeSet::new();
    for round in 0..50 {
        fs::write(&file, format!("{round:04}")).unwrap();
        assert!(seen.insert(take()), "round {round} was not seen");
    }
    let caches = fs::read_dir(dir.path().join("root/cache/contexts"));
    let known = |at: &Path| StatCache::load(at).len();
    assert!(caches.is_err() || caches.unwrap().all(|entry| known(&entry.unwrap().path()) == 0));
    // Once its times lie back far enough, it is remembered.
    let deadline = SystemTime::now() + Duration::from_secs(10);
    let digest = take();
    loop {
        assert_eq!(take(), digest);
        let caches = fs::read_dir(dir.path().join("root/cache/contexts"));
        if caches.is_ok_and(|mut all| all.any(|entry| known(&entry.unwrap().path()) == 1)) {
            break;
        }
        assert!(SystemTime::now() < deadline, "it was never remembered");
    }
    fs::write(&file, "anew").unwrap();
    assert_ne!(take(), digest);
}

#[test]
fn ignore_files_shape_the_tree() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("root")).unwrap();
    let context = dir.path().join("app");
    for file in ["keep", "log/a.log", "log/keep.log", "src/t/x", "src/t/y", "empty/.gone"] {
        let path = context.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }
    let paths = |text: &str| {
        let ignore = Ignore::parse(text, Path::new("x")).unwrap();
        let tree = Snapshot::take(&store, &context, &ignore).unwrap().tree;
        let names = tree.entries.keys().skip(1);
        names.map(|path| String::from_utf8_lossy(path).into_owned()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        paths("**/*.log\n!log/keep.log\n**/.gone\nsrc/*/y"),
        "empty keep log log/keep.log src src/t src/t/x"
    );
    assert_eq!(paths("*\n!src/t/x"), "src src/t src/t/x");
    assert_eq!(paths("*\n!keep"), "keep");
}

#[test]
fn a_missing_context_is_the_users_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("root")).unwrap();
    let error = Snapshot::take(&store, &dir.path().join("none"), &Ignore::default()).unwrap_err();
    assert!(error.is_usage());
}

/// What the cache says of an unchanged file is believed: it is not read. The time is printed.
#[test]
fn a_thousand_unchanged_files_are_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("root")).unwrap();
    let context = dir.path().join("app");
    for n in 0..1000 {
        let path = context.join(format!("d{}/f{n}", n % 20));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("content {n}")).unwrap();
    }
    let take = || Snapshot::take(&store, &context, &Ignore::default()).unwrap();
    let deadline = SystemTime::now() + Duration::from_secs(30);
    let cache = loop {
        take();
        let caches = fs::read_dir(dir.path().join("root/cache/contexts"));
        let mut caches = caches.into_iter().flatten().map(|entry| entry.unwrap().path());
        match caches.find(|at| StatCache::load(at).len() == 1000) {
            Some(at) => break at,
            None => assert!(SystemTime::now() < deadline, "never all remembered"),
        }
    };
    // A cache that lies about every file: only who does not read repeats it.
    let lie = Digest::of("a lie");
    let names: Vec<Vec<u8>> = take().tree.entries.into_keys().collect();
    let stamp = |path: &[u8]| {
        let path = context.join(std::ffi::OsStr::from_bytes(path));
        Stamp::of(&fs::symlink_metadata(path).unwrap())
    };
    let files = names.iter().filter(|name| name.contains(&b'f'));
    let files = files.map(|name| (name.as_slice(), stamp(name), lie));
    StatCache::save(&cache, files);
    let mut best = Duration::MAX;
    for _ in 0..20 {
        let begun = std::time::Instant::now();
        let tree = take().tree;
        best = best.min(begun.elapsed());
        assert_eq!((tree.entries.len(), tree.objects()), (1021, BTreeSet::from([lie])));
    }
    eprintln!("1,000 unchanged files: {best:?}");
}
