//! Derived files: `fsck` reads them all, tells what is wrong, and makes it again.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use kiln_core::Digest;
use kiln_core::tree::{Kind, Node, Tree};

use super::{file, store};
use crate::{Backing, Store};

/// Another byte in place, and the time as it was: what a disk does.
fn rot(path: &Path) {
    let times = fs::symlink_metadata(path).unwrap().modified().unwrap();
    let mut bytes = fs::read(path).unwrap();
    bytes[0] ^= 4;
    fs::write(path, bytes).unwrap();
    fs::File::open(path).unwrap().set_modified(times).unwrap();
}

/// Two files of one content, one with another mode; a link; and an object that is itself a file of
/// the tree.
fn tree(store: &Store) -> (Digest, Tree) {
    let mut tree = Tree::new();
    tree.insert(b"plain", file(store, b"plain", 0o644));
    tree.insert(b"bin/tool", file(store, b"tool", 0o755));
    tree.insert(b"bin/again", file(store, b"tool", 0o755));
    tree.insert(b"bin/link", Node::new(Kind::Symlink { target: b"tool".to_vec() }, 0o777));
    (store.put_tree(&tree).unwrap(), tree)
}

fn told(store: &Store, repair: bool) -> Vec<String> {
    let damage = store.fsck(repair).unwrap().damage;
    damage.into_iter().map(|one| format!("{}: {}", one.path, one.what)).collect()
}

#[test]
fn every_file_of_a_folder_of_links_is_read_and_replaced_in_place() {
    let (_dir, store) = store(Backing::Links);
    let (digest, _) = tree(&store);
    store.lower(&digest).unwrap();
    assert_eq!(told(&store, false), [""; 0]);
    let dir = store.root().join("links/trees").join(digest.hex());
    for name in ["bin/tool", "bin/again"] {
        let at = dir.join(name);
        rot(&at);
        let open = fs::File::open(&at).unwrap();
        let before = fs::symlink_metadata(&at).unwrap();
        assert!(told(&store, false)[0].ends_with(&format!("{name}: its content is another one")));
        assert_eq!(told(&store, true).len(), 1);
        assert_eq!(told(&store, false), [""; 0]);
        let after = fs::symlink_metadata(&at).unwrap();
        assert_eq!(fs::read(&at).unwrap(), b"tool");
        assert_eq!((after.mode(), after.mtime()), (before.mode(), before.mtime()));
        assert_eq!(open.metadata().unwrap().ino(), before.ino(), "who has it open keeps it");
        assert_ne!(after.ino(), before.ino());
    }
    // The object itself is in the tree: first that has to be put again.
    rot(&dir.join("plain"));
    assert_eq!(told(&store, true).len(), 2, "the object and the file");
    store.put(b"plain").unwrap();
    told(&store, true);
    assert_eq!(told(&store, false), [""; 0]);
    assert_eq!(fs::read(dir.join("plain")).unwrap(), b"plain");
    fs::remove_file(dir.join("bin/link")).unwrap();
    let told = told(&store, false);
    assert!(told.iter().any(|one| one.ends_with("bin/link: it is not there")), "{told:?}");
}

#[test]
fn no_folder_takes_a_copy_that_was_written_to_or_that_nobody_can_vouch_for() {
    let (_dir, store) = store(Backing::Links);
    let (digest, mut tree) = tree(&store);
    store.lower(&digest).unwrap();
    let copies = || {
        let shards = fs::read_dir(store.root().join("links/objects")).unwrap();
        let files = shards.flat_map(|shard| fs::read_dir(shard.unwrap().path()).unwrap());
        files.map(|file| file.unwrap().path()).collect::<Vec<_>>()
    };
    assert_eq!(copies().len(), 2);
    // Somebody wrote to it: that shows.
    for copy in copies() {
        fs::write(copy, b"loot").unwrap();
    }
    tree.insert(b"other", file(&store, b"other", 0o600));
    let other = store.put_tree(&tree).unwrap();
    store.lower(&other).unwrap();
    let dir = store.root().join("links/trees");
    assert_eq!(fs::read(dir.join(other.hex()).join("bin/tool")).unwrap(), b"tool");
    // It is in no folder any more, and nothing shows: fsck takes it away.
    for tree in [digest, other] {
        crate::mount::remove_tree(dir.join(tree.hex())).unwrap();
    }
    copies().iter().for_each(|copy| rot(copy));
    store.fsck(true).unwrap();
    assert_eq!(copies(), [""; 0].map(std::path::PathBuf::from));
    let again = Store::open_with(store.root(), Some(Backing::Links)).unwrap();
    again.lower(&digest).unwrap();
    assert_eq!(fs::read(dir.join(digest.hex()).join("bin/tool")).unwrap(), b"tool");
    assert_eq!(told(&again, false), [""; 0]);
}

#[test]
fn what_is_known_of_contexts_is_checked_by_its_sum() {
    let (_dir, store) = store(Backing::Links);
    let dir = store.root().join("cache/contexts");
    fs::create_dir_all(&dir).unwrap();
    let mut bytes = b"what is known".to_vec();
    bytes.extend_from_slice(Digest::of(b"what is known").as_bytes());
    fs::write(dir.join("good"), &bytes).unwrap();
    assert_eq!(told(&store, false), [""; 0]);
    rot(&dir.join("good"));
    assert_eq!(told(&store, false), ["cache/contexts/good: it does not fit its sum"]);
    told(&store, true);
    assert!(!dir.join("good").exists());
}

#[test]
fn objects_that_are_asked_for_are_hashed_and_no_others() {
    let (_dir, store) = store(Backing::Links);
    let [good, bad, gone] = ["good", "bad", "gone"].map(|text| store.put(text.as_bytes()).unwrap());
    rot(&store.object_path(&bad));
    fs::remove_file(store.object_path(&gone)).unwrap();
    assert_eq!(store.check_these(&[good].into()), []);
    let found: Vec<Digest> =
        store.check_these(&[good, bad, gone].into()).iter().map(|one| one.digest).collect();
    assert_eq!(found.len(), 2);
    assert!(found.contains(&bad) && found.contains(&gone));
}
