//! Netlink messages: written into one buffer, and read back attribute by attribute.

use rustix::io::Errno;

pub(super) const REQUEST: u16 = 0x1;
pub(super) const ACK: u16 = 0x4;
pub(super) const REPLACE: u16 = 0x100;
pub(super) const EXCL: u16 = 0x200;
pub(super) const CREATE: u16 = 0x400;
pub(super) const APPEND: u16 = 0x800;
pub(super) const DUMP: u16 = 0x300;

const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;
const HEADER: usize = 16;

/// Messages to be sent together.
#[derive(Debug)]
pub(super) struct Batch {
    buffer: Vec<u8>,
    start: usize,
    /// For each message: what it does, and an error that is no error.
    actions: Vec<(&'static str, Option<Errno>)>,
}

/// An attribute whose length is not known yet.
#[derive(Debug)]
#[must_use]
pub(super) struct Open(usize);

impl Batch {
    pub(super) fn new() -> Self {
        Self { buffer: Vec::with_capacity(1024), start: 0, actions: Vec::with_capacity(8) }
    }

    /// Begins a message; `body` is its fixed part.
    pub(super) fn message(&mut self, action: &'static str, kind: u16, flags: u16, body: &[u8]) {
        self.close();
        self.start = self.buffer.len();
        self.actions.push((action, None));
        let sequence = self.actions.len() as u32;
        self.buffer.extend_from_slice(&[0; 4]);
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        self.buffer.extend_from_slice(&sequence.to_ne_bytes());
        self.buffer.extend_from_slice(&[0; 4]);
        self.buffer.extend_from_slice(body);
        self.pad();
    }

    /// Lets the message just begun fail with `errno`.
    pub(super) fn tolerate(&mut self, errno: Errno) {
        if let Some(last) = self.actions.last_mut() {
            last.1 = Some(errno);
        }
    }

    fn pad(&mut self) {
        while !self.buffer.len().is_multiple_of(4) {
            self.buffer.push(0);
        }
    }

    /// Writes the length of the message begun last.
    pub(super) fn close(&mut self) {
        if self.buffer.len() > self.start {
            let length = (self.buffer.len() - self.start) as u32;
            self.buffer[self.start..self.start + 4].copy_from_slice(&length.to_ne_bytes());
        }
    }

    pub(super) fn put(&mut self, kind: u16, value: &[u8]) {
        self.buffer.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(value);
        self.pad();
    }

    pub(super) fn put_u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_ne_bytes());
    }

    /// In network order, as everything of nf_tables is.
    pub(super) fn put_be32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }

    pub(super) fn put_str(&mut self, kind: u16, value: &str) {
        self.buffer.extend_from_slice(&(5 + value.len() as u16).to_ne_bytes());
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(value.as_bytes());
        self.buffer.push(0);
        self.pad();
    }

    /// Bytes without an attribute header: the fixed part inside a nested message.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        self.pad();
    }

    pub(super) fn nest(&mut self, kind: u16) -> Open {
        let at = self.buffer.len();
        self.put(kind | NLA_F_NESTED, &[]);
        Open(at)
    }

    pub(super) fn end(&mut self, open: Open) {
        let length = (self.buffer.len() - open.0) as u16;
        self.buffer[open.0..open.0 + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// Marks the message just begun as the one whose acknowledgement ends the conversation.
    fn acknowledge_last(&mut self) {
        let flags = self.start + 6;
        let old = u16::from_ne_bytes([self.buffer[flags], self.buffer[flags + 1]]);
        self.buffer[flags..flags + 2].copy_from_slice(&(old | ACK).to_ne_bytes());
    }

    /// The bytes to send.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    /// What the message with that sequence number does, and the error that it may have.
    pub(super) fn action(&self, sequence: u32) -> Option<(&'static str, Option<Errno>)> {
        self.actions.get((sequence as usize).checked_sub(1)?).copied()
    }

    /// What the last message does.
    pub(super) fn last_action(&self) -> &'static str {
        self.actions.last().map_or("ask the kernel", |entry| entry.0)
    }

    /// Closes the last message and asks for its acknowledgement.
    pub(super) fn finish(&mut self) {
        self.close();
        self.acknowledge_last();
    }
}

/// The error in the body of an answer; `None` for an acknowledgement.
pub(super) fn error_of(body: &[u8]) -> Option<Errno> {
    let code = i32::from_ne_bytes(body.first_chunk::<4>().copied()?);
    (code != 0).then(|| Errno::from_raw_os_error(-code))
}

/// A message's fixed part, as far as it is needed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
}

/// The messages in a datagram: header and what follows it.
#[derive(Debug)]
pub(super) struct Messages<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (Header, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.first_chunk::<HEADER>()?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let flags = u16::from_ne_bytes([header[6], header[7]]);
        let sequence = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
        let body = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((Header { kind, flags, sequence }, body))
    }
}

/// The attributes in `bytes`: kind without flags, and value.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & NLA_TYPE_MASK;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

impl<'a> Attributes<'a> {
    /// The first attribute of that kind.
    pub(super) fn find(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find_map(|(found, value)| (found == kind).then_some(value))
    }

    /// A nested attribute's own attributes; none if it is not there.
    pub(super) fn inside(self, kind: u16) -> Attributes<'a> {
        Attributes(self.find(kind).unwrap_or_default())
    }

    pub(super) fn text(self, kind: u16) -> Option<&'a str> {
        let bytes = self.find(kind)?;
        std::str::from_utf8(bytes.strip_suffix(&[0]).unwrap_or(bytes)).ok()
    }

    pub(super) fn u32(self, kind: u16) -> Option<u32> {
        self.find(kind)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
    }

    pub(super) fn be32(self, kind: u16) -> Option<u32> {
        self.find(kind)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
    }

    pub(super) fn be64(self, kind: u16) -> Option<u64> {
        self.find(kind)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
    }

    pub(super) fn address(self, kind: u16) -> Option<std::net::Ipv4Addr> {
        self.find(kind)?.first_chunk::<4>().map(|bytes| (*bytes).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_read_back_what_was_written() {
        let mut batch = Batch::new();
        batch.message("try", 7, 0, &[1, 2, 3, 4]);
        let nest = batch.nest(3);
        batch.put_str(1, "abc");
        batch.put_be32(2, 9);
        batch.end(nest);
        batch.put_u32(4, 5);
        batch.finish();
        let (header, body) = Messages(&batch.buffer).next().unwrap();
        assert_eq!((header.kind, header.sequence, &body[..4]), (7, 1, &[1, 2, 3, 4][..]));
        let attributes = Attributes(&body[4..]);
        assert_eq!(attributes.inside(3).text(1), Some("abc"));
        assert_eq!(attributes.inside(3).be32(2), Some(9));
        assert_eq!(attributes.u32(4), Some(5));
        assert_eq!(attributes.find(9), None);
        assert_eq!(batch.buffer.len() % 4, 0);
    }

    #[test]
    fn cut_off_messages_end_the_walk() {
        assert_eq!(Messages(&[40, 0, 0, 0, 1, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0]).count(), 0);
        assert_eq!(Attributes(&[9, 0, 1, 0, 1]).count(), 0);
        assert_eq!(Attributes(&[2, 0, 1, 0]).count(), 0);
    }
}
