//! What a process inherits from whoever started it, put back to what Kiln says: a shell with a
//! `umask 077`, a `nice`, a `ulimit` or a `taskset` must reach neither an image nor an instance.
//!
//! Each process of Kiln's calls [`begin`] first thing, while it has one thread. What cannot be
//! undone stays: a hard limit without CAP_SYS_RESOURCE, a seccomp filter, a dropped capability.

mod groups;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitiesSecureBits, CpuSet};

use crate::sys;

/// The kernel's default, in nanoseconds.
const TIMER_SLACK: &str = "50000";
/// The kernel's default: anonymous memory, ELF headers, private huge pages.
const COREDUMP_FILTER: &str = "0x33";

/// What an agent takes over of its starter's environment: where programs and certificates are, by
/// which proxies one gets out, who called `sudo`, and Kiln's own switches.
const KEPT: [&str; 22] = [
    "ALL_PROXY",
    "GIT_SSL_CAINFO",
    "HOME",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "PATH",
    "RUST_BACKTRACE",
    "SSH_AUTH_SOCK",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "SUDO_COMMAND",
    "SUDO_GID",
    "SUDO_UID",
    "SUDO_USER",
    "USER",
    "all_proxy",
    "ftp_proxy",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "socks_proxy",
];

/// Soft and hard limits of a program that asks for nothing else, `-1` unlimited. The first three are
/// systemd's, as newer Dockers have them; those of memory locked and messages the kernel's own since
/// 5.16; processes and pending signals, which the kernel derives from the machine's memory, have one
/// number everywhere.
pub(crate) const LIMITS: [(&str, (i64, i64)); 16] = [
    ("nofile", (1024, 524_288)),
    ("stack", (8 << 20, -1)),
    ("core", (0, -1)),
    ("as", (-1, -1)),
    ("cpu", (-1, -1)),
    ("data", (-1, -1)),
    ("fsize", (-1, -1)),
    ("locks", (-1, -1)),
    ("memlock", (8 << 20, 8 << 20)),
    ("msgqueue", (819_200, 819_200)),
    ("nice", (0, 0)),
    ("nproc", (32_768, 32_768)),
    ("rss", (-1, -1)),
    ("rtprio", (0, 0)),
    ("rttime", (-1, -1)),
    ("sigpending", (32_768, 32_768)),
];

/// Every limit by name, as Compose has it.
pub(crate) fn resource(name: &str) -> Option<Resource> {
    Some(match name {
        "as" => Resource::As,
        "core" => Resource::Core,
        "cpu" => Resource::Cpu,
        "data" => Resource::Data,
        "fsize" => Resource::Fsize,
        "locks" => Resource::Locks,
        "memlock" => Resource::Memlock,
        "msgqueue" => Resource::Msgqueue,
        "nice" => Resource::Nice,
        "nofile" => Resource::Nofile,
        "nproc" => Resource::Nproc,
        "rss" => Resource::Rss,
        "rtprio" => Resource::Rtprio,
        "rttime" => Resource::Rttime,
        "sigpending" => Resource::Sigpending,
        "stack" => Resource::Stack,
        _ => return None,
    })
}

/// The limits of a program that asked for `asked`.
pub(crate) fn limits_beside(asked: &BTreeMap<String, (i64, i64)>) -> BTreeMap<String, (i64, i64)> {
    let limits = LIMITS.map(|(name, bounds)| (name.to_owned(), bounds));
    limits.into_iter().filter(|(name, _)| !asked.contains_key(name)).collect()
}

/// Puts the calling process, which has one thread, to what Kiln says. Nothing here can fail in a
/// way that matters more than going on: what the kernel refuses stays as it was.
pub fn begin() {
    rustix::process::umask(rustix::fs::Mode::from(0o022));
    sys::plain_scheduling();
    sys::plain_signals();
    sys::plain_task();
    let mut all = CpuSet::new();
    // The kernel takes those that are there and that the control group allows.
    (0..CpuSet::MAX_CPU).for_each(|cpu| all.set(cpu));
    let _ = rustix::thread::sched_setaffinity(None, &all);
    let _ = rustix::thread::set_capabilities_secure_bits(CapabilitiesSecureBits::empty());
    let _ = rustix::thread::clear_ambient_capability_set();
    for (file, value) in [
        ("/proc/self/oom_score_adj", "0"),
        ("/proc/self/timerslack_ns", TIMER_SLACK),
        ("/proc/self/coredump_filter", COREDUMP_FILTER),
    ] {
        let _ = fs::write(file, value);
    }
    // Kiln's own processes go as far as they may; programs get theirs from LIMITS.
    for (name, _) in LIMITS.iter().filter(|(name, _)| !matches!(*name, "stack" | "core")) {
        let Some(resource) = resource(name) else { continue };
        let maximum = getrlimit(resource).maximum;
        let _ = setrlimit(resource, Rlimit { current: maximum, maximum });
    }
}

/// As [`begin`], for the agent: it also leaves its starter's folder, environment and control
/// groups, and keeps no descriptor but the standard ones for those that it starts.
///
/// With `detached` it leaves the groups that only keep track, too: a logout or a service manager
/// takes it along else. `kiln serve` stays in those, for whoever started it looks after it.
pub fn begin_agent(detached: bool) {
    begin();
    sys::cloexec_from(3);
    let _ = rustix::process::chdir("/");
    let names: Vec<_> = std::env::vars_os().map(|(name, _)| name).collect();
    for name in names.iter().filter(|name| !kept(name)) {
        sys::forget_variable(name);
    }
    groups::leave(detached);
}

fn kept(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with("KILN_") || KEPT.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_of_the_kernel_is_stated() {
        let names = LIMITS.map(|(name, _)| name);
        assert!(names.iter().all(|name| resource(name).is_some()));
        // `Max …` lines of this kernel, so that a seventeenth limit is noticed.
        let text = fs::read_to_string("/proc/self/limits").unwrap();
        assert_eq!(text.lines().filter(|line| line.starts_with("Max")).count(), names.len());
    }

    #[test]
    fn of_the_environment_only_the_named_stays() {
        assert!(KEPT.is_sorted());
        for (name, stays) in
            [("PATH", true), ("KILN_STORE_BACKING", true), ("GIT_DIR", false), ("TZ", false)]
        {
            assert_eq!(kept(OsStr::new(name)), stays, "{name}");
        }
    }
}
