//! Durations as Go writes them: `1h30m`, `1.5s`, `300ms`.

/// Nanoseconds of `text`.
///
/// # Errors
/// Says what is wrong with it.
pub fn parse(text: &str) -> Result<u64, String> {
    let error = || format!("`{text}` is not a duration such as `300ms`, `5s` or `1m30s`");
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(error());
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(error)?;
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let scale: u128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(error()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(error());
        }
        let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| error())? };
        total = whole.checked_mul(scale).and_then(|n| total.checked_add(n)).ok_or_else(error)?;
        let mut part = scale;
        for digit in fraction.bytes() {
            part /= 10;
            total += u128::from(digit - b'0') * part;
        }
        rest = tail;
    }
    i64::try_from(total).map(i64::unsigned_abs).map_err(|_| error())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn table() {
        for (text, expected) in [
            ("0", Some(0)),
            ("30s", Some(30_000_000_000)),
            ("1m30s", Some(90_000_000_000)),
            ("1.5s", Some(1_500_000_000)),
            (".5ms", Some(500_000)),
            ("2h", Some(7_200_000_000_000)),
            ("", None),
            ("5", None),
            ("-1s", None),
            ("s", None),
            ("1..5s", None),
            ("1d", None),
            ("99999999999h", None),
        ] {
            assert_eq!(parse(text).ok(), expected, "{text}");
        }
    }
}
