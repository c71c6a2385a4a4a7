//! What a step can see of the machine beyond its inputs, varied on purpose: `kiln verify` runs a
//! step under two sets of conditions and compares what it leaves.

use std::fs;
use std::path::Path;

use rustix::thread::{CpuSet, sched_setaffinity};
use serde::{Deserialize, Serialize};

use crate::error::{Context as _, Fault};
use crate::sys;

/// Conditions of one run; the default varies nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conditions {
    /// The processors that the step may run on, by number; empty: all of them.
    #[serde(default)]
    pub cores: Vec<usize>,
    /// The first process that the step starts gets this number, the next ones those above; its
    /// own is 1. The kernel counts from 2 if it is not given.
    #[serde(default)]
    pub first_pid: Option<u32>,
    /// Seconds that the step's clocks since boot are ahead of the machine's.
    #[serde(default)]
    pub uptime: u64,
    /// `/proc` tells of another machine than of the one that all steps see.
    #[serde(default)]
    pub other_machine: bool,
}

impl Conditions {
    /// What of these conditions this kernel can do, and in words what it cannot.
    pub fn possible(mut self) -> (Self, Vec<String>) {
        let mut missing = Vec::new();
        if self.first_pid.is_some() && !Path::new("/proc/sys/kernel/ns_last_pid").exists() {
            self.first_pid = None;
            missing.push("process ids are not varied: this kernel has no ns_last_pid".to_owned());
        }
        if self.uptime > 0 && !Path::new("/proc/self/timens_offsets").exists() {
            self.uptime = 0;
            missing.push("the time since boot is not varied: no time namespaces".to_owned());
        }
        (self, missing)
    }

    /// For the calling process and its children to come: processors and clocks. The caller has one
    /// thread and is no instance's.
    pub(crate) fn prepare(&self) -> Result<(), Fault> {
        if !self.cores.is_empty() {
            let mut set = CpuSet::new();
            self.cores.iter().for_each(|core| set.set(*core));
            sched_setaffinity(None, &set)
                .step(|| format!("run on the processors {:?} only", self.cores))?;
        }
        if self.uptime > 0 {
            sys::unshare_time().step(|| "make clocks of its own".to_owned())?;
            let offsets = format!("monotonic {0} 0\nboottime {0} 0\n", self.uptime);
            fs::write("/proc/self/timens_offsets", offsets)
                .step(|| format!("set the clocks ahead by {} s", self.uptime))?;
        }
        Ok(())
    }

    /// For the first process of a new pid namespace, while the host's `/proc` is still there.
    pub(crate) fn enter(&self) -> Result<(), Fault> {
        let Some(first) = self.first_pid else { return Ok(()) };
        fs::write("/proc/sys/kernel/ns_last_pid", first.saturating_sub(1).to_string())
            .step(|| format!("begin to count processes at {first}"))
    }
}
