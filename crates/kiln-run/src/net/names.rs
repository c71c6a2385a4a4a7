//! What an instance reads to find others: `/etc/hosts` and `/etc/resolv.conf`.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use kiln_core::compose::Dns;

use super::NetError;

/// The text of an instance's `/etc/hosts`. Its own names lead to its own address, so that calling
/// itself never leaves it; `services` (name, virtual address) and `extra` (name, address as
/// written in `extra_hosts`) follow. The first line that names something wins, as in any such file.
pub fn hosts_file(
    own_names: &[&str],
    own_address: Ipv4Addr,
    services: &[(&str, Ipv4Addr)],
    extra: &[(&str, IpAddr)],
) -> String {
    let mut text =
        String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    if !own_names.is_empty() {
        text.push_str(&format!("{own_address}\t{}\n", own_names.join(" ")));
    }
    for (name, address) in extra {
        text.push_str(&format!("{address}\t{name}\n"));
    }
    for (name, address) in services {
        if !own_names.contains(name) {
            text.push_str(&format!("{address}\t{name}\n"));
        }
    }
    text
}

/// An instance's `/etc/resolv.conf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvConf {
    /// The file's text.
    pub text: String,
    /// What of the host's could not be taken over, for the user.
    pub warning: Option<String>,
}

/// The host's resolv.conf as far as it is of use inside an instance. A loopback address is not:
/// for that of systemd-resolved its upstream servers are taken instead, others are left out.
///
/// # Errors
/// The host's file is there and cannot be read.
pub fn resolv_conf() -> Result<ResolvConf, NetError> {
    resolv_conf_of(Path::new("/etc/resolv.conf"), Path::new("/run/systemd/resolve/resolv.conf"))
}

fn resolv_conf_of(host: &Path, upstream: &Path) -> Result<ResolvConf, NetError> {
    let text = match fs::read_to_string(host) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(source) => return Err(NetError::File { path: PathBuf::from(host), source }),
    };
    let stub = text.lines().any(|line| {
        matches!(nameserver(line), Some(address) if address == "127.0.0.53" || address == "127.0.0.54")
    });
    let source = if stub { fs::read_to_string(upstream).unwrap_or(text) } else { text };
    Ok(usable(&source))
}

fn nameserver(line: &str) -> Option<&str> {
    let mut words = line.split_ascii_whitespace();
    (words.next() == Some("nameserver")).then(|| words.next()).flatten()
}

/// IPv6 servers are of no use either: instances have no IPv6.
fn usable(text: &str) -> ResolvConf {
    let mut kept = String::new();
    let mut dropped = Vec::new();
    let mut servers = 0;
    for line in text.lines() {
        let Some(server) = nameserver(line) else {
            kept.push_str(line);
            kept.push('\n');
            continue;
        };
        match server.parse::<Ipv4Addr>() {
            Ok(address) if !address.is_loopback() && !address.is_unspecified() => {
                kept.push_str(line);
                kept.push('\n');
                servers += 1;
            }
            _ => dropped.push(server),
        }
    }
    let warning = (servers == 0).then(|| {
        let found = match dropped.as_slice() {
            [] => "it names none".to_owned(),
            all => format!("found {}", all.join(", ")),
        };
        format!(
            "/etc/resolv.conf has no name server that an instance can reach ({found}): instances \
             resolve service names only; name a server with an IPv4 address of the network there"
        )
    });
    ResolvConf { text: kept, warning }
}

/// `text` with the servers, domains and options of `dns` in the place of those that it names.
pub fn with_dns(text: &str, dns: &Dns) -> String {
    let replaced = |line: &str| match line.split_ascii_whitespace().next() {
        Some("nameserver") => !dns.servers.is_empty(),
        Some("search" | "domain") => !dns.search.is_empty(),
        Some("options") => !dns.options.is_empty(),
        _ => false,
    };
    let mut out: String =
        text.lines().filter(|line| !replaced(line)).map(|line| format!("{line}\n")).collect();
    for server in &dns.servers {
        out.push_str(&format!("nameserver {server}\n"));
    }
    // A dot alone: none.
    let search: Vec<&str> =
        dns.search.iter().map(String::as_str).filter(|domain| *domain != ".").collect();
    if !search.is_empty() {
        out.push_str(&format!("search {}\n", search.join(" ")));
    }
    if !dns.options.is_empty() {
        out.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_takes_the_place_of_the_hosts() {
        let host = "# c\nnameserver 10.0.0.1\nsearch a.org\noptions edns0\n";
        assert_eq!(with_dns(host, &Dns::default()), host);
        let dns = Dns {
            servers: vec![IpAddr::from([1, 1, 1, 1]), IpAddr::from([8, 8, 8, 8])],
            search: vec!["x.org".into(), "y.org".into()],
            options: vec!["ndots:2".into()],
        };
        assert_eq!(
            with_dns(host, &dns),
            "# c\nnameserver 1.1.1.1\nnameserver 8.8.8.8\nsearch x.org y.org\noptions ndots:2\n"
        );
        let none = Dns { search: vec![".".into()], ..Dns::default() };
        assert_eq!(with_dns(host, &none), "# c\nnameserver 10.0.0.1\noptions edns0\n");
    }

    #[test]
    fn own_names_lead_home() {
        let virtual_a = Ipv4Addr::new(198, 18, 4, 0);
        let virtual_b = Ipv4Addr::new(198, 18, 4, 1);
        let text = hosts_file(
            &["web-1", "web"],
            Ipv4Addr::new(198, 18, 0, 1),
            &[("web", virtual_a), ("db", virtual_b)],
            &[("legacy", IpAddr::from([10, 0, 0, 9]))],
        );
        assert_eq!(
            text,
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             198.18.0.1\tweb-1 web\n10.0.0.9\tlegacy\n198.18.4.1\tdb\n"
        );
    }

    #[test]
    fn loopback_servers_are_left_out() {
        let conf =
            usable("search lan\nnameserver 127.0.0.1\nnameserver 9.9.9.9\noptions ndots:1\n");
        assert_eq!(conf.text, "search lan\nnameserver 9.9.9.9\noptions ndots:1\n");
        assert_eq!(conf.warning, None);
        let conf = usable("nameserver 127.0.0.1\nnameserver fe80::1%eth0\n");
        assert_eq!(conf.text, "");
        assert!(conf.warning.unwrap().contains("127.0.0.1, fe80::1%eth0"));
    }

    #[test]
    fn behind_the_stub_are_its_upstream_servers() {
        let dir = tempfile::tempdir().unwrap();
        let (host, upstream) = (dir.path().join("host"), dir.path().join("upstream"));
        fs::write(&host, "nameserver 127.0.0.53\noptions edns0\n").unwrap();
        let without = resolv_conf_of(&host, &upstream).unwrap();
        assert!(without.warning.is_some());
        fs::write(&upstream, "nameserver 192.0.2.7\n").unwrap();
        let conf = resolv_conf_of(&host, &upstream).unwrap();
        assert_eq!(conf.text, "nameserver 192.0.2.7\n");
        assert_eq!(resolv_conf_of(&dir.path().join("none"), &upstream).unwrap().text, "");
    }
}
