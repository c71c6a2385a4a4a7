//! A store with a busybox image and a runtime, gone without a trace when dropped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kiln_core::tree::{Kind, Node, Tree};
use kiln_run::logs::{LogQuery, read};
use kiln_run::runtime::Found;
use kiln_run::{End, InstanceSpec, Known, Running, Runtime, Sandbox};
use kiln_store::{Lower, Store};

/// Where Debian's `busybox-static` puts it.
const BUSYBOX: &str = "/bin/busybox";

const APPLETS: &[&str] = &[
    "sh", "cat", "echo", "env", "grep", "head", "id", "kill", "ls", "mkdir", "mknod", "mount",
    "nproc", "ps", "pwd", "seq", "sleep", "stat", "stty", "sync", "test", "touch", "tr", "true",
    "tty", "unshare", "hostname", "wc", "dd", "chmod", "chown", "rm", "ip", "nc", "date", "sort",
    "readlink", "ulimit", "usleep", "setsid", "yes", "trap", "chroot", "false", "tail",
];

pub(crate) struct Kit {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) scope: String,
    pub(crate) runtime: Runtime,
    pub(crate) lower: Lower,
    number: AtomicU64,
}

impl Kit {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let tree = image(&store, &[]);
        let lower = store.lower(&store.put_tree(&tree).unwrap()).unwrap();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let scope = format!("test-{}-{number}", std::process::id());
        let shim = env!("CARGO_BIN_EXE_kiln-run-shim");
        let runtime = Runtime::new(dir.path(), shim, &scope).unwrap();
        Self { dir, scope, runtime, lower, number: AtomicU64::new(0) }
    }

    /// An instance of `sh -c script`.
    pub(crate) fn spec(&self, script: &str) -> InstanceSpec {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let id = format!("i{number}");
        let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let sandbox = Sandbox::new(self.lower.clone(), argv);
        InstanceSpec::new(&id, self.runtime.dir(&id), sandbox)
    }

    /// Runs `script` to its end: exit code and output lines.
    pub(crate) fn run(&self, script: &str) -> (i32, Vec<String>) {
        self.run_spec(&self.spec(script))
    }

    pub(crate) fn run_spec(&self, spec: &InstanceSpec) -> (i32, Vec<String>) {
        let running = self.runtime.start(spec).unwrap();
        let Known::Ended(End::Exited(exit)) = running.wait() else { panic!("lost") };
        (exit.code, self.lines(spec))
    }

    /// Finds it again.
    pub(crate) fn attach(&self, spec: &InstanceSpec) -> Found {
        self.runtime.attach(&spec.id, Duration::from_secs(2))
    }

    /// The log so far.
    pub(crate) fn lines(&self, spec: &InstanceSpec) -> Vec<String> {
        let entries = read(&spec.dir, LogQuery::default()).unwrap();
        entries.into_iter().map(|entry| entry.message).collect()
    }

    /// Starts `script`, which prints `ready` when it is.
    pub(crate) fn start_ready(&self, spec: &InstanceSpec) -> Running {
        let running = self.runtime.start(spec).unwrap();
        until("the instance is ready", || self.lines(spec).iter().any(|line| line == "ready"));
        running
    }

    /// Control groups of this kit, in every hierarchy.
    pub(crate) fn groups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        for line in mounts.lines() {
            let words: Vec<_> = line.split(' ').collect();
            if words[2].starts_with("cgroup") {
                let top = Path::new(words[1]).join("kiln").join(&self.scope);
                let entries = std::fs::read_dir(&top).into_iter().flatten().flatten();
                found.extend(
                    entries
                        .map(|entry| entry.path())
                        .filter(|path| path.is_dir() && path.file_name().unwrap() != "shims"),
                );
            }
        }
        found
    }

    /// Processes whose command line names this kit's folder, and all below the shims' group.
    pub(crate) fn processes(&self) -> Vec<String> {
        let marker = self.dir.path().to_str().unwrap();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let path = entry.path();
            let Ok(command) = std::fs::read(path.join("cmdline")) else { continue };
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            let group = std::fs::read_to_string(path.join("cgroup")).unwrap_or_default();
            if command.contains(marker) || group.contains(&format!("/{}/", self.scope)) {
                found.push(format!("{}: {command}", path.display()));
            }
        }
        found
    }

    /// Nothing is left but folders.
    pub(crate) fn assert_clean(&self) {
        until_or("no process is left", || self.processes().is_empty(), || self.processes());
        until_or("no group is left", || self.groups().is_empty(), || self.groups());
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(self.dir.path().to_str().unwrap()), "{mounts}");
    }
}

impl Drop for Kit {
    fn drop(&mut self) {
        for id in self.runtime.list().unwrap() {
            let found = self.runtime.attach(&id, Duration::from_secs(2));
            if !matches!(found.known, Known::Ended(_)) {
                found.running.kill();
            }
        }
        let _ = self.runtime.sweep(&Default::default());
        let closed = self.runtime.close(Duration::from_secs(10));
        if !std::thread::panicking() {
            assert!(closed, "control groups are left: {:?}", self.groups());
        }
    }
}

/// busybox with its applets and what else a test wants.
pub(crate) fn image(store: &Store, files: &[(&str, &str, u16)]) -> Tree {
    let mut tree = Tree::new();
    let binary = std::fs::read(BUSYBOX).expect("apt-get install busybox-static");
    let kind = Kind::File { size: binary.len() as u64, digest: store.put(&binary).unwrap() };
    tree.insert(b"bin/busybox", Node::new(kind, 0o755));
    for applet in APPLETS {
        let link = Kind::Symlink { target: b"busybox".to_vec() };
        tree.insert(format!("bin/{applet}").as_bytes(), Node::new(link, 0o777));
    }
    let etc = [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\napp:x:100:101::/home/app:/bin/sh\n", 0o644),
        ("etc/group", "root:x:0:\napp:x:101:\nextra:x:102:app\n", 0o644),
        ("bin/plain", "no program", 0o644),
    ];
    for &(path, text, mode) in etc.iter().chain(files) {
        let digest = store.put(text.as_bytes()).unwrap();
        let kind = Kind::File { size: text.len() as u64, digest };
        tree.insert(path.as_bytes(), Node::new(kind, mode));
    }
    let mut data = Node::new(Kind::Dir, 0o750);
    (data.uid, data.gid) = (100, 101);
    tree.insert(b"data", data);
    tree.insert(b"tmp", Node::new(Kind::Dir, 0o1777));
    tree.insert(b"run", Node::new(Kind::Dir, 0o755));
    tree.insert(b"var", Node::new(Kind::Dir, 0o755));
    tree.insert(b"var/run", Node::new(Kind::Symlink { target: b"/run".to_vec() }, 0o777));
    tree
}

/// Waits for a condition, at most a generous while.
pub(crate) fn until(what: &str, condition: impl FnMut() -> bool) {
    until_or(what, condition, || "");
}

pub(crate) fn until_or<T: std::fmt::Debug>(
    what: &str,
    mut condition: impl FnMut() -> bool,
    found: impl Fn() -> T,
) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}; found {:?}", found());
        std::thread::yield_now();
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// Fields of a `/proc/PID/status`.
pub(crate) fn fields(lines: &[String]) -> BTreeMap<String, String> {
    lines
        .iter()
        .filter_map(|line| line.split_once(":\t"))
        .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
        .collect()
}

/// Pid of the shim of a running instance.
pub(crate) fn shim_of(pid: i32) -> rustix::process::Pid {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let parent = stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().parse().unwrap();
    rustix::process::Pid::from_raw(parent).unwrap()
}
