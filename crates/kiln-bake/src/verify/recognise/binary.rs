//! Times and addresses in bytes.

use super::Known;
use crate::verify::cause::{Cause, Finding};
use crate::verify::conditions::Run;

/// Where Linux puts programs and heaps (0x55…, 0x56…), and libraries, mappings and stacks (0x7f…)
/// of a process with 47 bits of addresses.
pub(super) fn is_address(value: u64) -> bool {
    matches!(value >> 40, 0x55 | 0x56 | 0x7f | 0x7e)
}

/// How many bytes must differ to be taken for random ones, at the end of a content; elsewhere it is
/// most of the 64 that follow.
const RANDOM: usize = 6;

pub(super) fn recognise(a: &[u8], b: &[u8], at: usize, known: Known<'_>) -> Option<Finding> {
    for begin in at.saturating_sub(7)..=at {
        if let Some(found) = eight(a, b, begin, known) {
            return Some(found);
        }
    }
    for begin in at.saturating_sub(3)..=at {
        if let Some(found) = four(a, b, begin, known) {
            return Some(found);
        }
    }
    let end = (at + 64).min(a.len()).min(b.len());
    let apart = a[at..end].iter().zip(&b[at..end]).filter(|(x, y)| x != y).count();
    (apart >= RANDOM && apart * 10 >= (end - at) * 9)
        .then(|| Finding::new(Cause::Random, format!("{apart} of {} bytes differ", end - at)))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn eight(a: &[u8], b: &[u8], at: usize, known: Known<'_>) -> Option<Finding> {
    let (a, b) = (array::<8>(a, at)?, array::<8>(b, at)?);
    for [a, b] in [[a, b].map(u64::from_le_bytes), [a, b].map(u64::from_be_bytes)] {
        for (unit, name) in [(1_000, "seconds"), (1, "milliseconds")] {
            if in_runs([a.saturating_mul(unit), b.saturating_mul(unit)], known) {
                return Some(time(8, name));
            }
        }
        for (unit, name) in [(1_000, "microseconds"), (1_000_000, "nanoseconds")] {
            if in_runs([a / unit, b / unit], known) {
                return Some(time(8, name));
            }
        }
        // A page is 4096 bytes: what is randomised are the bits above.
        if is_address(a) && is_address(b) && a % 4096 == b % 4096 {
            return Some(Finding::new(
                Cause::Address,
                "eight bytes that are an address in memory, the same but for its page",
            ));
        }
    }
    None
}

fn four(a: &[u8], b: &[u8], at: usize, known: Known<'_>) -> Option<Finding> {
    let (a, b) = (array::<4>(a, at)?, array::<4>(b, at)?);
    [[a, b].map(u32::from_le_bytes), [a, b].map(u32::from_be_bytes)]
        .into_iter()
        .any(|values| in_runs(values.map(|value| u64::from(value) * 1000), known))
        .then(|| time(4, "seconds"))
}

fn time(bytes: usize, unit: &str) -> Finding {
    Finding::new(
        Cause::Time,
        format!("{bytes} bytes that are the time of each run, in {unit} since 1970"),
    )
}

/// Whether each of two times, in milliseconds since 1970, lies in its run. A run of which nothing
/// is known may have been at any time since 2020, if the other one fits.
pub(super) fn in_runs(values: [u64; 2], known: Known<'_>) -> bool {
    const SLACK: u64 = 2_000;
    const EARLIEST: u64 = 1_577_836_800_000;
    let within = |value: u64, run: Option<&Run>| match run {
        Some(run) => value.saturating_add(SLACK) >= run.began && value <= run.ended + SLACK,
        None => (EARLIEST..=super::stamps::now()).contains(&value),
    };
    known.runs.iter().any(Option::is_some)
        && values.into_iter().zip(known.runs).all(|(value, run)| within(value, run))
}
