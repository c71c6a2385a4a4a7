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
const TMPFS: [(&str, u32); 3] = [("/tmp", 0o1777), ("/run", 0o755), ("/var/tmp", 0o1777)];

impl Settings {
    /// Whether the root file system has no writable layer. Not stated: it has none.
    pub fn is_read_only(&self) -> bool {
        self.read_only.unwrap_or(true)
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
                all.push(Tmpfs { target: target.to_owned(), size: None, mode: Some(mode) });
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

    /// What happens when it ends.
    pub fn restart(&self) -> Restart {
        self.restart.unwrap_or_default()
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

    /// The same with nothing left open.
    pub fn resolved(&self) -> Self {
        Self {
            env: self.environment(),
            working_dir: self.working_dir().to_owned(),
            tmpfs: self.all_tmpfs(),
            read_only: Some(self.is_read_only()),
            shm_size: Some(self.shm_size()),
            stop_signal: Some(self.stop_signal().to_owned()),
            stop_grace: Some(self.stop_grace()),
            restart: Some(self.restart()),
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
        assert!(open.is_read_only());
        let targets: Vec<_> = open.all_tmpfs().into_iter().map(|tmpfs| tmpfs.target).collect();
        assert_eq!(targets, ["/tmp", "/run", "/var/tmp"]);
        assert_eq!((open.shm_size(), open.stop_grace()), (64 << 20, 10_000_000_000));
        assert_eq!((open.stop_signal(), open.working_dir()), ("SIGTERM", "/"));
        assert_eq!(open.environment(), [format!("PATH={PATH}")]);
        assert_eq!(open.capabilities().len(), 14);
        assert_eq!(open.restart(), Restart::Always);
        let resolved = open.resolved();
        assert_eq!(resolved.resolved(), resolved);

        for stated in [true, false] {
            let said = Settings { read_only: Some(stated), ..Settings::default() };
            assert_eq!((said.is_read_only(), said.all_tmpfs()), (stated, vec![]));
        }
        let env = vec!["A=1".to_owned(), "PATH=/x".to_owned()];
        let said = Settings { env: env.clone(), ..Settings::default() };
        assert_eq!(said.environment(), env);
        let none = Settings { capabilities: Some(BTreeSet::new()), ..Settings::default() };
        assert!(none.capabilities().is_empty());
    }

    #[test]
    fn what_is_mounted_elsewhere_is_no_usual_place() {
        let at = |target: &str| Tmpfs { target: target.into(), size: Some(1), mode: None };
        let own = Settings { tmpfs: vec![at("/tmp")], ..Settings::default() };
        assert_eq!(own.all_tmpfs()[0], at("/tmp"));
        assert_eq!(own.all_tmpfs().len(), 3);
    }
}
