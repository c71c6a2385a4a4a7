//! Tree → layer: one canonical tar of everything in it.

use std::io::{self, Read, Write};

use kiln_core::Tree;
use kiln_core::digest::Hasher;
use kiln_core::tree::Kind;
use kiln_store::Store;

use crate::error::{Doing as _, Error, Result};
use crate::header;

/// Writes the tree as a tar, in the order of its entries, which has every directory before what is
/// in it and every file before its further names. Contents are checked on the way.
pub(crate) fn write(store: &Store, tree: &Tree, out: &mut dyn Write) -> Result<()> {
    let writing = || "writing the layer".to_owned();
    let mut buffer = vec![0; 256 << 10];
    for (path, node) in &tree.entries {
        out.write_all(&header::of_node(path, node)?).doing(writing)?;
        let Kind::File { size, digest } = &node.kind else { continue };
        let mut object = store.open_object(digest)?.take(*size);
        let mut hasher = Hasher::new();
        let mut copied = 0;
        loop {
            let read = match object.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).doing(|| format!("reading object {digest}")),
            };
            hasher.update(&buffer[..read]);
            copied += read as u64;
            out.write_all(&buffer[..read]).doing(writing)?;
        }
        let found = hasher.finish();
        if found != *digest || copied != *size {
            return Err(Error::Store(kiln_store::Error::Corrupt { digest: *digest, found }));
        }
        out.write_all(header::padding(*size)).doing(writing)?;
    }
    out.write_all(&header::END).doing(writing)
}
