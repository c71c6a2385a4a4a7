use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Instant;

use kiln_core::tree::{Kind, Node, Tree};
use rustix::fs::{Mode, OFlags};

use super::{file, small, store};
use crate::mount::{attach, composefs_forced, mount_image, mount_image_under, remove_tree};
use crate::{Backing, Lower, Store, Upper};

const BOTH: [Backing; 2] = [Backing::Composefs, Backing::Links];

/// A tree with one of everything.
fn rich(store: &Store) -> Tree {
    let mut tree = Tree::new();
    let mut root = Node::new(Kind::Dir, 0o751);
    root.gid = 3;
    tree.insert(b"", root);
    tree.insert(b"etc/motd", file(store, b"hello\n", 0o644));
    tree.insert(b"etc/same", file(store, b"hello\n", 0o644));
    tree.insert(b"etc/same2", file(store, b"hello\n", 0o644));
    tree.insert(b"etc/empty", file(store, b"", 0o600));
    tree.insert(b"etc/empty2", file(store, b"", 0o600));
    let mut tool = file(store, &vec![b't'; 300_000], 0o4755);
    (tool.uid, tool.gid) = (100_000, 12);
    tool.xattrs = BTreeMap::from([
        (b"user.note".to_vec(), b"kept".to_vec()),
        // cap_net_bind_service=ep, revision 2.
        (
            b"security.capability".to_vec(),
            [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].to_vec(),
        ),
    ]);
    tree.insert(b"usr/bin/tool", tool.clone());
    let link = Kind::Hardlink { to: b"usr/bin/tool".to_vec() };
    tree.insert(b"usr/sbin/tool", Node { kind: link, ..tool });
    tree.insert(b"bin", Node::new(Kind::Symlink { target: b"usr/bin".to_vec() }, 0));
    tree.insert(b"dev/null", Node::new(Kind::CharDevice { major: 1, minor: 3 }, 0o666));
    tree.insert(b"dev/vda", Node::new(Kind::BlockDevice { major: 254, minor: 300 }, 0o660));
    tree.insert(b"run/pipe", Node::new(Kind::Fifo, 0o620));
    tree.insert("etc/name with \u{e9} \\ and\nnewline".as_bytes(), file(store, b"odd", 0o640));
    let mut sticky = Node::new(Kind::Dir, 0o1777);
    (sticky.uid, sticky.gid) = (7, 70_000);
    sticky.xattrs.insert(b"user.dir".to_vec(), b"too".to_vec());
    tree.insert(b"tmp", sticky);
    // The same content at three times, one of them the constant; and of what is no file.
    tree.insert(b"times/a", file(store, b"hello\n", 0o644).with_archive_time(1_600_000_000));
    tree.insert(b"times/b", file(store, b"hello\n", 0o644).with_archive_time(1));
    tree.insert(b"times/c", file(store, b"hello\n", 0o644).with_archive_time(1_600_000_000));
    tree.insert(b"times/empty", file(store, b"", 0o644).with_archive_time(0));
    let link = Kind::Symlink { target: b"a".to_vec() };
    tree.insert(b"times/l", Node::new(link, 0).with_archive_time(5_000_000_000));
    tree.insert(b"times/d", Node::new(Kind::Dir, 0o700).with_archive_time(1_600_000_001));
    tree.insert(b"times/d/x", file(store, b"x", 0o644));
    for nth in 0..600 {
        let name = format!("many/{nth:04}{}", "x".repeat(nth % 200));
        tree.insert(name.as_bytes(), file(store, format!("{nth}").as_bytes(), 0o644));
    }
    tree
}

/// Everything that a program sees of an entry, as text.
fn seen(root: &Path, path: &Path, links: &mut BTreeMap<u64, PathBuf>) -> String {
    let full = root.join(path);
    let meta = fs::symlink_metadata(&full).unwrap();
    let mut text = format!("{:o} {}:{} t={}", meta.mode(), meta.uid(), meta.gid(), meta.mtime());
    let kind = meta.file_type();
    if kind.is_symlink() {
        text += &format!(" -> {}", fs::read_link(&full).unwrap().display());
    } else if kind.is_file() {
        let content = fs::read(&full).unwrap();
        assert_eq!(content.len() as u64, meta.len());
        text += &format!(" {}", kiln_core::Digest::of(content).short());
        let first = links.entry(meta.ino()).or_insert_with(|| path.to_owned());
        text += &format!(" first={}", first.display());
    } else if !kind.is_dir() {
        text += &format!(" rdev={:x}", meta.rdev());
    }
    if kind.is_file() || kind.is_dir() {
        for name in ["user.note", "user.dir", "security.capability"] {
            let mut value = [0; 64];
            if let Ok(len) = rustix::fs::lgetxattr(&full, name, &mut value[..]) {
                text += &format!(" {name}={:?}", &value[..len]);
            }
        }
    }
    text
}

fn walk(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut out = BTreeMap::new();
    let mut links = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(dir) = todo.pop() {
        out.insert(dir.clone(), seen(root, &dir, &mut links));
        let mut names: Vec<_> =
            fs::read_dir(root.join(&dir)).unwrap().map(|entry| entry.unwrap()).collect();
        names.sort_by_key(|entry| entry.file_name());
        for entry in names {
            let path = dir.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                todo.push(path);
            } else {
                let text = seen(root, &path, &mut links);
                out.insert(path, text);
            }
        }
    }
    out
}

/// Attaches a mount for the length of `with`.
fn mounted<T>(mount: OwnedFd, with: impl FnOnce(&Path) -> T) -> T {
    let dir = tempfile::tempdir().unwrap();
    let point = dir.path().join("mnt");
    fs::create_dir(&point).unwrap();
    attach(&mount, &point).unwrap();
    let result = with(&point);
    drop(mount);
    remove_tree(&point).unwrap();
    result
}

#[test]
fn both_backings_show_the_same() {
    let mut views = Vec::new();
    for backing in BOTH {
        let (_dir, store) = store(backing);
        let tree = rich(&store);
        let digest = store.put_tree(&tree).unwrap();
        let lower = store.lower(&digest).unwrap();
        assert_eq!(lower, store.lower(&digest).unwrap());
        let view = mounted(mount_image(&lower, None).unwrap(), walk);
        assert_eq!(view.len(), tree.entries.len());
        for (path, node) in &tree.entries {
            let path = PathBuf::from(std::ffi::OsStr::from_bytes(path));
            let says = format!("{:04o} {}:{} t={}", node.mode, node.uid, node.gid, node.time);
            let seen = &view[&path];
            let whole = seen.ends_with(&says) || seen.contains(&format!("{says} "));
            assert!(whole, "{path:?}: {seen} wants {says}");
        }
        views.push(view);
    }
    assert_eq!(views[0], views[1]);
    let view = &views[0];
    assert_eq!(view[Path::new("usr/sbin/tool")], view[Path::new("usr/bin/tool")], "hard link");
    assert!(view[Path::new("etc/same")].contains("first=etc/same"), "equal but no hard link");
    assert!(view[Path::new("etc/empty2")].contains("first=etc/empty2"), "equal and empty");
    assert!(view[Path::new("etc/motd")].contains(&format!("t={}", crate::EPOCH)));
    assert!(view[Path::new("times/a")].contains("t=1600000000"));
    assert!(view[Path::new("usr/bin/tool")].contains("user.note"));
    assert!(view[Path::new("dev/vda")].contains("rdev="));
}

#[test]
fn images_show_the_number_of_links() {
    let (_dir, store) = store(Backing::Composefs);
    let digest = store.put_tree(&rich(&store)).unwrap();
    let mount = mount_image(&store.lower(&digest).unwrap(), None).unwrap();
    let links = |path: &str| {
        rustix::fs::statat(&mount, path, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap().st_nlink
    };
    assert_eq!((links("usr/bin/tool"), links("usr/sbin/tool"), links("etc/motd")), (2, 2, 1));
}

#[test]
fn without_an_upper_layer_nothing_can_be_written_and_devices_are_dead() {
    for backing in BOTH {
        let (_dir, store) = store(backing);
        let digest = store.put_tree(&rich(&store)).unwrap();
        let lower = store.lower(&digest).unwrap();
        mounted(mount_image(&lower, None).unwrap(), |root| {
            let error = fs::write(root.join("etc/motd"), "x").unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{backing:?}");
            let error = File::open(root.join("dev/null")).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{backing:?}");
            // Not even who may mount can make it writable.
            let flags = rustix::mount::MountFlags::empty();
            let _ = rustix::mount::mount_remount(root, flags, c"");
            assert!(fs::write(root.join("etc/motd"), "x").is_err(), "{backing:?}");
        });
        assert_eq!(store.check().unwrap().corrupt, []);
    }
}

#[test]
fn with_an_upper_layer_changes_are_whole_there_and_nowhere_else() {
    for backing in BOTH {
        let (dir, store) = store(backing);
        let digest = store.put_tree(&rich(&store)).unwrap();
        let lower = store.lower(&digest).unwrap();
        let upper = Upper::whole(dir.path().join("layer"));
        mounted(mount_image(&lower, Some(&upper)).unwrap(), |root| {
            let meta = fs::metadata(root).unwrap();
            assert_eq!((meta.mode() & 0o7777, meta.gid()), (0o751, 3), "{backing:?}");
            fs::write(root.join("etc/motd"), "changed").unwrap();
            fs::write(root.join("new"), "new").unwrap();
            fs::remove_file(root.join("etc/empty")).unwrap();
            rustix::fs::chmod(root.join("etc/same"), Mode::from_raw_mode(0o600)).unwrap();
        });
        // `metacopy` would have left zeros here.
        assert_eq!(fs::read(upper.dir.join("upper/etc/same")).unwrap(), b"hello\n", "{backing:?}");
        // The same layer can be mounted again, to be read.
        let mount = mount_image(&lower, Some(&upper)).unwrap();
        let mut text = String::new();
        let fd = rustix::fs::openat(&mount, "etc/motd", OFlags::RDONLY, Mode::empty()).unwrap();
        File::from(fd).read_to_string(&mut text).unwrap();
        assert_eq!(text, "changed");
        drop(mount);
        let fresh = mount_image(&lower, None).unwrap();
        mounted(fresh, |root| {
            assert_eq!(fs::read(root.join("etc/motd")).unwrap(), b"hello\n");
            assert!(root.join("etc/empty").exists());
        });
        assert_eq!(store.check().unwrap().corrupt, []);
    }
}

#[test]
fn layers_between_image_and_upper() {
    for backing in BOTH {
        let (dir, store) = store(backing);
        let lower = store.lower(&store.put_tree(&small(&store, "below")).unwrap()).unwrap();
        let over = dir.path().join("over");
        fs::create_dir_all(over.join("proc")).unwrap();
        fs::create_dir_all(over.join("etc")).unwrap();
        fs::write(over.join("etc/hosts"), "hosts").unwrap();
        for upper in [None, Some(Upper::whole(dir.path().join("upper")))] {
            let mount = mount_image_under(&lower, upper.as_ref(), &[&over]).unwrap();
            mounted(mount, |root| {
                assert!(root.join("proc").is_dir());
                assert_eq!(fs::read(root.join("etc/hosts")).unwrap(), b"hosts");
                assert_eq!(fs::read(root.join("etc/motd")).unwrap(), b"below");
            });
        }
    }
}

/// The store's folders are closed to other users; what is mounted from them is not.
#[test]
fn programs_without_rights_read_through_the_mount() {
    for backing in BOTH {
        let (dir, store) = store(backing);
        rustix::fs::chmod(dir.path(), Mode::from_raw_mode(0o755)).unwrap();
        let lower = store.lower(&store.put_tree(&small(&store, "for all")).unwrap()).unwrap();
        let cat =
            |path: &Path| Command::new("cat").arg(path).uid(65_534).gid(65_534).output().unwrap();
        let point = dir.path().join("mnt");
        fs::create_dir(&point).unwrap();
        attach(mount_image(&lower, None).unwrap(), &point).unwrap();
        let output = cat(&point.join("etc/motd"));
        remove_tree(&point).unwrap();
        assert_eq!(output.stdout, b"for all", "{backing:?} {output:?}");
        let object = store.object_path(&kiln_core::Digest::of("for all"));
        assert!(!cat(&object).status.success(), "{backing:?}");
    }
}

/// What Linux 6.12 to 6.15 want, newer ones take as well.
#[test]
fn the_ways_of_older_kernels() {
    let (dir, store) = store(Backing::Composefs);
    let lower = store.lower(&store.put_tree(&small(&store, "old")).unwrap()).unwrap();
    let Lower::Composefs { image, objects } = &lower else { panic!("{lower:?}") };
    for (metacopy, attached) in [(true, false), (false, true), (true, true)] {
        let upper = Upper::whole(dir.path().join(format!("{metacopy}{attached}")));
        for upper in [None, Some(&upper)] {
            let mount = composefs_forced(image, objects, upper, metacopy, attached).unwrap();
            mounted(mount, |root| {
                assert_eq!(fs::read(root.join("etc/motd")).unwrap(), b"old");
            });
        }
    }
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(".kiln-lower."), "{table}");
}

#[test]
fn mounts_from_many_threads() {
    for backing in BOTH {
        let (dir, store) = store(backing);
        let digest = store.put_tree(&small(&store, "threads")).unwrap();
        thread::scope(|scope| {
            for nth in 0..8 {
                let (store, dir) = (&store, dir.path());
                scope.spawn(move || {
                    for round in 0..10 {
                        let lower = store.lower(&digest).unwrap();
                        let upper = Upper::whole(dir.join(format!("upper-{nth}-{round}")));
                        let mount = mount_image(&lower, Some(&upper)).unwrap();
                        let fd =
                            rustix::fs::openat(&mount, "etc/motd", OFlags::RDONLY, Mode::empty());
                        let mut text = String::new();
                        File::from(fd.unwrap()).read_to_string(&mut text).unwrap();
                        assert_eq!(text, "threads");
                    }
                });
            }
        });
    }
}

#[test]
fn a_damaged_image_is_built_again() {
    let (_dir, store) = store(Backing::Composefs);
    let digest = store.put_tree(&small(&store, "x")).unwrap();
    let Lower::Composefs { image, .. } = store.lower(&digest).unwrap() else { panic!() };
    let whole = fs::read(&image).unwrap();
    for damaged in [&whole[..whole.len() - 1], &vec![0; whole.len()], b""] {
        fs::write(&image, damaged).unwrap();
        Store::open_with(store.root(), Some(Backing::Composefs)).unwrap().lower(&digest).unwrap();
        assert_eq!(fs::read(&image).unwrap(), whole);
    }
}

#[test]
fn the_backing_is_probed_once_for_a_kernel() {
    let (_dir, store) = store(Backing::Links);
    assert_eq!(store.backing(), Backing::Links);
    let path = store.root().join("backing");
    assert!(!path.exists());
    let probed = Store::open(store.root()).unwrap();
    if std::env::var_os("KILN_STORE_BACKING").is_none() {
        assert!(fs::read_to_string(&path).unwrap().contains("kernel"));
        // The file's word is taken while the kernel is the same, and only then.
        let text = fs::read_to_string(&path).unwrap();
        let other = match probed.backing() {
            Backing::Composefs => text.replace("composefs", "links"),
            Backing::Links => text.replace("\"links\"", "\"composefs\""),
        };
        fs::write(&path, &other).unwrap();
        assert_ne!(Store::open(store.root()).unwrap().backing(), probed.backing());
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        fs::write(&path, other.replace(&release, "2.6.32")).unwrap();
        assert_eq!(Store::open(store.root()).unwrap().backing(), probed.backing());
    }
    assert!(!probed.backing_reason().is_empty());
}

/// Not a check of speed, which belongs to the bench: prints what a large tree costs.
#[test]
fn a_large_tree() {
    let (_dir, store) = store(Backing::Composefs);
    let mut tree = Tree::new();
    let content = store.put(b"the same for all").unwrap();
    for nth in 0..15_000_u32 {
        let path = format!("usr/share/{:03}/dir-{:02}/file-{nth:06}.txt", nth % 150, nth % 20);
        tree.insert(path.as_bytes(), Node::new(Kind::File { size: 16, digest: content }, 0o644));
    }
    let tree = std::sync::Arc::new(tree);
    let times: Vec<_> = [0, 1, 2]
        .into_iter()
        .map(|step| {
            let started = Instant::now();
            match step {
                0 => drop(store.keep_tree(tree.clone()).unwrap()),
                1 => drop(store.lower(&tree.digest()).unwrap()),
                _ => drop(mount_image(&store.lower(&tree.digest()).unwrap(), None).unwrap()),
            }
            started.elapsed()
        })
        .collect();
    eprintln!("put, lower, mount of {} entries: {times:?}", tree.entries.len());
    let mount = mount_image(&store.lower(&tree.digest()).unwrap(), None).unwrap();
    let count = mounted(mount, |root| walk(root).len());
    assert_eq!(count, tree.entries.len());
}
