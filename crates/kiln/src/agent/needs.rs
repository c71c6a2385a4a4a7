//! What projects take from outside, and so need from the store: it stays as long as their locks
//! name it.
//!
//! Each project that was locked or baked here has a reference of its own, by its folder. It says
//! what the project needed last; what its `kiln.lock` names at the moment of a collection counts
//! beside it. A project whose lock is gone may be on a disk that is away, so it is waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use kiln_bake::base::Lock;
use kiln_core::Digest;
use kiln_core::compose::Project;
use kiln_store::refs::PROJECTS;
use kiln_store::regular::{self, Links};
use kiln_store::{RefName, Reference, References, Roots};

use super::bake::LOCK_FILE;
use super::{Agent, lock};
use crate::report::{Because, Report};

/// How long the file system of a project is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Notes what the project needs: what its lock names, and what a bake took beside that because a
/// Dockerfile pins it. A bake of some services only adds to what was noted.
pub(crate) fn note(
    agent: &Agent,
    project: &Project,
    lock: &Lock,
    taken: BTreeSet<String>,
    all: bool,
) -> Result<(), Report> {
    let doing = || format!("keeping what {} needs", project.name);
    let folder = project.dir.canonicalize().unwrap_or_else(|_| project.dir.clone());
    let name = name_of(&folder);
    let mut needs = lock.references();
    let remote = |name| (kiln_bake::remote::REF_KIND.to_owned(), name);
    needs.extend(taken.into_iter().map(remote));
    // One that is damaged is written anew.
    let before = agent.store.reference(PROJECTS, &name).ok().flatten();
    if let Some(before) = before.filter(|_| !all) {
        let kind = kiln_bake::remote::REF_KIND;
        needs.extend(before.needs.into_iter().filter(|(of, _)| of == kind));
    }
    let needs = there(agent, needs)?;
    if needs.is_empty() && !agent.store.has_ref(PROJECTS, &name).because(doing)? {
        return Ok(());
    }
    let reference = Reference { needs, folder: Some(folder), ..Reference::default() };
    agent.store.set_reference(PROJECTS, &name, reference).because(doing)
}

/// Those that are there: what was never taken need not be kept.
pub(crate) fn there(
    agent: &Agent,
    mut needs: BTreeSet<RefName>,
) -> Result<BTreeSet<RefName>, Report> {
    let mut failed = Ok(());
    needs.retain(|(kind, name)| match agent.store.has_ref(kind, name) {
        Ok(there) => there,
        Err(error) => {
            failed = Err(error);
            true
        }
    });
    failed.because(|| "looking at references".into())?;
    Ok(needs)
}

/// By its folder: two folders may hold projects of one name.
fn name_of(folder: &Path) -> String {
    Digest::of(folder.as_os_str().as_encoded_bytes()).hex()[..16].to_owned()
}

/// What the projects of this root need now, and in words what could not be found out.
///
/// # Errors
/// Those of [`kiln_store::Store::references`].
pub(crate) fn of_projects(agent: &Agent) -> kiln_store::Result<(Roots, Vec<String>)> {
    let (mut roots, mut unread) = (Roots::default(), Vec::new());
    let projects = agent.store.references()?.into_iter().filter(|((kind, _), _)| kind == PROJECTS);
    let (names, paths): (Vec<String>, Vec<PathBuf>) = projects
        .filter_map(|((_, name), reference)| Some((name, reference.folder?.join(LOCK_FILE))))
        .unzip();
    for ((name, path), lock) in names.into_iter().zip(&paths).zip(read_locks(&paths)) {
        match lock {
            Ok(Some(lock)) => roots.needs.extend(lock.references()),
            Ok(None) => {
                roots.gone.insert(name);
            }
            Err(why) => {
                roots.unknown = true;
                unread.push(format!("{}: {why}", path.display()));
            }
        }
    }
    Ok((roots, unread))
}

/// What the projects' locks call the images of registries, by the digits of their manifests, as far
/// as the locks can be read.
pub(crate) fn names_of_images<'a>(
    references: impl Iterator<Item = &'a Reference>,
) -> BTreeMap<String, BTreeSet<String>> {
    let mut names: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let folders = references.filter_map(|reference| reference.folder.as_ref());
    let paths: Vec<PathBuf> = folders.map(|folder| folder.join(LOCK_FILE)).collect();
    for lock in read_locks(&paths) {
        let Ok(Some(lock)) = lock else { continue };
        for image in lock.images.into_values() {
            for platform in &image.platforms {
                let of = names.entry(platform.manifest.hex()).or_default();
                of.insert(image.reference.clone());
            }
        }
    }
    names
}

/// Writes references again that cannot be believed, as far as the locks of projects say what they
/// kept. Gives the name of each, and the lock.
pub(crate) fn write_again(agent: &Agent) -> Result<Vec<(RefName, PathBuf)>, Report> {
    let doing = || "looking at references".to_owned();
    let mut wanted = BTreeSet::new();
    let mut readable = References::new();
    for (name, reference) in agent.store.look_at_references().because(doing)? {
        match reference {
            Ok(reference) => {
                readable.insert(name, reference);
            }
            Err(_) => {
                wanted.insert(name);
            }
        }
    }
    wanted.extend(agent.store.missing_references(readable.iter()).because(doing)?.into_keys());
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let folders = readable.values().filter_map(|reference| reference.folder.as_ref());
    let paths: Vec<PathBuf> = folders.map(|folder| folder.join(LOCK_FILE)).collect();
    let locks: Vec<(&PathBuf, Lock)> = paths
        .iter()
        .zip(read_locks(&paths))
        .filter_map(|(path, lock)| Some((path, lock.ok()??)))
        .collect();
    let mut written = Vec::new();
    for name in wanted {
        let kept =
            locks.iter().find_map(|(path, lock)| Some((path, lock.kept(&agent.store, &name)?)));
        if let Some((path, digests)) = kept {
            agent.store.set_ref(&name.0, &name.1, &digests).because(doing)?;
            written.push((name, (*path).clone()));
        }
    }
    Ok(written)
}

/// Locks that somebody still waits for, since when.
static WAITED_FOR: Mutex<BTreeMap<PathBuf, Instant>> = Mutex::new(BTreeMap::new());

/// The locks at `paths`, in their order. They are users': they may be anything, and their file systems
/// may be dead. So all are asked at once, and one that owes an answer is not asked again before that
/// has come.
fn read_locks(paths: &[PathBuf]) -> Vec<Result<Option<Lock>, String>> {
    answers(paths, PATIENCE, |path| regular::read(path, Links::Refuse, Lock::LARGEST))
        .into_iter()
        .map(|answer| match answer? {
            Ok(text) => {
                let lock = String::from_utf8(text).ok().and_then(|text| Lock::parse(&text).ok());
                lock.map(Some).ok_or_else(|| "it is no lock".to_owned())
            }
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(None),
                _ => Err(error.to_string()),
            },
        })
        .collect()
}

/// What `read` says of each path within `patience` for all together; why it says nothing, if not.
fn answers<T: Send + 'static>(
    paths: &[PathBuf],
    patience: Duration,
    read: impl Fn(&Path) -> T + Copy + Send + 'static,
) -> Vec<Result<T, String>> {
    let late = |since: Instant| {
        let seconds = since.elapsed().as_secs();
        Err(format!("its file system does not answer; it was asked {seconds} s ago"))
    };
    let (told, heard) = mpsc::channel();
    let mut all: Vec<Option<Result<T, String>>> = Vec::new();
    for (at, path) in paths.iter().enumerate() {
        let (told, owed) = (told.clone(), path.clone());
        let since = *lock(&WAITED_FOR).entry(path.clone()).or_insert_with(Instant::now);
        if since.elapsed() > patience {
            all.push(Some(late(since)));
            continue;
        }
        // Who waits for a dead file system cannot be ended; nobody waits for them.
        let asked = std::thread::Builder::new().spawn(move || {
            let answer = read(&owed);
            lock(&WAITED_FOR).remove(&owed);
            let _ = told.send((at, answer));
        });
        all.push(asked.err().map(|error| {
            lock(&WAITED_FOR).remove(path);
            Err(format!("no thread is to be had to read it: {error}"))
        }));
    }
    drop(told);
    let deadline = Instant::now() + patience;
    while let Ok((at, answer)) =
        heard.recv_timeout(deadline.saturating_duration_since(Instant::now()))
    {
        if let Some(one) = all.get_mut(at) {
            *one = Some(Ok(answer));
        }
    }
    all.into_iter()
        .map(|one| {
            one.unwrap_or_else(|| {
                let seconds = patience.as_secs_f32();
                Err(format!("its file system does not answer within {seconds} s"))
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_file_systems_cost_their_time_once() {
        let paths: Vec<PathBuf> = (0..40).map(|n| format!("/of/needs/{n}").into()).collect();
        static HELD: Mutex<()> = Mutex::new(());
        let held = lock(&HELD);
        let patience = Duration::from_millis(300);
        let read = |path: &Path| {
            if path.ends_with("7") {
                return 7;
            }
            drop(lock(&HELD));
            0
        };
        let began = Instant::now();
        let first = answers(&paths, patience, read);
        assert!(began.elapsed() < patience * 20, "all at once: {:?}", began.elapsed());
        assert_eq!(first[7], Ok(7));
        assert!(first[8].as_ref().unwrap_err().contains("does not answer within"), "{first:?}");
        let began = Instant::now();
        let again = answers(&paths[7..], patience, read);
        assert!(began.elapsed() < patience, "who owes an answer is not asked again");
        assert_eq!(again[0], Ok(7));
        assert!(again[1].as_ref().unwrap_err().contains("asked"), "{again:?}");
        drop(held);
        let deadline = Instant::now() + Duration::from_secs(30);
        while lock(&WAITED_FOR).keys().any(|path| path.starts_with("/of/needs")) {
            assert!(Instant::now() < deadline, "one that answers may be asked again");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
