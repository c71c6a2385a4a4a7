//! What tests through the real binary need. Nothing here knows how Kiln works inside: it runs the
//! program, talks to its ports, and looks at what the kernel shows.
//!
//! | module | noun |
//! |---|---|
//! | [`world`] | one root folder of its own, shut down and looked over when the test ends |
//! | [`project`] | a directory with a `compose.yaml` and its files |
//! | [`call`] | one run of a program, with a deadline |
//! | [`output`] | what a run printed and how it ended |
//! | [`http`] | a minimal HTTP/1.1 client with keep-alive |
//! | [`probe`] | an open-loop prober that counts lost requests |
//! | [`ports`] | free ports that no other test has |
//! | [`server`] | a tiny HTTP server as a static program |
//! | [`writer`] | a program that cries when it runs twice on the same data |
//! | [`wait`] | waiting for a condition with a deadline |
//! | [`leftovers`] | what a root left behind on the machine |
//! | [`registry`] | a registry of images, `docker-registry`, and a server of tokens for it |
//! | [`peers`] | Docker Engine and buildah, to be compared with and measured against |
//!
//! Helpers that tests call directly panic with a message that shows the whole evidence; those that
//! the bench uses too return `anyhow::Result`.
#![forbid(unsafe_code)]

pub mod call;
pub mod datagrams;
pub mod http;
pub mod leftovers;
pub mod output;
pub mod peers;
pub mod ports;
pub mod probe;
pub mod project;
pub mod registry;
pub mod server;
pub mod wait;
pub mod world;
pub mod writer;

pub use call::{Call, Running};
pub use http::{Client, Response};
pub use leftovers::Leftovers;
pub use output::Output;
pub use ports::Port;
pub use probe::{Probe, Report};
pub use project::Project;
pub use registry::Registry;
pub use wait::wait_until;
pub use world::World;
