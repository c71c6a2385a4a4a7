//! Bakes with a real store, real overlay mounts and a fake for the sandbox.

mod add;
mod build;
mod capture;
mod context;
mod copy;
mod fake;
mod memory;
mod mount;
mod onbuild;
mod plan;
mod remembered;
mod run;
mod stages;
mod web;
