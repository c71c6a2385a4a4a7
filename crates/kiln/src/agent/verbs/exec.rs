//! `exec`: a command in an instance. It taints the instance; in `dev`, where people try things,
//! only for show.

use std::os::fd::OwnedFd;

use kiln_core::exit::Exit;
use kiln_run::{ExecSpec, ExecStdio};
use serde_json::json;

use super::{Answer, nothing_serves};
use crate::agent::session::Session;
use crate::agent::stage::Stage;
use crate::agent::{Agent, record};
use crate::report::Report;

/// What is to be run where.
pub(super) struct Command {
    /// Name of the service.
    pub service: String,
    /// The command line.
    pub argv: Vec<String>,
    /// As whom, if not as the service's own user.
    pub user: Option<String>,
    /// Whether the client's standard input is a terminal.
    pub tty: bool,
}

/// `kiln exec`.
pub(super) fn exec(
    agent: &Agent,
    session: &Session,
    stage: &Stage,
    command: &Command,
    fds: Vec<OwnedFd>,
) -> Result<Answer, Report> {
    let service = &command.service;
    let running = {
        let state = stage.state();
        let Some(active) = state.pointer.active else { return Err(nothing_serves(stage)) };
        let instance = state.member(&active, service).ok_or_else(|| {
            let slot = state.slot(&active);
            let known: Vec<&str> =
                slot.into_iter().flat_map(|slot| slot.members.keys().map(String::as_str)).collect();
            Report::usage(format!("no instance of `{service}` in {}", stage.id))
                .hint(format!("there are {}", known.join(", ")))
        })?;
        instance.running.clone().ok_or_else(|| {
            Report::failed(format!("`{service}` does not run: it is {}", instance.life.word()))
        })?
    };
    let data = json!({ "instance": running.id(), "argv": command.argv, "user": command.user });
    record::note(agent, stage, "exec", data);
    stage.update(|state| {
        if let Some(instance) = state.instances.get_mut(running.id()) {
            instance.tainted = Some(format!("exec {}", command.argv.join(" ")));
        }
    });
    agent.save(stage);
    let Ok([stdin, stdout, stderr]) = <[OwnedFd; 3]>::try_from(fds) else {
        return Err(Report::new(Exit::Bug, "the client did not hand over its descriptors"));
    };
    let terminal = command.tty.then(|| terminal_size(&stdin));
    let spec = ExecSpec {
        argv: command.argv.clone(),
        user: command.user.clone(),
        terminal,
        ..ExecSpec::default()
    };
    let stdio = ExecStdio { stdin, stdout, stderr };
    let in_service = |error| {
        let mut report = Report::from_error(Exit::Failed, &error);
        report.message = format!("in `{service}`: {}", report.message);
        report
    };
    let mut executing = agent.runtime.exec(&running, &spec, stdio).map_err(in_service)?;
    let status = executing.wait_unless(session.cancelled()).map_err(in_service)?;
    Ok(json!({ "service": service, "code": status }).into())
}

/// Rows and columns of the client's terminal.
fn terminal_size(terminal: &OwnedFd) -> (u16, u16) {
    match rustix::termios::tcgetwinsize(terminal) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (size.ws_row, size.ws_col),
        _ => (24, 80),
    }
}
