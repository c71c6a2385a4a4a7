//! The files of a project as they lie on this machine, for the reader of kiln-core.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use kiln_core::compose::{LoadRequest, ReadFile};
use kiln_store::regular::{self, Links};

use crate::protocol::ProjectArgs;

/// How large a file of a project may be.
const LARGEST: u64 = 16 << 20;

/// The request for the project that a client means.
pub(crate) fn request<'r>(
    args: &ProjectArgs,
    cwd: &Path,
    env: BTreeMap<String, String>,
    read: ReadFile<'r>,
) -> LoadRequest<'r> {
    LoadRequest {
        files: args.file.clone(),
        dir: cwd.to_owned(),
        project_dir: args.project_directory.clone(),
        env_files: args.env_file.clone(),
        env,
        profiles: args.profile.clone(),
        named: args.named.clone(),
        project_name: args.project_name.clone(),
        read,
        real_dir: &real_dir,
    }
}

fn real_dir(dir: &Path) -> PathBuf {
    std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned())
}

/// Reads a file that a stranger named: a regular one of a bounded size, or nothing of `/dev/null`.
pub(crate) fn read(path: &Path, stdin: Option<&str>) -> io::Result<Vec<u8>> {
    if path == Path::new("-") {
        let missing = || io::Error::new(ErrorKind::NotFound, "nothing came on standard input");
        return stdin.map(|text| text.as_bytes().to_vec()).ok_or_else(missing);
    }
    match regular::read(path, Links::Follow, LARGEST) {
        Err(error) if error.kind() == ErrorKind::InvalidInput && is_null(path) => Ok(Vec::new()),
        read => read,
    }
}

fn is_null(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|about| {
        about.file_type().is_char_device() && about.rdev() == rustix::fs::makedev(1, 3)
    })
}

/// What standard input holds; what cannot be read is text that no reader takes.
pub(crate) fn standard_input() -> String {
    match bounded(io::stdin().lock()) {
        Ok(content) => String::from_utf8_lossy(&content).into_owned(),
        Err(error) => format!("- standard input cannot be read: {error}"),
    }
}

fn bounded(from: impl io::Read) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    from.take(LARGEST + 1).read_to_end(&mut content)?;
    if content.len() as u64 > LARGEST {
        let what = format!("it is larger than {} MB", LARGEST >> 20);
        return Err(io::Error::new(ErrorKind::FileTooLarge, what));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_a_bounded_size_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "x").unwrap();
        assert_eq!(read(&path, None).unwrap(), b"x");
        assert_eq!(read(Path::new("/dev/null"), None).unwrap(), b"");
        assert_eq!(read(Path::new("-"), Some("y")).unwrap(), b"y");
        let kind = |path: &Path| read(path, None).unwrap_err().kind();
        assert_eq!(kind(dir.path()), ErrorKind::IsADirectory);
        assert_eq!(kind(Path::new("/dev/zero")), ErrorKind::InvalidInput);
        assert_eq!(kind(&dir.path().join("none")), ErrorKind::NotFound);
        let pipe = dir.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        assert_eq!(kind(&pipe), ErrorKind::InvalidInput);
        std::fs::File::create(&path).unwrap().set_len(LARGEST + 1).unwrap();
        assert_eq!(kind(&path), ErrorKind::FileTooLarge);
    }
}
