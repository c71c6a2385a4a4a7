//! `kiln lock`: what the compose file asks for → a lock.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use kiln_core::compose::Base;
use kiln_store::Store;

use super::accounts::Accounts;
use super::apt::AptRoot;
use super::configure::configure;
use super::date;
use super::error::BaseError;
use super::fetch::{REF_KIND, cache_dir, fetch};
use super::lock::{Lock, LockedBase};
use super::progress::Watch;
use super::sources::{AskHost, HostApt};
use super::unpack::unpack;
use crate::runner::StepRunner;

/// Resolves `bases` into a lock. A base that `existing` already has, as the compose file has it,
/// keeps its locked packages unless `update`; the others are resolved by apt from the host's
/// sources, their package files are put into the store, and one bake learns their numeric users
/// and groups. An equal lock keeps its date.
///
/// # Errors
/// [`BaseError`] names the base and the package.
pub fn resolve(
    store: &Store,
    bases: &BTreeMap<String, Base>,
    existing: Option<&Lock>,
    update: bool,
    runner: &dyn StepRunner,
    watch: Watch<'_>,
) -> Result<Lock, BaseError> {
    resolve_from(store, bases, existing, update, runner, watch, &HostApt::read)
}

/// [`resolve`] with the host's apt given.
pub(crate) fn resolve_from(
    store: &Store,
    bases: &BTreeMap<String, Base>,
    existing: Option<&Lock>,
    update: bool,
    runner: &dyn StepRunner,
    watch: Watch<'_>,
    host: AskHost<'_>,
) -> Result<Lock, BaseError> {
    let kept = |name: &String, base: &Base| {
        let locked = existing?.bases.get(name)?;
        (!update && locked.satisfies(base)).then(|| locked.clone())
    };
    let mut locked: BTreeMap<String, LockedBase> =
        bases.iter().filter_map(|(name, base)| Some((name.clone(), kept(name, base)?))).collect();
    let open: BTreeMap<&str, &Base> = bases
        .iter()
        .filter(|(name, _)| !locked.contains_key(*name))
        .map(|(name, base)| (name.as_str(), base))
        .collect();
    if !open.is_empty() {
        let _lease = store.lease()?;
        let chosen = choose(store, &open, update, watch, host)?;
        locked.extend(learn_all(store, chosen, runner, watch, host)?);
        store.flush()?;
    }
    let mut lock = Lock::new(&date::today());
    lock.bases = locked;
    // What bakes have pinned is theirs to change.
    if let Some(existing) = existing {
        (lock.urls, lock.git) = (existing.urls.clone(), existing.git.clone());
        lock.images.clone_from(&existing.images);
    }
    if let Some(existing) = existing.filter(|existing| existing.bases == lock.bases) {
        lock.date.clone_from(&existing.date);
    }
    Ok(lock)
}

/// Lets apt choose, suite by suite, and gets the files.
fn choose(
    store: &Store,
    open: &BTreeMap<&str, &Base>,
    update: bool,
    watch: Watch<'_>,
    ask: AskHost<'_>,
) -> Result<Vec<(String, LockedBase)>, BaseError> {
    let host = ask()?;
    let mut suites: BTreeMap<&str, Vec<(&str, &Base)>> = BTreeMap::new();
    for (name, base) in open {
        suites.entry(&base.debian).or_default().push((name, base));
    }
    let mut chosen = Vec::new();
    for (suite, bases) in suites {
        let first = bases.first().map_or("", |(name, _)| *name);
        let root = AptRoot::enter(&cache_dir(store), &host, first, suite)?;
        root.update(first, update, watch)?;
        for (name, base) in bases {
            let mut locked = choose_one(&root, name, base, watch)?;
            match fetch(store, name, &locked, Some(&root), ask, watch) {
                // The lists were fresh enough for us, but not for the mirror.
                Err(BaseError::PackageGone { .. } | BaseError::WrongHash { .. }) => {
                    root.update(name, true, watch)?;
                    locked = choose_one(&root, name, base, watch)?;
                    fetch(store, name, &locked, Some(&root), ask, watch)?;
                }
                other => other?,
            }
            chosen.push((name.to_owned(), locked));
        }
    }
    Ok(chosen)
}

fn choose_one(
    root: &AptRoot,
    name: &str,
    base: &Base,
    watch: Watch<'_>,
) -> Result<LockedBase, BaseError> {
    let resolution = root.resolve(name, base, watch)?;
    Ok(LockedBase {
        suite: base.debian.clone(),
        arch: root.arch().to_owned(),
        minimal: base.minimal,
        packages: base.packages.clone(),
        epoch: date::format(kiln_store::EPOCH.unsigned_abs()),
        unpack: resolution.unpack,
        configure: resolution.configure,
        users: Vec::new(),
        groups: Vec::new(),
        diversions: Vec::new(),
    })
}

/// Learns numeric ids and diversions, two bases at a time.
fn learn_all(
    store: &Store,
    chosen: Vec<(String, LockedBase)>,
    runner: &dyn StepRunner,
    watch: Watch<'_>,
    host: AskHost<'_>,
) -> Result<Vec<(String, LockedBase)>, BaseError> {
    let left = Mutex::new(chosen.into_iter());
    let done = Mutex::new(Vec::new());
    let work = || -> Result<(), BaseError> {
        loop {
            let next = left.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((name, mut base)) = next else { return Ok(()) };
            learn(store, &name, &mut base, runner, watch)?;
            // The reference is named by the digest of the lock's content, which has changed.
            store.remove_ref(REF_KIND, &unlearnt(&base).digest().hex())?;
            fetch(store, &name, &base, None, host, watch)?;
            done.lock().unwrap_or_else(PoisonError::into_inner).push((name, base));
        }
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(work);
        let own = work();
        let other = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        own.and(other)
    })?;
    Ok(done.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn learn(
    store: &Store,
    name: &str,
    base: &mut LockedBase,
    runner: &dyn StepRunner,
    watch: Watch<'_>,
) -> Result<(), BaseError> {
    if base.minimal {
        return Ok(());
    }
    let packages = unpack(store, name, base, watch)?;
    if let Some(accounts) = Accounts::foretell(store, &packages)? {
        (base.users, base.groups) = (accounts.users, accounts.groups);
        return Ok(());
    }
    let configured = configure(store, name, base, runner, watch)?;
    let accounts = Accounts::learn(store, &configured.tree)?;
    (base.users, base.groups) = (accounts.users, accounts.groups);
    base.diversions = configured.diversions;
    Ok(())
}

fn unlearnt(base: &LockedBase) -> LockedBase {
    LockedBase { users: Vec::new(), groups: Vec::new(), diversions: Vec::new(), ..base.clone() }
}
