//! A document in the order in which it was made, as JSON and as YAML.

use std::fmt::Write as _;

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Printed {
    Null,
    Truth(bool),
    /// A number as it is written in JSON.
    Number(String),
    Text(String),
    List(Vec<Printed>),
    Map(Vec<(String, Printed)>),
    /// What the engine's own JSON has and its YAML leaves out: nothing, or an empty map.
    OnlyInJson(Box<Printed>),
    /// What stands in YAML only: an extension key.
    OnlyInYaml(Box<Printed>),
}

impl Printed {
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// Whether Go's `omitempty` leaves it out.
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Null | Self::Truth(false) => true,
            Self::Number(number) => number == "0",
            Self::Text(text) => text.is_empty(),
            Self::List(list) => list.is_empty(),
            Self::Map(map) => map.is_empty(),
            Self::Truth(true) | Self::OnlyInJson(_) | Self::OnlyInYaml(_) => false,
        }
    }

    /// As JSON, with a line for each value. A dollar sign is doubled in all text, so that the
    /// document can be read again.
    pub(super) fn json(&self) -> String {
        let mut out = String::new();
        self.write_json(&mut out, 0);
        out
    }

    fn write_json(&self, out: &mut String, depth: usize) {
        let line = |out: &mut String, depth: usize| {
            let _ = write!(out, "\n{:1$}", "", depth * 2);
        };
        match self {
            Self::Null => out.push_str("null"),
            Self::Truth(truth) => out.push_str(if *truth { "true" } else { "false" }),
            Self::Number(number) => out.push_str(number),
            Self::Text(text) => quoted(out, text),
            Self::OnlyInJson(inner) | Self::OnlyInYaml(inner) => inner.write_json(out, depth),
            Self::List(list) if list.is_empty() => out.push_str("[]"),
            Self::List(list) => {
                for (at, item) in list.iter().enumerate() {
                    out.push(if at == 0 { '[' } else { ',' });
                    line(out, depth + 1);
                    item.write_json(out, depth + 1);
                }
                line(out, depth);
                out.push(']');
            }
            Self::Map(map) => {
                let seen = |(_, value): &&(String, Self)| !matches!(value, Self::OnlyInYaml(_));
                let mut first = true;
                for (key, value) in map.iter().filter(seen) {
                    out.push(if first { '{' } else { ',' });
                    first = false;
                    line(out, depth + 1);
                    quoted(out, key);
                    out.push_str(": ");
                    value.write_json(out, depth + 1);
                }
                if first {
                    out.push_str("{}");
                } else {
                    line(out, depth);
                    out.push('}');
                }
            }
        }
    }

    /// As YAML.
    pub(super) fn yaml(&self) -> String {
        let mut out = String::new();
        self.write_yaml(&mut out, 0);
        out
    }

    fn write_yaml(&self, out: &mut String, depth: usize) {
        match self {
            Self::Map(map) if self.has_lines() => {
                let mut first = true;
                for (key, value) in map {
                    let value = match value {
                        Self::OnlyInJson(_) => continue,
                        Self::OnlyInYaml(inner) => inner,
                        value => value,
                    };
                    if !std::mem::take(&mut first) {
                        let _ = write!(out, "{:1$}", "", depth * 2);
                    }
                    scalar(out, key);
                    out.push(':');
                    value.write_below(out, depth);
                }
            }
            Self::List(list) if !list.is_empty() => {
                for (at, item) in list.iter().enumerate() {
                    if at > 0 {
                        let _ = write!(out, "{:1$}", "", depth * 2);
                    }
                    out.push_str("- ");
                    item.write_yaml(out, depth + 1);
                }
            }
            Self::Text(text) => {
                scalar(out, text);
                out.push('\n');
            }
            Self::Map(_) => out.push_str("{}\n"),
            other => {
                other.write_json(out, 0);
                out.push('\n');
            }
        }
    }

    /// What stands behind a key.
    fn write_below(&self, out: &mut String, depth: usize) {
        if self.has_lines() {
            let _ = write!(out, "\n{:1$}", "", (depth + 1) * 2);
            self.write_yaml(out, depth + 1);
        } else {
            out.push(' ');
            self.write_yaml(out, depth + 1);
        }
    }

    fn has_lines(&self) -> bool {
        match self {
            Self::List(list) => !list.is_empty(),
            Self::Map(map) => map.iter().any(|(_, value)| !matches!(value, Self::OnlyInJson(_))),
            _ => false,
        }
    }
}

/// Text in double quotes, as JSON and YAML both read it.
fn quoted(out: &mut String, text: &str) {
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '$' => out.push_str("$$"),
            // Also what would be obeyed by a terminal, and what ends a line for some readers.
            odd if odd.is_control() || matches!(odd, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                let _ = write!(out, "\\u{:04x}", u32::from(odd));
            }
            letter => out.push(letter),
        }
    }
    out.push('"');
}

/// Text in YAML: plain where nobody can take it for anything else.
fn scalar(out: &mut String, text: &str) {
    if is_plain(text) {
        out.push_str(&text.replace('$', "$$"));
    } else {
        quoted(out, text);
    }
}

fn is_plain(text: &str) -> bool {
    const WORDS: [&str; 11] =
        ["y", "n", "yes", "no", "on", "off", "true", "false", "null", "none", "~"];
    let begins = |letter: char| letter.is_ascii_alphabetic() || matches!(letter, '/' | '_' | '$');
    let goes_on = |letter: char| letter.is_ascii_alphanumeric() || "/_$.-+@=,:()^".contains(letter);
    text.starts_with(begins)
        && text.chars().all(goes_on)
        && !text.ends_with(':')
        && !WORDS.contains(&text.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_the_same() {
        let text = |text: &str| Printed::text(text);
        let odd = [
            "plain",
            "a b",
            "",
            "yes",
            "5",
            "1e3",
            "-",
            "- x",
            "a: b",
            "a #b",
            "#x",
            "x:",
            "{a}",
            "it's",
            "\"q\"",
            "two\nlines\n",
            "\u{1b}[31m",
            "é",
            "*a",
            "&a",
            "!x",
            "%x",
            "@x",
            "`x`",
            "a\\b",
            "~",
            "null",
            " x ",
            "x\t",
            "2001-01-01",
            "0x10",
            "[",
            "?",
            "|",
            ">",
            ",",
            "\u{85}",
        ];
        let keys = odd.iter().enumerate().map(|(at, value)| (format!("k{at}"), text(value)));
        let map = Printed::Map(vec![
            ("list".into(), Printed::List(odd.iter().map(|value| text(value)).collect())),
            ("map".into(), Printed::Map(keys.collect())),
            (
                "odd: key".into(),
                Printed::List(vec![Printed::Map(vec![
                    ("a".into(), Printed::Number("5".into())),
                    ("b".into(), Printed::Null),
                ])]),
            ),
            ("none".into(), Printed::Map(vec![])),
            ("empty".into(), Printed::List(vec![])),
        ]);
        for written in [map.yaml(), map.json()] {
            let nodes = crate::compose::yaml::parse(&written, 0)
                .unwrap_or_else(|error| panic!("{error}\n{written}"));
            let again = super::super::as_it_is(&nodes[0]);
            let sorted = |printed: &Printed| {
                let Printed::Map(mut map) = printed.clone() else { panic!() };
                for (_, value) in &mut map {
                    if let Printed::Map(inner) = value {
                        inner.sort_by(|left, right| left.0.cmp(&right.0));
                    }
                }
                map.sort_by(|left, right| left.0.cmp(&right.0));
                Printed::Map(map)
            };
            assert_eq!(sorted(&again), sorted(&map), "{written}");
        }
        assert_eq!(text("a$b c").yaml(), "\"a$$b c\"\n");
        assert_eq!(text("a$b").json(), "\"a$$b\"");
    }
}
