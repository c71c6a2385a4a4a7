//! The measurements on a context of a thousand files. Each gives one value a round.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kiln_testkit::{Call, Project};

use super::builder::Builder;
use crate::bench::works::Unit;

/// One row of the table.
pub(super) struct Work {
    pub(super) name: &'static str,
    pub(super) unit: Unit,
    /// What is aimed at, in the unit.
    pub(super) aim: Option<f64>,
    /// More say nothing new.
    pub(super) most_rounds: usize,
    pub(super) measure: fn(&mut Workplace<'_>) -> Result<f64>,
}

/// All of them, in the order in which they are run.
pub(super) const WORKS: &[Work] = &[
    Work {
        name: "bake: nothing changed, 1,000 files, whole process",
        unit: Unit::Milliseconds,
        aim: Some(6.0),
        most_rounds: usize::MAX,
        measure: unchanged,
    },
    Work {
        name: "bake: one of 1,000 files changed, COPY only",
        unit: Unit::Milliseconds,
        aim: Some(15.0),
        most_rounds: usize::MAX,
        measure: one_changed,
    },
    Work {
        name: "bake: one RUN step (`true`) after a change, beyond the command's own time",
        unit: Unit::Milliseconds,
        aim: Some(15.0),
        most_rounds: usize::MAX,
        measure: one_step,
    },
    Work {
        name: "bake: cold, 1,000 new files, durable",
        unit: Unit::Milliseconds,
        aim: Some(60.0),
        most_rounds: usize::MAX,
        measure: cold,
    },
    Work {
        name: "bake: disk for ten releases that differ in one file each",
        unit: Unit::Mebibytes,
        aim: None,
        most_rounds: 2,
        measure: ten_releases,
    },
];

/// Files in the context, and bytes in each.
const FILES: usize = 1_000;
const SIZE: usize = 8 << 10;

/// Bytes that do not compress: xorshift64, cheap, and no two seeds give the same.
pub(super) struct Noise(u64);

impl Noise {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Fills `bytes`, eight at a time; a rest of fewer stays as it is.
    pub(super) fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_exact_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes());
        }
    }
}

/// A builder with its copies of the contexts.
pub(super) struct Workplace<'a> {
    builder: &'a dyn Builder,
    /// A thousand files and a COPY of them.
    files: PathBuf,
    /// One file, a COPY of it and a RUN.
    step: PathBuf,
    /// What no file has held yet.
    counter: u64,
}

impl<'a> Workplace<'a> {
    /// Writes the contexts and builds them once.
    pub(super) fn new(builder: &'a dyn Builder, dir: &Path) -> Result<Self> {
        let files = project(&dir.join("files"), "FROM busybox\nCOPY . /files/\n");
        let step = "FROM busybox\nCOPY file /file\nRUN [\"/bin/busybox\", \"true\"]\n";
        let step = project(&dir.join("step"), step);
        let mut place = Self { builder, files, step, counter: 0 };
        place.fill()?;
        place.one_step()?;
        place.build(&place.files)?;
        Ok(place)
    }

    pub(super) fn name(&self) -> &'static str {
        self.builder.name()
    }

    /// Writes all files anew, each with content of its own.
    fn fill(&mut self) -> Result<()> {
        for index in 0..FILES {
            let dir = self.files.join(format!("{:02}", index / 50));
            fs::create_dir_all(&dir)?;
            let text = self.fresh();
            fs::write(dir.join(format!("{index:04}.txt")), text)?;
        }
        Ok(())
    }

    /// Content that does not compress well and that no file of the bench has.
    fn fresh(&mut self) -> Vec<u8> {
        self.counter += 1;
        let own = u64::from(std::process::id()) << 32 | self.counter;
        let mut bytes = vec![0; SIZE];
        Noise::new(own).fill(&mut bytes);
        bytes
    }

    fn change_one(&mut self) -> Result<()> {
        let text = self.fresh();
        Ok(fs::write(self.files.join("07/0350.txt"), text)?)
    }

    fn build(&self, context: &Path) -> Result<Duration> {
        Ok(self.builder.build(context).run_ok()?.took)
    }

    fn one_step(&mut self) -> Result<Duration> {
        let text = self.fresh();
        fs::write(self.step.join("file"), text)?;
        self.build(&self.step)
    }

    /// Flushes what the builder has written.
    fn flush(&self) -> Result<()> {
        let storage = self.builder.storage();
        let dir = File::open(&storage).with_context(|| storage.display().to_string())?;
        Ok(rustix::fs::syncfs(dir)?)
    }

    fn disk(&self) -> Result<f64> {
        let du = Call::new("du").args(["-s", "-k"]).arg(self.builder.storage()).run_ok()?;
        let kib = du.stdout.split_whitespace().next().and_then(|word| word.parse::<f64>().ok());
        Ok(kib.context("du says nothing")? / 1024.0)
    }
}

/// A folder with a Compose file, and the context in it.
pub(super) fn project(dir: &Path, dockerfile: &str) -> PathBuf {
    let compose = "name: bake\nservices:\n  app: { build: ./context, command: [busybox] }\n\
         x-kiln:\n  bases:\n    \
         busybox: { debian: bookworm, packages: [busybox-static], minimal: true }\n";
    let project = Project::new(dir, compose);
    project.write("context/Dockerfile", dockerfile);
    project.path("context")
}

fn unchanged(place: &mut Workplace<'_>) -> Result<f64> {
    Ok(milliseconds(place.build(&place.files)?))
}

fn one_changed(place: &mut Workplace<'_>) -> Result<f64> {
    place.change_one()?;
    Ok(milliseconds(place.build(&place.files)?))
}

/// The command's own time is what it takes outside.
fn one_step(place: &mut Workplace<'_>) -> Result<f64> {
    let own = Call::new("/bin/true").run_ok()?.took;
    Ok(milliseconds(place.one_step()?.saturating_sub(own)))
}

fn cold(place: &mut Workplace<'_>) -> Result<f64> {
    place.fill()?;
    // What the bench itself has written is not the builder's to flush.
    rustix::fs::sync();
    let start = Instant::now();
    place.build(&place.files)?;
    place.flush()?;
    Ok(milliseconds(start.elapsed()))
}

/// What ten releases take beyond the first build of all files is left out of no one's figure: the
/// first of the ten is new as a whole.
fn ten_releases(place: &mut Workplace<'_>) -> Result<f64> {
    place.flush()?;
    let before = place.disk()?;
    place.fill()?;
    place.build(&place.files)?;
    for _ in 1..10 {
        place.change_one()?;
        place.build(&place.files)?;
    }
    place.flush()?;
    Ok(place.disk()? - before)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}
