//! The words of Kiln and its pure decisions.
//!
//! Nothing here does I/O, reads a clock or spawns anything: values go in, values come out.
//!
//! | module | noun |
//! |---|---|
//! | [`digest`] | sha256 digests, the one kind of identity |
//! | [`tree`] | a normalised file tree and its canonical listing |
//! | [`tree_diff`] | what differs between two trees |
//! | [`image`] | tree + configuration |
//! | [`compose`] | what the user wrote: `compose.yaml` |
//! | [`data`] | what two instances could both write, by identity |
//! | [`release`] | what a deploy carries: everything pinned by digest |
//! | [`canonical`] | one text for one value: what digests are over |
//! | [`settings`] | Compose service + image configuration → what a release pins |
//! | [`defaults`] | what holds where nothing is stated |
//! | [`stage`] | a stage as a value: policy, slots, traffic, members, and its moves |
//! | [`plan`] | target and observed → what a deploy will do |
//! | [`written`] | what an instance wrote beside its volumes, in few words |
//! | [`complaint`] | what programs say that cannot write to a read-only root |
//! | [`policy`] | what a root allows beyond the ordinary |
//! | [`steps`] | a plan as steps with their reasons, and the way back |
//! | [`exit`] | the public exit codes |
#![forbid(unsafe_code)]

pub mod canonical;
pub mod complaint;
pub mod compose;
pub mod data;
pub mod defaults;
pub mod digest;
pub mod exit;
pub mod image;
pub mod plan;
pub mod policy;
pub mod release;
pub mod settings;
pub mod stage;
pub mod steps;
pub mod tree;
pub mod tree_diff;
pub mod written;

pub use digest::Digest;
pub use image::{ImageConfig, ImageId};
pub use release::Release;
pub use tree::Tree;
