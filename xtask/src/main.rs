//! The project's own tools.
//!
//! | command | does |
//! |---|---|
//! | `cargo xtask test` | installs what the tests need, runs them all, adds up |
//! | `cargo xtask check` | format, lints, dependencies, rules of the repository |
//! | `cargo xtask docs` | writes the tables of the Compose reader into `docs/compose.md` |
//! | `cargo xtask bench` | measures Kiln beside Docker Compose |
//! | `cargo xtask fuzz` | runs the fuzz targets, for a minute each or as long as one likes |
//! | `cargo xtask soak` | damages every file of a root that serves, replays every crash point |
//! | `cargo xtask probe` | asks a port at a fixed rate and counts what is lost |
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "printing is what these tools are for")]

mod bench;
mod check;
mod docs;
mod fuzz;
mod packages;
mod probe;
mod shell;
mod soak;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's own tools")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Installs what the tests need, runs them all, and adds up
    Test(test::Options),
    /// Checks format, lints, dependencies and the rules of the repository
    Check(check::Options),
    /// Writes the tables of the Compose reader into `docs/compose.md`
    Docs,
    /// Measures Kiln beside Docker Compose
    Bench(bench::Options),
    /// Runs the fuzz targets of `fuzz/`
    Fuzz(fuzz::Options),
    /// Damages every file of a root that serves, replays every crash point, takes out each sync
    Soak(soak::Options),
    /// Asks a port on 127.0.0.1 at a fixed rate and counts what is lost
    Probe(probe::Options),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Test(options) => test::test(&options),
        Command::Check(options) => check::check(&options),
        Command::Docs => docs::docs(),
        Command::Bench(options) => bench::bench(&options),
        Command::Fuzz(options) => fuzz::fuzz(&options),
        Command::Soak(options) => soak::soak(&options),
        Command::Probe(options) => probe::probe(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
