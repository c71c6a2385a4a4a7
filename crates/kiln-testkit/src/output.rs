//! What a run of a program printed and how it ended.

use std::fmt;
use std::time::Duration;

/// A run that has ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// Exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Standard output, as text.
    pub stdout: String,
    /// Standard error, as text.
    pub stderr: String,
    /// From start to end.
    pub took: Duration,
}

impl Output {
    /// Whether the exit code is 0.
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }

    /// Demands an exit code.
    ///
    /// # Panics
    /// With everything that was printed, if it ended otherwise.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert!(self.code == Some(code), "expected exit code {code}\n{self}");
        self
    }

    /// Demands exit code 0.
    ///
    /// # Panics
    /// With everything that was printed, if it ended otherwise.
    #[track_caller]
    pub fn expect_done(self) -> Self {
        self.expect_code(0)
    }

    /// Demands that standard error holds a text.
    ///
    /// # Panics
    /// With everything that was printed, if it does not.
    #[track_caller]
    pub fn expect_stderr(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "expected {text:?} on standard error\n{self}");
        self
    }

    /// Standard output as the one JSON document that it has to be.
    ///
    /// # Panics
    /// If it is anything else.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        match serde_json::from_str(&self.stdout) {
            Ok(value) => value,
            Err(error) => panic!("standard output is not one JSON document: {error}\n{self}"),
        }
    }

    /// Standard output as one JSON document a line.
    ///
    /// # Panics
    /// If a line is anything else.
    #[track_caller]
    pub fn json_lines(&self) -> Vec<serde_json::Value> {
        let parse = |line: &str| match serde_json::from_str(line) {
            Ok(value) => value,
            Err(error) => panic!("not a JSON document: {line}: {error}\n{self}"),
        };
        self.stdout.lines().map(parse).collect()
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, code, signal, stdout, stderr, took } = self;
        writeln!(f, "$ {command}")?;
        match (code, signal) {
            (Some(code), _) => writeln!(f, "exit code {code} after {took:?}")?,
            (None, Some(signal)) => writeln!(f, "ended by signal {signal} after {took:?}")?,
            (None, None) => writeln!(f, "ended in an unknown way after {took:?}")?,
        }
        writeln!(f, "--- standard output\n{stdout}--- standard error\n{stderr}---")
    }
}
