//! What a target needs: its stages, and for each what it is built from and takes from elsewhere.
//! Of other stages only the FROM and the `--from`s are looked at.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use crate::dockerfile::expand::Lex;
use crate::dockerfile::{self, Dockerfile, Instruction, Step, SyntaxError, suggest};
use crate::error::BakeError;
use crate::globals::Globals;
pub use crate::globals::{lookup, set};
use crate::platform::Platform;

/// Where a FROM or a `--from` leads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// An earlier stage, by index.
    Stage(usize),
    /// The empty image.
    Scratch,
    /// A named context that is a directory.
    Context(String),
    /// A base, or a named context that is an image, by name.
    Base(String),
}

/// What is there beside the Dockerfile.
#[derive(Debug, Clone, Default)]
pub struct Outside {
    /// Named contexts that are directories.
    pub contexts: BTreeSet<String>,
    /// Named contexts that are images: a [`Source::Base`] has their name.
    pub images: BTreeSet<String>,
    /// ONBUILD triggers of bases that are known already and have some.
    pub triggers: BTreeMap<String, Vec<String>>,
}

/// The part of a Dockerfile that a target needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What is known before the first FROM.
    pub globals: Globals,
    /// Stages to build, in order; the last one is the target.
    pub stages: Vec<PlannedStage>,
    /// Whether a step reads the build context.
    pub needs_context: bool,
    /// Number of steps, each FROM counted.
    pub steps: usize,
    /// Build arguments that nothing declares.
    pub unused: Vec<String>,
}

/// A stage to build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedStage {
    /// Its place in the Dockerfile.
    pub index: usize,
    /// What it is built from.
    pub base: Source,
    /// What is done: the triggers of what it is built from, then its own. None if a named context
    /// stands in for it.
    pub steps: Vec<PlannedStep>,
}

/// A step and what it takes from elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedStep {
    /// The step; a trigger has the line of the FROM.
    pub step: Step,
    /// Where its `from`s lead, in the order of [`Instruction::froms`].
    pub sources: Vec<Source>,
}

impl PlannedStage {
    /// Everything that it takes from elsewhere, with the line that asks for it.
    fn sources<'a>(&'a self, file: &'a Dockerfile) -> impl Iterator<Item = (&'a Source, usize)> {
        let each = |step: &'a PlannedStep| step.sources.iter().map(|from| (from, step.step.line));
        let base = (&self.base, file.stages[self.index].line);
        [base].into_iter().chain(self.steps.iter().flat_map(each))
    }
}

impl Plan {
    /// For each stage of the plan the places in it of the stages that it needs.
    pub fn needs(&self) -> Vec<Vec<usize>> {
        let place = |source: &Source| match source {
            Source::Stage(index) => {
                self.stages.binary_search_by_key(index, |stage| stage.index).ok()
            }
            _ => None,
        };
        let needs = |stage: &PlannedStage| {
            let steps = stage.steps.iter().flat_map(|step| &step.sources);
            let mut needs: Vec<usize> =
                [&stage.base].into_iter().chain(steps).filter_map(place).collect();
            needs.sort_unstable();
            needs.dedup();
            needs
        };
        self.stages.iter().map(needs).collect()
    }

    /// All bases and named contexts that are needed, with the line that needs each first.
    pub fn outside(&self, file: &Dockerfile) -> BTreeMap<Source, usize> {
        let mut found = BTreeMap::new();
        for (source, line) in self.stages.iter().flat_map(|stage| stage.sources(file)) {
            if matches!(source, Source::Base(_) | Source::Context(_)) {
                found.entry(source.clone()).or_insert(line);
            }
        }
        found
    }

    /// Bases that stages are built from: their triggers count.
    pub fn bases<'a>(&'a self) -> BTreeSet<&'a str> {
        let base = |stage: &'a PlannedStage| match &stage.base {
            Source::Base(name) => Some(name.as_str()),
            _ => None,
        };
        self.stages.iter().filter_map(base).collect()
    }
}

/// Plans a build.
///
/// # Errors
/// The target is not there, or a FROM or `--from` leads nowhere it could.
pub fn plan(
    file: &Dockerfile,
    label: &str,
    args: &BTreeMap<String, Option<String>>,
    target: Option<&str>,
    outside: &Outside,
) -> Result<Plan, BakeError> {
    let at = |error: SyntaxError| BakeError::Dockerfile {
        file: label.to_owned(),
        line: error.line,
        what: error.what,
        hint: error.hint,
    };
    let (last, target) = match target {
        None => (file.stages.len() - 1, file.stages.last().and_then(|it| it.name.as_deref())),
        Some(name) => (find_target(file, label, name)?, Some(name)),
    };
    let globals = Globals::read(file, args, target).map_err(at)?;
    let planner = Planner::new(file, outside, &globals).map_err(at)?;
    planner.refuse_circles().map_err(at)?;
    let mut needed = BTreeMap::new();
    let mut open = vec![last];
    while let Some(index) = open.pop() {
        if needed.contains_key(&index) {
            continue;
        }
        let stage = planner.stage(index).map_err(at)?;
        open.extend(stage.sources(file).filter_map(|(source, _)| match source {
            Source::Stage(other) => Some(*other),
            _ => None,
        }));
        needed.insert(index, stage);
    }
    let stages: Vec<PlannedStage> = needed.into_values().collect();
    let steps = stages.iter().map(|stage| 1 + stage.steps.len()).sum();
    let instructions =
        || stages.iter().flat_map(|stage| &stage.steps).map(|it| &it.step.instruction);
    let needs_context = instructions().any(Instruction::reads_context);
    let unused = unused(file, &globals, instructions());
    Ok(Plan { globals, needs_context, steps, unused, stages })
}

/// Build arguments that no ARG declares and that mean nothing by themselves.
fn unused<'a>(
    file: &'a Dockerfile,
    globals: &Globals,
    steps: impl Iterator<Item = &'a Instruction>,
) -> Vec<String> {
    let mut declared: BTreeSet<&str> =
        globals.values.iter().map(|(name, _)| name.as_str()).collect();
    let args = steps.filter_map(|step| match step {
        Instruction::Arg(args) => Some(args),
        _ => None,
    });
    let all = file.args.iter().map(|line| &line.args).chain(args).flatten();
    declared.extend(all.map(|(name, _)| name.as_str()));
    let lone = |name: &&String| {
        let upper = name.to_ascii_uppercase();
        !declared.contains(name.as_str())
            && !upper.starts_with("BUILDKIT_")
            && ![crate::archive::UNPACK_LIMIT, crate::remote::FETCH_LIMIT].contains(&upper.as_str())
            && !upper.ends_with("_PROXY")
            && upper != crate::globals::EPOCH_ARG
    };
    globals.args.keys().filter(lone).cloned().collect()
}

fn find_target(file: &Dockerfile, label: &str, name: &str) -> Result<usize, BakeError> {
    let lower = name.to_lowercase();
    let named = file.stages.iter().rposition(|stage| stage.name.as_ref() == Some(&lower));
    let by_number = || lower.parse().ok().filter(|index| *index < file.stages.len());
    named.or_else(by_number).ok_or_else(|| {
        let names: Vec<&str> = file.stages.iter().filter_map(|s| s.name.as_deref()).collect();
        let hint = if names.is_empty() {
            format!("{label} names no stage: write `FROM … AS name`")
        } else {
            format!("{label} has {}", names.join(", "))
        };
        let near = suggest::near(name, names);
        let near = near.map(|near| format!(" (did you mean {near}?)")).unwrap_or_default();
        BakeError::usage(format!("target stage \"{name}\" could not be found{near}"), hint)
    })
}

/// The name under which an image of the default registry is known to people: `debian` for
/// `docker.io/library/debian:latest`.
pub fn familiar(name: &str) -> &str {
    let name = name.strip_suffix(":latest").unwrap_or(name);
    let short = ["docker.io/", "index.docker.io/"].iter().find_map(|host| name.strip_prefix(host));
    let Some(short) = short else { return name };
    short.strip_prefix("library/").unwrap_or(short)
}

fn error(line: usize, what: impl Into<String>, hint: &str) -> SyntaxError {
    SyntaxError { line, what: what.into(), hint: (!hint.is_empty()).then(|| hint.to_owned()) }
}

/// The platform of a FROM, or what is wrong with it and what to do. A variable that nobody declared
/// may be another that is near.
fn platform(lex: Lex, globals: &Globals, text: &str) -> Result<Platform, (String, &'static str)> {
    let unknown = RefCell::new(Vec::new());
    let value = |name: &str| {
        let value = lookup(&globals.values, name);
        if value.is_none() {
            unknown.borrow_mut().push(name.to_owned());
        }
        value
    };
    let expanded = lex.word(text, &value).map_err(|what| (what, ""))?;
    let meant = |what: String| {
        let known = || globals.values.iter().map(|(name, _)| name.as_str());
        let near = unknown.borrow().iter().find_map(|name| suggest::near(name, known()));
        what + &near.map(|near| format!(" (did you mean {near}?)")).unwrap_or_default()
    };
    if expanded.is_empty() {
        let what = format!("empty platform value from expression {text}");
        return Err((meant(what), "see the ARGs before the first FROM"));
    }
    Platform::parse(&expanded)
        .map_err(|what| (meant(what), "$BUILDPLATFORM is that of this machine"))
}

/// A FROM, expanded.
struct Head {
    base: String,
    platform: Option<Platform>,
}

struct Planner<'a> {
    file: &'a Dockerfile,
    outside: &'a Outside,
    heads: Vec<Head>,
    /// Stages by name, ascending: a name may be taken again.
    names: BTreeMap<&'a str, Vec<usize>>,
}

impl<'a> Planner<'a> {
    fn new(
        file: &'a Dockerfile,
        outside: &'a Outside,
        globals: &Globals,
    ) -> Result<Self, SyntaxError> {
        let lex = Lex::new(file.escape);
        let expand = |line: usize, text: &str| {
            lex.word(text, &|name| lookup(&globals.values, name))
                .map_err(|what| error(line, what, ""))
        };
        let mut names: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        let mut heads = Vec::with_capacity(file.stages.len());
        for (index, stage) in file.stages.iter().enumerate() {
            let base = expand(stage.line, &stage.base)?;
            if base.is_empty() {
                let what = format!("base name ({}) should not be blank", stage.base);
                let hint = "give the ARG before FROM a default, or a value in `build.args`";
                return Err(error(stage.line, what, hint));
            }
            let platform = stage.platform.as_ref().map(|text| {
                platform(lex, globals, text).map_err(|(what, hint)| error(stage.line, what, hint))
            });
            heads.push(Head { base, platform: platform.transpose()? });
            if let Some(name) = &stage.name {
                names.entry(name).or_default().push(index);
            }
        }
        Ok(Self { file, outside, heads, names })
    }

    fn stage(&self, index: usize) -> Result<PlannedStage, SyntaxError> {
        let stage = &self.file.stages[index];
        if let Some(source) = stage.name.as_deref().and_then(|name| self.context(name)) {
            return Ok(PlannedStage { index, base: source, steps: Vec::new() });
        }
        let base = self.base(index)?;
        let mut steps = Vec::new();
        for text in self.triggers(&base) {
            let step = dockerfile::parse_trigger(text, stage.line)?;
            steps.push(self.step(index, step)?);
        }
        for step in &stage.steps {
            steps.push(self.step(index, step.clone())?);
        }
        Ok(PlannedStage { index, base, steps })
    }

    fn base(&self, index: usize) -> Result<Source, SyntaxError> {
        let Head { base, platform } = &self.heads[index];
        let source = match self.named(base, index) {
            Some(source) => source,
            None if base == "scratch" => Source::Scratch,
            None => Source::Base(base.clone()),
        };
        if let (Source::Base(name), Some(platform)) = (&source, platform)
            && !platform.fits(&Platform::host())
        {
            let what = format!("`{name}` for {platform}: bases are for {} only", Platform::host());
            let hint =
                "bake on a machine of that platform; `--platform=$BUILDPLATFORM` is this one";
            return Err(error(self.file.stages[index].line, what, hint));
        }
        Ok(source)
    }

    /// The ONBUILD triggers that a FROM of `base` runs.
    fn triggers(&self, base: &Source) -> Vec<&'a str> {
        match base {
            Source::Base(name) => {
                let known = self.outside.triggers.get(name);
                known.map(|all| all.iter().map(String::as_str).collect()).unwrap_or_default()
            }
            Source::Stage(other) => {
                let steps = self.file.stages[*other].steps.iter();
                steps
                    .filter_map(|step| match &step.instruction {
                        Instruction::OnBuild(text) => Some(text.as_str()),
                        _ => None,
                    })
                    .collect()
            }
            Source::Context(_) | Source::Scratch => Vec::new(),
        }
    }

    fn step(&self, index: usize, step: Step) -> Result<PlannedStep, SyntaxError> {
        let by_number = matches!(step.instruction, Instruction::Copy(_));
        let mut sources = Vec::new();
        for from in step.instruction.froms() {
            let source = self.from(from, by_number, step.line)?;
            if matches!(source, Source::Stage(other) if other >= index) {
                let what = match step.instruction {
                    Instruction::Run(_) => format!(
                        "cannot mount from stage \"{from}\", stage needs to be defined before \
                         current command"
                    ),
                    _ => format!(
                        "cannot copy from stage \"{from}\", it needs to be defined before current \
                         stage \"{}\"",
                        self.name_of(index)
                    ),
                };
                return Err(error(step.line, what, "move that stage up"));
            }
            sources.push(source);
        }
        Ok(PlannedStep { step, sources })
    }

    /// Where a `from` of a step leads; `by_number`: it may be a stage's place.
    fn from(&self, from: &str, by_number: bool, line: usize) -> Result<Source, SyntaxError> {
        let plain = Lex::new(self.file.escape).word(from, &|_| None);
        if plain.as_deref() != Ok(from) {
            let what = "variable expansion is not supported for --from, define a new stage with \
                        FROM using ARG from global scope as a workaround";
            return Err(error(line, format!("`from={from}`: {what}"), ""));
        }
        if let (true, Ok(number)) = (by_number, from.parse::<i64>()) {
            let index = usize::try_from(number).ok().filter(|it| *it < self.file.stages.len());
            return index.map(Source::Stage).ok_or_else(|| {
                let what = format!("invalid stage index {number}");
                let hint = format!("the file has {} stages, from 0", self.file.stages.len());
                error(line, what, &hint)
            });
        }
        Ok(match self.named(from, self.file.stages.len()) {
            Some(found) => found,
            None if from == "scratch" => Source::Scratch,
            None => Source::Base(from.to_owned()),
        })
    }

    /// A named context, or the last stage of that name before `end`.
    fn named(&self, name: &str, end: usize) -> Option<Source> {
        if let Some(context) = self.context(name) {
            return Some(context);
        }
        let all = self.names.get(name.to_lowercase().as_str())?;
        let before = all.partition_point(|index| *index < end);
        Some(Source::Stage(*all[..before].last()?))
    }

    fn context(&self, name: &str) -> Option<Source> {
        // Those two are what they are.
        if name.eq_ignore_ascii_case("scratch") || name.eq_ignore_ascii_case("context") {
            return None;
        }
        [name, familiar(name)].into_iter().find_map(|name| {
            if self.outside.contexts.contains(name) {
                return Some(Source::Context(name.to_owned()));
            }
            self.outside.images.contains(name).then(|| Source::Base(name.to_owned()))
        })
    }

    fn name_of(&self, index: usize) -> String {
        self.file.stages[index].name.clone().unwrap_or_else(|| format!("stage-{index}"))
    }

    /// Refuses stages that take from one another in a circle, wherever in the file they are.
    fn refuse_circles(&self) -> Result<(), SyntaxError> {
        let mut takes: Vec<Vec<(usize, usize)>> = Vec::with_capacity(self.file.stages.len());
        for stage in &self.file.stages {
            let mut from = Vec::new();
            for step in &stage.steps {
                let by_number = matches!(step.instruction, Instruction::Copy(_));
                for text in step.instruction.froms() {
                    if let Source::Stage(other) = self.from(text, by_number, step.line)? {
                        from.push((other, step.line));
                    }
                }
            }
            takes.push(from);
        }
        let mut done = vec![false; takes.len()];
        let mut open = vec![false; takes.len()];
        for root in 0..takes.len() {
            // Stages on the way from the root, each with how many of its sources were followed.
            let mut way = vec![(root, 0)];
            while let Some((index, next)) = way.last_mut() {
                let index = *index;
                open[index] = true;
                let source = if done[index] { None } else { takes[index].get(*next) };
                *next += 1;
                match source {
                    Some((other, line)) if open[*other] => {
                        let name = self.name_of(root);
                        let what = format!("circular dependency detected on stage: {name}");
                        return Err(error(*line, what, "stages cannot copy from one another"));
                    }
                    Some((other, _)) => way.push((*other, 0)),
                    None => {
                        (open[index], done[index]) = (false, true);
                        way.pop();
                    }
                }
            }
        }
        Ok(())
    }
}
