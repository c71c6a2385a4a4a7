//! A release: the immutable metafile that pins everything a deploy needs.
//!
//! | module | what |
//! |---|---|
//! | here | the values |
//! | `write` | their canonical bytes, which the digest is over |
//! | `read` | bytes of this format and of older ones → values |
//! | `graph` | what depends on what: start order, reach, instance keys |

mod graph;
mod read;
mod write;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use self::graph::KEY_FORMAT;
pub use self::read::{ReadError, read};

use crate::canonical::Members;
use crate::compose::{
    Dependency, Device, Dns, Expose, Hook, Limits, Membership, Mount, NetworkMode, Port, Restart,
    Tmpfs,
};
use crate::digest::Digest;
use crate::image::{Healthcheck, ImageId};
use crate::stage::Policy;

/// Version of the release's format; see `docs/formats.md`.
pub const FORMAT: u32 = 2;

/// The metafile. Its digest is the sha256 of [`Release::canonical`].
///
/// It says nothing that only one machine knows: which release came before it, when and by whom it
/// was cut stand in the ledger. So one commit has one release digest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Release {
    /// Name of the project.
    pub project: String,
    /// Where the source was.
    pub source: Source,
    /// Everything that runs, by service.
    pub services: BTreeMap<String, ReleasedService>,
    /// The policy that it proposes to each stage.
    pub proposes: BTreeMap<String, Policy>,
    /// By stage and service the settings of those that run otherwise there; see
    /// [`Release::for_stage`].
    pub stages: BTreeMap<String, BTreeMap<String, Settings>>,
}

/// Where a release came from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Source {
    /// Git commit of the working tree, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Whether the tree differed from the commit.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dirty: bool,
}

impl Source {
    /// Whether the commit says all of it.
    pub fn is_clean(&self) -> bool {
        self.commit.is_some() && !self.dirty
    }
}

/// One service of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleasedService {
    /// Its image.
    pub image: ImageId,
    /// Its settings: Compose file and image configuration joined.
    pub settings: Settings,
}

/// All that decides how an instance runs, beside its image, as far as somebody stated it: `None` is
/// "not stated". What holds then is decided where an instance is made, by the methods in
/// [`crate::defaults`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
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
    /// Names beside the service's own on the network `default`, where that is all it is on.
    pub aliases: BTreeSet<String>,
    /// The networks that it is on, where it is not `default` alone.
    pub networks: Option<BTreeMap<String, Membership>>,
    /// Whose network it has, where it is not one of its own.
    pub network_mode: Option<NetworkMode>,
    /// Further names of other services, for this one alone.
    pub links: BTreeMap<String, String>,
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
    /// tmpfs mounts that were asked for.
    pub tmpfs: Vec<Tmpfs>,
    /// Root file system without a writable layer: yes, no, or not stated.
    pub read_only: Option<bool>,
    /// Bytes that a throw-away layer takes.
    pub scratch: Option<u64>,
    /// Size of `/dev/shm` in bytes.
    pub shm_size: Option<u64>,
    /// Name of the stop signal.
    pub stop_signal: Option<String>,
    /// Nanoseconds between stop signal and kill.
    pub stop_grace: Option<u64>,
    /// What happens when it ends.
    pub restart: Option<Restart>,
    /// Run an init that reaps.
    pub init: bool,
    /// Resource limits of processes.
    pub ulimits: BTreeMap<String, (i64, i64)>,
    /// Capability set, sorted, without `CAP_`, where `cap_add` or `cap_drop` say anything.
    pub capabilities: Option<BTreeSet<String>>,
    /// Further lines of `/etc/hosts`.
    pub extra_hosts: Vec<(String, String)>,
    /// Memory, cpu, pids.
    pub limits: Limits,
    /// Groups beside the user's own: names of the image, or numbers.
    pub groups: BTreeSet<String>,
    /// Kernel settings of its own namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Where names are looked up that are none of the project's.
    pub dns: Dns,
    /// Without the filter of system calls.
    pub unconfined: bool,
    /// Devices of the host.
    pub devices: Vec<Device>,
    /// Commands that are run in an instance before it counts as ready.
    pub post_start: Vec<Hook>,
    /// Commands that are run in an instance before its stop signal.
    pub pre_stop: Vec<Hook>,
    /// Configs and secrets, pinned.
    pub files: Vec<PinnedFile>,
    /// Nobody can call it; it never runs in two slots.
    pub worker: bool,
}

/// A config or secret whose content is an object of the store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
    #[serde(default)]
    pub secret: bool,
}

impl Release {
    /// The canonical bytes; see `docs/formats.md`.
    pub fn canonical(&self) -> Vec<u8> {
        Members::from(self).bytes()
    }

    /// The digest of a release that is cut now. One that was read has the digest of the bytes that
    /// it was read from, which may be of an older format.
    pub fn digest(&self) -> Digest {
        Digest::of(self.canonical())
    }

    /// Whether it says the same as `other` in all but where the source was.
    pub fn runs_as(&self, other: &Self) -> bool {
        self.project == other.project
            && self.services == other.services
            && self.proposes == other.proposes
            && self.stages == other.stages
    }

    /// What of it runs in `stage`, with the settings of that stage; nothing if they are those of
    /// all. Its digest is the release's own no more.
    pub fn for_stage(&self, stage: &str) -> Option<Self> {
        let own = self.stages.get(stage)?;
        let mut there = Self { stages: BTreeMap::new(), ..self.clone() };
        for (name, settings) in own {
            if let Some(released) = there.services.get_mut(name) {
                released.settings = settings.clone();
            }
        }
        Some(there)
    }

    /// All settings that it pins.
    fn all_settings(&self) -> impl Iterator<Item = &Settings> {
        let own = self.services.values().map(|released| &released.settings);
        own.chain(self.stages.values().flat_map(BTreeMap::values))
    }

    /// File trees that it pins: those of its images, and what is mounted from the project.
    pub fn trees(&self) -> BTreeSet<Digest> {
        let images = self.services.values().map(|released| released.image.tree);
        let mounts = self.all_settings().flat_map(|settings| &settings.mounts);
        let content = mounts.filter_map(|mount| mount.content.as_ref());
        images.chain(content.map(|content| content.tree)).collect()
    }

    /// Everything that the release pins, for collection and transfer: tree and config digests and
    /// the contents of its configs and secrets.
    pub fn pins(&self) -> BTreeSet<Digest> {
        let mut pins = self.trees();
        pins.extend(self.services.values().map(|released| released.image.config));
        let files = self.all_settings().flat_map(|settings| &settings.files);
        pins.extend(files.map(|file| file.digest));
        pins
    }
}

#[cfg(test)]
mod tests;
