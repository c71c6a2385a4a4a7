//! The state of a stage while its instructions are carried out, one after the other, with
//! BuildKit's semantics.

use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_core::{Digest, ImageConfig, ImageId, Tree};
use kiln_store::Store;

use crate::bake::{BuildRequest, Progress};
use crate::context::Snapshot;
use crate::copy;
use crate::dockerfile::expand::Lex;
use crate::dockerfile::{self, CommandLine, Dockerfile, Instruction, Run, ports};
use crate::edit::{CopyOp, Edit, EditError, Editor, Op, Origin};
use crate::error::BakeError;
use crate::key::Key;
use crate::mode::Chmod;
use crate::plan::{Plan, PlannedStage, Source, lookup, set};
use crate::runner::{StepExit, StepRunner};
use crate::step::{Command, DEFAULT_PATH, Tail};
use crate::{paths, signal, users};

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

    /// The instructions that change only the configuration.
    fn configure(&self, state: &mut Stage, instruction: &Instruction) -> Result<(), BakeError> {
        let config = &state.config;
        match instruction {
            Instruction::Arg(args) => self.arg(state, args)?,
            Instruction::Env(pairs) => {
                for (name, value) in self.pairs(state, pairs)? {
                    state.config.env_set(&name, &value);
                    set(&mut state.env, &name, &value);
                }
            }
            Instruction::Label(pairs) => {
                let pairs = self.pairs(state, pairs)?;
                state.config.labels.extend(pairs);
            }
            Instruction::Cmd(command) => {
                state.config.cmd = Some(with_shell(config, command));
                state.cmd_set = true;
            }
            Instruction::Entrypoint(command) => {
                let line = with_shell(config, command);
                state.config.entrypoint = (!line.is_empty()).then_some(line);
                if !state.cmd_set {
                    state.config.cmd = None;
                }
            }
            Instruction::User(user) => {
                let user = self.expand(state, user)?;
                state.config.user = (!user.is_empty()).then_some(user);
            }
            Instruction::Expose(specs) => {
                for spec in specs {
                    let words = self.lex().words(spec, &|name| lookup(&state.env, name));
                    for word in words.map_err(|what| self.wrong(state.line, what, ""))? {
                        let found = ports::parse(&word).map_err(|what| {
                            self.wrong(state.line, what, "write `80` or `53/udp`")
                        })?;
                        state.config.exposed_ports.extend(found);
                    }
                }
            }
            Instruction::Healthcheck(check) => state.config.healthcheck = Some(check.clone()),
            Instruction::StopSignal(text) => {
                let text = self.expand(state, text)?;
                if !signal::is_known(&text) {
                    let what = format!("`{text}` is not a signal");
                    return Err(self.wrong(state.line, what, "write `SIGTERM` or a number"));
                }
                state.config.stop_signal = Some(text);
            }
            Instruction::Shell(shell) => {
                let default = shell.as_slice() == ["/bin/sh", "-c"];
                state.config.shell = (!default).then(|| shell.clone());
            }
            Instruction::Volume(volumes) => {
                for volume in volumes {
                    let path = self.expand(state, volume)?;
                    if path.is_empty() {
                        return Err(self.wrong(state.line, "VOLUME has an empty path", ""));
                    }
                    state.config.volumes.insert(path);
                }
            }
            // Those have functions of their own.
            Instruction::Copy(_) | Instruction::Run(_) | Instruction::Workdir(_) => {}
        }
        Ok(())
    }

    fn lex(&self) -> Lex {
        Lex::new(self.file.escape)
    }

    fn expand(&self, state: &Stage, word: &str) -> Result<String, BakeError> {
        let expanded = self.lex().word(word, &|name| lookup(&state.env, name));
        expanded.map_err(|what| self.wrong(state.line, what, ""))
    }

    fn pairs(
        &self,
        state: &Stage,
        pairs: &[(String, String)],
    ) -> Result<Vec<(String, String)>, BakeError> {
        let expand = |(name, value): &(String, String)| {
            Ok((self.expand(state, name)?, self.expand(state, value)?))
        };
        pairs.iter().map(expand).collect()
    }

    fn arg(&self, state: &mut Stage, args: &[(String, Option<String>)]) -> Result<(), BakeError> {
        for (name, default) in args {
            let value = match (self.given(name), default) {
                (Some(given), _) => Some(given.to_owned()),
                (None, Some(default)) => Some(self.expand(state, default)?),
                (None, None) => lookup(&self.plan.globals, name),
            };
            if let Some(value) = value {
                set(&mut state.env, name, &value);
            }
        }
        Ok(())
    }

    /// Value of a build argument that the request gives.
    fn given(&self, name: &str) -> Option<&str> {
        self.request.args.get(name).and_then(Option::as_deref)
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

    fn copy(
        &mut self,
        state: &mut Stage,
        copy: &dockerfile::Copy,
        from: Option<&Source>,
    ) -> Result<(), BakeError> {
        let chown = copy.chown.as_deref().map(|text| self.expand(state, text)).transpose()?;
        let chmod = copy.chmod.as_deref().map(|text| self.expand(state, text)).transpose()?;
        let chmod = match chmod.as_deref() {
            None | Some("") => None,
            Some(text) => {
                Some(Chmod::parse(text).map_err(|what| self.wrong(state.line, what, ""))?)
            }
        };
        let dest = self.expand(state, &copy.dest)?;
        let mut sources = Vec::new();
        for source in &copy.sources {
            let source = self.expand(state, source)?;
            sources.extend(self.select(state.line, &source, from)?);
        }
        if copy.add {
            self.refuse_archives(state.line, &sources)?;
        }
        for document in &copy.documents {
            let lex = Lex { skip_quotes: true, ..Lex::new('\\') };
            let content = match document.expand {
                false => document.content.clone(),
                true => lex
                    .word(&document.content, &|name| lookup(&state.env, name))
                    .map_err(|what| self.wrong(state.line, what, ""))?,
            };
            sources.push(inline(&document.name, content.into_bytes()));
        }
        let dir = state.config.working_dir.as_deref().unwrap_or("/");
        let into_directory =
            dest.is_empty() || dest == "." || dest.ends_with('/') || dest.ends_with("/.");
        let op = CopyOp {
            sources,
            dest: paths::absolute(dir, &dest),
            into_directory,
            chown: chown.filter(|text| !text.is_empty()),
            chmod,
        };
        let edit = Edit { number: self.number, line: state.line, op: Op::Copy(op) };
        state.pending.push(edit);
        Ok(())
    }

    /// Looks a source up where it is copied from.
    fn select(
        &self,
        line: usize,
        source: &str,
        from: Option<&Source>,
    ) -> Result<Vec<crate::edit::Source>, BakeError> {
        let snapshot = match from {
            None => self.context.as_ref(),
            Some(Source::Context(name)) => self.contexts.get(name),
            Some(_) => None,
        };
        if let Some(snapshot) = snapshot {
            let root = &snapshot.root;
            let origin = |path| Origin::Host(root.clone(), path);
            return copy::select(&snapshot.tree, source, &origin).map_err(|what| {
                let clean = paths::clean(&format!("/{source}"));
                let special = snapshot.special.contains(&clean.as_bytes()[1..]);
                let ignored = std::fs::symlink_metadata(root.join(&clean[1..])).is_ok();
                let hint = match (special, ignored) {
                    (true, _) => "sockets, pipes and devices cannot be copied".to_owned(),
                    (false, true) => "it exists, but the ignore file leaves it out".to_owned(),
                    (false, false) => format!("the context is {}", root.display()),
                };
                self.wrong(line, what, &hint)
            });
        }
        let tree = match from {
            Some(Source::Stage(index)) => self.finished.get(index).map(|done| done.tree),
            Some(Source::Base(name)) => Some(self.base(name)?.tree),
            _ => None,
        };
        let tree = match tree {
            Some(tree) => self.store.get_tree(&tree).map_err(BakeError::store)?,
            None => Arc::new(Tree::new()),
        };
        copy::select(&tree, source, &|_| Origin::Store).map_err(|what| {
            self.wrong(line, what, "`--from` looks it up in that image, from its root")
        })
    }

    /// ADD would unpack an archive; that is not done yet, and copying it would be wrong.
    fn refuse_archives(
        &self,
        line: usize,
        sources: &[crate::edit::Source],
    ) -> Result<(), BakeError> {
        for source in sources {
            let (Origin::Host(root, path), Some((_, node))) =
                (&source.origin, source.entries.first())
            else {
                continue;
            };
            if !matches!(node.kind, kiln_core::tree::Kind::File { .. }) {
                continue;
            }
            use std::io::Read as _;
            use std::os::unix::ffi::OsStrExt as _;
            let file = root.join(std::ffi::OsStr::from_bytes(path));
            let mut head = Vec::new();
            std::fs::File::open(&file)
                .and_then(|open| open.take(512).read_to_end(&mut head))
                .map_err(|error| BakeError::io("cannot read", &file, error))?;
            if copy::is_archive(&head) {
                let name = String::from_utf8_lossy(path).into_owned();
                let what = format!("ADD of the archive `{name}` is not supported yet");
                let hint = "COPY it and unpack it in a RUN; to keep it packed, COPY it";
                return Err(self.wrong(line, what, hint));
            }
        }
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

    fn run(&mut self, state: &mut Stage, run: &Run, text: &str) -> Result<(), BakeError> {
        self.settle(state)?;
        let command = self.command(state, run)?;
        let key = command.key(&state.tree);
        if let Some(known) = self.store.step_result(&key) {
            state.tree = known.tree;
            self.found(self.number);
            return Ok(());
        }
        let mut tail = Tail::default();
        let (service, number) = (self.request.name.clone(), self.number);
        let progress = self.progress;
        let mut output = |bytes: &[u8]| {
            tail.push(bytes);
            progress(Progress::Output { service: service.clone(), number, bytes: bytes.to_vec() });
        };
        let ended = command.run(self.store, self.runner, &state.tree, &mut output);
        if (self.cancelled)() {
            return Err(BakeError::Cancelled);
        }
        match ended? {
            Ok(tree) => {
                state.tree = tree;
                self.remember(&key, tree)
            }
            Err(exit) => Err(BakeError::Step {
                number: self.number,
                total: self.plan.steps,
                text: shown(text),
                file: self.label.clone(),
                line: state.line,
                how: how(exit),
                output: tail.finish(),
            }),
        }
    }

    fn command(&self, state: &Stage, run: &Run) -> Result<Command, BakeError> {
        let (line, script) = self.shell_line(state, run)?;
        let config = &state.config;
        let argv = match line {
            Some(line) => line,
            None => with_shell(config, &run.command),
        };
        let user = config.user.clone().unwrap_or_else(|| "0:0".into());
        let mut env = state.env.clone();
        let tree = self.store.get_tree(&state.tree).map_err(BakeError::store)?;
        let fixed = [
            ("HOME", users::home(self.store, &tree, &user)),
            ("SOURCE_DATE_EPOCH", crate::EPOCH.to_string()),
            ("TZ", "UTC".into()),
            ("LC_ALL", "C.UTF-8".into()),
        ];
        for (name, value) in fixed {
            if lookup(&env, name).is_none() {
                env.push((name.into(), value));
            }
        }
        let mut unkeyed = Vec::new();
        if run.network {
            for (name, value) in &self.request.args {
                if let (true, Some(value), None) = (is_proxy(name), value, lookup(&env, name)) {
                    unkeyed.push(format!("{name}={value}"));
                }
            }
        }
        Ok(Command {
            argv,
            env: env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
            unkeyed,
            cwd: config.working_dir.clone().unwrap_or_else(|| "/".into()),
            user,
            network: run.network,
            script,
        })
    }

    /// The command line of a RUN with here-documents: a single one is the script itself, run by
    /// the shell or, with `#!`, on its own; else the shell gets the text as it stands.
    #[allow(clippy::type_complexity, reason = "used once, right above")]
    fn shell_line(
        &self,
        state: &Stage,
        run: &Run,
    ) -> Result<(Option<Vec<String>>, Option<(String, Vec<u8>)>), BakeError> {
        let (CommandLine::Shell(text), Some(first)) = (&run.command, run.heredocs.first()) else {
            return Ok((None, None));
        };
        let config = &state.config;
        let alone =
            dockerfile::is_heredoc(text).map_err(|what| self.wrong(state.line, what, ""))?;
        if !alone {
            let mut whole = text.clone();
            for heredoc in &run.heredocs {
                whole.push('\n');
                whole.push_str(&heredoc.content);
                whole.push_str(&heredoc.name);
            }
            return Ok((Some(with_shell(config, &CommandLine::Shell(whole))), None));
        }
        let script = first.text();
        if script.starts_with("#!") {
            let path = Command::script_path(&first.name);
            return Ok((Some(vec![path]), Some((first.name.clone(), script.into_bytes()))));
        }
        Ok((Some(with_shell(config, &CommandLine::Shell(script))), None))
    }
}

fn inline(name: &str, content: Vec<u8>) -> crate::edit::Source {
    let kind =
        kiln_core::tree::Kind::File { size: content.len() as u64, digest: Digest::of(&content) };
    crate::edit::Source {
        name: name.as_bytes().to_vec(),
        entries: vec![(Vec::new(), kiln_core::tree::Node::new(kind, 0o644))],
        origin: Origin::Inline(content),
    }
}

/// The command line: as it is, or by the SHELL in force.
fn with_shell(config: &ImageConfig, command: &CommandLine) -> Vec<String> {
    match command {
        CommandLine::Exec(args) => args.clone(),
        CommandLine::Shell(text) => {
            let default = || vec!["/bin/sh".into(), "-c".into()];
            let mut line = config.shell.clone().unwrap_or_else(default);
            line.push(text.clone());
            line
        }
    }
}

fn is_proxy(name: &str) -> bool {
    ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"]
        .iter()
        .any(|known| known.eq_ignore_ascii_case(name))
}

fn how(exit: StepExit) -> String {
    match exit.signal {
        Some(signal) => format!("was killed by signal {signal}"),
        None => format!("failed with exit status {}", exit.code),
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
