//! `ports` and `expose`.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::error::ComposeError;
use super::keys;
use super::model::{Expose, Port, Protocol};
use super::reader::At;

/// How many ports one range may have.
const MAX_RANGE: usize = 1024;

/// Reads `ports`, short and long forms; equal ones are kept once.
pub(super) fn published(at: &At<'_>) -> Result<Vec<Port>, ComposeError> {
    let mut ports: Vec<Port> = Vec::new();
    for item in at.items()? {
        let read = if item.is_map() { long(&item).map(|port| vec![port]) } else { short(&item) };
        for port in at.cx.keep(read).unwrap_or_default() {
            let same = |old: &&mut Port| {
                (old.host_ip, old.published, old.target, old.protocol)
                    == (port.host_ip, port.published, port.target, port.protocol)
            };
            match ports.iter_mut().find(same) {
                Some(old) => *old = port,
                None => ports.push(port),
            }
        }
    }
    Ok(ports)
}

/// `[[HOST_IP:]HOST:]TARGET[/PROTOCOL]`, each of the two a port or a range.
fn short(at: &At<'_>) -> Result<Vec<Port>, ComposeError> {
    let text = at.text()?;
    let (rest, protocol) = match text.rsplit_once('/') {
        Some((rest, protocol)) => (rest, protocol_of(at, protocol)?),
        None => (text.as_str(), Protocol::Tcp),
    };
    let (rest, target) = match rest.rsplit_once(':') {
        Some((rest, target)) => (Some(rest), target),
        None => (None, rest),
    };
    let (host_ip, host) = match rest {
        None => (None, ""),
        Some(rest) => match rest.rsplit_once(':') {
            // Text that a variable left empty says no address.
            Some(("", host)) => (None, host),
            Some((ip, host)) => (Some(address(at, ip)?), host),
            None => (None, rest),
        },
    };
    let targets = range(at, target)?;
    if targets.start() == &0 {
        return Err(at.error("the port of the instance cannot be 0"));
    }
    let hosts = if host.is_empty() { None } else { Some(range(at, host)?) };
    if let Some(hosts) = &hosts
        && targets.len() == 1
        && hosts.len() > 1
    {
        let port = Port {
            host_ip,
            published: first(at, hosts),
            target: *targets.start(),
            protocol,
            app_protocol: None,
        };
        return Ok(vec![port]);
    }
    if let Some(hosts) = &hosts
        && hosts.len() != targets.len()
    {
        return Err(at
            .error(format!("{} host ports stand for {} ports", hosts.len(), targets.len()))
            .with_hint("both ranges need the same length"));
    }
    let host = |at: usize| hosts.as_ref().and_then(|hosts| hosts.clone().nth(at)).unwrap_or(0);
    let port =
        |(at, target)| Port { host_ip, published: host(at), target, protocol, app_protocol: None };
    Ok(targets.enumerate().map(port).collect())
}

/// Any host port of the range will do for the one of the instance: it is the first, as it is there
/// where nobody else holds that one.
fn first(at: &At<'_>, hosts: &RangeInclusive<u16>) -> u16 {
    at.list_as(&format!("of the range it is the host port {}", hosts.start()));
    *hosts.start()
}

fn long(at: &At<'_>) -> Result<Port, ComposeError> {
    let mut port = Port {
        host_ip: None,
        published: 0,
        target: 0,
        protocol: Protocol::Tcp,
        app_protocol: None,
    };
    for key in at.entries()? {
        if !keys::PORT.admit(&key)? || key.is_unset() {
            continue;
        }
        match key.key() {
            "target" => port.target = key.number("a port from 1 to 65535")?,
            "published" => {
                let text = key.text()?;
                let hosts = range(&key, &text)?;
                port.published =
                    if hosts.len() == 1 { *hosts.start() } else { first(&key, &hosts) };
            }
            "host_ip" => {
                let text = key.text()?;
                port.host_ip = if text.is_empty() { None } else { Some(address(&key, &text)?) };
            }
            "protocol" => port.protocol = protocol_of(&key, &key.text()?)?,
            _ => port.app_protocol = Some(key.text()?),
        }
    }
    if port.target == 0 {
        return Err(at.error("`target`, the port of the instance, is missing"));
    }
    Ok(port)
}

/// Reads `expose`.
pub(super) fn expose(at: &At<'_>) -> Result<Vec<Expose>, ComposeError> {
    let mut all = Vec::new();
    for item in at.items()?.filter(|item| !item.is_unset()) {
        for expose in at.cx.keep(exposed(&item)).unwrap_or_default() {
            if !all.contains(&expose) {
                all.push(expose);
            }
        }
    }
    Ok(all)
}

fn exposed(item: &At<'_>) -> Result<Vec<Expose>, ComposeError> {
    let text = item.text()?;
    let (ports, protocol) = match text.split_once('/') {
        Some((ports, protocol)) => (ports, protocol_of(item, protocol)?),
        None => (text.as_str(), Protocol::Tcp),
    };
    let ports = range(item, ports)?;
    if ports.start() == &0 {
        return Err(item.error("the port of the instance cannot be 0"));
    }
    Ok(ports.map(|target| Expose { target, protocol }).collect())
}

fn protocol_of(at: &At<'_>, text: &str) -> Result<Protocol, ComposeError> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        _ => Err(at
            .error(format!("the protocol `{text}` is not supported"))
            .with_hint("write tcp or udp")),
    }
}

fn address(at: &At<'_>, text: &str) -> Result<IpAddr, ComposeError> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().map_err(|_| {
        at.error(format!("`{text}` is no IP address"))
            .with_hint("for example \"127.0.0.1:8080:80\" or \"[::1]:8080:80\"")
    })
}

fn range(at: &At<'_>, text: &str) -> Result<RangeInclusive<u16>, ComposeError> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    // `parse` alone would take a plus sign.
    let port = |text: &str| text.parse::<u16>().ok().filter(|_| !text.starts_with('+'));
    let error = || {
        at.error(format!("`{text}` is no port or range of ports"))
            .with_hint("for example 8080, \"8080:80\" or \"8080-8081:80-81\"; ports end at 65535")
    };
    let (first, last) = port(first).zip(port(last)).ok_or_else(error)?;
    let range = first..=last;
    if range.is_empty() || range.len() > MAX_RANGE {
        return Err(at.error(format!("`{text}` is no range of 1 to {MAX_RANGE} ports")));
    }
    Ok(range)
}
