//! Archives that mean harm: each is refused, and says with which entry.

use std::io::{self, Read};

use kiln_core::Tree;
use tar::EntryType;

use super::kitchen::{Kitchen, Tar};
use crate::archive::{Destination, Limits, unpack};

#[test]
fn names_and_links_that_lead_out() {
    let kitchen = Kitchen::new();
    for (archive, entry, what) in [
        (Tar::new().file("../x", ""), "../x", "leads out"),
        (Tar::new().file("a/../../x", ""), "a/../../x", "leads out"),
        (Tar::new().file("/../x", ""), "/../x", "leads out"),
        (Tar::new().symlink("l", "..").file("l/x", ""), "l/x", "leads out"),
        (Tar::new().dir("d").symlink("d/l", "../../x").file("d/l/y", ""), "d/l/y", "leads out"),
        (Tar::new().link("h", "../../etc/shadow"), "h", "leads out"),
        (Tar::new().link("h", "/etc/shadow"), "h", "not there"),
        (Tar::new().link("h", "h"), "h", "not there"),
        (Tar::new().dir("d/").link("h", "d"), "h", "a directory"),
        (Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", ""), "a/x", "too many"),
        (Tar::new().file("f", "").file("f/x", ""), "f/x", "no directory"),
        (Tar::new().symlink("l", ""), "l", "empty"),
        (Tar::new().entry(EntryType::new(b'V'), b"label", b"", b""), "label", "type `V`"),
        (Tar::new().entry(EntryType::Char, b"null", b"", b""), "null", "device 0:0"),
        (Tar::new().pax(&[("path", b"n".repeat(256).as_slice())]).file("x", ""), "nnn", "too long"),
        (
            Tar::new().pax(&[("path", b"n/".repeat(3000).as_slice())]).file("x", ""),
            "n/n",
            "too long",
        ),
        (Tar::new().pax(&[("uid", b"4294967295")]).file("x", ""), "x", "4294967295"),
        (Tar::new().pax(&[("uid", b"99999999999")]).file("x", ""), "x", "99999999999"),
        (
            Tar::new().pax(&[("SCHILY.xattr.security.capability", b"?")]).file("x", ""),
            "x",
            "security.capability",
        ),
    ] {
        let error = kitchen.error(&archive.done());
        assert!(error.contains(entry) && error.contains(what), "{entry}: {error}");
    }
}

#[test]
fn headers_that_lie() {
    let kitchen = Kitchen::new();
    let good = Tar::new().file("a", "one").file("b", "two").done();
    let mut sum = good.clone();
    sum[1024] ^= 1;
    assert!(kitchen.error(&sum).contains("checksum"));
    assert!(kitchen.error(&good[..1100]).contains("ends in the middle"));
    let huge = |kind: EntryType, size: u64| {
        let mut bytes = Tar::new().file("a", "1").entry(kind, b"x", b"", b"").done();
        let header = tar::Header::from_byte_slice(&bytes[1024..1536]);
        let mut header = header.clone();
        header.set_size(size);
        header.set_cksum();
        bytes[1024..1536].copy_from_slice(header.as_bytes());
        kitchen.error(&bytes)
    };
    assert!(huge(EntryType::GNULongName, 8 << 30).contains("never needed"));
    assert!(huge(EntryType::XHeader, 8 << 30).contains("never needed"));
    assert!(huge(EntryType::Regular, 8 << 30).contains("ends in the middle"));
    assert!(huge(EntryType::Regular, u64::MAX).contains("impossible size"));
    for map in ["0,5,3,5", "9,1", "0,99999999", "x"] {
        let keys = [
            ("GNU.sparse.size", &b"9"[..]),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.map", map.as_bytes()),
        ];
        let error = kitchen.error(&Tar::new().pax(&keys).file("s", "0123456789").done());
        assert!(error.contains("damaged"), "{map}: {error}");
    }
}

/// Endless, and cheap.
struct Repeated<'a> {
    block: &'a [u8],
    at: usize,
    read: u64,
}

impl Read for Repeated<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = (self.block.len() - self.at).min(buffer.len());
        buffer[..count].copy_from_slice(&self.block[self.at..self.at + count]);
        self.at = (self.at + count) % self.block.len();
        self.read += count as u64;
        Ok(count)
    }
}

fn unpack_within(limits: Limits, from: &mut dyn Read) -> String {
    let kitchen = Kitchen::new();
    let into = Destination { store: &kitchen.store, dest: b"", chown: None, limits };
    unpack(Tree::new(), &into, from).unwrap_err().to_string()
}

#[test]
fn bombs_are_bounded() {
    let limits = Limits { bytes: 8 << 20, ..Limits::default() };
    // One file, packed very well.
    let big = Tar::new().file("zeros", &"\0".repeat(20 << 20)).done();
    let packed = zstd::stream::encode_all(big.as_slice(), 3).unwrap();
    assert!(packed.len() < 100_000);
    let error = unpack_within(limits, &mut packed.as_slice());
    assert!(error.contains("8388608 bytes") && error.contains("KILN_UNPACK_LIMIT"), "{error}");
    // A file that is one hole.
    let keys = [("GNU.sparse.size", &b"99999999999"[..]), ("GNU.sparse.numblocks", b"0")];
    let hole = Tar::new().pax(&keys).file("hole", "").done();
    let error = unpack_within(limits, &mut hole.as_slice());
    assert!(error.contains("8388608 bytes"), "{error}");
    // Entries without end.
    let limits = Limits { entries: 1000, ..Limits::default() };
    let one = Tar::new().dir("d/").done();
    let mut endless = Repeated { block: &one[..512], at: 0, read: 0 };
    let error = unpack_within(limits, &mut endless);
    assert!(error.contains("more than 1000 entries"), "{error}");
    // Extended headers without an entry.
    let one = Tar::new().pax(&[("path", b"x")]).done();
    let mut endless = Repeated { block: &one[..1024], at: 0, read: 0 };
    let error = unpack_within(limits, &mut endless);
    assert!(error.contains("more than 1000 entries") && endless.read < 4 << 20, "{error}");
}

#[test]
fn any_bytes_are_refused_or_unpacked() {
    let kitchen = Kitchen::new();
    let good = Tar::new()
        .dir("d/")
        .file("d/a", "one")
        .link("l", "d/a")
        .symlink("s", "d")
        .pax(&[("path", b"p"), ("GNU.sparse.size", b"4"), ("GNU.sparse.map", b"0,1")])
        .file("x", "1")
        .done();
    let mut seed = 1_u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((seed >> 33) as usize) % below
    };
    for _ in 0..800 {
        let mut bytes = good.clone();
        for _ in 0..=random(3) {
            let at = random(bytes.len());
            bytes[at] = random(256) as u8;
            // Half of them with a right checksum, so that more than that is tried.
            let header = at / 512 * 512;
            if random(2) == 0 {
                bytes[header + 148..header + 156].fill(b' ');
                let sum: u32 = bytes[header..header + 512].iter().map(|b| u32::from(*b)).sum();
                let sum = format!("{sum:06o}\0 ");
                bytes[header + 148..header + 156].copy_from_slice(sum.as_bytes());
            }
        }
        if let Ok(tree) = kitchen.unpack(&bytes) {
            assert_eq!(Tree::parse(&tree.listing()).unwrap(), tree);
        }
    }
}
