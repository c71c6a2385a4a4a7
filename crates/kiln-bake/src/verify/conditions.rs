//! The conditions of a run, and carrying a step out under them.
//!
//! The second run of a step differs from the first in all that an honest build does not depend
//! on, at once: that costs two runs. Only when the results differ are the conditions tried one by
//! one (see `experiment`).

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use kiln_store::mount::{attach, remove_tree, tmpfs};
use kiln_store::{Lower, Store};
use rustix::mount::MountAttrFlags;
use serde::{Deserialize, Serialize};

use crate::runner::{StepExit, StepRunner, StepSpec};

/// The number of the second run's first process.
const FIRST_PID: u32 = 20_000;
/// How far the second run's clocks since boot are ahead, in seconds: 35 days or so.
const UPTIME: u64 = 3_000_000;

/// What a step can see of the machine beyond its inputs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conditions {
    /// The processors that it may run on, by number.
    pub cores: Vec<usize>,
    /// The number that its first process gets; 2 if nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_pid: Option<u32>,
    /// Seconds that its clocks since boot are ahead of the machine's.
    pub uptime: u64,
    /// The tree is mounted in the way that the store does not use: EROFS lists names in order,
    /// folders of hard links as the disk's file system has them.
    pub other_lower: bool,
    /// What it writes goes to memory instead of the disk, where folders list the newest first.
    pub upper_in_memory: bool,
    /// A neighbour keeps the processor busy now and then.
    pub load: bool,
    /// `/proc` tells of another machine: boot id, kernel, command line, memory, processors.
    pub other_machine: bool,
}

/// One condition that can be varied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// Nothing but what no two runs have in common: the time, random numbers, addresses.
    Nothing,
    /// How the tree is mounted.
    Lower,
    /// What it writes to.
    Upper,
    /// The number of processors.
    Cores,
    /// Process ids.
    Pids,
    /// Clocks since boot.
    Uptime,
    /// Load.
    Load,
    /// The machine that `/proc` tells of.
    Machine,
}

/// What no run can vary, in words: it is the same for both, and another one on another machine.
pub const NOT_VARIED: [&str; 4] = [
    "the kernel's release and version are not varied: uname(2) tells them",
    "the size of memory is not varied: sysinfo(2) tells it",
    "the processor's model is not varied: its own instructions (CPUID) tell it",
    "the calendar is not varied: both runs have the same day, month and year",
];

impl Conditions {
    /// Those of the first run: all processors, nothing varied.
    pub fn plain(cores: &[usize]) -> Self {
        Self { cores: cores.to_vec(), ..Self::default() }
    }

    /// Those of the second run, with the processor that step `at` is bound to.
    pub fn varied(cores: &[usize], at: usize) -> Self {
        let core = cores.get(at % cores.len().max(1)).copied();
        Self {
            cores: core.into_iter().collect(),
            first_pid: Some(FIRST_PID),
            uptime: UPTIME,
            other_lower: true,
            upper_in_memory: true,
            load: true,
            other_machine: true,
        }
    }

    /// The plain conditions with one of these.
    pub(crate) fn only(&self, which: Condition, plain: &Self) -> Self {
        let mut one = plain.clone();
        match which {
            Condition::Nothing => {}
            Condition::Lower => one.other_lower = self.other_lower,
            Condition::Upper => one.upper_in_memory = self.upper_in_memory,
            Condition::Cores => one.cores.clone_from(&self.cores),
            Condition::Pids => one.first_pid = self.first_pid,
            Condition::Uptime => one.uptime = self.uptime,
            Condition::Load => one.load = self.load,
            Condition::Machine => one.other_machine = self.other_machine,
        }
        one
    }
}

impl Condition {
    /// All that can be varied, the likely ones first.
    pub(crate) const ALL: [Self; 7] = [
        Self::Lower,
        Self::Upper,
        Self::Cores,
        Self::Pids,
        Self::Uptime,
        Self::Machine,
        Self::Load,
    ];
}

/// One run of a step: under what, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Under what conditions.
    pub conditions: Conditions,
    /// When it began, in milliseconds since 1970.
    pub began: u64,
    /// When it ended.
    pub ended: u64,
}

/// Who runs steps under conditions that a sandbox has to provide: processors, process ids, clocks.
/// The rest of [`Conditions`] is provided here.
pub type Sandboxes<'a> = dyn Fn(&Conditions) -> Box<dyn StepRunner + 'a> + Sync + 'a;

/// Runs steps under one set of conditions. Dropped only when what the steps left was read.
pub(crate) struct Varied<'a> {
    store: &'a Store,
    inner: Box<dyn StepRunner + 'a>,
    conditions: Conditions,
    /// Bytes that an upper layer in memory may take.
    memory: u64,
    layers: Mutex<Vec<PathBuf>>,
}

impl<'a> Varied<'a> {
    pub(crate) fn new(
        store: &'a Store,
        sandboxes: &Sandboxes<'a>,
        conditions: Conditions,
        memory: u64,
    ) -> Self {
        let inner = sandboxes(&conditions);
        Self { store, inner, conditions, memory, layers: Mutex::default() }
    }

    /// Mounts memory where the layer goes.
    fn in_memory(&self, dir: &PathBuf) -> Result<(), String> {
        let told = |error: std::io::Error| format!("cannot put the layer into memory: {error}");
        fs::create_dir_all(dir).map_err(told)?;
        let memory = tmpfs(self.memory, 0o700, MountAttrFlags::empty()).map_err(told)?;
        attach(memory, dir).map_err(told)?;
        self.layers.lock().unwrap_or_else(PoisonError::into_inner).push(dir.clone());
        Ok(())
    }
}

impl Drop for Varied<'_> {
    fn drop(&mut self) {
        let tmp = self.store.root().join("tmp");
        let layers = self.layers.get_mut().unwrap_or_else(PoisonError::into_inner);
        for dir in layers.drain(..) {
            // What holds it could not be removed while the layer was mounted. What is left by a
            // failure goes when the root is next opened.
            let _ = remove_tree(&dir);
            if let Some(holder) = dir.parent().filter(|it| it.parent() == Some(&tmp)) {
                let _ = fs::remove_dir(holder);
            }
        }
    }
}

impl StepRunner for Varied<'_> {
    fn run(&self, spec: &StepSpec, output: &mut dyn FnMut(&[u8])) -> Result<StepExit, String> {
        let mut spec = spec.clone();
        let mut other = None;
        if self.conditions.other_lower {
            other = self.store.other_lower(&spec.lower).map_err(|error| error.to_string())?;
        }
        if let Some(lower) = &other {
            spec.lower = Lower::clone(lower);
        }
        if self.conditions.upper_in_memory {
            self.in_memory(&spec.upper_dir)?;
        }
        if !self.conditions.load {
            return self.inner.run(&spec, output);
        }
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| neighbour(&over, &self.conditions.cores));
            let ended = self.inner.run(&spec, output);
            over.store(true, Ordering::Release);
            ended
        })
    }
}

/// Keeps the step's processor busy in bursts of different lengths, for half a minute at most.
fn neighbour(over: &AtomicBool, cores: &[usize]) {
    const LONGEST: Duration = Duration::from_secs(30);
    let mut set = rustix::thread::CpuSet::new();
    cores.iter().for_each(|core| set.set(*core));
    // Of this thread only. Where it is not allowed, the load is spread.
    let _ = rustix::thread::sched_setaffinity(None, &set);
    let began = Instant::now();
    let mut bursts = [3_u64, 1, 7, 2, 11, 5].into_iter().cycle();
    while !over.load(Ordering::Acquire) && began.elapsed() < LONGEST {
        let burst = Duration::from_millis(bursts.next().unwrap_or(1));
        let until = Instant::now() + burst;
        while Instant::now() < until && !over.load(Ordering::Acquire) {
            std::hint::spin_loop();
        }
        std::thread::sleep(burst);
    }
}
