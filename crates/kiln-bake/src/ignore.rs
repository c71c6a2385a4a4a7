//! `.dockerignore`: which paths of a context are left out. Semantics of moby's `patternmatcher`
//! and `ignorefile`: patterns apply in order, `!` takes back, `**` matches any number of
//! directories, and what matches a directory matches all below it.

use std::path::Path;

use kiln_store::regular::{self, Links};

use crate::error::BakeError;
use crate::{glob, paths};

/// The patterns of one ignore file, in order.
#[derive(Debug, Clone, Default)]
pub struct Ignore {
    patterns: Vec<Pattern>,
    has_exceptions: bool,
}

#[derive(Debug, Clone)]
struct Pattern {
    exception: bool,
    /// Cleaned, relative, slashes.
    text: String,
    tokens: Vec<Token>,
    /// No token but literals: compared as a whole.
    literal: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    One(char),
    /// `?`
    Any,
    /// `*`
    Star,
    /// `**/` before more: nothing, or anything that ends in `/`
    Dirs,
    /// `**` at the end: everything
    Rest,
    /// `[a-z]`, from this index on in the pattern's characters
    Class(Vec<char>),
}

/// Bytes that a line may have, as in moby.
const MAX_LINE: usize = 65_535;

/// Which patterns matched a directory; what lies below it needs it.
pub type Matched = Vec<bool>;

/// Bytes of an ignore file.
const MAX_TEXT: u64 = 16 << 20;

impl Ignore {
    /// Reads the ignore file of a build: `DOCKERFILE.dockerignore` beside the Dockerfile, else
    /// `.dockerignore` in the context. Git's own folders are left out whatever it says first.
    ///
    /// # Errors
    /// The file cannot be read or has a broken pattern.
    pub fn load(context: &Path, dockerfile: Option<&Path>) -> Result<Self, BakeError> {
        let own = dockerfile.map(|file| {
            let mut name = file.as_os_str().to_owned();
            name.push(".dockerignore");
            std::path::PathBuf::from(name)
        });
        for file in own.into_iter().chain([context.join(".dockerignore")]) {
            match regular::read(&file, Links::Follow, MAX_TEXT) {
                Ok(bytes) => {
                    let mut ignore = Self::parse(&String::from_utf8_lossy(&bytes), &file)?;
                    ignore.leave_git_out();
                    return Ok(ignore);
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(BakeError::io("cannot read", file, error)),
            }
        }
        let mut ignore = Self::default();
        ignore.leave_git_out();
        Ok(ignore)
    }

    /// `.git` tells how a checkout was made, which must not count: a clone, a linked working tree
    /// and an archive of one commit are the same source. `!.git` takes it back.
    fn leave_git_out(&mut self) {
        let text = "**/.git".to_owned();
        let pattern = Pattern { exception: false, tokens: tokens(&text), text, literal: false };
        self.patterns.insert(0, pattern);
    }

    /// Parses the text of an ignore file; `file` is for messages.
    ///
    /// # Errors
    /// Names the line with a broken pattern.
    pub fn parse(text: &str, file: &Path) -> Result<Self, BakeError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut ignore = Self::default();
        for (at, line) in text.lines().enumerate() {
            if line.starts_with('#') || line.trim().is_empty() {
                continue;
            }
            let added = match line.len() {
                ..=MAX_LINE => ignore.add(line.trim()),
                _ => Err(format!("the line has more than {MAX_LINE} bytes")),
            };
            added.map_err(|what| {
                let what = format!("{}:{}: {what}", file.display(), at + 1);
                BakeError::usage(what, "see Go's filepath.Match for the syntax of patterns")
            })?;
        }
        Ok(ignore)
    }

    /// Patterns that stand elsewhere than in a file: `--exclude`.
    ///
    /// # Errors
    /// Says which pattern is broken.
    pub fn of(patterns: &[String]) -> Result<Self, String> {
        let mut ignore = Self::default();
        for pattern in patterns.iter().map(|text| text.trim()).filter(|text| !text.is_empty()) {
            ignore.add(pattern)?;
        }
        Ok(ignore)
    }

    fn add(&mut self, line: &str) -> Result<(), String> {
        let (exception, text) = match line.strip_prefix('!') {
            Some(rest) => (true, rest.trim()),
            None => (false, line),
        };
        let cleaned = if text.is_empty() { String::new() } else { paths::clean(text) };
        if exception && matches!(cleaned.as_str(), "" | "/") {
            return Err("illegal exclusion pattern: \"!\"".into());
        }
        let text = match cleaned.strip_prefix('/') {
            Some(rest) if !rest.is_empty() => rest,
            _ => &cleaned,
        };
        let tokens = match glob::check(text) {
            Ok(()) => tokens(text),
            Err(error) => return Err(format!("{error} `{line}`")),
        };
        if tokens.iter().any(|token| matches!(token, Token::Class(class) if reversed(class))) {
            return Err(format!("syntax error in pattern `{line}`: a range ends before it begins"));
        }
        let literal = tokens.iter().all(|token| matches!(token, Token::One(_)));
        self.has_exceptions |= exception;
        self.patterns.push(Pattern { exception, text: text.to_owned(), tokens, literal });
        Ok(())
    }

    /// Whether there is nothing to leave out.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// The patterns as they count, `!` before exceptions.
    pub fn patterns(&self) -> Vec<String> {
        let text = |pattern: &Pattern| {
            format!("{}{}", if pattern.exception { "!" } else { "" }, pattern.text)
        };
        self.patterns.iter().map(text).collect()
    }

    /// Whether `path` (relative, slashes) is left out, given what matched its parent (empty for
    /// entries of the root).
    pub fn matches(&self, path: &str, parent: &Matched) -> (bool, Matched) {
        let mut ignored = false;
        let mut matched = vec![false; self.patterns.len()];
        for (at, pattern) in self.patterns.iter().enumerate() {
            let mut found = parent.get(at).copied().unwrap_or(false);
            if !found {
                // An exception can only matter to what is left out so far, and the reverse.
                if pattern.exception != ignored {
                    continue;
                }
                found = pattern.matches(path);
            }
            matched[at] = found;
            if found {
                ignored = !pattern.exception;
            }
        }
        (ignored, matched)
    }

    /// Whether something below the directory `path`, which is left out itself, may be taken back.
    pub fn may_take_back_below(&self, path: &str) -> bool {
        self.has_exceptions
            && self.patterns.iter().filter(|pattern| pattern.exception).any(|pattern| {
                let fixed = pattern
                    .text
                    .split('/')
                    .take_while(|part| !part.contains(['*', '?', '[', '\\']));
                fixed.zip(path.split('/')).all(|(want, have)| want == have)
            })
    }
}

impl Pattern {
    fn matches(&self, path: &str) -> bool {
        if self.literal && !self.text.contains('\\') {
            return self.text == path;
        }
        let path: Vec<char> = path.chars().collect();
        let mut ends = vec![false; path.len() + 1];
        ends[0] = true;
        for token in &self.tokens {
            let mut next = vec![false; path.len() + 1];
            // Whether a start for `**/` was seen at or before this place.
            let mut started = false;
            for at in 0..=path.len() {
                let one = |fits: bool| at > 0 && ends[at - 1] && fits;
                let before = at.checked_sub(1).and_then(|at| path.get(at)).copied();
                started |= ends[at];
                next[at] = match token {
                    Token::One(c) => one(before == Some(*c)),
                    Token::Any => one(before != Some('/')),
                    Token::Class(class) => one(before.is_some_and(|c| {
                        glob::class(class, 0, Some(c)).is_ok_and(|(found, _)| found)
                    })),
                    Token::Star => ends[at] || (at > 0 && next[at - 1] && before != Some('/')),
                    Token::Dirs => ends[at] || (started && before == Some('/')),
                    Token::Rest => started,
                };
            }
            ends = next;
        }
        ends[path.len()]
    }
}

/// Whether a range of the class has its ends in the wrong order: moby makes a regular expression
/// of the pattern, which such a range is not.
fn reversed(class: &[char]) -> bool {
    let mut inside = class[1..class.len() - 1].iter().copied().peekable();
    inside.next_if_eq(&'^');
    let next = || {
        let c = inside.next()?;
        let low = if c == '\\' { inside.next()? } else { c };
        if inside.next_if_eq(&'-').is_none() {
            return Some(false);
        }
        let c = inside.next()?;
        let high = if c == '\\' { inside.next()? } else { c };
        Some(low > high)
    };
    std::iter::from_fn(next).any(|reversed| reversed)
}

fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        match chars[at] {
            '*' if chars.get(at + 1) == Some(&'*') => {
                at += 2;
                at += usize::from(chars.get(at) == Some(&'/'));
                tokens.push(if at == chars.len() {
                    Token::Rest
                } else if tokens.is_empty() && !text[2..].contains(['*', '?', '[', ']', '\\']) {
                    // moby compares `**suffix` as a suffix, where `**file` is not cut at slashes.
                    if text.starts_with("**/") { Token::Dirs } else { Token::Rest }
                } else {
                    Token::Dirs
                });
                continue;
            }
            '*' => tokens.push(Token::Star),
            '?' => tokens.push(Token::Any),
            '\\' if at + 1 < chars.len() => {
                at += 1;
                tokens.push(Token::One(chars[at]));
            }
            '[' => {
                if let Ok((_, end)) = glob::class(&chars, at, None) {
                    tokens.push(Token::Class(chars[at..end].to_vec()));
                    at = end;
                    continue;
                }
                tokens.push(Token::One('['));
            }
            c => tokens.push(Token::One(c)),
        }
        at += 1;
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ignored(patterns: &[&str], path: &str) -> bool {
        let ignore = Ignore::parse(&patterns.join("\n"), Path::new("x")).unwrap();
        let mut parent = Matched::new();
        let mut result = false;
        let clean = path.trim_end_matches('/');
        for (at, c) in clean.char_indices().chain([(clean.len(), '/')]) {
            if c == '/' && at > 0 {
                (result, parent) = ignore.matches(&clean[..at], &parent);
            }
        }
        result
    }

    /// moby's own table, `patternmatcher_test.go`.
    #[test]
    fn matches_as_moby_does() {
        for (pattern, path, expected) in [
            ("**", "file", true),
            ("**/", "file", true),
            ("**", "dir/file", true),
            ("**/**", "dir/file", true),
            ("dir/**", "dir/file", true),
            ("dir/**", "dir/dir2/file", true),
            ("**/dir", "dir", true),
            ("**/dir", "dir/file", true),
            ("**/dir2/*", "dir/dir2/file", true),
            ("**/dir2/**", "dir/dir2/dir3/file", true),
            ("**file", "file", true),
            ("**file", "dir/file", true),
            ("**/file", "dir/file", true),
            ("**file", "dir/dir/file", true),
            ("**/file", "dir/dir/file", true),
            ("**/file*", "dir/dir/file", true),
            ("**/file*", "dir/dir/file.txt", true),
            ("**/file*txt", "dir/dir/file.txt", true),
            ("**/file*.txt*", "dir/dir/file.txt", true),
            ("**/**/*.txt", "dir/dir/file.txt", true),
            ("**/**/*.txt2", "dir/dir/file.txt", false),
            ("**/*.txt", "file.txt", true),
            ("**/**/*.txt", "file.txt", true),
            ("a**/*.txt", "a/file.txt", true),
            ("a**/*.txt", "a/dir/dir/file.txt", true),
            ("a/*.txt", "a/dir/file.txt", false),
            ("a/*.txt", "a/file.txt", true),
            ("a/*.txt**", "a/file.txt", true),
            ("a[b-d]e", "ae", false),
            ("a[b-d]e", "ace", true),
            ("a[b-d]e", "aae", false),
            ("a[^b-d]e", "aze", true),
            (".*", ".foo", true),
            (".*", "foo", false),
            ("abc.def", "abcZdef", false),
            ("abc?def", "abcZdef", true),
            ("abc?def", "abcdef", false),
            ("a\\\\", "a\\", true),
            ("**/foo/bar", "foo/bar", true),
            ("**/foo/bar", "dir/dir2/foo/bar", true),
            ("abc/**", "abc", false),
            ("abc/**", "abc/def/ghi", true),
            ("**/.foo", ".foo", true),
            ("**/.foo", "bar.foo", false),
            ("a(b)c/def", "a(b)c/def", true),
            ("a.|)$(}+{bc", "a.|)$(}+{bc", true),
            ("a\\*b", "a*b", true),
            ("/docs/", "docs/x", true),
            ("./docs", "docs", true),
        ] {
            assert_eq!(ignored(&[pattern], path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn order_decides() {
        for (patterns, path, expected) in [
            (&["**", "!util/docker/web"][..], "util/docker/web/foo", false),
            (&["**", "!util/docker/web", "util/docker/web/foo"], "util/docker/web/foo", true),
            (&["**", "!dist/*.whl"], "dist/proxy-2.4.0+g0-any.whl", false),
            (&["!fileutils.go", "*.go"], "fileutils.go", true),
            (&["*.go", "!fileutils.go"], "fileutils.go", false),
            (&["docs", "!docs/README.md"], "docs/README.md", false),
            (&["docs", "!docs/README.md"], "docs/other.md", true),
            (&["docs/*", "!docs/README.md"], "docs/README.md", false),
            (&["# docs", "", "  x  "], "docs", false),
            (&["# docs", "", "  x  "], "x", true),
            (&["*", "! src "], "src/main.rs", false),
        ] {
            assert_eq!(ignored(patterns, path), expected, "{patterns:?} {path}");
        }
    }

    #[test]
    fn exceptions_decide_what_is_walked() {
        let of = |text: &str| Ignore::parse(text, Path::new("x")).unwrap();
        assert!(!of("node_modules").may_take_back_below("node_modules"));
        assert!(!of("node_modules\n!src/x").may_take_back_below("node_modules"));
        assert!(of("node_modules\n!node_modules/x/y").may_take_back_below("node_modules/x"));
        assert!(of("*\n!a/*/c").may_take_back_below("a/b"));
        assert!(of("*\n!**/keep").may_take_back_below("any"));
    }

    #[test]
    fn broken_patterns_name_their_line() {
        let error = Ignore::parse("ok\n[", Path::new(".dockerignore")).unwrap_err();
        assert!(error.to_string().starts_with(".dockerignore:2: "), "{error}");
        assert!(error.is_usage());
        for bad in ["!", "  !  ", "!/", "[Local-Only]/", "a[", "[]a]", "[x-]", "[a-b-c]", "\\"] {
            assert!(Ignore::parse(bad, Path::new("x")).is_err(), "{bad}");
        }
        let long = "x".repeat(MAX_LINE + 1);
        assert!(Ignore::parse(&long, Path::new("x")).is_err());
    }
}
