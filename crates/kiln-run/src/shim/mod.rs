//! The process of one instance, forked from the zygote or executed: it starts the program, keeps its log, answers on the control
//! socket, and cleans up when the program has ended. It has one thread, a session and a control
//! group of its own, and needs nobody: the agent that started it may die and another one attach.
//!
//! If the shim itself is killed, the kernel kills the program with it (PDEATHSIG); its supervisor
//! finds the instance lost and starts a fresh one.

pub(crate) mod control;
mod event;
mod launch;
pub(crate) mod logfile;
mod stream;

use launch::Launched;
pub(crate) use launch::SCRATCH;

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::Path;

use kiln_core::compose::Limits;

use crate::cgroup::{Cgroups, SHIMS};
use crate::error::{Context as _, Fault};
use crate::known::{PROCESSES_FILE, Processes, boot_id};
use crate::process::ProcessId;
use crate::report::{Report, Reporter};
use crate::spec::{InstanceSpec, SPEC_FILE};
use crate::sys::{self, Cloned};

/// `kiln shim DIR`: standard output takes the reports.
pub(crate) fn main(dir: &OsStr) -> ! {
    let code = match sys::take_output() {
        Ok(output) => match run(Path::new(dir), Reporter::new(output)) {
            Ok(()) => 0,
            Err(()) => 1,
        },
        Err(_) => 1,
    };
    sys::exit_now(code)
}

/// The process that was started: its child is the shim. The error has been reported.
fn run(dir: &Path, mut reporter: Reporter) -> Result<(), ()> {
    let detached = prepare(dir).and_then(|spec| {
        let cgroups = Cgroups::find()?;
        let cloned = detach(&spec, &cgroups)?;
        Ok((spec, cgroups, cloned))
    });
    match detached {
        Ok((_, _, Cloned::Parent { .. })) => Ok(()),
        Ok((spec, cgroups, Cloned::Child)) => live(spec, &cgroups, reporter),
        Err(fault) => {
            reporter.send(&Report::Failed(fault));
            Err(())
        }
    }
}

/// The same in a process that was forked from the zygote, straight into the group of the shims.
pub(crate) fn forked(dir: &Path, cgroups: &Cgroups, mut reporter: Reporter) -> ! {
    let lived = match prepare(dir) {
        Ok(spec) => live(spec, cgroups, reporter),
        Err(fault) => {
            reporter.send(&Report::Failed(fault));
            Err(())
        }
    };
    sys::exit_now(i32::from(lived.is_err()))
}

/// The shim, from its first step to its end. The error has been reported.
fn live(spec: InstanceSpec, cgroups: &Cgroups, mut reporter: Reporter) -> Result<(), ()> {
    match bring_up(spec, cgroups, &mut reporter) {
        Ok((launched, terminate)) => {
            let (pid, start_time) = (launched.pid, launched.start_time);
            reporter.send(&Report::Started { pid, start_time });
            drop(reporter);
            // Nobody waits for it; until it is there, the control group alone tells whether
            // anything is left.
            let _ = leave_names(ProcessId { pid, start_time });
            event::look_after(launched, terminate);
            Ok(())
        }
        Err(fault) => {
            reporter.send(&Report::Failed(fault));
            Err(())
        }
    }
}

/// The descriptor is readable when the shim was sent SIGTERM, which is how a machine that shuts
/// down asks for an orderly end.
fn bring_up(
    spec: InstanceSpec,
    cgroups: &Cgroups,
    reporter: &mut Reporter,
) -> Result<(Launched, OwnedFd), Fault> {
    rustix::process::setsid().step(|| "begin a session".to_owned())?;
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGPIPE] {
        sys::ignore_signal(signal);
    }
    if let Ok(Some(shim)) = own() {
        reporter.send(&Report::Shim(shim));
    }
    let terminate = sys::signal_fd(libc::SIGTERM).step(|| "listen for SIGTERM".to_owned())?;
    let launched = launch::launch(spec, cgroups, reporter)?;
    Ok((launched, terminate))
}

fn own() -> std::io::Result<Option<ProcessId>> {
    ProcessId::of(std::process::id().cast_signed())
}

/// Writes down who shim and program are, for whoever cannot ask.
fn leave_names(program: ProcessId) -> std::io::Result<()> {
    let Some(shim) = own()? else { return Ok(()) };
    let processes = Processes { boot: boot_id()?, shim, program };
    let temporary = format!("{PROCESSES_FILE}.new");
    std::fs::write(&temporary, serde_json::to_vec(&processes)?)?;
    std::fs::rename(temporary, PROCESSES_FILE)
}

fn prepare(dir: &Path) -> Result<InstanceSpec, Fault> {
    sys::cloexec_from(3);
    rustix::process::chdir(dir).step(|| format!("enter {}", dir.display()))?;
    let step = || format!("read {}", dir.join(SPEC_FILE).display());
    let text = std::fs::read(SPEC_FILE).step(step)?;
    serde_json::from_slice(&text).map_err(|error| Fault::new(step(), error))
}

/// Leaves the starter's group: into a group by clone, for moving a running
/// process there can take 15 ms. The starter reaps the process that it started at once.
fn detach(spec: &InstanceSpec, cgroups: &Cgroups) -> Result<Cloned, Fault> {
    let parent = Path::new(&spec.cgroup).parent().unwrap_or(Path::new(crate::cgroup::TOP));
    let shims = parent.join(SHIMS).to_string_lossy().into_owned();
    let group = cgroups.group(&shims, &Limits::default())?.open()?;
    sys::clone_into(0, Some(std::os::fd::AsFd::as_fd(&group))).step(|| "fork the shim".to_owned())
}
