//! A blob as a reader: fetched by a thread of its own, hashed there, taken up again where a
//! connection broke.
//!
//! The reader holds at most a few pieces, whatever the blob's size: a thread that reads faster than
//! its reader waits.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::time::Instant;

use kiln_core::Digest;
use kiln_core::digest::Hasher;
use ureq::Body;

use super::client::{Client, Part, Query};
use super::error::{Error, clean};
use super::reference::Reference;
use super::wire::LOOK;

/// Bytes of a piece.
const PIECE: usize = 128 << 10;
/// Pieces that wait to be read.
const PIECES: usize = 4;
/// How often it is taken up again without getting on.
const RESUMES: u32 = 5;
/// Bytes that have to come before it counts as getting on.
const ON: u64 = 1 << 20;

/// See the [module](self). It is read to its end: only then it is known to be right.
pub struct Blob<'c> {
    client: &'c Client<'c>,
    reference: Reference,
    digest: Digest,
    size: u64,
    progress: &'c (dyn Fn(u64) + Sync),
    pump: Option<Pump>,
    /// The piece that is being read, and how much of it was.
    piece: Vec<u8>,
    read: usize,
    /// Bytes that have come.
    come: u64,
    /// How often in a row it broke without getting on, and where it was then.
    broken: (u32, u64),
    /// When it was last looked how much the present thread has read, and how much that was.
    seen: (Instant, u64),
    ended: bool,
}

impl std::fmt::Debug for Blob<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blob").field("digest", &self.digest).field("come", &self.come).finish()
    }
}

/// The thread's other end.
struct Pump {
    pieces: Receiver<Piece>,
    empty: Sender<Vec<u8>>,
    /// Bytes that it has read, also those of a piece that is not full.
    arrived: Arc<AtomicU64>,
    /// Where the bytes come from, for messages.
    url: String,
}

enum Piece {
    Bytes(Vec<u8>),
    /// The answer has ended, or broke; with the digest's state.
    End(Hasher, Option<String>),
}

impl<'c> Blob<'c> {
    pub(super) fn open<'a: 'c>(
        client: &'c Client<'a>,
        reference: Reference,
        (digest, size): (Digest, u64),
        (come, hasher): (u64, Hasher),
        progress: &'c (dyn Fn(u64) + Sync),
    ) -> Result<Self, Error> {
        let mut blob = Self {
            client,
            reference,
            digest,
            size,
            progress,
            pump: None,
            piece: Vec::new(),
            read: 0,
            come,
            broken: (0, come),
            seen: (Instant::now(), 0),
            ended: false,
        };
        blob.begin(hasher)?;
        Ok(blob)
    }

    /// Asks for what has not come yet.
    fn begin(&mut self, hasher: Hasher) -> Result<(), Error> {
        let (from, size) = (self.come, self.size);
        let query = Query {
            reference: &self.reference,
            path: format!("blobs/{}", self.digest),
            part: Part { accept: "*/*", from, document: false },
        };
        let client = self.client;
        let hasher = std::sync::Mutex::new(Some(hasher));
        self.pump = Some(client.at_places(&query, |ask, answer| {
            let url = answer.address.shown();
            let skip = if answer.status() == 206 { 0 } else { from };
            let wrong =
                |what: String| Error::Differs { name: ask.name.to_owned(), url: url.clone(), what };
            if skip == 0 && from > 0 {
                let range = answer.header("content-range").unwrap_or_default();
                if !range.starts_with(&format!("bytes {from}-")) {
                    return Err(wrong(format!(
                        "the part `{}`, not that from {from}",
                        clean(range, 60)
                    )));
                }
            } else if answer.status() == 206 {
                return Err(wrong("a part, where the whole was asked for".into()));
            }
            let length = answer.header("content-length").and_then(|text| text.parse::<u64>().ok());
            let expected = size - (from - skip);
            if let Some(length) = length.filter(|length| *length != expected) {
                return Err(wrong(format!("{length} bytes, not {expected}")));
            }
            let hasher = hasher.lock().ok().and_then(|mut hasher| hasher.take());
            let hasher = hasher.ok_or_else(|| Error::Host("a digest was begun twice".into()))?;
            let left = size - from;
            let (body, shown) = (answer.response.into_body(), url.clone());
            pump(body, hasher, skip, left, shown)
        })?);
        self.seen = (Instant::now(), 0);
        Ok(())
    }

    fn differs(&self, what: String) -> Error {
        let url = self.pump.as_ref().map_or_else(String::new, |pump| pump.url.clone());
        Error::Differs { name: self.reference.to_string(), url, what }
    }

    /// Waits for the next piece; `false` at the blob's end.
    fn next(&mut self) -> Result<bool, Error> {
        loop {
            let Some(pump) = &self.pump else {
                return Err(Error::Host("a blob is read after an error".into()));
            };
            match pump.pieces.recv_timeout(LOOK) {
                Ok(Piece::Bytes(bytes)) => {
                    self.come += bytes.len() as u64;
                    if self.come - self.broken.1 >= ON {
                        self.broken = (0, self.come);
                    }
                    let old = std::mem::replace(&mut self.piece, bytes);
                    // The thread may have ended meanwhile.
                    let _ = pump.empty.send(old);
                    self.read = 0;
                    (self.progress)(self.come);
                    return Ok(true);
                }
                Ok(Piece::End(hasher, trouble)) if self.come == self.size => {
                    return self.end(hasher, trouble).map(|()| false);
                }
                Ok(Piece::End(hasher, trouble)) => {
                    self.resume(hasher, trouble.unwrap_or_else(|| "it ends early".into()))?;
                }
                Err(RecvTimeoutError::Timeout) => self.look()?,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::Host("the thread that fetches a blob is gone".into()));
                }
            }
        }
    }

    /// While it waits: whether the user wants to stop, and whether it gets on at all.
    fn look(&mut self) -> Result<(), Error> {
        self.client.wire().check()?;
        let patience = self.client.wire().patience;
        let (since, before) = self.seen;
        if since.elapsed() < patience.window {
            return Ok(());
        }
        let arrived = self.pump.as_ref().map_or(0, |pump| pump.arrived.load(Ordering::Relaxed));
        let fresh = arrived.saturating_sub(before);
        if fresh < patience.least {
            let (name, url) = (self.reference.to_string(), self.reference.registry().to_owned());
            let within = since.elapsed().as_secs();
            let what = format!("only {fresh} bytes have come in {within} s");
            return Err(Error::Answer { name, url, what });
        }
        self.seen = (Instant::now(), arrived);
        Ok(())
    }

    fn end(&mut self, hasher: Hasher, trouble: Option<String>) -> Result<(), Error> {
        if let Some(what) = trouble {
            return Err(self.differs(what));
        }
        let found = hasher.finish();
        if found != self.digest {
            return Err(self.differs(format!("{found}, not {}", self.digest)));
        }
        self.ended = true;
        Ok(())
    }

    /// Takes it up again where it broke.
    fn resume(&mut self, hasher: Hasher, what: String) -> Result<(), Error> {
        self.broken.0 += 1;
        if self.broken.0 > RESUMES {
            let url = self.pump.as_ref().map_or_else(String::new, |pump| pump.url.clone());
            let what = format!(
                "the blob breaks off after {} of {} bytes, again and again: {what}",
                self.come, self.size
            );
            return Err(Error::Answer { name: self.reference.to_string(), url, what });
        }
        let wire = self.client.wire();
        let registry = self.reference.registry();
        wire.watch.told(&format!("{registry}: the connection broke, going on"));
        wire.sleep(wire.patience.pause * self.broken.0).map_err(Error::from)?;
        self.begin(hasher)
    }
}

impl Read for Blob<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.read == self.piece.len() {
            if self.ended || buffer.is_empty() {
                return Ok(0);
            }
            match self.next() {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(error) => {
                    self.pump = None;
                    return Err(error.into());
                }
            }
        }
        let count = buffer.len().min(self.piece.len() - self.read);
        buffer[..count].copy_from_slice(&self.piece[self.read..self.read + count]);
        self.read += count;
        Ok(count)
    }
}

/// Reads a body in a thread of its own: passes over `skip` bytes, then gives `left`.
fn pump(body: Body, hasher: Hasher, skip: u64, left: u64, url: String) -> Result<Pump, Error> {
    let (give, pieces) = mpsc::sync_channel(PIECES);
    let (empty, emptied) = mpsc::channel::<Vec<u8>>();
    let arrived = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&arrived);
    let work = move || {
        let reader = body.into_with_config().limit(u64::MAX).reader();
        let mut flow = Flow { reader, hasher, skip, left, give, emptied, arrived: counter };
        let trouble = flow.run();
        // Nobody may wait any longer.
        let _ = flow.give.send(Piece::End(flow.hasher, trouble));
    };
    let thread = std::thread::Builder::new().name("blob".into()).spawn(work);
    thread.map_err(|error| Error::Host(format!("no thread can be started: {error}")))?;
    Ok(Pump { pieces, empty, arrived, url })
}

struct Flow<R> {
    reader: R,
    hasher: Hasher,
    skip: u64,
    left: u64,
    give: SyncSender<Piece>,
    emptied: Receiver<Vec<u8>>,
    arrived: Arc<AtomicU64>,
}

impl<R: Read> Flow<R> {
    /// Reads to the end; says what was wrong.
    fn run(&mut self) -> Option<String> {
        loop {
            let mut piece = self.emptied.try_recv().unwrap_or_default();
            piece.resize(PIECE, 0);
            let mut filled = 0;
            let mut trouble = None;
            // Whole pieces, for each costs a turn of two threads; but no byte waits for the end.
            while filled < PIECE && trouble.is_none() {
                match self.reader.read(&mut piece[filled..]) {
                    Ok(0) => trouble = Some(None),
                    Ok(count) => {
                        filled += count;
                        self.arrived.fetch_add(count as u64, Ordering::Relaxed);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => trouble = Some(Some(clean(&error.to_string(), 200))),
                }
            }
            let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(filled);
            self.skip -= skipped as u64;
            let fresh = (filled - skipped) as u64;
            let more = fresh > self.left;
            let taken = skipped + usize::try_from(fresh.min(self.left)).unwrap_or(usize::MAX);
            self.left -= (taken - skipped) as u64;
            if taken > skipped {
                self.hasher.update(&piece[skipped..taken]);
                piece.truncate(taken);
                piece.drain(..skipped);
                if self.give.send(Piece::Bytes(piece)).is_err() {
                    return Some("nobody reads it".into());
                }
            }
            if more {
                return Some("more bytes than it has".into());
            }
            if let Some(trouble) = trouble {
                // All of it has come: how the connection ends is nobody's business.
                return trouble.filter(|_| self.left > 0);
            }
        }
    }
}
