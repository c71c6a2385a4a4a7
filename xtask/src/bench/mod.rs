//! `cargo xtask bench`: Kiln beside Docker Compose, and its bake beside BuildKit and buildah, in one
//! run, on the same files.
//!
//! | file | noun |
//! |---|---|
//! | `peer` | what is measured |
//! | `kiln`, `docker` | the two peers |
//! | `works` | the measurements |
//! | `pull` | images of a registry, beside podman |
//! | `bake` | what is built of a context, and of packages |
//! | `stats` | medians and spreads |
//! | `report` | the table, the JSON, the Markdown |
//!
//! How it measures and what that means is in `docs/bench.md`.

mod bake;
mod docker;
mod kiln;
mod peer;
mod pull;
mod report;
mod stats;
mod works;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kiln_testkit::Project;

use crate::{packages, shell};
use docker::Docker;
use kiln::Kiln;
use peer::Peer;
use report::{Report, Row};
use works::{WORKS, Work, Workplace};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Rounds of each measurement
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Two rounds: shows that everything works, measures nothing worth telling
    #[arg(long)]
    quick: bool,
    /// Only the bake, beside BuildKit, buildah and mmdebstrap
    #[arg(long)]
    bake: bool,
    /// Everything but the bake
    #[arg(long, conflicts_with = "bake")]
    no_bake: bool,
    /// Only Kiln; no bake
    #[arg(long)]
    no_docker: bool,
    /// Only Docker; no bake
    #[arg(long, conflicts_with = "no_docker")]
    no_kiln: bool,
    /// This binary, instead of a release build
    #[arg(long, value_name = "FILE")]
    kiln: Option<PathBuf>,
    /// Another build of Kiln, measured beside it
    #[arg(long, value_name = "FILE", conflicts_with = "no_kiln")]
    before: Option<PathBuf>,
    /// Only measurements whose name holds this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

pub(crate) fn bench(options: &Options) -> Result<()> {
    if !shell::is_root() {
        bail!("the bench starts engines and enters namespaces: run it as root");
    }
    let rounds = if options.quick { 2 } else { options.rounds.max(1) };
    let has_peers = !options.no_docker && !options.no_kiln;
    if !options.no_docker {
        packages::install(packages::FOR_BENCH)?;
    }
    let binary = match options.no_kiln {
        true => PathBuf::new(),
        false => kiln::binary(options.kiln.as_deref())?,
    };
    let wanted = |name: &str| options.only.as_ref().is_none_or(|text| name.contains(text.as_str()));
    if !options.bake && WORKS.iter().any(|work| wanted(work.name)) {
        write("bench", &up(options, &binary, rounds)?)?;
    }
    if has_peers && !options.bake && pull::ROWS.iter().any(|name| wanted(name)) {
        write("bench-pull", &pull::bench(&binary, rounds)?)?;
    }
    if has_peers && !options.no_bake {
        write("bench-bake", &bake::bench(&binary, rounds, options.only.as_deref())?)?;
    }
    Ok(())
}

/// Prints a report and puts it into the target folder.
fn write(name: &str, report: &Report) -> Result<()> {
    print!("\n{}", report.markdown());
    let target = shell::repository().join("target");
    for (end, text) in [("json", report.json()?), ("md", report.markdown())] {
        let path = target.join(format!("{name}.{end}"));
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
        println!("written: {}", path.display());
    }
    Ok(())
}

/// Six services, beside Docker Compose.
fn up(options: &Options, binary: &Path, rounds: usize) -> Result<Report> {
    let wanted = |work: &&Work| options.only.as_ref().is_none_or(|text| work.name.contains(text));
    let works: Vec<&Work> = WORKS.iter().filter(wanted).collect();
    let mut peers: Vec<Box<dyn Peer>> = Vec::new();
    if !options.no_kiln {
        peers.push(Box::new(Kiln::start("Kiln", binary)?));
    }
    if let Some(before) = &options.before {
        let before = kiln::binary(Some(before))?;
        peers.push(Box::new(Kiln::start("Kiln before", &before)?));
    }
    if !options.no_docker {
        peers.push(Box::new(Docker::start()?));
    }
    let folder = tempfile::Builder::new().prefix("kiln-bench-work-").tempdir()?;
    let mut places = Vec::new();
    for (index, peer) in peers.iter().enumerate() {
        let dir = folder.path().join(index.to_string());
        let six = Project::copy_of(&shell::repository().join("examples/six"), dir.join("six"));
        let mut place = Workplace::new(&**peer, six, dir.join("one"))?;
        println!("{}: first up, which fills the caches", peer.name());
        place.warm_up().with_context(|| format!("{}: the first up", peer.name()))?;
        places.push(place);
    }

    let mut rows = Vec::new();
    for work in works {
        println!("measuring: {} ({rounds} rounds)", work.name);
        rows.push(measure(work, &mut places, rounds)?);
    }
    let mut versions = Vec::new();
    for peer in &peers {
        versions.extend(peer.versions()?);
    }
    let heads = peers.iter().map(|peer| peer.name().to_owned()).collect();
    Ok(Report::new(heads, versions, rounds, rows))
}

/// All rounds of one measurement, the peers taking turns, so that what else the machine does hits
/// both alike.
fn measure(work: &'static Work, places: &mut [Workplace<'_>], rounds: usize) -> Result<Row> {
    let mut values = vec![Vec::new(); places.len()];
    for round in 0..rounds {
        for (place, values) in places.iter_mut().zip(&mut values) {
            let name = place.peer.name();
            let value = (work.measure)(place)
                .with_context(|| format!("{name}: {}, round {}", work.name, round + 1))?;
            values.extend(value);
        }
    }
    Ok(Row::new(work.name, work.unit, work.aim, values))
}
