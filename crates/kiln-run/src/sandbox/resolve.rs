//! Where a path of the specification really is inside an image whose symlinks are its own.
//!
//! Only for trees that nobody else writes to: images, and images with an upper layer in which
//! nothing runs yet.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, readlinkat, statat};
use rustix::io::Errno;

use crate::error::{Context as _, Fault};

/// As many as the kernel follows.
const MAX_LINKS: usize = 40;

/// A place in an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Relative to the root, free of symlinks and dots.
    pub(super) path: PathBuf,
    /// What is there; `None`: nothing.
    pub(super) kind: Option<FileType>,
}

/// Resolves the absolute path `target` inside `root`.
pub(super) fn resolve(root: BorrowedFd<'_>, target: &str) -> Result<Place, Fault> {
    let step = || format!("resolve `{target}` in the image");
    let mut todo = components(Path::new(target));
    let mut path = PathBuf::new();
    let mut kind = Some(FileType::Directory);
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        if name == ".." {
            path.pop();
            kind = Some(FileType::Directory);
            continue;
        }
        match kind {
            // Below something that is not there, names are taken as they are.
            None => path.push(name),
            Some(FileType::Directory) => {
                path.push(name);
                kind = match statat(root, &path, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
                    Err(Errno::NOENT) => None,
                    Err(error) => return Err(error).step(step),
                };
                if kind == Some(FileType::Symlink) {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP).step(step);
                    }
                    let text = readlinkat(root, &path, Vec::new()).step(step)?;
                    let link = PathBuf::from(OsString::from_vec(text.into_bytes()));
                    path.pop();
                    if link.is_absolute() {
                        path = PathBuf::new();
                    }
                    for part in components(&link).into_iter().rev() {
                        todo.push_front(part);
                    }
                    kind = Some(FileType::Directory);
                }
            }
            Some(_) => {
                let message = format!("`/{}` is no directory", path.display());
                return Err(Fault::new(step(), message));
            }
        }
    }
    Ok(Place { path, kind })
}

fn components(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        std::fs::create_dir_all(at("run/lock")).unwrap();
        std::fs::create_dir_all(at("var/lib")).unwrap();
        std::fs::write(at("file"), "").unwrap();
        symlink("/run", at("var/run")).unwrap();
        symlink("../../../../../etc", at("var/escape")).unwrap();
        symlink("loop", at("loop")).unwrap();
        let root = std::fs::File::open(dir.path()).unwrap();
        let some = Some(FileType::Directory);
        for (target, path, kind) in [
            ("/", "", some),
            ("/var/run/lock", "run/lock", some),
            ("/var/run/secrets/key", "run/secrets/key", None),
            ("/var/escape/hosts", "etc/hosts", None),
            ("/var/./lib/../lib", "var/lib", some),
            ("/../..", "", some),
            ("/file", "file", Some(FileType::RegularFile)),
        ] {
            let place = resolve(root.as_fd(), target).unwrap();
            assert_eq!((place.path.to_str().unwrap(), place.kind), (path, kind), "{target}");
        }
        assert!(resolve(root.as_fd(), "/loop").is_err());
        let fault = resolve(root.as_fd(), "/file/x").unwrap_err();
        assert_eq!(fault.message, "`/file` is no directory");
    }
}
