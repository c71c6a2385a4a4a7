//! What is measured: a program that brings six services up from one Compose file.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use kiln_testkit::{Call, Project};

/// How long any one command may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// Kiln, or what it is measured against.
pub(super) trait Peer {
    /// For the table.
    fn name(&self) -> &'static str;

    /// Versions, for the table.
    fn versions(&self) -> Result<Vec<String>>;

    /// The command that brings a project up. `changed` names the one service that was edited, for
    /// those who have to be told what to build.
    fn up(&self, project: &Project, changed: Option<&str>) -> Call;

    /// The command that takes it down.
    fn down(&self, project: &Project) -> Call;

    /// The command that goes back to the release before, if there is one.
    fn rollback(&self, project: &Project) -> Option<Call>;

    /// Bakes the single service, where that is a step of its own.
    fn prepare_one(&self, _project: &Project) -> Result<()> {
        Ok(())
    }

    /// The command that starts the single service of a project.
    fn start_one(&self, project: &Project) -> Call;

    /// The command that ends it.
    fn stop_one(&self, project: &Project) -> Call;

    /// Whether the peer keeps the time from request to exec.
    fn tells_exec_time(&self) -> bool {
        false
    }

    /// Milliseconds from request to exec of the project's newest instance, by the peer's own clock.
    fn exec_time(&self, _project: &Project) -> Result<f64> {
        anyhow::bail!("{} does not tell", self.name())
    }

    /// Runs something where the published ports can be reached.
    fn inside(&self, work: &mut (dyn FnMut() -> Result<()> + Send)) -> Result<()>;

    /// Host ports of the six services and of the single one, in the environment of all commands.
    fn ports(&self) -> &Ports;
}

/// Seven ports of the host.
#[derive(Debug)]
pub(super) struct Ports {
    claims: Vec<kiln_testkit::Port>,
}

impl Ports {
    pub(super) fn claim() -> Self {
        Self { claims: (0..7).map(|_| kiln_testkit::Port::claim()).collect() }
    }

    /// The port of service `s1` … `s6`, by index from 0; 6 is the single service's.
    pub(super) fn number(&self, index: usize) -> u16 {
        self.claims[index].number()
    }

    /// A call with `PORT1` … `PORT7`, in a project's directory.
    pub(super) fn call(&self, program: impl AsRef<Path>, project: &Project) -> Call {
        let call = Call::new(program.as_ref()).dir(project.dir()).patience(PATIENCE);
        self.claims.iter().enumerate().fold(call, |call, (index, port)| {
            call.env(format!("PORT{}", index + 1), port.to_string())
        })
    }
}
