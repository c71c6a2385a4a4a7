//! Joined networks: at which addresses the services of one project are found by those of others.
//!
//! A name of a slot leads to the instance of that slot. What another project calls leads to what
//! serves now, so it is an address of its own: it belongs to the stage and the service, follows
//! every switch, and stays until the root is shut down, for somebody may have it in `/etc/hosts`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use kiln_run::known::boot_id;
use serde::{Deserialize, Serialize};

use super::network::{self, Net};
use super::stage::{Life, Role, Stage, StageId, StageState};
use super::{Agent, lock, summed};
use crate::report::{Because, Report};

/// The addresses that were given, by stage and service.
#[derive(Debug)]
pub(crate) struct Joined {
    path: PathBuf,
    /// See [`File`].
    withheld: BTreeSet<Ipv4Addr>,
    given: Mutex<Given>,
    /// Held while more are given: whoever only looks does not wait for the disk.
    giving: Mutex<()>,
}

/// By `PROJECT/STAGE SERVICE`.
type Given = BTreeMap<String, Ipv4Addr>;

/// What is written, so that the next agent goes on with it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct File {
    /// The boot of the machine under which it was written: under another one nobody knows them.
    boot: String,
    /// The addresses that were given.
    pub addresses: Given,
    /// Blocks of addresses, by their first one, of which an agent could not find out what is in use:
    /// nothing of them is given to anybody until the machine has started anew.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub withheld: BTreeSet<Ipv4Addr>,
}

impl File {
    /// What an earlier agent of this boot has written.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn read(root: &Path) -> std::io::Result<Self> {
        let Some(file) = summed::read::<Self>(&path(root))? else { return Ok(Self::default()) };
        Ok(if boot_id()? == file.boot { file } else { Self::default() })
    }
}

fn path(root: &Path) -> PathBuf {
    root.join("run").join("joined.json")
}

fn key(stage: &StageId, service: &str) -> String {
    format!("{stage} {service}")
}

impl Joined {
    /// Goes on with what was written, as far as that could be read.
    pub(crate) fn of(root: &Path, file: File) -> Self {
        let File { addresses, withheld, .. } = file;
        let (path, given) = (path(root), Mutex::new(addresses));
        Self { path, withheld, given, giving: Mutex::default() }
    }

    /// Writes down what is withheld, which no other file tells.
    pub(crate) fn write_down(&self) -> std::io::Result<()> {
        let given = lock(&self.given).clone();
        self.write(&given)
    }

    /// Where those of `stage` are found, with where each leads now.
    pub(crate) fn translation(
        &self,
        stage: &StageId,
        state: &StageState,
    ) -> Vec<(Ipv4Addr, Option<Ipv4Addr>)> {
        let own = format!("{stage} ");
        let given = lock(&self.given);
        let of_stage = given.iter().filter_map(|(key, at)| Some((key.strip_prefix(&own)?, *at)));
        of_stage.map(|(service, at)| (at, serving(state, service))).collect()
    }

    fn write(&self, given: &Given) -> std::io::Result<()> {
        let (addresses, withheld) = (given.clone(), self.withheld.clone());
        summed::write(&self.path, &File { boot: boot_id()?, addresses, withheld })
    }
}

/// The address of the newest instance of `service` that serves.
fn serving(state: &StageState, service: &str) -> Option<Ipv4Addr> {
    let found = state.with_role(Role::Active)?.of(service).iter().rev().find_map(|id| {
        let lives = |life: &Life| !matches!(life, Life::BackOff { .. } | Life::Failed { .. });
        state.instances.get(id).filter(|found| lives(&found.life))
    });
    found.map(|found| found.address)
}

impl Agent {
    /// The names that an instance of `stage` finds on its joined networks, beside those of its own
    /// project: what serves in the stages of that name of others.
    pub(crate) fn joined_names(
        &self,
        stage: &Stage,
        net: &Net,
    ) -> Result<Vec<(Ipv4Addr, Vec<String>)>, Report> {
        let shared = network::joined(net);
        let mut all = Vec::new();
        if shared.is_empty() {
            return Ok(all);
        }
        for other in self.neighbours(&stage.id) {
            let found = on(&other, &shared);
            let services: Vec<&String> = found.iter().map(|(service, _)| service).collect();
            let addresses = self.joined_addresses(&other.id, &services)?;
            self.translate(&other)?;
            let names = found.into_iter().map(|(service, mut names)| {
                names.insert(0, service);
                names
            });
            all.extend(addresses.into_iter().zip(names));
        }
        Ok(all)
    }

    /// Whether a stage of another project serves something on the network that is joined as `name`.
    pub(crate) fn is_joined(&self, stage: &StageId, name: &str) -> bool {
        let shared = BTreeSet::from([network::joined_name(stage, name)]);
        self.neighbours(stage).iter().any(|other| !on(other, &shared).is_empty())
    }

    /// Instances of other projects on the network that is joined as `name` which started before `stage`
    /// served there, so that they do not find all of it by name: project and service of each.
    pub(crate) fn do_not_find(&self, stage: &Stage, name: &str) -> Vec<(String, String)> {
        let shared = BTreeSet::from([network::joined_name(&stage.id, name)]);
        let given = lock(&self.joined.given).clone();
        let own: Vec<Option<Ipv4Addr>> = on(stage, &shared)
            .iter()
            .map(|(service, _)| given.get(&key(&stage.id, service)).copied())
            .collect();
        let mut found = Vec::new();
        for other in self.neighbours(&stage.id) {
            let there: Vec<(String, String)> = {
                let state = other.state();
                let slot = state.with_role(Role::Active);
                let members = slot.iter().flat_map(|slot| slot.all());
                let members = members.filter_map(|id| state.instances.get(id));
                let on_it = members.filter(|it| !network::joined(&it.net).is_disjoint(&shared));
                on_it.map(|it| (it.id.clone(), it.service.clone())).collect()
            };
            for (id, service) in there {
                // What cannot be read says nothing of whom it finds.
                let Ok(hosts) = self.hosts_of(&id) else { continue };
                let knows = |address: &Option<Ipv4Addr>| {
                    address.is_some_and(|at| {
                        let at = at.to_string();
                        hosts.lines().any(|line| line.split_whitespace().next() == Some(&at))
                    })
                };
                if !own.iter().all(knows) {
                    found.push((other.id.project.clone(), service));
                }
            }
        }
        found.sort();
        found.dedup();
        found
    }

    /// What an instance had in `/etc/hosts` when it started.
    fn hosts_of(&self, id: &str) -> std::io::Result<String> {
        let text = std::fs::read(self.instance_dir(id).join(kiln_run::spec::SPEC_FILE))?;
        let spec: kiln_run::InstanceSpec = serde_json::from_slice(&text)?;
        Ok(spec.sandbox.hosts)
    }

    /// Stages of the same name of other projects.
    fn neighbours(&self, stage: &StageId) -> Vec<std::sync::Arc<Stage>> {
        let mut all = self.stages();
        all.retain(|other| other.id.stage == stage.stage && other.id.project != stage.project);
        all
    }

    /// The addresses at which services of `stage` are found by other projects, in their order.
    fn joined_addresses(
        &self,
        stage: &StageId,
        services: &[&String],
    ) -> Result<Vec<Ipv4Addr>, Report> {
        let _alone = lock(&self.joined.giving);
        let mut given = lock(&self.joined.given).clone();
        let keys: Vec<String> = services.iter().map(|service| key(stage, service)).collect();
        let missing: Vec<&String> = keys.iter().filter(|key| !given.contains_key(*key)).collect();
        if !missing.is_empty() {
            let fresh = self.addresses.take_virtuals(&self.host, missing.len())?;
            let mut more = given.clone();
            more.extend(missing.into_iter().cloned().zip(fresh.iter().copied()));
            // Written before anybody knows them: the next agent must not give them to others.
            let written = self
                .joined
                .write(&more)
                .because(|| format!("writing {}", self.joined.path.display()));
            if let Err(report) = written {
                fresh.into_iter().for_each(|address| self.addresses.give_back(address));
                return Err(report);
            }
            *lock(&self.joined.given) = more.clone();
            given = more;
        }
        Ok(keys.iter().filter_map(|key| given.get(key).copied()).collect())
    }
}

/// Services of what serves in `stage` that are on one of the networks `shared`, with their aliases
/// there.
fn on(stage: &Stage, shared: &BTreeSet<String>) -> Vec<(String, Vec<String>)> {
    let state = stage.state();
    let release =
        state.with_role(Role::Active).and_then(|slot| state.releases.get(&slot.release).cloned());
    drop(state);
    let Some(release) = release else { return Vec::new() };
    release
        .services
        .keys()
        .filter_map(|name| {
            let aliases = network::aliases_on(&stage.id, &release, name, shared)?;
            Some((name.clone(), aliases))
        })
        .collect()
}
