//! The state of a stage while its instructions are carried out, one after the other, with
//! BuildKit's semantics.
//!
//! | module | noun |
//! |---|---|
//! | [`configure`] | instructions that change the configuration only |
//! | [`copy`] | COPY and ADD |
//! | [`run`] | RUN |

mod configure;
mod copy;
mod run;

use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_core::{Digest, ImageConfig, ImageId, Tree};
use kiln_store::Store;

use crate::bake::{BuildRequest, Progress};
use crate::context::Snapshot;
use crate::dockerfile::expand::Lex;
use crate::dockerfile::{Dockerfile, Instruction};
use crate::edit::{Edit, EditError, Editor, Op};
use crate::error::BakeError;
use crate::key::Key;
use crate::paths;
use crate::plan::{Plan, PlannedStage, Source, lookup, set};
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
    pub(crate) cancelled: &'a dyn Fn() -> bool,
    pub(crate) request: &'a BuildRequest<'a>,
    /// The Dockerfile as users know it.
    pub(crate) label: String,
    pub(crate) file: &'a Dockerfile,
    pub(crate) plan: &'a Plan,
    pub(crate) context: Option<Snapshot>,
    pub(crate) contexts: BTreeMap<String, Snapshot>,
    pub(crate) bases: BTreeMap<String, ImageId>,
    pub(crate) finished: BTreeMap<usize, Finished>,
    /// Steps begun.
    pub(crate) number: usize,
    /// Steps for which nothing had to be done.
    pub(crate) cached: usize,
}

/// A stage under construction.
struct Stage {
    tree: Digest,
    /// Changes of the tree that wait.
    pending: Vec<Edit>,
    config: ImageConfig,
    env: Vec<(String, String)>,
    cmd_set: bool,
    line: usize,
}

impl Build<'_> {
    /// Builds one stage.
    pub(crate) fn stage(&mut self, planned: &PlannedStage) -> Result<(), BakeError> {
        let stage = &self.file.stages[planned.index];
        self.begin(&stage.text, stage.line)?;
        let mut state = self.from(&planned.base, stage.line)?;
        self.cached += 1;
        for (at, step) in stage.steps.iter().enumerate() {
            self.begin(&step.text, step.line)?;
            state.line = step.line;
            match &step.instruction {
                Instruction::Copy(copy) => self.copy(&mut state, copy, planned.copies.get(&at))?,
                Instruction::Run(run) => self.run(&mut state, run, &step.text)?,
                Instruction::Workdir(path) => self.workdir(&mut state, path)?,
                other => {
                    self.configure(&mut state, other)?;
                    self.cached += 1;
                }
            }
        }
        self.settle(&mut state)?;
        let Stage { tree, config, env, .. } = state;
        self.finished.insert(planned.index, Finished { tree, config, env });
        Ok(())
    }

    fn begin(&mut self, text: &str, line: usize) -> Result<(), BakeError> {
        if (self.cancelled)() {
            return Err(BakeError::Cancelled);
        }
        self.number += 1;
        (self.progress)(Progress::Step {
            service: self.request.name.clone(),
            number: self.number,
            total: self.plan.steps,
            text: shown(text),
            line,
        });
        Ok(())
    }

    fn wrong(&self, line: usize, what: impl Into<String>, hint: &str) -> BakeError {
        BakeError::Dockerfile {
            file: self.label.clone(),
            line,
            what: what.into(),
            hint: (!hint.is_empty()).then(|| hint.to_owned()),
        }
    }

    fn from(&mut self, base: &Source, line: usize) -> Result<Stage, BakeError> {
        let (tree, config, env) = match base {
            Source::Stage(index) => match self.finished.get(index) {
                Some(done) => (done.tree, done.config.clone(), done.env.clone()),
                None => return Err(BakeError::Failed(format!("stage {index} was not built"))),
            },
            Source::Scratch => {
                let tree = self.store.put_tree(&Tree::new()).map_err(BakeError::store)?;
                (tree, ImageConfig::default(), Vec::new())
            }
            Source::Context(name) => {
                let tree = self.context_tree(name)?;
                (tree, ImageConfig::default(), Vec::new())
            }
            Source::Base(name) => {
                let id = self.base(name)?;
                let config = self.store.get_config(&id.config).map_err(BakeError::store)?;
                (id.tree, config, Vec::new())
            }
        };
        let mut state = Stage { tree, pending: vec![], config, env, cmd_set: false, line };
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
        expanded.map_err(|what| self.wrong(state.line, what, ""))
    }

    fn workdir(&mut self, state: &mut Stage, path: &str) -> Result<(), BakeError> {
        let path = self.expand(state, path)?;
        let dir = state.config.working_dir.as_deref().unwrap_or("/");
        let path = paths::absolute(dir, &path);
        state.config.working_dir = Some(path.clone());
        if path == "/" {
            self.cached += 1;
            return Ok(());
        }
        let owner = state.config.user.clone();
        let op = Op::Workdir { path, owner };
        state.pending.push(Edit { number: self.number, line: state.line, op });
        Ok(())
    }

    /// Applies all changes that wait, or finds their outcome in the step cache.
    fn settle(&mut self, state: &mut Stage) -> Result<(), BakeError> {
        if state.pending.is_empty() {
            return Ok(());
        }
        let edits = std::mem::take(&mut state.pending);
        let key = Key::new("edits").digest(&state.tree).number(edits.len() as u64);
        let key = edits.iter().fold(key, |key, edit| edit.key(key)).finish();
        if let Some(known) = self.store.step_result(&key) {
            state.tree = known.tree;
            for edit in &edits {
                self.found(edit.number);
            }
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
        state.tree = self.store.keep_tree(tree).map_err(BakeError::store)?;
        self.remember(&key, state.tree)
    }

    fn found(&mut self, number: usize) {
        self.cached += 1;
        (self.progress)(Progress::Cached { service: self.request.name.clone(), number });
    }

    fn remember(&self, key: &Digest, tree: Digest) -> Result<(), BakeError> {
        let config = self.store.put_config(&ImageConfig::default()).map_err(BakeError::store)?;
        self.store.set_step_result(key, &ImageId { tree, config }).map_err(BakeError::store)
    }
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
