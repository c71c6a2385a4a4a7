//! What holds where nothing is stated. A release keeps the two apart; this is applied where an
//! instance is made, and in the key by which instances are shared.

use std::collections::BTreeSet;

use crate::compose::{Restart, Tmpfs};
use crate::release::Settings;

/// What every instance may do unless `cap_add` and `cap_drop` say otherwise: Docker's default set.
pub const CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const SHM: u64 = 64 << 20;
const STOP_SIGNAL: &str = "SIGTERM";
const STOP_GRACE: u64 = 10_000_000_000;
/// Bytes that a throw-away layer takes.
const SCRATCH: u64 = 1 << 30;
const TMPFS: [(&str, u32); 3] = [("/tmp", 0o1777), ("/run", 0o755), ("/var/tmp", 0o1777)];

/// What lies over an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Root {
    /// Nothing: it cannot be written to.
    ReadOnly,
    /// A layer that goes with the instance.
    Layer {
        /// Bytes that it takes.
        most: u64,
    },
}

/// Whether instances of `stage` whose root is not stated have a layer, by which one learns what they
/// write.
pub fn learns(stage: &str) -> bool {
    stage == "dev"
}

impl Settings {
    /// What lies over the image in `stage`. Not stated: a layer where people try things, nothing
    /// anywhere else.
    pub fn root(&self, stage: &str) -> Root {
        let layer = match self.read_only {
            Some(read_only) => !read_only,
            None => learns(stage),
        };
        if layer { Root::Layer { most: self.scratch.unwrap_or(SCRATCH) } } else { Root::ReadOnly }
    }

    /// Whether an instance that ended is followed by a fresh one. `job`: others wait for its end.
    /// `restarts`: fresh ones that there were already.
    pub fn restarts_after(&self, success: bool, job: bool, restarts: u32) -> bool {
        match self.restart {
            _ if job && success => false,
            // Whoever can call it misses it; nobody misses one that has done what it was for.
            None => !(success && self.worker),
            Some(Restart::No) => false,
            Some(Restart::OnFailure { max }) => {
                !success && max.is_none_or(|max| max == 0 || restarts < max)
            }
            Some(Restart::Always) => true,
        }
    }

    /// All tmpfs mounts: those asked for, and where `read_only` is not stated the usual places to
    /// write to, unless something else is mounted there.
    pub fn all_tmpfs(&self) -> Vec<Tmpfs> {
        let mut all = self.tmpfs.clone();
        if self.read_only.is_some() {
            return all;
        }
        for (target, mode) in TMPFS {
            let taken = all.iter().any(|tmpfs| tmpfs.target == target)
                || self.mounts.iter().any(|mount| mount.target == target);
            if !taken {
                let (target, mode) = (target.to_owned(), Some(mode));
                all.push(Tmpfs { target, mode, filled: true, ..Tmpfs::default() });
            }
        }
        all
    }

    /// The environment, which always has a `PATH`.
    pub fn environment(&self) -> Vec<String> {
        let mut env = self.env.clone();
        if !env.iter().any(|pair| pair.starts_with("PATH=")) {
            env.push(format!("PATH={PATH}"));
            env.sort();
        }
        env
    }

    /// Size of `/dev/shm` in bytes.
    pub fn shm_size(&self) -> u64 {
        self.shm_size.unwrap_or(SHM)
    }

    /// Name of the stop signal.
    pub fn stop_signal(&self) -> &str {
        self.stop_signal.as_deref().unwrap_or(STOP_SIGNAL)
    }

    /// Nanoseconds between stop signal and kill.
    pub fn stop_grace(&self) -> u64 {
        self.stop_grace.unwrap_or(STOP_GRACE)
    }

    /// The final capability set.
    pub fn capabilities(&self) -> BTreeSet<String> {
        let usual = || CAPABILITIES.map(str::to_owned).into();
        self.capabilities.clone().unwrap_or_else(usual)
    }

    /// The working directory.
    pub fn working_dir(&self) -> &str {
        if self.working_dir.is_empty() { "/" } else { &self.working_dir }
    }

    /// The same with nothing left open but what the stage decides, and what no value says.
    pub fn resolved(&self) -> Self {
        Self {
            env: self.environment(),
            working_dir: self.working_dir().to_owned(),
            tmpfs: self.all_tmpfs(),
            shm_size: Some(self.shm_size()),
            stop_signal: Some(self.stop_signal().to_owned()),
            stop_grace: Some(self.stop_grace()),
            capabilities: Some(self.capabilities()),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_stated_is_decided_here_and_what_is_stated_stays() {
        let open = Settings::default();
        assert_eq!(open.root("prod"), Root::ReadOnly);
        assert_eq!(open.root("dev"), Root::Layer { most: 1 << 30 });
        let targets: Vec<_> = open.all_tmpfs().into_iter().map(|tmpfs| tmpfs.target).collect();
        assert_eq!(targets, ["/tmp", "/run", "/var/tmp"]);
        assert_eq!((open.shm_size(), open.stop_grace()), (64 << 20, 10_000_000_000));
        assert_eq!((open.stop_signal(), open.working_dir()), ("SIGTERM", "/"));
        assert_eq!(open.environment(), [format!("PATH={PATH}")]);
        assert_eq!(open.capabilities().len(), 14);
        let resolved = open.resolved();
        assert_eq!(resolved.resolved(), resolved);

        for stated in [true, false] {
            let said = Settings { read_only: Some(stated), ..Settings::default() };
            assert_eq!(said.all_tmpfs(), []);
            for stage in ["dev", "prod"] {
                assert_eq!(said.root(stage) == Root::ReadOnly, stated);
            }
        }
        let env = vec!["A=1".to_owned(), "PATH=/x".to_owned()];
        let said = Settings { env: env.clone(), ..Settings::default() };
        assert_eq!(said.environment(), env);
        let none = Settings { capabilities: Some(BTreeSet::new()), ..Settings::default() };
        assert!(none.capabilities().is_empty());
    }

    #[test]
    fn what_is_mounted_elsewhere_is_no_usual_place() {
        let at = |target: &str| Tmpfs { target: target.into(), size: Some(1), ..Tmpfs::default() };
        let own = Settings { tmpfs: vec![at("/tmp")], ..Settings::default() };
        assert_eq!(own.all_tmpfs()[0], at("/tmp"));
        assert_eq!(own.all_tmpfs().len(), 3);
    }

    #[test]
    fn what_follows_an_end() {
        const OK: bool = true;
        const BAD: bool = false;
        let of = |restart, worker| Settings { restart, worker, ..Settings::default() };
        let (no, always) = (Some(Restart::No), Some(Restart::Always));
        let failure = |max| Some(Restart::OnFailure { max });
        for (restart, worker, success, job, restarts, again) in [
            // Not stated: nobody misses a worker that is done, and a server is always missed.
            (None, true, OK, false, 0, false),
            (None, true, BAD, false, 0, true),
            (None, false, OK, false, 0, true),
            (None, false, OK, true, 0, false),
            (None, true, BAD, true, 9, true),
            (no, false, OK, false, 0, false),
            (no, false, BAD, false, 0, false),
            (always, true, OK, false, 99, true),
            (always, true, OK, true, 0, false),
            (failure(None), true, OK, false, 0, false),
            (failure(None), true, BAD, false, 99, true),
            (failure(Some(0)), true, BAD, false, 99, true),
            (failure(Some(2)), true, BAD, false, 1, true),
            (failure(Some(2)), true, BAD, false, 2, false),
        ] {
            let settings = of(restart, worker);
            let found = settings.restarts_after(success, job, restarts);
            assert_eq!(found, again, "{restart:?} {worker} {success} {job} {restarts}");
        }
    }
}
