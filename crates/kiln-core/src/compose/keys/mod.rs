//! Which key of the Compose Specification has which standing. `docs/compose.md` shows the same
//! tables: [`documentation`] writes them there.

mod tables;

use std::fmt::Write as _;

pub(super) use tables::*;

use super::error::ComposeError;
use super::reader::At;
use super::yaml::Value;

/// The line of `docs/compose.md` below which the tables stand.
pub const DOCUMENTED_BELOW: &str =
    "<!-- From here on: the tables of the reader, written by `cargo xtask docs`. -->\n";

/// The keys of one kind of map. Keys that begin with `x-` are accepted everywhere.
#[derive(Debug)]
pub(super) struct Keys {
    /// Heading in `docs/compose.md`.
    pub(super) name: &'static str,
    pub(super) keys: &'static [Key],
}

/// One key.
#[derive(Debug)]
pub(super) struct Key {
    name: &'static str,
    standing: Standing,
    /// Of a refused key: what to write instead.
    remark: &'static str,
    /// Values of a refused key that ask for nothing, beside those that [`asks_nothing`] knows.
    neutral: &'static [&'static str],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Honoured,
    /// Accepted and listed: it means nothing here.
    Listed,
    Refused,
}

const fn honoured(name: &'static str, remark: &'static str) -> Key {
    Key { name, standing: Standing::Honoured, remark, neutral: &[] }
}

const fn listed(name: &'static str, remark: &'static str) -> Key {
    Key { name, standing: Standing::Listed, remark, neutral: &[] }
}

const fn refused(name: &'static str, instead: &'static str) -> Key {
    Key { name, standing: Standing::Refused, remark: instead, neutral: &[] }
}

impl Key {
    const fn unless(self, neutral: &'static [&'static str]) -> Self {
        Self { neutral, ..self }
    }
}

impl Keys {
    /// Whether to read the key at `at`; a key that means nothing here is listed. A key that is
    /// refused or unknown goes among the refusals of the project, and is not read.
    ///
    /// # Errors
    /// None for now: readers go on after a key that is refused.
    pub(super) fn admit(&self, at: &At<'_>) -> Result<bool, ComposeError> {
        let name = at.key();
        let Some(key) = self.keys.iter().find(|key| key.name == name) else {
            if name.starts_with("x-") {
                at.list();
            } else {
                at.cx.refuse(self.unknown(at));
            }
            return Ok(false);
        };
        match key.standing {
            Standing::Honoured => return Ok(true),
            Standing::Listed => at.list(),
            Standing::Refused if asks_nothing(at, key.neutral) => at.list(),
            Standing::Refused => {
                let error = at.refuse(format!("`{name}` is not supported"));
                at.cx.refuse(error.with_hint(key.remark));
            }
        }
        Ok(false)
    }

    /// Whether [`Keys::admit`] refused the key at `at`.
    pub(super) fn refuses(&self, at: &At<'_>) -> bool {
        let key = self.keys.iter().find(|key| key.name == at.key());
        key.map_or(!at.key().starts_with("x-"), |key| {
            key.standing == Standing::Refused && !asks_nothing(at, key.neutral)
        })
    }

    fn unknown(&self, at: &At<'_>) -> ComposeError {
        let name = at.key();
        at.refuse(format!("the key `{name}` is unknown"))
            .with_hint(format!("docs/compose.md lists the keys under \"{}\"", self.name))
            .with_closest(name, self.keys.iter().map(|key| key.name))
    }
}

/// Whether a value leaves everything as it is without it: nothing, empty, `false`, or one of
/// `neutral`.
fn asks_nothing(at: &At<'_>, neutral: &[&str]) -> bool {
    match &at.node.value {
        Value::Scalar(scalar) => {
            let text = scalar.text.as_str();
            at.is_null()
                || text.is_empty()
                || text.eq_ignore_ascii_case("false")
                || neutral.contains(&text)
        }
        Value::List(list) => list.is_empty(),
        Value::Map(map) => map.is_empty(),
    }
}

/// The tables of `docs/compose.md`, as Markdown.
pub fn documentation() -> String {
    let mut out = String::new();
    for keys in ALL {
        let _ = write!(out, "\n### {}\n\n| key | standing | remarks |\n|---|---|---|\n", keys.name);
        for Key { name, standing, remark, neutral } in keys.keys {
            let standing = match standing {
                Standing::Honoured => "honoured",
                Standing::Listed => "listed",
                Standing::Refused => "refused",
            };
            let quoted: Vec<String> = neutral.iter().map(|value| format!("`{value}`")).collect();
            let listed = match quoted.len() {
                0 => String::new(),
                1 => format!("{} is listed", quoted[0]),
                _ => format!("{} are listed", quoted.join(", ")),
            };
            let semicolon = if remark.is_empty() || listed.is_empty() { "" } else { "; " };
            let _ = writeln!(out, "| `{name}` | {standing} | {remark}{semicolon}{listed} |");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_is_current() {
        let document = include_str!("../../../../../docs/compose.md");
        let (_, tables) = document.split_once(crate::compose::DOCUMENTED_BELOW).unwrap();
        assert!(tables == documentation(), "docs/compose.md is not current: cargo xtask docs");
    }

    #[test]
    fn no_key_has_two_standings() {
        for keys in ALL {
            let mut seen = std::collections::BTreeSet::new();
            for Key { name, standing, neutral, .. } in keys.keys {
                assert!(seen.insert(name), "{}: {name}", keys.name);
                assert!(neutral.is_empty() || *standing == Standing::Refused, "{name}");
            }
        }
    }
}
