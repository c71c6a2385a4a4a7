//! Two values that should have been equal → the probable cause.
//!
//! Exact knowledge comes first: when each run began and ended, on how many processors it ran, from
//! which number its processes were counted. Then come forms that speak for themselves, and what is
//! known of paths.
//!
//! | module | recognises |
//! |---|---|
//! | [`text`] | where two texts differ: lines, words |
//! | [`stamps`] | dates and times in text |
//! | [`binary`] | times and addresses in bytes |
//! | [`numbers`] | processor counts, process ids, uptimes, random numbers |
//! | [`order`] | the same things in another order |
//! | [`archive`] | gzip, ar, tar, zip and what is in them |
//! | [`elf`] | build ids |
//! | [`places`] | logs, caches, keys by path |

mod archive;
mod binary;
mod elf;
mod numbers;
mod order;
mod places;
mod stamps;
mod text;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use super::cause::{Cause, Finding};
use super::conditions::Run;

pub use stamps::now;
pub(crate) use text::first_difference;

/// What is known of the two runs beside what they left.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known<'a> {
    /// The runs; `None` for one of which nothing is known, as of an image baked elsewhere.
    pub(crate) runs: [Option<&'a Run>; 2],
    /// Last components of all paths in the trees, to know a list of file names by.
    pub(crate) names: &'a BTreeSet<Vec<u8>>,
}

/// The cause for two contents of the file at `path`.
pub(crate) fn content(path: &[u8], a: &[u8], b: &[u8], known: Known<'_>) -> Finding {
    let of_bytes = bytes(a, b, known, 0);
    match places::place(path, a, b) {
        // A key's bytes are random, a log's lines have times: the place says more.
        Some(place) => match of_bytes.cause {
            Cause::Unknown => place,
            _ => {
                Finding { evidence: format!("{}; {}", place.evidence, of_bytes.evidence), ..place }
            }
        },
        None => of_bytes,
    }
}

/// The cause for two names (of files, or targets of links) of which each run has one.
pub(crate) fn name(a: &[u8], b: &[u8], known: Known<'_>) -> Finding {
    if let Some(place) = places::place(a, &[], &[]) {
        return place;
    }
    let at = first_difference(a, b).unwrap_or(0);
    words(a, b, at, known).unwrap_or_else(|| {
        Finding::new(Cause::Unknown, "nothing in the two names says where they come from")
    })
}

/// A path that one run has and the other has nothing like.
pub(crate) fn alone(path: &[u8]) -> Finding {
    places::place(path, &[], &[])
        .unwrap_or_else(|| Finding::new(Cause::Unknown, "one run made it, the other did not"))
}

/// The name of a commit looks as if it had been drawn by lot, and follows from its time. Where a
/// repository differs too, that is what it is.
pub(crate) fn commits<'a>(findings: &mut [Finding], mut paths: impl Iterator<Item = &'a [u8]>) {
    if !paths.any(places::is_of_commit) {
        return;
    }
    let names = findings.iter_mut().filter(|finding| {
        finding.cause == Cause::Random && finding.evidence.contains(numbers::HEX_DIGITS)
    });
    for finding in names {
        *finding = Finding::new(Cause::Time, places::COMMIT);
    }
}

/// How deep archives in archives are opened.
const DEEPEST: usize = 3;

fn bytes(a: &[u8], b: &[u8], known: Known<'_>, depth: usize) -> Finding {
    let Some(at) = first_difference(a, b) else {
        return Finding::new(Cause::Unknown, "the contents are equal");
    };
    if depth < DEEPEST
        && let Some(found) = archive::recognise(a, b, at, known, depth)
    {
        return found;
    }
    if let Some(found) = elf::recognise(a, b, known, depth) {
        return found;
    }
    if let Some(found) = order::recognise(a, b, at, known) {
        return found;
    }
    if let Some(found) = words(a, b, at, known) {
        return found;
    }
    if let Some(found) = binary::recognise(a, b, at, known) {
        return found;
    }
    Finding::new(Cause::Unknown, "nothing in the differing bytes says where they come from")
}

/// What the words around the first differing byte say.
fn words(a: &[u8], b: &[u8], at: usize, known: Known<'_>) -> Option<Finding> {
    let places = [text::Place::around(a, at)?, text::Place::around(b, at)?];
    stamps::recognise(&places, known)
        .or_else(|| numbers::recognise(&places, known))
        .or_else(|| order::locale(&places))
}
