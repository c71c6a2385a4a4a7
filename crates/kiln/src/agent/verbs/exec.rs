//! `exec`: a command in an instance. It taints the instance; in `dev`, where people try things,
//! only for show.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use kiln_core::exit::Exit;
use kiln_run::{ExecSpec, ExecStdio, RunError, Running};
use rustix::fs::FileType;
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::json;

use super::{Answer, nothing_serves};
use crate::agent::session::Session;
use crate::agent::stage::Stage;
use crate::agent::{Agent, record};
use crate::answers;
use crate::protocol::Order;
use crate::report::{Because, Report};

/// Characters of a program's name that the ledger and `ps` show.
const LONGEST_NAME: usize = 64;

/// `kiln exec`.
pub(super) fn exec(
    agent: &Agent,
    session: &Session,
    stage: &Stage,
    service: &str,
    spec: &ExecSpec,
    fds: Vec<OwnedFd>,
) -> Result<Answer, Report> {
    let stdio = pipes(fds)?;
    let running = running(stage, service)?;
    let taint = Taint::mark(agent, stage, &running, spec);
    let done = attached(agent, session, service, &running, spec, stdio)?;
    if done.nothing_ran {
        taint.take_back();
    }
    Ok(done.answer)
}

/// What came of a command.
pub(super) struct Attached {
    pub answer: Answer,
    /// There was no such program.
    nothing_ran: bool,
}

/// Runs a command in an instance, and gives its exit code when it has ended.
pub(super) fn attached(
    agent: &Agent,
    session: &Session,
    service: &str,
    running: &Running,
    spec: &ExecSpec,
    stdio: ExecStdio,
) -> Result<Attached, Report> {
    let mut executing = match agent.runtime.exec(running, spec, stdio) {
        Ok(executing) => executing,
        // There is no such program, or it is none: a shell would say so by its status too.
        Err(RunError::Start { step, message, status: Some(code), .. }) => {
            let message = format!("in `{service}`: {step}: {message}");
            let answer = executed(service, code.into(), Some(message));
            return Ok(Attached { answer, nothing_ran: true });
        }
        Err(error) => return Err(in_service(service, &error)),
    };
    let status = executing.wait_unless(session.cancelled(), |executing| {
        for order in session.orders() {
            if let Order::Resize { rows, columns } = order {
                let _ = executing.resize(rows, columns);
            }
        }
    });
    let status = status.map_err(|error| in_service(service, &error))?;
    Ok(Attached { answer: executed(service, status, None), nothing_ran: false })
}

fn executed(service: &str, code: i32, message: Option<String>) -> Answer {
    Answer::of(&answers::Executed { service: service.to_owned(), code, message })
}

fn in_service(service: &str, error: &RunError) -> Report {
    let mut report = Report::from_error(Exit::Failed, error);
    report.message = format!("in `{service}`: {}", report.message);
    report
}

/// The instance of `service` that serves.
pub(super) fn running(stage: &Stage, service: &str) -> Result<Arc<Running>, Report> {
    let state = stage.state();
    let Some(active) = state.pointer.active else { return Err(nothing_serves(stage)) };
    let instance = state.member(&active, service).ok_or_else(|| {
        let slot = state.slot(&active);
        let known = slot.into_iter().flat_map(|slot| slot.members.keys().map(String::as_str));
        Report::unknown(&stage.id.to_string(), "service", service, known)
    })?;
    instance.running.clone().ok_or_else(|| {
        Report::failed(format!("`{service}` does not run: it is {}", instance.life.word())).hint(
            format!(
                "`kiln logs {service}` has what it wrote; `kiln run {service}` starts one more"
            ),
        )
    })
}

/// The mark of an instance that is no longer as it was baked. It is made before the command is
/// started: an agent that ends in between has marked too much, not too little.
struct Taint<'a> {
    agent: &'a Agent,
    stage: &'a Stage,
    instance: &'a str,
    program: String,
    before: Option<String>,
}

impl<'a> Taint<'a> {
    /// Of the command line the program only: arguments and environment hold passwords.
    fn mark(agent: &'a Agent, stage: &'a Stage, running: &'a Running, spec: &ExecSpec) -> Self {
        let program = spec.argv.first().map(String::as_str).unwrap_or_default();
        let program: String = program.chars().take(LONGEST_NAME).collect();
        let mut data = json!({ "instance": running.id(), "program": program, "user": spec.user });
        record::command(agent, running.id(), &spec.argv, &mut data);
        record::note(agent, stage, "exec", data);
        let before = stage.update(|state| {
            let instance = state.instances.get_mut(running.id())?;
            instance.tainted.replace(why(&program))
        });
        agent.save(stage);
        Self { agent, stage, instance: running.id(), program, before }
    }

    /// Nothing ran, so nothing has changed; unless another command has come meanwhile.
    fn take_back(self) {
        let Self { agent, stage, instance, program, before } = self;
        let data = json!({
            "instance": instance, "program": program, "outcome": "there is no such program: nothing ran",
        });
        record::note(agent, stage, "exec.outcome", data);
        stage.update(|state| {
            if let Some(instance) = state.instances.get_mut(instance)
                && instance.tainted == Some(why(&program))
            {
                instance.tainted = before;
            }
        });
        agent.save(stage);
    }
}

fn why(program: &str) -> String {
    format!("exec {program}")
}

/// The client's three pipes. Nothing else goes into an instance: whoever holds a descriptor can do
/// with its file whatever its owner can.
pub(super) fn pipes(fds: Vec<OwnedFd>) -> Result<ExecStdio, Report> {
    let doing = || "looking at the client's descriptors".to_owned();
    let bug = |what: &str| Report::new(Exit::Bug, format!("the client handed over {what}"));
    let stdio = <[OwnedFd; 3]>::try_from(fds).map_err(|_| bug("too few descriptors"))?;
    // A pipe that has a name is somebody's file; those without one are on a device of their own.
    let (own, _) = pipe_with(PipeFlags::CLOEXEC).because(doing)?;
    let nameless = rustix::fs::fstat(&own).because(doing)?.st_dev;
    for fd in &stdio {
        let stat = rustix::fs::fstat(fd).because(doing)?;
        if !FileType::from_raw_mode(stat.st_mode).is_fifo() || stat.st_dev != nameless {
            return Err(bug("something that is no pipe"));
        }
    }
    let [stdin, stdout, stderr] = stdio;
    Ok(ExecStdio { stdin, stdout, stderr })
}
