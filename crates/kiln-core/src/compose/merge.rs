//! Several files become one tree, by the merge rules of the Compose Specification.
//!
//! [`canonicalise`] brings each file to long forms first, so that a list of `NAME=value` in one
//! file and a map in another meet as maps. Lists are appended here; `unique` then keeps once what
//! can be there once only.

use super::assemble::{child, children, text};
use super::error::{ComposeError, Place};
use super::reader::Context;
use super::yaml::{Entry, Map, Mark, Node, Scalar, Value};

/// Merges `over`, the later file, into `base`.
pub(super) fn merge(cx: &Context<'_>, mut base: Node, over: Node) -> Result<Node, ComposeError> {
    merge_at(cx, &mut base, over, &mut Vec::new())?;
    Ok(base)
}

/// Merges the service `own` over `base`, which it extends.
pub(super) fn service(
    cx: &Context<'_>,
    name: &str,
    mut base: Node,
    own: Node,
) -> Result<Node, ComposeError> {
    merge_at(cx, &mut base, own, &mut vec!["services".into(), name.into()])?;
    super::unique::service(&mut base);
    Ok(base)
}

fn merge_at(
    cx: &Context<'_>,
    base: &mut Node,
    over: Node,
    path: &mut Vec<String>,
) -> Result<(), ComposeError> {
    if over.mark != Mark::None || replaces(path) {
        *base = over;
        return Ok(());
    }
    if over.is_null() {
        return Ok(());
    }
    if base.is_null() || base.mark == Mark::Reset {
        *base = over;
        return Ok(());
    }
    match (&mut base.value, over.value) {
        (Value::Map(map), Value::Map(over)) if another_driver(path, map, &over) => *map = over,
        (Value::Map(map), Value::Map(over)) => {
            for (key, entry) in over {
                match map.get_mut(&key) {
                    Some(old) => {
                        old.key_place = entry.key_place;
                        path.push(key);
                        merge_at(cx, &mut old.node, entry.node, path)?;
                        path.pop();
                    }
                    None => {
                        map.insert(key, entry);
                    }
                }
            }
        }
        (Value::List(list), Value::List(over)) if is_pools(path) => {
            *list = pools(cx, std::mem::take(list), &over, path)?;
        }
        (Value::List(list), Value::List(over)) => list.extend(over),
        (Value::Scalar(_), value) => *base = Node { value, ..over },
        (old, value) => {
            let name = |value: &Value| match value {
                Value::Map(_) => "a map",
                Value::List(_) => "a list",
                Value::Scalar(_) => "one value",
            };
            let what = format!("{} cannot be merged over {}", name(&value), name(old));
            return Err(cx
                .error(over.place, path.join("."), what)
                .with_hint("use the same form in both files, or `!override`"));
        }
    }
    Ok(())
}

/// Whether the later value stands alone.
fn replaces(path: &[String]) -> bool {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let Some((&"services", [_, rest @ ..])) = path.split_first() else { return false };
    matches!(
        rest,
        ["command" | "entrypoint"]
            | ["healthcheck", "test"]
            | ["environment" | "labels" | "annotations" | "sysctls" | "ulimits", _]
            | ["build" | "deploy", "args" | "labels" | "additional_contexts", _]
    )
}

/// Whether it is `ipam.config` of a network.
fn is_pools(path: &[String]) -> bool {
    path.len() == 4 && path[0] == "networks" && path[2] == "ipam" && path[3] == "config"
}

/// Pools of addresses are merged where their subnets are the same. As in Compose, one of the earlier
/// file that no later one is merged over is gone.
fn pools(
    cx: &Context<'_>,
    base: Vec<Node>,
    over: &[Node],
    path: &mut Vec<String>,
) -> Result<Vec<Node>, ComposeError> {
    let subnet = |node: &Node| match &node.value {
        Value::Map(map) => map.get("subnet").and_then(|entry| text(&entry.node).map(str::to_owned)),
        Value::List(_) | Value::Scalar(_) => None,
    };
    cx.count(base.len().saturating_mul(over.len()))?;
    let mut kept: Vec<Node> = Vec::new();
    for earlier in base {
        for later in over {
            let place = kept.iter().position(|node| subnet(node) == subnet(later));
            if subnet(&earlier) != subnet(later) && place.is_none() {
                kept.push(later.clone());
                continue;
            }
            let mut merged = earlier.clone();
            path.push(String::new());
            merge_at(cx, &mut merged, later.clone(), path)?;
            path.pop();
            match place {
                Some(at) => kept[at] = merged,
                None => kept.push(merged),
            }
        }
    }
    Ok(kept)
}

/// Options of one log driver are none of another.
fn another_driver(path: &[String], base: &Map, over: &Map) -> bool {
    let driver =
        |map: &Map| map.get("driver").and_then(|entry| text(&entry.node).map(str::to_owned));
    path.len() == 3
        && path[0] == "services"
        && path[2] == "logging"
        && driver(base).zip(driver(over)).is_some_and(|(base, over)| base != over)
}

/// Takes away what `!reset` marks.
pub(super) fn prune(node: &mut Node) {
    match &mut node.value {
        Value::Map(map) => {
            map.retain(|_, entry| entry.node.mark != Mark::Reset);
            map.values_mut().for_each(|entry| prune(&mut entry.node));
        }
        Value::List(list) => {
            list.retain(|item| item.mark != Mark::Reset);
            list.iter_mut().for_each(prune);
        }
        Value::Scalar(_) => {}
    }
}

/// Turns the short forms that merge by name into maps, and single values into lists.
pub(super) fn canonicalise(cx: &Context<'_>, root: &mut Node) -> Result<(), ComposeError> {
    for (name, service) in children(root, "services") {
        let path = format!("services.{name}");
        if let Some(build) = child(service, "build")
            && matches!(build.value, Value::Scalar(_))
            && !build.is_null()
        {
            let place = build.place;
            let context = Entry { key_place: place, node: build.clone() };
            *build = Node {
                mark: build.mark,
                ..Node::map(Map::from([("context".into(), context)]), place)
            };
        }
        for key in ["environment", "labels", "annotations", "sysctls"] {
            pairs_to_map(cx, child(service, key), &format!("{path}.{key}"))?;
        }
        names_to_map(cx, child(service, "networks"), &format!("{path}.networks"))?;
        waited_for(cx, child(service, "depends_on"), &format!("{path}.depends_on"))?;
        for key in ["env_file", "tmpfs", "label_file", "dns", "dns_search"] {
            one_to_list(child(service, key));
        }
        if let Some(build) = child(service, "build") {
            for key in ["args", "additional_contexts", "labels", "ssh"] {
                pairs_to_map(cx, child(build, key), &format!("{path}.build.{key}"))?;
            }
        }
        if let Some(deploy) = child(service, "deploy") {
            pairs_to_map(cx, child(deploy, "labels"), &format!("{path}.deploy.labels"))?;
        }
        for key in ["post_start", "pre_stop"] {
            let Some(Value::List(hooks)) = child(service, key).map(|node| &mut node.value) else {
                continue;
            };
            for (at, hook) in hooks.iter_mut().enumerate() {
                let path = format!("{path}.{key}[{at}].environment");
                pairs_to_map(cx, child(hook, "environment"), &path)?;
            }
        }
        hosts_to_list(cx, child(service, "extra_hosts"), &path)?;
    }
    for section in ["networks", "volumes", "configs", "secrets"] {
        for (name, entry) in children(root, section) {
            pairs_to_map(cx, child(entry, "labels"), &format!("{section}.{name}.labels"))?;
            external_by_name(entry);
        }
    }
    if let Some(kiln) = child(root, "x-kiln") {
        for (_, stage) in children(kiln, "stages") {
            let Some(ports) = child(stage, "ports") else { continue };
            let Value::Map(map) = &mut ports.value else { continue };
            map.values_mut().for_each(|entry| one_to_list(Some(&mut entry.node)));
        }
    }
    Ok(())
}

/// `external: {name: x}` is an old way to write `external: true` and `name: x`.
fn external_by_name(entry: &mut Node) {
    let Value::Map(map) = &mut entry.value else { return };
    let Some(external) = map.get_mut("external") else { return };
    let Value::Map(inner) = &mut external.node.value else { return };
    let name = inner.remove("name");
    let place = external.node.place;
    external.node = Node::scalar("true", place);
    if let Some(name) = name {
        map.entry("name".into()).or_insert(name);
    }
}

fn one_to_list(node: Option<&mut Node>) {
    let Some(node) = node else { return };
    if matches!(node.value, Value::List(_)) || node.is_null() {
        return;
    }
    let item = Node { mark: Mark::None, ..node.clone() };
    node.value = Value::List(vec![item]);
}

fn scalar_item<'n>(
    cx: &Context<'_>,
    item: &'n Node,
    at: usize,
    path: &str,
) -> Result<&'n str, ComposeError> {
    match &item.value {
        Value::Scalar(scalar) if !item.is_null() => Ok(&scalar.text),
        _ => Err(cx
            .error(item.place, format!("{path}[{at}]"), "expected text here")
            .with_hint("an item is `NAME=value`; with `NAME: value`, write a map without dashes")),
    }
}

/// `[A=b, C]` → `{A: b, C: }`; the last of equal names wins.
fn pairs_to_map(cx: &Context<'_>, node: Option<&mut Node>, path: &str) -> Result<(), ComposeError> {
    to_map(cx, node, path, |text, place| match text.split_once('=') {
        Some((name, value)) => (name.to_owned(), Node::scalar(value, place)),
        None => (text.to_owned(), nothing(place)),
    })
}

/// `[a, b]` → `{a: {condition: service_started}, …}`: said so, it wins over an earlier file.
fn waited_for(cx: &Context<'_>, node: Option<&mut Node>, path: &str) -> Result<(), ComposeError> {
    to_map(cx, node, path, |text, place| {
        let key = |value: &str| Entry { key_place: place, node: Node::scalar(value, place) };
        let long = [("condition", key("service_started")), ("required", key("true"))];
        let long = long.map(|(name, entry)| (name.to_owned(), entry));
        (text.to_owned(), Node::map(Map::from(long), place))
    })
}

/// `[a, b]` → `{a: , b: }`.
fn names_to_map(cx: &Context<'_>, node: Option<&mut Node>, path: &str) -> Result<(), ComposeError> {
    to_map(cx, node, path, |text, place| (text.to_owned(), nothing(place)))
}

fn to_map(
    cx: &Context<'_>,
    node: Option<&mut Node>,
    path: &str,
    split: impl Fn(&str, Place) -> (String, Node),
) -> Result<(), ComposeError> {
    let Some(node) = node else { return Ok(()) };
    let Value::List(list) = &node.value else { return Ok(()) };
    let mut map = Map::new();
    for (at, item) in list.iter().enumerate() {
        if item.mark == Mark::Reset {
            continue;
        }
        let (key, node) = split(scalar_item(cx, item, at, path)?, item.place);
        map.insert(key, Entry { key_place: item.place, node });
    }
    node.value = Value::Map(map);
    Ok(())
}

/// `{name: address}` → `[name=address]`; a name may have several addresses.
fn hosts_to_list(
    cx: &Context<'_>,
    node: Option<&mut Node>,
    path: &str,
) -> Result<(), ComposeError> {
    let Some(node) = node else { return Ok(()) };
    let Value::Map(map) = &node.value else { return Ok(()) };
    let mut list = Vec::new();
    for (name, Entry { key_place, node }) in map {
        let addresses = match &node.value {
            Value::List(list) => list.as_slice(),
            _ => std::slice::from_ref(node),
        };
        for address in addresses {
            let Value::Scalar(Scalar { text, .. }) = &address.value else {
                let key = format!("{path}.extra_hosts.{name}");
                return Err(cx.error(address.place, key, "expected an address"));
            };
            list.push(Node::scalar(format!("{name}={text}"), *key_place));
        }
    }
    node.value = Value::List(list);
    Ok(())
}

fn nothing(place: Place) -> Node {
    let value = Value::Scalar(Scalar { text: String::new(), plain: true });
    Node { place, mark: Mark::None, value }
}
