//! The Dockerfile: text → stages and instructions with their lines. Semantics follow BuildKit's
//! frontend; what Kiln does not carry out is refused here, with its line.
//!
//! | module | noun |
//! |---|---|
//! | [`lines`] | logical lines: directives, continuations, comments, here-documents |
//! | [`words`] | flags, JSON arrays, `NAME=value` |
//! | [`instruction`] | one logical line → one [`Instruction`] |
//! | [`run`], [`mount`], [`copy`] | what RUN, its `--mount`, COPY and ADD say |
//! | [`expand`], [`pattern`] | variables, quotes, escapes |
//! | [`duration`], [`ports`] | the little languages of HEALTHCHECK and EXPOSE |
//! | `suggest` | what somebody may have meant |

mod copy;
pub mod duration;
pub mod expand;
mod instruction;
mod lines;
pub mod mount;
pub mod pattern;
pub mod ports;
mod run;
pub(crate) mod suggest;
mod words;

use kiln_core::image::Healthcheck;

pub use self::copy::{Copy, Document};
pub use self::mount::MountFlag;
pub use self::run::Run;

/// Bytes that a Dockerfile may have.
pub(crate) const MAX_TEXT: usize = 4 << 20;

/// So many stages are beyond what anybody writes.
const MAX_STAGES: usize = 1000;

/// A parsed Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dockerfile {
    /// The escape character: `\` or a backquote.
    pub escape: char,
    /// ARGs before the first FROM.
    pub args: Vec<GlobalArg>,
    /// The stages; never empty.
    pub stages: Vec<Stage>,
}

/// An ARG before the first FROM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlobalArg {
    /// One-based line.
    pub line: usize,
    /// Names with their defaults.
    pub args: Vec<(String, Option<String>)>,
}

/// One FROM and what follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// One-based line of the FROM.
    pub line: usize,
    /// The instruction as written.
    pub text: String,
    /// What it is built from, not expanded.
    pub base: String,
    /// `--platform`, not expanded.
    pub platform: Option<String>,
    /// Its name, in lower case.
    pub name: Option<String>,
    /// What follows.
    pub steps: Vec<Step>,
}

/// An instruction in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// One-based line at which it begins.
    pub line: usize,
    /// The instruction as written, continuations joined.
    pub text: String,
    /// What it says.
    pub instruction: Instruction,
}

/// An instruction; nothing in it is expanded yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instruction {
    /// ARG: names with their defaults.
    Arg(Vec<(String, Option<String>)>),
    /// ENV.
    Env(Vec<(String, String)>),
    /// LABEL.
    Label(Vec<(String, String)>),
    /// COPY and ADD.
    Copy(Copy),
    /// RUN.
    Run(Run),
    /// CMD.
    Cmd(CommandLine),
    /// ENTRYPOINT.
    Entrypoint(CommandLine),
    /// WORKDIR.
    Workdir(String),
    /// USER.
    User(String),
    /// EXPOSE.
    Expose(Vec<String>),
    /// HEALTHCHECK.
    Healthcheck(Healthcheck),
    /// STOPSIGNAL.
    StopSignal(String),
    /// SHELL.
    Shell(Vec<String>),
    /// VOLUME.
    Volume(Vec<String>),
    /// ONBUILD: the instruction that is to be carried out, as text.
    OnBuild(String),
    /// MAINTAINER.
    Maintainer(String),
}

impl Instruction {
    /// What it takes from elsewhere, in order: the `--from` of a COPY, the `from` of each mount of
    /// a RUN that has one.
    pub fn froms(&self) -> Vec<&str> {
        match self {
            Self::Copy(copy) => {
                copy.from.as_deref().filter(|it| !it.is_empty()).into_iter().collect()
            }
            Self::Run(run) => run.mounts.iter().filter_map(|it| it.from.as_deref()).collect(),
            _ => Vec::new(),
        }
    }

    /// Whether it may read the build context.
    pub fn reads_context(&self) -> bool {
        match self {
            Self::Copy(copy) => self.froms().is_empty() && !copy.sources.is_empty(),
            Self::Run(run) => run.mounts.iter().any(MountFlag::may_read_context),
            _ => false,
        }
    }
}

/// The two forms of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandLine {
    /// The JSON form.
    Exec(Vec<String>),
    /// The shell form.
    Shell(String),
}

/// A here-document as it stands in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    /// Its delimiter.
    pub name: String,
    /// The delimiter is not quoted.
    pub expand: bool,
    /// `<<-`: leading tabs are removed.
    pub chomp: bool,
    /// Its lines.
    pub content: String,
}

impl Heredoc {
    /// The content, leading tabs removed where `<<-` asks for it.
    pub fn text(&self) -> String {
        if !self.chomp {
            return self.content.clone();
        }
        self.content.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
    }
}

/// Why a Dockerfile is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct SyntaxError {
    /// One-based line.
    pub line: usize,
    /// What was asked and what was found.
    pub what: String,
    /// What to do.
    pub hint: Option<String>,
}

/// A mistake without its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mistake {
    pub(crate) what: String,
    pub(crate) hint: Option<String>,
}

impl Mistake {
    fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), hint: None }
    }

    fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    fn at(self, line: usize) -> SyntaxError {
        SyntaxError { line, what: self.what, hint: self.hint }
    }
}

impl From<String> for Mistake {
    fn from(what: String) -> Self {
        Self::new(what)
    }
}

/// Parses a Dockerfile.
///
/// # Errors
/// The first thing that is wrong or not supported.
pub fn parse(text: &str) -> Result<Dockerfile, SyntaxError> {
    if text.len() > MAX_TEXT {
        let what = format!("the file has more than {} MiB", MAX_TEXT >> 20);
        return Err(Mistake::new(what).hint("put data into files of the context").at(1));
    }
    let lines::Lines { escape, lines, last } = lines::read(text)?;
    let mut file = Dockerfile { escape, args: Vec::new(), stages: Vec::new() };
    for line in lines {
        let at = line.line;
        let parsed = instruction::parse(&line, escape).map_err(|mistake| mistake.at(at))?;
        match (parsed, file.stages.last_mut()) {
            (instruction::Parsed::From(from), _) => {
                let instruction::From { base, platform, name } = from;
                let (text, steps) = (line.text, Vec::new());
                file.stages.push(Stage { line: at, text, base, platform, name, steps });
                if file.stages.len() > MAX_STAGES {
                    let what = format!("the file has more than {MAX_STAGES} stages");
                    return Err(Mistake::new(what).hint("split it").at(at));
                }
            }
            (instruction::Parsed::Step(instruction), Some(stage)) => {
                stage.steps.push(Step { line: at, text: line.text, instruction });
            }
            (instruction::Parsed::Step(Instruction::Arg(args)), None) => {
                file.args.push(GlobalArg { line: at, args });
            }
            (instruction::Parsed::Step(_), None) => {
                let what = format!(
                    "no build stage in current context: `{}` stands before the first FROM",
                    line.text.chars().take(80).collect::<String>()
                );
                return Err(Mistake::new(what).hint("only ARG may stand before FROM").at(at));
            }
        }
    }
    if file.stages.is_empty() {
        let what = match file.args.is_empty() {
            true => "file with no instructions",
            false => "dockerfile contains no stages to build",
        };
        return Err(Mistake::new(what)
            .hint("begin with `FROM name`, where name is a base of x-kiln.bases or `scratch`")
            .at(last.max(1)));
    }
    Ok(file)
}

/// Parses the text of an ONBUILD trigger; its line is that of the FROM that runs it.
///
/// # Errors
/// It is not one instruction that may stand there.
pub fn parse_trigger(text: &str, line: usize) -> Result<Step, SyntaxError> {
    let wrong = |what: &str, hint: Option<String>| {
        let what = format!("ONBUILD trigger `{}` of what this is built from: {what}", text.trim());
        SyntaxError { line, what, hint }
    };
    let lines::Lines { escape, mut lines, .. } =
        lines::read(text).map_err(|error| wrong(&error.what, error.hint))?;
    let (Some(only), true) = (lines.pop(), lines.is_empty()) else {
        return Err(wrong("it should be a single instruction", None));
    };
    match instruction::parse(&only, escape) {
        Ok(instruction::Parsed::Step(instruction)) => {
            Ok(Step { line, text: format!("ONBUILD {}", only.text), instruction })
        }
        Ok(instruction::Parsed::From(_)) => Err(wrong("FROM cannot stand there", None)),
        Err(mistake) => Err(wrong(&mistake.what, mistake.hint)),
    }
}

/// Whether `text` is one here-document and nothing else.
///
/// # Errors
/// Its quotes are not closed.
pub fn is_heredoc(text: &str) -> Result<bool, String> {
    Ok(lines::heredoc_word(text.trim())?.is_some())
}

#[cfg(test)]
mod tests;
