//! What a verification found: plain values, which `--json` prints as they are. Their form is
//! written down in `docs/verify.md`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use kiln_core::tree::Path;
use serde::{Deserialize, Serialize};

use super::cause::{Cause, Finding};
use super::conditions::{Condition, Run};

/// What became of a step, a service, or all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The same bits.
    Same,
    /// It was not run; why is said.
    NotRun,
    /// What differs stays behind in a stage: it is not in the image, and no later COPY takes it.
    LeftBehind,
    /// An input differs, so the results may: what a step fetched, a cache, the context.
    Inputs,
    /// The same inputs gave different bits.
    Diverged,
}

/// One step, verified.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// One-based, as `kiln bake` counts.
    pub number: usize,
    /// The instruction.
    pub text: String,
    /// The Dockerfile, as users know it.
    pub file: String,
    /// One-based line in it; 0 where there is none.
    pub line: usize,
    /// The verdict.
    pub verdict: Verdict,
    /// Why the verdict is what it is, where that needs saying.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What else is to be known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Its two runs; empty for a step that runs nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<Run>,
    /// What differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difference: Option<Difference>,
    /// How a run failed that should not have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

impl StepReport {
    /// Of a step of which there is nothing to say but that it is the same.
    pub const fn same() -> Self {
        Self {
            number: 0,
            text: String::new(),
            file: String::new(),
            line: 0,
            verdict: Verdict::Same,
            why: None,
            notes: Vec::new(),
            runs: Vec::new(),
            difference: None,
            failure: None,
        }
    }
}

/// What differs between two results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// What was compared: `the first run`, `the second run`, `the recorded result` …
    pub between: [String; 2],
    /// How many paths differ.
    pub count: usize,
    /// In how many ways, by [`PathDifference::kind`].
    pub kinds: BTreeMap<Cow<'static, str>, usize>,
    /// How many of the paths that were looked into have which cause.
    pub causes: BTreeMap<String, usize>,
    /// The first differing path, bytewise.
    pub first: PathDifference,
    /// The condition that makes the difference, if a further run under it alone showed so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<Condition>,
    /// How many of the paths are not in the image and taken by no later COPY.
    pub left_behind: usize,
    /// All differing paths with their kinds, at most [`Difference::LISTED`].
    pub paths: Vec<(String, Cow<'static, str>)>,
    /// All differing paths, as they are.
    #[serde(skip)]
    pub(crate) all: Vec<Path>,
    /// Causes of those that were looked into, in order.
    #[serde(skip)]
    pub(crate) findings: Vec<Finding>,
}

impl Difference {
    /// How many paths are listed.
    pub const LISTED: usize = 1_000;

    /// Takes over what became of the findings: the first path's, and how many there are of each.
    pub(crate) fn settle(&mut self) {
        if let Some(first) = self.findings.first() {
            self.first.set(first.clone());
        }
        self.causes = BTreeMap::new();
        for finding in &self.findings {
            *self.causes.entry(finding.cause.words().to_owned()).or_insert(0) += 1;
        }
    }
}

/// One path at which two results differ.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PathDifference {
    /// Absolute; bytes that are no text as `\ooo`.
    pub path: String,
    /// `only-first`, `only-second`, `content`, `mode`, `owner`, `link`, `hardlink`, `type`,
    /// `device` or `xattr`.
    pub kind: Cow<'static, str>,
    /// Offset of the first differing byte, for contents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// The first one's value.
    pub first: Value,
    /// The second one's value.
    pub second: Value,
    /// The probable cause.
    #[serde(flatten)]
    pub finding: Finding,
    /// The cause in words.
    pub words: Cow<'static, str>,
    /// What usually cures it.
    pub cure: Cow<'static, str>,
}

impl PathDifference {
    /// Sets the cause with its words.
    pub(crate) fn set(&mut self, finding: Finding) {
        self.words = finding.cause.words().into();
        self.cure = finding.cause.cure().into();
        self.finding = finding;
    }

    /// The probable cause.
    pub const fn cause(&self) -> Cause {
        self.finding.cause
    }
}

/// A value at a path. Of a content: the part around the first differing byte.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Value {
    /// As text: an attribute, or the part of the content with `.` for what cannot be printed.
    pub text: String,
    /// The part of the content, hexadecimal.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hex: String,
    /// Where the part begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<u64>,
    /// Size of the content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

/// A run that failed although the bake had succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Which run: 1 or 2.
    pub run: usize,
    /// `exit status 2`, `signal 9`.
    pub how: String,
    /// Its last lines.
    pub output: Vec<String>,
}
