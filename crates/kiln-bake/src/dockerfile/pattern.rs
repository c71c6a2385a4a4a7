//! The patterns of `${v#p}`, `${v%p}` and `${v/p/r}`: literals, `?`, `*`. As in BuildKit there are
//! no brackets, and wildcards do not match line ends.

/// Steps that one expansion may take: a fraction of a second.
const MAX_WORK: usize = 1 << 22;

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
    ///
    /// # Errors
    /// It takes too long.
    pub fn trim_prefix(&self, value: &str, longest: bool) -> Result<String, String> {
        let chars: Vec<char> = value.chars().collect();
        let end = self.prefix(&chars, longest, &mut 0)?.unwrap_or(0);
        Ok(chars[end..].iter().collect())
    }

    /// `value` without the shortest (or longest) suffix that matches.
    ///
    /// # Errors
    /// It takes too long.
    pub fn trim_suffix(&self, value: &str, longest: bool) -> Result<String, String> {
        let backwards = Self(self.0.iter().rev().copied().collect());
        let chars: Vec<char> = value.chars().rev().collect();
        let end = backwards.prefix(&chars, longest, &mut 0)?.unwrap_or(0);
        Ok(chars[end..].iter().rev().collect())
    }

    /// `value` with the first match (or every match) replaced, `$` in the replacement without any
    /// meaning.
    ///
    /// # Errors
    /// It takes too long, or there would be more than `limit` bytes of replacements.
    pub fn replace(
        &self,
        value: &str,
        with: &str,
        all: bool,
        limit: usize,
    ) -> Result<String, String> {
        let chars: Vec<char> = value.chars().collect();
        let mut out = String::with_capacity(value.len());
        let mut at = 0;
        // Go's rule: an empty match right after the one before does not count.
        let mut last_end = None;
        let (mut done, mut work, mut added) = (false, 0, 0);
        while at <= chars.len() {
            let found = if done { None } else { self.prefix(&chars[at..], true, &mut work)? };
            match found {
                Some(length) if length > 0 || last_end != Some(at) => {
                    added += with.len();
                    if added > limit {
                        return Err("it expands to too much".into());
                    }
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
        Ok(out)
    }

    /// Length of the shortest or longest prefix that matches; counts its steps in `work`.
    fn prefix(
        &self,
        chars: &[char],
        longest: bool,
        work: &mut usize,
    ) -> Result<Option<usize>, String> {
        // Ends that can be reached after each token, ascending: a set, so no pattern backtracks.
        let mut ends = vec![0];
        for token in &self.0 {
            *work += ends.len();
            if *work > MAX_WORK {
                return Err("its pattern takes too long".into());
            }
            ends = match token {
                Token::Many => spread(&ends, chars),
                token => {
                    let fits = |end: &usize| match (token, chars.get(*end)) {
                        (Token::One(c), Some(found)) => c == found,
                        (_, found) => found.is_some_and(|c| *c != '\n'),
                    };
                    ends.into_iter().filter(fits).map(|end| end + 1).collect()
                }
            };
            if ends.is_empty() {
                return Ok(None);
            }
        }
        Ok(if longest { ends.pop() } else { ends.first().copied() })
    }
}

/// Everything up to the end of the line, from each of `starts` on.
fn spread(starts: &[usize], chars: &[char]) -> Vec<usize> {
    let mut ends: Vec<usize> = Vec::new();
    for start in starts {
        if ends.last().is_some_and(|last| last >= start) {
            continue;
        }
        let line = chars[*start..].iter().take_while(|c| **c != '\n').count();
        ends.extend(*start..=start + line);
    }
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_empty_matches_like_go() {
        let empty = Pattern::parse("").unwrap();
        assert_eq!(empty.replace("ab", "-", true, 9).unwrap(), "-a-b-");
        let star = Pattern::parse("*").unwrap();
        assert_eq!(star.replace("ab", "-", true, 9).unwrap(), "-");
        assert_eq!(star.replace("a\nb", "-", true, 9).unwrap(), "-\n-");
    }

    #[test]
    fn bombs_are_refused() {
        let value = "a".repeat(1 << 16);
        assert!(Pattern::parse("*a*b").unwrap().replace(&value, "", true, 0).is_err());
        assert!(Pattern::parse("a").unwrap().replace(&value, "1234", true, 1 << 16).is_err());
        let line = "a".repeat(1000);
        assert_eq!(Pattern::parse("*a*b").unwrap().replace(&line, "", true, 0).unwrap(), line);
    }

    #[test]
    fn unknown_escapes_are_refused() {
        assert!(Pattern::parse("a\\b").is_err());
        assert!(Pattern::parse("a\\").is_err());
    }
}
