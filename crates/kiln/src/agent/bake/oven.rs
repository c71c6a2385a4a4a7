//! Where and how a bake happens: in the agent's own store, or in one that is there for a proof.

use std::sync::atomic::AtomicBool;

use kiln_bake::verify::Conditions;
use kiln_bake::{Progress, RecordedStep, StepExit, StepRunner, StepSpec};
use kiln_core::ImageId;
use kiln_store::Store;

use super::steps::Steps;
use crate::agent::Agent;

/// Told of the steps of a bake.
pub(crate) type Recorder<'a> = dyn Fn(RecordedStep) + Sync + 'a;

/// Told of the bases of a bake.
pub(crate) type BaseRecorder<'a> = dyn Fn(&str, ImageId) + Sync + 'a;

/// A store and who runs the steps.
#[derive(Clone, Copy)]
pub(crate) struct Oven<'a> {
    pub store: &'a Store,
    pub runner: &'a dyn StepRunner,
    /// Told of every step with its result.
    pub record: Option<&'a Recorder<'a>>,
    /// Told of everything that happens, beside the user.
    pub told: Option<&'a (dyn Fn(&Progress) + Sync)>,
    /// Told of every base that is used, once.
    pub base: Option<&'a BaseRecorder<'a>>,
    /// Whether bases are kept from collection: in a store that is thrown away they are not.
    pub keeps: bool,
    /// Whether what the lock does not pin is refused: it is part of a commit.
    pub frozen: bool,
}

impl<'a> Oven<'a> {
    /// One in `store` that tells nobody.
    pub(crate) fn new(store: &'a Store, runner: &'a dyn StepRunner) -> Self {
        Self { store, runner, record: None, told: None, base: None, keeps: true, frozen: false }
    }
}

/// Runs steps for an agent under conditions that are varied on purpose.
pub(crate) struct VariedSteps<'a> {
    agent: &'a Agent,
    cancelled: &'a AtomicBool,
    conditions: kiln_run::Conditions,
}

impl<'a> VariedSteps<'a> {
    /// Steps under `conditions`, as far as the kernel can.
    pub(crate) fn new(
        agent: &'a Agent,
        cancelled: &'a AtomicBool,
        conditions: &Conditions,
    ) -> Self {
        Self { agent, cancelled, conditions: sandbox(conditions).0 }
    }

    /// What of `conditions` this machine cannot vary, in words.
    pub(crate) fn missing(conditions: &Conditions) -> Vec<String> {
        sandbox(conditions).1
    }
}

impl StepRunner for VariedSteps<'_> {
    fn run(&self, spec: &StepSpec, output: &mut dyn FnMut(&[u8])) -> Result<StepExit, String> {
        Steps(self.agent, self.cancelled).run_under(&self.conditions, spec, output)
    }
}

fn sandbox(conditions: &Conditions) -> (kiln_run::Conditions, Vec<String>) {
    kiln_run::Conditions {
        cores: conditions.cores.clone(),
        first_pid: conditions.first_pid,
        uptime: conditions.uptime,
        other_machine: conditions.other_machine,
    }
    .possible()
}
