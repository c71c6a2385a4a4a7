//! What a shim does while its program runs: one poll loop over the program, its output and the
//! control socket; and what it does afterwards.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use super::control::{EXIT_FILE, Reply, Request, SOCKET};
use super::launch::{Launched, SCRATCH};
use super::logfile::{LogFile, now};
use super::stream::{Pace, Stream};
use crate::cgroup::{Group, timespec};
use crate::known::ExitInfo;
use crate::logs::LOG_FILE;
use crate::spec::{InstanceSpec, signal_number};
use crate::sys;

/// How long killed processes may take to vanish before their group is left to the sweep.
const VANISH: Duration = Duration::from_secs(5);
/// Nanoseconds of the longest grace, a year: what is longer could not be added to a clock.
const LONGEST_GRACE: u64 = 365 * 24 * 3600 * 1_000_000_000;
/// Bytes of one request; a longer one is not one of ours.
const LONGEST_REQUEST: usize = 4 << 10;

struct Shim {
    spec: InstanceSpec,
    pid: i32,
    start_time: u64,
    since: u64,
    pidfd: OwnedFd,
    group: Group,
    listener: UnixListener,
    /// Readable after SIGTERM.
    terminate: OwnedFd,
    streams: Vec<Stream>,
    pace: Pace,
    log: LogFile,
    clients: Vec<Client>,
    /// When the grace of a stop is over.
    kill_at: Option<Instant>,
    /// How the program ended, once it has.
    ended: Option<ExitInfo>,
}

struct Client {
    socket: UnixStream,
    input: Vec<u8>,
    /// Wants to know when it has ended.
    waits: bool,
}

/// Returns when the program has ended and is cleaned up after.
pub(super) fn look_after(launched: Launched, terminate: OwnedFd) {
    let Launched { spec, pid, start_time, pidfd, group, listener, stdout, stderr, _gate } =
        launched;
    let log = LogFile::new(Path::new(LOG_FILE), spec.log);
    let pace = Pace::new(spec.sandbox.limits.nano_cpus.map(|billionths| billionths as f64 / 1e9));
    let streams = vec![Stream::new(stdout, "out"), Stream::new(stderr, "err")];
    let (since, clients, kill_at, ended) = (now(), Vec::new(), None, None);
    let mut shim = Shim {
        spec,
        pid,
        start_time,
        since,
        pidfd,
        group,
        listener,
        terminate,
        streams,
        pace,
        log,
        clients,
        kill_at,
        ended,
    };
    shim.run();
    shim.finish();
}

impl Shim {
    /// Until the program has ended.
    fn run(&mut self) {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let ready = self.wait();
            // Output first, so that what it says at its end is not missed.
            let mut at = 3;
            let mut ended = Vec::new();
            for (number, stream) in self.streams.iter_mut().enumerate() {
                if ready[at] && !stream.read(&mut buffer, &mut self.log) {
                    ended.push(number);
                }
                at += 1;
            }
            for number in ended.into_iter().rev() {
                self.streams.remove(number);
            }
            let clients = std::mem::take(&mut self.clients);
            for (client, ready) in clients.into_iter().zip(&ready[at..]) {
                let client = if *ready { self.serve(client) } else { Some(client) };
                self.clients.extend(client);
            }
            if ready[1] {
                self.accept();
            }
            if ready[2] && rustix::io::read(&self.terminate, &mut buffer).is_ok() {
                self.terminate();
            }
            if ready[0] {
                break;
            }
            if self.kill_at.is_some_and(|at| at <= Instant::now()) {
                self.kill_at = None;
                self.kill();
            }
        }
        for stream in &mut self.streams {
            stream.drain(&mut buffer, &mut self.log);
        }
    }

    /// Which of program, listener, SIGTERM, streams, clients has something for us.
    fn wait(&mut self) -> Vec<bool> {
        let rest = self.pace.rest();
        let mut fds = vec![
            PollFd::new(&self.pidfd, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
            PollFd::new(&self.terminate, PollFlags::IN),
        ];
        let output = if rest.is_none() { PollFlags::IN } else { PollFlags::empty() };
        fds.extend(self.streams.iter().map(|stream| PollFd::new(&stream.fd, output)));
        fds.extend(self.clients.iter().map(|client| PollFd::new(&client.socket, PollFlags::IN)));
        let kill = self.kill_at.map(|at| at.saturating_duration_since(Instant::now()));
        let limit = kill.into_iter().chain(rest).min().map(timespec);
        // Interrupted is the same as nothing ready.
        let _ = poll(&mut fds, limit.as_ref());
        fds.iter().map(|fd| !fd.revents().is_empty()).collect()
    }

    fn accept(&mut self) {
        while let Ok((socket, _)) = self.listener.accept() {
            if socket.set_nonblocking(true).is_ok() {
                self.clients.push(Client { socket, input: Vec::new(), waits: false });
            }
        }
    }

    /// Reads and answers. `None`: the client is gone or talks nonsense.
    fn serve(&mut self, mut client: Client) -> Option<Client> {
        let mut buffer = [0; 512];
        loop {
            match client.socket.read(&mut buffer) {
                Ok(0) => return None,
                Ok(length) => client.input.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
            if client.input.len() > LONGEST_REQUEST {
                return None;
            }
        }
        while let Some(end) = client.input.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = client.input.drain(..=end).collect();
            let reply = match serde_json::from_slice(&line) {
                Ok(request) => self.answer(&request, &mut client.waits),
                Err(error) => Some(Reply::Refused(format!("no request: {error}"))),
            };
            if let Some(reply) = reply {
                client.say(&reply)?;
            }
        }
        Some(client)
    }

    /// The reply, unless that comes with the end.
    fn answer(&mut self, request: &Request, waits: &mut bool) -> Option<Reply> {
        if let Some(exit) = self.ended {
            return Some(Reply::Exited(exit));
        }
        let signal = |number: i32| sys::pidfd_signal(self.pidfd.as_fd(), number);
        match *request {
            Request::Status => Some(Reply::Running {
                pid: self.pid,
                start_time: self.start_time,
                since: self.since,
                dropped: self.log.dropped,
            }),
            Request::Signal { signal: number } => Some(match signal(number) {
                Ok(()) => Reply::Done,
                Err(error) => Reply::Refused(format!("signal {number}: {error}")),
            }),
            Request::Wait => {
                *waits = true;
                None
            }
            Request::Kill => {
                *waits = true;
                self.kill();
                None
            }
            Request::Stop { signal: number, grace } => {
                // Looked at before the signal disturbs it.
                let in_vain = !self.spec.sandbox.init && default_action(self.pid, number);
                if let Err(error) = signal(number) {
                    return Some(Reply::Refused(format!("signal {number}: {error}")));
                }
                *waits = true;
                // The kernel keeps from a first process what it has no reaction to; anywhere else
                // the default action would end it, so it does here: nobody waits in vain.
                let grace = if in_vain { 0 } else { grace };
                let at = Instant::now() + Duration::from_nanos(grace.min(LONGEST_GRACE));
                // Of several stops, the most impatient one counts.
                self.kill_at = Some(self.kill_at.map_or(at, |earlier| earlier.min(at)));
                None
            }
        }
    }

    /// Stops the program as its specification says.
    fn terminate(&mut self) {
        let signal = signal_number(&self.spec.stop_signal).unwrap_or(libc::SIGTERM);
        let _ = self.answer(&Request::Stop { signal, grace: self.spec.stop_grace }, &mut false);
    }

    fn kill(&self) {
        let _ = sys::pidfd_signal(self.pidfd.as_fd(), libc::SIGKILL);
        self.group.kill();
    }

    /// After the end: the status is written before anything else, and whoever waits is told when
    /// processes and groups are gone; removing a writable layer may take longer.
    fn finish(mut self) {
        let ended =
            sys::wait_pidfd(self.pidfd.as_fd()).unwrap_or(sys::Ended { code: 255, signal: None });
        let oom = self.group.had_oom() && ended.code == 128 + libc::SIGKILL;
        let exit = ExitInfo { code: ended.code, signal: ended.signal, oom, at: now() };
        let _ = write_exit(&exit);
        clean_group(&self.group);
        for client in self.clients.iter_mut().filter(|client| client.waits) {
            let _ = client.say(&Reply::Exited(exit));
        }
        // Those who connected just now have asked already, or will find the file.
        self.ended = Some(exit);
        self.accept();
        for client in std::mem::take(&mut self.clients) {
            let _ = self.serve(client);
        }
        // Removing a large layer takes its time: whoever calls meanwhile finds nobody, and the file.
        drop(self.listener);
        clean_folder(&self.spec);
    }
}

impl Client {
    fn say(&mut self, reply: &Reply) -> Option<()> {
        let mut line = serde_json::to_vec(reply).ok()?;
        line.push(b'\n');
        self.socket.write_all(&line).ok()
    }
}

/// Whether process `pid` neither catches, blocks (for `sigwait`) nor ignores a signal whose default
/// action is to end it.
fn default_action(pid: i32, signal: i32) -> bool {
    const HARMLESS: [i32; 8] = [
        libc::SIGCHLD,
        libc::SIGCONT,
        libc::SIGSTOP,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGTTOU,
        libc::SIGURG,
        libc::SIGWINCH,
    ];
    // A thread in `sigwait` does not show as blocked what it waits for.
    let in_sigwait = || {
        let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
        call.split(' ').next().and_then(|number| number.parse().ok())
            == Some(libc::SYS_rt_sigtimedwait)
    };
    let waited = in_sigwait();
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return false };
    if waited || in_sigwait() {
        return false;
    }
    let set = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    let masks = ["SigBlk:", "SigIgn:", "SigCgt:"].map(set);
    let bit = 1_u64 << (signal - 1).clamp(0, 63);
    !HARMLESS.contains(&signal) && masks.iter().all(|mask| mask.is_some_and(|m| m & bit == 0))
}

fn write_exit(exit: &ExitInfo) -> std::io::Result<()> {
    let temporary = format!("{EXIT_FILE}.new");
    fs::write(&temporary, serde_json::to_vec(exit)?)?;
    fs::rename(temporary, EXIT_FILE)
}

/// Removes what a start that failed, or an end, leaves behind.
pub(super) fn clean_up(spec: &InstanceSpec, group: &Group) {
    clean_group(group);
    clean_folder(spec);
}

fn clean_group(group: &Group) {
    if group.populated().unwrap_or(true) {
        group.kill();
    }
    // What cannot be removed now is found by the next sweep.
    if group.wait_empty(VANISH) {
        let _ = group.remove();
    }
}

fn clean_folder(spec: &InstanceSpec) {
    // A layer of names is still to be looked at by whoever clears the instance's folder away.
    if let Some(upper) = &spec.sandbox.upper
        && upper.starts_with(&spec.dir)
        && !spec.sandbox.names_only
    {
        let _ = fs::remove_dir_all(upper);
    }
    let _ = fs::remove_dir(SCRATCH);
    let _ = fs::remove_file(SOCKET);
}
