//! What was wrong with a Compose file, and where.

use std::fmt;

/// A place in one of the files of a project. Lines and columns count from one; a line of zero
/// means the file as a whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// Index into the names of the files that were read.
    pub(super) file: u16,
    pub(super) line: u32,
    pub(super) column: u32,
}

/// Why a Compose project cannot be read. `Display` gives the message with its place, without the
/// hint; [`ComposeError::hint`] is to be shown on a line of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, thiserror::Error)]
pub struct ComposeError {
    /// The file as the user would name it: relative to the working directory where it is below it.
    pub file: String,
    /// Line, from one; 0 when it is about the file as a whole.
    pub line: u32,
    /// Column in characters, from one; 0 likewise.
    pub column: u32,
    /// The key, for example `services.web.ports[0]`; empty at the top.
    pub key: String,
    /// What was asked and what was found.
    pub what: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// All that is wrong with a project, in the order of its files and lines. There is at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComposeErrors(Vec<ComposeError>);

impl ComposeErrors {
    /// `errors` in the order of `files`; equal ones are kept once. `None`: there are none.
    pub(super) fn of(mut errors: Vec<ComposeError>, files: &[String]) -> Option<Self> {
        let place = |error: &ComposeError| {
            let file = files.iter().position(|file| *file == error.file);
            (file.unwrap_or(usize::MAX), error.file.clone(), error.line, error.column)
        };
        errors.sort_by_cached_key(place);
        errors.dedup();
        (!errors.is_empty()).then_some(Self(errors))
    }

    /// All of them.
    pub fn all(&self) -> &[ComposeError] {
        &self.0
    }
}

impl From<Vec<ComposeError>> for ComposeErrors {
    fn from(errors: Vec<ComposeError>) -> Self {
        Self(errors)
    }
}

impl From<ComposeError> for ComposeErrors {
    fn from(error: ComposeError) -> Self {
        Self(vec![error])
    }
}

impl fmt::Display for ComposeErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, error) in self.0.iter().enumerate() {
            let newline = if at == 0 { "" } else { "\n" };
            write!(f, "{newline}{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ComposeErrors {}

impl ComposeError {
    /// An error about a file as a whole, or about none when `file` is empty.
    pub(super) fn of_file(file: impl Into<String>, what: impl Into<String>) -> Self {
        Self { file: file.into(), what: what.into(), ..Self::default() }
    }

    /// Adds what to do about it.
    pub(super) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        self.hint = (!hint.is_empty()).then_some(hint);
        self
    }

    /// Adds `did you mean` when one of `candidates` is close to `word`.
    pub(super) fn with_closest<'a>(
        self,
        word: &str,
        candidates: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        match closest(word, candidates) {
            Some(near) => self.with_hint(format!("did you mean `{near}`?")),
            None => self,
        }
    }
}

impl fmt::Display for ComposeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            f.write_str(&self.file)?;
            if self.line > 0 {
                write!(f, ":{}:{}", self.line, self.column)?;
            }
            f.write_str(": ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.what)
    }
}

/// The candidate that differs least from `word`, if it is near enough to be a slip: at most a third
/// of the letters inserted, dropped, replaced or swapped with their neighbour.
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (word.chars().count() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .filter(|candidate| candidate.len().abs_diff(word.len()) <= limit * 4)
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= limit && *distance < candidate.chars().count())
        .min()
        .map(|(_, candidate)| candidate)
}

/// Optimal string alignment distance, without regard to case. Only ever called with keys, so words
/// are cut at 64 letters.
fn distance(left: &str, right: &str) -> usize {
    let letters = |text: &str| -> Vec<char> {
        text.chars().take(64).map(|letter| letter.to_ascii_lowercase()).collect()
    };
    let (left, right) = (letters(left), letters(right));
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for i in 0..left.len() {
        let mut next = vec![i + 1];
        for j in 0..right.len() {
            let differs = usize::from(left[i] != right[j]);
            let mut best = (row[j] + differs).min(row[j + 1] + 1).min(next[j] + 1);
            if i > 0 && j > 0 && left[i] == right[j - 1] && left[i - 1] == right[j] {
                best = best.min(before[j - 1] + 1);
            }
            next.push(best);
        }
        before = std::mem::replace(&mut row, next);
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closest_finds_slips_and_nothing_else() {
        let keys = ["image", "ports", "privileged", "healthcheck", "tty"];
        for (word, expected) in [
            ("imgae", Some("image")),
            ("port", Some("ports")),
            ("HealthCheck", Some("healthcheck")),
            ("heathchek", Some("healthcheck")),
            ("nonsense", None),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(closest(word, keys), expected, "{word}");
        }
    }

    #[test]
    fn display_has_place_and_key() {
        let mut error = ComposeError::of_file("compose.yaml", "is empty").with_hint("fill it");
        assert_eq!(error.to_string(), "compose.yaml: is empty");
        error.line = 3;
        error.column = 7;
        error.key = "services.web".into();
        assert_eq!(error.to_string(), "compose.yaml:3:7: services.web: is empty");
        assert_eq!(error.hint.as_deref(), Some("fill it"));
    }
}
