//! The client's end of the socket: finds the agent, or starts one.

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use signal_hook::iterator::Signals;

use crate::agent::{build_id, socket_path};
use crate::protocol::{Event, Request, VERSION, Verb};
use crate::report::{Because, Report};

/// How long a freshly started agent may take to answer; it may have instances to find again.
const START: Duration = Duration::from_secs(30);

/// The answers to one request.
pub(crate) struct Answers(BufReader<UnixStream>);

impl Answers {
    /// The next event.
    pub(crate) fn next(&mut self) -> Result<Event, Report> {
        let mut line = String::new();
        let read = self.0.read_line(&mut line).because(|| "reading the agent's answer".into())?;
        if read == 0 {
            return Err(Report::failed("the agent went away before it had answered")
                .hint("ask again: what was done is in `kiln history`, what runs in `kiln ps`"));
        }
        serde_json::from_str(&line).because(|| "understanding the agent's answer".into())
    }
}

impl Answers {
    /// The connection itself, to say more to the agent.
    pub(crate) fn stream(&self) -> std::io::Result<UnixStream> {
        self.0.get_ref().try_clone()
    }

    /// From now on Ctrl-C asks the agent to undo what has not switched, and its answer is still
    /// shown; a second one ends this process.
    pub(crate) fn cancel_on_interrupt(&self) {
        let (Ok(stream), Ok(mut signals)) =
            (self.0.get_ref().try_clone(), Signals::new([signal_hook::consts::SIGINT]))
        else {
            return;
        };
        std::thread::spawn(move || {
            let mut interrupts = signals.forever();
            interrupts.next();
            let _ = stream.shutdown(std::net::Shutdown::Write);
            interrupts.next();
            std::process::exit(130);
        });
    }
}

/// Whether an agent answers for `root`.
pub(crate) fn agent_is_there(root: &Path) -> bool {
    UnixStream::connect(socket_path(root)).is_ok()
}

/// Sends `verb` and the files that go with it, starting or replacing the agent first where that is
/// needed.
pub(crate) fn send(root: &Path, verb: Verb, fds: &[BorrowedFd<'_>]) -> Result<Answers, Report> {
    let exe = std::env::current_exe().because(|| "finding kiln's own binary".into())?;
    let request = Request {
        version: VERSION,
        build: build_id(),
        exe,
        cwd: std::env::current_dir().because(|| "reading the working directory".into())?,
        env: std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect(),
        verb,
    };
    let (stream, theirs) = meet(root, &request.exe)?;
    let stream = match theirs == request.build {
        true => stream,
        false => replace_older(root, &stream, &request, &theirs)?,
    };
    write_request(&stream, &request)?;
    if !fds.is_empty() {
        send_fds(&stream, fds)?;
    }
    Ok(Answers(BufReader::new(stream)))
}

fn write_request(mut stream: &UnixStream, request: &Request) -> Result<(), Report> {
    let mut line = serde_json::to_vec(request).because(|| "writing the request".into())?;
    line.push(b'\n');
    stream.write_all(&line).because(|| "asking the agent".into())
}

/// An agent, and the build identity with which it greets. One that is on its way out does not
/// greet: then the next one is meant.
fn meet(root: &Path, exe: &Path) -> Result<(UnixStream, String), Report> {
    let deadline = Instant::now() + START;
    loop {
        let stream = connect_or_start(root, exe)?;
        match greeting(&stream) {
            Ok(theirs) if !theirs.is_empty() => return Ok((stream, theirs)),
            result if Instant::now() > deadline => {
                let gone = format!("the agent of {} is leaving and does not end", root.display());
                let log = format!("ask again; its log is {}", log_path(root).display());
                return Err(result.err().unwrap_or_else(|| Report::failed(gone)).hint(log));
            }
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// An agent of another build replaces itself in place by ours.
fn replace_older(
    root: &Path,
    stream: &UnixStream,
    request: &Request,
    theirs: &str,
) -> Result<UnixStream, Report> {
    write_request(stream, &Request { verb: Verb::Replace, ..request.clone() })?;
    let deadline = Instant::now() + START;
    // The old agent ends every connection when it replaces itself; the new one greets as ours.
    loop {
        if let Ok(stream) = UnixStream::connect(socket_path(root))
            && greeting(&stream).is_ok_and(|build| build == request.build)
        {
            return Ok(stream);
        }
        if Instant::now() > deadline {
            return Err(Report::failed(format!(
                "the agent of {} is of another build ({theirs}) and did not replace itself",
                root.display()
            ))
            .hint("a deploy may be under way: wait for it, or end the agent and ask again"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn greeting(stream: &UnixStream) -> Result<String, Report> {
    let doing = || "reading the agent's greeting".to_owned();
    stream.set_read_timeout(Some(START)).because(doing)?;
    let mut line = Vec::new();
    let mut byte = [0_u8];
    let mut reader = stream;
    // Byte by byte: what follows the line belongs to the answer.
    while std::io::Read::read(&mut reader, &mut byte).because(doing)? == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    stream.set_read_timeout(None).because(doing)?;
    Ok(String::from_utf8_lossy(&line).into_owned())
}

fn connect_or_start(root: &Path, exe: &Path) -> Result<UnixStream, Report> {
    let socket = socket_path(root);
    match UnixStream::connect(&socket) {
        Ok(stream) => return Ok(stream),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return Err(Report::failed(format!(
                "the agent's socket {} belongs to somebody else",
                socket.display()
            ))
            .hint("run this with sudo, or use a root folder of your own with `--root`"));
        }
        Err(_) => start_agent(root, exe)?,
    }
    let deadline = Instant::now() + START;
    loop {
        match UnixStream::connect(&socket) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > deadline => {
                return Err(Report::failed(format!(
                    "started an agent for {}, but it does not answer: {error}",
                    root.display()
                ))
                .log(tail(&log_path(root), 10))
                .hint(format!("its log is {}", log_path(root).display())));
            }
            Err(_) => {}
        }
        if let Some(report) = failed_to_start(root) {
            return Err(report);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Where an agent that a verb started writes.
fn log_path(root: &Path) -> PathBuf {
    root.join("agent.log")
}

/// An agent that cannot start says why in `agent.failed`.
fn failed_to_start(root: &Path) -> Option<Report> {
    let text = std::fs::read(root.join("agent.failed")).ok()?;
    serde_json::from_slice(&text).ok()
}

fn start_agent(root: &Path, exe: &Path) -> Result<(), Report> {
    let root_user = rustix::process::geteuid().is_root();
    let mut command = if root_user {
        crate::agent::privacy::make_root(root)
            .because(|| format!("creating the root folder {}", root.display()))?;
        let _ = std::fs::remove_file(root.join("agent.failed"));
        Command::new(exe)
    } else if std::io::stdin().is_terminal() {
        let _ = writeln!(
            std::io::stderr(),
            "kiln: starting the agent as root by `sudo`: it mounts, makes networks and runs services"
        );
        let mut command = Command::new("sudo");
        command.arg("--").arg(exe);
        command
    } else {
        return Err(Report::failed(format!(
            "no agent runs for {} and one cannot be started without root",
            root.display()
        ))
        .hint("start it with `sudo kiln serve`, or run this with sudo"));
    };
    command.arg("--root").arg(root).arg("agent").stdin(Stdio::null());
    if !root_user {
        // sudo asks on the terminal itself; the agent puts itself into the background.
        let status = command.stdin(Stdio::inherit()).status();
        return match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(Report::failed(format!("`sudo` did not start the agent: {status}"))
                .hint("run this as root, or have root run `kiln serve`")),
            Err(error) => {
                Err(Report::failed(format!("cannot run `sudo`: {error}")).hint("run this as root"))
            }
        };
    }
    let status = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .because(|| format!("starting the agent {}", exe.display()))?;
    match (status.success(), failed_to_start(root)) {
        (true, _) => Ok(()),
        (false, Some(report)) => Err(report),
        (false, None) => Err(Report::failed(format!("the agent did not start: {status}"))
            .log(tail(&log_path(root), 10))),
    }
}

/// The last lines of a file, for a report.
fn tail(path: &Path, lines: usize) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].iter().map(|line| (*line).to_owned()).collect()
}

/// Hands open files to the agent, at most three.
fn send_fds(stream: &UnixStream, fds: &[BorrowedFd<'_>]) -> Result<(), Report> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(fds));
    let bytes = [std::io::IoSlice::new(b"\n")];
    sendmsg(stream, &bytes, &mut control, SendFlags::empty())
        .because(|| "handing files to the agent".into())?;
    Ok(())
}
