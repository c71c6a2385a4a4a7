//! The signals that STOPSIGNAL may name.

const NAMES: [&str; 32] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL",
    "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP",
    "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH",
];

/// Whether `text` is a signal: `SIGTERM`, `term`, `15`, `RTMIN+3` …
pub(crate) fn is_known(text: &str) -> bool {
    if let Ok(number) = text.parse::<u32>() {
        return (1..=64).contains(&number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |prefix: &str, sign: char, most: u32| match name.strip_prefix(prefix) {
        Some("") => true,
        Some(rest) => rest
            .strip_prefix(sign)
            .and_then(|digits| digits.parse::<u32>().ok())
            .is_some_and(|number| (1..=most).contains(&number)),
        None => false,
    };
    matches!(name, "XCPU" | "XFSZ")
        || NAMES.contains(&name)
        || offset("RTMIN", '+', 15)
        || offset("RTMAX", '-', 14)
}

#[cfg(test)]
mod tests {
    use super::is_known;

    #[test]
    fn table() {
        for good in ["SIGTERM", "term", "15", "SIGRTMIN", "RTMIN+3", "SIGRTMAX-14", "XCPU"] {
            assert!(is_known(good), "{good}");
        }
        for bad in ["", "SIG", "0", "65", "SIGFOO", "RTMIN+16", "RTMIN-1", "-9"] {
            assert!(!is_known(bad), "{bad}");
        }
    }
}
