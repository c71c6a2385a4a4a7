//! Standard OCI out of the store and in again: layers, configurations, manifests, indexes, and
//! the folders and archives that carry them.
//!
//! What is written depends on the image's identity and the chosen compression alone, so the same
//! image exported on two machines has the same manifest digest. What is read was written by
//! anybody, and is believed in nothing that a digest does not prove. Formats and reasons are in
//! `docs/export.md`.
//!
//! | module | noun |
//! |---|---|
//! | [`read`](mod@read) | layout or archive → image in the store |
//! | [`write`](mod@write) | images → layout folder or archive |
//! | [`compress`] | bytes → blocks, compressed on all cores, always the same |
//! | `header`, `layer` | tree → canonical tar |
//! | `image` | tree + configuration → layer, configuration, manifest |
//! | `platform` | for which processor the programs in a tree are |
//! | `source` | one file of a layout or archive |
//! | `select` | index → the manifest that is meant |
//! | [`remote`] | an image of a registry → image in the store |
//! | `entry`, `rootfs`, `apply` | layers, which `kiln-archive` reads → tree |
//! | `listing` | what a layer does, as kept in the store |
//! | `document` | the JSON of the OCI image specification |
#![forbid(unsafe_code)]

mod apply;
pub mod compress;
mod document;
mod entry;
pub mod error;
mod header;
mod image;
mod layer;
mod listing;
pub mod platform;
pub mod read;
pub mod remote;
mod rootfs;
mod select;
mod source;
pub mod write;

pub use compress::Compression;
pub use error::{Error, Result};
pub use platform::Platform;
pub use read::{Found, Imported, Limits, Selector, Source, read};
pub use write::{Exported, Format, Item, Owner, to_archive, to_layout};
