//! The proof of "same source, same bits": every recorded step is carried out twice from the same
//! tree, under conditions as different as an honest build bears, and the results are compared with
//! one another and with the recorded one. `docs/verify.md` has the reasons.
//!
//! As each step begins from a *recorded* tree, all are verified apart: they run in parallel, and a
//! step that diverges does not spoil the verdict of those behind it.
//!
//! | module | noun |
//! |---|---|
//! | [`conditions`] | what is varied, and running a step under it |
//! | [`attempt`] | one run of one step, and how it ended |
//! | [`judge`] | two runs and a record → a verdict |
//! | [`experiment`] | which condition makes the difference |
//! | [`second`] | whether what looks random follows the clock |
//! | [`compare`] | two trees → what differs |
//! | [`recognise`] | two values → the probable cause |
//! | [`cause`] | the causes in words, with their cures |
//! | [`reach`] | what of it gets into an image |
//! | [`telling`] | dates and machines in what is the same |
//! | [`report`] | what was found, as values |

mod attempt;
pub mod cause;
mod compare;
pub mod conditions;
mod experiment;
mod judge;
mod reach;
mod recognise;
pub mod report;
mod second;
mod telling;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use kiln_core::{Digest, ImageId, Tree};
use kiln_store::Store;

pub use self::cause::{Cause, Finding};
pub use self::conditions::{Condition, Conditions, NOT_VARIED, Run, Sandboxes};
pub use self::reach::mark_left_behind;
pub use self::recognise::now;
pub use self::report::{Difference, Failure, PathDifference, StepReport, Value, Verdict};

use self::attempt::Attempt;
use crate::bake::{Act, RecordedStep};
use crate::base::LockedBase;
use crate::error::BakeError;

/// Between the beginnings of a step's two runs: times in zip files count in steps of two seconds.
pub const APART: Duration = Duration::from_millis(2_100);
/// How often a wait looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(20);
/// Memory that a step is reckoned to need; no more run at once than fit.
const STEP_MEMORY: u64 = 2 << 30;

/// What is to be verified.
#[derive(Debug, Clone)]
pub enum Subject {
    /// A step of a Dockerfile.
    Step(RecordedStep),
    /// A base, which is configured again.
    Base {
        /// Its name.
        name: String,
        /// What it is made of.
        locked: Box<LockedBase>,
        /// What was made of it.
        image: ImageId,
    },
}

/// What it takes to verify.
pub struct Verifier<'a> {
    /// The store that the steps were baked in. A lease is held by the caller.
    pub store: &'a Store,
    /// Who runs steps.
    pub sandboxes: &'a Sandboxes<'a>,
    /// Set to end it.
    pub cancel: &'a AtomicBool,
    /// Told of what goes on, in words.
    pub told: &'a (dyn Fn(&str) + Sync),
    /// The processors that steps may run on, by number.
    pub cores: Vec<usize>,
}

impl std::fmt::Debug for Verifier<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("cores", &self.cores).finish_non_exhaustive()
    }
}

impl Verifier<'_> {
    /// Verifies `subjects` and gives a report of each, in order. What occurs twice is run once.
    ///
    /// # Errors
    /// [`BakeError::Cancelled`], or a failure of the store or the sandbox. A step that fails or
    /// diverges is no error.
    pub fn verify(&self, subjects: &[Subject]) -> Result<Vec<StepReport>, BakeError> {
        let mut places = Vec::new();
        let mut unique: Vec<&Subject> = Vec::new();
        let mut known = HashMap::new();
        for subject in subjects {
            let at = *known.entry(subject.key()).or_insert_with(|| {
                unique.push(subject);
                unique.len() - 1
            });
            places.push(at);
        }
        let workers = self.workers();
        let memory = available_memory() / 4 / workers as u64;
        let all: Vec<usize> = (0..unique.len()).collect();
        let done = AtomicUsize::new(0);
        let runs = 2 * unique.iter().filter(|subject| subject.runs()).count();
        let tell = || {
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            (self.told)(&format!("{done} of {runs} runs"));
        };
        let firsts = self.each(workers, &all, |at| {
            let Some(attempt) = Attempt::of(self, unique[at], memory) else { return Ok(None) };
            let began = Instant::now();
            let ended = attempt.run(Conditions::plain(&self.cores))?;
            tell();
            Ok(Some((began, ended)))
        })?;
        let seconds = self.each(workers, &all, |at| {
            let (Some(attempt), Some((began, _))) =
                (Attempt::of(self, unique[at], memory), &firsts[at])
            else {
                return Ok(None);
            };
            self.wait_until(*began + APART)?;
            let ended = attempt.run_varied(Conditions::varied(&self.cores, at))?;
            tell();
            Ok(Some(ended))
        })?;
        let reports = self.each(workers, &all, |at| {
            let runs = firsts[at].as_ref().map(|(_, first)| first).zip(seconds[at].as_ref());
            judge::judge(self, unique[at], runs, memory)
        })?;
        let report = |(at, subject): (&usize, &Subject)| subject.named(reports[*at].clone());
        Ok(places.iter().zip(subjects).map(report).collect())
    }

    /// How many steps run at once.
    fn workers(&self) -> usize {
        let fit = usize::try_from(available_memory() / STEP_MEMORY).unwrap_or(usize::MAX);
        self.cores.len().min(fit).max(1)
    }

    fn check(&self) -> Result<(), BakeError> {
        match self.cancel.load(Ordering::Acquire) {
            true => Err(BakeError::Cancelled),
            false => Ok(()),
        }
    }

    fn wait_until(&self, due: Instant) -> Result<(), BakeError> {
        loop {
            self.check()?;
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(LOOK));
        }
    }

    /// Calls `work` for every item on a bounded number of threads; results in order. The first
    /// error ends it.
    fn each<R: Send>(
        &self,
        workers: usize,
        items: &[usize],
        work: impl Fn(usize) -> Result<R, BakeError> + Sync,
    ) -> Result<Vec<R>, BakeError> {
        let next = AtomicUsize::new(0);
        let done: Mutex<Vec<(usize, Result<R, BakeError>)>> = Mutex::default();
        let worker = || {
            while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                let result = self.check().and_then(|()| work(*item));
                if result.is_err() {
                    next.store(items.len(), Ordering::Relaxed);
                }
                done.lock().unwrap_or_else(PoisonError::into_inner).push((*item, result));
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..workers.min(items.len()) {
                scope.spawn(worker);
            }
            worker();
        });
        let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.sort_by_key(|(at, _)| *at);
        let own = |error: &BakeError| !matches!(error, BakeError::Cancelled);
        if let Some(at) = done.iter().position(|(_, result)| result.as_ref().is_err_and(own)) {
            done.swap(0, at);
        }
        done.into_iter().map(|(_, result)| result).collect()
    }
}

impl Subject {
    /// What makes two subjects one.
    fn key(&self) -> (Digest, Digest) {
        match self {
            Self::Base { locked, image, .. } => (crate::base::key(locked), image.tree),
            Self::Step(step) => match &step.act {
                Act::Run(command) => (command.key(&step.input), step.output),
                Act::Edits(edits) => {
                    let places = edits.iter().map(|edit| edit.number as u64);
                    let key = crate::key::Key::new("verified edits").text(&step.service);
                    let key = places.fold(key.digest(&step.input), crate::key::Key::number);
                    (key.finish(), step.output)
                }
            },
        }
    }

    /// Whether it has anything to run.
    fn runs(&self) -> bool {
        !matches!(self, Self::Step(RecordedStep { act: Act::Edits(_), .. }))
    }

    /// The digest of the tree that was recorded.
    fn recorded(&self) -> Digest {
        match self {
            Self::Base { image, .. } => image.tree,
            Self::Step(step) => step.output,
        }
    }

    /// A report of an equal subject, as one of this.
    fn named(&self, mut report: StepReport) -> StepReport {
        match self {
            Self::Base { name, .. } => {
                report.text = format!("base {name}");
            }
            Self::Step(step) => {
                report.number = step.number;
                report.text.clone_from(&step.text);
                report.file.clone_from(&step.file);
                report.line = step.line;
            }
        }
        report
    }
}

/// Compares two trees, each in a store; of the runs that made them, more or less may be known.
///
/// # Errors
/// A content cannot be read.
pub fn compare_trees(
    names: [&str; 2],
    trees: [&Tree; 2],
    stores: [&Store; 2],
    runs: [Option<&Run>; 2],
) -> Result<Option<Difference>, BakeError> {
    let side = |at: usize| compare::Side {
        name: names[at],
        tree: trees[at],
        store: stores[at],
        run: runs[at],
    };
    compare::compare([side(0), side(1)])
}

/// The numbers of the processors that this process may run on.
pub fn available_cores() -> Vec<usize> {
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    let set = rustix::thread::sched_getaffinity(None);
    let all =
        set.map(|set| (0..rustix::thread::CpuSet::MAX_CPU).filter(|at| set.is_set(*at)).collect());
    all.unwrap_or_else(|_| (0..count).collect())
}

/// Bytes of memory that can be had without swapping; 1 GiB where the kernel does not say.
fn available_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kilobytes =
        line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kilobytes.map_or(1 << 30, |kilobytes| kilobytes << 10)
}
