//! The reference's semantics, one by one.

use std::io::{Read as _, Write as _};

use kiln_core::tree::{Kind, Node, Tree};
use tar::EntryType;

use super::kitchen::{Kitchen, Tar, lines};
use crate::archive::is_archive;
use crate::users::Owner;

fn packed(archive: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(archive).unwrap();
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(archive).unwrap();
    let mut xz = Vec::new();
    liblzma::read::XzEncoder::new(archive, 1).read_to_end(&mut xz).unwrap();
    let zstd = zstd::stream::encode_all(archive, 1).unwrap();
    let skipped = [b"\x51\x2a\x4d\x18\x03\0\0\0abc".as_slice(), &zstd].concat();
    vec![
        ("plain", archive.to_vec()),
        ("gzip", gzip.finish().unwrap()),
        ("bzip2", bzip2.finish().unwrap()),
        ("xz", xz),
        ("zstd", zstd),
        ("zstd with a skippable frame", skipped),
    ]
}

#[test]
fn every_compression_gives_the_same_tree() {
    let kitchen = Kitchen::new();
    let big = "x".repeat(3 << 20);
    let archive = Tar::new().dir("d/").file("d/a", "one").file("big", &big).done();
    let plain = kitchen.unpack(&archive).unwrap();
    assert_eq!(kitchen.content(&plain, "d/a"), b"one");
    for (name, bytes) in packed(&archive) {
        assert!(is_archive(&mut bytes.as_slice()).unwrap(), "{name}");
        let tree = kitchen.unpack(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(tree, plain, "{name}");
        // Cut off anywhere, the checksum or the end is missing; a plain one may do without an end.
        let cut = if name == "plain" { 2000 } else { bytes.len() - 3 };
        let error = kitchen.error(&bytes[..cut]);
        let said = ["damaged", "ends in the middle", name].iter().any(|what| error.contains(what));
        let zstd = name.starts_with("zstd") && error.contains("zstd");
        assert!(said || zstd, "{name}: {error}");
    }
}

#[test]
fn only_archives_are_archives() {
    let archive = Tar::new().file("a", "one").done();
    for (name, bytes) in packed(b"not a tar, but longer than a block".repeat(50).as_slice()) {
        assert!(!is_archive(&mut bytes.as_slice()).unwrap(), "{name}");
    }
    assert!(!is_archive(&mut b"".as_slice()).unwrap());
    assert!(!is_archive(&mut b"PK\x03\x04zip".as_slice()).unwrap());
    assert!(!is_archive(&mut [0; 1024].as_slice()).unwrap(), "an empty archive");
    assert!(!is_archive(&mut &archive[..300]).unwrap());
    // Without `ustar`, as Unix V7 wrote them.
    let mut old = archive;
    old[257..265].fill(0);
    old[148..156].fill(b' ');
    let sum: u32 = old[..512].iter().map(|byte| u32::from(*byte)).sum();
    old[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert!(is_archive(&mut old.as_slice()).unwrap());
}

#[test]
fn members_and_what_follows_them() {
    let kitchen = Kitchen::new();
    let archive = Tar::new().file("a", "one").file("b", "two").done();
    let gzip = |bytes: &[u8]| packed(bytes).swap_remove(1).1;
    let two = [gzip(&archive[..700]), gzip(&archive[700..]), b"\0\0tail".to_vec()].concat();
    assert_eq!(kitchen.unpack(&two).unwrap(), kitchen.unpack(&archive).unwrap());
    let mut wrong = gzip(&archive);
    let crc = wrong.len() - 8;
    wrong[crc] ^= 1;
    assert!(kitchen.error(&wrong).contains("gzip"));
}

#[test]
fn owners_modes_and_implied_folders() {
    let kitchen = Kitchen::new();
    let archive = Tar::new().file("x/y/a", "one").dir("x/").dir("./").file("/abs", "two").done();
    let tree = kitchen.unpack(&archive).unwrap();
    let listed = lines(&tree);
    assert!(listed[0].starts_with("./abs type=file mode=0644 uid=7 gid=8"), "{listed:?}");
    assert!(listed[1].starts_with("./x type=dir mode=0755 uid=7 gid=8"), "{listed:?}");
    assert!(listed[2].starts_with("./x/y type=dir mode=0755 uid=0 gid=0"), "{listed:?}");
    assert_eq!((tree.entries[&b""[..]].uid, listed.len()), (0, 4), "the destination stays");
    let chowned = kitchen.onto(Tree::new(), "", Some(Owner { uid: 1, gid: 2 }), &archive).unwrap();
    let listed = lines(&chowned);
    assert!(listed[0].contains("uid=1 gid=2") && listed[1].contains("uid=1 gid=2"), "{listed:?}");
    assert!(listed[2].contains("uid=0 gid=0"), "as in the reference: {listed:?}");
}

#[test]
fn what_is_there_gives_way() {
    let kitchen = Kitchen::new();
    let before = Tar::new()
        .dir("dir/")
        .file("dir/old", "old")
        .file("file", "old")
        .symlink("link", "dir")
        .dir("gone/")
        .file("gone/below/a", "x")
        .done();
    let after = Tar::new()
        .dir("dir/")
        .file("dir/new", "new")
        .dir("file/")
        .dir("link/")
        .file("gone", "file")
        .done();
    let tree = kitchen.onto(kitchen.unpack(&before).unwrap(), "", None, &after).unwrap();
    let names: Vec<String> =
        tree.entries.keys().map(|key| String::from_utf8_lossy(key).into_owned()).collect();
    assert_eq!(names, ["", "dir", "dir/new", "dir/old", "file", "gone", "link"]);
    assert!(tree.get(b"link").unwrap().is_dir() && tree.get(b"file").unwrap().is_dir());
    assert_eq!(kitchen.content(&tree, "gone"), b"file");
}

#[test]
fn writes_through_links_stay_inside() {
    let kitchen = Kitchen::new();
    // The case of moby/moby 53258: an absolute link is absolute below the destination.
    let root = Tar::new().dir("run/").dir("var/").symlink("var/run", "/run").done();
    let more = Tar::new()
        .dir("var/run/act/")
        .file("var/run/act/HEAD", "x")
        .link("var/run/act/b", "/var/run/act/HEAD")
        .done();
    let tree = kitchen.onto(kitchen.unpack(&root).unwrap(), "", None, &more).unwrap();
    assert_eq!(kitchen.content(&tree, "run/act/HEAD"), b"x");
    assert!(
        matches!(&tree.get(b"run/act/b").unwrap().kind, Kind::Hardlink { to } if to == b"run/act/HEAD")
    );
    let mut deep = Tree::new();
    deep.insert(b"srv/etc", Node::new(Kind::Dir, 0o755));
    deep.insert(b"srv/l", Node::new(Kind::Symlink { target: b"/etc/../../x".to_vec() }, 0));
    let tree = kitchen.onto(deep, "srv", None, &Tar::new().file("l/a", "1").done()).unwrap();
    assert_eq!(kitchen.content(&tree, "srv/x/a"), b"1");
}

#[test]
fn hard_links_in_any_order() {
    let kitchen = Kitchen::new();
    let archive = Tar::new()
        .file("m", "one")
        .link("a", "m")
        .link("z", "a")
        .file("m", "two")
        .link("b", "z")
        .link("lone", "m")
        .symlink("s", "nowhere")
        .link("t", "s")
        .done();
    let tree = kitchen.unpack(&archive).unwrap();
    let first = |name: &str| match &tree.get(name.as_bytes()).unwrap().kind {
        Kind::Hardlink { to } => String::from_utf8(to.clone()).unwrap(),
        _ => String::new(),
    };
    assert_eq!(["a", "b", "z", "lone", "m"].map(first), ["", "a", "a", "", "lone"]);
    assert_eq!(kitchen.content(&tree, "a"), b"one");
    assert_eq!(kitchen.content(&tree, "lone"), b"two");
    assert!(matches!(tree.get(b"t").unwrap().kind, Kind::Symlink { .. }));
    // The names of the tree below keep together too.
    let again = kitchen.onto(tree, "", None, &Tar::new().file("a", "new").done()).unwrap();
    assert!(matches!(&again.get(b"z").unwrap().kind, Kind::Hardlink { to } if to == b"b"));
    assert_eq!(kitchen.content(&again, "b"), b"one");
    assert_eq!(Tree::parse(&again.listing()).unwrap(), again);
}

#[test]
fn attributes_that_images_keep() {
    let kitchen = Kitchen::new();
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let attributes = [
        ("SCHILY.xattr.user.note", &b"hello"[..]),
        ("SCHILY.xattr.security.capability", capability),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("mtime", b"1.5"),
    ];
    let archive =
        Tar::new().pax(&attributes).file("a", "1").pax(&attributes[..1]).symlink("s", "a");
    let tree = kitchen.unpack(&archive.done()).unwrap();
    let node = tree.get(b"a").unwrap();
    assert_eq!(node.xattrs.keys().collect::<Vec<_>>(), [&b"security.capability"[..], b"user.note"]);
    assert!(tree.get(b"s").unwrap().xattrs.is_empty(), "Linux has none on links");
}

#[test]
fn whiteouts_are_files_and_global_headers_nothing() {
    let kitchen = Kitchen::new();
    let archive = Tar::new()
        .entry(EntryType::XGlobalHeader, b"g", b"", b"11 path=xx\n")
        .file(".wh.a", "")
        .file("a", "1")
        .done();
    let tree = kitchen.unpack(&archive).unwrap();
    assert_eq!(tree.entries.len(), 3, "{}", tree.listing());
}

#[test]
fn long_and_odd_names() {
    let kitchen = Kitchen::new();
    let long = vec!["d"; 60].join("/") + &format!("/{}", "n".repeat(250));
    let archive = Tar::new()
        .pax(&[("path", long.as_bytes())])
        .file("short", "1")
        .entry(EntryType::GNULongName, b"././@LongLink", b"", format!("g/{long}\0").as_bytes())
        .file("short", "2")
        .entry(EntryType::Regular, b"caf\xe9 \xff", b"", b"3")
        .done();
    let tree = kitchen.unpack(&archive).unwrap();
    assert_eq!(kitchen.content(&tree, &long), b"1");
    assert_eq!(kitchen.content(&tree, &format!("g/{long}")), b"2");
    assert!(tree.get(b"caf\xe9 \xff").is_some());
}
