//! One build request, from Dockerfile to image: parse, plan, resolve bases, snapshot contexts,
//! look the whole up, and only then build stage after stage.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use kiln_core::{Digest, ImageId};
use kiln_store::Store;
use kiln_store::regular::{self, Links};

use crate::context::Snapshot;
use crate::dockerfile::{self, Dockerfile};
use crate::edit::Edit;
use crate::error::BakeError;
use crate::ignore::Ignore;
use crate::key::Key;
use crate::options::BuildOptions;
use crate::plan::{self, Outside, Plan, Source};
use crate::remote::{self, Remotes};
use crate::runner::StepRunner;
use crate::stage::Build;
use crate::step::Command;
use crate::{parallel, schedule};

/// Resolves a base by its name: `None` if there is none of that name. Several are asked for at
/// once.
pub type Bases<'a> = dyn Fn(&str) -> Option<Result<ImageId, BakeError>> + Sync + 'a;

/// What it takes to bake.
pub struct Baker<'a> {
    /// Where everything goes. What was put is durable only after the caller's next `flush`.
    pub store: &'a Store,
    /// Who runs the RUNs.
    pub runner: &'a dyn StepRunner,
    /// Told of everything that happens.
    pub progress: &'a (dyn Fn(Progress) + Sync),
    /// Set to stop before the next step. A step that runs is ended by the runner's owner.
    pub cancel: &'a AtomicBool,
    /// Told of every RUN and every row of edits with its result, carried out or found. With one, the result of the whole
    /// build is not looked up, for then no step would be walked.
    pub record: Option<&'a (dyn Fn(RecordedStep) + Sync)>,
    /// Fetches what ADD takes from outside; without one, nothing is.
    pub remotes: Option<&'a Remotes<'a>>,
}

/// What a step, or a row of them, did to the tree.
#[derive(Debug, Clone)]
pub enum Act {
    /// It ran this.
    Run(Box<Command>),
    /// COPY, ADD and WORKDIR that were applied together, each with its number and line.
    Edits(Vec<Edit>),
}

/// A RUN or a row of edits, what it began from and what it made of it. A row has no text, and the
/// number and line of whoever needed its result.
#[derive(Debug, Clone)]
pub struct RecordedStep {
    /// The request's name.
    pub service: String,
    /// One-based.
    pub number: usize,
    /// Number of steps.
    pub total: usize,
    /// The instruction.
    pub text: String,
    /// The Dockerfile, as users know it.
    pub file: String,
    /// One-based line in the Dockerfile.
    pub line: usize,
    /// What was done.
    pub act: Act,
    /// The tree that it ran on.
    pub input: Digest,
    /// The tree that it left.
    pub output: Digest,
}

/// A Dockerfile build.
pub struct BuildRequest<'a> {
    /// The service, for messages.
    pub name: String,
    /// The context directory.
    pub context: PathBuf,
    /// The Dockerfile; a relative path is relative to the context.
    pub dockerfile: PathBuf,
    /// The Dockerfile's text, instead of a file.
    pub inline: Option<String>,
    /// Build arguments; `None` is as good as not given.
    pub args: BTreeMap<String, Option<String>>,
    /// The stage to build; the last one if not given.
    pub target: Option<String>,
    /// Named contexts that are directories.
    pub contexts: BTreeMap<String, PathBuf>,
    /// Names of contexts that are images: `bases` is asked for them, before any stage of that name.
    pub images: BTreeSet<String>,
    /// Bases by name; asked only for those that the target needs.
    pub bases: &'a Bases<'a>,
    /// What else is said about it.
    pub options: BuildOptions,
}

/// What came out.
#[derive(Debug, Clone, PartialEq)]
pub struct Baked {
    /// The image.
    pub image: ImageId,
    /// Number of steps.
    pub steps: usize,
    /// Steps for which nothing had to be done.
    pub cached: usize,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// What happens while baking.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// A step begins.
    Step {
        /// The request's name.
        service: String,
        /// The stage's place in the Dockerfile. Several stages may be under way at once, each
        /// with one step.
        stage: usize,
        /// One-based.
        number: usize,
        /// Number of steps.
        total: usize,
        /// The instruction.
        text: String,
        /// One-based line in the Dockerfile.
        line: usize,
    },
    /// The outcome of a step was known.
    Cached {
        /// The request's name.
        service: String,
        /// One-based.
        number: usize,
    },
    /// A step wrote something.
    Output {
        /// The request's name.
        service: String,
        /// One-based.
        number: usize,
        /// As written.
        bytes: Vec<u8>,
    },
    /// There is something to know of a step.
    Notice {
        /// The request's name.
        service: String,
        /// One-based.
        number: usize,
        /// A sentence, with the step's place.
        text: String,
    },
    /// All steps of a stage are done.
    StageDone {
        /// The request's name.
        service: String,
        /// The stage's place in the Dockerfile.
        stage: usize,
    },
    /// The image is there.
    Done {
        /// The request's name.
        service: String,
        /// The image.
        image: ImageId,
        /// Number of steps.
        steps: usize,
        /// Steps for which nothing had to be done.
        cached: usize,
    },
}

impl std::fmt::Debug for Baker<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Baker").field("store", &self.store).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for BuildRequest<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BuildRequest")
            .field("name", &self.name)
            .field("context", &self.context)
            .field("dockerfile", &self.dockerfile)
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

/// What the outside contributes to a build.
#[derive(Default)]
struct Inputs {
    context: Option<Arc<Snapshot>>,
    contexts: BTreeMap<String, Arc<Snapshot>>,
    bases: BTreeMap<String, ImageId>,
}

/// One of them.
enum Input {
    Base(ImageId),
    Context(Arc<Snapshot>),
    None,
}

impl Baker<'_> {
    /// Bakes an image. The store's lease is held meanwhile, so nothing of it is collected.
    ///
    /// # Errors
    /// See [`BakeError`]; nothing is recorded then but results of steps that succeeded.
    pub fn bake(&self, request: &BuildRequest<'_>) -> Result<Baked, BakeError> {
        let begun = Instant::now();
        let _lease = self.store.lease().map_err(BakeError::store)?;
        let (label, text) = request.text()?;
        let file = parsed(&label, &text)?;
        let (plan, inputs) = self.plan(request, &file, &label)?;
        if !plan.unused.is_empty() {
            let text = format!(
                "{label}: [Warning] One or more build-args [{}] were not consumed",
                plan.unused.join(" ")
            );
            let service = request.name.clone();
            (self.progress)(Progress::Notice { service, number: 1, text });
        }
        let own = request.key(&text, &inputs);
        let fetches = remote::may_fetch(&plan);
        // What is pinned counts too, and a first bake pins.
        let sealed = || match self.remotes.filter(|_| fetches) {
            Some(remotes) => Key::new("pinned").digest(&own).digest(&remotes.digest()).finish(),
            None => own,
        };
        let key = sealed();
        let given_up = || self.cancel.load(Ordering::Acquire);
        let _turn = self.store.step_turn(&key, &given_up).ok_or(BakeError::Cancelled)?;
        let known = self.record.is_none().then(|| self.store.step_result(&key)).flatten();
        let (image, cached) = match known {
            Some(image) => (image, plan.steps),
            None => {
                let built = self.build(request, label, &file, &plan, inputs)?;
                self.store.set_step_result(&sealed(), &built.0).map_err(BakeError::store)?;
                built
            }
        };
        let steps = plan.steps;
        (self.progress)(Progress::Done { service: request.name.clone(), image, steps, cached });
        Ok(Baked { image, steps, cached, seconds: begun.elapsed().as_secs_f64() })
    }

    /// Plans, and takes in what the plan needs from outside. A base that is known then may have
    /// triggers, which are steps too and may need more.
    fn plan(
        &self,
        request: &BuildRequest<'_>,
        file: &Dockerfile,
        label: &str,
    ) -> Result<(Plan, Inputs), BakeError> {
        let mut outside = Outside {
            contexts: request.contexts.keys().cloned().collect(),
            images: request.images.clone(),
            ..Outside::default()
        };
        let mut inputs = Inputs::default();
        loop {
            let target = request.target.as_deref();
            let plan = plan::plan(file, label, &request.args, target, &outside)?;
            self.inputs(request, file, label, &plan, &mut inputs)?;
            let mut more = false;
            for name in plan.bases() {
                let Some(id) = inputs.bases.get(name) else { continue };
                if !outside.triggers.contains_key(name) {
                    let config = self.store.get_config(&id.config).map_err(BakeError::store)?;
                    more |= !config.on_build.is_empty();
                    outside.triggers.insert(name.to_owned(), config.on_build);
                }
            }
            if !more {
                return Ok((plan, inputs));
            }
        }
    }

    /// Resolves bases and takes snapshots that are not there yet, side by side.
    fn inputs(
        &self,
        request: &BuildRequest<'_>,
        file: &Dockerfile,
        label: &str,
        plan: &Plan,
        inputs: &mut Inputs,
    ) -> Result<(), BakeError> {
        let mut wanted: Vec<(Option<Source>, usize)> =
            plan.outside(file).into_iter().map(|(source, line)| (Some(source), line)).collect();
        wanted.retain(|(source, _)| match source {
            Some(Source::Base(name)) => !inputs.bases.contains_key(name),
            Some(Source::Context(name)) => !inputs.contexts.contains_key(name),
            _ => true,
        });
        // In the order of their lines, for of several failures the first one is told.
        wanted.sort_by_key(|(_, line)| *line);
        if plan.needs_context && inputs.context.is_none() {
            wanted.push((None, 0));
        }
        let found = parallel::each(&wanted, |(source, line)| match source {
            Some(Source::Base(name)) => base(request, file, label, name, *line).map(Input::Base),
            Some(Source::Context(name)) => {
                let Some(root) = request.contexts.get(name) else { return Ok(Input::None) };
                let ignore = Ignore::load(root, None)?;
                Ok(Input::Context(Snapshot::recall(self.store, root, &ignore, self.cancel)?))
            }
            Some(Source::Stage(_) | Source::Scratch) => Ok(Input::None),
            None => {
                let own = request.inline.is_none().then(|| request.dockerfile_path());
                let ignore = Ignore::load(&request.context, own.as_deref())?;
                Ok(Input::Context(Snapshot::recall(
                    self.store,
                    &request.context,
                    &ignore,
                    self.cancel,
                )?))
            }
        })?;
        for ((source, _), input) in wanted.into_iter().zip(found) {
            match (source, input) {
                (None, Input::Context(snapshot)) => inputs.context = Some(snapshot),
                (Some(Source::Context(name)), Input::Context(snapshot)) => {
                    inputs.contexts.insert(name, snapshot);
                }
                (Some(Source::Base(name)), Input::Base(id)) => {
                    inputs.bases.insert(name, id);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Builds the stages of the plan, those that do not need one another side by side.
    fn build(
        &self,
        request: &BuildRequest<'_>,
        label: String,
        file: &Dockerfile,
        plan: &Plan,
        inputs: Inputs,
    ) -> Result<(ImageId, usize), BakeError> {
        let build = Build {
            store: self.store,
            runner: self.runner,
            progress: self.progress,
            record: self.record,
            remotes: self.remotes,
            cancel: self.cancel,
            stop: Arc::default(),
            request,
            label,
            file,
            plan,
            context: inputs.context,
            contexts: inputs.contexts,
            bases: inputs.bases,
            finished: Mutex::default(),
            cached: AtomicUsize::new(0),
            expanded: AtomicUsize::new(0),
        };
        // Steps are numbered in the order of the file, whatever order they run in.
        let first = |at: usize| {
            let before = plan.stages[..at].iter();
            1 + before.map(|stage| 1 + stage.steps.len()).sum::<usize>()
        };
        let work = |at: usize| build.stage(&plan.stages[at], first(at));
        schedule::run(&plan.needs(), work, || build.stop.store(true, Ordering::Release))
            .map_err(first_cause)?;
        let Some(target) = plan.stages.last() else {
            return Err(BakeError::Failed("the plan has no stages".into()));
        };
        let target = build.finished(target.index)?;
        let mut config = target.config;
        config.labels.extend(request.options.labels.clone());
        let config = self.store.put_config(&config).map_err(BakeError::store)?;
        let cached = build.cached.load(Ordering::Relaxed);
        Ok((ImageId { tree: target.tree, config }, cached))
    }
}

fn parsed(label: &str, text: &str) -> Result<Dockerfile, BakeError> {
    dockerfile::parse(text).map_err(|error| BakeError::Dockerfile {
        file: label.to_owned(),
        line: error.line,
        what: error.what,
        hint: error.hint,
    })
}

/// Of what failed, the first in the file; stages that were only stopped are no cause.
fn first_cause(failed: Vec<(usize, BakeError)>) -> BakeError {
    let mut failed: Vec<BakeError> = failed.into_iter().map(|(_, error)| error).collect();
    let cause = failed.iter().position(|error| !matches!(error, BakeError::Cancelled));
    failed.swap_remove(cause.unwrap_or(0))
}

fn base(
    request: &BuildRequest<'_>,
    file: &Dockerfile,
    label: &str,
    name: &str,
    line: usize,
) -> Result<ImageId, BakeError> {
    let found = (request.bases)(name).or_else(|| (request.bases)(plan::familiar(name)));
    let near = || {
        let stages = file.stages.iter().filter_map(|stage| stage.name.as_deref());
        let contexts = request.contexts.keys().chain(&request.images).map(String::as_str);
        let near = dockerfile::suggest::near(name, stages.chain(contexts));
        near.map(|near| format!("did you mean {near}?"))
    };
    let file = label.to_owned();
    match found {
        Some(Ok(image)) => Ok(image),
        Some(Err(BakeError::Usage { what, hint })) => {
            Err(BakeError::Dockerfile { file, line, what, hint: near().or(hint) })
        }
        Some(Err(BakeError::Failed(what))) => {
            let near = near().map(|near| format!("\n  hint: {near}")).unwrap_or_default();
            Err(BakeError::Failed(format!("{file}:{line}: {what}{near}")))
        }
        Some(Err(error)) => Err(error),
        None => {
            let what = format!("`{name}` is not a base, an earlier stage or `scratch`");
            let hint = near();
            Err(BakeError::Dockerfile { file, line, what, hint })
        }
    }
}

impl BuildRequest<'_> {
    /// Names of what the target takes from outside by FROM, `COPY --from` and mounts, named
    /// contexts aside: bases, and images of registries. What a base's triggers take is not known.
    ///
    /// # Errors
    /// The Dockerfile cannot be read or planned.
    pub fn outside(&self) -> Result<BTreeSet<String>, BakeError> {
        let (label, text) = self.text()?;
        let file = parsed(&label, &text)?;
        let outside = Outside {
            contexts: self.contexts.keys().cloned().collect(),
            images: self.images.clone(),
            ..Outside::default()
        };
        let plan = plan::plan(&file, &label, &self.args, self.target.as_deref(), &outside)?;
        let names = plan.outside(&file).into_keys().filter_map(|source| match source {
            Source::Base(name) if !self.images.contains(&name) => Some(name),
            _ => None,
        });
        Ok(names.collect())
    }

    fn dockerfile_path(&self) -> PathBuf {
        self.context.join(&self.dockerfile)
    }

    /// What users call the Dockerfile, and its text.
    fn text(&self) -> Result<(String, String), BakeError> {
        if let Some(text) = &self.inline {
            return Ok((format!("dockerfile_inline of `{}`", self.name), text.clone()));
        }
        let path = self.dockerfile_path();
        let label = label(&self.context, &path);
        let bytes = read(&path).map_err(|error| {
            let what = format!("the Dockerfile {} cannot be read: {error}", path.display());
            BakeError::usage(what, "check `build.dockerfile` in the Compose file")
        })?;
        match String::from_utf8(bytes) {
            Ok(text) => Ok((label, text)),
            Err(error) => {
                let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
                let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
                let what = "the line is not UTF-8".to_owned();
                Err(BakeError::Dockerfile { file: label, line, what, hint: None })
            }
        }
    }

    /// Key of the whole build: what went in decides what comes out.
    fn key(&self, text: &str, inputs: &Inputs) -> kiln_core::Digest {
        let mut key = Key::new("build")
            .text(text)
            .option(self.target.as_deref())
            .number(self.args.len() as u64)
            .number(inputs.contexts.len() as u64);
        for (name, value) in &self.args {
            key = key.text(name).option(value.as_deref());
        }
        key = match &inputs.context {
            Some(snapshot) => key.number(1).digest(&snapshot.key()),
            None => key.number(0),
        };
        for (name, snapshot) in &inputs.contexts {
            key = key.text(name).digest(&snapshot.key());
        }
        for (name, id) in &inputs.bases {
            key = key.text(name).digest(&id.tree).digest(&id.config);
        }
        self.options.key(key).finish()
    }
}

/// Reads a Dockerfile, and no more of it than one may have. What would be called `Dockerfile` may
/// be called `dockerfile`.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let open = |path: &Path| regular::read(path, Links::Follow, dockerfile::MAX_TEXT as u64);
    match open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.ends_with("Dockerfile") => {
            open(&path.with_file_name("dockerfile")).map_err(|other| match other.kind() {
                io::ErrorKind::NotFound => error,
                _ => other,
            })
        }
        result => result,
    }
}

/// `web/Dockerfile` for `/any/where/web/Dockerfile` with the context `/any/where/web`.
fn label(context: &Path, dockerfile: &Path) -> String {
    let shown = context
        .parent()
        .and_then(|above| dockerfile.strip_prefix(above).ok())
        .unwrap_or(dockerfile);
    shown.display().to_string()
}
