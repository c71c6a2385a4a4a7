//! What is known before the first FROM: build arguments as they count, the predefined ones, and
//! ARGs that stand there.

use std::collections::BTreeMap;

use crate::dockerfile::expand::Lex;
use crate::dockerfile::{Dockerfile, SyntaxError};
use crate::platform::Platform;

/// The argument that says what time it is; Kiln has an own value for steps without it.
pub const EPOCH_ARG: &str = "SOURCE_DATE_EPOCH";

/// So many variables a stage can have, and so many bytes of them: the kernel takes no more along
/// with a command either.
const MAX_VARIABLES: usize = 2_000;
const MAX_BYTES: usize = 1 << 20;

/// Variables before the first FROM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Globals {
    /// Predefined ARGs and those of the file, with their values.
    pub values: Vec<(String, String)>,
    /// Build arguments that have a value.
    pub args: BTreeMap<String, String>,
    /// `SOURCE_DATE_EPOCH`, given or set before the first FROM, in seconds.
    pub epoch: Option<i64>,
}

impl Globals {
    /// Reads the ARGs of `file` under the given build arguments; `target` is the name of the
    /// stage that is built, if it has one.
    ///
    /// # Errors
    /// A default cannot be expanded, or the epoch is none.
    pub fn read(
        file: &Dockerfile,
        given: &BTreeMap<String, Option<String>>,
        target: Option<&str>,
    ) -> Result<Self, SyntaxError> {
        let args: BTreeMap<String, String> =
            given.iter().filter_map(|(name, value)| Some((name.clone(), value.clone()?))).collect();
        let values = predefined(&args, target);
        let mut globals = Self { values, args, epoch: None };
        let mut epoch_line = 1;
        let lex = Lex::new(file.escape);
        for line in &file.args {
            for (name, default) in &line.args {
                if name == EPOCH_ARG {
                    epoch_line = line.line;
                }
                let value = match (globals.args.get(name), default) {
                    (Some(given), _) => given.clone(),
                    (None, Some(default)) => lex
                        .word(default, &|name| lookup(&globals.values, name))
                        .map_err(|what| SyntaxError { line: line.line, what, hint: None })?,
                    (None, None) => continue,
                };
                set(&mut globals.values, name, &value);
            }
            bounded(&globals.values).map_err(|what| SyntaxError {
                line: line.line,
                what,
                hint: None,
            })?;
        }
        globals.settle_epoch(file, epoch_line)?;
        Ok(globals)
    }

    /// The epoch is a number of seconds; `context` asks for the commit of a remote context, which
    /// a local one does not have. Without a value the argument is as good as not given.
    fn settle_epoch(&mut self, file: &Dockerfile, line: usize) -> Result<(), SyntaxError> {
        let set = self.args.get(EPOCH_ARG).cloned();
        let Some(text) = set.or_else(|| lookup(&self.values, EPOCH_ARG)) else { return Ok(()) };
        let stage = file.stages.iter().any(|stage| {
            stage.name.as_deref().is_some_and(|name| name.eq_ignore_ascii_case(&text))
        });
        match text.parse::<i64>() {
            Ok(seconds) => {
                self.epoch = Some(seconds);
                let text = seconds.to_string();
                for value in self.args.get_mut(EPOCH_ARG).into_iter().chain(
                    self.values.iter_mut().find(|(name, _)| name == EPOCH_ARG).map(|(_, v)| v),
                ) {
                    value.clone_from(&text);
                }
                Ok(())
            }
            Err(_) if text.is_empty() || text == "context" => {
                self.args.remove(EPOCH_ARG);
                self.values.retain(|(name, _)| name != EPOCH_ARG);
                Ok(())
            }
            Err(_) => {
                let what = if stage {
                    format!("{EPOCH_ARG}={text}: the time of what a stage fetches is not supported")
                } else {
                    format!("invalid {EPOCH_ARG}: {text}")
                };
                let hint = "give it as seconds since 1970".to_owned();
                Err(SyntaxError { line, what, hint: Some(hint) })
            }
        }
    }
}

fn predefined(args: &BTreeMap<String, String>, target: Option<&str>) -> Vec<(String, String)> {
    let host = Platform::host();
    let name = host.to_string();
    [
        ("BUILDPLATFORM", name.as_str()),
        ("BUILDOS", &host.os),
        ("BUILDOSVERSION", ""),
        ("BUILDARCH", &host.arch),
        ("BUILDVARIANT", &host.variant),
        ("TARGETPLATFORM", &name),
        ("TARGETOS", &host.os),
        ("TARGETOSVERSION", ""),
        ("TARGETARCH", &host.arch),
        ("TARGETVARIANT", &host.variant),
        ("TARGETSTAGE", target.unwrap_or("default")),
    ]
    .into_iter()
    .map(|(name, value)| {
        let value = args.get(name).map_or(value, String::as_str);
        (name.to_owned(), value.to_owned())
    })
    .collect()
}

/// Refuses more variables than anybody has.
///
/// # Errors
/// Says which bound is passed.
pub fn bounded(variables: &[(String, String)]) -> Result<(), String> {
    if variables.len() > MAX_VARIABLES {
        return Err(format!("there are more than {MAX_VARIABLES} variables"));
    }
    let bytes: usize = variables.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > MAX_BYTES {
        return Err(format!("the variables take more than {} MiB", MAX_BYTES >> 20));
    }
    Ok(())
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
