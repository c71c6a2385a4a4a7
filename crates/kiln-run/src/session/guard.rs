//! What a step may not do to the machine: start processes without end, fill the disk, or take all
//! memory. The session looks at these all the time, ahead of everything that the step runs, and kills the step
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
    /// Bytes of the machine's memory that stay available; half of what was when the step began, if
    /// that is less.
    pub(crate) memory: u64,
}

/// The look-out for one step.
#[derive(Debug)]
pub(super) struct Guard<'a> {
    bounds: Bounds,
    group: &'a Group,
    /// Bytes and inodes that have to stay free.
    floor: (u64, u64),
    /// Bytes of memory that have to stay available.
    memory: u64,
    /// How many there are.
    available: fn() -> Option<u64>,
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
        let memory = bounds.memory.min(sys::available_memory().unwrap_or(0) / 2);
        let killed_before = sys::out_of_memory_kills();
        let available = sys::available_memory;
        Self { bounds, group, floor, memory, available, stopped: None, killed_before }
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
        self.memory_too_far().or_else(|| self.disk_too_far())
    }

    /// Where others take the machine's memory, ending the step would help nobody: it has to hold
    /// as much itself as is to stay available.
    fn memory_too_far(&self) -> Option<Stopped> {
        let available = (self.available)().filter(|free| *free < self.memory)?;
        let held = self.group.memory();
        (held >= self.memory).then_some(Stopped::MachineMemory { available, held })
    }

    fn disk_too_far(&self) -> Option<Stopped> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Cgroups;
    use kiln_core::compose::Limits;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    #[test]
    fn a_step_that_takes_the_machines_memory_is_ended_and_one_that_holds_little_is_not() {
        let name = format!("kiln/test-guard-{}", std::process::id());
        let group = Cgroups::find().unwrap().group(&name, &Limits::default()).unwrap();
        // It fills a block of that size and cannot get rid of it.
        let mut holder = Command::new("dd")
            .args(["if=/dev/zero", "bs=64M"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pid = i32::try_from(holder.id()).unwrap();
        group.take_in(pid);
        let deadline = Instant::now() + Duration::from_secs(30);
        while group.memory() < 64 << 20 {
            assert!(Instant::now() < deadline, "it holds {}", group.memory());
            std::thread::yield_now();
        }
        let bounds = |memory| Bounds { tasks: 100, disk: "/nowhere".into(), reserve: 0, memory };
        // Others took it: this one holds less than is to stay.
        let mut guard = Guard::new(bounds(256 << 20), &group);
        (guard.memory, guard.available) = (256 << 20, || Some(1 << 20));
        guard.look();
        assert_eq!(guard.end().0, None);
        // There is enough.
        let mut guard = Guard::new(bounds(32 << 20), &group);
        (guard.memory, guard.available) = (32 << 20, || Some(33 << 20));
        guard.look();
        assert_eq!(guard.end().0, None);
        let mut guard = Guard::new(bounds(32 << 20), &group);
        (guard.memory, guard.available) = (32 << 20, || Some(31 << 20));
        guard.look();
        let Some(Stopped::MachineMemory { available, held }) = guard.end().0 else {
            panic!("it was not ended")
        };
        assert!(available == 31 << 20 && held >= 64 << 20, "{available} {held}");
        holder.wait().unwrap();
        assert!(group.wait_empty(Duration::from_secs(30)));
        group.remove().unwrap();
    }
}
