//! The mount API of Linux 5.2 and later: mounts are made detached, as descriptors, and attached
//! where they are wanted. Nothing here forks, changes directory or needs a thread of its own, so
//! all of it may be called from any thread and from a shim.

mod image;
mod table;

use std::fs;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Timespec, Timestamps};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

#[cfg(test)]
pub(crate) use self::image::composefs_forced;
pub use self::image::{Opened, Upper, mount_image, mount_image_under};
pub use self::table::Mounted;

/// Attaches a detached mount to an existing folder (or a file, for the bind of a file).
///
/// # Errors
/// I/O errors, with the path in their text.
pub fn attach(mount: impl AsFd, path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref();
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mount.as_fd(), "", CWD, path, flags)
        .map_err(|error| told(error.into(), format_args!("attaching to {}", path.display())))
}

/// A detached bind mount of `source`, a folder or a file; `recursive` takes the mounts below it
/// along, and `read_only` then holds for them too.
///
/// # Errors
/// I/O errors, with the path in their text.
pub fn bind(source: impl AsRef<Path>, read_only: bool, recursive: bool) -> io::Result<OwnedFd> {
    let source = source.as_ref();
    let error = |error| told(error, format_args!("binding {}", source.display()));
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let mount =
        rustix::mount::open_tree(CWD, source, flags).map_err(|errno| error(errno.into()))?;
    if read_only {
        set_attributes(mount.as_fd(), libc::MOUNT_ATTR_RDONLY, recursive).map_err(error)?;
    }
    Ok(mount)
}

/// A detached tmpfs of at most `size` bytes whose root has `mode`; `flags` are those of the mount
/// (`MOUNT_ATTR_NOSUID` …).
///
/// # Errors
/// I/O errors.
pub fn tmpfs(size: u64, mode: u32, flags: MountAttrFlags) -> io::Result<OwnedFd> {
    let context = Context::open("tmpfs")?;
    context.set("source", "tmpfs")?;
    context.set("size", &size.to_string())?;
    context.set("mode", &format!("{mode:o}"))?;
    context.mount(flags)
}

/// Removes `path` and all below it, as `rm -rf` does, but never what is mounted below: mounts are
/// detached first. It need not be there.
///
/// # Errors
/// I/O errors, also when a mount cannot be detached; nothing is removed then.
pub fn remove_tree(path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref();
    let result = unmount_below(path).and_then(|()| match fs::symlink_metadata(path)?.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    });
    crate::store::ignore_missing(result)
}

/// Detaches every mount at or below `path`, the last mounted first.
///
/// # Errors
/// I/O errors.
pub fn unmount_below(path: impl AsRef<Path>) -> io::Result<()> {
    let path = match path.as_ref().canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        path => path?,
    };
    for Mounted { point, .. } in Mounted::all()?.iter().rev() {
        if !point.starts_with(&path) {
            continue;
        }
        rustix::mount::unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .map_err(|error| told(error.into(), format_args!("detaching {}", point.display())))?;
    }
    Ok(())
}

/// A file system being configured (`fsopen`).
pub(crate) struct Context {
    fd: OwnedFd,
    kind: &'static str,
}

impl Context {
    pub(crate) fn open(kind: &'static str) -> io::Result<Self> {
        let fd = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|error| {
            match error {
                rustix::io::Errno::NODEV => told(
                    error.into(),
                    format_args!(
                        "this kernel has no file system `{kind}`, without which no image can be \
                         mounted: `modprobe {kind}`, or take a kernel that has it"
                    ),
                ),
                error => told(error.into(), format_args!("opening file system {kind}")),
            }
        })?;
        Ok(Self { fd, kind })
    }

    pub(crate) fn set(&self, key: &str, value: &str) -> io::Result<()> {
        rustix::mount::fsconfig_set_string(&self.fd, key, value)
            .map_err(|error| self.explain(error.into(), &format!("option {key}={value}")))
    }

    pub(crate) fn flag(&self, key: &str) -> io::Result<()> {
        rustix::mount::fsconfig_set_flag(&self.fd, key)
            .map_err(|error| self.explain(error.into(), &format!("option {key}")))
    }

    /// Creates the file system and a detached mount of it.
    pub(crate) fn mount(&self, attributes: MountAttrFlags) -> io::Result<OwnedFd> {
        rustix::mount::fsconfig_create(&self.fd)
            .map_err(|error| self.explain(error.into(), "creating it"))?;
        rustix::mount::fsmount(&self.fd, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map_err(|error| self.explain(error.into(), "mounting it"))
    }

    /// Adds what the kernel logged in the context, which says more than an error number does.
    fn explain(&self, error: io::Error, what: &str) -> io::Error {
        let mut log = String::new();
        let mut buffer = [0; 512];
        while let Ok(read) = rustix::io::read(&self.fd, &mut buffer) {
            if read == 0 {
                break;
            }
            log.push_str("; kernel: ");
            log.push_str(String::from_utf8_lossy(&buffer[..read]).trim());
        }
        told(error, format_args!("{}, {what}{log}", self.kind))
    }
}

/// An error that says what was being done and is still of its kind. [`errno_of`] finds the number.
pub(crate) fn told(source: io::Error, doing: std::fmt::Arguments<'_>) -> io::Error {
    let told = Told { doing: doing.to_string(), source };
    io::Error::new(told.source.kind(), told)
}

/// The error number below what [`told`] added.
pub(crate) fn errno_of(error: &io::Error) -> Option<i32> {
    error.raw_os_error().or_else(|| {
        let told = error.get_ref()?.downcast_ref::<Told>()?;
        errno_of(&told.source)
    })
}

#[derive(Debug, thiserror::Error)]
#[error("{doing}: {source}")]
struct Told {
    doing: String,
    source: io::Error,
}

/// Sets attributes of a mount, and of those below it.
pub(crate) fn set_attributes(mount: BorrowedFd<'_>, set: u64, recursive: bool) -> io::Result<()> {
    // SAFETY: all-zero is a valid value of this plain structure of integers.
    let mut attributes: libc::mount_attr = unsafe { mem::zeroed() };
    attributes.attr_set = set;
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated literal, the structure lives through the call and its
    // size is passed with it; the kernel only reads both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            mem::size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A modification time, with the access time alike.
pub(crate) fn times(seconds: i64) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
mod tests;
