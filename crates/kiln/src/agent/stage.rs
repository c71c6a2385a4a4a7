//! A stage: a named place of a project, its slots and its instances.
//!
//! State is guarded by one short-held lock; deliveries to one stage take turns by another. What is
//! needed to find everything again is written beside the pointer after each change, without a
//! flush: it is only of use while the machine stays up.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use kiln_core::data::Data;
use kiln_core::plan::Observed;
use kiln_core::release::KEY_FORMAT;
use kiln_core::{Digest, Release};
use kiln_store::ledger::Pointer;
use serde::{Deserialize, Serialize};

use super::supervise::Word;

/// Project and stage: what identifies a [`Stage`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct StageId {
    /// Name of the project.
    pub project: String,
    /// Name of the stage.
    pub stage: String,
}

impl fmt::Display for StageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.project, self.stage)
    }
}

/// What a slot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// It serves.
    Active,
    /// It is kept warm for rollback.
    Standby,
    /// It is being provisioned and tested.
    Candidate,
    /// Only its names are still needed, by instances that started in it and are shared.
    Names,
}

/// The set of instances of one release, and the stable addresses at which they find each other.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Slot {
    /// The release.
    pub release: Digest,
    /// What it is for.
    pub role: Role,
    /// Virtual address of each service.
    pub addresses: BTreeMap<String, Ipv4Addr>,
    /// Instance of each service that has one.
    pub members: BTreeMap<String, String>,
}

/// How an instance stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub(crate) enum Life {
    /// Started, not ready yet.
    Starting,
    /// Healthy, or its ports accept.
    Ready,
    /// Was ready; its probes fail.
    Unhealthy,
    /// Ended with status 0 and was meant to.
    Completed,
    /// Ended; a fresh one follows after a pause.
    BackOff {
        /// How it ended.
        how: String,
    },
    /// Ended or never got healthy; no further try.
    Failed {
        /// How it ended.
        how: String,
    },
    /// Being stopped.
    Stopping,
}

impl Life {
    /// One word for tables.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Completed => "completed",
            Self::BackOff { .. } => "backing off",
            Self::Failed { .. } => "failed",
            Self::Stopping => "stopping",
        }
    }
}

/// One running container of one service.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Instance {
    /// Name; also the name of its folder.
    pub id: String,
    /// Its service.
    pub service: String,
    /// [`Release::instance_keys`], as of the format [`Self::keyed`].
    pub key: Digest,
    /// Version of the key's format. A key of another one tells nothing.
    #[serde(default)]
    pub keyed: u32,
    /// Release of the slot in which it started and where it looks up names.
    pub born: Digest,
    /// Its own address.
    pub address: Ipv4Addr,
    /// How it stands.
    pub life: Life,
    /// Fresh instances that came before it because one ended.
    pub restarts: u32,
    /// Why it is no longer as baked, if it is not.
    pub tainted: Option<String>,
    /// Unix milliseconds.
    pub started: u64,
    /// The last probes that failed, newest last.
    #[serde(default)]
    pub probes: Vec<String>,
    /// What it can write and others could too.
    #[serde(default)]
    pub data: Data,
    /// Why it is not known whether it runs, while that is so.
    #[serde(skip)]
    pub unknown: Option<String>,
    /// Its supervisor's inbox.
    #[serde(skip)]
    pub inbox: Option<Sender<Word>>,
    /// The shim's side of it.
    #[serde(skip)]
    pub running: Option<Arc<kiln_run::Running>>,
}

/// Everything about a stage that changes.
#[derive(Debug, Default)]
pub(crate) struct StageState {
    /// Active and standby release, as recorded in the ledger.
    pub pointer: Pointer,
    /// All slots, oldest first.
    pub slots: Vec<Slot>,
    /// All instances, by id.
    pub instances: BTreeMap<String, Instance>,
    /// The releases that slots name.
    pub releases: BTreeMap<Digest, Arc<Release>>,
    /// Routes answer nothing until resumed: a data service is being replaced.
    pub paused: bool,
    /// Who took whose place since the delivery under way was planned; none is under way when
    /// `None`.
    heirs: Option<BTreeMap<String, String>>,
}

/// What is written beside the pointer.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct RunFile {
    /// The boot of the machine under which it was written: under another one it is not believed.
    #[serde(default)]
    pub boot: String,
    /// All slots.
    pub slots: Vec<Slot>,
    /// All instances.
    pub instances: Vec<Instance>,
}

/// A stage of this root.
#[derive(Debug)]
pub(crate) struct Stage {
    /// Which.
    pub id: StageId,
    turn: Mutex<()>,
    saving: Mutex<()>,
    state: Mutex<StageState>,
    changed: Condvar,
}

impl Stage {
    /// A stage with nothing in it.
    pub(crate) fn new(id: StageId, pointer: Pointer) -> Self {
        let state = StageState { pointer, ..StageState::default() };
        let (turn, saving) = (Mutex::new(()), Mutex::new(()));
        Self { id, turn, saving, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// The turn of this delivery, if nobody else has it.
    pub(crate) fn try_turn(&self) -> Option<MutexGuard<'_, ()>> {
        match self.turn.try_lock() {
            Ok(guard) => Some(guard),
            Err(std::sync::TryLockError::Poisoned(guard)) => Some(guard.into_inner()),
            Err(std::sync::TryLockError::WouldBlock) => None,
        }
    }

    /// Held from reading the state to having written it, so that a later state is written later.
    pub(crate) fn saving(&self) -> MutexGuard<'_, ()> {
        self.saving.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The state. Never held across anything that waits.
    pub(crate) fn state(&self) -> MutexGuard<'_, StageState> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Changes the state and wakes who waits for it.
    pub(crate) fn update<T>(&self, change: impl FnOnce(&mut StageState) -> T) -> T {
        let value = change(&mut self.state());
        self.changed.notify_all();
        value
    }

    /// Begins a delivery: its plan may go on naming instances that are replaced under it.
    pub(crate) fn deliver(&self) -> Delivery<'_> {
        self.update(|state| state.heirs = Some(BTreeMap::new()));
        Delivery(self)
    }

    /// Waits until something changes or `timeout` has passed.
    pub(crate) fn wait<'a>(
        &self,
        state: MutexGuard<'a, StageState>,
        timeout: Duration,
    ) -> MutexGuard<'a, StageState> {
        match self.changed.wait_timeout(state, timeout) {
            Ok((state, _)) => state,
            Err(poisoned) => poisoned.into_inner().0,
        }
    }
}

/// A delivery under way; see [`Stage::deliver`].
#[derive(Debug)]
pub(crate) struct Delivery<'a>(&'a Stage);

impl Drop for Delivery<'_> {
    fn drop(&mut self) {
        self.0.update(|state| state.heirs = None);
    }
}

impl StageState {
    /// Whether a release serves that cannot be read, so that nobody knows its ports.
    pub(crate) fn active_is_unreadable(&self) -> bool {
        self.with_role(Role::Active).is_some_and(|slot| !self.releases.contains_key(&slot.release))
    }

    /// Whoever has the place of instance `id` by now; itself, as long as it has it.
    pub(crate) fn current(&self, id: &str) -> String {
        let heir = self.heirs.as_ref().and_then(|heirs| heirs.get(id));
        heir.map_or(id, String::as_str).to_owned()
    }

    /// Puts `fresh` into the place of `old` in every slot. If that one is not wanted any more, nor
    /// is `fresh`: it is in no slot and to be stopped, and this says false.
    pub(crate) fn inherit(&mut self, old: &str, mut fresh: Instance) -> bool {
        let wanted = self.instances.get(old).is_some_and(|old| old.life != Life::Stopping);
        if wanted {
            for slot in &mut self.slots {
                slot.members.values_mut().filter(|id| *id == old).for_each(|id| {
                    id.clone_from(&fresh.id);
                });
            }
            if let Some(heirs) = &mut self.heirs {
                heirs.values_mut().filter(|id| *id == old).for_each(|id| id.clone_from(&fresh.id));
                heirs.insert(old.to_owned(), fresh.id.clone());
            }
        } else {
            fresh.life = Life::Stopping;
        }
        self.instances.insert(fresh.id.clone(), fresh);
        wanted
    }

    /// The slot of `release`.
    pub(crate) fn slot(&self, release: &Digest) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.release == *release)
    }

    /// The slot of `release`, to change.
    pub(crate) fn slot_mut(&mut self, release: &Digest) -> Option<&mut Slot> {
        self.slots.iter_mut().find(|slot| slot.release == *release)
    }

    /// The slot with `role`.
    pub(crate) fn with_role(&self, role: Role) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.role == role)
    }

    /// The instance of `service` in the slot of `release`.
    pub(crate) fn member(&self, release: &Digest, service: &str) -> Option<&Instance> {
        self.instances.get(self.slot(release)?.members.get(service)?)
    }

    /// The release that serves, or served last.
    pub(crate) fn last_served(&self) -> Option<Digest> {
        self.pointer.active.or(self.pointer.previous.first().copied())
    }

    /// Whether `release` is what serves, and was meant to.
    pub(crate) fn serves(&self, release: &Digest) -> bool {
        self.pointer.active == Some(*release)
            && self.slot(release).is_some_and(|slot| slot.role == Role::Active)
    }

    /// What the planner has to know.
    pub(crate) fn observe(&self) -> Vec<Observed> {
        let mut all: Vec<Observed> = Vec::new();
        let workers: BTreeMap<&Digest, BTreeSet<String>> =
            self.releases.iter().map(|(digest, release)| (digest, release.workers())).collect();
        for instance in self.instances.values() {
            let release = self.releases.get(&instance.born);
            let data = instance.data.clone();
            // One that is being stopped counts as long as it may write what others could.
            let stopping = instance.life == Life::Stopping;
            if stopping && data.is_empty() {
                continue;
            }
            // A taint by `exec` does not count: the only stage so far is `dev`, where people try
            // things and it is for show. One that is unknown goes on as it is.
            let sound = matches!(instance.life, Life::Ready | Life::Completed)
                || instance.unknown.is_some() && !stopping;
            all.push(Observed {
                id: instance.id.clone(),
                service: instance.service.clone(),
                key: self.key(instance),
                sound,
                data,
                born: release.cloned(),
                worker: !stopping
                    && workers.get(&instance.born).is_some_and(|w| w.contains(&instance.service)),
            });
        }
        // Of several with one key the one that serves is shared.
        let active: BTreeSet<&String> = self
            .with_role(Role::Active)
            .map(|slot| slot.members.values().collect())
            .unwrap_or_default();
        all.sort_by_key(|observed| !active.contains(&observed.id));
        all
    }

    /// The instance's key as this Kiln makes it; an older one's is made anew from its release.
    fn key(&self, instance: &Instance) -> Digest {
        if instance.keyed == KEY_FORMAT {
            return instance.key;
        }
        let release = self.releases.get(&instance.born);
        let key = release.and_then(|release| release.instance_key(&instance.service));
        key.unwrap_or(instance.key)
    }

    /// Every virtual address and the instance that it leads to now. A service whose instance of
    /// that slot is gone leads to the one that serves, so that names outlive their slot.
    pub(crate) fn translation(&self) -> Vec<(Ipv4Addr, Option<Ipv4Addr>)> {
        let active = self.with_role(Role::Active);
        let lives = |id: &String| {
            self.instances.get(id).filter(|instance| {
                !matches!(instance.life, Life::BackOff { .. } | Life::Failed { .. })
            })
        };
        self.slots
            .iter()
            .flat_map(|slot| {
                slot.addresses.iter().map(move |(service, address)| {
                    let own = slot.members.get(service).and_then(lives);
                    let serving = || active?.members.get(service).and_then(lives);
                    let fallback = if slot.role == Role::Names { serving() } else { None };
                    (*address, own.or(fallback).map(|instance| instance.address))
                })
            })
            .collect()
    }

    /// Where the front may have sent requests for these instances.
    pub(crate) fn upstreams<'a>(
        &self,
        ids: impl IntoIterator<Item = &'a String>,
    ) -> Vec<SocketAddr> {
        let mut all = Vec::new();
        for instance in ids.into_iter().filter_map(|id| self.instances.get(id)) {
            let released = self
                .releases
                .get(&instance.born)
                .and_then(|release| release.services.get(&instance.service));
            let ports = released.into_iter().flat_map(|released| &released.settings.expose);
            all.extend(ports.map(|port| SocketAddr::from((instance.address, port.target))));
        }
        all
    }

    /// How long the program of instance `id` may take to end.
    pub(crate) fn stop_grace(&self, id: &str) -> Option<Duration> {
        let instance = self.instances.get(id)?;
        let released = self.releases.get(&instance.born)?.services.get(&instance.service)?;
        Some(Duration::from_nanos(released.settings.stop_grace()))
    }

    /// Instances that no slot with a role of its own names.
    pub(crate) fn unneeded(&self) -> Vec<String> {
        let needed: BTreeSet<&String> = self
            .slots
            .iter()
            .filter(|slot| slot.role != Role::Names)
            .flat_map(|slot| slot.members.values())
            .collect();
        self.instances.keys().filter(|id| !needed.contains(id)).cloned().collect()
    }

    /// Drops slots that neither serve nor lend their names to a living instance; gives back their
    /// virtual addresses.
    pub(crate) fn forget_slots(&mut self) -> Vec<Ipv4Addr> {
        let born: BTreeSet<Digest> =
            self.instances.values().map(|instance| instance.born).collect();
        let (keep, gone): (Vec<Slot>, Vec<Slot>) = std::mem::take(&mut self.slots)
            .into_iter()
            .partition(|slot| slot.role != Role::Names || born.contains(&slot.release));
        self.slots = keep;
        let named: BTreeSet<Digest> = self.slots.iter().map(|slot| slot.release).collect();
        self.releases.retain(|digest, _| named.contains(digest));
        gone.into_iter().flat_map(|slot| slot.addresses.into_values()).collect()
    }

    /// What is written beside the pointer.
    pub(crate) fn run_file(&self) -> RunFile {
        RunFile {
            boot: kiln_run::known::boot_id().unwrap_or_default(),
            slots: self.slots.clone(),
            instances: self.instances.values().cloned().collect(),
        }
    }
}
