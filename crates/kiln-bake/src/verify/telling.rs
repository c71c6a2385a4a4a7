//! What a file tells of the day and of the machine although both runs left it alike: no run can vary
//! the calendar, what uname(2) and sysinfo(2) say, or the processor. Found in what a step changed, it
//! is a note and no verdict, for a source may hold the same.

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
/// The year and the month stand in many a text: more files than that are documents of packages.
const OF_CALENDAR: usize = 20;
/// Nor are they looked for in longer ones.
const LONGEST: usize = 16 << 10;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// One thing that a file may tell.
struct Telling {
    /// What it is, and what follows: `the date of today`, `tomorrow's result differs`.
    what: &'static str,
    then: &'static str,
    /// How it is written.
    forms: Vec<String>,
    /// Only as a word of its own in a short text.
    word: bool,
    /// What is meant only where it is all that a file has.
    alone: Option<String>,
}

/// Notes for what the files tell that the step changed: one for each thing, with the first file.
pub(super) fn notes(
    store: &Store,
    input: &Digest,
    output: &Digest,
    run: &Run,
) -> Result<Vec<String>, BakeError> {
    let before = store.get_tree(input).map_err(BakeError::store)?;
    let after = store.get_tree(output).map_err(BakeError::store)?;
    let tellings = tellings(run.began / 1000);
    let fresh = tree_diff::diff(&before, &after).filter_map(|one| {
        let (Change::Added(node) | Change::Changed { new: node, .. }) = one.change else {
            return None;
        };
        match node.kind {
            Kind::File { size, digest } if size <= LARGEST => Some((one.path, digest)),
            _ => None,
        }
    });
    let mut found: Vec<Vec<(String, &str)>> = tellings.iter().map(|_| Vec::new()).collect();
    for (path, digest) in fresh.take(MOST) {
        let bytes = store.get(&digest).map_err(BakeError::store)?;
        let told = tellings
            .iter()
            .zip(&mut found)
            .find_map(|(telling, found)| telling.form_in(&bytes).map(|form| (form, found)));
        // A date has a year in it: the first that fits says enough.
        if let Some((form, found)) = told {
            found.push((shown(path), form));
        }
    }
    Ok(tellings.iter().zip(&found).filter_map(|(telling, found)| telling.note(found)).collect())
}

impl Telling {
    fn form_in(&self, bytes: &[u8]) -> Option<&str> {
        if self.word && bytes.len() > LONGEST {
            return None;
        }
        let whole = self.alone.as_ref().filter(|form| bytes.trim_ascii() == form.as_bytes());
        let form = whole.or_else(|| {
            self.forms.iter().find(|form| match self.word {
                false => contains(bytes, form.as_bytes()),
                true => bytes
                    .split(|byte| !byte.is_ascii_alphanumeric())
                    .any(|word| word == form.as_bytes()),
            })
        });
        form.map(String::as_str)
    }

    fn note(&self, found: &[(String, &str)]) -> Option<String> {
        let (path, form) = found.first()?;
        if self.word && found.len() > OF_CALENDAR {
            return None;
        }
        let more = match found.len() {
            1 => String::new(),
            count => format!(", and so do {} more files", count - 1),
        };
        Some(format!("{path} holds {} (`{form}`){more}: {}", self.what, self.then))
    }
}

/// What files may tell on the day of `seconds` since 1970, on this machine.
fn tellings(seconds: u64) -> Vec<Telling> {
    let telling = |what, then, forms| Telling { what, then, forms, word: false, alone: None };
    let machine = "another machine's result differs";
    let mut all = vec![telling(
        "the date of today",
        "if the step took it from the clock, tomorrow's result differs",
        forms(seconds),
    )];
    let kernel = rustix::system::uname();
    let words = [kernel.release(), kernel.version()];
    let words = words.map(|text| text.to_string_lossy().into_owned());
    all.push(telling(
        "this kernel's release or version, which uname(2) tells",
        machine,
        words.into_iter().filter(|text| text.len() > 4).collect(),
    ));
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let value = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let memory = value(&read("/proc/meminfo"), "MemTotal");
    let kilobytes = memory.and_then(|text| text.strip_suffix("kB")?.trim().parse::<u64>().ok());
    all.push(telling(
        "the size of this machine's memory, which sysinfo(2) tells",
        machine,
        kilobytes.into_iter().flat_map(|k| [k.to_string(), (k << 10).to_string()]).collect(),
    ));
    let model = value(&read("/proc/cpuinfo"), "model name");
    all.push(telling(
        "the name of this machine's processor, which its own instructions (CPUID) tell",
        machine,
        model.into_iter().filter(|name| name.len() > 4).collect(),
    ));
    let (year, month, _) = date(seconds / 86_400);
    all.push(Telling {
        what: "the year, month or week of today",
        then: "if the step took it from the clock, a later result differs",
        forms: vec![
            year.to_string(),
            MONTHS[month - 1].to_owned(),
            format!("W{:02}", week(seconds)),
        ],
        word: true,
        alone: Some(format!("{:02}", week(seconds))),
    });
    all
}

/// The number of the week by ISO 8601: that of its Thursday, counted in the Thursday's year.
fn week(seconds: u64) -> u64 {
    let days = seconds / 86_400;
    // 1970 began on a Thursday; Monday is 0.
    let weekday = (days + 3) % 7;
    let thursday = days + 3 - weekday;
    let (year, ..) = date(thursday);
    let first = (0..thursday + 1).rev().find(|day| date(*day).0 != year).map_or(0, |day| day + 1);
    (thursday - first) / 7 + 1
}

/// The day of `seconds` since 1970, as programs write it.
fn forms(seconds: u64) -> Vec<String> {
    let (year, month, day) = date(seconds / 86_400);
    let name = &MONTHS[month - 1][..3];
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

    #[test]
    fn weeks_are_counted_as_the_standard_has_it() {
        // `date -u -d 2026-11-28 +%V`, 2027-01-03, 2020-12-31, 2021-01-01, 1970-01-01.
        for (days, expected) in [(20_785, 48), (20_821, 53), (18_627, 53), (18_628, 53), (0, 1)] {
            assert_eq!(week(days * 86_400), expected, "{days}");
        }
    }

    #[test]
    fn a_year_counts_as_a_word_of_its_own_only() {
        let all = tellings(20_780 * 86_400);
        let calendar = all.iter().find(|telling| telling.word).unwrap();
        assert_eq!(calendar.form_in(b"(c) 2026 somebody"), Some("2026"));
        assert_eq!(calendar.form_in(b"built in November\n"), Some("November"));
        assert_eq!(calendar.form_in(b"120261 x2026"), None);
        let week = calendar.alone.clone().unwrap();
        assert_eq!(calendar.form_in(format!("{week}\n").as_bytes()), Some(week.as_str()));
        assert_eq!(calendar.form_in(format!("{week} apples").as_bytes()), None);
        assert_eq!(calendar.form_in(&[b"2026 ".repeat(10_000)].concat()), None);
        let found = vec![("/a".to_owned(), "2026"); OF_CALENDAR + 1];
        assert!(calendar.note(&found).is_none() && calendar.note(&found[..2]).is_some());
    }
}
