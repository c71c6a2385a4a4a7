//! The same archives unpacked by GNU tar into a folder.

use std::fs;
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::Path;
use std::process::Command;

use kiln_core::Tree;

use super::kitchen::{Kitchen, Tar, lines, walk};

/// A linear congruential generator: the same numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % bound
    }
}

fn tar(args: &[&str]) {
    let output = Command::new("tar").args(args).output().expect("GNU tar");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Entries of all kinds under few names, so that they meet; nothing below a link, where GNU tar
/// has rules of its own.
fn random_archive(random: &mut Random) -> Vec<u8> {
    let mut tar = Tar::new();
    let mut files: Vec<String> = Vec::new();
    for _ in 0..random.below(40) {
        let dir = ["", "a/", "a/b/", "c/"][random.below(4)];
        // Files, links and folders have names apart: GNU tar refuses some replacements.
        let number = random.below(4);
        let content = "x".repeat(random.below(2000));
        tar = match random.below(6) {
            0..=2 => {
                files.push(format!("{dir}f{number}"));
                tar.file(files.last().unwrap(), &content)
            }
            3 => tar.symlink(&format!("{dir}s{number}"), "a/../nowhere"),
            4 => tar.dir(&format!("{dir}d{number}/")),
            _ if !files.is_empty() => {
                let target = files[random.below(files.len())].clone();
                let name = format!("{dir}f{number}");
                if name == target {
                    continue;
                }
                files.push(name);
                tar.link(files.last().unwrap(), &target)
            }
            _ => tar,
        };
    }
    tar.done()
}

#[test]
fn random_archives_give_what_gnu_tar_makes_of_them() {
    let kitchen = Kitchen::new();
    let mut random = Random(42);
    for turn in 0..60 {
        let bytes = random_archive(&mut random);
        let file = kitchen.dir.path().join("a.tar");
        fs::write(&file, &bytes).unwrap();
        let dir = kitchen.dir.path().join(format!("out{turn}"));
        fs::create_dir(&dir).unwrap();
        // A folder's time is the archive's, also when files come into it later.
        let flags = ["-x", "--same-owner", "-p", "--delay-directory-restore"];
        tar(&[&flags[..], &["-f", text(&file), "-C", text(&dir)]].concat());
        let mut expected = walk(&dir);
        let mut found = kitchen.unpack(&bytes).unwrap();
        for tree in [&mut expected, &mut found] {
            implied(tree);
        }
        assert_eq!(lines(&found), lines(&expected), "archive {turn}");
    }
}

/// Folders that only names imply have modes and times of the one who unpacks.
fn implied(tree: &mut Tree) {
    for name in ["a", "a/b", "c"] {
        if let Some(node) = tree.entries.get_mut(name.as_bytes()) {
            (node.mode, node.uid, node.gid, node.time) = (0o755, 0, 0, kiln_store::EPOCH);
        }
    }
}

#[test]
fn what_gnu_tar_packs_comes_out_as_it_was() {
    let kitchen = Kitchen::new();
    let dir = kitchen.dir.path().join("in");
    let deep = dir.join(["long-name-of-a-folder-"; 8].join("/"));
    fs::create_dir_all(&deep).unwrap();
    for (name, content) in [("a", "one"), ("empty", ""), ("caf\u{e9}", "two")] {
        fs::write(dir.join(name), content).unwrap();
    }
    fs::write(deep.join("n".repeat(120)), "deep").unwrap();
    fs::hard_link(dir.join("a"), deep.join("link")).unwrap();
    symlink("../x/".repeat(30), dir.join("symlink")).unwrap();
    let sparse = fs::File::create(dir.join("sparse")).unwrap();
    for at in 0..40_u64 {
        sparse.write_all_at(b"data", at * 300_000).unwrap();
    }
    sparse.set_len(20_000_000).unwrap();
    std::os::unix::fs::chown(dir.join("empty"), Some(3_000_000), Some(70_000)).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o4755);
    fs::set_permissions(dir.join("empty"), mode).unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    let private = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, dir.join("fifo"), fifo, private, 0).unwrap();
    let expected = lines(&walk(&dir));
    assert!(expected.len() > 10);
    let file = kitchen.dir.path().join("b.tar");
    for options in [
        &["--format=gnu", "--sparse"][..],
        &["--format=gnu"],
        &["--format=pax", "--sparse", "-z"],
        &["--format=pax", "--sparse", "--sparse-version=0.0"],
        &["--format=pax", "--sparse", "--sparse-version=0.1"],
        &["--format=pax", "--sort=name"],
    ] {
        let all = ["-c", "-f", text(&file), "-C", text(&dir), "."];
        tar(&[options, &all].concat());
        let found = kitchen.unpack(&fs::read(&file).unwrap());
        let found = found.unwrap_or_else(|error| panic!("{options:?}: {error}"));
        assert_eq!(lines(&found), expected, "{options:?}");
    }
}
