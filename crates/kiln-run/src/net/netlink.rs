//! Netlink sockets, blocking: a batch is sent in one system call, and what the kernel says to it is
//! read back. The kernel works through a batch before `send` returns, so nothing here ever waits.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netlink, recv,
    sendto, socket_with,
};

use super::message::{Batch, Messages, error_of};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;
/// Larger than any datagram of a dump (the kernel makes them at most 32 KiB).
const RECEIVE: usize = 64 * 1024;
/// How often a list is asked for again because it changed while it was read.
const TRIES: u32 = 100;

/// What the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{action}: {source}")]
pub struct Refused {
    /// What was asked, as a verb phrase.
    pub action: &'static str,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

impl Refused {
    pub(super) fn new(action: &'static str, errno: Errno) -> Self {
        Self { action, source: errno.into() }
    }

    pub(super) fn is(&self, errno: Errno) -> bool {
        self.source.raw_os_error() == Some(errno.raw_os_error())
    }
}

/// A netlink socket. It belongs to the network namespace in which it was opened, wherever the
/// thread goes afterwards.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl Socket {
    /// Links, addresses, routes, neighbours.
    pub(super) fn route() -> io::Result<Self> {
        // NETLINK_ROUTE is protocol 0.
        Self::open(None, 0)
    }

    /// nf_tables and connection tracking.
    pub(super) fn netfilter() -> io::Result<Self> {
        Self::open(Some(netlink::NETFILTER), 0)
    }

    /// As [`Self::netfilter`], subscribed to the multicast groups in the mask.
    pub(super) fn netfilter_events(groups: u32) -> io::Result<Self> {
        Self::open(Some(netlink::NETFILTER), groups)
    }

    fn open(protocol: Option<Protocol>, groups: u32) -> io::Result<Self> {
        let fd =
            socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        bind(&fd, &SocketAddrNetlink::new(0, groups))?;
        Ok(Self { fd, buffer: vec![0; RECEIVE] })
    }

    /// Sends all of `batch`. Fails with the first refusal; messages after it are carried out
    /// unless they are one transaction.
    pub(super) fn run(&mut self, mut batch: Batch) -> Result<(), Refused> {
        batch.finish();
        self.send(&batch)?;
        let mut first: Option<Refused> = None;
        let mut answered = false;
        while let Some(length) = self.receive("read the kernel's answer")? {
            for (header, body) in Messages(&self.buffer[..length]) {
                if header.kind != NLMSG_ERROR {
                    continue;
                }
                answered = true;
                let Some((action, tolerated)) = batch.action(header.sequence) else { continue };
                if let Some(errno) = error_of(body)
                    && first.is_none()
                    && Some(errno) != tolerated
                {
                    first = Some(Refused::new(action, errno));
                }
            }
        }
        match first {
            Some(refused) => Err(refused),
            None if answered => Ok(()),
            None => Err(Refused::new("wait for the kernel's acknowledgement", Errno::TIMEDOUT)),
        }
    }

    /// Sends the one request in `batch` and returns the answer: one message, or a list that was
    /// read without a change in between.
    pub(super) fn query(&mut self, mut batch: Batch) -> Result<Answers, Refused> {
        batch.close();
        let action = batch.last_action();
        for _ in 0..TRIES {
            self.send(&batch)?;
            let mut answers = Answers::default();
            let mut whole = true;
            let mut refused = None;
            while let Some(length) = self.receive(action)? {
                for (header, body) in Messages(&self.buffer[..length]) {
                    whole &= header.flags & NLM_F_DUMP_INTR == 0;
                    if header.kind == NLMSG_ERROR {
                        refused = error_of(body).or(refused);
                    }
                }
                answers.0.extend_from_slice(&self.buffer[..length]);
            }
            match refused {
                // nf_tables says so instead of setting the flag.
                Some(Errno::INTR) => {}
                Some(errno) => return Err(Refused::new(action, errno)),
                None if whole => return Ok(answers),
                None => {}
            }
        }
        Err(Refused::new(action, Errno::INTR))
    }

    fn send(&self, batch: &Batch) -> Result<(), Refused> {
        let kernel = SocketAddrNetlink::new(0, 0);
        sendto(&self.fd, batch.bytes(), SendFlags::empty(), &kernel)
            .map(drop)
            .map_err(|errno| Refused::new("send to the kernel over netlink", errno))
    }

    /// The length of the next answer, which then is in the buffer; `None` when there is no more.
    fn receive(&mut self, action: &'static str) -> Result<Option<usize>, Refused> {
        loop {
            return match recv(&self.fd, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok((_, length)) => Ok(Some(length)),
                Err(Errno::AGAIN) => Ok(None),
                Err(Errno::INTR) => continue,
                Err(errno) => Err(Refused::new(action, errno)),
            };
        }
    }

    /// Throws away what has arrived. True if there was anything, or if something was lost.
    pub(super) fn drain(&mut self) -> Result<bool, Refused> {
        let mut any = false;
        loop {
            match self.receive("read netlink events") {
                Ok(Some(_)) => any = true,
                Ok(None) => return Ok(any),
                Err(refused) if refused.is(Errno::NOBUFS) => any = true,
                Err(refused) => return Err(refused),
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The messages that answered a query.
#[derive(Debug, Default)]
pub(super) struct Answers(Vec<u8>);

impl Answers {
    /// Kind, and all that follows the header.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u16, &[u8])> {
        Messages(&self.0)
            .filter(|(header, _)| header.kind > NLMSG_DONE)
            .map(|(header, body)| (header.kind, body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_action() {
        let mut socket = Socket::route().unwrap();
        let mut batch = Batch::new();
        // RTM_DELLINK of an interface that cannot exist.
        let mut body = [0; 16];
        body[4..8].copy_from_slice(&i32::MAX.to_ne_bytes());
        batch.message("delete nothing", 17, 0, &body);
        let refused = socket.run(batch).unwrap_err();
        assert!(refused.is(Errno::NODEV), "{refused}");
        assert_eq!(refused.action, "delete nothing");
    }
}
