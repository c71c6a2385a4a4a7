//! One RUN: its key in the step cache, and carrying it out.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_core::Digest;
use kiln_store::Store;

use crate::capture::Capture;
use crate::error::BakeError;
use crate::key::Key;
use crate::mount::secret::Hide;
use crate::mount::{self, Caches, Hand, Mount};
use crate::paths;
use crate::runner::{Around, StepExit, StepMount, StepRunner, StepSpec};

/// `PATH` where the image has none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The host name that a step sees, unless the build asks for another one.
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
    /// What it is told that its machine is called.
    pub hostname: String,
    /// May use the network.
    pub network: bool,
    /// A script that is mounted for it.
    pub script: Option<Script>,
    /// What else is mounted; ready to be mounted again for each run.
    pub mounts: Vec<Mount>,
    /// Where its caches are; no part of the key, for what is in them is no input.
    pub caches: Caches,
    /// Size of `/dev/shm` in bytes, if it is not the usual one.
    pub shm_size: Option<u64>,
    /// Limits of its processes: soft and hard, `-1` unlimited, by name.
    pub ulimits: BTreeMap<String, (i64, i64)>,
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
            .text(&self.hostname)
            .number(u64::from(self.network));
        let key = match &self.script {
            None => key.number(0),
            Some(script) => key.number(1).text(&script.name).bytes(&script.content),
        };
        let key = key.number(self.mounts.len() as u64);
        let key = self.mounts.iter().fold(key, |key, mount| mount.key(key));
        let key = key.number(self.shm_size.unwrap_or(0)).number(self.ulimits.len() as u64);
        let limits = self.ulimits.iter().fold(key, |key, (name, (soft, hard))| {
            key.text(name).number(soft.cast_unsigned()).number(hard.cast_unsigned())
        });
        limits.finish()
    }

    /// Runs it on `tree` with empty caches until `stop` is set, and returns the tree that it leaves,
    /// or how it failed. It may be run any number of times, also at once: what it has mounted is
    /// made anew for each run, and none finds in a cache what another one left there.
    ///
    /// # Errors
    /// It could not be started, or what it left could not be read.
    pub(crate) fn run(
        &self,
        store: &Store,
        runner: &dyn StepRunner,
        tree: &Digest,
        stop: &Arc<AtomicBool>,
        output: &mut dyn FnMut(&[u8]),
    ) -> Result<Result<Digest, StepExit>, BakeError> {
        let alone = Self { caches: Caches::Empty, ..self.clone() };
        let (exit, left) = alone.carry_out(store, runner, tree, stop, &|| false, output)?;
        Ok(left.ok_or(exit))
    }

    /// As [`Command::run`], but with the caches that it has; returns how it ended, and the tree if
    /// it succeeded. `given_up` ends a wait for a cache, beside `stop`.
    pub(crate) fn carry_out(
        &self,
        store: &Store,
        runner: &dyn StepRunner,
        tree: &Digest,
        stop: &Arc<AtomicBool>,
        given_up: &dyn Fn() -> bool,
        output: &mut dyn FnMut(&[u8]),
    ) -> Result<(StepExit, Option<Digest>), BakeError> {
        let lower = store.step_lower(tree).map_err(BakeError::store)?;
        let scratch = store.scratch_dir().map_err(BakeError::store)?;
        let upper_dir = scratch.path().join("layer");
        let given_up = || stop.load(Ordering::Acquire) || given_up();
        let hand =
            Hand { store, scratch: scratch.path(), caches: &self.caches, given_up: &given_up };
        let mut ready = mount::ready(&self.mounts, &hand)?;
        let mut mounts = std::mem::take(&mut ready.mounts);
        if let Some(script) = &self.script {
            let source = scratch.path().join("script");
            let failed = |error| BakeError::io("cannot write", &source, error);
            std::fs::write(&source, &script.content).map_err(failed)?;
            let mode = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(&source, mode).map_err(failed)?;
            mounts.push(StepMount { source, target: script.path(), read_only: true });
        }
        let around = Around {
            shm_size: self.shm_size,
            ulimits: self.ulimits.clone(),
            ..std::mem::take(&mut ready.around)
        };
        let mounted = mounted(&mounts, &around);
        let spec = StepSpec {
            lower: lower.clone(),
            upper_dir: upper_dir.clone(),
            argv: self.argv.clone(),
            env: with([self.env.clone(), self.unkeyed.clone()].concat(), &ready.env),
            cwd: self.cwd.clone(),
            user: self.user.clone(),
            network: self.network,
            hostname: self.hostname.clone(),
            mounts,
            stdin: Vec::new(),
            rootful: false,
            stop: Arc::clone(stop),
            around,
        };
        let mut hide = Hide::new(std::mem::take(&mut ready.hidden));
        let exit = runner.run(&spec, &mut |bytes| hide.pass(bytes, output));
        hide.end(output);
        let mut exit = exit.map_err(BakeError::Failed)?;
        exit.notices.splice(..0, std::mem::take(&mut ready.notices));
        // Caches are for others now; reading the layer takes its time.
        drop(ready);
        if !exit.success() {
            return Ok((exit, None));
        }
        let parent = store.get_tree(tree).map_err(BakeError::store)?;
        let capture = Capture {
            store,
            parent: &parent,
            lower: &lower,
            upper_dir: &upper_dir,
            mounted: &mounted,
        };
        let after = Arc::new(capture.tree()?);
        Ok((exit, Some(store.keep_tree(after).map_err(BakeError::store)?)))
    }
}

/// Every path that something is mounted on.
fn mounted(mounts: &[StepMount], around: &Around) -> BTreeSet<Vec<u8>> {
    let hosts = mounts.iter().map(|mount| &mount.target);
    let images = around.images.iter().map(|mount| &mount.target);
    let tmpfs = around.tmpfs.iter().map(|mount| &mount.target);
    let secrets = around.secrets.iter().map(|file| &file.target);
    let all = hosts.chain(images).chain(tmpfs).chain(secrets);
    all.map(|target| paths::key(target)).collect()
}

/// `env` with the variables of `more` in the place of those of the same name.
fn with(mut env: Vec<String>, more: &[String]) -> Vec<String> {
    for pair in more {
        let name = pair.split('=').next().unwrap_or_default();
        env.retain(|old| old.split('=').next() != Some(name));
        env.push(pair.clone());
    }
    env
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
