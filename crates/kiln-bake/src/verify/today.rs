//! Dates of today in results that were the same: two runs within seconds cannot tell a step that
//! writes the date from one that does not. Found here, it is a note and no verdict, for a source
//! may hold today's date as well.

use kiln_core::Digest;
use kiln_core::tree::Kind;
use kiln_core::tree_diff::{self, Change};
use kiln_store::Store;

use super::compare::shown;
use super::conditions::Run;
use crate::error::BakeError;

/// Larger files are not searched, nor more of them.
const LARGEST: u64 = 1 << 20;
const MOST: usize = 500;

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// A note for the first of the files that the step changed which hold the run's date.
pub(super) fn notes(
    store: &Store,
    input: &Digest,
    output: &Digest,
    run: &Run,
) -> Result<Vec<String>, BakeError> {
    let before = store.get_tree(input).map_err(BakeError::store)?;
    let after = store.get_tree(output).map_err(BakeError::store)?;
    let forms = forms(run.began / 1000);
    let fresh = tree_diff::diff(&before, &after).filter_map(|one| {
        let (Change::Added(node) | Change::Changed { new: node, .. }) = one.change else {
            return None;
        };
        match node.kind {
            Kind::File { size, digest } if size <= LARGEST => Some((one.path, digest)),
            _ => None,
        }
    });
    let mut found = Vec::new();
    for (path, digest) in fresh.take(MOST) {
        let bytes = store.get(&digest).map_err(BakeError::store)?;
        let form = forms.iter().find(|form| contains(&bytes, form.as_bytes()));
        if let Some(form) = form {
            found.push((shown(path), form));
        }
    }
    Ok(match found.first() {
        None => Vec::new(),
        Some((path, form)) => {
            let more = match found.len() {
                1 => String::new(),
                count => format!(", and so do {} more files", count - 1),
            };
            vec![format!(
                "{path} holds the date of today (`{form}`){more}: if the step took it from the \
                 clock, tomorrow's result differs"
            )]
        }
    })
}

/// The day of `seconds` since 1970, as programs write it.
fn forms(seconds: u64) -> Vec<String> {
    let (year, month, day) = date(seconds / 86_400);
    let name = MONTHS[month - 1];
    vec![
        format!("{year:04}-{month:02}-{day:02}"),
        format!("{year:04}/{month:02}/{day:02}"),
        format!("{year:04}{month:02}{day:02}"),
        format!("{day:02} {name} {year:04}"),
        format!("{day} {name} {year:04}"),
        format!("{name} {day:2} {year:04}"),
        format!("{name} {day:02} {year:04}"),
        format!("{name} {day}, {year:04}"),
    ]
}

/// Year, month and day of a number of days since 1970.
fn date(days: u64) -> (u64, usize, u64) {
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let (mut year, mut left) = (1970, days);
    loop {
        let length = if leap(year) { 366 } else { 365 };
        if left < length {
            break;
        }
        left -= length;
        year += 1;
    }
    let february = if leap(year) { 29 } else { 28 };
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while left >= lengths[month] {
        left -= lengths[month];
        month += 1;
    }
    (year, month + 1, left + 1)
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    let Some(first) = part.first() else { return false };
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| byte == first) {
        if rest[at..].starts_with(part) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_dates() {
        for (days, expected) in [
            (0, (1970, 1, 1)),
            (58, (1970, 2, 28)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (20_780, (2026, 11, 23)),
        ] {
            assert_eq!(date(days), expected);
        }
        assert!(forms(20_780 * 86_400).contains(&"Nov 23 2026".to_owned()));
        assert!(contains(b"built 20261123.", b"20261123"));
        assert!(!contains(b"2026", b"20261123"));
    }
}
