//! What a root left behind on the machine.
//!
//! Other tests run at the same time, so a comparison of before and after would blame the wrong
//! one. What belongs to a root is told by two texts instead: the root's path, and its *scope*, the
//! word that Kiln puts into every name that it makes on the machine. Roots and their scopes stand
//! in `/run/kiln/ranges`, one JSON object a line.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::call::Call;

/// Where roots claim their addresses and their scopes.
const CLAIMS: &str = "/run/kiln/ranges";
/// The name of an interface has room for the beginning of the scope only.
const IN_INTERFACE: usize = 6;

/// The scope that a root has claimed, if it holds one now.
pub fn scope_of(root: &Path) -> Option<String> {
    let claims = fs::read_to_string(CLAIMS).ok()?;
    let claims = claims.lines().filter_map(|line| serde_json::from_str(line).ok());
    let mut own = claims.filter(|claim: &serde_json::Value| {
        claim.get("root").and_then(|value| value.as_str()).map(Path::new) == Some(root)
    });
    Some(own.next()?.get("scope")?.as_str()?.to_owned())
}

/// A process that has to do with a root.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Its command line, joined by spaces.
    pub command: String,
}

impl Process {
    /// Sends a signal, to this one process only.
    ///
    /// # Panics
    /// If it is gone.
    #[track_caller]
    pub fn signal(&self, signal: rustix::process::Signal) {
        let sent = rustix::process::Pid::from_raw(self.pid.cast_signed())
            .map(|pid| rustix::process::kill_process(pid, signal));
        assert!(matches!(sent, Some(Ok(()))), "cannot signal {self:?}: {sent:?}");
    }

    /// Whether it still runs; a zombie does not.
    pub fn runs(&self) -> bool {
        command(self.pid).as_ref() == Some(&self.command)
    }
}

/// Everything that was found; empty after a clean end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Processes that name the root in their command line, environment, directories or mounts, or
    /// are in a cgroup of the scope.
    pub processes: BTreeSet<Process>,
    /// Mounts at or from the root, as in `/proc/self/mountinfo`.
    pub mounts: BTreeSet<String>,
    /// Network interfaces of the scope.
    pub interfaces: BTreeSet<String>,
    /// Named network namespaces, sockets and other files of the scope under `/run`.
    pub files: BTreeSet<PathBuf>,
    /// Control groups of the scope.
    pub cgroups: BTreeSet<PathBuf>,
    /// nftables tables of the scope; not looked at if there is no `nft`.
    pub tables: BTreeSet<String>,
    /// Whether the root still claims a scope.
    pub claim: Option<String>,
}

impl Leftovers {
    /// Looks around. Without a scope only processes and mounts can be told.
    pub fn of(root: &Path, scope: Option<&str>) -> Self {
        let mut found = Self {
            processes: processes(root, scope),
            mounts: mounts(root),
            claim: scope_of(root),
            ..Self::default()
        };
        if let Some(scope) = scope.filter(|scope| !scope.is_empty()) {
            found.interfaces = names_in(Path::new("/sys/class/net"), beginning(scope));
            walk(Path::new("/run"), 2, scope, &mut found.files);
            walk(Path::new("/sys/fs/cgroup"), 6, scope, &mut found.cgroups);
            found.tables = tables(scope);
        }
        found
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Process { pid, command } in &self.processes {
            writeln!(f, "  process {pid}: {command}")?;
        }
        for mount in &self.mounts {
            writeln!(f, "  mount {mount}")?;
        }
        for interface in &self.interfaces {
            writeln!(f, "  interface {interface}")?;
        }
        for path in self.files.iter().chain(&self.cgroups) {
            writeln!(f, "  {}", path.display())?;
        }
        for table in &self.tables {
            writeln!(f, "  nftables {table}")?;
        }
        if let Some(scope) = &self.claim {
            writeln!(f, "  the claim of {scope} in {CLAIMS}")?;
        }
        Ok(())
    }
}

/// Processes other than this one that have to do with a root.
pub fn processes(root: &Path, scope: Option<&str>) -> BTreeSet<Process> {
    let own_namespace = fs::read_link("/proc/self/ns/mnt").ok();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| *pid != std::process::id())
        .filter(|pid| {
            let dir = PathBuf::from(format!("/proc/{pid}"));
            let elsewhere = fs::read_link(dir.join("ns/mnt")).ok() != own_namespace;
            names_root(&dir, root.as_os_str().as_bytes(), elsewhere)
                || scope.is_some_and(|scope| holds(&dir.join("cgroup"), scope.as_bytes()))
        })
        .filter_map(|pid| Some(Process { pid, command: command(pid)? }))
        .collect()
}

/// Whether a process names the root. Mounts tell only if they are not ours.
fn names_root(dir: &Path, root: &[u8], mounts_tell: bool) -> bool {
    let links = ["cwd", "root", "exe"].map(|name| fs::read_link(dir.join(name)));
    links.iter().flatten().any(|link| contains(link.as_os_str().as_bytes(), root))
        || holds(&dir.join("cmdline"), root)
        || holds(&dir.join("environ"), root)
        || (mounts_tell && holds(&dir.join("mountinfo"), root))
}

/// The command line of a process that runs; zombies and kernel threads have none.
fn command(pid: u32) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok().filter(|bytes| !bytes.is_empty())?;
    Some(String::from_utf8_lossy(&bytes).trim_end_matches('\0').replace('\0', " "))
}

fn mounts(root: &Path) -> BTreeSet<String> {
    let root = root.to_string_lossy();
    let all = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    all.lines().filter(|line| line.contains(&*root)).map(str::to_owned).collect()
}

fn beginning(scope: &str) -> &str {
    scope.get(..IN_INTERFACE).unwrap_or(scope)
}

fn names_in(dir: &Path, scope: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.contains(scope)).collect()
}

/// Collects the paths below a directory whose last component holds the scope; what is inside them
/// is not looked at.
fn walk(dir: &Path, depth: usize, scope: &str, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().contains(scope) {
            found.insert(entry.path());
        } else if depth > 1 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), depth - 1, scope, found);
        }
    }
}

fn tables(scope: &str) -> BTreeSet<String> {
    let listed = Call::new("nft").args(["list", "tables"]).run();
    let text = listed.map(|output| output.stdout).unwrap_or_default();
    text.lines().filter(|line| line.contains(scope)).map(str::to_owned).collect()
}

fn holds(path: &Path, text: &[u8]) -> bool {
    fs::read(path).is_ok_and(|bytes| contains(&bytes, text))
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    !text.is_empty() && bytes.windows(text.len()).any(|window| window == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_by_its_directory_its_arguments_and_its_environment() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let sleep = Call::new("sleep").arg("1000");
        let by_dir = sleep.clone().dir(root).spawn().unwrap();
        let by_env = sleep.clone().env("HERE", root).spawn().unwrap();
        let script = format!(": {}; sleep 1000; :", root.display());
        let by_argument = Call::new("/bin/sh").args(["-c", &script]).spawn().unwrap();
        let bystander = sleep.spawn().unwrap();
        let found: Vec<u32> = processes(root, None).iter().map(|process| process.pid).collect();
        for running in [&by_dir, &by_env, &by_argument] {
            assert!(found.contains(&running.pid()), "{found:?}");
        }
        assert!(!found.contains(&bystander.pid()), "{found:?}");
        // The shell's child does not die with it.
        for process in processes(root, None) {
            let pid = rustix::process::Pid::from_raw(process.pid.cast_signed()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
    }

    #[test]
    fn names_of_the_scope_are_found_at_their_depth() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/kiln-abc123/inner-abc123")).unwrap();
        fs::create_dir_all(dir.path().join("b/c/abc123")).unwrap();
        let mut found = BTreeSet::new();
        walk(dir.path(), 2, "abc123", &mut found);
        assert_eq!(found, BTreeSet::from([dir.path().join("a/kiln-abc123")]));
    }

    #[test]
    fn nothing_is_found_for_a_root_that_nobody_uses() {
        let dir = tempfile::tempdir().unwrap();
        let found = Leftovers::of(&dir.path().join("unused"), Some("no-such-scope-3f9c"));
        assert!(found.is_empty(), "{found}");
    }
}
