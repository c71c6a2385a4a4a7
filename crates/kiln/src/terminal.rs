//! Text of strangers on its way to a terminal. Names, logs, probes and messages may hold codes that
//! move the cursor, rewrite what was said, set the title or make the terminal type. What an image
//! or an instance has written is shown, never obeyed.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether the terminal moves no cursor.
pub(crate) fn is_dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}

/// Whether its user has not said no to colours: <https://no-color.org>.
pub(crate) fn may_colour() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && !is_dumb()
}

/// `text` with everything made visible that a terminal would obey, but line ends and tabs.
pub(crate) fn clean(text: &str) -> Cow<'_, str> {
    if !text.chars().any(obeyed) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        show(c, &mut out);
    }
    Cow::Owned(out)
}

/// A JSON text that means the same and that no terminal obeys.
pub(crate) fn clean_json(text: &str) -> Cow<'_, str> {
    if !text.chars().any(obeyed) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match obeyed(c) {
            true => drop(write!(out, "\\u{:04x}", u32::from(c))),
            false => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// As [`clean`], but colours and weights stay (`ESC [ … m`); the line ends without any.
pub(crate) fn clean_but_colours(text: &str) -> Cow<'_, str> {
    if !text.chars().any(obeyed) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    let mut rest = text;
    let mut coloured = false;
    while let Some(c) = rest.chars().next() {
        if let Some(length) = colour(rest) {
            out.push_str(&rest[..length]);
            rest = &rest[length..];
            coloured = true;
            continue;
        }
        show(c, &mut out);
        rest = &rest[c.len_utf8()..];
    }
    if coloured {
        out.push_str("\x1b[0m");
    }
    Cow::Owned(out)
}

/// Length of the colour code at the beginning of `text`. Eight is hidden text, and not let through.
fn colour(text: &str) -> Option<usize> {
    let body = text.strip_prefix("\x1b[")?;
    let end = body.find(|c: char| !(c.is_ascii_digit() || c == ';' || c == ':'))?;
    let hides = body[..end].split([';', ':']).any(|part| part.trim_start_matches('0') == "8");
    (body[end..].starts_with('m') && end <= 32 && !hides).then_some(2 + end + 1)
}

/// Whether a terminal does something else than show it. The last ones turn the direction of
/// writing, so that a line reads other than it is.
fn obeyed(c: char) -> bool {
    c.is_control() && c != '\n' && c != '\t'
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{2028}' | '\u{2029}')
}

/// As `cat -v` and Rust write it.
fn show(c: char, out: &mut String) {
    match c {
        c if !obeyed(c) => out.push(c),
        '\u{7f}' => out.push_str("^?"),
        '\0'..='\u{1f}' => {
            out.push('^');
            out.push(char::from(c as u8 + b'@'));
        }
        c => {
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_obeyed() {
        for (text, shown) in [
            ("plain\ttext\n", "plain\ttext\n"),
            ("\x1b[2J\x1b]0;title\x07", "^[[2J^[]0;title^G"),
            ("back\rover", "back^Mover"),
            ("\u{9b}2J\u{85}", "\\u{9b}2J\\u{85}"),
            ("\x7f\0", "^?^@"),
            ("a\u{202e}b", "a\\u{202e}b"),
            ("ä 漢 🦀", "ä 漢 🦀"),
        ] {
            assert_eq!(clean(text), shown);
        }
    }

    #[test]
    fn json_means_the_same() {
        let value = serde_json::json!({ "a\u{9b}": "\x1b[2J\u{7f}\u{202e}\n" });
        let text = value.to_string();
        let cleaned = clean_json(&text);
        assert!(!cleaned.chars().any(obeyed), "{cleaned}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&cleaned).unwrap(), value);
    }

    #[test]
    fn colours_may_stay_where_they_are_wanted() {
        for (text, shown) in [
            ("\x1b[1;31mred", "\x1b[1;31mred\x1b[0m"),
            ("\x1b[38:2::1:2:3mx", "\x1b[38:2::1:2:3mx\x1b[0m"),
            ("\x1b[8mhidden", "^[[8mhidden"),
            ("\x1b[0;08mhidden", "^[[0;08mhidden"),
            ("\x1b[31", "^[[31"),
            ("\x1b[31K", "^[[31K"),
            ("\x1b[?25lx", "^[[?25lx"),
        ] {
            assert_eq!(clean_but_colours(text), shown);
        }
    }
}
