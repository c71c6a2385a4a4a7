//! Syncs that a promise hangs on and that are not the store's: each names the place that asks for it.
//! Tests record them with every name that has to last, and say what a power cut at any moment may
//! leave; with those of any one place taken out, that has to go wrong. The store has the same for its
//! own in `disk.rs`.
//!
//! Run files promise nothing after a power cut: they name the boot under which they were written.

use std::fs::File;
use std::io;
use std::path::Path;

/// Who asks for a sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Site {
    /// A file of a new volume.
    VolumeFile,
    /// A folder of a new volume.
    VolumeFolder,
    /// A new volume of many files.
    VolumeAll,
    /// The names of a volume and of the folders above it.
    VolumeName,
    /// The root's key for command lines.
    Key,
    /// Its name, and its folder's.
    KeyName,
}

/// Makes the content of a file last.
pub(crate) fn file(site: Site, path: &Path) -> io::Result<()> {
    #[cfg(test)]
    tape::note(site, || tape::Event::File(path.to_owned()));
    let _ = site;
    File::open(path)?.sync_all()
}

/// Makes the names in a folder last.
pub(crate) fn folder(site: Site, path: &Path) -> io::Result<()> {
    #[cfg(test)]
    tape::note(site, || tape::Event::Folder(path.to_owned()));
    let _ = site;
    File::open(path)?.sync_all()
}

/// Makes everything on the file system of `path` last.
pub(crate) fn all(site: Site, path: &Path) -> io::Result<()> {
    #[cfg(test)]
    tape::note(site, || tape::Event::All);
    let _ = site;
    Ok(rustix::fs::syncfs(File::open(path)?)?)
}

/// Takes note that `path` has its name now: what it is made of is done.
pub(crate) fn named(path: &Path) {
    #[cfg(test)]
    tape::name(path);
    let _ = path;
}

#[cfg(test)]
pub(crate) mod tape {
    //! What one thread did, and what a power cut may leave of it.

    use std::cell::RefCell;
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};

    use super::Site;

    /// Something that happened, in order.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub(crate) enum Event {
        File(PathBuf),
        Folder(PathBuf),
        All,
        Named(PathBuf),
    }

    #[derive(Debug, Default)]
    struct Tape {
        events: Vec<Event>,
        without: Option<Site>,
    }

    thread_local! {
        static TAPE: RefCell<Option<Tape>> = const { RefCell::new(None) };
    }

    /// Records what `work` does in this thread, without the syncs of one place.
    pub(crate) fn record(without: Option<Site>, work: impl FnOnce()) -> Vec<Event> {
        TAPE.with(|tape| *tape.borrow_mut() = Some(Tape { without, ..Tape::default() }));
        work();
        TAPE.with(|tape| tape.borrow_mut().take()).unwrap_or_default().events
    }

    fn push(event: impl FnOnce(&Tape) -> Option<Event>) {
        TAPE.with(|tape| {
            if let Some(tape) = &mut *tape.borrow_mut()
                && let Some(event) = event(tape)
            {
                tape.events.push(event);
            }
        });
    }

    pub(super) fn note(site: Site, event: impl FnOnce() -> Event) {
        push(|tape| (tape.without != Some(site)).then(event));
    }

    pub(super) fn name(path: &Path) {
        push(|_| Some(Event::Named(path.to_owned())));
    }

    /// What was made: `made` (files, and folders with what is in them) under another name, which then
    /// became `named`; `above` are the folders whose names it needs, down to it.
    #[derive(Debug, Default)]
    pub(crate) struct Work {
        pub(crate) files: BTreeSet<PathBuf>,
        pub(crate) folders: BTreeSet<PathBuf>,
        pub(crate) named: PathBuf,
        pub(crate) above: Vec<PathBuf>,
    }

    /// What is wrong after a power cut at some moment of it, or behind its end. The strict rules: a
    /// file's content lasts when it is synced, a name when its folder is; all else is there or not.
    pub(crate) fn wrong(events: &[Event], work: &Work) -> Option<String> {
        let (mut contents, mut inside) = (BTreeSet::new(), BTreeSet::new());
        let (mut names, mut is_named) = (BTreeSet::new(), false);
        for event in events {
            match event {
                Event::File(path) => {
                    contents.insert(path.clone());
                }
                Event::Folder(path) if work.folders.contains(path) => {
                    inside.insert(path.clone());
                }
                // What has no name yet gets none by that.
                Event::Folder(path) => {
                    let own = work.named.parent() == Some(path);
                    if is_named || !own {
                        names.insert(path.clone());
                    }
                }
                Event::All => {
                    contents.extend(work.files.iter().cloned());
                    inside.extend(work.folders.iter().cloned());
                    let above = work.above.iter().filter(|path| is_named || **path != work.named);
                    names.extend(above.filter_map(|path| path.parent()).map(Path::to_owned));
                }
                Event::Named(path) if *path == work.named => {
                    // From here on it may be there.
                    is_named = true;
                    if let Some(torn) = work.files.difference(&contents).next() {
                        return Some(format!("{} may be torn", torn.display()));
                    }
                    if let Some(torn) = work.folders.difference(&inside).next() {
                        return Some(format!("{} may lack something", torn.display()));
                    }
                }
                Event::Named(_) => {}
            }
        }
        // It was promised now.
        let mut parents = work.above.iter().filter_map(|path| path.parent());
        let lost = parents.find(|parent| !names.contains(*parent))?;
        Some(format!("what is in {} may be gone", lost.display()))
    }
}
