//! The data plane: published ports, one routing table, one atomic switch. A process of its own,
//! so that the agent may die or be replaced while traffic flows.
//!
//! Three processes talk here: the **agent** holds a [`FrontClient`] and sends whole [`Table`]s;
//! the **worker** owns the listeners and moves the bytes; the **minder**, a few lines, keeps
//! duplicates of the listening sockets and starts the worker again when it dies.
//!
//! | module | noun |
//! |---|---|
//! | [`table`] | the routing table that is applied as one generation |
//! | [`wire`] | requests and replies on `front.sock`, one JSON object a line |
//! | [`client`], `end` | blocking client for the agent; starts the front when none answers; ends it |
//! | `paths` | the files under `<root>/front/` |
//! | `minder`, `link`, `minding` | the process that outlives the worker; descriptors over a socket; telling it |
//! | `worker`, `control` | the worker's start, its control socket |
//! | `finishing` | workers that were replaced and still have connections |
//! | `state`, `routes`, `saved` | what the worker owns: listeners, table, upstreams; `apply`; the table as it is held, and on disk |
//! | `listener`, `listeners`, `holder` | binding an address; all that are open; who else holds one |
//! | `limits` | how long silence is borne |
//! | `generation`, `upstream` | what requests read: the current generation; activity and cutting |
//! | `core`, `pool`, `pool2` | a thread with its own runtime; its idle upstream connections |
//! | `proxy` | one accepted connection: detection, HTTP/1, HTTP/2, TCP, UDP |
#![deny(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::print_stderr))]

/// One line into the front's log. A log that cannot be written, or a pipe whose reader has gone,
/// keeps nobody from working: `eprintln!` would panic.
macro_rules! say {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($words)*);
    }};
}

mod asked;
pub mod client;
mod control;
mod core;
mod end;
mod finishing;
mod generation;
mod holder;
mod limits;
mod link;
mod listener;
mod listeners;
mod minder;
mod minding;
mod paths;
mod pool;
mod pool2;
mod proxy;
mod routes;
mod saved;
mod state;
pub mod table;
mod upstream;
pub mod wire;
mod worker;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

pub use client::{FrontClient, FrontError, ensure_running, renew};
pub use end::{end, worker};
pub use minder::run_minder;
pub use table::{App, Protocol, Route, Table};
pub use wire::{
    Applied, Behind, Bind, BindFailure, Bound, Change, Drain, DrainPolicy, Drained, Holder, Stats,
};
pub use worker::run_worker;

/// What tells this program from another build of it.
pub fn build_id() -> String {
    use std::os::unix::fs::MetadataExt;
    // Through /proc, so that it is this very file, whatever its name is by now.
    std::fs::metadata("/proc/self/exe")
        .map(|meta| {
            let (size, mtime) = (meta.size(), meta.mtime());
            format!("{} {}-{size}-{mtime}", env!("CARGO_PKG_VERSION"), meta.ino())
        })
        .unwrap_or_default()
}

/// Runs `front [--worker] ROOT` if that is what `args` (without the program's name) asks for, and
/// returns the exit code; `None` when it is some other verb. Call it before any thread exists.
pub fn dispatch(args: &[OsString]) -> Option<u8> {
    let (verb, rest) = args.split_first()?;
    if verb != "front" {
        return None;
    }
    match rest {
        [flag, root] if flag == "--worker" => Some(run_worker(Path::new(root))),
        [root] if !root.as_encoded_bytes().starts_with(b"-") => {
            let exe = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
            Some(run_minder(Path::new(root), &exe))
        }
        _ => {
            say!("kiln front: expected the root directory, as in `kiln front /var/lib/kiln`");
            Some(2)
        }
    }
}
