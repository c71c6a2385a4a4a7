//! The state of a stage while its instructions are carried out, one after the other, with
//! BuildKit's semantics.
//!
//! | module | noun |
//! |---|---|
//! | [`configure`] | instructions that change the configuration only |
//! | [`copy`] | COPY and ADD |
//! | [`add`] | what ADD fetches and unpacks |
//! | [`run`], [`mount`] | RUN, and what it has mounted |

mod add;
mod configure;
mod copy;
mod mount;
mod run;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kiln_core::{Digest, ImageConfig, ImageId, Tree};
use kiln_store::Store;

use crate::bake::{Act, BuildRequest, Progress, RecordedStep};
use crate::context::Snapshot;
use crate::dockerfile::expand::Lex;
use crate::dockerfile::{Dockerfile, Instruction};
use crate::edit::{Edit, EditError, Editor, Op};
use crate::error::BakeError;
use crate::key::Key;
use crate::paths;
use crate::plan::{Plan, PlannedStage, PlannedStep, Source, lookup, set};
use crate::remote::Remotes;
use crate::runner::StepRunner;
use crate::step::DEFAULT_PATH;

/// What stays of a stage for those that use it.
#[derive(Debug, Clone)]
pub(crate) struct Finished {
    pub(crate) tree: Digest,
    pub(crate) config: ImageConfig,
    /// Variables that its instructions saw, ARGs among them.
    env: Vec<(String, String)>,
}

/// All that the stages of one build share.
pub(crate) struct Build<'a> {
    pub(crate) store: &'a Store,
    pub(crate) runner: &'a dyn StepRunner,
    pub(crate) progress: &'a (dyn Fn(Progress) + Sync),
    pub(crate) record: Option<&'a (dyn Fn(RecordedStep) + Sync)>,
    pub(crate) remotes: Option<&'a Remotes<'a>>,
    /// Set by the caller to end the bake.
    pub(crate) cancel: &'a AtomicBool,
    /// Set when a stage failed: the others end.
    pub(crate) stop: Arc<AtomicBool>,
    pub(crate) request: &'a BuildRequest<'a>,
    /// The Dockerfile as users know it.
    pub(crate) label: String,
    pub(crate) file: &'a Dockerfile,
    pub(crate) plan: &'a Plan,
    pub(crate) context: Option<Arc<Snapshot>>,
    pub(crate) contexts: BTreeMap<String, Arc<Snapshot>>,
    pub(crate) bases: BTreeMap<String, ImageId>,
    /// Stages that are done, by their place in the Dockerfile.
    pub(crate) finished: Mutex<BTreeMap<usize, Finished>>,
    /// Steps for which nothing had to be done.
    pub(crate) cached: AtomicUsize,
    /// Bytes of expanded text so far.
    pub(crate) expanded: AtomicUsize,
}

/// Bytes that all expansions of a build can come to, and those that a configuration can have.
const MAX_EXPANDED: usize = 64 << 20;
const MAX_CONFIG: usize = 1 << 20;

/// A stage under construction.
struct Stage {
    tree: Digest,
    /// Changes of the tree that wait.
    pending: Vec<Edit>,
    config: ImageConfig,
    env: Vec<(String, String)>,
    cmd_set: bool,
    /// One-based line of the instruction at hand.
    line: usize,
    /// Its one-based number.
    number: usize,
}

impl Build<'_> {
    /// Builds one stage, whose FROM is step `number`. What it needs of other stages is finished.
    pub(crate) fn stage(&self, planned: &PlannedStage, number: usize) -> Result<(), BakeError> {
        let stage = &self.file.stages[planned.index];
        self.begin(planned.index, number, &stage.text, stage.line)?;
        let mut state = self.from(&planned.base, stage.line)?;
        self.cached.fetch_add(1, Ordering::Relaxed);
        for (at, PlannedStep { step, sources }) in planned.steps.iter().enumerate() {
            (state.line, state.number) = (step.line, number + 1 + at);
            self.begin(planned.index, state.number, &step.text, step.line)?;
            match &step.instruction {
                Instruction::Copy(copy) => self.copy(&mut state, copy, sources.first())?,
                Instruction::Run(run) => self.run(&mut state, run, sources, &step.text)?,
                Instruction::Workdir(path) => self.workdir(&mut state, path)?,
                other => {
                    self.configure(&mut state, other)?;
                    self.cached.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        if state.config.canonical().len() > MAX_CONFIG {
            let what = format!("the configuration takes more than {} MiB", MAX_CONFIG >> 20);
            return Err(self.wrong(state.line, what, "labels are for short texts"));
        }
        self.settle(&mut state)?;
        (self.progress)(Progress::StageDone {
            service: self.request.name.clone(),
            stage: planned.index,
        });
        let Stage { tree, config, env, .. } = state;
        let mut finished = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
        finished.insert(planned.index, Finished { tree, config, env });
        Ok(())
    }

    /// Whether the bake is to end.
    fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Acquire) || self.stop.load(Ordering::Acquire)
    }

    fn begin(&self, stage: usize, number: usize, text: &str, line: usize) -> Result<(), BakeError> {
        if self.cancelled() {
            return Err(BakeError::Cancelled);
        }
        (self.progress)(Progress::Step {
            service: self.request.name.clone(),
            stage,
            number,
            total: self.plan.steps,
            text: shown(text),
            line,
        });
        Ok(())
    }

    /// A stage that is done; the plan sees to it that those that are needed are.
    pub(crate) fn finished(&self, index: usize) -> Result<Finished, BakeError> {
        let finished = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = || BakeError::Failed(format!("stage {index} was not built"));
        finished.get(&index).cloned().ok_or_else(missing)
    }

    fn wrong(&self, line: usize, what: impl Into<String>, hint: &str) -> BakeError {
        BakeError::Dockerfile {
            file: self.label.clone(),
            line,
            what: what.into(),
            hint: (!hint.is_empty()).then(|| hint.to_owned()),
        }
    }

    fn from(&self, base: &Source, line: usize) -> Result<Stage, BakeError> {
        let (tree, config, env) = match base {
            Source::Stage(index) => {
                let done = self.finished(*index)?;
                (done.tree, done.config, done.env)
            }
            Source::Scratch => {
                let tree = self.store.put_tree(&Tree::new()).map_err(BakeError::store)?;
                (tree, empty_config(), Vec::new())
            }
            Source::Context(name) => {
                let tree = self.context_tree(name)?;
                (tree, empty_config(), Vec::new())
            }
            Source::Base(name) => {
                let id = self.base(name)?;
                let config = self.store.get_config(&id.config).map_err(BakeError::store)?;
                (id.tree, config, Vec::new())
            }
        };
        let mut state =
            Stage { tree, pending: vec![], config, env, cmd_set: false, line, number: 0 };
        // Triggers are for those that are built from an image, and no further.
        state.config.on_build.clear();
        if state.config.env_get("PATH").is_none() {
            state.config.env_set("PATH", DEFAULT_PATH);
        }
        for pair in &state.config.env {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            set(&mut state.env, name, value);
        }
        Ok(state)
    }

    fn base(&self, name: &str) -> Result<ImageId, BakeError> {
        let missing = || BakeError::Failed(format!("base `{name}` was not resolved"));
        self.bases.get(name).copied().ok_or_else(missing)
    }

    /// All of a named context as an image's tree.
    fn context_tree(&self, name: &str) -> Result<Digest, BakeError> {
        let Some(snapshot) = self.contexts.get(name) else {
            return Err(BakeError::Failed(format!("context `{name}` was not read")));
        };
        let files: Vec<(Vec<u8>, Digest)> = snapshot
            .tree
            .entries
            .iter()
            .filter_map(|(path, node)| match node.kind {
                kiln_core::tree::Kind::File { digest, .. } => Some((path.clone(), digest)),
                _ => None,
            })
            .collect();
        Snapshot::put(self.store, &snapshot.root, &files)?;
        self.store.put_tree(&snapshot.tree).map_err(BakeError::store)
    }

    fn lex(&self) -> Lex {
        Lex::new(self.file.escape)
    }

    fn expand(&self, state: &Stage, word: &str) -> Result<String, BakeError> {
        let expanded = self.lex().word(word, &|name| lookup(&state.env, name));
        let expanded = expanded.map_err(|what| self.wrong(state.line, what, ""))?;
        self.spend(state.line, expanded.len())?;
        Ok(expanded)
    }

    /// Counts expanded text, which a few lines can make as much of as they like.
    fn spend(&self, line: usize, bytes: usize) -> Result<(), BakeError> {
        if self.expanded.fetch_add(bytes, Ordering::Relaxed) + bytes <= MAX_EXPANDED {
            return Ok(());
        }
        let what = format!("expanding variables comes to more than {} MiB", MAX_EXPANDED >> 20);
        Err(self.wrong(line, what, ""))
    }

    fn workdir(&self, state: &mut Stage, path: &str) -> Result<(), BakeError> {
        let path = self.expand(state, path)?;
        let dir = state.config.working_dir.as_deref().unwrap_or("/");
        let path = paths::absolute(dir, &path);
        state.config.working_dir = Some(path.clone());
        if path == "/" {
            self.cached.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        let owner = state.config.user.clone();
        let op = Op::Workdir { path, owner };
        state.pending.push(Edit { number: state.number, line: state.line, op });
        Ok(())
    }

    /// Applies all changes that wait, or finds their outcome in the step cache.
    fn settle(&self, state: &mut Stage) -> Result<(), BakeError> {
        if state.pending.is_empty() {
            return Ok(());
        }
        let edits = std::mem::take(&mut state.pending);
        let key = Key::new("edits").digest(&state.tree).number(edits.len() as u64);
        let key = edits.iter().fold(key, |key, edit| edit.key(key)).finish();
        let Some(_turn) = self.store.step_turn(&key, &|| self.cancelled()) else {
            return Err(BakeError::Cancelled);
        };
        if let Some(known) = self.store.step_result(&key) {
            for edit in &edits {
                self.found(edit.number);
            }
            self.record(state, "", Act::Edits(edits), known.tree);
            state.tree = known.tree;
            return Ok(());
        }
        let tree = self.store.get_tree(&state.tree).map_err(BakeError::store)?;
        let mut editor = Editor::new((*tree).clone());
        for edit in &edits {
            edit.apply(self.store, &mut editor).map_err(|error| match error {
                EditError::User(what) => self.wrong(edit.line, what, ""),
                EditError::Failed(error) => error,
            })?;
        }
        let tree = Arc::new(editor.finish());
        let tree = self.store.keep_tree(tree).map_err(BakeError::store)?;
        self.record(state, "", Act::Edits(edits), tree);
        state.tree = tree;
        self.remember(&key, state.tree)
    }

    fn found(&self, number: usize) {
        self.cached.fetch_add(1, Ordering::Relaxed);
        (self.progress)(Progress::Cached { service: self.request.name.clone(), number });
    }

    fn remember(&self, key: &Digest, tree: Digest) -> Result<(), BakeError> {
        let config = self.store.put_config(&ImageConfig::default()).map_err(BakeError::store)?;
        self.store.set_step_result(key, &ImageId { tree, config }).map_err(BakeError::store)
    }
}

/// The configuration of what is built from nothing, as BuildKit has it.
fn empty_config() -> ImageConfig {
    ImageConfig { working_dir: Some("/".into()), ..ImageConfig::default() }
}

/// An instruction on one line of bearable length.
fn shown(text: &str) -> String {
    let mut words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((at, _)) = words.char_indices().nth(120) {
        words.truncate(at);
        words.push('…');
    }
    words
}
