//! What a target needs: its stages, and for each what it is built from and copies from. Nothing
//! else of the Dockerfile is looked at any further.

use std::collections::{BTreeMap, BTreeSet};

use crate::dockerfile::expand::Lex;
use crate::dockerfile::{Dockerfile, Instruction, SyntaxError};
use crate::error::BakeError;

/// Where a FROM or a `--from` leads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// An earlier stage, by index.
    Stage(usize),
    /// The empty image.
    Scratch,
    /// A named context.
    Context(String),
    /// A base, by name.
    Base(String),
}

/// The part of a Dockerfile that a target needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Values of ARGs before the first FROM and of the predefined ones.
    pub globals: Vec<(String, String)>,
    /// Stages to build, in order; the last one is the target.
    pub stages: Vec<PlannedStage>,
    /// Whether a COPY or ADD reads the build context.
    pub needs_context: bool,
    /// Number of steps, each FROM counted.
    pub steps: usize,
}

/// A stage to build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedStage {
    /// Its place in the Dockerfile.
    pub index: usize,
    /// What it is built from.
    pub base: Source,
    /// Where its `COPY --from`s lead, by index of the step.
    pub copies: BTreeMap<usize, Source>,
}

impl Plan {
    /// All bases and named contexts that are needed, with the line that needs each first.
    pub fn outside(&self, file: &Dockerfile) -> BTreeMap<Source, usize> {
        let mut found = BTreeMap::new();
        for planned in &self.stages {
            let stage = &file.stages[planned.index];
            let copies =
                planned.copies.iter().map(|(step, source)| (source, stage.steps[*step].line));
            for (source, line) in [(&planned.base, stage.line)].into_iter().chain(copies) {
                if matches!(source, Source::Base(_) | Source::Context(_)) {
                    found.entry(source.clone()).or_insert(line);
                }
            }
        }
        found
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
    contexts: &BTreeSet<String>,
) -> Result<Plan, BakeError> {
    let at = |error: SyntaxError| BakeError::Dockerfile {
        file: label.to_owned(),
        line: error.line,
        what: error.what,
        hint: error.hint,
    };
    let last = match target {
        None => file.stages.len() - 1,
        Some(name) => find_target(file, label, name)?,
    };
    let globals = globals(file, args, &file.stages[last]).map_err(at)?;
    let planner = Planner { file, contexts, globals: &globals };
    let mut needed = BTreeMap::new();
    let mut open = vec![last];
    while let Some(index) = open.pop() {
        if needed.contains_key(&index) {
            continue;
        }
        let stage = planner.stage(index).map_err(at)?;
        for source in [&stage.base].into_iter().chain(stage.copies.values()) {
            if let Source::Stage(other) = source {
                open.push(*other);
            }
        }
        needed.insert(index, stage);
    }
    let stages: Vec<PlannedStage> = needed.into_values().collect();
    let steps = stages.iter().map(|stage| 1 + file.stages[stage.index].steps.len()).sum();
    let needs_context = stages.iter().any(|stage| {
        file.stages[stage.index].steps.iter().any(|step| match &step.instruction {
            Instruction::Copy(copy) => copy.from.is_none() && !copy.sources.is_empty(),
            _ => false,
        })
    });
    Ok(Plan { globals, stages, needs_context, steps })
}

fn find_target(file: &Dockerfile, label: &str, name: &str) -> Result<usize, BakeError> {
    let lower = name.to_lowercase();
    let named = file.stages.iter().position(|stage| stage.name.as_ref() == Some(&lower));
    let by_number = || lower.parse().ok().filter(|index| *index < file.stages.len());
    named.or_else(by_number).ok_or_else(|| {
        let names: Vec<&str> = file.stages.iter().filter_map(|s| s.name.as_deref()).collect();
        let hint = if names.is_empty() {
            "it names none: write `FROM … AS name`".to_owned()
        } else {
            format!("it has {}", names.join(", "))
        };
        BakeError::usage(format!("{label} has no stage `{name}`, which is the target"), hint)
    })
}

fn globals(
    file: &Dockerfile,
    args: &BTreeMap<String, Option<String>>,
    target: &crate::dockerfile::Stage,
) -> Result<Vec<(String, String)>, SyntaxError> {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    };
    let platform = format!("linux/{arch}");
    let stage = target.name.as_deref().unwrap_or("default");
    let mut globals: Vec<(String, String)> = Vec::new();
    for (name, value) in [
        ("BUILDPLATFORM", platform.as_str()),
        ("BUILDOS", "linux"),
        ("BUILDOSVERSION", ""),
        ("BUILDARCH", arch),
        ("BUILDVARIANT", ""),
        ("TARGETPLATFORM", platform.as_str()),
        ("TARGETOS", "linux"),
        ("TARGETOSVERSION", ""),
        ("TARGETARCH", arch),
        ("TARGETVARIANT", ""),
        ("TARGETSTAGE", stage),
    ] {
        let given = args.get(name).and_then(Option::as_deref);
        globals.push((name.into(), given.unwrap_or(value).into()));
    }
    let lex = Lex::new(file.escape);
    for line in &file.args {
        for (name, default) in &line.args {
            let value = match (args.get(name), default) {
                (Some(Some(given)), _) => Some(given.clone()),
                (_, Some(default)) => {
                    let expanded = lex.word(default, &|name| lookup(&globals, name));
                    Some(expanded.map_err(|what| SyntaxError {
                        line: line.line,
                        what,
                        hint: None,
                    })?)
                }
                _ => None,
            };
            if let Some(value) = value {
                set(&mut globals, name, &value);
            }
        }
    }
    Ok(globals)
}

/// Value of `name` in a list of variables.
pub fn lookup(variables: &[(String, String)], name: &str) -> Option<String> {
    variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
}

/// Sets `name`, keeping its place when it is there already.
pub fn set(variables: &mut Vec<(String, String)>, name: &str, value: &str) {
    match variables.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => value.clone_into(old),
        None => variables.push((name.to_owned(), value.to_owned())),
    }
}

struct Planner<'a> {
    file: &'a Dockerfile,
    contexts: &'a BTreeSet<String>,
    globals: &'a [(String, String)],
}

impl Planner<'_> {
    fn stage(&self, index: usize) -> Result<PlannedStage, SyntaxError> {
        let stage = &self.file.stages[index];
        let error = |line: usize, what: String, hint: &str| SyntaxError {
            line,
            what,
            hint: (!hint.is_empty()).then(|| hint.to_owned()),
        };
        let lex = Lex::new(self.file.escape);
        let base = lex
            .word(&stage.base, &|name| lookup(self.globals, name))
            .map_err(|what| error(stage.line, what, ""))?;
        if base.is_empty() {
            let what = format!("`FROM {}` names nothing", stage.base);
            let hint = "give the ARG before FROM a default, or a value in `build.args`";
            return Err(error(stage.line, what, hint));
        }
        let base = match self.named(&base, index) {
            Some((_, source)) => source,
            None if base == "scratch" => Source::Scratch,
            None => Source::Base(base),
        };
        let mut copies = BTreeMap::new();
        for (at, step) in stage.steps.iter().enumerate() {
            let Instruction::Copy(copy) = &step.instruction else { continue };
            let Some(from) = &copy.from else { continue };
            let fail = |what: String, hint: &str| error(step.line, what, hint);
            if lex.word(from, &|_| None).ok().as_ref() != Some(from) {
                let what = format!("`--from={from}`: variables are not expanded there");
                return Err(fail(what, "name a stage that says FROM with the variable"));
            }
            let found = match from.parse::<usize>() {
                Ok(number) if number >= self.file.stages.len() => {
                    return Err(fail(format!("`--from={from}`: there is no such stage"), ""));
                }
                Ok(number) => (number, Source::Stage(number)),
                Err(_) => match self.named(from, self.file.stages.len()) {
                    Some(found) => found,
                    None if from == "scratch" => (0, Source::Scratch),
                    None => (0, Source::Base(from.clone())),
                },
            };
            if matches!(found.1, Source::Stage(number) if number >= index) {
                let what = format!("`--from={from}` names a stage that is not built yet");
                return Err(fail(what, "define that stage before this one"));
            }
            copies.insert(at, found.1);
        }
        Ok(PlannedStage { index, base, copies })
    }

    /// A named context, or a stage before `end`.
    fn named(&self, name: &str, end: usize) -> Option<(usize, Source)> {
        if self.contexts.contains(name) {
            return Some((0, Source::Context(name.to_owned())));
        }
        let lower = name.to_lowercase();
        let stages = &self.file.stages[..end];
        let index = stages.iter().rposition(|stage| stage.name.as_ref() == Some(&lower))?;
        Some((index, Source::Stage(index)))
    }
}
