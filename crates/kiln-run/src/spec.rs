//! What is to run. All of it is values: sources are prepared by the caller, names are resolved,
//! and the same specification gives the same sandbox.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use kiln_core::compose::{Limits, Tmpfs};
use kiln_store::Lower;
use serde::{Deserialize, Serialize};

use crate::net::NetSpec;

/// Name of the specification in an instance's folder.
pub const SPEC_FILE: &str = "spec.json";

pub use kiln_core::defaults::CAPABILITIES as DEFAULT_CAPABILITIES;

/// One instance: a sandbox whose program runs until it ends or is stopped. Stored as
/// `instances/<id>/spec.json`, which the shim reads.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InstanceSpec {
    /// Unique below one root; a file name.
    pub id: String,
    /// The instance's own folder; made by `Runtime::start`, mode 0700.
    pub dir: PathBuf,
    /// What it runs in, and what it runs.
    pub sandbox: Sandbox,
    /// Name or number of the stop signal; `SIGTERM` when empty.
    pub stop_signal: String,
    /// Nanoseconds between the stop signal and the kill.
    pub stop_grace: u64,
    /// When its log is rotated.
    pub log: LogLimits,
    /// Path of its group below the cgroup mount; filled in by `Runtime::start`.
    #[serde(default)]
    pub cgroup: String,
}

/// Everything between clone and exec.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sandbox {
    /// The image.
    pub lower: Lower,
    /// Folder that holds `upper/` and `work/` of a writable layer; `None`: the root is read-only.
    pub upper: Option<PathBuf>,
    /// Of the writable layer only the names are to be believed, and a change of owner costs no
    /// space: see [`kiln_store::Upper`]. It stays when the program has ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub names_only: bool,
    /// The whole command line; never empty.
    pub argv: Vec<String>,
    /// `NAME=value`. `PATH`, `HOME` and `HOSTNAME` are added when they are not there.
    pub env: Vec<String>,
    /// Absolute working directory; an empty one is made when the image has none of that name.
    pub cwd: String,
    /// `user[:group]`, names of the image's own `/etc/passwd` and `/etc/group` or numbers; empty
    /// is root.
    pub user: String,
    /// Host name.
    pub hostname: String,
    /// tmpfs mounts, by default mode 1777.
    pub tmpfs: Vec<Tmpfs>,
    /// Folders and files of the host.
    pub mounts: Vec<BindMount>,
    /// Configs and secrets.
    pub files: Vec<FileMount>,
    /// Devices of the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// Images, or parts of them; for steps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<ImageMount>,
    /// Files that are in memory only; for steps, whose specification is never written to disk.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretFile>,
    /// Size of `/dev/shm` in bytes.
    pub shm_size: u64,
    /// Run the program under an init that reaps and forwards signals.
    pub init: bool,
    /// Run nothing: the first process waits, and commands join it.
    #[serde(default)]
    pub hold: bool,
    /// Soft and hard limit, `-1` unlimited, by lower-case name without `RLIMIT_`.
    pub ulimits: BTreeMap<String, (i64, i64)>,
    /// The whole capability set, without `CAP_`. A user other than root gets it as its bounding
    /// set only, as in Docker.
    pub capabilities: BTreeSet<String>,
    /// Memory, cpu, pids.
    pub limits: Limits,
    /// Groups beside the user's own, names of the image's `/etc/group` or numbers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Kernel settings of its own namespaces.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    /// Without the filter of system calls.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unconfined: bool,
    /// Text of `/etc/hosts`.
    pub hosts: String,
    /// Text of `/etc/resolv.conf`.
    pub resolv_conf: String,
    /// Its network.
    pub network: Network,
    /// The machine that it sees.
    #[serde(default, skip_serializing_if = "Machine::is_real")]
    pub machine: Machine,
}

/// The machine that `/proc` tells of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Machine {
    /// The real one.
    #[default]
    Real,
    /// One that is the same everywhere: for steps.
    Usual,
    /// Another one, to compare with.
    Other,
}

impl Machine {
    fn is_real(&self) -> bool {
        *self == Self::Real
    }
}

/// What network a sandbox sees.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// A namespace of its own with nothing but `lo`.
    None,
    /// A namespace of its own with an address that is routed to it.
    Routed(NetSpec),
    /// The host's namespace.
    Host,
    /// That of another instance's program, which is this process.
    With {
        /// Its pid on the host.
        pid: i32,
        /// Clock ticks from boot to its start: with the pid, names the process for good.
        start_time: u64,
    },
}

impl Network {
    /// Whether a namespace is made for it.
    pub(crate) const fn is_made(&self) -> bool {
        match self {
            Self::None | Self::Routed(_) => true,
            Self::Host | Self::With { .. } => false,
        }
    }
}

/// One folder or file of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindMount {
    /// Absolute path on the host; it must exist.
    pub source: PathBuf,
    /// Absolute path in the instance.
    pub target: String,
    /// Not writable through this mount.
    pub read_only: bool,
    /// Device and inode that the source was found to be; anything else is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<(u64, u64)>,
}

/// One device of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Absolute path of its node on the host, without links.
    pub source: PathBuf,
    /// Absolute path in the instance.
    pub target: String,
    /// One of blocks; else of characters.
    pub block: bool,
    /// What the node was found to be; anything else is refused.
    pub major: u32,
    /// Likewise.
    pub minor: u32,
    /// What may be done with it: `r`, `w`, `m`.
    pub access: String,
}

/// One config or secret: a read-only file with its own owner and mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMount {
    /// Host file with the content, for example an object of the store.
    pub source: PathBuf,
    /// Absolute path in the instance.
    pub target: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

/// An image, or a file or directory of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageMount {
    /// The image.
    pub lower: Lower,
    /// Folder that holds `upper/` and `work/` of a layer that takes writes; `None`: read-only.
    pub upper: Option<PathBuf>,
    /// What of it, relative to its root, without symlinks on the way; empty is all.
    pub path: PathBuf,
    /// Whether that is a directory.
    pub dir: bool,
    /// Absolute path in the sandbox.
    pub target: String,
    /// Not writable through this mount.
    pub read_only: bool,
}

/// A file whose content is nowhere but in memory.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretFile {
    /// What is in it.
    pub content: Vec<u8>,
    /// Absolute path in the sandbox.
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

/// When a log is rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLimits {
    /// Bytes of one file.
    pub size: u64,
    /// Files kept, the current one among them.
    pub count: u32,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { size: 10 << 20, count: 3 }
    }
}

impl Sandbox {
    /// A sandbox of `lower` that runs `argv` as root with Docker's defaults, a read-only root,
    /// 64 MB of `/dev/shm` and no network.
    pub fn new(lower: Lower, argv: Vec<String>) -> Self {
        Self {
            lower,
            upper: None,
            names_only: false,
            argv,
            env: Vec::new(),
            cwd: "/".to_owned(),
            user: String::new(),
            hostname: "localhost".to_owned(),
            tmpfs: Vec::new(),
            mounts: Vec::new(),
            files: Vec::new(),
            devices: Vec::new(),
            images: Vec::new(),
            secrets: Vec::new(),
            shm_size: 64 << 20,
            init: false,
            hold: false,
            ulimits: BTreeMap::new(),
            capabilities: DEFAULT_CAPABILITIES.iter().map(|&name| name.to_owned()).collect(),
            limits: Limits::default(),
            groups: Vec::new(),
            sysctls: BTreeMap::new(),
            unconfined: false,
            hosts: "127.0.0.1\tlocalhost\n::1\tlocalhost\n".to_owned(),
            resolv_conf: String::new(),
            network: Network::None,
            machine: Machine::Real,
        }
    }
}

impl InstanceSpec {
    /// An instance called `id` in `dir` with Docker's defaults: SIGTERM, ten seconds, 3 × 10 MB.
    pub fn new(id: impl Into<String>, dir: impl Into<PathBuf>, sandbox: Sandbox) -> Self {
        Self {
            id: id.into(),
            dir: dir.into(),
            sandbox,
            stop_signal: "SIGTERM".to_owned(),
            stop_grace: 10_000_000_000,
            log: LogLimits::default(),
            cgroup: String::new(),
        }
    }
}

/// The number of a signal given as `SIGTERM`, `TERM` or `15`.
pub fn signal_number(name: &str) -> Option<i32> {
    const NAMES: [(&str, i32); 31] = [
        ("HUP", libc::SIGHUP),
        ("INT", libc::SIGINT),
        ("QUIT", libc::SIGQUIT),
        ("ILL", libc::SIGILL),
        ("TRAP", libc::SIGTRAP),
        ("ABRT", libc::SIGABRT),
        ("BUS", libc::SIGBUS),
        ("FPE", libc::SIGFPE),
        ("KILL", libc::SIGKILL),
        ("USR1", libc::SIGUSR1),
        ("SEGV", libc::SIGSEGV),
        ("USR2", libc::SIGUSR2),
        ("PIPE", libc::SIGPIPE),
        ("ALRM", libc::SIGALRM),
        ("TERM", libc::SIGTERM),
        ("STKFLT", libc::SIGSTKFLT),
        ("CHLD", libc::SIGCHLD),
        ("CONT", libc::SIGCONT),
        ("STOP", libc::SIGSTOP),
        ("TSTP", libc::SIGTSTP),
        ("TTIN", libc::SIGTTIN),
        ("TTOU", libc::SIGTTOU),
        ("URG", libc::SIGURG),
        ("XCPU", libc::SIGXCPU),
        ("XFSZ", libc::SIGXFSZ),
        ("VTALRM", libc::SIGVTALRM),
        ("PROF", libc::SIGPROF),
        ("WINCH", libc::SIGWINCH),
        ("IO", libc::SIGIO),
        ("PWR", libc::SIGPWR),
        ("SYS", libc::SIGSYS),
    ];
    let upper = name.trim().to_ascii_uppercase();
    if let Ok(number) = upper.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(rest) = short.strip_prefix("RTMIN") {
        let offset = if rest.is_empty() { 0 } else { rest.strip_prefix('+')?.parse().ok()? };
        let number = libc::SIGRTMIN().checked_add(offset)?;
        return (number <= libc::SIGRTMAX()).then_some(number);
    }
    NAMES.iter().find(|(known, _)| *known == short).map(|(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name_and_number() {
        for (name, number) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("SIGNONE", None),
            ("0", None),
            ("65", None),
            ("", None),
        ] {
            assert_eq!(signal_number(name), number, "{name}");
        }
    }
}
