//! The socket at which requests come in, and what happens there when descriptors run short: who asks
//! is told so, instead of waiting for an answer that cannot come.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use kiln_core::exit::Exit;
use rustix::process::{Resource, getrlimit};

use super::{Agent, build_id, serve};
use crate::protocol::Event;
use crate::report::Report;

/// Descriptors that a request needs for its own purposes; with fewer it is not begun.
const RESERVE: u64 = 32;

/// Pause after a request that could not be accepted.
const SHORT: Duration = Duration::from_millis(50);

/// How long a client may take to hear a refusal.
const HEARD: Duration = Duration::from_millis(200);

/// How often the log says that descriptors are short.
const SAID: Duration = Duration::from_secs(60);

/// A descriptor that is given up to tell somebody that there are no others. It is to be opened first
/// thing, for the lowest numbers are the last that a lowered limit takes.
pub(super) fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

/// The agent's socket.
pub(super) struct Door {
    pub(super) agent: Arc<Agent>,
    pub(super) listener: UnixListener,
    pub(super) spare: Option<File>,
}

impl Door {
    /// Takes requests until the agent leaves.
    pub(super) fn attend(mut self) -> Result<Exit, Report> {
        let mut said: Option<Instant> = None;
        loop {
            let error = match self.listener.accept() {
                Ok((stream, _)) => match shortage(&stream) {
                    None => {
                        let agent = Arc::clone(&self.agent);
                        let answer = move |stream: &UnixStream| serve::answer(&agent, stream);
                        let Err(error) = on_a_thread(thread::Builder::new(), stream, answer) else {
                            continue;
                        };
                        error
                    }
                    Some(report) => {
                        refuse(&stream, report);
                        continue;
                    }
                },
                Err(error) => error,
            };
            if said.is_none_or(|said| said.elapsed() > SAID) {
                self.agent.log(&format!("accepting a request: {error}"));
                said = Some(Instant::now());
            }
            if error.raw_os_error() == Some(libc::EMFILE) {
                self.turn_away();
            }
            thread::sleep(SHORT);
        }
    }

    /// Tells whoever waits that descriptors are short, with the one that was kept for that.
    fn turn_away(&mut self) {
        if self.spare.take().is_none() {
            self.spare = spare();
            return;
        }
        // Somebody else may have taken it in between; then the next try is as good.
        let _ = self.listener.set_nonblocking(true);
        if let Ok((stream, _)) = self.listener.accept() {
            refuse(&stream, short(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)));
        }
        let _ = self.listener.set_nonblocking(false);
        self.spare = spare();
    }
}

/// Answers a client on a thread of its own. One for which there is no thread is told so.
fn on_a_thread(
    thread: thread::Builder,
    stream: UnixStream,
    answer: impl FnOnce(&UnixStream) + Send + 'static,
) -> io::Result<()> {
    let stream = Arc::new(stream);
    let theirs = Arc::clone(&stream);
    let spawned = thread.spawn(move || answer(&theirs));
    spawned.map(drop).inspect_err(|error| refuse(&stream, no_thread(error)))
}

/// What a client is told for which there is no thread.
pub(super) fn no_thread(error: &io::Error) -> Report {
    Report::failed(format!("the agent cannot start a thread for this request: {error}")).hint(
        "what runs goes on; free memory or processes, or raise the limit (`pids.max`, TasksMax=)",
    )
}

/// Says no, and waits a moment for the client to have heard: a request that nobody reads would take
/// the answer with it.
fn refuse(mut stream: &UnixStream, report: Report) {
    let Ok(event) = serde_json::to_string(&Event::Failed(report)) else { return };
    let _ = stream.set_write_timeout(Some(SHORT));
    let _ = stream.set_read_timeout(Some(HEARD));
    let _ = stream.write_all(format!("{}\n{event}\n", build_id()).as_bytes());
    let _ = stream.shutdown(Shutdown::Write);
    let deadline = Instant::now() + HEARD;
    let mut request = [0; 16 << 10];
    while matches!(stream.read(&mut request), Ok(1..)) && Instant::now() < deadline {}
}

/// What is said when too few descriptors are left to begin anything. A new one gets the lowest
/// number that is free, so `stream` tells how many are left at most.
fn shortage(stream: &UnixStream) -> Option<Report> {
    let number = u64::try_from(stream.as_raw_fd()).unwrap_or(0);
    let limit = getrlimit(Resource::Nofile).current?;
    (number.saturating_add(RESERVE) > limit).then(|| short(limit))
}

fn short(limit: u64) -> Report {
    Report::failed(format!(
        "the agent is short of file descriptors: its limit is {limit}, and {RESERVE} have to be free"
    ))
    .hint("what runs goes on; raise the limit (`prlimit --nofile`, LimitNOFILE=) or free some")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_cannot_be_given_a_thread_is_told_so() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        (&theirs).write_all(b"a request\n").unwrap();
        // No machine has so much room for a stack.
        let thread = thread::Builder::new().stack_size(1 << 60);
        on_a_thread(thread, ours, |_| panic!("on which thread?")).unwrap_err();
        let mut heard = String::new();
        (&theirs).read_to_string(&mut heard).unwrap();
        let (greeting, event) = heard.trim_end().split_once('\n').unwrap();
        assert_eq!(greeting, build_id());
        let Ok(Event::Failed(report)) = serde_json::from_str(event) else { panic!("{event}") };
        assert_eq!(report.exit, Exit::Failed);
        assert!(report.message.contains("thread"), "{report}");
    }
}
