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
use super::stream::Stream;
use crate::cgroup::{Group, timespec};
use crate::logs::LOG_FILE;
use crate::running::ExitInfo;
use crate::spec::InstanceSpec;
use crate::sys;

/// How long killed processes may take to vanish before their group is left to the sweep.
const VANISH: Duration = Duration::from_secs(5);
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
    streams: Vec<Stream>,
    log: LogFile,
    clients: Vec<Client>,
    /// When the grace of a stop is over.
    kill_at: Option<Instant>,
}

struct Client {
    socket: UnixStream,
    input: Vec<u8>,
    /// Wants to know when it has ended.
    waits: bool,
}

/// Returns when the program has ended and is cleaned up after.
pub(super) fn look_after(launched: Launched) {
    let Launched { spec, pid, start_time, pidfd, group, listener, stdout, stderr, _gate } =
        launched;
    let log = LogFile::new(Path::new(LOG_FILE), spec.log);
    let streams = vec![Stream::new(stdout, "out"), Stream::new(stderr, "err")];
    let (since, clients, kill_at) = (now(), Vec::new(), None);
    let mut shim = Shim {
        spec,
        pid,
        start_time,
        since,
        pidfd,
        group,
        listener,
        streams,
        log,
        clients,
        kill_at,
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
            let mut at = 2;
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

    /// Which of program, listener, streams, clients has something for us.
    fn wait(&self) -> Vec<bool> {
        let mut fds = vec![
            PollFd::new(&self.pidfd, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        fds.extend(self.streams.iter().map(|stream| PollFd::new(&stream.fd, PollFlags::IN)));
        fds.extend(self.clients.iter().map(|client| PollFd::new(&client.socket, PollFlags::IN)));
        let limit = self.kill_at.map(|at| timespec(at.saturating_duration_since(Instant::now())));
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
                if let Err(error) = signal(number) {
                    return Some(Reply::Refused(format!("signal {number}: {error}")));
                }
                *waits = true;
                let at = Instant::now() + Duration::from_nanos(grace);
                // Of several stops, the most impatient one counts.
                self.kill_at = Some(self.kill_at.map_or(at, |earlier| earlier.min(at)));
                None
            }
        }
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
        // Those who connected just now have asked already, or will find the file.
        self.accept();
        for client in std::mem::take(&mut self.clients) {
            if let Some(mut client) = self.serve(client)
                && client.waits
            {
                let _ = client.say(&Reply::Exited(exit));
            }
        }
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
    if group.is_populated() {
        group.kill();
    }
    // What cannot be removed now is found by the next sweep.
    if group.wait_empty(VANISH) {
        let _ = group.remove();
    }
}

fn clean_folder(spec: &InstanceSpec) {
    if let Some(upper) = &spec.sandbox.upper
        && upper.starts_with(&spec.dir)
    {
        let _ = fs::remove_dir_all(upper);
    }
    let _ = fs::remove_dir(SCRATCH);
    let _ = fs::remove_file(SOCKET);
}
