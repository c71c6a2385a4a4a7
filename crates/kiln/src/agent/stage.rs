//! A stage of this root: the value in [`kiln_core::stage`], with a lock around it, handles to what
//! runs, and the file in which it is found again.
//!
//! State is guarded by one short-held lock; deliveries to one stage take turns by another. What is
//! needed to find everything again is written beside the pointer after each change, without a
//! flush: it is only of use while the machine stays up.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use kiln_core::Digest;
use kiln_core::compose::Expose;
use kiln_core::data::Data;
use kiln_core::exit::Exit;
use kiln_core::plan::Observed;
use kiln_core::release::{KEY_FORMAT, Settings};
pub(crate) use kiln_core::stage::{Illegal, Life, Member, Role, Slot};
use kiln_store::ledger::Pointer;
use serde::{Deserialize, Serialize};

use super::lock;
use super::network::Net;
use super::supervise::Word;
use crate::report::Report;

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

/// Everything about a stage that changes.
pub(crate) type StageState = kiln_core::stage::Stage<Instance>;

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
    /// Its address; its own, unless it has its network by another one or the host.
    pub address: Ipv4Addr,
    /// How it is on the network.
    #[serde(default)]
    pub net: Net,
    /// How it stands.
    pub life: Life,
    /// Fresh instances that came before it because one ended.
    pub restarts: u32,
    /// How many of them, up to the last, ended soon.
    #[serde(default)]
    pub streak: u32,
    /// What the host could not give it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lacks: Vec<String>,
    /// Why it is no longer as baked, if it is not.
    pub tainted: Option<String>,
    /// Unix milliseconds.
    pub started: u64,
    /// Its ports that accept, of those that can be called; `None`: all count as if they did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open: Option<BTreeSet<Expose>>,
    /// The ports of its service by which it is measured: those that accepted before it, and once it
    /// is ready its own.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub before: BTreeSet<Expose>,
    /// None of its ports accepted within the patience, and it serves all the same.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub silent: bool,
    /// The last probes that failed, newest last.
    #[serde(default)]
    pub probes: Vec<String>,
    /// Its `post_start` hooks are done.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hooked: bool,
    /// What the hook wrote that failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hook_said: Vec<String>,
    /// What it can write and others could too.
    #[serde(default)]
    pub data: Data,
    /// Since which renewal it has its volumes without a name, if it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewed: Option<u64>,
    /// Why it is not known whether it runs, while that is so.
    #[serde(skip)]
    pub unknown: Option<String>,
    /// This agent started it, and nobody has run its hooks.
    #[serde(skip)]
    pub fresh: bool,
    /// Its supervisor's inbox.
    #[serde(skip)]
    pub inbox: Option<Sender<Word>>,
    /// The shim's side of it.
    #[serde(skip)]
    pub running: Option<Arc<kiln_run::Running>>,
}

#[cfg(test)]
impl Instance {
    /// One of `service`.
    pub(crate) fn example(service: &str) -> Self {
        Self {
            id: format!("{service}-1"),
            service: service.to_owned(),
            key: Digest::of(service),
            keyed: KEY_FORMAT,
            born: Digest::of("release"),
            address: Ipv4Addr::new(10, 0, 0, 99),
            net: Net::default(),
            life: Life::Starting,
            restarts: 0,
            streak: 0,
            lacks: Vec::new(),
            tainted: None,
            started: 0,
            open: None,
            before: BTreeSet::new(),
            silent: false,
            probes: Vec::new(),
            hooked: false,
            hook_said: Vec::new(),
            data: Data::default(),
            renewed: None,
            unknown: None,
            fresh: false,
            inbox: None,
            running: None,
        }
    }
}

impl Member for Instance {
    fn id(&self) -> &str {
        &self.id
    }

    fn service(&self) -> &str {
        &self.service
    }

    fn born(&self) -> Digest {
        self.born
    }

    fn life(&self) -> &Life {
        &self.life
    }

    fn set_life(&mut self, life: Life) {
        self.life = life;
    }
}

/// A move that the state refuses is a bug, and said as one.
impl From<Illegal> for Report {
    fn from(illegal: Illegal) -> Self {
        Self::new(Exit::Bug, illegal.to_string())
    }
}

/// What is written beside the pointer.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct RunFile {
    /// The boot of the machine under which it was written: under another one it is not believed.
    #[serde(default)]
    pub boot: String,
    /// All slots.
    pub slots: Vec<Written>,
    /// All instances.
    pub instances: Vec<Instance>,
}

/// A slot as it is written.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Written {
    /// What it was for then: for people. The pointer decides.
    pub role: Role,
    /// The slot.
    #[serde(flatten)]
    pub slot: Slot,
}

/// What a command says beside the release.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wish {
    /// The project's folder.
    pub folder: Option<String>,
    /// Volumes without a name begin anew.
    pub renew: bool,
    /// Services whose instances are replaced by fresh ones.
    pub fresh: BTreeSet<String>,
}

/// A [`Wish`] that is over when this is dropped.
#[derive(Debug)]
pub(crate) struct Wishing<'a>(&'a Stage);

impl Drop for Wishing<'_> {
    fn drop(&mut self) {
        self.0.give_up_wish();
    }
}

/// A stage of this root.
#[derive(Debug)]
pub(crate) struct Stage {
    /// Which.
    pub id: StageId,
    turn: Mutex<()>,
    /// What has the turn, and since when.
    holder: Mutex<Option<(&'static str, Instant)>>,
    saving: Mutex<()>,
    wish: Mutex<Wish>,
    /// The ports of each service that accepted when it served last.
    served: Mutex<BTreeMap<String, BTreeSet<Expose>>>,
    state: Mutex<StageState>,
    changed: Condvar,
}

impl Stage {
    /// A stage with nothing in it.
    pub(crate) fn new(id: StageId, pointer: Pointer) -> Self {
        let state = StageState::new(pointer);
        let (turn, saving, wish) = (Mutex::new(()), Mutex::new(()), Mutex::default());
        let (served, changed, holder) = (Mutex::default(), Condvar::new(), Mutex::default());
        Self { id, turn, holder, saving, wish, served, state: Mutex::new(state), changed }
    }

    /// Which ports of `service` accepted when it served last.
    pub(crate) fn served(&self, service: &str) -> BTreeSet<Expose> {
        let known = {
            let served = self.served.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            served.get(service).cloned()
        };
        let state = self.state();
        // After `down` nothing is lost by what is not there.
        let Some(active) = state.with_role(Role::Active) else { return BTreeSet::new() };
        let now = || state.instances.get(active.of(service).last()?)?.open.clone();
        known.or_else(now).unwrap_or_default()
    }

    /// What serves now is what the next one is measured by.
    pub(crate) fn remember_ports(&self) {
        let state = self.state();
        let Some(active) = state.with_role(Role::Active) else { return };
        let open = active.members.iter().filter_map(|(service, ids)| {
            Some((service.clone(), state.instances.get(ids.last()?)?.open.clone()?))
        });
        let open: BTreeMap<_, _> = open.collect();
        drop(state);
        *self.served.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = open;
    }

    /// Holds what a command wishes while it is carried out. Whoever has the turn may wish.
    pub(crate) fn wish(&self, wish: Wish) -> Wishing<'_> {
        *self.wish.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = wish;
        Wishing(self)
    }

    /// Nothing is wished any more: what was there before is brought back as it was.
    pub(crate) fn give_up_wish(&self) {
        *self.wish.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Wish::default();
    }

    /// What the command under way wishes.
    pub(crate) fn wished(&self) -> Wish {
        self.wish.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Where the project lies: by the command under way, else by the one that was deployed last.
    pub(crate) fn folder(&self) -> Option<std::path::PathBuf> {
        let wished = self.wished().folder;
        wished.or_else(|| self.state().pointer.folder.clone()).map(Into::into)
    }

    /// What fresh instances have as volumes without a name: those since the last renewal, or since
    /// the one that is wished.
    pub(crate) fn renewal(&self) -> u64 {
        self.state().pointer.renewed + u64::from(self.wished().renew)
    }

    /// The turn of `what`, in words, if nobody else has it.
    pub(crate) fn try_turn(&self, what: &'static str) -> Option<Turn<'_>> {
        let guard = match self.turn.try_lock() {
            Ok(guard) => guard,
            Err(std::sync::TryLockError::Poisoned(guard)) => guard.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return None,
        };
        *lock(&self.holder) = Some((what, Instant::now()));
        Some(Turn { stage: self, _guard: guard })
    }

    /// What has the turn, in words, and for how long.
    pub(crate) fn whose_turn(&self) -> Option<(&'static str, Duration)> {
        lock(&self.holder).map(|(what, since)| (what, since.elapsed()))
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

    /// Begins a delivery. It ends when this is dropped, on whatever path.
    pub(crate) fn deliver(&self) -> Result<Delivery<'_>, Report> {
        self.update(StageState::begin)?;
        Ok(Delivery(self))
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

/// A turn; see [`Stage::try_turn`].
#[must_use]
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    stage: &'a Stage,
    _guard: MutexGuard<'a, ()>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // Before the next one has it.
        *lock(&self.stage.holder) = None;
    }
}

/// A delivery under way; see [`Stage::deliver`].
#[must_use]
#[derive(Debug)]
pub(crate) struct Delivery<'a>(&'a Stage);

impl Drop for Delivery<'_> {
    fn drop(&mut self) {
        self.0.update(|state| {
            // Whoever had a candidate has cleared it away by now, or has died of trying.
            if state.end().is_err() {
                let _ = state.take_back(false);
                let _ = state.close().and_then(|()| state.end());
            }
        });
    }
}

/// What the agent reads off a state.
pub(crate) trait Seen {
    /// Whether a release serves that cannot be read, so that nobody knows its ports.
    fn active_is_unreadable(&self) -> bool;
    /// What the planner has to know.
    fn observe(&self) -> Vec<Observed>;
    /// Every virtual address and the instance that it leads to now.
    fn translation(&self) -> Vec<(Ipv4Addr, Option<Ipv4Addr>)>;
    /// The settings of an instance.
    fn settings(&self, instance: &Instance) -> Option<&Settings>;
    /// How long the program of instance `id` may take to end.
    fn stop_grace(&self, id: &str) -> Option<Duration>;
    /// Where the front may have sent requests for these instances.
    fn upstreams<'a>(&self, ids: impl IntoIterator<Item = &'a String>) -> Vec<SocketAddr>;
    /// What is written beside the pointer.
    fn run_file(&self) -> RunFile;
}

impl Seen for StageState {
    fn active_is_unreadable(&self) -> bool {
        self.with_role(Role::Active).is_some_and(|slot| !self.releases.contains_key(&slot.release))
    }

    /// What the planner has to know.
    fn observe(&self) -> Vec<Observed> {
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
                key: key(self, instance),
                sound,
                data,
                born: release.cloned(),
                worker: !stopping
                    && workers.get(&instance.born).is_some_and(|w| w.contains(&instance.service)),
            });
        }
        // Of several with one key the one that serves is shared.
        let active: BTreeSet<&String> =
            self.with_role(Role::Active).map(|slot| slot.all().collect()).unwrap_or_default();
        all.sort_by_key(|observed| !active.contains(&observed.id));
        all
    }

    /// Every virtual address and the instance that it leads to now. A service whose instance of
    /// that slot is gone leads to the one that serves, so that names outlive their slot.
    fn translation(&self) -> Vec<(Ipv4Addr, Option<Ipv4Addr>)> {
        let active = self.with_role(Role::Active);
        let lives = |id: &String| {
            self.instances.get(id).filter(|instance| {
                !matches!(instance.life, Life::BackOff { .. } | Life::Failed { .. })
            })
        };
        self.slots
            .iter()
            .flat_map(|slot| {
                let lent = self.role(&slot.release) == Role::Names;
                slot.addresses.iter().map(move |(service, address)| {
                    // One address leads to one instance: the newest.
                    let own = slot.of(service).iter().rev().find_map(lives);
                    let serving = || active?.of(service).iter().rev().find_map(lives);
                    let fallback = if lent { serving() } else { None };
                    (*address, own.or(fallback).map(|instance| instance.address))
                })
            })
            .collect()
    }

    /// Where the front may have sent requests for these instances.
    fn upstreams<'a>(&self, ids: impl IntoIterator<Item = &'a String>) -> Vec<SocketAddr> {
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

    fn settings(&self, instance: &Instance) -> Option<&Settings> {
        let released = self.releases.get(&instance.born)?.services.get(&instance.service)?;
        Some(&released.settings)
    }

    fn stop_grace(&self, id: &str) -> Option<Duration> {
        let settings = self.settings(self.instances.get(id)?)?;
        Some(Duration::from_nanos(settings.stop_grace()))
    }

    /// What is written beside the pointer.
    fn run_file(&self) -> RunFile {
        let written = |slot: &Slot| Written { role: self.role(&slot.release), slot: slot.clone() };
        RunFile {
            boot: kiln_run::known::boot_id().unwrap_or_default(),
            slots: self.slots.iter().map(written).collect(),
            instances: self.instances.values().cloned().collect(),
        }
    }
}

/// The instance's key as this Kiln makes it; an older one's is made anew from its release.
fn key(state: &StageState, instance: &Instance) -> Digest {
    if instance.keyed == KEY_FORMAT {
        return instance.key;
    }
    let release = state.releases.get(&instance.born);
    let key = release.and_then(|release| release.instance_key(&instance.service));
    key.unwrap_or(instance.key)
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use kiln_core::Release;
    use kiln_core::stage::Share;

    use super::*;

    #[test]
    fn a_delivery_ends_on_whatever_path() {
        let id = StageId { project: "p".into(), stage: "dev".into() };
        let stage = Stage::new(id, Pointer::default());
        let release = Arc::new(Release::default());
        let digest = release.digest();
        for far in 0..4 {
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                let _delivery = stage.deliver().unwrap();
                assert!(stage.deliver().is_err(), "one at a time");
                stage.update(|state| {
                    if far > 0 {
                        let none = BTreeMap::new();
                        state.open(digest, &release, BTreeMap::new(), &none).unwrap();
                    }
                    if far > 1 {
                        state.hold().unwrap();
                    }
                    if far > 2 {
                        state.weigh(vec![Share::all(digest)]).unwrap();
                    }
                });
                panic!("on purpose");
            }));
            assert!(panicked.is_err());
            let state = stage.state();
            assert_eq!(state.check(), Ok(()), "{far}");
            assert!(!state.is_held() && !state.is_trying() && state.traffic.is_empty());
        }
        assert!(stage.deliver().is_ok(), "and the next one begins");
    }

    #[test]
    fn a_run_file_of_before_is_read() {
        let old = serde_json::json!({
            "slots": [{
                "release": Digest::of("r"), "role": "active",
                "addresses": { "web": "198.18.0.1" }, "members": { "web": "web-1" },
            }],
            "instances": [],
        });
        let file: RunFile = serde_json::from_value(old).unwrap();
        assert!(file.slots[0].slot.has("web", "web-1"));
        let again: RunFile = serde_json::from_slice(&serde_json::to_vec(&file).unwrap()).unwrap();
        assert_eq!(again.slots[0].slot, file.slots[0].slot);
    }
}
