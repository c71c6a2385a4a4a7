//! Dates and times in text.
//!
//! A stamp is sure if it is the time of its own run in both values. Unmistakable forms (a date with
//! a time of day) also count when they are not: a program may write another clock's time.

use super::text::Place;
use super::{Known, binary};
use crate::verify::cause::{Cause, Finding};
use crate::verify::conditions::Run;

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Words beside a number that make it a measured time.
const MEASURED: [&str; 12] = [
    "second", "elapsed", "took", "time", "duration", "real", "user", "sys", " ms", " s", " in ",
    "0m",
];

/// Milliseconds since 1970.
pub fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

pub(super) fn recognise(places: &[Place<'_>; 2], known: Known<'_>) -> Option<Finding> {
    epoch(places, known).or_else(|| date(places, known)).or_else(|| measured(places))
}

/// Seconds and smaller units since 1970, decimal or hexadecimal.
fn epoch(places: &[Place<'_>; 2], known: Known<'_>) -> Option<Finding> {
    let words = [places[0].word(""), places[1].word("")];
    let digits = |word: &str| word.trim_matches(|c: char| !c.is_ascii_digit()).to_owned();
    let plain = words.map(digits);
    if plain[0].len() == plain[1].len() {
        let unit = match plain[0].len() {
            10 => Some(("seconds", 1_000, 1)),
            13 => Some(("milliseconds", 1, 1)),
            16 => Some(("microseconds", 1, 1_000)),
            19 => Some(("nanoseconds", 1, 1_000_000)),
            _ => None,
        };
        if let Some((name, times, by)) = unit
            && let [Ok(a), Ok(b)] = [&plain[0], &plain[1]].map(|word| word.parse::<u64>())
            && binary::in_runs([a, b].map(|value| value * times / by), known)
        {
            return Some(of_run(&format!("in {name} since 1970")));
        }
    }
    let hex = words.map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok());
    if let [Some(a), Some(b)] = hex
        && binary::in_runs([a.saturating_mul(1000), b.saturating_mul(1000)], known)
    {
        return Some(of_run("in seconds since 1970, hexadecimal"));
    }
    None
}

fn of_run(form: &str) -> Finding {
    Finding::new(Cause::Time, format!("both are the time of their run, {form}"))
}

/// A date or a time of day that the first differing byte belongs to.
fn date(places: &[Place<'_>; 2], known: Known<'_>) -> Option<Finding> {
    let found = [parse(&places[0])?, parse(&places[1])?];
    let fits = |stamp: &Stamp, run: Option<&Run>| run.is_some_and(|run| stamp.fits(run));
    let sure = (0..2).all(|at| fits(&found[at], known.runs[at]));
    if sure {
        return Some(of_run("as a date or a time of day"));
    }
    let clear = |stamp: &Stamp| stamp.day.is_some();
    (found.iter().all(clear) || found.iter().all(|stamp| stamp.second.is_some()))
        .then(|| Finding::new(Cause::Time, "both are dates or times of day"))
}

/// A date, a time of day, or both; as written, without time zone.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    /// Days since 1970.
    day: Option<i64>,
    /// Seconds of the day.
    second: Option<i64>,
}

impl Stamp {
    fn fits(&self, run: &Run) -> bool {
        let range = |ms: u64, slack: i64| i64::try_from(ms / 1000).unwrap_or(i64::MAX) + slack;
        let (began, ended) = (range(run.began, -2), range(run.ended, 2));
        match (self.day, self.second) {
            (Some(day), Some(second)) => (began..=ended).contains(&(day * 86_400 + second)),
            (Some(day), None) => {
                (began.div_euclid(86_400)..=ended.div_euclid(86_400)).contains(&day)
            }
            (None, Some(second)) => (began..=ended).any(|time| time.rem_euclid(86_400) == second),
            (None, None) => false,
        }
    }
}

/// Reads whatever date and time of day stand around the difference.
fn parse(place: &Place<'_>) -> Option<Stamp> {
    let bytes = place.line.as_bytes();
    // What belongs together is at most as long as `Mon, 23 Nov 2026 00:36:59 +0000`.
    let from = place.at.saturating_sub(32);
    let to = (place.at + 32).min(bytes.len());
    let mut stamp = Stamp::default();
    let mut near = false;
    let mut see = |begin: usize, end: usize| near |= begin <= place.at && place.at <= end;
    for at in from..to {
        if at > 0 && bytes[at - 1].is_ascii_digit() && bytes[at].is_ascii_digit() {
            continue;
        }
        if let Some((day, length)) = day_at(bytes, at) {
            stamp.day.get_or_insert(day);
            see(at, at + length);
        }
        if let Some((second, length)) = time_at(bytes, at) {
            stamp.second.get_or_insert(second);
            see(at, at + length);
        }
        if let Some((day, second)) = compact_at(bytes, at) {
            stamp.day.get_or_insert(day);
            if let Some(second) = second {
                stamp.second.get_or_insert(second);
            }
            see(at, at + if second.is_some() { 15 } else { 8 });
        }
    }
    (near && stamp != Stamp::default()).then_some(stamp)
}

fn number(bytes: &[u8], at: usize, length: usize) -> Option<i64> {
    let part = bytes.get(at..at + length)?;
    part.iter()
        .all(u8::is_ascii_digit)
        .then(|| part.iter().fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0')))
}

fn year(bytes: &[u8], at: usize) -> Option<i64> {
    number(bytes, at, 4).filter(|year| (1980..2200).contains(year))
}

/// `HH:MM:SS`.
fn time_at(bytes: &[u8], at: usize) -> Option<(i64, usize)> {
    let hour = number(bytes, at, 2).filter(|hour| *hour < 24)?;
    (bytes.get(at + 2) == Some(&b':')).then_some(())?;
    let minute = number(bytes, at + 3, 2).filter(|minute| *minute < 60)?;
    (bytes.get(at + 5) == Some(&b':')).then_some(())?;
    let second = number(bytes, at + 6, 2).filter(|second| *second <= 60)?;
    Some((hour * 3600 + minute * 60 + second, 8))
}

/// `YYYY-MM-DD`, `YYYY/MM/DD`, `Nov 23 … 2026`, `23 Nov 2026`, `23/Nov/2026`.
fn day_at(bytes: &[u8], at: usize) -> Option<(i64, usize)> {
    if let Some(year) = year(bytes, at)
        && matches!(bytes.get(at + 4), Some(b'-' | b'/' | b'.'))
        && bytes.get(at + 4) == bytes.get(at + 7)
        && let (Some(month), Some(day)) = (number(bytes, at + 5, 2), number(bytes, at + 8, 2))
    {
        return Some((days(year, month, day)?, 10));
    }
    let name = bytes.get(at..at + 3)?;
    let month = MONTHS.iter().position(|month| month.as_bytes() == name)?;
    let month = i64::try_from(month + 1).ok()?;
    let text = std::str::from_utf8(bytes).ok()?;
    let words = |text: &str| -> Vec<String> {
        text.split(|c: char| !c.is_ascii_alphanumeric() && c != ':').map(str::to_owned).collect()
    };
    let after: Vec<String> =
        words(&text[at + 3..]).into_iter().filter(|word| !word.is_empty()).take(5).collect();
    let before = words(&text[..at]).into_iter().rfind(|word| !word.is_empty());
    // `2026:00:36:59` is a year too.
    let number = |word: &String| word.split(':').next()?.parse::<i64>().ok();
    let year = after.iter().filter_map(number).find(|year| (1980..2200).contains(year))?;
    let small = |value: &i64| (1..=31).contains(value);
    let day = before
        .as_ref()
        .and_then(number)
        .filter(small)
        .or_else(|| after.first().and_then(number).filter(small))?;
    Some((days(year, month, day)?, 24))
}

/// `YYYYMMDD`, alone or followed by `HHMMSS`, `-HHMMSS` or `THHMMSS`.
fn compact_at(bytes: &[u8], at: usize) -> Option<(i64, Option<i64>)> {
    let day = days(year(bytes, at)?, number(bytes, at + 4, 2)?, number(bytes, at + 6, 2)?)?;
    let gap = usize::from(matches!(bytes.get(at + 8), Some(b'-' | b'T' | b'_')));
    let clock = |at: usize| {
        let (hour, minute) = (number(bytes, at, 2)?, number(bytes, at + 2, 2)?);
        let second = number(bytes, at + 4, 2)?;
        (hour < 24 && minute < 60 && second <= 60).then_some(hour * 3600 + minute * 60 + second)
    };
    let second = clock(at + 8 + gap);
    let ends = !bytes.get(at + 8).is_some_and(u8::is_ascii_digit);
    (second.is_some() || ends).then_some((day, second))
}

/// Days since 1970 of a date of the Gregorian calendar.
fn days(year: i64, month: i64, day: i64) -> Option<i64> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    Some(era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468)
}

/// A number that says how long something took.
fn measured(places: &[Place<'_>; 2]) -> Option<Finding> {
    // `0.412`, `0m0.412s`; not the `ccAjRp7m.o` that a linker speaks of.
    let decimal = |place: &Place<'_>| {
        place.word(".").split_once('.').is_some_and(|(whole, part)| {
            whole.ends_with(|c: char| c.is_ascii_digit())
                && part.starts_with(|c: char| c.is_ascii_digit())
        })
    };
    let says = |place: &Place<'_>| {
        let line = place.line.to_lowercase();
        MEASURED.iter().any(|word| line.contains(word))
    };
    places
        .iter()
        .all(|place| decimal(place) && says(place))
        .then(|| Finding::new(Cause::Time, "both say how long something took"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(line: &str, part: &str) -> Option<Stamp> {
        let at = line.find(part).unwrap();
        parse(&Place { line, at })
    }

    #[test]
    fn dates_are_read_in_their_usual_forms() {
        // 2026-11-23 is day 20780.
        let both = Some(Stamp { day: Some(20_780), second: Some(2_219) });
        let day = Some(Stamp { day: Some(20_780), second: None });
        for line in [
            "built 2026-11-23T00:36:59Z by make",
            "Mon Nov 23 00:36:59 UTC 2026",
            "Date: Mon, 23 Nov 2026 00:36:59 +0000",
            "[23/Nov/2026:00:36:59 +0000]",
            "version 20261123003659",
            "version-20261123-003659",
        ] {
            assert_eq!(at(line, "59"), both, "{line}");
        }
        for line in ["since 2026-11-23", "v1.0-20261123", "Nov 23 2026"] {
            assert_eq!(at(line, "23"), day, "{line}");
        }
        assert_eq!(at("at 00:36:59", "59"), Some(Stamp { day: None, second: Some(2_219) }));
        for line in ["version 59", "1.2.59", "ratio 16:9, 59"] {
            assert_eq!(at(line, "9"), None, "{line}");
        }
    }
}
