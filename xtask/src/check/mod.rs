//! `cargo xtask check`: format, lints, dependencies, rules of the repository.

mod advisories;
mod lock;
mod policy;
mod tidy;

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::shell;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only these, instead of all
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// A checkout of the RustSec advisory database; without it, it is fetched if it can be, else
    /// the repository's own snapshot is taken
    #[arg(long, env = "KILN_ADVISORY_DB")]
    advisory_db: Option<PathBuf>,
    /// Writes a new snapshot of the database into the repository
    #[arg(long, requires = "advisory_db")]
    update_snapshot: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// `cargo fmt --check`
    Format,
    /// `cargo clippy`, warnings are errors
    Lints,
    /// Licences, bans, yanked versions, advisories
    Dependencies,
    /// Rules of the repository
    Tidy,
}

pub(crate) fn check(options: &Options) -> Result<()> {
    if options.update_snapshot
        && let Some(dir) = &options.advisory_db
    {
        return advisories::update_snapshot(dir);
    }
    let wanted = |part| options.only.is_empty() || options.only.contains(&part);
    if wanted(Part::Format) {
        shell::run(shell::cargo().args(["fmt", "--all", "--check"]))?;
    }
    if wanted(Part::Lints) {
        let mut clippy = shell::cargo();
        clippy.args(["clippy", "--workspace", "--all-targets", "--locked", "--"]);
        shell::run(clippy.args(["-D", "warnings"]))?;
    }
    let mut findings = Vec::new();
    if wanted(Part::Dependencies) {
        findings.extend(dependencies(options.advisory_db.as_deref())?);
    }
    if wanted(Part::Tidy) {
        let found = tidy::findings(shell::repository())?;
        println!("rules of the repository: {} findings", found.len());
        findings.extend(found);
    }
    for finding in &findings {
        eprintln!("error: {finding}");
    }
    if !findings.is_empty() {
        bail!("{} findings", findings.len());
    }
    println!("check: all is well");
    Ok(())
}

/// All that is wrong with the dependencies; notes are printed.
fn dependencies(advisory_db: Option<&std::path::Path>) -> Result<Vec<String>> {
    let policy = policy::Policy::read(&shell::repository().join("deny.toml"))?;
    let locked = lock::Locked::read()?;
    let mut findings = policy.licences(&locked.packages);
    findings.extend(policy.bans(&locked.packages));
    println!("licences and bans: {} packages", locked.packages.len());

    let (yanked, unknown) = locked.yanked();
    findings.extend(yanked.iter().map(|name| format!("{name} was yanked by its author")));
    match unknown.len() {
        0 => println!("yanked versions: none of {}", locked.packages.len() - locked.own()),
        count => println!("yanked versions: NOT CHECKED for {count} packages: {unknown:?}"),
    }

    let database = advisories::Database::find(advisory_db)?;
    println!("advisories: {}", database.source);
    findings.extend(database.findings(&locked.packages, &policy));
    Ok(findings)
}
