//! Image + stub layer + mounts → the new root, pivoted into.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use kiln_store::Upper;
use kiln_store::mount::Opened;
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;
use rustix::mount::{
    MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags, mount_change, move_mount,
    unmount,
};

use super::layer::{Layer, write_content};
use super::layout::{Entry, What, layout};
use super::{inside, machine, mounts};
use crate::error::{Context as _, Fault};
use crate::spec::{Machine, Sandbox};
use crate::sys;

/// Makes the root of `sandbox` and pivots into it. The calling process has a mount namespace of
/// its own; the mounts of the host are gone from it afterwards. Returns what is to be told.
pub(super) fn assemble(sandbox: &Sandbox, scratch: &Path) -> Result<Vec<String>, Fault> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .step(|| "make the mounts private".to_owned())?;
    if sandbox.network.is_made() {
        // While the host's /proc/sys is still there to be written to.
        super::network_defaults()?;
    }
    super::set_sysctls(sandbox)?;
    let hostname = format!("{}\n", sandbox.hostname);
    let image =
        Opened::open(&sandbox.lower).step(|| format!("mount the image {:?}", sandbox.lower))?;
    let entries = layout(sandbox, &hostname, image.names())?;
    prepare_scratch(scratch)?;
    let (stub, new_root) = (scratch.join("stub"), scratch.join("root"));
    fill_stubs(sandbox, &entries, &Layer::new(stub.clone(), image.names())?)?;
    let names = image.names().try_clone_to_owned().step(|| "keep the image open".to_owned())?;
    mount_root(sandbox, image, &stub, &new_root)?;
    // A mount that is attached nowhere has all processors waited for when it is closed; this one
    // goes with the old root. A folder of links is no mount, and stays where it is.
    let by_fd = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    let _ = move_mount(&names, "", CWD, scratch.join("image"), by_fd);
    drop(names);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, &new_root, flags, Mode::empty())
        .step(|| format!("open {}", new_root.display()))?;
    // What has been mounted so far, by its own descriptor: whatever is mounted below it is looked
    // up from there, so no link that a stranger left leads to another mount.
    let mut placed: Vec<(&Path, OwnedFd)> = Vec::new();
    let mut warnings = Vec::new();
    for (number, entry) in entries.iter().enumerate() {
        let over = placed.iter().rfind(|(path, _)| entry.path.starts_with(path));
        let target = target(sandbox, entry, root.as_fd(), over)?;
        let Some(target) = target else { continue };
        let told = &mut warnings;
        if let Some(mount) = place(sandbox, entry, number, scratch, target.as_fd(), told)? {
            placed.push((&entry.path, mount));
        }
    }
    if sandbox.machine != Machine::Real {
        machine::cover(root.as_fd(), &scratch.join("files"), sandbox.machine)?;
    }
    drop(placed);
    pivot(root).map(|()| warnings)
}

fn prepare_scratch(scratch: &Path) -> Result<(), Fault> {
    let step = || format!("prepare {}", scratch.display());
    let fd = mounts::scratch().step(step)?;
    let from_fd = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&fd, "", CWD, scratch, from_fd).step(step)?;
    for name in ["stub", "files", "image", "images", "root"] {
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
    let names_only = sandbox.names_only;
    let upper = sandbox.upper.as_ref().map(|dir| Upper { dir: dir.clone(), names_only });
    let step = || format!("mount the root from {:?}", sandbox.lower);
    let fd = image.mount(upper.as_ref(), &[stub]).step(step)?;
    let mut attrs = MountAttrFlags::MOUNT_ATTR_NODEV;
    if upper.is_none() {
        attrs |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    sys::mount_setattr(fd.as_fd(), attrs, false).step(step)?;
    move_mount(&fd, "", CWD, new_root, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).step(step)
}

/// The place where an entry is to be mounted, made if it is missing; `None`: there is nothing to
/// mount. `over` is the mount that it lies in, if that is not the root.
fn target(
    sandbox: &Sandbox,
    entry: &Entry<'_>,
    root: BorrowedFd<'_>,
    over: Option<&(&Path, OwnedFd)>,
) -> Result<Option<OwnedFd>, Fault> {
    let step = || format!("mount over `/{}`", entry.path.display());
    if let What::File(_) = entry.what
        && sandbox.upper.is_none()
        && !entry.covered
    {
        return Ok(None);
    }
    if entry.path.as_os_str().is_empty() {
        return Ok(None);
    }
    let dir = entry.what.is_dir();
    let found = match over {
        // Links were resolved in the image, where nobody can have changed anything since.
        None => inside::exactly(root, &entry.path, OFlags::PATH),
        Some((above, mount)) => {
            let rest = entry.path.strip_prefix(above).unwrap_or(&entry.path);
            ensure(mount.as_fd(), rest, dir)
        }
    };
    match found {
        Ok(found) => Ok(Some(found)),
        // Whether there is a working directory is seen when it is entered.
        Err(_) if matches!(entry.what, What::Cwd) => Ok(None),
        Err(Errno::ROFS) => {
            let message = "what is mounted above it is read-only, and has no such place";
            Err(Fault::new(step(), message))
        }
        Err(Errno::XDEV | Errno::LOOP) => {
            let message = "a link in what is mounted above it leads out of there; \
                           let no link lie where something is to be mounted";
            Err(Fault::new(step(), message))
        }
        Err(error) => Err(error).step(step),
    }
}

/// Mounts one entry over `target`; returns the mount if others may lie in it.
fn place(
    sandbox: &Sandbox,
    entry: &Entry<'_>,
    number: usize,
    scratch: &Path,
    target: BorrowedFd<'_>,
    warnings: &mut Vec<String>,
) -> Result<Option<OwnedFd>, Fault> {
    let step = || format!("mount over `/{}`", entry.path.display());
    match &entry.what {
        What::Cwd => Ok(None),
        What::Proc => mounts::proc(target).map(Some),
        What::Sys => mounts::sys(target).map(Some),
        What::Dev => mounts::dev(target, sandbox.shm_size).map(Some),
        What::Tmpfs(tmpfs) => {
            // What lies under another mount is no image's.
            let take = tmpfs.filled && entry.exists && !entry.covered;
            let (mount, whole) = mounts::user_tmpfs(tmpfs, target, take).step(step)?;
            if !whole {
                let target = &tmpfs.target;
                warnings.push(format!(
                    "`{target}` begins in memory, and what the image has there is too much to be \
                     taken along as a whole: mount a volume or `x-kiln.volatile` there"
                ));
            }
            Ok(Some(mount))
        }
        What::Bind { mount, .. } => {
            mounts::bind(&mount.source, target, mount.read_only, mount.node).map(Some).step(step)
        }
        What::Device(device) => mounts::device(device, target).map(|_| None).step(step),
        What::Image(mount) => {
            let whole = scratch.join("images").join(number.to_string());
            mounts::image(mount, &whole, target).map(Some).step(step)
        }
        What::File(content) => {
            let copy = scratch.join("files").join(number.to_string());
            write_content(&copy, content).step(step)?;
            mounts::bind(&copy, target, !content.writable, None).map(|_| None).step(step)
        }
    }
}

/// Opens `path` below `above`, making what is missing.
fn ensure(above: BorrowedFd<'_>, path: &Path, dir: bool) -> rustix::io::Result<OwnedFd> {
    match inside::beneath(above, path, OFlags::PATH) {
        Err(Errno::NOENT) => {}
        opened => return opened,
    }
    let name = path.file_name().ok_or(Errno::INVAL)?;
    let parent = ensure(above, path.parent().unwrap_or(Path::new("")), true)?;
    let made = if dir {
        mkdirat(&parent, name, Mode::from(0o755))
    } else {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        openat(&parent, name, flags, Mode::from(0o644)).map(drop)
    };
    match made {
        // A link that leads to nothing, or somebody who was faster.
        Err(Errno::EXIST) | Ok(()) => {
            inside::beneath(parent.as_fd(), Path::new(name), OFlags::PATH)
        }
        Err(error) => Err(error),
    }
}

fn pivot(root: OwnedFd) -> Result<(), Fault> {
    let step = || "pivot into the new root".to_owned();
    rustix::process::fchdir(&root).step(step)?;
    // The old root ends up stacked over the new one, and is then taken off: no directory needed.
    rustix::process::pivot_root(".", ".").step(step)?;
    unmount(".", UnmountFlags::DETACH).step(step)?;
    rustix::process::chdir("/").step(step)
}
