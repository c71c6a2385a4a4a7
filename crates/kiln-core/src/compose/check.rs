//! What only the whole project can show: dependencies that lead nowhere or in a loop, published
//! ports taken twice.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::error::ComposeError;
use super::model::{KilnSection, NetworkMode, Port, Service};
use super::reader::At;

/// Checks the services that are switched on; `inactive` are the others, with their profiles.
/// A dependency with `required: false` on a service that is not there is dropped.
pub(super) fn services(
    at: &At<'_>,
    services: &mut BTreeMap<String, Service>,
    inactive: &BTreeMap<String, Vec<String>>,
) -> Result<(), ComposeError> {
    let names: BTreeSet<String> = services.keys().cloned().collect();
    let known = || names.iter().map(String::as_str);
    let mut whole = true;
    let mut refuse = |error| {
        at.cx.refuse(error);
        whole = false;
    };
    for (name, service) in services.iter_mut() {
        service.depends_on.retain(|on, dependency| dependency.required || names.contains(on));
        for on in service.depends_on.keys().filter(|on| !names.contains(*on)) {
            let way = needed_by(service, on);
            refuse(match inactive.get(on) {
                Some(profiles) => error(at, name, &way, format!("`{on}` is switched off"))
                    .with_hint(format!(
                        "switch it on with --profile {}{}",
                        profiles.join(" or "),
                        if way[0] == "depends_on" { ", or write `required: false`" } else { "" }
                    )),
                None => error(at, name, &way, format!("there is no service `{on}`"))
                    .with_closest(on, known()),
            });
        }
        for (key, of) in built_first(service).filter(|(_, of)| !names.contains(*of)) {
            let what = format!("there is no service `{of}`");
            let way = ["build", "additional_contexts", key];
            refuse(error(at, name, &way, what).with_closest(of, known()));
        }
    }
    for (name, service) in services.iter() {
        let unbuilt = |of: &str| services.get(of).is_some_and(|service| service.build.is_none());
        for (key, of) in built_first(service).filter(|(_, of)| unbuilt(of)) {
            let what = format!("the service `{of}` has no `build`");
            refuse(error(at, name, &["build", "additional_contexts", key], what));
        }
    }
    if whole { loops(at, services) } else { Ok(()) }
}

/// The key that says that `service` needs `on`.
fn needed_by<'a>(service: &Service, on: &'a str) -> Vec<&'a str> {
    if service.network_mode == Some(NetworkMode::Service(on.to_owned())) {
        vec!["network_mode"]
    } else if service.links.values().any(|linked| linked == on) {
        vec!["links"]
    } else {
        vec!["depends_on", on]
    }
}

/// The services whose images this one's build takes files from, each with the context's name.
fn built_first(service: &Service) -> impl Iterator<Item = (&str, &str)> {
    let contexts = service.build.iter().flat_map(|build| &build.additional_contexts);
    contexts.filter_map(|(key, context)| Some((key.as_str(), context.strip_prefix("service:")?)))
}

fn loops(at: &At<'_>, services: &BTreeMap<String, Service>) -> Result<(), ComposeError> {
    let hint = "take one of these dependencies away";
    let depends_on: Graph<'_> = services
        .iter()
        .map(|(name, service)| {
            (name.as_str(), service.depends_on.keys().map(String::as_str).collect())
        })
        .collect();
    if let Some(cycle) = find_loop(&depends_on) {
        let what = format!("the services depend on each other in a loop: {}", cycle.join(" → "));
        let way = services.get(cycle[0]).map(|service| needed_by(service, cycle[1]));
        return Err(error(at, cycle[0], &way.unwrap_or_default(), what).with_hint(hint));
    }
    let builds: Graph<'_> = services
        .iter()
        .map(|(name, service)| (name.as_str(), built_first(service).map(|(_, of)| of).collect()))
        .collect();
    if let Some(cycle) = find_loop(&builds) {
        let what = format!("the builds need each other in a loop: {}", cycle.join(" → "));
        return Err(error(at, cycle[0], &["build", "additional_contexts"], what).with_hint(hint));
    }
    Ok(())
}

/// An error at the key of the value that `way` leads to, or as near to it as the tree goes.
fn error(at: &At<'_>, name: &str, way: &[&str], what: String) -> ComposeError {
    fn step(at: &At<'_>, way: &[&str], what: String) -> ComposeError {
        match way.split_first().and_then(|(key, rest)| Some((at.get(key)?, rest))) {
            Some((at, rest)) => step(&at, rest, what),
            None => at.refuse(what),
        }
    }
    match at.get(name) {
        Some(service) => step(&service, way, what),
        None => at.refuse(what),
    }
}

/// What each name needs.
type Graph<'g> = BTreeMap<&'g str, Vec<&'g str>>;

/// The first loop by name, from one name back to itself.
fn find_loop<'g>(graph: &Graph<'g>) -> Option<Vec<&'g str>> {
    // Each name is walked once; `true` when nothing below it leads into a loop.
    let mut done: BTreeMap<&str, bool> = BTreeMap::new();
    for start in graph.keys() {
        let mut way: Vec<(&str, Vec<&str>)> = Vec::new();
        let mut next = Some(*start);
        while let Some(name) = next.take() {
            match done.get(name) {
                Some(true) => {}
                Some(false) => {
                    let from = way.iter().position(|(on_way, _)| *on_way == name)?;
                    return Some(way[from..].iter().map(|(name, _)| *name).chain([name]).collect());
                }
                None => {
                    done.insert(name, false);
                    way.push((name, graph.get(name).cloned().unwrap_or_default()));
                }
            }
            while let Some((name, below)) = way.last_mut() {
                next = below.pop();
                if next.is_some() {
                    break;
                }
                done.insert(name, true);
                way.pop();
            }
        }
    }
    None
}

/// Host ports that are published twice: by the services themselves, and in each stage.
pub(super) fn ports(
    root: &At<'_>,
    services: &BTreeMap<String, Service>,
    kiln: &KilnSection,
) -> Vec<ComposeError> {
    let own = services.iter().map(|(name, service)| (name, &service.ports));
    let mut all: Vec<ComposeError> = clashes(own)
        .iter()
        .map(|clash| clash.error(root, &["services", clash.service, "ports"]))
        .collect();
    for (name, stage) in &kiln.stages {
        all.extend(clashes(stage.ports.iter()).iter().map(|clash| {
            clash.error(root, &["x-kiln", "stages", name.as_str(), "ports", clash.service])
        }));
    }
    all
}

/// A host port that is taken.
struct Clash<'p> {
    service: &'p str,
    index: usize,
    published: u16,
    by: &'p str,
}

fn clashes<'p>(lists: impl Iterator<Item = (&'p String, &'p Vec<Port>)>) -> Vec<Clash<'p>> {
    let mut all = Vec::new();
    let mut taken: BTreeMap<_, Vec<(&str, &Port)>> = BTreeMap::new();
    for (service, ports) in lists {
        for (index, port) in ports.iter().enumerate().filter(|(_, port)| port.published > 0) {
            let same = taken.entry((port.protocol, port.published)).or_default();
            let by = same.iter().find(|(_, old)| overlap(old.host_ip, port.host_ip));
            if let Some((by, _)) = by {
                all.push(Clash { service, index, published: port.published, by });
                continue;
            }
            same.push((service, port));
        }
    }
    all
}

impl Clash<'_> {
    /// Points at the item of the list at `way` that names the port, as far as it can be told.
    fn error(&self, at: &At<'_>, way: &[&str]) -> ComposeError {
        if let Some((at, rest)) =
            way.split_first().and_then(|(key, rest)| Some((at.get(key)?, rest)))
        {
            return self.error(&at, rest);
        }
        let Self { service, index, published, by } = self;
        let what = if service == by {
            format!("the host port {published} is published twice")
        } else {
            format!("the host port {published} is published by `{by}` already")
        };
        let hint = "give one of them another host port";
        let published = published.to_string();
        let names_it = |item: &&At<'_>| match item.get("published") {
            Some(at) => at.text().is_ok_and(|text| text == published),
            None => item.text().is_ok_and(|text| text.contains(&published)),
        };
        let items: Vec<At<'_>> = at.items().map(Iterator::collect).unwrap_or_default();
        let item = items.get(*index).filter(names_it).or_else(|| items.iter().rev().find(names_it));
        item.map_or_else(|| at.refuse(&*what), |item| item.error(&*what)).with_hint(hint)
    }
}

/// No address is every address; so is an unspecified one, of its family.
fn overlap(left: Option<IpAddr>, right: Option<IpAddr>) -> bool {
    let (Some(left), Some(right)) = (left, right) else { return true };
    left == right
        || (left.is_ipv4() == right.is_ipv4() && (left.is_unspecified() || right.is_unspecified()))
}
