//! Opening what a stranger named: always by descriptor, never past the directory that is given,
//! and never through the links of procfs that lead to whatever a process has open.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, fstatfs, openat2};
use rustix::io::Errno;

use crate::error::{Context as _, Fault};

/// Somebody who renames without end can have the kernel answer EAGAIN as often as they like.
const MOST_TRIES: u32 = 1_000;

/// File systems whose files are answers of the kernel: they may have no end, or make one wait.
/// Source: linux/magic.h (proc, sysfs, cgroup2, debugfs, tracefs).
const NOT_STORED: [i64; 5] = [0x9fa0, 0x6265_6572, 0x6367_7270, 0x6462_6720, 0x7472_6163];

/// Opens `path` as if `root` were `/`: links are followed, and lead nowhere but below it.
pub(super) fn open(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    resolve(root, path, flags, ResolveFlags::IN_ROOT)
}

/// Opens `path` below `dir`; a link that leads out of it is an error (EXDEV).
pub(super) fn beneath(
    dir: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    resolve(dir, path, flags, ResolveFlags::BENEATH)
}

/// Opens exactly `path` below `dir`: no link on the way, and no other mount.
pub(super) fn exactly(
    dir: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    resolve(dir, path, flags, how)
}

fn resolve(
    dir: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    how: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let how = how | ResolveFlags::NO_MAGICLINKS;
    let mut tries = 0;
    loop {
        match openat2(dir, path, flags | OFlags::CLOEXEC, Mode::empty(), how) {
            Err(Errno::AGAIN | Errno::INTR) if tries < MOST_TRIES => tries += 1,
            done => return done,
        }
    }
}

/// The text of the file `path` in `root`, which has at most `most` bytes; `None`: there is none.
///
/// # Errors
/// If it is anything but a regular file on a real file system, or longer.
pub(super) fn read_text(root: impl AsFd, path: &str, most: u64) -> Result<Option<String>, Fault> {
    let step = || format!("read {path} of the image");
    // A FIFO would be waited for, a terminal become ours.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = match open(root.as_fd(), Path::new(path), flags) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        fd => fd.step(step)?,
    };
    let stat = fstat(&fd).step(step)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Fault::new(step(), "it is no regular file"));
    }
    #[expect(clippy::useless_conversion, reason = "the type differs between architectures")]
    let kind = i64::from(fstatfs(&fd).step(step)?.f_type);
    if NOT_STORED.contains(&kind) {
        return Err(Fault::new(step(), "it is no file that is stored anywhere"));
    }
    let mut bytes = Vec::new();
    File::from(fd).take(most + 1).read_to_end(&mut bytes).step(step)?;
    if bytes.len() as u64 > most {
        return Err(Fault::new(step(), format!("it is longer than {most} bytes")));
    }
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// Makes `path`, a directory inside `root`, the working directory, and sees that it is one.
pub(super) fn enter(root: BorrowedFd<'_>, path: &str) -> Result<(), Fault> {
    let step = || format!("change to the working directory `{path}`");
    let dir = open(root, Path::new(path), OFlags::PATH | OFlags::DIRECTORY).step(step)?;
    rustix::process::fchdir(&dir).step(step)?;
    // The kernel begins the name of a directory that the root does not lead to with another word.
    let name = rustix::process::getcwd(Vec::new()).step(step)?;
    if name.as_bytes().starts_with(b"/") {
        Ok(())
    } else {
        Err(Fault::new(step(), "it does not lie below the instance's root"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn world() -> (tempfile::TempDir, File) {
        let dir = tempfile::tempdir().unwrap();
        let root = File::open(dir.path()).unwrap();
        (dir, root)
    }

    #[test]
    fn links_stay_below_what_is_given() {
        let (dir, root) = world();
        std::fs::create_dir(dir.path().join("in")).unwrap();
        std::fs::write(dir.path().join("in/file"), "x").unwrap();
        symlink("/in/file", dir.path().join("absolute")).unwrap();
        symlink("../../../../../../in/file", dir.path().join("up")).unwrap();
        symlink("/proc/self/fd/0", dir.path().join("magic")).unwrap();
        let path = OFlags::PATH;
        for name in ["absolute", "up"] {
            assert!(open(root.as_fd(), Path::new(name), path).is_ok(), "{name}");
            assert_eq!(beneath(root.as_fd(), Path::new(name), path).unwrap_err(), Errno::XDEV);
            assert_eq!(exactly(root.as_fd(), Path::new(name), path).unwrap_err(), Errno::LOOP);
        }
        assert!(open(root.as_fd(), Path::new("magic"), path).is_err());
        // With the machine's own procfs below the root, the link is still not followed.
        let machine = File::open("/").unwrap();
        let name = format!("proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&root));
        let magic = open(machine.as_fd(), Path::new(&name), path);
        assert_eq!(magic.unwrap_err(), Errno::LOOP);
        assert!(exactly(machine.as_fd(), Path::new("proc/version"), path).is_err(), "a mount");
        assert!(exactly(root.as_fd(), Path::new("in/file"), path).is_ok());
    }

    #[test]
    fn only_plain_files_of_bounded_length_are_read() {
        let (dir, root) = world();
        let read = |name: &str| read_text(&root, name, 10);
        assert_eq!(read("none").unwrap(), None);
        std::fs::write(dir.path().join("ten"), "0123456789").unwrap();
        assert_eq!(read("/ten").unwrap().as_deref(), Some("0123456789"));
        std::fs::write(dir.path().join("eleven"), "0123456789+").unwrap();
        File::create(dir.path().join("sparse")).unwrap().set_len(1 << 40).unwrap();
        rustix::fs::mknodat(&root, "fifo", FileType::Fifo, Mode::from(0o666), 0).unwrap();
        for name in ["eleven", "sparse", "fifo", "."] {
            assert!(read(name).is_err(), "{name}");
        }
        let machine = File::open("/").unwrap();
        for name in ["/proc/version", "/dev/zero", "/sys/kernel/notes"] {
            assert!(read_text(&machine, name, 1 << 20).is_err(), "{name}");
        }
    }
}
