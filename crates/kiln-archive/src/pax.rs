//! The records of a POSIX extended header: `LENGTH KEY=VALUE\n`.

use std::collections::BTreeMap;

use crate::ArchiveError;
use crate::sparse::Piece;

/// What an extended header says about the entry that follows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Pax {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u64>,
    pub(crate) gid: Option<u64>,
    /// Whole seconds since 1970, rounded down.
    pub(crate) time: Option<i64>,
    pub(crate) user: Option<Vec<u8>>,
    pub(crate) group: Option<Vec<u8>>,
    /// `SCHILY.xattr.NAME`.
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// `GNU.sparse.*`.
    pub(crate) sparse: Sparse,
}

/// Keys of GNU's sparse formats 0.0, 0.1 and 1.0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sparse {
    pub(crate) major: Option<u64>,
    pub(crate) minor: Option<u64>,
    pub(crate) name: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    /// Of the formats 0.0 and 0.1; `None` without them.
    pub(crate) pieces: Option<Vec<Piece>>,
}

const XATTR: &[u8] = b"SCHILY.xattr.";

impl Pax {
    /// Reads all records.
    pub(crate) fn parse(mut text: &[u8]) -> Result<Self, ArchiveError> {
        let mut pax = Self::default();
        let mut offset = None;
        while !text.is_empty() {
            let (key, value, rest) = record(text)
                .ok_or_else(|| ArchiveError::damaged("an extended header cannot be read"))?;
            text = rest;
            pax.take(key, value, &mut offset).ok_or_else(|| {
                let key = crate::shown(key);
                ArchiveError::Damaged(format!("`{key}` in an extended header cannot be read"))
            })?;
        }
        Ok(pax)
    }

    /// `None` if the value makes no sense.
    fn take(&mut self, key: &[u8], value: &[u8], offset: &mut Option<u64>) -> Option<()> {
        // An empty value takes a former one back.
        let text = || -> Option<Option<Vec<u8>>> {
            (!value.contains(&0)).then(|| (!value.is_empty()).then(|| value.to_vec()))
        };
        let optional = || -> Option<Option<u64>> {
            if value.is_empty() { Some(None) } else { decimal(value).map(Some) }
        };
        match key {
            b"path" => self.path = text()?,
            b"linkpath" => self.link = text()?,
            b"size" => self.size = optional()?,
            b"uid" => self.uid = optional()?,
            b"gid" => self.gid = optional()?,
            b"mtime" if value.is_empty() => self.time = None,
            b"mtime" => self.time = Some(seconds(value)?),
            b"uname" => self.user = text()?,
            b"gname" => self.group = text()?,
            b"GNU.sparse.major" => self.sparse.major = optional()?,
            b"GNU.sparse.minor" => self.sparse.minor = optional()?,
            b"GNU.sparse.name" => self.sparse.name = text()?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.size = optional()?,
            b"GNU.sparse.numblocks" => self.sparse.pieces = Some(Vec::new()),
            b"GNU.sparse.offset" => *offset = Some(decimal(value)?),
            b"GNU.sparse.numbytes" => {
                let piece = Piece { offset: offset.take()?, length: decimal(value)? };
                self.sparse.pieces.get_or_insert_default().push(piece);
            }
            b"GNU.sparse.map" => {
                let numbers = value.split(|byte| *byte == b',').map(decimal);
                let numbers = numbers.collect::<Option<Vec<u64>>>()?;
                let (pairs, []) = numbers.as_chunks::<2>() else { return None };
                let pieces =
                    pairs.iter().map(|[offset, length]| Piece { offset: *offset, length: *length });
                self.sparse.pieces = Some(pieces.collect());
            }
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    self.xattrs.insert(name.to_vec(), value.to_vec());
                }
            }
        }
        Some(())
    }
}

/// Key and value of the first record, and what follows it.
fn record(text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let blank = text.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&text[..blank])?).ok()?;
    let record = text.get(blank + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let key = &record[..equals];
    (!key.is_empty() && !key.contains(&0)).then(|| (key, &record[equals + 1..], &text[length..]))
}

/// A decimal number; a fraction or sign makes it none.
pub(crate) fn decimal(text: &[u8]) -> Option<u64> {
    let digits = text.iter().all(u8::is_ascii_digit) && !text.is_empty();
    digits.then(|| std::str::from_utf8(text).ok()?.parse().ok()).flatten()
}

/// The whole seconds of a decimal number with an optional sign and fraction, rounded down.
fn seconds(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let point = digits.iter().position(|byte| *byte == b'.').unwrap_or(digits.len());
    let whole = i64::try_from(decimal(&digits[..point])?).ok()?;
    let fraction = digits.get(point + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let part = fraction.iter().any(|digit| *digit != b'0');
    Some(if negative { -whole - i64::from(part) } else { whole })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_records() {
        let pax = Pax::parse(
            b"9 path=a\n12 path=b=\xff\n13 size=4096\n7 uid=\n27 SCHILY.xattr.user.x=1\n2\n",
        )
        .unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"b=\xff"[..]));
        assert_eq!((pax.size, pax.uid), (Some(4096), None));
        assert_eq!(pax.xattrs[&b"user.x"[..]], b"1\n2");
    }

    #[test]
    fn times_are_rounded_down() {
        for (text, expected) in [
            (&b"1577836800.123456789"[..], Some(1_577_836_800)),
            (b"5", Some(5)),
            (b"5.", Some(5)),
            (b"-1.5", Some(-2)),
            (b"-1.0", Some(-1)),
            (b"1e9", None),
            (b"1.-5", None),
            (b"", None),
            (b"99999999999999999999", None),
        ] {
            assert_eq!(seconds(text), expected, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn refuses_what_is_broken() {
        for text in [
            &b"x path=a\n"[..],
            b"9 path=a",
            b"11 path=a\n",
            b"8 path=a\n",
            b"99999999999999999999 path=a\n",
            b"0 path=a\n",
            b"5 =ab\n",
            b"9 size=-1\n",
            b"9 path=\0a\n",
            b"24 GNU.sparse.numbytes=1\n",
            b"23 GNU.sparse.map=1,2,3\n",
        ] {
            assert!(Pax::parse(text).is_err(), "{}", String::from_utf8_lossy(text));
        }
    }
}
