//! proc, sys, dev, tmpfs and binds, by the new mount API: no path is looked up twice.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use kiln_core::compose::Tmpfs;
use kiln_store::Upper;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, symlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::root::ensure;
use crate::error::{Context as _, Fault};
use crate::spec::ImageMount;
use crate::sys;

/// Nodes of `/dev`: bound from the host, so that the tmpfs around them refuses devices.
const NODES: [&str; 6] = ["full", "null", "random", "tty", "urandom", "zero"];

const LINKS: [(&str, &str); 6] = [
    ("core", "/proc/kcore"),
    ("fd", "/proc/self/fd"),
    ("ptmx", "pts/ptmx"),
    ("stderr", "/proc/self/fd/2"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
];

/// Hidden from instances. Source: moby `oci/defaults.go`, engine 27 to 29.
const MASKED: [&str; 12] = [
    "proc/acpi",
    "proc/asound",
    "proc/interrupts",
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/sched_debug",
    "proc/scsi",
    "proc/timer_list",
    "proc/timer_stats",
    "sys/devices/virtual/powercap",
    "sys/firmware",
];

/// Readable only. Source: as above.
const READ_ONLY: [&str; 5] = ["proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"];

const fn attrs(list: &[MountAttrFlags]) -> MountAttrFlags {
    let mut bits = 0;
    let mut at = 0;
    while at < list.len() {
        bits |= list[at].bits();
        at += 1;
    }
    MountAttrFlags::from_bits_retain(bits)
}

const NOSUID: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID;
const NODEV: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV;
const NOEXEC: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOEXEC;
const RDONLY: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY;
const STRICT: MountAttrFlags = attrs(&[NOSUID, NODEV, NOEXEC]);

/// A detached file system of type `kind`.
fn make(
    kind: &str,
    options: &[(&str, &str)],
    attrs: MountAttrFlags,
) -> rustix::io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attrs)
}

fn attach(mount: &OwnedFd, target: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let by_fd = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", target, "", by_fd)
}

/// A detached tmpfs.
pub(super) fn tmpfs(
    options: &[(&str, &str)],
    attrs: MountAttrFlags,
) -> rustix::io::Result<OwnedFd> {
    make("tmpfs", options, attrs)
}

/// A tmpfs of the specification. Programs in it may be executed, other than in Docker: `/tmp` is
/// one by default here, and compilers and installers run what they put there.
pub(super) fn user_tmpfs(spec: &Tmpfs, target: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let mode = format!("{:o}", spec.mode.unwrap_or(0o1777));
    let size = spec.size.map(|bytes| bytes.to_string());
    let mut options = vec![("mode", mode.as_str())];
    if let Some(size) = &size {
        options.push(("size", size));
    }
    attach(&tmpfs(&options, NOSUID | NODEV)?, target)
}

/// Binds `source`, with what is mounted below it, over `target`. What is mounted has to be `node`,
/// if that is given: whoever decided that it may be mounted looked at that, and a path can lead
/// somewhere else by now.
pub(super) fn bind(
    source: &Path,
    target: BorrowedFd<'_>,
    read_only: bool,
    node: Option<(u64, u64)>,
) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, source, flags)?;
    if let Some(node) = node {
        let found = rustix::fs::fstat(&tree)?;
        if (found.st_dev, found.st_ino) != node {
            let what = format!("{} is another file or folder by now", source.display());
            return Err(io::Error::other(what));
        }
    }
    let attrs = if read_only { NODEV | RDONLY } else { NODEV };
    sys::mount_setattr(tree.as_fd(), attrs, true)?;
    Ok(attach(&tree, target)?)
}

/// Mounts an image at the new directory `whole`, and what is wanted of it over `target`.
pub(super) fn image(mount: &ImageMount, whole: &Path, target: BorrowedFd<'_>) -> io::Result<()> {
    let upper = mount.upper.as_ref().map(|dir| Upper { dir: dir.clone() });
    let fd = kiln_store::mount::mount_image(&mount.lower, upper.as_ref())?;
    let attrs = if mount.read_only { NODEV | RDONLY } else { NODEV };
    sys::mount_setattr(fd.as_fd(), attrs, false)?;
    if mount.path.as_os_str().is_empty() {
        return Ok(attach(&fd, target)?);
    }
    // Of a mount that is attached nowhere, older kernels clone no part.
    std::fs::create_dir(whole)?;
    move_mount(&fd, "", CWD, whole, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = openat(CWD, whole, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let part = openat2(&root, &mount.path, flags, Mode::empty(), resolve)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(attach(&open_tree(&part, "", flags)?, target)?)
}

pub(super) fn proc(target: BorrowedFd<'_>) -> Result<(), Fault> {
    make("proc", &[], STRICT)
        .and_then(|mount| attach(&mount, target))
        .step(|| "mount /proc".to_owned())
}

/// `/sys`, read-only, with the instance's own group where programs look for their limits.
pub(super) fn sys(target: BorrowedFd<'_>, root: BorrowedFd<'_>, path: &Path) -> Result<(), Fault> {
    make("sysfs", &[], STRICT | RDONLY)
        .and_then(|mount| attach(&mount, target))
        .step(|| "mount /sys".to_owned())?;
    // There is no such place without CONFIG_CGROUPS, and then there is nothing to show.
    let at = path.join("fs/cgroup");
    let Ok(place) = openat(root, &at, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) else {
        return Ok(());
    };
    make("cgroup2", &[], STRICT | RDONLY)
        .and_then(|mount| attach(&mount, place.as_fd()))
        .step(|| "mount /sys/fs/cgroup".to_owned())
}

/// `/dev`: the standard nodes and links, terminals, message queues and shared memory of its own.
pub(super) fn dev(
    target: BorrowedFd<'_>,
    root: BorrowedFd<'_>,
    path: &Path,
    shm_size: u64,
) -> Result<(), Fault> {
    let step = || "set up /dev".to_owned();
    let mount = tmpfs(&[("mode", "0755"), ("size", "64k")], NOSUID | NODEV | NOEXEC).step(step)?;
    attach(&mount, target).step(step)?;
    for name in NODES {
        let node = ensure(root, &path.join(name), false).step(step)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        // The node is the host's own, for making one takes a capability that may be missing: its
        // mode and owner are not for changing. Devices are written to all the same.
        let step = || format!("bind /dev/{name}");
        let tree = open_tree(CWD, format!("/dev/{name}"), flags).step(step)?;
        sys::mount_setattr(tree.as_fd(), NOSUID | NOEXEC | RDONLY, false).step(step)?;
        attach(&tree, node.as_fd()).step(step)?;
    }
    for (name, to) in LINKS {
        symlinkat(to, &mount, name).step(step)?;
    }
    let shm = shm_size.to_string();
    let pts = [("mode", "0620"), ("ptmxmode", "0666"), ("gid", "5")];
    let shm = [("mode", "1777"), ("size", shm.as_str())];
    for (name, kind, options, attrs) in [
        ("pts", "devpts", &pts[..], NOSUID | NOEXEC),
        ("shm", "tmpfs", &shm[..], STRICT),
        ("mqueue", "mqueue", &[][..], STRICT),
    ] {
        let step = || format!("mount /dev/{name}");
        mkdirat(&mount, name, Mode::from(0o755)).step(step)?;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let place = openat(root, path.join(name), flags, Mode::empty()).step(step)?;
        make(kind, options, attrs).and_then(|fs| attach(&fs, place.as_fd())).step(step)?;
    }
    Ok(())
}

/// Hides and write-protects what tells of the host or changes it.
pub(super) fn hide(root: BorrowedFd<'_>) -> Result<(), Fault> {
    let open = |path: &str| openat(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok();
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    for path in READ_ONLY {
        let Some(place) = open(path) else { continue };
        let step = || format!("make /{path} read-only");
        let tree = open_tree(root, path, clone).step(step)?;
        sys::mount_setattr(tree.as_fd(), STRICT | RDONLY, false).step(step)?;
        attach(&tree, place.as_fd()).step(step)?;
    }
    for path in MASKED {
        let Some(place) = open(path) else { continue };
        let step = || format!("hide /{path}");
        let is_dir = rustix::fs::fstat(&place)
            .map(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
            .step(step)?;
        let over = if is_dir {
            tmpfs(&[("mode", "0755"), ("nr_inodes", "1")], STRICT | RDONLY)
        } else {
            open_tree(CWD, "/dev/null", clone)
        };
        over.and_then(|mount| attach(&mount, place.as_fd())).step(step)?;
    }
    let mut cpu = 0;
    while let Some(place) = open(&format!("sys/devices/system/cpu/cpu{cpu}/thermal_throttle")) {
        tmpfs(&[("mode", "0755"), ("nr_inodes", "1")], STRICT | RDONLY)
            .and_then(|mount| attach(&mount, place.as_fd()))
            .step(|| "hide thermal_throttle".to_owned())?;
        cpu += 1;
    }
    Ok(())
}

/// What `hide` covers exists on some machine; on this one, for tests.
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_relative_and_sorted() {
        assert!(MASKED.iter().all(|path| !path.starts_with('/')));
        assert!(MASKED.is_sorted() && READ_ONLY.is_sorted() && NODES.is_sorted());
        assert!(std::fs::metadata("/dev/null").is_ok());
    }
}
