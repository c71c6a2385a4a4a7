//! Source → images → settings: what comes before a release.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, OnceLock};

use kiln_bake::base::{self, Lock};
use kiln_bake::{BakeError, Baked, Baker, BuildRequest, StepExit, StepRunner, StepSpec};
use kiln_core::ImageId;
use kiln_core::compose::{FileMount, FileSource, Project, Service};
use kiln_core::exit::Exit;
use kiln_core::release::{PinnedFile, ReleasedService, Source};
use kiln_core::settings;

use super::Agent;
use super::lock as locked;
use super::session::{Node, Session};
use crate::report::{Because, Report};

/// Name of the lock file, beside the Compose file.
pub(crate) const LOCK_FILE: &str = "kiln.lock";

/// Steps run in the same sandbox as instances.
struct Steps<'a>(&'a Agent, &'a AtomicBool);

impl StepRunner for Steps<'_> {
    fn run(&self, spec: &StepSpec, output: &mut dyn FnMut(&[u8])) -> Result<StepExit, String> {
        let mounts = spec.mounts.iter().map(|mount| kiln_run::BindMount {
            source: mount.source.clone(),
            target: mount.target.clone(),
            read_only: mount.read_only,
        });
        let step = kiln_run::StepSpec {
            lower: spec.lower.clone(),
            upper_dir: spec.upper_dir.clone(),
            argv: spec.argv.clone(),
            env: spec.env.clone(),
            cwd: spec.cwd.clone(),
            user: spec.user.clone(),
            hostname: spec.hostname.clone(),
            mounts: mounts.collect(),
            stdin: spec.stdin.clone(),
            network: spec.network,
            rootful: spec.rootful,
        };
        let exit = self.0.runtime.run_step_unless(&step, self.1, output).map_err(|error| {
            let report = Report::from_error(Exit::Failed, &error);
            report.to_string()
        })?;
        Ok(StepExit { code: exit.code, signal: exit.signal })
    }
}

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

fn bake_report(error: &BakeError) -> Report {
    let exit = if error.is_usage() { Exit::Usage } else { Exit::Failed };
    Report::from_error(exit, error)
}

/// One moment of a bake, in words.
fn step_words(node: &Node<'_>, progress: &kiln_bake::Progress) {
    use kiln_bake::Progress;
    match progress {
        Progress::Step { number, total, text, .. } => {
            node.update(&format!("{number}/{total} {text}"));
        }
        Progress::Output { bytes, .. } => {
            let text = String::from_utf8_lossy(bytes);
            if let Some(line) = text.lines().rev().find(|line| !line.trim().is_empty()) {
                node.update(line.trim());
            }
        }
        Progress::Cached { .. } | Progress::Done { .. } => {}
    }
}

/// Bases of one run, each baked at most once however many services want it.
struct Bases<'a> {
    agent: &'a Agent,
    session: &'a Session,
    lock: &'a Lock,
    baked: BTreeMap<String, OnceLock<Result<ImageId, String>>>,
    failure: Mutex<Option<Report>>,
}

impl<'a> Bases<'a> {
    fn new(agent: &'a Agent, session: &'a Session, project: &Project, lock: &'a Lock) -> Self {
        let baked = project.kiln.bases.keys().map(|name| (name.clone(), OnceLock::new())).collect();
        Self { agent, session, lock, baked, failure: Mutex::new(None) }
    }

    /// The image of base `name`, if the project has one of that name.
    fn get(&self, name: &str) -> Option<Result<ImageId, Report>> {
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

/// Bakes `only` these services (all, if it is empty) and gives the image of each.
pub(crate) fn images(
    agent: &Agent,
    session: &Session,
    project: &Project,
    lock: &Lock,
    only: &[String],
) -> Result<BTreeMap<String, ImageId>, Report> {
    let bases = Bases::new(agent, session, project, lock);
    let wanted: Vec<(&String, &Service)> = project
        .services
        .iter()
        .filter(|(name, _)| only.is_empty() || only.contains(name))
        .collect();
    let bake = |name: &String, service: &Service| -> Result<ImageId, Report> {
        session.check()?;
        match (&service.build, &service.image) {
            (Some(_), _) => build(agent, session, project, name, service, &bases),
            (None, Some(image)) => bases.get(image).unwrap_or_else(|| {
                Err(Report::usage(format!("{}: no base is called `{image}`", service.place)))
            }),
            (None, None) => Err(Report::usage(format!(
                "{}: service `{name}` has neither `build` nor `image`",
                service.place
            ))),
        }
    };
    let results: Vec<(String, Result<ImageId, Report>)> = std::thread::scope(|scope| {
        let threads: Vec<_> = wanted
            .iter()
            .map(|(name, service)| ((*name).clone(), scope.spawn(|| bake(name, service))))
            .collect();
        let bug = || Report::new(Exit::Bug, "a baking thread panicked");
        threads
            .into_iter()
            .map(|(name, thread)| (name, thread.join().unwrap_or_else(|_| Err(bug()))))
            .collect()
    });
    results.into_iter().map(|(name, result)| Ok((name, result?))).collect()
}

fn build(
    agent: &Agent,
    session: &Session,
    project: &Project,
    name: &str,
    service: &Service,
    bases: &Bases<'_>,
) -> Result<ImageId, Report> {
    let Some(build) = &service.build else {
        return Err(Report::new(Exit::Bug, format!("`{name}` is built without `build`")));
    };
    let mut contexts = BTreeMap::new();
    let mut images = BTreeMap::new();
    for (alias, source) in &build.additional_contexts {
        match source.strip_prefix("service:") {
            None => {
                contexts.insert(alias.clone(), source.into());
            }
            Some(other) => {
                let service = project.services.get(other).ok_or_else(|| {
                    Report::usage(format!("{}: no service `{other}`", service.place))
                })?;
                let image = build_of(agent, session, project, other, service, bases)?;
                images.insert(alias.clone(), image);
            }
        }
    }
    let base =
        |wanted: &str| -> Option<Result<ImageId, BakeError>> {
            if let Some(image) = images.get(wanted) {
                return Some(Ok(*image));
            }
            let image = bases.get(wanted)?;
            Some(image.map_err(|report| {
                BakeError::Failed(format!("base `{wanted}`: {}", report.message))
            }))
        };
    let request = BuildRequest {
        name: name.to_owned(),
        context: build.context.clone(),
        dockerfile: build.dockerfile.clone(),
        inline: build.inline.clone(),
        args: build.args.clone(),
        target: build.target.clone(),
        contexts,
        bases: &base,
    };
    let node = session.begin("bake", name, "");
    let progress = |progress: kiln_bake::Progress| step_words(&node, &progress);
    let baker = Baker {
        store: &agent.store,
        runner: &Steps(agent, session.cancelled()),
        progress: &progress,
        cancel: session.cancelled(),
    };
    let result = baker.bake(&request).map_err(|error| {
        // A base that failed has the better words.
        locked(&bases.failure).clone().unwrap_or_else(|| bake_report(&error))
    });
    let words = result.as_ref().map(baked_words).unwrap_or_default();
    node.end(&result, &words);
    Ok(result?.image)
}

fn build_of(
    agent: &Agent,
    session: &Session,
    project: &Project,
    name: &str,
    service: &Service,
    bases: &Bases<'_>,
) -> Result<ImageId, Report> {
    match &service.image {
        Some(image) if service.build.is_none() => bases
            .get(image)
            .unwrap_or_else(|| Err(Report::usage(format!("no base is called `{image}`")))),
        _ => build(agent, session, project, name, service, bases),
    }
}

fn baked_words(baked: &Baked) -> String {
    let digest = baked.image.tree.short();
    match baked.steps - baked.cached {
        0 => format!("{digest} unchanged"),
        fresh => format!("{digest} {fresh} of {} steps", baked.steps),
    }
}

/// Joins images and Compose file, and pins the content of configs and secrets.
pub(crate) fn settings(
    agent: &Agent,
    project: &Project,
    images: &BTreeMap<String, ImageId>,
) -> Result<BTreeMap<String, ReleasedService>, Report> {
    let mut services = BTreeMap::new();
    for (name, service) in &project.services {
        let Some(image) = images.get(name) else { continue };
        let config = agent
            .store
            .get_config(&image.config)
            .because(|| format!("reading the configuration of `{name}`"))?;
        let files = service
            .files
            .iter()
            .map(|file| pin(agent, name, file))
            .collect::<Result<Vec<_>, Report>>()?;
        let settings = settings::settings(project, name, service, &config, files)
            .map_err(|error| Report::usage(error.to_string()).hint("set `command`"))?;
        services.insert(name.clone(), ReleasedService { image: *image, settings });
    }
    Ok(services)
}

fn pin(agent: &Agent, service: &str, file: &FileMount) -> Result<PinnedFile, Report> {
    let content = match &file.source {
        FileSource::Content(text) => text.clone().into_bytes(),
        FileSource::File(path) => std::fs::read(path).map_err(|error| {
            let what = if file.secret { "secret" } else { "config" };
            Report::usage(format!(
                "service `{service}`: the {what} for {} cannot be read: {}: {error}",
                file.target,
                path.display()
            ))
        })?,
    };
    let digest = agent.store.put(&content).because(|| format!("keeping {}", file.target))?;
    let FileMount { target, uid, gid, mode, secret, .. } = file.clone();
    Ok(PinnedFile { target, digest, uid, gid, mode, secret })
}

/// Where the source is in Git, if it is and Git is there to ask.
pub(crate) fn source(project: &Project) -> Source {
    if !in_git(&project.dir) {
        return Source::default();
    }
    let status = || -> Option<String> {
        let output = Command::new("git")
            .arg("-C")
            .arg(&project.dir)
            .args(["status", "--porcelain=v2", "--branch", "--", "."])
            // The project belongs to the user, the agent is root: Git asks to be told.
            .env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", "safe.directory")
            .env("GIT_CONFIG_VALUE_0", "*")
            .env("GIT_OPTIONAL_LOCKS", "0")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()?;
        String::from_utf8(output.stdout).ok().filter(|_| output.status.success())
    };
    let Some(status) = status() else { return Source::default() };
    let commit = status
        .lines()
        .find_map(|line| line.strip_prefix("# branch.oid "))
        .filter(|commit| *commit != "(initial)");
    let dirty = status.lines().any(|line| !line.starts_with('#'));
    Source { commit: commit.map(str::to_owned), dirty }
}

/// Asked by looking, so that projects outside of Git pay for no process.
fn in_git(dir: &Path) -> bool {
    dir.ancestors().any(|dir| dir.join(".git").exists())
}
