//! Who carries out a RUN. The sandbox is the same as that of instances, so the binary supplies it;
//! this crate only says what has to be run.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use kiln_core::compose::Tmpfs;
use kiln_store::Lower;

/// Runs one command in a sandbox over an image.
pub trait StepRunner: Sync {
    /// Runs `spec` to its end and hands every chunk of standard output and standard error to
    /// `output`, in the order in which they were written. When it returns, no process of the step
    /// is left and nothing is mounted any more.
    ///
    /// # Errors
    /// Says why the command could not be started at all. A command that ran and failed is no
    /// error: it is a [`StepExit`].
    fn run(&self, spec: &StepSpec, output: &mut dyn FnMut(&[u8])) -> Result<StepExit, String>;
}

/// What to run.
#[derive(Debug, Clone)]
pub struct StepSpec {
    /// The tree to run on.
    pub lower: Lower,
    /// Directory that holds the overlay's `upper/` and `work/`; they are made if missing.
    pub upper_dir: PathBuf,
    /// Command line; the first word is looked up in `PATH`.
    pub argv: Vec<String>,
    /// `NAME=value`, complete.
    pub env: Vec<String>,
    /// Absolute working directory.
    pub cwd: String,
    /// `user[:group]`, names or numbers, resolved in the tree; `0:0` for root.
    pub user: String,
    /// Whether the step may use the network.
    pub network: bool,
    /// Host name that the step sees.
    pub hostname: String,
    /// Further mounts, files or directories.
    pub mounts: Vec<StepMount>,
    /// What the step reads from standard input.
    pub stdin: Vec<u8>,
    /// Wide capabilities, for configuring a base by its own package manager.
    pub rootful: bool,
    /// Set to end the step at once, with all that it started.
    pub stop: Arc<AtomicBool>,
    /// What else there is around it.
    pub around: Around,
}

/// What a step has around it besides files of the host.
#[derive(Debug, Clone, Default)]
pub struct Around {
    /// Images, or parts of them.
    pub images: Vec<ImageMount>,
    /// Empty directories in memory.
    pub tmpfs: Vec<Tmpfs>,
    /// Files that are never on a disk.
    pub secrets: Vec<SecretFile>,
    /// Size of `/dev/shm` in bytes, if it is not the usual one.
    pub shm_size: Option<u64>,
    /// Soft and hard limit, `-1` unlimited, by lower-case name without `RLIMIT_`.
    pub ulimits: BTreeMap<String, (i64, i64)>,
}

/// An image, or a file or directory of one, in the sandbox.
#[derive(Debug, Clone)]
pub struct ImageMount {
    /// The image.
    pub lower: Lower,
    /// Directory that takes what is written, which has to be there; `None`: read-only.
    pub upper_dir: Option<PathBuf>,
    /// What of it, without a leading slash and without symlinks on the way; empty is all.
    pub path: PathBuf,
    /// Whether that is a directory.
    pub dir: bool,
    /// Absolute, in the sandbox.
    pub target: String,
    /// Mounted read-only.
    pub read_only: bool,
}

/// A file whose content is nowhere but in memory.
#[derive(Clone)]
pub struct SecretFile {
    /// What is in it.
    pub content: Vec<u8>,
    /// Absolute, in the sandbox.
    pub target: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

impl std::fmt::Debug for SecretFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretFile").field("target", &self.target).finish_non_exhaustive()
    }
}

/// A file or directory of the host, bound into the sandbox.
#[derive(Debug, Clone)]
pub struct StepMount {
    /// On the host.
    pub source: PathBuf,
    /// Absolute, in the sandbox. Missing parents below a tmpfs (`/dev`) are made by the sandbox.
    pub target: String,
    /// Mounted read-only.
    pub read_only: bool,
}

/// How the command ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StepExit {
    /// Exit status; of no meaning when `signal` is there.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Why the runner ended it, if it did not end by itself: `was ended: …`.
    pub stopped: Option<String>,
    /// What users should know of it, a sentence each.
    pub notices: Vec<String>,
}

impl StepExit {
    /// Whether it exited with 0.
    pub const fn success(&self) -> bool {
        self.code == 0 && self.signal.is_none() && self.stopped.is_none()
    }
}
