//! The ports of EXPOSE: `80`, `53/udp`, `8000-8010/tcp`, and the form with an address and a port
//! of the host that old files have, which is checked and of which only the last part counts.

use std::net::IpAddr;

/// `port/protocol` for each port that `spec` names.
///
/// # Errors
/// Says what is wrong with it.
pub fn parse(spec: &str) -> Result<Vec<String>, String> {
    let mut parts = spec.rsplitn(3, ':');
    let container = parts.next().unwrap_or_default();
    let host_port = parts.next().unwrap_or_default();
    let address = parts.next().unwrap_or_default();
    let (range, protocol) = container.split_once('/').unwrap_or((container, ""));
    if range.is_empty() {
        return Err(format!("invalid port: \"{spec}\": no port specified"));
    }
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "" => "tcp".to_owned(),
        known @ ("tcp" | "udp" | "sctp") => known.to_owned(),
        other => return Err(format!("invalid port: \"{spec}\": invalid proto: {other}")),
    };
    let bare = match address.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').unwrap_or("["),
        None => address,
    };
    if !bare.is_empty() && bare.parse::<IpAddr>().is_err() {
        return Err(format!("invalid IP address: {bare}"));
    }
    let wrong = |what: &str, text: &str| format!("invalid {what}: {text}");
    let (first, last) = numbers(range).ok_or_else(|| wrong("containerPort", range))?;
    if !host_port.is_empty() {
        let (from, to) = numbers(host_port).ok_or_else(|| wrong("hostPort", host_port))?;
        if last - first != to - from && last != first {
            return Err(format!(
                "invalid ranges specified for container and host Ports: {range} and {host_port}"
            ));
        }
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

/// `80` or `80-90`.
fn numbers(range: &str) -> Option<(u16, u16)> {
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last))
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
            ("80:8080/udp", Some(&["8080/udp"])),
            ("0.0.0.0:1234-1235:3333-3334/tcp", Some(&["3333/tcp", "3334/tcp"])),
            ("8000-9000:80", Some(&["80/tcp"])),
            ("[2001:4860:0:2001::68]::333", Some(&["333/tcp"])),
            ("[::1]:80:80", Some(&["80/tcp"])),
            ("2001:4860:0:2001::68::333", Some(&["333/tcp"])),
            ("::1:80:80", Some(&["80/tcp"])),
            ("::::80", Some(&["80/tcp"])),
            ("80/", Some(&["80/tcp"])),
            ("", None),
            ("/tcp", None),
            ("0.0.0.0:1234-1235:", None),
            ("0.0.0.0:1234-1235:/tcp", None),
            ("localhost:80:80", None),
            ("[::1:80:80", None),
            ("x:80", None),
            ("80-81:80-82", None),
            ("80/http", None),
            ("70000", None),
            ("9-8", None),
            ("8-", None),
            ("x", None),
        ];
        for (spec, expected) in table {
            let found = parse(spec).ok();
            let expected = expected.map(|ports| ports.iter().map(|p| (*p).to_owned()).collect());
            assert_eq!(found, expected, "{spec}");
        }
    }
}
