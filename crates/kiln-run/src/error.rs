//! What can go wrong, and where.

use std::fmt::Display;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Why an instance, an exec or a step could not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The specification cannot be run on any machine.
    #[error("instance `{id}`: {message}")]
    Spec {
        /// The instance.
        id: String,
        /// What is wrong with it and what to do.
        message: String,
    },
    /// The sandbox could not be made, or the program could not be executed in it.
    #[error("`{id}` did not start: {step}: {message}")]
    Start {
        /// The instance, exec or step.
        id: String,
        /// What was being done.
        step: String,
        /// What was found.
        message: String,
        /// What a shell would exit with: 127 when there is no such program, 126 when it cannot
        /// be executed. `None` when it did not come to that.
        status: Option<u8>,
    },
    /// The shim ended without saying why.
    #[error("`{id}`: its shim ended before the program started{}", ending(.said))]
    ShimDied {
        /// The instance, exec or step.
        id: String,
        /// What it wrote to standard error.
        said: String,
    },
    /// There is no such instance, or it is no longer running.
    #[error("instance in {} is not running", .dir.display())]
    NotRunning {
        /// Folder of the instance.
        dir: PathBuf,
    },
    /// Whether it runs is not known: nothing may be started in its place.
    #[error("it is not known whether `{id}` runs: {why}")]
    Unknown {
        /// The instance.
        id: String,
        /// What was found.
        why: String,
    },
    /// An operation of the host failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, with its operand.
        what: String,
        /// What the system answered.
        source: io::Error,
    },
}

fn ending(text: &str) -> String {
    if text.trim().is_empty() { String::new() } else { format!("; it said: {}", text.trim()) }
}

/// One failed operation between clone and exec. It travels through the report pipe, so it is
/// words, not types.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fault {
    /// What was being done, with its operand.
    pub(crate) step: String,
    /// What was found.
    pub(crate) message: String,
    /// See [`RunError::Start`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<u8>,
}

impl Fault {
    pub(crate) fn new(step: impl Into<String>, message: impl Display) -> Self {
        Self { step: step.into(), message: message.to_string(), status: None }
    }

    /// With what a shell would exit with.
    pub(crate) fn with_status(self, status: u8) -> Self {
        Self { status: Some(status), ..self }
    }

    /// As an error of the instance, exec or step called `id`.
    pub(crate) fn of(self, id: &str) -> RunError {
        let Self { step, message, status } = self;
        RunError::Start { id: id.to_owned(), step, message, status }
    }
}

/// Names the operation that failed.
pub(crate) trait Context<T> {
    /// As a [`Fault`].
    fn step(self, step: impl FnOnce() -> String) -> Result<T, Fault>;
    /// As a [`RunError::Io`].
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, RunError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, Fault> {
        self.map_err(|error| Fault::new(step(), error.into()))
    }

    fn doing(self, what: impl FnOnce() -> String) -> Result<T, RunError> {
        self.map_err(|error| RunError::Io { what: what(), source: error.into() })
    }
}
