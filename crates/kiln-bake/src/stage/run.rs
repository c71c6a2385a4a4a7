//! RUN: what the step is given, and what becomes of it.

use super::configure::with_shell;
use super::{Build, Stage, shown};
use crate::bake::Progress;
use crate::dockerfile::{self, CommandLine, Run};
use crate::error::{BakeError, FailedStep};
use crate::plan::lookup;
use crate::runner::StepExit;
use crate::step::{Command, Script, Tail};
use crate::users;

impl Build<'_> {
    pub(super) fn run(
        &mut self,
        state: &mut Stage,
        run: &Run,
        text: &str,
    ) -> Result<(), BakeError> {
        self.settle(state)?;
        let mut command = self.command(state, run)?;
        let key = command.key(&state.tree);
        if let Some(known) = self.store.step_result(&key) {
            state.tree = known.tree;
            self.found(self.number);
            return Ok(());
        }
        if lookup(&state.env, "HOME").is_none() {
            let tree = self.store.get_tree(&state.tree).map_err(BakeError::store)?;
            let home = users::home(self.store, &tree, &command.user);
            command.unkeyed.push(format!("HOME={home}"));
        }
        let mut tail = Tail::default();
        let (service, number) = (self.request.name.clone(), self.number);
        let progress = self.progress;
        let mut output = |bytes: &[u8]| {
            tail.push(bytes);
            progress(Progress::Output { service: service.clone(), number, bytes: bytes.to_vec() });
        };
        let ended = command.run(self.store, self.runner, &state.tree, &mut output);
        if (self.cancelled)() {
            return Err(BakeError::Cancelled);
        }
        match ended? {
            Ok(tree) => {
                state.tree = tree;
                self.remember(&key, tree)
            }
            Err(exit) => {
                let output = tail.finish();
                Err(BakeError::Step(Box::new(FailedStep {
                    number: self.number,
                    total: self.plan.steps,
                    text: shown(text),
                    file: self.label.clone(),
                    line: state.line,
                    how: how(exit),
                    hint: if run.network { None } else { network_hint(&output) },
                    output,
                })))
            }
        }
    }

    fn command(&self, state: &Stage, run: &Run) -> Result<Command, BakeError> {
        let (argv, script) = self.line(state, run)?;
        let config = &state.config;
        let mut env = state.env.clone();
        let epoch = crate::EPOCH.to_string();
        for (name, value) in
            [("SOURCE_DATE_EPOCH", epoch.as_str()), ("TZ", "UTC"), ("LC_ALL", "C.UTF-8")]
        {
            if lookup(&env, name).is_none() {
                env.push((name.into(), value.into()));
            }
        }
        let mut unkeyed = Vec::new();
        if run.network {
            for (name, value) in &self.request.args {
                if let (true, Some(value), None) = (is_proxy(name), value, lookup(&env, name)) {
                    unkeyed.push(format!("{name}={value}"));
                }
            }
        }
        Ok(Command {
            argv,
            env: env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
            unkeyed,
            cwd: config.working_dir.clone().unwrap_or_else(|| "/".into()),
            user: config.user.clone().unwrap_or_else(|| "0:0".into()),
            network: run.network,
            script,
        })
    }

    /// The command line. A here-document that is all of a RUN is the script itself, run by the
    /// shell or, with `#!`, on its own; with others the shell gets the text as it stands.
    fn line(&self, state: &Stage, run: &Run) -> Result<(Vec<String>, Option<Script>), BakeError> {
        let by_shell = |text: String| with_shell(&state.config, &CommandLine::Shell(text));
        let (CommandLine::Shell(text), Some(first)) = (&run.command, run.heredocs.first()) else {
            return Ok((with_shell(&state.config, &run.command), None));
        };
        if !dockerfile::is_heredoc(text).map_err(|what| self.wrong(state.line, what, ""))? {
            let mut whole = text.clone();
            for heredoc in &run.heredocs {
                whole.push('\n');
                whole.push_str(&heredoc.content);
                whole.push_str(&heredoc.name);
            }
            return Ok((by_shell(whole), None));
        }
        let content = first.text();
        if content.starts_with("#!") {
            let script = Script { name: first.name.clone(), content: content.into_bytes() };
            return Ok((vec![script.path()], Some(script)));
        }
        Ok((by_shell(content), None))
    }
}

/// A step without network that complains of it.
fn network_hint(output: &[String]) -> Option<String> {
    const SIGNS: [&str; 6] = [
        "could not resolve",
        "temporary failure",
        "name resolution",
        "network is unreachable",
        "name or service not known",
        "no such host",
    ];
    let text = output.join("\n").to_lowercase();
    let hint = "a step has no network unless it says `RUN --network=default …`";
    SIGNS.iter().any(|sign| text.contains(sign)).then(|| hint.to_owned())
}

fn is_proxy(name: &str) -> bool {
    ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"]
        .iter()
        .any(|known| known.eq_ignore_ascii_case(name))
}

fn how(exit: StepExit) -> String {
    match exit.signal {
        Some(signal) => format!("was killed by signal {signal}"),
        None => format!("failed with exit status {}", exit.code),
    }
}
