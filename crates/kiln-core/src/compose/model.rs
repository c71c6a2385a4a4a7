//! The typed Compose project. Everything here is normalised: one form for each thing, relative
//! paths made absolute, environment files merged, defaults of the Compose Specification applied
//! except where `Option` says that the image's own value holds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::image::Healthcheck;

/// A whole project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Project {
    /// `name`, else the directory's normalised name. Lower-case letters, digits, `-`, `_`.
    pub name: String,
    /// Directory of the first file; `kiln.lock` lives here.
    pub dir: PathBuf,
    /// Active services (profiles applied), by name.
    pub services: BTreeMap<String, Service>,
    /// Top-level named volumes of its own.
    pub volumes: BTreeSet<String>,
    /// Top-level networks; `default` is there if the file says something of it.
    pub networks: BTreeMap<String, Network>,
    /// The `x-kiln` extension.
    pub kiln: KilnSection,
    /// The project with the files of a stage over it, by stage, for those that have any. Services,
    /// images, builds and bases are the same.
    pub in_stages: BTreeMap<String, Project>,
    /// Accepted keys that mean nothing here, each as `file:line: key`; shown to the user.
    pub ignored: Vec<String>,
    /// What is probably not meant, each as `file:line: text`: variables that are not set.
    pub warnings: Vec<String>,
}

impl Project {
    /// The project as it is in `stage`.
    pub fn in_stage(&self, stage: &str) -> &Self {
        self.in_stages.get(stage).unwrap_or(self)
    }
}

/// The top-level `x-kiln` key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct KilnSection {
    /// Named bases.
    pub bases: BTreeMap<String, Base>,
    /// Stages, by name. `dev` is always there.
    pub stages: BTreeMap<String, Stage>,
    /// Targets at which a volume without a name is no data, in whichever service.
    pub volatile: BTreeSet<String>,
    /// Root file systems are read-only in every stage where a service does not state otherwise.
    pub read_only: bool,
    /// How many bytes a throw-away layer takes where a service does not state otherwise.
    pub scratch: Option<u64>,
}

/// `x-kiln.bases.NAME`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Suite of the distribution, for example `bookworm`.
    pub debian: String,
    /// Packages beside the essential ones.
    pub packages: Vec<String>,
    /// Without the essential packages: only the named ones, without their dependencies, unpacked
    /// and not configured (`x-kiln.bases.NAME.minimal: true`).
    pub minimal: bool,
}

/// `x-kiln.stages.NAME`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stage {
    /// The stage whose active release is deployed here by default.
    pub after: Option<String>,
    /// Old releases that stay restorable.
    pub keep: Option<u32>,
    /// How long what is under way at a release that was switched away from may take, in
    /// nanoseconds.
    pub drain: Option<u64>,
    /// Override files, absolute: merged over the project's, in order, they say how its services run
    /// in this stage.
    pub files: Vec<PathBuf>,
    /// Published ports of stages other than `dev`, by service.
    pub ports: BTreeMap<String, Vec<Port>>,
}

/// One service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Service {
    /// `image`: the name of a base (a registry reference is refused for now).
    pub image: Option<String>,
    /// `build`.
    pub build: Option<Build>,
    /// `command`, split into words. `None`: the image's. Empty: none.
    pub command: Option<Vec<String>>,
    /// `entrypoint`, split into words. `None`: the image's; setting it drops the image's command.
    pub entrypoint: Option<Vec<String>>,
    /// `env_file`s and `environment` merged.
    pub environment: BTreeMap<String, String>,
    /// `working_dir`.
    pub working_dir: Option<String>,
    /// `user`.
    pub user: Option<String>,
    /// `hostname`; default the service's name.
    pub hostname: Option<String>,
    /// `ports`.
    pub ports: Vec<Port>,
    /// `expose`: container ports.
    pub expose: Vec<Expose>,
    /// `depends_on`, by service.
    pub depends_on: BTreeMap<String, Dependency>,
    /// `healthcheck`; `None`: the image's. `disable: true` is `test: ["NONE"]`.
    pub healthcheck: Option<Healthcheck>,
    /// `volumes`.
    pub volumes: Vec<Mount>,
    /// `tmpfs`, and `volumes` of type tmpfs.
    pub tmpfs: Vec<Tmpfs>,
    /// `read_only`; not stated leaves it to project and stage.
    pub read_only: Option<bool>,
    /// `shm_size` in bytes.
    pub shm_size: Option<u64>,
    /// `stop_signal`.
    pub stop_signal: Option<String>,
    /// `stop_grace_period` in nanoseconds.
    pub stop_grace_period: Option<u64>,
    /// `restart`.
    pub restart: Option<Restart>,
    /// `init`.
    pub init: bool,
    /// `ulimits`: soft and hard, `-1` unlimited, by name without `RLIMIT_`, lower case.
    pub ulimits: BTreeMap<String, (i64, i64)>,
    /// `cap_add`, upper case without `CAP_`; may hold `ALL`.
    pub cap_add: BTreeSet<String>,
    /// `cap_drop`, likewise.
    pub cap_drop: BTreeSet<String>,
    /// `extra_hosts`: name and address.
    pub extra_hosts: Vec<(String, String)>,
    /// Memory, cpu and pids limits.
    pub limits: Limits,
    /// `group_add`: names of the image's groups, or numbers.
    pub groups: BTreeSet<String>,
    /// `sysctls` of the instance's own namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// `dns`, `dns_search`, `dns_opt`.
    pub dns: Dns,
    /// `security_opt: [seccomp:unconfined]`.
    pub unconfined: bool,
    /// `configs` and `secrets`.
    pub files: Vec<FileMount>,
    /// `network_mode`.
    pub network_mode: Option<NetworkMode>,
    /// `networks`, each with the service's aliases there. `None`: `default`.
    pub networks: Option<BTreeMap<String, BTreeSet<String>>>,
    /// `links`: further names of other services, for this one alone.
    pub links: BTreeMap<String, String>,
    /// `x-kiln.worker`; `None`: a worker if nobody can call it.
    pub worker: Option<bool>,
    /// `x-kiln.volatile`: what is written there is no data and goes with the instance.
    pub volatile: BTreeSet<String>,
    /// `x-kiln.scratch`: how many bytes its throw-away layer takes.
    pub scratch: Option<u64>,
    /// Targets of the bind mounts whose source was stated relative to the project.
    #[serde(skip)]
    pub relative: BTreeSet<String>,
    /// `devices`.
    pub devices: Vec<Device>,
    /// `post_start`.
    pub post_start: Vec<Hook>,
    /// `pre_stop`.
    pub pre_stop: Vec<Hook>,
    /// `file:line` of the service's key, for messages.
    pub place: String,
}

/// One device of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Absolute path of its node on the host.
    pub source: String,
    /// Absolute path in the instance.
    pub target: String,
    /// What may be done: `r`, `w` and `m`, in this order.
    pub access: String,
}

/// One command of `post_start` or `pre_stop`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// The command line; never empty.
    pub command: Vec<String>,
    /// `user[:group]` instead of the service's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Absolute working directory instead of the service's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// `NAME=value` beside the service's own, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
}

/// `build`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Build {
    /// Absolute directory or archive; or an address of Git or HTTP, which is no absolute path.
    pub context: PathBuf,
    /// Dockerfile, absolute; default `Dockerfile` in the context. In a context that has to be
    /// fetched, relative to it.
    pub dockerfile: PathBuf,
    /// `dockerfile_inline`.
    pub inline: Option<String>,
    /// `args`; `None` takes the predefined or Dockerfile default.
    pub args: BTreeMap<String, Option<String>>,
    /// `target`.
    pub target: Option<String>,
    /// `additional_contexts`: name to absolute directory, an address, `service:NAME`, `docker-image://BASE` or
    /// `oci-layout://PATH[:NAME|@DIGEST]`, its path absolute.
    pub additional_contexts: BTreeMap<String, String>,
    /// `secrets`, by the id that the Dockerfile asks for.
    #[serde(skip)]
    pub secrets: BTreeMap<String, BuildSecret>,
    /// `ssh`: sockets of agents by id. `default` without a path is that of `SSH_AUTH_SOCK`.
    pub ssh: BTreeMap<String, PathBuf>,
    /// `network`: whether a RUN without `--network` has one.
    pub network: bool,
    /// `shm_size` in bytes.
    pub shm_size: Option<u64>,
    /// `ulimits`: soft and hard limit, `-1` unlimited.
    pub ulimits: BTreeMap<String, (i64, i64)>,
    /// `labels` of the image.
    pub labels: BTreeMap<String, String>,
}

/// One secret of a build. What the step says of owner and mode counts before this.
#[derive(Clone, PartialEq, Eq)]
pub struct BuildSecret {
    /// Where the content comes from.
    pub source: FileSource,
    /// Owner of the file.
    pub uid: Option<u32>,
    /// Group of the file.
    pub gid: Option<u32>,
    /// Permission bits.
    pub mode: Option<u32>,
}

impl std::fmt::Debug for BuildSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BuildSecret").finish_non_exhaustive()
    }
}

/// One published port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Host address; `None` is every address, IPv4 and IPv6.
    pub host_ip: Option<std::net::IpAddr>,
    /// Host port; 0 lets the system choose.
    pub published: u16,
    /// Port of the instance.
    pub target: u16,
    /// `tcp` or `udp`.
    pub protocol: Protocol,
    /// `app_protocol`.
    pub app_protocol: Option<String>,
}

/// Transport protocol.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

/// One network at the top.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Network {
    /// Another project has it.
    pub external: bool,
    /// Nothing leads out of it.
    pub internal: bool,
    /// The name under which other projects have a part in it.
    pub joined: Option<String>,
}

/// `network_mode`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// Nothing but its own loopback.
    None,
    /// The way out, and those of the project that have the same mode.
    Bridge,
    /// The host's own network.
    Host,
    /// That of another service's instance.
    Service(String),
}

/// A service's part in a network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Membership {
    /// Names there beside the service's own.
    pub aliases: BTreeSet<String>,
    /// Nothing leads out of it.
    pub internal: bool,
    /// The name under which other projects have a part in it.
    pub joined: Option<String>,
}

/// One exposed port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expose {
    /// Port of the instance.
    pub target: u16,
    /// `tcp` or `udp`.
    pub protocol: Protocol,
}

/// One entry of `depends_on`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dependency {
    /// What is awaited.
    pub condition: Condition,
    /// `required: false` goes on without it.
    pub required: bool,
}

/// `depends_on.*.condition`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// Started.
    ServiceStarted,
    /// Healthy.
    ServiceHealthy,
    /// Ended with status 0.
    ServiceCompletedSuccessfully,
}

/// A volume or bind mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// Where from.
    pub source: MountSource,
    /// Absolute path in the instance.
    pub target: String,
    /// `:ro`.
    pub read_only: bool,
    /// A new volume begins empty, whatever the image has there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nocopy: bool,
    /// What of the volume is mounted: relative, without `..`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subpath: Option<String>,
    /// The volume's `name:`, under which other projects have it as `external`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_as: Option<String>,
    /// `create_host_path: false`: what is not there is an error.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub must_exist: bool,
    /// What a read-only bind mount of the project held when the release was cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
}

/// A file or folder of the project, pinned.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// The folder; or one that has the file alone, under the name [`Content::FILE`].
    pub tree: Digest,
    /// Whether it is a file.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub file: bool,
}

impl Content {
    /// The name of a file that stands alone.
    pub const FILE: &'static str = "file";
}

/// Source of a [`Mount`].
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountSource {
    /// A named volume of the project.
    Volume(String),
    /// A named volume of whichever project has it under this `name:`, in the stage of the same name.
    External(String),
    /// A path of the host: absolute in a project. In a release one that is relative begins with `.`,
    /// and is meant from the project's folder, which each machine has elsewhere.
    Bind(PathBuf),
    /// A volume without a name: it belongs to stage, service and target.
    #[default]
    Anonymous,
    /// A folder of the instance, filled from its image and gone with it (`x-kiln.volatile`).
    Volatile,
}

/// One tmpfs.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tmpfs {
    /// Absolute path in the instance.
    pub target: String,
    /// Size in bytes, if limited.
    pub size: Option<u64>,
    /// Mode, octal; default 1777.
    pub mode: Option<u32>,
    /// Size in percent of the machine's memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
    /// Owner of its root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Group of its root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// No program in it is executed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub noexec: bool,
    /// It begins with what the image has there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub filled: bool,
}

/// `restart`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Restart {
    /// `no`: an instance that ends stays ended.
    No,
    /// `on-failure[:max]`: a fresh instance unless the status was 0.
    OnFailure {
        /// At most this many, if limited.
        max: Option<u32>,
    },
    /// `always`, `unless-stopped`: a fresh instance, backed off.
    #[default]
    Always,
}

/// Resource limits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Billionths of a cpu.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nano_cpus: Option<u64>,
    /// Number of processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// Microseconds in which `nano_cpus` is counted (`cpu_period`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period: Option<u64>,
    /// Weight against others, 1024 is the usual one (`cpu_shares`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shares: Option<u64>,
    /// The cpus that it runs on, for example `0-2,4` (`cpuset`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpuset: Option<String>,
    /// Bytes that are left to it when memory is short (`mem_reservation`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reservation: Option<u64>,
    /// Bytes of memory and swap together; -1 is no limit (`memswap_limit`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap: Option<i64>,
}

/// Where names are looked up that are none of the project's; what is empty is the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dns {
    /// Name servers.
    pub servers: Vec<std::net::IpAddr>,
    /// Domains that are tried; `.` is none.
    pub search: Vec<String>,
    /// Options of resolv.conf(5).
    pub options: Vec<String>,
}

impl Dns {
    /// Whether nothing was stated.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One config or secret, mounted read-only as a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct FileMount {
    /// Absolute path in the instance.
    pub target: String,
    /// Where the content comes from.
    pub source: FileSource,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits; default 0444.
    pub mode: u32,
    /// Whether it is a secret: its content is never shown.
    pub secret: bool,
}

/// Content of a config or secret.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FileSource {
    /// An absolute path of the host.
    File(PathBuf),
    /// The text itself (`content:` or `environment:`).
    Content(String),
}
