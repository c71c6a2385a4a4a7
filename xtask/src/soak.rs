//! `cargo xtask soak`: what takes too long for every change. All files of a root that serves are
//! damaged in turn, every crash point is replayed, each sync is taken out, a large store is collected.

use anyhow::{Context as _, Result, bail};

use crate::shell;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only the crash points, and each sync taken out in turn
    #[arg(long)]
    fsync: bool,
    /// Only the collection of 100,000 objects, with its time, memory and how long bakes waited
    #[arg(long)]
    collect: bool,
    /// Only the damage to a root that serves
    #[arg(long)]
    tamper: bool,
    /// Another order and other places to damage
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(crate) fn soak(options: &Options) -> Result<()> {
    let all = !options.fsync && !options.tamper && !options.collect;
    if all || options.fsync {
        run(options, &["-p", "kiln-store", "--lib", "tests::cuts"])?;
    }
    if all || options.collect {
        run(options, &["-p", "kiln-store", "--lib", "tests::size"])?;
    }
    if all || options.tamper {
        run(options, &["-p", "kiln", "--test", "tamper"])?;
    }
    Ok(())
}

fn run(options: &Options, what: &[&str]) -> Result<()> {
    let mut command = shell::cargo();
    command.arg("test").args(what).args(["--", "--nocapture"]);
    command.env("KILN_SOAK", options.seed.to_string());
    println!("$ KILN_SOAK={} {}", options.seed, shell::line(&command));
    let status = command.status().context("cannot start cargo")?;
    if !status.success() {
        bail!("cargo test: {status}");
    }
    Ok(())
}
