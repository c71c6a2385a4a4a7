//! What an image takes of an entry of a tar: parsed at the edge, or refused with its name.

use std::collections::BTreeMap;

use kiln_archive::{ArchiveError, EntryKind, PATH_MAX, Reader, clean};

use crate::error::{Error, Result, shown};

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

/// One entry. Its content is read from the [`Reader`].
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Relative, without `.`, `..` and empty parts; the root is empty.
    pub path: Vec<u8>,
    pub kind: Type,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Whole seconds since 1970.
    pub time: i64,
    /// Extended attributes by full name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Where the content begins in the archive, and its length there; `None` of a file with holes.
    pub extent: Option<(u64, u64)>,
}

/// The next entry of `reader`; what is left of the content of the one before is skipped.
pub(crate) fn next(reader: &mut Reader<'_>) -> Result<Option<Entry>> {
    let Some(entry) = reader.next_entry().map_err(failed)? else { return Ok(None) };
    let name = &entry.name;
    let bad = |why: String| Error::malformed(format!("tar entry {}", shown(name)), why);
    let number = |number: u64, what: &str| {
        u32::try_from(number).map_err(|_| bad(format!("its {what} is {number}")))
    };
    let device = |major, minor| -> Result<(u32, u32)> {
        Ok((number(major, "device number")?, number(minor, "device number")?))
    };
    let kind = match entry.kind {
        EntryKind::File => Type::File,
        EntryKind::Dir => Type::Dir,
        EntryKind::Fifo => Type::Fifo,
        EntryKind::Link(to) | EntryKind::Symlink(to) if to.is_empty() => {
            return Err(bad("it is a link to nothing".to_owned()));
        }
        EntryKind::Link(to) => Type::Hardlink(clean(&to).map_err(|why| bad(why.to_owned()))?),
        EntryKind::Symlink(text) if text.len() > PATH_MAX || text.contains(&0) => {
            return Err(bad("its link is no path".to_owned()));
        }
        EntryKind::Symlink(text) => Type::Symlink(text),
        EntryKind::Char(major, minor) => {
            device(major, minor).map(|(major, minor)| Type::CharDevice(major, minor))?
        }
        EntryKind::Block(major, minor) => {
            device(major, minor).map(|(major, minor)| Type::BlockDevice(major, minor))?
        }
        EntryKind::Other(flag) => {
            return Err(bad(format!("its type `{}` is unknown", flag.escape_ascii())));
        }
    };
    Ok(Some(Entry {
        path: clean(name).map_err(|why| bad(why.to_owned()))?,
        kind,
        mode: (entry.mode & 0o7777) as u16,
        uid: number(entry.uid, "owner")?,
        gid: number(entry.gid, "group")?,
        time: entry.time,
        xattrs: entry.xattrs,
        extent: entry.extent,
    }))
}

/// What an archive that cannot be read means here.
pub(crate) fn failed(error: ArchiveError) -> Error {
    match error {
        ArchiveError::Damaged(why) => Error::malformed("tar", why),
        ArchiveError::TooLarge(limit) => Error::too_much("what it unpacks to", limit),
        ArchiveError::Read(source) => Error::Io { doing: "reading a tar".into(), source },
    }
}

/// An error of the archive that the store passed on.
pub(crate) fn stored(error: kiln_store::Error) -> Error {
    match error {
        kiln_store::Error::Io { doing, path, source } => match source.downcast::<ArchiveError>() {
            Ok(own) => failed(own),
            Err(source) => kiln_store::Error::Io { doing, path, source }.into(),
        },
        other => other.into(),
    }
}
