//! `kiln front` without the rest of `kiln`, for the crate's process tests.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    ExitCode::from(kiln_front::dispatch(&args).unwrap_or(2))
}
