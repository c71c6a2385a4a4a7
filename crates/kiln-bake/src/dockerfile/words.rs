//! Splitting a logical line: its name, its flags, JSON arrays, words, `NAME=value`.
//! Follows `split_command.go` and `line_parsers.go` of BuildKit.

use super::Mistake;

/// What separates words.
const BLANKS: [char; 5] = [' ', '\t', '\u{b}', '\u{c}', '\r'];

/// The instruction's name and the rest of the line.
pub(super) fn split_name(line: &str) -> (&str, &str) {
    let line = line.trim();
    match line.find(BLANKS) {
        Some(at) => (&line[..at], line[at..].trim_start()),
        None => (line, ""),
    }
}

/// Takes the leading `--flags` off: the flags with quotes and escapes removed, and the rest.
pub(super) fn flags(rest: &str, escape: char) -> (Vec<String>, &str) {
    let mut flags = Vec::new();
    let mut rest = rest.trim_start();
    while rest.starts_with("--") {
        let (word, end) = flag_word(rest, escape);
        rest = rest[end..].trim_start();
        if word == "--" {
            break;
        }
        flags.push(word);
    }
    (flags, rest.trim_end())
}

fn flag_word(text: &str, escape: char) -> (String, usize) {
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (None, c) if c.is_whitespace() => return (word, at),
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            (_, c) if c == escape => {
                if let Some((_, c)) = chars.next() {
                    word.push(c);
                }
            }
            (_, c) => word.push(c),
        }
    }
    (word, text.len())
}

/// A JSON array of strings. `None`: not a JSON array, so it is the shell form.
pub(super) fn json(rest: &str) -> Option<Result<Vec<String>, Mistake>> {
    if !rest.starts_with('[') {
        return None;
    }
    let values: Vec<serde_json::Value> = serde_json::from_str(rest).ok()?;
    let strings = values.into_iter().map(|value| match value {
        serde_json::Value::String(text) => Ok(text),
        other => Err(Mistake::new(format!("`{other}` in the JSON array is not a string"))
            .hint("put every element in double quotes")),
    });
    Some(strings.collect())
}

/// Words at blanks, without any meaning of quotes.
pub(super) fn blanks(rest: &str) -> Vec<String> {
    let parts = rest.split(BLANKS).filter(|part| !part.is_empty());
    parts.map(str::to_owned).collect()
}

/// Words at blanks outside quotes; quotes and escapes stay, they are removed when expanded.
pub(super) fn quoted(rest: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut blank_ok = false;
    let mut quote: Option<char> = None;
    let mut chars = rest.chars().peekable();
    while let Some(c) = chars.next() {
        if quote.is_none() && c.is_whitespace() {
            if blank_ok || !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
            blank_ok = false;
            continue;
        }
        match quote {
            None if c == '\'' || c == '"' => {
                quote = Some(c);
                blank_ok = true;
            }
            Some(open) if open == c => quote = None,
            _ => {}
        }
        if c == escape && quote != Some('\'') {
            // At the end of the line it means nothing; else the next character goes with it.
            if let Some(next) = chars.next() {
                word.push(c);
                word.push(next);
            }
            continue;
        }
        word.push(c);
    }
    if blank_ok || !word.is_empty() {
        words.push(word);
    }
    words
}

/// `NAME=value …`, or the old form `NAME value to the end of the line`.
pub(super) fn pairs(
    rest: &str,
    escape: char,
    instruction: &str,
) -> Result<Vec<(String, String)>, Mistake> {
    let words = quoted(rest, escape);
    let Some(first) = words.first() else {
        return Err(Mistake::new(format!("{instruction} requires at least one argument"))
            .hint(format!("write `{instruction} NAME=value`")));
    };
    if !first.contains('=') {
        let (name, value) = split_name(rest);
        if value.is_empty() {
            return Err(Mistake::new(format!("{instruction} must have two arguments"))
                .hint(format!("write `{instruction} {name}=value`")));
        }
        return Ok(vec![(name.to_owned(), value.to_owned())]);
    }
    let pair = |word: &String| match word.split_once('=') {
        None => {
            let what = format!(
                "Syntax error - can't find = in \"{word}\". Must be of the form: name=value"
            );
            Err(Mistake::new(what).hint("put values with blanks in quotes"))
        }
        Some(("", _)) => Err(Mistake::new(format!("{instruction} names can not be blank"))),
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
    };
    words.iter().map(pair).collect()
}
