//! `cargo xtask fuzz`: every parser that reads what strangers wrote, under libFuzzer.
//!
//! Coverage comes from flags that the stable compiler has; the code is safe Rust, so no sanitizer is
//! missed. What a run finds is kept in `fuzz/findings`, what it learns in `fuzz/corpus`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{packages, shell};

/// Instruments every crate that is built, as cargo-fuzz does.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                     -Cllvm-args=-sanitizer-coverage-pc-table";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Inputs for each target instead, the same ones each time
    #[arg(long, conflicts_with = "seconds")]
    runs: Option<u32>,
    /// Do not install anything
    #[arg(long)]
    no_install: bool,
    /// Only these targets
    targets: Vec<String>,
}

pub(crate) fn fuzz(options: &Options) -> Result<()> {
    if !options.no_install {
        packages::install(packages::FOR_FUZZING)?;
    }
    let home = shell::repository().join("fuzz");
    let known = targets(&home)?;
    if let Some(unknown) = options.targets.iter().find(|name| !known.contains(name)) {
        bail!("no target `{unknown}`; there are {}", known.join(", "));
    }
    let host = shell::host()?;
    let mut build = shell::cargo();
    // With a target named, the flags are not for build scripts.
    build.args(["build", "--release", "--bins", "--target", &host]).current_dir(&home);
    build.env("RUSTFLAGS", FLAGS).env("CARGO_TARGET_DIR", home.join("target"));
    shell::run(&mut build)?;
    let chosen = if options.targets.is_empty() { &known } else { &options.targets };
    let broken: Vec<&str> = chosen
        .iter()
        .filter_map(|name| run(&home, &host, name, options).err().map(|error| (name, error)))
        .map(|(name, error)| {
            println!("{name}: {error:#}");
            name.as_str()
        })
        .collect();
    if !broken.is_empty() {
        bail!("found something in {}: see fuzz/findings", broken.join(", "));
    }
    println!("\n{} targets, nothing found", chosen.len());
    Ok(())
}

/// A target is a file in `fuzz/targets`.
fn targets(home: &Path) -> Result<Vec<String>> {
    let folder = home.join("targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if let (Some("rs"), Some(stem)) =
            (path.extension().and_then(|e| e.to_str()), path.file_stem().and_then(|s| s.to_str()))
        {
            names.push(stem.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn run(home: &Path, host: &str, name: &str, options: &Options) -> Result<()> {
    let corpus = home.join("corpus").join(name);
    let findings = home.join("findings");
    for folder in [&corpus, &findings] {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    let mut command = Command::new(home.join("target").join(host).join("release").join(name));
    command
        .args(match options.runs {
            Some(runs) => [format!("-runs={runs}"), "-seed=1".to_owned()],
            None => [format!("-max_total_time={}", options.seconds), "-seed=0".to_owned()],
        })
        .arg(format!("-artifact_prefix={}/{name}-", findings.display()))
        // One input may take so many seconds and MiB: parsers are bounded in both.
        .args(["-timeout=5", "-rss_limit_mb=1024", "-max_len=16384", "-print_final_stats=1"])
        .args(["-verbosity=0"])
        .arg(&corpus)
        .arg(home.join("seeds").join(name));
    shell::run(&mut command)
}
