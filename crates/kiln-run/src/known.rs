//! What is known of an instance: it runs, it has ended, or it is not known.
//!
//! Whoever cannot be asked is unknown, not dead: a shim that was stopped, an answer that makes no
//! sense, a socket that is gone while its process is there, no descriptor left to ask with. That an
//! instance has ended is believed on evidence only:
//!
//! | evidence | by |
//! |---|---|
//! | the shim's record of the end | `exit.json`, or its answer |
//! | the shim is gone, and nothing is left in the instance's control group | `processes.json`, `/proc`, cgroup2 |
//! | it was started under another boot | `processes.json` |

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::cgroup::Group;
use crate::process::ProcessId;
use crate::shim::control::EXIT_FILE;

/// Name of the file in which a shim writes who it is.
pub(crate) const PROCESSES_FILE: &str = "processes.json";

/// How an instance ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitInfo {
    /// Exit status; 128 + signal if one ended it.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The kernel killed it for want of memory.
    pub oom: bool,
    /// Nanoseconds since the Unix epoch.
    pub at: u64,
}

/// What is known of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// Its program runs.
    Runs(Alive),
    /// It has ended, and nothing of it runs any more.
    Ended(End),
    /// Neither is certain; why. Nothing may be started in its place, and nothing be stopped.
    Unknown(String),
}

/// An instance that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alive {
    /// Pid of the program, or of its init.
    pub pid: i32,
    /// Clock ticks from boot to its start: with the pid, names the process for good.
    pub start_time: u64,
    /// Nanoseconds since the Unix epoch.
    pub since: u64,
    /// Lines of its log that could not be written.
    pub dropped: u64,
}

/// How an instance ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Its shim recorded it.
    Exited(ExitInfo),
    /// Its shim was killed, and the program with it; or the machine was restarted.
    Lost,
}

/// Who a shim and its program are: what it leaves in the instance's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Processes {
    /// The boot under which they were started.
    pub(crate) boot: String,
    pub(crate) shim: ProcessId,
    pub(crate) program: ProcessId,
}

impl Processes {
    /// Reads those of the instance in `dir`; `None`: it never got so far, or is an older shim's.
    pub(crate) fn read(dir: &Path) -> io::Result<Option<Self>> {
        match fs::read(dir.join(PROCESSES_FILE)) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Names the time from one start of the machine to the next.
///
/// # Errors
/// When it cannot be read.
pub fn boot_id() -> io::Result<String> {
    static KNOWN: OnceLock<String> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return Ok(known.clone());
    }
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(KNOWN.get_or_init(|| text.trim().to_owned()).clone())
}

/// What can be told of the instance in `dir` without its shim, which `silence` says more about.
pub(crate) fn look(dir: &Path, group: &Group, silence: &str) -> Known {
    let record = match recorded_end(dir) {
        Ok(Some(exit)) => return Known::Ended(End::Exited(exit)),
        Ok(None) => String::new(),
        Err(error) => format!("; {EXIT_FILE} cannot be read: {error}"),
    };
    match remains(dir, group) {
        Ok(None) => Known::Ended(End::Lost),
        Ok(Some(what)) => Known::Unknown(format!("{silence}, and {what}{record}")),
        Err(error) => Known::Unknown(format!("{silence}, and {error}{record}")),
    }
}

fn recorded_end(dir: &Path) -> io::Result<Option<ExitInfo>> {
    match fs::read(dir.join(EXIT_FILE)) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What of the instance is still there, by the kernel's word; `None`: nothing is.
fn remains(dir: &Path, group: &Group) -> io::Result<Option<String>> {
    let doing = |what: &str, error: io::Error| io::Error::other(format!("{what}: {error}"));
    // A file that is torn leaves the control group as the witness.
    match Processes::read(dir) {
        Ok(Some(processes)) => {
            let boot = boot_id().map_err(|error| doing("the boot's id", error))?;
            if processes.boot != boot {
                return Ok(None);
            }
            let shim = processes.shim;
            if shim.lives().map_err(|error| doing("asking for its shim's process", error))? {
                return Ok(Some(format!("its shim, pid {}, is there", shim.pid)));
            }
        }
        Ok(None) => {}
        // The kinds of serde's errors: garbled, and cut short.
        Err(error) if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) => {
        }
        Err(error) => return Err(doing(PROCESSES_FILE, error)),
    }
    let populated = group.populated().map_err(|error| doing("its control group", error))?;
    Ok(populated.then(|| "its processes are there".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Cgroups;

    fn group(dir: &Path, populated: Option<bool>) -> Group {
        let path = dir.join("groups/kiln/x");
        if let Some(populated) = populated {
            fs::create_dir_all(&path).unwrap();
            let text = format!("populated {}\nfrozen 0\n", u8::from(populated));
            fs::write(path.join("cgroup.events"), text).unwrap();
        }
        Cgroups::at(&dir.join("groups")).existing("kiln/x")
    }

    fn unknown(known: &Known) -> &str {
        match known {
            Known::Unknown(why) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_end_is_believed_on_evidence_only() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        assert_eq!(look(at, &group(at, None), "silent"), Known::Ended(End::Lost));
        let group = group(at, Some(true));
        assert_eq!(unknown(&look(at, &group, "silent")), "silent, and its processes are there");
        // Its shim is there, whatever the group says.
        let own = ProcessId::of(std::process::id().cast_signed()).unwrap().unwrap();
        let mut processes = Processes { boot: boot_id().unwrap(), shim: own, program: own };
        let write = |processes: &Processes| {
            fs::write(at.join(PROCESSES_FILE), serde_json::to_vec(processes).unwrap()).unwrap();
        };
        write(&processes);
        fs::write(at.join("groups/kiln/x/cgroup.events"), "populated 0\n").unwrap();
        assert!(unknown(&look(at, &group, "silent")).contains("its shim, pid"));
        // Of another process with the same pid nothing follows.
        processes.shim.start_time -= 1;
        write(&processes);
        assert_eq!(look(at, &group, "silent"), Known::Ended(End::Lost));
        // Nor of the same process under another boot.
        processes.shim = own;
        processes.boot = "another".to_owned();
        write(&processes);
        fs::write(at.join("groups/kiln/x/cgroup.events"), "populated 1\n").unwrap();
        assert_eq!(look(at, &group, "silent"), Known::Ended(End::Lost));
        // What cannot be read is no evidence.
        fs::remove_file(at.join(PROCESSES_FILE)).unwrap();
        fs::create_dir(at.join(PROCESSES_FILE)).unwrap();
        assert!(unknown(&look(at, &group, "silent")).contains(PROCESSES_FILE));
    }

    #[test]
    fn torn_names_leave_the_control_group_as_the_witness() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        for torn in ["", "{\"boot\":", "nonsense"] {
            fs::write(at.join(PROCESSES_FILE), torn).unwrap();
            let empty = group(at, Some(false));
            assert_eq!(look(at, &empty, "silent"), Known::Ended(End::Lost), "{torn:?}");
            let populated = group(at, Some(true));
            let known = look(at, &populated, "silent");
            assert_eq!(unknown(&known), "silent, and its processes are there", "{torn:?}");
        }
    }

    #[test]
    fn a_garbled_record_of_the_end_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        fs::write(at.join(EXIT_FILE), "{\"code\":").unwrap();
        let populated = group(at, Some(true));
        assert!(unknown(&look(at, &populated, "silent")).contains("exit.json cannot be read"));
        let exit = ExitInfo { code: 3, signal: None, oom: false, at: 1 };
        fs::write(at.join(EXIT_FILE), serde_json::to_vec(&exit).unwrap()).unwrap();
        assert_eq!(look(at, &populated, "silent"), Known::Ended(End::Exited(exit)));
    }
}
