//! A recorder of what reaches the disk, and when: each content that a file had, each name that a
//! folder got or lost, each sync. From a tape one can tell what a power cut at any moment may leave
//! behind, and make that: any subset of what was not synced.
//!
//! The rules are the strict ones. Syncing a file makes its content last, not its name. Syncing a
//! folder makes the names in it last, not the contents of their files. What is not synced may be
//! there or not, each by itself and in any order; of a file's content, any part may be zeros.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::disk::Site;

/// Something that happened, in order.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// A file has this content now.
    Content(u64, Vec<u8>),
    /// A name (below the root) leads to this file, or to none.
    Name(PathBuf, Option<u64>),
    /// A folder was made.
    Folder(PathBuf),
    /// What the file has now lasts.
    Synced(u64),
    /// The names that the folder has now last.
    SyncedFolder(PathBuf),
    /// All that there is lasts.
    SyncedAll,
    /// The store promised something to whoever called it.
    Promise(usize),
}

impl Event {
    /// Without contents.
    pub(crate) fn word(&self) -> String {
        match self {
            Self::Content(inode, content) => format!("{} bytes in file {inode}", content.len()),
            other => format!("{other:?}"),
        }
    }
}

/// What is recorded of one root.
#[derive(Debug, Default)]
struct Tape {
    events: Vec<Event>,
    /// Syncs of this place are taken out.
    without: Option<Site>,
    /// The places that synced.
    sites: BTreeSet<Site>,
}

static TAPES: Mutex<BTreeMap<PathBuf, Tape>> = Mutex::new(BTreeMap::new());

fn tapes() -> MutexGuard<'static, BTreeMap<PathBuf, Tape>> {
    TAPES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands the tape of the root that `path` is in, and the path below it, to `work`.
fn with<T>(path: &Path, work: impl FnOnce(&mut Tape, PathBuf) -> T) -> Option<T> {
    let mut tapes = tapes();
    let (root, tape) = tapes.iter_mut().find(|(root, _)| path.starts_with(root))?;
    let below = path.strip_prefix(root).ok()?.to_owned();
    Some(work(tape, below))
}

/// Records what happens in `root` from now on, without the syncs of one place.
pub(crate) fn record(root: &Path, without: Option<Site>) {
    tapes().insert(root.to_owned(), Tape { without, ..Tape::default() });
}

/// The recording, and who synced.
pub(crate) fn stop(root: &Path) -> (Vec<Event>, BTreeSet<Site>) {
    let tape = tapes().remove(root).unwrap_or_default();
    (tape.events, tape.sites)
}

/// Takes down that something was promised.
pub(crate) fn promise(root: &Path, number: usize) {
    with(root, |tape, _| tape.events.push(Event::Promise(number)));
}

/// Takes down that the system has written everything by itself.
pub(crate) fn rest(root: &Path) {
    with(root, |tape, _| tape.events.push(Event::SyncedAll));
}

/// Whether the sync is not to be done: what is recorded would only be slowed down by it.
pub(crate) fn sync(site: Site, file: &File, path: &Path) -> bool {
    let inode = file.metadata().map_or(0, |meta| meta.ino());
    with(path, |tape, _| {
        tape.sites.insert(site);
        if tape.without != Some(site) {
            tape.events.push(Event::Synced(inode));
        }
    })
    .is_some()
}

pub(crate) fn sync_dir(site: Site, path: &Path) -> bool {
    with(path, |tape, below| {
        tape.sites.insert(site);
        if tape.without != Some(site) {
            tape.events.push(Event::SyncedFolder(below));
        }
    })
    .is_some()
}

pub(crate) fn sync_all(site: Site, path: &Path) -> bool {
    with(path, |tape, _| {
        tape.sites.insert(site);
        if tape.without != Some(site) {
            tape.events.push(Event::SyncedAll);
        }
    })
    .is_some()
}

pub(crate) fn wrote(file: &File, path: &Path) {
    with(path, |tape, _| {
        let inode = file.metadata().map_or(0, |meta| meta.ino());
        let content = fs::read(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file)));
        tape.events.push(Event::Content(inode, content.unwrap_or_default()));
    });
}

pub(crate) fn named(path: &Path) {
    with(path, |tape, below| {
        let Ok(meta) = fs::symlink_metadata(path) else { return };
        if meta.is_dir() {
            tape.events.push(Event::Folder(below));
            return;
        }
        let content = fs::read(path).unwrap_or_default();
        tape.events.push(Event::Content(meta.ino(), content));
        tape.events.push(Event::Name(below, Some(meta.ino())));
    });
}

pub(crate) fn unnamed(path: &Path) {
    with(path, |tape, below| tape.events.push(Event::Name(below, None)));
}

pub(crate) fn made(path: &Path) {
    with(path, |tape, below| {
        for folder in below.ancestors().collect::<Vec<_>>().into_iter().rev() {
            if !folder.as_os_str().is_empty() {
                tape.events.push(Event::Folder(folder.to_owned()));
            }
        }
    });
}

/// The content of a file that lasts, if any does, and those that it had since.
type Contents = (Option<Vec<u8>>, Vec<Vec<u8>>);

/// The file that a name leads to for sure, and those, or none, that it led to since.
type Leads = (Option<u64>, Vec<Option<u64>>);

/// What there is at one moment: what lasts, and what may or may not.
#[derive(Debug, Default, Clone)]
pub(crate) struct Moment {
    /// By file.
    contents: BTreeMap<u64, Contents>,
    /// By name.
    names: BTreeMap<PathBuf, Leads>,
    /// Folders: whether they last.
    folders: BTreeMap<PathBuf, bool>,
    /// What was promised so far.
    pub(crate) promised: usize,
}

impl Moment {
    pub(crate) fn after(&mut self, event: &Event) {
        match event {
            Event::Content(inode, content) => {
                let (lasting, since) = self.contents.entry(*inode).or_default();
                let now = since.last().or(lasting.as_ref());
                if now != Some(content) {
                    since.push(content.clone());
                }
            }
            Event::Name(name, inode) => {
                let (lasting, since) = self.names.entry(name.clone()).or_default();
                if since.last().unwrap_or(lasting) != inode {
                    since.push(*inode);
                }
            }
            Event::Folder(path) => {
                self.folders.entry(path.clone()).or_default();
            }
            Event::Synced(inode) => {
                let (lasting, since) = self.contents.entry(*inode).or_default();
                if let Some(now) = since.pop() {
                    *lasting = Some(now);
                }
                since.clear();
            }
            Event::SyncedFolder(folder) => self.sync_folder(folder),
            Event::SyncedAll => {
                let folders: Vec<PathBuf> = self.folders.keys().cloned().collect();
                folders.iter().for_each(|folder| self.sync_folder(folder));
                self.sync_folder(Path::new(""));
                let files: Vec<u64> = self.contents.keys().copied().collect();
                files.iter().for_each(|inode| self.after(&Event::Synced(*inode)));
            }
            Event::Promise(number) => self.promised = *number,
        }
    }

    fn sync_folder(&mut self, folder: &Path) {
        for (name, (lasting, since)) in &mut self.names {
            if name.parent() == Some(folder)
                && let Some(now) = since.pop()
            {
                *lasting = now;
                since.clear();
            }
        }
        for (path, lasting) in &mut self.folders {
            *lasting |= path.parent() == Some(folder);
        }
    }

    /// How many choices a power cut has now.
    pub(crate) fn choices(&self) -> usize {
        self.contents.values().filter(|(_, since)| !since.is_empty()).count()
            + self.names.values().filter(|(_, since)| !since.is_empty()).count()
            + self.folders.values().filter(|lasting| !**lasting).count()
    }

    /// Makes in `root` what is left if of each choice `choose` (which is given its number, and how
    /// many outcomes it has) takes one; outcome 0 is what lasts.
    pub(crate) fn make(&self, root: &Path, choose: &mut dyn FnMut(usize, usize) -> usize) {
        let mut number = 0;
        let mut next = |outcomes: usize| {
            number += 1;
            choose(number - 1, outcomes).min(outcomes - 1)
        };
        fs::create_dir_all(root).unwrap();
        let mut lost: Vec<&Path> = Vec::new();
        for (folder, lasting) in &self.folders {
            let stays = *lasting || next(2) == 1;
            if stays && !lost.iter().any(|lost| folder.starts_with(lost)) {
                fs::create_dir_all(root.join(folder)).unwrap();
            } else {
                lost.push(folder);
            }
        }
        let mut files: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        for (inode, (lasting, since)) in &self.contents {
            let lasting = lasting.clone().unwrap_or_default();
            let content = match since.len() {
                0 => lasting,
                some => match next(some * 2 + 1) {
                    0 => lasting,
                    chosen if chosen <= some => since[chosen - 1].clone(),
                    chosen => torn(&lasting, &since[chosen - some - 1]),
                },
            };
            files.insert(*inode, content);
        }
        let mut links: BTreeMap<u64, PathBuf> = BTreeMap::new();
        for (name, (lasting, since)) in &self.names {
            let inode = match since.len() {
                0 => *lasting,
                some => match next(some + 1) {
                    0 => *lasting,
                    chosen => since[chosen - 1],
                },
            };
            let Some(inode) = inode else { continue };
            let path = root.join(name);
            if !path.parent().is_some_and(Path::is_dir) {
                continue;
            }
            match links.get(&inode) {
                Some(other) => fs::hard_link(other, &path).unwrap(),
                None => {
                    fs::write(&path, &files[&inode]).unwrap();
                    // As the store leaves what it puts: nothing of a torn file tells.
                    if name.starts_with("objects") {
                        let file = File::open(&path).unwrap();
                        rustix::fs::futimens(&file, &crate::mount::times(crate::EPOCH)).unwrap();
                    }
                    links.insert(inode, path);
                }
            }
        }
    }
}

/// The length of the new content, and only what it begins with; the rest as before, or zeros.
fn torn(lasting: &[u8], new: &[u8]) -> Vec<u8> {
    let mut content = vec![0; new.len()];
    let old = lasting.len().min(new.len());
    content[..old].copy_from_slice(&lasting[..old]);
    let written = old.max(new.len() / 2);
    if new.len() > old {
        content[old..written].copy_from_slice(&new[old..written]);
    } else {
        content[..new.len() / 2].copy_from_slice(&new[..new.len() / 2]);
    }
    content
}
