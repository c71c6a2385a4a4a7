//! What happens between clone and exec, in a process that has one thread and its namespaces.
//!
//! | module | noun |
//! |---|---|
//! | [`root`] | image + stub layer + mounts → the new root, pivoted into |
//! | [`layout`] | everything that is mounted, in order |
//! | [`resolve`] | paths inside an image |
//! | [`layer`] | the stub layer |
//! | [`mounts`] | proc, sys, dev, tmpfs, binds, and what of them is hidden |
//! | [`machine`] | the machine that a step sees in `/proc` |
//! | [`user`] | who it runs as |
//! | [`privileges`] | capabilities, limits of processes |
//! | [`seccomp`], [`syscalls`] | the system call filter |
//! | [`program`] | the last steps and the exec |
//! | [`init`] | the reaping init |

mod init;
mod layer;
mod layout;
mod machine;
mod mounts;
mod privileges;
mod program;
mod resolve;
mod root;
mod seccomp;
mod syscalls;
mod user;

use std::os::fd::OwnedFd;
use std::path::Path;

pub(crate) use init::Epilogue;
pub(crate) use program::{Prepared, Stdio};

use crate::error::{Context as _, Fault};
use crate::report::{Report, Reporter};
use crate::spec::{Network, Sandbox};

/// The namespaces of a new sandbox.
pub(crate) fn namespaces(network: &Network) -> i32 {
    let own = libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWCGROUP;
    if *network == Network::Host { own } else { own | libc::CLONE_NEWNET }
}

/// Becomes the program of `sandbox`, as pid 1 of fresh [`namespaces`]. Returns what went wrong.
///
/// `scratch` is an existing directory of the host that the new root may be assembled on: what is
/// mounted there is seen by this process only. `gate` is waited for before the exec: one byte
/// opens it, its closing ends this process.
pub(crate) fn enter(
    sandbox: &Sandbox,
    scratch: &Path,
    stdio: Stdio,
    reporter: &mut Reporter,
    gate: &OwnedFd,
) -> Fault {
    match assemble(sandbox, scratch) {
        Ok(prepared) => prepared.run(stdio, reporter, gate),
        Err(fault) => fault,
    }
}

/// Ends a process that did not become its program.
pub(crate) fn give_up(mut reporter: Reporter, fault: Fault) -> ! {
    reporter.send(&Report::Failed(fault));
    crate::sys::exit_now(127)
}

fn assemble(sandbox: &Sandbox, scratch: &Path) -> Result<Prepared, Fault> {
    // Nobody inside may look at this process while it still is the host's binary: that is how
    // CVE-2019-5736 overwrote one.
    not_dumpable()?;
    root::assemble(sandbox, scratch)?;
    rustix::system::sethostname(sandbox.hostname.as_bytes())
        .step(|| format!("set the host name `{}`", sandbox.hostname))?;
    Prepared::new(sandbox)
}

/// See [`assemble`]; exec makes the program dumpable again.
pub(crate) fn not_dumpable() -> Result<(), Fault> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .step(|| "hide the process".to_owned())
}

/// What is set in a fresh network namespace before the program sees it: `lo` is up, and any user
/// may listen on any port, as in Docker.
fn network_defaults() -> Result<(), Fault> {
    crate::sys::loopback_up().step(|| "set up `lo`".to_owned())?;
    // Absent before 4.11 and where the kernel has no such setting: then root still can.
    let _ = std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    Ok(())
}
