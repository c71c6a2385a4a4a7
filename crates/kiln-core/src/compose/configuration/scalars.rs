//! Text as Compose's YAML writer puts it down: plain where it can be taken for nothing else, else in
//! single quotes, double quotes, or as a block of lines.

use std::fmt::Write as _;

use crate::compose::units;

/// Which way of writing text there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Plain,
    Single,
    Double,
    /// Its lines below a `|`.
    Block,
}

/// Writes a value, whose lines, where it has several, stand `indent` spaces in. A dollar sign is
/// doubled, so that the document can be read again.
pub(super) fn value(out: &mut String, text: &str, indent: usize) {
    write(out, text, style(text), indent);
}

/// Writes a key, which stands on one line.
pub(super) fn key(out: &mut String, text: &str) {
    let style = match style(text) {
        Style::Block => Style::Double,
        style => style,
    };
    write(out, text, style, 0);
}

fn write(out: &mut String, text: &str, style: Style, indent: usize) {
    match style {
        Style::Plain => out.push_str(&text.replace('$', "$$")),
        Style::Single => {
            let _ = write!(out, "'{}'", text.replace('\'', "''").replace('$', "$$"));
        }
        Style::Double => quoted(out, text),
        Style::Block => block(out, text, indent),
    }
}

fn style(text: &str) -> Style {
    let found = Found::in_text(text);
    let wanted = match text {
        _ if text.contains('\n') => Style::Block,
        _ if stands_for_text(text) => Style::Plain,
        _ => Style::Double,
    };
    match wanted {
        Style::Block if !found.block => Style::Double,
        Style::Plain if !found.plain && found.single => Style::Single,
        Style::Plain if !found.plain => Style::Double,
        style => style,
    }
}

/// What the letters of a text allow.
struct Found {
    plain: bool,
    single: bool,
    block: bool,
}

impl Found {
    fn in_text(text: &str) -> Self {
        let mut found = Self { plain: true, single: true, block: !text.is_empty() };
        let is_end =
            |letter: Option<char>| letter.is_none_or(|letter| is_blank(letter) || is_break(letter));
        if text.starts_with("---") || text.starts_with("...") {
            found.plain = false;
        }
        let mut before: Option<char> = None;
        let mut letters = text.chars().peekable();
        while let Some(letter) = letters.next() {
            let after = letters.peek().copied();
            let sign = match letter {
                ':' => is_end(after),
                '?' | '-' => before.is_none() && is_end(after),
                '#' => is_end(before),
                ',' | '[' | ']' | '{' | '}' | '&' | '*' | '!' | '|' | '>' | '\'' | '"' | '%'
                | '@' | '`' => before.is_none(),
                _ => false,
            };
            let edge = before.is_none() || after.is_none();
            if sign || is_break(letter) || (letter == ' ' && edge) {
                found.plain = false;
            }
            if letter == ' ' && after.is_none() {
                found.block = false;
            }
            match (before, letter) {
                // A space at the beginning of a line is lost outside of quotes and blocks …
                (Some(before), ' ') if is_break(before) => {
                    (found.plain, found.single) = (false, false);
                }
                // … and one at its end is not seen anywhere but in double quotes.
                (Some(' '), letter) if is_break(letter) => {
                    (found.plain, found.single, found.block) = (false, false, false);
                }
                _ => {}
            }
            if letter == '\t' {
                (found.plain, found.single) = (false, false);
            } else if !is_printable(letter) {
                (found.plain, found.single, found.block) = (false, false, false);
            }
            before = Some(letter);
        }
        found
    }
}

fn is_blank(letter: char) -> bool {
    matches!(letter, ' ' | '\t')
}

fn is_break(letter: char) -> bool {
    matches!(letter, '\r' | '\n' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// Beside what YAML's writer shows: nothing that a terminal would obey.
fn is_printable(letter: char) -> bool {
    matches!(letter, '\n' | ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fefe}' | '\u{ff00}'..='\u{fffd}')
        && !matches!(letter, '\u{2028}' | '\u{2029}')
}

/// Whether no reader takes it, without quotes, for anything else.
fn stands_for_text(text: &str) -> bool {
    const WORDS: [&str; 26] = [
        "", "~", "null", "Null", "NULL", "true", "True", "TRUE", "false", "False", "FALSE", "y",
        "Y", "yes", "Yes", "YES", "on", "On", "ON", "n", "N", "no", "No", "NO", "off", "Off",
    ];
    !WORDS.contains(&text)
        && text != "OFF"
        && units::number_as_text(text).is_none()
        && !is_of_sixties(text)
        && !is_time(text)
}

/// `12:30:45`, which old readers take for a number to the base of sixty.
fn is_of_sixties(text: &str) -> bool {
    let text = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (text, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut parts = text.split(':');
    let digit = |byte: u8| byte.is_ascii_digit() || byte == b'_';
    let first = parts.next().unwrap_or_default();
    let rest: Vec<&str> = parts.collect();
    let sixtieth = |part: &&str| match part.as_bytes() {
        [one] => one.is_ascii_digit(),
        [ten, one] => (b'0'..=b'5').contains(ten) && one.is_ascii_digit(),
        _ => false,
    };
    first.starts_with(|letter: char| letter.is_ascii_digit())
        && first.bytes().all(digit)
        && !rest.is_empty()
        && rest.iter().all(sixtieth)
        && fraction.bytes().all(digit)
}

/// A date, perhaps with a time of day.
fn is_time(text: &str) -> bool {
    let (date, time) = match text.split_once(['T', 't', ' ']) {
        Some((date, time)) => (date, Some(time)),
        None => (text, None),
    };
    let number = |part: &str, longest: usize| {
        let plain =
            (1..=longest).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| part.parse::<u32>().ok())?
    };
    let parts: Vec<&str> = date.split('-').collect();
    let [year, month, day] = parts[..] else { return false };
    let (Some(year_number), Some(month), Some(day)) =
        (number(year, 4), number(month, 2), number(day, 2))
    else {
        return false;
    };
    let leap = year_number % 4 == 0 && (year_number % 100 != 0 || year_number % 400 == 0);
    let days = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    if year.len() != 4 || !(1..=12).contains(&month) || !(1..=days).contains(&day) {
        return false;
    }
    let Some(time) = time else { return true };
    // With a `T` a zone has to follow, with a space none may.
    let zoned = !text.contains(' ');
    let (time, zone) = match time.find(['Z', '+', '-']) {
        Some(at) => time.split_at(at),
        None => (time, ""),
    };
    let zone_is_valid = match zone.strip_prefix(['+', '-']) {
        Some(zone) => zone.split_once(':').is_some_and(|(hours, minutes)| {
            hours.len() == 2
                && minutes.len() == 2
                && number(hours, 2).is_some()
                && number(minutes, 2).is_some()
        }),
        None => zone == "Z",
    };
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let clock: Vec<Option<u32>> = clock.split(':').map(|part| number(part, 2)).collect();
    let [Some(hours), Some(minutes), Some(seconds)] = clock[..] else { return false };
    hours < 24
        && minutes < 60
        && seconds < 60
        && number(fraction, 9).is_some()
        && if zoned { zone_is_valid } else { zone.is_empty() }
}

fn block(out: &mut String, text: &str, indent: usize) {
    out.push('|');
    // Where the lines begin cannot be told from the first of them.
    if text.starts_with([' ', '\n']) {
        out.push('2');
    }
    let ends = text.len() - text.trim_end_matches('\n').len();
    match ends {
        0 => out.push('-'),
        1 if text.len() > 1 => {}
        _ => out.push('+'),
    }
    let lines = text.strip_suffix('\n').unwrap_or(text);
    for line in lines.split('\n') {
        out.push('\n');
        if !line.is_empty() {
            let _ = write!(out, "{:indent$}{}", "", line.replace('$', "$$"));
        }
    }
}

/// Text in double quotes.
fn quoted(out: &mut String, text: &str) {
    out.push('"');
    for letter in text.chars() {
        let short = match letter {
            '"' => '"',
            '\\' => '\\',
            '\0' => '0',
            '\u{7}' => 'a',
            '\u{8}' => 'b',
            '\t' => 't',
            '\n' => 'n',
            '\u{b}' => 'v',
            '\u{c}' => 'f',
            '\r' => 'r',
            '\u{1b}' => 'e',
            '\u{85}' => 'N',
            '\u{2028}' => 'L',
            '\u{2029}' => 'P',
            '$' => {
                out.push_str("$$");
                continue;
            }
            letter if is_printable(letter) => {
                out.push(letter);
                continue;
            }
            odd => {
                let code = u32::from(odd);
                let _ = match code {
                    0..=0xff => write!(out, "\\x{code:02X}"),
                    0x100..=0xffff => write!(out, "\\u{code:04X}"),
                    _ => write!(out, "\\U{code:08X}"),
                };
                continue;
            }
        };
        out.extend(['\\', short]);
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each as `docker compose config` 2.40 writes it.
    #[test]
    fn text_as_compose_writes_it() {
        for (text, expected) in [
            ("plain", "plain"),
            ("-c", "-c"),
            ("--a=b c", "--a=b c"),
            ("a: b", "'a: b'"),
            ("a:", "'a:'"),
            ("x #y", "'x #y'"),
            ("x#y", "x#y"),
            ("- x", "'- x'"),
            ("'q", "'''q'"),
            ("it's", "it's"),
            ("[a]", "'[a]'"),
            ("a [b] {c}", "a [b] {c}"),
            ("*", "'*'"),
            (" x", "' x'"),
            ("x ", "'x '"),
            ("", "\"\""),
            ("5", "\"5\""),
            ("0x1F", "\"0x1F\""),
            ("1e3", "\"1e3\""),
            ("1.2.3", "1.2.3"),
            ("8080:80", "8080:80"),
            ("22:30", "\"22:30\""),
            ("22:70", "22:70"),
            ("yes", "\"yes\""),
            ("OFF", "\"OFF\""),
            ("~", "\"~\""),
            ("2001-01-01", "\"2001-01-01\""),
            ("2001-02-30", "2001-02-30"),
            ("2001-01-01 10:00:00", "\"2001-01-01 10:00:00\""),
            ("2001-01-01T10:00:00Z", "\"2001-01-01T10:00:00Z\""),
            ("a\tb", "\"a\\tb\""),
            ("a$b", "a$$b"),
            ("\u{e9}", "\u{e9}"),
            ("\u{1f600}", "\"\\U0001F600\""),
            ("\u{1b}[31m", "\"\\e[31m\""),
            ("a\nb", "|-\n  a\n  b"),
            ("a\n\nb\n", "|\n  a\n\n  b"),
            ("a\n\n", "|+\n  a\n"),
            (" a\nb", "|2-\n   a\n  b"),
            ("a \nb", "\"a \\nb\""),
            ("a\nb ", "\"a\\nb \""),
            ("a\n\tb", "|-\n  a\n  \tb"),
        ] {
            let mut out = String::new();
            value(&mut out, text, 2);
            assert_eq!(out, expected, "{text:?}");
        }
        let mut out = String::new();
        key(&mut out, "a\nb");
        assert_eq!(out, "\"a\\nb\"");
    }
}
