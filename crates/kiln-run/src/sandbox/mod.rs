//! What happens between clone and exec, in a process that has one thread and its namespaces.
//!
//! | module | noun |
//! |---|---|
//! | [`root`] | image + stub layer + mounts → the new root, pivoted into |
//! | [`layout`] | everything that is mounted, in order |
//! | [`resolve`] | paths inside an image |
//! | [`inside`] | opening what a stranger named |
//! | [`layer`] | the stub layer |
//! | [`mounts`] | proc, sys, dev, tmpfs, binds, and what of them is hidden |
//! | [`takeover`] | what an image has where a tmpfs lies over it |
//! | [`machine`] | the machine that a step sees in `/proc` |
//! | [`user`] | who it runs as |
//! | [`privileges`] | capabilities, limits of processes |
//! | [`seccomp`], [`syscalls`] | the system call filter |
//! | [`program`] | the last steps and the exec |
//! | [`init`] | the reaping init |

mod init;
mod inside;
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
mod takeover;
mod user;

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

pub(crate) use init::Epilogue;
use program::Prepared;
pub(crate) use program::{Gate, Stdio};

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
    if network.is_made() { own | libc::CLONE_NEWNET } else { own }
}

/// Becomes the program of `sandbox`, as pid 1 of fresh [`namespaces`]. Returns what went wrong.
///
/// `scratch` is an existing directory of the host that the new root may be assembled on: what is
/// mounted there is seen by this process only. `gate` is waited for before anything of the image
/// is read, and again before the exec; its closing ends this process.
pub(crate) fn enter(
    sandbox: &Sandbox,
    scratch: &Path,
    stdio: Stdio,
    reporter: &mut Reporter,
    gate: &Gate,
) -> Fault {
    let mut warnings = Vec::new();
    let mut assemble = || {
        // Nobody inside may look at this process while it still is the host's binary: that is how
        // CVE-2019-5736 overwrote one.
        not_dumpable()?;
        gate.wait()?;
        warnings = root::assemble(sandbox, scratch)?;
        close_others(&stdio, reporter, gate);
        rustix::system::sethostname(sandbox.hostname.as_bytes())
            .step(|| format!("set the host name `{}`", sandbox.hostname))?;
        Prepared::new(sandbox)
    };
    let assembled = assemble();
    warnings.into_iter().for_each(|warning| reporter.send(&Report::Warning(warning)));
    match assembled {
        Ok(prepared) => prepared.run(stdio, reporter, gate, false),
        Err(fault) => fault,
    }
}

/// Becomes the program of `sandbox` in a running instance, by a child; `namespaces` joins those of
/// the instance. Returns what went wrong.
///
/// Nobody in the instance sees this process, which stays outside of its pid namespace. They see
/// the child, which begins with all that takes privileges done and given up: so it does not matter
/// who may trace it or look at it through `/proc`.
pub(crate) fn join(
    sandbox: &Sandbox,
    namespaces: impl FnOnce() -> Result<(), Fault>,
    stdio: Stdio,
    reporter: &mut Reporter,
    gate: &Gate,
) -> Fault {
    let prepare = || {
        not_dumpable()?;
        gate.wait()?;
        namespaces()?;
        close_others(&stdio, reporter, gate);
        Prepared::new(sandbox)
    };
    match prepare() {
        Ok(prepared) => prepared.run(stdio, reporter, gate, true),
        Err(fault) => fault,
    }
}

/// Closes every descriptor that the program's last steps do not need, before anything that a
/// stranger named is opened: what is left leads nowhere on the host.
fn close_others(stdio: &Stdio, reporter: &Reporter, gate: &Gate) {
    let mut kept: Vec<BorrowedFd<'_>> = vec![reporter.fd(), gate.fd()];
    kept.extend([&stdio.stdin, &stdio.stdout, &stdio.stderr].map(|fd| fd.as_fd()));
    kept.extend(stdio.epilogue.as_ref().map(|fd| fd.as_fd()));
    crate::sys::close_all_but(&kept);
}

/// Ends a process that did not become its program.
pub(crate) fn give_up(mut reporter: Reporter, fault: Fault) -> ! {
    reporter.send(&Report::Failed(fault));
    crate::sys::exit_now(127)
}

/// See [`enter`]; exec makes the program dumpable again.
fn not_dumpable() -> Result<(), Fault> {
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

/// Sets what is asked for in namespaces that are the instance's own, and nothing else.
fn set_sysctls(sandbox: &Sandbox) -> Result<(), Fault> {
    for (name, value) in &sandbox.sysctls {
        let step = || format!("set the kernel setting `{name}` to `{value}`");
        let of_host = sandbox.network == Network::Host && name.starts_with("net.");
        if of_host || !kiln_core::compose::is_own_sysctl(name) {
            return Err(Fault::new(step(), "it is not one of the instance's own namespaces"));
        }
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        std::fs::write(path, value).step(step)?;
    }
    Ok(())
}
