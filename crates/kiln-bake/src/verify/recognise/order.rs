//! The same lines or words in another order; and what a locale changes.

use std::collections::BTreeSet;

use super::Known;
use super::text::Place;
use crate::verify::cause::{Cause, Finding};

/// Larger contents are not taken apart.
const LARGEST: usize = 8 << 20;

pub(super) fn recognise(a: &[u8], b: &[u8], at: usize, known: Known<'_>) -> Option<Finding> {
    if a.len() > LARGEST || a.len() != b.len() {
        return None;
    }
    let by_line = |byte: &u8| *byte == b'\n';
    let by_word = |byte: &u8| !byte.is_ascii_graphic() || b",;:'\"()[]{}".contains(byte);
    permuted(a, b, by_line, "lines", known).or_else(|| {
        // Only the line of the first difference: words wander within their line.
        let line = |bytes: &'_ [u8]| -> Option<Vec<u8>> {
            let begin = bytes[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            let end =
                bytes[at..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |n| at + n);
            Some(bytes.get(begin..end)?.to_vec())
        };
        permuted(&line(a)?, &line(b)?, by_word, "words", known)
    })
}

fn permuted(
    a: &[u8],
    b: &[u8],
    between: impl Fn(&u8) -> bool,
    what: &str,
    known: Known<'_>,
) -> Option<Finding> {
    let parts = |bytes: &[u8]| -> Vec<Vec<u8>> {
        let parts = bytes.split(&between).filter(|part| !part.is_empty());
        parts.map(<[u8]>::to_vec).collect()
    };
    let (first, second) = (parts(a), parts(b));
    let (mut sorted, mut other) = (first.clone(), second.clone());
    sorted.sort_unstable();
    other.sort_unstable();
    if sorted != other || first == second || first.len() < 2 {
        return None;
    }
    let moved: Vec<&Vec<u8>> =
        first.iter().zip(&second).filter(|(x, y)| x != y).map(|(x, _)| x).collect();
    if collated(&first, &second) {
        let evidence = format!("the same {what}, sorted by two rules");
        return Some(Finding::new(Cause::Locale, evidence));
    }
    let named = moved.iter().filter(|part| names_file(part, known.names)).count();
    // Not every line need be a file's: there may be headings, sums, files that are gone.
    if named * 5 >= moved.len() * 4 {
        let evidence = format!("the same {what} in another order, and they name files");
        return Some(Finding::new(Cause::DirectoryOrder, evidence));
    }
    Some(Finding::new(Cause::Order, format!("the same {} {what} in another order", first.len())))
}

/// Whether one of the words in `part` is a path whose last component a file of the tree has.
pub(super) fn names_file(part: &[u8], names: &BTreeSet<Vec<u8>>) -> bool {
    let words = part.split(|byte| !byte.is_ascii_graphic() || b",;:'\"()".contains(byte));
    words.filter(|word| !word.is_empty()).any(|word| {
        let word = word.strip_suffix(b"/").unwrap_or(word);
        let name = word.rsplit(|byte| *byte == b'/').next().unwrap_or(word);
        names.contains(name)
    })
}

/// Both are sorted, one by bytes and one as dictionaries do.
fn collated(first: &[Vec<u8>], second: &[Vec<u8>]) -> bool {
    let by_bytes = |list: &[Vec<u8>]| list.is_sorted();
    let folded = |part: &Vec<u8>| -> Vec<u8> {
        part.iter()
            .filter(|byte| byte.is_ascii_alphanumeric())
            .map(u8::to_ascii_lowercase)
            .collect()
    };
    let by_dictionary = |list: &[Vec<u8>]| list.is_sorted_by_key(folded);
    first.len() > 2
        && (by_bytes(first) && by_dictionary(second) || by_bytes(second) && by_dictionary(first))
}

/// A number with a comma here and a point there.
pub(super) fn locale(places: &[Place<'_>; 2]) -> Option<Finding> {
    let [a, b] = [places[0].word(".,"), places[1].word(".,")];
    let digits = |word: &str| word.bytes().filter(u8::is_ascii_digit).collect::<Vec<u8>>();
    let plain =
        |word: &str| word.bytes().all(|byte| byte.is_ascii_digit() || b".,".contains(&byte));
    let is_it = a != b && plain(a) && plain(b) && digits(a).len() > 1 && digits(a) == digits(b);
    is_it.then(|| Finding::new(Cause::Locale, "the same digits, written with other points"))
}
