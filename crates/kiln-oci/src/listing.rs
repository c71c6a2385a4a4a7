//! What one layer does, as text that is kept in the store: so the next image that has the layer
//! need not fetch it.
//!
//! ```text
//! #kiln layer 1
//! diff sha256:…                          digest of the uncompressed layer
//! + ./etc type=dir mode=0755 uid=0 gid=0 time=…      an entry, as in a tree listing of version 2
//! = ./bin/b ./bin/a                      a further name of what is at the second path
//! - ./etc/old                            hides what lower layers have there
//! ! ./var/cache                          hides what lower layers have in there
//! ```
//!
//! In the order of the archive, which counts. `docs/images.md` has the format.

use std::fmt::Write as _;

use kiln_core::Digest;
use kiln_core::tree::{entry_line, parse_entry, parse_path_text, path_text};

use crate::apply::Op;
use crate::error::{Error, Result};
use crate::rootfs::Rootfs;

const HEAD: &str = "#kiln layer 1";

/// A listing under construction.
#[derive(Debug)]
pub(crate) struct Listing {
    text: String,
}

impl Listing {
    /// Of the layer whose uncompressed form has this digest, as is to be proved.
    pub(crate) fn new(diff_id: &Digest) -> Self {
        Self { text: format!("{HEAD}\ndiff {diff_id}\n") }
    }

    pub(crate) fn push(&mut self, op: &Op) {
        let _ = match op {
            Op::Put(path, node) => writeln!(self.text, "+ {}", entry_line(path, node)),
            Op::Link(path, to) => {
                writeln!(self.text, "= {} {}", path_text(path), path_text(to))
            }
            Op::Whiteout(path) => writeln!(self.text, "- {}", path_text(path)),
            Op::Opaque(path) => writeln!(self.text, "! {}", path_text(path)),
        };
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

/// The digest of the uncompressed layer that a listing is of.
pub(crate) fn diff_id(text: &str) -> Result<Digest> {
    let mut lines = text.lines();
    let head = lines.next();
    let diff = lines.next().and_then(|line| line.strip_prefix("diff "));
    match (head == Some(HEAD), diff.and_then(|diff| diff.parse().ok())) {
        (true, Some(diff)) => Ok(diff),
        _ => Err(Error::malformed("a layer's listing", "it has another head")),
    }
}

/// Lays the layer over what is there.
pub(crate) fn replay(text: &str, rootfs: &mut Rootfs) -> Result<()> {
    rootfs.begin_layer();
    for line in text.lines().skip(2) {
        rootfs.apply(operation(line).map_err(|why| Error::malformed("a layer's listing", why))?)?;
    }
    Ok(())
}

fn operation(line: &str) -> std::result::Result<Op, String> {
    let (sign, rest) = line.split_once(' ').ok_or("a line has no sign")?;
    Ok(match sign {
        "+" => {
            let (path, node) = parse_entry(rest)?;
            Op::Put(path, node)
        }
        "=" => {
            let (path, to) = rest.split_once(' ').ok_or("a link has no target")?;
            Op::Link(parse_path_text(path)?, parse_path_text(to)?)
        }
        "-" => Op::Whiteout(parse_path_text(rest)?),
        "!" => Op::Opaque(parse_path_text(rest)?),
        other => return Err(format!("the sign `{other}` is unknown")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_core::tree::{Kind, Node};

    #[test]
    fn operations_come_back_as_they_were() {
        let mut file = Node::new(Kind::File { size: 1, digest: Digest::of("x") }, 0o4755);
        (file.uid, file.gid, file.time) = (3, 4, 5);
        file.xattrs.insert(b"user.a b".to_vec(), vec![0, 255]);
        let link = Node::new(Kind::Symlink { target: b"a b\n".to_vec() }, 0);
        let ops = [
            Op::Put(Vec::new(), Node::new(Kind::Dir, 0o755)),
            Op::Put(b"a b".to_vec(), file),
            Op::Put(b"\xff=".to_vec(), link),
            Op::Link(b"c d".to_vec(), b"a b".to_vec()),
            Op::Whiteout(b"old one".to_vec()),
            Op::Opaque(Vec::new()),
        ];
        let diff = Digest::of("layer");
        let mut listing = Listing::new(&diff);
        ops.iter().for_each(|op| listing.push(op));
        assert_eq!(diff_id(listing.text()).unwrap(), diff);
        let read: Vec<Op> =
            listing.text().lines().skip(2).map(|line| operation(line).unwrap()).collect();
        assert_eq!(read, ops);
        assert!(diff_id("#kiln layer 2\ndiff x\n").is_err());
        for bad in ["", "+", "? ./a", "= ./a", "- a", "+ ./a type=dir"] {
            assert!(operation(bad).is_err(), "{bad}");
        }
    }
}
