//! Go's `filepath.Match`: `*` and `?` do not match `/`; `[a-z]`, `[^a-z]`; `\` escapes.

/// A pattern with broken syntax: an open bracket, a bad range, an escape of nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("syntax error in pattern")]
pub struct BadPattern;

/// Whether a path contains `*`, `?` or `[` that is not escaped.
pub fn has_wildcards(text: &str) -> bool {
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '*' | '?' | '[' => return true,
            '\\' => {
                chars.next();
            }
            _ => {}
        }
    }
    false
}

/// Checks the syntax of a pattern.
///
/// # Errors
/// [`BadPattern`].
pub fn check(pattern: &str) -> Result<(), BadPattern> {
    let chars: Vec<char> = pattern.chars().collect();
    let mut at = 0;
    while let Some(c) = chars.get(at) {
        at = match c {
            '\\' if at + 1 == chars.len() => return Err(BadPattern),
            '\\' => at + 2,
            '[' => class(&chars, at, None)?.1,
            _ => at + 1,
        };
    }
    Ok(())
}

/// Whether all of `text` matches `pattern`.
///
/// # Errors
/// [`BadPattern`].
pub fn matches(pattern: &str, text: &str) -> Result<bool, BadPattern> {
    check(pattern)?;
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut p, mut t) = (0, 0);
    // The last `*` and how much of the text it has taken: enough, as `*` never crosses a `/`.
    let mut star: Option<(usize, usize)> = None;
    loop {
        if t == text.len() && pattern[p..].iter().all(|c| *c == '*') {
            return Ok(true);
        }
        if pattern.get(p) == Some(&'*') {
            star = Some((p + 1, t));
            p += 1;
            continue;
        }
        if let (Some(c), true) = (text.get(t), p < pattern.len())
            && let Some(next) = one(&pattern, p, *c)?
        {
            p = next;
            t += 1;
            continue;
        }
        match star {
            Some((after, from)) if text.get(from).is_some_and(|c| *c != '/') => {
                star = Some((after, from + 1));
                (p, t) = (after, from + 1);
            }
            _ => return Ok(false),
        }
    }
}

/// Matches one character against the pattern at `p`; returns where the pattern goes on.
fn one(pattern: &[char], p: usize, c: char) -> Result<Option<usize>, BadPattern> {
    Ok(match pattern[p] {
        '?' => (c != '/').then_some(p + 1),
        '[' => {
            let (found, next) = class(pattern, p, Some(c))?;
            found.then_some(next)
        }
        '\\' => (pattern.get(p + 1) == Some(&c)).then_some(p + 2),
        literal => (literal == c).then_some(p + 1),
    })
}

/// Reads the class that begins at `[`; says whether it has `c` and where it ends.
pub(crate) fn class(
    pattern: &[char],
    start: usize,
    c: Option<char>,
) -> Result<(bool, usize), BadPattern> {
    let mut at = start + 1;
    let negated = pattern.get(at) == Some(&'^');
    at += usize::from(negated);
    let mut found = false;
    let mut ranges = 0;
    loop {
        if pattern.get(at) == Some(&']') && ranges > 0 {
            return Ok((found != negated, at + 1));
        }
        let low = class_char(pattern, &mut at)?;
        let mut high = low;
        if pattern.get(at) == Some(&'-') {
            at += 1;
            high = class_char(pattern, &mut at)?;
        }
        found |= c.is_some_and(|c| (low..=high).contains(&c));
        ranges += 1;
    }
}

fn class_char(pattern: &[char], at: &mut usize) -> Result<char, BadPattern> {
    let mut c = *pattern.get(*at).ok_or(BadPattern)?;
    if c == '-' || c == ']' {
        return Err(BadPattern);
    }
    *at += 1;
    if c == '\\' {
        c = *pattern.get(*at).ok_or(BadPattern)?;
        *at += 1;
    }
    // A class is closed by at least one more character.
    if *at == pattern.len() { Err(BadPattern) } else { Ok(c) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Go's own table (`path/filepath/match_test.go`); `None` is a bad pattern.
    #[test]
    fn matches_as_go_does() {
        for (pattern, text, expected) in [
            ("abc", "abc", Some(true)),
            ("*", "abc", Some(true)),
            ("*c", "abc", Some(true)),
            ("a*", "a", Some(true)),
            ("a*", "ab/c", Some(false)),
            ("a*/b", "abc/b", Some(true)),
            ("a*/b", "a/c/b", Some(false)),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", Some(true)),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/f", Some(true)),
            ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", Some(false)),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", Some(false)),
            ("a*b?c*x", "abxbbxdbxebxczzx", Some(true)),
            ("a*b?c*x", "abxbbxdbxebxczzy", Some(false)),
            ("ab[c]", "abc", Some(true)),
            ("ab[b-d]", "abc", Some(true)),
            ("ab[e-g]", "abc", Some(false)),
            ("ab[^c]", "abc", Some(false)),
            ("ab[^e-g]", "abc", Some(true)),
            ("a\\*b", "a*b", Some(true)),
            ("a\\*b", "ab", Some(false)),
            ("a?b", "a☺b", Some(true)),
            ("a[^a]b", "a☺b", Some(true)),
            ("a???b", "a☺b", Some(false)),
            ("[a-ζ]*", "α", Some(true)),
            ("*[a-ζ]", "A", Some(false)),
            ("a?b", "a/b", Some(false)),
            ("a*b", "a/b", Some(false)),
            ("[\\]a]", "]", Some(true)),
            ("[\\-]", "-", Some(true)),
            ("[x\\-]", "x", Some(true)),
            ("[x\\-]", "z", Some(false)),
            ("[]a]", "]", None),
            ("[-]", "-", None),
            ("[x-]", "x", None),
            ("[-x]", "x", None),
            ("\\", "a", None),
            ("[a-b-c]", "a", None),
            ("[", "a", None),
            ("[^", "a", None),
            ("[^bc", "a", None),
            ("a[", "ab", None),
            ("*x", "xxx", Some(true)),
        ] {
            assert_eq!(matches(pattern, text).ok(), expected, "{pattern} {text}");
        }
    }
}
