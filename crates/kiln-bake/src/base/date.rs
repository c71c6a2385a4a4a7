//! Days of the Gregorian calendar in UTC, as `YYYY-MM-DD`.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970 of the beginning of the day `text`, if it is one from 1970 on.
pub(crate) fn parse(text: &str) -> Option<u64> {
    let mut parts = text.splitn(3, '-');
    let number = |part: Option<&str>, width: usize| -> Option<u64> {
        let part = part?;
        (part.len() == width && part.bytes().all(|byte| byte.is_ascii_digit()))
            .then(|| part.parse().ok())?
    };
    let (year, month, day) =
        (number(parts.next(), 4)?, number(parts.next(), 2)?, number(parts.next(), 2)?);
    if year < 1970 {
        return None;
    }
    // Days before the year and the month, counting years from March (Howard Hinnant's
    // `days_from_civil`), so that the leap day comes last.
    let shifted = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (shifted / 400, shifted % 400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day.checked_sub(1)?;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    (format(days * 86_400) == text).then_some(days * 86_400)
}

/// The day that holds `seconds` since 1970.
pub(crate) fn format(seconds: u64) -> String {
    let days = seconds / 86_400 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// The day that it is.
pub(crate) fn today() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    format(now.map_or(0, |time| time.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_days() {
        for (text, seconds) in
            [("1970-01-01", 0), ("2020-01-01", 1_577_836_800), ("2024-02-29", 1_709_164_800)]
        {
            assert_eq!(parse(text), Some(seconds));
            assert_eq!(format(seconds + 86_399), text);
        }
    }

    #[test]
    fn refuses_what_is_no_day() {
        for bad in ["", "2020", "2023-02-29", "2020-13-01", "2020-1-1", "1969-12-31", "2020-00-10"]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
