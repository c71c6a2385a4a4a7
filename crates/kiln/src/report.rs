//! What a user is told when something could not be done: what was asked, what was found, the last
//! lines of the log that matter, and what to do.

use std::collections::BTreeSet;

use kiln_core::compose::{ComposeError, ComposeErrors, closest};
use kiln_core::exit::Exit;
use serde::{Deserialize, Serialize};

/// A refusal or failure, ready to be shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Exit code.
    pub exit: Exit,
    /// What was asked and what was found, in one sentence.
    pub message: String,
    /// Causes, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// Lines of a log or of a probe that matter.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<String>,
    /// Everything that is wrong with the files of a project, when it is more than one thing.
    #[serde(default, skip_serializing_if = "none")]
    pub refusals: Box<[Refusal]>,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// One thing that is wrong with a Compose file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refusal {
    /// The file as the user would name it; empty: none.
    pub file: String,
    /// Line and column, from one; 0: the file as a whole.
    pub line: u32,
    /// See `line`.
    pub column: u32,
    /// The key, for example `services.web.ports[0]`.
    pub key: String,
    /// What was asked and found, with the place in front.
    pub message: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

fn none(refusals: &[Refusal]) -> bool {
    refusals.is_empty()
}

impl Report {
    /// All that is wrong with a project; `of` stands in front, for example `in commit 1a2b: `.
    pub(crate) fn compose(of: &str, errors: &ComposeErrors) -> Self {
        let all = errors.all();
        if let [error] = all {
            let report = Self::usage(format!("{of}{error}"));
            return Self { hint: error.hint.clone(), ..report };
        }
        let refusal = |error: &ComposeError| Refusal {
            file: error.file.clone(),
            line: error.line,
            column: error.column,
            key: error.key.clone(),
            message: error.to_string(),
            hint: error.hint.clone(),
        };
        let many = format!("{of}{} things are wrong in the Compose files", all.len());
        let report = Self::usage(many);
        Self { refusals: all.iter().map(refusal).collect(), ..report }
    }

    /// A report of `exit` with `message`.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        let message = message.into();
        let (causes, log, refusals) = Default::default();
        Self { exit, message, causes, log, refusals, hint: None }
    }

    /// Something failed on the way.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    /// The user has to edit or say something else.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// A gate refused.
    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self::new(Exit::Refused, message)
    }

    /// A name on the command line that names nothing, which is wrong usage whatever it was to name:
    /// `place` has no `what` of that `name`, but what is `known`.
    pub(crate) fn unknown<'a>(
        place: &str,
        what: &str,
        name: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        /// So many names fit into a hint.
        const SHOWN: usize = 20;
        let known: BTreeSet<&str> = known.into_iter().collect();
        let report = Self::usage(format!("{place} has no {what} `{name}`"));
        let mut shown = known.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
        if known.len() > SHOWN {
            shown.push_str(&format!(", and {} more", known.len() - SHOWN));
        }
        let there = match known.len() {
            0 => return report,
            1 => format!("there is {shown}"),
            _ => format!("there are {shown}"),
        };
        match closest(name, known) {
            Some(near) => report.hint(format!("did you mean `{near}`? {there}")),
            None => report.hint(there),
        }
    }

    /// Adds what to do.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds lines of a log.
    pub(crate) fn log(mut self, lines: Vec<String>) -> Self {
        self.log = lines;
        self
    }

    /// In one line, with its causes. One that only gave up because another failed says no more itself.
    pub(crate) fn line(&self) -> String {
        let first = |text: &String| text.lines().next().unwrap_or_default().to_owned();
        if self.message.is_empty() {
            return "given up, because another one failed".to_owned();
        }
        let all: Vec<String> =
            std::iter::once(&self.message).chain(&self.causes).map(first).collect();
        all.join(": ")
    }

    /// From what went wrong at a registry, with what to do.
    pub(crate) fn of_registry(error: &kiln_remote::registry::Error) -> Self {
        let exit = if error.is_usage() { Exit::Usage } else { Exit::Failed };
        Self { hint: error.hint(), ..Self::from_error(exit, error) }
    }

    /// From an error whose causes have not been printed into its own message.
    pub(crate) fn from_error(exit: Exit, error: &dyn std::error::Error) -> Self {
        let mut report = Self::new(exit, error.to_string());
        let mut said = report.message.clone();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            if !said.contains(&text) {
                report.causes.push(text.clone());
                said = text;
            }
            source = cause.source();
        }
        report
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        for cause in &self.causes {
            write!(f, "\n  cause: {cause}")?;
        }
        // A probe's answer may have several lines: none of them looks like ours.
        for line in self.log.iter().flat_map(|text| text.split('\n')) {
            write!(f, "\n  | {line}")?;
        }
        for Refusal { message, hint, .. } in &self.refusals {
            write!(f, "\n  {message}")?;
            if let Some(hint) = hint {
                write!(f, "\n    hint: {hint}")?;
            }
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}

/// Wraps errors of other crates as "could not" with what was being done.
pub(crate) trait Because<T> {
    /// Exit 1, with `doing` in front.
    fn because(self, doing: impl FnOnce() -> String) -> Result<T, Report>;
}

impl<T, E: std::error::Error> Because<T> for Result<T, E> {
    fn because(self, doing: impl FnOnce() -> String) -> Result<T, Report> {
        self.map_err(|error| {
            let inner = Report::from_error(Exit::Failed, &error);
            let mut report = Report::failed(format!("{}: {}", doing(), inner.message));
            report.causes = inner.causes;
            report
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_causes_and_is_never_empty() {
        let mut report = Report::failed("writing x\nand more");
        report.causes = vec!["the disk is full\n(really)".to_owned(), "no space".to_owned()];
        assert_eq!(report.line(), "writing x: the disk is full: no space");
        // So somebody says who only gave up because another one failed.
        assert!(Report::failed("").line().contains("another one failed"));
    }
}
