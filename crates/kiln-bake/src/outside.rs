//! Build contexts from elsewhere: a repository, or an archive. Each becomes a folder of its own below
//! the store's `cache/checkouts`, named by its tree, so that everything that reads a context reads
//! this one like any other. What is fetched is pinned as what ADD takes.

use std::fs::{DirBuilder, File};
use std::io::{self, Seek as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use kiln_core::tree::{Kind, Node};
use kiln_core::{ImageConfig, ImageId, Tree};
use kiln_store::Store;
use kiln_store::regular::{self, Links};

use crate::archive::{self, Checked, Destination, Limits};
use crate::context::Snapshot;
use crate::error::BakeError;
use crate::ignore::Ignore;
use crate::key::Key;
use crate::remote::{LockedUrl, Options, Reference, RemoteError, Remotes};

/// Whether `build.context` names something that has to be fetched.
pub fn is_address(context: &Path) -> bool {
    !context.is_absolute()
}

/// What brings contexts here.
pub struct Outside<'a> {
    /// Where everything goes. The caller holds a lease.
    pub store: &'a Store,
    /// Fetches and pins.
    pub remotes: &'a Remotes<'a>,
    /// How.
    pub options: &'a Options<'a>,
    /// How much an archive may unpack to.
    pub limits: Limits,
    /// Set to end it.
    pub cancel: &'a AtomicBool,
}

impl std::fmt::Debug for Outside<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outside").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Outside<'_> {
    /// The folder of the context at `address`.
    ///
    /// # Errors
    /// It cannot be had, is not what is pinned, or is no context.
    pub fn fetch(&self, address: &str) -> Result<PathBuf, BakeError> {
        let failed = |error: RemoteError| remote_failed(&error);
        let tree = match Reference::parse(&in_full(address)).map_err(failed)? {
            Some(Reference::Git(git)) => {
                let tree = self.remotes.git(&git, false, self.options).map_err(failed)?;
                self.store.get_tree(&tree).map_err(BakeError::store).map(|tree| plain(&tree))?
            }
            Some(Reference::Url(url)) => {
                let pin = self.remotes.url(&url, None, self.options).map_err(failed)?;
                self.archive(address, &pin)?
            }
            None => return Err(no_context(address, "it is no address")),
        };
        self.folder(address, tree)
    }

    /// The folder of the context that the archive at `path` holds.
    ///
    /// # Errors
    /// As [`Outside::fetch`].
    pub fn unpack(&self, path: &Path) -> Result<PathBuf, BakeError> {
        let failed = |error| BakeError::io("cannot read", path, error);
        let file = regular::open(path, Links::Follow).map_err(failed)?;
        let shown = path.display().to_string();
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(no_context(&shown, "it is neither a directory nor a file"));
        }
        let (sha256, size) = self.store.put_open_file(&file).map_err(BakeError::store)?;
        let tree = self.archive(&shown, &LockedUrl { url: shown.clone(), size, sha256 })?;
        self.folder(&shown, tree)
    }

    /// The files of an archive that is in the store.
    fn archive(&self, shown: &str, pin: &LockedUrl) -> Result<Tree, BakeError> {
        let key = Key::new("context archive").digest(&pin.sha256).finish();
        let given_up = || self.cancel.load(std::sync::atomic::Ordering::Acquire);
        let _turn = self.store.step_turn(&key, &given_up).ok_or(BakeError::Cancelled)?;
        if let Some(known) = self.store.step_result(&key)
            && let Ok(tree) = self.store.get_tree(&known.tree)
        {
            return Ok((*tree).clone());
        }
        let mut file = self.store.open_object(&pin.sha256).map_err(BakeError::store)?;
        let at = self.store.object_path(&pin.sha256);
        let failed = |error: io::Error| BakeError::io("cannot read", &at, error);
        if !archive::is_archive(&mut file).map_err(failed)? {
            return Err(no_context(shown, "it is no archive"));
        }
        file.rewind().map_err(failed)?;
        let mut file = Checked::new(file, pin.sha256);
        let into = Destination { store: self.store, dest: b"", chown: None, limits: self.limits };
        let unpacked = archive::unpack(Tree::new(), &into, &mut file)
            .map_err(|error| no_context(shown, &format!("it cannot be unpacked: {error}")))?;
        file.finish().map_err(failed)?;
        let tree = plain(&unpacked);
        let digest = self.store.put_tree(&tree).map_err(BakeError::store)?;
        let config = self.store.put_config(&ImageConfig::default()).map_err(BakeError::store)?;
        let image = ImageId { tree: digest, config };
        self.store.set_step_result(&key, &image).map_err(BakeError::store)?;
        Ok(tree)
    }

    /// A folder that has the files of `tree`, as long as the caller's lease lasts.
    fn folder(&self, shown: &str, tree: Tree) -> Result<PathBuf, BakeError> {
        let digest = self.store.put_tree(&tree).map_err(BakeError::store)?;
        let dir = self.store.root().join("cache/checkouts").join(digest.hex());
        let folder = dir.join("context");
        let failed = |error| BakeError::io("cannot make", &folder, error);
        let given_up = || self.cancel.load(std::sync::atomic::Ordering::Acquire);
        let key = Key::new("checkout").digest(&digest).finish();
        let _turn = self.store.step_turn(&key, &given_up).ok_or(BakeError::Cancelled)?;
        if !self.has(&folder, &tree) {
            kiln_store::mount::remove_tree(&folder).map_err(failed)?;
            DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(failed)?;
            self.store.checkout(&digest, &folder).map_err(BakeError::store)?;
            if !self.has(&folder, &tree) {
                let what = format!("the context {shown} cannot be laid out as it was fetched");
                return Err(BakeError::Failed(format!("{what}\n  hint: kiln fsck --repair")));
            }
        }
        // Collection goes by the last use.
        File::open(&dir).and_then(|dir| dir.set_modified(SystemTime::now())).map_err(failed)?;
        Ok(folder)
    }

    /// Whether the folder has just these files: it is believed for what is in it.
    fn has(&self, folder: &Path, tree: &Tree) -> bool {
        folder.is_dir()
            && Snapshot::recall(self.store, folder, &Ignore::default(), self.cancel)
                .is_ok_and(|there| there.special.is_empty() && there.tree.entries == tree.entries)
    }
}

/// `github.com/…`, as Docker writes it, is a repository.
fn in_full(address: &str) -> String {
    if !address.starts_with("github.com/") {
        return address.to_owned();
    }
    let end = address.find(['#', '?']).unwrap_or(address.len());
    let (path, rest) = address.split_at(end);
    let path = path.trim_end_matches('/');
    format!("https://{}.git{rest}", path.strip_suffix(".git").unwrap_or(path))
}

/// What a context keeps: files with Git's two modes, folders, links; all of them root's.
fn plain(tree: &Tree) -> Tree {
    let mut plain = Tree::new();
    for (path, node) in &tree.entries {
        let kind = match &node.kind {
            Kind::Hardlink { to } => match tree.get(to) {
                Some(first) => first.kind.clone(),
                None => continue,
            },
            kind => kind.clone(),
        };
        let mode = match &kind {
            Kind::Dir => 0o755,
            Kind::File { .. } if node.mode & 0o100 != 0 => 0o755,
            Kind::File { .. } => 0o644,
            Kind::Symlink { .. } => 0o777,
            // Pipes and devices are no part of a context.
            _ => continue,
        };
        plain.insert(path, Node::new(kind, mode));
    }
    plain
}

fn no_context(shown: &str, why: &str) -> BakeError {
    let what = format!("the build context {shown} cannot be used: {why}");
    BakeError::usage(what, "a directory, a Git repository (`https://….git#ref:folder`) or a tar")
}

fn remote_failed(error: &RemoteError) -> BakeError {
    let hint = error.hint().unwrap_or_default();
    match error {
        RemoteError::Cancelled => BakeError::Cancelled,
        error if error.is_usage() => BakeError::usage(format!("the build context: {error}"), hint),
        error if hint.is_empty() => BakeError::Failed(format!("the build context: {error}")),
        error => BakeError::Failed(format!("the build context: {error}\n  hint: {hint}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_docker_has_them() {
        for (written, full) in [
            ("https://h/x.git#main:dir", "https://h/x.git#main:dir"),
            ("github.com/a/b", "https://github.com/a/b.git"),
            ("github.com/a/b.git#v1:d", "https://github.com/a/b.git#v1:d"),
            ("github.com/a/b/#v1", "https://github.com/a/b.git#v1"),
            ("git@github.com:a/b.git", "git@github.com:a/b.git"),
        ] {
            assert_eq!(in_full(written), full);
        }
    }
}
