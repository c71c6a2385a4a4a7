//! An image of a registry into the store, beside podman: from the same docker-registry on this
//! machine, three layers of 170 MB in all.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kiln_testkit::registry::{Image, Registry};
use kiln_testkit::{Call, Project};

use super::report::{Report, Row};
use super::works::Unit;

/// Names of the rows.
pub(super) const ROWS: [&str; 4] = [
    "pull: three layers of 170 MB, durable",
    "pull: the next image, which has two of them",
    "pull: what is there",
    "pull: Kiln's agent at most",
];

/// Rounds: each takes the disk a gigabyte.
const MOST_ROUNDS: usize = 5;

const PATIENCE: Duration = Duration::from_secs(300);

/// Measures both in turns.
pub(super) fn bench(kiln: &Path, rounds: usize) -> Result<Report> {
    let rounds = rounds.min(MOST_ROUNDS);
    let registry = Registry::start();
    let shared = Image::new().layer(tree("usr/lib", 1, 110)?).layer(tree("usr/share", 2, 40)?);
    for (tag, seed) in [("bench:a", 3), ("bench:b", 4)] {
        registry.push(&shared.clone().layer(tree("opt/own", seed, 20)?), tag);
    }
    let mut columns: [[Vec<f64>; 2]; 4] = Default::default();
    for round in 0..rounds {
        println!("measuring: pulls, round {} of {rounds}", round + 1);
        let values = by_kiln(kiln, &registry).context("Kiln")?;
        columns.iter_mut().zip(values).for_each(|(row, value)| row[0].push(value));
        let values = by_podman(&registry).context("podman")?;
        columns.iter_mut().zip(values).for_each(|(row, value)| row[1].push(value));
    }
    let aims = [None, None, Some(20.0), Some(64.0)];
    let mut rows = Vec::new();
    for ((name, aim), columns) in ROWS.into_iter().zip(aims).zip(columns) {
        let unit = if name == ROWS[3] { Unit::Mebibytes } else { Unit::Milliseconds };
        rows.push(Row::new(name, unit, aim, columns.into()));
    }
    let version = |call: Call| Ok::<_, anyhow::Error>(call.run_ok()?.stdout.trim().to_owned());
    let versions = vec![
        version(Call::new(kiln).arg("--version"))?,
        version(Call::new("podman").arg("--version"))?,
    ];
    Ok(Report::new(vec!["Kiln".into(), "podman".into()], versions, rounds, rows))
}

/// A layer of so many megabytes: files of 20 kB whose text compresses as programs do.
fn tree(folder: &str, seed: u64, megabytes: usize) -> Result<Vec<u8>> {
    const FILE: usize = 20_000;
    let mut builder = tar::Builder::new(Vec::new());
    let mut state = seed;
    for nth in 0..megabytes * 1_000_000 / FILE {
        let mut content = Vec::with_capacity(FILE + 16);
        while content.len() < FILE {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let word = state >> 44;
            content.extend_from_slice(format!("{word:x} {}\n", word % 89).as_bytes());
        }
        content.truncate(FILE);
        let mut header = tar::Header::new_gnu();
        header.set_size(FILE as u64);
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        builder.append_data(&mut header, format!("{folder}/{}/{nth}", nth % 40), &content[..])?;
    }
    Ok(builder.into_inner()?)
}

fn timed(call: &Call) -> Result<f64> {
    let began = Instant::now();
    call.run_ok()?;
    Ok(began.elapsed().as_secs_f64() * 1000.0)
}

/// A fresh root each time; its agent runs already, as it does for users after the first command.
fn by_kiln(binary: &Path, registry: &Registry) -> Result<[f64; 4]> {
    let root = tempfile::Builder::new().prefix("kiln-bench-pull-").tempdir()?;
    let project = |tag: &str| {
        let image = format!("{}/bench:{tag}", registry.host());
        let compose = format!("name: pull\nservices:\n  a: {{ image: \"{image}\" }}\n");
        Project::new(root.path().join(format!("project-{tag}")), &compose)
    };
    let call = |project: &Project, words: &[&str]| {
        let call = Call::new(binary).args(words).dir(project.dir()).patience(PATIENCE);
        call.arg("--root").arg(root.path().join("root"))
    };
    let (first, next) = (project("a"), project("b"));
    call(&first, &["images"]).run_ok()?;
    let result = (|| {
        let fresh = timed(&call(&first, &["pull"]))?;
        let shared = timed(&call(&next, &["pull"]))?;
        let there = timed(&call(&first, &["pull"]))?;
        let memory = agent_peak(&root.path().join("root"))?;
        Ok([fresh, shared, there, memory])
    })();
    call(&first, &["shutdown"]).run_ok()?;
    result
}

/// What the agent of a root had resident at most, in MiB.
fn agent_peak(root: &Path) -> Result<f64> {
    let root = root.display().to_string();
    for entry in fs::read_dir("/proc")?.flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        let has = |word: &str| words.contains(&word.as_bytes());
        if has(&root) && (has("agent") || has("serve")) {
            let status = fs::read_to_string(entry.path().join("status"))?;
            let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kib = peak.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
            return Ok(kib.context("an agent without VmHWM")? / 1024.0);
        }
    }
    anyhow::bail!("no agent of {root}")
}

/// Its storage is flushed as well: Kiln's pull returns when the image is durable.
fn by_podman(registry: &Registry) -> Result<[f64; 4]> {
    let home = tempfile::Builder::new().prefix("kiln-bench-podman-").tempdir()?;
    let podman = |words: &[&str]| {
        let call = Call::new("podman").patience(PATIENCE);
        let call = call.arg("--root").arg(home.path().join("storage"));
        let call = call.arg("--runroot").arg(home.path().join("run"));
        let call = call.arg("--tmpdir").arg(home.path().join("libpod"));
        let call = call.args(["--storage-driver", "overlay", "--events-backend", "none"]);
        call.args(["--cgroup-manager", "cgroupfs"]).args(words)
    };
    let pull = |tag: &str| -> Result<f64> {
        let image = format!("docker://{}/bench:{tag}", registry.host());
        let began = Instant::now();
        podman(&["pull", "-q", "--tls-verify=false", &image]).run_ok()?;
        Call::new("sync").arg("-f").arg(home.path()).run_ok()?;
        Ok(began.elapsed().as_secs_f64() * 1000.0)
    };
    let result = (|| Ok([pull("a")?, pull("b")?, pull("a")?, f64::NAN]))();
    podman(&["system", "reset", "--force"]).run_ok()?;
    result
}
