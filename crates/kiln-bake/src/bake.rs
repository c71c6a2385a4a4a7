//! One build request, from Dockerfile to image: parse, plan, resolve bases, snapshot contexts,
//! look the whole up, and only then build stage after stage.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use kiln_core::ImageId;
use kiln_store::Store;

use crate::context::Snapshot;
use crate::dockerfile::{self, Dockerfile};
use crate::error::BakeError;
use crate::ignore::Ignore;
use crate::key::Key;
use crate::plan::{self, Plan, Source};
use crate::runner::StepRunner;
use crate::stage::Build;

/// Resolves a base by its name: `None` if there is none of that name.
pub type Bases<'a> = dyn Fn(&str) -> Option<Result<ImageId, BakeError>> + 'a;

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
    /// Named contexts.
    pub contexts: BTreeMap<String, PathBuf>,
    /// Bases by name; asked only for those that the target needs.
    pub bases: &'a Bases<'a>,
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
struct Inputs {
    context: Option<Snapshot>,
    contexts: BTreeMap<String, Snapshot>,
    bases: BTreeMap<String, ImageId>,
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
        let file = dockerfile::parse(&text).map_err(|error| BakeError::Dockerfile {
            file: label.clone(),
            line: error.line,
            what: error.what,
            hint: error.hint,
        })?;
        let names: BTreeSet<String> = request.contexts.keys().cloned().collect();
        let plan = plan::plan(&file, &label, &request.args, request.target.as_deref(), &names)?;
        let inputs = self.inputs(request, &file, &label, &plan)?;
        let key = request.key(&text, &inputs);
        let (image, cached) = match self.store.step_result(&key) {
            Some(image) => (image, plan.steps),
            None => {
                let built = self.build(request, label, &file, &plan, inputs)?;
                self.store.set_step_result(&key, &built.0).map_err(BakeError::store)?;
                built
            }
        };
        let steps = plan.steps;
        (self.progress)(Progress::Done { service: request.name.clone(), image, steps, cached });
        Ok(Baked { image, steps, cached, seconds: begun.elapsed().as_secs_f64() })
    }

    fn inputs(
        &self,
        request: &BuildRequest<'_>,
        file: &Dockerfile,
        label: &str,
        plan: &Plan,
    ) -> Result<Inputs, BakeError> {
        let mut inputs =
            Inputs { context: None, contexts: BTreeMap::new(), bases: BTreeMap::new() };
        for (source, line) in plan.outside(file) {
            match source {
                Source::Base(name) => {
                    let id = (request.bases)(&name).unwrap_or_else(|| {
                        Err(BakeError::Dockerfile {
                            file: label.to_owned(),
                            line,
                            what: format!(
                                "`{name}` is not a base, an earlier stage or `scratch`; images \
                                 from a registry are not supported yet"
                            ),
                            hint: Some("define a base under `x-kiln.bases` and name it".into()),
                        })
                    })?;
                    inputs.bases.insert(name, id);
                }
                Source::Context(name) => {
                    let Some(root) = request.contexts.get(&name) else { continue };
                    let ignore = Ignore::load(root, None)?;
                    let snapshot = Snapshot::take(self.store, root, &ignore)?;
                    inputs.contexts.insert(name, snapshot);
                }
                Source::Stage(_) | Source::Scratch => {}
            }
        }
        if plan.needs_context {
            let own = request.inline.is_none().then(|| request.dockerfile_path());
            let ignore = Ignore::load(&request.context, own.as_deref())?;
            inputs.context = Some(Snapshot::take(self.store, &request.context, &ignore)?);
        }
        Ok(inputs)
    }

    fn build(
        &self,
        request: &BuildRequest<'_>,
        label: String,
        file: &Dockerfile,
        plan: &Plan,
        inputs: Inputs,
    ) -> Result<(ImageId, usize), BakeError> {
        let cancelled = || self.cancel.load(Ordering::Relaxed);
        let mut build = Build {
            store: self.store,
            runner: self.runner,
            progress: self.progress,
            cancelled: &cancelled,
            request,
            label,
            file,
            plan,
            context: inputs.context,
            contexts: inputs.contexts,
            bases: inputs.bases,
            finished: BTreeMap::new(),
            number: 0,
            cached: 0,
        };
        for stage in &plan.stages {
            build.stage(stage)?;
        }
        let target = plan.stages.last().and_then(|stage| build.finished.get(&stage.index));
        let Some(target) = target else {
            return Err(BakeError::Failed("the plan has no stages".into()));
        };
        let config = self.store.put_config(&target.config).map_err(BakeError::store)?;
        Ok((ImageId { tree: target.tree, config }, build.cached))
    }
}

impl BuildRequest<'_> {
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
        let bytes = fs::read(&path).map_err(|error| {
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
            Some(snapshot) => key.number(1).entries(snapshot.tree.entries.iter()),
            None => key.number(0),
        };
        for (name, snapshot) in &inputs.contexts {
            key = key.text(name).entries(snapshot.tree.entries.iter());
        }
        for (name, id) in &inputs.bases {
            key = key.text(name).digest(&id.tree).digest(&id.config);
        }
        key.finish()
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
