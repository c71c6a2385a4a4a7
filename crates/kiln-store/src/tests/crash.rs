//! Killed at any moment, the store is whole at the next open.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use kiln_core::{Digest, ImageConfig, ImageId};

use super::{small, store};
use crate::{Backing, Error, Pointer, Store};

const ROOT: &str = "KILN_STORE_TEST_CRASH_ROOT";

/// Not a test of its own: the process that [`killed_at_any_moment_it_is_whole`] kills.
#[test]
fn victim() {
    let Some(root) = std::env::var_os(ROOT) else { return };
    let store = Store::open_with(Path::new(&root), Some(Backing::Composefs)).unwrap();
    let start = std::process::id();
    for nth in 0.. {
        let content = format!("{start} {nth} {}", "x".repeat((nth as usize * 7919) % 200_000));
        let tree = store.put_tree(&small(&store, &content)).unwrap();
        let config = store.put_config(&ImageConfig::default()).unwrap();
        store.lower(&tree).unwrap();
        let image = ImageId { tree, config };
        store.set_step_result(&Digest::of(format!("{start} {nth}")), &image).unwrap();
        store.set_ref("locks", "x", &BTreeSet::from([tree])).unwrap();
        let scratch = store.scratch_dir().unwrap();
        fs::write(scratch.path().join("half"), "x").unwrap();
        store.flush().unwrap();
        let pointer = Pointer { active: Some(tree), ..Pointer::default() };
        let at = store.pointer("shop", "dev").unwrap().map_or(0, |at| at.generation);
        store.move_pointer("shop", "dev", &pointer, &[], at).unwrap();
        if nth == 0 {
            eprintln!("running");
        }
    }
}

#[test]
fn killed_at_any_moment_it_is_whole() {
    let (_dir, store) = store(Backing::Composefs);
    let root = store.root().to_owned();
    let mut last = 0;
    for round in 0..30_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::crash::victim", "--nocapture"])
            .env(ROOT, &root)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Once it runs, it is killed after a time that differs in every round.
        child.stderr.as_mut().unwrap().read_exact(&mut [0; 7]).unwrap();
        let until = Instant::now() + Duration::from_micros(round * 1_371 % 20_000);
        while Instant::now() < until {
            thread::yield_now();
        }
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));

        let store = Store::open_with(&root, Some(Backing::Composefs)).unwrap();
        let pointer = store.pointer("shop", "dev").unwrap().unwrap();
        assert!(pointer.generation > last, "round {round}");
        last = pointer.generation;
        let file = fs::read(root.join("stages/shop/dev.json")).unwrap();
        assert_eq!(serde_json::from_slice::<Pointer>(&file).unwrap(), pointer);
        store.ledger().verify().unwrap();
        let tree = store.get_tree(&pointer.active.unwrap()).unwrap();
        for object in tree.objects() {
            store.get(&object).unwrap();
        }
        crate::mount::mount_image(&store.lower(&pointer.active.unwrap()).unwrap(), None).unwrap();
        assert_eq!(store.refs().unwrap().len(), 1);
        let left = fs::read_dir(root.join("tmp")).unwrap().map(|entry| entry.unwrap().path());
        let left = left.filter(|path| *path != store.inner.nursery).collect::<Vec<_>>();
        assert_eq!(left, Vec::<std::path::PathBuf>::new(), "round {round}");
    }
    let report = store.check().unwrap();
    assert_eq!((report.corrupt, report.foreign), (vec![], vec![]));
    for dir in ["stages/shop", "refs/locks", "cache/steps", "ledger", "."] {
        for entry in fs::read_dir(root.join(dir)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(!name.contains(".new."), "{dir}/{name}");
        }
    }
}

/// What a power cut does to contents that were never synced: the names are there, the bytes not.
#[test]
fn after_a_power_cut_torn_contents_are_dropped() {
    let (_dir, store) = store(Backing::Composefs);
    let root = store.root().to_owned();
    let synced = store.put(b"synced").unwrap();
    store.flush().unwrap();
    let torn = store.put(b"torn").unwrap();
    let intact = store.put(b"intact").unwrap();
    let tree = store.put_tree(&small(&store, "derived")).unwrap();
    let config = store.put_config(&ImageConfig::default()).unwrap();
    store.lower(&tree).unwrap();
    let key = Digest::of("step");
    store.set_step_result(&key, &ImageId { tree, config }).unwrap();
    drop(store);
    // As if the marker, and a folder in `tmp/`, were from before a reboot.
    fs::write(crate::objects::object_path(&root, &torn), "\0\0\0\0").unwrap();
    let marker = fs::read_dir(root.join("unsynced")).unwrap().next().unwrap().unwrap().path();
    fs::rename(marker, root.join("unsynced/unsynced.00000000.1.1.0")).unwrap();
    fs::create_dir_all(root.join("tmp/scratch.00000000.1.1.0.abc/deep")).unwrap();

    let store = Store::open_with(&root, Some(Backing::Composefs)).unwrap();
    assert!(matches!(store.get(&torn), Err(Error::Missing(_))));
    assert!(store.contains(&synced) && store.contains(&intact) && store.contains(&tree));
    assert_eq!(store.step_result(&key), None);
    assert!(!root.join(format!("images/{}.erofs", tree.hex())).exists());
    assert_eq!(fs::read_dir(root.join("unsynced")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(root.join("tmp")).unwrap().count(), 0);
    store.lower(&tree).unwrap();
}

#[test]
fn what_a_dead_process_never_flushed_is_flushed_by_the_next() {
    let (_dir, store) = store(Backing::Links);
    let root = store.root().to_owned();
    store.put(b"unflushed").unwrap();
    drop(store);
    let marker = fs::read_dir(root.join("unsynced")).unwrap().next().unwrap().unwrap().path();
    let name = marker.file_name().unwrap().to_str().unwrap().to_owned();
    let mut parts: Vec<&str> = name.split('.').collect();
    parts[3] = "1";
    fs::rename(&marker, root.join("unsynced").join(parts.join("."))).unwrap();
    let store = Store::open_with(&root, Some(Backing::Links)).unwrap();
    assert!(store.inner.unsynced.is_dirty());
    store.flush().unwrap();
    assert_eq!(fs::read_dir(root.join("unsynced")).unwrap().count(), 0);
}

#[test]
fn scratch_folders_live_as_long_as_their_owner() {
    let (_dir, store) = store(Backing::Links);
    let scratch = store.scratch_dir().unwrap();
    fs::write(scratch.path().join("mine"), "x").unwrap();
    Store::open_with(store.root(), Some(Backing::Links)).unwrap();
    assert!(scratch.path().join("mine").exists(), "another open must not take it away");
    let path = scratch.path().to_owned();
    drop(scratch);
    assert!(!path.exists());
}
