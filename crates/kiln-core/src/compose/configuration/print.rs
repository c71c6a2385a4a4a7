//! A document in the order in which it was made, as JSON and as YAML.

use std::fmt::Write as _;

use super::scalars;

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Printed {
    Null,
    Truth(bool),
    /// A number as it is written in JSON.
    Number(String),
    Text(String),
    List(Vec<Printed>),
    /// An object: its fields stand in the order in which they were put there.
    Map(Vec<(String, Printed)>),
    /// A map: its keys are ordered when it is written.
    Dict(Vec<(String, Printed)>),
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
            Self::Map(map) | Self::Dict(map) => map.is_empty(),
            Self::Truth(true) | Self::OnlyInJson(_) | Self::OnlyInYaml(_) => false,
        }
    }

    /// As JSON, with a line for each value. A dollar sign is doubled in all text, so that the
    /// document can be read again.
    pub(super) fn json(&self) -> String {
        let mut out = String::new();
        self.write_json(&mut out, Some(0));
        out
    }

    /// As JSON on one line, for a hash: all text as it is, and nothing between the values.
    pub(super) fn compact_json(&self) -> String {
        let mut out = String::new();
        self.write_json(&mut out, None);
        out
    }

    /// `depth` is how deep it stands; none is there for all on one line.
    fn write_json(&self, out: &mut String, depth: Option<usize>) {
        let line = |out: &mut String, deeper: usize| {
            if let Some(depth) = depth {
                let _ = write!(out, "\n{:1$}", "", (depth + deeper) * 2);
            }
        };
        let below = depth.map(|depth| depth + 1);
        let text = |out: &mut String, text: &str| match depth {
            Some(_) => quoted(out, text),
            None => as_go_quotes(out, text),
        };
        match self {
            Self::Null => out.push_str("null"),
            Self::Truth(truth) => out.push_str(if *truth { "true" } else { "false" }),
            Self::Number(number) => out.push_str(number),
            Self::Text(value) => text(out, value),
            Self::OnlyInJson(inner) | Self::OnlyInYaml(inner) => inner.write_json(out, depth),
            Self::List(list) if list.is_empty() => out.push_str("[]"),
            Self::List(list) => {
                for (at, item) in list.iter().enumerate() {
                    out.push(if at == 0 { '[' } else { ',' });
                    line(out, 1);
                    item.write_json(out, below);
                }
                line(out, 0);
                out.push(']');
            }
            Self::Map(map) | Self::Dict(map) => {
                let seen = |(_, value): &&(String, Self)| !matches!(value, Self::OnlyInYaml(_));
                let mut first = true;
                let mut map: Vec<_> = map.iter().filter(seen).collect();
                if matches!(self, Self::Dict(_)) {
                    map.sort_by(|left, right| left.0.cmp(&right.0));
                }
                for (key, value) in map {
                    out.push(if first { '{' } else { ',' });
                    first = false;
                    line(out, 1);
                    text(out, key);
                    out.push_str(if depth.is_some() { ": " } else { ":" });
                    value.write_json(out, below);
                }
                if first {
                    out.push_str("{}");
                } else {
                    line(out, 0);
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
            Self::Map(map) | Self::Dict(map) if self.has_lines() => {
                let mut first = true;
                let map = match self {
                    Self::Dict(_) => in_natural_order(map),
                    _ => map.iter().collect(),
                };
                for (key, value) in map {
                    let value = match value {
                        Self::OnlyInJson(_) => continue,
                        Self::OnlyInYaml(inner) => inner,
                        value => value,
                    };
                    if !std::mem::take(&mut first) {
                        let _ = write!(out, "{:1$}", "", depth * 2);
                    }
                    scalars::key(out, key);
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
                scalars::value(out, text, depth * 2);
                out.push('\n');
            }
            Self::Map(_) | Self::Dict(_) => out.push_str("{}\n"),
            other => {
                other.write_json(out, Some(0));
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
            Self::Map(map) | Self::Dict(map) => {
                map.iter().any(|(_, value)| !matches!(value, Self::OnlyInJson(_)))
            }
            _ => false,
        }
    }
}

/// Text in double quotes, with its dollar signs doubled. What a terminal would obey is escaped.
fn quoted(out: &mut String, text: &str) {
    out.push('"');
    for letter in text.chars() {
        match letter {
            '$' => out.push_str("$$"),
            odd if odd.is_control() || odd == '\u{feff}' => escaped(out, odd),
            letter => go_letter(out, letter),
        }
    }
    out.push('"');
}

/// The same as Go writes it.
fn as_go_quotes(out: &mut String, text: &str) {
    out.push('"');
    text.chars().for_each(|letter| go_letter(out, letter));
    out.push('"');
}

fn go_letter(out: &mut String, letter: char) {
    match letter {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\0'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => escaped(out, letter),
        letter => out.push(letter),
    }
}

fn escaped(out: &mut String, letter: char) {
    match letter {
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\u{8}' => out.push_str("\\b"),
        '\u{c}' => out.push_str("\\f"),
        odd => {
            let _ = write!(out, "\\u{:04x}", u32::from(odd));
        }
    }
}

/// The entries of a map in the order of YAML's writer, in which `web2` stands before `web10`.
fn in_natural_order(map: &[(String, Printed)]) -> Vec<&(String, Printed)> {
    match map {
        [] | [_] => map.iter().collect(),
        _ => {
            // By hand: that order contradicts itself for odd keys, at which the library's own sort
            // may panic.
            let (left, right) = map.split_at(map.len() / 2);
            let (left, right) = (in_natural_order(left), in_natural_order(right));
            let mut merged = Vec::with_capacity(map.len());
            let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
            while let (Some(one), Some(other)) = (left.peek(), right.peek()) {
                let next = if natural(&other.0, &one.0) { right.next() } else { left.next() };
                merged.extend(next);
            }
            merged.extend(left);
            merged.extend(right);
            merged
        }
    }
}

/// Whether the key `one` stands before `other`: numbers in them by their value, letters after all else.
fn natural(one: &str, other: &str) -> bool {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let Some(at) = one.iter().zip(&other).position(|(left, right)| left != right) else {
        return one.len() < other.len();
    };
    let (left, right) = (one[at], other[at]);
    match (left.is_alphabetic(), right.is_alphabetic()) {
        (true, true) => return left < right,
        (true, false) | (false, true) => {
            let behind_a_digit = at > 0 && one[at - 1].is_numeric();
            return left.is_alphabetic() == behind_a_digit;
        }
        (false, false) => {}
    }
    // Zeros count only where digits that are none stand before them.
    let same = one[..at].iter().rev().take_while(|letter| letter.is_ascii_digit());
    let counts = (left == '0' || right == '0') && same.into_iter().any(|digit| *digit != '0');
    let number = |letters: &[char]| {
        let digits: Vec<u32> =
            letters[at..].iter().map_while(|letter| letter.to_digit(10)).collect();
        let start = u128::from(counts);
        let value = digits.iter().fold(start, |value, digit| {
            value.saturating_mul(10).saturating_add(u128::from(*digit))
        });
        (value, digits.len())
    };
    let (one, other) = (number(&one), number(&other));
    if one == other { left < right } else { one < other }
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
                Printed::List(vec![Printed::Dict(vec![
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
                let (Printed::Map(mut map) | Printed::Dict(mut map)) = printed.clone() else {
                    panic!()
                };
                for (_, value) in &mut map {
                    if let Printed::Map(inner) | Printed::Dict(inner) = value {
                        inner.sort_by(|left, right| left.0.cmp(&right.0));
                        *value = Printed::Map(std::mem::take(inner));
                    }
                }
                map.sort_by(|left, right| left.0.cmp(&right.0));
                Printed::Map(map)
            };
            assert_eq!(sorted(&again), sorted(&map), "{written}");
        }
        assert_eq!(text("a$b c").yaml(), "a$$b c\n");
        assert_eq!(text("a$b").json(), "\"a$$b\"");
    }
}
