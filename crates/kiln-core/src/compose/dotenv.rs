//! `.env` and `env_file`: `NAME=value` lines as Compose reads them.

use std::collections::BTreeMap;

use super::interpolate::Variables;

/// What a file of variables holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct EnvFile {
    /// Values by name; the last of equal names wins.
    pub(super) values: BTreeMap<String, String>,
    /// Variables that its values use and nobody sets, with the line.
    pub(super) unset: Vec<(u32, String)>,
}

/// Why a line cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadLine {
    pub(super) line: u32,
    pub(super) what: String,
    pub(super) hint: String,
}

type Lookup<'l> = &'l dyn Fn(&str) -> Option<String>;

/// Reads `text`. Names without a value take the value that `lookup` knows, or are left out.
/// Variables in values are looked up by `lookup` first, then among the lines above, then among
/// `before`, which earlier files gave.
///
/// # Errors
/// The first line that has no valid name or an open quote.
pub(super) fn parse(
    text: &str,
    lookup: Lookup<'_>,
    before: &BTreeMap<String, String>,
) -> Result<EnvFile, BadLine> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = Reader { rest: text, line: 1, lookup, before, file: EnvFile::default() };
    while reader.skip_to_statement() {
        reader.statement()?;
    }
    Ok(reader.file)
}

/// Reads the `raw` format: everything after `=` up to the end of the line is the value.
///
/// # Errors
/// The first line without a valid name.
pub(super) fn parse_raw(text: &str, lookup: Lookup<'_>) -> Result<EnvFile, BadLine> {
    let mut file = EnvFile::default();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (line, text) in (1..).zip(text.lines()) {
        let text = text.trim_start_matches([' ', '\t']);
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(no_name(name, line));
        }
        let name = name.to_owned();
        if let Some(value) = value.or_else(|| lookup(&name)) {
            file.values.insert(name, value);
        }
    }
    Ok(file)
}

struct Reader<'t, 'l> {
    rest: &'t str,
    line: u32,
    lookup: Lookup<'l>,
    before: &'l BTreeMap<String, String>,
    file: EnvFile,
}

impl<'t> Reader<'t, '_> {
    fn advance(&mut self, length: usize) -> &'t str {
        let (taken, rest) = self.rest.split_at(length);
        let breaks = taken.bytes().filter(|byte| *byte == b'\n').count();
        self.line += u32::try_from(breaks).unwrap_or(u32::MAX);
        self.rest = rest;
        taken
    }

    /// The text up to the end of the line, which is consumed with its break.
    fn rest_of_line(&mut self) -> &'t str {
        let end = self.rest.find('\n').map_or(self.rest.len(), |at| at + 1);
        self.advance(end).trim_end_matches(['\n', '\r'])
    }

    fn skip_to_statement(&mut self) -> bool {
        loop {
            let blank = self.rest.len() - self.rest.trim_start().len();
            self.advance(blank);
            if !self.rest.starts_with('#') {
                return !self.rest.is_empty();
            }
            self.rest_of_line();
        }
    }

    fn statement(&mut self) -> Result<(), BadLine> {
        let line = self.line;
        if let Some(after) = self.rest.strip_prefix("export") {
            let blank = after.len() - after.trim_start_matches([' ', '\t']).len();
            if blank > 0 {
                self.advance("export".len() + blank);
            }
        }
        let end = self.rest.find(['=', ':', '\n']).unwrap_or(self.rest.len());
        let name = self.advance(end).trim();
        let name = checked_name(name.split(" #").next().unwrap_or(name).trim(), line)?;
        if self.rest.is_empty() || self.rest.starts_with('\n') {
            if let Some(value) = (self.lookup)(&name) {
                self.file.values.insert(name, value);
            }
            return Ok(());
        }
        self.advance(1);
        let blank = self.rest.len() - self.rest.trim_start_matches([' ', '\t']).len();
        self.advance(blank);
        let value = match self.rest.chars().next() {
            Some(quote @ ('"' | '\'')) => self.quoted(quote, line)?,
            _ => {
                let text = self.rest_of_line();
                let text = text.split(" #").next().unwrap_or(text).trim_end();
                self.expand(text, line)?
            }
        };
        self.file.values.insert(name, value);
        Ok(())
    }

    fn quoted(&mut self, quote: char, line: u32) -> Result<String, BadLine> {
        self.advance(1);
        let mut escaped = false;
        let end = self.rest.char_indices().find_map(|(at, letter)| {
            let closes = letter == quote && !escaped;
            escaped = letter == '\\' && !escaped;
            closes.then_some(at)
        });
        let Some(end) = end else {
            return Err(BadLine {
                line,
                what: format!("the quote {quote} is never closed"),
                hint: format!(
                    "close it, or write the value without quotes; inside, write \\{quote}"
                ),
            });
        };
        let inner = self.advance(end);
        // What follows the quote is read as if it stood on a line of its own, as Compose does.
        self.advance(1);
        if quote == '\'' {
            return Ok(inner.replace("\\'", "'"));
        }
        self.expand(&unescape(inner), line)
    }

    fn expand(&mut self, text: &str, line: u32) -> Result<String, BadLine> {
        let (values, before) = (&self.file.values, self.before);
        let given = |name: &str| values.get(name).or_else(|| before.get(name)).cloned();
        let lookup = |name: &str| (self.lookup)(name).or_else(|| given(name));
        let mut variables = Variables::new(&lookup);
        let expanded = variables.interpolate(text).map_err(|refusal| BadLine {
            line,
            what: refusal.what,
            hint: refusal.hint,
        })?;
        let unset = std::mem::take(&mut variables.unset);
        self.file.unset.extend(unset.into_iter().map(|name| (line, name)));
        Ok(expanded.unwrap_or_else(|| text.to_owned()))
    }
}

/// Escapes of double quotes. `\$` becomes `$$`, which the interpolation then turns into `$`.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        rest = after;
        // `\0` and three octal digits.
        let octal = rest.strip_prefix('0').and_then(|digits| digits.get(..3));
        if let Some(code) = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            out.push(char::from(code));
            rest = &rest[4..];
            continue;
        }
        let mut letters = rest.chars();
        match letters.next() {
            Some('a') => out.push('\u{7}'),
            Some('b') => out.push('\u{8}'),
            Some('f') => out.push('\u{c}'),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('t') => out.push('\t'),
            Some('v') => out.push('\u{b}'),
            Some('$') => out.push_str("$$"),
            Some(other @ ('"' | '\'' | '\\')) => out.push(other),
            Some(other) => out.extend(['\\', other]),
            None => out.push('\\'),
        }
        rest = letters.as_str();
    }
    out.push_str(rest);
    out
}

fn checked_name(name: &str, line: u32) -> Result<String, BadLine> {
    let valid =
        |letter: char| letter.is_alphanumeric() || matches!(letter, '_' | '.' | '-' | '[' | ']');
    if !name.is_empty() && name.chars().all(valid) {
        return Ok(name.to_owned());
    }
    Err(no_name(name, line))
}

fn no_name(name: &str, line: u32) -> BadLine {
    BadLine {
        line,
        what: format!("`{name}` is no variable's name"),
        hint: "each line is NAME=value, with letters, digits, `_`, `.` and `-` in the name".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<String> {
        (name == "HOST").then(|| "host".to_owned())
    }

    #[test]
    fn lines() {
        for (text, name, expected) in [
            ("A=b", "A", "b"),
            ("  A = b  ", "A", "b"),
            ("export A=b\n", "A", "b"),
            ("exported=b\n", "exported", "b"),
            ("A: b\n", "A", "b"),
            ("A=b # comment\n", "A", "b"),
            ("A=b#no comment\n", "A", "b#no comment"),
            ("A=#b\n", "A", "#b"),
            ("A= # comment\n", "A", "# comment"),
            ("A='x' y\n", "A", "x"),
            ("A=\"x\"B=2\n", "B", "2"),
            ("A[0]=x\n", "A[0]", "x"),
            ("A=\"\\0101\\101\"\n", "A", "A\\101"),
            ("A=\nB=c\n", "A", ""),
            ("A=x=y\n", "A", "x=y"),
            ("A=http://x:1/y\n", "A", "http://x:1/y"),
            ("A='$HOST #x' # c\n", "A", "$HOST #x"),
            ("A='it\\'s'\n", "A", "it's"),
            ("A=\"$HOST #x\"\n", "A", "host #x"),
            ("A=\"a\\nb\\t\\\"c\\\" \\$HOST \\\\\"\n", "A", "a\nb\t\"c\" $HOST \\"),
            ("A=\"one\ntwo\"\nB=3\n", "A", "one\ntwo"),
            ("A=$HOST-${NO:-d}\n", "A", "host-d"),
            ("X=1\nA=${X}2\n", "A", "12"),
            ("HOST=mine\nA=$HOST\n", "A", "host"),
            ("A=1\nA=2\n", "A", "2"),
            ("HOST\n", "HOST", "host"),
            ("\u{feff}A=1\r\nB=2\r\n", "A", "1"),
            ("# c\n\n  # d\nA=1", "A", "1"),
            ("A=C:\\dir\n", "A", "C:\\dir"),
        ] {
            let file = parse(text, &lookup, &BTreeMap::new()).unwrap();
            assert_eq!(file.values.get(name).map(String::as_str), Some(expected), "{text:?}");
        }
        assert_eq!(parse("NOTHERE\n", &lookup, &BTreeMap::new()).unwrap().values.len(), 0);
        let file = parse("A=1\nB=$MISSING\n", &lookup, &BTreeMap::new()).unwrap();
        assert_eq!(file.unset, [(2, "MISSING".to_owned())]);
    }

    #[test]
    fn raw_takes_everything() {
        let file = parse_raw("A='$HOST' # x\n#c\nHOST\nNO\n", &lookup).unwrap();
        assert_eq!(file.values["A"], "'$HOST' # x");
        assert_eq!(file.values["HOST"], "host");
        assert_eq!(file.values.len(), 2);
    }

    #[test]
    fn bad_lines_are_named() {
        for (text, line, what) in [
            ("A=1\nnot a name=2\n", 2, "`not a name`"),
            ("\n\n=x\n", 3, "`` is no variable's name"),
            ("A=\"open\nB=2\n", 1, "never closed"),
            ("A=\"1\n2\"\nB=${\n", 3, "has no `}`"),
            ("A=${X:?need it}\n", 1, "`X` must be set: need it"),
        ] {
            let bad = parse(text, &lookup, &BTreeMap::new()).unwrap_err();
            assert_eq!(bad.line, line, "{text:?}");
            assert!(bad.what.contains(what), "{text:?}: {}", bad.what);
        }
    }
}
