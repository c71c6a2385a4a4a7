//! Values that have a short form, or a form of their own.

use std::collections::BTreeMap;
use std::path::Path;

use super::print::Printed;
use super::shapes::{DEVICE, TRIGGER, VOLUME};
use super::{object, text_of};
use crate::compose::paths::is_path;
use crate::compose::reader::{At, clean};
use crate::compose::units;
use crate::compose::yaml::{Scalar, Value};

/// `key: text` where there is any.
fn add(map: &mut Vec<(String, Printed)>, key: &str, text: &str) {
    if !text.is_empty() {
        map.push((key.into(), Printed::text(text)));
    }
}

pub(super) fn config(at: &At<'_>) -> Printed {
    file(at, "")
}

pub(super) fn secret(at: &At<'_>) -> Printed {
    file(at, "/run/secrets/")
}

fn file(at: &At<'_>, folder: &str) -> Printed {
    let text = |key: &str| at.get(key).map(|at| text_of(&at)).unwrap_or_default();
    let source = if at.is_map() { text("source") } else { text_of(at) };
    let mut target = text("target");
    if target.is_empty() && !folder.is_empty() {
        target = format!("{folder}{source}");
    }
    let mut map = Vec::new();
    add(&mut map, "source", &source);
    add(&mut map, "target", &target);
    add(&mut map, "uid", &text("uid"));
    add(&mut map, "gid", &text("gid"));
    if let Some(mode) = at.get("mode").filter(|at| !at.is_null()) {
        let bits = match &mode.node.value {
            Value::Scalar(Scalar { plain: false, text }) => units::octal(text),
            _ => text_of(&mode).parse().ok(),
        };
        add(&mut map, "mode", &bits.map_or_else(|| text_of(&mode), |bits| format!("0{bits:o}")));
    }
    Printed::Map(map)
}

pub(super) fn device(at: &At<'_>) -> Printed {
    if at.is_map() {
        return object(at, DEVICE);
    }
    let text = text_of(at);
    let mut parts = text.split(':');
    let source = parts.next().unwrap_or_default();
    let target = parts.next().filter(|target| !target.is_empty()).unwrap_or(source);
    let mut map = Vec::new();
    add(&mut map, "source", source);
    add(&mut map, "target", target);
    add(&mut map, "permissions", parts.next().unwrap_or("rwm"));
    Printed::Map(map)
}

pub(super) fn hosts(at: &At<'_>) -> Printed {
    let mut all = Vec::new();
    for item in at.items().into_iter().flatten() {
        let text = text_of(&item);
        let pair = text.split_once('=').or_else(|| text.split_once(':'));
        let (name, addresses) = pair.unwrap_or((&text, ""));
        for address in addresses.split(',') {
            let bare = address.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
            all.push(format!("{name}={}", bare.unwrap_or(address)));
        }
    }
    all.sort();
    all.dedup();
    Printed::List(all.into_iter().map(Printed::Text).collect())
}

/// An argument without a value takes that of the environment; without one there it is left out.
pub(super) fn arguments(at: &At<'_>) -> Printed {
    let mut map = Vec::new();
    for entry in at.entries().into_iter().flatten() {
        let name = entry.key();
        let value = match entry.is_null() {
            true => at.cx.env.get(name).cloned(),
            false => Some(text_of(&entry)),
        };
        map.extend(value.map(|value| (name.to_owned(), Printed::Text(value))));
    }
    Printed::Dict(map)
}

/// Variables of a hook; one without a value stays so.
pub(super) fn variables(at: &At<'_>) -> Printed {
    let pair = |name: &str, value: Option<String>| {
        (name.to_owned(), value.map_or(Printed::Null, Printed::Text))
    };
    if at.is_map() {
        let entries = at.entries().into_iter().flatten();
        let one = |at: At<'_>| pair(at.key(), (!at.is_null()).then(|| text_of(&at)));
        return Printed::Dict(entries.map(one).collect());
    }
    let items = at.items().into_iter().flatten();
    let one = |at: At<'_>| match text_of(&at).split_once('=') {
        Some((name, value)) => pair(name, Some(value.to_owned())),
        None => pair(&text_of(&at), None),
    };
    Printed::Dict(items.map(one).collect())
}

/// The files of variables as Compose's JSON has them: one that has to be there is its path.
pub(super) fn env_files(at: &At<'_>) -> Printed {
    let one = |item: At<'_>| {
        let text = |key: &str| item.get(key).map(|at| text_of(&at)).unwrap_or_default();
        let path = if item.is_map() { text("path") } else { text_of(&item) };
        let required = item.get("required").and_then(|at| at.truth().ok()).unwrap_or(true);
        if required {
            return Printed::Text(path);
        }
        let mut map = Vec::new();
        add(&mut map, "path", &path);
        map.push(("required".into(), Printed::Truth(required)));
        add(&mut map, "format", &text("format"));
        Printed::Map(map)
    };
    Printed::List(at.items().into_iter().flatten().map(one).collect())
}

/// The agents of `build.ssh`. One of a path is printed in the form in which it can be read again.
pub(super) fn agents(at: &At<'_>) -> Printed {
    let entries = at.entries().into_iter().flatten();
    let one = |entry: At<'_>| match text_of(&entry) {
        path if path.is_empty() => Printed::text(entry.key()),
        path => Printed::Text(format!("{}={path}", entry.key())),
    };
    Printed::List(entries.map(one).collect())
}

/// What is done when a file changes. The engine's JSON always has its command.
pub(super) fn trigger(at: &At<'_>) -> Printed {
    let Printed::Map(mut map) = object(at, TRIGGER) else { return Printed::Null };
    let null = || ("command".to_owned(), Printed::OnlyInJson(Box::new(Printed::Null)));
    match map.iter_mut().find(|(key, _)| key == "exec") {
        Some((_, Printed::Map(exec))) if !exec.iter().any(|(key, _)| key == "command") => {
            exec.insert(0, null());
        }
        Some(_) => {}
        None => {
            let before = ["path", "action", "target"];
            let index = map.iter().take_while(|(key, _)| before.contains(&key.as_str())).count();
            let exec = Printed::OnlyInJson(Box::new(Printed::Map(vec![null()])));
            map.insert(index, ("exec".into(), exec));
        }
    }
    Printed::Map(map)
}

pub(super) fn pull_policy(at: &At<'_>) -> Printed {
    match text_of(at).as_str() {
        "if_not_present" => Printed::text("missing"),
        other => Printed::text(other),
    }
}

pub(super) fn test(at: &At<'_>) -> Printed {
    if at.is_list() {
        let items = at.items().into_iter().flatten();
        return Printed::List(items.map(|item| Printed::Text(text_of(&item))).collect());
    }
    Printed::List(vec![Printed::text("CMD-SHELL"), Printed::Text(text_of(at))])
}

pub(super) fn ulimit(at: &At<'_>) -> Printed {
    let number = |at: &At<'_>| match text_of(at) {
        text if text.parse::<i64>().is_ok() => Printed::Number(text),
        text => Printed::Text(text),
    };
    // As in Compose: to it, a zero for both is none at all.
    if !at.is_map() && text_of(at) != "0" {
        return number(at);
    }
    let field = |key: &'static str| {
        let value = at.get(key).map_or_else(|| Printed::Number("0".into()), |at| number(&at));
        let value = match value.is_empty() {
            true => Printed::OnlyInYaml(Box::new(value)),
            false => value,
        };
        (key.to_owned(), value)
    };
    Printed::Map(vec![field("soft"), field("hard")])
}

pub(super) fn target(at: &At<'_>) -> Printed {
    Printed::Text(clean(Path::new(&text_of(at))).display().to_string())
}

pub(super) fn volume(at: &At<'_>) -> Printed {
    if at.is_map() {
        return object(at, VOLUME);
    }
    let text = text_of(at);
    if text.chars().count() <= 2 {
        let target = ("target".to_owned(), Printed::Text(text));
        return Printed::Map(vec![("type".into(), Printed::text("volume")), target]);
    }
    let mut parts = text.splitn(3, ':');
    let first = parts.next().unwrap_or_default();
    let (source, target) = match parts.next() {
        Some(target) => (first, target),
        None => ("", first),
    };
    let options: Vec<&str> = parts.next().unwrap_or_default().split(',').collect();
    let is_bind = is_path(source);
    let mut map = Vec::new();
    add(&mut map, "type", if is_bind { "bind" } else { "volume" });
    add(&mut map, "source", source);
    add(&mut map, "target", &clean(Path::new(target)).display().to_string());
    let read_only = options.iter().rev().find(|option| matches!(**option, "ro" | "rw"));
    if read_only == Some(&"ro") {
        map.push(("read_only".into(), Printed::Truth(true)));
    }
    let mut bind = Vec::new();
    for option in &options {
        match *option {
            "z" | "Z" => add(&mut bind, "selinux", option),
            "rprivate" | "private" | "rshared" | "shared" | "rslave" | "slave" => {
                add(&mut bind, "propagation", option);
            }
            _ => {}
        }
    }
    if is_bind {
        bind.push(("create_host_path".into(), Printed::Truth(true)));
    }
    let nocopy = options.contains(&"nocopy");
    let set = |key: &str| vec![(key.to_owned(), Printed::Truth(true))];
    if !bind.is_empty() {
        map.push(("bind".into(), Printed::Map(bind)));
    }
    if nocopy || !is_bind {
        let options = if nocopy { set("nocopy") } else { Vec::new() };
        map.push(("volume".into(), Printed::Map(options)));
    }
    Printed::Map(map)
}

/// One published port.
#[derive(Default)]
struct Port {
    name: String,
    mode: String,
    host_ip: String,
    target: String,
    published: String,
    protocol: String,
    app_protocol: String,
    /// `published` is a number and no text: to Compose, another port.
    whole: bool,
}

/// All ports, ranges taken apart; of equal ones the later holds.
pub(super) fn ports(at: &At<'_>) -> Printed {
    let mut seen: BTreeMap<(String, String, String, String, bool), usize> = BTreeMap::new();
    let mut all: Vec<Port> = Vec::new();
    for item in at.items().into_iter().flatten() {
        let found = if item.is_map() { vec![long(&item)] } else { short(&text_of(&item)) };
        for port in found {
            let ip = if port.host_ip.is_empty() { "0.0.0.0" } else { &port.host_ip };
            let (published, protocol) = (port.published.clone(), port.protocol.clone());
            let key = (ip.to_owned(), published, port.target.clone(), protocol, port.whole);
            match *seen.entry(key).or_insert(all.len()) {
                at if at < all.len() => all[at] = port,
                _ => all.push(port),
            }
        }
    }
    Printed::List(all.into_iter().map(printed).collect())
}

fn printed(port: Port) -> Printed {
    let mut map = Vec::new();
    add(&mut map, "name", &port.name);
    add(&mut map, "mode", &port.mode);
    add(&mut map, "host_ip", &port.host_ip);
    map.push(("target".into(), Printed::Number(port.target)));
    add(&mut map, "published", &port.published);
    add(&mut map, "protocol", &port.protocol);
    add(&mut map, "app_protocol", &port.app_protocol);
    Printed::Map(map)
}

fn long(at: &At<'_>) -> Port {
    let text = |key: &str| at.get(key).filter(|at| !at.is_null()).map(|at| text_of(&at));
    let or = |key: &str, default: &str| text(key).unwrap_or_else(|| default.to_owned());
    Port {
        name: or("name", ""),
        mode: or("mode", "ingress"),
        host_ip: or("host_ip", ""),
        target: or("target", "0"),
        published: or("published", ""),
        protocol: or("protocol", "tcp"),
        app_protocol: or("app_protocol", ""),
        whole: at.get("published").is_some_and(|at| {
            matches!(&at.node.value, Value::Scalar(Scalar { plain: true, text }) if text.parse::<i64>().is_ok())
        }),
    }
}

fn short(text: &str) -> Vec<Port> {
    let (rest, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
    let (front, target) = rest.rsplit_once(':').unwrap_or(("", rest));
    let (ip, host) = front.rsplit_once(':').unwrap_or(("", front));
    let ip = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
    let range = |text: &str| -> Option<(u16, u16)> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    let Some((first, last)) = range(target) else { return Vec::new() };
    let hosts = range(host);
    let mut all: Vec<Port> = (first..=last)
        .map(|target| {
            let published = match hosts {
                None => String::new(),
                // Any of a range for one port.
                Some((from, to)) if first == last && from != to => format!("{from}-{to}"),
                Some((from, _)) => from.saturating_add(target - first).to_string(),
            };
            let (mode, protocol) = ("ingress".to_owned(), protocol.to_ascii_lowercase());
            let (host_ip, target) = (ip.to_owned(), target.to_string());
            Port { mode, host_ip, target, published, protocol, ..Port::default() }
        })
        .collect();
    all.sort_by(|left, right| left.target.cmp(&right.target));
    all
}
