//! Heads of HTTP/1 as bytes: where they end, and what fields they have. RFC 9112 2–5.
//!
//! Strict where two parties could read differently; lenient where they cannot, for everything is
//! written anew: a line may end with LF alone, but CR stands before LF only.

use memchr::memchr_iter;

/// A head, or part of one, that is not HTTP/1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// One field, as it came, without the white space around its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field<'a> {
    pub(super) name: &'a [u8],
    pub(super) value: &'a [u8],
}

/// A first line and fields.
#[derive(Debug)]
pub(super) struct Head<'a> {
    pub(super) line: &'a [u8],
    pub(super) fields: Vec<Field<'a>>,
}

/// Length of the head that `bytes` begin with, empty line and all. `seen` remembers what was
/// looked at when more has to come.
pub(super) fn head_end(bytes: &[u8], seen: &mut usize) -> Option<usize> {
    for at in memchr_iter(b'\n', &bytes[*seen..]) {
        match bytes[*seen + at + 1..] {
            [b'\n', ..] => return Some(*seen + at + 2),
            [b'\r', b'\n', ..] => return Some(*seen + at + 3),
            _ => {}
        }
    }
    *seen = bytes.len().saturating_sub(3);
    None
}

/// Reads a whole head. A line that begins with white space goes on with the one before it
/// (obs-fold) only where `folds`: in answers, where RFC 9112 5.2 has a proxy put spaces there.
pub(super) fn parse(bytes: &[u8], folds: bool) -> Result<Head<'_>, Malformed> {
    let (line, rest) = first_line(bytes)?;
    Ok(Head { line, fields: fields(rest, folds)? })
}

/// Reads fields up to an empty line or the end.
pub(super) fn fields(mut bytes: &[u8], folds: bool) -> Result<Vec<Field<'_>>, Malformed> {
    let mut fields = Vec::with_capacity(16);
    while !bytes.is_empty() {
        let (mut line, mut rest) = first_line(bytes)?;
        if line.is_empty() {
            break;
        }
        while folds && matches!(rest, [b' ' | b'\t', ..]) {
            let (more, after) = first_line(rest)?;
            line = &bytes[..bytes.len() - rest.len() + more.len()];
            rest = after;
        }
        fields.push(field(line, folds)?);
        bytes = rest;
    }
    Ok(fields)
}

/// The first line without its end, and what follows.
fn first_line(bytes: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let end = memchr::memchr(b'\n', bytes).ok_or(Malformed)?;
    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    Ok((line, &bytes[end + 1..]))
}

fn field(line: &[u8], answer: bool) -> Result<Field<'_>, Malformed> {
    let colon = memchr::memchr(b':', line).ok_or(Malformed)?;
    let mut name = &line[..colon];
    if answer {
        // RFC 9112 5.1: of an answer, a proxy removes it; a request is refused.
        name = name.trim_ascii_end();
    }
    let value = trim(&line[colon + 1..]);
    let fold = |byte: &u8| answer && matches!(byte, b'\r' | b'\n');
    if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
        return Err(Malformed);
    }
    if !value.iter().all(|byte| is_value(*byte) || fold(byte)) {
        return Err(Malformed);
    }
    Ok(Field { name, value })
}

/// Without optional white space: RFC 9110 5.6.3.
fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = bytes {
        bytes = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// RFC 9110 5.6.2.
pub(super) fn is_token(byte: u8) -> bool {
    const TOKEN: [bool; 256] = {
        let mut table = [false; 256];
        let others = b"!#$%&'*+-.^_`|~";
        let mut at = 0;
        while at < 256 {
            table[at] = (at as u8).is_ascii_alphanumeric();
            at += 1;
        }
        at = 0;
        while at < others.len() {
            table[others[at] as usize] = true;
            at += 1;
        }
        table
    };
    TOKEN[usize::from(byte)]
}

/// Visible characters, white space, and what is beyond ASCII: RFC 9110 5.5.
fn is_value(byte: u8) -> bool {
    byte >= b' ' && byte != 0x7f || byte == b'\t'
}

/// The elements of a comma-separated list, empty ones left out.
pub(super) fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(trim).filter(|word| !word.is_empty())
}

/// Whether a list has `token`.
pub(super) fn has_token(value: &[u8], token: &[u8]) -> bool {
    elements(value).any(|word| word.eq_ignore_ascii_case(token))
}

/// A field's name as programs see it that turn names into variables (CGI, WSGI, PHP): letters and
/// digits; every other character is the same one.
pub(super) fn folds_to(name: &[u8], expected: &[u8]) -> bool {
    name.len() == expected.len() && folded_prefix(name, expected)
}

/// Whether a name, so folded, begins with `prefix`.
pub(super) fn folded_prefix(name: &[u8], prefix: &[u8]) -> bool {
    let same = |(byte, expected): (&u8, &u8)| match byte {
        byte if byte.is_ascii_alphanumeric() => byte.to_ascii_lowercase() == *expected,
        _ => *expected == b'-',
    };
    name.len() >= prefix.len() && name.iter().zip(prefix).all(same)
}

/// What only a proxy may say of a client.
pub(super) fn is_forwarded(name: &[u8]) -> bool {
    match name.first() {
        Some(b'f' | b'F') => folds_to(name, b"forwarded"),
        Some(b'x' | b'X') => {
            folded_prefix(name, b"x-forwarded")
                && (name.len() == 11 || !name[11].is_ascii_alphanumeric())
                || folds_to(name, b"x-real-ip")
        }
        _ => false,
    }
}

/// Digits, and nothing else.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 19 || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The length that all of `values` agree on, however often they say it: `5, 5` is 5.
pub(super) fn length<'a>(values: impl Iterator<Item = &'a [u8]>) -> Result<Option<u64>, Malformed> {
    let mut found = None;
    for value in values {
        for text in value.split(|byte| *byte == b',').map(trim) {
            let length = number(text).ok_or(Malformed)?;
            if *found.get_or_insert(length) != length {
                return Err(Malformed);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_end_at_an_empty_line() {
        let rows: &[(&[u8], Option<usize>)] = &[
            (b"", None),
            (b"a\r\n", None),
            (b"a\r\n\r", None),
            (b"a\r\n\r\nrest", Some(5)),
            (b"a\n\nrest", Some(3)),
            (b"a\n\r\n", Some(4)),
            (b"a\r\nb: c\r\n\r\n", Some(11)),
            (b"a\r\r\n", None),
        ];
        for (bytes, expected) in rows {
            assert_eq!(head_end(bytes, &mut 0), *expected, "{}", bytes.escape_ascii());
            // However it comes in.
            let mut seen = 0;
            let end = (0..=bytes.len()).find_map(|count| head_end(&bytes[..count], &mut seen));
            assert_eq!(end, *expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn fields_are_read_strictly() {
        let read = |text: &'static [u8], folds| {
            let fields = fields(text, folds).ok()?;
            let show = |field: &Field<'_>| {
                format!("{}={}", field.name.escape_ascii(), field.value.escape_ascii())
            };
            Some(fields.iter().map(show).collect::<Vec<_>>().join(" "))
        };
        let rows: &[(&[u8], Option<&str>, Option<&str>)] = &[
            (b"A: b\r\n\r\n", Some("A=b"), Some("A=b")),
            (b"A:b\nC: \t d \t\n\n", Some("A=b C=d"), Some("A=b C=d")),
            (b"A:\r\n\r\n", Some("A="), Some("A=")),
            (b"A : b\r\n\r\n", None, Some("A=b")),
            (b" A: b\r\n\r\n", None, None),
            (b"A: b\r\n c\r\n\r\n", None, Some("A=b\\r\\n c")),
            (b": b\r\n\r\n", None, None),
            (b"A b\r\n\r\n", None, None),
            (b"A: b\0c\r\n\r\n", None, None),
            (b"A: b\rc\r\n\r\n", None, Some("A=b\\rc")),
            (b"A: \x7f\r\n\r\n", None, None),
            (b"A(: b\r\n\r\n", None, None),
            (b"A: \xff\r\n\r\n", Some("A=\\xff"), Some("A=\\xff")),
        ];
        for (text, request, answer) in rows {
            assert_eq!(read(text, false).as_deref(), *request, "{}", text.escape_ascii());
            assert_eq!(read(text, true).as_deref(), *answer, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn every_spelling_that_programs_fold_together() {
        for name in [
            "Forwarded",
            "forwarded",
            "X-Forwarded-For",
            "x_forwarded_for",
            "X.Forwarded-Proto",
            "X-FORWARDED_HOST",
            "x-forwarded-port",
            "X_Real_IP",
            "x-real-ip",
            "X-Forwarded",
            "X-Forwarded-Anything",
        ] {
            assert!(is_forwarded(name.as_bytes()), "{name}");
        }
        for name in ["X-Forward", "Forward", "X-Real", "XForwardedFor", "X-Forwardedness", "Via"] {
            assert!(!is_forwarded(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn lengths_agree_or_are_none() {
        type Read = Result<Option<u64>, Malformed>;
        let rows: &[(&[&[u8]], Read)] = &[
            (&[], Ok(None)),
            (&[b"5"], Ok(Some(5))),
            (&[b"5, 5"], Ok(Some(5))),
            (&[b"5", b"5 ,5"], Ok(Some(5))),
            (&[b"5, 6"], Err(Malformed)),
            (&[b"5", b"6"], Err(Malformed)),
            (&[b""], Err(Malformed)),
            (&[b"5,"], Err(Malformed)),
            (&[b"+5"], Err(Malformed)),
            (&[b"0x5"], Err(Malformed)),
            (&[b"5 5"], Err(Malformed)),
            (&[b"99999999999999999999"], Err(Malformed)),
        ];
        for (values, expected) in rows {
            assert_eq!(length(values.iter().copied()), *expected, "{values:?}");
        }
    }
}
