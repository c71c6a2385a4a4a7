//! Moments as people give them: `--since 10m`, `--until 2026-11-28T09:00:00Z`.

use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds since the Unix epoch, of so long ago (`1h30m`, `90s`, `2d`), of a date and time
/// (RFC 3339; UTC where no offset is given), or of seconds since the epoch.
pub(super) fn parse(text: &str) -> Result<u64, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
    from(text.trim(), now).ok_or_else(|| {
        format!("`{text}` is no moment: give 10m, 1h30m, 2d, 2026-11-28T09:00:00Z or Unix seconds")
    })
}

const SECOND: u64 = 1_000_000_000;

fn from(text: &str, now: u64) -> Option<u64> {
    if text.contains('-') || text.contains('T') {
        return date(text);
    }
    match text.split_once('.') {
        Some((whole, part)) if digits(whole) && digits(part) => {
            whole.parse::<u64>().ok()?.checked_mul(SECOND)?.checked_add(fraction(part)?)
        }
        None if digits(text) => text.parse::<u64>().ok()?.checked_mul(SECOND),
        _ if !text.is_empty() => now.checked_sub(ago(text)?),
        _ => None,
    }
}

fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn ago(mut text: &str) -> Option<u64> {
    let mut sum = 0_u64;
    while !text.is_empty() {
        let end = text.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = text[..end].parse().ok()?;
        let rest = &text[end..];
        let next = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..next] {
            "ms" => SECOND / 1000,
            "s" => SECOND,
            "m" => 60 * SECOND,
            "h" => 3600 * SECOND,
            "d" => 24 * 3600 * SECOND,
            "w" => 7 * 24 * 3600 * SECOND,
            _ => return None,
        };
        sum = sum.checked_add(number.checked_mul(unit)?)?;
        text = &rest[next..];
    }
    Some(sum)
}

/// `2026-11-28`, `2026-11-28T09:00[:00[.5]][Z|+01:00]`; a blank in place of the T.
fn date(text: &str) -> Option<u64> {
    let (day, time) = text.split_once(['T', 't', ' ']).unwrap_or((text, "00:00Z"));
    let mut parts = day.split('-').map(|part| digits(part).then(|| part.parse::<i64>().ok())?);
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    if parts.next().is_some() || !(1970..=9999).contains(&year) || !(1..=12).contains(&month) {
        return None;
    }
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let long = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    if !(1..=long[usize::try_from(month - 1).ok()?]).contains(&day) {
        return None;
    }
    // Days from civil, by Howard Hinnant's algorithm.
    let year = if month <= 2 { year - 1 } else { year };
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let of_era = (year % 400) * 365 + (year % 400) / 4 - (year % 400) / 100 + of_year;
    let days = (year / 400) * 146_097 + of_era - 719_468;
    let (time, offset) = match time.find(['Z', 'z', '+', '-']) {
        None => (time, 0),
        Some(at) if time[at..].eq_ignore_ascii_case("z") => (&time[..at], 0),
        Some(at) => {
            let (hours, minutes) = time[at + 1..].split_once(':')?;
            let minutes = two(hours, 23)? * 60 + two(minutes, 59)?;
            let sign = if time[at..].starts_with('-') { -1 } else { 1 };
            (&time[..at], sign * minutes * 60)
        }
    };
    let mut clock = time.split(':');
    let (hours, minutes) = (two(clock.next()?, 23)?, two(clock.next()?, 59)?);
    let (seconds, part) = match clock.next() {
        None => (0, 0),
        Some(text) => {
            let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
            (two(whole, 60)?, fraction(part)?)
        }
    };
    let seconds = days * 86_400 + hours * 3600 + minutes * 60 + seconds - offset;
    u64::try_from(seconds).ok()?.checked_mul(SECOND)?.checked_add(part)
}

fn two(text: &str, most: i64) -> Option<i64> {
    let number = (digits(text) && text.len() <= 2).then(|| text.parse::<i64>().ok())??;
    (number <= most).then_some(number)
}

/// Nanoseconds of the digits behind a point.
fn fraction(text: &str) -> Option<u64> {
    (digits(text) && text.len() <= 9).then(|| format!("{text:0<9}").parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read() {
        let now = 1_800_000_000 * SECOND;
        for (text, seconds) in [
            ("10m", Some(1_800_000_000 - 600)),
            ("1h30m", Some(1_800_000_000 - 5400)),
            ("2d", Some(1_800_000_000 - 172_800)),
            ("1700000000", Some(1_700_000_000)),
            ("1970-01-01T00:00:01Z", Some(1)),
            ("2026-11-28T09:00:00Z", Some(1_795_856_400)),
            ("2026-11-28 10:00:00+01:00", Some(1_795_856_400)),
            ("2026-11-28T09:00", Some(1_795_856_400)),
            ("2024-02-29", Some(1_709_164_800)),
            ("2000-03-01", Some(951_868_800)),
            ("2023-02-29", None),
            ("2026-13-01", None),
            ("2026-11-28T25:00Z", None),
            ("", None),
            ("10", Some(10)),
            ("10x", None),
            ("m", None),
            ("yesterday", None),
            ("99999999999999999999d", None),
            ("60000w", None),
        ] {
            assert_eq!(from(text, now), seconds.map(|it| it * SECOND), "{text}");
        }
        assert_eq!(from("1700000000.25", now), Some(1_700_000_000 * SECOND + SECOND / 4));
        assert_eq!(from("1970-01-01T00:00:00.5Z", now), Some(SECOND / 2));
        assert_eq!(from("1500ms", now), Some(now - 1_500_000_000));
    }
}
