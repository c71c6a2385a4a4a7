//! One of apt's programs, to its end.

use std::process::Command;

pub(crate) use kiln_remote::program::Output;
use kiln_remote::program::{self, ProgramError};

use super::error::BaseError;
use super::progress::Watch;

/// Runs `command` to its end, or until the user wants one.
pub(crate) fn run(command: Command, watch: Watch<'_>) -> Result<Output, BaseError> {
    program::run(command, watch.cancel).map_err(|error| match error {
        ProgramError::Cancelled => BaseError::Cancelled,
        ProgramError::Failed { program, source } => BaseError::NoApt { program, source },
    })
}
