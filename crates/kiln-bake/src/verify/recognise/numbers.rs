//! Numbers and words that name their origin: processor counts, process ids, clocks since boot,
//! addresses, random values.

use super::Known;
use super::text::Place;
use crate::verify::cause::{Cause, Finding};

/// Two numbers that differ by less than this part of the larger are no random ones, most likely.
const NEAR: u64 = 100;

/// How digits of 16 are called.
pub(super) const HEX_DIGITS: &str = "hexadecimal digits";

/// How the boot ids begin that steps see.
const BOOT_ID: &str = "4b696c6e-0000-4000-8000-";

/// How many processes a step may start and its process ids still be known as such.
const PROCESSES: u64 = 100_000;

pub(super) fn recognise(places: &[Place<'_>; 2], known: Known<'_>) -> Option<Finding> {
    uuid(places)
        .or_else(|| address(places))
        .or_else(|| decimal(places, known))
        .or_else(|| random(places))
}

fn both<'a>(places: &[Place<'a>; 2], more: &str) -> [&'a str; 2] {
    [places[0].word(more), places[1].word(more)]
}

fn uuid(places: &[Place<'_>; 2]) -> Option<Finding> {
    let is_uuid = |word: &str| {
        let parts: Vec<&str> = word.trim_matches('-').split('-').collect();
        let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
        lengths == [8, 4, 4, 4, 12]
            && parts.iter().all(|part| part.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    let words = both(places, "-");
    if words.iter().all(|word| word.trim_matches('-').starts_with(BOOT_ID)) {
        return Some(Finding::new(Cause::Machine, "both are the boot ids that the runs saw"));
    }
    words.iter().all(|word| is_uuid(word)).then(|| Finding::new(Cause::Random, "both are UUIDs"))
}

fn address(places: &[Place<'_>; 2]) -> Option<Finding> {
    let is_address = |word: &str| {
        let digits = word.strip_prefix("0x").unwrap_or(word);
        u64::from_str_radix(digits, 16).is_ok_and(super::binary::is_address)
    };
    both(places, "").iter().all(|word| is_address(word)).then(|| {
        Finding::new(Cause::Address, "both lie where Linux puts programs, heaps and stacks")
    })
}

/// The whole number that the word begins or ends with, where the words differ.
fn number(word: &str) -> Option<u64> {
    let digits = word.trim_matches(|c: char| !c.is_ascii_digit());
    digits.parse().ok()
}

fn decimal(places: &[Place<'_>; 2], known: Known<'_>) -> Option<Finding> {
    let words = both(places, "");
    let [Some(a), Some(b)] = words.map(number) else { return None };
    let (Some(first), Some(second)) = (known.runs[0], known.runs[1]) else { return None };
    let cores = [first, second].map(|run| run.conditions.cores.len() as u64);
    if cores[0] != cores[1] && [a, b] == cores {
        let evidence = format!("the runs had {} and {} processors", cores[0], cores[1]);
        return Some(Finding::new(Cause::Cores, evidence));
    }
    // Clocks since boot; the difference is the offset and some time.
    let ahead = second.conditions.uptime.abs_diff(first.conditions.uptime);
    let apart = a.abs_diff(b);
    for unit in [1, 1_000, 1_000_000, 1_000_000_000] {
        if ahead > 0 && (ahead..ahead + 3600).contains(&(apart / unit)) {
            let evidence = format!("the second run's clocks since boot were {ahead} s ahead");
            return Some(Finding::new(Cause::Time, evidence));
        }
    }
    let firsts = [first, second].map(|run| u64::from(run.conditions.first_pid.unwrap_or(2)));
    let counted = [a.checked_sub(firsts[0]), b.checked_sub(firsts[1])];
    // A run starts about as many processes as the other one.
    if firsts[0] != firsts[1]
        && let [Some(a), Some(b)] = counted
        && a.max(b) < PROCESSES
        && a.abs_diff(b) <= 64 + a.max(b) / 8
    {
        let evidence =
            format!("the runs counted their processes from {} and {}", firsts[0], firsts[1]);
        return Some(Finding::new(Cause::Pid, evidence));
    }
    None
}

/// Words that look as if they had been drawn by lot.
fn random(places: &[Place<'_>; 2]) -> Option<Finding> {
    let [a, b] = both(places, "+/_-=.");
    let [a, b] = match (a.len() == b.len() && a.len() >= 6, both(places, "")) {
        (true, _) => [a, b],
        (false, shorter) => shorter,
    };
    let digits = |word: &str| word.len() >= 3 && word.bytes().all(|byte| byte.is_ascii_digit());
    if digits(a) && digits(b) {
        if let (Ok(a), Ok(b)) = (a.parse::<u64>(), b.parse::<u64>())
            && a.abs_diff(b).saturating_mul(NEAR) < a.max(b)
        {
            let evidence = "two numbers close to one another: something that is counted, such as \
                            the room that is left";
            return Some(Finding::new(Cause::Unknown, evidence));
        }
        return Some(Finding::new(
            Cause::Random,
            "two numbers that are neither times nor process ids",
        ));
    }
    if a.len() != b.len() || a.len() < 6 {
        return None;
    }
    let begin = a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    let temporary = ["/tmp/", "tmp."].iter().any(|mark| a[..begin].contains(mark));
    let (a, b) = (&a[begin..], &b[begin..]);
    let apart = a.bytes().zip(b.bytes()).filter(|(x, y)| x != y).count();
    let hex = |word: &str| word.bytes().all(|byte| byte.is_ascii_hexdigit());
    if apart < 4 || apart * 2 < a.len() || !(mixed(a) || mixed(b) || hex(a) && hex(b)) {
        return None;
    }
    let form = if hex(a) && hex(b) { HEX_DIGITS } else { "letters and digits" };
    let whose = if temporary { "in the name of a temporary file, " } else { "" };
    let digest = match (hex(a) && hex(b), a.len()) {
        (true, 32 | 40 | 64 | 96 | 128) => ", as of a digest: over a time, or another random value",
        _ => "",
    };
    let evidence = format!("{whose}{} {form} that have nothing in common{digest}", a.len());
    Some(Finding::new(Cause::Random, evidence))
}

/// Digits among letters, or capitals in the middle: no word of a language.
fn mixed(word: &str) -> bool {
    let digits = word.bytes().any(|byte| byte.is_ascii_digit());
    let letters = word.bytes().any(|byte| byte.is_ascii_alphabetic());
    let small = word.bytes().any(|byte| byte.is_ascii_lowercase());
    let large = word.bytes().skip(1).any(|byte| byte.is_ascii_uppercase());
    digits && letters || small && large
}
