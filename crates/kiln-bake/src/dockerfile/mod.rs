//! The Dockerfile: text → stages and instructions with their lines. Semantics follow BuildKit's
//! frontend; what Kiln does not carry out is refused here, with its line.
//!
//! | module | noun |
//! |---|---|
//! | [`lines`] | logical lines: directives, continuations, comments, here-documents |
//! | [`words`] | flags, JSON arrays, `NAME=value` |
//! | [`instruction`] | one logical line → one [`Instruction`] |
//! | [`expand`], [`pattern`] | variables, quotes, escapes |
//! | [`duration`], [`ports`] | the little languages of HEALTHCHECK and EXPOSE |

pub mod duration;
pub mod expand;
mod instruction;
mod lines;
pub mod pattern;
pub mod ports;
mod words;

use kiln_core::image::Healthcheck;

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
}

/// COPY and ADD.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copy {
    /// Whether it is an ADD.
    pub add: bool,
    /// `--from`.
    pub from: Option<String>,
    /// `--chown`.
    pub chown: Option<String>,
    /// `--chmod`.
    pub chmod: Option<String>,
    /// Paths to copy.
    pub sources: Vec<String>,
    /// Files written in the Dockerfile itself.
    pub documents: Vec<Document>,
    /// Where to.
    pub dest: String,
}

/// A here-document that becomes a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Its delimiter, which is the file's name if the destination is a directory.
    pub name: String,
    /// Its content, leading tabs removed where `<<-` asks for it.
    pub content: String,
    /// Whether variables in it are replaced.
    pub expand: bool,
}

/// RUN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The command.
    pub command: CommandLine,
    /// Here-documents, raw.
    pub heredocs: Vec<Heredoc>,
    /// `--network=default`: the step may use the network.
    pub network: bool,
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
struct Mistake {
    what: String,
    hint: Option<String>,
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
    let lines::Lines { escape, lines, last } = lines::read(text)?;
    let mut file = Dockerfile { escape, args: Vec::new(), stages: Vec::new() };
    for line in lines {
        let at = line.line;
        let parsed = instruction::parse(&line, escape).map_err(|mistake| mistake.at(at))?;
        match (parsed, file.stages.last_mut()) {
            (instruction::Parsed::From { base, name }, _) => {
                let stage = Stage { line: at, text: line.text, base, name, steps: Vec::new() };
                add_stage(&mut file.stages, stage)?;
            }
            (instruction::Parsed::Step(instruction), Some(stage)) => {
                stage.steps.push(Step { line: at, text: line.text, instruction });
            }
            (instruction::Parsed::Step(Instruction::Arg(args)), None) => {
                file.args.push(GlobalArg { line: at, args });
            }
            (instruction::Parsed::Step(_), None) => {
                return Err(Mistake::new(format!("`{}` stands before the first FROM", line.text))
                    .hint("only ARG may stand before FROM")
                    .at(at));
            }
        }
    }
    if file.stages.is_empty() {
        return Err(Mistake::new("the file has no FROM")
            .hint("begin with `FROM name`, where name is a base of x-kiln.bases or `scratch`")
            .at(last.max(1)));
    }
    Ok(file)
}

/// Whether `text` is one here-document and nothing else.
///
/// # Errors
/// Its quotes are not closed.
pub fn is_heredoc(text: &str) -> Result<bool, String> {
    Ok(lines::heredoc_word(text.trim())?.is_some())
}

fn add_stage(stages: &mut Vec<Stage>, stage: Stage) -> Result<(), SyntaxError> {
    let twice = stages.iter().find(|old| old.name.is_some() && old.name == stage.name);
    if let Some(old) = twice {
        let name = stage.name.as_deref().unwrap_or_default();
        let what = format!("stage name `{name}` is taken already by line {}", old.line);
        return Err(Mistake::new(what).hint("give each stage its own name").at(stage.line));
    }
    stages.push(stage);
    Ok(())
}

#[cfg(test)]
mod tests;
