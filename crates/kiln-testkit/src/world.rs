//! One root folder of its own, shut down and looked over when the test ends.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::call::Call;
use crate::leftovers::{self, Leftovers, Process};
use crate::output::Output;
use crate::project::Project;
use crate::wait::poll_until;

/// How long processes and mounts may take to go after `kiln shutdown` has returned.
const LINGER: Duration = Duration::from_secs(5);

/// A root of its own, with a program to act on it.
///
/// Dropped, also by a panic, it runs `kiln shutdown` and demands that nothing of the root is left
/// on the machine: no process, mount, interface, cgroup or table. What is left after a failure is
/// printed and cleared away, so that it disturbs no other test.
#[derive(Debug)]
pub struct World {
    binary: PathBuf,
    home: tempfile::TempDir,
    scope: OnceLock<String>,
    env: Vec<(String, String)>,
}

impl World {
    /// A world for a program, for example `World::new(env!("CARGO_BIN_EXE_kiln"))`.
    ///
    /// # Panics
    /// If there is no room for a temporary directory.
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        Self::within(binary, &std::env::temp_dir())
    }

    /// The same in a folder of the caller's, which stays.
    ///
    /// # Panics
    /// If there is no room for a temporary directory.
    pub fn within(binary: impl Into<PathBuf>, dir: &Path) -> Self {
        let home = tempfile::Builder::new().prefix("kiln-test-").tempdir_in(dir);
        let home = home.unwrap_or_else(|error| panic!("no temporary directory: {error}"));
        Self { binary: binary.into(), home, scope: OnceLock::new(), env: Vec::new() }
    }

    /// Sets an environment variable for every run of the program.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A directory that goes with the world.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The root folder that the program works on.
    pub fn root(&self) -> PathBuf {
        self.home().join("root")
    }

    /// What lies in the root's folder for scratch, but for the agent's own folder of new objects
    /// while that is empty.
    ///
    /// # Panics
    /// If the folder cannot be read.
    pub fn scratch(&self) -> Vec<PathBuf> {
        let read = |dir: &Path| {
            let entries = std::fs::read_dir(dir).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            entries.unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
        };
        let entries = read(&self.root().join("tmp")).into_iter().map(|entry| entry.path());
        let own = |path: &Path| path.to_string_lossy().contains("/tmp/objects.");
        entries.filter(|path| !(own(path) && read(path).is_empty())).collect()
    }

    /// Writes a project beside the root.
    ///
    /// # Panics
    /// If the disk does not take it.
    pub fn project(&self, name: &str, compose: &str) -> Project {
        Project::new(self.home().join(name), compose)
    }

    /// A call of the program on this root, to be refined or started.
    pub fn call<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Call {
        let call = Call::new(&self.binary).dir(self.home());
        let call = self.env.iter().fold(call, |call, (name, value)| call.env(name, value));
        call.arg("--root").arg(self.root()).args(args)
    }

    /// Runs the program on this root to its end, whatever that is.
    ///
    /// # Panics
    /// If it does not end within a minute.
    #[track_caller]
    pub fn kiln<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Output {
        let output = run(&self.call(args));
        self.scope();
        output
    }

    /// Runs the program in a project's directory.
    ///
    /// # Panics
    /// As [`World::kiln`].
    #[track_caller]
    pub fn kiln_in<A: AsRef<OsStr>>(
        &self,
        project: &Project,
        args: impl IntoIterator<Item = A>,
    ) -> Output {
        let output = run(&self.call(args).dir(project.dir()));
        self.scope();
        output
    }

    /// Processes of this root: agent, front, shims, instances.
    pub fn processes(&self) -> Vec<Process> {
        leftovers::processes(&self.root(), self.scope()).into_iter().collect()
    }

    /// The one process of this root in a role: `agent`, `serve`; of the front the one that carries
    /// the traffic, not its minder.
    ///
    /// # Panics
    /// If there is none or several.
    #[track_caller]
    pub fn role(&self, role: &str) -> Process {
        match role {
            "front" => self.only(&["front", "--worker"]),
            other => self.only(&[other]),
        }
    }

    /// The one process of this root whose command line has all these words: `["agent"]` for an
    /// agent that a verb started, `["serve"]` for one in the foreground, `["front", "--worker"]`.
    ///
    /// # Panics
    /// If there is none or several.
    #[track_caller]
    pub fn only(&self, words: &[&str]) -> Process {
        let all = self.processes();
        let matches = |process: &&Process| {
            words.iter().all(|word| process.command.split(' ').any(|part| part == *word))
        };
        match all.iter().filter(matches).collect::<Vec<_>>().as_slice() {
            [one] => (*one).clone(),
            other => panic!("not one process with {words:?}: {other:?} of {all:#?}"),
        }
    }

    /// The word in all names that Kiln makes on the machine for this root; known once an agent has
    /// run.
    pub fn scope(&self) -> Option<&str> {
        if self.scope.get().is_none()
            && let Some(scope) = leftovers::scope_of(&self.root())
        {
            return Some(self.scope.get_or_init(|| scope));
        }
        self.scope.get().map(String::as_str)
    }

    /// Ends the world early and returns what `kiln shutdown` said; the drop looks around as ever.
    pub fn shutdown(&self) -> Output {
        // Known now or never: the shutdown ends the claim.
        self.scope();
        self.kiln(["shutdown"])
    }

    /// What of this root is still there once it has had time to go.
    fn lingering(&self) -> Leftovers {
        let root = self.root();
        let look = || Leftovers::of(&root, self.scope.get().map(String::as_str));
        match poll_until(LINGER, || look().is_empty().then_some(())) {
            Some(()) => Leftovers::default(),
            None => look(),
        }
    }

    /// The ends of the logs below the root, for a failed test.
    fn print_logs(&self) {
        for path in logs(&self.root(), 3) {
            let text = std::fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- end of {}", path.display());
            for line in &lines[lines.len().saturating_sub(20)..] {
                eprintln!("{line}");
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !self.root().exists() {
            return;
        }
        if std::thread::panicking() {
            self.print_logs();
        }
        self.scope();
        let shutdown = self.call(["shutdown"]).run_ok();
        let left = self.lingering();
        clear(&left);
        if std::thread::panicking() {
            eprintln!("after shutdown ({shutdown:?}):\n{left}");
            return;
        }
        assert!(left.is_empty(), "left behind after shutdown:\n{left}");
        if let Err(error) = shutdown {
            panic!("shutdown: {error:#}");
        }
    }
}

#[track_caller]
fn run(call: &Call) -> Output {
    call.run().unwrap_or_else(|error| panic!("{error:#}"))
}

/// Ends the processes and mounts that a failed test left.
fn clear(left: &Leftovers) {
    for process in &left.processes {
        eprintln!("killing {process:?}");
        if let Some(pid) = Pid::from_raw(process.pid.cast_signed()) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
    // The fifth field is the mount point; the latest mounted goes first.
    for mount in left.mounts.iter().rev() {
        if let Some(point) = mount.split(' ').nth(4) {
            let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// Files named `log` or `*.log`.
fn logs(dir: &Path, depth: usize) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && depth > 1 {
            found.extend(logs(&path, depth - 1));
        } else if path.file_name().is_some_and(|name| name == "log")
            || path.extension().is_some_and(|extension| extension == "log")
        {
            found.push(path);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A stand-in for the program: it records how it is called, starts a process that names the
    /// root on `serve`, and ends it on `shutdown` unless it is told to be sloppy.
    fn stand_in(dir: &Path) -> PathBuf {
        let script = r#"#!/bin/sh
root=$2; mkdir -p "$root"; echo "$@" >> "$root/calls.log"
case $3 in
serve) sh -c 'echo $$ > "$1/pid"; exec sleep 1000' "$root" "$root" > /dev/null 2>&1 &
       while ! [ -s "$root/pid" ]; do :; done ;;
shutdown) [ -n "$SLOPPY" ] || ! [ -s "$root/pid" ] || kill -9 "$(cat "$root/pid")" ;;
esac
"#;
        let path = dir.join("stand-in");
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn shuts_down_when_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let world = World::new(stand_in(dir.path())).env("ROOT", "set");
        let calls = world.root().join("calls.log");
        world.kiln(["serve"]).expect_done();
        assert!(std::fs::read_to_string(calls).unwrap().contains("serve"));
        drop(world);
    }

    #[test]
    fn what_is_left_behind_fails_the_test_and_is_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let world = World::new(stand_in(dir.path())).env("SLOPPY", "1");
        let root = world.root();
        // The environment of the process names the root.
        run(&world.call(["serve"]).env("ROOT", &root)).expect_done();
        assert_eq!(world.processes().len(), 1);
        let message = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(world)));
        let message = *message.unwrap_err().downcast::<String>().unwrap();
        assert!(message.contains("left behind") && message.contains("sleep 1000"), "{message}");
        let gone = || leftovers::processes(&root, None).is_empty().then_some(());
        crate::wait_until(LINGER, "the process to be gone", gone);
    }
}
