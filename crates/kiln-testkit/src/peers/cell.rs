//! A folder and namespaces for a peer, which all go when whoever made them is gone, however that
//! happened.
//!
//! ```text
//! this process ──pipe── keeper (sh) ── unshare ── init of the cell ── what runs in it
//! ```
//! The keeper waits for the end of the pipe, which the kernel closes even for a process that is
//! killed. Then it kills the init, with which the kernel ends everything in the process namespace;
//! mounts and interfaces go with theirs, and the keeper removes control groups and the folder.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::call::Call;
use crate::wait::poll_until;

/// Where the distribution's packages are, whatever else is on the caller's path.
pub const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// How long the namespaces may take to be there, and to go.
const PATIENCE: Duration = Duration::from_secs(30);

/// Run outside: `$1` is the folder, `$2` the script of the cell, `$3` the name of control groups
/// that what runs in it may make.
const KEEPER: &str = r#"
unshare --net --mount --pid --mount-proc --propagation slave --fork --kill-child \
    /bin/sh -c "$2" sh "$1" "$3" < /dev/null > "$1/log" 2>&1 &
inner=$!
echo $inner > "$1/pid.new" && mv "$1/pid.new" "$1/pid"
cat > /dev/null
kill -KILL $inner; wait $inner 2> /dev/null
gone() {
    for group in /sys/fs/cgroup/"$2" /sys/fs/cgroup/*/"$2"; do
        [ ! -d "$group" ] || find "$group" -depth -type d -exec rmdir {} + || return 1
    done
    rm -rf -- "$1"
}
tries=0
until gone "$1" "$3" 2> /dev/null; do
    tries=$((tries + 1))
    [ $tries -lt 400 ] || exit 1
    sleep 0.05
done
"#;

/// What every cell begins with. `/run` is empty, and what is written to `/etc` stays in the cell:
/// peers keep keys, sockets and locks in fixed places. `$1/data` is where they keep what is large.
const BEGIN: &str = r#"
set -eu
mount -t tmpfs tmpfs /run
mkdir "$1/etc" "$1/etc/upper" "$1/etc/work" "$1/data"
mount -t overlay -o "lowerdir=/etc,upperdir=$1/etc/upper,workdir=$1/etc/work" overlay /etc
ip link set lo up
"#;

/// Where a peer keeps images and layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// On disk, as users have it.
    OnDisk,
    /// In memory: for tests, which need nothing of it afterwards.
    InMemory,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Cell {
    folder: PathBuf,
    keeper: Child,
    /// The process whose namespaces these are.
    pid: u32,
}

impl Cell {
    /// Starts a cell that runs a shell script, which gets the folder as `$1` and a name for control
    /// groups of its own as `$2`. The cell lasts until it is dropped, even if the script ends with
    /// an error; `prefix` begins the folder's name.
    ///
    /// # Errors
    /// If the namespaces cannot be made; with what the log says.
    pub fn start(prefix: &str, keep: Keep, script: &str) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix(prefix).tempdir()?.keep();
        let name = folder.file_name().unwrap_or_default().to_owned();
        let mut keeper = Command::new("/bin/sh");
        let memory = match keep {
            Keep::OnDisk => "",
            Keep::InMemory => "mount -t tmpfs tmpfs \"$1/data\"\n",
        };
        let script = format!("{BEGIN}{memory}: > \"$1/ready\"\n{script}");
        keeper.args(["-c", KEEPER, "sh"]).arg(&folder).arg(script).arg(name);
        keeper.env("PATH", PATH).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // Ctrl-C is for whoever made the cell; the keeper has work left then.
        let keeper = keeper.process_group(0).spawn().context("cannot start a cell's keeper")?;
        let mut cell = Self { folder, keeper, pid: 0 };
        let look = || fs::read_to_string(cell.path("pid")).ok()?.trim().parse().ok();
        cell.pid = poll_until(PATIENCE, look).context("a cell's keeper did not start it")?;
        let look = || (cell.path("ready").exists() || !cell.runs()).then_some(());
        poll_until(PATIENCE, look);
        if !cell.path("ready").exists() {
            bail!("the cell's namespaces cannot be made\n{}", cell.log());
        }
        Ok(cell)
    }

    /// The cell's folder, outside and inside.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A path in the cell's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Whether its script still runs.
    pub fn runs(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
    }

    /// The last lines that its script has printed.
    pub fn log(&self) -> String {
        let log = fs::read(self.path("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// A call of a program inside, in the cell's folder, with only the distribution's own path.
    pub fn call(&self, program: &str) -> Call {
        let namespace = |kind: &str, file: &str| format!("--{kind}=/proc/{}/ns/{file}", self.pid);
        Call::new("/usr/bin/nsenter")
            .arg(namespace("mount", "mnt"))
            .arg(namespace("net", "net"))
            .arg(namespace("pid", "pid_for_children"))
            .arg(format!("--wdns={}", self.folder.display()))
            .arg("--")
            .arg(program)
            .env("PATH", PATH)
    }

    /// Does something on a thread in the cell's network; what it starts is there too.
    ///
    /// # Errors
    /// Those of `work`, and if the network cannot be entered.
    pub fn inside(&self, work: &mut (dyn FnMut() -> Result<()> + Send)) -> Result<()> {
        let path = format!("/proc/{}/ns/net", self.pid);
        let namespace = File::open(&path).with_context(|| path.clone())?;
        let enter = || {
            use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .with_context(|| format!("entering {path}"))?;
            work()
        };
        let joined = std::thread::scope(|scope| scope.spawn(enter).join());
        joined.map_err(|_| anyhow::anyhow!("what was done inside panicked"))?
    }

    fn end(&mut self) -> io::Result<bool> {
        drop(self.keeper.stdin.take());
        Ok(self.keeper.wait()?.success())
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        if !matches!(self.end(), Ok(true)) {
            eprintln!("warning: {} or its control groups stay behind", self.folder.display());
        }
    }
}
