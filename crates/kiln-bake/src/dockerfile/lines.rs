//! Logical lines: parser directives, comments, continuations, here-documents.
//! Follows `frontend/dockerfile/parser/parser.go` of BuildKit.

use super::expand::Lex;
use super::{Heredoc, Mistake, SyntaxError, words};

/// A whole file as logical lines.
pub(super) struct Lines {
    pub(super) escape: char,
    pub(super) lines: Vec<Line>,
    /// Number of physical lines.
    pub(super) last: usize,
}

/// An instruction with all that belongs to it.
#[derive(Debug, Clone)]
pub(super) struct Line {
    /// One-based physical line at which it begins.
    pub(super) line: usize,
    /// Continuations joined, outer blanks removed.
    pub(super) text: String,
    pub(super) heredocs: Vec<Heredoc>,
}

/// Bytes that a line may have, as in BuildKit.
const MAX_LINE: usize = 65_535;

pub(super) fn read(text: &str) -> Result<Lines, SyntaxError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    check_syntax(text)?;
    let physical: Vec<&str> = text.split_inclusive('\n').collect();
    let long = |line: &&str| line.trim_end_matches('\n').len() > MAX_LINE;
    if let Some(at) = physical.iter().position(long) {
        let what = format!("dockerfile line greater than max allowed size of {MAX_LINE}");
        return Err(Mistake::new(what).hint("break it with continuations").at(at + 1));
    }
    let mut directives = Directives::default();
    let mut escape = '\\';
    let mut lines = Vec::new();
    let mut at = 0;
    while at < physical.len() {
        let number = at + 1;
        let first = trim_newline(physical[at]).trim_start();
        if let Some(found) = directives.read(first).map_err(|mistake| mistake.at(number))? {
            escape = found;
        }
        at += 1;
        if first.is_empty() || first.starts_with('#') {
            continue;
        }
        let mut line = String::new();
        let mut more = push_continued(&mut line, first, escape);
        while more && at < physical.len() {
            let next = trim_newline(physical[at]);
            at += 1;
            let content = next.trim_start();
            if !content.is_empty() && !content.starts_with('#') {
                more = push_continued(&mut line, next, escape);
            }
        }
        let line = line.trim().to_owned();
        let mut heredocs = Vec::new();
        if takes_heredocs(&line, escape) {
            for mut heredoc in heredocs_of(&line).map_err(|what| Mistake::from(what).at(number))? {
                at = read_heredoc(&mut heredoc, &physical, at, number)?;
                heredocs.push(heredoc);
            }
        }
        lines.push(Line { line: number, text: line, heredocs });
    }
    Ok(Lines { escape, lines, last: physical.len() })
}

/// Appends a physical line and says whether it continues on the next one: it ends in an escape
/// character that is not itself escaped, blanks after it do not count.
fn push_continued(line: &mut String, physical: &str, escape: char) -> bool {
    let head = physical.trim_end_matches([' ', '\t']);
    match head.strip_suffix(escape) {
        Some(rest) if !rest.ends_with(escape) => {
            line.push_str(rest);
            true
        }
        _ => {
            line.push_str(physical);
            false
        }
    }
}

fn trim_newline(line: &str) -> &str {
    line.trim_end_matches(['\r', '\n'])
}

/// `# name=value` lines at the head of the file.
#[derive(Default)]
struct Directives {
    seen: Vec<&'static str>,
    done: bool,
}

impl Directives {
    /// Reads one line; returns a new escape character if it sets one. `syntax` and `check` are
    /// known and have no effect here; the first line of any other kind ends the directives.
    fn read(&mut self, line: &str) -> Result<Option<char>, Mistake> {
        let pair = match line.strip_prefix('#') {
            Some(rest) => self.pair(rest),
            None => {
                self.done = true;
                None
            }
        };
        let Some((name, value)) = pair else { return Ok(None) };
        if self.seen.contains(&name) {
            let what = format!("only one {name} parser directive can be used");
            return Err(Mistake::new(what).hint("remove one of them"));
        }
        self.seen.push(name);
        match (name, value) {
            ("escape", "\\") => Ok(Some('\\')),
            ("escape", "`") => Ok(Some('`')),
            ("escape", other) => {
                let what = format!("invalid escape token '{other}' does not match ` or \\");
                Err(Mistake::new(what).hint("use `\\` or a backquote"))
            }
            _ => Ok(None),
        }
    }

    /// The directive in what follows the comment sign.
    fn pair<'a>(&mut self, line: &'a str) -> Option<(&'static str, &'a str)> {
        if self.done {
            return None;
        }
        self.done = true;
        let (name, value) = line.split_once('=')?;
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
        let known = ["syntax", "escape", "check"].into_iter().find(|known| *known == name)?;
        self.done = value.is_empty();
        (!value.is_empty()).then_some((known, value))
    }
}

/// The reference frontends speak the language that is read here; others speak their own. The
/// directive is looked for as BuildKit's clients do: also behind a `#!`, also after `//`.
fn check_syntax(text: &str) -> Result<(), SyntaxError> {
    let mut lines = text.lines().enumerate().peekable();
    lines.next_if(|(_, line)| line.starts_with("#!"));
    let rest: Vec<(usize, &str)> =
        lines.take_while(|(_, line)| line.starts_with('#') || line.starts_with("//")).collect();
    for comment in ["#", "//"] {
        let mut directives = Directives::default();
        for (at, line) in &rest {
            let Some(line) = line.strip_prefix(comment) else { break };
            match directives.pair(line) {
                Some(("syntax", value)) => {
                    return known_syntax(value).map_err(|mistake| mistake.at(at + 1));
                }
                Some(_) => {}
                None => break,
            }
        }
    }
    Ok(())
}

/// The official frontend, wherever it is taken from: mirrors keep the end of its name, or rename it
/// and keep its tags.
fn known_syntax(value: &str) -> Result<(), Mistake> {
    let (name, digest) = value.split([' ', '\t']).next().map_or((value, None), |word| {
        word.split_once('@').map_or((word, None), |(name, digest)| (name, Some(digest)))
    });
    let (name, tag) = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (name, None),
    };
    let mut parts = name.rsplit('/');
    let frontend = matches!(parts.next(), Some("dockerfile" | "dockerfile-upstream"));
    let official = parts.next() == Some("docker");
    let released = match tag {
        Some(tag) => is_released(tag),
        None => digest.is_none(),
    };
    if frontend && (official || name.contains('/') && released) {
        return Ok(());
    }
    Err(Mistake::new(format!("`syntax={value}` asks for another frontend, which is not supported"))
        .hint("remove the line, or use `docker/dockerfile:1`"))
}

/// Whether the official frontend is tagged so: `1`, `1.7.0-labs`, `latest` …
fn is_released(tag: &str) -> bool {
    let tag =
        ["-labs", "-experimental"].iter().find_map(|end| tag.strip_suffix(end)).unwrap_or(tag);
    let numbers = tag.split('.').count() <= 3
        && tag.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
    numbers || matches!(tag, "latest" | "labs" | "experimental" | "master")
}

/// COPY, ADD and RUN take here-documents, in their shell form only; so do triggers of them.
fn takes_heredocs(line: &str, escape: char) -> bool {
    let (mut name, mut rest) = words::split_name(line);
    if name.eq_ignore_ascii_case("ONBUILD") {
        (name, rest) = words::split_name(rest);
    }
    let takes = ["COPY", "ADD", "RUN"].iter().any(|known| known.eq_ignore_ascii_case(name));
    takes && line.contains("<<") && words::json(words::flags(rest, escape).1).is_none()
}

fn heredocs_of(line: &str) -> Result<Vec<Heredoc>, String> {
    // An unclosed quote in a shell command is the shell's business: then there are none.
    let lex = Lex { raw_quotes: true, raw_escapes: true, skip_unset: true, ..Lex::new('\\') };
    let words = lex.words(line, &|_| None).unwrap_or_default();
    words.iter().filter_map(|word| heredoc_word(word).transpose()).collect()
}

/// Reads `<<EOF`, `<<-'EOF'`, `3<<EOF` …; `None` if the word is no here-document.
pub(super) fn heredoc_word(word: &str) -> Result<Option<Heredoc>, String> {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit());
    let Some(rest) = rest.strip_prefix("<<") else { return Ok(None) };
    let (chomp, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let rest = rest.trim_start();
    if rest.is_empty() || rest.contains('<') {
        return Ok(None);
    }
    // Read with and without its quotes: if they differ in quotes, part of the word is quoted.
    let lex = Lex { skip_unset: true, ..Lex::new('\\') };
    let plain = lex.words(rest, &|_| None)?;
    let raw = Lex { raw_quotes: true, ..lex }.words(rest, &|_| None)?;
    let ([plain], [raw]) = (plain.as_slice(), raw.as_slice()) else { return Ok(None) };
    let quotes = |text: &str| text.matches(['\'', '"']).count();
    let expand = quotes(plain) == quotes(raw);
    Ok(Some(Heredoc { name: plain.clone(), expand, chomp, content: String::new() }))
}

fn read_heredoc(
    heredoc: &mut Heredoc,
    physical: &[&str],
    mut at: usize,
    number: usize,
) -> Result<usize, SyntaxError> {
    while let Some(line) = physical.get(at) {
        at += 1;
        let bare = trim_newline(line);
        let bare = if heredoc.chomp { bare.trim_start_matches('\t') } else { bare };
        if bare == heredoc.name {
            return Ok(at);
        }
        heredoc.content.push_str(line);
    }
    let name = &heredoc.name;
    Err(Mistake::new(format!("unterminated heredoc: `<<{name}` is not closed"))
        .hint(format!("end it with a line that is just `{name}`"))
        .at(number))
}
