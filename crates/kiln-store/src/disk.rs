//! Every sync that a promise hangs on, by the place that asks for it, and every name that has to
//! last. Tests record what goes through here, and replay what a power cut at any moment may leave:
//! see `tests::cuts`. With all of them taken out in turn, that suite has to fail.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

/// Who asks for a sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Site {
    /// Entries of the ledger.
    Ledger,
    /// The folder that the ledger's file is made in, and the root.
    LedgerFolder,
    /// A file that is written durably, before it gets its name.
    File,
    /// The folder of its name.
    Folder,
    /// A few objects, one by one.
    Object,
    /// The folders that those are in.
    ObjectFolder,
    /// The root's whole file system.
    All,
    /// Step results that went, before their objects go.
    Steps,
    /// References that went, before their objects go.
    References,
    /// The mark that says that something is not synced.
    Mark,
}

#[cfg(test)]
impl Site {
    pub(crate) const EVERY: [Self; 10] = [
        Self::Ledger,
        Self::LedgerFolder,
        Self::File,
        Self::Folder,
        Self::Object,
        Self::ObjectFolder,
        Self::All,
        Self::Steps,
        Self::References,
        Self::Mark,
    ];
}

/// Syncs the data of a file, and what of its metadata is needed to read it.
pub(crate) fn sync(site: Site, file: &File, path: &Path) -> io::Result<()> {
    #[cfg(test)]
    if crate::tests::tape::sync(site, file, path) {
        return Ok(());
    }
    let _ = (site, path);
    file.sync_data()
}

/// Syncs a folder: the names in it last from now on.
pub(crate) fn sync_dir(site: Site, path: &Path) -> io::Result<()> {
    #[cfg(test)]
    if crate::tests::tape::sync_dir(site, path) {
        return Ok(());
    }
    let _ = site;
    File::open(path)?.sync_all()
}

/// Syncs all of the file system that `root`, at `path`, is on.
pub(crate) fn sync_all(site: Site, root: &File, path: &Path) -> io::Result<()> {
    #[cfg(test)]
    if crate::tests::tape::sync_all(site, path) {
        return Ok(());
    }
    let _ = (site, path);
    Ok(rustix::fs::syncfs(root)?)
}

/// Takes note that a file has another content now.
pub(crate) fn wrote(file: &File, path: &Path) {
    #[cfg(test)]
    crate::tests::tape::wrote(file, path);
    let _ = (file, path);
}

/// Takes note that `path` names a file now, or another one than before.
pub(crate) fn named(path: &Path) {
    #[cfg(test)]
    crate::tests::tape::named(path);
    let _ = path;
}

/// Takes note that `path` names nothing any more.
pub(crate) fn unnamed(path: &Path) {
    #[cfg(test)]
    crate::tests::tape::unnamed(path);
    let _ = path;
}

/// Makes a folder for root alone, and those that it is in.
pub(crate) fn create_dirs(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    #[cfg(test)]
    crate::tests::tape::made(path);
    Ok(())
}

/// Makes a folder whose name is to last, and those that it is in; nothing if it is there.
pub(crate) fn create_durable(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().unwrap_or(path);
    create_durable(parent)?;
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    #[cfg(test)]
    crate::tests::tape::made(path);
    sync_dir(Site::Folder, parent)
}

/// Removes a file; one that is not there is as good.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    remove_if_there(path).map(drop)
}

/// The same; says whether it was there.
pub(crate) fn remove_if_there(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        result => {
            unnamed(path);
            result.map(|()| true)
        }
    }
}
