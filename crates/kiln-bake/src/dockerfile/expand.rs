//! Variables and quotes in a word of a Dockerfile, as BuildKit's frontend processes them
//! (`frontend/dockerfile/shell/lex.go`): `$v`, `${v}`, the operators `:- - :+ + :? ? # ## % %% / //`,
//! single and double quotes, and the escape character.

use super::pattern::Pattern;

/// So deep can `${a:-${b:-…}}` go.
const MAX_DEPTH: usize = 100;

/// So many bytes can the values in one word have together.
const MAX_VALUES: usize = 16 << 20;

/// Looks a variable up.
pub type Lookup<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// How words are processed.
#[derive(Debug, Clone, Copy)]
pub struct Lex {
    /// The escape character: `\` or a backquote.
    pub escape: char,
    /// Keep quotes in the result.
    pub raw_quotes: bool,
    /// Keep escape characters in the result.
    pub raw_escapes: bool,
    /// Quotes have no meaning.
    pub skip_quotes: bool,
    /// Leave unset variables as they were written.
    pub skip_unset: bool,
}

impl Lex {
    /// Quotes and escapes are removed, unset variables are empty.
    pub const fn new(escape: char) -> Self {
        Self {
            escape,
            raw_quotes: false,
            raw_escapes: false,
            skip_quotes: false,
            skip_unset: false,
        }
    }

    /// The word with variables replaced and quotes removed; spaces stay.
    ///
    /// # Errors
    /// Says what is wrong with the word.
    pub fn word(&self, word: &str, env: &Lookup<'_>) -> Result<String, String> {
        self.process(word, env, false).map(|(text, _)| text)
    }

    /// Like [`Lex::word`], but split at unquoted spaces after the replacement.
    ///
    /// # Errors
    /// Says what is wrong with the word.
    pub fn words(&self, word: &str, env: &Lookup<'_>) -> Result<Vec<String>, String> {
        self.process(word, env, true).map(|(_, words)| words)
    }

    fn process(
        &self,
        word: &str,
        env: &Lookup<'_>,
        split: bool,
    ) -> Result<(String, Vec<String>), String> {
        let mut scan = Scan {
            lex: self,
            env,
            text: word.chars().collect(),
            at: 0,
            raw: self.raw_escapes,
            split,
            depth: 0,
            values: 0,
        };
        scan.until(None, self.raw_escapes).map_err(|what| {
            let start: String = word.chars().take(80).collect();
            let dots = if start.len() < word.len() { "…" } else { "" };
            format!("failed to process \"{start}{dots}\": {what}")
        })
    }
}

/// Words under construction.
#[derive(Default)]
struct Words {
    wanted: bool,
    done: Vec<String>,
    word: String,
    inside: bool,
}

impl Words {
    fn split(&mut self, c: char) {
        if !self.wanted {
            return;
        }
        if !c.is_whitespace() {
            self.raw(c);
        } else if self.inside && !self.word.is_empty() {
            self.done.push(std::mem::take(&mut self.word));
            self.inside = false;
        }
    }

    fn split_all(&mut self, text: &str) {
        if self.wanted {
            text.chars().for_each(|c| self.split(c));
        }
    }

    fn raw(&mut self, c: char) {
        if self.wanted {
            self.word.push(c);
            self.inside = true;
        }
    }

    fn raw_str(&mut self, text: &str) {
        if self.wanted {
            self.word.push_str(text);
            self.inside = true;
        }
    }

    fn finish(mut self) -> Vec<String> {
        if !self.word.is_empty() {
            self.done.push(self.word);
        }
        self.done
    }
}

struct Scan<'a> {
    lex: &'a Lex,
    env: &'a Lookup<'a>,
    text: Vec<char>,
    at: usize,
    raw: bool,
    /// Whether words are asked for.
    split: bool,
    depth: usize,
    /// Bytes of values so far.
    values: usize,
}

impl Scan<'_> {
    fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek();
        self.at += usize::from(c.is_some());
        c
    }

    fn until(&mut self, stop: Option<char>, raw: bool) -> Result<(String, Vec<String>), String> {
        if self.depth == MAX_DEPTH {
            return Err(format!("it is nested more than {MAX_DEPTH} deep"));
        }
        self.depth += 1;
        let outer = std::mem::replace(&mut self.raw, raw);
        let result = self.until_inner(stop);
        self.raw = outer;
        self.depth -= 1;
        result
    }

    fn until_inner(&mut self, stop: Option<char>) -> Result<(String, Vec<String>), String> {
        let mut out = String::new();
        let mut words = Words { wanted: self.split && self.depth == 1, ..Words::default() };
        while let Some(c) = self.peek() {
            if stop == Some(c) {
                self.at += 1;
                return Ok((out, words.finish()));
            }
            match c {
                '$' => {
                    let value = self.dollar()?;
                    words.split_all(&value);
                    out.push_str(&value);
                }
                '<' => {
                    let text = self.possible_heredoc();
                    words.raw_str(&text);
                    out.push_str(&text);
                }
                '\'' | '"' if !self.lex.skip_quotes => {
                    let text = if c == '"' { self.double_quote()? } else { self.single_quote()? };
                    words.raw_str(&text);
                    out.push_str(&text);
                }
                c if c == self.lex.escape => {
                    self.at += 1;
                    if self.raw {
                        words.raw(c);
                        out.push(c);
                    }
                    let Some(escaped) = self.next() else { break };
                    words.raw(escaped);
                    out.push(escaped);
                }
                c => {
                    self.at += 1;
                    words.split(c);
                    out.push(c);
                }
            }
        }
        match stop {
            None => Ok((out, words.finish())),
            Some(stop) => Err(missing(stop)),
        }
    }

    /// Everything up to the next single quote, as it is.
    fn single_quote(&mut self) -> Result<String, String> {
        let mut out = String::new();
        self.quote(&mut out);
        loop {
            match self.peek() {
                None => return Err(unclosed("single")),
                Some('\'') => {
                    self.quote(&mut out);
                    return Ok(out);
                }
                Some(c) => out.push(c),
            }
            self.at += 1;
        }
    }

    /// Up to the next double quote; `$` keeps its meaning, and the escape character before `"`,
    /// `$` and itself.
    fn double_quote(&mut self) -> Result<String, String> {
        let mut out = String::new();
        self.quote(&mut out);
        loop {
            match self.peek() {
                None => return Err(unclosed("double")),
                Some('"') => {
                    self.quote(&mut out);
                    return Ok(out);
                }
                Some('$') => out.push_str(&self.dollar()?),
                Some(c) if c == self.lex.escape => {
                    self.at += 1;
                    if self.raw {
                        out.push(c);
                    }
                    match self.peek() {
                        None => {}
                        Some(next) if next == '"' || next == '$' || next == c => {
                            self.at += 1;
                            out.push(next);
                        }
                        Some(_) => out.push(c),
                    }
                }
                Some(c) => {
                    self.at += 1;
                    out.push(c);
                }
            }
        }
    }

    /// Consumes a quote.
    fn quote(&mut self, out: &mut String) {
        if let Some(c) = self.next()
            && self.lex.raw_quotes
        {
            out.push(c);
        }
    }

    /// Keeps blanks between `<<` and the delimiter of a here-document inside one word.
    fn possible_heredoc(&mut self) -> String {
        self.at += 1;
        if self.peek() != Some('<') {
            return "<".into();
        }
        self.at += 1;
        let mut out = String::from("<<");
        while let Some(c @ ('\t' | '\r' | ' ')) = self.peek() {
            self.at += 1;
            out.push(c);
        }
        out
    }

    fn dollar(&mut self) -> Result<String, String> {
        self.at += 1;
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".into());
            }
            return Ok(match self.value(&name)? {
                Some(value) => value,
                None if self.lex.skip_unset => format!("${name}"),
                None => String::new(),
            });
        }
        self.at += 1;
        match self.peek() {
            None => return Err(missing('}')),
            Some('{' | '}' | ':') => return Err("syntax error: bad substitution".into()),
            Some(_) => {}
        }
        let name = self.name();
        match self.next() {
            None => Err(missing('}')),
            Some('}') => Ok(match self.value(&name)? {
                Some(value) => value,
                None if self.lex.skip_unset => format!("${{{name}}}"),
                None => String::new(),
            }),
            Some(':') => match self.next() {
                Some(op @ ('#' | '%')) => Err(unsupported(true, op)),
                Some(op) => self.modified(&name, op, true),
                None => Err(missing('}')),
            },
            Some(op @ ('-' | '+' | '?' | '#' | '%')) => self.modified(&name, op, false),
            Some('/') => self.replaced(&name),
            Some(op) => Err(unsupported(false, op)),
        }
    }

    fn closing(&mut self, stop: char, raw: bool) -> Result<String, String> {
        self.until(Some(stop), raw).map(|(word, _)| word)
    }

    fn modified(&mut self, name: &str, op: char, null_is_unset: bool) -> Result<String, String> {
        let mut word = self.closing('}', matches!(op, '#' | '%'))?;
        let value = self.value(name)?;
        if self.lex.skip_unset && value.is_none() {
            let colon = if null_is_unset { ":" } else { "" };
            return Ok(format!("${{{name}{colon}{op}{word}}}"));
        }
        let absent = value.as_ref().is_none_or(|value| null_is_unset && value.is_empty());
        let unset = value.is_none();
        let value = value.unwrap_or_default();
        match op {
            '-' => Ok(if absent { word } else { value }),
            '+' => Ok(if absent { String::new() } else { word }),
            '?' if absent && !word.is_empty() => Err(format!("{name}: {word}")),
            '?' if unset => Err(format!("{name}: is not allowed to be unset")),
            '?' if absent => Err(format!("{name}: is not allowed to be empty")),
            '?' => Ok(value),
            '#' | '%' => {
                let greedy = word.starts_with(op);
                if greedy {
                    word.remove(0);
                }
                let pattern = Pattern::parse(&word)?;
                if op == '#' {
                    pattern.trim_prefix(&value, greedy)
                } else {
                    pattern.trim_suffix(&value, greedy)
                }
            }
            _ => Err(unsupported(null_is_unset, op)),
        }
    }

    fn replaced(&mut self, name: &str) -> Result<String, String> {
        let all = self.peek() == Some('/');
        self.at += usize::from(all);
        let pattern = self.closing('/', true)?;
        let replacement = self.closing('}', true)?;
        let value = self.value(name)?;
        if self.lex.skip_unset && value.is_none() {
            return Ok(format!("${{{name}/{pattern}/{replacement}}}"));
        }
        let pattern = Pattern::parse(&pattern)?;
        let limit = MAX_VALUES - self.values;
        let value = value.unwrap_or_default();
        let replaced = pattern.replace(&value, &replacement, all, limit)?;
        self.values += replaced.len().saturating_sub(value.len());
        Ok(replaced)
    }

    /// Looks a variable up, within the limit of what a word may become.
    fn value(&mut self, name: &str) -> Result<Option<String>, String> {
        let value = (self.env)(name);
        self.values += value.as_ref().map_or(0, String::len);
        if self.values > MAX_VALUES { Err("it expands to too much".into()) } else { Ok(value) }
    }

    /// A name, a number, or one of the shell's special parameters (which are never set).
    fn name(&mut self) -> String {
        let mut name = String::new();
        match self.peek() {
            Some(c) if c.is_numeric() => {
                while let Some(c) = self.peek().filter(|c| c.is_numeric()) {
                    self.at += 1;
                    name.push(c);
                }
            }
            Some(c) if "@*#?-$!".contains(c) => {
                self.at += 1;
                name.push(c);
            }
            _ => {
                while let Some(c) = self.peek().filter(|c| c.is_alphanumeric() || *c == '_') {
                    self.at += 1;
                    name.push(c);
                }
            }
        }
        name
    }
}

fn unclosed(quote: &str) -> String {
    format!("unexpected end of statement while looking for matching {quote}-quote")
}

fn missing(what: char) -> String {
    format!("syntax error: missing '{what}'")
}

fn unsupported(colon: bool, op: char) -> String {
    let colon = if colon { ":" } else { "" };
    format!("unsupported modifier ({colon}{op}) in substitution")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        let value = match name {
            "PWD" => "/home",
            "SHELL" => "bash",
            "NULL" | "BAR" => "",
            "KOREAN" => "한국어",
            "FOO" => "xxyy",
            "X" => "x",
            "STARS" => "xx**",
            "REGEX" => "()[]{}^$.*?|\\x",
            "QUEST" => "???y",
            "MIX" => "a***yy*",
            "GLOB" => "/foo*/*/*.txt",
            "NEEDLE" => "\\*/",
            "URL" => "http://google.de",
            "HTTP" => "http://",
            "HTTPS" => "https://",
            "TMP" => "/tmp/foo.txt",
            "VERSION" => "v1.2.3",
            "space" => "abc  def",
            "leading" => "  ab c",
            "trailing" => "ab c   ",
            _ => return None,
        };
        Some(value.into())
    }

    /// Vectors of BuildKit's `envVarTest` and `lex_test.go`; `None` is an error.
    #[test]
    fn words_expand_as_in_buildkit() {
        let table: &[(&str, Option<&str>)] = &[
            ("hello", Some("hello")),
            ("he'll'o", Some("hello")),
            ("he'llo", None),
            ("he\\'llo", Some("he'llo")),
            ("he\\\\'llo", None),
            ("abc\\tdef", Some("abctdef")),
            ("\"abc\\tdef\"", Some("abc\\tdef")),
            ("\"abc\\\\tdef\"", Some("abc\\tdef")),
            ("'abc\\tdef'", Some("abc\\tdef")),
            ("hello\\", Some("hello")),
            ("hello\\\\", Some("hello\\")),
            ("\"hello", None),
            ("\"hello\\\"", None),
            ("\"hel'lo\"", Some("hel'lo")),
            ("'hello\\'", Some("hello\\")),
            ("'hello\\there'", Some("hello\\there")),
            ("\"''\"", Some("''")),
            ("$.", Some("$.")),
            ("he$1x", Some("hex")),
            ("he$.x", Some("he$.x")),
            ("he$pwd.", Some("he.")),
            ("he$PWD", Some("he/home")),
            ("he\\$PWD", Some("he$PWD")),
            ("he\\\\$PWD", Some("he\\/home")),
            ("\"he\\$PWD\"", Some("he$PWD")),
            ("\"he\\\\$PWD\"", Some("he\\/home")),
            ("\\${}", Some("${}")),
            ("he\\${}xx", Some("he${}xx")),
            ("${}", None),
            ("he${}xx", None),
            ("he${hi}xx", Some("hexx")),
            ("he${.}", None),
            ("he${XXX:-000}xx", Some("he000xx")),
            ("he${PWD:-000}xx", Some("he/homexx")),
            ("he${XXX:-${PWD:-yyy}}xx", Some("he/homexx")),
            ("he${XXX:-${YYY:-yyy}}xx", Some("heyyyxx")),
            ("he${XXX:YYY}", None),
            ("he${XXX?}", None),
            ("he${XXX:?}", None),
            ("he${PWD:?}", Some("he/home")),
            ("he${NULL?}", Some("he")),
            ("he${NULL:?}", None),
            ("he${XXX:+${PWD}}xx", Some("hexx")),
            ("he${PWD:+${SHELL}}xx", Some("hebashxx")),
            ("he${NULL+000}xx", Some("he000xx")),
            ("he${NULL:+000}xx", Some("hexx")),
            ("he${NULL-000}xx", Some("hexx")),
            ("'he${XX}'", Some("he${XX}")),
            ("\"he'$PWD'\"", Some("he'/home'")),
            ("'\"hello\"'", Some("\"hello\"")),
            ("he${PWD", None),
            ("he${PWD:=000}xx", None),
            ("he${PWD=000}xx", None),
            ("he${PWD:+${PWD}:}xx", Some("he/home:xx")),
            ("he${XXX:-\\$PWD:}xx", Some("he$PWD:xx")),
            ("he${XXX:-\\${PWD}z}xx", Some("he${PWDz}xx")),
            ("안'녕'하세요", Some("안녕하세요")),
            ("안녕\\t하세요", Some("안녕t하세요")),
            ("안녕$KOREAN", Some("안녕한국어")),
            ("${{aaa}", None),
            ("${aaa}}", Some("}")),
            ("${aaa:-bbb}}", Some("bbb}")),
            ("${aaa:-bbb {foo}", Some("bbb {foo")),
            ("${:-bbb}", None),
            ("${1:-bbb}", Some("bbb")),
            ("$999aaa", Some("aaa")),
            ("$001aaa", Some("aaa")),
            ("$@@@", Some("@@")),
            ("${@:-bbb}aaa", Some("bbbaaa")),
            ("${$}", Some("")),
            ("${REGEX#()[]{\\}^$.\\*\\?|\\\\}", Some("x")),
            ("${STARS%%\\**}", Some("xx")),
            ("${FOO#*x*y}", Some("y")),
            ("${FOO#*}", Some("xxyy")),
            ("${FOO#$X}", Some("xyy")),
            ("${FOO#$BAR}", Some("xxyy")),
            ("${FOO##*x}", Some("yy")),
            ("${FOO##}", Some("xxyy")),
            ("${FOO%y*}", Some("xxy")),
            ("${FOO%%y*}", Some("xx")),
            ("${QUEST#?\\?}", Some("?y")),
            ("${MIX%%\\**\\*}", Some("a")),
            ("${ABC:-.}${FOO%x}${ABC:-.}", Some(".xxyy.")),
            ("${FOO:#}", None),
            ("${FOO:%%}", None),
            ("${GLOB/$NEEDLE/.} - ${GLOB//$NEEDLE/.}", Some("/foo.*/*.txt - /foo..*.txt")),
            ("${URL/$HTTP/$HTTPS}", Some("https://google.de")),
            ("${TMP//\\//\\/}", Some("\\/tmp\\/foo.txt")),
            ("${FOO/$BAR/ww}", Some("wwxxyy")),
            ("${FOO//ww}", None),
            ("${FOO//}", None),
            ("${FOO///}", Some("xxyy")),
            ("a-${VERSION}.${OS:+-${OS}}", Some("a-v1.2.3.")),
        ];
        for (word, expected) in table {
            let found = Lex::new('\\').word(word, &env);
            assert_eq!(found.as_deref().ok(), *expected, "{word}: {found:?}");
        }
    }

    #[test]
    fn words_split_after_expansion() {
        let table: &[(&str, Option<&[&str]>)] = &[
            ("hello${space}bye", Some(&["helloabc", "defbye"])),
            ("hello\"${space}\"bye", Some(&["helloabc  defbye"])),
            ("hello \"${space}\"bye", Some(&["hello", "abc  defbye"])),
            ("hello${leading}def", Some(&["hello", "ab", "cdef"])),
            ("hello\"${leading}\" def", Some(&["hello  ab c", "def"])),
            ("hello${trailing}d", Some(&["helloab", "c", "d"])),
            ("hel\"lo${trailing}\"", Some(&["helloab c   "])),
            ("hello there     ", Some(&["hello", "there"])),
            ("hello\\ there", Some(&["hello there"])),
            ("hello\" there", None),
            ("hello\\\" there", Some(&["hello\"", "there"])),
            ("ab${none:-c}", Some(&["abc"])),
            ("cat << EOF > x", Some(&["cat", "<< EOF", ">", "x"])),
        ];
        for (word, expected) in table {
            let found = Lex::new('\\').words(word, &env).ok();
            let expected = expected.map(|words| words.iter().map(|w| (*w).to_owned()).collect());
            assert_eq!(found, expected, "{word}");
        }
    }

    #[test]
    fn the_escape_character_can_be_a_backquote() {
        assert_eq!(Lex::new('`').word("C:\\`$PWD", &env).unwrap(), "C:\\$PWD");
    }

    #[test]
    fn what_is_unset_can_be_left() {
        let lex = Lex { skip_unset: true, ..Lex::new('\\') };
        for text in ["$x ${x} ${x:-a} ${x+b}", "${x#p} ${x%%p}", "${x/a/b}", "${x:0:3} ${x:=y}"] {
            assert_eq!(lex.word(text, &env).as_deref(), Ok(text));
        }
        assert!(lex.word("${x=y}", &env).is_err());
        assert!(lex.word("${PWD:=y}", &env).is_err());
    }

    #[test]
    fn bombs_are_refused() {
        let deep = |levels: usize| format!("{}{}", "${a:-".repeat(levels), "}".repeat(levels));
        assert_eq!(Lex::new('\\').word(&deep(90), &env).unwrap(), "");
        for levels in [100, 10_000] {
            let error = Lex::new('\\').word(&deep(levels), &env).unwrap_err();
            assert!(error.len() < 200 && error.ends_with("nested more than 100 deep"), "{error}");
        }
        let big = |_: &str| Some("x".repeat(1 << 20));
        assert!(Lex::new('\\').word(&"$a".repeat(16), &big).is_ok());
        for text in
            ["$a".repeat(17), "\"$a\"".repeat(17), "${a/x/$a$a$a$a$a$a$a$a$a$a$a$a$a$a$a$a}".into()]
        {
            let error = Lex::new('\\').word(&text, &big).unwrap_err();
            assert!(error.ends_with("it expands to too much"), "{error}");
        }
    }

    #[test]
    fn quotes_can_be_kept() {
        let lex = Lex { skip_quotes: true, ..Lex::new('\\') };
        assert_eq!(lex.word("say \"$PWD\" 'it'", &env).unwrap(), "say \"/home\" 'it'");
    }
}
