//! One logical line → one instruction, or a refusal.
//! Follows `frontend/dockerfile/instructions/parse.go` of BuildKit.

use kiln_core::image::Healthcheck;

use super::lines::{Line, heredoc_word};
use super::{CommandLine, Copy, Document, Instruction, Mistake, Run, duration, words};

/// What a line says.
pub(super) enum Parsed {
    From { base: String, name: Option<String> },
    Step(Instruction),
}

const NAMES: [&str; 15] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
];

pub(super) fn parse(line: &Line, escape: char) -> Result<Parsed, Mistake> {
    let (name, rest) = words::split_name(&line.text);
    let name = name.to_ascii_uppercase();
    let (flags, rest) = words::flags(rest, escape);
    let mut flags = Flags { name: name.clone(), given: flags };
    let instruction = match name.as_str() {
        "FROM" => {
            flags.none()?;
            return from(rest);
        }
        "ARG" => Instruction::Arg(args(rest, escape)?),
        "ENV" => Instruction::Env(words::pairs(rest, escape, "ENV")?),
        "LABEL" => Instruction::Label(words::pairs(rest, escape, "LABEL")?),
        "COPY" | "ADD" => Instruction::Copy(copy(name == "ADD", rest, &mut flags, line)?),
        "RUN" => Instruction::Run(run(rest, &mut flags, line)?),
        "CMD" => Instruction::Cmd(command(rest)?),
        "ENTRYPOINT" => Instruction::Entrypoint(command(rest)?),
        "WORKDIR" => Instruction::Workdir(one(rest, "WORKDIR")?),
        "USER" => Instruction::User(one(rest, "USER")?),
        "STOPSIGNAL" => Instruction::StopSignal(one(rest, "STOPSIGNAL")?),
        "EXPOSE" => Instruction::Expose(some(words::blanks(rest), "EXPOSE")?),
        "VOLUME" => Instruction::Volume(volumes(rest)?),
        "SHELL" => Instruction::Shell(shell(rest)?),
        "HEALTHCHECK" => Instruction::Healthcheck(healthcheck(rest, &mut flags)?),
        _ => return Err(unknown(&name)),
    };
    flags.none()?;
    Ok(Parsed::Step(instruction))
}

fn unknown(name: &str) -> Mistake {
    match name {
        "ONBUILD" => Mistake::new("ONBUILD is not supported")
            .hint("write the instruction into the Dockerfile that uses this image"),
        "MAINTAINER" => Mistake::new("MAINTAINER is not supported")
            .hint("use `LABEL org.opencontainers.image.authors=…`"),
        _ => {
            let mistake = Mistake::new(format!("`{name}` is not an instruction"));
            let names = NAMES.iter().chain(&["WORKDIR"]);
            match names.map(|known| (distance(name, known), known)).min() {
                Some((0..=2, near)) => mistake.hint(format!("did you mean {near}?")),
                _ => mistake,
            }
        }
    }
}

/// Edit distance, for suggestions.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let cost = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// The flags of one line; each that is known is taken, any that is left is refused.
struct Flags {
    name: String,
    given: Vec<String>,
}

impl Flags {
    fn take(&mut self, flag: &str) -> Result<Option<String>, Mistake> {
        let is_it = |given: &String| given[2..].split('=').next() == Some(flag);
        let Some(at) = self.given.iter().position(is_it) else { return Ok(None) };
        let given = self.given.remove(at);
        if self.given.iter().any(is_it) {
            return Err(Mistake::new(format!("`--{flag}` stands twice")));
        }
        match given.split_once('=') {
            Some((_, value)) => Ok(Some(value.to_owned())),
            None => Err(Mistake::new(format!("`--{flag}` has no value"))
                .hint(format!("write `--{flag}=…`"))),
        }
    }

    fn none(&self) -> Result<(), Mistake> {
        let Some(given) = self.given.first() else { return Ok(()) };
        let flag = given.split('=').next().unwrap_or(given);
        let known = match self.name.as_str() {
            "COPY" => "COPY takes --from, --chown and --chmod",
            "ADD" => "ADD takes --chown and --chmod",
            "RUN" => "RUN takes --network=default or --network=none",
            "HEALTHCHECK" => {
                "HEALTHCHECK takes --interval, --timeout, --start-period, --start-interval and \
                 --retries"
            }
            _ => "remove it",
        };
        Err(Mistake::new(format!("{} {flag} is not supported", self.name)).hint(known))
    }
}

fn from(rest: &str) -> Result<Parsed, Mistake> {
    let args = words::blanks(rest);
    match args.as_slice() {
        [base] => Ok(Parsed::From { base: base.clone(), name: None }),
        [base, word, name] if word.eq_ignore_ascii_case("as") => {
            let lower = name.to_lowercase();
            let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
            if !lower.starts_with(|c: char| c.is_ascii_lowercase()) || !lower.chars().all(fits) {
                return Err(Mistake::new(format!("`{name}` cannot be the name of a stage"))
                    .hint("begin with a letter; then letters, digits, `-`, `_` and `.`"));
            }
            Ok(Parsed::From { base: base.clone(), name: Some(lower) })
        }
        _ => {
            Err(Mistake::new(format!("FROM requires one or three arguments, found {}", args.len()))
                .hint("write `FROM name` or `FROM name AS stage`"))
        }
    }
}

fn some(args: Vec<String>, name: &str) -> Result<Vec<String>, Mistake> {
    if args.is_empty() {
        return Err(Mistake::new(format!("{name} requires at least one argument")));
    }
    Ok(args)
}

fn one(rest: &str, name: &str) -> Result<String, Mistake> {
    if rest.is_empty() {
        return Err(Mistake::new(format!("{name} requires exactly one argument")));
    }
    Ok(rest.to_owned())
}

fn args(rest: &str, escape: char) -> Result<Vec<(String, Option<String>)>, Mistake> {
    let words = some(words::quoted(rest, escape), "ARG")?;
    let arg = |word: String| match word.split_once('=') {
        Some(("", _)) => Err(Mistake::new(format!("`{word}` has no name"))),
        Some((name, value)) => Ok((name.to_owned(), Some(value.to_owned()))),
        None => Ok((word, None)),
    };
    words.into_iter().map(arg).collect()
}

fn command(rest: &str) -> Result<CommandLine, Mistake> {
    match words::json(rest) {
        Some(args) => Ok(CommandLine::Exec(args?)),
        None => Ok(CommandLine::Shell(rest.to_owned())),
    }
}

fn run(rest: &str, flags: &mut Flags, line: &Line) -> Result<Run, Mistake> {
    let network = match flags.take("network")?.as_deref() {
        None | Some("none") => false,
        Some("default") => true,
        Some(other) => {
            return Err(Mistake::new(format!("RUN --network={other} is not supported"))
                .hint("use --network=default, or none, which is what a step has without it"));
        }
    };
    let command = command(rest)?;
    if matches!(&command, CommandLine::Shell(text) if text.is_empty())
        || matches!(&command, CommandLine::Exec(args) if args.is_empty())
    {
        return Err(Mistake::new("RUN has no command"));
    }
    Ok(Run { command, heredocs: line.heredocs.clone(), network })
}

fn copy(add: bool, rest: &str, flags: &mut Flags, line: &Line) -> Result<Copy, Mistake> {
    let name = if add { "ADD" } else { "COPY" };
    let mut args = words::json(rest).unwrap_or_else(|| Ok(words::blanks(rest)))?;
    let dest = match args.pop() {
        Some(dest) if !args.is_empty() => dest,
        _ => {
            return Err(Mistake::new(format!("{name} requires a source and a destination"))
                .hint(format!("write `{name} SOURCE… DESTINATION`")));
        }
    };
    if heredoc_word(&dest).ok().flatten().is_some() {
        return Err(Mistake::new(format!("{name} cannot have a here-document as destination")));
    }
    let mut copy = Copy {
        add,
        from: if add { None } else { flags.take("from")? },
        chown: flags.take("chown")?,
        chmod: flags.take("chmod")?,
        dest,
        ..Copy::default()
    };
    for source in args {
        let heredoc = if line.heredocs.is_empty() { None } else { heredoc_word(&source)? };
        let found = heredoc.and_then(|it| line.heredocs.iter().find(|doc| doc.name == it.name));
        match found {
            Some(doc) => copy.documents.push(Document {
                name: doc.name.clone(),
                content: doc.text(),
                expand: doc.expand,
            }),
            None => {
                local(&source, name)?;
                copy.sources.push(source);
            }
        }
    }
    Ok(copy)
}

/// Refuses URLs and Git repositories.
fn local(source: &str, name: &str) -> Result<(), Mistake> {
    let remote = ["http://", "https://", "git://", "ssh://", "git@"];
    if remote.iter().any(|scheme| source.starts_with(scheme)) {
        return Err(Mistake::new(format!("{name} of `{source}` is not supported"))
            .hint("put the file into the context, or fetch it in a `RUN --network=default`"));
    }
    Ok(())
}

fn volumes(rest: &str) -> Result<Vec<String>, Mistake> {
    let paths = words::json(rest).unwrap_or_else(|| Ok(words::blanks(rest)))?;
    let paths: Vec<String> = paths.iter().map(|path| path.trim().to_owned()).collect();
    if paths.iter().any(String::is_empty) {
        return Err(Mistake::new("VOLUME has an empty path"));
    }
    some(paths, "VOLUME")
}

fn shell(rest: &str) -> Result<Vec<String>, Mistake> {
    match words::json(rest) {
        Some(args) => some(args?, "SHELL"),
        None => Err(Mistake::new("SHELL requires the JSON form")
            .hint("write `SHELL [\"/bin/bash\", \"-c\"]`")),
    }
}

fn healthcheck(rest: &str, flags: &mut Flags) -> Result<Healthcheck, Mistake> {
    let (kind, rest) = words::split_name(rest);
    let mut check = Healthcheck::default();
    match kind.to_ascii_uppercase().as_str() {
        "NONE" if rest.is_empty() => {
            check.test = vec!["NONE".into()];
            return Ok(check);
        }
        "NONE" => return Err(Mistake::new("HEALTHCHECK NONE takes no arguments")),
        "CMD" => {}
        "" => return Err(Mistake::new("HEALTHCHECK requires at least one argument")),
        _ => {
            return Err(Mistake::new(format!("`{kind}` in HEALTHCHECK is not known"))
                .hint("write `HEALTHCHECK [flags] CMD command` or `HEALTHCHECK NONE`"));
        }
    }
    check.test = match command(rest)? {
        CommandLine::Exec(args) if !args.is_empty() => [vec!["CMD".into()], args].concat(),
        CommandLine::Shell(text) if !text.is_empty() => vec!["CMD-SHELL".into(), text],
        _ => return Err(Mistake::new("HEALTHCHECK CMD has no command")),
    };
    let mut time = |flag: &str| -> Result<Option<u64>, Mistake> {
        let Some(text) = flags.take(flag)? else { return Ok(None) };
        match duration::parse(&text)? {
            0 => Ok(None),
            1..1_000_000 => Err(Mistake::new(format!("--{flag}={text} is less than 1ms"))),
            nanoseconds => Ok(Some(nanoseconds)),
        }
    };
    check.interval = time("interval")?;
    check.timeout = time("timeout")?;
    check.start_period = time("start-period")?;
    check.start_interval = time("start-interval")?;
    if let Some(text) = flags.take("retries")? {
        let retries: u32 = text
            .parse()
            .map_err(|_| Mistake::new(format!("--retries={text} is not a number of retries")))?;
        check.retries = (retries != 0).then_some(retries);
    }
    Ok(check)
}
