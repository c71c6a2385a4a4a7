//! A tar archive as a stream of entries.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read};

use crate::ArchiveError;
use crate::decode::Decoded;
use crate::header::{BLOCK, Header};
use crate::pax::Pax;
use crate::sparse::{self, Piece};

/// Longest extended header or long name, in bytes: as in Go's reader.
const EXTENSION: u64 = 1 << 20;

/// One entry. Its content is read from the [`Reader`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// As it is written.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// With all bits that the archive has.
    pub mode: u64,
    /// Number of the owner.
    pub uid: u64,
    /// Number of the group.
    pub gid: u64,
    /// When it was changed last: whole seconds since 1970, rounded down.
    pub time: i64,
    /// Name of the owner, where it has one.
    pub user: Vec<u8>,
    /// Name of the group, where it has one.
    pub group: Vec<u8>,
    /// Extended attributes by full name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Where the content lies in the stream, and how many bytes it has there; of a file with holes,
    /// `None`.
    pub extent: Option<(u64, u64)>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// With a content.
    File,
    /// A directory.
    Dir,
    /// With what it says.
    Symlink(Vec<u8>),
    /// A further name of the entry of this one.
    Link(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// Major and minor number.
    Char(u64, u64),
    /// Major and minor number.
    Block(u64, u64),
    /// Something else, by its flag.
    Other(u8),
}

/// Reads entries; as a [`Read`], the content of the latest of them.
#[derive(Debug)]
pub struct Reader<'a> {
    from: Decoded<'a>,
    /// Bytes of the content that were not read yet.
    left: u64,
    /// Bytes to the next header after them.
    padding: u64,
    /// What is still to come of a file with holes.
    sparse: Option<Holes>,
    ended: bool,
}

#[derive(Debug)]
struct Holes {
    pieces: VecDeque<Piece>,
    at: u64,
    size: u64,
}

/// What stands before an entry and belongs to it.
#[derive(Default)]
struct Before {
    pax: Pax,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<'a> Reader<'a> {
    /// Over what [`open`](crate::open) gave.
    pub fn new(from: Decoded<'a>) -> Self {
        Self { from, left: 0, padding: 0, sparse: None, ended: false }
    }

    /// The next entry; `None` at the end.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut before = Before::default();
        loop {
            self.skip()?;
            let Some((block, header)) = self.header()? else { return Ok(None) };
            self.from.meter.entry()?;
            self.begin_content(header.size)?;
            match header.flag {
                b'x' => before.pax = Pax::parse(&self.extension("an extended header")?)?,
                b'L' => before.name = Some(c_text(self.extension("a long name")?)),
                b'K' => before.link = Some(c_text(self.extension("a long link")?)),
                // Nothing that an image keeps stands in it.
                b'g' => {}
                _ => return self.entry(&block, header, before).map(Some),
            }
        }
    }

    /// Reads what is left to its end, so that checksums at the end are checked.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn finish(mut self) -> Result<(), ArchiveError> {
        io::copy(&mut self.from, &mut io::sink())?;
        Ok(())
    }

    fn header(&mut self) -> Result<Option<([u8; BLOCK], Header)>, ArchiveError> {
        if self.ended {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        if !fill_or_end(&mut self.from, &mut block)? {
            self.ended = true;
            return Ok(None);
        }
        if let Some(header) = Header::parse(&block)? {
            return Ok(Some((block, header)));
        }
        self.ended = true;
        // Two blocks of zeros are the end, and so is one at the end of the file.
        let end = !fill_or_end(&mut self.from, &mut block)? || block.iter().all(|byte| *byte == 0);
        if end { Ok(None) } else { Err(ArchiveError::damaged("a header is empty")) }
    }

    fn begin_content(&mut self, size: u64) -> Result<(), ArchiveError> {
        if size > i64::MAX as u64 {
            return Err(ArchiveError::damaged("an entry has an impossible size"));
        }
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        self.sparse = None;
        Ok(())
    }

    fn skip(&mut self) -> Result<(), ArchiveError> {
        let rest = self.left + self.padding;
        let skipped = self.from.skip(rest)?;
        (self.left, self.padding, self.sparse) = (0, 0, None);
        if skipped < rest { Err(truncated()) } else { Ok(()) }
    }

    /// The content of a header that belongs to the next one.
    fn extension(&mut self, what: &str) -> Result<Vec<u8>, ArchiveError> {
        if self.left > EXTENSION {
            return Err(ArchiveError::Damaged(format!(
                "{what} has {} bytes; more than 1 MiB are never needed",
                self.left
            )));
        }
        let mut content = vec![0; self.left as usize];
        fill(&mut self.from, &mut content)?;
        self.left = 0;
        Ok(content)
    }

    fn entry(
        &mut self,
        block: &[u8; BLOCK],
        mut header: Header,
        before: Before,
    ) -> Result<Entry, ArchiveError> {
        let Before { pax, name, link } = before;
        let short = std::mem::take(&mut header.name);
        let name = name.or(pax.path).unwrap_or(short);
        let link = link.or(pax.link).unwrap_or(header.link);
        let kind = match header.flag {
            // Before ustar, a directory was a file whose name ends with a slash.
            0 if name.ends_with(b"/") => EntryKind::Dir,
            0 | b'0' | b'7' | b'S' => EntryKind::File,
            b'1' => EntryKind::Link(link),
            b'2' => EntryKind::Symlink(link),
            b'3' => EntryKind::Char(header.major, header.minor),
            b'4' => EntryKind::Block(header.major, header.minor),
            b'5' => EntryKind::Dir,
            b'6' => EntryKind::Fifo,
            other => EntryKind::Other(other),
        };
        // Only files have content, whatever else the size of others may mean.
        self.begin_content(match kind {
            EntryKind::File | EntryKind::Other(_) => pax.size.unwrap_or(header.size),
            _ => 0,
        })?;
        let mut name = name;
        if kind == EntryKind::File {
            if header.flag == b'S' {
                let (pieces, size) = sparse::old_map(block, &mut self.from)?;
                self.begin_sparse(pieces, size)?;
            } else if let Some(size) = pax.sparse.size {
                let pieces = match (pax.sparse.major, pax.sparse.pieces) {
                    (Some(1), _) => {
                        let (pieces, taken) = sparse::map_in_data(&mut self.from)?;
                        self.left = self.left.checked_sub(taken).ok_or_else(truncated)?;
                        pieces
                    }
                    (None | Some(0), Some(pieces)) => pieces,
                    _ => return Err(ArchiveError::damaged("its sparse format is not known")),
                };
                self.begin_sparse(pieces, size)?;
            }
            name = pax.sparse.name.unwrap_or(name);
        }
        Ok(Entry {
            name,
            kind,
            mode: header.mode,
            uid: pax.uid.unwrap_or(header.uid),
            gid: pax.gid.unwrap_or(header.gid),
            time: pax.time.unwrap_or(header.time),
            user: pax.user.unwrap_or(header.user),
            group: pax.group.unwrap_or(header.group),
            xattrs: pax.xattrs,
            extent: self.sparse.is_none().then_some((self.from.at(), self.left)),
        })
    }

    fn begin_sparse(&mut self, pieces: Vec<Piece>, size: u64) -> Result<(), ArchiveError> {
        sparse::check(&pieces, size, self.left)?;
        let pieces = pieces.into_iter().filter(|piece| piece.length > 0).collect();
        self.sparse = Some(Holes { pieces, at: 0, size });
        Ok(())
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if let Some(holes) = &mut self.sparse {
            let next = holes.pieces.front().map_or(holes.size, |piece| piece.offset);
            if holes.at < next {
                let zeros = usize::try_from(next - holes.at).unwrap_or(usize::MAX);
                let zeros = zeros.min(buffer.len());
                buffer[..zeros].fill(0);
                holes.at += zeros as u64;
                self.from.meter.bytes(zeros as u64).map_err(ArchiveError::into_io)?;
                return Ok(zeros);
            }
            let Some(piece) = holes.pieces.front() else { return Ok(0) };
            let end = piece.offset + piece.length;
            most = usize::try_from(end - holes.at).unwrap_or(usize::MAX).min(most);
        }
        if most == 0 {
            return Ok(0);
        }
        let count = self.from.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(truncated().into_io());
        }
        self.left -= count as u64;
        if let Some(holes) = &mut self.sparse {
            holes.at += count as u64;
            if holes.pieces.front().is_some_and(|piece| holes.at >= piece.offset + piece.length) {
                holes.pieces.pop_front();
            }
        }
        Ok(count)
    }
}

fn truncated() -> ArchiveError {
    ArchiveError::damaged("it ends in the middle of an entry")
}

/// Fills `buffer`.
pub(crate) fn fill(from: &mut impl Read, buffer: &mut [u8]) -> Result<(), ArchiveError> {
    match fill_or_end(from, buffer)? {
        false if !buffer.is_empty() => Err(truncated()),
        _ => Ok(()),
    }
}

/// Fills `buffer`; false if there is nothing left at all.
fn fill_or_end(from: &mut impl Read, buffer: &mut [u8]) -> Result<bool, ArchiveError> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(truncated()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// What stands before the first zero byte.
fn c_text(mut content: Vec<u8>) -> Vec<u8> {
    if let Some(end) = content.iter().position(|byte| *byte == 0) {
        content.truncate(end);
    }
    content
}
