//! Image + stub layer + mounts → the new root, pivoted into.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use kiln_store::Upper;
use kiln_store::mount::Opened;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{
    MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags, mount_change, move_mount,
    unmount,
};

use super::layer::{Layer, write_content};
use super::layout::{Entry, What, layout};
use super::{machine, mounts};
use crate::error::{Context as _, Fault};
use crate::spec::{Machine, Network, Sandbox};
use crate::sys;

/// Makes the root of `sandbox` and pivots into it. The calling process has a mount namespace of
/// its own; the mounts of the host are gone from it afterwards.
pub(super) fn assemble(sandbox: &Sandbox, scratch: &Path) -> Result<(), Fault> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .step(|| "make the mounts private".to_owned())?;
    if sandbox.network != Network::Host {
        // While the host's /proc/sys is still there to be written to.
        super::network_defaults()?;
    }
    let hostname = format!("{}\n", sandbox.hostname);
    let image =
        Opened::open(&sandbox.lower).step(|| format!("mount the image {:?}", sandbox.lower))?;
    let entries = layout(sandbox, &hostname, image.names())?;
    prepare_scratch(scratch)?;
    let (stub, new_root) = (scratch.join("stub"), scratch.join("root"));
    fill_stubs(sandbox, &entries, &Layer::new(stub.clone(), image.names())?)?;
    mount_root(sandbox, image, &stub, &new_root)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, &new_root, flags, Mode::empty())
        .step(|| format!("open {}", new_root.display()))?;
    for (number, entry) in entries.iter().enumerate() {
        place(sandbox, entry, number, scratch, root.as_fd())?;
    }
    mounts::hide(root.as_fd())?;
    if sandbox.machine != Machine::Real {
        machine::cover(root.as_fd(), &scratch.join("files"), sandbox.machine)?;
    }
    pivot(root)
}

fn prepare_scratch(scratch: &Path) -> Result<(), Fault> {
    let step = || format!("prepare {}", scratch.display());
    let fd = mounts::tmpfs(&[("mode", "0700")], MountAttrFlags::MOUNT_ATTR_NODEV).step(step)?;
    let from_fd = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&fd, "", CWD, scratch, from_fd).step(step)?;
    for name in ["stub", "files", "images", "root"] {
        fs::create_dir(scratch.join(name)).step(step)?;
    }
    Ok(())
}

/// Puts into the layer what the image lacks. On a read-only root the runtime's files go there
/// with their content; above a writable layer they are mounted, or a change to them would be
/// copied up.
fn fill_stubs(sandbox: &Sandbox, entries: &[Entry<'_>], layer: &Layer<'_>) -> Result<(), Fault> {
    for entry in entries.iter().filter(|entry| !entry.covered) {
        match &entry.what {
            What::File(content) if sandbox.upper.is_none() => {
                layer.content(&entry.path, content)?;
            }
            _ if entry.exists => {}
            what if what.is_dir() => layer.directory(&entry.path)?,
            _ => layer.file(&entry.path)?,
        }
    }
    Ok(())
}

/// Mounts image and stubs at `new_root`. Devices are refused everywhere but on the nodes of
/// `/dev`: CAP_MKNOD is in Docker's set, and there is no device group on cgroup2.
fn mount_root(
    sandbox: &Sandbox,
    image: Opened<'_>,
    stub: &Path,
    new_root: &Path,
) -> Result<(), Fault> {
    let upper = sandbox.upper.as_ref().map(|dir| Upper { dir: dir.clone() });
    let step = || format!("mount the root from {:?}", sandbox.lower);
    let fd = image.mount(upper.as_ref(), &[stub]).step(step)?;
    let mut attrs = MountAttrFlags::MOUNT_ATTR_NODEV;
    if upper.is_none() {
        attrs |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    sys::mount_setattr(fd.as_fd(), attrs, false).step(step)?;
    move_mount(&fd, "", CWD, new_root, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).step(step)
}

/// Mounts one entry.
fn place(
    sandbox: &Sandbox,
    entry: &Entry<'_>,
    number: usize,
    scratch: &Path,
    root: BorrowedFd<'_>,
) -> Result<(), Fault> {
    let step = || format!("mount over `/{}`", entry.path.display());
    if let What::File(_) = entry.what
        && sandbox.upper.is_none()
        && !entry.covered
    {
        return Ok(());
    }
    if entry.path.as_os_str().is_empty() {
        return Ok(());
    }
    let target = match ensure(root, &entry.path, entry.what.is_dir()) {
        Err(Errno::ROFS) => {
            let message = "what is mounted above it is read-only, and has no such place";
            return Err(Fault::new(step(), message));
        }
        target => target.step(step)?,
    };
    match &entry.what {
        What::Cwd => Ok(()),
        What::Proc => mounts::proc(target.as_fd()),
        What::Sys => mounts::sys(target.as_fd(), root, &entry.path),
        What::Dev => mounts::dev(target.as_fd(), root, &entry.path, sandbox.shm_size),
        What::Tmpfs(tmpfs) => mounts::user_tmpfs(tmpfs, target.as_fd()).step(step),
        What::Bind { mount, .. } => {
            mounts::bind(&mount.source, target.as_fd(), mount.read_only, mount.node).step(step)
        }
        What::Image(mount) => {
            let whole = scratch.join("images").join(number.to_string());
            mounts::image(mount, &whole, target.as_fd()).step(step)
        }
        What::File(content) => {
            let copy = scratch.join("files").join(number.to_string());
            write_content(&copy, content).step(step)?;
            mounts::bind(&copy, target.as_fd(), !content.writable, None).step(step)
        }
    }
}

/// Opens `path` inside `root`, making what is missing. Links that a volume may hold cannot lead
/// out of the root.
pub(super) fn ensure(root: BorrowedFd<'_>, path: &Path, dir: bool) -> rustix::io::Result<OwnedFd> {
    let open = || {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
    };
    match open() {
        Err(Errno::NOENT) => {}
        opened => return opened,
    }
    let name = path.file_name().ok_or(Errno::INVAL)?;
    let parent = ensure(root, path.parent().unwrap_or(Path::new("")), true)?;
    if dir {
        mkdirat(&parent, name, Mode::from(0o755))?;
    } else {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        openat(&parent, name, flags, Mode::from(0o644))?;
    }
    open()
}

fn pivot(root: OwnedFd) -> Result<(), Fault> {
    let step = || "pivot into the new root".to_owned();
    rustix::process::fchdir(&root).step(step)?;
    // The old root ends up stacked over the new one, and is then taken off: no directory needed.
    rustix::process::pivot_root(".", ".").step(step)?;
    unmount(".", UnmountFlags::DETACH).step(step)?;
    rustix::process::chdir("/").step(step)
}
