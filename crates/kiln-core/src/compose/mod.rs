//! What the user wrote: the Compose file, interpolated, merged and checked.
//!
//! [`load`] is the way in. Text becomes a typed [`Project`] in four steps, each with its place in
//! the source kept, so that every error names file, line and key:
//!
//! | step | where |
//! |---|---|
//! | find and read the files, and `.env` | `find`, `dotenv` |
//! | YAML with anchors, aliases, merge keys → trees | `yaml` |
//! | variables replaced, `extends` and `include` followed, all merged → one tree | `assemble`, `interpolate`, `extends`, `include`, `merge`, `unique`, `paths` |
//! | the tree → the [model](Project), key by key | `project`, `service` and its neighbours, over the cursor of `reader` |
//! | what only the whole can show: loops, ports taken twice | `check` |
//! | once more with the files of each stage over it, which change no image | `load`, `stage` |
//!
//! `kiln config` prints that tree in Compose's normal form: `configuration`.
//!
//! Which key is honoured, listed or refused stands in `keys`, and for people in `docs/compose.md`.
//! A reader that meets something wrong says so to the [`Context`](reader::Context) and goes on with
//! the next key, so that one run tells all.

mod assemble;
mod build;
mod check;
mod configuration;
mod devices;
mod dotenv;
mod environment;
mod error;
mod extends;
mod files;
mod find;
mod hooks;
mod include;
mod interpolate;
mod keys;
mod kiln;
mod limits;
mod load;
mod merge;
mod model;
mod mounts;
mod namespaces;
mod network;
mod paths;
mod ports;
mod project;
mod reader;
mod service;
mod stage;
mod unique;
mod units;
mod volumes;
mod yaml;

pub use configuration::Configuration;
pub use error::{ComposeError, ComposeErrors, closest};
pub use interpolate::Variable;
pub use keys::{DOCUMENTED_BELOW, documentation};
pub use load::{LoadRequest, ReadFile, configuration, load, variables};
pub use model::*;
pub use mounts::is_docker;
pub use namespaces::is_own_sysctl;
pub use project::valid_volume;
