//! `post_start` and `pre_stop` of a service: commands that are run in an instance, one after the
//! other, as `exec` runs one. The first that fails is the last.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use kiln_core::compose::Hook;
use kiln_core::exit::Exit;
use kiln_run::{ExecSpec, Known, Running};

use super::Agent;
use super::supervise::Word;
use crate::report::Report;

/// How long all hooks of a start may take: who seeds a database takes his time, and nobody waits
/// for ever.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3600);

/// A program is left so much of its grace, whatever the hooks before its stop have taken.
const REST: Duration = Duration::from_secs(2);

/// Lines of a failed hook's output that are kept, and characters of one.
const LINES: usize = 10;
const LINE: usize = 300;

/// Why a hook counts as failed.
#[derive(Debug)]
pub(crate) struct Failed {
    /// In words.
    pub how: String,
    /// The last lines that it wrote.
    pub said: Vec<String>,
}

/// Runs the hooks of a start, and says what came of them.
pub(super) struct Starting {
    pub(super) agent: Arc<Agent>,
    pub(super) running: Arc<Running>,
    pub(super) hooks: Vec<Hook>,
    /// Where the outcome goes.
    pub(super) to: Sender<Word>,
}

impl Starting {
    /// False: one failed, or the program ended before all were done.
    pub(super) fn run(self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        let word = match run(&self.agent, &self.running, "post_start", &self.hooks, deadline) {
            Ok(()) => Word::Hooked,
            // What follows is what follows the program's end.
            Err(_) if matches!(self.running.status(), Known::Ended(_)) => return false,
            Err(failed) => Word::HookFailed(failed),
        };
        let done = matches!(word, Word::Hooked);
        // A supervisor that has gone needs no answer.
        let _ = self.to.send(word);
        done
    }
}

/// Runs the hooks before a stop; gives what is left of its grace.
pub(super) fn before_stop(
    agent: &Agent,
    running: &Running,
    hooks: &[Hook],
    grace: Duration,
) -> (Duration, Result<(), Failed>) {
    if hooks.is_empty() || matches!(running.status(), Known::Ended(_)) {
        return (grace, Ok(()));
    }
    let began = Instant::now();
    // What is longer than the clock can tell is not needed.
    let longest = Duration::from_secs(365 * 24 * 3600);
    let done = run(agent, running, "pre_stop", hooks, began + grace.min(longest));
    let left = grace.saturating_sub(began.elapsed()).max(REST.min(grace));
    (left, done)
}

fn run(
    agent: &Agent,
    running: &Running,
    key: &str,
    hooks: &[Hook],
    deadline: Instant,
) -> Result<(), Failed> {
    for (number, hook) in hooks.iter().enumerate() {
        let spec = ExecSpec {
            argv: hook.command.clone(),
            env: hook.env.clone(),
            user: hook.user.clone(),
            cwd: hook.working_dir.clone(),
            terminal: None,
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let failed = |how: String, output: &[u8]| Failed {
            how: format!("failed in {key}[{number}], `{}`: {how}", shown(&hook.command)),
            said: last_lines(output),
        };
        let outcome = agent
            .runtime
            .exec_capture(running, &spec, left)
            .map_err(|error| failed(Report::from_error(Exit::Failed, &error).to_string(), &[]))?;
        if outcome.timed_out {
            return Err(failed("it took too long".to_owned(), &outcome.output));
        }
        if outcome.code != 0 {
            return Err(failed(format!("exit {}", outcome.code), &outcome.output));
        }
    }
    Ok(())
}

fn shown(command: &[String]) -> String {
    let whole = command.join(" ").replace(|letter: char| letter.is_control(), " ");
    match whole.char_indices().nth(80) {
        Some((at, _)) => format!("{}…", &whole[..at]),
        None => whole,
    }
}

fn last_lines(output: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(output);
    let lines: Vec<&str> = text.lines().collect();
    let kept = &lines[lines.len().saturating_sub(LINES)..];
    kept.iter().map(|line| line.chars().take(LINE).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_short() {
        assert_eq!(shown(&["sh".to_owned(), "a\nb".to_owned()]), "sh a b");
        assert_eq!(shown(&["ä".repeat(200)]).chars().count(), 81);
        let output: Vec<u8> = (0..20).flat_map(|n| format!("{n}\n").into_bytes()).collect();
        assert_eq!(last_lines(&output).first().unwrap(), "10");
        assert!(last_lines(&[]).is_empty());
    }
}
