//! Where the source is in Git.

use std::path::Path;
use std::process::{Command, Stdio};

use kiln_core::compose::Project;
use kiln_core::release::Source;

/// Commit and state of the working tree, if it is in Git and Git is there to ask.
pub(crate) fn source(project: &Project) -> Source {
    if !in_git(&project.dir) {
        return Source::default();
    }
    let status = || -> Option<String> {
        let output = Command::new("git")
            .arg("-C")
            .arg(&project.dir)
            .args(["status", "--porcelain=v2", "--branch", "--", "."])
            // The project belongs to the user, the agent is root: Git asks to be told.
            .env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", "safe.directory")
            .env("GIT_CONFIG_VALUE_0", "*")
            .env("GIT_OPTIONAL_LOCKS", "0")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()?;
        String::from_utf8(output.stdout).ok().filter(|_| output.status.success())
    };
    let Some(status) = status() else { return Source::default() };
    let commit = status
        .lines()
        .find_map(|line| line.strip_prefix("# branch.oid "))
        .filter(|commit| *commit != "(initial)");
    let dirty = status.lines().any(|line| !line.starts_with('#'));
    Source { commit: commit.map(str::to_owned), dirty }
}

/// Asked by looking, so that projects outside of Git pay for no process.
fn in_git(dir: &Path) -> bool {
    dir.ancestors().any(|dir| dir.join(".git").exists())
}
