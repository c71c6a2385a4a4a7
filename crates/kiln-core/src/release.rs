//! A release: the immutable metafile that pins everything a deploy needs.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::compose::{Dependency, Expose, Limits, Mount, Port, Restart, Tmpfs};
use crate::digest::Digest;
use crate::image::{Healthcheck, ImageId};

/// Version of the release's format; see `docs/formats.md`.
pub const FORMAT: u32 = 1;

/// The metafile. Its digest is the sha256 of [`Release::canonical`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// [`FORMAT`].
    pub format: u32,
    /// Name of the project.
    pub project: String,
    /// The release it came after, if any.
    pub parent: Option<Digest>,
    /// Where the source was.
    pub source: Source,
    /// Everything that runs, by service.
    pub services: BTreeMap<String, ReleasedService>,
}

/// Where a release came from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Git commit of the working tree, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Whether the tree differed from the commit.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dirty: bool,
}

/// One service of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleasedService {
    /// Its image.
    pub image: ImageId,
    /// Its settings: Compose file and image configuration joined.
    pub settings: Settings,
}

/// All that decides how an instance runs, beside its image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The whole command line; never empty.
    pub argv: Vec<String>,
    /// `NAME=value`, sorted.
    pub env: Vec<String>,
    /// Absolute working directory.
    pub working_dir: String,
    /// `user[:group]`; resolved in the image's `/etc/passwd` when an instance starts.
    pub user: String,
    /// Host name.
    pub hostname: String,
    /// Names beside the service's own.
    pub aliases: BTreeSet<String>,
    /// Published ports of each stage.
    pub ports: BTreeMap<String, Vec<Port>>,
    /// Ports that are callable: exposed and published targets.
    pub expose: BTreeSet<Expose>,
    /// What it waits for.
    pub depends_on: BTreeMap<String, Dependency>,
    /// Health check; `None`: ready when the exposed ports accept.
    pub healthcheck: Option<Healthcheck>,
    /// Volumes and bind mounts.
    pub mounts: Vec<Mount>,
    /// tmpfs mounts, the design's own among them.
    pub tmpfs: Vec<Tmpfs>,
    /// Root file system without a writable layer.
    pub read_only: bool,
    /// Size of `/dev/shm` in bytes.
    pub shm_size: u64,
    /// Name of the stop signal.
    pub stop_signal: String,
    /// Nanoseconds between stop signal and kill.
    pub stop_grace: u64,
    /// What happens when it ends.
    pub restart: Restart,
    /// Run an init that reaps.
    pub init: bool,
    /// Resource limits of processes.
    pub ulimits: BTreeMap<String, (i64, i64)>,
    /// Final capability set, sorted, without `CAP_`.
    pub capabilities: BTreeSet<String>,
    /// Further lines of `/etc/hosts`.
    pub extra_hosts: Vec<(String, String)>,
    /// Memory, cpu, pids.
    pub limits: Limits,
    /// Configs and secrets, pinned.
    pub files: Vec<PinnedFile>,
    /// Nobody can call it; it never runs in two slots.
    pub worker: bool,
}

/// A config or secret whose content is an object of the store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PinnedFile {
    /// Absolute path in the instance.
    pub target: String,
    /// Content.
    pub digest: Digest,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
    /// Never show the content.
    pub secret: bool,
}

impl Settings {
    /// Whether two instances at once could both write the same data: a writable named volume or
    /// bind mount.
    pub fn holds_data(&self) -> bool {
        use crate::compose::MountSource::Anonymous;
        self.mounts.iter().any(|mount| !mount.read_only && mount.source != Anonymous)
    }

    /// The part of the settings that reaches an instance.
    fn settled(&self) -> Self {
        // Ports of other stages and of the front never reach the instance.
        Self { ports: BTreeMap::new(), ..self.clone() }
    }
}

impl Release {
    /// The canonical bytes: compact JSON, keys in the order of the structures, maps sorted.
    pub fn canonical(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The release digest.
    pub fn digest(&self) -> Digest {
        Digest::of(self.canonical())
    }

    /// Whether it would run the same as `other`: all but parent and source are equal.
    pub fn runs_as(&self, other: &Self) -> bool {
        self.project == other.project && self.services == other.services
    }

    /// Services that `service` reaches over `depends_on`, transitively, without itself.
    pub fn reach(&self, service: &str) -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        let mut todo = vec![service];
        while let Some(name) = todo.pop() {
            let Some(released) = self.services.get(name) else { continue };
            for next in released.settings.depends_on.keys() {
                if seen.insert(next.clone()) {
                    todo.push(next);
                }
            }
        }
        seen.remove(service);
        seen
    }

    /// What an instance of `service` depends on: its image, its settings, and the same of all that
    /// it reaches. Instances with equal keys are interchangeable, so releases share them.
    pub fn instance_key(&self, service: &str) -> Option<Digest> {
        let mut names = self.reach(service);
        names.insert(service.to_owned());
        let mut parts = vec![serde_json::json!(service)];
        for name in names {
            let released = self.services.get(&name)?;
            let settings = released.settings.settled();
            parts.push(serde_json::json!([name, released.image, settings]));
        }
        Some(Digest::of(serde_json::to_vec(&parts).ok()?))
    }

    /// All services, each after those it depends on; by name where nothing else decides. A loop
    /// (which the Compose reader refuses) would leave its members out.
    pub fn start_order(&self) -> Vec<String> {
        let mut order: Vec<String> = Vec::new();
        while order.len() < self.services.len() {
            let before = order.len();
            for (name, released) in &self.services {
                let ready = |dep: &String| order.contains(dep) || !self.services.contains_key(dep);
                if !order.contains(name) && released.settings.depends_on.keys().all(ready) {
                    order.push(name.clone());
                }
            }
            if order.len() == before {
                break;
            }
        }
        order
    }

    /// Everything that the release pins, for collection and transfer: tree and config digests and
    /// the contents of its configs and secrets.
    pub fn pins(&self) -> BTreeSet<Digest> {
        let mut pins = BTreeSet::new();
        for released in self.services.values() {
            pins.extend([released.image.tree, released.image.config]);
            pins.extend(released.settings.files.iter().map(|file| file.digest));
        }
        pins
    }
}
