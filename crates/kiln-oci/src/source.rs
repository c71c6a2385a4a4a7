//! One file of what is read: a layout folder, or an archive of one.
//!
//! A folder's files are opened below it, wherever links in it lead. An archive is read where its
//! entries lie; one that is compressed, or comes through a pipe, is laid down in the store's
//! scratch space first.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_archive::decode::Form;
use kiln_archive::{ArchiveError, Reader};
use kiln_store::Store;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::entry::{self, Type};
use crate::error::{Doing as _, Error, Result};
use crate::read::Limits;

/// Bytes of a manifest, index or configuration: registries take 4 MiB.
const MAX_DOCUMENT: u64 = 4 << 20;

/// Files in an archive of images.
const MAX_FILES: usize = 100_000;

/// A layout folder, or an archive, open for reading.
#[derive(Debug)]
pub struct Source {
    pub(crate) name: String,
    kind: Where,
}

#[derive(Debug)]
enum Where {
    Folder(OwnedFd),
    Archive { file: Arc<File>, files: BTreeMap<Vec<u8>, Place> },
}

/// What an archive has under a name.
#[derive(Debug, Clone)]
enum Place {
    At(u64, u64),
    /// Docker before 25 wrote links for layers that it had written already.
    Link(Vec<u8>),
}

impl Source {
    /// Opens the layout folder or archive at `path`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Malformed`], [`Error::TooMuch`].
    pub fn open(path: &Path, store: &Store, limits: &Limits<'_>) -> Result<Self> {
        let name = path.display().to_string();
        let doing = || format!("opening {name}");
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = rustix::fs::open(path, flags, Mode::empty()).doing(doing)?;
        Self::of_fd(fd, name, store, limits)
    }

    /// Whatever `fd` is open on: a folder, a file or a pipe. `name` is for messages.
    ///
    /// # Errors
    /// As [`Source::open`].
    pub fn of_fd(fd: OwnedFd, name: String, store: &Store, limits: &Limits<'_>) -> Result<Self> {
        let file = File::from(fd);
        let meta = file.metadata().doing(|| format!("looking at {name}"))?;
        if meta.is_dir() {
            return Self::of_folder(file.into(), name);
        }
        let flags = rustix::fs::fcntl_getfl(&file).doing(|| format!("looking at {name}"))?;
        rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK)
            .doing(|| format!("looking at {name}"))?;
        let plain = match meta.is_file() {
            true => uncompressed(&file, &name)?,
            false => false,
        };
        let file = if plain { file } else { lay_down(file, &name, store, limits)? };
        Self::of_archive(file, name)
    }

    /// The layout folder that `fd` is open on.
    pub(crate) fn of_folder(fd: OwnedFd, name: String) -> Result<Self> {
        Ok(Self { name, kind: Where::Folder(fd) })
    }

    fn of_archive(file: File, name: String) -> Result<Self> {
        let file = Arc::new(file);
        let mut files = BTreeMap::new();
        let limits = kiln_archive::Limits { ratio: None, ..kiln_archive::Limits::default() };
        let bare = kiln_archive::open_bare(&file, limits).doing(|| format!("reading {name}"))?;
        let mut reader = Reader::new(bare);
        while let Some(entry) = entry::next(&mut reader)? {
            let place = match entry.kind {
                Type::File => match entry.extent {
                    Some((offset, size)) => Place::At(offset, size),
                    // Nobody writes the files of a layout so.
                    None => continue,
                },
                Type::Hardlink(to) => Place::Link(to),
                Type::Symlink(target) => match beside(&entry.path, &target) {
                    Some(to) => Place::Link(to),
                    None => continue,
                },
                _ => continue,
            };
            files.insert(entry.path, place);
            if files.len() > MAX_FILES {
                return Err(Error::too_much(format!("{name}: the files in it"), "100,000"));
            }
        }
        drop(reader);
        Ok(Self { name, kind: Where::Archive { file, files } })
    }

    /// Whether there is a file of that name.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.stream(path).is_ok()
    }

    /// All of a small file.
    pub(crate) fn document(&self, path: &str) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let doing = || format!("reading `{path}` of {}", self.name);
        self.stream(path)?.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).doing(doing)?;
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(Error::too_much(format!("`{path}` of {}", self.name), "4 MiB"));
        }
        Ok(bytes)
    }

    /// A file from its start.
    pub(crate) fn stream(&self, path: &str) -> Result<Box<dyn Read>> {
        let missing = || Error::malformed(&self.name, format!("it has no `{path}`"));
        match &self.kind {
            Where::Folder(dir) => {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let below = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                let fd = match rustix::fs::openat2(dir.as_fd(), path, flags, Mode::empty(), below) {
                    Err(rustix::io::Errno::NOENT) => return Err(missing()),
                    opened => opened.doing(|| format!("opening `{path}` of {}", self.name))?,
                };
                let file = File::from(fd);
                // A pipe would be waited for.
                match file.metadata() {
                    Ok(meta) if meta.is_file() => Ok(Box::new(file)),
                    _ => Err(Error::malformed(&self.name, format!("`{path}` is no file"))),
                }
            }
            Where::Archive { file, files } => {
                let mut name = path.as_bytes();
                // A link to a link is nothing that anybody writes.
                for _ in 0..2 {
                    match files.get(name) {
                        Some(Place::At(offset, size)) => {
                            let (at, end) = (*offset, offset + size);
                            return Ok(Box::new(Part { file: Arc::clone(file), at, end }));
                        }
                        Some(Place::Link(to)) => name = to,
                        None => break,
                    }
                }
                Err(missing())
            }
        }
    }
}

/// Where the link `target` of the entry at `path` leads to, if that is in the archive.
fn beside(path: &[u8], target: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    parts.pop();
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"." => {}
            b"" => return None,
            b".." => drop(parts.pop()?),
            other => parts.push(other),
        }
    }
    Some(parts.join(&b'/'))
}

/// Whether a file is a tar as it is.
fn uncompressed(file: &File, name: &str) -> Result<bool> {
    let mut head = [0; 8];
    let read = file.read_at(&mut head, 0).doing(|| format!("reading {name}"))?;
    Ok(Form::of(&head[..read]) == Form::Plain)
}

/// Writes a pipe's or compressed file's content into a file without a name.
fn lay_down(from: File, name: &str, store: &Store, limits: &Limits<'_>) -> Result<File> {
    let scratch = store.scratch_dir()?;
    let mut file = tempfile::tempfile_in(scratch.path()).doing(|| "preparing".into())?;
    let bound = limits.unpacked;
    let mut waiting = Waiting { from, cancel: limits.cancel };
    let copied = kiln_archive::open(&mut waiting, limits.archive(bound))
        .and_then(|mut from| io::copy(&mut from, &mut file));
    if limits.cancel.load(Ordering::Acquire) {
        return Err(Error::Interrupted);
    }
    match copied.map_err(ArchiveError::from) {
        Ok(_) => Ok(file),
        Err(ArchiveError::TooLarge(limit)) => {
            Err(Error::too_much(format!("{name}, unpacked,"), limit))
        }
        Err(ArchiveError::Read(source)) => Err(source).doing(|| format!("unpacking {name}")),
        Err(other) => Err(Error::malformed(name, other)),
    }
}

/// How long a wait may go on after it was given up.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// A file or pipe; whoever writes into it may take any time, and the wait can be given up.
struct Waiting<'a> {
    from: File,
    cancel: &'a AtomicBool,
}

impl Read for Waiting<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.cancel.load(Ordering::Acquire) {
                return Err(io::Error::other("interrupted"));
            }
            match poll(&mut [PollFd::new(&self.from, PollFlags::IN)], Some(&LOOK)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return self.from.read(buffer),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Reads a part of a file without moving its offset.
struct Part {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = (buffer.len() as u64).min(self.end - self.at) as usize;
        let read = self.file.read_at(&mut buffer[..room], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}
