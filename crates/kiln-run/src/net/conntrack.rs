//! Forgetting UDP flows whose virtual address has moved: a client that goes on sending would keep
//! its entry, and with it the old instance, for ever. The kernel walks its whole table for that
//! (10 ms for the usual 262,144 buckets, however few are in use), so a thread of its own does it.

use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::message::{Attributes, Batch, DUMP};
use super::netlink::{Refused, Socket};

const GET: u16 = 0x0101;
const DELETE: u16 = 0x0102;
const AF_INET: u8 = 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_IP: u16 = 1;
const IP_DESTINATION: u16 = 2;
const TUPLE_PROTOCOL: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const ID: u16 = 12;
const UDP: u8 = 17;

/// Drops the entries of UDP flows to the `moved` virtual addresses. Returns how many there were.
fn forget_udp(socket: &mut Socket, moved: &[Ipv4Addr]) -> Result<usize, Refused> {
    let mut list = Batch::new();
    list.message("list tracked connections", GET, DUMP, &[AF_INET, 0, 0, 0]);
    let mut found: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for (_, answer) in socket.query(list)?.iter() {
        let entry = Attributes(answer.get(4..).unwrap_or_default());
        let (Some(original), Some(id)) = (entry.find(TUPLE_ORIGINAL), entry.find(ID)) else {
            continue;
        };
        let tuple = Attributes(original);
        let udp = tuple.inside(TUPLE_PROTOCOL).find(PROTOCOL_NUMBER) == Some(&[UDP]);
        let to = tuple.inside(TUPLE_IP).address(IP_DESTINATION);
        if udp && to.is_some_and(|to| moved.contains(&to)) {
            found.push((original.to_vec(), id.to_vec()));
        }
    }
    for (original, id) in &found {
        let mut delete = Batch::new();
        delete.message("forget a tracked connection", DELETE, 0, &[AF_INET, 0, 0, 0]);
        delete.tolerate(rustix::io::Errno::NOENT);
        delete.put(TUPLE_ORIGINAL | 0x8000, original);
        delete.put(ID, id);
        socket.run(delete)?;
    }
    Ok(found.len())
}

/// Forgets in the background, one walk at a time.
#[derive(Debug, Default)]
pub(super) struct Forgetter(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    work: Mutex<Work>,
    idle: Condvar,
}

#[derive(Debug, Default)]
struct Work {
    moved: Vec<Ipv4Addr>,
    running: bool,
    failed: Option<Refused>,
}

impl Forgetter {
    /// Forgets the flows to `moved` soon, in the network namespace of the calling thread.
    pub(super) fn forget(&self, moved: Vec<Ipv4Addr>) -> io::Result<()> {
        if moved.is_empty() {
            return Ok(());
        }
        let mut work = self.0.lock();
        work.moved.extend(moved);
        if work.running {
            return Ok(());
        }
        let mut socket = Socket::netfilter()?;
        let shared = Arc::clone(&self.0);
        std::thread::Builder::new().name("forget-flows".to_owned()).spawn(move || {
            // Nobody waits for it, and walking the table takes long: let others go first.
            let _ = rustix::process::nice(10);
            shared.run(&mut socket);
        })?;
        work.running = true;
        Ok(())
    }

    /// Waits until everything asked for is forgotten.
    pub(super) fn settle(&self) -> Result<(), Refused> {
        let work = self.0.lock();
        let idle = self.0.idle.wait_while(work, |work| work.running);
        idle.unwrap_or_else(PoisonError::into_inner).failed.take().map_or(Ok(()), Err)
    }

    /// What went wrong since this was asked last.
    pub(super) fn failure(&self) -> Option<Refused> {
        self.0.lock().failed.take()
    }
}

impl Shared {
    fn run(&self, socket: &mut Socket) {
        loop {
            let moved = {
                let mut work = self.lock();
                if work.moved.is_empty() {
                    work.running = false;
                    self.idle.notify_all();
                    return;
                }
                std::mem::take(&mut work.moved)
            };
            if let Err(refused) = forget_udp(socket, &moved) {
                self.lock().failed = Some(refused);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
