//! The content store: what is kept on disk, and how it stays whole.
//!
//! Everything that an agent owns hangs on one root folder; its layout and its formats are in
//! `docs/formats.md`, the reasons in `docs/store.md`. [`Store`] is the door.
//!
//! | module | noun |
//! |---|---|
//! | [`store`] | the root folder: opening it, its format, recovery |
//! | `inherited` | what its folders take over from the one around it: nothing |
//! | [`objects`] | contents by digest |
//! | `disk` | every sync, by who asks for it |
//! | [`durable`] | what reaches the disk, and when |
//! | [`typed`] | trees, configurations and releases as objects |
//! | [`steps`] | results of bake steps by key |
//! | [`refs`], `days` | named references that keep digests alive; how long they are not used |
//! | [`lease`], [`gc`], `marks` | use against collection; collection; what it keeps |
//! | [`check`], [`fsck`] | re-hashing; looking at everything, and healing |
//! | [`ledger`] | the append-only log |
//! | [`pointer`] | which release a stage points to |
//! | [`erofs`] | tree → EROFS image |
//! | [`links`] | tree → folder of hard links, for older kernels |
//! | [`lower`] | tree → recipe for a mount, and which kind this kernel can do |
//! | [`mount`] | the mount API: images, binds, tmpfs |
// A log that is full or closed must not end what writes to it, as `eprintln!` would.
#![cfg_attr(not(test), warn(clippy::print_stderr))]

pub mod check;
mod days;
mod disk;
pub mod durable;
pub mod erofs;
pub mod error;
pub mod fsck;
pub mod gc;
mod inherited;
pub mod lease;
pub mod ledger;
pub mod links;
pub mod lower;
mod marks;
pub mod mount;
pub mod objects;
mod owner;
mod partial;
pub mod pointer;
pub mod refs;
pub mod regular;
pub mod steps;
pub mod store;
pub mod typed;

#[cfg(test)]
mod tests;

pub use durable::{write_atomic, write_durable};
pub use error::{Error, Result};
pub use fsck::{Damage, Findings};
pub use gc::{GcOptions, GcReport, Roots};
pub use lease::Lease;
pub use lower::{Backing, Lower, StepLower};
pub use mount::Upper;
pub use partial::Partial;
pub use pointer::Pointer;
pub use refs::{RefName, Reference, References};
pub use steps::StepTurn;
pub use store::Store;
pub use typed::StoredTree;

pub use kiln_core::tree::EPOCH;
