//! Kiln as a peer: the release binary on a root of its own, its agent and front running.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kiln_testkit::{Call, Project};

use super::peer::{PATIENCE, Peer, Ports};
use crate::shell;

/// The binary to measure: the given one, or a release build.
pub(super) fn binary(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(given) = given {
        return Ok(std::path::absolute(given)?);
    }
    shell::run(shell::cargo().args(["build", "--release", "--package", "kiln"]))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    Ok(target.unwrap_or(shell::repository().join("target")).join("release/kiln"))
}

pub(super) struct Kiln {
    name: &'static str,
    binary: PathBuf,
    root: tempfile::TempDir,
    ports: Ports,
}

impl Kiln {
    /// Takes the binary that is measured.
    pub(super) fn start(name: &'static str, binary: &Path) -> Result<Self> {
        let root = tempfile::Builder::new().prefix("kiln-bench-").tempdir()?;
        Ok(Self { name, binary: binary.to_owned(), root, ports: Ports::claim() })
    }

    fn call(&self, project: &Project) -> Call {
        self.ports.call(&self.binary, project).arg("--root").arg(self.root.path())
    }
}

impl Peer for Kiln {
    fn name(&self) -> &'static str {
        self.name
    }

    fn versions(&self) -> Result<Vec<String>> {
        let version = Call::new(&self.binary).arg("--version").run_ok()?.stdout;
        let mut git = std::process::Command::new("git");
        git.current_dir(shell::repository()).args(["describe", "--always", "--dirty"]);
        let commit = shell::read(&mut git).unwrap_or_else(|_| "no commit".to_owned());
        Ok(vec![format!("{} ({})", version.trim(), commit.trim())])
    }

    fn up(&self, project: &Project, _changed: Option<&str>) -> Call {
        self.call(project).arg("up")
    }

    fn down(&self, project: &Project) -> Call {
        self.call(project).arg("down")
    }

    fn rollback(&self, project: &Project) -> Option<Call> {
        Some(self.call(project).arg("rollback"))
    }

    fn start_one(&self, project: &Project) -> Call {
        self.call(project).arg("up")
    }

    fn stop_one(&self, project: &Project) -> Call {
        self.call(project).arg("down")
    }

    fn tells_exec_time(&self) -> bool {
        true
    }

    fn exec_time(&self, project: &Project) -> Result<f64> {
        let history = self.call(project).args(["history", "--json", "-n", "20"]).run_ok()?;
        let lines = history.json_lines();
        let starts = lines.iter().filter(|entry| entry["kind"] == "instance.start");
        let micros = starts.filter_map(|entry| entry["data"]["exec_us"].as_f64()).next_back();
        Ok(micros.context("the ledger has no start")? / 1000.0)
    }

    fn inside(&self, work: &mut (dyn FnMut() -> Result<()> + Send)) -> Result<()> {
        work()
    }

    fn ports(&self) -> &Ports {
        &self.ports
    }
}

impl Drop for Kiln {
    fn drop(&mut self) {
        let call = Call::new(&self.binary).arg("--root").arg(self.root.path()).arg("shutdown");
        if let Err(error) = call.patience(PATIENCE).run_ok().context("ending the bench's Kiln") {
            eprintln!("warning: {error:#}");
        }
    }
}
