//! What a bake takes from outside: the lock, and the bases that it pins.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock};

use kiln_bake::base::{self, Lock};
use kiln_core::ImageId;
use kiln_core::compose::Project;
use kiln_core::exit::Exit;

use super::steps::Steps;
use crate::agent::session::Session;
use crate::agent::{Agent, lock as locked};
use crate::report::{Because, Report};

/// Name of the lock file, beside the Compose file.
pub(crate) const LOCK_FILE: &str = "kiln.lock";

/// What takes from outside is pinned: the project's lock, written if there is none.
pub(crate) fn lock_file(
    agent: &Agent,
    session: &Session,
    project: &Project,
    update: bool,
) -> Result<(Lock, bool), Report> {
    let path = project.dir.join(LOCK_FILE);
    let existing = Lock::load(&path).map_err(|error| base_report(&error))?;
    let node = session.begin("lock", LOCK_FILE, "resolving bases by apt");
    let progress = |progress: &base::Progress| node.update(&base_words(progress));
    let watch = base::Watch { progress: &progress, cancel: session.cancelled() };
    let bases = &project.kiln.bases;
    let resolved = base::resolve(
        &agent.store,
        bases,
        existing.as_ref(),
        update,
        &Steps(agent, session.cancelled()),
        watch,
    )
    .map_err(|error| base_report(&error));
    let changed = resolved.as_ref().is_ok_and(|lock| Some(lock) != existing.as_ref());
    let saved = resolved.and_then(|lock| {
        if changed {
            lock.save(&path).map_err(|error| base_report(&error))?;
        }
        Ok(lock)
    });
    node.end(&saved, if changed { "written" } else { "unchanged" });
    Ok((saved?, changed))
}

/// The lock that a bake goes by: the one that is there, if it fits the Compose file.
pub(crate) fn lock(agent: &Agent, session: &Session, project: &Project) -> Result<Lock, Report> {
    let path = project.dir.join(LOCK_FILE);
    if project.kiln.bases.is_empty() {
        return Ok(Lock::new(""));
    }
    let Some(lock) = Lock::load(&path).map_err(|error| base_report(&error))? else {
        return Ok(lock_file(agent, session, project, false)?.0);
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
pub(super) struct Bases<'a> {
    agent: &'a Agent,
    session: &'a Session,
    lock: &'a Lock,
    baked: BTreeMap<String, OnceLock<Result<ImageId, String>>>,
    pub(super) failure: Mutex<Option<Report>>,
}

impl<'a> Bases<'a> {
    pub(super) fn new(
        agent: &'a Agent,
        session: &'a Session,
        project: &Project,
        lock: &'a Lock,
    ) -> Self {
        let baked = project.kiln.bases.keys().map(|name| (name.clone(), OnceLock::new())).collect();
        Self { agent, session, lock, baked, failure: Mutex::new(None) }
    }

    /// The image of base `name`, if the project has one of that name.
    pub(super) fn get(&self, name: &str) -> Option<Result<ImageId, Report>> {
        let cell = self.baked.get(name)?;
        let result = cell.get_or_init(|| {
            self.bake(name).map_err(|report| {
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

    fn bake(&self, name: &str) -> Result<ImageId, Report> {
        let pinned = self.lock.bases.get(name).ok_or_else(|| {
            Report::usage(format!("base `{name}` is not in {LOCK_FILE}")).hint("kiln lock")
        })?;
        let store = &self.agent.store;
        if let Some(image) = store.step_result(&base::key(pinned)) {
            return Ok(image);
        }
        let node = self.session.begin("base", name, "");
        let progress = |progress: &base::Progress| node.update(&base_words(progress));
        let watch = base::Watch { progress: &progress, cancel: self.session.cancelled() };
        let result = base::bake_base(
            store,
            name,
            pinned,
            &Steps(self.agent, self.session.cancelled()),
            watch,
        )
        .map_err(|error| base_report(&error));
        let result = result.and_then(|image| self.keep(pinned, image));
        let words = result.as_ref().map(|image| image.tree.short()).unwrap_or_default();
        node.end(&result, &words);
        result
    }

    /// A lock names its bases as much as its packages: collection leaves them alone.
    fn keep(&self, pinned: &base::LockedBase, image: ImageId) -> Result<ImageId, Report> {
        self.agent.flush_objects()?;
        let digests = [image.tree, image.config].into();
        let name = base::key(pinned).hex();
        self.agent.store.set_ref("bases", &name, &digests).because(|| "keeping the base".into())?;
        Ok(image)
    }
}
