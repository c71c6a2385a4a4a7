//! The reaping init: pid 1 that starts the program, forwards signals to it, reaps whatever is
//! orphaned, and ends with the program's status (128 + signal if one ended it).

use rustix::process::{WaitOptions, wait};

use crate::error::{Context as _, Fault};
use crate::sys;

/// Splits this process: returns in the child, which is to become the program, and never in pid 1.
pub(super) fn split() -> Result<(), Fault> {
    sys::block_signals();
    let main = sys::fork().step(|| "fork the program from its init".to_owned())?;
    if main == 0 {
        return Ok(());
    }
    // The report pipe among them: the starter waits until exec has closed it everywhere.
    sys::close_from(3);
    loop {
        match sys::next_signal() {
            libc::SIGCHLD => reap(main),
            signal if signal > 0 => {
                // It may have ended already; then SIGCHLD comes next.
                let _ = sys::kill(main, signal);
            }
            _ => {}
        }
    }
}

fn reap(main: i32) {
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if pid.as_raw_pid() == main {
            let code = status
                .exit_status()
                .or_else(|| status.terminating_signal().map(|signal| 128 + signal))
                .unwrap_or(255);
            // The kernel kills what is left in the namespace.
            sys::exit_now(code);
        }
    }
}
