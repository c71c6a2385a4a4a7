//! One instance, spoken to through its shim. A handle is a folder and a pid: it holds nothing
//! open, so any number of them, in any process, may speak of the same instance.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::asking::{ANSWER, Heard, Line};
use crate::cgroup::{Cgroups, Group, timespec};
use crate::error::RunError;
use crate::known::{Alive, End, Known, Processes, look};
use crate::net::Listening;
use crate::process::ProcessId;
use crate::shim::control::{Reply, Request};

/// How long killed processes may take to vanish.
const VANISH: Duration = Duration::from_secs(5);
/// The longest grace: who asks for more waits for ever as it is.
const LONGEST_GRACE: Duration = Duration::from_secs(365 * 24 * 3600);

/// A handle on an instance.
#[derive(Debug, Clone)]
pub struct Running {
    pub(crate) id: String,
    pub(crate) dir: PathBuf,
    pub(crate) program: ProcessId,
    pub(crate) cgroups: Cgroups,
    /// Path of its control group below a hierarchy's mount point.
    pub(crate) group: String,
    pub(crate) warnings: Vec<String>,
}

impl Running {
    /// The instance's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The instance's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Pid of the program, or of its init, on the host; 0 while that is not known.
    pub fn pid(&self) -> i32 {
        self.program.pid
    }

    /// Clock ticks from boot to its start: with the pid, names the process for good.
    pub fn start_time(&self) -> u64 {
        self.program.start_time
    }

    /// Its root directory, to look things up from.
    ///
    /// # Errors
    /// When it does not run.
    pub fn root(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(format!("/proc/{}/root", self.pid()), flags, Mode::empty())?;
        // Asked afterwards: so it is not that of another one that has its pid by now.
        match self.program.lives()? {
            true => Ok(root),
            false => Err(io::Error::other("it does not run")),
        }
    }

    /// What was left out when it started, such as an ulimit that could not be raised.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// What is known now, within two seconds.
    pub fn status(&self) -> Known {
        self.status_within(ANSWER)
    }

    /// What is known now, within `limit`.
    pub fn status_within(&self, limit: Duration) -> Known {
        let deadline = Instant::now() + limit;
        let heard = self.begin(&Request::Status);
        self.conclude(heard.map_or_else(|heard| heard, |mut line| line.hear(deadline)))
    }

    /// Whether its program certainly runs.
    pub fn is_alive(&self) -> bool {
        matches!(self.status(), Known::Runs(_))
    }

    /// Where processes listen that have its network.
    ///
    /// # Errors
    /// Its program has ended.
    pub fn listening(&self) -> io::Result<BTreeSet<Listening>> {
        let found = crate::net::listening::of_process(self.program.pid)?;
        // Looked at afterwards: what somebody else listens on who got the pid is not told.
        match self.program.lives()? {
            true => Ok(found),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Sends `signal` to the program, or its init.
    ///
    /// # Errors
    /// [`RunError::NotRunning`], [`RunError::Unknown`], or what the kernel said.
    pub fn signal(&self, signal: i32) -> Result<(), RunError> {
        let heard = self.begin(&Request::Signal { signal });
        match heard.map_or_else(|heard| heard, |mut line| line.hear(Instant::now() + ANSWER)) {
            Heard::Reply(Reply::Done) => Ok(()),
            Heard::Reply(Reply::Refused(message)) => Err(RunError::Io {
                what: format!("instance in {}", self.dir.display()),
                source: io::Error::other(message),
            }),
            heard => match self.conclude(heard) {
                Known::Unknown(why) => Err(RunError::Unknown { id: self.id.clone(), why }),
                _ => Err(RunError::NotRunning { dir: self.dir.clone() }),
            },
        }
    }

    /// Sends `signal`, kills after `grace`, and waits for the end. Where the shim does not answer,
    /// the same is done without it. [`Known::Unknown`]: it may still run, and why.
    pub fn stop(&self, signal: i32, grace: Duration) -> Known {
        let grace = grace.min(LONGEST_GRACE);
        let nanos = u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX);
        match self.order(&Request::Stop { signal, grace: nanos }, grace) {
            Known::Unknown(_) => self.stop_by_force(Some((signal, grace))),
            known => known,
        }
    }

    /// Kills it and waits for the end; else as [`Running::stop`].
    pub fn kill(&self) -> Known {
        match self.order(&Request::Kill, Duration::ZERO) {
            Known::Unknown(_) => self.stop_by_force(None),
            known => known,
        }
    }

    /// Waits for the end, however long that takes: [`Known::Ended`], or [`Known::Unknown`] when its
    /// shim cannot be asked.
    pub fn wait(&self) -> Known {
        match self.watch() {
            Ok(mut watch) => {
                let mut fds = [PollFd::new(&watch, PollFlags::IN)];
                while matches!(poll(&mut fds, None), Err(Errno::INTR)) {}
                watch.known()
            }
            Err(known) => known,
        }
    }

    /// Waits for the end at most for `limit`, and then asks.
    pub fn wait_for(&self, limit: Duration) -> Known {
        match self.watch() {
            Ok(mut watch) => {
                let mut fds = [PollFd::new(&watch, PollFlags::IN)];
                match poll(&mut fds, Some(&timespec(limit))) {
                    Ok(0) | Err(_) => self.status(),
                    Ok(_) => watch.known(),
                }
            }
            Err(known) => known,
        }
    }

    /// Begins to wait for the end.
    ///
    /// # Errors
    /// What is known instead: it has ended, or its shim cannot be asked.
    pub fn watch(&self) -> Result<Watch, Known> {
        match self.begin(&Request::Wait) {
            Ok(line) => Ok(Watch { line, running: self.clone() }),
            Err(heard) => Err(self.conclude(heard)),
        }
    }

    /// What is known once the dust has settled: a killed shim takes its program along, which takes
    /// the kernel a moment.
    pub fn settled(&self) -> Known {
        let deadline = Instant::now() + ANSWER;
        let mut pause = Duration::from_micros(500);
        loop {
            match self.status() {
                Known::Unknown(_) if Instant::now() < deadline => std::thread::sleep(pause),
                known => return known,
            }
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    fn begin(&self, request: &Request) -> Result<Line, Heard> {
        let mut line = Line::open(&self.dir)?;
        line.ask(request)?;
        Ok(line)
    }

    /// Has the shim end the instance, and waits for that.
    fn order(&self, request: &Request, grace: Duration) -> Known {
        let asked = Line::open(&self.dir).and_then(|mut line| {
            // The first answer comes at once, the second with the end.
            line.ask(&Request::Status)?;
            line.ask(request)?;
            match line.hear(Instant::now() + ANSWER) {
                Heard::Reply(Reply::Running { .. }) => Ok(line),
                heard => Err(heard),
            }
        });
        let heard = match asked {
            Ok(mut line) => line.hear(Instant::now() + grace + VANISH + ANSWER),
            Err(heard) => heard,
        };
        match self.conclude(heard) {
            Known::Runs(_) => Known::Unknown("its shim did not end it".to_owned()),
            known => known,
        }
    }

    fn conclude(&self, heard: Heard) -> Known {
        match heard {
            Heard::Reply(Reply::Running { pid, start_time, since, dropped }) => {
                Known::Runs(Alive { pid, start_time, since, dropped })
            }
            Heard::Reply(Reply::Exited(exit)) => Known::Ended(End::Exited(exit)),
            Heard::Reply(Reply::Refused(why)) => self.look(&format!("its shim refuses: {why}")),
            Heard::Reply(Reply::Done) => self.look("its shim answers something else"),
            Heard::Nobody => self.look("its shim cannot be reached"),
            Heard::Unclear(why) => self.look(&why),
        }
    }

    fn look(&self, silence: &str) -> Known {
        look(&self.dir, &self.group(), silence)
    }

    fn group(&self) -> Group {
        self.cgroups.existing(&self.group)
    }

    /// Ends the instance without its shim, which does not answer: signal and grace for the program,
    /// then all of its group, then the shim itself. Only what bears the instance's name is touched:
    /// the control group, and processes by pid and start time.
    fn stop_by_force(&self, gently: Option<(i32, Duration)>) -> Known {
        let group = self.group();
        if let Some((signal, grace)) = gently
            && self.program.signal(signal).is_ok()
        {
            group.wait_empty(grace);
        }
        group.kill();
        if group.wait_empty(VANISH)
            && let Ok(Some(Processes { shim, .. })) = Processes::read(&self.dir)
        {
            // It may be on its way out by itself, and then writes down how it ended.
            if !shim.ends_within(ANSWER) {
                let _ = shim.signal(libc::SIGKILL);
                shim.ends_within(VANISH);
            }
            let _ = group.remove();
        }
        self.look("its shim did not answer when it was stopped")
    }
}

/// The wait for an instance's end. It is readable, for `poll`, when the instance has ended, or its
/// shim has.
#[derive(Debug)]
pub struct Watch {
    line: Line,
    running: Running,
}

impl Watch {
    /// What is known, to be asked when it is readable.
    pub fn known(&mut self) -> Known {
        match self.running.conclude(self.line.hear(Instant::now())) {
            Known::Unknown(_) => self.running.settled(),
            known => known,
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.line.as_fd()
    }
}
