//! Where two values differ, and the words there.

/// Offset of the first byte that differs; the shorter length if one begins like the other.
pub(crate) fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    let common = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    (common < a.len() || common < b.len()).then_some(common)
}

/// How much of a line is looked at, to each side.
const REACH: usize = 256;

/// Readable text around an offset.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    /// The line, as far as it can be read.
    pub(super) line: &'a str,
    /// Offset of the first differing byte in it.
    pub(super) at: usize,
}

impl<'a> Place<'a> {
    /// The line around `at`; `None` if there is nothing readable.
    pub(super) fn around(bytes: &'a [u8], at: usize) -> Option<Self> {
        let readable = |byte: &u8| byte.is_ascii_graphic() || *byte == b' ' || *byte == b'\t';
        let at = at.min(bytes.len());
        let before = bytes[..at].iter().rev().take(REACH).take_while(|byte| readable(byte)).count();
        let after = bytes[at..].iter().take(REACH).take_while(|byte| readable(byte)).count();
        let line = std::str::from_utf8(&bytes[at - before..at + after]).ok()?;
        (!line.is_empty()).then_some(Self { line, at: before })
    }

    /// The word over the first differing byte: letters and digits, and what `more` adds.
    pub(super) fn word(&self, more: &str) -> &'a str {
        let part = |c: char| c.is_ascii_alphanumeric() || more.contains(c);
        let (before, after) = self.line.split_at(self.at);
        let begin = before.rfind(|c| !part(c)).map_or(0, |at| at + 1);
        let end = after.find(|c| !part(c)).map_or(self.line.len(), |at| self.at + at);
        &self.line[begin..end]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_a_difference() {
        assert_eq!(first_difference(b"abc", b"abd"), Some(2));
        assert_eq!(first_difference(b"abc", b"abcd"), Some(3));
        assert_eq!(first_difference(b"abc", b"abc"), None);
        let place = Place::around(b"one\ntwo three-4\nfour", 9).unwrap();
        assert_eq!((place.line, place.word("")), ("two three-4", "three"));
        assert_eq!(place.word("-"), "three-4");
        assert!(Place::around(b"\0\0\0", 1).is_none());
    }
}
