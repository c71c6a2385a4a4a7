//! Doors of the fuzz targets (`fuzz/`) to readers that nobody else calls from outside. Compiled with
//! `--cfg fuzzing` only.

use std::fs::File;
use std::io;

use kiln_core::tree::{Kind, Node, Tree};
use kiln_store::Store;

use crate::archive::{self, Destination, Limits};
use crate::base;

/// Unpacks `bytes` into a tree that has a little of everything already, as an ADD does.
///
/// # Errors
/// What a user would read.
pub fn unpack(store: &Store, bytes: &[u8]) -> Result<Tree, String> {
    let mut tree = Tree::new();
    tree.insert(b"d", Node::new(Kind::Dir, 0o755));
    tree.insert(b"d/e", Node::new(Kind::Dir, 0o700));
    tree.insert(b"out", Node::new(Kind::Symlink { target: b"d/e".to_vec() }, 0o777));
    tree.insert(b"up", Node::new(Kind::Symlink { target: b"../../etc".to_vec() }, 0o777));
    let limits = Limits { bytes: 64 << 20, ratio: Some(200), entries: 4096 };
    let into = Destination { store, dest: b"d", chown: None, limits };
    archive::unpack(tree, &into, &mut &bytes[..]).map_err(|error| error.to_string())
}

/// Reads a Debian package.
///
/// # Errors
/// As a damaged package's.
pub fn package(store: &Store, file: File) -> io::Result<Tree> {
    base::read_package(store, file)
}
