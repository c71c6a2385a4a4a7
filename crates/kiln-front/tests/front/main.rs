//! The front as a process, on loopback, between real clients and real backends.
#![allow(clippy::print_stdout)]

mod backend;
mod client;
mod datagrams;
mod drain;
mod finishing;
mod h2_limits;
mod h2c;
mod hostile;
mod http;
mod limits;
mod ports;
mod process;
mod raw;
mod root;
mod silence;
mod streams;
mod switch;
