//! The agent's side: starting instances, finding them again, sweeping up after killed shims.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::pipe::{PipeFlags, pipe_with};

use crate::ROLE_SHIM;
use crate::cgroup::{Cgroups, SHIMS, TOP};
use crate::error::{Context as _, Fault, RunError};
use crate::report::{read_all, sum_up};
use crate::running::{InstanceState, Running, state_of};
use crate::shim::control::EXIT_FILE;
use crate::spec::{InstanceSpec, Network, SPEC_FILE, signal_number};

/// What a shim writes to standard error, which is nothing unless it has a bug.
const SHIM_STDERR: &str = "shim.err";
/// Prefix of the groups of execs and steps; ids of instances do not begin with it.
pub(crate) const STEP_PREFIX: &str = "step-";

/// Instances of one root.
#[derive(Debug, Clone)]
pub struct Runtime {
    root: PathBuf,
    exe: PathBuf,
    scope: String,
    cgroups: Cgroups,
}

/// An instance that was found again.
#[derive(Debug)]
pub enum Found {
    /// It runs.
    Running(Running),
    /// It ended while nobody looked, or its shim was killed ([`InstanceState::Lost`]).
    Ended(InstanceState),
}

impl Runtime {
    /// The instances below `root`. `exe` is a binary whose `main` calls [`crate::dispatch`] first,
    /// `scope` a short name of the root that no other root has: a hash of its path.
    ///
    /// # Errors
    /// When no cgroup2 is mounted.
    pub fn new(
        root: impl Into<PathBuf>,
        exe: impl Into<PathBuf>,
        scope: &str,
    ) -> Result<Self, RunError> {
        let cgroups = Cgroups::find().map_err(Fault::general)?;
        Ok(Self { root: root.into(), exe: exe.into(), scope: scope.to_owned(), cgroups })
    }

    /// The folder of instance `id`.
    pub fn dir(&self, id: &str) -> PathBuf {
        self.root.join("instances").join(id)
    }

    pub(crate) fn exe(&self) -> &Path {
        &self.exe
    }

    /// Path of the group `name` below a hierarchy's mount point.
    pub(crate) fn group_name(&self, name: &str) -> String {
        format!("{TOP}/{}/{name}", self.scope)
    }

    /// Starts an instance; returns when its program was executed, which is before it is ready.
    ///
    /// # Errors
    /// [`RunError::Start`] names the step that failed, down to the exec; then nothing runs and
    /// only the instance's folder is left.
    pub fn start(&self, spec: &InstanceSpec) -> Result<Running, RunError> {
        check(spec)?;
        let mut spec = spec.clone();
        spec.cgroup = self.group_name(&spec.id);
        prepare(&spec)?;
        let doing = || format!("start the shim of `{}`", spec.id);
        let (report, to) = pipe_with(PipeFlags::CLOEXEC).doing(doing)?;
        let errors = spec.dir.join(SHIM_STDERR);
        let stderr =
            OpenOptions::new().append(true).create(true).mode(0o600).open(&errors).doing(doing)?;
        let mut child = Command::new(&self.exe)
            .arg(ROLE_SHIM)
            .arg(&spec.dir)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(to)
            .stderr(stderr)
            .spawn()
            .doing(|| format!("run {} for `{}`", self.exe.display(), spec.id))?;
        let reports = read_all(report).doing(doing);
        // The process that was started forks the shim and ends.
        child.wait().doing(doing)?;
        match sum_up(reports?).map_err(|fault| fault.of(&spec.id))? {
            (warnings, Some((pid, start_time))) => {
                let InstanceSpec { id, dir, .. } = spec;
                Ok(Running { id, dir, pid, start_time, warnings })
            }
            (_, None) => {
                let said = fs::read_to_string(&errors).unwrap_or_default();
                Err(RunError::ShimDied { id: spec.id, said })
            }
        }
    }

    /// Finds the instance in `dir` again.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn attach(&self, dir: &Path) -> Result<Found, RunError> {
        match state_of(dir)? {
            InstanceState::Running { pid, start_time, .. } => {
                let id = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let dir = dir.to_owned();
                Ok(Found::Running(Running { id, dir, pid, start_time, warnings: Vec::new() }))
            }
            ended => Ok(Found::Ended(ended)),
        }
    }

    /// Ids that have a folder.
    ///
    /// # Errors
    /// When the folders cannot be listed.
    pub fn list(&self) -> Result<BTreeSet<String>, RunError> {
        let path = self.root.join("instances");
        let entries = match fs::read_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            entries => entries.doing(|| format!("list {}", path.display()))?,
        };
        Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }

    /// Removes the folder of an instance that has ended, with its log.
    ///
    /// # Errors
    /// When it still runs, or the folder cannot be removed.
    pub fn remove(&self, id: &str) -> Result<(), RunError> {
        let dir = self.dir(id);
        if let InstanceState::Running { pid, .. } = state_of(&dir)? {
            let message = format!("it still runs as pid {pid}; stop it first");
            return Err(RunError::Spec { id: id.to_owned(), message });
        }
        remove_folder(&dir).doing(|| format!("remove {}", dir.display()))
    }

    /// Removes what killed shims left: groups, and folders of instances that are not in `known`.
    /// Returns the ids whose remains were removed. Nothing may be starting meanwhile that `known`
    /// does not name.
    ///
    /// # Errors
    /// When folders cannot be listed or removed.
    pub fn sweep(&self, known: &BTreeSet<String>) -> Result<BTreeSet<String>, RunError> {
        let mut swept = BTreeSet::new();
        for name in self.cgroups.children(&self.group_name("")) {
            if name == SHIMS {
                continue;
            }
            let step = name.strip_prefix(STEP_PREFIX);
            if step.is_some_and(starter_lives) || step.is_none() && self.lives(&name) {
                continue;
            }
            let group = self.cgroups.existing(&self.group_name(&name));
            group.kill();
            if group.wait_empty(Duration::from_secs(5)) && group.remove().is_ok() && step.is_none()
            {
                swept.insert(name);
            }
        }
        for id in self.list()? {
            if !known.contains(&id) && !self.lives(&id) {
                let dir = self.dir(&id);
                remove_folder(&dir).doing(|| format!("remove {}", dir.display()))?;
                swept.insert(id);
            }
        }
        Ok(swept)
    }

    fn lives(&self, id: &str) -> bool {
        matches!(state_of(&self.dir(id)), Ok(InstanceState::Running { .. }))
    }

    /// Removes this root's control groups once its shims are gone, waiting for the last of them at
    /// most for `limit`. True: nothing is left.
    pub fn close(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let scope = self.group_name("");
        let shims = self.cgroups.existing(&self.group_name(SHIMS));
        let empty = shims.wait_empty(deadline.saturating_duration_since(Instant::now()));
        if empty {
            self.cgroups.prune(scope.trim_end_matches('/'));
        }
        empty && self.cgroups.children(&scope).is_empty()
    }
}

/// `step-PID-NUMBER`: whether the process that runs the step is there.
fn starter_lives(rest: &str) -> bool {
    rest.split('-').next().is_some_and(|pid| Path::new("/proc").join(pid).exists())
}

fn check(spec: &InstanceSpec) -> Result<(), RunError> {
    let refuse = |message: String| Err(RunError::Spec { id: spec.id.clone(), message });
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if spec.id.is_empty() || spec.id.starts_with('.') || !spec.id.chars().all(plain) {
        return refuse("an id is made of letters, digits, `-`, `_` and `.`".to_owned());
    }
    if spec.id == SHIMS || spec.id.starts_with(STEP_PREFIX) || spec.id.contains("cgroup.") {
        return refuse("that id is taken by the runtime".to_owned());
    }
    if spec.sandbox.argv.is_empty() {
        return refuse("there is no command to run; set `command` or `entrypoint`".to_owned());
    }
    if spec.sandbox.network == Network::Host {
        return refuse("an instance never shares the host's network".to_owned());
    }
    if !spec.stop_signal.is_empty() && signal_number(&spec.stop_signal).is_none() {
        return refuse(format!("there is no signal `{}`", spec.stop_signal));
    }
    Ok(())
}

fn prepare(spec: &InstanceSpec) -> Result<(), RunError> {
    let path = spec.dir.join(SPEC_FILE);
    let doing = || format!("write {}", path.display());
    let make = |path: &Path| DirBuilder::new().recursive(true).mode(0o700).create(path);
    make(&spec.dir.join(crate::shim::SCRATCH)).doing(doing)?;
    // An earlier instance of this name ended; this one has not.
    match fs::remove_file(spec.dir.join(EXIT_FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).doing(doing),
        _ => {}
    }
    let text = serde_json::to_vec(spec).map_err(io::Error::from).doing(doing)?;
    // Only its owner may read it: the environment may hold secrets.
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .and_then(|mut file| file.write_all(&text))
        .doing(doing)
}

/// The shim may still be removing a writable layer: what vanishes meanwhile is no error.
fn remove_folder(dir: &Path) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !dir.exists() => return Ok(()),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
                ) && Instant::now() < deadline => {}
            done => return done,
        }
    }
}

impl Fault {
    /// For what concerns no single instance.
    pub(crate) fn general(self) -> RunError {
        RunError::Io { what: self.step, source: io::Error::other(self.message) }
    }
}
