//! Steps run in the same sandbox as instances.

use std::sync::atomic::AtomicBool;

use kiln_bake::{StepExit, StepRunner, StepSpec};
use kiln_core::exit::Exit;

use crate::agent::Agent;
use crate::report::Report;

/// Runs steps for an agent until the flag is set.
pub(super) struct Steps<'a>(pub(super) &'a Agent, pub(super) &'a AtomicBool);

impl StepRunner for Steps<'_> {
    fn run(&self, spec: &StepSpec, output: &mut dyn FnMut(&[u8])) -> Result<StepExit, String> {
        let mounts = spec.mounts.iter().map(|mount| kiln_run::BindMount {
            source: mount.source.clone(),
            target: mount.target.clone(),
            read_only: mount.read_only,
        });
        let step = kiln_run::StepSpec {
            lower: spec.lower.clone(),
            upper_dir: spec.upper_dir.clone(),
            argv: spec.argv.clone(),
            env: spec.env.clone(),
            cwd: spec.cwd.clone(),
            user: spec.user.clone(),
            hostname: spec.hostname.clone(),
            mounts: mounts.collect(),
            stdin: spec.stdin.clone(),
            network: spec.network,
            rootful: spec.rootful,
        };
        let exit = self.0.runtime.run_step_unless(&step, self.1, output).map_err(|error| {
            let report = Report::from_error(Exit::Failed, &error);
            report.to_string()
        })?;
        Ok(StepExit { code: exit.code, signal: exit.signal })
    }
}
