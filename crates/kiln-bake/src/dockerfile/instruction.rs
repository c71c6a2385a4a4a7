//! One logical line → one instruction, or a refusal.
//! Follows `frontend/dockerfile/instructions/parse.go` of BuildKit.

use kiln_core::image::Healthcheck;

use super::lines::Line;
use super::{CommandLine, Instruction, Mistake, copy, duration, run, suggest, words};

pub(super) use super::suggest::distance;

/// What a line says.
pub(super) enum Parsed {
    From(From),
    Step(Instruction),
}

/// FROM.
pub(super) struct From {
    pub(super) base: String,
    pub(super) platform: Option<String>,
    pub(super) name: Option<String>,
}

const NAMES: [&str; 18] = [
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
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

pub(super) fn parse(line: &Line, escape: char) -> Result<Parsed, Mistake> {
    let (name, rest) = words::split_name(&line.text);
    let name = name.to_ascii_uppercase();
    let (flags, rest) = words::flags(rest, escape);
    let mut flags = Flags { name: name.clone(), given: flags };
    let instruction = match name.as_str() {
        "FROM" => {
            let from = from(rest, &mut flags)?;
            flags.none()?;
            return Ok(Parsed::From(from));
        }
        "ARG" => Instruction::Arg(args(rest, escape)?),
        "ENV" => Instruction::Env(words::pairs(rest, escape, "ENV")?),
        "LABEL" => Instruction::Label(words::pairs(rest, escape, "LABEL")?),
        "COPY" | "ADD" => Instruction::Copy(copy::parse(name == "ADD", rest, &mut flags, line)?),
        "RUN" => Instruction::Run(run::parse(rest, &mut flags, line)?),
        "CMD" => Instruction::Cmd(command(rest)?),
        "ENTRYPOINT" => Instruction::Entrypoint(command(rest)?),
        "WORKDIR" => Instruction::Workdir(one(rest, "WORKDIR")?),
        "USER" => Instruction::User(one(rest, "USER")?),
        "STOPSIGNAL" => Instruction::StopSignal(one(rest, "STOPSIGNAL")?),
        "EXPOSE" => Instruction::Expose(some(words::blanks(rest), "EXPOSE")?),
        "VOLUME" => Instruction::Volume(volumes(rest)?),
        "SHELL" => Instruction::Shell(shell(rest)?),
        "HEALTHCHECK" => Instruction::Healthcheck(healthcheck(rest, &mut flags)?),
        "MAINTAINER" => Instruction::Maintainer(one(rest, "MAINTAINER")?),
        "ONBUILD" => Instruction::OnBuild(onbuild(rest, line, escape)?),
        _ => return Err(unknown(words::split_name(&line.text).0)),
    };
    flags.none()?;
    Ok(Parsed::Step(instruction))
}

fn unknown(name: &str) -> Mistake {
    let mistake = Mistake::new(format!("unknown instruction: {name}"));
    match suggest::near(&name.to_ascii_uppercase(), NAMES) {
        Some(near) => mistake.hint(format!("did you mean {near}?")),
        None => mistake,
    }
}

/// The flags of one line; each that is known is taken, any that is left is refused.
pub(super) struct Flags {
    name: String,
    given: Vec<String>,
}

impl Flags {
    /// The value of a flag that may stand once.
    pub(super) fn take(&mut self, flag: &str) -> Result<Option<String>, Mistake> {
        let mut values = self.take_all(flag)?;
        match values.len() {
            0 | 1 => Ok(values.pop()),
            _ => Err(twice(flag)),
        }
    }

    /// The values of a flag that may stand more than once, in order.
    pub(super) fn take_all(&mut self, flag: &str) -> Result<Vec<String>, Mistake> {
        let missing = || {
            Mistake::new(format!("missing a value on flag: --{flag}"))
                .hint(format!("write `--{flag}=…`"))
        };
        self.remove(flag).into_iter().map(|value| value.ok_or_else(missing)).collect()
    }

    /// A flag that is on or off: `--flag`, `--flag=true`, `--flag=false`.
    pub(super) fn take_bool(&mut self, flag: &str) -> Result<Option<bool>, Mistake> {
        let mut values = self.remove(flag);
        if values.len() > 1 {
            return Err(twice(flag));
        }
        let Some(value) = values.pop() else { return Ok(None) };
        match value.map(|text| text.to_ascii_lowercase()).as_deref() {
            None | Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(other) => {
                let what = format!("expecting boolean value for flag --{flag}, not: {other}");
                Err(Mistake::new(what).hint(format!("write `--{flag}` or `--{flag}=false`")))
            }
        }
    }

    /// Takes all of one name out: the text after `=`, if there is a `=`.
    fn remove(&mut self, flag: &str) -> Vec<Option<String>> {
        let is_it = |given: &String| given[2..].split('=').next() == Some(flag);
        let taken = self.given.extract_if(.., |given| is_it(given));
        taken.map(|given| given.split_once('=').map(|(_, value)| value.to_owned())).collect()
    }

    fn none(&self) -> Result<(), Mistake> {
        let Some(given) = self.given.first() else { return Ok(()) };
        let flag = given.split('=').next().unwrap_or(given);
        let known = known_flags(&self.name);
        let hint = match suggest::near(&flag[2..], known.iter().copied()) {
            Some(near) => format!("did you mean {near}?"),
            None if known.is_empty() => format!("{} takes none", self.name),
            None => format!("{} takes --{}", self.name, known.join(", --")),
        };
        Err(Mistake::new(format!("unknown flag: {flag}")).hint(hint))
    }
}

/// The flags that an instruction has.
fn known_flags(name: &str) -> &'static [&'static str] {
    match name {
        "FROM" => &["platform"],
        "COPY" => &["from", "chown", "chmod", "link", "parents", "exclude"],
        "ADD" => &["chown", "chmod", "link", "exclude", "checksum", "keep-git-dir", "unpack"],
        "RUN" => &["mount", "network", "security", "device"],
        "HEALTHCHECK" => &HEALTHCHECK_FLAGS,
        _ => &[],
    }
}

fn twice(flag: &str) -> Mistake {
    Mistake::new(format!("duplicate flag specified: --{flag}"))
}

fn from(rest: &str, flags: &mut Flags) -> Result<From, Mistake> {
    let mut args = words::blanks(rest);
    let name = match args.as_slice() {
        [_] => None,
        [_, word, name] if word.eq_ignore_ascii_case("as") => {
            let lower = name.to_lowercase();
            let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
            if !lower.starts_with(|c: char| c.is_ascii_lowercase()) || !lower.chars().all(fits) {
                let what = format!(
                    "invalid name for build stage: \"{name}\", name can't start with a number or \
                     contain symbols"
                );
                return Err(Mistake::new(what)
                    .hint("begin with a letter; then letters, digits, `-`, `_` and `.`"));
            }
            Some(lower)
        }
        _ => {
            let what = format!("FROM requires either one or three arguments, found {}", args.len());
            return Err(Mistake::new(what).hint("write `FROM name` or `FROM name AS stage`"));
        }
    };
    let platform = flags.take("platform")?.filter(|text| !text.is_empty());
    Ok(From { base: args.swap_remove(0), platform, name })
}

/// The text of a trigger, its here-documents behind it. What cannot be carried out is refused
/// here and not when it is triggered.
fn onbuild(rest: &str, line: &Line, escape: char) -> Result<String, Mistake> {
    let name = words::split_name(rest).0.to_ascii_uppercase();
    match name.as_str() {
        "" => return Err(Mistake::new("ONBUILD requires at least one argument")),
        "ONBUILD" => {
            return Err(Mistake::new("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"));
        }
        "MAINTAINER" | "FROM" => {
            return Err(Mistake::new(format!("{name} isn't allowed as an ONBUILD trigger")));
        }
        _ => {}
    }
    let trigger = Line { line: line.line, text: rest.to_owned(), heredocs: line.heredocs.clone() };
    parse(&trigger, escape)?;
    let mut text = trigger.text;
    for heredoc in trigger.heredocs {
        text.push('\n');
        text.push_str(&heredoc.content);
        text.push_str(&heredoc.name);
    }
    Ok(text)
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
        Some(("", _)) => Err(Mistake::new("ARG names can not be blank")),
        Some((name, value)) => Ok((name.to_owned(), Some(value.to_owned()))),
        None => Ok((word, None)),
    };
    words.into_iter().map(arg).collect()
}

/// A command in either form.
pub(super) fn command(rest: &str) -> Result<CommandLine, Mistake> {
    match words::json(rest) {
        Some(args) => Ok(CommandLine::Exec(args?)),
        None => Ok(CommandLine::Shell(rest.to_owned())),
    }
}

fn volumes(rest: &str) -> Result<Vec<String>, Mistake> {
    let paths = words::json(rest).unwrap_or_else(|| Ok(words::blanks(rest)))?;
    let paths: Vec<String> = paths.iter().map(|path| path.trim().to_owned()).collect();
    if paths.iter().any(String::is_empty) {
        return Err(Mistake::new("VOLUME specified can not be an empty string"));
    }
    some(paths, "VOLUME")
}

fn shell(rest: &str) -> Result<Vec<String>, Mistake> {
    match words::json(rest) {
        Some(args) => some(args?, "SHELL"),
        None if rest.is_empty() => some(Vec::new(), "SHELL"),
        None => Err(Mistake::new("SHELL requires the arguments to be in JSON form")
            .hint("write `SHELL [\"/bin/bash\", \"-c\"]`")),
    }
}

const HEALTHCHECK_FLAGS: [&str; 5] =
    ["interval", "timeout", "start-period", "start-interval", "retries"];

fn healthcheck(rest: &str, flags: &mut Flags) -> Result<Healthcheck, Mistake> {
    let (kind, rest) = words::split_name(rest);
    let mut check = Healthcheck::default();
    match kind.to_ascii_uppercase().as_str() {
        "NONE" if rest.is_empty() => {
            check.test = vec!["NONE".into()];
            // They mean nothing then.
            for flag in HEALTHCHECK_FLAGS {
                flags.take(flag)?;
            }
            return Ok(check);
        }
        "NONE" => return Err(Mistake::new("HEALTHCHECK NONE takes no arguments")),
        "CMD" => {}
        "" => return Err(Mistake::new("HEALTHCHECK requires at least one argument")),
        _ => {
            return Err(Mistake::new(format!("Unknown type \"{kind}\" in HEALTHCHECK (try CMD)"))
                .hint("write `HEALTHCHECK [flags] CMD command` or `HEALTHCHECK NONE`"));
        }
    }
    check.test = match command(rest)? {
        CommandLine::Exec(args) if !args.is_empty() => [vec!["CMD".into()], args].concat(),
        CommandLine::Shell(text) if !text.is_empty() => vec!["CMD-SHELL".into(), text],
        _ => return Err(Mistake::new("Missing command after HEALTHCHECK CMD")),
    };
    let mut time = |flag: &str| -> Result<Option<u64>, Mistake> {
        let Some(text) = flags.take(flag)?.filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        match duration::parse(&text)? {
            0 => Ok(None),
            1..1_000_000 => {
                Err(Mistake::new(format!("Interval --{flag}={text} cannot be less than 1ms")))
            }
            nanoseconds => Ok(Some(nanoseconds)),
        }
    };
    check.interval = time("interval")?;
    check.timeout = time("timeout")?;
    check.start_period = time("start-period")?;
    check.start_interval = time("start-interval")?;
    if let Some(text) = flags.take("retries")?.filter(|text| !text.is_empty()) {
        let retries = text.parse::<i32>().ok().and_then(|number| u32::try_from(number).ok());
        let retries = retries
            .ok_or_else(|| Mistake::new(format!("--retries={text} is not a number of retries")))?;
        check.retries = (retries != 0).then_some(retries);
    }
    Ok(check)
}
