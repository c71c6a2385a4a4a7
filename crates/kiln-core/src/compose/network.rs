//! `networks`, `network_mode`, `links`, `hostname` and `extra_hosts`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::error::ComposeError;
use super::keys;
use super::model::{Condition, Dependency, Network, NetworkMode, Service};
use super::reader::At;

/// The network that is always there.
const DEFAULT: &str = "default";

/// Reads `networks` at the top. `project` is the project's name.
pub(super) fn top(at: &At<'_>, project: &str) -> Result<BTreeMap<String, Network>, ComposeError> {
    let mut networks = BTreeMap::new();
    for network in at.entries()? {
        // One that is refused is there all the same: those on it are not refused for that, too.
        let read = at.cx.keep(one(&network, project)).unwrap_or_default();
        networks.insert(network.key().to_owned(), read);
    }
    Ok(networks)
}

/// One network at the top. With a name of its own, or from elsewhere, it is one that others have a
/// part in.
fn one(at: &At<'_>, project: &str) -> Result<Network, ComposeError> {
    let mut network = Network::default();
    let (mut name, mut external, mut joinable) = (None, false, false);
    for key in at.entries()? {
        if !keys::TOP_NETWORK.admit(&key)? || key.is_null() {
            continue;
        }
        match key.key() {
            "driver" => driver(&key)?,
            "internal" => network.internal = key.truth()?,
            // `external: { name: x }` is how it was written before `name` had a key of its own.
            "external" if key.is_map() => {
                external = true;
                name = key.get("name").map(|name| name.text()).transpose()?.or(name);
            }
            "external" => external = key.truth()?,
            "name" => name = Some(key.text()?).filter(|name| !name.is_empty()),
            "enable_ipv4" | "enable_ipv6" => ip_version(&key)?,
            _ => joinable = joinable_of(&key)?,
        }
    }
    if external && name.as_deref().is_some_and(is_one_of_dockers) {
        let name = name.unwrap_or_default();
        return Err(at
            .refuse(format!("the network `{name}` of Docker's is none that can be joined"))
            .with_hint(format!("write `network_mode: {name}` in the services that are on it")));
    }
    let own = format!("{project}_{}", at.key());
    let usual = if external { at.key().to_owned() } else { own };
    network.external = external;
    network.joined = match (name, external || joinable) {
        (Some(name), _) => Some(name),
        (None, true) => Some(usual),
        (None, false) => None,
    };
    Ok(network)
}

fn is_one_of_dockers(name: &str) -> bool {
    matches!(name, "host" | "none" | "bridge")
}

fn driver(at: &At<'_>) -> Result<(), ComposeError> {
    let text = at.text()?;
    match text.as_str() {
        "" | "default" | "bridge" => at.list(),
        "overlay" => at.list_as("there is one machine, so it is as `bridge`"),
        "host" | "none" => {
            return Err(at
                .error(format!("a network of driver `{text}` is not supported"))
                .with_hint(format!(
                    "write `network_mode: {text}` in the services that are on it"
                )));
        }
        _ => {
            return Err(at
                .error(format!("the driver `{text}` is not supported"))
                .with_hint("leave `driver` out: networks lie within this machine"));
        }
    }
    Ok(())
}

fn ip_version(at: &At<'_>) -> Result<(), ComposeError> {
    if at.key() == "enable_ipv4" && !at.truth()? {
        return Err(at
            .refuse("a network without IPv4 is not supported")
            .with_hint("leave `enable_ipv4` out: instances reach one another by IPv4"));
    }
    if at.key() == "enable_ipv6" && at.truth()? {
        at.list_as("instances reach one another by IPv4; published ports have IPv6");
    } else {
        at.list();
    }
    Ok(())
}

fn joinable_of(at: &At<'_>) -> Result<bool, ComposeError> {
    let mut joinable = false;
    for key in at.entries()? {
        if keys::KILN_NETWORK.admit(&key)? && !key.is_null() {
            joinable = key.truth()?;
        }
    }
    Ok(joinable)
}

/// `networks` of a service: each with the service's aliases there.
pub(super) fn of_service(
    at: &At<'_>,
    top: &BTreeMap<String, Network>,
) -> Result<Option<BTreeMap<String, BTreeSet<String>>>, ComposeError> {
    let mut all = BTreeMap::new();
    for network in at.entries()? {
        let name = network.key();
        if name != DEFAULT && !top.contains_key(name) {
            let error = network
                .refuse(format!("there is no network `{name}`"))
                .with_hint(format!("declare it at the top: `networks: {{ {name}: {{}} }}`"))
                .with_closest(name, top.keys().map(String::as_str));
            at.cx.refuse(error);
            continue;
        }
        let aliases = at.cx.keep(membership(&network)).unwrap_or_default();
        all.insert(name.to_owned(), aliases);
    }
    // An empty list leaves the service where it would be without it, as in Compose.
    Ok((!all.is_empty()).then_some(all))
}

fn membership(network: &At<'_>) -> Result<BTreeSet<String>, ComposeError> {
    let mut aliases = BTreeSet::new();
    for key in network.entries()? {
        match key.key() {
            "ipv4_address" | "ipv6_address" | "link_local_ips" | "mac_address"
                if !key.is_null() =>
            {
                key.list_as(keys::OWN_ADDRESSES);
                continue;
            }
            _ if !keys::NETWORK.admit(&key)? => continue,
            _ => {}
        }
        for item in key.items()? {
            let alias = item.text()?;
            if !is_host_name(&alias) {
                return Err(no_host_name(&item, &alias));
            }
            aliases.insert(alias);
        }
    }
    Ok(aliases)
}

/// Reads `network_mode`. `containers` are the services by their `container_name`: there are no
/// other containers whose network one could join.
pub(super) fn mode(
    at: &At<'_>,
    containers: &BTreeMap<String, String>,
) -> Result<Option<NetworkMode>, ComposeError> {
    let text = at.text()?;
    Ok(Some(match text.as_str() {
        "" | "default" => return Ok(None),
        "none" => NetworkMode::None,
        "bridge" => NetworkMode::Bridge,
        "host" => NetworkMode::Host,
        other => match other.split_once(':') {
            Some(("service", name)) if !name.is_empty() => NetworkMode::Service(name.to_owned()),
            Some(("container", name)) => match containers.get(name) {
                Some(service) => NetworkMode::Service(service.clone()),
                None => {
                    return Err(at
                        .error(format!("`{text}` names a container that is none of this project's"))
                        .with_hint("write a service of the project: `service:NAME`"));
                }
            },
            _ => {
                return Err(at.error(format!("there is no network mode `{text}`")).with_hint(
                    "one of none, bridge, host, service:NAME; a network is named under `networks`",
                ));
            }
        },
    }))
}

/// Reads `links`: `SERVICE` or `SERVICE:ALIAS`. Who links to a service waits for it.
pub(super) fn links(at: &At<'_>, service: &mut Service) -> Result<(), ComposeError> {
    for item in at.items()? {
        let Some(text) = at.cx.keep(item.text()) else { continue };
        let (name, alias) = text.split_once(':').unwrap_or((&text, &text));
        if name.is_empty() || !is_host_name(alias) {
            let error = item.error(format!("`{text}` is no `SERVICE` or `SERVICE:ALIAS`"));
            at.cx.refuse(error.with_hint("for example \"db\" or \"db:database\""));
            continue;
        }
        service.links.insert(alias.to_owned(), name.to_owned());
    }
    Ok(())
}

/// What only the whole service shows: modes that leave no room for networks or ports, and what it
/// waits for because it needs the other's network or name.
pub(super) fn settle(at: &At<'_>, service: &mut Service) -> Result<(), ComposeError> {
    let started = Dependency { condition: Condition::ServiceStarted, required: true };
    for name in service.links.values() {
        service.depends_on.entry(name.clone()).or_insert_with(|| started.clone());
    }
    let Some(mode) = service.network_mode.clone() else { return Ok(()) };
    if let Some(networks) = at.get("networks").filter(|networks| !networks.is_null()) {
        return Err(networks
            .refuse("`networks` stands beside `network_mode`")
            .with_hint("keep one: with `network_mode` a service is on none of the networks"));
    }
    match mode {
        NetworkMode::Service(name) => {
            // It lives in that one's network, so that one is there first.
            service.depends_on.entry(name).or_insert(started);
        }
        NetworkMode::None | NetworkMode::Host => {
            if let Some(ports) = at.get("ports").filter(|_| !service.ports.is_empty()) {
                ports.list_as("with this `network_mode` nothing is published");
            }
        }
        NetworkMode::Bridge => {}
    }
    Ok(())
}

/// Reads `hostname`.
pub(super) fn hostname(at: &At<'_>) -> Result<String, ComposeError> {
    let text = at.text()?;
    // The kernel's limit, sethostname(2).
    if is_host_name(&text) && text.len() <= 64 { Ok(text) } else { Err(no_host_name(at, &text)) }
}

fn no_host_name(at: &At<'_>, text: &str) -> ComposeError {
    at.error(format!("`{text}` is no host name")).with_hint("use letters, digits, `-`, `_` and `.`")
}

fn is_host_name(text: &str) -> bool {
    let valid = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    !text.is_empty() && text.len() <= 253 && text.chars().all(valid)
}

/// Reads `extra_hosts`: `name=address` or `name:address`, several addresses with commas between
/// them. `host-gateway` stays as the word.
pub(super) fn extra_hosts(at: &At<'_>) -> Result<Vec<(String, String)>, ComposeError> {
    let mut all = Vec::new();
    for item in at.items()? {
        for pair in at.cx.keep(extra_host(&item)).into_iter().flatten() {
            if !all.contains(&pair) {
                all.push(pair);
            }
        }
    }
    Ok(all)
}

fn extra_host(item: &At<'_>) -> Result<Vec<(String, String)>, ComposeError> {
    let text = item.text()?;
    let Some((name, addresses)) = text.split_once('=').or_else(|| text.split_once(':')) else {
        return Err(item
            .error(format!("`{text}` is no `name=address`"))
            .with_hint("for example \"db=10.0.0.5\""));
    };
    let name = name.trim();
    if !is_host_name(name) {
        return Err(no_host_name(item, name));
    }
    if addresses.trim().is_empty() {
        // A variable left it empty, and Compose takes it, too.
        item.list_as("without an address");
        return Ok(Vec::new());
    }
    let address = |address: &str| {
        let address = address.trim();
        let bare = address.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        let bare = bare.unwrap_or(address);
        if bare != "host-gateway" && bare.parse::<IpAddr>().is_err() {
            let error = item.error(format!("`{address}` is no IP address"));
            item.cx.refuse_to_run(
                error.with_hint("write an address, or `host-gateway` for the host's"),
            );
        }
        (name.to_owned(), bare.to_owned())
    };
    Ok(addresses.split(',').map(address).collect())
}
