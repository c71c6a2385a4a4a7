//! The control groups of whoever started the agent: it leaves those that limit it, for what it
//! starts would stay in them.
//!
//! In version 1 that is one group in each hierarchy, and moving out of one takes up to 15 ms, so
//! only those with a limit are left. Under version 2 everything that Kiln starts gets a group of
//! its own anyway; what matters there is who is taken along when a session ends.

use std::fs;
use std::path::{Path, PathBuf};

use kiln_store::mount::Mounted;

/// Of each controller of version 1 the files that limit, and what they hold where nothing does;
/// `None`: what they hold at the top.
const LIMITING: [(&str, &str, Option<&str>); 9] = [
    ("blkio", "blkio.throttle.read_bps_device", Some("")),
    ("blkio", "blkio.throttle.write_bps_device", Some("")),
    ("cpu", "cpu.cfs_quota_us", Some("-1")),
    ("cpu", "cpu.shares", Some("1024")),
    ("cpuset", "cpuset.cpus", None),
    ("cpuset", "cpuset.mems", None),
    ("devices", "devices.list", None),
    ("memory", "memory.limit_in_bytes", None),
    ("pids", "pids.max", Some("max")),
];

/// One hierarchy in which a process is not at the top.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    /// Where it is mounted.
    mount: PathBuf,
    /// The group, relative to that.
    below: PathBuf,
    /// Its controllers; empty in version 2, `name=…` where it only keeps track.
    controllers: String,
}

impl Place {
    fn tracks(&self) -> bool {
        self.controllers.is_empty() || self.controllers.starts_with("name=")
    }

    /// Whether the group, or one above it, has a limit that the top has not.
    fn limits(&self) -> bool {
        let read = |path: PathBuf| Some(fs::read_to_string(path).ok()?.trim().to_owned());
        let mut groups = self.below.ancestors().filter(|path| !path.as_os_str().is_empty());
        groups.any(|group| {
            LIMITING.iter().any(|(controller, file, free)| {
                let ours = self.controllers.split(',').any(|name| name == *controller);
                let here = read(self.mount.join(group).join(file));
                let free = free.map(str::to_owned).or_else(|| read(self.mount.join(file)));
                ours && here.is_some() && here != free
            })
        })
    }
}

/// Leaves the groups that limit. `detached`: also those that only keep track, by which a logout or
/// a service manager would take the agent along.
pub(super) fn leave(detached: bool) {
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    for place in places(Mounted::parse_all(&table), &own) {
        if if place.tracks() { detached } else { place.limits() } {
            // Nested in a container there may be no way up: then its limits are the machine's.
            let _ = fs::write(place.mount.join("cgroup.procs"), "0");
        }
    }
}

/// `table` is what is mounted, `own` is `/proc/self/cgroup`.
fn places(table: Vec<Mounted>, own: &str) -> Vec<Place> {
    let mut places: Vec<Place> = Vec::new();
    for Mounted { root: top, point, kind, options, .. } in table {
        let entry = own.lines().find_map(|entry| {
            let mut parts = entry.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            let first = controllers.split(',').next().unwrap_or_default();
            let here = match kind.as_str() {
                "cgroup2" => controllers.is_empty(),
                "cgroup" => !first.is_empty() && options.split(',').any(|option| option == first),
                _ => false,
            };
            here.then_some((controllers, path))
        });
        let Some((controllers, path)) = entry else { continue };
        // Of another container's part nothing is known.
        let Ok(below) = Path::new(path).strip_prefix(&top) else { continue };
        let known = places.iter().any(|place| place.controllers == controllers);
        if !below.as_os_str().is_empty() && !known {
            places.push(Place {
                mount: point.clone(),
                below: below.into(),
                controllers: controllers.to_owned(),
            });
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_where_a_process_is_not_at_the_top() {
        let table = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
            33 31 0:30 /box /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            34 31 0:31 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
            40 31 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
            41 31 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let own = "3:cpu,cpuacct:/a/b\n2:memory:/box\n4:pids:/\n1:name=systemd:/session\n\
            0::/session\n";
        let found: Vec<_> = places(Mounted::parse_all(table.as_bytes()), own)
            .into_iter()
            .map(|place| (place.mount.display().to_string(), place.below, place.controllers))
            .collect();
        let place = |mount: &str, below: &str, controllers: &str| {
            (format!("/sys/fs/cgroup/{mount}"), PathBuf::from(below), controllers.to_owned())
        };
        assert_eq!(
            found,
            [
                place("cpu", "a/b", "cpu,cpuacct"),
                place("systemd", "session", "name=systemd"),
                place("unified", "session", ""),
            ]
        );
    }

    #[test]
    fn a_limit_above_limits_too() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        let write = |path: &str, text: &str| fs::write(dir.path().join(path), text).unwrap();
        let place = Place {
            mount: dir.path().to_owned(),
            below: "a/b".into(),
            controllers: "pids".to_owned(),
        };
        write("a/pids.max", "max\n");
        write("a/b/pids.max", "max\n");
        assert!(!place.limits());
        write("a/pids.max", "100\n");
        assert!(place.limits());
    }
}
