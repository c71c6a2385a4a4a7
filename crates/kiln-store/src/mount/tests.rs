use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;

use rustix::fs::{Mode, OFlags};

use super::*;

#[test]
fn tmpfs_is_made_attached_and_removed_with_its_folder() {
    let dir = tempfile::tempdir().unwrap();
    let point = dir.path().join("a b");
    fs::create_dir(&point).unwrap();
    let mount = tmpfs(1 << 20, 0o1777, MountAttrFlags::MOUNT_ATTR_NOSUID).unwrap();
    attach(&mount, &point).unwrap();
    let root = fs::metadata(&point).unwrap();
    assert_eq!(root.mode() & 0o7777, 0o1777);
    assert_ne!(root.dev(), fs::metadata(dir.path()).unwrap().dev());
    let full = File::create(point.join("f")).unwrap().write_all(&vec![1; 2 << 20]);
    assert_eq!(full.unwrap_err().kind(), io::ErrorKind::StorageFull);
    remove_tree(dir.path().join("a b")).unwrap();
    assert!(!point.exists());
    assert!(Mounted::all().unwrap().iter().all(|it| !it.point.starts_with(dir.path())));
}

#[test]
fn removing_a_folder_spares_what_is_mounted_below() {
    let dir = tempfile::tempdir().unwrap();
    let (precious, scratch) = (dir.path().join("precious"), dir.path().join("scratch"));
    fs::create_dir_all(scratch.join("mnt")).unwrap();
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join("data"), "kept").unwrap();
    attach(bind(&precious, false, false).unwrap(), scratch.join("mnt")).unwrap();
    assert!(scratch.join("mnt/data").exists());
    remove_tree(&scratch).unwrap();
    assert!(!scratch.exists());
    assert_eq!(fs::read_to_string(precious.join("data")).unwrap(), "kept");
}

#[test]
fn read_only_bind_refuses_writes_and_binds_files() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "x").unwrap();
    let mount = bind(dir.path(), true, true).unwrap();
    let create = OFlags::CREATE | OFlags::WRONLY;
    let error = rustix::fs::openat(&mount, "new", create, Mode::RWXU).unwrap_err();
    assert_eq!(error, rustix::io::Errno::ROFS);
    let other = tempfile::NamedTempFile::new().unwrap();
    attach(bind(dir.path().join("file"), true, false).unwrap(), other.path()).unwrap();
    let mut text = String::new();
    File::open(other.path()).unwrap().read_to_string(&mut text).unwrap();
    unmount_below(other.path()).unwrap();
    assert_eq!(text, "x");
}

#[test]
fn errors_keep_their_number_and_say_what_the_kernel_said() {
    let none = Context::open("no-such-fs").map(drop).unwrap_err().to_string();
    assert!(none.contains("no file system `no-such-fs`") && none.contains("modprobe"), "{none}");
    let context = Context::open("overlay").unwrap();
    let error = context.set("no_such_option", "1").unwrap_err();
    assert_eq!(errno_of(&error), Some(libc::EINVAL));
    assert!(error.to_string().contains("no_such_option"), "{error}");
    let error = bind("/no/such/path", false, false).unwrap_err();
    assert_eq!(errno_of(&error), Some(libc::ENOENT));
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}
