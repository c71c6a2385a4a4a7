use std::collections::BTreeMap;
use std::process::Command;

use super::*;

fn file(size: u64) -> Node {
    Node::new(Kind::File { size, digest: Digest::of(size.to_le_bytes()) }, 0o644)
}

/// Everything that the format has a case for.
pub(crate) fn rich() -> Tree {
    let mut tree = Tree::new();
    tree.insert(b"empty", file(0));
    tree.insert(b"big", file(5 << 32));
    tree.insert(b"bin", Node::new(Kind::Symlink { target: b"usr/bin".to_vec() }, 0));
    tree.insert(b"long", Node::new(Kind::Symlink { target: vec![b'x'; 4095] }, 0));
    tree.insert(b"run/pipe", Node::new(Kind::Fifo, 0o600));
    tree.insert(b"dev/sda", Node::new(Kind::BlockDevice { major: 259, minor: 70_000 }, 0o660));
    // Names on both sides of the dots.
    for name in ["many/!", "many/-", "many/...", "many/~"] {
        tree.insert(name.as_bytes(), file(1));
    }
    for nth in 0..1500 {
        tree.insert(
            format!("many/file-{nth:05}-{}", "n".repeat(nth % 97)).as_bytes(),
            file(nth as u64),
        );
    }
    tree.insert(b"run/old", Node::new(Kind::Fifo, 0o600).with_archive_time(7));
    tree.insert(b"run/new", file(3).with_archive_time(5_000_000_000));
    let mut owned = file(77);
    owned.uid = 100_000;
    owned.mode = 0o4755;
    owned.xattrs = BTreeMap::from([
        (b"security.capability".to_vec(), vec![1, 2, 3]),
        (b"user.note".to_vec(), vec![b'v'; 3000]),
        (b"trusted.overlay.opaque".to_vec(), b"y".to_vec()),
    ]);
    tree.insert(b"usr/bin/tool", owned.clone());
    let link = Kind::Hardlink { to: b"usr/bin/tool".to_vec() };
    tree.insert(b"usr/bin/tool2", Node { kind: link, ..owned });
    tree
}

#[test]
fn same_tree_same_bytes() {
    let tree = rich();
    let digest = tree.digest();
    let image = build(&tree, &digest).unwrap();
    assert_eq!(image, build(&Tree::parse(&tree.listing()).unwrap(), &digest).unwrap());
    assert_eq!(image.len() % BLOCK, 0);
    assert!(looks_whole(&image[..BLOCK], image.len() as u64));
    assert!(!looks_whole(&image[..BLOCK], image.len() as u64 - 1));
    let mut damaged = image[..BLOCK].to_vec();
    damaged[BLOCK - 1] ^= 1;
    assert!(!looks_whole(&damaged, image.len() as u64));
}

/// Golden: a change of these bytes is a change of the format in `docs/formats.md`.
#[test]
fn bytes_are_pinned() {
    let mut tree = Tree::new();
    tree.insert(b"a/b", file(3));
    tree.insert(b"l", Node::new(Kind::Symlink { target: b"a/b".to_vec() }, 0));
    let image = build(&tree, &tree.digest()).unwrap();
    assert_eq!(
        Digest::of(&image).to_string(),
        "sha256:922a95c8dce164ac9110bc5511bbe0350eb9efb4d99a783e8d6fb8952a6e27e3"
    );
}

/// A tree of version 1 is the same image as before; one time more changes only that inode.
#[test]
fn bytes_with_times_are_pinned() {
    let mut tree = Tree::new();
    tree.insert(b"a/b", file(3).with_archive_time(1_700_000_000));
    tree.insert(b"l", Node::new(Kind::Symlink { target: b"a/b".to_vec() }, 0));
    let image = build(&tree, &tree.digest()).unwrap();
    assert_eq!(
        Digest::of(&image).to_string(),
        "sha256:f649f969296c784d7064f22ab1932dad1c70cc8a1b4bd34bd7c9106867e952eb"
    );
}

#[test]
fn what_cannot_be_shown_is_refused_by_path() {
    let device = Node::new(Kind::CharDevice { major: 0, minor: 0 }, 0o600);
    let nowhere = Node::new(Kind::Hardlink { to: b"b".to_vec() }, 0o644);
    let mut foreign = file(1);
    foreign.xattrs.insert(b"com.apple.x".to_vec(), Vec::new());
    let long = vec![b'n'; 256];
    let cases: [(&[u8], Node, &str); 4] = [
        (b"dev/gone", device, "deletion"),
        (b"a", nowhere, "hard link"),
        (b"attr", foreign, "namespace"),
        (&long, file(1), "256 bytes"),
    ];
    for (path, node, expected) in cases {
        let mut tree = Tree::new();
        tree.insert(path, node);
        let message = build(&tree, &tree.digest()).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
        assert!(message.contains(&*String::from_utf8_lossy(path)), "{message}");
    }
    let mut orphan = Tree::new();
    orphan.entries.insert(b"a/b".to_vec(), file(1));
    assert!(build(&orphan, &orphan.digest()).unwrap_err().to_string().contains("parent"));
}

/// The reference implementation's checker, where it is installed (erofs-utils).
#[test]
fn the_reference_checker_agrees() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let tree = rich();
    std::fs::write(&path, build(&tree, &tree.digest()).unwrap()).unwrap();
    match Command::new("fsck.erofs").arg(&path).output() {
        Ok(output) => assert!(output.status.success(), "{output:?}"),
        // The kernel itself is the judge in the tests of mounting; this one is a second opinion.
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
    }
}
