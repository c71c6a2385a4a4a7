//! The instructions that change only the image's configuration and the variables.

use kiln_core::ImageConfig;

use super::{Build, Stage};
use crate::dockerfile::{CommandLine, Instruction, ports};
use crate::error::BakeError;
use crate::globals;
use crate::plan::{lookup, set};
use crate::signal;

/// Arguments that speak to the builder only: in BuildKit, what its scanners look at.
const NO_VARIABLES: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

impl Build<'_> {
    /// The instructions that change only the configuration.
    pub(super) fn configure(
        &self,
        state: &mut Stage,
        instruction: &Instruction,
    ) -> Result<(), BakeError> {
        let config = &state.config;
        match instruction {
            Instruction::Arg(args) => self.arg(state, args)?,
            Instruction::Env(pairs) => {
                for (name, value) in self.pairs(state, pairs)? {
                    state.config.env_set(&name, &value);
                    set(&mut state.env, &name, &value);
                }
                self.bounded(state)?;
            }
            Instruction::Label(pairs) => {
                let pairs = self.pairs(state, pairs)?;
                state.config.labels.extend(pairs);
            }
            Instruction::Cmd(command) => {
                let line = with_shell(config, command);
                state.config.cmd = (!line.is_empty()).then_some(line);
                state.cmd_set = true;
            }
            Instruction::Entrypoint(command) => {
                let line = with_shell(config, command);
                state.config.entrypoint = (!line.is_empty()).then_some(line);
                if !state.cmd_set {
                    state.config.cmd = None;
                }
            }
            Instruction::User(user) => {
                let user = self.expand(state, user)?;
                state.config.user = (!user.is_empty()).then_some(user);
            }
            Instruction::Expose(specs) => self.expose(state, specs)?,
            Instruction::Healthcheck(check) => state.config.healthcheck = Some(check.clone()),
            Instruction::StopSignal(text) => {
                let text = self.expand(state, text)?;
                if !signal::is_known(&text) {
                    let what = format!("`{text}` is not a signal");
                    return Err(self.wrong(state.line, what, "write `SIGTERM` or a number"));
                }
                state.config.stop_signal = Some(text);
            }
            Instruction::Shell(shell) => state.config.shell = Some(shell.clone()),
            Instruction::OnBuild(text) => state.config.on_build.push(text.clone()),
            Instruction::Maintainer(text) => state.config.author = Some(text.clone()),
            Instruction::Volume(volumes) => {
                for volume in volumes {
                    let path = self.expand(state, volume)?;
                    if path.is_empty() {
                        return Err(self.wrong(state.line, "VOLUME has an empty path", ""));
                    }
                    state.config.volumes.insert(path);
                }
            }
            // Those have functions of their own.
            Instruction::Copy(_) | Instruction::Run(_) | Instruction::Workdir(_) => {}
        }
        Ok(())
    }

    fn expose(&self, state: &mut Stage, specs: &[String]) -> Result<(), BakeError> {
        for spec in specs {
            let words = self.lex().words(spec, &|name| lookup(&state.env, name));
            for word in words.map_err(|what| self.wrong(state.line, what, ""))? {
                self.spend(state.line, word.len())?;
                let found = ports::parse(&word)
                    .map_err(|what| self.wrong(state.line, what, "write `80` or `53/udp`"))?;
                state.config.exposed_ports.extend(found);
            }
        }
        Ok(())
    }

    fn pairs(
        &self,
        state: &Stage,
        pairs: &[(String, String)],
    ) -> Result<Vec<(String, String)>, BakeError> {
        let expand = |(name, value): &(String, String)| {
            Ok((self.expand(state, name)?, self.expand(state, value)?))
        };
        pairs.iter().map(expand).collect()
    }

    fn arg(&self, state: &mut Stage, args: &[(String, Option<String>)]) -> Result<(), BakeError> {
        for (name, default) in args {
            let value = match (self.given(name), default) {
                (Some(given), _) => Some(given.to_owned()),
                (None, Some(default)) => Some(self.expand(state, default)?),
                (None, None) => lookup(&self.plan.globals.values, name),
            };
            if let Some(value) = value.filter(|_| !NO_VARIABLES.contains(&name.as_str())) {
                set(&mut state.env, name, &value);
                self.bounded(state)?;
            }
        }
        Ok(())
    }

    fn bounded(&self, state: &Stage) -> Result<(), BakeError> {
        globals::bounded(&state.env).map_err(|what| self.wrong(state.line, what, ""))
    }

    /// Value of a build argument that the request gives.
    fn given(&self, name: &str) -> Option<&str> {
        self.plan.globals.args.get(name).map(String::as_str)
    }
}

/// The command line: as it is, or by the SHELL in force.
pub(super) fn with_shell(config: &ImageConfig, command: &CommandLine) -> Vec<String> {
    match command {
        CommandLine::Exec(args) => args.clone(),
        CommandLine::Shell(text) => {
            let default = || vec!["/bin/sh".into(), "-c".into()];
            let mut line = config.shell.clone().unwrap_or_else(default);
            line.push(text.clone());
            line
        }
    }
}
