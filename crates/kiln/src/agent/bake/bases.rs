//! What a bake takes from outside: the lock, and the bases that it pins.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, OnceLock};

use kiln_bake::base::locked_image::lock_name;
use kiln_bake::base::{self, Lock};
use kiln_bake::plan::familiar;
use kiln_bake::remote::{FETCH_BYTES, Mode, Options, Pins, Proxies, RemoteError, Remotes};
use kiln_core::compose::Project;
use kiln_core::exit::Exit;
use kiln_core::{ImageConfig, ImageId, Tree};

use super::oven::Oven;
use super::steps::Steps;
use crate::agent::images::Images;
use crate::agent::images::named::named;
use crate::agent::images::update::Moved;
use crate::agent::session::Session;
use crate::agent::{Agent, lock as locked, needs};
use crate::report::{Because, Report};

/// Name of the lock file, beside the Compose file.
pub(crate) const LOCK_FILE: &str = "kiln.lock";

/// How the lock is to be made.
#[derive(Debug, Default)]
pub(crate) struct Locking<'a> {
    /// What is pinned already is pinned anew.
    pub update: bool,
    /// Only these bases and images; all, and what ADD takes, if it is empty.
    pub names: &'a [String],
}

/// What takes from outside is pinned: the project's lock, written if there is none. Gives also which
/// images moved, and whether the file was written.
pub(crate) fn lock_file(
    agent: &Agent,
    session: &Session,
    project: &Project,
    locking: &Locking<'_>,
) -> Result<(Lock, Vec<Moved>, bool), Report> {
    let path = project.dir.join(LOCK_FILE);
    let existing = Lock::load(&path).map_err(|error| base_report(&error))?;
    let names = named(project, &[])?;
    let again = |name: &str| locking.anew(name);
    check_names(project, &names, locking)?;
    let node = session.begin("lock", LOCK_FILE, "resolving bases by apt");
    let progress = |progress: &base::Progress| node.update(&base_words(progress));
    let watch = base::Watch { progress: &progress, cancel: session.cancelled() };
    let bases = &project.kiln.bases;
    // Named bases are resolved as if they were new.
    let known = existing.clone().map(|mut lock| {
        lock.bases.retain(|name, _| locking.names.is_empty() || !again(name));
        lock
    });
    let all = locking.update && locking.names.is_empty();
    let resolved = base::resolve(
        &agent.store,
        bases,
        known.as_ref(),
        all,
        &Steps(agent, session.cancelled()),
        watch,
    )
    .map_err(|error| base_report(&error));
    let resolved = resolved.and_then(|mut lock| {
        if all {
            refresh(agent, session, &mut lock, &|what| node.update(what))?;
        }
        let outside = Images::new(agent, session, project, &lock, false);
        let moved = outside.lock(names.into_keys(), &again)?;
        // What is about to be written is told first.
        moved.iter().filter(|moved| moved.old.is_some()).for_each(|it| session.notice(it.words()));
        lock.pin_images(outside.pins());
        Ok((lock, moved))
    });
    let changed = resolved.as_ref().is_ok_and(|(lock, _)| Some(lock) != existing.as_ref());
    let saved = resolved.and_then(|resolved| {
        if changed {
            save_lock(project, &resolved.0)?;
        }
        needs::note(agent, project, &resolved.0, BTreeSet::new(), false)?;
        Ok(resolved)
    });
    node.end(&saved, if changed { "written" } else { "unchanged" });
    let (lock, moved) = saved?;
    Ok((lock, moved, changed))
}

impl Locking<'_> {
    /// Whether what is pinned under a name is pinned anew.
    fn anew(&self, name: &str) -> bool {
        let named = |wanted: &String| wanted == name || lock_name(wanted) == name;
        self.update && (self.names.is_empty() || self.names.iter().any(named))
    }
}

/// Refuses names of nothing.
fn check_names(
    project: &Project,
    images: &BTreeMap<String, BTreeSet<String>>,
    locking: &Locking<'_>,
) -> Result<(), Report> {
    let bases = &project.kiln.bases;
    let known = |name: &String| bases.contains_key(name) || images.contains_key(&lock_name(name));
    match locking.names.iter().find(|name| !known(name)) {
        None => Ok(()),
        Some(name) => {
            let all: Vec<&str> = bases.keys().chain(images.keys()).map(String::as_str).collect();
            let what = format!("the project names no image and no base `{name}`");
            Err(Report::usage(what).hint(format!("it names: {}", all.join(", "))))
        }
    }
}

/// Pins anew what ADD takes from outside.
fn refresh(
    agent: &Agent,
    session: &Session,
    lock: &mut Lock,
    told: &dyn Fn(&str),
) -> Result<(), Report> {
    let pins = Pins::new(&lock.urls, &lock.git);
    let remotes = Remotes::new(&agent.store, pins, Mode::Pin, session.cancelled());
    let proxies = Proxies::of(&BTreeMap::new());
    let options = Options { proxies, limit: FETCH_BYTES, told };
    remotes.refresh(&options).map_err(|error| remote_report(&error))?;
    lock.pin(&remotes.pins());
    Ok(())
}

/// Fetches what is pinned of that and is not there yet.
pub(crate) fn fetch_pinned(session: &Session, remotes: &Remotes<'_>) -> Result<(), Report> {
    let (urls, git) = remotes.pins().parts();
    if urls.is_empty() && git.is_empty() {
        return Ok(());
    }
    let node = session.begin("fetch", "what ADD and contexts take", "");
    let told = |what: &str| node.update(&format!("fetching {what}"));
    let proxies = Proxies::of(&BTreeMap::new());
    let options = Options { proxies, limit: FETCH_BYTES, told: &told };
    let left = remotes.fetch(&options).map_err(|error| remote_report(&error));
    node.end(&left, "");
    for address in left? {
        session.notice(format!(
            "{address}: the lock does not have its password; `kiln bake` fetches it"
        ));
    }
    Ok(())
}

fn remote_report(error: &RemoteError) -> Report {
    let exit = if error.is_usage() { Exit::Usage } else { Exit::Failed };
    Report::from_error(exit, error)
}

/// Writes the project's lock.
pub(crate) fn save_lock(project: &Project, lock: &Lock) -> Result<(), Report> {
    lock.save(&project.dir.join(LOCK_FILE)).map_err(|error| base_report(&error))
}

/// The lock that a bake goes by: the one that is there, if it fits the Compose file.
pub(crate) fn lock(agent: &Agent, session: &Session, project: &Project) -> Result<Lock, Report> {
    let path = project.dir.join(LOCK_FILE);
    let found = Lock::load(&path).map_err(|error| base_report(&error))?;
    if project.kiln.bases.is_empty() {
        return Ok(found.unwrap_or_else(|| Lock::new("")));
    }
    let Some(lock) = found else {
        return Ok(lock_file(agent, session, project, &Locking::default())?.0);
    };
    let differences = lock.differences(&project.kiln.bases);
    if !differences.is_empty() {
        return Err(Report::usage(format!(
            "x-kiln.bases of the Compose file is not what {} has locked: {}",
            path.display(),
            differences.join("; ")
        ))
        .hint("kiln lock"));
    }
    Ok(lock)
}

fn base_report(error: &base::BaseError) -> Report {
    let exit = if error.is_usage() { Exit::Usage } else { Exit::Failed };
    let mut report = Report::from_error(exit, error);
    report.hint = error.hint().map(str::to_owned);
    report
}

/// One moment of locking or baking a base, in words.
fn base_words(progress: &base::Progress) -> String {
    let base::Progress { base, done, total, detail, .. } = progress;
    let phase = format!("{:?}", progress.phase).to_lowercase();
    match total {
        0 => format!("{base}: {phase} {detail}"),
        total => format!("{base}: {phase} {done}/{total} {detail}"),
    }
}

/// Bases of one run, each baked at most once however many services want it.
pub(super) struct Bases<'a, 'i> {
    pub(super) oven: Oven<'a>,
    agent: &'a Agent,
    session: &'a Session,
    lock: &'a Lock,
    pub(super) remotes: &'a Remotes<'a>,
    outside: &'a Images<'i>,
    baked: BTreeMap<String, OnceLock<Result<ImageId, String>>>,
    pub(super) failure: Mutex<Option<Report>>,
}

impl<'a, 'i> Bases<'a, 'i> {
    pub(super) fn new(
        oven: Oven<'a>,
        agent: &'a Agent,
        session: &'a Session,
        project: &Project,
        lock: &'a Lock,
        remotes: &'a Remotes<'a>,
        outside: &'a Images<'i>,
    ) -> Self {
        let baked = project.kiln.bases.keys().map(|name| (name.clone(), OnceLock::new())).collect();
        Self { oven, agent, session, lock, remotes, outside, baked, failure: Mutex::new(None) }
    }

    /// The image of base `name`, if the project has one of that name.
    pub(super) fn get(&self, name: &str) -> Option<Result<ImageId, Report>> {
        let cell = self.baked.get(name)?;
        let result = cell.get_or_init(|| {
            let baked = self.bake(name);
            if let (Ok(image), Some(used)) = (&baked, self.oven.base) {
                used(name, *image);
            }
            baked.map_err(|report| {
                let text = report.message.clone();
                locked(&self.failure).get_or_insert(report);
                text
            })
        });
        Some(
            result.clone().map_err(|text| {
                locked(&self.failure).clone().unwrap_or_else(|| Report::failed(text))
            }),
        )
    }

    /// The image that a name names: a base, else that of a registry. `scratch` is the empty one.
    pub(super) fn image(&self, name: &str) -> Result<ImageId, Report> {
        if name != "scratch" {
            let known = self.get(name).or_else(|| self.get(familiar(name)));
            return known.unwrap_or_else(|| self.outside.image_in(self.oven.store, name));
        }
        let store = self.oven.store;
        let tree = store.put_tree(&Tree::new());
        let image = tree.and_then(|tree| {
            let config = store.put_config(&ImageConfig::default())?;
            Ok(ImageId { tree, config })
        });
        image.because(|| "storing the empty image".into())
    }

    fn bake(&self, name: &str) -> Result<ImageId, Report> {
        let pinned = self.lock.bases.get(name).ok_or_else(|| {
            Report::usage(format!("base `{name}` is not in {LOCK_FILE}")).hint("kiln lock")
        })?;
        let store = self.oven.store;
        if let Some(image) = store.step_result(&base::key(pinned)) {
            return self.keep(pinned, image);
        }
        let node = self.session.begin("base", name, "");
        let progress = |progress: &base::Progress| node.update(&base_words(progress));
        let watch = base::Watch { progress: &progress, cancel: self.session.cancelled() };
        let result = base::bake_base(store, name, pinned, self.oven.runner, watch)
            .map_err(|error| base_report(&error));
        let result = result.and_then(|image| self.keep(pinned, image));
        let words = result.as_ref().map(|image| image.tree.short()).unwrap_or_default();
        node.end(&result, &words);
        result
    }

    /// A lock names its bases as much as its packages: collection leaves them alone.
    fn keep(&self, pinned: &base::LockedBase, image: ImageId) -> Result<ImageId, Report> {
        if !self.oven.keeps {
            return Ok(image);
        }
        self.agent.flush_objects()?;
        let digests = [image.tree, image.config].into();
        let name = base::key(pinned).hex();
        self.agent
            .store
            .set_ref(base::IMAGE_REF_KIND, &name, &digests)
            .because(|| "keeping the base".into())?;
        Ok(image)
    }
}
