//! How much memory a builder's daemon takes at most while a large file goes into an image.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use super::builder::Builder;
use super::works::{Noise, project};
use crate::bench::report::Row;
use crate::bench::works::Unit;

/// The row's name.
pub(super) const NAME: &str = "bake: the daemon's memory at most, COPY of a 2 GB file";

/// Length of the file, in bytes.
const SIZE: u64 = 2 << 30;

/// One value for each builder that has a daemon; a round, for it takes the disk some gigabytes.
pub(super) fn measure(builders: &[Box<dyn Builder>], dir: &Path) -> Result<Row> {
    println!("measuring: {NAME}");
    let mut columns = Vec::new();
    for (index, builder) in builders.iter().enumerate() {
        let mut column = Vec::new();
        let context = project(&dir.join(index.to_string()), "FROM busybox\nCOPY . /files/\n");
        builder.build(&context).run_ok()?;
        if let Some(daemon) = builder.daemon()? {
            write(&context.join("large"), u64::from(daemon))?;
            // The most that was resident is counted from now on.
            fs::write(format!("/proc/{daemon}/clear_refs"), "5")?;
            builder.build(&context).run_ok()?;
            column.push(peak(daemon)?);
        }
        fs::remove_dir_all(dir.join(index.to_string()))?;
        columns.push(column);
    }
    Ok(Row::new(NAME, Unit::Mebibytes, None, columns))
}

/// A file whose content neither compresses nor is anywhere yet.
fn write(path: &Path, seed: u64) -> Result<()> {
    let mut file = File::create(path)?;
    let mut noise = Noise::new(seed);
    let mut block = vec![0; 1 << 20];
    for _ in 0..SIZE / block.len() as u64 {
        noise.fill(&mut block);
        file.write_all(&block)?;
    }
    Ok(())
}

/// What a process had resident at most, in MiB.
fn peak(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kib.context("a process without VmHWM")? / 1024.0)
}
