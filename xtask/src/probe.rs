//! `cargo xtask probe`.

use std::time::Duration;

use anyhow::{Result, bail};
use kiln_testkit::Probe;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Port on 127.0.0.1
    port: u16,
    /// Requests a second
    #[arg(long, default_value_t = 1_000)]
    rate: u32,
    /// How long, in seconds
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Path to ask for
    #[arg(long, default_value = "/")]
    path: String,
}

pub(crate) fn probe(options: &Options) -> Result<()> {
    if options.rate == 0 {
        bail!("--rate: at least 1 request a second");
    }
    let probing = Probe::local(options.port, options.rate).path(&options.path).start();
    std::thread::sleep(Duration::from_secs(options.seconds));
    let report = probing.stop()?;
    print!("{report}");
    if !report.losses.is_empty() {
        bail!("{} of {} requests were lost", report.losses.len(), report.requests());
    }
    Ok(())
}
