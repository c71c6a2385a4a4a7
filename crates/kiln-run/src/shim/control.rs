//! The control socket: one JSON line each way. What its two ends say.

use serde::{Deserialize, Serialize};

use crate::known::ExitInfo;

/// Name of the socket in an instance's folder.
pub(crate) const SOCKET: &str = "shim.sock";
/// Name of the file that holds how an instance ended.
pub(crate) const EXIT_FILE: &str = "exit.json";

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Request {
    /// What runs: answered by [`Reply::Running`].
    Status,
    /// Sends a signal: answered by [`Reply::Done`].
    Signal {
        /// Its number.
        signal: i32,
    },
    /// Sends a signal, and SIGKILL after a grace; answered by [`Reply::Exited`].
    Stop {
        /// Its number.
        signal: i32,
        /// Nanoseconds until the kill.
        grace: u64,
    },
    /// SIGKILL to all; answered by [`Reply::Exited`].
    Kill,
    /// Answered by [`Reply::Exited`] when it has ended.
    Wait,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// It runs.
    Running {
        /// Pid of the program, or of its init.
        pid: i32,
        /// With the pid, names the process for good.
        start_time: u64,
        /// Nanoseconds since the Unix epoch.
        since: u64,
        /// Lines of its log that could not be written.
        dropped: u64,
    },
    /// Done.
    Done,
    /// Not done, and why.
    Refused(String),
    /// It has ended, and nothing of it is left but its folder.
    Exited(ExitInfo),
}
