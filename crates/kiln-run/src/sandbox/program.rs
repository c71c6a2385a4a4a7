//! The last steps before a program runs, and its exec. Runs inside the new root, with no
//! descriptor of the host's but those that are named here.

use std::ffi::CString;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, set_parent_process_death_signal, setsid, umask};
use rustix::thread::{CapabilitySet, set_no_new_privs};

use super::seccomp::Seccomp;
use super::user::{Identity, lookup};
use super::{init, inside, privileges};
use crate::error::{Context as _, Fault};
use crate::report::{Report, Reporter};
use crate::spec::Sandbox;
use crate::sys;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Descriptors 0, 1 and 2 of a program.
#[derive(Debug)]
pub(crate) struct Stdio {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    /// They are one terminal, which becomes the controlling one.
    pub(crate) tty: bool,
    /// Where an init tells how it ended, see [`init::Epilogue`].
    pub(crate) epilogue: Option<OwnedFd>,
}

/// A program with everything looked up and compiled that can be before its exec.
#[derive(Debug)]
pub(super) struct Prepared {
    argv: Vec<CString>,
    env: Vec<CString>,
    path: String,
    cwd: String,
    identity: Identity,
    capabilities: CapabilitySet,
    ulimits: std::collections::BTreeMap<String, (i64, i64)>,
    /// `None`: it runs without.
    seccomp: Option<Seccomp>,
    init: bool,
    hold: bool,
    /// The root, which is also that of the calling process.
    root: OwnedFd,
}

impl Prepared {
    /// Prepares the program of `sandbox` in the current root.
    pub(super) fn new(sandbox: &Sandbox) -> Result<Self, Fault> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open("/", flags, Mode::empty()).step(|| "open the root".into())?;
        let identity = lookup(root.as_fd(), &sandbox.user, &sandbox.groups)?;
        let mut env = sandbox.env.clone();
        for (name, value) in
            [("PATH", DEFAULT_PATH), ("HOME", &identity.home), ("HOSTNAME", &sandbox.hostname)]
        {
            if value_of(&env, name).is_none() {
                env.push(format!("{name}={value}"));
            }
        }
        let path = value_of(&env, "PATH").unwrap_or_default().to_owned();
        let strings = |list: &[String]| -> Result<Vec<CString>, Fault> {
            list.iter()
                .map(|text| {
                    CString::new(text.as_str())
                        .map_err(|_| Fault::new("prepare the program", "a NUL byte in its words"))
                })
                .collect()
        };
        let argv = strings(&sandbox.argv)?;
        if argv.is_empty() {
            return Err(Fault::new("prepare the program", "there is no command to run"));
        }
        Ok(Self {
            argv,
            env: strings(&env)?,
            path,
            cwd: if sandbox.cwd.is_empty() { "/".to_owned() } else { sandbox.cwd.clone() },
            capabilities: privileges::capability_set(&sandbox.capabilities)?,
            seccomp: (!sandbox.unconfined).then(|| Seccomp::compile(&sandbox.capabilities)),
            ulimits: sandbox.ulimits.clone(),
            init: sandbox.init,
            hold: sandbox.hold,
            identity,
            root,
        })
    }

    /// Becomes the program, in a child if `joiner`; returns what went wrong.
    pub(super) fn run(
        self,
        stdio: Stdio,
        reporter: &mut Reporter,
        gate: &Gate,
        joiner: bool,
    ) -> Fault {
        match self.try_run(stdio, reporter, gate, joiner) {
            Ok(never) => match never {},
            Err(fault) => fault,
        }
    }

    fn try_run(
        self,
        mut stdio: Stdio,
        reporter: &mut Reporter,
        gate: &Gate,
        joiner: bool,
    ) -> Result<std::convert::Infallible, Fault> {
        let (epilogue, tty) = (stdio.epilogue.take(), stdio.tty);
        stdio.stdin = nothing_of_the_hosts(stdio.stdin)?;
        self.take_stdio(stdio)?;
        privileges::limit_by_default(&self.ulimits)?;
        let mut warnings = privileges::limit(&self.ulimits)?;
        gate.wait()?;
        inside::enter(self.root.as_fd(), &self.cwd)?;
        let missing = privileges::become_user(&self.identity, self.capabilities)?;
        if !missing.is_empty() {
            warnings.push(format!("the host cannot give {}", missing.join(", ")));
        }
        for warning in warnings {
            reporter.send(&Report::Warning(warning));
        }
        umask(Mode::from(0o022));
        set_no_new_privs(true).step(|| "set no_new_privs".to_owned())?;
        if let Some(filter) = &self.seccomp {
            filter.install()?;
        }
        if joiner {
            // Only now anybody in the instance sees a process, and it may do no more than they.
            step_inside(reporter)?;
        }
        let step = || "begin a session".to_owned();
        setsid().step(step)?;
        if tty {
            sys::controlling_terminal().step(step)?;
        }
        gate.die_with_starter()?;
        sys::cloexec_from(3);
        if self.hold {
            init::hold();
        }
        if self.init {
            init::split(epilogue)?;
        }
        sys::reset_signals();
        Err(self.exec())
    }

    fn take_stdio(&self, stdio: Stdio) -> Result<(), Fault> {
        let step = || "set up standard input and output".to_owned();
        for fd in [&stdio.stdin, &stdio.stdout, &stdio.stderr] {
            let stat = rustix::fs::fstat(fd).step(step)?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            // A user other than root could not open /dev/stdout else, which is how many log. A FIFO
            // with a name is somebody's on the host.
            if kind.is_fifo() && is_pipe(fd) || stdio.tty && kind.is_char_device() {
                let (uid, gid) = (self.identity.uid, self.identity.gid);
                std::os::unix::fs::fchown(fd, Some(uid), (!stdio.tty).then_some(gid)).step(step)?;
            }
        }
        for (fd, number) in [(&stdio.stdin, 0), (&stdio.stdout, 1), (&stdio.stderr, 2)] {
            sys::dup_to(fd.as_fd(), number).step(step)?;
        }
        Ok(())
    }

    /// Looks the program up like execvp(3).
    fn exec(&self) -> Fault {
        let program = self.argv[0].to_string_lossy().into_owned();
        let step = format!("exec `{program}`");
        if program.contains('/') {
            let error = sys::execve(&self.argv[0], &self.argv, &self.env);
            return Fault::new(step, explain(&error, &program)).with_status(status(&error));
        }
        let mut denied: Option<Fault> = None;
        for dir in self.path.split(':') {
            let dir = if dir.is_empty() { "." } else { dir };
            let Ok(full) = CString::new(format!("{dir}/{program}")) else { continue };
            let error = sys::execve(&full, &self.argv, &self.env);
            match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) => {}
                _ => {
                    let why = explain(&error, &full.to_string_lossy());
                    let fault = || Fault::new(&step, why).with_status(status(&error));
                    denied = Some(denied.unwrap_or_else(fault));
                }
            }
        }
        let nowhere = format!("not found in PATH ({})", self.path);
        denied.unwrap_or_else(|| Fault::new(step, nowhere).with_status(127))
    }
}

/// What a shell exits with after such an exec.
fn status(error: &std::io::Error) -> u8 {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => 127,
        _ => 126,
    }
}

fn explain(error: &std::io::Error, path: &str) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) if std::path::Path::new(path).exists() => {
            format!("{path} is there, but the interpreter that it names is not in the image")
        }
        Some(libc::ENOENT) => format!("there is no {path} in the image"),
        Some(libc::EACCES) => format!("{path} is not executable by this user"),
        Some(libc::ENOEXEC) => format!("{path} is no program for this machine, and has no `#!`"),
        _ => format!("{path}: {error}"),
    }
}

fn value_of<'a>(env: &'a [String], name: &str) -> Option<&'a str> {
    env.iter().find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// The `/dev/null` that nothing is read from was opened on the host, where it is everybody's: by
/// such a descriptor a program could change its mode. The instance's own takes its place; if its
/// programs have put something else there, a pipe in which nothing comes.
fn nothing_of_the_hosts(stdin: OwnedFd) -> Result<OwnedFd, Fault> {
    let step = || "set up standard input".to_owned();
    let null = rustix::fs::makedev(1, 3);
    let is_null = |fd: &OwnedFd| {
        rustix::fs::fstat(fd).is_ok_and(|stat| {
            FileType::from_raw_mode(stat.st_mode).is_char_device() && stat.st_rdev == null
        })
    };
    if !is_null(&stdin) {
        return Ok(stdin);
    }
    // A FIFO in its place would have us wait.
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let plain = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match openat2(CWD, "/dev/null", flags, Mode::empty(), plain) {
        Ok(own) if is_null(&own) => {
            rustix::io::ioctl_fionbio(&own, false).step(step)?;
            Ok(own)
        }
        _ => pipe_with(PipeFlags::CLOEXEC).map(|(read, _)| read).step(step),
    }
}

fn is_pipe(fd: &OwnedFd) -> bool {
    const PIPEFS_MAGIC: u64 = 0x5049_5045;
    rustix::fs::fstatfs(fd).is_ok_and(|stat| stat.f_type as u64 == PIPEFS_MAGIC)
}

/// Goes on in a child, which is in the pid namespace that this process has joined, and ends this
/// process. The child is the starter's, who is told its pid.
fn step_inside(reporter: &mut Reporter) -> Result<(), Fault> {
    let pid = sys::fork_sibling().step(|| "fork into the instance".to_owned())?;
    if pid == 0 {
        return Ok(());
    }
    reporter.send(&Report::Inside { pid });
    sys::exit_now(0)
}

/// The end of the pipe through which the starter lets a new process go on, a byte at a time:
/// first when its limits hold, then when its network is there. Only the starter has the other end.
#[derive(Debug)]
pub(crate) struct Gate(OwnedFd);

impl Gate {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Waits for the next byte.
    pub(super) fn wait(&self) -> Result<(), Fault> {
        let mut byte = [0];
        loop {
            match rustix::io::read(&self.0, &mut byte) {
                Ok(1) => return Ok(()),
                Err(Errno::INTR) => {}
                Ok(_) => return Err(Fault::new("wait for the shim", "it has gone")),
                Err(error) => return Err(error).step(|| "wait for the shim".to_owned()),
            }
        }
    }

    /// From here on this process is killed when its starter ends. A starter that ended before the
    /// call is seen by the closed gate.
    fn die_with_starter(&self) -> Result<(), Fault> {
        let step = || "tie the process to the shim".to_owned();
        set_parent_process_death_signal(Some(Signal::KILL)).step(step)?;
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })).step(step)?;
        if fds[0].revents().contains(PollFlags::HUP) {
            return Err(Fault::new(step(), "it has gone"));
        }
        Ok(())
    }
}
