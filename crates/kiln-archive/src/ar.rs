//! The members of an ar(5) archive, the outer form of a Debian package.

use std::io::{self, Read};

/// One member's head. Its content follows in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Without the slash that some writers put after it.
    pub name: String,
    /// Bytes.
    pub size: u64,
}

/// Reads the magic at the start of the archive.
///
/// # Errors
/// It is another one, or cannot be read.
pub fn magic(from: &mut impl Read) -> io::Result<()> {
    let mut magic = [0; 8];
    from.read_exact(&mut magic)?;
    if &magic == b"!<arch>\n" { Ok(()) } else { Err(bad("it is no ar archive")) }
}

/// Reads the next head; `None` at the end. The caller consumes `size` bytes, and one more when
/// `size` is odd, before asking again.
///
/// # Errors
/// It is damaged, or cannot be read.
pub fn next(from: &mut impl Read) -> io::Result<Option<Member>> {
    let mut head = [0; 60];
    let mut filled = 0;
    while filled < head.len() {
        match from.read(&mut head[filled..])? {
            0 if filled == 0 => return Ok(None),
            0 => return Err(bad("the archive ends in the head of a member")),
            count => filled += count,
        }
    }
    if &head[58..] != b"`\n" {
        return Err(bad("the head of a member is damaged"));
    }
    let text = |from: usize, to: usize| std::str::from_utf8(&head[from..to]).map(str::trim_end);
    let name = text(0, 16).map_err(|_| bad("the name of a member is not text"))?;
    let size = text(48, 58).ok().and_then(|size| size.parse().ok());
    let size = size.ok_or_else(|| bad("the size of a member is not a number"))?;
    Ok(Some(Member { name: name.trim_end_matches('/').to_owned(), size }))
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(name: &str, size: &str) -> Vec<u8> {
        format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{size:<10}`\n", 0, 0, 0, 100_644).into_bytes()
    }

    #[test]
    fn reads_members() {
        let mut bytes = b"!<arch>\n".to_vec();
        bytes.extend(head("debian-binary", "4"));
        bytes.extend(b"2.0\n");
        let mut from = bytes.as_slice();
        magic(&mut from).unwrap();
        let member = next(&mut from).unwrap().unwrap();
        assert_eq!(member, Member { name: "debian-binary".into(), size: 4 });
        from = &from[4..];
        assert_eq!(next(&mut from).unwrap(), None);
    }

    #[test]
    fn refuses_damage() {
        assert!(magic(&mut b"PK\x03\x04aaaa".as_slice()).is_err());
        assert!(next(&mut b"debian-binary".as_slice()).is_err());
        assert!(next(&mut head("x", "-3").as_slice()).is_err());
        let mut torn = head("x", "3");
        torn[58] = b'x';
        assert!(next(&mut torn.as_slice()).is_err());
    }
}
