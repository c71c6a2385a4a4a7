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

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Read, Seek as _, Write as _};

use kiln_core::Digest;
use kiln_core::digest::Hasher;
use kiln_core::tree::{entry_line, parse_entry, parse_path_text, path_text};
use kiln_store::Store;
use tempfile::SpooledTempFile;

use crate::apply::Op;
use crate::error::{Doing as _, Error, Result};
use crate::rootfs::Rootfs;

/// What errors call it.
pub(crate) const NAME: &str = "a layer's listing";

const HEAD: &str = "#kiln layer 1";

/// Listings up to this size are kept in memory until they are stored.
const SMALL: usize = 1 << 20;

/// A listing under construction: a layer may have a million entries.
#[derive(Debug)]
pub(crate) struct Listing {
    text: BufWriter<SpooledTempFile>,
}

impl Listing {
    /// Of the layer whose uncompressed form has this digest, as is to be proved.
    pub(crate) fn new(store: &Store, diff_id: &Digest) -> Result<Self> {
        let spool = tempfile::spooled_tempfile_in(SMALL, store.root().join("tmp"));
        let mut listing = Self { text: BufWriter::new(spool) };
        writeln!(listing.text, "{HEAD}\ndiff {diff_id}").doing(writing)?;
        Ok(listing)
    }

    pub(crate) fn push(&mut self, op: &Op) -> Result<()> {
        let written = match op {
            Op::Put(path, node) => writeln!(self.text, "+ {}", entry_line(path, node)),
            Op::Link(path, to) => {
                writeln!(self.text, "= {} {}", path_text(path), path_text(to))
            }
            Op::Whiteout(path) => writeln!(self.text, "- {}", path_text(path)),
            Op::Opaque(path) => writeln!(self.text, "! {}", path_text(path)),
        };
        written.doing(writing)
    }

    /// Makes it an object.
    pub(crate) fn put(self, store: &Store) -> Result<Digest> {
        let mut text = self.text.into_inner().map_err(|error| error.into_error()).doing(writing)?;
        text.rewind().doing(writing)?;
        Ok(store.put_reader(&mut text)?.0)
    }
}

fn writing() -> String {
    "writing down what a layer does".to_owned()
}

fn reading() -> String {
    "reading what a layer does".to_owned()
}

/// A listing in the store, as lines; what it was is known at its end.
struct Lines {
    text: BufReader<Hashed>,
    line: String,
}

/// Hashes what is read.
struct Hashed {
    file: File,
    hasher: Hasher,
}

impl Read for Hashed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}

impl Lines {
    fn of(store: &Store, listing: &Digest) -> Result<Self> {
        let file = store.open_object(listing)?;
        let text = BufReader::with_capacity(64 << 10, Hashed { file, hasher: Hasher::new() });
        Ok(Self { text, line: String::new() })
    }

    fn next(&mut self) -> Result<Option<&str>> {
        self.line.clear();
        let read = self.text.read_line(&mut self.line);
        let read = read.map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => Error::malformed(NAME, error),
            _ => Error::Io { doing: reading(), source: error },
        })?;
        Ok((read > 0).then(|| self.line.trim_end_matches('\n')))
    }

    /// Reads on to the end: whether it was the listing that it should be. One that was not is not
    /// believed again, so that putting it anew writes it.
    fn check(mut self, store: &Store, listing: &Digest) -> Result<()> {
        io::copy(&mut self.text, &mut io::sink()).doing(reading)?;
        let found = self.text.into_inner().hasher.finish();
        if found == *listing {
            return Ok(());
        }
        store.suspect(listing);
        Err(kiln_store::Error::Corrupt { digest: *listing, found }.into())
    }

    fn head(&mut self) -> Result<Digest> {
        let head = self.next()? == Some(HEAD);
        let diff = self.next()?.and_then(|line| line.strip_prefix("diff ")?.parse().ok());
        match (head, diff) {
            (true, Some(diff)) => Ok(diff),
            _ => Err(Error::malformed(NAME, "it has another head")),
        }
    }
}

/// The digest of the uncompressed layer that a listing is of. All of it is read if that is not the
/// one `expected`: then it may be damaged.
pub(crate) fn diff_id(store: &Store, listing: &Digest, expected: &Digest) -> Result<Digest> {
    let mut lines = Lines::of(store, listing)?;
    let head = lines.head();
    if !matches!(&head, Ok(found) if found == expected) {
        lines.check(store, listing)?;
    }
    head
}

/// Lays the layer over what is there.
pub(crate) fn replay(store: &Store, listing: &Digest, rootfs: &mut Rootfs) -> Result<()> {
    rootfs.begin_layer();
    let mut lines = Lines::of(store, listing)?;
    let laid = lay(&mut lines, rootfs);
    // A listing that was damaged is the cause of whatever its lines did.
    lines.check(store, listing)?;
    laid
}

fn lay(lines: &mut Lines, rootfs: &mut Rootfs) -> Result<()> {
    lines.head()?;
    while let Some(line) = lines.next()? {
        rootfs.apply(operation(line).map_err(|why| Error::malformed(NAME, why))?)?;
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
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        let mut listing = Listing::new(&store, &diff).unwrap();
        ops.iter().for_each(|op| listing.push(op).unwrap());
        let object = listing.put(&store).unwrap();
        assert_eq!(diff_id(&store, &object, &diff).unwrap(), diff);
        let text = String::from_utf8(store.get(&object).unwrap()).unwrap();
        let read: Vec<Op> = text.lines().skip(2).map(|line| operation(line).unwrap()).collect();
        assert_eq!(read, ops);
        let other = store.put(b"#kiln layer 2\ndiff x\n").unwrap();
        assert!(diff_id(&store, &other, &diff).is_err());
        for bad in ["", "+", "? ./a", "= ./a", "- a", "+ ./a type=dir"] {
            assert!(operation(bad).is_err(), "{bad}");
        }
    }
}
