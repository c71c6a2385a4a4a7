//! What a long operation says while it goes on, and how it is stopped.

use std::sync::atomic::{AtomicBool, Ordering};

use super::error::BaseError;

/// What is being done to a base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Package lists come from the mirrors.
    Update,
    /// apt chooses packages.
    Resolve,
    /// Package files come from the mirrors; counted in bytes.
    Download,
    /// Package files are decoded; counted in packages.
    Unpack,
    /// Scripts of the packages run; counted in packages.
    Configure,
    /// What the scripts wrote is read back.
    Capture,
    /// A script printed a line, in `detail`, that may mean trouble.
    Warning,
}

/// A moment of a long operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Name of the base; the suite for [`Phase::Update`].
    pub base: String,
    /// What is being done.
    pub phase: Phase,
    /// How much of it.
    pub done: u64,
    /// Of how much; 0 when that is not known.
    pub total: u64,
    /// The package at hand; may be empty.
    pub detail: String,
}

/// The caller's side of a long operation.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// Told of every step; called from several threads.
    pub progress: &'a (dyn Fn(&Progress) + Sync),
    /// Set to stop: the operation ends with [`BaseError::Cancelled`] soon after.
    pub cancel: &'a AtomicBool,
}

impl std::fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("cancel", self.cancel).finish_non_exhaustive()
    }
}

impl Watch<'_> {
    /// Tells of a step, and fails when the operation is to stop.
    pub(crate) fn step(
        &self,
        base: &str,
        phase: Phase,
        (done, total): (u64, u64),
        detail: &str,
    ) -> Result<(), BaseError> {
        (self.progress)(&Progress {
            base: base.to_owned(),
            phase,
            done,
            total,
            detail: detail.to_owned(),
        });
        self.check()
    }

    /// Fails when the operation is to stop.
    pub(crate) fn check(&self) -> Result<(), BaseError> {
        if self.cancel.load(Ordering::Relaxed) { Err(BaseError::Cancelled) } else { Ok(()) }
    }
}
