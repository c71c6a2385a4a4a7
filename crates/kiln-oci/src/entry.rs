//! Reading tar as anybody wrote it: old, ustar, GNU and PAX, with bounds on all that is kept in
//! memory.
//!
//! The fields of a header are `tar`'s to read. The loop over headers is here, because that of the
//! library reads long names of any length, and does not go by sizes that PAX records state.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};

use tar::Header;

use crate::error::{Doing as _, Error, Result, shown};
use crate::header::BLOCK;

/// Bytes of PAX records or of a long name: what Go's reader takes too.
const MAX_EXTENSION: u64 = 1 << 20;

/// Bytes of a path or a link's text, as the kernel has it (`PATH_MAX`).
pub(crate) const MAX_PATH: usize = 4095;

/// Bytes of one name in a path (`NAME_MAX`).
const MAX_NAME: usize = 255;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Type {
    File,
    /// A further name of the entry at this path.
    Hardlink(Vec<u8>),
    Symlink(Vec<u8>),
    Dir,
    Fifo,
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
}

/// One entry.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Relative, without `.`, `..` and empty parts; the root is empty.
    pub path: Vec<u8>,
    pub kind: Type,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Bytes of content, which [`Reader::content`] reads.
    pub size: u64,
    /// Extended attributes by full name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Where the content begins in the archive.
    pub offset: u64,
}

/// The entries of a tar, one after another.
pub(crate) struct Reader<R> {
    from: R,
    /// Bytes read so far.
    at: u64,
    /// Where the next header is.
    next: u64,
    /// Passes over so many bytes; how many there were.
    skip: fn(&mut R, u64) -> io::Result<u64>,
}

impl<'a> Reader<&'a File> {
    /// Over a file, at its start: what is skipped is not read.
    pub(crate) fn of_file(file: &'a File) -> Self {
        let skip = |file: &mut &File, bytes: u64| {
            let at = file.stream_position()?;
            let end = at.saturating_add(bytes).min(file.metadata()?.len());
            file.seek(SeekFrom::Start(end.max(at)))?;
            Ok(end.saturating_sub(at))
        };
        Self { from: file, at: 0, next: 0, skip }
    }
}

impl<R: Read> Reader<R> {
    pub(crate) fn new(from: R) -> Self {
        let skip = |from: &mut R, bytes: u64| io::copy(&mut from.take(bytes), &mut io::sink());
        Self { from, at: 0, next: 0, skip }
    }

    /// The next entry; what is left of the content of the one before is skipped.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        let mut extension = Extension::default();
        loop {
            self.skip_to(self.next)?;
            let Some(header) = self.header()? else { return Ok(None) };
            let what = || shown(&header.path_bytes());
            let bad = |why: &str| Error::malformed(format!("tar entry {}", what()), why);
            let size = header.entry_size().map_err(|_| bad("its size is no number"))?;
            match header.as_bytes()[156] {
                b'x' => extension.pax(&self.extension(size)?)?,
                b'L' => extension.path = Some(c_string(self.extension(size)?)),
                b'K' => extension.link = Some(c_string(self.extension(size)?)),
                // About the archive as a whole, such as the commit that `git archive` notes.
                b'g' => drop(self.extension(size)?),
                flag => {
                    let size = extension.size.unwrap_or(size);
                    return self.entry(&header, flag, size, extension).map(Some);
                }
            }
        }
    }

    /// The content of the entry that [`Reader::next`] gave last.
    pub(crate) fn content(&mut self, entry: &Entry) -> impl Read {
        Content { left: entry.offset + entry.size - self.at, reader: self }
    }

    /// Reads what follows the archive's end.
    pub(crate) fn drain(mut self) -> io::Result<()> {
        io::copy(&mut self.from, &mut io::sink()).map(drop)
    }

    fn entry(
        &mut self,
        header: &Header,
        flag: u8,
        size: u64,
        extension: Extension,
    ) -> Result<Entry> {
        let name = extension.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let bad = |why: String| Error::malformed(format!("tar entry {}", shown(&name)), why);
        let number = |field: io::Result<u64>, other: Option<u64>, what: &str| {
            let number =
                other.map_or(field, Ok).map_err(|_| bad(format!("its {what} is no number")));
            number.and_then(|n| u32::try_from(n).map_err(|_| bad(format!("its {what} is {n}"))))
        };
        let link = || match &extension.link {
            Some(link) => Ok(link.clone()),
            None => header
                .link_name_bytes()
                .map(std::borrow::Cow::into_owned)
                .ok_or_else(|| bad("it is a link to nothing".into())),
        };
        let device = || -> Result<(u32, u32)> {
            let number = |field: io::Result<Option<u32>>| {
                field.ok().flatten().ok_or_else(|| bad("it has no device number".into()))
            };
            Ok((number(header.device_major())?, number(header.device_minor())?))
        };
        let kind = match flag {
            // Before POSIX, a directory was a file with a slash at the end.
            b'0' | b'\0' if name.ends_with(b"/") => Type::Dir,
            b'0' | b'\0' | b'7' => Type::File,
            b'1' => Type::Hardlink(clean(&link()?).map_err(&bad)?),
            b'2' => Type::Symlink(target(link()?).map_err(&bad)?),
            b'3' => device().map(|(major, minor)| Type::CharDevice(major, minor))?,
            b'4' => device().map(|(major, minor)| Type::BlockDevice(major, minor))?,
            b'5' => Type::Dir,
            b'6' => Type::Fifo,
            b'S' => return Err(bad("it is sparse, in a form that only GNU tar reads".into())),
            other => {
                return Err(bad(format!("its type `{}` is unknown", other.escape_ascii())));
            }
        };
        if extension.sparse {
            return Err(bad("it is sparse, in a form that only GNU tar reads".into()));
        }
        // Some writers give links the size of what they lead to.
        let size = if kind == Type::File { size } else { 0 };
        let mode = header.mode().map_err(|_| bad("its mode is no number".into()))?;
        self.next = size
            .checked_next_multiple_of(BLOCK as u64)
            .and_then(|size| self.at.checked_add(size))
            .ok_or_else(|| bad(format!("its size is {size}")))?;
        Ok(Entry {
            path: clean(&name).map_err(&bad)?,
            kind,
            mode: (mode & 0o7777) as u16,
            uid: number(header.uid(), extension.uid, "owner")?,
            gid: number(header.gid(), extension.gid, "group")?,
            size,
            xattrs: extension.xattrs,
            offset: self.at,
        })
    }

    /// The next header, or `None` at the end: a block of zeros, or nothing more.
    fn header(&mut self) -> Result<Option<Header>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.from.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(Error::malformed("tar", "it ends in the middle of a header")),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).doing(|| "reading a tar".into()),
            }
        }
        self.at += BLOCK as u64;
        self.next = self.at;
        if block == [0; BLOCK] {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(at, byte)| u32::from(if (148..156).contains(&at) { b' ' } else { *byte }))
            .sum();
        if header.cksum().ok() != Some(sum) {
            let at = self.at - BLOCK as u64;
            return Err(Error::malformed("tar", format!("no header at byte {at}")));
        }
        Ok(Some(header))
    }

    /// The content of an extension header.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            return Err(Error::too_much("the extended header of a tar entry", "1 MiB"));
        }
        let mut content = vec![0; size as usize];
        self.from.read_exact(&mut content).doing(|| "reading a tar".into())?;
        self.at += size;
        self.next = self.at.next_multiple_of(BLOCK as u64);
        Ok(content)
    }

    fn skip_to(&mut self, position: u64) -> Result<()> {
        let left = position.saturating_sub(self.at);
        if left == 0 {
            return Ok(());
        }
        let skipped = (self.skip)(&mut self.from, left);
        self.at += skipped.doing(|| "reading a tar".into())?;
        if self.at < position {
            return Err(Error::malformed("tar", "it ends in the middle of an entry"));
        }
        Ok(())
    }
}

/// The content of one entry. An archive that ends before it does is an error, not a short file.
struct Content<'a, R> {
    reader: &'a mut Reader<R>,
    left: u64,
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = (buffer.len() as u64).min(self.left) as usize;
        if room == 0 {
            return Ok(0);
        }
        let read = self.reader.from.read(&mut buffer[..room])?;
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends too early"));
        }
        self.left -= read as u64;
        self.reader.at += read as u64;
        Ok(read)
    }
}

/// What the headers before an entry say of it.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    sparse: bool,
}

impl Extension {
    /// Reads PAX records: `LENGTH KEY=VALUE\n`, where the length counts all of it.
    fn pax(&mut self, mut records: &[u8]) -> Result<()> {
        let bad = |why: &str| Error::malformed("PAX header", why);
        while !records.is_empty() {
            let space = records.iter().take(10).position(|byte| *byte == b' ');
            let length = space
                .and_then(|at| std::str::from_utf8(&records[..at]).ok()?.parse::<usize>().ok())
                .ok_or_else(|| bad("a record without a length"))?;
            let start = space.unwrap_or(0) + 1;
            let record = records
                .get(start..length)
                .and_then(|record| record.strip_suffix(b"\n"))
                .ok_or_else(|| bad("a record with a wrong length"))?;
            records = &records[length..];
            let equals = record
                .iter()
                .position(|byte| *byte == b'=')
                .ok_or_else(|| bad("a record without `=`"))?;
            self.record(&record[..equals], &record[equals + 1..])?;
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let number = || {
            let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
            let why = || format!("`{}` is no number", key.escape_ascii());
            number.ok_or_else(|| Error::malformed("PAX header", why())).map(Some)
        };
        // An empty value takes back what was said before.
        let text = (!value.is_empty()).then(|| value.to_vec());
        match key {
            b"path" => self.path = text,
            b"linkpath" => self.link = text,
            b"size" if text.is_some() => self.size = number()?,
            b"uid" if text.is_some() => self.uid = number()?,
            b"gid" if text.is_some() => self.gid = number()?,
            _ if key.starts_with(b"GNU.sparse.") => self.sparse = true,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.insert(name.to_vec(), value.to_vec());
                }
            }
        }
        Ok(())
    }
}

fn c_string(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

fn target(text: Vec<u8>) -> Result<Vec<u8>, String> {
    if text.is_empty() || text.len() > MAX_PATH || text.contains(&0) {
        return Err("its link is no path".into());
    }
    Ok(text)
}

/// The parts of a path. One that would lead out is refused, also if it would come back.
fn clean(path: &[u8]) -> Result<Vec<u8>, String> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    for part in parts {
        if part == b".." {
            return Err("its path has `..`".into());
        }
        if part.len() > MAX_NAME || part.contains(&0) {
            return Err("its path has a part that is no file name".into());
        }
        if !out.is_empty() {
            out.push(b'/');
        }
        out.extend_from_slice(part);
    }
    if out.len() > MAX_PATH { Err("its path is too long".into()) } else { Ok(out) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_or_refused() {
        assert_eq!(clean(b"./a//b/./c/"), Ok(b"a/b/c".to_vec()));
        assert_eq!(clean(b"/etc/passwd"), Ok(b"etc/passwd".to_vec()));
        assert_eq!(clean(b"./"), Ok(Vec::new()));
        for bad in [&b"../x"[..], b"a/../b", b"a/..", &[b'x'; 256], b"a\0b"] {
            assert!(clean(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn pax_records_are_read_or_refused() {
        let mut extension = Extension::default();
        extension.pax(b"12 path=a/b\n22 SCHILY.xattr.u.x=\n\n10 uid=77\n").unwrap();
        assert_eq!(extension.path.as_deref(), Some(&b"a/b"[..]));
        assert_eq!(extension.uid, Some(77));
        assert_eq!(extension.xattrs[&b"u.x"[..]], b"\n");
        for bad in ["x", "5 a=b", "99 a=b\n", "3 =\n", "0 a=b\n", "1 a=b\n", "8 uid=x\n", "6 abc\n"]
        {
            assert!(Extension::default().pax(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
