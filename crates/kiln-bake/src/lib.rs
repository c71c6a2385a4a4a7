//! Source → image: what turns a Dockerfile and its context into a file tree and a configuration.
//!
//! The flow in one line: [`bake`] reads and plans, [`stage`] walks the instructions, [`edit`]
//! changes trees in memory, [`step`] runs commands and [`capture`] reads back what they changed.
//!
//! | module | noun |
//! |---|---|
//! | [`bake`] | one build request, from Dockerfile to image |
//! | [`dockerfile`] | the syntax: lines, words, expansion, instructions |
//! | [`plan`] | which stages, bases and contexts a target needs |
//! | [`stage`] | the state of a stage while its instructions are carried out |
//! | [`copy`] | COPY and ADD: sources selected, destination edited |
//! | [`edit`] | changes of a tree that need neither mount nor process |
//! | [`mode`] | `--chmod` |
//! | [`users`] | names in the tree's `/etc/passwd` and `/etc/group` |
//! | [`paths`] | cleaning paths; resolving symlinks inside a tree |
//! | [`glob`], [`ignore`] | Go's `filepath.Match`; `.dockerignore` |
//! | [`context`], [`statcache`] | the build context as a tree; what need not be read again |
//! | [`step`] | one RUN |
//! | [`runner`] | who carries out a RUN: the seam to the sandbox |
//! | [`capture`] | an overlay's upper layer → changes of a tree |
//! | [`base`] | bases from distribution packages, and the lock |
//! | [`error`] | what can go wrong, and whose fault it is |

pub mod bake;
pub mod base;
pub mod capture;
pub mod context;
pub mod copy;
pub mod dockerfile;
pub mod edit;
pub mod error;
pub mod glob;
pub mod ignore;
mod key;
pub mod mode;
mod parallel;
pub mod paths;
pub mod plan;
pub mod runner;
mod signal;
pub mod stage;
pub mod statcache;
pub mod step;
pub mod users;

pub use bake::{Baked, Baker, BuildRequest, Progress};
pub use error::BakeError;
pub use runner::{StepExit, StepMount, StepRunner, StepSpec};

/// The one mtime of every file in an image, in seconds: 2020-01-01T00:00:00Z. Steps see it as
/// `SOURCE_DATE_EPOCH`.
pub const EPOCH: u64 = 1_577_836_800;

#[cfg(test)]
mod tests;
