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
//! | [`lock`], `lock_text`, `date` | the file `kiln.lock`, and how it is written |
//! | [`locked_image`] | its part for images of registries |
//! | `resolve` | compose file → lock |
//! | `image` | locked base → image |
//! | `sources`, `control` | what counts of the host's apt; the form of its files |
//! | `apt`, `answer`, `process` | apt in a private root; what it says; running it |
//! | `fetch` | package files in the store |
//! | `ar`, `deb`, `unpack` | package files, decoded |
//! | `assemble`, `dpkg_db`, `accounts` | the unpacked tree, dpkg's database, users and groups |
//! | `order`, `configure` | the order of the packages' scripts; running them |
//! | `output`, `normalise` | what scripts print; what is taken out |
//! | `minimal` | bases without configuration |
//! | `error`, `progress` | what can go wrong; what is told on the way |

mod accounts;
mod answer;
mod apt;
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
mod lock_text;
pub mod locked_image;
mod minimal;
mod normalise;
mod order;
mod output;
mod process;
mod progress;
mod resolve;
mod sources;
mod unpack;

#[cfg(test)]
mod tests;

pub use apt::collect as collect_lists;
#[cfg(fuzzing)]
pub(crate) use deb::read as read_package;
pub use error::BaseError;
pub use fetch::{IMAGE_REF_KIND, REF_KIND};
pub use image::{RECIPE, bake_base, key, rebake_base};
pub use lock::{Lock, LockedBase, LockedPackage};
pub use locked_image::{LockedImage, LockedPlatform};
pub use progress::{Phase, Progress, Watch};
pub use resolve::resolve;
