//! `docs/tree-digest.sh`, which uses common tools only, finds the digest that Kiln has.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use kiln_core::ImageConfig;
use kiln_core::tree::{Kind, Node, Tree};
use kiln_oci::Compression;
use kiln_testkit::peers::lacks;

use crate::kit::{self, Home};

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/tree-digest.sh")
}

/// The digest that the script prints of a folder.
pub(crate) fn digest(dir: &Path) -> String {
    said(Command::new(script()).arg(dir))
}

/// The listing that the script prints of a folder.
pub(crate) fn listing(dir: &Path) -> String {
    said(Command::new(script()).arg("-l").arg(dir)) + "\n"
}

/// What a command prints, if it ends well.
#[track_caller]
pub(crate) fn said(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{errors}", output.status);
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// Unpacks the layer of a layout by GNU tar.
fn untar(home: &Home, layout: &str, layer: kiln_core::Digest, to: &str) -> PathBuf {
    let dir = home.path(to);
    fs::create_dir(&dir).unwrap();
    let blob = home.path(layout).join("blobs/sha256").join(layer.hex());
    // It would set a folder's time too early: `a-b` stands between `a` and `a/b`.
    let flags = [
        "--delay-directory-restore",
        "--numeric-owner",
        "--same-owner",
        "-p",
        "--xattrs",
        "--xattrs-include=*",
    ];
    said(Command::new("tar").args(flags).arg("-C").arg(&dir).arg("-xf").arg(blob));
    dir
}

#[test]
fn of_what_gnu_tar_unpacks() {
    if lacks(&["getfattr"]) {
        return;
    }
    let home = Home::new();
    let tree = kit::everything(&home, true);
    let image = home.image(&tree, &kit::full_config());
    for how in [Compression::Gzip, Compression::None] {
        let exported = home.layout(how.word(), image, how);
        let dir = untar(&home, how.word(), exported.layer, &format!("{}-tree", how.word()));
        let listing = listing(&dir);
        assert_eq!(listing, tree.listing());
        assert_eq!(digest(&dir), image.tree.to_string());
    }
}

#[test]
fn of_every_byte_that_a_name_can_have() {
    if lacks(&["getfattr"]) {
        return;
    }
    let home = Home::new();
    let mut tree = Tree::new();
    for byte in (1..=255).filter(|byte| *byte != b'/') {
        let content = home.file(&[byte]);
        tree.insert(&[b'd', b'/', byte, b'x'], Node::new(content, 0o644));
        let target = vec![byte, b'x', byte];
        tree.insert(&[b'l', b'/', b'x', byte], Node::new(Kind::Symlink { target }, 0));
    }
    let image = home.image(&tree, &ImageConfig::default());
    let exported = home.layout("out", image, Compression::None);
    let dir = untar(&home, "out", exported.layer, "tree");
    assert_eq!(digest(&dir), image.tree.to_string());
}

#[test]
fn of_the_golden_vector() {
    if lacks(&["getfattr"]) {
        return;
    }
    let home = Home::new();
    let mut tree = Tree::new();
    tree.insert(b"usr/bin/a b", Node::new(home.file(b"abc"), 0o755));
    tree.insert(b"usr/bin/c", Node::new(Kind::Hardlink { to: b"usr/bin/a b".to_vec() }, 0o755));
    tree.insert(b"bin", Node::new(Kind::Symlink { target: b"usr/bin".to_vec() }, 0));
    let mut tty = Node::new(Kind::CharDevice { major: 5, minor: 0 }, 0o666);
    tty.gid = 5;
    tree.insert(b"dev/tty", tty);
    let image = home.image(&tree, &ImageConfig::default());
    let exported = home.layout("out", image, Compression::Gzip);
    let dir = untar(&home, "out", exported.layer, "tree");
    assert_eq!(digest(&dir), image.tree.to_string());
}

#[test]
fn a_change_of_any_kind_is_seen() {
    if lacks(&["getfattr"]) {
        return;
    }
    let home = Home::new();
    let dir = home.path("tree");
    fs::create_dir(&dir).unwrap();
    let file = dir.join("file");
    fs::write(&file, "content").unwrap();
    fs::write(dir.join("other"), "content").unwrap();
    let digest = |dir: &Path| said(Command::new(script()).arg("-1").arg(dir));
    let mut seen = vec![digest(&dir)];
    let mut sees = |what: &str| {
        let now = digest(&dir);
        assert!(!seen.contains(&now), "{what} is not seen");
        seen.push(now);
    };
    fs::write(&file, "another").unwrap();
    sees("a content");
    said(Command::new("chmod").arg("u+s").arg(&file));
    sees("a mode");
    said(Command::new("chown").arg("7:0").arg(&file));
    sees("an owner");
    said(Command::new("setfattr").args(["-n", "user.x", "-v", "1"]).arg(&file));
    sees("an attribute");
    fs::hard_link(&file, dir.join("again")).unwrap();
    sees("a further name");
    let odd = dir.join(std::ffi::OsStr::from_bytes(b"\xff"));
    std::os::unix::fs::symlink("one", &odd).unwrap();
    sees("a link");
    fs::remove_file(&odd).unwrap();
    std::os::unix::fs::symlink("two", &odd).unwrap();
    sees("its target");
    said(Command::new("touch").arg("-d").arg("2001-01-01").arg(&file));
    assert_eq!(Some(&digest(&dir)), seen.last(), "-1 leaves times out");
    let with_times = self::digest(&dir);
    said(Command::new("touch").arg("-d").arg("2001-01-02").arg(&file));
    assert_ne!(self::digest(&dir), with_times, "a time is not seen");
}

#[test]
fn of_times_that_an_archive_gave() {
    if lacks(&["getfattr"]) {
        return;
    }
    let home = Home::new();
    let mut tree = Tree::new();
    let timed = |node: Node, time| node.with_archive_time(time);
    tree.insert(b"a", timed(Node::new(home.file(b"abc"), 0o755), 1_700_000_000));
    let further = Kind::Hardlink { to: b"a".to_vec() };
    tree.insert(b"b", timed(Node::new(further, 0o755), 1_700_000_000));
    tree.insert(b"d", timed(Node::new(Kind::Dir, 0o700), 0));
    tree.insert(b"d/old", timed(Node::new(home.file(b"old"), 0o600), 1));
    let link = Kind::Symlink { target: b"d".to_vec() };
    tree.insert(b"l", timed(Node::new(link, 0), 5_000_000_000));
    // More than the field of a header holds.
    tree.insert(b"late", timed(Node::new(home.file(b""), 0o644), 9_000_000_000));
    let image = home.image(&tree, &ImageConfig::default());
    for how in [Compression::Gzip, Compression::None] {
        let exported = home.layout(how.word(), image, how);
        let dir = untar(&home, how.word(), exported.layer, &format!("{}-tree", how.word()));
        let listing = listing(&dir);
        assert_eq!(listing, tree.listing());
        assert!(listing.starts_with("#mtree 2\n"));
        let read = kiln_oci::read(&home.path(how.word()), &kiln_oci::Selector::Any, &home.store);
        assert_eq!(read.unwrap().tree, image.tree);
    }
}
