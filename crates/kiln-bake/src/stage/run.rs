//! RUN: what the step is given, and what becomes of it.

use std::collections::BTreeMap;

use kiln_core::Digest;

use super::configure::with_shell;
use super::{Build, Stage, shown};
use crate::bake::{Act, Progress, RecordedStep};
use crate::dockerfile::{self, CommandLine, Run};
use crate::error::{BakeError, FailedStep};
use crate::mount::{Caches, caches};
use crate::plan::{Source, lookup};
use crate::runner::StepExit;
use crate::step::{Command, HOSTNAME, Script, Tail};
use crate::users;

impl Build<'_> {
    pub(super) fn run(
        &self,
        state: &mut Stage,
        run: &Run,
        sources: &[Source],
        text: &str,
    ) -> Result<(), BakeError> {
        self.settle(state)?;
        let mut command = self.command(state, run, sources)?;
        let key = command.key(&state.tree);
        let Some(_turn) = self.store.step_turn(&key, &|| self.cancelled()) else {
            return Err(BakeError::Cancelled);
        };
        let known = self.store.step_result(&key);
        if (known.is_none() || self.record.is_some()) && lookup(&state.env, "HOME").is_none() {
            let tree = self.store.get_tree(&state.tree).map_err(BakeError::store)?;
            let home = users::home(self.store, &tree, &command.user);
            command.unkeyed.push(format!("HOME={home}"));
        }
        if let Some(known) = known {
            self.record(state, text, Act::Run(Box::new(command)), known.tree);
            state.tree = known.tree;
            self.found(state.number);
            return Ok(());
        }
        let mut tail = Tail::default();
        let (service, number) = (self.request.name.clone(), state.number);
        let progress = self.progress;
        let mut output = |bytes: &[u8]| {
            tail.push(bytes);
            progress(Progress::Output { service: service.clone(), number, bytes: bytes.to_vec() });
        };
        let given_up = || self.cancelled();
        let ended = command.carry_out(
            self.store,
            self.runner,
            &state.tree,
            &self.stop,
            &given_up,
            &mut output,
        );
        if self.cancelled() {
            return Err(BakeError::Cancelled);
        }
        let (exit, left) = ended.map_err(|error| self.not_started(state, text, error))?;
        for notice in &exit.notices {
            let text = format!("{}:{}: `{}`: {notice}", self.label, state.line, shown(text));
            (self.progress)(Progress::Notice { service: self.request.name.clone(), number, text });
        }
        match left {
            Some(tree) => {
                self.record(state, text, Act::Run(Box::new(command)), tree);
                state.tree = tree;
                self.remember(&key, tree)
            }
            None => {
                let output = tail.finish();
                let hint = if command.network { None } else { network_hint(&output) };
                Err(self.failed(state, text, how(&exit), output, hint))
            }
        }
    }

    /// A step that failed, with its place.
    fn failed(
        &self,
        state: &Stage,
        text: &str,
        how: String,
        output: Vec<String>,
        hint: Option<String>,
    ) -> BakeError {
        BakeError::Step(Box::new(FailedStep {
            number: state.number,
            total: self.plan.steps,
            text: shown(text),
            file: self.label.clone(),
            line: state.line,
            how,
            output,
            hint,
        }))
    }

    /// What says no more than that a step could not be carried out, or that what it left cannot be
    /// read, gets its place.
    fn not_started(&self, state: &Stage, text: &str, error: BakeError) -> BakeError {
        match error {
            BakeError::Failed(what) => {
                self.failed(state, text, format!("failed: {what}"), Vec::new(), None)
            }
            BakeError::Io { .. } | BakeError::Store(_) => {
                self.failed(state, text, format!("failed: {error}"), Vec::new(), None)
            }
            other => other,
        }
    }

    /// Tells whoever records the steps.
    pub(super) fn record(&self, state: &Stage, text: &str, act: Act, output: Digest) {
        let Some(record) = self.record else { return };
        record(RecordedStep {
            service: self.request.name.clone(),
            number: state.number,
            total: self.plan.steps,
            text: shown(text),
            file: self.label.clone(),
            line: state.line,
            act,
            input: state.tree,
            output,
        });
    }

    fn command(&self, state: &Stage, run: &Run, sources: &[Source]) -> Result<Command, BakeError> {
        let options = &self.request.options;
        let network = run.network.unwrap_or(options.network);
        let (argv, script) = self.line(state, run)?;
        let config = &state.config;
        let mut env = state.env.clone();
        let given = self.plan.globals.epoch;
        let epoch = given.map_or_else(|| crate::EPOCH.to_string(), |epoch| epoch.to_string());
        for (name, value) in
            [("SOURCE_DATE_EPOCH", epoch.as_str()), ("TZ", "UTC"), ("LC_ALL", "C.UTF-8")]
        {
            if lookup(&env, name).is_none() {
                env.push((name.into(), value.into()));
            }
        }
        let hostname = self.plan.globals.args.get("BUILDKIT_SANDBOX_HOSTNAME");
        let hostname = hostname.filter(|name| !name.is_empty());
        let mut unkeyed = Vec::new();
        if network {
            let proxies = proxies(&self.request.args).into_iter();
            let free = proxies.filter(|(name, _)| lookup(&env, name).is_none());
            unkeyed.extend(free.map(|(name, value)| format!("{name}={value}")));
        }
        Ok(Command {
            argv,
            env: env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
            unkeyed,
            cwd: config.working_dir.clone().unwrap_or_else(|| "/".into()),
            // By name, so that root has the groups that the image gives it.
            user: config.user.clone().unwrap_or_else(|| "0".into()),
            hostname: hostname.cloned().unwrap_or_else(|| HOSTNAME.into()),
            network,
            script,
            mounts: self.mounts(state, &run.mounts, sources)?,
            caches: Caches::Kept(caches::room(self.store.root())),
            shm_size: options.shm_size,
            ulimits: options.ulimits.clone(),
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

/// The proxies among the build arguments, each in capitals and in small letters, for programs ask
/// for either. The one in small letters counts, if both are given.
fn proxies(args: &BTreeMap<String, Option<String>>) -> Vec<(String, String)> {
    let kinds = ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"];
    let given = kinds.into_iter().filter_map(|kind| {
        let same = args.iter().filter(|(name, _)| name.eq_ignore_ascii_case(kind));
        let value = same.filter_map(|(_, value)| value.clone()).next_back()?;
        let value = Some(value).filter(|value| !value.is_empty())?;
        Some([(kind.to_ascii_uppercase(), value.clone()), (kind.to_owned(), value)])
    });
    given.flatten().collect()
}

fn how(exit: &StepExit) -> String {
    if let Some(stopped) = &exit.stopped {
        return stopped.clone();
    }
    match exit.signal {
        Some(signal) => format!("was killed by signal {signal}"),
        None => format!("failed with exit status {}", exit.code),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_given_in_both_cases() {
        let args = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().map(|(name, value)| (name.to_string(), value.to_string()));
            proxies(&pairs.map(|(name, value)| (name, Some(value))).collect())
        };
        let found = args(&[
            ("HTTP_PROXY", "upper"),
            ("http_proxy", "lower"),
            ("NO_PROXY", "none"),
            ("ftp_proxy", ""),
            ("OTHER", "x"),
        ]);
        let found: Vec<String> =
            found.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let expected = ["HTTP_PROXY=lower", "http_proxy=lower", "NO_PROXY=none", "no_proxy=none"];
        assert_eq!(found, expected);
        assert_eq!(args(&[("FOO", "bar")]), []);
    }
}
