//! `kiln release`: a commit → a release. Nothing is read from the working tree.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use kiln_bake::ignore::{Ignore, Matched};
use kiln_core::compose::{self, FileSource, MountSource, Project};
use kiln_core::release::Source;
use kiln_core::settings;
use kiln_core::{Digest, Release};
use kiln_store::RefName;

use super::Answer;
use crate::agent::git::commit::{Commit, Elsewhere, Entry, What};
use crate::agent::git::{Cage, Repository};
use crate::agent::session::Session;
use crate::agent::{Agent, lock as locked, needs, released};
use crate::agent::{bake, binds};
use crate::answers;
use crate::deliver::Published;
use crate::protocol::ProjectArgs;
use crate::report::{Because, Report};

/// What `kiln release` was asked for.
#[derive(Debug)]
pub(super) struct Wish<'a> {
    /// Where the project is.
    pub project: &'a ProjectArgs,
    /// The revision; without it `HEAD`, and only if the working tree is clean.
    pub commit: Option<&'a str>,
    /// Variables of the environment that may count.
    pub env: &'a [String],
}

/// `kiln release`.
pub(super) fn release(
    agent: &Arc<Agent>,
    session: &Session,
    wish: &Wish<'_>,
) -> Result<Answer, Report> {
    let began = Instant::now();
    let file = wish.project.file.first().map(|file| session.cwd.join(file));
    let dir = file.as_deref().and_then(Path::parent).unwrap_or(&session.cwd);
    let repository = Repository::find(dir).ok_or_else(|| {
        let what = format!("{} is in no Git repository: a release is a commit's", dir.display());
        Report::usage(what).hint("`kiln up` bakes what is in the folder")
    })?;
    let cage = bake::cage(agent, session, &repository)?;
    let commit = Commit::read(&cage, cage.commit(wish.commit.unwrap_or("HEAD"))?)?;
    let project = load(session, wish, &commit)?;
    if wish.commit.is_none() {
        refuse_dirty(&cage, &commit, &project)?;
    }
    let _lease = agent.lease()?;
    let (published, needs) = cut(agent, session, &commit, project)?;
    let fresh = released::keep(agent, &published, needs)?;
    let services = published.release.services.iter();
    Ok(Answer::of(&answers::Cut {
        project: published.release.project.clone(),
        release: published.digest,
        source: published.release.source.clone(),
        fresh,
        images: services.map(|(name, released)| (name.clone(), released.image)).collect(),
        ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
    }))
}

fn refuse_dirty(cage: &Cage<'_>, commit: &Commit<'_>, project: &Project) -> Result<(), Report> {
    let differences = bake::seen_by_git(cage, project)?;
    if differences.is_empty() {
        return Ok(());
    }
    const SHOWN: usize = 10;
    let mut log: Vec<String> = differences.iter().take(SHOWN).map(ToString::to_string).collect();
    if differences.len() > SHOWN {
        log.push(format!("and {} more", differences.len() - SHOWN));
    }
    let what = format!("the working tree is not what commit {} has", commit.short());
    Err(Report::refused(what)
        .log(log)
        .hint("commit the changes; or leave them out: kiln release --commit HEAD"))
}

/// Files as the commit has them, for the Compose reader. Each is read once.
struct Reader<'a> {
    commit: &'a Commit<'a>,
    read: RefCell<BTreeMap<PathBuf, Option<Vec<u8>>>>,
}

impl Reader<'_> {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let known = self.read.borrow().get(path).cloned();
        let content = match known {
            Some(content) => content,
            None => {
                let content = self.look(path).map_err(io::Error::other)?;
                self.read.borrow_mut().insert(path.to_owned(), content.clone());
                content
            }
        };
        let missing = || format!("commit {} does not have it", self.commit.short());
        content.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, missing()))
    }

    fn look(&self, path: &Path) -> Result<Option<Vec<u8>>, Report> {
        let Some(inside) = self.commit.cage().repository.relative(path) else { return Ok(None) };
        let Some(resolved) = self.commit.resolve(&inside)? else { return Ok(None) };
        use std::os::unix::ffi::OsStrExt;
        match self.commit.entries.get(resolved.as_os_str().as_bytes()) {
            Some(Entry { what: What::File { .. }, object }) => {
                Ok(self.commit.contents([object.as_str()])?.pop())
            }
            _ => Ok(None),
        }
    }

    /// Whether any file that was read has `name` as a word of its own.
    fn mentions(&self, name: &str) -> bool {
        let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let read = self.read.borrow();
        let mut texts = read.values().flatten().map(|text| String::from_utf8_lossy(text));
        texts.any(|text| text.split(|c| !part(c)).any(|word| word == name))
    }
}

/// Reads the project as the commit has it. The environment decides nothing but what it was allowed
/// to, and the contents of secrets.
fn load(session: &Session, wish: &Wish<'_>, commit: &Commit<'_>) -> Result<Project, Report> {
    let reader = Reader { commit, read: RefCell::default() };
    let args = wish.project;
    let load = |env: BTreeMap<String, String>| {
        let read = |path: &Path| reader.read(path);
        compose::load(&crate::compose::request(args, &session.cwd, env, &read))
    };
    let in_commit = format!("in commit {}: ", commit.short());
    let project =
        load(session.env.clone()).map_err(|errors| Report::compose(&in_commit, &errors))?;
    let plain = without_secrets(&project);
    let same = |env, failed| load(env).map_or(failed, |other| without_secrets(&other) == plain);
    let mut taken = Vec::new();
    for (name, value) in &session.env {
        let may_count = name.starts_with("COMPOSE_") || reader.mentions(name);
        if wish.env.contains(name) || !may_count {
            continue;
        }
        let mut other = session.env.clone();
        other.insert(name.clone(), format!("{value}~"));
        let mut unset = session.env.clone();
        unset.remove(name);
        if !same(other, false) || !same(unset, true) {
            taken.push(format!("`{name}`"));
        }
    }
    if !taken.is_empty() {
        let what = format!("the release would depend on the environment: {}", taken.join(", "));
        return Err(Report::usage(what)
            .hint("write it into `.env` and commit that; or take it knowingly with --env NAME"));
    }
    for warning in &project.warnings {
        session.notice(warning.clone());
    }
    Ok(project)
}

fn without_secrets(project: &Project) -> Project {
    let mut project = project.clone();
    project.in_stages.values_mut().for_each(|there| *there = without_secrets(there));
    for service in project.services.values_mut() {
        for file in service.files.iter_mut().filter(|file| file.secret) {
            if let FileSource::Content(text) = &mut file.source {
                text.clear();
            }
        }
    }
    project
}

/// One at a time: all use one folder.
static CUTTING: Mutex<()> = Mutex::new(());

/// The commit's files → images → release.
fn cut(
    agent: &Agent,
    session: &Session,
    commit: &Commit<'_>,
    project: Project,
) -> Result<(Published, BTreeSet<RefName>), Report> {
    let _alone = CUTTING.try_lock().unwrap_or_else(|_| {
        session.notice("another release is being cut: waiting");
        locked(&CUTTING)
    });
    // Always the same path for a project, so that what is known of its files is replaced.
    let key = Digest::of(project.dir.as_os_str().as_encoded_bytes());
    let folder = Folder::new(agent.root.join("cache/commit").join(&key.hex()[..16]))?;
    let result = bake_in(agent, session, commit, project, &folder.0);
    let top = &commit.cage().repository.top;
    result.map_err(|report| in_words_of(report, &folder.0, top))
}

/// A folder that goes when this does. What a crash left of it goes first.
struct Folder(PathBuf);

impl Folder {
    fn new(path: PathBuf) -> Result<Self, Report> {
        let doing = || format!("making the folder {}", path.display());
        let folder = Self(path.clone());
        folder.remove();
        use std::os::unix::fs::DirBuilderExt;
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.because(doing)?;
        Ok(folder)
    }

    fn remove(&self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Paths of the folder as paths of the working tree, which is where a person would look.
fn in_words_of(mut report: Report, folder: &Path, top: &Path) -> Report {
    let (from, to) = (folder.display().to_string(), top.display().to_string());
    let texts = report.causes.iter_mut().chain(&mut report.log).chain(&mut report.hint);
    for text in texts.chain([&mut report.message]) {
        *text = text.replace(&from, &to);
    }
    report
}

fn bake_in(
    agent: &Agent,
    session: &Session,
    commit: &Commit<'_>,
    mut project: Project,
    folder: &Path,
) -> Result<(Published, BTreeSet<RefName>), Report> {
    let node = session.begin("read", &project.name, &format!("commit {}", commit.short()));
    let taken = take_out(session, commit, &mut project, folder);
    node.end(&taken, &format!("commit {}", commit.short()));
    taken?;
    if !project.kiln.bases.is_empty() && !project.dir.join(bake::LOCK_FILE).is_file() {
        let what = format!("commit {} has no {}", commit.short(), bake::LOCK_FILE);
        return Err(Report::usage(what).hint("kiln lock, then commit the file"));
    }
    let lock = bake::lock(agent, session, &project)?;
    let images = bake::images_of_commit(agent, session, &project, &lock)?;
    let source = Source { commit: Some(commit.name.clone()), dirty: false };
    let release = Release { source, ..bake::release(agent, &project, &images)? };
    let digest = release.digest();
    let release = Arc::new(release);
    let published = Published { digest, release, fresh: true, differences: Vec::new() };
    Ok((published, needs::there(agent, lock.references())?))
}

/// Writes what the project is baked from, and what it mounts read-only, into `folder`, and turns its
/// paths there.
fn take_out(
    session: &Session,
    commit: &Commit<'_>,
    project: &mut Project,
    folder: &Path,
) -> Result<(), Report> {
    let mut paths = BTreeSet::new();
    let place = |path: &Path| -> Result<Option<PathBuf>, Report> {
        let Some(inside) = commit.cage().repository.relative(path) else { return Ok(None) };
        Ok(commit.resolve(&inside)?.filter(|resolved| commit.has(resolved)))
    };
    let is_file = |path: &Path| -> Result<bool, Report> {
        use std::os::unix::ffi::OsStrExt;
        let Some(inside) = place(path)? else { return Ok(false) };
        let entry = commit.entries.get(inside.as_os_str().as_bytes());
        Ok(matches!(entry, Some(Entry { what: What::File { .. }, .. })))
    };
    let absent = |what: &str, path: &Path| {
        let short = commit.short();
        Report::usage(format!("{what} {} is not in commit {short}", path.display()))
            .hint("add it and commit")
    };
    let mut in_stages = std::mem::take(&mut project.in_stages);
    let all = with_stages(project, &mut in_stages);
    for service in all.flat_map(|project| project.services.values_mut()) {
        if let Some(build) = &mut service.build {
            let mut turn = |what: &str, path: &mut PathBuf| -> Result<(), Report> {
                let inside = place(path)?.ok_or_else(|| absent(what, path))?;
                *path = folder.join(&inside);
                paths.insert(inside);
                Ok(())
            };
            // What is fetched is pinned by the lock, and has its Dockerfile; so has an archive.
            let before = build.context.clone();
            let fetched = !before.is_absolute();
            let within = build.dockerfile.strip_prefix(&before).map(Path::to_owned);
            let archive = !fetched && is_file(&before)?;
            if !fetched {
                turn("the build context", &mut build.context)?;
            }
            if let (true, Ok(within)) = (archive, within) {
                build.dockerfile = build.context.join(within);
            } else if build.inline.is_none() && !fetched {
                let mut own = build.dockerfile.as_os_str().to_owned();
                own.push(".dockerignore");
                turn("the Dockerfile", &mut build.dockerfile)?;
                // Beside the Dockerfile, which may be outside of the context.
                let _ = turn("", &mut PathBuf::from(own));
            }
            for source in build.additional_contexts.values_mut().filter(|s| s.starts_with('/')) {
                let mut path = PathBuf::from(&*source);
                turn("the build context", &mut path)?;
                *source = path.display().to_string();
            }
        }
        for file in &mut service.files {
            let FileSource::File(path) = &mut file.source else { continue };
            match place(path)? {
                Some(inside) => {
                    *path = folder.join(&inside);
                    paths.insert(inside);
                }
                // A secret is no source: it does not belong into a commit.
                None if file.secret => {
                    session.notice(format!("the secret {} is not the commit's", path.display()));
                }
                None => return Err(absent("the config", path)),
            }
        }
    }
    let dir = commit.cage().repository.relative(&project.dir).unwrap_or_default();
    let dir = commit.resolve(&dir)?.unwrap_or(dir);
    paths.insert(dir.join(bake::LOCK_FILE));
    let all = with_stages(project, &mut in_stages);
    for service in all.flat_map(|project| project.services.values()) {
        for mount in service.volumes.iter().filter(|mount| mount.read_only) {
            if let MountSource::Bind(path) = &mount.source {
                paths.extend(place(path)?);
            }
        }
    }
    let top = folder.join(dir);
    with_stages(project, &mut in_stages).for_each(|project| turn_binds(project, &top));
    project.in_stages = in_stages;
    for elsewhere in commit.write(&paths, folder)? {
        refuse_elsewhere(commit, project, folder, &elsewhere)?;
    }
    Ok(())
}

/// The project, and what it is in its stages.
fn with_stages<'a>(
    project: &'a mut Project,
    in_stages: &'a mut BTreeMap<String, Project>,
) -> impl Iterator<Item = &'a mut Project> {
    in_stages.values_mut().chain([project])
}

/// Makes `dir` the project's folder. What is bound from there, or from beside it, is named as before.
fn turn_binds(project: &mut Project, dir: &Path) {
    for service in project.services.values_mut() {
        for mount in &mut service.volumes {
            let MountSource::Bind(path) = &mut mount.source else { continue };
            let relative = service.relative.contains(&mount.target);
            let named = settings::named_from(&project.dir, path, relative);
            if named.is_relative() {
                *path = binds::clean(&dir.join(named));
            }
        }
    }
    project.dir = dir.to_owned();
}

/// What the commit only names cannot be baked, unless every context leaves it out.
fn refuse_elsewhere(
    commit: &Commit<'_>,
    project: &Project,
    folder: &Path,
    elsewhere: &Elsewhere,
) -> Result<(), Report> {
    let (Elsewhere::Submodule(path) | Elsewhere::Lfs(path)) = elsewhere;
    let contexts = bake::contexts(project);
    let inside = contexts.iter().filter_map(|(context, dockerfile)| {
        Some((context, dockerfile, folder.join(path).strip_prefix(context).ok()?.to_owned()))
    });
    let (mut contained, mut read) = (false, false);
    for (context, dockerfile, path) in inside {
        let doing = || format!("reading the ignore file of {}", context.display());
        let ignore = Ignore::load(context, dockerfile.as_deref()).because(doing)?;
        contained = true;
        read |= !is_left_out(&ignore, &path);
    }
    if contained && !read {
        return Ok(());
    }
    let (path, short) = (path.display(), commit.short());
    Err(match elsewhere {
        Elsewhere::Submodule(_) => Report::refused(format!(
            "`{path}` is a submodule: commit {short} has only its name, not its files"
        ))
        .hint("copy its files into the repository (`git subtree`), or list it in .dockerignore"),
        Elsewhere::Lfs(_) => Report::refused(format!(
            "`{path}` is a pointer of Git LFS: commit {short} does not have its content"
        ))
        .hint("take it out of LFS, or list it in .dockerignore"),
    })
}

fn is_left_out(ignore: &Ignore, path: &Path) -> bool {
    let mut prefix = PathBuf::new();
    let (mut left_out, mut parent) = (false, Matched::default());
    for component in path.components() {
        prefix.push(component);
        (left_out, parent) = ignore.matches(&prefix.to_string_lossy(), &parent);
    }
    left_out
}
