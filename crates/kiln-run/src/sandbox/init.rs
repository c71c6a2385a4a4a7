//! The reaping init: pid 1 that starts the program, forwards signals to it, reaps whatever is
//! orphaned, and ends with the program's status (128 + signal if one ended it).

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{WaitOptions, wait};
use serde::{Deserialize, Serialize};

use crate::error::{Context as _, Fault};
use crate::sys;

/// What there is to say when the program has ended.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Epilogue {
    /// The signal that ended it.
    pub(crate) signal: Option<i32>,
    /// Names of the processes that it left running; they are killed.
    pub(crate) left: Vec<String>,
}

/// So many of those that were left running are named.
const NAMED: usize = 8;

/// Splits this process: returns in the child, which is to become the program, and never in pid 1,
/// which writes its [`Epilogue`] to `told`.
pub(super) fn split(told: Option<OwnedFd>) -> Result<(), Fault> {
    sys::block_signals();
    let main = sys::fork().step(|| "fork the program from its init".to_owned())?;
    if main == 0 {
        return Ok(());
    }
    // The report pipe among them: the starter waits until exec has closed it everywhere.
    let mut told = told.map(File::from);
    sys::close_all_but(told.as_ref().map(AsFd::as_fd).as_slice());
    loop {
        match sys::next_signal() {
            libc::SIGCHLD => reap(main, told.as_mut()),
            signal if signal > 0 => {
                // It may have ended already; then SIGCHLD comes next.
                let _ = sys::kill(main, signal);
            }
            _ => {}
        }
    }
}

/// Waits, reaping whatever is orphaned, until it is told to end.
pub(super) fn hold() -> ! {
    sys::block_signals();
    // The starter waits until the report pipe is closed everywhere.
    sys::close_all_but(&[]);
    loop {
        match sys::next_signal() {
            libc::SIGCHLD => while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {},
            libc::SIGTERM | libc::SIGINT | libc::SIGQUIT | libc::SIGHUP => sys::exit_now(0),
            _ => {}
        }
    }
}

fn reap(main: i32, mut told: Option<&mut File>) {
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if pid.as_raw_pid() == main {
            let code = status
                .exit_status()
                .or_else(|| status.terminating_signal().map(|signal| 128 + signal))
                .unwrap_or(255);
            if let Some(told) = &mut told {
                let epilogue =
                    Epilogue { signal: status.terminating_signal(), left: left_running() };
                // A reader that has gone is nobody to tell.
                let _ = serde_json::to_writer(told, &epilogue);
            }
            // The kernel kills what is left in the namespace.
            sys::exit_now(code);
        }
    }
}

/// Everything in this namespace but itself and what has ended.
fn left_running() -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let (Some((head, tail)), true) = (stat.rsplit_once(") "), pid != 1) else { continue };
        if !tail.starts_with(['Z', 'X']) && names.len() < NAMED {
            names.push(head.split_once('(').map_or("", |(_, name)| name).to_owned());
        }
    }
    names
}
