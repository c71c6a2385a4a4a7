//! Where the source is in Git, and whether it is what the commit says.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use kiln_bake::context::Snapshot;
use kiln_bake::ignore::Ignore;
use kiln_core::Tree;
use kiln_core::compose::{FileSource, Project};
use kiln_core::release::Source;
use kiln_core::tree::{Kind, Node};

use crate::agent::Agent;
use crate::agent::git::commit::Commit;
use crate::agent::git::compare::{self, Difference};
use crate::agent::git::{Cage, Repository};
use crate::agent::session::Session;
use crate::report::{Because, Report};

/// A working tree beside its commit.
#[derive(Debug, Clone, Default)]
pub(crate) struct Checkout {
    /// What a release records.
    pub source: Source,
    /// Why it is dirty, if it is: all that Git sees, or else the first context's differences.
    pub differences: Vec<Difference>,
}

/// Commit and state of the working tree, if it is in Git. What cannot be found out is said, and
/// the source is then of no known commit.
pub(crate) fn source(agent: &Agent, session: &Session, project: &Project) -> Checkout {
    let Some(repository) = Repository::find(&project.dir) else { return Checkout::default() };
    checkout(agent, session, project, &repository).unwrap_or_else(|report| {
        session.notice(format!("the commit is not known: {}", report.message));
        Checkout::default()
    })
}

/// The commit that the project's folder is a checkout of, whatever was changed since.
pub(crate) fn head(agent: &Agent, session: &Session, project: &Project) -> Option<String> {
    let repository = Repository::find(&project.dir)?;
    repository.head().or_else(|| cage(agent, session, &repository).ok()?.commit("HEAD").ok())
}

fn checkout(
    agent: &Agent,
    session: &Session,
    project: &Project,
    repository: &Repository,
) -> Result<Checkout, Report> {
    let cage = cage(agent, session, repository)?;
    let Ok(name) = cage.commit("HEAD") else { return Ok(Checkout::default()) };
    let mut differences = seen_by_git(&cage, project)?;
    if differences.is_empty() {
        let commit = Commit::read(&cage, name.clone())?;
        differences = seen_by_kiln(agent, &commit, project)?;
    }
    let source = Source { commit: Some(name), dirty: !differences.is_empty() };
    Ok(Checkout { source, differences })
}

/// A cage over `repository` for the client's user.
pub(crate) fn cage<'a>(
    agent: &Agent,
    session: &Session,
    repository: &'a Repository,
) -> Result<Cage<'a>, Report> {
    let dir = agent.store.scratch_dir().because(|| "making a scratch folder".into())?;
    Cage::new(repository, dir, session.env.get("HOME").map(Path::new))
}

/// What Git finds changed or untracked in the project's folder and in whatever else it is baked
/// from.
///
/// # Errors
/// Git cannot look.
pub(crate) fn seen_by_git(cage: &Cage<'_>, project: &Project) -> Result<Vec<Difference>, Report> {
    let mut scope = BTreeSet::from([project.dir.clone()]);
    scope.extend(inputs(project));
    let inside: Vec<PathBuf> =
        scope.iter().filter_map(|path| cage.repository.relative(path)).collect();
    compare::status(cage, &inside)
}

/// What a bake of the working tree would read otherwise than one of the commit.
fn seen_by_kiln(
    agent: &Agent,
    commit: &Commit<'_>,
    project: &Project,
) -> Result<Vec<Difference>, Report> {
    for (root, dockerfile) in contexts(project) {
        let Some(at) = commit.cage().repository.relative(&root) else {
            let path = root.display().to_string();
            return Ok(vec![Difference { path, what: "outside of the repository" }]);
        };
        let doing = || format!("comparing {} with its commit", root.display());
        let ignore = Ignore::load(&root, dockerfile.as_deref()).because(doing)?;
        let mut files = Snapshot::take(&agent.store, &root, &ignore).because(doing)?.tree;
        // Git's own folder is in no commit and in every checkout.
        files.entries.retain(|path, _| !path.split(|byte| *byte == b'/').any(|c| c == b".git"));
        let found = compare::contents(commit, &at, &files)?;
        if !found.is_empty() {
            return Ok(found);
        }
    }
    archives(project).iter().try_fold(Vec::new(), |mut found, archive| {
        found.extend(of_archive(agent, commit, archive)?);
        Ok(found)
    })
}

/// What of an archive is not as in the commit.
fn of_archive(
    agent: &Agent,
    commit: &Commit<'_>,
    archive: &Path,
) -> Result<Vec<Difference>, Report> {
    let path = archive.display().to_string();
    let Some(at) = commit.cage().repository.relative(archive) else {
        return Ok(vec![Difference { path, what: "outside of the repository" }]);
    };
    let doing = || format!("comparing {path} with its commit");
    let (digest, size) = agent.store.put_file(archive).because(doing)?;
    let mode = std::fs::metadata(archive).because(doing)?.permissions().mode() & 0o777;
    let node = Node::new(Kind::File { size, digest }, mode as u16);
    let name = at.file_name().unwrap_or_default().as_bytes().to_vec();
    let files = Tree { entries: [(name, node)].into() };
    compare::contents(commit, at.parent().unwrap_or(Path::new("")), &files)
}

/// Archives that are baked from.
fn archives(project: &Project) -> BTreeSet<PathBuf> {
    let builds = project.services.values().filter_map(|service| service.build.as_ref());
    let all = builds.flat_map(|build| {
        let named = build.additional_contexts.values().map(PathBuf::from);
        named.chain([build.context.clone()])
    });
    all.filter(|context| context.is_absolute() && context.is_file()).collect()
}

/// Folders that are baked from, each with the Dockerfile whose ignore file counts there.
pub(crate) fn contexts(project: &Project) -> BTreeSet<(PathBuf, Option<PathBuf>)> {
    let mut all = BTreeSet::new();
    for build in project.services.values().filter_map(|service| service.build.as_ref()) {
        let own = build.inline.is_none().then(|| build.dockerfile.clone());
        all.insert((build.context.clone(), own));
        let named = build.additional_contexts.values();
        all.extend(named.map(|source| (PathBuf::from(source), None)));
    }
    // What is fetched is pinned; an archive is one file.
    all.retain(|(context, _)| context.is_absolute() && !context.is_file());
    let mounted = project.in_stages.values().chain([project]).flat_map(super::content::paths);
    all.extend(mounted.filter(|it| it.is_dir()).map(|path| (path, None)));
    all
}

/// Every path that is read when the project is baked and its settings are pinned, absolute.
fn inputs(project: &Project) -> BTreeSet<PathBuf> {
    let mut all: BTreeSet<PathBuf> = project.in_stages.values().flat_map(inputs).collect();
    all.extend(project.kiln.stages.values().flat_map(|stage| stage.files.iter().cloned()));
    all.extend(super::content::paths(project));
    for service in project.services.values() {
        if let Some(build) = &service.build {
            let named = build.additional_contexts.values().map(PathBuf::from);
            let contexts = named.chain([build.context.clone()]);
            all.extend(contexts.filter(|context| context.is_absolute()));
            let within = build.context.is_file() || !build.context.is_absolute();
            if build.inline.is_none() && !within {
                all.insert(build.dockerfile.clone());
            }
        }
        for file in &service.files {
            if let FileSource::File(path) = &file.source {
                all.insert(path.clone());
            }
        }
    }
    all
}
