//! Comparing what Kiln made with what somebody else made.

use std::collections::BTreeSet;

use serde_json::Value;

use super::case::{Case, Differs};
use super::images::Image;
use super::tree::Attributes;

/// What a peer puts into an image of its own accord: the peer, where, what, and why.
const OWN_MARKS: &[(&str, &str, &str)] = &[
    // A step's mount points: an empty file stays where the host's is mounted.
    ("buildah", "./etc/hostname entry", "file"),
];
/// A label that buildah writes into every image: its own version.
const OWN_LABEL: &str = "io.buildah.version";

/// What is not there.
const NOTHING: &str = "-";

/// A difference that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    place: String,
    kiln: String,
    theirs: String,
}

/// What of two images differs other than declared, one line each; and what was declared and does
/// not differ.
pub(crate) fn undeclared(case: &Case, peer: &str, kiln: &Image, theirs: &Image) -> Vec<String> {
    let mut theirs = theirs.clone();
    if let Some(Value::Object(labels)) = theirs.config.get_mut("Labels") {
        labels.remove(OWN_LABEL);
        if labels.is_empty() {
            theirs.config.remove("Labels");
        }
    }
    let mut found = differences(kiln, &theirs);
    found.retain(|found| {
        let is_mark = |mark: &(&str, &str, &str)| {
            *mark == (peer, found.place.as_str(), found.theirs.as_str()) && found.kiln == NOTHING
        };
        !OWN_MARKS.iter().any(is_mark)
    });
    let declared: Vec<&Differs> =
        case.differs.iter().filter(|differs| Case::names(&differs.peers, peer)).collect();
    let same = |value: &str, pattern: &str| pattern == "*" || value == pattern;
    let means = |differs: &Differs, found: &Found| {
        differs.place == found.place
            && same(&found.kiln, &differs.kiln)
            && same(&found.theirs, &differs.theirs)
    };
    let mut lines = Vec::new();
    for found in &found {
        if !declared.iter().any(|differs| means(differs, found)) {
            let Found { place, kiln, theirs } = found;
            lines.push(format!("{place} | {kiln} | {theirs}"));
        }
    }
    for differs in declared {
        if !found.iter().any(|found| means(differs, found)) {
            lines.push(format!("declared, but not so: {}", differs.place));
        }
    }
    lines
}

fn differences(kiln: &Image, theirs: &Image) -> Vec<Found> {
    let mut found = Vec::new();
    let paths: BTreeSet<&String> = kiln.tree.keys().chain(theirs.tree.keys()).collect();
    for path in paths {
        match (kiln.tree.get(path), theirs.tree.get(path)) {
            (Some(ours), Some(other)) => found.extend(attributes(path, ours, other)),
            (ours, other) => {
                let kind = |entry: Option<&Attributes>| {
                    entry.map_or(NOTHING.to_owned(), |entry| entry["type"].clone())
                };
                let place = format!("{path} entry");
                found.push(Found { place, kiln: kind(ours), theirs: kind(other) });
            }
        }
    }
    let keys: BTreeSet<&String> = kiln.config.keys().chain(theirs.config.keys()).collect();
    for key in keys {
        let text = |image: &Image| {
            image.config.get(key).map_or(NOTHING.to_owned(), |value| value.to_string())
        };
        let (kiln, theirs) = (text(kiln), text(theirs));
        if kiln != theirs {
            found.push(Found { place: format!("config.{key}"), kiln, theirs });
        }
    }
    found
}

fn attributes(path: &str, kiln: &Attributes, theirs: &Attributes) -> Vec<Found> {
    let keys: BTreeSet<&String> = kiln.keys().chain(theirs.keys()).collect();
    let value = |of: &Attributes, key: &str| of.get(key).map_or(NOTHING, String::as_str).to_owned();
    let both = keys.into_iter().map(|key| (key, value(kiln, key), value(theirs, key)));
    both.filter(|(_, kiln, theirs)| kiln != theirs)
        .map(|(key, kiln, theirs)| Found { place: format!("{path} {key}"), kiln, theirs })
        .collect()
}
