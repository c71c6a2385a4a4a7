//! proc, sys, dev, tmpfs and binds, by the new mount API: no path is looked up twice, and what is
//! hidden of a mount is looked up in that very mount, whatever lies around it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use kiln_core::compose::Tmpfs;
use kiln_store::Upper;
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::inside;
use super::takeover::take_over;
use crate::error::{Context as _, Fault};
use crate::spec::{Device, ImageMount};
use crate::{devices, sys};

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

/// Hidden from instances, of procfs and of sysfs. Source: moby `oci/defaults.go`, engine 27 to 29.
const MASKED_PROC: [&str; 10] = [
    "acpi",
    "asound",
    "interrupts",
    "kcore",
    "keys",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
    "timer_stats",
];
const MASKED_SYS: [&str; 2] = ["devices/virtual/powercap", "firmware"];

/// Readable only, of procfs. Source: as above.
const READ_ONLY: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];

/// Size of a tmpfs for which none is stated, or a quarter of the machine's memory if that is less.
const TMPFS_SIZE: u64 = 1 << 30;
/// Bytes of it for each file, directory or link that may be in it: they take memory, too.
const TMPFS_INODE: u64 = 4 << 10;

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

/// Attaches `mount` over `target`; the descriptor is that of the mount as before.
fn attach(mount: OwnedFd, target: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    let by_fd = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&mount, "", target, "", by_fd)?;
    Ok(mount)
}

/// A detached tmpfs.
fn tmpfs(options: &[(&str, &str)], attrs: MountAttrFlags) -> rustix::io::Result<OwnedFd> {
    make("tmpfs", options, attrs)
}

/// A tmpfs of the specification. Programs in it may be executed, other than in Docker: `/tmp` is
/// one by default here, and compilers and installers run what they put there. With `take` it begins
/// with what is at `target`; false if that was too much.
pub(super) fn user_tmpfs(
    spec: &Tmpfs,
    target: BorrowedFd<'_>,
    take: bool,
) -> io::Result<(OwnedFd, bool)> {
    let mode = format!("{:o}", spec.mode.unwrap_or(0o1777));
    let percent = |percent: u8| (memory() / 100).saturating_mul(percent.into());
    let stated = spec.size.or(spec.percent.map(percent));
    let bytes = stated.unwrap_or_else(|| TMPFS_SIZE.min(memory() / 4));
    let (size, files) = (bytes.to_string(), inodes(bytes));
    let mut options = vec![("mode", mode.as_str()), ("size", &size), ("nr_inodes", &files)];
    let ids = [("uid", spec.uid), ("gid", spec.gid)];
    let ids: Vec<_> =
        ids.into_iter().filter_map(|(key, id)| Some((key, id?.to_string()))).collect();
    options.extend(ids.iter().map(|(key, id)| (*key, id.as_str())));
    let exec = if spec.noexec { NOEXEC } else { MountAttrFlags::empty() };
    let mount = tmpfs(&options, NOSUID | NODEV | exec)?;
    let whole = if take { take_over(target, mount.as_fd())? } else { true };
    Ok((attach(mount, target)?, whole))
}

/// A detached tmpfs for the runtime's own files, some of which a program may write to.
pub(super) fn scratch() -> rustix::io::Result<OwnedFd> {
    let bytes = TMPFS_SIZE.min(memory() / 4);
    let (size, files) = (bytes.to_string(), inodes(bytes));
    let options = [("mode", "0700"), ("size", size.as_str()), ("nr_inodes", &files)];
    tmpfs(&options, NODEV)
}

/// How many files may be in a tmpfs of `bytes`; a small one need not be counted.
fn inodes(bytes: u64) -> String {
    (bytes / TMPFS_INODE).max(1_024).to_string()
}

/// Bytes of memory of this machine.
fn memory() -> u64 {
    let info = rustix::system::sysinfo();
    #[expect(clippy::useless_conversion, reason = "the type differs between architectures")]
    u64::from(info.totalram).saturating_mul(u64::from(info.mem_unit))
}

/// Binds `source`, with what is mounted below it, over `target`. What is mounted has to be `node`,
/// if that is given: whoever decided that it may be mounted looked at that, and a path can lead
/// somewhere else by now.
pub(super) fn bind(
    source: &Path,
    target: BorrowedFd<'_>,
    read_only: bool,
    node: Option<(u64, u64)>,
) -> io::Result<OwnedFd> {
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
    Ok(attach(tree, target)?)
}

/// Mounts an image at the new directory `whole`, and what is wanted of it over `target`.
pub(super) fn image(
    mount: &ImageMount,
    whole: &Path,
    target: BorrowedFd<'_>,
) -> io::Result<OwnedFd> {
    let upper = mount.upper.as_ref().map(|dir| Upper::whole(dir.clone()));
    let fd = kiln_store::mount::mount_image(&mount.lower, upper.as_ref())?;
    let attrs = if mount.read_only { NODEV | RDONLY } else { NODEV };
    sys::mount_setattr(fd.as_fd(), attrs, false)?;
    if mount.path.as_os_str().is_empty() {
        return Ok(attach(fd, target)?);
    }
    // Of a mount that is attached nowhere, older kernels clone no part.
    std::fs::create_dir(whole)?;
    move_mount(&fd, "", CWD, whole, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW;
    let root = openat(CWD, whole, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let part = inside::exactly(root.as_fd(), &mount.path, flags)?;
    Ok(attach(copy(part.as_fd())?, target)?)
}

/// A detached mount of what `place` refers to.
fn copy(place: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(place, "", flags)
}

/// `/proc`, with what tells of the host hidden and what changes it write-protected.
pub(super) fn proc(target: BorrowedFd<'_>) -> Result<OwnedFd, Fault> {
    let mount = make("proc", &[], STRICT)
        .and_then(|mount| attach(mount, target))
        .step(|| "mount /proc".to_owned())?;
    for path in READ_ONLY {
        let step = || format!("make /proc/{path} read-only");
        let Some(place) = there(&mount, path).step(step)? else { continue };
        let tree = copy(place.as_fd()).step(step)?;
        sys::mount_setattr(tree.as_fd(), STRICT | RDONLY, false).step(step)?;
        attach(tree, place.as_fd()).step(step)?;
    }
    for path in MASKED_PROC {
        hide(&mount, path).step(|| format!("hide /proc/{path}"))?;
    }
    Ok(mount)
}

/// `/sys`, read-only, with the instance's own group where programs look for their limits.
pub(super) fn sys(target: BorrowedFd<'_>) -> Result<OwnedFd, Fault> {
    let mount = make("sysfs", &[], STRICT | RDONLY)
        .and_then(|mount| attach(mount, target))
        .step(|| "mount /sys".to_owned())?;
    for path in MASKED_SYS {
        hide(&mount, path).step(|| format!("hide /sys/{path}"))?;
    }
    let mut cpu = 0;
    while hide(&mount, &format!("devices/system/cpu/cpu{cpu}/thermal_throttle"))
        .step(|| "hide thermal_throttle".to_owned())?
    {
        cpu += 1;
    }
    // There is no such place without CONFIG_CGROUPS, and then there is nothing to show.
    let step = || "mount /sys/fs/cgroup".to_owned();
    if let Some(place) = there(&mount, "fs/cgroup").step(step)? {
        let group = make("cgroup2", &[], STRICT | RDONLY).step(step)?;
        attach(group, place.as_fd()).step(step)?;
    }
    Ok(mount)
}

/// The host's own `/dev/NAME`, for making a node takes a capability that may be missing: its mode
/// and owner are not for changing. Devices are written to all the same.
fn hosts_node(name: &str) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, format!("/dev/{name}"), flags)?;
    sys::mount_setattr(tree.as_fd(), NOSUID | NOEXEC | RDONLY, false)?;
    Ok(tree)
}

/// A device of the host over `target`: its node is the host's, so its mode and owner are not for
/// changing.
pub(super) fn device(device: &Device, target: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let node = devices::node(&device.source)?;
    if devices::number(&node)? != Some((device.block, device.major, device.minor)) {
        let what = format!("{} is another device by now", device.source.display());
        return Err(io::Error::other(what));
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(&node, "", flags)?;
    sys::mount_setattr(tree.as_fd(), NOSUID | NOEXEC | RDONLY, false)?;
    Ok(attach(tree, target)?)
}

/// `/dev`: the standard nodes and links, terminals, message queues and shared memory of its own.
pub(super) fn dev(target: BorrowedFd<'_>, shm_size: u64) -> Result<OwnedFd, Fault> {
    let step = || "set up /dev".to_owned();
    let few = [("mode", "0755"), ("size", "64k"), ("nr_inodes", "1024")];
    let mount =
        tmpfs(&few, NOSUID | NODEV | NOEXEC).and_then(|mount| attach(mount, target)).step(step)?;
    for name in NODES {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let node = openat(&mount, name, flags, Mode::from(0o644)).step(step)?;
        hosts_node(name)
            .and_then(|tree| Ok(attach(tree, node.as_fd())?))
            .step(|| format!("bind /dev/{name}"))?;
    }
    for (name, to) in LINKS {
        symlinkat(to, &mount, name).step(step)?;
    }
    let (shm, files) = (shm_size.to_string(), inodes(shm_size));
    let pts = [("mode", "0620"), ("ptmxmode", "0666"), ("gid", "5")];
    let shm = [("mode", "1777"), ("size", shm.as_str()), ("nr_inodes", files.as_str())];
    for (name, kind, options, attrs) in [
        ("pts", "devpts", &pts[..], NOSUID | NOEXEC),
        ("shm", "tmpfs", &shm[..], STRICT),
        ("mqueue", "mqueue", &[][..], STRICT),
    ] {
        let step = || format!("mount /dev/{name}");
        mkdirat(&mount, name, Mode::from(0o755)).step(step)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = openat(&mount, name, flags, Mode::empty()).step(step)?;
        make(kind, options, attrs).and_then(|fs| attach(fs, place.as_fd())).step(step)?;
    }
    Ok(mount)
}

/// `path` of the kernel's own file system `mount`; `None` if this kernel has none such.
fn there(mount: &OwnedFd, path: &str) -> rustix::io::Result<Option<OwnedFd>> {
    match inside::exactly(mount.as_fd(), Path::new(path), OFlags::PATH | OFlags::NOFOLLOW) {
        Err(Errno::NOENT) => Ok(None),
        place => place.map(Some),
    }
}

/// Covers `path` of `mount`; false if there is none such.
fn hide(mount: &OwnedFd, path: &str) -> io::Result<bool> {
    let Some(place) = there(mount, path)? else { return Ok(false) };
    let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode);
    let over = if kind.is_dir() {
        tmpfs(&[("mode", "0755"), ("nr_inodes", "1")], STRICT | RDONLY)?
    } else {
        hosts_node("null")?
    };
    attach(over, place.as_fd())?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_relative_and_sorted() {
        let hidden = MASKED_PROC.iter().chain(&MASKED_SYS);
        assert!(hidden.chain(&READ_ONLY).all(|path| !path.starts_with('/')));
        assert!(MASKED_PROC.is_sorted() && READ_ONLY.is_sorted() && NODES.is_sorted());
        assert!(std::fs::metadata("/dev/null").is_ok());
    }
}
