//! Everything that is mounted into a root, in the order in which it is mounted.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use kiln_core::compose::Tmpfs;
use kiln_core::policy::SYSTEM_PLACES;
use rustix::fs::{AtFlags, FileType, statat};
use rustix::io::Errno;

use super::resolve::{Place, resolve};
use crate::error::{Context as _, Fault};
use crate::spec::{BindMount, Device, ImageMount, Sandbox};

/// One thing in the root.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    /// Where, relative to the root, symlinks resolved.
    pub(super) path: PathBuf,
    /// Whether the image has something there.
    pub(super) exists: bool,
    /// Whether another entry is mounted over a directory above it: then its mount point is made
    /// in that one.
    pub(super) covered: bool,
    /// What it is.
    pub(super) what: What<'a>,
}

/// What an [`Entry`] is.
#[derive(Debug)]
pub(super) enum What<'a> {
    Proc,
    Sys,
    Dev,
    /// The working directory: only has to be there.
    Cwd,
    Tmpfs(&'a Tmpfs),
    Bind {
        mount: &'a BindMount,
        dir: bool,
    },
    Image(&'a ImageMount),
    Device(&'a Device),
    File(Content<'a>),
}

/// A file that the runtime provides.
#[derive(Debug)]
pub(super) struct Content<'a> {
    pub(super) source: Source<'a>,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mode: u32,
    /// May be written to where the root may: `/etc/hosts` and its like.
    pub(super) writable: bool,
}

/// Where a [`Content`] comes from.
#[derive(Debug)]
pub(super) enum Source<'a> {
    Text(&'a str),
    Bytes(&'a [u8]),
    File(&'a Path),
}

impl What<'_> {
    /// Whether its mount point is a directory.
    pub(super) fn is_dir(&self) -> bool {
        match self {
            Self::Bind { dir, .. } => *dir,
            Self::Image(mount) => mount.dir,
            Self::File(_) | Self::Device(_) => false,
            _ => true,
        }
    }

    /// Whether the specification says where it is.
    fn is_strangers(&self) -> bool {
        !matches!(self, Self::Proc | Self::Sys | Self::Dev | Self::Cwd)
    }

    fn covers(&self) -> bool {
        !matches!(self, Self::Cwd | Self::File(_))
    }
}

/// Plans the root of `sandbox` over the image `root`.
pub(super) fn layout<'a>(
    sandbox: &'a Sandbox,
    hostname: &'a str,
    root: BorrowedFd<'_>,
) -> Result<Vec<Entry<'a>>, Fault> {
    for path in SYSTEM_PLACES {
        real_directory(root, path)?;
    }
    let mut entries = Vec::new();
    let mut add = |target: &str, what: What<'a>| -> Result<(), Fault> {
        let Place { path, kind } = resolve(root, target)?;
        let step = || format!("mount over `{target}`");
        if path.as_os_str().is_empty() && !matches!(what, What::Cwd) {
            return Err(Fault::new(step(), "that is the root itself"));
        }
        if what.is_strangers()
            && (path.starts_with("proc") || SYSTEM_PLACES.iter().any(|own| path == Path::new(own)))
        {
            let message = format!("`/{}` is the runtime's own", path.display());
            return Err(Fault::new(step(), message));
        }
        match (kind, what.is_dir()) {
            (Some(FileType::Directory), false) => {
                return Err(Fault::new(
                    step(),
                    "it is a directory in the image, the source is not",
                ));
            }
            (Some(kind), true) if kind != FileType::Directory => {
                return Err(Fault::new(step(), "it is no directory in the image"));
            }
            _ => {}
        }
        entries.push(Entry { path, exists: kind.is_some(), covered: false, what });
        Ok(())
    };
    add("/proc", What::Proc)?;
    add("/sys", What::Sys)?;
    add("/dev", What::Dev)?;
    for (target, text) in [
        ("/etc/hosts", sandbox.hosts.as_str()),
        ("/etc/hostname", hostname),
        ("/etc/resolv.conf", sandbox.resolv_conf.as_str()),
    ] {
        let source = Source::Text(text);
        add(target, What::File(Content { source, uid: 0, gid: 0, mode: 0o644, writable: true }))?;
    }
    for tmpfs in &sandbox.tmpfs {
        add(&tmpfs.target, What::Tmpfs(tmpfs))?;
    }
    for mount in &sandbox.mounts {
        let meta = mount
            .source
            .metadata()
            .step(|| format!("mount {} over `{}`", mount.source.display(), mount.target))?;
        add(&mount.target, What::Bind { mount, dir: meta.is_dir() })?;
    }
    for device in &sandbox.devices {
        add(&device.target, What::Device(device))?;
    }
    for mount in &sandbox.images {
        add(&mount.target, What::Image(mount))?;
    }
    for secret in &sandbox.secrets {
        let source = Source::Bytes(&secret.content);
        let (uid, gid, mode) = (secret.uid, secret.gid, secret.mode);
        add(&secret.target, What::File(Content { source, uid, gid, mode, writable: false }))?;
    }
    for file in &sandbox.files {
        let source = Source::File(&file.source);
        let (uid, gid, mode) = (file.uid, file.gid, file.mode);
        add(&file.target, What::File(Content { source, uid, gid, mode, writable: false }))?;
    }
    add(if sandbox.cwd.is_empty() { "/" } else { &sandbox.cwd }, What::Cwd)?;
    order(&mut entries);
    Ok(entries)
}

/// Nothing or a directory: a link would have the runtime mount, hide and write-protect in a place
/// of the image's choosing, and leave the real one as it is.
fn real_directory(root: BorrowedFd<'_>, path: &str) -> Result<(), Fault> {
    let step = || format!("mount over `/{path}`");
    match statat(root, path, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error).step(step),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => Ok(()),
        Ok(stat) => {
            let link = FileType::from_raw_mode(stat.st_mode).is_symlink();
            let found = if link { "a link" } else { "a file" };
            let message =
                format!("the image has {found} there; make it a directory, or leave it out");
            Err(Fault::new(step(), message))
        }
    }
}

/// Parents before children; of two at one place the later stated is mounted over the other.
fn order(entries: &mut Vec<Entry<'_>>) {
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    for at in 1..entries.len() {
        let (before, rest) = entries.split_at_mut(at);
        let entry = &mut rest[0];
        entry.covered =
            before.iter().any(|other| other.what.covers() && entry.path.starts_with(&other.path));
    }
    // A stub that is there once serves all that are mounted over it.
    entries
        .dedup_by(|later, earlier| matches!(later.what, What::Cwd) && later.path == earlier.path);
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_store::Lower;
    use std::os::fd::AsFd as _;

    #[test]
    fn parents_come_first_and_cover() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("var")).unwrap();
        std::fs::create_dir_all(dir.path().join("run")).unwrap();
        std::os::unix::fs::symlink("../run", dir.path().join("var/run")).unwrap();
        let lower = Lower::Links { dir: dir.path().to_owned() };
        let mut sandbox = Sandbox::new(lower, vec!["x".into()]);
        let source = dir.path().join("secret");
        std::fs::write(&source, "s").unwrap();
        let target = "/var/run/secrets/key".to_owned();
        sandbox.files.push(crate::FileMount { source, target, uid: 1, gid: 2, mode: 0o400 });
        sandbox.tmpfs.push(Tmpfs { target: "/run".into(), ..Tmpfs::default() });
        sandbox.cwd = "/work".into();
        let root = std::fs::File::open(dir.path()).unwrap();
        let entries = layout(&sandbox, "host", root.as_fd()).unwrap();
        let shown: Vec<_> = entries
            .iter()
            .map(|entry| (entry.path.to_str().unwrap(), entry.exists, entry.covered))
            .collect();
        assert_eq!(
            shown,
            [
                ("dev", false, false),
                ("etc/hostname", false, false),
                ("etc/hosts", false, false),
                ("etc/resolv.conf", false, false),
                ("proc", false, false),
                ("run", true, false),
                ("run/secrets/key", false, true),
                ("sys", false, false),
                ("work", false, false),
            ]
        );
    }

    #[test]
    fn the_root_and_wrong_kinds_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let root = std::fs::File::open(dir.path()).unwrap();
        for target in ["/", "/..", "/file"] {
            let lower = Lower::Links { dir: dir.path().to_owned() };
            let mut sandbox = Sandbox::new(lower, vec!["x".into()]);
            sandbox.tmpfs.push(Tmpfs { target: target.into(), ..Tmpfs::default() });
            assert!(layout(&sandbox, "host", root.as_fd()).is_err(), "{target}");
        }
    }
}
