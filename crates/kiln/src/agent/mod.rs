//! The agent: `kiln serve`. It owns one root folder and everything that hangs on it.
//!
//! | module | what |
//! |---|---|
//! | [`serve`] | requests, coming up and leaving |
//! | [`door`] | the socket; what is said when descriptors run short |
//! | [`verbs`] | what each request does |
//! | [`session`] | one request under way |
//! | [`stage`] | stages, slots and instances: the state |
//! | [`bake`] | lock, bases and Dockerfiles → images → settings |
//! | [`images`] | images of registries: pinned, fetched, kept |
//! | [`git`] | a project's repository, read without trusting it |
//! | [`needs`] | what projects need from the store |
//! | [`policy`] | what the root allows a stage |
//! | [`provision`] | candidate slots: opened, filled, switched to, cleared away |
//! | [`instances`] | one instance: started, stopped |
//! | [`joined`] | what other projects find on joined networks |
//! | [`network`] | which networks an instance is on, and what it finds there by name |
//! | [`volumes`], [`fill`] | where data lies; a new volume takes what the image has |
//! | [`layer`] | what instances write beside their volumes |
//! | [`lasting`] | syncs that are not the store's |
//! | [`folder`] | which folder a stage was deployed from |
//! | [`binds`] | where bind mounts come from |
//! | [`places`], [`claims`] | what a path really is; who writes it |
//! | [`supervise`] | ends, fresh instances: one supervisor for each instance |
//! | [`watch`], [`silence`] | readiness and health; what is said of ports that do not accept |
//! | [`routes`], [`line`] | what the front answers; the line to it |
//! | [`addresses`] | which addresses are free |
//! | [`card`], [`strays`] | what the folder of an instance says it is; instances in no run file |
//! | [`restore`] | finding everything again after a restart |
//! | [`summed`] | files by which another agent goes on |
//! | [`mend`] | building up again what is missing, until it is there |
//! | [`privacy`] | what of the root belongs to the root user only |
//! | [`record`] | the ledger |
//! | [`said`], [`who`] | how much of the ledger instances fill; who gave a command |
//! | [`commands`] | command lines, which the ledger does not have |
//! | [`released`] | releases that were cut from commits |

mod addresses;
pub(crate) mod bake;
pub(crate) mod binds;
mod card;
mod claims;
pub(crate) mod commands;
mod door;
mod fill;
mod folder;
pub(crate) mod git;
mod hooks;
pub(crate) mod images;
mod instances;
mod joined;
mod keys;
mod lasting;
pub(crate) mod layer;
mod line;
mod mend;
pub(crate) mod needs;
mod network;
mod part;
mod places;
pub(crate) mod policy;
pub(crate) mod privacy;
pub(crate) mod provision;
pub(crate) mod record;
pub(crate) mod released;
pub(crate) mod restore;
pub(crate) mod routes;
mod said;
mod serve;
pub(crate) mod session;
pub(crate) mod silence;
pub(crate) mod stage;
mod strays;
mod summed;
mod supervise;
mod verbs;
pub(crate) mod volumes;
mod watch;
pub(crate) mod who;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use kiln_core::{Digest, Release};
use kiln_run::Runtime;
use kiln_run::net::Host;
use kiln_store::Store;

use crate::report::{Because, Report};
use addresses::Addresses;
use claims::Claims;
use line::Line;
use stage::{Seen, Stage, StageId};

pub(crate) use restore::{collect_remains, end_all};
pub(crate) use serve::{Leave, serve};

/// What a release is in a stage, by both.
type ByStage<T> = BTreeMap<(Digest, String), Arc<T>>;

/// Everything that belongs to one root.
#[derive(Debug)]
pub(crate) struct Agent {
    /// The root folder, absolute.
    pub root: PathBuf,
    /// Content, images, ledger, pointers.
    pub store: Store,
    /// Starts and finds shims.
    pub runtime: Runtime,
    /// The host's side of the network.
    pub host: Host,
    /// Free addresses of the root's range.
    pub addresses: Addresses,
    /// Who writes what.
    pub claims: Claims,
    /// Where other projects find what serves.
    pub joined: joined::Joined,
    /// Stages that could not be built up again so far.
    pub troubles: mend::Troubles,
    /// What users were told of the layers of instances.
    pub layers: layer::Told,
    routes: Line,
    stages: Mutex<BTreeMap<StageId, Arc<Stage>>>,
    releases: Mutex<BTreeMap<Digest, Arc<Release>>>,
    in_stages: Mutex<ByStage<Release>>,
    keys: Mutex<ByStage<BTreeMap<String, Digest>>>,
    mapped: Mutex<BTreeMap<Ipv4Addr, Ipv4Addr>>,
    resolv_conf: String,
    /// How many steps of bakes may run at once.
    steps: bake::Permits,
    working: AtomicUsize,
    said: said::Said,
    leaving: AtomicBool,
    /// Held while rules are put back or taken away, so that neither undoes the other.
    network: Mutex<()>,
    last_use: Mutex<Instant>,
}

/// Unix time in milliseconds.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Where the agent of `root` listens.
pub(crate) fn socket_path(root: &Path) -> PathBuf {
    root.join("agent.sock")
}

/// What tells this binary from another build of it.
pub(crate) fn build_id() -> String {
    use std::os::unix::fs::MetadataExt;
    // The link is read through /proc so that it is this very file, whatever its name is by now.
    let stamp = std::fs::metadata("/proc/self/exe")
        .map(|meta| format!("{}-{}-{}", meta.ino(), meta.size(), meta.mtime()))
        .unwrap_or_default();
    format!("kiln {} {stamp}", env!("CARGO_PKG_VERSION"))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Agent {
    /// The stage, made if it was not there.
    pub(crate) fn stage(&self, id: &StageId) -> Arc<Stage> {
        if let Some(stage) = lock(&self.stages).get(id) {
            return Arc::clone(stage);
        }
        // The ledger may be waiting for the disk: nobody else shall wait with this.
        let pointer = self.store.pointer(&id.project, &id.stage).ok().flatten();
        let new = || Arc::new(Stage::new(id.clone(), pointer.unwrap_or_default()));
        Arc::clone(lock(&self.stages).entry(id.clone()).or_insert_with(new))
    }

    /// Whether something was ever deployed there, or is left of it.
    pub(crate) fn is_known(&self, id: &StageId) -> Result<bool, Report> {
        let known = lock(&self.stages).get(id).cloned();
        let met = known.is_some_and(|stage| {
            let state = stage.state();
            state.pointer.generation > 0 || !state.instances.is_empty()
        });
        Ok(met || !volumes::list(self, id)?.is_empty())
    }

    /// All stages that this agent has met.
    pub(crate) fn stages(&self) -> Vec<Arc<Stage>> {
        lock(&self.stages).values().cloned().collect()
    }

    /// A recorded release.
    pub(crate) fn release(&self, digest: &Digest) -> Result<Arc<Release>, Report> {
        if let Some(found) = lock(&self.releases).get(digest) {
            return Ok(Arc::clone(found));
        }
        let release = self
            .store
            .get_release(digest)
            .because(|| format!("reading release {}", digest.short()))?;
        let release = Arc::new(release);
        lock(&self.releases).insert(*digest, Arc::clone(&release));
        Ok(release)
    }

    /// A recorded release with the settings that it has in `stage`.
    pub(crate) fn release_in(
        &self,
        stage: &StageId,
        digest: &Digest,
    ) -> Result<Arc<Release>, Report> {
        let release = self.release(digest)?;
        if release.stages.is_empty() {
            return Ok(release);
        }
        let key = (*digest, stage.stage.clone());
        if let Some(found) = lock(&self.in_stages).get(&key) {
            return Ok(Arc::clone(found));
        }
        let there = release.for_stage(&stage.stage).map_or(release, Arc::new);
        lock(&self.in_stages).insert(key, Arc::clone(&there));
        Ok(there)
    }

    /// Key of an instance of `service` in a recorded release, in `stage`.
    pub(crate) fn instance_key(
        &self,
        stage: &StageId,
        release: &Digest,
        service: &str,
    ) -> Result<Option<Digest>, Report> {
        let at = (*release, stage.stage.clone());
        let known = lock(&self.keys).get(&at).cloned();
        let keys = match known {
            Some(keys) => keys,
            None => {
                let keys = Arc::new(self.release_in(stage, release)?.instance_keys());
                lock(&self.keys).insert(at, Arc::clone(&keys));
                keys
            }
        };
        Ok(keys.get(service).copied())
    }

    /// All releases that were read so far and that can be written as they were read: one of an older
    /// format would come out as another.
    pub(crate) fn read_releases(&self) -> Vec<Arc<Release>> {
        let releases = lock(&self.releases);
        let same = |(digest, release): &(&Digest, &Arc<Release>)| release.digest() == **digest;
        releases.iter().filter(same).map(|(_, release)| Arc::clone(release)).collect()
    }

    /// Records a release. It reaches the disk with [`Agent::flush_objects`].
    pub(crate) fn put_release(&self, release: &Release) -> Result<Digest, Report> {
        self.store.put_release(release).because(|| "recording the release".into())
    }

    /// Makes everything that a release names durable: before any pointer moves to it.
    pub(crate) fn flush_objects(&self) -> Result<(), Report> {
        self.store.flush().because(|| "writing images and release to the disk".into())
    }

    /// That nothing is wrong with the ledger. If something is, it is named and `so` is what follows.
    pub(crate) fn ledger_is_whole(&self, so: &str) -> Result<(), Report> {
        let doing = || "looking at the ledger".to_owned();
        let faults = self.store.ledger().faults().because(doing)?;
        if faults.is_empty() {
            return Ok(());
        }
        Err(Report::refused(format!("the ledger cannot be believed, so {so}; what runs goes on"))
            .log(faults.iter().map(ToString::to_string).collect())
            .hint("kiln fsck; then `kiln fsck --repair` takes note of it and goes on"))
    }

    /// Keeps collection away while images are made and nothing names them yet.
    pub(crate) fn lease(&self) -> Result<kiln_store::Lease, Report> {
        self.store.lease().because(|| "taking a lease on the store".into())
    }

    /// Folder of an instance.
    pub(crate) fn instance_dir(&self, id: &str) -> PathBuf {
        self.root.join("instances").join(id)
    }

    /// Folder of all volumes of a stage.
    pub(crate) fn volumes_dir(&self, id: &StageId) -> PathBuf {
        self.root.join("volumes").join(&id.project).join(&id.stage)
    }

    /// Text of `/etc/resolv.conf` for instances.
    pub(crate) fn resolv_conf(&self) -> String {
        self.resolv_conf.clone()
    }

    /// Makes the stable addresses of a stage lead where its state says.
    pub(crate) fn translate(&self, stage: &Stage) -> Result<(), Report> {
        // The lock is taken before the state is read, so that a later state is applied later.
        let mut mapped = lock(&self.mapped);
        let mut wanted = stage.state().translation();
        wanted.extend(self.joined.translation(&stage.id, &stage.state()));
        let changes: Vec<(Ipv4Addr, Option<Ipv4Addr>)> = wanted
            .into_iter()
            .filter(|(address, instance)| mapped.get(address) != instance.as_ref())
            .collect();
        self.map(&mut mapped, &changes)
    }

    /// Forgets stable addresses and gives them back.
    pub(crate) fn unmap(&self, stage: &Stage, freed: &[Ipv4Addr]) {
        let mut mapped = lock(&self.mapped);
        let changes: Vec<(Ipv4Addr, Option<Ipv4Addr>)> = freed
            .iter()
            .filter(|address| mapped.contains_key(address))
            .map(|address| (*address, None))
            .collect();
        if let Err(report) = self.map(&mut mapped, &changes) {
            self.log(&format!("{}: {report}", stage.id));
        }
        for address in freed {
            self.addresses.give_back(*address);
        }
    }

    fn map(
        &self,
        mapped: &mut BTreeMap<Ipv4Addr, Ipv4Addr>,
        changes: &[(Ipv4Addr, Option<Ipv4Addr>)],
    ) -> Result<(), Report> {
        if changes.is_empty() {
            return Ok(());
        }
        self.host
            .translate(changes)
            .because(|| "telling the kernel where stable addresses lead".into())?;
        for (address, instance) in changes {
            match instance {
                Some(instance) => mapped.insert(*address, *instance),
                None => mapped.remove(address),
            };
        }
        Ok(())
    }

    /// Writes what is needed to find a stage's instances again.
    pub(crate) fn save(&self, stage: &Stage) {
        let path = restore::run_path(&self.root, &stage.id);
        let _saving = stage.saving();
        let file = stage.state().run_file();
        if let Err(error) = restore::write_run_file(&path, &file) {
            self.log(&format!("writing {}: {error}", path.display()));
        }
    }

    /// One line into the agent's own log.
    pub(crate) fn log(&self, line: &str) {
        use std::io::Write;
        let line = crate::terminal::clean(line);
        let _ = writeln!(std::io::stderr(), "{} {}", now_ms(), line);
    }

    /// Does something behind everybody's back. The agent may leave before it is done: the next
    /// one finds what is left of it.
    pub(crate) fn background(&self, work: impl FnOnce() + Send + 'static) {
        let work = Arc::new(Mutex::new(Some(work)));
        let theirs = Arc::clone(&work);
        let take = |work: &Mutex<Option<_>>| lock(work).take();
        let spawned = std::thread::Builder::new().spawn(move || take(&theirs).map(|work| work()));
        if let Err(error) = spawned {
            self.log(&format!("no thread is to be had ({error}): working in the foreground"));
            if let Some(work) = take(&work) {
                work();
            }
        }
    }

    /// Whether the agent is on its way out and nothing new may be started.
    pub(crate) fn leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }
}
