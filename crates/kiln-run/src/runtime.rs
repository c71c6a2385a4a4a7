//! The agent's side: starting instances, finding them again, sweeping up after killed shims.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::ROLE_SHIM;
use crate::asking::ANSWER;
use crate::cgroup::{Cgroups, SHIMS, TOP, timespec};
use crate::error::{Context as _, Fault, RunError};
use crate::known::{Known, PROCESSES_FILE, Processes};
use crate::process::ProcessId;
use crate::report::{Report, read_within, sum_up};
use crate::running::Running;
use crate::sealed::Sealed;
use crate::shim::control::EXIT_FILE;
use crate::spec::{Device, InstanceSpec, SPEC_FILE, signal_number};
use crate::zygote::Zygote;

/// What a shim writes to standard error, which is nothing unless it has a bug.
const SHIM_STDERR: &str = "shim.err";
/// Prefix of the groups of execs and steps; ids of instances do not begin with it.
pub(crate) const STEP_PREFIX: &str = "step-";

/// How long a start may take until the program is executed: a disk that is asked too much can
/// take seconds to give an image.
const START: Duration = Duration::from_secs(60);
/// How long the zygote may take until a shim says who it is.
const FORK: Duration = Duration::from_secs(5);
/// How long what was killed may take to vanish.
const VANISH: Duration = Duration::from_secs(5);
/// How long a shim may take to answer where many are asked; later ones are unknown for now.
pub const QUICK: Duration = Duration::from_millis(300);
/// Instances that are asked at a time: each takes two descriptors.
const AT_A_TIME: usize = 64;

/// Instances of one root.
#[derive(Debug, Clone)]
pub struct Runtime {
    root: PathBuf,
    exe: PathBuf,
    sealed: Arc<OnceLock<io::Result<Sealed>>>,
    zygote: Arc<Zygote>,
    scope: String,
    cgroups: Cgroups,
}

/// An instance that was found again.
#[derive(Debug)]
pub struct Found {
    /// The handle on it.
    pub running: Running,
    /// What is known of it.
    pub known: Known,
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
        let (root, mut exe, scope) = (root.into(), exe.into(), scope.to_owned());
        if std::env::current_exe().is_ok_and(|own| own == exe) {
            // Also when a newer one has taken its place.
            exe = PathBuf::from("/proc/self/exe");
        }
        let (sealed, zygote) = (Arc::default(), Arc::default());
        let runtime = Self { root, exe, sealed, zygote, scope, cgroups };
        // The first instance need wait for neither the copy nor the zygote.
        let early = runtime.clone();
        let thread = std::thread::Builder::new().name("seal".to_owned());
        let _ = thread.spawn(move || {
            if let Ok(exe) = early.exe() {
                early.zygote.warm(&exe, &early.group_name(SHIMS));
            }
        });
        Ok(runtime)
    }

    /// The folder of instance `id`.
    pub fn dir(&self, id: &str) -> PathBuf {
        self.root.join("instances").join(id)
    }

    /// What runs a shim or a session: this binary's sealed copy.
    pub(crate) fn exe(&self) -> Result<PathBuf, RunError> {
        self.sealed().map(Sealed::path)
    }

    /// Ends what belongs to this process only, and what its next program would not know of.
    pub fn leave(&self) {
        self.zygote.end();
    }

    fn sealed(&self) -> Result<&Sealed, RunError> {
        let sealed = self.sealed.get_or_init(|| Sealed::copy_of(&self.exe));
        let again = |error: &io::Error| io::Error::new(error.kind(), error.to_string());
        let doing = || format!("keep a copy of {} in memory", self.exe.display());
        sealed.as_ref().map_err(again).doing(doing)
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
        self.let_devices_through(&spec)?;
        let errors = spec.dir.join(SHIM_STDERR);
        let (mut reports, mut whole) = self.fork_shim(&spec, &errors)?;
        if whole && reports.is_empty() {
            // The zygote was gone, or ended with what it had been told: nobody has the other end.
            (reports, whole) = self.execute_shim(&spec, &errors)?;
        }
        if !whole {
            return Err(self.abandon(&spec, &reports));
        }
        match sum_up(reports).map_err(|fault| fault.of(&spec.id))? {
            (warnings, Some((pid, start_time))) => {
                let program = ProcessId { pid, start_time };
                Ok(Running { warnings, ..self.handle(&spec.id, spec.dir, program) })
            }
            (_, None) => {
                let said = fs::read_to_string(&errors).unwrap_or_default();
                Err(RunError::ShimDied { id: spec.id, said })
            }
        }
    }

    /// What lies above all instances keeps devices closed, too: it is told of those that instances have.
    fn let_devices_through(&self, spec: &InstanceSpec) -> Result<(), RunError> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        if spec.sandbox.devices.is_empty() {
            return Ok(());
        }
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<Device> = Vec::new();
        for id in self.list()? {
            // One that cannot be read is not there any more, or is just being written.
            let Ok(text) = fs::read(self.dir(&id).join(SPEC_FILE)) else { continue };
            let Ok(other) = serde_json::from_slice::<InstanceSpec>(&text) else { continue };
            let devices = other.sandbox.devices.into_iter();
            all.extend(devices.map(|it| Device { access: "rwm".to_owned(), ..it }));
        }
        all.sort_by_key(|it| (it.block, it.major, it.minor));
        all.dedup_by_key(|it| (it.block, it.major, it.minor));
        let scope = self.group_name("");
        self.cgroups
            .allow_devices(scope.trim_end_matches('/'), &all)
            .map_err(|fault| fault.of(&spec.id))
    }

    /// Has the zygote fork the shim, and gives what it reports; nothing when there is no zygote to
    /// be had. False: it has not said all.
    fn fork_shim(
        &self,
        spec: &InstanceSpec,
        errors: &Path,
    ) -> Result<(Vec<Report>, bool), RunError> {
        let (report, to, stderr) = ends(spec, errors)?;
        let (shims, fds) = (self.group_name(SHIMS), (to.as_fd(), stderr.as_fd()));
        if self.zygote.fork(&self.exe()?, &shims, &spec.dir, fds).is_err() {
            return Ok((Vec::new(), true));
        }
        drop((to, stderr));
        let mut first = [PollFd::new(&report, PollFlags::IN)];
        if matches!(poll(&mut first, Some(&timespec(FORK))), Ok(0)) {
            // A stopped one must not begin with this later. A shim that it has forked reports.
            self.zygote.end();
        }
        Ok(read_within(&report, START))
    }

    /// The same by a process of its own: what is started forks the shim and ends.
    fn execute_shim(
        &self,
        spec: &InstanceSpec,
        errors: &Path,
    ) -> Result<(Vec<Report>, bool), RunError> {
        let (report, to, stderr) = ends(spec, errors)?;
        let doing = || format!("run {} for `{}`", self.exe.display(), spec.id);
        let mut child = Command::new(self.exe()?)
            .arg0("kiln")
            .arg(ROLE_SHIM)
            .arg(&spec.dir)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(to)
            .stderr(stderr)
            .spawn()
            .doing(doing)?;
        let (reports, whole) = read_within(&report, START);
        if !whole {
            let _ = child.kill();
        }
        child.wait().doing(doing)?;
        Ok((reports, whole))
    }

    /// Ends a start that takes too long; gives the error, which says whether that is certain.
    fn abandon(&self, spec: &InstanceSpec, reports: &[Report]) -> RunError {
        let group = self.cgroups.existing(&spec.cgroup);
        let shim = reports.iter().find_map(|report| match report {
            Report::Shim(shim) => Some(*shim),
            _ => None,
        });
        // The shim first: it might start its program just now.
        let gone = shim.is_none_or(|shim| {
            let _ = shim.signal(libc::SIGKILL);
            shim.ends_within(VANISH)
        });
        group.kill();
        let empty = group.wait_empty(VANISH);
        let _ = group.remove();
        let id = spec.id.clone();
        let message = format!("it had not started within {} s", START.as_secs());
        match gone && empty {
            true => {
                RunError::Start { id, step: "wait for its shim".to_owned(), message, status: None }
            }
            false => RunError::Unknown { id, why: format!("{message}, and could not be ended") },
        }
    }

    fn handle(&self, id: &str, dir: PathBuf, program: ProcessId) -> Running {
        let (cgroups, group) = (self.cgroups.clone(), self.group_name(id));
        Running { id: id.to_owned(), dir, program, cgroups, group, warnings: Vec::new() }
    }

    /// Finds the instance `id` again, and asks what is known of it, at most for `limit`.
    pub fn attach(&self, id: &str, limit: Duration) -> Found {
        let dir = self.dir(id);
        let names = Processes::read(&dir).ok().flatten();
        let unknown = ProcessId { pid: 0, start_time: 0 };
        let mut running = self.handle(id, dir, names.map_or(unknown, |names| names.program));
        let known = running.status_within(limit);
        if let Known::Runs(alive) = known {
            running.program = ProcessId { pid: alive.pid, start_time: alive.start_time };
        }
        Found { running, known }
    }

    /// As [`Runtime::attach`] for many at once, in their order: shims that do not answer cost the
    /// `limit` together.
    pub fn attach_all(&self, ids: &[String], limit: Duration) -> Vec<Found> {
        let mut found = Vec::new();
        for some in ids.chunks(AT_A_TIME) {
            std::thread::scope(|scope| {
                let asking: Vec<_> = some
                    .iter()
                    .map(|id| {
                        let one = || self.attach(id, limit);
                        std::thread::Builder::new().spawn_scoped(scope, one)
                    })
                    .collect();
                for (id, asking) in some.iter().zip(asking) {
                    // Where no thread is to be had, they are asked one after the other.
                    let answer = asking.ok().and_then(|asking| asking.join().ok());
                    found.push(answer.unwrap_or_else(|| self.attach(id, limit)));
                }
            });
        }
        found
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
    /// When it has not certainly ended, or the folder cannot be removed.
    pub fn remove(&self, id: &str) -> Result<(), RunError> {
        let dir = self.dir(id);
        match self.attach(id, ANSWER).known {
            Known::Ended(_) => {}
            Known::Runs(alive) => {
                let message = format!("it still runs as pid {}; stop it first", alive.pid);
                return Err(RunError::Spec { id: id.to_owned(), message });
            }
            Known::Unknown(why) => return Err(RunError::Unknown { id: id.to_owned(), why }),
        }
        remove_folder(&dir).doing(|| format!("remove {}", dir.display()))
    }

    /// Removes what killed shims left: groups, and folders of instances that are not in `known`.
    /// Returns the ids whose remains were removed. What has not certainly ended stays as it is.
    /// Nothing may be starting meanwhile that `known` does not name.
    ///
    /// # Errors
    /// When folders cannot be listed or removed.
    pub fn sweep(&self, known: &BTreeSet<String>) -> Result<BTreeSet<String>, RunError> {
        let mut swept = BTreeSet::new();
        let groups = self.cgroups.children(&self.group_name(""));
        let ids: BTreeSet<String> = self.list()?.into_iter().chain(groups.clone()).collect();
        let ids: Vec<String> = ids.into_iter().collect();
        let found = self.attach_all(&ids, QUICK);
        let ended = found.iter().filter(|one| matches!(one.known, Known::Ended(_)));
        let ended: BTreeSet<&str> = ended.map(|one| one.running.id()).collect();
        for name in groups {
            if name == SHIMS {
                continue;
            }
            let step = name.strip_prefix(STEP_PREFIX);
            if step.is_some_and(starter_lives) || step.is_none() && !ended.contains(name.as_str()) {
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
            if !known.contains(&id) && ended.contains(id.as_str()) {
                let dir = self.dir(&id);
                remove_folder(&dir).doing(|| format!("remove {}", dir.display()))?;
                swept.insert(id);
            }
        }
        Ok(swept)
    }

    /// Removes this root's control groups once its shims are gone, waiting for the last of them at
    /// most for `limit`. True: nothing is left.
    pub fn close(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        self.zygote.end();
        let scope = self.group_name("");
        let shims = self.cgroups.existing(&self.group_name(SHIMS));
        let empty = shims.wait_empty(deadline.saturating_duration_since(Instant::now()));
        if empty {
            self.cgroups.prune(scope.trim_end_matches('/'));
        }
        empty && self.cgroups.children(&scope).is_empty()
    }
}

/// A shim's report pipe and the file of its standard error.
fn ends(spec: &InstanceSpec, errors: &Path) -> Result<(OwnedFd, OwnedFd, File), RunError> {
    let doing = || format!("start the shim of `{}`", spec.id);
    let (report, to) = pipe_with(PipeFlags::CLOEXEC).doing(doing)?;
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(errors);
    Ok((report, to, file.doing(doing)?))
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
    for name in [EXIT_FILE, PROCESSES_FILE] {
        match fs::remove_file(spec.dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).doing(doing);
            }
            _ => {}
        }
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
