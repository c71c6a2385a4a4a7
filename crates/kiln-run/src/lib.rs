//! Image → instance: one single-threaded shim process per instance, and the sandbox it builds.
//!
//! | module | noun |
//! |---|---|
//! | [`spec`] | what is to run: sandbox, instance, step |
//! | [`runtime`] | the agent's side: start, find again, sweep |
//! | [`running`] | one instance, spoken to through its shim |
//! | [`known`] | what is known of an instance, and on what evidence |
//! | [`exec`] | a command inside a running instance |
//! | [`step`] | a RUN step: a sandbox that ends with its command |
//! | [`conditions`] | what a step can see of the machine, varied on purpose |
//! | [`usage`] | what an instance uses of the machine |
//! | [`logs`] | reading what an instance wrote |
//! | [`net`] | the network of an instance |
//! | [`own`] | what a process of Kiln's does not take over from its starter |
//! | `zygote` | the process that shims are forked from |
//! | `shim` | the process of each instance: start, log, control, clean up |
//! | `session` | the process of each exec and step |
//! | `sandbox` | what happens between clone and exec |
//! | `asking` | the asking end of a shim's socket: deadlines |
//! | `process` | a process, named for good |
//! | `cgroup` | groups for tracking, killing and limits |
//! | `devices` | which devices an instance may open |
//! | `sealed` | the copy of the binary that strangers may see |
//! | `sys` | the few system calls that no library wraps |
//!
//! Nothing here runs between `clone` and `exec` in a process that has threads: the binary calls
//! [`dispatch`] before it starts any, and the hidden roles never return from it.
//! `docs/runtime.md` says why it is built so.
// A log that is full or closed must not end what writes to it, as `eprintln!` would.
#![cfg_attr(not(test), warn(clippy::print_stderr))]

pub mod conditions;
pub mod error;
pub mod exec;
pub mod known;
pub mod logs;
pub mod net;
pub mod own;
pub mod running;
pub mod runtime;
pub mod spec;
pub mod step;
pub mod usage;

mod asking;
mod cgroup;
pub mod devices;
mod process;
mod report;
mod sandbox;
mod sealed;
mod session;
mod shim;
mod sys;
mod zygote;

use std::ffi::OsString;

pub use conditions::Conditions;
pub use error::RunError;
pub use exec::{ExecOutcome, ExecSpec, ExecStdio, Executing};
pub use known::{Alive, End, ExitInfo, Known};
pub use running::{Running, Watch};
pub use runtime::Runtime;
pub use spec::{
    BindMount, Device, FileMount, ImageMount, InstanceSpec, LogLimits, Machine, Network, Sandbox,
    SecretFile,
};
pub use step::{Around, StepExit, StepSpec, Stopped};

/// Hidden role: the shim of one instance.
pub const ROLE_SHIM: &str = "shim";
/// Hidden role: the process that shims are forked from.
pub const ROLE_ZYGOTE: &str = "zygote";
/// Hidden role: one command inside a running instance.
pub const ROLE_EXEC: &str = "shim-exec";
/// Hidden role: one RUN step.
pub const ROLE_STEP: &str = "shim-step";

/// Runs a hidden role if the first argument (after the program's name) names one, and then never
/// returns. The binary calls this first thing in `main`, while it has one thread.
pub fn dispatch(args: impl IntoIterator<Item = OsString>) {
    let mut args = args.into_iter().skip(1);
    let Some(role) = args.next() else { return };
    if [ROLE_SHIM, ROLE_ZYGOTE, ROLE_EXEC, ROLE_STEP].iter().any(|own| role == *own) {
        own::begin();
        // Executed by a descriptor, it would be called by that number.
        let _ = rustix::thread::set_name(c"kiln");
    }
    match role.to_str() {
        Some(ROLE_SHIM) => shim::main(args.next().unwrap_or_default().as_ref()),
        Some(ROLE_ZYGOTE) => zygote::main(args.next().unwrap_or_default().as_ref()),
        Some(ROLE_EXEC) => session::main_exec(),
        Some(ROLE_STEP) => session::main_step(),
        _ => {}
    }
}
