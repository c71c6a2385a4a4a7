//! What is said of an instance whose ports do not accept.

use std::collections::BTreeSet;

use kiln_core::compose::{Expose, NetworkMode, Protocol};
use kiln_core::release::Settings;

use super::stage::Instance;

/// The word for one that serves and accepts nowhere.
pub(crate) const SILENT: &str = "silent";

/// Whether an instance is ready when its ports accept, because nothing else says so. Those of the
/// host's network cannot be told from the host's own.
pub(crate) fn by_ports(settings: &Settings) -> bool {
    settings.healthcheck.is_none()
        && !counted(settings).is_empty()
        && settings.network_mode != Some(NetworkMode::Host)
}

/// The ports by which it is told: of UDP only published ones, for an image that exposes a port for
/// datagrams need not have anybody there.
pub(crate) fn counted(settings: &Settings) -> BTreeSet<Expose> {
    let published = |expose: &Expose| {
        let same = |target, protocol| expose.target == target && expose.protocol == protocol;
        settings.ports.values().flatten().any(|port| same(port.target, port.protocol))
    };
    let counts = |expose: &&Expose| expose.protocol == Protocol::Tcp || published(expose);
    settings.expose.iter().filter(counts).copied().collect()
}

/// Ports that accepted before, belong to the service still, and do not accept.
pub(crate) fn lost(instance: &Instance, settings: &Settings) -> Vec<Expose> {
    let open = instance.open.clone().unwrap_or_default();
    let gone = instance.before.difference(&open).copied();
    gone.filter(|port| settings.expose.contains(port)).collect()
}

/// What does not accept, and where its processes listen instead.
pub(crate) fn sentence(instance: &Instance, settings: &Settings) -> String {
    let lost = lost(instance, settings);
    let what = match lost.as_slice() {
        [] => {
            let all: Vec<Expose> = counted(settings).into_iter().collect();
            format!("nothing accepts on {}", listed(&all))
        }
        lost => format!("nothing accepts on {}, as the release before does", listed(lost)),
    };
    format!("{what}; {}", listens(instance))
}

fn listed(ports: &[Expose]) -> String {
    let words: Vec<String> =
        ports.iter().map(|port| format!("{}/{}", port.target, word(port.protocol))).collect();
    words.join(", ")
}

fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

/// Where the processes of an instance listen, and what that means.
fn listens(instance: &Instance) -> String {
    let found = instance.running.as_ref().map(|running| running.listening());
    let found = match found {
        Some(Ok(found)) => found,
        _ => return "where its processes listen is not known".into(),
    };
    if found.is_empty() {
        return "its processes listen nowhere".into();
    }
    let at: BTreeSet<String> =
        found.iter().map(|(protocol, at)| format!("{at}/{}", word(*protocol))).collect();
    let at: Vec<String> = at.into_iter().collect();
    let all_inside = found.iter().all(|(_, at)| at.ip().is_loopback());
    let hint = if all_inside { ", where nobody else reaches them: listen on 0.0.0.0" } else { "" };
    format!("its processes listen on {}{hint}", at.join(", "))
}
