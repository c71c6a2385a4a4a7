//! Control groups: cgroup2 for tracking and killing, whatever controllers there are for limits.
//!
//! On a *hybrid* machine (v1 controllers beside a cgroup2 mount) a program is cloned straight
//! into its cgroup2 group, which costs nothing, and is attached to v1 groups only where a limit
//! is set, for attaching costs 11–15 ms when cold.

use std::fs;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln_core::compose::Limits;
use kiln_store::mount::Mounted;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::devices::{self, Others};
use crate::error::{Context as _, Fault};
use crate::spec::Device;

/// The group of all groups, in every hierarchy.
pub(crate) const TOP: &str = "kiln";
/// The group of all shims of one root. They are in a group of their own so that neither a service
/// manager nor a logout takes them along.
pub(crate) const SHIMS: &str = "shims";

const CONTROLLERS: [&str; 4] = ["memory", "cpu", "pids", "cpuset"];
/// Of the cpu controller, in microseconds: the kernel's default.
const PERIOD: u64 = 100_000;

/// The hierarchies of this machine.
#[derive(Debug, Clone)]
pub(crate) struct Cgroups {
    unified: PathBuf,
    /// v1 controllers and where each is mounted.
    v1: Vec<(&'static str, PathBuf)>,
    /// Where the v1 devices controller is.
    devices: Option<PathBuf>,
}

impl Cgroups {
    /// Finds what is mounted.
    pub(crate) fn find() -> Result<Self, Fault> {
        let table =
            fs::read("/proc/self/mountinfo").step(|| "read /proc/self/mountinfo".to_owned())?;
        Self::of(Mounted::parse_all(&table)).ok_or_else(|| {
            let message = "no cgroup2 is mounted; `mount -t cgroup2 none /sys/fs/cgroup/unified`";
            Fault::new("find the control groups", message)
        })
    }

    /// With a folder in the place of a pure cgroup2 mount.
    #[cfg(test)]
    pub(crate) fn at(unified: &Path) -> Self {
        Self { unified: unified.to_owned(), v1: Vec::new(), devices: None }
    }

    fn of(table: Vec<Mounted>) -> Option<Self> {
        let mut unified = None;
        let mut v1 = Vec::new();
        let mut devices = None;
        for Mounted { kind, point, options, .. } in table {
            match kind.as_str() {
                "cgroup2" if unified.is_none() => unified = Some(point),
                "cgroup" => {
                    if options.split(',').any(|option| option == "devices") {
                        devices.get_or_insert_with(|| point.clone());
                    }
                    for name in CONTROLLERS {
                        let known = v1.iter().any(|(other, _)| *other == name);
                        if !known && options.split(',').any(|option| option == name) {
                            v1.push((name, point.clone()));
                        }
                    }
                }
                _ => {}
            }
        }
        unified.map(|unified| Self { unified, v1, devices })
    }

    /// Every hierarchy's mount point, without repeats.
    fn mounts(&self) -> Vec<&Path> {
        let mut mounts = vec![self.unified.as_path()];
        for path in self.v1.iter().map(|(_, path)| path).chain(&self.devices) {
            if !mounts.contains(&path.as_path()) {
                mounts.push(path);
            }
        }
        mounts
    }

    /// The group `name`, made if it is missing, with `limits`.
    pub(crate) fn group(&self, name: &str, limits: &Limits) -> Result<Group, Fault> {
        let group = Group {
            cgroups: self.clone(),
            name: name.to_owned(),
            v1: Vec::new(),
            unmet: Vec::new(),
        };
        make(&group.path()).step(|| format!("make the control group {name}"))?;
        group.limit(limits)
    }

    /// The new group `name` below one that must be there: an instance's, which may just end.
    pub(crate) fn below(&self, name: &str) -> Result<Group, Fault> {
        let group = Group {
            cgroups: self.clone(),
            name: name.to_owned(),
            v1: Vec::new(),
            unmet: Vec::new(),
        };
        fs::create_dir(group.path()).step(|| format!("make the control group {name}"))?;
        Ok(group)
    }

    /// Has the list of devices of the group `name` let through those of all instances below it.
    /// Where the kernel takes no such list, each instance's own is another one, and nothing is in its way.
    pub(crate) fn allow_devices(&self, name: &str, all: &[Device]) -> Result<(), Fault> {
        let path = self.unified.join(name);
        let step = || "let devices through".to_owned();
        make(&path).step(step)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let group = openat(CWD, &path, flags, Mode::empty()).step(step)?;
        match devices::allow_above(group.as_fd(), all) {
            Err(_) if self.devices.is_some() => Ok(()),
            done => done.step(step),
        }
    }

    /// The group `name` as it was left by somebody else.
    pub(crate) fn existing(&self, name: &str) -> Group {
        let mut v1: Vec<PathBuf> = Vec::new();
        for mount in self.v1.iter().map(|(_, path)| path).chain(&self.devices) {
            let path = mount.join(name);
            if path.is_dir() && !v1.contains(&path) {
                v1.push(path);
            }
        }
        Group { cgroups: self.clone(), name: name.to_owned(), v1, unmet: Vec::new() }
    }

    /// Names of the groups directly below `parent`, in any hierarchy.
    pub(crate) fn children(&self, parent: &str) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for mount in self.mounts() {
            let Ok(entries) = fs::read_dir(mount.join(parent)) else { continue };
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir())
                    && let Ok(name) = entry.file_name().into_string()
                    && !names.contains(&name)
                {
                    names.push(name);
                }
            }
        }
        names
    }

    /// Removes `name` everywhere if nothing is in it, and then [`TOP`] if that was the last one.
    pub(crate) fn prune(&self, name: &str) {
        for mount in self.mounts() {
            for path in [mount.join(name).join(SHIMS), mount.join(name), mount.join(TOP)] {
                let _ = fs::remove_dir(path);
            }
        }
    }
}

/// One group.
#[derive(Debug)]
pub(crate) struct Group {
    cgroups: Cgroups,
    name: String,
    /// v1 groups that the program has to be attached to.
    v1: Vec<PathBuf>,
    /// What was asked for and cannot be given here, in words.
    unmet: Vec<String>,
}

/// What becomes of a setting that this machine does not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// Nothing runs without it.
    Must,
    /// Nobody asked for it.
    Try,
    /// It is told.
    Tell,
}

/// A file of a group and what is written to it.
type Setting = (&'static str, String, Need);

impl Group {
    fn path(&self) -> PathBuf {
        self.cgroups.unified.join(&self.name)
    }

    /// For `CLONE_INTO_CGROUP`.
    pub(crate) fn open(&self) -> Result<OwnedFd, Fault> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, self.path(), flags, Mode::empty())
            .step(|| format!("open the control group {}", self.name))
    }

    /// What was asked for and cannot be given here.
    pub(crate) fn unmet(&mut self) -> Vec<String> {
        std::mem::take(&mut self.unmet)
    }

    fn limit(mut self, limits: &Limits) -> Result<Self, Fault> {
        for (controller, v1, v2) in [
            ("memory", memory_v1(limits), memory_v2(limits)),
            ("cpu", cpu_v1(limits), cpu_v2(limits)),
            ("pids", pids(limits), pids(limits)),
            ("cpuset", cpuset(limits), cpuset(limits)),
        ] {
            if v2.is_empty() && v1.is_empty() {
                continue;
            }
            let optional = v1.iter().chain(&v2).all(|(_, _, need)| *need != Need::Must);
            match self.apply(controller, &v1, &v2) {
                Err(fault) if optional => {
                    self.unmet.push(format!("{}: {}", fault.step, fault.message));
                }
                done => done?,
            }
        }
        Ok(self)
    }

    fn apply(&mut self, controller: &str, v1: &[Setting], v2: &[Setting]) -> Result<(), Fault> {
        let mount = self.cgroups.v1.iter().find(|(name, _)| *name == controller);
        let (path, settings) = match mount {
            Some((_, mount)) => {
                let path = mount.join(&self.name);
                make(&path).step(|| format!("make {}", path.display()))?;
                if controller == "cpuset" {
                    inherit_cpuset(mount, &self.name)?;
                }
                if !self.v1.contains(&path) {
                    self.v1.push(path.clone());
                }
                (path, v1)
            }
            None => {
                self.delegate(controller)?;
                (self.path(), v2)
            }
        };
        for (file, value, need) in settings {
            let file = path.join(file);
            let step = || format!("write `{value}` to {}", file.display());
            match fs::write(&file, value) {
                // Swap accounting may be off.
                Err(_) if *need == Need::Try => {}
                Err(error) if *need == Need::Tell => {
                    self.unmet.push(format!("this machine does not {}: {error}", step()));
                }
                done => done.step(step)?,
            }
        }
        Ok(())
    }

    /// Enables `controller` from the top down to this group's parent.
    fn delegate(&self, controller: &str) -> Result<(), Fault> {
        let mut path = self.cgroups.unified.clone();
        for name in Path::new(&self.name) {
            let file = path.join("cgroup.subtree_control");
            fs::write(&file, format!("+{controller}")).map_err(|error| {
                let message = format!("this kernel or its parent group gives none: {error}");
                Fault::new(format!("enable the {controller} controller"), message)
            })?;
            path.push(name);
        }
        Ok(())
    }

    /// Attaches `pid` to the v1 groups that have limits.
    pub(crate) fn attach(&self, pid: i32) -> Result<(), Fault> {
        for path in &self.v1 {
            let file = path.join("cgroup.procs");
            fs::write(&file, pid.to_string()).step(|| format!("attach to {}", path.display()))?;
        }
        Ok(())
    }

    /// Has the kernel keep to the list of devices for everything in it, and for `pid` if that is in
    /// it already. Returns what there is to say.
    pub(crate) fn keep_to_devices(
        &mut self,
        others: Others,
        own_devices: &[Device],
        pid: Option<i32>,
    ) -> Result<Option<String>, Fault> {
        let step = || "keep to the list of devices".to_owned();
        let open = |path: &Path| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            openat(CWD, path, flags, Mode::empty()).step(step)
        };
        let path = self.path();
        let (above, own) = (open(path.parent().unwrap_or(&path))?, open(&path)?);
        let held = devices::hold_above(above.as_fd())
            .and_then(|()| devices::hold_for(own.as_fd(), others, own_devices));
        let Err(error) = held else { return Ok(None) };
        let Some(mount) = &self.cgroups.devices else {
            return Ok(Some(format!(
                "this kernel holds no list of devices ({error}): that nodes are dead on every \
                 mount is all that keeps them closed"
            )));
        };
        let path = mount.join(&self.name);
        make(&path).step(step)?;
        fs::write(path.join("devices.deny"), "a").step(step)?;
        for line in devices::lines(others, own_devices) {
            fs::write(path.join("devices.allow"), line).step(step)?;
        }
        if let Some(pid) = pid {
            fs::write(path.join("cgroup.procs"), pid.to_string()).step(step)?;
        }
        self.v1.push(path);
        Ok(None)
    }

    /// Kills everything in it and below.
    pub(crate) fn kill(&self) {
        if fs::write(self.path().join("cgroup.kill"), "1").is_ok() {
            return;
        }
        // Before 5.14, or there is no such group.
        for pid in fs::read_to_string(self.path().join("cgroup.procs")).unwrap_or_default().lines()
        {
            if let Ok(pid) = pid.parse() {
                let _ = crate::sys::kill(pid, libc::SIGKILL);
            }
        }
    }

    /// Takes a process in that runs already.
    #[cfg(test)]
    pub(crate) fn take_in(&self, pid: i32) {
        fs::write(self.path().join("cgroup.procs"), pid.to_string()).unwrap();
    }

    /// How many bytes of memory its processes hold that are not of files.
    pub(crate) fn memory(&self) -> u64 {
        let list = fs::read_to_string(self.path().join("cgroup.procs")).unwrap_or_default();
        let of = |pid: &str| -> Option<u64> {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
            Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
        };
        list.lines().filter_map(of).sum()
    }

    /// What one of its files on cgroup2 says.
    pub(crate) fn read(&self, file: &str) -> io::Result<String> {
        fs::read_to_string(self.path().join(file))
    }

    /// The number in one of its files, in whichever hierarchy has it.
    pub(crate) fn value(&self, file: &str) -> Option<u64> {
        let own = self.path();
        let paths = self.v1.iter().chain([&own]);
        paths
            .filter_map(|path| fs::read_to_string(path.join(file)).ok())
            .find_map(|text| text.trim().parse().ok())
    }

    /// How many processes and threads are in it.
    pub(crate) fn tasks(&self) -> u64 {
        let list = fs::read(self.path().join("cgroup.threads")).unwrap_or_default();
        list.iter().filter(|byte| **byte == b'\n').count() as u64
    }

    /// Whether any process is in it or below; none is in a group that is not there. An error is no
    /// answer.
    pub(crate) fn populated(&self) -> io::Result<bool> {
        match fs::read_to_string(self.path().join("cgroup.events")) {
            Ok(text) => Ok(populated(&text)),
            Err(error) if is_gone(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits until nobody is left in it, at most for `limit`. False: somebody is, or that cannot be
    /// told.
    pub(crate) fn wait_empty(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            match self.watch_until(deadline) {
                Ok(empty) => return empty,
                Err(error) if is_gone(&error) => return true,
                // No descriptor is free, say: that passes.
                Err(_) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(_) => return false,
            }
        }
    }

    fn watch_until(&self, deadline: Instant) -> io::Result<bool> {
        let mut events = fs::File::open(self.path().join("cgroup.events"))?;
        loop {
            let mut text = String::new();
            events.rewind()?;
            events.read_to_string(&mut text)?;
            if !populated(&text) {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let mut fds = [PollFd::new(&events, PollFlags::PRI)];
            let _ = poll(&mut fds, Some(&timespec(left)));
        }
    }

    /// Whether the kernel killed something in it for want of memory.
    pub(crate) fn had_oom(&self) -> bool {
        let files = self.v1.iter().map(|path| path.join("memory.oom_control"));
        files.chain([self.path().join("memory.events")]).any(|file| {
            fs::read_to_string(file).is_ok_and(|text| {
                text.lines()
                    .filter_map(|line| line.strip_prefix("oom_kill "))
                    .any(|count| count.trim() != "0")
            })
        })
    }

    /// Removes it, and what was made below it. Nothing may be running in it.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let mut result = Ok(());
        for path in self.v1.iter().chain([&self.path()]) {
            for entry in fs::read_dir(path).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    let _ = fs::remove_dir(entry.path());
                }
            }
            match fs::remove_dir(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => result = Err(error),
                _ => {}
            }
        }
        result
    }
}

/// Whether a group's `cgroup.events` say that somebody is in it.
fn populated(events: &str) -> bool {
    !events.lines().any(|line| line == "populated 0")
}

/// The group is not there, or was removed while its file was open.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// Memory and swap together, in bytes; as much swap as memory where nobody says.
fn with_swap(limits: &Limits) -> Option<(i64, Need)> {
    match (limits.swap, limits.memory) {
        (Some(swap), _) => Some((swap, Need::Tell)),
        (None, Some(memory)) => {
            let both = i64::try_from(memory.saturating_mul(2)).unwrap_or(i64::MAX);
            Some((both, Need::Try))
        }
        (None, None) => None,
    }
}

fn memory_v1(limits: &Limits) -> Vec<Setting> {
    let Limits { memory, reservation, .. } = limits;
    let mut all = Vec::new();
    all.extend(memory.map(|bytes| ("memory.limit_in_bytes", bytes.to_string(), Need::Must)));
    let swap = with_swap(limits).map(|(both, need)| (both.to_string(), need));
    all.extend(swap.map(|(both, need)| ("memory.memsw.limit_in_bytes", both, need)));
    let soft = reservation.map(|bytes| bytes.to_string());
    all.extend(soft.map(|bytes| ("memory.soft_limit_in_bytes", bytes, Need::Tell)));
    all
}

fn memory_v2(limits: &Limits) -> Vec<Setting> {
    let Limits { memory, reservation, .. } = limits;
    let mut all = Vec::new();
    all.extend(memory.map(|bytes| ("memory.max", bytes.to_string(), Need::Must)));
    if let Some((both, need)) = with_swap(limits) {
        let memory = i64::try_from(memory.unwrap_or(0)).unwrap_or(i64::MAX);
        let swap = if both < 0 { "max".to_owned() } else { (both - memory).max(0).to_string() };
        all.push(("memory.swap.max", swap, need));
    }
    all.extend(reservation.map(|bytes| ("memory.low", bytes.to_string(), Need::Tell)));
    all
}

/// Microseconds of cpu time in a period, and the period.
fn quota(limits: &Limits) -> Option<(u64, u64)> {
    let period = limits.period.unwrap_or(PERIOD);
    let of_period = |nano: u64| u128::from(nano) * u128::from(period) / 1_000_000_000;
    let quota = limits.nano_cpus.map(|nano| u64::try_from(of_period(nano)).unwrap_or(u64::MAX));
    quota.map(|quota| (quota.max(1_000), period))
}

fn cpu_v1(limits: &Limits) -> Vec<Setting> {
    let mut all = Vec::new();
    if let Some((quota, period)) = quota(limits) {
        all.push(("cpu.cfs_period_us", period.to_string(), Need::Must));
        all.push(("cpu.cfs_quota_us", quota.to_string(), Need::Must));
    }
    all.extend(limits.shares.map(|shares| ("cpu.shares", shares.to_string(), Need::Tell)));
    all
}

fn cpu_v2(limits: &Limits) -> Vec<Setting> {
    let mut all = Vec::new();
    let quota = quota(limits).map(|(quota, period)| format!("{quota} {period}"));
    all.extend(quota.map(|text| ("cpu.max", text, Need::Must)));
    // 2 to 262144 become 1 to 10000, as in runc and systemd.
    let weight = |shares: u64| 1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142;
    let weight = limits.shares.map(|shares| weight(shares).to_string());
    all.extend(weight.map(|weight| ("cpu.weight", weight, Need::Tell)));
    all
}

/// There are no more processes than 4 Mi on any machine (include/linux/threads.h, `PID_MAX_LIMIT`),
/// and the controller refuses a larger number.
fn pids(limits: &Limits) -> Vec<Setting> {
    let text = |most: u64| if most > 4 << 20 { "max".to_owned() } else { most.to_string() };
    limits.pids.map(|most| ("pids.max", text(most), Need::Must)).into_iter().collect()
}

fn cpuset(limits: &Limits) -> Vec<Setting> {
    let cpus = limits.cpuset.clone();
    cpus.map(|cpus| ("cpuset.cpus", cpus, Need::Tell)).into_iter().collect()
}

/// A new group of the v1 controller has neither cpus nor memory: it gets those of its parent.
fn inherit_cpuset(mount: &Path, name: &str) -> Result<(), Fault> {
    let mut path = mount.to_owned();
    for part in Path::new(name) {
        let parent = path.clone();
        path.push(part);
        for file in ["cpuset.mems", "cpuset.cpus"] {
            let step = || format!("take over {file} to {}", path.display());
            let own = fs::read_to_string(path.join(file)).step(step)?;
            if own.trim().is_empty() {
                let above = fs::read_to_string(parent.join(file)).step(step)?;
                fs::write(path.join(file), above.trim()).step(step)?;
            }
        }
    }
    Ok(())
}

/// `mkdir -p` with one call where the parent is there, which is nearly always. Another root's
/// [`Cgroups::prune`] may take an empty parent away in between, so that is tried again.
fn make(path: &Path) -> io::Result<()> {
    let mut tries = 0;
    loop {
        tries += 1;
        match fs::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries < 20 => {
                let _ = path.parent().map(fs::create_dir_all);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            done => return done,
        }
    }
}

/// For `poll`.
pub(crate) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_hybrid_and_pure_mounts() {
        let hybrid = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let found = Cgroups::of(Mounted::parse_all(hybrid.as_bytes())).unwrap();
        assert_eq!(found.unified, Path::new("/sys/fs/cgroup/unified"));
        let names: Vec<_> = found.v1.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["cpu", "memory"]);
        let pure = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = Cgroups::of(Mounted::parse_all(pure.as_bytes())).unwrap();
        assert_eq!(found.unified, Path::new("/sys/fs/cgroup"));
        assert!(found.v1.is_empty());
        let none = Mounted::parse_all(b"22 27 0:21 / /proc rw - proc proc rw\n");
        assert!(Cgroups::of(none).is_none());
    }

    #[test]
    fn settings_reach_the_files() {
        // A folder stands in for a pure cgroup2 mount, which a hybrid machine does not have.
        let dir = tempfile::tempdir().unwrap();
        let cgroups = Cgroups { unified: dir.path().to_owned(), v1: Vec::new(), devices: None };
        let limits = Limits {
            memory: Some(1 << 20),
            nano_cpus: Some(1_500_000_000),
            pids: Some(7),
            ..Limits::default()
        };
        cgroups.group("kiln/x/y", &limits).unwrap();
        let read = |path: &str| fs::read_to_string(dir.path().join(path)).unwrap();
        assert_eq!(read("kiln/x/y/memory.swap.max"), "1048576");
        assert_eq!(read("kiln/x/y/memory.max"), "1048576");
        assert_eq!(read("kiln/x/y/cpu.max"), "150000 100000");
        assert_eq!(read("kiln/x/y/pids.max"), "7");
        assert_eq!(read("kiln/x/cgroup.subtree_control"), "+pids");
        let limits = Limits {
            period: Some(50_000),
            shares: Some(1024),
            cpuset: Some("0-1".into()),
            reservation: Some(5),
            swap: Some(3 << 20),
            ..limits
        };
        let mut group = cgroups.group("kiln/x/z", &limits).unwrap();
        assert_eq!(read("kiln/x/z/cpu.max"), "75000 50000");
        assert_eq!(read("kiln/x/z/cpu.weight"), "39");
        assert_eq!(read("kiln/x/z/cpuset.cpus"), "0-1");
        assert_eq!(read("kiln/x/z/memory.low"), "5");
        assert_eq!(read("kiln/x/z/memory.swap.max"), "2097152");
        assert!(group.unmet().is_empty());
        // What nothing depends on is told where it cannot be given.
        fs::create_dir_all(dir.path().join("kiln/x/w/cpu.weight")).unwrap();
        let limits = Limits { shares: Some(2), swap: Some(-1), ..Limits::default() };
        let unmet = cgroups.group("kiln/x/w", &limits).unwrap().unmet();
        assert!(unmet.len() == 1 && unmet[0].contains("cpu.weight"), "{unmet:?}");
        assert_eq!(read("kiln/x/w/memory.swap.max"), "max");
    }
}
