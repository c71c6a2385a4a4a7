//! One RUN: its key in the step cache, and carrying it out.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;

use kiln_core::Digest;
use kiln_store::Store;

use crate::capture::Capture;
use crate::error::BakeError;
use crate::key::Key;
use crate::paths;
use crate::runner::{StepExit, StepMount, StepRunner, StepSpec};

/// `PATH` where the image has none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The host name that every step sees.
pub const HOSTNAME: &str = "kiln";

/// Where a here-document that is a script of its own is mounted.
const SCRIPTS: &str = "/dev/pipes/";

/// A command, ready to run.
#[derive(Debug, Clone)]
pub struct Command {
    /// Command line.
    pub argv: Vec<String>,
    /// `NAME=value`, complete but for `unkeyed`.
    pub env: Vec<String>,
    /// Variables that are no part of the key: proxies, and what follows from tree and user.
    pub unkeyed: Vec<String>,
    /// Absolute.
    pub cwd: String,
    /// `user[:group]`.
    pub user: String,
    /// May use the network.
    pub network: bool,
    /// A script that is mounted for it.
    pub script: Option<Script>,
}

/// A here-document that is a program of its own.
#[derive(Debug, Clone)]
pub struct Script {
    /// File name.
    pub name: String,
    /// Content.
    pub content: Vec<u8>,
}

impl Script {
    /// Where it is mounted.
    pub fn path(&self) -> String {
        format!("{SCRIPTS}{}", self.name)
    }
}

impl Command {
    /// Key of the step cache for running on `tree`.
    pub(crate) fn key(&self, tree: &Digest) -> Digest {
        let key = Key::new("run")
            .digest(tree)
            .list(&self.argv)
            .list(&self.env)
            .text(&self.cwd)
            .text(&self.user)
            .text(HOSTNAME)
            .number(u64::from(self.network));
        match &self.script {
            None => key.number(0),
            Some(script) => key.number(1).text(&script.name).bytes(&script.content),
        }
        .finish()
    }

    /// Runs it on `tree` and returns the tree that it leaves, or how it failed.
    ///
    /// # Errors
    /// It could not be started, or what it left could not be read.
    pub(crate) fn run(
        &self,
        store: &Store,
        runner: &dyn StepRunner,
        tree: &Digest,
        output: &mut dyn FnMut(&[u8]),
    ) -> Result<Result<Digest, StepExit>, BakeError> {
        let lower = store.lower(tree).map_err(BakeError::store)?;
        let scratch = store.scratch_dir().map_err(BakeError::store)?;
        let upper_dir = scratch.path().join("layer");
        let mut mounts = Vec::new();
        if let Some(script) = &self.script {
            let source = scratch.path().join("script");
            let failed = |error| BakeError::io("cannot write", &source, error);
            std::fs::write(&source, &script.content).map_err(failed)?;
            let mode = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(&source, mode).map_err(failed)?;
            mounts.push(StepMount { source, target: script.path(), read_only: true });
        }
        let mounted: BTreeSet<Vec<u8>> =
            mounts.iter().map(|mount| paths::key(&mount.target)).collect();
        let spec = StepSpec {
            lower: lower.clone(),
            upper_dir: upper_dir.clone(),
            argv: self.argv.clone(),
            env: [self.env.clone(), self.unkeyed.clone()].concat(),
            cwd: self.cwd.clone(),
            user: self.user.clone(),
            network: self.network,
            hostname: HOSTNAME.into(),
            mounts,
            stdin: Vec::new(),
            rootful: false,
        };
        let exit = runner.run(&spec, output).map_err(BakeError::Failed)?;
        if !exit.success() {
            return Ok(Err(exit));
        }
        let parent = store.get_tree(tree).map_err(BakeError::store)?;
        let capture = Capture {
            store,
            parent: &parent,
            lower: &lower,
            upper_dir: &upper_dir,
            mounted: &mounted,
        };
        let after = std::sync::Arc::new(capture.tree()?);
        Ok(Ok(store.keep_tree(after).map_err(BakeError::store)?))
    }
}

/// The last lines of a step's output, kept while it runs.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    lines: std::collections::VecDeque<String>,
    open: Vec<u8>,
}

impl Tail {
    const LINES: usize = 20;
    /// A line longer than this is cut: output is anything.
    const WIDTH: usize = 4096;

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = Self::WIDTH.saturating_sub(self.open.len());
            self.open.extend(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                self.close();
            }
        }
    }

    fn close(&mut self) {
        let text = String::from_utf8_lossy(&self.open).trim_end().to_owned();
        self.open.clear();
        self.lines.push_back(text);
        if self.lines.len() > Self::LINES {
            self.lines.pop_front();
        }
    }

    pub(crate) fn finish(mut self) -> Vec<String> {
        if !self.open.is_empty() {
            self.close();
        }
        self.lines.into()
    }
}

#[cfg(test)]
mod tests {
    use super::Tail;

    #[test]
    fn tail_keeps_the_last_lines() {
        let mut tail = Tail::default();
        for number in 0..30 {
            tail.push(format!("line {number}\nha").as_bytes());
            tail.push(b"lf ");
        }
        let lines = tail.finish();
        assert_eq!(lines.len(), 20);
        assert_eq!(lines[18], "half line 29");
        assert_eq!(lines[19], "half");
    }
}
