//! The runtime through its public interface, on this machine's kernel. Wants root, and busybox as
//! a static binary.

mod bench;
mod exec;
mod kit;
mod lifecycle;
mod limits;
mod logs;
mod network;
mod sandbox;
mod step;
mod sweep;
mod unknown;
mod zygote;
