//! Bases: just-enough operating systems from distribution packages. Reasons and measurements are
//! in `docs/bases.md`, the lock's format in `docs/kiln-lock.md`.
//!
//! ```text
//! compose file ─ resolve ─▶ kiln.lock ─ bake_base ─▶ image
//!                apt chooses,            fetch, unpack, assemble,
//!                one bake learns ids     configure, normalise
//! ```
//!
//! | module | noun |
//! |---|---|
//! | [`lock`] | the file `kiln.lock` |
//! | `resolve` | compose file → lock |
//! | `image` | locked base → image |
//! | `sources`, `apt`, `process` | the host's apt, and apt in a private root |
//! | `fetch` | package files in the store |
//! | `ar`, `deb`, `unpack` | package files, decoded |
//! | `assemble`, `dpkg_db`, `accounts` | the unpacked tree, dpkg's database, users and groups |
//! | `configure`, `output`, `normalise` | the packages' scripts; what they print; what goes |
//! | `minimal` | bases without configuration |

mod accounts;
mod apt;
mod ar;
mod assemble;
mod configure;
mod control;
mod date;
mod deb;
mod dpkg_db;
mod error;
mod fetch;
mod image;
pub mod lock;
mod minimal;
mod normalise;
mod output;
mod process;
mod progress;
mod resolve;
mod sources;
mod unpack;

#[cfg(test)]
mod tests;

pub use error::BaseError;
pub use fetch::REF_KIND;
pub use image::{RECIPE, bake_base, key, rebake_base};
pub use lock::{Lock, LockedBase, LockedPackage};
pub use progress::{Phase, Progress, Watch};
pub use resolve::resolve;
