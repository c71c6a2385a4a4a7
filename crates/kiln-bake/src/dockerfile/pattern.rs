//! The patterns of `${v#p}`, `${v%p}` and `${v/p/r}`: literals, `?`, `*`. As in BuildKit there are
//! no brackets, and wildcards do not match line ends.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    One(char),
    Any,
    Many,
}

/// A parsed pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Vec<Token>);

impl Pattern {
    /// Reads a pattern in which `\` escapes `*`, `?`, `\`, `/` and `}`.
    ///
    /// # Errors
    /// Names an escape that means nothing.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut tokens = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            tokens.push(match c {
                '*' => Token::Many,
                '?' => Token::Any,
                '\\' => match chars.next() {
                    Some(c @ ('*' | '?' | '\\' | '/' | '}')) => Token::One(c),
                    Some(c) => return Err(format!("invalid escape `\\{c}` in pattern `{text}`")),
                    None => return Err(format!("pattern `{text}` ends in `\\`")),
                },
                c => Token::One(c),
            });
        }
        Ok(Self(tokens))
    }

    /// `value` without the shortest (or longest) prefix that matches.
    pub fn trim_prefix(&self, value: &str, longest: bool) -> String {
        let chars: Vec<char> = value.chars().collect();
        let end = self.prefix(&chars, longest).unwrap_or(0);
        chars[end..].iter().collect()
    }

    /// `value` without the shortest (or longest) suffix that matches.
    pub fn trim_suffix(&self, value: &str, longest: bool) -> String {
        let backwards = Self(self.0.iter().rev().copied().collect());
        let chars: Vec<char> = value.chars().rev().collect();
        let end = backwards.prefix(&chars, longest).unwrap_or(0);
        chars[end..].iter().rev().collect()
    }

    /// `value` with the first match (or every match) replaced.
    pub fn replace(&self, value: &str, with: &str, all: bool) -> String {
        let chars: Vec<char> = value.chars().collect();
        let mut out = String::with_capacity(value.len());
        let mut at = 0;
        // Go's rule: an empty match right after the one before does not count.
        let mut last_end = None;
        let mut done = false;
        while at <= chars.len() {
            let found = if done { None } else { self.prefix(&chars[at..], true) };
            match found {
                Some(length) if length > 0 || last_end != Some(at) => {
                    out.push_str(with);
                    done = !all;
                    at += length;
                    last_end = Some(at);
                    if length > 0 {
                        continue;
                    }
                }
                _ => {}
            }
            if let Some(c) = chars.get(at) {
                out.push(*c);
            }
            at += 1;
        }
        out
    }

    /// Length of the shortest or longest prefix that matches.
    fn prefix(&self, chars: &[char], longest: bool) -> Option<usize> {
        // Ends that can be reached after each token: a set, so that no pattern is slow.
        let mut ends = vec![false; chars.len() + 1];
        ends[0] = true;
        for token in &self.0 {
            let mut next = vec![false; chars.len() + 1];
            for at in 0..=chars.len() {
                match token {
                    Token::Many => {
                        let came = at > 0 && next[at - 1] && chars[at - 1] != '\n';
                        next[at] = ends[at] || came;
                    }
                    Token::Any if at > 0 => next[at] = ends[at - 1] && chars[at - 1] != '\n',
                    Token::One(c) if at > 0 => next[at] = ends[at - 1] && chars[at - 1] == *c,
                    _ => {}
                }
            }
            ends = next;
        }
        if longest { ends.iter().rposition(|end| *end) } else { ends.iter().position(|end| *end) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_empty_matches_like_go() {
        let empty = Pattern::parse("").unwrap();
        assert_eq!(empty.replace("ab", "-", true), "-a-b-");
        let star = Pattern::parse("*").unwrap();
        assert_eq!(star.replace("ab", "-", true), "-");
        assert_eq!(star.replace("a\nb", "-", true), "-\n-");
    }

    #[test]
    fn unknown_escapes_are_refused() {
        assert!(Pattern::parse("a\\b").is_err());
        assert!(Pattern::parse("a\\").is_err());
    }
}
