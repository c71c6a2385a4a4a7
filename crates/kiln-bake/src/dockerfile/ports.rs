//! The ports of EXPOSE: `80`, `53/udp`, `8000-8010/tcp`, and the form with addresses that old
//! files have, of which only the last part counts.

/// `port/protocol` for each port that `spec` names.
///
/// # Errors
/// Says what is wrong with it.
pub fn parse(spec: &str) -> Result<Vec<String>, String> {
    let container = spec.rsplit(':').next().unwrap_or(spec);
    let (range, protocol) = container.split_once('/').unwrap_or((container, ""));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "" => "tcp".to_owned(),
        known @ ("tcp" | "udp" | "sctp") => known.to_owned(),
        other => return Err(format!("`{other}` in `{spec}` is not a protocol (tcp, udp, sctp)")),
    };
    let number = |text: &str| {
        text.parse::<u16>().map_err(|_| format!("`{text}` in `{spec}` is not a port (0–65535)"))
    };
    let (first, last) = match range.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => {
            let port = number(range)?;
            (port, port)
        }
    };
    if last < first {
        return Err(format!("the range of ports `{spec}` ends before it begins"));
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn table() {
        let table: &[(&str, Option<&[&str]>)] = &[
            ("80", Some(&["80/tcp"])),
            ("53/UDP", Some(&["53/udp"])),
            ("8000-8002/sctp", Some(&["8000/sctp", "8001/sctp", "8002/sctp"])),
            ("127.0.0.1:80:8080", Some(&["8080/tcp"])),
            ("80/", Some(&["80/tcp"])),
            ("", None),
            ("/tcp", None),
            ("80/http", None),
            ("70000", None),
            ("9-8", None),
            ("x", None),
        ];
        for (spec, expected) in table {
            let found = parse(spec).ok();
            let expected = expected.map(|ports| ports.iter().map(|p| (*p).to_owned()).collect());
            assert_eq!(found, expected, "{spec}");
        }
    }
}
