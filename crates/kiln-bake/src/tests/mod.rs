//! Bakes with a real store, real overlay mounts and a fake for the sandbox.

mod build;
mod context;
mod copy;
mod fake;
mod run;
