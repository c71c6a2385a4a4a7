//! Answers on their way: what frames their body, what is changed in their heads. RFC 9112 4, 6.3.

use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

use super::fields::{self, Field, Malformed, elements};
use super::head::{Framing, Kind, coding, kind, names_hop, put, put_length, sort_hops};

/// An answer, fit to be sent on.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Status line and fields; what frames the body, and the empty line, are to follow.
    pub(super) head: Vec<u8>,
    pub(super) body: Framing,
    /// The upstream's connection can serve another request.
    pub(super) reusable: bool,
    /// A stream of events (HTML, 9.2), which ends with its service and whose client comes again.
    pub(super) events: bool,
}

/// Makes an answer fit to be sent on; refuses what nobody can say the end of. `to_head`: the
/// request was a HEAD.
pub(super) fn answer(
    head: &[u8],
    to_head: bool,
    release: Option<&[u8]>,
) -> Result<Answer, Malformed> {
    let head = fields::parse(head, true)?;
    let (status, old, reason) = status_line(head.line)?;
    let mut connection: Vec<&[u8]> = Vec::new();
    let (mut lengths, mut codings, mut upgrade) = (Vec::new(), Vec::new(), None);
    let (mut dated, mut events) = (false, false);
    for Field { name, value } in &head.fields {
        match kind(name) {
            Kind::Connection => connection.extend(elements(value)),
            Kind::Length => lengths.push(*value),
            Kind::Coding => codings.push(*value),
            Kind::Upgrade => upgrade = Some(*value),
            _ if name.eq_ignore_ascii_case(b"content-type") => events = is_events(value),
            _ => dated |= name.eq_ignore_ascii_case(b"date"),
        }
    }
    sort_hops(&mut connection);
    let bodiless = to_head || status < 200 || status == 204 || status == 304;
    // Where there is no body, its length is not worth breaking off for.
    let length = fields::length(lengths.iter().copied());
    let body = match codings[..] {
        _ if bodiless => Framing::None,
        [] => length?.map_or(Framing::UntilClose, Framing::Length),
        // The coding wins over a length: RFC 9112 6.3. Others than chunked would be lost.
        [only] if coding(only) == Some(true) => Framing::Chunked,
        _ => return Err(Malformed),
    };
    let has = |token: &[u8]| connection.iter().any(|word| word.eq_ignore_ascii_case(token));
    let kept = !has(b"close") && (!old || has(b"keep-alive"));
    let two_framings = body == Framing::Chunked && (old || !lengths.is_empty());
    let reusable = kept && body != Framing::UntilClose && !two_framings;

    let mut out = Vec::with_capacity(48 * head.fields.len() + 256);
    put(&mut out, &[b"HTTP/1.1 ", &head.line[9..12], b" ", reason, b"\r\n"]);
    for field in &head.fields {
        let passes = match kind(field.name) {
            Kind::Expect | Kind::Host => true,
            Kind::Other => !field.name.eq_ignore_ascii_case(b"x-kiln-release"),
            _ => false,
        };
        if passes && !names_hop(field.name, &connection) {
            put_field(&mut out, field);
        }
    }
    if status >= 200 {
        if !dated {
            put_date(&mut out);
        }
        if let Some(release) = release {
            put(&mut out, &[b"X-Kiln-Release: ", release, b"\r\n"]);
        }
        if bodiless
            && status != 204
            && codings.is_empty()
            && let Ok(Some(length)) = length
        {
            put_length(&mut out, length);
        }
    }
    if (status == 101 || status == 426)
        && let Some(protocol) = upgrade
    {
        put(&mut out, &[b"Connection: Upgrade\r\nUpgrade: ", protocol, b"\r\n"]);
    }
    Ok(Answer { status, head: out, body, reusable, events })
}

fn is_events(kind: &[u8]) -> bool {
    let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default();
    kind.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
}

/// Status, whether it is HTTP/1.0, and the reason.
fn status_line(line: &[u8]) -> Result<(u16, bool, &[u8]), Malformed> {
    let (version, rest) = line.split_at_checked(9).ok_or(Malformed)?;
    let old = match version {
        b"HTTP/1.0 " => true,
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', minor, b' '] if minor.is_ascii_digit() => false,
        _ => return Err(Malformed),
    };
    let (code, reason) = rest.split_at_checked(3).ok_or(Malformed)?;
    let status = fields::number(code).and_then(|code| u16::try_from(code).ok());
    let reason = match reason {
        [] => reason,
        [b' ', reason @ ..] => reason,
        _ => return Err(Malformed),
    };
    let fits = reason.iter().all(|byte| *byte >= b' ' && *byte != 0x7f || *byte == b'\t');
    match status {
        Some(status @ 100..=999) if fits => Ok((status, old, reason)),
        _ => Err(Malformed),
    }
}

/// A value that went over several lines becomes one of one line: RFC 9112 5.2.
fn put_field(out: &mut Vec<u8>, field: &Field<'_>) {
    put(out, &[field.name, b": "]);
    let from = out.len();
    out.extend_from_slice(field.value);
    for byte in &mut out[from..] {
        if matches!(byte, b'\r' | b'\n') {
            *byte = b' ';
        }
    }
    put(out, &[b"\r\n"]);
}

/// RFC 9110 6.6.1 asks a proxy for it where an answer has none.
pub(super) fn put_date(out: &mut Vec<u8>) {
    thread_local! {
        static LAST: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
    }
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    LAST.with_borrow_mut(|(last, text)| {
        if *last != second || text.is_empty() {
            *text = httpdate::fmt_http_date(now);
            *last = second;
        }
        put(out, &[b"Date: ", text.as_bytes(), b"\r\n"]);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<(Framing, bool)> {
        let answer = answer(text.as_bytes(), false, None).ok()?;
        Some((answer.body, answer.reusable))
    }

    #[test]
    fn framed_as_the_standard_says() {
        use Framing::{Chunked, Length, None as Nothing, UntilClose};
        let rows: &[(&str, Option<(Framing, bool)>)] = &[
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", Some((Length(5), true))),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n", Some((Length(5), true))),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", None),
            ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", None),
            ("HTTP/1.1 200 OK\r\n\r\n", Some((UntilClose, false))),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n", Some((Chunked, true))),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
                Some((Chunked, false)),
            ),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", None),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", None),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n", None),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: a\r\n\r\n", None),
            ("HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n", Some((Nothing, true))),
            ("HTTP/1.1 304 Not\r\nContent-Length: x\r\n\r\n", Some((Nothing, true))),
            ("HTTP/1.1 103 Early\r\nLink: a\r\n\r\n", Some((Nothing, true))),
            ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", Some((Length(5), false))),
            (
                "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\n",
                Some((Length(5), true)),
            ),
            (
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\n",
                Some((Length(5), false)),
            ),
            ("HTTP/1.1 200\r\nContent-Length: 5\r\n\r\n", Some((Length(5), true))),
            ("HTTP/1.1 20 OK\r\n\r\n", None),
            ("HTTP/1.1 2000 OK\r\n\r\n", None),
            ("HTTP/1.1 200\u{1}OK\r\n\r\n", None),
            ("HTTP/2 200 OK\r\n\r\n", None),
            ("ICY 200 OK\r\n\r\n", None),
            ("HTTP/1.1 200 OK\r\nno colon\r\n\r\n", None),
        ];
        for (text, expected) in rows {
            assert_eq!(read(text), *expected, "{text:?}");
        }
    }

    #[test]
    fn heads_are_made_fit() {
        let text = "HTTP/1.0 200 Fine\r\nConnection: x-own\r\nX-Own: 1\r\nKeep-Alive: 9\r\n\
                    Date: then\r\nA : b\r\nX-Long: a\r\n b\r\nX-Kiln-Release: evil\r\n\
                    Set-Cookie: 1\r\nSet-Cookie: 2\r\nContent-Length: 3\r\n\r\n";
        let made = answer(text.as_bytes(), false, Some(b"abc")).unwrap();
        let expected = "HTTP/1.1 200 Fine\r\nDate: then\r\nA: b\r\nX-Long: a   b\r\n\
                        Set-Cookie: 1\r\nSet-Cookie: 2\r\nX-Kiln-Release: abc\r\n";
        assert_eq!(String::from_utf8(made.head).unwrap(), expected);
        let made = answer(b"HTTP/1.1 200 OK\r\nContent-Length: 7, 7\r\n\r\n", true, None).unwrap();
        let text = String::from_utf8(made.head).unwrap();
        assert!(text.contains("\r\nDate: ") && text.ends_with("Content-Length: 7\r\n"), "{text}");
    }
}
