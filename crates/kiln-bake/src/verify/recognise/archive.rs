//! Archives and compressed files: header fields that are known, members in another order, and
//! else what is inside.

use std::io::Read as _;
use std::ops::Range;

use super::{Known, bytes, first_difference};
use crate::verify::cause::{Cause, Finding};

/// At most so much of a compressed file is looked at.
const LARGEST: u64 = 32 << 20;

/// One member: its name, where its header and its content are.
struct Member {
    name: Vec<u8>,
    header: Range<usize>,
    content: Range<usize>,
}

/// A field of a header, for messages.
type Field = (Range<usize>, &'static str, Cause);

pub(super) fn recognise(
    a: &[u8],
    b: &[u8],
    at: usize,
    known: Known<'_>,
    depth: usize,
) -> Option<Finding> {
    let both = |head: &[u8]| a.starts_with(head) && b.starts_with(head);
    if both(&[0x1f, 0x8b, 8]) {
        return gzip(a, b, at, known, depth);
    }
    if a.get(2..4) == Some(b"\r\n") && b.get(2..4) == Some(b"\r\n") && (8..12).contains(&at) {
        let evidence = "the header of Python byte code holds the source's time";
        return Some(Finding::new(Cause::Time, evidence));
    }
    if both(b"!<arch>\n") {
        const FIELDS: [Field; 3] = [
            (16..28, "time", Cause::Time),
            (28..34, "owner", Cause::Unknown),
            (34..40, "group", Cause::Unknown),
        ];
        return members("ar", [ar(a), ar(b)], [a, b], at, &FIELDS, known, depth);
    }
    if both(b"PK\x03\x04") {
        // Names are equal, so what is behind them is an extra field: times, to the second.
        const FIELDS: [Field; 2] =
            [(10..14, "time", Cause::Time), (30..1 << 16, "time", Cause::Time)];
        return members("zip", [zip(a), zip(b)], [a, b], at, &FIELDS, known, depth);
    }
    if a.get(257..262) == Some(b"ustar") && b.get(257..262) == Some(b"ustar") {
        const FIELDS: [Field; 3] = [
            (136..148, "time", Cause::Time),
            (108..124, "owner", Cause::Unknown),
            (329..345, "device", Cause::Unknown),
        ];
        return members("tar", [tar(a), tar(b)], [a, b], at, &FIELDS, known, depth);
    }
    None
}

fn gzip(a: &[u8], b: &[u8], at: usize, known: Known<'_>, depth: usize) -> Option<Finding> {
    if (4..8).contains(&at) {
        return Some(Finding::new(Cause::Time, "the gzip header holds the time"));
    }
    let inside = |bytes: &[u8]| -> Option<Vec<u8>> {
        let mut out = Vec::new();
        flate2::read::MultiGzDecoder::new(bytes).take(LARGEST).read_to_end(&mut out).ok()?;
        Some(out)
    };
    let (a, b) = (inside(a)?, inside(b)?);
    first_difference(&a, &b)?;
    Some(bytes(&a, &b, known, depth + 1).within("inside the gzip file"))
}

/// Order of members, then the field or content that the first difference is in.
fn members(
    kind: &str,
    lists: [Vec<Member>; 2],
    sides: [&[u8]; 2],
    at: usize,
    fields: &[Field],
    known: Known<'_>,
    depth: usize,
) -> Option<Finding> {
    let names = |list: &[Member]| list.iter().map(|member| member.name.clone()).collect::<Vec<_>>();
    let [first, second] = [names(&lists[0]), names(&lists[1])];
    let sorted = |mut list: Vec<Vec<u8>>| {
        list.sort_unstable();
        list
    };
    if first != second && sorted(first.clone()) == sorted(second.clone()) {
        let evidence = format!("the {kind} archive has the same members in another order");
        return Some(Finding::new(Cause::DirectoryOrder, evidence));
    }
    if first != second {
        return None;
    }
    let pairs = lists[0].iter().zip(&lists[1]);
    for (one, other) in pairs {
        let member = String::from_utf8_lossy(&one.name).into_owned();
        if one.header.contains(&at) {
            let inside = at - one.header.start;
            let (_, what, cause) = fields.iter().find(|(range, ..)| range.contains(&inside))?;
            let evidence = format!("the header of `{member}` in the {kind} archive has its {what}");
            return (*cause != Cause::Unknown).then(|| Finding::new(*cause, evidence));
        }
        let contents = [
            sides[0].get(one.content.clone()).unwrap_or_default(),
            sides[1].get(other.content.clone()).unwrap_or_default(),
        ];
        if contents[0] != contents[1] {
            let what = format!("in `{member}` of the {kind} archive");
            return Some(bytes(contents[0], contents[1], known, depth + 1).within(&what));
        }
    }
    None
}

fn ar(bytes: &[u8]) -> Vec<Member> {
    let mut found = Vec::new();
    let mut at = 8;
    while let Some(header) = bytes.get(at..at + 60) {
        let text = |range: Range<usize>| String::from_utf8_lossy(&header[range]).trim().to_owned();
        let Ok(size) = text(48..58).parse::<usize>() else { break };
        let content = at + 60..(at + 60).saturating_add(size).min(bytes.len());
        found.push(Member { name: text(0..16).into_bytes(), header: at..at + 60, content });
        at = (at + 60).saturating_add(size + size % 2);
    }
    found
}

fn tar(bytes: &[u8]) -> Vec<Member> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(header) = bytes.get(at..at + 512).filter(|header| header[0] != 0) {
        let until_nul = |range: Range<usize>| {
            let part = &header[range];
            part[..part.iter().position(|byte| *byte == 0).unwrap_or(part.len())].to_vec()
        };
        let octal = String::from_utf8_lossy(&until_nul(124..136)).trim().to_owned();
        let Ok(size) = usize::from_str_radix(&octal, 8) else { break };
        let content = at + 512..(at + 512).saturating_add(size).min(bytes.len());
        let name = [until_nul(345..500), until_nul(0..100)].join(&b'/');
        found.push(Member { name, header: at..at + 512, content });
        at = (at + 512).saturating_add(size.next_multiple_of(512));
    }
    found
}

/// Local headers, as long as they say how long their content is.
fn zip(bytes: &[u8]) -> Vec<Member> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(header) = bytes.get(at..at + 30).filter(|head| head.starts_with(b"PK\x03\x04")) {
        let half = |from: usize| usize::from(u16::from_le_bytes([header[from], header[from + 1]]));
        let size = half(18) | half(20) << 16;
        let (name, extra) = (half(26), half(28));
        let begin = at + 30 + name + extra;
        let Some(label) = bytes.get(at + 30..at + 30 + name) else { break };
        let end = begin.saturating_add(size).min(bytes.len());
        found.push(Member {
            name: label.to_vec(),
            header: at..begin,
            content: begin..end.max(begin),
        });
        // The sizes come after the content: the next header is looked for.
        let next = match half(6) & 8 != 0 && size == 0 {
            false => end,
            true => match bytes.get(begin..).and_then(|rest| find(rest, b"PK\x03\x04")) {
                Some(skip) => begin + skip,
                None => break,
            },
        };
        at = next;
    }
    found
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
