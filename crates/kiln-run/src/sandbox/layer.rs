//! The stub layer: a small tmpfs that is the topmost lower layer of the root. It holds mount
//! points that the image lacks, and on a read-only root also the runtime's own files. So nothing
//! has to be written to the image, and nothing shows up in an upper layer.
//!
//! A directory of a higher layer also gives its owner and mode to the merged one, so each
//! directory here is a copy of the image's.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Timespec, Timestamps, statat};

use super::layout::Content;
use crate::error::{Context as _, Fault};

/// The layer, while it is being filled.
#[derive(Debug)]
pub(super) struct Layer<'a> {
    dir: PathBuf,
    image: BorrowedFd<'a>,
}

impl<'a> Layer<'a> {
    /// A layer in the empty directory `dir` over `image`.
    pub(super) fn new(dir: PathBuf, image: BorrowedFd<'a>) -> Result<Self, Fault> {
        let layer = Self { dir, image };
        layer.copy_attributes(Path::new(""))?;
        Ok(layer)
    }

    /// Makes the directory `path` and those above it.
    pub(super) fn directory(&self, path: &Path) -> Result<(), Fault> {
        let mut so_far = PathBuf::new();
        for name in path {
            so_far.push(name);
            match DirBuilder::new().mode(0o755).create(self.dir.join(&so_far)) {
                Ok(()) => self.copy_attributes(&so_far)?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).step(|| stub(&so_far)),
            }
        }
        Ok(())
    }

    /// Makes an empty file at `path`.
    pub(super) fn file(&self, path: &Path) -> Result<(), Fault> {
        self.directory(path.parent().unwrap_or(Path::new("")))?;
        File::create(self.dir.join(path)).map(drop).step(|| stub(path))
    }

    /// Makes a file with content at `path`.
    pub(super) fn content(&self, path: &Path, content: &Content<'_>) -> Result<(), Fault> {
        self.directory(path.parent().unwrap_or(Path::new("")))?;
        write_content(&self.dir.join(path), content).step(|| stub(path))
    }

    fn copy_attributes(&self, path: &Path) -> Result<(), Fault> {
        let at = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let Ok(stat) = statat(self.image, at, AtFlags::SYMLINK_NOFOLLOW) else { return Ok(()) };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Ok(());
        }
        let to = self.dir.join(path);
        let time = Timespec { tv_sec: stat.st_mtime as _, tv_nsec: stat.st_mtime_nsec as _ };
        let times = Timestamps { last_access: time, last_modification: time };
        (|| -> io::Result<()> {
            std::os::unix::fs::chown(&to, Some(stat.st_uid), Some(stat.st_gid))?;
            fs::set_permissions(&to, Permissions::from_mode(stat.st_mode & 0o7777))?;
            rustix::fs::utimensat(rustix::fs::CWD, &to, &times, AtFlags::empty())?;
            Ok(())
        })()
        .step(|| stub(path))
    }
}

fn stub(path: &Path) -> String {
    format!("prepare `/{}`", path.display())
}

/// Writes `content` to the new file `to`, with its owner and mode.
pub(super) fn write_content(to: &Path, content: &Content<'_>) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    match content.source {
        super::layout::Source::Text(text) => file.write_all(text.as_bytes())?,
        super::layout::Source::Bytes(bytes) => file.write_all(bytes)?,
        super::layout::Source::File(path) => {
            let mut from = File::open(path).map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", path.display()))
            })?;
            io::copy(&mut from, &mut file)?;
        }
    }
    std::os::unix::fs::fchown(&file, Some(content.uid), Some(content.gid))?;
    file.set_permissions(Permissions::from_mode(content.mode & 0o7777))
}
