//! What ADD takes from outside: URLs and Git repositories, fetched once and pinned.
//!
//! `--checksum` pins, a whole commit pins itself, `kiln.lock` pins all else: what a bake takes for
//! the first time it notes there. What is pinned and in the store is never asked for again, and what
//! comes and is something else is refused.
//!
//! | module | noun |
//! |---|---|
//! | [`pins`] | the lock's part |
//!
//! `kiln-remote` does the fetching.

pub mod pins;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kiln_core::{Digest, ImageConfig, ImageId};
use kiln_remote::{Git, git, http, reference};
use kiln_store::Store;

use crate::dockerfile::Instruction;
use crate::plan::Plan;

pub(crate) use kiln_remote::reference::{checksum as commit_checksum, file_name};
pub use kiln_remote::{GitReference, LockedGit, Proxies, Reference, RemoteError};
pub use pins::{LockedUrl, Pins};

/// The build argument by which a user allows files larger than [`FETCH_BYTES`].
pub const FETCH_LIMIT: &str = "KILN_FETCH_LIMIT";
/// Largest file that is fetched, in bytes.
pub const FETCH_BYTES: u64 = 16 << 30;
/// Kind of the references that keep contents which a lock pins: one for each pin, named by its
/// digest.
pub const REF_KIND: &str = "remotes";

/// Fetches for all bakes of one run.
pub struct Remotes<'a> {
    store: &'a Store,
    cancel: &'a AtomicBool,
    mode: Mode,
    pins: Mutex<Pins>,
    /// References that keep what was taken.
    taken: Mutex<BTreeSet<String>>,
    /// One at a time for each address.
    turns: Mutex<BTreeMap<String, Arc<Mutex<()>>>>,
}

/// What may be done about pins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// What is not pinned gets pinned.
    Pin,
    /// What is not pinned is refused: the lock is part of a commit.
    Frozen,
}

impl std::fmt::Debug for Remotes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remotes").field("mode", &self.mode).finish_non_exhaustive()
    }
}

/// How a source is fetched.
pub struct Options<'a> {
    /// Over which proxies.
    pub proxies: Proxies,
    /// Largest file, in bytes.
    pub limit: u64,
    /// Told what is being fetched.
    pub told: &'a dyn Fn(&str),
}

impl std::fmt::Debug for Options<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl<'a> Remotes<'a> {
    /// With the pins of a lock.
    pub fn new(store: &'a Store, pins: Pins, mode: Mode, cancel: &'a AtomicBool) -> Self {
        Self {
            store,
            cancel,
            mode,
            pins: Mutex::new(pins),
            taken: Mutex::default(),
            turns: Mutex::default(),
        }
    }

    /// Equal for equal pins.
    pub(crate) fn digest(&self) -> Digest {
        locked(&self.pins).digest()
    }

    /// The pins as they are now.
    pub fn pins(&self) -> Pins {
        locked(&self.pins).clone()
    }

    /// Names of the references, of the kind [`REF_KIND`], that keep what was taken so far.
    pub fn taken(&self) -> BTreeSet<String> {
        locked(&self.taken).clone()
    }

    /// The file behind `url`, in the store. `checksum` is what it has to be.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub fn url(
        &self,
        url: &str,
        checksum: Option<Digest>,
        options: &Options<'_>,
    ) -> Result<LockedUrl, RemoteError> {
        let name = reference::redacted(url);
        let turn = self.turn(&name);
        let _turn = locked(&turn);
        let pinned = locked(&self.pins).urls.get(&name).cloned();
        let by_lock = checksum.is_none();
        let keep = |pin: LockedUrl| -> Result<LockedUrl, RemoteError> {
            self.keep_url(&pin)?;
            // What the Dockerfile pins stands there only.
            if by_lock {
                locked(&self.pins).urls.insert(pin.url.clone(), pin.clone());
            }
            Ok(pin)
        };
        let expected = checksum.or(pinned.map(|pin| pin.sha256));
        // A checksum says what has to come from this address, and not what somebody has who had it
        // from elsewhere: an old one left beside a new address would give the old file for ever.
        if let Some(sha256) = expected
            && (by_lock || self.came_from(&name, &sha256)?)
            && let Some(size) = self.store.object_size(&sha256)?
        {
            return keep(LockedUrl { url: name, size, sha256 });
        }
        if expected.is_none() && self.mode == Mode::Frozen {
            return Err(RemoteError::NotPinned(name));
        }
        (options.told)(&name);
        let (sha256, size) =
            http::fetch(self.store, url, &options.proxies, options.limit, self.cancel)?;
        if let Some(expected) = expected.filter(|expected| *expected != sha256) {
            return Err(RemoteError::differs(url, sha256, expected, by_lock));
        }
        self.store.flush()?;
        keep(LockedUrl { url: name, size, sha256 })
    }

    /// Collection leaves alone what is pinned.
    fn keep_url(&self, pin: &LockedUrl) -> Result<(), RemoteError> {
        self.keep(url_ref(&pin.url, &pin.sha256), BTreeSet::from([pin.sha256]))
    }

    fn keep(&self, name: String, digests: BTreeSet<Digest>) -> Result<(), RemoteError> {
        self.store.set_ref(REF_KIND, &name, &digests)?;
        locked(&self.taken).insert(name);
        Ok(())
    }

    /// Whether that content was fetched from `url` once.
    fn came_from(&self, url: &str, sha256: &Digest) -> Result<bool, RemoteError> {
        Ok(self.store.has_ref(REF_KIND, &url_ref(url, sha256))?)
    }

    /// Fetches what is pinned and not there: files behind URLs, and commits with their submodules.
    /// Gives the addresses of which the pin has no password, which only a bake can ask.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub fn fetch(&self, options: &Options<'_>) -> Result<Vec<String>, RemoteError> {
        let pins = self.pins();
        let mut left = Vec::new();
        for (url, pin) in &pins.urls {
            if is_masked(url) && self.store.object_size(&pin.sha256)?.is_none() {
                left.push(url.clone());
            } else {
                self.url(url, None, options)?;
            }
        }
        for ((remote, name), pin) in &pins.git {
            let there = self.store.step_result(&step_key(pin, false, false)).is_some();
            if is_masked(remote) && !there {
                left.push(format!("{remote}#{name}"));
                continue;
            }
            let (remote, name) = (remote.clone(), name.clone());
            let reference = GitReference { remote, name, ..GitReference::default() };
            self.git(&reference, false, options)?;
        }
        Ok(left)
    }

    /// Pins anew whatever is pinned: what the addresses have now. Repositories are asked for their
    /// references only.
    ///
    /// # Errors
    /// [`RemoteError`]; nothing is pinned anew then.
    pub fn refresh(&self, options: &Options<'_>) -> Result<(), RemoteError> {
        let mut pins = self.pins();
        for (url, pin) in &mut pins.urls {
            (options.told)(url);
            let found = http::fetch(self.store, url, &options.proxies, options.limit, self.cancel);
            (pin.sha256, pin.size) = found?;
        }
        for ((remote, name), pin) in &mut pins.git {
            (options.told)(&format!("{remote}#{name}"));
            let (remote, name) = (remote.clone(), name.clone());
            let reference = GitReference { remote, name, ..GitReference::default() };
            let git = Git::new(self.store, &reference, &options.proxies, self.cancel);
            *pin = git.resolve()?;
        }
        self.store.flush()?;
        pins.urls.values().try_for_each(|pin| self.keep_url(pin))?;
        *locked(&self.pins) = pins;
        Ok(())
    }

    /// The files of a commit, as a tree in the store, below its `subdir` if it names one.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub fn git(
        &self,
        reference: &GitReference,
        keep_git_dir: bool,
        options: &Options<'_>,
    ) -> Result<Digest, RemoteError> {
        let remote = reference::redacted(&reference.remote);
        let shown = format!("{remote}#{}", reference.name);
        let turn = self.turn(&shown);
        let _turn = locked(&turn);
        let key = (remote.clone(), reference.name.clone());
        let own = reference.own_commit()?.map(|(commit, full)| LockedGit {
            remote,
            name: reference.name.clone(),
            full,
            tag: String::new(),
            commit,
        });
        let by_lock = own.is_none();
        let pinned = own.or_else(|| locked(&self.pins).git.get(&key).cloned());
        let git = Git::new(self.store, reference, &options.proxies, self.cancel);
        let pin = match pinned {
            Some(pin) => pin,
            None if self.mode == Mode::Frozen => return Err(RemoteError::NotPinned(shown)),
            None => {
                (options.told)(&shown);
                git.resolve()?
            }
        };
        if let Some(checksum) = &reference.checksum
            && !pin.commit.starts_with(checksum)
            && !pin.tag.starts_with(checksum)
        {
            return Err(RemoteError::Differs {
                source_text: shown,
                found: pin.commit,
                expected: checksum.clone(),
                pinned_by: "--checksum",
            });
        }
        // As in the reference, a folder of a repository comes without its history.
        let keep = keep_git_dir && reference.subdir.is_empty();
        let step = step_key(&pin, keep, reference.no_submodules);
        let ImageId { tree, config } = match self.store.step_result(&step) {
            Some(known) => known,
            None => {
                (options.told)(&shown);
                let tree = self.store.put_tree(&git.checkout(&pin, keep)?)?;
                let config = self.store.put_config(&ImageConfig::default())?;
                let image = ImageId { tree, config };
                self.store.set_step_result(&step, &image)?;
                image
            }
        };
        self.store.flush()?;
        self.keep(step.hex(), BTreeSet::from([tree, config]))?;
        if by_lock {
            locked(&self.pins).git.insert(key, pin);
        }
        self.below(tree, reference)
    }

    /// The folder that is asked for: of folders only, for a link could lead anywhere.
    fn below(&self, tree: Digest, reference: &GitReference) -> Result<Digest, RemoteError> {
        if reference.subdir.is_empty() {
            return Ok(tree);
        }
        let whole = self.store.get_tree(&tree)?;
        let subdir = reference.subdir.as_bytes();
        let mut end = 0;
        for part in subdir.split(|byte| *byte == b'/') {
            end += part.len();
            if !whole.get(&subdir[..end]).is_some_and(kiln_core::tree::Node::is_dir) {
                let what = format!("there is no folder `{}` in it", reference.subdir);
                return Err(RemoteError::reference(&reference.remote, what));
            }
            end += 1;
        }
        Ok(self.store.put_tree(&git::subtree(&whole, subdir))?)
    }

    fn turn(&self, name: &str) -> Arc<Mutex<()>> {
        locked(&self.turns).entry(name.to_owned()).or_default().clone()
    }
}

/// Whether what is planned has an ADD that may take something from outside; with a variable in it,
/// any may.
pub(crate) fn may_fetch(plan: &Plan) -> bool {
    let outside = |source: &String| source.contains(['$', '@']) || source.contains("://");
    let steps = plan.stages.iter().flat_map(|stage| &stage.steps);
    steps.map(|planned| &planned.step.instruction).any(|instruction| match instruction {
        Instruction::Copy(copy) => copy.add && copy.sources.iter().any(outside),
        _ => false,
    })
}

/// Names of the references that keep what these pins name, as far as it was ever taken.
pub(crate) fn kept_for(urls: &[LockedUrl], git: &[LockedGit]) -> BTreeSet<String> {
    let urls = urls.iter().map(|pin| url_ref(&pin.url, &pin.sha256));
    urls.chain(checkouts(git).map(|key| key.hex())).collect()
}

/// Keys of all checkouts that can be of these pins.
fn checkouts(git: &[LockedGit]) -> impl Iterator<Item = Digest> {
    let ways = [(false, false), (false, true), (true, false), (true, true)];
    git.iter().flat_map(move |pin| ways.map(|(keep, bare)| step_key(pin, keep, bare)))
}

/// What the reference `name` keeps, if it is one of these pins'.
pub(crate) fn kept_by(
    store: &Store,
    name: &str,
    urls: &[LockedUrl],
    git: &[LockedGit],
) -> Option<BTreeSet<Digest>> {
    if let Some(pin) = urls.iter().find(|pin| url_ref(&pin.url, &pin.sha256) == name) {
        return Some(BTreeSet::from([pin.sha256]));
    }
    let image = store.step_result(&checkouts(git).find(|key| key.hex() == name)?)?;
    Some(BTreeSet::from([image.tree, image.config]))
}

/// Whether an address is one that had a password.
fn is_masked(address: &str) -> bool {
    // One that really has this password is only left to a bake.
    let authority = address.split_once("://").map_or("", |(_, rest)| rest);
    let authority = authority.split(['/', '?', '#']).next().unwrap_or_default();
    authority.rsplit_once('@').is_some_and(|(user, _)| user.ends_with(":xxxxx"))
}

/// Name of the reference that keeps what came from a URL.
fn url_ref(url: &str, sha256: &Digest) -> String {
    Digest::of(format!("{url}\n{sha256}")).hex()
}

/// Key of a checkout. The reference's name stands in `.git`, so there it counts.
fn step_key(pin: &LockedGit, keep: bool, no_submodules: bool) -> Digest {
    let LockedGit { remote, full, tag, commit, .. } = pin;
    let (full, tag) = if keep { (full.as_str(), tag.as_str()) } else { ("", "") };
    Digest::of(format!("kiln git 1\n{remote}\n{commit}\n{full}\n{tag}\n{keep} {no_submodules}\n"))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
