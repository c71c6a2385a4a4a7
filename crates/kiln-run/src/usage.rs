//! What a running instance uses of the machine, by the kernel's word.

use std::fs;
use std::io::{self, Read as _};
use std::path::Path;
use std::time::Instant;

use crate::cgroup::Group;
use crate::running::Running;

/// Bytes of one of the kernel's tables: an instance may have as many interfaces as it likes.
const TABLE: u64 = 1 << 20;

/// A look at what an instance uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// When it was looked.
    pub at: Instant,
    /// Processor time so far, in microseconds.
    pub cpu_us: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Whether the kernel counted them for the group. Else it is the sum over its processes, of which
    /// shared pages count in parts, and without what only the page cache has.
    pub counted: bool,
    /// Most bytes of memory that it may use, if that is limited.
    pub memory_limit: Option<u64>,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes that came over its network, and that went; nothing where it has none of its own.
    pub net: Option<(u64, u64)>,
}

impl Running {
    /// What it uses now.
    ///
    /// # Errors
    /// When the kernel does not tell: it has ended, most likely.
    pub fn usage(&self) -> io::Result<Usage> {
        let group = self.cgroups.existing(&self.group);
        let stat = group.read("cpu.stat")?;
        let cpu_us = word(&stat, "usage_usec ").unwrap_or(0);
        let (memory, counted) = memory(&group)?;
        let net = fs::File::open(format!("/proc/{}/net/dev", self.pid())).and_then(|file| {
            let mut table = String::new();
            file.take(TABLE).read_to_string(&mut table)?;
            Ok(traffic(&table))
        });
        Ok(Usage {
            at: Instant::now(),
            cpu_us,
            memory,
            counted,
            memory_limit: limit(&group),
            pids: group.tasks(),
            net: net.ok(),
        })
    }
}

fn word(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// Of the group where a controller counts for it, else of its processes together.
fn memory(group: &Group) -> io::Result<(u64, bool)> {
    for file in ["memory.current", "memory.usage_in_bytes"] {
        if let Some(bytes) = group.value(file) {
            return Ok((bytes, true));
        }
    }
    let pids = group.read("cgroup.procs")?;
    let kilobytes: u64 =
        pids.lines().filter_map(|pid| resident(Path::new("/proc").join(pid))).sum();
    Ok((kilobytes.saturating_mul(1024), false))
}

/// Kilobytes of one process, shared ones in parts. One that has just ended has none.
fn resident(process: impl AsRef<Path>) -> Option<u64> {
    let text = fs::read_to_string(process.as_ref().join("smaps_rollup")).ok()?;
    word(&text.replace("kB", ""), "Pss:")
}

/// The kernel says "no limit" by a word, or by a number that no machine has.
fn limit(group: &Group) -> Option<u64> {
    let files = ["memory.max", "memory.limit_in_bytes"];
    files.iter().find_map(|file| group.value(file)).filter(|bytes| *bytes < 1 << 60)
}

/// Received and sent, of all interfaces but the loopback. Source: proc_pid_net(5).
fn traffic(table: &str) -> (u64, u64) {
    let mut sum = (0_u64, 0_u64);
    for line in table.lines().skip(2) {
        let Some((name, counters)) = line.split_once(':') else { continue };
        if name.trim() == "lo" {
            continue;
        }
        let mut counters = counters.split_whitespace().map(|word| word.parse().unwrap_or(0));
        sum.0 = sum.0.saturating_add(counters.next().unwrap_or(0));
        sum.1 = sum.1.saturating_add(counters.nth(7).unwrap_or(0));
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let table = "Inter-|   Receive                            |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes packets\n\
            \x20   lo:     100       1    0    0    0     0          0         0      100       1 0\n\
            \x20 eth0:    1234       5    0    0    0     0          0         0     4321       6 0\n";
        assert_eq!(traffic(table), (1234, 4321));
        assert_eq!(traffic(""), (0, 0));
        assert_eq!(word("usage_usec 17\nuser_usec 9\n", "usage_usec "), Some(17));
        assert!(resident("/proc/self").unwrap() > 100);
    }
}
