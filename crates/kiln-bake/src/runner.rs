//! Who carries out a RUN. The sandbox is the same as that of instances, so the binary supplies it;
//! this crate only says what has to be run.

use std::path::PathBuf;

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepExit {
    /// Exit status; of no meaning when `signal` is there.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

impl StepExit {
    /// Whether it exited with 0.
    pub const fn success(&self) -> bool {
        self.code == 0 && self.signal.is_none()
    }
}
