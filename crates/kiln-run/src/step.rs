//! A RUN step: the sandbox of an instance around a command that changes an image. What it writes
//! lands in an upper layer; nothing that it starts outlives it.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use kiln_core::compose::{Limits, Tmpfs};
use kiln_store::Lower;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use serde::{Deserialize, Serialize};

use crate::conditions::Conditions;
use crate::error::{Context as _, RunError};
use crate::net::NetSpec;
use crate::runtime::STEP_PREFIX;
use crate::session::{Bounds, Request, Session, StepEnd, What};
use crate::spec::{
    BindMount, DEFAULT_CAPABILITIES, ImageMount, Machine, Network, Sandbox, SecretFile,
};
use crate::{ROLE_STEP, Runtime};

/// What maintainer scripts may do beyond Docker's default set.
const ROOTFUL: [&str; 5] = ["DAC_READ_SEARCH", "IPC_OWNER", "LEASE", "LINUX_IMMUTABLE", "SYS_NICE"];

/// How long a step may go on after it was cancelled.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// One step.
#[derive(Debug, Clone)]
pub struct StepSpec {
    /// What it starts from.
    pub lower: Lower,
    /// Takes its changes: `upper/` and `work/` are made in it.
    pub upper_dir: PathBuf,
    /// The whole command line.
    pub argv: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Absolute working directory.
    pub cwd: String,
    /// `user[:group]`.
    pub user: String,
    /// Host name.
    pub hostname: String,
    /// How it reaches the outside, from a network namespace of its own; `None`: only `lo`. The
    /// address has to be admitted before, see [`crate::net::Host::admit`].
    pub network: Option<NetSpec>,
    /// Folders and files of the host.
    pub mounts: Vec<BindMount>,
    /// Standard input.
    pub stdin: Vec<u8>,
    /// More capabilities, as dpkg and maintainer scripts want them.
    pub rootful: bool,
    /// What else there is around it.
    pub around: Around,
}

/// What a step has around it besides files of the host, and how far it may go.
#[derive(Debug, Clone)]
pub struct Around {
    /// Images, or parts of them.
    pub images: Vec<ImageMount>,
    /// Empty directories in memory.
    pub tmpfs: Vec<Tmpfs>,
    /// Files that are in memory only.
    pub secrets: Vec<SecretFile>,
    /// Size of `/dev/shm` in bytes.
    pub shm_size: u64,
    /// Soft and hard limit, `-1` unlimited, by lower-case name without `RLIMIT_`.
    pub ulimits: BTreeMap<String, (i64, i64)>,
    /// The most processes and threads at a time; with more the step is ended.
    pub tasks: u64,
    /// Bytes of the machine's memory that stay available; with fewer the step is ended, if it holds
    /// as many itself. Where less than twice as many are available at the beginning, half of that.
    pub memory: u64,
    /// Bytes that stay free on the file system of `upper_dir`; with fewer the step is ended. Where
    /// less than twice as many are free at the beginning, half of what is free then.
    pub reserve: u64,
}

impl Default for Around {
    /// Nothing, 64 MB of `/dev/shm`, 8,192 processes and threads, 512 MiB of memory, 1 GiB of disk.
    fn default() -> Self {
        Self {
            images: Vec::new(),
            tmpfs: Vec::new(),
            secrets: Vec::new(),
            shm_size: 64 << 20,
            ulimits: BTreeMap::new(),
            tasks: 8_192,
            memory: 512 << 20,
            reserve: 1 << 30,
        }
    }
}

/// How a step ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StepExit {
    /// Exit status; 128 + signal if one ended it.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Why it was ended, if it did not end by itself.
    pub stopped: Option<Stopped>,
    /// Processes of the whole machine that the kernel killed for want of memory meanwhile.
    pub memory_kills: u64,
    /// Names of some of the processes that it left running; they were killed with it.
    pub left: Vec<String>,
}

/// What a step did that ended it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stopped {
    /// It had more processes and threads than it may.
    Processes {
        /// So many it may have.
        most: u64,
    },
    /// It left too little of a file system.
    Disk {
        /// A path on it.
        path: PathBuf,
        /// Bytes that were left.
        free: u64,
        /// Inodes that were left.
        inodes: u64,
    },
    /// The kernel killed some process of it for want of memory.
    Memory,
    /// It left too little of the machine's memory.
    MachineMemory {
        /// Bytes that were left.
        available: u64,
        /// Bytes that it held itself.
        held: u64,
    },
}

impl Runtime {
    /// Runs a step to its end. `output` gets standard output and error as they come.
    ///
    /// `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`, `/proc`, `/sys` and `/dev` are the
    /// runtime's own during the step: neither they, nor their mount points, nor those of
    /// `mounts` show up in the upper layer.
    ///
    /// # Errors
    /// [`RunError::Start`] says what failed. A command that fails is no error.
    pub fn run_step(
        &self,
        spec: &StepSpec,
        output: &mut dyn FnMut(&[u8]),
    ) -> Result<StepExit, RunError> {
        self.run_step_unless(spec, &|| false, output)
    }

    /// As [`Runtime::run_step`], but kills the step, and all that it started, soon after
    /// `cancelled` says so.
    ///
    /// # Errors
    /// As [`Runtime::run_step`].
    pub fn run_step_unless(
        &self,
        spec: &StepSpec,
        cancelled: &dyn Fn() -> bool,
        output: &mut dyn FnMut(&[u8]),
    ) -> Result<StepExit, RunError> {
        self.run_step_under(spec, &Conditions::default(), cancelled, output)
    }

    /// As [`Runtime::run_step_unless`], under `conditions`.
    ///
    /// # Errors
    /// As [`Runtime::run_step`]; also if this kernel cannot vary what `conditions` asks for, see
    /// [`Conditions::possible`].
    pub fn run_step_under(
        &self,
        spec: &StepSpec,
        conditions: &Conditions,
        cancelled: &dyn Fn() -> bool,
        output: &mut dyn FnMut(&[u8]),
    ) -> Result<StepExit, RunError> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{STEP_PREFIX}{}-{number}", std::process::id());
        let doing = || format!("prepare the step `{}`", spec.argv.join(" "));
        let disk = spec.upper_dir.parent().unwrap_or(&spec.upper_dir).to_owned();
        let scratch = Scratch::new(disk.join(&name)).doing(doing)?;
        let stdin = input(&spec.stdin).doing(doing)?;
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).doing(doing)?;
        let stdio = [stdin, write.try_clone().doing(doing)?, write];
        let machine = if conditions.other_machine { Machine::Other } else { Machine::Usual };
        let sandbox = Box::new(Sandbox { machine, ..sandbox(spec)? });
        let around = &spec.around;
        let Around { tasks, reserve, memory, .. } = *around;
        let bounds = Bounds { tasks, disk, reserve, memory };
        let what = What::Step {
            sandbox,
            scratch: scratch.0.clone(),
            conditions: conditions.clone(),
            bounds,
        };
        let request = Request { group: self.group_name(&name), limits_of: None, what };
        let id = spec.argv.first().map_or("step", String::as_str);
        let mut session = Session::start(&self.exe()?, ROLE_STEP, id, &request, &stdio)?;
        // Else the pipe never ends.
        drop(stdio);
        let mut buffer = vec![0; 64 << 10];
        // A step may close its output and go on.
        let (mut open, mut over) = (true, false);
        while open || !over {
            if cancelled() {
                session.kill();
                let signal = Some(libc::SIGKILL);
                return Ok(StepExit { code: 137, signal, ..StepExit::default() });
            }
            let ready = match (open, session.socket()) {
                (true, _) => poll(&mut [PollFd::new(&read, PollFlags::IN)], Some(&LOOK)),
                (false, Some(socket)) => {
                    poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&LOOK))
                }
                (false, None) => Ok(1),
            };
            if matches!(ready, Ok(0)) {
                continue;
            }
            if !open {
                over = true;
                continue;
            }
            match rustix::io::read(&read, &mut buffer) {
                Ok(0) => open = false,
                Ok(length) => output(&buffer[..length]),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).doing(|| "read the step's output".to_owned()),
            }
        }
        let (code, signal, end) = session.wait_step()?;
        let StepEnd { stopped, memory_kills, left } = end;
        Ok(StepExit { code, signal, stopped, memory_kills, left })
    }
}

/// A folder to assemble the root on, gone when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(path: PathBuf) -> std::io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It is empty: what was mounted on it was seen by the step only.
        let _ = fs::remove_dir(&self.0);
    }
}

fn input(bytes: &[u8]) -> std::io::Result<OwnedFd> {
    if bytes.is_empty() {
        return crate::sys::null();
    }
    let mut file = File::from(rustix::fs::memfd_create("stdin", rustix::fs::MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}

fn sandbox(spec: &StepSpec) -> Result<Sandbox, RunError> {
    let mut capabilities = DEFAULT_CAPABILITIES.to_vec();
    if spec.rootful {
        capabilities.extend(ROOTFUL);
    }
    let (network, resolv_conf) = match &spec.network {
        Some(net) => {
            let found = crate::net::resolv_conf().map_err(io::Error::other);
            let found = found.doing(|| "find name servers for a step".to_owned())?;
            (Network::Routed(net.clone()), found.text)
        }
        None => (Network::None, String::new()),
    };
    Ok(Sandbox {
        upper: Some(spec.upper_dir.clone()),
        env: spec.env.clone(),
        cwd: spec.cwd.clone(),
        user: spec.user.clone(),
        hostname: spec.hostname.clone(),
        mounts: spec.mounts.clone(),
        capabilities: capabilities.into_iter().map(str::to_owned).collect(),
        images: spec.around.images.clone(),
        tmpfs: spec.around.tmpfs.clone(),
        secrets: spec.around.secrets.clone(),
        shm_size: spec.around.shm_size,
        ulimits: spec.around.ulimits.clone(),
        limits: Limits::default(),
        // Its pid 1 reaps what is orphaned, and sees what is left running.
        init: true,
        resolv_conf,
        network,
        hosts: format!("127.0.0.1\tlocalhost {0}\n::1\tlocalhost {0}\n", spec.hostname),
        ..Sandbox::new(spec.lower.clone(), spec.argv.clone())
    })
}
