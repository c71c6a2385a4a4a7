//! Which process a temporary file belongs to, told by its name, so that the next one that opens
//! the root can tell what is left over from what is in use.

use std::fs;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// `BOOT.PID.START`: eight hex digits of the boot id, the process id, and the time that the
/// process started in clock ticks since boot (which tells reused process ids apart).
fn me() -> String {
    static ME: OnceLock<(u32, String)> = OnceLock::new();
    let pid = std::process::id();
    let make = || format!("{}.{pid}.{}", boot(), started(pid).unwrap_or(0));
    match ME.get_or_init(|| (pid, make())) {
        (of, me) if *of == pid => me.clone(),
        // A forked child is somebody else.
        _ => make(),
    }
}

/// A name that no other process or thread uses: `WHAT.BOOT.PID.START.N`.
pub(crate) fn unique(what: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{what}.{}.{}", me(), first() + COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Where this program began to count: nanoseconds since boot. An agent that replaces itself by
/// `exec` keeps its process id and start time, but counts from further on, so that what it made
/// before has a lower number.
fn first() -> u64 {
    static FIRST: OnceLock<u64> = OnceLock::new();
    *FIRST.get_or_init(|| {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    })
}

/// Whose a name made by [`unique`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// Its process runs.
    Alive,
    /// Its process is gone, the machine has been up since.
    Dead,
    /// It is from before the last boot: what was not synced may be lost.
    Rebooted,
    /// The name is of another form.
    Foreign,
}

/// Looks up the owner of `name`.
pub(crate) fn life(name: &str) -> Life {
    let parts: Vec<&str> = name.trim_start_matches('.').split('.').collect();
    let [_, its_boot, pid, start, count, ..] = parts[..] else { return Life::Foreign };
    let (Ok(pid), Ok(start), Ok(count)) = (pid.parse::<u32>(), start.parse(), count.parse::<u64>())
    else {
        return Life::Foreign;
    };
    let replaced = pid == std::process::id() && count < first();
    if its_boot != boot() {
        Life::Rebooted
    } else if started(pid) == Some(start) && !replaced {
        Life::Alive
    } else {
        Life::Dead
    }
}

/// Eight hex digits of this boot's id.
pub(crate) fn boot() -> &'static str {
    static BOOT: OnceLock<String> = OnceLock::new();
    BOOT.get_or_init(|| {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        id.chars().filter(char::is_ascii_hexdigit).take(8).collect()
    })
}

/// Start time of a process: field 22 of `/proc/PID/stat`. The second field, the command's name,
/// may hold spaces and parentheses, so fields are counted from the last `)`.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    // A zombie holds nothing open and never comes back.
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_names_are_alive_others_are_not() {
        let mine = unique("object");
        assert_eq!(life(&mine), Life::Alive);
        let mut parts: Vec<&str> = mine.split('.').collect();
        parts[3] = "1";
        assert_eq!(life(&parts.join(".")), Life::Dead);
        parts[1] = "00000000";
        assert_eq!(life(&parts.join(".")), Life::Rebooted);
        assert_eq!(life("notes.txt"), Life::Foreign);
        assert_ne!(unique("object"), mine);
        // The same process before it replaced itself.
        let mut parts: Vec<&str> = mine.split('.').collect();
        parts[4] = "12";
        assert_eq!(life(&parts.join(".")), Life::Dead);
    }
}
