//! What a verb answers: the agent makes these documents, `--json` prints them as they are, and the
//! command line puts them into words. Both sides share the types, so a field that one of them
//! forgets does not compile. The JSON is public: the tests below pin it.

pub(crate) mod differing;
mod made;
pub(crate) mod stored;
pub(crate) mod verified;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use kiln_core::Digest;
use kiln_core::compose::Protocol;
use kiln_core::plan::{Paused, Plan};
use kiln_core::release::Source;
use kiln_core::steps::Step;
use kiln_core::written::Written;
use serde::{Deserialize, Serialize};

pub(crate) use self::made::{Bake, Baked, Cut, Executed, Pong, Shutdown};
use crate::agent::stage::Role;

/// `kiln ps`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ps {
    pub instances: Vec<Placed>,
    /// Where clients find what is published.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<StagePort>,
}

/// A published port with the stage that it is of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StagePort {
    pub project: String,
    pub stage: String,
    #[serde(flatten)]
    pub port: Port,
}

/// An instance with the stage that it is in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Placed {
    pub project: String,
    pub stage: String,
    #[serde(flatten)]
    pub instance: Instance,
}

/// One instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Instance {
    pub id: String,
    pub service: String,
    /// The slots that it serves in; of those that only keep names, none.
    pub slots: Vec<Slot>,
    /// `healthy`, `starting`, … or `unknown`.
    pub state: String,
    /// How it came to that, where there is something to say.
    pub how: Option<String>,
    pub verdict: Verdict,
    /// Why it is no longer as it was baked.
    pub tainted: Option<String>,
    pub restarts: u32,
    pub address: Ipv4Addr,
    /// While it runs.
    pub pid: Option<i32>,
    /// What the host could not give it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lacks: Vec<String>,
    /// What it has written beside its volumes; nothing if it can write nothing there. In `status`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<Written>,
    /// Unix milliseconds.
    pub started: u64,
}

/// A slot of an instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Slot {
    pub role: Role,
    pub release: Digest,
}

/// Whether an instance still is what was baked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Drifted,
    /// Nothing watches files and programs of instances yet, so congruence is never claimed.
    Unknown,
}

impl Verdict {
    /// As a person reads it.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Drifted => "drifted",
            Self::Unknown => "unknown",
        }
    }
}

/// `kiln status`: of a stage, or outside of any project of the root.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Status {
    Root(Overview),
    Stage(Box<StageStatus>),
}

/// The root at a glance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Overview {
    /// What of the ledger is damaged.
    pub ledger: Vec<String>,
    pub root: PathBuf,
    /// The word in all names that Kiln makes on the machine for this root.
    pub scope: String,
    /// Its blocks of addresses.
    pub network: String,
    /// How images are mounted.
    pub backing: String,
    pub notices: Vec<String>,
    pub stages: Vec<StageLine>,
}

/// A stage in an [`Overview`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StageLine {
    pub project: String,
    pub stage: String,
    pub active: Option<Digest>,
    pub standby: Option<Digest>,
    /// How many.
    pub instances: usize,
    pub trouble: Option<Trouble>,
}

/// A stage in which something serves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StageStatus {
    /// Why its release cannot be read.
    pub broken: Option<String>,
    /// What of the ledger is damaged.
    pub ledger: Vec<String>,
    pub project: String,
    pub stage: String,
    pub active: Digest,
    pub standby: Option<Digest>,
    /// What `rollback` without a name takes: not the standby where that was rolled back from.
    pub rollback: Option<Digest>,
    /// The standby was rolled back from.
    pub standby_quarantined: bool,
    pub source: Option<Source>,
    pub paused: bool,
    pub trouble: Option<Trouble>,
    pub services: Vec<Member>,
    pub ports: Vec<Port>,
    /// What is still with an older release, and which ports somebody else has.
    pub front: Vec<String>,
    pub scope: String,
    pub backing: String,
}

/// What a stage lacks that could not be built up again so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Trouble {
    /// Why the last try failed.
    pub why: String,
    /// Tries that failed.
    pub tries: u32,
    /// Milliseconds until the next one; nothing while one is under way.
    pub again_ms: Option<u64>,
}

/// A service of the active release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Member {
    There(Box<Instance>),
    /// It has no instance.
    Missing {
        service: String,
        state: Missing,
    },
}

impl Member {
    /// The one of `service` that is not there.
    pub(crate) const fn missing(service: String) -> Self {
        Self::Missing { service, state: Missing::Missing }
    }
}

/// The one state of what is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Missing {
    Missing,
}

/// Where clients find a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Port {
    pub service: String,
    /// `host:port`, as a person would write it. The port is 0 as long as the system has not chosen.
    pub address: String,
    /// Where the front listens; nowhere before the instance accepts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bound: Vec<SocketAddr>,
    /// Port of the instance.
    pub target: u16,
    pub protocol: Protocol,
}

/// `kiln port`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ports {
    pub service: String,
    pub ports: Vec<Published>,
}

/// Where clients reach a port of an instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Published {
    pub host: String,
    pub port: u16,
    /// Port of the instance.
    pub target: u16,
    pub protocol: Protocol,
}

/// `tcp` or `udp`.
pub(crate) const fn protocol_word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

/// `kiln ls`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Projects {
    pub projects: Vec<Project>,
}

/// A stage in [`Projects`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Project {
    pub project: String,
    pub stage: String,
    pub active: Option<Digest>,
    /// How many instances are in which state.
    pub states: BTreeMap<String, usize>,
    /// Where it was deployed from.
    pub folder: Option<String>,
}

/// `kiln wait`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Waited {
    pub services: Vec<Ended>,
    /// The exit code of the first one that was named.
    pub code: u8,
}

/// How an instance ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub service: String,
    /// 128 + signal, if one ended it.
    pub code: u8,
    pub signal: Option<i32>,
    /// For want of memory.
    pub oom: bool,
}

/// `kiln stats`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stats {
    pub instances: Vec<Usage>,
}

/// What an instance uses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Usage {
    pub id: String,
    pub project: String,
    pub stage: String,
    pub service: String,
    /// Of one processor, since the look before; none on the first look at it.
    pub cpu_percent: Option<f64>,
    /// Bytes.
    pub memory: u64,
    /// By the kernel, for the group; else the sum over its processes.
    pub memory_counted: bool,
    /// Bytes.
    pub memory_limit: Option<u64>,
    pub pids: u64,
    /// Bytes, where it has a network of its own.
    pub received: Option<u64>,
    pub sent: Option<u64>,
}

/// `kiln up`, `kiln rollback`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Up {
    pub project: String,
    pub stage: String,
    pub release: Digest,
    /// Whether it serves since now.
    pub switched: bool,
    /// Whether it had not been there before.
    pub fresh: bool,
    pub source: Source,
    /// What the working tree has that its commit has not.
    pub differences: Vec<String>,
    pub services: BTreeMap<String, Did>,
    pub ports: Vec<Port>,
    /// What was replaced under a pause.
    pub paused: Vec<Paused>,
    /// What services have written beside their volumes and was not told before.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub written: BTreeMap<String, Written>,
    /// What is still with an older release, and which ports somebody else has.
    /// Of `rollback`, nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub front: Option<Vec<String>>,
    pub ms: u64,
}

/// `kiln up --learn`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Learnt {
    pub service: String,
    /// How it stood when it was looked at, in words.
    pub ended: String,
    /// Whether that is as it should be.
    pub good: bool,
    /// The end of its log, where it is not.
    pub log: Vec<String>,
    pub written: Written,
}

/// What became of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Did {
    /// `kept` or `started`.
    pub did: String,
    /// State of its instance.
    pub health: Option<String>,
}

/// `kiln plan`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Planned {
    pub project: String,
    pub stage: String,
    pub release: Digest,
    /// The release that serves now.
    pub active: Option<Digest>,
    /// Whether a deploy would do anything.
    pub changes: bool,
    /// It was rolled back from, which `up` forgives.
    pub quarantined: bool,
    /// Whether clients will notice.
    pub pause: bool,
    pub plan: Plan,
    /// What a deploy would do, in order.
    pub steps: Vec<Step>,
}

/// `kiln releases`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Releases {
    pub releases: Vec<Restorable>,
}

/// One release that can be restored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Restorable {
    pub release: Digest,
    /// `active`, `standby`, `kept`, or `released` where it was cut and never served.
    pub role: String,
    /// It was rolled back from.
    pub quarantined: bool,
    /// When it was cut, in Unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// How many it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub services: Option<usize>,
    /// Why it cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broken: Option<String>,
}

/// `kiln down`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Down {
    pub project: String,
    pub stage: String,
    /// Instances by id.
    pub stopped: Vec<String>,
    /// Whether any volume was.
    pub volumes_removed: bool,
    /// Volumes that are gone with their data.
    pub removed: Vec<Volume>,
    /// Volumes that the files do not declare.
    pub left: Vec<Volume>,
}

/// Which volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Volume {
    Named {
        name: String,
    },
    /// One without a name is known by whose it is, and where that has it.
    Unnamed {
        service: String,
        target: String,
    },
}

impl std::fmt::Display for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Named { name } => write!(f, "`{name}`"),
            Self::Unnamed { service, target } => write!(f, "`{target}` of `{service}`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;

    /// The document of `answer` is `expected`, and is read back as the same.
    #[track_caller]
    pub(super) fn pinned<T>(answer: &T, expected: &Value)
    where
        T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
    {
        let document = serde_json::to_value(answer).unwrap();
        assert_eq!(document, *expected);
        assert_eq!(serde_json::from_value::<T>(document).unwrap(), *answer);
    }

    fn digest() -> Digest {
        Digest::from_bytes([0xab; 32])
    }

    fn source() -> Source {
        Source { commit: Some("0123".into()), dirty: true }
    }

    fn instance() -> (Instance, Value) {
        let instance = Instance {
            id: "shop-dev-web-1".into(),
            service: "web".into(),
            slots: vec![Slot { role: Role::Active, release: digest() }],
            state: "healthy".into(),
            how: None,
            verdict: Verdict::Unknown,
            tainted: None,
            restarts: 2,
            address: Ipv4Addr::new(10, 0, 0, 7),
            pid: Some(9),
            lacks: Vec::new(),
            written: None,
            started: 1_000,
        };
        let document = json!({
            "id": "shop-dev-web-1", "service": "web",
            "slots": [{ "role": "active", "release": digest() }],
            "state": "healthy", "how": null, "verdict": "unknown", "tainted": null,
            "restarts": 2, "address": "10.0.0.7", "pid": 9, "started": 1_000,
        });
        (instance, document)
    }

    #[test]
    fn ps_and_status() {
        let (instance, document) = instance();
        let mut placed = document.clone();
        placed["project"] = json!("shop");
        placed["stage"] = json!("dev");
        let one =
            Placed { project: "shop".into(), stage: "dev".into(), instance: instance.clone() };
        pinned(&Ps { instances: vec![one], ports: Vec::new() }, &json!({ "instances": [placed] }));
        let port = Port {
            service: "web".into(),
            address: "localhost:8080".into(),
            bound: Vec::new(),
            target: 80,
            protocol: Protocol::Tcp,
        };
        let status = StageStatus {
            broken: None,
            ledger: Vec::new(),
            project: "shop".into(),
            stage: "dev".into(),
            active: digest(),
            standby: None,
            rollback: None,
            standby_quarantined: false,
            source: Some(source()),
            paused: false,
            trouble: None,
            services: vec![Member::There(Box::new(instance)), Member::missing("api".into())],
            ports: vec![port],
            front: vec!["port 80 is taken".into()],
            scope: "a1".into(),
            backing: "composefs".into(),
        };
        pinned(
            &Status::Stage(Box::new(status)),
            &json!({
                "broken": null, "ledger": [], "project": "shop", "stage": "dev",
                "active": digest(), "standby": null, "rollback": null,
                "standby_quarantined": false,
                "source": { "commit": "0123", "dirty": true }, "paused": false,
                "trouble": null,
                "services": [document, { "service": "api", "state": "missing" }],
                "ports": [{ "service": "web", "address": "localhost:8080", "target": 80,
                            "protocol": "tcp" }],
                "front": ["port 80 is taken"],
                "scope": "a1", "backing": "composefs",
            }),
        );
        let stage = StageLine {
            project: "shop".into(),
            stage: "dev".into(),
            active: Some(digest()),
            standby: None,
            instances: 6,
            trouble: Some(Trouble { why: "no room".into(), tries: 3, again_ms: Some(4_000) }),
        };
        let overview = Overview {
            ledger: vec!["torn".into()],
            root: "/var/lib/kiln".into(),
            scope: "a1".into(),
            network: "10.0.0.0/20".into(),
            backing: "composefs".into(),
            notices: Vec::new(),
            stages: vec![stage],
        };
        pinned(
            &Status::Root(overview),
            &json!({
                "ledger": ["torn"], "root": "/var/lib/kiln", "scope": "a1",
                "network": "10.0.0.0/20", "backing": "composefs", "notices": [],
                "stages": [{ "project": "shop", "stage": "dev", "active": digest(),
                             "standby": null, "instances": 6,
                             "trouble": { "why": "no room", "tries": 3, "again_ms": 4_000 } }],
            }),
        );
    }

    #[test]
    fn deliveries() {
        let paused = Paused { service: "db".into(), why: "it writes".into() };
        let did = Did { did: "started".into(), health: Some("healthy".into()) };
        let up = Up {
            project: "shop".into(),
            stage: "dev".into(),
            release: digest(),
            switched: true,
            fresh: true,
            source: Source::default(),
            differences: vec!["a (changed)".into()],
            services: BTreeMap::from([("web".into(), did)]),
            ports: Vec::new(),
            paused: vec![paused.clone()],
            written: BTreeMap::new(),
            front: Some(Vec::new()),
            ms: 52,
        };
        pinned(
            &up,
            &json!({
                "project": "shop", "stage": "dev", "release": digest(), "switched": true,
                "fresh": true, "source": {}, "differences": ["a (changed)"],
                "services": { "web": { "did": "started", "health": "healthy" } },
                "ports": [], "paused": [{ "service": "db", "why": "it writes" }],
                "front": [], "ms": 52,
            }),
        );
        let planned = Planned {
            project: "shop".into(),
            stage: "dev".into(),
            release: digest(),
            active: None,
            changes: true,
            quarantined: false,
            pause: true,
            plan: Plan { paused: vec![paused], ..Plan::default() },
            steps: Vec::new(),
        };
        let document = serde_json::to_value(&planned).unwrap();
        assert_eq!(document["pause"], true);
        assert_eq!(document["plan"]["paused"][0]["service"], "db");
        assert_eq!(serde_json::from_value::<Planned>(document).unwrap(), planned);
        let down = Down {
            project: "shop".into(),
            stage: "dev".into(),
            stopped: vec!["a".into()],
            volumes_removed: true,
            removed: vec![Volume::Named { name: "v".into() }],
            left: vec![Volume::Unnamed { service: "web".into(), target: "/x".into() }],
        };
        pinned(
            &down,
            &json!({ "project": "shop", "stage": "dev", "stopped": ["a"],
                     "volumes_removed": true, "removed": [{ "name": "v" }],
                     "left": [{ "service": "web", "target": "/x" }] }),
        );
    }

    #[test]
    fn releases() {
        let good = Restorable {
            release: digest(),
            role: "released".into(),
            quarantined: false,
            time: Some(5),
            source: Some(Source::default()),
            services: Some(3),
            broken: None,
        };
        let broken = Restorable {
            role: "kept".into(),
            quarantined: true,
            time: None,
            source: None,
            services: None,
            broken: Some("it is damaged".into()),
            ..good.clone()
        };
        pinned(
            &Releases { releases: vec![good, broken] },
            &json!({ "releases": [
                { "release": digest(), "role": "released", "quarantined": false, "time": 5,
                  "source": {}, "services": 3 },
                { "release": digest(), "role": "kept", "quarantined": true,
                  "broken": "it is damaged" },
            ] }),
        );
    }
}
