//! Which protocol a client's first bytes are.

/// Longest request line that is waited for, in bytes; longer ones are not taken for HTTP unless
/// they begin like it.
const LINE_LIMIT: usize = 8 << 10;
/// Empty lines that are waited behind for something, in bytes.
const BLANKS: usize = 1 << 10;
/// Longest method name: `UPDATEREDIRECTREF` has 17.
const METHOD_LIMIT: usize = 32;
/// What HTTP/2 begins with where nobody asked for it before: RFC 9113 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guess {
    /// HTTP/1, or what claims to be.
    Http,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// A TLS handshake, or a binary protocol, or a line that is no request.
    Other,
    /// More has to come.
    Unknown,
}

/// Looks at all bytes that came so far. `known`: the route is known to speak HTTP, so that what is
/// no preface of another protocol is HTTP, or nothing.
///
/// This decides how a connection is read, not whether it is trusted: whatever a lenient server
/// might take for a request has to come out as HTTP here, also where it will be refused.
pub(super) fn guess(bytes: &[u8], known: bool) -> Guess {
    if bytes.starts_with(PREFACE) {
        return Guess::Http2;
    }
    if PREFACE.starts_with(bytes) {
        return Guess::Unknown;
    }
    match is_tls(bytes) {
        Some(true) => return Guess::Other,
        None if known => return Guess::Unknown,
        Some(false) if known => return Guess::Http,
        _ if is_foreign(bytes) => return Guess::Other,
        _ => {}
    }
    if mentions_http(bytes) {
        return Guess::Http;
    }
    let start = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    if start > BLANKS {
        // Nothing else begins so, and nobody needs to keep them.
        return Guess::Http;
    }
    let line = &bytes[start..];
    if let Some(end) = memchr::memchr(b'\n', line) {
        // The line is whole, and says nothing of HTTP.
        let empty = line[..end].trim_ascii().is_empty();
        return if empty { Guess::Unknown } else { Guess::Other };
    }
    let method = line.iter().take_while(|byte| is_method_byte(byte)).count();
    let may_be = method <= METHOD_LIMIT
        && match line.get(method) {
            None => true,
            Some(b' ') => method > 0 && line[method..].iter().all(|byte| *byte >= b' '),
            Some(_) => false,
        };
    match line.get(method + 1) {
        _ if !may_be => Guess::Other,
        _ if line.len() <= LINE_LIMIT => Guess::Unknown,
        Some(b'/') => Guess::Http,
        _ => Guess::Other,
    }
}

/// Protocols that are told by their first bytes, and that may well mention HTTP: a TLS handshake
/// (RFC 8446 5.1), whose client names what it wants to speak inside; FastCGI.
pub(super) fn is_foreign(bytes: &[u8]) -> bool {
    match bytes {
        [0x16, 3, ..] => is_tls(bytes) != Some(false),
        _ => matches!(bytes, [1, 1, ..]),
    }
}

/// Whether a connection begins with a record that holds a ClientHello: handshake, version 3.0 to
/// 3.4, at most 2^14 bytes, the message's type. `None`: as far as it goes.
fn is_tls(bytes: &[u8]) -> Option<bool> {
    let rules: [fn(u8) -> bool; 6] =
        [|b| b == 0x16, |b| b == 3, |b| b <= 4, |b| b <= 0x40, |_| true, |b| b == 1];
    if !bytes.iter().zip(rules).all(|(byte, rule)| rule(*byte)) {
        return Some(false);
    }
    (bytes.len() >= rules.len()).then_some(true)
}

/// Whether an unfinished line can hardly be anything but a request.
pub(super) fn looks_like_request(bytes: &[u8]) -> bool {
    let method = bytes.iter().take_while(|byte| is_method_byte(byte)).count();
    let target = bytes[method..].strip_prefix(b" ").unwrap_or_default();
    method > 0 && matches!(target, [b'/' | b'*' | b'h', ..])
}

/// Looks on while a connection of which nothing is known goes by as bytes: a request that comes in
/// pieces shows only then.
#[derive(Debug)]
pub(super) struct Lookout {
    first: Vec<u8>,
    over: bool,
}

impl Lookout {
    /// After `first`.
    pub(super) fn new(first: &[u8]) -> Self {
        Self { first: first.to_vec(), over: false }
    }

    /// The server has said something else than HTTP.
    pub(super) fn call_off(&mut self) {
        self.over = true;
        self.first = Vec::new();
    }

    /// Whether what the client has said so far, and says now, would be HTTP.
    pub(super) fn sees_http(&mut self, bytes: &[u8]) -> bool {
        if self.over {
            return false;
        }
        self.first.extend_from_slice(&bytes[..bytes.len().min(LINE_LIMIT)]);
        let seen = mentions_http(&self.first);
        if self.first.len() >= LINE_LIMIT {
            self.call_off();
        }
        seen
    }
}

/// Whether the first of what came has the word that makes servers think of HTTP.
fn mentions_http(bytes: &[u8]) -> bool {
    let first = &bytes[..bytes.len().min(LINE_LIMIT)];
    memchr::memchr2_iter(b'H', b'h', first).any(|at| {
        let word = first.get(at..at + 5).is_some_and(|word| word.eq_ignore_ascii_case(b"HTTP/"));
        word && first.get(at + 5).is_some_and(u8::is_ascii_digit)
    })
}

fn is_method_byte(byte: &u8) -> bool {
    byte.is_ascii_uppercase() || *byte == b'-' || *byte == b'_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_in_pieces_is_seen_and_a_conversation_is_not() {
        let mut lookout = Lookout::new(b"g");
        assert!(!lookout.sees_http(b"et / HT"));
        assert!(lookout.sees_http(b"TP/1.1\r\n"));
        let mut lookout = Lookout::new(b"hello");
        lookout.call_off();
        assert!(!lookout.sees_http(b"mail about HTTP/1.1"));
        let rows: [(&[u8], bool); 6] = [
            (b"GET /", true),
            (b"GET http://", true),
            (b"OPTIONS *", true),
            (b"GET", false),
            (b"GET key", false),
            (b"", false),
        ];
        for (bytes, expected) in rows {
            assert_eq!(looks_like_request(bytes), expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn tells_http_from_the_rest() {
        use Guess::{Http, Http2, Other, Unknown};
        let long = [b"GET /".as_slice(), &[b'a'; LINE_LIMIT]].concat();
        // On a route of which nothing is known; on one that speaks HTTP.
        let rows: &[(&[u8], Guess, Guess)] = &[
            (b"", Unknown, Unknown),
            (b"G", Unknown, Http),
            (b"GET /index", Unknown, Http),
            (b"GET / HT", Unknown, Http),
            (b"GET /index HTTP/1.1", Http, Http),
            (b"GET / HTTP/1.0\n", Http, Http),
            (b"\r\n", Unknown, Http),
            (b"\r\nGET / HTTP/1.1\r\n", Http, Http),
            (b"\n\n\nGET", Unknown, Http),
            (b"get / HTTP/1.1\r\n", Http, Http),
            (b"get", Other, Http),
            (b"hello world", Other, Http),
            (b"\x01\x01\0\x01SERVER_PROTOCOL HTTP/1.1", Other, Http),
            (b"GET  / HTTP/1.1\r\n", Http, Http),
            (b" GET / HTTP/1.1\r\n", Http, Http),
            (b"\0GET / HTTP/1.1\r\n", Http, Http),
            (b"GET\t/ http/1.1\r\n", Http, Http),
            (b"XYZ\r\nGET / HTTP/1.1\r\n", Http, Http),
            (b"PROXY TCP4 6.6.6.6 1.1.1.1 1 80\r\nGET / HTTP/1.1\r\n", Http, Http),
            (b"PROXY TCP4 6.6.6.6 1.1.1.1 1 80\r\n", Other, Http),
            (&long, Http, Http),
            (b"GET key\r\n", Other, Http),
            (b"GET /\r\n", Other, Http),
            (b"PING\r\n", Other, Http),
            (b"*1\r\n$4\r\nPING", Other, Http),
            (b"{\"a\": 1}", Other, Http),
            (b"\x01\n", Other, Http),
            (b"\0", Other, Http),
            (b"PRI", Unknown, Unknown),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", Http2, Http2),
            (b"PRI * HTTP/2.0\n", Http, Http),
            (b"PRINT / HTTP/1.1\r\n", Http, Http),
            (b"\x16", Other, Unknown),
            (b"\x16\x03\x01", Other, Unknown),
            (b"\x16\x03\x01\x02\x00\x01\x00", Other, Other),
            (b"\x16\x03GET / HTTP/1.1\r\n", Http, Http),
            (b"\x16\x03\x01\x02\x00GET / HTTP/1.1\r\n", Http, Http),
            (b"\x16GET / HTTP/1.1\r\n", Http, Http),
            (b"ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFGHIJKL", Other, Http),
        ];
        for (bytes, unknown, known) in rows {
            let shown = bytes[..bytes.len().min(40)].escape_ascii().to_string();
            assert_eq!(guess(bytes, false), *unknown, "{shown}");
            assert_eq!(guess(bytes, true), *known, "{shown} on a route that speaks HTTP");
        }
    }
}
