//! Telling the minder, from a thread of its own: the line takes a few messages at a time, and a
//! minder that is slow, or stopped, must hold up neither a switch nor lose a socket.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::link::{self, Message};

/// How long a minder may take to hear the last words of its worker.
const PATIENCE: Duration = Duration::from_secs(2);

type Told = (Message, Option<Arc<OwnedFd>>);

/// The line to a minder, and what is still to be said.
#[derive(Debug)]
pub(crate) struct Minding {
    line: Arc<OwnedFd>,
    queue: Sender<Told>,
    /// Breaks when the thread has ended.
    ended: Receiver<()>,
    /// What was not said yet.
    left: Arc<AtomicUsize>,
}

impl Minding {
    pub(crate) fn start(line: Arc<OwnedFd>) -> io::Result<Self> {
        let (queue, said) = channel::<Told>();
        let (end, ended) = channel();
        let left = Arc::new(AtomicUsize::new(0));
        let (counted, own) = (left.clone(), line.clone());
        std::thread::Builder::new().name("front-tells".into()).spawn(move || {
            let _end = end;
            for (message, socket) in said {
                if let Err(error) = say(&line, &message, socket.as_deref()) {
                    // A minder that died is noticed by the thread that reads from it.
                    if error.kind() != io::ErrorKind::BrokenPipe {
                        say!("front: the minder was not told of {message:?}: {error}");
                    }
                    return;
                }
                counted.fetch_sub(1, Relaxed);
            }
        })?;
        Ok(Self { line: own, queue, ended, left })
    }

    pub(crate) fn tell(&self, message: Message, socket: Option<Arc<OwnedFd>>) {
        self.left.fetch_add(1, Relaxed);
        // It fails when the minder is gone.
        let _ = self.queue.send((message, socket));
    }

    /// Whether the other end is still held. The thread that reads from it may hear of its end a
    /// moment later, and who asks meanwhile must not rely on a minder that is dead.
    pub(crate) fn is_there(&self) -> bool {
        let mut fds = [PollFd::new(&*self.line, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok() && !fds[0].revents().contains(PollFlags::HUP)
    }

    /// Whether the minder was told everything.
    pub(crate) fn knows_all(&self) -> bool {
        self.left.load(Relaxed) == 0
    }

    /// Returns when all is said, nobody listens any more, or the minder has been stopped.
    pub(crate) fn finish(self) {
        drop(self.queue);
        let _ = self.ended.recv_timeout(PATIENCE);
    }
}

fn say(line: &OwnedFd, message: &Message, socket: Option<&OwnedFd>) -> io::Result<()> {
    let mut pause = Duration::from_millis(1);
    loop {
        match link::send(line.as_fd(), message, socket.map(AsFd::as_fd)) {
            // Too many descriptors are under way to the minder: it will take them.
            Err(error) if error.raw_os_error() == Some(link::TOO_MANY_UNDER_WAY) => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(100));
            }
            sent => return sent,
        }
    }
}
