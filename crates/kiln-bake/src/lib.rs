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
//! | [`globals`], [`platform`] | arguments before the first FROM; `os/arch/variant` |
//! | `schedule` | what needs what: stages side by side |
//! | [`stage`] | the state of a stage while its instructions are carried out |
//! | [`copy`] | COPY and ADD: sources selected, destination edited |
//! | [`archive`] | tar archives that ADD unpacks |
//! | [`remote`] | URLs and Git repositories that ADD fetches |
//! | [`outside`] | build contexts that are repositories or archives |
//! | [`edit`] | changes of a tree that need neither mount nor process |
//! | [`mode`] | `--chmod` |
//! | [`users`] | names in the tree's `/etc/passwd` and `/etc/group` |
//! | [`paths`] | cleaning paths; resolving symlinks inside a tree |
//! | [`glob`], [`ignore`] | Go's `filepath.Match`; `.dockerignore` |
//! | [`context`], [`statcache`], `remembered` | the build context as a tree; what need not be read again |
//! | [`step`], [`mount`] | one RUN, and what it has mounted |
//! | [`options`] | what is said beside the Dockerfile |
//! | [`runner`] | who carries out a RUN: the seam to the sandbox |
//! | [`capture`] | an overlay's upper layer → changes of a tree |
//! | `keystore` | Java's trust store, without times |
//! | [`verify`] | whether the same inputs give the same bits, and if not, why |
//! | [`base`] | bases from distribution packages, and the lock |
//! | [`error`] | what can go wrong, and whose fault it is |

pub mod archive;
pub mod bake;
pub mod base;
pub mod capture;
pub mod context;
pub mod copy;
pub mod dockerfile;
pub mod edit;
pub mod error;
#[cfg(fuzzing)]
pub mod fuzz;
pub mod glob;
pub mod globals;
pub mod ignore;
mod key;
mod keystore;
pub mod mode;
pub mod mount;
pub mod options;
pub mod outside;
mod parallel;
pub mod paths;
pub mod plan;
pub mod platform;
mod remembered;
pub mod remote;
pub mod runner;
mod schedule;
mod signal;
pub mod stage;
pub mod statcache;
pub mod step;
pub mod users;
pub mod verify;

pub use bake::{Act, Baked, Baker, BuildRequest, Progress, RecordedStep};
pub use error::BakeError;
pub use options::{BuildOptions, Secret, SecretSource, size_argument};
pub use runner::{Around, ImageMount, SecretFile, StepExit, StepMount, StepRunner, StepSpec};

/// The one mtime of every file in an image, in seconds: 2020-01-01T00:00:00Z. Steps see it as
/// `SOURCE_DATE_EPOCH`.
pub const EPOCH: u64 = 1_577_836_800;

#[cfg(test)]
mod tests;
