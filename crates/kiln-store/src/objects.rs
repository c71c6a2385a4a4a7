//! Contents by digest: `objects/ab/<62 hex>`, each an ordinary file named by its sha256.
//!
//! A new content is written to an unnamed file and linked into place, so an object is there whole
//! or not at all, and whoever comes second simply finds it. Objects are mode 0644, owned by root,
//! with the one epoch as their time: that is what most files of an image have, so the fallback for
//! older kernels can link them as they are.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{MutexGuard, PoisonError};

use kiln_core::Digest;
use kiln_core::digest::Hasher;
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Statx, StatxFlags, Uid};

use crate::disk;
use crate::durable::Published;
use crate::error::{Context as _, Error, Result};
use crate::store::Store;

/// Contents up to this size are read whole before anything is written: most of them are there
/// already, and then nothing is.
const SMALL: u64 = 1 << 20;

impl Store {
    /// Puts `bytes`.
    ///
    /// # Errors
    /// I/O errors.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        if !self.present(&digest, bytes.len() as u64)? {
            let mut new = self.new_object()?;
            new.file.write_all(bytes).doing("writing", &new.at)?;
            self.publish(&new, &digest)?;
        }
        Ok(digest)
    }

    /// Puts `bytes`, and reads what is there already: for what is small and much depends on.
    pub(crate) fn put_surely(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        if self.stat(&digest)?.is_some() && !self.is_whole(&digest)? {
            self.suspect(&digest);
        }
        self.put(bytes)
    }

    /// The same of a content that is known to have this digest and size, and is written out as it is
    /// read.
    pub(crate) fn put_known_surely(
        &self,
        digest: &Digest,
        size: u64,
        reader: &mut dyn Read,
    ) -> Result<Digest> {
        if self.stat(digest)?.is_some() && !self.is_whole(digest)? {
            self.suspect(digest);
        }
        if self.present(digest, size)? {
            return Ok(*digest);
        }
        Ok(self.put_reader(reader)?.0)
    }

    /// Puts all that `reader` gives; also returns its length in bytes.
    ///
    /// # Errors
    /// I/O errors, the reader's among them.
    pub fn put_reader(&self, reader: &mut dyn Read) -> Result<(Digest, u64)> {
        let mut head = Vec::new();
        let tmp = self.inner.root.join("tmp");
        reader.take(SMALL).read_to_end(&mut head).doing("reading into", &tmp)?;
        if (head.len() as u64) < SMALL {
            return Ok((self.put(&head)?, head.len() as u64));
        }
        let mut new = self.new_object()?;
        let (digest, size) =
            hash_copy(&mut head.chain(reader), Some(&mut new.file)).doing("copying into", &tmp)?;
        if !self.present(&digest, size)? {
            self.publish(&new, &digest)?;
        }
        Ok((digest, size))
    }

    /// Puts the content of the regular file at `path`; also returns its length in bytes.
    ///
    /// # Errors
    /// I/O errors.
    pub fn put_file(&self, path: impl AsRef<Path>) -> Result<(Digest, u64)> {
        let path = path.as_ref();
        self.put_open_file(&File::open(path).doing("opening", path)?)
    }

    /// Puts the content of an open regular file, from its start; also returns its length in bytes.
    /// The digest is always that of what was stored, even while somebody writes to the file. Where
    /// the file system can share blocks, they are shared.
    ///
    /// # Errors
    /// I/O errors.
    pub fn put_open_file(&self, source: &File) -> Result<(Digest, u64)> {
        let path = || fs::read_link(proc_path(source)).unwrap_or_default();
        let length = source.metadata().doing_lazily("looking at", path)?.len();
        if length < SMALL {
            let mut content = Vec::with_capacity(length as usize + 1);
            At { file: source, at: 0 }.read_to_end(&mut content).doing_lazily("reading", path)?;
            return Ok((self.put(&content)?, content.len() as u64));
        }
        let (digest, size) =
            hash_copy(&mut At { file: source, at: 0 }, None).doing_lazily("reading", path)?;
        if self.present(&digest, size)? {
            return Ok((digest, size));
        }
        // What is stored is hashed once more, because the source may have changed since.
        self.copy_open_file(source)
    }

    /// [`Store::put_open_file`] for a content that is not there yet, as far as is known: it is not
    /// looked for first, which saves reading it twice.
    ///
    /// # Errors
    /// I/O errors.
    pub fn copy_open_file(&self, source: &File) -> Result<(Digest, u64)> {
        let path = || fs::read_link(proc_path(source)).unwrap_or_default();
        if source.metadata().doing_lazily("looking at", path)?.len() < SMALL {
            return self.put_open_file(source);
        }
        let mut new = self.new_object()?;
        let (digest, size) = if rustix::fs::ioctl_ficlone(&new.file, source).is_ok() {
            hash_copy(&mut At { file: &new.file, at: 0 }, None).doing("reading", &new.at)?
        } else {
            let from = &mut At { file: source, at: 0 };
            hash_copy(from, Some(&mut new.file)).doing("copying into", &new.at)?
        };
        self.publish(&new, &digest)?;
        Ok((digest, size))
    }

    /// Makes a file itself the object of its content, which saves writing a copy: owner, mode,
    /// times and attributes become an object's. `None`, and the file as it was, where that cannot
    /// be (another file system, an immutable file) or is not worth it (a small file).
    ///
    /// Nobody may write to the file from now on: it is for the layers of steps that have ended.
    ///
    /// # Errors
    /// I/O errors in reading it.
    pub fn adopt_file(&self, file: &File) -> Result<Option<(Digest, u64)>> {
        let path = || fs::read_link(proc_path(file)).unwrap_or_default();
        if file.metadata().doing_lazily("looking at", path)?.len() < SMALL {
            return Ok(None);
        }
        let (digest, size) =
            hash_copy(&mut At { file, at: 0 }, None).doing_lazily("reading", path)?;
        if self.present(&digest, size)? {
            return Ok(Some((digest, size)));
        }
        // Tried before anything of the file is changed.
        let beside = self.temporary("adopted");
        if rustix::fs::linkat(CWD, proc_path(file), CWD, &beside, AtFlags::SYMLINK_FOLLOW).is_err()
        {
            return Ok(None);
        }
        let new = Adopted { file, at: beside };
        new.undress().doing("making an object of", &new.at)?;
        self.publish(&new, &digest)?;
        Ok(Some((digest, size)))
    }

    /// The content of an object, checked against its name.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Corrupt`], I/O errors.
    pub fn get(&self, digest: &Digest) -> Result<Vec<u8>> {
        let path = self.object_path(digest);
        let bytes = fs::read(&path).map_err(|error| missing(error, digest, &path))?;
        let found = Digest::of(&bytes);
        if found == *digest {
            return Ok(bytes);
        }
        self.suspect(digest);
        Err(Error::Corrupt { digest: *digest, found })
    }

    /// Opens an object for streaming; its content is not checked.
    ///
    /// # Errors
    /// [`Error::Missing`], I/O errors.
    pub fn open_object(&self, digest: &Digest) -> Result<File> {
        let path = self.object_path(digest);
        File::open(&path).map_err(|error| missing(error, digest, &path))
    }

    /// Length of an object in bytes, or `None` if it is not there.
    ///
    /// # Errors
    /// I/O errors.
    pub fn object_size(&self, digest: &Digest) -> Result<Option<u64>> {
        Ok(self.stat(digest)?.map(|stat| stat.stx_size))
    }

    /// Whether the object is there. Its content is not checked.
    pub fn contains(&self, digest: &Digest) -> bool {
        matches!(self.stat(digest), Ok(Some(_)))
    }

    /// Where the object is or would be.
    pub fn object_path(&self, digest: &Digest) -> PathBuf {
        object_path(&self.inner.root, digest)
    }

    fn stat(&self, digest: &Digest) -> Result<Option<Statx>> {
        let path = self.object_path(digest);
        let flags = StatxFlags::BASIC_STATS;
        match rustix::fs::statx(CWD, &path, AtFlags::SYMLINK_NOFOLLOW, flags) {
            Ok(stat) => Ok(Some(stat)),
            // A file in place of a folder leads nowhere either.
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error).doing("looking at", &path),
        }
    }

    /// Whether the object is there with the right content, as far as can be told without reading:
    /// whoever writes to a file changes its time, which in an object is always the same. In doubt
    /// it is read. One that is wrong counts as absent, and [`Store::publish`] replaces it.
    fn present(&self, digest: &Digest, size: u64) -> Result<bool> {
        let right = self.is_right(digest, size)?;
        if right && let Some(stat) = self.stat(digest)? {
            self.inner.unsynced.found(&stat, &self.object_path(digest))?;
        }
        Ok(right)
    }

    fn is_right(&self, digest: &Digest, size: u64) -> Result<bool> {
        let Some(stat) = self.stat(digest)? else { return Ok(false) };
        if stat.stx_size != size {
            return Ok(false);
        }
        Ok(self.looks_untouched(&stat) && !self.is_suspect(digest) || self.is_whole(digest)?)
    }

    /// Whether nobody has written to the object since it was put.
    fn looks_untouched(&self, stat: &Statx) -> bool {
        let mode = u32::from(stat.stx_mode);
        let time = &stat.stx_mtime;
        mode == libc::S_IFREG | 0o644
            && (stat.stx_uid, stat.stx_gid) == self.inner.owner
            && (time.tv_sec, time.tv_nsec) == (crate::EPOCH, 0)
    }

    /// Whether the object, if it is there, has the content that its name says. Reads it if there is
    /// any sign that somebody wrote to it. What cannot be read is not whole.
    ///
    /// # Errors
    /// I/O errors.
    pub fn seems_whole(&self, digest: &Digest) -> Result<bool> {
        let Some(stat) = self.stat(digest)? else { return Ok(false) };
        Ok(self.looks_untouched(&stat) && !self.is_suspect(digest) || self.is_whole(digest)?)
    }

    /// Reads an object that is there.
    fn is_whole(&self, digest: &Digest) -> Result<bool> {
        let path = self.object_path(digest);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(file) = rustix::fs::open(&path, flags, Mode::empty()) else { return Ok(false) };
        let file = File::from(file);
        let meta = file.metadata().doing("looking at", &path)?;
        if !meta.is_file() || meta.mode() & 0o7777 != 0o644 {
            return Ok(false);
        }
        let whole = hash_copy(&mut At { file: &file, at: 0 }, None).doing("reading", &path)?.0;
        if whole == *digest {
            self.suspects().remove(digest);
            // Whole, so it need not be read again and again.
            let _ = rustix::fs::futimens(&file, &crate::mount::times(crate::EPOCH));
        }
        Ok(whole == *digest)
    }

    fn suspects(&self) -> MutexGuard<'_, BTreeSet<Digest>> {
        self.inner.suspects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_suspect(&self, digest: &Digest) -> bool {
        self.suspects().contains(digest)
    }

    /// Remembers that an object was found to be wrong: it is not believed again unread, and who puts
    /// its content again writes it anew.
    pub fn suspect(&self, digest: &Digest) {
        self.suspects().insert(*digest);
    }

    fn new_object(&self) -> Result<NewObject> {
        let at = self.inner.nursery.clone();
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o644);
        let open = || rustix::fs::open(&at, flags, mode);
        let opened = match open() {
            Err(rustix::io::Errno::NOENT) => {
                fs::create_dir_all(&at).doing("creating", &at)?;
                open()
            }
            opened => opened,
        };
        match opened {
            Ok(fd) => Ok(NewObject { file: fd.into(), at, named: false }),
            // Some file systems have no unnamed files.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {
                let at = self.temporary("object");
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
                let fd = rustix::fs::open(&at, flags, mode).doing("creating", &at)?;
                Ok(NewObject { file: fd.into(), at, named: true })
            }
            Err(error) => Err(error).doing("creating a file in", at),
        }
    }

    /// Gives a written content its name.
    fn publish(&self, new: &dyn Unnamed, digest: &Digest) -> Result<()> {
        let (file, at) = (new.file(), new.at());
        let meta = file.metadata().doing("looking at", at)?;
        let size = meta.len();
        // The umask may have taken some of it away.
        if meta.mode() & 0o7777 != 0o644 {
            rustix::fs::fchmod(file, Mode::from_raw_mode(0o644)).doing("chmod of", at)?;
        }
        rustix::fs::futimens(file, &crate::mount::times(crate::EPOCH)).doing("dating", at)?;
        let path = self.object_path(digest);
        let _unsynced = self.inner.unsynced.mark(Published::File(&path))?;
        match new.link(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let dir = path.parent().unwrap_or(&path);
                disk::create_dirs(dir).doing("creating", dir)?;
                match new.link(&path) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    result => result.doing("linking", &path)?,
                }
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // Somebody else was faster, unless what is there is another content.
                if self.is_right(digest, size)? {
                    return Ok(());
                }
                let beside = self.temporary("object");
                new.link(&beside).doing("linking", &beside)?;
                fs::rename(&beside, &path).doing("replacing", &path)?;
            }
            result => result.doing("linking", &path)?,
        }
        disk::named(&path);
        Ok(())
    }
}

/// Where the object `digest` is under `root`.
pub(crate) fn object_path(root: &Path, digest: &Digest) -> PathBuf {
    let hex = digest.hex();
    let mut path = root.join("objects");
    path.push(&hex[..2]);
    path.push(&hex[2..]);
    path
}

fn missing(error: io::Error, digest: &Digest, path: &Path) -> Error {
    if error.kind() == io::ErrorKind::NotFound {
        Error::Missing(*digest)
    } else {
        Error::Io { doing: "reading", path: path.to_owned(), source: error }
    }
}

/// A path that leads to an open file.
fn proc_path(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// A content that has no name in `objects/` yet.
struct NewObject {
    file: File,
    at: PathBuf,
    named: bool,
}

/// A file that is to become an object.
trait Unnamed {
    fn file(&self) -> &File;
    /// Where it is, for messages.
    fn at(&self) -> &Path;
    /// Gives it a further name.
    fn link(&self, to: &Path) -> io::Result<()>;
}

impl Unnamed for NewObject {
    fn file(&self) -> &File {
        &self.file
    }

    fn at(&self) -> &Path {
        &self.at
    }

    fn link(&self, to: &Path) -> io::Result<()> {
        if self.named {
            return fs::hard_link(&self.at, to);
        }
        Ok(rustix::fs::linkat(CWD, proc_path(&self.file), CWD, to, AtFlags::SYMLINK_FOLLOW)?)
    }
}

/// A file of somebody else's under a name of ours.
struct Adopted<'a> {
    file: &'a File,
    at: PathBuf,
}

impl Adopted<'_> {
    /// Takes off all that an object does not have.
    fn undress(&self) -> io::Result<()> {
        let mut names = vec![0_u8; 64 << 10];
        let length = match rustix::fs::flistxattr(self.file, names.as_mut_slice()) {
            Err(rustix::io::Errno::OPNOTSUPP) => 0,
            length => length?,
        };
        for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            // A security module's label is not ours to take away.
            if !name.starts_with(b"security.") || name == b"security.capability" {
                rustix::fs::fremovexattr(self.file, name)?;
            }
        }
        rustix::fs::fchown(self.file, Some(Uid::ROOT), Some(Gid::ROOT))?;
        Ok(())
    }
}

impl Unnamed for Adopted<'_> {
    fn file(&self) -> &File {
        self.file
    }

    fn at(&self) -> &Path {
        &self.at
    }

    fn link(&self, to: &Path) -> io::Result<()> {
        fs::hard_link(&self.at, to)
    }
}

impl Drop for Adopted<'_> {
    fn drop(&mut self) {
        // A left-over is removed at the next open.
        let _ = fs::remove_file(&self.at);
    }
}

impl Drop for NewObject {
    fn drop(&mut self) {
        if self.named {
            // A left-over is removed at the next open.
            let _ = fs::remove_file(&self.at);
        }
    }
}

/// Reads a file from an offset of its own, so that a shared descriptor's offset stays.
struct At<'a> {
    file: &'a File,
    at: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Whether a hole would read the same.
fn is_zero(bytes: &[u8]) -> bool {
    // By pieces, so that the processor looks at many bytes at once.
    bytes.chunks(256).all(|piece| piece.iter().fold(0, |all, byte| all | byte) == 0)
}

/// Hashes all of `from`, copying it to `to` on the way. Longer runs of zeros become holes.
pub(crate) fn hash_copy(from: &mut dyn Read, to: Option<&mut File>) -> io::Result<(Digest, u64)> {
    let mut to = to;
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    let mut size = 0;
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&buffer[..read]);
        if let Some(to) = to.as_deref_mut() {
            match is_zero(&buffer[..read]) {
                true => to.seek_relative(read as i64)?,
                false => to.write_all(&buffer[..read])?,
            }
        }
        size += read as u64;
    }
    if let Some(to) = to {
        to.set_len(size)?;
        to.rewind()?;
    }
    Ok((hasher.finish(), size))
}
