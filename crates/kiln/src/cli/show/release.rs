//! `kiln release`, and where a release came from.

use std::fmt::Write as _;

use kiln_core::release::Source;
use serde::Deserialize as _;
use serde_json::Value;

use super::{digits, row, table};
use crate::answers;

/// The end of `kiln release`: the digest in the first line, for scripts that have no JSON.
pub(super) fn release(cut: &answers::Cut) -> String {
    let mut out = format!("{}\n", cut.release);
    let known = if cut.fresh { "" } else { ", which is kept already" };
    let _ = writeln!(out, "{} from {}{known}", cut.project, words(&cut.source));
    let mut rows = vec![row(["SERVICE", "TREE", "CONFIG"])];
    for (name, image) in &cut.images {
        rows.push(row([name, &digits(&image.tree), &digits(&image.config)]));
    }
    out + &table(&rows)
}

/// `commit 0123456789ab`, with `dirty` behind it if the working tree was not that; empty if the
/// commit is not known.
pub(super) fn words(source: &Source) -> String {
    let Some(commit) = &source.commit else { return String::new() };
    let dirty = if source.dirty { " dirty" } else { "" };
    format!("commit {}{dirty}", commit.get(..12).unwrap_or(commit))
}

/// As [`words`], of a document; nothing if it is none.
pub(super) fn source(source: &Value) -> String {
    Source::deserialize(source).map(|source| words(&source)).unwrap_or_default()
}

/// Where what `up` brought up came from, as a line of its own.
pub(super) fn source_line(source: &Source, differences: &[String]) -> String {
    match (words(source).as_str(), differences) {
        ("", _) => String::new(),
        (words, []) => format!("from {words}\n"),
        (words, [one]) => format!("from {words}: {one}\n"),
        (words, [one, two]) => format!("from {words}: {one}, {two}\n"),
        (words, [one, rest @ ..]) => format!("from {words}: {one} and {} more\n", rest.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dirty_source_is_named() {
        let data = |differences: &[&str]| {
            let commit = Some("0123456789abcdef0123456789abcdef01234567".to_owned());
            let differences: Vec<String> = differences.iter().map(ToString::to_string).collect();
            source_line(&Source { commit, dirty: !differences.is_empty() }, &differences)
        };
        assert_eq!(data(&[]), "from commit 0123456789ab\n");
        assert_eq!(data(&["a (changed)"]), "from commit 0123456789ab dirty: a (changed)\n");
        assert_eq!(data(&["a", "b", "c"]), "from commit 0123456789ab dirty: a and 2 more\n");
        assert_eq!(source_line(&Source::default(), &[]), "");
    }
}
