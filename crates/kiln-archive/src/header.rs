//! One header block of a tar archive: V7, ustar, star and GNU tar.

use crate::ArchiveError;

/// Bytes of a block.
pub(crate) const BLOCK: usize = 512;

/// What a block says, before extended headers change it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) name: Vec<u8>,
    pub(crate) mode: u64,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) size: u64,
    /// Seconds since 1970; 0 for what is no number.
    pub(crate) time: i64,
    pub(crate) flag: u8,
    pub(crate) link: Vec<u8>,
    /// Name of the owner and of the group; empty before ustar.
    pub(crate) user: Vec<u8>,
    pub(crate) group: Vec<u8>,
    pub(crate) major: u64,
    pub(crate) minor: u64,
}

impl Header {
    /// Reads a block; `None` if it is all zeros, which ends an archive.
    pub(crate) fn parse(block: &[u8; BLOCK]) -> Result<Option<Self>, ArchiveError> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        check_sum(block)?;
        let name = text(&block[..100]);
        let at = |what: &str, field: &[u8]| {
            number(field).ok_or_else(|| {
                ArchiveError::Damaged(format!(
                    "the {what} of `{}` is no number",
                    crate::shown(&name)
                ))
            })
        };
        let ustar = &block[257..265] == b"ustar\x0000";
        let gnu = &block[257..265] == b"ustar  \0";
        let prefix = match (ustar, &block[508..] == b"tar\0") {
            (true, true) => text(&block[345..476]),
            (true, false) => text(&block[345..500]),
            (false, _) => Vec::new(),
        };
        // Before ustar, these bytes may be anything.
        let (major, minor) = match ustar || gnu {
            true => (at("device", &block[329..337])?, at("device", &block[337..345])?),
            false => (0, 0),
        };
        let mut header = Self {
            mode: at("mode", &block[100..108])?,
            uid: at("owner", &block[108..116])?,
            gid: at("group", &block[116..124])?,
            size: at("size", &block[124..136])?,
            time: time(&block[136..148]),
            flag: block[156],
            link: text(&block[157..257]),
            user: if ustar || gnu { text(&block[265..297]) } else { Vec::new() },
            group: if ustar || gnu { text(&block[297..329]) } else { Vec::new() },
            major,
            minor,
            name: Vec::new(),
        };
        header.name = if prefix.is_empty() { name } else { [&prefix, &b"/"[..], &name].concat() };
        Ok(Some(header))
    }
}

/// The sum of all bytes, the sum's own field taken as blanks. Some old writers took bytes as signed.
fn check_sum(block: &[u8; BLOCK]) -> Result<(), ArchiveError> {
    let said = number(&block[148..156]);
    let blanked = |at: usize, byte: u8| if (148..156).contains(&at) { b' ' } else { byte };
    let bytes = || block.iter().enumerate().map(|(at, byte)| blanked(at, *byte));
    let unsigned: u64 = bytes().map(u64::from).sum();
    let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
    if said == Some(unsigned) || said.map(u64::cast_signed) == Some(signed) {
        return Ok(());
    }
    Err(ArchiveError::damaged("the checksum of a header is wrong"))
}

/// Text up to the first zero byte.
fn text(field: &[u8]) -> Vec<u8> {
    field.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

/// A number: octal digits between blanks, or big-endian with the highest bit set. `None` for what
/// is neither, negative or too large; an empty field is 0.
pub(crate) fn number(field: &[u8]) -> Option<u64> {
    if let Some(first) = field.first().filter(|first| **first & 0x80 != 0) {
        if first & 0x40 != 0 {
            return None;
        }
        let mut rest = field[1..].iter();
        return rest.try_fold(u64::from(first & 0x3f), |sum, byte| {
            (sum >> 56 == 0).then(|| sum << 8 | u64::from(*byte))
        });
    }
    let digits = text(field.trim_ascii_start());
    let digits = digits.trim_ascii();
    if digits.is_empty() {
        return Some(0);
    }
    digits.iter().try_fold(0_u64, |sum, digit| match digit {
        b'0'..=b'7' if sum >> 61 == 0 => Some(sum << 3 | u64::from(digit - b'0')),
        _ => None,
    })
}

/// A time; old writers left all kinds of things there, so what is none is the start of 1970.
fn time(field: &[u8]) -> i64 {
    if field[0] & 0xc0 == 0xc0 {
        // Before 1970: two's complement.
        let mut bytes = [0xff; 8];
        bytes.copy_from_slice(&field[field.len() - 8..]);
        return i64::from_be_bytes(bytes);
    }
    number(field).and_then(|time| i64::try_from(time).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{number, time};

    #[test]
    fn times() {
        assert_eq!(time(b"14504300000\0"), 0o14_504_300_000);
        assert_eq!(time(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe"), -2);
        assert_eq!(time(b"some rubbish"), 0);
    }

    #[test]
    fn numbers() {
        for (field, expected) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"", Some(0)),
            (b"0000a44\0", None),
            (b"-000644\0", None),
            (b"\x80\0\0\0\0\0\x01\x02", Some(258)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", None),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(u64::MAX >> 1)),
            (b"\x80\0\0\x01\0\0\0\0\0\0\0\0", None),
            (b"777777777777777777777777", None),
        ] {
            assert_eq!(number(field), expected, "{field:?}");
        }
    }
}
