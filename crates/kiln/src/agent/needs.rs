//! What projects take from outside, and so need from the store: it stays as long as their locks
//! name it.
//!
//! Each project that was locked or baked here has a reference of its own, by its folder. It says
//! what the project needed last; what its `kiln.lock` names at the moment of a collection counts
//! beside it. A project whose lock is gone may be on a disk that is away, so it is waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use kiln_bake::base::Lock;
use kiln_core::Digest;
use kiln_core::compose::Project;
use kiln_store::refs::PROJECTS;
use kiln_store::regular::{self, Links};
use kiln_store::{RefName, Reference, References, Roots};

use super::Agent;
use super::bake::LOCK_FILE;
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
    for ((kind, name), reference) in agent.store.references()? {
        let Some(folder) = reference.folder.filter(|_| kind == PROJECTS) else { continue };
        match read_lock(folder.join(LOCK_FILE)) {
            Ok(Some(lock)) => roots.needs.extend(lock.references()),
            Ok(None) => {
                roots.gone.insert(name);
            }
            Err(why) => {
                roots.unknown = true;
                unread.push(format!("{}: {why}", folder.join(LOCK_FILE).display()));
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
    for folder in references.filter_map(|reference| reference.folder.as_ref()) {
        let Ok(Some(lock)) = read_lock(folder.join(LOCK_FILE)) else { continue };
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
    let folders = readable.values().filter_map(|reference| reference.folder.clone());
    let locks: Vec<(PathBuf, Lock)> = folders
        .filter_map(|folder| {
            let path = folder.join(LOCK_FILE);
            Some((path.clone(), read_lock(path).ok()??))
        })
        .collect();
    let mut written = Vec::new();
    for name in wanted {
        let kept =
            locks.iter().find_map(|(path, lock)| Some((path, lock.kept(&agent.store, &name)?)));
        if let Some((path, digests)) = kept {
            agent.store.set_ref(&name.0, &name.1, &digests).because(doing)?;
            written.push((name, path.clone()));
        }
    }
    Ok(written)
}

/// The lock at `path`, which is a user's: it may be anything, and its file system may be dead.
fn read_lock(path: PathBuf) -> Result<Option<Lock>, String> {
    let (read, answer) = mpsc::channel();
    // Who waits for a dead file system cannot be ended; nobody waits for them.
    std::thread::spawn(move || read.send(regular::read(&path, Links::Refuse, Lock::LARGEST)));
    match answer.recv_timeout(PATIENCE) {
        Ok(Ok(text)) => {
            let lock = String::from_utf8(text).ok().and_then(|text| Lock::parse(&text).ok());
            lock.map(Some).ok_or_else(|| "it is no lock".to_owned())
        }
        Ok(Err(error)) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(None),
            _ => Err(error.to_string()),
        },
        Err(_) => Err(format!("its file system does not answer within {PATIENCE:?}")),
    }
}
