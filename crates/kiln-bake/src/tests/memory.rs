//! Memory stays bounded whatever the size of a file.

use std::fs::{self, File};

use kiln_core::tree::Kind;

use super::fake::Kitchen;

const SIZE: u64 = 2 << 30;

/// What this process had resident at most since it was last reset, in KiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Two gigabytes are copied in, copied by a step, changed and captured. They are zeros, so the
/// disk is spared and they are hashed all the same; alone in its process, for it measures that.
#[test]
#[ignore = "hashes ten gigabytes, and has to be alone in its process"]
fn two_gigabytes_pass_through_little_memory() {
    let kitchen = Kitchen::new();
    File::create(kitchen.context().join("large")).unwrap().set_len(SIZE).unwrap();
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = peak();
    let tree = kitchen.tree(
        "FROM os\nCOPY large /a\nRUN <<E\nclone /a /b\nappend /b x\nE\n\
         FROM scratch\nCOPY --from=0 /b /b",
    );
    let after = peak();
    assert!(matches!(tree.get(b"b").unwrap().kind, Kind::File { size, .. } if size == SIZE + 1));
    eprintln!("peak {before} KiB before, {after} KiB after");
    assert!(after - before < 32 << 10, "{before} KiB before, {after} KiB after");
}
