//! The store as a whole, against the real kernel.

mod backings;
mod collect;
mod crash;
mod cuts;
mod damage;
mod held;
mod objects;
mod pointers;
mod size;
pub(crate) mod tape;

use kiln_core::Tree;
use kiln_core::tree::{Kind, Node};

use crate::{Backing, Store};

/// A store in a folder of its own.
pub(super) fn store(backing: Backing) -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(dir.path().join("root"), Some(backing)).unwrap();
    (dir, store)
}

/// Puts `content` and makes a file of it.
pub(super) fn file(store: &Store, content: &[u8], mode: u16) -> Node {
    let digest = store.put(content).unwrap();
    Node::new(Kind::File { size: content.len() as u64, digest }, mode)
}

/// A small tree of one file.
pub(super) fn small(store: &Store, content: &str) -> Tree {
    let mut tree = Tree::new();
    tree.insert(b"etc/motd", file(store, content.as_bytes(), 0o644));
    tree
}
