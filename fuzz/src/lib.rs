//! What the targets share: a store that lives as long as the process.

use std::fs::File;
use std::io::{Seek, Write};
use std::sync::OnceLock;

use kiln_core::tree::Tree;
use kiln_store::Store;

/// A store in a folder that is removed when the process ends as it should.
pub fn store() -> &'static Store {
    static STORE: OnceLock<(Store, tempfile::TempDir)> = OnceLock::new();
    let (store, _) = STORE.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a temporary folder");
        (Store::open(dir.path()).expect("a store"), dir)
    });
    store
}

/// A file in memory.
pub fn file(bytes: &[u8]) -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::memfd_create("fuzz", flags).expect("a file in memory"));
    file.write_all(bytes).expect("writing to memory");
    file.rewind().expect("rewinding");
    file
}

/// What every tree from outside has to be: well-formed in the sense of its own listing, with all
/// contents in the store.
pub fn assert_whole(tree: &Tree) {
    let listing = tree.listing();
    let again = Tree::parse(&listing).expect("the listing of a tree is one");
    assert_eq!(again.listing(), listing);
    for object in tree.objects() {
        assert!(store().contains(&object), "{object} is missing");
    }
}
