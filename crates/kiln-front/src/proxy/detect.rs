//! Which protocol a client's first bytes are.

/// Longest request line that is waited for, in bytes; longer ones are not taken for HTTP unless
/// they begin like it.
const LINE_LIMIT: usize = 8 << 10;
/// Longest method name: `UPDATEREDIRECTREF` has 17.
const METHOD_LIMIT: usize = 20;

/// What the bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guess {
    /// A request line of HTTP/1.
    Http,
    /// Anything else: TLS, HTTP/2 with prior knowledge, a binary protocol, Redis' inline commands.
    Other,
    /// They may become a request line.
    Unknown,
}

/// Looks at all bytes that came so far.
pub(super) fn guess(bytes: &[u8]) -> Guess {
    let Some(space) = bytes.iter().position(|byte| *byte == b' ') else {
        let may_be = bytes.len() <= METHOD_LIMIT && bytes.iter().all(is_method_byte);
        return if may_be { Guess::Unknown } else { Guess::Other };
    };
    if space == 0 || space > METHOD_LIMIT || !bytes[..space].iter().all(is_method_byte) {
        return Guess::Other;
    }
    if bytes.starts_with(b"PRI * ") {
        return Guess::Other;
    }
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        let too_long = bytes.len() > LINE_LIMIT;
        return match (too_long, bytes.get(space + 1)) {
            (true, Some(b'/')) => Guess::Http,
            (true, _) => Guess::Other,
            (false, _) => Guess::Unknown,
        };
    };
    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    let version = line.len().checked_sub(9).map(|at| &line[at..]);
    match version {
        Some([b' ', b'H', b'T', b'T', b'P', b'/', b'1', b'.', minor])
            if minor.is_ascii_digit() && line.len() > space + 10 =>
        {
            Guess::Http
        }
        _ => Guess::Other,
    }
}

fn is_method_byte(byte: &u8) -> bool {
    byte.is_ascii_uppercase() || *byte == b'-' || *byte == b'_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_http_from_the_rest() {
        let long = [b"GET /".as_slice(), &[b'a'; LINE_LIMIT]].concat();
        let rows: &[(&[u8], Guess)] = &[
            (b"", Guess::Unknown),
            (b"G", Guess::Unknown),
            (b"GET", Guess::Unknown),
            (b"GET /index", Guess::Unknown),
            (b"GET /index HTTP/1.1", Guess::Unknown),
            (b"GET / HTTP/1.1\r\nHost", Guess::Http),
            (b"GET / HTTP/1.0\n", Guess::Http),
            (b"M-SEARCH * HTTP/1.1\r\n", Guess::Http),
            (b"GET http://a/b HTTP/1.1\r\n", Guess::Http),
            (b"GET /a b HTTP/1.1\r\n", Guess::Http),
            (&long, Guess::Http),
            (b"GET key\r\n", Guess::Other),
            (b"GET  HTTP/1.1\r\n", Guess::Other),
            (b"GET / HTTP/2.0\r\n", Guess::Other),
            (b"GET /\r\n", Guess::Other),
            (b"PRI * HTTP/2.0\r\n\r\nSM", Guess::Other),
            (b"PRI * ", Guess::Other),
            (b"PING\r\n", Guess::Other),
            (b"*1\r\n$4\r\nPING", Guess::Other),
            (b"\x16\x03\x01", Guess::Other),
            (b"\0", Guess::Other),
            (b" GET", Guess::Other),
            (b"get / HTTP/1.1\r\n", Guess::Other),
            (b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", Guess::Other),
        ];
        for (bytes, expected) in rows {
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]);
            assert_eq!(guess(bytes), *expected, "{shown:?}");
        }
    }
}
