//! The root's days: how long something was not used is counted in days on which the root was.
//!
//! A clock that jumps by ten years, or to and fro, counts one day for each jump; and a root that
//! nobody touched for a year finds everything as it left it. The file `days` has the number of the
//! day and the date for which it was counted.

use std::fs;
use std::io;

use kiln_core::Digest;

use crate::durable::write_private;
use crate::error::{Context as _, Result};
use crate::store::Store;

const MARK: &str = "kiln-days 1";

/// A counted day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Day {
    number: u64,
    /// Days since 1970, by the clock as it was.
    date: u64,
}

impl Day {
    fn text(self) -> String {
        let body = format!("{MARK}\n{} {}\n", self.number, self.date);
        let sum = Digest::of(&body).hex();
        body + &format!("sum {sum}\n")
    }

    /// `None` for what nobody wrote so: then it is counted from the beginning, and what was used
    /// on a day that has not come yet counts as used today.
    fn parse(text: &str) -> Option<Self> {
        let (number, date) = text.lines().nth(1)?.split_once(' ')?;
        let day = Self { number: number.parse().ok()?, date: date.parse().ok()? };
        (day.text() == text).then_some(day)
    }
}

impl Store {
    /// The number of this day, which begins to count with this call if none did before.
    ///
    /// # Errors
    /// I/O errors.
    pub fn today(&self) -> Result<u64> {
        self.day_at(date(), true)
    }

    /// The same, without counting it.
    pub(crate) fn day(&self) -> Result<u64> {
        self.day_at(date(), false)
    }

    pub(crate) fn day_at(&self, date: u64, count: bool) -> Result<u64> {
        let path = self.root().join("days");
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            text => text.doing("reading", &path)?,
        };
        let last = String::from_utf8(text).ok().and_then(|text| Day::parse(&text));
        let day = match last {
            Some(last) if last.date == date => return Ok(last.number),
            Some(last) => Day { number: last.number + 1, date },
            None => Day { number: 0, date },
        };
        if count {
            write_private(&path, day.text().as_bytes()).doing("writing", &path)?;
        }
        Ok(day.number)
    }
}

fn date() -> u64 {
    crate::ledger::now() / (24 * 60 * 60 * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_of_the_clock_count_one_day_each_and_damage_counts_anew() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let days =
            [100, 100, 101, 5000, 5000, 3, 101].map(|date| store.day_at(date, true).unwrap());
        assert_eq!(days, [0, 0, 1, 2, 2, 3, 4]);
        assert_eq!(store.day_at(102, false).unwrap(), 5);
        assert_eq!(store.day_at(101, true).unwrap(), 4);
        let path = store.root().join("days");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replacen("4 101", "9994 101", 1)).unwrap();
        assert_eq!(store.day_at(101, true).unwrap(), 0);
    }
}
