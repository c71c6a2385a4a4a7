//! An echo over UDP as a static program: `datagrams PORT NAME` answers each datagram with its name, a
//! space, and what came.

use std::sync::OnceLock;

/// The program's bytes, compiled by the machine's C compiler once in this process.
///
/// # Panics
/// If there is no working C compiler.
pub fn program() -> &'static [u8] {
    static PROGRAM: OnceLock<Vec<u8>> = OnceLock::new();
    let source = include_str!("datagrams.c");
    PROGRAM
        .get_or_init(|| crate::server::compile(source).unwrap_or_else(|error| panic!("{error:#}")))
}
