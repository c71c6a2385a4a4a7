//! What an image has where a tmpfs is mounted by default goes into that tmpfs: `/run/mysqld` with its
//! owner is there, as it is where nothing is mounted.
//!
//! Read is the image as it was just mounted, before anything of a stranger runs in it; still it is a
//! stranger's, so what is taken is bounded, and nothing but folders, plain files and links is.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, chownat, fchmod, fchown, mkdirat, openat,
    readlinkat, statat, symlinkat,
};

/// More entries and bytes than these are no skeleton but somebody's data.
const ENTRIES: u32 = 2_000;
const BYTES: u64 = 8 << 20;
const DEPTH: u32 = 32;

/// How much may still be taken, and whether something was left out.
struct Room {
    entries: u32,
    bytes: u64,
    short: bool,
}

/// Copies what is in the folder `from` into the empty folder `to`. False: not all of it.
pub(super) fn take_over(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<bool> {
    let mut room = Room { entries: ENTRIES, bytes: BYTES, short: false };
    folder(from, to, &mut room, DEPTH)?;
    Ok(!room.short)
}

fn open_dir(at: BorrowedFd<'_>, name: &std::ffi::CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

fn folder(from: BorrowedFd<'_>, to: BorrowedFd<'_>, room: &mut Room, depth: u32) -> io::Result<()> {
    let from = open_dir(from, c".")?;
    for entry in Dir::read_from(&from)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if room.entries == 0 || depth == 0 {
            room.short = true;
            return Ok(());
        }
        room.entries -= 1;
        let stat = statat(&from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                mkdirat(to, name, Mode::RWXU)?;
                let (inner, made) = (open_dir(from.as_fd(), name)?, open_dir(to, name)?);
                folder(inner.as_fd(), made.as_fd(), room, depth - 1)?;
                dress(made.as_fd(), &stat)?;
            }
            FileType::RegularFile => file(from.as_fd(), to, name, &stat, room)?,
            FileType::Symlink => {
                let target = readlinkat(&from, name, Vec::new())?;
                symlinkat(target.as_c_str(), to, name)?;
                let (uid, gid) = owner(&stat);
                chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            // Sockets and pipes are made by who listens there.
            _ => {}
        }
    }
    Ok(())
}

fn file(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &std::ffi::CStr,
    stat: &Stat,
    room: &mut Room,
) -> io::Result<()> {
    let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
    if size > room.bytes {
        room.short = true;
        return Ok(());
    }
    room.bytes -= size;
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let from = openat(from, name, flags | OFlags::RDONLY, Mode::empty())?;
    let made =
        openat(to, name, flags | OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY, Mode::RUSR)?;
    let mut source = io::Read::take(std::fs::File::from(from), size);
    let mut target = std::fs::File::from(made);
    io::copy(&mut source, &mut target)?;
    dress(target.as_fd(), stat)
}

fn owner(stat: &Stat) -> (Uid, Gid) {
    (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid))
}

/// In this order: a change of owner clears bits of the mode.
fn dress(made: BorrowedFd<'_>, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = owner(stat);
    fchown(made, Some(uid), Some(gid))?;
    Ok(fchmod(made, Mode::from_raw_mode(stat.st_mode & 0o7777))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File, Permissions};
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};

    #[test]
    fn folders_files_and_links_are_taken_with_their_owners_and_no_more_than_there_is_room_for() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let at = |name: &str| from.path().join(name);
        fs::create_dir_all(at("mysqld/deep")).unwrap();
        fs::write(at("mysqld/deep/file"), "text").unwrap();
        chown(at("mysqld"), Some(70), Some(71)).unwrap();
        fs::set_permissions(at("mysqld"), Permissions::from_mode(0o2775)).unwrap();
        symlink("/run/lock", at("link")).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let take = || {
            let (a, b) = (File::open(from.path()).unwrap(), File::open(to.path()).unwrap());
            take_over(a.as_fd(), b.as_fd()).unwrap()
        };
        assert!(take());
        let meta = fs::metadata(to.path().join("mysqld")).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (70, 71, 0o2775));
        assert_eq!(fs::read(to.path().join("mysqld/deep/file")).unwrap(), b"text");
        assert_eq!(fs::read_link(to.path().join("link")).unwrap().as_os_str(), "/run/lock");
        assert!(!to.path().join("socket").exists());

        for name in ["mysqld", "link", "socket"] {
            let _ = fs::remove_dir_all(at(name)).or_else(|_| fs::remove_file(at(name)));
            let copy = to.path().join(name);
            let _ = fs::remove_dir_all(&copy).or_else(|_| fs::remove_file(&copy));
        }
        File::create(at("large")).unwrap().set_len(BYTES + 1).unwrap();
        assert!(!take(), "what is too large is left out, and that is said");
        assert_eq!(fs::read_dir(to.path()).unwrap().count(), 0);
    }
}
