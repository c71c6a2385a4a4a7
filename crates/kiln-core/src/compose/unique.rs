//! Lists in which one thing stands once: of two with one name or target the later one holds, at
//! the place of the first.

use std::collections::BTreeMap;
use std::path::Path;

use super::assemble::{child, children, text};
use super::paths::is_path;
use super::reader::clean;
use super::yaml::{Node, Value};

/// Lists of a service whose items are `NAME` or `NAME=VALUE`.
const NAMED: [&str; 9] =
    ["cap_add", "cap_drop", "dns", "dns_opt", "dns_search", "expose", "links", "profiles", "tmpfs"];

/// Makes the lists of `root` unique.
pub(super) fn make(root: &mut Node) {
    children(root, "services").for_each(|(_, one)| service(one));
}

/// Makes the lists of one service unique.
pub(super) fn service(service: &mut Node) {
    // As in Compose, a server that a variable left empty is none.
    if let Some(Value::List(servers)) = child(service, "dns").map(|node| &mut node.value) {
        servers
            .retain(|server| !matches!(server.value, Value::Scalar(_)) || text(server).is_some());
    }
    for key in NAMED {
        once(child(service, key), name);
    }
    once(child(service, "devices"), device);
    once(child(service, "env_file"), env_file);
    once(child(service, "volumes"), volume);
    once(child(service, "configs"), |item| file(item, ""));
    once(child(service, "secrets"), |item| file(item, "/run/secrets"));
    if let Some(build) = child(service, "build") {
        once(child(build, "tags"), name);
    }
    for (_, network) in children(service, "networks") {
        once(child(network, "aliases"), name);
        once(child(network, "link_local_ips"), name);
    }
}

/// Items without a key are left as they are; whoever reads them says what is wrong.
fn once(node: Option<&mut Node>, key: impl Fn(&Node) -> Option<String>) {
    let Some(Value::List(list)) = node.map(|node| &mut node.value) else { return };
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut kept: Vec<Node> = Vec::with_capacity(list.len());
    for item in std::mem::take(list) {
        match key(&item).map(|key| *seen.entry(key).or_insert(kept.len())) {
            Some(at) if at < kept.len() => kept[at] = item,
            _ => kept.push(item),
        }
    }
    *list = kept;
}

fn name(item: &Node) -> Option<String> {
    let text = text(item)?;
    Some(text.split_once('=').map_or(text, |(name, _)| name).to_owned())
}

fn of(item: &Node, key: &str) -> Option<String> {
    match &item.value {
        Value::Map(map) => text(&map.get(key)?.node).map(str::to_owned),
        Value::List(_) | Value::Scalar(_) => None,
    }
}

fn device(item: &Node) -> Option<String> {
    let Some(text) = text(item) else { return of(item, "target").or_else(|| of(item, "source")) };
    Some(text.split(':').nth(1).unwrap_or(text).to_owned())
}

fn env_file(item: &Node) -> Option<String> {
    text(item).map(str::to_owned).or_else(|| of(item, "path"))
}

fn volume(item: &Node) -> Option<String> {
    let target = match text(item) {
        Some(text) => {
            let (first, rest) = text.split_once(':').unwrap_or((text, ""));
            let target = rest.split(':').next().filter(|target| !target.is_empty());
            target.or_else(|| is_path(first).then_some(first))?.to_owned()
        }
        None => of(item, "target")?,
    };
    Some(clean(Path::new(&target)).display().to_string())
}

fn file(item: &Node, folder: &str) -> Option<String> {
    if let Some(name) = text(item) {
        return Some(format!("{folder}/{name}"));
    }
    of(item, "target").or_else(|| Some(format!("{folder}/{}", of(item, "source")?)))
}
