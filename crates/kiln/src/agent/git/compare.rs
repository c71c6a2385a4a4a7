//! What of a working tree is not as in its commit.
//!
//! Two questions, asked of Git and of the files themselves. Git's own: is anything changed or
//! untracked? And Kiln's: would a bake of this working tree read anything that a bake of the commit
//! would not, or other bytes? Files that Git ignores but a context holds, line ends that a checkout
//! has changed, and files that a sparse checkout has left out are clean for Git and yet give
//! another image.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use kiln_core::tree::{Kind, Tree};

use super::commit::{Commit, Entry, What};
use super::{Cage, run, run_with};
use crate::report::Report;

/// A path of a working tree that is not as in the commit, relative to the top folder, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Difference {
    /// The path; bytes that are no UTF-8 are replaced.
    pub path: String,
    /// `changed`, `deleted`, `untracked` …
    pub what: &'static str,
}

impl Difference {
    fn new(path: &[u8], what: &'static str) -> Self {
        Self { path: String::from_utf8_lossy(path).into_owned(), what }
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.path, self.what)
    }
}

/// What Git finds changed or untracked at or below `scope`, relative to the top folder.
///
/// # Errors
/// Git cannot look.
pub(crate) fn status(cage: &Cage<'_>, scope: &[PathBuf]) -> Result<Vec<Difference>, Report> {
    let mut git = cage.git(["status", "--porcelain=v1", "-z", "--no-renames"]);
    // Looking into a submodule would run a `git` in there, with its configuration.
    git.args(["--untracked-files=normal", "--ignore-submodules=dirty", "--"]);
    let whole = |path: &PathBuf| path.as_os_str().is_empty();
    git.args(scope.iter().map(|path| if whole(path) { Path::new(".") } else { path }));
    let listed = run(&mut git).map_err(super::Failure::report)?;
    let lines = listed.split(|byte| *byte == 0).filter(|line| line.len() > 3);
    Ok(lines.map(|line| Difference::new(&line[3..], word(&line[..2]))).collect())
}

/// The two letters of a line of `git status --porcelain` in a word.
fn word(letters: &[u8]) -> &'static str {
    match letters {
        b"??" => "untracked",
        letters if letters.contains(&b'U') => "unmerged",
        letters if letters.contains(&b'D') => "deleted",
        letters if letters.contains(&b'A') => "added",
        _ => "changed",
    }
}

/// What of `files`, the snapshot of the folder `at` (relative to the top folder), is not as in the
/// commit. Contents are compared as they lie on the disk; not at all if names and modes differ
/// already.
///
/// # Errors
/// Git cannot read the commit or the files.
pub(crate) fn contents(
    commit: &Commit<'_>,
    at: &Path,
    files: &Tree,
) -> Result<Vec<Difference>, Report> {
    let top = &commit.cage().repository.top;
    let mut found = Vec::new();
    let (mut plain, mut links) = (Vec::new(), Vec::new());
    for (path, node) in &files.entries {
        let path = at.join(OsStr::from_bytes(path));
        let key = path.as_os_str().as_bytes();
        let entry = commit.entries.get(key);
        match (&node.kind, entry) {
            (Kind::Dir, None) => {}
            (_, None) => found.push(Difference::new(key, "not in the commit")),
            (_, Some(Entry { what: What::Submodule, .. })) => {
                found.push(Difference::new(key, "a submodule"));
            }
            (Kind::Symlink { target }, Some(Entry { what: What::Link, object })) => {
                links.push((key.to_vec(), target, object));
            }
            (Kind::File { .. }, Some(Entry { what: What::File { executable }, object })) => {
                if *executable == (node.mode & 0o100 != 0) {
                    plain.push((key.to_vec(), object));
                } else {
                    found.push(Difference::new(key, "another mode"));
                }
            }
            (_, Some(_)) => found.push(Difference::new(key, "another type")),
        }
    }
    for (path, _) in commit.below(at.as_os_str().as_bytes()) {
        // One that is there and not in the snapshot is kept out by `.dockerignore`.
        if std::fs::symlink_metadata(top.join(OsStr::from_bytes(path))).is_err() {
            found.push(Difference::new(path, "not checked out"));
        }
    }
    if found.is_empty() {
        let targets = commit.contents(links.iter().map(|(_, _, object)| object.as_str()))?;
        let others = links.iter().zip(targets).filter(|((_, target, _), there)| *target != there);
        found.extend(others.map(|((path, _, _), _)| Difference::new(path, "changed")));
        let objects = hash(commit.cage(), plain.iter().map(|(path, _)| path.as_slice()))?;
        let others = plain.iter().zip(&objects).filter(|((_, object), now)| *object != *now);
        found.extend(others.map(|((path, _), _)| Difference::new(path, "other bytes on disk")));
    }
    found.sort();
    Ok(found)
}

/// Git's names of files as they lie on the disk, without filters. A name that cannot be handed to
/// Git, which takes one a line, gets an empty one.
fn hash<'p>(cage: &Cage<'_>, paths: impl Iterator<Item = &'p [u8]>) -> Result<Vec<String>, Report> {
    let mut input = Vec::new();
    let mut asked = Vec::new();
    for path in paths {
        let askable = !path.contains(&b'\n');
        asked.push(askable);
        if askable {
            // Absolute: a line that begins with a quotation mark would be read as a quoted one.
            input.extend(cage.repository.top.join(OsStr::from_bytes(path)).as_os_str().as_bytes());
            input.push(b'\n');
        }
    }
    if input.is_empty() {
        return Ok(vec![String::new(); asked.len()]);
    }
    let mut git = cage.git(["hash-object", "--no-filters", "--stdin-paths"]);
    let printed = run_with(&mut git, input).map_err(super::Failure::report)?;
    let printed = String::from_utf8_lossy(&printed).into_owned();
    let mut lines = printed.lines();
    let name = |askable: bool| if askable { lines.next().unwrap_or_default() } else { "" };
    Ok(asked.into_iter().map(name).map(str::to_owned).collect())
}
