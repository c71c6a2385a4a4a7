//! What fingers expect that know Compose: `port`, `ls`, `wait`.

use std::collections::BTreeMap;
use std::time::Duration;

use kiln_core::compose::{Port, Protocol};
use kiln_core::exit::Exit;
use kiln_run::{End, Known, Running};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::exec::running;
use super::{Answer, no_service, nothing_serves};
use crate::agent::Agent;
use crate::agent::session::Session;
use crate::agent::silence::SILENT;
use crate::agent::stage::{Life, Stage};
use crate::answers;
use crate::report::Report;

/// Between two looks whether the client is still there.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// How long it may take until an instance that has ended is gone from the state.
const SETTLED: Duration = Duration::from_secs(5);

/// `kiln port`: where clients reach a port of a service.
pub(super) fn port(
    agent: &Agent,
    stage: &Stage,
    service: &str,
    target: Option<u16>,
    protocol: Option<Protocol>,
) -> Result<Answer, Report> {
    let active = stage.state().pointer.active.ok_or_else(|| nothing_serves(stage))?;
    let release = agent.release_in(&stage.id, &active)?;
    let released = release.services.get(service);
    let missing = || no_service(&stage.id, service, release.services.keys());
    let released = released.ok_or_else(missing)?;
    // A port without a word is one of TCP, as for Compose.
    let protocol = protocol.or(target.map(|_| Protocol::Tcp));
    let all: Vec<&Port> =
        released.settings.ports.get(&stage.id.stage).into_iter().flatten().collect();
    let wanted = |port: &&&Port| {
        target.is_none_or(|target| port.target == target)
            && protocol.is_none_or(|protocol| port.protocol == protocol)
    };
    let mut found = Vec::new();
    let mut later = None;
    for port in all.iter().filter(wanted) {
        let published = match port.published {
            // The kernel has chosen, and the front knows.
            0 => agent.bound_port(stage, service, port),
            port => Some(port),
        };
        let Some(published) = published else {
            later = Some(port_word(port));
            continue;
        };
        let host = port.host_ip.map_or_else(|| "0.0.0.0".to_owned(), |ip| ip.to_string());
        found.push(answers::Published {
            host,
            port: published,
            target: port.target,
            protocol: port.protocol,
        });
    }
    if let (true, Some(port)) = (found.is_empty(), later) {
        let what = format!("`{service}` publishes {port}, but that is not open yet");
        return Err(Report::failed(what)
            .hint("nothing accepts on it so far: `kiln ps` and `kiln logs` say more"));
    }
    if found.is_empty() {
        let protocol = protocol.map(answers::protocol_word);
        let what = match (target, protocol) {
            (Some(target), protocol) => {
                format!("`{service}` publishes no port {target}/{}", protocol.unwrap_or("tcp"))
            }
            (None, Some(protocol)) => format!("`{service}` publishes no port of {protocol}"),
            (None, None) => format!("`{service}` publishes no port"),
        };
        let words: Vec<String> = all.iter().map(|port| port_word(port)).collect();
        return Err(Report::failed(what).hint(match words.is_empty() {
            true => "`ports:` in the Compose file publishes one".to_owned(),
            false => format!("it publishes {}", words.join(", ")),
        }));
    }
    Ok(Answer::of(&answers::Ports { service: service.to_owned(), ports: found }))
}

/// As Compose takes it: `5353/udp`.
fn port_word(port: &Port) -> String {
    format!("{}/{}", port.target, answers::protocol_word(port.protocol))
}

/// `kiln ls`: all projects of the root.
pub(super) fn ls(agent: &Agent, all: bool) -> Answer {
    let mut projects = Vec::new();
    for stage in agent.stages() {
        let state = stage.state();
        if state.pointer.generation == 0 && state.instances.is_empty() {
            continue;
        }
        if !all && state.instances.is_empty() {
            continue;
        }
        let mut states: BTreeMap<String, usize> = BTreeMap::new();
        for instance in state.instances.values() {
            let word = match instance.unknown {
                Some(_) => "unknown",
                None if instance.silent && instance.life == Life::Ready => SILENT,
                None => instance.life.word(),
            };
            *states.entry(word.to_owned()).or_default() += 1;
        }
        projects.push(answers::Project {
            project: stage.id.project.clone(),
            stage: stage.id.stage.clone(),
            active: state.pointer.active,
            states,
            folder: state.pointer.folder.clone(),
        });
    }
    Answer::of(&answers::Projects { projects })
}

/// `kiln wait`: until the instances that are there now have ended. One that is replaced by a fresh
/// one has ended, too. The exit code is that of the first service that was named.
pub(super) fn wait(
    agent: &Agent,
    session: &Session,
    stage: &Stage,
    services: &[String],
) -> Result<Answer, Report> {
    let mut waiting = Vec::new();
    for service in services {
        waiting.push((service.clone(), running(stage, service)?));
    }
    let ended: Vec<Result<answers::Ended, Report>> = std::thread::scope(|scope| {
        let waits: Vec<_> = waiting
            .iter()
            .map(|(service, running)| scope.spawn(|| await_end(agent, session, service, running)))
            .collect();
        let bug = |_| Err(Report::new(Exit::Bug, "a waiting thread panicked"));
        waits.into_iter().map(|wait| wait.join().unwrap_or_else(bug)).collect()
    });
    let ended: Vec<answers::Ended> = ended.into_iter().collect::<Result<_, _>>()?;
    let code = ended.first().map_or(0, |first| first.code);
    Ok(Answer::of(&answers::Waited { services: ended, code }))
}

fn await_end(
    agent: &Agent,
    session: &Session,
    service: &str,
    running: &Running,
) -> Result<answers::Ended, Report> {
    let known = match running.watch() {
        Err(known) => known,
        Ok(mut watch) => loop {
            session.check()?;
            match poll(&mut [PollFd::new(&watch, PollFlags::IN)], Some(&LOOK)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                _ => break watch.known(),
            }
        },
    };
    let known = match known {
        Known::Runs(_) => running.wait_for(SETTLED),
        known => known,
    };
    match known {
        Known::Ended(End::Exited(exit)) => {
            let code = u8::try_from(exit.code & 0xff).unwrap_or(1);
            let service = service.to_owned();
            Ok(answers::Ended { service, code, signal: exit.signal, oom: exit.oom })
        }
        Known::Ended(End::Lost) => {
            Err(Report::failed(format!("`{service}` has ended, and nobody knows how"))
                .hint("`kiln logs` and `kiln history` have what is known"))
        }
        Known::Runs(_) => {
            Err(Report::failed(format!("`{service}` runs on")).hint("ask again: kiln ps"))
        }
        Known::Unknown(why) => {
            agent.log(&format!("{}: {why}", running.id()));
            Err(Report::failed(format!("whether `{service}` has ended is unknown: {why}"))
                .hint("kiln status"))
        }
    }
}
