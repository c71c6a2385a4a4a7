//! Tar headers, byte for byte as Kiln writes them.
//!
//! POSIX ustar where it can say all there is, with a PAX extended header before it where it cannot
//! (POSIX.1-2017, `pax`). Names are raw bytes in both. Written here and not by a library because
//! the bytes are a promise: they decide every manifest digest.

use std::collections::BTreeMap;

use kiln_core::tree::{Kind, Node};
use kiln_store::EPOCH;

use crate::error::{Error, Result, shown};

/// Tar's unit.
pub(crate) const BLOCK: usize = 512;

/// Largest value of an octal field of seven digits: owners and device numbers.
const SEVEN_DIGITS: u64 = 0o7_777_777;

/// Largest value of an octal field of eleven digits: sizes.
const ELEVEN_DIGITS: u64 = 0o77_777_777_777;

/// Bytes of the name and link fields.
const NAME: usize = 100;

/// Bytes of the prefix field.
const PREFIX: usize = 155;

/// Name of the entry that a PAX header stands in, as Python's `tarfile` has it: no tool shows it.
const PAX_NAME: &[u8] = b"././@PaxHeader";

/// The headers of one entry of a layer: PAX records if they are needed, and the entry itself.
pub(crate) fn of_node(path: &[u8], node: &Node) -> Result<Vec<u8>> {
    let mut name = path.to_vec();
    if node.is_dir() {
        name.extend_from_slice(if path.is_empty() { b"./" } else { b"/" });
    }
    let (flag, link, device): (u8, &[u8], _) = match &node.kind {
        Kind::File { .. } => (b'0', b"", None),
        Kind::Hardlink { to } => (b'1', to, None),
        Kind::Symlink { target } => (b'2', target, None),
        Kind::CharDevice { major, minor } => (b'3', b"", Some((*major, *minor))),
        Kind::BlockDevice { major, minor } => (b'4', b"", Some((*major, *minor))),
        Kind::Dir => (b'5', b"", None),
        Kind::Fifo => (b'6', b"", None),
    };
    let mut header = Header::new(flag);
    let mut records = Records::default();
    if header.name(&name).is_none() {
        records.text(b"path", &name);
    }
    if !header.field(157, NAME, link) {
        records.text(b"linkpath", link);
    }
    header.octal(100, 8, u64::from(node.mode));
    for (key, at, id) in [(b"uid", 108, node.uid), (b"gid", 116, node.gid)] {
        if !header.octal(at, 8, u64::from(id)) {
            records.set(key, id.to_string().as_bytes());
        }
    }
    let time = node.time.to_string();
    if !u64::try_from(node.time).is_ok_and(|time| header.octal(136, 12, time)) {
        records.set(b"mtime", time.as_bytes());
    }
    if !header.octal(124, 12, node.size()) {
        records.set(b"size", node.size().to_string().as_bytes());
    }
    if let Some((major, minor)) = device
        && !(header.octal(329, 8, major.into()) && header.octal(337, 8, minor.into()))
    {
        let why = format!("tar has no device numbers like {major}, {minor}");
        return Err(Error::Unfit { path: shown(path), why });
    }
    // Further names of a file share its attributes.
    if !matches!(node.kind, Kind::Hardlink { .. }) {
        for (name, value) in &node.xattrs {
            if name.contains(&b'=') {
                let name = name.escape_ascii();
                let why = format!("tar has no extended attributes with `=` in their name: {name}");
                return Err(Error::Unfit { path: shown(path), why });
            }
            records.set(&[b"SCHILY.xattr.", name.as_slice()].concat(), value);
        }
    }
    let mut out = records.headers();
    out.extend_from_slice(&header.finish());
    Ok(out)
}

/// The header of a plain file or folder of an archive. Names are short and ASCII.
pub(crate) fn of_member(name: &str, size: Option<u64>) -> Vec<u8> {
    let mut header = Header::new(if size.is_some() { b'0' } else { b'5' });
    let mut records = Records::default();
    header.name(name.as_bytes());
    header.octal(100, 8, if size.is_some() { 0o644 } else { 0o755 });
    let size = size.unwrap_or(0);
    if !header.octal(124, 12, size) {
        records.set(b"size", size.to_string().as_bytes());
    }
    let mut out = records.headers();
    out.extend_from_slice(&header.finish());
    out
}

/// Zeros that fill `size` bytes of content up to a whole block.
pub(crate) fn padding(size: u64) -> &'static [u8] {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    let over = (size % BLOCK as u64) as usize;
    if over == 0 { &[] } else { &ZEROS[over..] }
}

/// The end of an archive.
pub(crate) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

struct Header([u8; BLOCK]);

impl Header {
    fn new(flag: u8) -> Self {
        let mut header = Self([0; BLOCK]);
        header.0[156] = flag;
        header.0[257..265].copy_from_slice(b"ustar\x0000");
        header.octal(100, 8, 0);
        header.octal(108, 8, 0);
        header.octal(116, 8, 0);
        header.octal(124, 12, 0);
        header.octal(136, 12, EPOCH.unsigned_abs());
        header.octal(329, 8, 0);
        header.octal(337, 8, 0);
        header
    }

    /// Puts the name, split at the last slash that leaves a fitting prefix. `None` if there is no
    /// room; then as much of it as there is room for.
    fn name(&mut self, name: &[u8]) -> Option<()> {
        if self.field(0, NAME, name) {
            return Some(());
        }
        let split = name.iter().take(PREFIX + 1).rposition(|byte| *byte == b'/');
        let fits = split.filter(|at| {
            let rest = name.len() - at - 1;
            *at > 0 && (1..=NAME).contains(&rest)
        })?;
        self.field(345, PREFIX, &name[..fits]);
        self.0[..NAME].fill(0);
        self.field(0, NAME, &name[fits + 1..]);
        Some(())
    }

    /// Puts as much of `bytes` as there is room for; whether that is all.
    fn field(&mut self, at: usize, room: usize, bytes: &[u8]) -> bool {
        let fitting = bytes.len().min(room);
        self.0[at..at + fitting].copy_from_slice(&bytes[..fitting]);
        fitting == bytes.len()
    }

    /// Puts a number in octal, with leading zeros and a NUL. One that is too large is 0.
    fn octal(&mut self, at: usize, width: usize, number: u64) -> bool {
        let fits = number <= if width == 12 { ELEVEN_DIGITS } else { SEVEN_DIGITS };
        let text = format!("{:0digits$o}\0", if fits { number } else { 0 }, digits = width - 1);
        self.0[at..at + width].copy_from_slice(text.as_bytes());
        fits
    }

    fn finish(mut self) -> [u8; BLOCK] {
        self.0[148..156].fill(b' ');
        let sum: u32 = self.0.iter().map(|byte| u32::from(*byte)).sum();
        self.0[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

/// PAX records, in bytewise order of their keys.
#[derive(Default)]
struct Records(BTreeMap<Vec<u8>, Vec<u8>>);

impl Records {
    fn set(&mut self, key: &[u8], value: &[u8]) {
        self.0.insert(key.to_vec(), value.to_vec());
    }

    /// A name. The standard has names in UTF-8, unless the header says otherwise.
    fn text(&mut self, key: &[u8], value: &[u8]) {
        if std::str::from_utf8(value).is_err() {
            self.set(b"hdrcharset", b"BINARY");
        }
        self.set(key, value);
    }

    fn headers(&self) -> Vec<u8> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let mut body = Vec::new();
        // How names are to be read stands before them.
        let charset: &[u8] = b"hdrcharset";
        let first = self.0.get_key_value(charset);
        let rest = self.0.iter().filter(|(key, _)| key.as_slice() != charset);
        for (key, value) in first.into_iter().chain(rest) {
            let payload = key.len() + value.len() + 3;
            // The length counts its own digits.
            let digits = |length: usize| length.to_string().len();
            let length = payload + digits(payload + digits(payload));
            body.extend_from_slice(format!("{length} ").as_bytes());
            body.extend_from_slice(key);
            body.push(b'=');
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        let mut header = Header::new(b'x');
        header.field(0, NAME, PAX_NAME);
        header.octal(100, 8, 0o644);
        header.octal(124, 12, body.len() as u64);
        let mut out = header.finish().to_vec();
        out.extend_from_slice(&body);
        out.extend_from_slice(padding(body.len() as u64));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_are_split_where_that_fits() {
        let name = |length: usize| vec![b'n'; length];
        let path = [name(120), name(90)].join(&b'/');
        let node = Node::new(Kind::Fifo, 0o644);
        let header = of_node(&path, &node).unwrap();
        assert_eq!(header.len(), BLOCK);
        assert_eq!(header[345..465], name(120));
        assert_eq!(header[..90], name(90));
        assert_eq!(header[90], 0);
        let header = of_node(&name(101), &node).unwrap();
        assert_eq!(header.len(), 3 * BLOCK);
        assert!(header[BLOCK..].starts_with(b"111 path=nnn"));
    }

    #[test]
    fn a_pax_length_counts_itself() {
        for length in [90, 91, 92, 93, 990, 991, 992] {
            let mut records = Records::default();
            records.set(b"path", &vec![b'x'; length]);
            let headers = records.headers();
            let body = &headers[BLOCK..];
            let end = body.iter().position(|byte| *byte == b'\n').unwrap() + 1;
            let stated = body.split(|byte| *byte == b' ').next().unwrap();
            assert_eq!(String::from_utf8_lossy(stated), end.to_string());
        }
    }

    #[test]
    fn what_tar_cannot_say_is_refused() {
        let mut node = Node::new(Kind::CharDevice { major: 1 << 22, minor: 0 }, 0o600);
        assert!(matches!(of_node(b"dev/x", &node), Err(Error::Unfit { .. })));
        node.kind = Kind::Dir;
        node.xattrs.insert(b"user.a=b".to_vec(), Vec::new());
        assert!(matches!(of_node(b"d", &node), Err(Error::Unfit { .. })));
    }
}
