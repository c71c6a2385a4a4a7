//! Files that somebody else named: never waited for, never read without a bound.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

/// What becomes of a link in place of the file itself; links on the way are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// The file that it leads to counts.
    Follow,
    /// It is an error.
    Refuse,
}

/// Opens whatever is at `path` for reading; a pipe without a writer is open at once.
///
/// # Errors
/// I/O errors; [`ErrorKind::InvalidInput`] for a link that is refused.
pub fn open(path: &Path, links: Links) -> io::Result<File> {
    let mut flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    flags.set(OFlags::NOFOLLOW, links == Links::Refuse);
    match File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path) {
        Err(error) if links == Links::Refuse && is_loop(&error) => {
            Err(io::Error::new(ErrorKind::InvalidInput, "it is a link"))
        }
        opened => opened,
    }
}

fn is_loop(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::LOOP.raw_os_error())
}

/// The content of the regular file at `path`, of at most `most` bytes.
///
/// # Errors
/// As [`open`]; [`ErrorKind::IsADirectory`], [`ErrorKind::InvalidInput`] for what else is no regular
/// file, [`ErrorKind::FileTooLarge`]. They say what is there, and not where.
pub fn read(path: &Path, links: Links, most: u64) -> io::Result<Vec<u8>> {
    let file = open(path, links)?;
    let about = file.metadata()?;
    if about.is_dir() {
        return Err(io::Error::new(ErrorKind::IsADirectory, "it is a folder, no regular file"));
    }
    if !about.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is no regular file"));
    }
    let mut content = Vec::new();
    file.take(most.saturating_add(1)).read_to_end(&mut content)?;
    if content.len() as u64 > most {
        let what = match most >> 20 {
            0 => format!("it is larger than {most} bytes"),
            mebibytes => format!("it is larger than {mebibytes} MiB"),
        };
        return Err(io::Error::new(ErrorKind::FileTooLarge, what));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_regular_file_of_bounded_size_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "four").unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        std::os::unix::fs::symlink("loop", at("loop")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        let kind = |name: &str, links, most| match read(&at(name), links, most) {
            Ok(content) => Ok(content.len()),
            Err(error) => Err(error.kind()),
        };
        assert_eq!(kind("file", Links::Refuse, 4), Ok(4));
        assert_eq!(kind("file", Links::Refuse, 3), Err(ErrorKind::FileTooLarge));
        assert_eq!(kind("link", Links::Follow, 4), Ok(4));
        assert_eq!(kind("link", Links::Refuse, 4), Err(ErrorKind::InvalidInput));
        assert_eq!(kind("pipe", Links::Follow, 4), Err(ErrorKind::InvalidInput));
        assert_eq!(kind(".", Links::Follow, 4), Err(ErrorKind::IsADirectory));
        assert_eq!(kind("none", Links::Follow, 4), Err(ErrorKind::NotFound));
        assert!(read(&at("loop"), Links::Follow, 4).is_err());
        let endless = read(Path::new("/dev/zero"), Links::Follow, 4).unwrap_err();
        assert_eq!(endless.kind(), ErrorKind::InvalidInput);
    }
}
