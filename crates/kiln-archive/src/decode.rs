//! Compression: told by the first bytes, undone as a stream, measured against the limits.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek as _, SeekFrom};
use std::rc::Rc;

use crate::{ArchiveError, Limits, RATIO_FROM};

/// Memory that a decoder may take, in bytes: xz -9 needs 65 MiB.
const DECODER_MEMORY: u64 = 256 << 20;
/// Largest window of zstd, as a power of two: `--ultra -22` and `--long` have 27.
const ZSTD_WINDOW: u32 = 27;

/// How something is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Not at all.
    Plain,
    /// RFC 1952.
    Gzip,
    /// bzip2.
    Bzip2,
    /// xz.
    Xz,
    /// RFC 8878.
    Zstd,
}

impl Form {
    /// Told by the first bytes.
    pub fn of(head: &[u8]) -> Self {
        // Frames that zstd skips: 0x184D2A50 to 0x184D2A5F, little-endian.
        let skippable = |head: &[u8]| {
            head.len() >= 8 && head[0] & 0xf0 == 0x50 && head[1..4] == [0x2a, 0x4d, 0x18]
        };
        match head {
            _ if head.starts_with(b"\x1f\x8b\x08") => Self::Gzip,
            _ if head.starts_with(b"BZh") => Self::Bzip2,
            _ if head.starts_with(b"\xfd7zXZ\0") => Self::Xz,
            _ if head.starts_with(b"\x28\xb5\x2f\xfd") || skippable(head) => Self::Zstd,
            _ => Self::Plain,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Plain => "tar",
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
        }
    }
}

/// What went in and what came out.
#[derive(Debug)]
pub(crate) struct Meter {
    limits: Limits,
    packed: Cell<u64>,
    unpacked: Cell<u64>,
    entries: Cell<u64>,
}

impl Meter {
    fn new(limits: Limits) -> Self {
        let (packed, unpacked, entries) = (Cell::new(0), Cell::new(0), Cell::new(0));
        Self { limits, packed, unpacked, entries }
    }

    /// Counts bytes that came out, holes among them.
    pub(crate) fn bytes(&self, count: u64) -> Result<(), ArchiveError> {
        let total = self.unpacked.get().saturating_add(count);
        self.unpacked.set(total);
        if total > self.limits.bytes {
            return Err(ArchiveError::TooLarge(format!("{} bytes", self.limits.bytes)));
        }
        let Some(ratio) = self.limits.ratio else { return Ok(()) };
        if total > RATIO_FROM && total > ratio.saturating_mul(self.packed.get()) {
            return Err(ArchiveError::TooLarge(format!("{ratio} times its own size")));
        }
        Ok(())
    }

    /// Counts an entry.
    pub(crate) fn entry(&self) -> Result<(), ArchiveError> {
        self.entries.set(self.entries.get() + 1);
        if self.entries.get() > self.limits.entries {
            return Err(ArchiveError::Damaged(format!(
                "it has more than {} entries, which is as many as Kiln unpacks",
                self.limits.entries
            )));
        }
        Ok(())
    }
}

/// A decoded stream with its meter. Its errors are [`ArchiveError`]s inside.
pub struct Decoded<'a> {
    form: Form,
    from: Box<dyn Read + 'a>,
    /// Where nothing has to be undone, what is passed over need not be read.
    file: Option<&'a File>,
    at: u64,
    pub(crate) meter: Rc<Meter>,
}

impl std::fmt::Debug for Decoded<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoded").field("form", &self.form).field("at", &self.at).finish()
    }
}

impl Decoded<'_> {
    /// Bytes that have come out.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// Passes over so many bytes; gives how many there were.
    pub(crate) fn skip(&mut self, bytes: u64) -> Result<u64, ArchiveError> {
        let Some(mut file) = self.file else {
            return Ok(io::copy(&mut self.take(bytes), &mut io::sink())?);
        };
        let length = file.metadata().map_err(ArchiveError::Read)?.len();
        let there = bytes.min(length.saturating_sub(self.at));
        file.seek(SeekFrom::Start(self.at + there)).map_err(ArchiveError::Read)?;
        self.at += there;
        Ok(there)
    }
}

impl Read for Decoded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer).map_err(|error| match error.downcast::<Packed>() {
            Ok(Packed(error)) => ArchiveError::from(error).into_io(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => error,
            Err(error) => ArchiveError::Damaged(format!("{}: {error}", self.form.name())).into_io(),
        })?;
        self.at += count as u64;
        self.meter.bytes(count as u64).map_err(ArchiveError::into_io)?;
        Ok(count)
    }
}

/// Opens `from`, whatever it is packed by.
///
/// # Errors
/// [`ArchiveError`]s, inside.
pub fn open<'a>(from: &'a mut dyn Read, limits: Limits) -> io::Result<Decoded<'a>> {
    let meter = Rc::new(Meter::new(limits));
    let counted = Counted { from, meter: meter.clone() };
    let mut from = BufReader::with_capacity(128 << 10, counted);
    let mut head = Vec::new();
    // At least the first eight bytes, even if they come one by one.
    (&mut from).take(8).read_to_end(&mut head).map_err(unwrap)?;
    let form = Form::of(&head);
    let from = io::Cursor::new(head).chain(from);
    let damaged =
        |error: io::Error| ArchiveError::Damaged(format!("{}: {error}", form.name())).into_io();
    let from: Box<dyn Read + 'a> = match form {
        Form::Plain => Box::new(from),
        Form::Gzip => Box::new(Gzip { member: Some(flate2::bufread::GzDecoder::new(from)) }),
        Form::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(from)),
        Form::Xz => {
            let flags = liblzma::stream::CONCATENATED;
            let stream = liblzma::stream::Stream::new_stream_decoder(DECODER_MEMORY, flags)
                .map_err(|error| damaged(error.into()))?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(from, stream))
        }
        Form::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(from).map_err(damaged)?;
            decoder.window_log_max(ZSTD_WINDOW).map_err(damaged)?;
            Box::new(decoder)
        }
    };
    Ok(Decoded { form, from, file: None, at: 0, meter })
}

/// A file that is packed by nothing, from its start: what is passed over is not read, so that an
/// archive of any size can be looked through for where its entries lie.
///
/// # Errors
/// The file cannot be rewound.
pub fn open_bare(file: &File, limits: Limits) -> io::Result<Decoded<'_>> {
    let mut from = file;
    from.seek(SeekFrom::Start(0))?;
    let meter = Rc::new(Meter::new(limits));
    // Nothing was packed.
    meter.packed.set(u64::MAX);
    Ok(Decoded { form: Form::Plain, from: Box::new(from), file: Some(file), at: 0, meter })
}

/// What is decoded already, whatever it looks like: nothing is undone a second time.
pub fn plain<'a>(from: &'a mut dyn Read, limits: Limits) -> Decoded<'a> {
    let meter = Rc::new(Meter::new(limits));
    let counted = Counted { from, meter: meter.clone() };
    let from = Box::new(BufReader::with_capacity(64 << 10, counted));
    Decoded { form: Form::Plain, from, file: None, at: 0, meter }
}

fn unwrap(error: io::Error) -> io::Error {
    match error.downcast::<Packed>() {
        Ok(Packed(error)) => error,
        Err(error) => error,
    }
}

/// An error of reading what is packed, told apart from those of the decoders.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Packed(io::Error);

struct Counted<'a> {
    from: &'a mut dyn Read,
    meter: Rc<Meter>,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match self.from.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            other => other.map_err(|error| io::Error::other(Packed(error)))?,
        };
        self.meter.packed.set(self.meter.packed.get() + count as u64);
        Ok(count)
    }
}

/// Members one after the other, as gzip has it; what follows and is none is left alone.
struct Gzip<R> {
    /// `None` only while one member gives way to the next, and at the end.
    member: Option<flate2::bufread::GzDecoder<R>>,
}

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let count = member.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            let Some(done) = self.member.take() else { break };
            let mut from = done.into_inner();
            if from.fill_buf()?.starts_with(b"\x1f") {
                self.member = Some(flate2::bufread::GzDecoder::new(from));
            }
        }
        Ok(0)
    }
}
