//! The chunked coding: taken apart strictly, put together anew, so that no two parties can see
//! its pieces end at different places. RFC 9112 7.1.

use std::io::Write;

use super::fields::{self, Malformed};

/// Longest chunk-size line with its extensions, in bytes.
const LINE_LIMIT: usize = 4 << 10;
/// Longest trailer section in bytes.
const TRAILERS_LIMIT: usize = 64 << 10;

/// What is expected next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Digits of a size; how many there were.
    Size {
        value: u64,
        digits: u8,
    },
    /// White space and extensions after a size, up to CR.
    Extension {
        value: u64,
        length: usize,
    },
    /// LF after the CR of a size.
    SizeEnd {
        value: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    Trailers,
    Done,
}

/// Takes a chunked body apart.
#[derive(Debug)]
pub(super) struct Decoder {
    state: State,
    trailers: Vec<u8>,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self { state: State::Size { value: 0, digits: 0 }, trailers: Vec::new() }
    }

    /// Whether the body has ended.
    pub(super) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// The trailer section, as it came. It is complete once the body has ended.
    pub(super) fn trailers(&self) -> &[u8] {
        &self.trailers
    }

    /// Takes what it can of `bytes`, gives the data to `each`, and returns how much it took: all
    /// of it, unless the body ended before.
    pub(super) fn take(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(&[u8]),
    ) -> Result<usize, Malformed> {
        let mut at = 0;
        while at < bytes.len() {
            if let State::Data { left } = self.state {
                let now = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len() - at);
                each(&bytes[at..at + now]);
                at += now;
                let left = left - now as u64;
                self.state = if left == 0 { State::DataCr } else { State::Data { left } };
                continue;
            }
            if self.is_done() {
                break;
            }
            self.state = self.next(bytes[at])?;
            at += 1;
        }
        Ok(at)
    }

    fn next(&mut self, byte: u8) -> Result<State, Malformed> {
        Ok(match (self.state, byte) {
            (State::Size { value, digits }, byte) if byte.is_ascii_hexdigit() => {
                // Sixteen digits fill 64 bits; leading zeros beyond that are somebody's trick.
                let digit = char::from(byte).to_digit(16).ok_or(Malformed)?;
                if digits == 16 || value >> 60 != 0 {
                    return Err(Malformed);
                }
                State::Size { value: value << 4 | u64::from(digit), digits: digits + 1 }
            }
            (State::Size { digits: 0, .. }, _) => return Err(Malformed),
            (State::Size { value, .. }, b'\r') => State::SizeEnd { value },
            (State::Size { value, .. }, b';' | b' ' | b'\t') => {
                State::Extension { value, length: 1 }
            }
            (State::Extension { value, .. }, b'\r') => State::SizeEnd { value },
            (State::Extension { value, length }, byte)
                if length < LINE_LIMIT && (byte >= b' ' && byte != 0x7f || byte == b'\t') =>
            {
                State::Extension { value, length: length + 1 }
            }
            (State::SizeEnd { value: 0 }, b'\n') => State::Trailers,
            (State::SizeEnd { value }, b'\n') => State::Data { left: value },
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size { value: 0, digits: 0 },
            (State::Trailers, byte) => {
                self.trailers.push(byte);
                match self.trailers[..] {
                    [b'\r', b'\n'] | [.., b'\n', b'\r', b'\n'] => State::Done,
                    // Only CR LF ends a line here.
                    [b'\n'] => return Err(Malformed),
                    [.., before, b'\n'] if before != b'\r' => return Err(Malformed),
                    _ if self.trailers.len() > TRAILERS_LIMIT => return Err(Malformed),
                    _ => State::Trailers,
                }
            }
            _ => return Err(Malformed),
        })
    }
}

/// One chunk.
pub(super) fn put(out: &mut Vec<u8>, data: &[u8]) {
    if !data.is_empty() {
        // Writing to memory does not fail.
        let _ = write!(out, "{:x}\r\n", data.len());
        out.extend_from_slice(data);
        out.extend_from_slice(b"\r\n");
    }
}

/// The last chunk, with the trailer fields that may pass.
pub(super) fn finish(
    out: &mut Vec<u8>,
    trailers: &[u8],
    passes: impl Fn(&[u8]) -> bool,
) -> Result<(), Malformed> {
    let fields = fields::fields(trailers, false)?;
    out.extend_from_slice(b"0\r\n");
    for field in fields.iter().filter(|field| passes(field.name)) {
        for part in [field.name, b": ", field.value, b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    out.extend_from_slice(b"\r\n");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Data, trailers, and what is left.
    fn read(bytes: &[u8], step: usize) -> Option<(String, String, String)> {
        let mut decoder = Decoder::new();
        let mut data = Vec::new();
        let mut at = 0;
        while at < bytes.len() && !decoder.is_done() {
            let piece = &bytes[at..(at + step).min(bytes.len())];
            at += decoder.take(piece, |piece| data.extend_from_slice(piece)).ok()?;
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        decoder.is_done().then(|| (text(&data), text(decoder.trailers()), text(&bytes[at..])))
    }

    #[test]
    fn taken_apart_strictly_and_however_it_comes() {
        let giant = format!("{}1\r\na\r\n0\r\n\r\n", "0".repeat(17));
        type Parts = Option<(&'static str, &'static str, &'static str)>;
        let rows: &[(&str, Parts)] = &[
            ("0\r\n\r\n", Some(("", "\r\n", ""))),
            ("1\r\na\r\n0\r\n\r\nnext", Some(("a", "\r\n", "next"))),
            ("A\r\n0123456789\r\n000\r\n\r\n", Some(("0123456789", "\r\n", ""))),
            ("1;x=\"y\"\r\na\r\n0;z\r\n\r\n", Some(("a", "\r\n", ""))),
            ("1 \r\na\r\n0\r\n\r\n", Some(("a", "\r\n", ""))),
            ("0\r\nA: b\r\nC: d\r\n\r\n", Some(("", "A: b\r\nC: d\r\n\r\n", ""))),
            ("1\na\r\n0\r\n\r\n", None),
            ("1\r\na\n0\r\n\r\n", None),
            ("1\r\nab\r\n0\r\n\r\n", None),
            ("1\r\na0\r\n\r\n", None),
            ("0\r\n\n", None),
            ("0\r\nA: b\n\r\n", None),
            ("0x1\r\na\r\n0\r\n\r\n", None),
            ("-1\r\na\r\n0\r\n\r\n", None),
            ("+1\r\na\r\n0\r\n\r\n", None),
            (" 1\r\na\r\n0\r\n\r\n", None),
            ("\r\n1\r\na\r\n0\r\n\r\n", None),
            ("1;a\rb\r\na\r\n0\r\n\r\n", None),
            ("1;a\nb\r\na\r\n0\r\n\r\n", None),
            ("1;\0\r\na\r\n0\r\n\r\n", None),
            ("ffffffffffffffff0\r\n", None),
            ("10000000000000001\r\na\r\n0\r\n\r\n", None),
            (&giant, None),
            ("g\r\n", None),
            ("", None),
        ];
        for (text, expected) in rows {
            for step in [1, 2, 1000] {
                let got = read(text.as_bytes(), step);
                let got = got.as_ref().map(|(a, b, c)| (a.as_str(), b.as_str(), c.as_str()));
                assert_eq!(got, *expected, "{text:?} by {step}");
            }
        }
    }

    #[test]
    fn lines_and_trailers_are_bounded() {
        let long = "x".repeat(LINE_LIMIT + 1);
        assert!(read(format!("1;{long}\r\na\r\n0\r\n\r\n").as_bytes(), 7).is_none());
        let many = "A: b\r\n".repeat(TRAILERS_LIMIT / 6 + 1);
        assert!(read(format!("0\r\n{many}\r\n").as_bytes(), 1000).is_none());
    }

    #[test]
    fn put_together_anew() {
        let mut out = Vec::new();
        put(&mut out, b"0123456789abcdef");
        put(&mut out, b"");
        finish(&mut out, b"X-Sum: 1\r\nHost: evil\r\n\r\n", |name| name != b"Host").unwrap();
        assert_eq!(out, b"10\r\n0123456789abcdef\r\n0\r\nX-Sum: 1\r\n\r\n");
        assert!(finish(&mut out, b"no colon\r\n\r\n", |_| true).is_err());
    }
}
