//! The front as a process, on loopback, between real clients and real backends.
#![allow(clippy::print_stdout)]

mod backend;
mod client;
mod drain;
mod http;
mod ports;
mod process;
mod root;
mod streams;
mod switch;
