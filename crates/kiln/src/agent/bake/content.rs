//! What a project mounts read-only from its own folder is content: a release pins it as a tree. (In
//! `dev` it is live from the folder all the same.)
//!
//! Not pinned, and so the root's own, is what another service of the project writes, what leads out
//! of the project by a link, and what is more than a configuration would be.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use kiln_bake::context::Snapshot;
use kiln_bake::ignore::Ignore;
use kiln_core::Digest;
use kiln_core::compose::{Content, Mount, MountSource, Project};
use kiln_core::release::Settings;
use kiln_core::tree::{Kind, Node, Tree};

use crate::agent::Agent;
use crate::report::{Because, Report};

/// More files and bytes than these are data, whoever reads them.
const FILES: usize = 20_000;
const BYTES: u64 = 256 << 20;

/// Git's own folder.
const GIT: &str = ".git";

/// Pins the content of what `settings` mount.
pub(super) fn pin(agent: &Agent, project: &Project, settings: &mut Settings) -> Result<(), Report> {
    for mount in &mut settings.mounts {
        if let MountSource::Bind(path) = &mount.source
            && mount.read_only
            && let Some(path) = content(project, &project.dir.join(path))
        {
            let doing = || format!("pinning {}", path.display());
            mount.content = match path.is_dir() {
                true => folder(agent, &path)?,
                false => file(agent, &path).because(doing)?,
            };
        }
    }
    Ok(())
}

/// Paths of the project's folder that a release pins, as far as that can be told by their names.
pub(super) fn paths(project: &Project) -> impl Iterator<Item = PathBuf> {
    let mounts = project.services.values().flat_map(|service| &service.volumes);
    mounts.filter(|mount| mount.read_only).filter_map(|mount| match &mount.source {
        MountSource::Bind(path) => content(project, path),
        _ => None,
    })
}

/// `path` with its links resolved, if it is the project's content.
fn content(project: &Project, path: &Path) -> Option<PathBuf> {
    let dir = project.dir.canonicalize().ok()?;
    let path = path.canonicalize().ok().filter(|path| path.starts_with(&dir))?;
    let mounts = || project.services.values().flat_map(|service| &service.volumes);
    let written = |mount: &Mount| {
        let MountSource::Bind(other) = &mount.source else { return false };
        let other = other.canonicalize().unwrap_or_else(|_| other.clone());
        !mount.read_only && (other.starts_with(&path) || path.starts_with(&other))
    };
    (!mounts().any(written)).then_some(path)
}

fn folder(agent: &Agent, path: &Path) -> Result<Option<Content>, Report> {
    let doing = || format!("pinning {}", path.display());
    if is_too_much(path) {
        return Ok(None);
    }
    // It tells how a checkout was made, and is in no commit.
    let ignore = Ignore::of(&[format!("**/{GIT}")]).map_err(Report::failed)?;
    let snapshot = Snapshot::take(&agent.store, path, &ignore).because(doing)?;
    let files: Vec<(Vec<u8>, Digest)> = snapshot
        .tree
        .entries
        .iter()
        .filter_map(|(path, node)| match node.kind {
            Kind::File { digest, .. } => Some((path.clone(), digest)),
            _ => None,
        })
        .collect();
    Snapshot::put(&agent.store, path, &files).because(doing)?;
    let tree = agent.store.put_tree(&snapshot.tree).because(doing)?;
    Ok(Some(Content { tree, file: false }))
}

/// Whether a folder holds more than content would; what cannot be looked at does.
fn is_too_much(path: &Path) -> bool {
    let (mut files, mut bytes) = (0, 0_u64);
    let mut todo = vec![path.to_owned()];
    while let Some(dir) = todo.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { return true };
        for entry in entries {
            let Some((entry, kind)) =
                entry.ok().and_then(|it| it.file_type().ok().map(|k| (it, k)))
            else {
                return true;
            };
            if entry.file_name() == GIT {
                continue;
            }
            files += 1;
            if kind.is_dir() {
                todo.push(entry.path());
            } else {
                bytes = bytes.saturating_add(entry.metadata().map_or(0, |meta| meta.len()));
            }
            if files > FILES || bytes > BYTES {
                return true;
            }
        }
    }
    false
}

/// One file, which nobody waits for: a pipe or socket is no content.
fn file(agent: &Agent, path: &Path) -> Result<Option<Content>, std::io::Error> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Ok(None);
    }
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() || meta.len() > BYTES {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(BYTES).read_to_end(&mut bytes)?;
    let size = bytes.len() as u64;
    let digest = agent.store.put(&bytes).map_err(std::io::Error::other)?;
    let mode = if meta.permissions().mode() & 0o100 != 0 { 0o755 } else { 0o644 };
    let mut tree = Tree::new();
    tree.insert(Content::FILE.as_bytes(), Node::new(Kind::File { size, digest }, mode));
    let tree = agent.store.put_tree(&tree).map_err(std::io::Error::other)?;
    Ok(Some(Content { tree, file: true }))
}
