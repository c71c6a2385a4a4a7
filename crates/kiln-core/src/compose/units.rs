//! Scalars with a unit or a grammar of their own: byte sizes, durations, cpus, modes, commands.

/// Bytes: a number with `b`, `k`, `m`, `g`, `t` or `p` (also `kb`, `kib` …), in powers of 1024, as
/// Docker reads them.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|letter: char| !letter.is_ascii_digit() && letter != '.');
    let (number, unit) = lower.split_at(digits.unwrap_or(lower.len()));
    let shift = match unit.trim_start() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        _ => return None,
    };
    let factor = 1_u64 << shift;
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    scaled(number, factor)
}

/// A duration in nanoseconds: `1h30m`, `1.5s`, `500ms`, `100us`. A zero needs no unit.
pub(super) fn duration(text: &str) -> Option<u64> {
    let mut rest = text.trim();
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0_u64;
    while !rest.is_empty() {
        let end = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let (number, tail) = rest.split_at(end);
        let end = tail.find(|letter: char| letter.is_ascii_digit() || letter == '.');
        let (unit, tail) = tail.split_at(end.unwrap_or(tail.len()));
        let nanoseconds = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "d" => 86_400_000_000_000,
            "w" => 604_800_000_000_000,
            _ => return None,
        };
        total = total.checked_add(scaled(number, nanoseconds)?)?;
        rest = tail;
    }
    Some(total)
}

/// Billionths of a cpu: `0.5`, `2`.
pub(super) fn nano_cpus(text: &str) -> Option<u64> {
    scaled(text.trim(), 1_000_000_000)
}

/// `number` (decimal, perhaps with a fraction) times `factor`, rounded down, without floats.
fn scaled(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !digits(whole) || !digits(fraction) {
        return None;
    }
    let whole = if whole.is_empty() { 0 } else { whole.parse::<u128>().ok()? };
    let mut total = whole.checked_mul(u128::from(factor))?;
    let fraction = &fraction[..fraction.len().min(18)];
    if !fraction.is_empty() {
        let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
        total += fraction.parse::<u128>().ok()? * u128::from(factor) / scale;
    }
    u64::try_from(total).ok()
}

/// Permission bits in octal: `0440`, `440`, `0o440`.
pub(super) fn octal(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    u32::from_str_radix(digits, 8).ok().filter(|mode| *mode <= 0o7777)
}

/// A truth value as Compose takes it.
pub(super) fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "y" | "on" | "1" => Some(true),
        "false" | "no" | "n" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// A number as YAML writes it, in the form in which Compose hands it on as text: `0x10` is `16`,
/// `1.50` is `1.5`. `None`: it is no number.
pub(super) fn number_as_text(text: &str) -> Option<String> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let sign = if text.starts_with('-') { "-" } else { "" };
    if !unsigned.starts_with(|letter: char| letter.is_ascii_digit() || letter == '.') {
        return None;
    }
    let radix =
        |prefix: &str, radix| u64::from_str_radix(unsigned.strip_prefix(prefix)?, radix).ok();
    // YAML 1.1 takes a leading zero for octal, and Compose still does.
    let octal = || unsigned.strip_prefix('0').and_then(|rest| u64::from_str_radix(rest, 8).ok());
    if let Some(number) =
        radix("0x", 16).or_else(|| radix("0o", 8)).or_else(|| radix("0b", 2)).or_else(octal)
    {
        return Some(format!("{sign}{number}"));
    }
    if unsigned.bytes().all(|byte| byte.is_ascii_digit()) {
        // A run of digits with 8 or 9 after a leading zero is text.
        return (unsigned == "0" || !unsigned.starts_with('0'))
            .then(|| format!("{sign}{unsigned}"));
    }
    let float = |byte: u8| byte.is_ascii_digit() || b".eE+-".contains(&byte);
    if !unsigned.bytes().all(float) || !unsigned.contains(['.', 'e', 'E']) {
        return None;
    }
    // Beyond that, the plain form of a float is no longer the one that Compose writes.
    let value = text.parse::<f64>().ok().filter(|value| value.abs() < 1e15)?;
    Some(if value != 0.0 && value.abs() < 1e-4 { text.to_owned() } else { format!("{value}") })
}

/// Splits a command line into words as a shell does, without expanding anything.
///
/// # Errors
/// What is open at the end.
pub(super) fn words(text: &str) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            ' ' | '\t' | '\n' | '\r' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match letters.next() {
                        Some('\'') => break,
                        Some(letter) => word.push(letter),
                        None => return Err("a single quote is never closed"),
                    }
                }
            }
            '"' => double_quoted(&mut letters, word.get_or_insert_default())?,
            '\\' => match letters.next() {
                Some(letter) => word.get_or_insert_default().push(letter),
                None => return Err("a backslash ends it"),
            },
            letter => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    Ok(words)
}

fn double_quoted(letters: &mut std::str::Chars<'_>, word: &mut String) -> Result<(), &'static str> {
    const OPEN: &str = "a double quote is never closed";
    loop {
        match letters.next().ok_or(OPEN)? {
            '"' => return Ok(()),
            '\\' => match letters.next().ok_or(OPEN)? {
                letter @ ('"' | '\\') => word.push(letter),
                letter => word.extend(['\\', letter]),
            },
            letter => word.push(letter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_sizes() {
        for (text, expected) in [
            ("64m", Some(64 << 20)),
            ("1gb", Some(1 << 30)),
            ("1.5G", Some(3 << 29)),
            ("512", Some(512)),
            ("2b", Some(2)),
            ("10 kB", Some(10_240)),
            ("1KiB", Some(1024)),
            ("1p", Some(1 << 50)),
            ("", None),
            ("m", None),
            ("-1", None),
            ("1x", None),
            ("1.2.3m", None),
            ("99999999999p", None),
        ] {
            assert_eq!(bytes(text), expected, "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, expected) in [
            ("10s", Some(10_000_000_000)),
            ("1m30s", Some(90_000_000_000)),
            ("1h", Some(3_600_000_000_000)),
            ("1h5m30s20ms", Some(3_930_020_000_000)),
            ("500ms", Some(500_000_000)),
            ("100us", Some(100_000)),
            ("1.5s", Some(1_500_000_000)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("10", None),
            ("", None),
            ("s", None),
            ("1 s", None),
            ("-1s", None),
            ("1y", None),
            ("99999999999h", None),
        ] {
            assert_eq!(duration(text), expected, "{text}");
        }
    }

    #[test]
    fn cpus_modes_truths() {
        assert_eq!(nano_cpus("0.5"), Some(500_000_000));
        assert_eq!(nano_cpus("2"), Some(2_000_000_000));
        assert_eq!(nano_cpus(".25"), Some(250_000_000));
        assert_eq!(nano_cpus("two"), None);
        assert_eq!(octal("0440"), Some(0o440));
        assert_eq!(octal("1777"), Some(0o1777));
        assert_eq!(octal("0o755"), Some(0o755));
        assert_eq!(octal("888"), None);
        assert_eq!(octal("77777"), None);
        assert_eq!(truth("Yes"), Some(true));
        assert_eq!(truth("off"), Some(false));
        assert_eq!(truth("maybe"), None);
    }

    #[test]
    fn numbers() {
        for (text, expected) in [
            ("5", Some("5")),
            ("-5", Some("-5")),
            ("0x10", Some("16")),
            ("0o17", Some("15")),
            ("017", Some("15")),
            ("019", None),
            ("1.50", Some("1.5")),
            ("1e3", Some("1000")),
            ("1.2.3", None),
            ("2024-01-01", None),
            ("abc", None),
            ("10m", None),
            ("0", Some("0")),
            ("", None),
        ] {
            assert_eq!(number_as_text(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn shell_words() {
        let cases: [(&str, &[&str]); 8] = [
            ("a b  c", &["a", "b", "c"]),
            ("sh -c 'echo $HOME \"x\"'", &["sh", "-c", "echo $HOME \"x\""]),
            ("a \"b c\" d", &["a", "b c", "d"]),
            ("a\\ b", &["a b"]),
            ("\"a\\\"b\\n\"", &["a\"b\\n"]),
            ("'' x", &["", "x"]),
            ("pre'mid'\"post\"", &["premidpost"]),
            ("", &[]),
        ];
        for (text, expected) in cases {
            assert_eq!(words(text).unwrap(), expected, "{text}");
        }
        for open in ["'a", "\"a", "a\\"] {
            assert!(words(open).is_err(), "{open}");
        }
    }
}
