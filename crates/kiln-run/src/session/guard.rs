//! What a step may not do to the machine: start processes without end, or fill the disk. The
//! session looks at both all the time, ahead of everything that the step runs, and kills the step
//! before others notice.

use std::path::PathBuf;

use rustix::event::Timespec;
use serde::{Deserialize, Serialize};

use crate::cgroup::Group;
use crate::step::Stopped;
use crate::sys;

/// How often it looks: two cores start some hundred processes in such a time.
pub(super) const PERIOD: Timespec = Timespec { tv_sec: 0, tv_nsec: 25_000_000 };

/// What a step may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bounds {
    /// Processes and threads at a time.
    pub(crate) tasks: u64,
    /// A path of the file system that the step writes to.
    pub(crate) disk: PathBuf,
    /// Bytes of it that stay free; half of what was free when the step began, if that is less.
    pub(crate) reserve: u64,
}

/// The look-out for one step.
#[derive(Debug)]
pub(super) struct Guard<'a> {
    bounds: Bounds,
    group: &'a Group,
    /// Bytes and inodes that have to stay free.
    floor: (u64, u64),
    stopped: Option<Stopped>,
    killed_before: u64,
}

impl<'a> Guard<'a> {
    pub(super) fn new(bounds: Bounds, group: &'a Group) -> Self {
        // Else a step with thousands of processes would have it wait for its turn among them.
        sys::run_first();
        let floor = match rustix::fs::statvfs(&bounds.disk) {
            Ok(stat) => {
                let (free, inodes) = (stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_favail);
                // Some file systems do not count inodes, and say 0.
                (bounds.reserve.min(free / 2), (stat.f_files / 100).min(inodes / 2))
            }
            Err(_) => (0, 0),
        };
        Self { bounds, group, floor, stopped: None, killed_before: sys::out_of_memory_kills() }
    }

    /// Kills the step if it goes too far.
    pub(super) fn look(&mut self) {
        if self.stopped.is_some() {
            return;
        }
        self.stopped = self.too_far();
        if self.stopped.is_some() {
            self.group.kill();
        }
    }

    fn too_far(&self) -> Option<Stopped> {
        let most = self.bounds.tasks;
        if self.group.tasks() > most {
            return Some(Stopped::Processes { most });
        }
        let stat = rustix::fs::statvfs(&self.bounds.disk).ok()?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        (free < self.floor.0 || stat.f_favail < self.floor.1).then(|| Stopped::Disk {
            path: self.bounds.disk.clone(),
            free,
            inodes: stat.f_favail,
        })
    }

    /// Why the step was ended, if it was, and how many processes of the machine were killed for
    /// want of memory meanwhile.
    pub(super) fn end(self) -> (Option<Stopped>, u64) {
        let killed = sys::out_of_memory_kills().saturating_sub(self.killed_before);
        let memory = self.group.had_oom().then_some(Stopped::Memory);
        (self.stopped.or(memory), killed)
    }
}
