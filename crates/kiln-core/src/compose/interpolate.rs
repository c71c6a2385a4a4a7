//! `$VAR`, `${VAR:-default}` and the other operators of the Compose Specification.

use std::collections::{BTreeMap, BTreeSet};

/// Looks variables up, and remembers which were missing without a default.
pub(super) struct Variables<'l> {
    lookup: &'l dyn Fn(&str) -> Option<String>,
    pub(super) unset: BTreeSet<String>,
}

/// How deep `${A:-${B:-…}}` may nest.
const MAX_DEPTH: usize = 32;

/// Why a text cannot be interpolated, with a hint.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) what: String,
    pub(super) hint: String,
}

impl<'l> Variables<'l> {
    pub(super) fn new(lookup: &'l dyn Fn(&str) -> Option<String>) -> Self {
        Self { lookup, unset: BTreeSet::new() }
    }

    /// The text with all variables replaced. `None`: it has none.
    pub(super) fn interpolate(&mut self, text: &str) -> Result<Option<String>, Refusal> {
        if !text.contains('$') {
            return Ok(None);
        }
        self.expand(text, 0).map(Some)
    }

    fn expand(&mut self, text: &str, depth: usize) -> Result<String, Refusal> {
        if depth > MAX_DEPTH {
            return Err(Refusal {
                what: format!("variables nest deeper than {MAX_DEPTH} levels"),
                hint: String::new(),
            });
        }
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                out.push('$');
                rest = after;
            } else if let Some(after) = rest.strip_prefix('{') {
                let end = closing_brace(after).ok_or_else(|| invalid(text, "`${` has no `}`"))?;
                out.push_str(&self.braced(&after[..end], text, depth)?);
                rest = &after[end + 1..];
            } else {
                let name = name_at_start(rest);
                if name.is_empty() {
                    // As in `$(date)` and `^a$`: no variable.
                    out.push('$');
                } else {
                    out.push_str(&self.value_or_empty(name));
                }
                rest = &rest[name.len()..];
            }
        }
        out.push_str(rest);
        Ok(out)
    }

    fn braced(&mut self, inner: &str, text: &str, depth: usize) -> Result<String, Refusal> {
        let name = name_at_start(inner);
        if name.is_empty() {
            return Err(invalid(text, &format!("`${{{inner}}}` has no valid variable's name")));
        }
        let rest = &inner[name.len()..];
        if rest.is_empty() {
            return Ok(self.value_or_empty(name));
        }
        // With a colon, an empty value counts as unset.
        let (colon, operator) = match rest.strip_prefix(':') {
            Some(operator) => (true, operator),
            None => (false, rest),
        };
        let value = (self.lookup)(name).filter(|value| !(colon && value.is_empty()));
        let mut letters = operator.chars();
        let (operator, word) = (letters.next(), letters.as_str());
        match operator {
            Some('-') => value.map_or_else(|| self.expand(word, depth + 1), Ok),
            Some('+') if value.is_some() => self.expand(word, depth + 1),
            Some('+') => Ok(String::new()),
            Some('?') => match value {
                Some(value) => Ok(value),
                None => {
                    let message = self.expand(word, depth + 1)?;
                    let colon = if message.is_empty() { "" } else { ": " };
                    Err(Refusal {
                        what: format!("the variable `{name}` must be set{colon}{message}"),
                        hint: format!("set {name} in the environment or in `.env`"),
                    })
                }
            },
            _ => Err(invalid(text, &format!("`{rest}` after `{name}` is no operator"))),
        }
    }

    fn value_or_empty(&mut self, name: &str) -> String {
        (self.lookup)(name).unwrap_or_else(|| {
            self.unset.insert(name.to_owned());
            String::new()
        })
    }
}

/// What a text says of a variable that it names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Variable {
    /// `${NAME:?}`: it has to be set.
    pub required: bool,
    /// `${NAME:-default}`: what stands for it when it is not set.
    pub default: String,
    /// `${NAME:+alternate}`: what stands for it when it is set.
    pub alternate: String,
}

/// Adds the variables that `text` names, also those within defaults. Of what is said of one in
/// several places the first counts.
pub(super) fn names(text: &str, all: &mut BTreeMap<String, Variable>) {
    names_at(text, all, 0);
}

fn names_at(text: &str, all: &mut BTreeMap<String, Variable>, depth: usize) {
    let mut rest = text;
    while let Some(at) = rest.find('$').filter(|_| depth <= MAX_DEPTH) {
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            rest = after;
            continue;
        }
        let braced = rest.strip_prefix('{').and_then(|after| Some(&after[..closing_brace(after)?]));
        let inner = braced.unwrap_or(rest);
        let name = name_at_start(inner);
        rest = &rest[braced.map_or(name.len(), |inner| inner.len() + 2)..];
        if name.is_empty() {
            continue;
        }
        let variable = all.entry(name.to_owned()).or_default();
        let Some(said) = braced.map(|inner| &inner[name.len()..]) else { continue };
        let mut letters = said.strip_prefix(':').unwrap_or(said).chars();
        let (operator, word) = (letters.next(), letters.as_str());
        match operator {
            Some('?') => variable.required = true,
            Some('-') if variable.default.is_empty() => word.clone_into(&mut variable.default),
            Some('+') if variable.alternate.is_empty() => word.clone_into(&mut variable.alternate),
            _ => {}
        }
        names_at(word, all, depth + 1);
    }
}

/// The index of the brace that closes an opened `${`. As in Compose every brace in between counts,
/// also one that belongs to the text; where they do not add up, the last one closes.
fn closing_brace(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut open = 1_usize;
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'{' => {
                open += 1;
                at += 1;
            }
            b'}' if open == 1 => return Some(at),
            b'}' => open -= 1,
            _ => {}
        }
        at += 1;
    }
    text.rfind('}')
}

fn name_at_start(text: &str) -> &str {
    let is_part = |(at, byte): (usize, u8)| {
        byte == b'_' || byte.is_ascii_alphabetic() || (at > 0 && byte.is_ascii_digit())
    };
    let length = text.bytes().enumerate().take_while(|pair| is_part(*pair)).count();
    &text[..length]
}

fn invalid(text: &str, what: &str) -> Refusal {
    let shown: String = text.chars().take(60).collect();
    Refusal {
        what: format!("cannot interpolate `{shown}`: {what}"),
        hint: "write `$$` for a dollar sign, `${NAME}` or `${NAME:-default}` for a variable".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_that_a_text_names() {
        let mut all = BTreeMap::new();
        for text in ["${A:-x${B:-1}}y$C", "$$D ${E:?no} ${F+alt} ${A:-other}", "$1 ${ ${", "$"] {
            names(text, &mut all);
        }
        let said: Vec<String> = all
            .iter()
            .map(|(name, it)| format!("{name} {} {} {}", it.required, it.default, it.alternate))
            .collect();
        assert_eq!(
            said,
            ["A false x${B:-1} ", "B false 1 ", "C false  ", "E true  ", "F false  alt"]
        );
    }

    fn lookup(name: &str) -> Option<String> {
        match name {
            "A" => Some("a".into()),
            "B_2" => Some("b b".into()),
            "EMPTY" => Some(String::new()),
            "DOLLAR" => Some("$A".into()),
            _ => None,
        }
    }

    #[test]
    fn all_operators() {
        for (text, expected) in [
            ("$A", "a"),
            ("${A}", "a"),
            ("x${B_2}y", "xb by"),
            ("$A$A-$A.", "aa-a."),
            ("$B_2x", ""),
            ("$$A", "$A"),
            ("$$$A", "$a"),
            ("$$$$", "$$"),
            ("${A:-d}", "a"),
            ("${NO:-d}", "d"),
            ("${NO-d}", "d"),
            ("${EMPTY:-d}", "d"),
            ("${EMPTY-d}", ""),
            ("${NO:-}", ""),
            ("${A:?e}", "a"),
            ("${EMPTY?e}", ""),
            ("${A:+r}", "r"),
            ("${EMPTY:+r}", ""),
            ("${EMPTY+r}", "r"),
            ("${NO:+r}", ""),
            ("${NO+r}", ""),
            ("${NO:-${ALSO:-${A}}}", "a"),
            ("${NO:-x${A}y}z", "xayz"),
            ("${A:+<${B_2}>}", "<b b>"),
            ("${NO:-a:b?c-d+e}", "a:b?c-d+e"),
            ("${NO:-$$}", "$"),
            ("${NO:-{\"a\": 1}}", "{\"a\": 1}"),
            ("${NO:-{}}", "{}"),
            ("$DOLLAR", "$A"),
            ("^a(b)?$", "^a(b)?$"),
            ("$(date) cost: $5 $ {A}", "$(date) cost: $5 $ {A}"),
            ("é$A é", "éa é"),
        ] {
            let lookup: &dyn Fn(&str) -> Option<String> = &lookup;
            let found = Variables::new(lookup).interpolate(text).unwrap().unwrap();
            // A brace in a default ends the variable, as it does in Compose; what follows is text.
            assert_eq!(found, expected, "{text}");
        }
        let lookup: &dyn Fn(&str) -> Option<String> = &lookup;
        assert_eq!(Variables::new(lookup).interpolate("plain").unwrap(), None);
    }

    #[test]
    fn refusals() {
        for (text, what) in [
            ("${", "has no `}`"),
            ("${A", "has no `}`"),
            ("${}", "no valid variable's name"),
            ("${1A}", "no valid variable's name"),
            ("${A!x}", "is no operator"),
            ("${A:x}", "is no operator"),
            ("${NO:?please}", "`NO` must be set: please"),
            ("${EMPTY:?}", "`EMPTY` must be set"),
            ("${NO?need $A}", "`NO` must be set: need a"),
        ] {
            let lookup: &dyn Fn(&str) -> Option<String> = &lookup;
            let refusal = Variables::new(lookup).interpolate(text).unwrap_err();
            assert!(refusal.what.contains(what), "{text}: {}", refusal.what);
        }
        let deep = format!("{}x{}", "${N:-".repeat(100), "}".repeat(100));
        let lookup: &dyn Fn(&str) -> Option<String> = &lookup;
        assert!(Variables::new(lookup).interpolate(&deep).is_err());
    }

    #[test]
    fn unset_variables_are_remembered() {
        let lookup: &dyn Fn(&str) -> Option<String> = &lookup;
        let mut variables = Variables::new(lookup);
        variables.interpolate("$NO ${ALSO} ${DEFAULTED:-x} $A ${EMPTY} $NO").unwrap();
        assert_eq!(variables.unset.into_iter().collect::<Vec<_>>(), ["ALSO", "NO"]);
    }
}
