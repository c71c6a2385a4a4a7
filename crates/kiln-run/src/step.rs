//! A RUN step: the sandbox of an instance around a command that changes an image. What it writes
//! lands in an upper layer; nothing that it starts outlives it.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kiln_core::compose::Limits;
use kiln_store::Lower;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::error::{Context as _, RunError};
use crate::runtime::STEP_PREFIX;
use crate::session::{Request, Session, What};
use crate::spec::{BindMount, DEFAULT_CAPABILITIES, Network, Sandbox};
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
    /// True: the host's own network, for there is no other way out yet; false: only `lo`.
    pub network: bool,
    /// Folders and files of the host.
    pub mounts: Vec<BindMount>,
    /// Standard input.
    pub stdin: Vec<u8>,
    /// More capabilities, as dpkg and maintainer scripts want them.
    pub rootful: bool,
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepExit {
    /// Exit status; 128 + signal if one ended it.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
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
        self.run_step_unless(spec, &AtomicBool::new(false), output)
    }

    /// As [`Runtime::run_step`], but kills the step, and all that it started, soon after
    /// `cancelled` is set.
    ///
    /// # Errors
    /// As [`Runtime::run_step`].
    pub fn run_step_unless(
        &self,
        spec: &StepSpec,
        cancelled: &AtomicBool,
        output: &mut dyn FnMut(&[u8]),
    ) -> Result<StepExit, RunError> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{STEP_PREFIX}{}-{number}", std::process::id());
        let doing = || format!("prepare the step `{}`", spec.argv.join(" "));
        let scratch = Scratch::new(self.root().join("tmp").join(&name)).doing(doing)?;
        let stdin = input(&spec.stdin).doing(doing)?;
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).doing(doing)?;
        let stdio = [stdin, write.try_clone().doing(doing)?, write];
        let sandbox = Box::new(sandbox(spec));
        let what = What::Step { sandbox, scratch: scratch.0.clone() };
        let request = Request { group: self.group_name(&name), limits_of: None, what };
        let id = spec.argv.first().map_or("step", String::as_str);
        let mut session = Session::start(self.exe(), ROLE_STEP, id, &request, &stdio)?;
        // Else the pipe never ends.
        drop(stdio);
        let mut buffer = vec![0; 64 << 10];
        loop {
            if cancelled.load(Ordering::Acquire) {
                session.kill();
                return Ok(StepExit { code: 137, signal: Some(libc::SIGKILL) });
            }
            if matches!(poll(&mut [PollFd::new(&read, PollFlags::IN)], Some(&LOOK)), Ok(0)) {
                continue;
            }
            match rustix::io::read(&read, &mut buffer) {
                Ok(0) => break,
                Ok(length) => output(&buffer[..length]),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).doing(|| "read the step's output".to_owned()),
            }
        }
        let (code, signal) = session.wait()?;
        Ok(StepExit { code, signal })
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

fn sandbox(spec: &StepSpec) -> Sandbox {
    let mut capabilities = DEFAULT_CAPABILITIES.to_vec();
    if spec.rootful {
        capabilities.extend(ROOTFUL);
    }
    // In the host's own namespace, the host's own resolvers are the right ones.
    let resolv_conf = match spec.network {
        true => fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
        false => String::new(),
    };
    Sandbox {
        upper: Some(spec.upper_dir.clone()),
        env: spec.env.clone(),
        cwd: spec.cwd.clone(),
        user: spec.user.clone(),
        hostname: spec.hostname.clone(),
        mounts: spec.mounts.clone(),
        capabilities: capabilities.into_iter().map(str::to_owned).collect(),
        ulimits: BTreeMap::new(),
        limits: Limits::default(),
        resolv_conf,
        network: if spec.network { Network::Host } else { Network::None },
        hosts: format!("127.0.0.1\tlocalhost {0}\n::1\tlocalhost {0}\n", spec.hostname),
        ..Sandbox::new(spec.lower.clone(), spec.argv.clone())
    }
}
