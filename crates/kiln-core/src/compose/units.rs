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

/// A duration as Go prints it: `1m30s`, `1.5s`, `500ms`, `0s`.
pub(super) fn span_as_text(nanoseconds: u64) -> String {
    let decimal = |value: u64, unit: u64| {
        let fraction = format!("{:01$}", value % unit, unit.ilog10() as usize);
        let fraction = fraction.trim_end_matches('0');
        let point = if fraction.is_empty() || unit == 1 { "" } else { "." };
        let fraction = if unit == 1 { "" } else { fraction };
        format!("{}{point}{fraction}", value / unit)
    };
    const SECOND: u64 = 1_000_000_000;
    match nanoseconds {
        0 => "0s".into(),
        1..1_000 => format!("{nanoseconds}ns"),
        1_000..1_000_000 => format!("{}µs", decimal(nanoseconds, 1_000)),
        1_000_000..SECOND => format!("{}ms", decimal(nanoseconds, 1_000_000)),
        _ => {
            let (minutes, rest) = (nanoseconds / (60 * SECOND), nanoseconds % (60 * SECOND));
            let seconds = decimal(rest, SECOND);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, minutes) => format!("{minutes}m{seconds}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    }
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

/// A plain scalar that YAML takes for a number, in the form in which Compose hands it on as text:
/// `0x10` is `16`, `1_000` is `1000`, `1.50` is `1.5`. `None`: it is no number.
pub(super) fn number_as_text(text: &str) -> Option<String> {
    match text.trim_start_matches(['-', '+']) {
        ".inf" | ".Inf" | ".INF" if text.len() - 4 < 2 => {
            return Some(if text.starts_with('-') { "-Inf" } else { "+Inf" }.into());
        }
        ".nan" | ".NaN" | ".NAN" if text.starts_with('.') => return Some("NaN".into()),
        _ => {}
    }
    let plain = text.replace('_', "");
    let unsigned = plain.strip_prefix(['-', '+']).unwrap_or(&plain);
    if !text.starts_with(|letter: char| letter.is_ascii_digit() || "+-.".contains(letter))
        || !unsigned.starts_with(|letter: char| letter.is_ascii_digit() || letter == '.')
    {
        return None;
    }
    if let Some(whole) = whole(unsigned) {
        let sign = if plain.starts_with('-') && whole != 0 { "-" } else { "" };
        return Some(format!("{sign}{whole}"));
    }
    is_float(unsigned).then(|| plain.parse().map(float_as_text).ok()).flatten()
}

/// A whole number with the prefixes of Go: `0x`, `0o`, `0b`, and a zero for octal.
fn whole(text: &str) -> Option<u64> {
    let radix = |prefixes: [&str; 2], radix| {
        let digits = prefixes.iter().find_map(|prefix| text.strip_prefix(prefix))?;
        (!digits.starts_with('+')).then(|| u64::from_str_radix(digits, radix).ok())?
    };
    radix(["0x", "0X"], 16)
        .or_else(|| radix(["0o", "0O"], 8))
        .or_else(|| radix(["0b", "0B"], 2))
        .or_else(|| match text.strip_prefix('0') {
            Some(rest) if !rest.is_empty() => u64::from_str_radix(rest, 8).ok(),
            _ => text.parse().ok().filter(|_| !text.starts_with('+')),
        })
}

/// Digits with at most one point, and perhaps an exponent.
fn is_float(text: &str) -> bool {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (text, None),
    };
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let exponent = exponent.map(|text| text.strip_prefix(['-', '+']).unwrap_or(text));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    digits(whole)
        && digits(fraction)
        && !(whole.is_empty() && fraction.is_empty())
        && exponent.is_none_or(|text| !text.is_empty() && digits(text))
}

/// As Go prints a float: the shortest form, with an exponent below 1e-4 and from 1e6 on.
pub(super) fn float_as_text(value: f64) -> String {
    let short = format!("{value:e}");
    let exponent = short.split_once('e').and_then(|(_, text)| text.parse::<i32>().ok());
    match (short.split_once('e'), exponent) {
        (Some((mantissa, _)), Some(exponent)) if !(-4..6).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs())
        }
        _ => format!("{value}"),
    }
}

/// What [`words`] makes of a command line.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Words {
    pub(super) words: Vec<String>,
    /// A sign of the shell (`;`, `|`, `>` …) stands outside of quotes: as in Compose, it and all
    /// behind it is no part of the command.
    pub(super) cut: Option<char>,
}

/// Splits a command line into words, as Compose does: quotes as in a shell, nothing expanded; a
/// backslash outside of single quotes stands for the next letter.
///
/// # Errors
/// What is open at the end.
pub(super) fn words(text: &str) -> Result<Words, &'static str> {
    let mut all = Words::default();
    let mut word: Option<String> = None;
    let (mut escaped, mut open) = (false, None);
    for letter in text.chars() {
        if std::mem::take(&mut escaped) {
            word.get_or_insert_default().push(letter);
            continue;
        }
        match (letter, open) {
            ('\\', Some('\'')) => word.get_or_insert_default().push('\\'),
            ('\\', _) => escaped = true,
            (' ' | '\t' | '\r' | '\n', None) => all.words.extend(word.take()),
            ('"' | '\'', None) => {
                open = Some(letter);
                word.get_or_insert_default();
            }
            ('"' | '\'', Some(quote)) if quote == letter => open = None,
            ('`', None | Some('`')) => {
                open = if open.is_none() { Some('`') } else { None };
                word.get_or_insert_default().push('`');
            }
            ('(', None) if word.as_ref().is_some_and(|word| word.ends_with('$')) => {
                open = Some(')');
                word.get_or_insert_default().push('(');
            }
            ('(' | ')', None) => return Err("a bracket stands outside of quotes"),
            (')', Some(')')) => {
                open = None;
                word.get_or_insert_default().push(')');
            }
            (';' | '&' | '|' | '<' | '>', None) => {
                // `2>file`: the number goes with the sign.
                let number = |word: &String| word.starts_with(|first: char| first.is_ascii_digit());
                all.words.extend(word.take().filter(|word| letter != '>' || !number(word)));
                all.cut = Some(letter);
                return Ok(all);
            }
            (letter, _) => word.get_or_insert_default().push(letter),
        }
    }
    all.words.extend(word);
    match open {
        _ if escaped => Err("a backslash ends it"),
        Some('"') => Err("a double quote is never closed"),
        Some('\'') => Err("a single quote is never closed"),
        Some('`') => Err("a backquote is never closed"),
        Some(_) => Err("`$(` is never closed"),
        None => Ok(all),
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
    fn spans_as_go_prints_them() {
        for (nanoseconds, expected) in [
            (0, "0s"),
            (5, "5ns"),
            (1_500, "1.5µs"),
            (500_000_000, "500ms"),
            (1_500_000_000, "1.5s"),
            (90_000_000_000, "1m30s"),
            (86_400_000_000_000, "24h0m0s"),
            (3_600_020_000_000, "1h0m0.02s"),
        ] {
            assert_eq!(span_as_text(nanoseconds), expected);
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
            ("+5", Some("5")),
            ("-0", Some("0")),
            ("0x10", Some("16")),
            ("0o17", Some("15")),
            ("017", Some("15")),
            ("08", Some("8")),
            ("1_000", Some("1000")),
            ("1.50", Some("1.5")),
            ("1.", Some("1")),
            (".5", Some("0.5")),
            ("1e3", Some("1000")),
            ("1e6", Some("1e+06")),
            ("999999.5", Some("999999.5")),
            ("123456789.125", Some("1.23456789125e+08")),
            ("1e21", Some("1e+21")),
            ("0.00001", Some("1e-05")),
            ("0.0001", Some("0.0001")),
            ("123456789012345678901234567890", Some("1.2345678901234568e+29")),
            (".inf", Some("+Inf")),
            ("-.Inf", Some("-Inf")),
            (".nan", Some("NaN")),
            ("1.2.3", None),
            ("2024-01-01", None),
            ("abc", None),
            ("10m", None),
            ("0", Some("0")),
            ("-", None),
            (".", None),
            ("e5", None),
            ("_1", None),
            ("", None),
        ] {
            assert_eq!(number_as_text(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn shell_words() {
        let cases: [(&str, &[&str]); 14] = [
            ("a b  c", &["a", "b", "c"]),
            ("sh -c 'echo $HOME \"x\"'", &["sh", "-c", "echo $HOME \"x\""]),
            ("a \"b c\" d", &["a", "b c", "d"]),
            ("a\\ b", &["a b"]),
            ("\"a\\\"b\"", &["a\"b"]),
            ("\"\\$HOME\"", &["$HOME"]),
            ("'' x", &["", "x"]),
            ("pre'mid'\"post\"", &["premidpost"]),
            ("", &[]),
            ("'a\\nb' \"a\\nb\"", &["a\\nb", "anb"]),
            ("x $(y z) `p q`", &["x", "$(y z)", "`p q`"]),
            ("a b; c", &["a", "b"]),
            ("a 2>/dev/null", &["a"]),
            ("a>b", &["a"]),
        ];
        for (text, expected) in cases {
            assert_eq!(words(text).unwrap().words, expected, "{text}");
        }
        assert_eq!(words("a; b").unwrap().cut, Some(';'));
        for open in ["'a", "\"a", "a\\", "`a", "$(a", "(a)", "a)"] {
            assert!(words(open).is_err(), "{open}");
        }
    }
}
