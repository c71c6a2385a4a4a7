//! `cp`: files out of an instance. What is there is a stranger's: no link leads out of its root, and
//! none is followed on the way; special files are left out; there are bounds on everything.
//!
//! The files travel through the client's pipe, an entry after the other: a line of JSON, and of a
//! file its content in pieces, each after its length (4 bytes, little endian; 0 ends it).

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use kiln_core::exit::Exit;
use rustix::fs::{
    Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, fstatfs, openat2, readlinkat,
};
use rustix::io::Errno;
use serde_json::json;

use super::Answer;
use super::exec::running;
use crate::agent::session::Session;
use crate::agent::stage::Stage;
use crate::protocol::CopiedEntry;
use crate::report::{Because, Report};

/// Files, folders and links of one copy.
const MOST_ENTRIES: u64 = 1_000_000;
/// Bytes of all files of one copy together.
const MOST_BYTES: u64 = 64 << 30;
/// Folders in one another.
const DEEPEST: usize = 256;
/// Tries while somebody renames around without end.
const MOST_TRIES: u32 = 1_000;
const PIECE: usize = 256 << 10;

/// File systems whose files are answers of the kernel: they may have no end, or make one wait.
/// Source: linux/magic.h (proc, sysfs, cgroup2, cgroup, debugfs, tracefs).
const NOT_STORED: [i64; 6] =
    [0x9fa0, 0x6265_6572, 0x6367_7270, 0x27_e0eb, 0x6462_6720, 0x7472_6163];

/// `kiln cp SERVICE:PATH DEST`: writes what is at `path` into the pipe in `fds`.
pub(super) fn copy(
    session: &Session,
    stage: &Stage,
    service: &str,
    path: &str,
    fds: Vec<OwnedFd>,
) -> Result<Answer, Report> {
    let Some(pipe) = fds.into_iter().next() else {
        return Err(Report::new(Exit::Bug, "the client handed over no pipe"));
    };
    let running = running(stage, service)?;
    let doing = || format!("looking at `{service}:{path}`");
    let root = running.root().because(doing)?;
    let top = Path::new(path);
    if top.components().any(|part| matches!(part, Component::ParentDir)) {
        return Err(Report::usage(format!("`{path}` has `..` in it: name the place itself")));
    }
    let inside = open(root.as_fd(), top, OFlags::PATH | OFlags::NOFOLLOW, ResolveFlags::IN_ROOT);
    let place = match inside {
        Err(Errno::NOENT | Errno::NOTDIR) => {
            return Err(Report::failed(format!("there is no {path} in `{service}`"))
                .hint("the path is one inside of the instance: kiln cp web:/var/log/app.log ."));
        }
        place => place.map_err(io::Error::from).because(doing)?,
    };
    let mut copying = Copying {
        session,
        service,
        out: BufWriter::with_capacity(PIECE, File::from(pipe)),
        entries: 0,
        bytes: 0,
        left_out: 0,
    };
    copying.entry(place, PathBuf::new(), 0)?;
    copying.line(&CopiedEntry::End).because(|| "writing to the client".into())?;
    copying.out.flush().because(|| "writing to the client".into())?;
    let Copying { entries, bytes, left_out, .. } = copying;
    Ok(json!({
        "service": service,
        "path": path,
        "entries": entries,
        "bytes": bytes,
        "left_out": left_out,
    })
    .into())
}

fn open(
    at: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    how: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let mut tries = 0;
    loop {
        let how = how | ResolveFlags::NO_MAGICLINKS;
        match openat2(at, path, flags | OFlags::CLOEXEC, Mode::empty(), how) {
            Err(Errno::AGAIN | Errno::INTR) if tries < MOST_TRIES => tries += 1,
            opened => return opened,
        }
    }
}

struct Copying<'a> {
    session: &'a Session,
    service: &'a str,
    out: BufWriter<File>,
    entries: u64,
    bytes: u64,
    left_out: u64,
}

impl Copying<'_> {
    /// One entry, and what is below it. `place` was opened as a path only: that has no effect,
    /// whatever it is, and what is read later is what was looked at.
    fn entry(&mut self, place: OwnedFd, path: PathBuf, depth: usize) -> Result<(), Report> {
        self.session.check()?;
        let doing = |what: &str| format!("{what} `{}` of `{}`", path.display(), self.service);
        let stat = fstat(&place).map_err(io::Error::from).because(|| doing("looking at"))?;
        self.entries += 1;
        if self.entries > MOST_ENTRIES {
            return Err(self.too_much(&format!("more than {MOST_ENTRIES} files and folders")));
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                let target = readlinkat(&place, "", Vec::new())
                    .map_err(io::Error::from)
                    .because(|| doing("reading the link"))?;
                let (path, target) = (bytes(&path), target.into_bytes());
                self.say(&CopiedEntry::Link { path, target })
            }
            FileType::RegularFile if is_stored(&place) => self.file(&place, &stat, &path),
            FileType::Directory if depth > DEEPEST => {
                Err(self.too_much(&format!("more than {DEEPEST} folders in one another")))
            }
            FileType::Directory if is_stored(&place) => self.folder(&place, &stat, path, depth),
            kind => self.leave_out(kind, &path),
        }
    }

    /// What is no file, folder or link: whoever reads it may wait for ever, or change something.
    fn leave_out(&mut self, kind: FileType, path: &Path) -> Result<(), Report> {
        let what = match kind {
            FileType::Fifo => "a FIFO",
            FileType::Socket => "a socket",
            FileType::CharacterDevice | FileType::BlockDevice => "a device",
            _ => "an answer of the kernel, which is stored nowhere",
        };
        if path.as_os_str().is_empty() {
            return Err(Report::failed(format!(
                "what was named in `{}` is {what}: only files, folders and links come out",
                self.service
            )));
        }
        self.left_out += 1;
        self.session.notice(format!("{} is {what}, and left out", path.display()));
        Ok(())
    }

    fn folder(
        &mut self,
        place: &OwnedFd,
        stat: &Stat,
        path: PathBuf,
        depth: usize,
    ) -> Result<(), Report> {
        let doing = || format!("listing `{}`", path.display());
        let folder = CopiedEntry::Folder {
            path: bytes(&path),
            mode: stat.st_mode & 0o777,
            seconds: stat.st_mtime,
        };
        self.say(&folder)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let listed = open(place.as_fd(), Path::new("."), flags, ResolveFlags::BENEATH);
        let listed = listed.map_err(io::Error::from).because(doing)?;
        let listed = Dir::new(listed).map_err(io::Error::from).because(doing)?;
        for found in listed {
            let found = found.map_err(io::Error::from).because(doing)?;
            let name = Path::new(std::ffi::OsStr::from_bytes(found.file_name().to_bytes()));
            if matches!(name.as_os_str().as_bytes(), b"." | b"..") {
                continue;
            }
            // A name alone: a link is opened as itself.
            let flags = OFlags::PATH | OFlags::NOFOLLOW;
            match open(place.as_fd(), name, flags, ResolveFlags::BENEATH) {
                Ok(inner) => self.entry(inner, path.join(name), depth + 1)?,
                // Gone since it was listed.
                Err(Errno::NOENT) => {}
                Err(error) => return Err(io::Error::from(error)).because(doing),
            }
        }
        Ok(())
    }

    /// As long as it was when it was looked at, at most: one that grows without end has an end.
    fn file(&mut self, place: &OwnedFd, stat: &Stat, path: &Path) -> Result<(), Report> {
        let doing = || format!("reading `{}`", path.display());
        let length = u64::try_from(stat.st_size).unwrap_or(0);
        self.bytes = self.bytes.saturating_add(length);
        if self.bytes > MOST_BYTES {
            return Err(self.too_much(&format!("more than {} GiB", MOST_BYTES >> 30)));
        }
        let file = CopiedEntry::File {
            path: bytes(path),
            mode: stat.st_mode & 0o777,
            seconds: stat.st_mtime,
            length,
        };
        self.say(&file)?;
        // The very file that was looked at, whatever its name leads to by now.
        let opened = File::open(format!("/proc/self/fd/{}", place.as_raw_fd())).because(doing)?;
        let mut from = opened.take(length);
        let mut piece = vec![0; PIECE];
        loop {
            self.session.check()?;
            let read = from.read(&mut piece).because(doing)?;
            self.piece(&piece[..read]).because(|| "writing to the client".into())?;
            if read == 0 {
                return Ok(());
            }
        }
    }

    fn piece(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.out.write_all(&length.to_le_bytes())?;
        self.out.write_all(bytes)
    }

    fn say(&mut self, entry: &CopiedEntry) -> Result<(), Report> {
        self.line(entry).because(|| "writing to the client".into())
    }

    fn line(&mut self, entry: &CopiedEntry) -> io::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        self.out.write_all(&line)
    }

    fn too_much(&self, what: &str) -> Report {
        Report::failed(format!("{what} in `{}` are not copied at once", self.service))
            .hint("name a part of it")
    }
}

fn bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().as_bytes().to_vec()
}

fn is_stored(place: &OwnedFd) -> bool {
    #[expect(clippy::useless_conversion, reason = "the type differs between architectures")]
    let kind = fstatfs(place).map(|stat| i64::from(stat.f_type));
    kind.is_ok_and(|kind| !NOT_STORED.contains(&kind))
}
