//! Bind mounts: where their sources lie, and folders that are made for them.
//!
//! A release names what lies in its project relative to it; where the project lies is known here. Only
//! `up` makes what is not there, as Compose users expect: a folder that belongs to whoever called. No
//! link is followed on the way to it, so that no stranger's project has a folder made in a place
//! that its own file does not name.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use kiln_core::Release;
use kiln_core::compose::{Mount, MountSource, is_docker};
use kiln_core::release::ReleasedService;
use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, mkdirat, openat, openat2, statat,
};
use rustix::io::Errno;

use super::session::Session;
use super::stage::Stage;
use super::{Agent, fill, who};
use crate::report::{Because, Report};

/// Nothing is made in these: a folder there would be taken for a part of the system.
const SYSTEM: [&str; 11] =
    ["/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr"];

/// Where a bind mount's source lies on this machine.
pub(crate) fn source(folder: Option<&Path>, path: &Path) -> Result<PathBuf, Report> {
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    let Some(folder) = folder else {
        let what = format!("where `{}` lies is not known: no folder is recorded", path.display());
        return Err(Report::usage(what).hint("kiln up, in the project's folder"));
    };
    Ok(clean(&folder.join(path)))
}

/// `.` and `..` taken out; links are resolved in the folder of a project already.
pub(crate) fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}

/// Whether instances of the service have mounted what lies in the project's folder.
pub(crate) fn is_bound_to_folder(mounts: &[Mount]) -> bool {
    mounts
        .iter()
        .any(|mount| matches!(&mount.source, MountSource::Bind(path) if path.is_relative()))
}

/// Docker's socket, where there is no Docker: what mounts it runs without.
pub(crate) fn is_left_out(path: &Path) -> bool {
    is_docker(path) && is_missing(path)
}

fn is_missing(path: &Path) -> bool {
    std::fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Says what of the project instances see as it lies there, whatever the release was cut from.
pub(crate) fn tell_what_is_live(session: &Session, release: &Release) {
    let mut live = Vec::new();
    for (service, released) in &release.services {
        for mount in released.settings.mounts.iter().filter(|mount| mount.read_only) {
            if let MountSource::Bind(path) = &mount.source
                && path.starts_with(".")
            {
                live.push(format!("{} at `{}` of `{service}`", path.display(), mount.target));
            }
        }
    }
    if !live.is_empty() {
        session.notice(format!("live from the project's folder: {}", live.join(", ")));
    }
}

/// Makes the folders that bind mounts of `release` name and that are not there.
pub(crate) fn make(
    agent: &Agent,
    session: &Session,
    stage: &Stage,
    release: &Release,
) -> Result<(), Report> {
    let folder = stage.folder();
    for (service, released) in &release.services {
        for mount in &released.settings.mounts {
            let MountSource::Bind(path) = &mount.source else { continue };
            let source = source(folder.as_deref(), path)?;
            if !is_missing(&source) {
                continue;
            }
            if is_docker(&source) {
                session.notice(format!(
                    "`{service}`: {} is not there, so it is not mounted",
                    source.display()
                ));
                continue;
            }
            may_be_made(agent, released, mount, &source)?;
            let owner = who::owner(&session.env);
            let top = folder.as_deref().filter(|folder| source.starts_with(folder));
            make_folder(top.unwrap_or(Path::new("/")), &source, owner)?;
            session.notice(format!(
                "`{service}`: {} was not there: it is a new folder now",
                source.display()
            ));
        }
    }
    Ok(())
}

fn may_be_made(
    agent: &Agent,
    released: &ReleasedService,
    mount: &Mount,
    source: &Path,
) -> Result<(), Report> {
    if mount.must_exist || SYSTEM.iter().any(|system| source.starts_with(system)) {
        return Err(missing(source));
    }
    if fill::has_file(&agent.store, &released.image.tree, &mount.target)? {
        let what = format!("bind mount: {} is not there", source.display());
        let hint = format!("create it: the image has a file at {}", mount.target);
        return Err(Report::usage(what).hint(hint));
    }
    Ok(())
}

/// A source that is not there, and that nobody makes.
pub(crate) fn missing(path: &Path) -> Report {
    Report::usage(format!("bind mount: {} is not there", path.display()))
        .hint("create it, or use a named volume")
}

/// Makes what is missing on the way from `top`, which is there, to `path`.
fn make_folder(top: &Path, path: &Path, owner: (u32, u32)) -> Result<(), Report> {
    let doing = || format!("making the folder {}", path.display());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // The project's folder is recorded with its links resolved: one that is there now is new.
    let top_fd = openat2(CWD, top, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS);
    let top_fd = top_fd.map_err(io::Error::from);
    let parts = path.strip_prefix(top).unwrap_or(path).components();
    let mut names = parts.filter_map(|part| match part {
        Component::Normal(name) => Some(Path::new(name)),
        _ => None,
    });
    let made = top_fd.and_then(|fd| names.try_fold(fd, |dir, name| step(dir.as_fd(), name, owner)));
    match made {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENOTDIR)) => {
            let what = format!("bind mount: {} is not there", path.display());
            Err(Report::usage(what).hint(
                "create it: on the way to it is a link or a file, and Kiln makes no folder behind one",
            ))
        }
        Err(error) => Err(error).because(doing),
    }
}

/// One folder further down, made if it is missing.
fn step(dir: BorrowedFd<'_>, name: &Path, owner: (u32, u32)) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(dir, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => {}
        opened => return Ok(opened?),
    }
    match mkdirat(dir, name, Mode::from(0o755)) {
        // Somebody was faster: then it is theirs.
        Err(Errno::EXIST) => return Ok(openat(dir, name, flags, Mode::empty())?),
        made => made?,
    }
    let fd = openat(dir, name, flags, Mode::empty())?;
    // Whoever may write here can have put another one in its place; then that is left as it is.
    let found = statat(&fd, "", AtFlags::EMPTY_PATH)?;
    if (found.st_uid, found.st_gid) == effective() {
        let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
        chownat(&fd, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    }
    Ok(fd)
}

fn effective() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    #[test]
    fn sources_are_meant_from_the_folder() {
        let folder = Some(Path::new("/home/u/shop"));
        for (path, expected) in [
            ("./data", "/home/u/shop/data"),
            (".", "/home/u/shop"),
            ("../x/../y", "/home/u/y"),
            ("/srv/x", "/srv/x"),
        ] {
            assert_eq!(source(folder, Path::new(path)).unwrap(), Path::new(expected));
        }
        assert!(source(None, Path::new("./x")).is_err());
    }

    #[test]
    fn folders_are_the_callers_and_no_link_is_followed() {
        let home = tempfile::tempdir().unwrap();
        let top = home.path().join("shop");
        let outside = home.path().join("outside");
        fs::create_dir_all(top.join("there")).unwrap();
        fs::create_dir(&outside).unwrap();
        symlink(&outside, top.join("link")).unwrap();
        symlink("nowhere", top.join("dangling")).unwrap();
        fs::write(top.join("file"), "").unwrap();
        make_folder(&top, &top.join("there/a/b"), (1000, 100)).unwrap();
        for path in ["there/a", "there/a/b"] {
            let meta = fs::metadata(top.join(path)).unwrap();
            assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (1000, 100, 0o755));
        }
        assert_eq!(fs::metadata(top.join("there")).unwrap().uid(), effective().0, "as it was");
        for path in ["link/new", "dangling", "file/new"] {
            let refused = make_folder(&top, &top.join(path), (1000, 100)).unwrap_err();
            assert!(refused.hint.is_some_and(|hint| hint.contains("link")), "{path}");
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }
}
