//! What comes from other machines: one client for HTTP with its TLS, proxies and credentials, and
//! Git, the host's own. Whoever answers is a stranger: an answer has a bound, silence an end, and
//! the caller can stop at any time. What is fetched goes straight into the store.
//!
//! Which content is *meant* by an address, its caller knows: `kiln.lock` and `--checksum` are
//! `kiln-bake`'s.
//!
//! | module | noun |
//! |---|---|
//! | [`http`] | a file behind a URL; proxies; who is trusted |
//! | [`reference`] | what a text names: a URL, or a repository with reference and folder |
//! | [`git`] | which commit a name is, and the files of a commit |
//! | `dot_git` | its `.git`, always the same |
//! | [`registry`] | images at registries |
//! | [`program`] | a program of the host that can be stopped |
//! | [`error`] | what can go wrong |
#![forbid(unsafe_code)]

mod dot_git;
pub mod error;
pub mod git;
pub mod http;
pub mod program;
pub mod reference;
pub mod registry;

pub use error::RemoteError;
pub use git::{Git, LockedGit};
pub use http::Proxies;
pub use reference::{GitReference, Reference};
