//! The process of one exec or step. It has one thread, is started by a process with many, and
//! lives only as long as that one wants it: when its socket closes, it kills what it runs.
//!
//! Standard input is a socket: first comes the request, with the descriptors of the program's
//! standard input and output, then orders; replies go the other way.

mod client;
mod guard;
mod join;
mod serve;
mod terminal;
mod wire;

use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use kiln_core::compose::Limits;
use rustix::pipe::{PipeFlags, pipe_with};

pub(crate) use client::Session;
pub(crate) use guard::Bounds;
pub(crate) use wire::{Exec, Order, Request, StepEnd, What};

use crate::cgroup::{Cgroups, Group};
use crate::devices::Others;
use crate::error::{Context as _, Fault};
use crate::net::NetSpec;
use crate::report::{Report, Reporter, read_within, sum_up};
use crate::sandbox::{self, Gate, Stdio};
use crate::spec::Network;
use crate::sys::{self, Cloned};
use wire::SessionReply;

/// `kiln shim-exec`: the request must be [`What::Exec`].
pub(crate) fn main_exec() -> ! {
    main()
}

/// `kiln shim-step`: the request must be [`What::Step`].
pub(crate) fn main_step() -> ! {
    main()
}

fn main() -> ! {
    sys::cloexec_from(3);
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGPIPE] {
        sys::ignore_signal(signal);
    }
    let Ok(socket) = sys::take_input() else { sys::exit_now(1) };
    let socket = std::os::unix::net::UnixStream::from(socket);
    let code = match run(&socket) {
        Ok(()) => 0,
        Err(fault) => {
            wire::reply(&socket, &SessionReply::Report(Report::Failed(fault)));
            1
        }
    };
    sys::exit_now(code)
}

fn run(socket: &std::os::unix::net::UnixStream) -> Result<(), Fault> {
    let (request, [stdin, stdout, stderr]) =
        wire::receive_request(socket).step(|| "receive the request".to_owned())?;
    let cgroups = Cgroups::find()?;
    let (ended, step) = match request.what {
        What::Step { sandbox, scratch, conditions, bounds } => {
            conditions.prepare()?;
            let mut group = cgroups.group(&request.group, &Limits::default())?;
            if let Some(warning) = group.keep_to_devices(Others::Made, &[], None)? {
                wire::reply(socket, &SessionReply::Report(Report::Warning(warning)));
            }
            let network = match &sandbox.network {
                Network::Routed(net) => Some(net),
                Network::None | Network::Host | Network::With { .. } => None,
            };
            let limits = Some(cgroups.existing(&request.group));
            let place = Place { group: &group, limits, network };
            let (told, epilogue) =
                pipe_with(PipeFlags::CLOEXEC).step(|| "make a pipe".to_owned())?;
            let epilogue = Some(epilogue);
            let stdio = Stdio { stdin, stdout, stderr, tty: false, epilogue };
            let flags = sandbox::namespaces(&sandbox.network);
            let started = start(socket, &place, flags, |reporter, gate| match conditions.enter() {
                Ok(()) => {
                    // Where memory runs out before the guard sees it, what is only being built goes
                    // before anything that serves.
                    let _ = std::fs::write("/proc/self/oom_score_adj", "500");
                    sandbox::enter(&sandbox, &scratch, stdio, reporter, gate)
                }
                Err(fault) => fault,
            });
            let ended = started.map(|started| {
                let mut guard = guard::Guard::new(bounds, &group);
                let ended = serve::until_end(socket, &started, &group, None, Some(&mut guard));
                (ended, guard.end())
            });
            vacate(&group);
            let (ended, (stopped, memory_kills)) = ended?;
            let mut text = Vec::new();
            let _ = std::fs::File::from(told).read_to_end(&mut text);
            let epilogue: sandbox::Epilogue = serde_json::from_slice(&text).unwrap_or_default();
            let signal = epilogue.signal.or(ended.signal);
            let end = StepEnd { stopped, memory_kills, left: epilogue.left };
            (sys::Ended { signal, ..ended }, end)
        }
        What::Exec(exec) => {
            let target = join::Target::open(&exec)?;
            let group = cgroups.below(&request.group)?;
            let limits = request.limits_of.map(|of| cgroups.existing(&of));
            let place = Place { group: &group, limits, network: None };
            let ended = exec_in(socket, &place, &target, exec.terminal, [stdin, stdout, stderr]);
            vacate(&group);
            (ended?, StepEnd::default())
        }
    };
    let sys::Ended { code, signal } = ended;
    wire::reply(socket, &SessionReply::Exited { code, signal, step });
    Ok(())
}

/// Ends what the program left running, and the group.
fn vacate(group: &Group) {
    group.kill();
    if group.wait_empty(Duration::from_secs(5)) {
        // An instance that ended has removed it.
        let _ = group.remove();
    }
}

fn exec_in(
    socket: &std::os::unix::net::UnixStream,
    place: &Place<'_>,
    target: &join::Target,
    terminal: Option<(u16, u16)>,
    user: [OwnedFd; 3],
) -> Result<sys::Ended, Fault> {
    let (stdio, terminal) = match terminal {
        None => {
            let [stdin, stdout, stderr] = user;
            (Stdio { stdin, stdout, stderr, tty: false, epilogue: None }, None)
        }
        Some(size) => {
            let (master, side) = target.terminal(size)?;
            let copy = || side.try_clone().step(|| "open a terminal".to_owned());
            let (stdin, stdout, stderr) = (copy()?, copy()?, copy()?);
            let stdio = Stdio { stdin, stdout, stderr, tty: true, epilogue: None };
            let [stdin, stdout, _] = user;
            (stdio, Some(terminal::Terminal::new((master, side), stdin, stdout)?))
        }
    };
    let started = start(socket, place, 0, |reporter, gate| {
        sandbox::join(target.sandbox(), || target.enter(), stdio, reporter, gate)
    })?;
    Ok(serve::until_end(socket, &started, place.group, terminal, None))
}

/// From clone to exec: nothing in between waits for anybody who is not the machine's.
const PATIENCE: Duration = Duration::from_secs(30);

/// A program that was executed.
#[derive(Debug)]
struct Started {
    pidfd: OwnedFd,
    _gate: OwnedFd,
}

/// Where a program runs.
struct Place<'a> {
    /// The session's own group.
    group: &'a Group,
    /// The instance's, for its v1 limits.
    limits: Option<Group>,
    /// What its fresh network namespace is to be attached to.
    network: Option<&'a NetSpec>,
}

impl Place<'_> {
    /// Has its limits hold for `pid`, before that reads anything of the image.
    fn limit(&self, pid: i32) -> Result<(), Fault> {
        self.limits.as_ref().map_or(Ok(()), |limits| limits.attach(pid))
    }

    /// Gives `pid` its network, while that makes its root.
    fn connect(&self, pid: i32) -> Result<(), Fault> {
        let Some(net) = self.network else { return Ok(()) };
        let step = "attach the network";
        let pid = rustix::process::Pid::from_raw(pid)
            .ok_or_else(|| Fault::new(step, "there is no process"))?;
        crate::net::attach(pid, net).map_err(|error| Fault::new(step, error))
    }
}

/// Clones into `place`, lets the child become the program, and waits for its exec.
fn start(
    socket: &std::os::unix::net::UnixStream,
    place: &Place<'_>,
    flags: i32,
    child: impl FnOnce(&mut Reporter, &Gate) -> Fault,
) -> Result<Started, Fault> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).step(|| "make a pipe".to_owned());
    let (report, child_report) = pipe()?;
    let (child_gate, gate) = pipe()?;
    let into = place.group.open()?;
    let cloned =
        sys::clone_into(flags, Some(into.as_fd())).step(|| "clone the program".to_owned())?;
    let (pid, pidfd) = match cloned {
        Cloned::Parent { pid, pidfd } => (pid, pidfd),
        Cloned::Child => {
            drop((report, gate));
            let mut reporter = Reporter::new(child_report);
            let fault = child(&mut reporter, &Gate::new(child_gate));
            sandbox::give_up(reporter, fault)
        }
    };
    drop((child_report, child_gate, child));
    let open = || rustix::io::write(&gate, &[1]).step(|| "open the gate".to_owned());
    let through = place
        .limit(pid)
        .and_then(|()| open())
        .and_then(|_| place.connect(pid))
        .and_then(|()| open());
    if through.is_err() {
        place.group.kill();
    }
    let (reports, whole) = read_within(&report, PATIENCE);
    let inside = join::child_inside(&reports);
    // What the child said is the cause, if it did: it may have ended before the gate was opened.
    let said = sum_up(reports).and_then(|(warnings, _)| {
        through?;
        match whole {
            true => Ok((warnings, inside)),
            false => Err(Fault::new("wait for the exec", "it takes too long")),
        }
    });
    match said {
        Ok((warnings, inside)) => {
            let (pid, pidfd) = match inside {
                None => (pid, pidfd),
                Some(inside) => {
                    let _ = sys::wait_pidfd(pidfd.as_fd());
                    inside
                }
            };
            for warning in warnings {
                wire::reply(socket, &SessionReply::Report(Report::Warning(warning)));
            }
            let start_time = crate::report::start_time(pid).unwrap_or(0);
            wire::reply(socket, &SessionReply::Report(Report::Started { pid, start_time }));
            Ok(Started { pidfd, _gate: gate })
        }
        Err(fault) => {
            place.group.kill();
            let _ = sys::wait_pidfd(pidfd.as_fd());
            Err(fault)
        }
    }
}
