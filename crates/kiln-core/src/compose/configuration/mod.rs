//! What `docker compose config` prints of a project: the merged tree in Compose's own normal form.
//!
//! Fields and their order are those of Compose 2.40; a test holds the two together. Some are not
//! Kiln's business at all (`labels`, `logging`), so this reads the tree and not the typed project,
//! which has been read before: the values are valid as far as Kiln looks at them.

mod items;
mod print;
mod scalars;
mod shapes;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use print::Printed;
use sha2::{Digest as _, Sha256};
use shapes::{Field, Shape};

use super::model::{Project, Service};
use super::reader::At;
use super::yaml::{Node, Scalar, Value};
use super::{dotenv, load, units};

/// A project in Compose's normal form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    /// The document as JSON.
    pub json: String,
    /// The same as YAML.
    pub yaml: String,
    /// Names of the services that are switched on.
    pub services: Vec<String>,
    /// Their images, in the same order: `image`, else the name that Compose gives what it builds.
    pub images: Vec<String>,
    /// Named volumes that they use.
    pub volumes: Vec<String>,
    /// Networks that they use.
    pub networks: Vec<String>,
    /// All profiles, also of services that are switched off.
    pub profiles: Vec<String>,
    /// The variables that are there for interpolation, `NAME=value`.
    pub environment: Vec<String>,
    /// The hash by which Compose knows a service's configuration, by the service's name.
    pub hashes: BTreeMap<String, String>,
    /// What is probably not meant, each as `file:line: text`.
    pub warnings: Vec<String>,
}

/// A map in the making.
type Pairs = Vec<(String, Printed)>;

/// The project whose tree is `root`, or only `wanted` of its services and what they depend on.
pub(super) fn of(root: &At<'_>, project: &Project, wanted: &[String]) -> Configuration {
    let names = selected(project, wanted);
    let mut services = Pairs::new();
    let mut images = Vec::new();
    let mut profiles = BTreeSet::new();
    let mut hashes = BTreeMap::new();
    let all = root.get("services");
    for at in all.iter().flat_map(|at| at.entries()).flatten() {
        profiles.extend(at.get("profiles").and_then(|at| at.texts().ok()).unwrap_or_default());
        if let Some(read) = project.services.get(at.key()).filter(|_| names.contains(at.key())) {
            let image = at.get("image").map(|at| text_of(&at)).filter(|text| !text.is_empty());
            images.push(image.unwrap_or_else(|| format!("{}-{}", project.name, at.key())));
            let printed = service(&at, read);
            hashes.insert(at.key().to_owned(), hash(&at, &printed));
            services.push((at.key().to_owned(), printed));
        }
    }
    let used = Used::by(&services);
    let mut whole = vec![
        ("name".to_owned(), Printed::text(&project.name)),
        ("services".to_owned(), Printed::Dict(services)),
    ];
    for (section, fields, names) in [
        ("networks", shapes::TOP_NETWORK, &used.networks),
        ("volumes", shapes::TOP_VOLUME, &used.volumes),
        ("secrets", shapes::TOP_FILE, &used.secrets),
        ("configs", shapes::TOP_FILE, &used.configs),
    ] {
        let top = root.get(section);
        let entry = |name: &String| {
            let at = top.as_ref().and_then(|at| at.get(name));
            (name.clone(), resource(at.as_ref(), fields, section, name, &project.name))
        };
        if !names.is_empty() {
            whole.push((section.to_owned(), Printed::Dict(names.iter().map(entry).collect())));
        }
    }
    for at in root.entries().into_iter().flatten().filter(|at| at.key().starts_with("x-")) {
        whole.push((at.key().to_owned(), as_it_is(at.node)));
    }
    // The engine's JSON has the keys at the top in the order of the alphabet.
    let json = Printed::Dict(whole.clone()).json();
    let whole = Printed::Map(whole);
    let list = |set: BTreeSet<String>| set.into_iter().collect();
    Configuration {
        json,
        yaml: whole.yaml(),
        services: list(names),
        images,
        volumes: list(used.volumes),
        networks: list(used.networks),
        profiles: list(profiles),
        environment: root.cx.env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
        hashes,
        warnings: project.warnings.clone(),
    }
}

/// `wanted` and all that they depend on; all of them when none is wanted.
fn selected(project: &Project, wanted: &[String]) -> BTreeSet<String> {
    if wanted.is_empty() {
        return project.services.keys().cloned().collect();
    }
    let mut names = BTreeSet::new();
    let mut next: Vec<&String> = wanted.iter().collect();
    while let Some(name) = next.pop() {
        if names.insert(name.clone()) {
            next.extend(project.services.get(name).into_iter().flat_map(|on| on.depends_on.keys()));
        }
    }
    names
}

/// Names of top-level entries that services use.
#[derive(Default)]
struct Used {
    networks: BTreeSet<String>,
    volumes: BTreeSet<String>,
    secrets: BTreeSet<String>,
    configs: BTreeSet<String>,
}

impl Used {
    fn by(services: &Pairs) -> Self {
        let mut used = Self::default();
        for (_, service) in services {
            used.networks.extend(keys(get(service, "networks")));
            used.configs.extend(sources(get(service, "configs")));
            used.secrets.extend(sources(get(service, "secrets")));
            let build = get(service, "build").and_then(|build| get(build, "secrets"));
            used.secrets.extend(sources(build));
            for mount in list(get(service, "volumes")) {
                if get(mount, "type") == Some(&Printed::text("volume")) {
                    used.volumes.extend(source(mount));
                }
            }
        }
        used
    }
}

fn get<'p>(printed: &'p Printed, key: &str) -> Option<&'p Printed> {
    let (Printed::Map(map) | Printed::Dict(map)) = printed else { return None };
    map.iter().find(|(name, _)| name == key).map(|(_, value)| value)
}

fn keys(printed: Option<&Printed>) -> Vec<String> {
    match printed {
        Some(Printed::Map(map) | Printed::Dict(map)) => {
            map.iter().map(|(key, _)| key.clone()).collect()
        }
        _ => Vec::new(),
    }
}

fn list(printed: Option<&Printed>) -> &[Printed] {
    match printed {
        Some(Printed::List(list)) => list,
        _ => &[],
    }
}

fn source(printed: &Printed) -> Option<String> {
    match get(printed, "source") {
        Some(Printed::Text(text)) if !text.is_empty() => Some(text.clone()),
        _ => None,
    }
}

fn sources(printed: Option<&Printed>) -> Vec<String> {
    list(printed).iter().filter_map(source).collect()
}

/// A network, volume, config or secret. One without a name has that of the project before its key.
fn resource(
    at: Option<&At<'_>>,
    fields: &[Field],
    section: &str,
    key: &str,
    project: &str,
) -> Printed {
    let mut map = match at.map(|at| object(at, fields)) {
        Some(Printed::Map(map)) => map,
        _ => Pairs::new(),
    };
    let external = map.iter().any(|pair| *pair == ("external".into(), Printed::Truth(true)));
    // One that a variable left empty is printed as such: not at all.
    let stated = at.and_then(|at| at.get("name")).is_some_and(|name| !name.is_null());
    if !stated {
        let name = if external { key.to_owned() } else { format!("{project}_{key}") };
        map.insert(0, ("name".into(), Printed::Text(name)));
    }
    let by_variable = map.iter().any(|(key, _)| key == "environment");
    if section == "secrets" || by_variable {
        map.retain(|(key, _)| key != "content");
    }
    if section == "networks" && !map.iter().any(|(key, _)| key == "ipam") {
        let empty = Box::new(Printed::Map(Pairs::new()));
        map.push(("ipam".into(), Printed::OnlyInJson(empty)));
    }
    Printed::Map(map)
}

fn service(at: &At<'_>, read: &Service) -> Printed {
    let Printed::Map(mut map) = object(at, shapes::SERVICE) else { return Printed::Null };
    let mut put = |key: &str, value: Printed| {
        let position = |name: &str| shapes::SERVICE.iter().position(|field| field.key == name);
        map.retain(|(name, _)| name != key);
        let before = |(name, _): &(String, Printed)| position(name) < position(key);
        let x_keys = |(name, _): &(String, Printed)| name.starts_with("x-");
        let index = map.iter().position(|pair| x_keys(pair) || !before(pair)).unwrap_or(map.len());
        if !value.is_empty() {
            map.insert(index, (key.to_owned(), value));
        }
    };
    if let Some(at) = at.get("build").filter(|at| !at.is_null()) {
        put("build", build(&at));
    }
    put("environment", environment(at, read));
    if at.get("label_file").is_some() {
        put("labels", labels(at));
    }
    put("depends_on", depends_on(at));
    if at.get("network_mode").is_none() {
        let own =
            at.get("networks").map(|at| value(&at, Shape::Map(&Shape::Object(shapes::NETWORK))));
        let default = || Printed::Map(vec![("default".into(), Printed::Null)]);
        put("networks", own.filter(|own| !own.is_empty()).unwrap_or_else(default));
    }
    if let Some(scale) = at.get("scale").filter(|at| !at.is_null())
        && let Some(Printed::Map(mut deploy)) =
            at.get("deploy").map(|at| value(&at, shapes::SERVICE_DEPLOY))
    {
        deploy.retain(|(key, _)| key != "replicas");
        let index = deploy.iter().take_while(|(key, _)| key == "mode").count();
        deploy.insert(index, ("replicas".into(), Printed::Number(text_of(&scale))));
        put("deploy", Printed::Map(deploy));
    }
    for key in ["command", "entrypoint"] {
        if at.get(key).is_none_or(|at| at.is_null()) {
            put(key, Printed::OnlyInJson(Box::new(Printed::Null)));
        }
    }
    Printed::Map(map)
}

/// Over Compose's JSON of a service, without what changes no container, and with its own variables
/// and the names of its files in place of what these say.
fn hash(at: &At<'_>, printed: &Printed) -> String {
    const LEFT_OUT: [&str; 6] =
        ["build", "pull_policy", "scale", "depends_on", "profiles", "environment"];
    let Printed::Map(map) = printed else { return String::new() };
    let mut map = map.clone();
    map.retain(|(key, _)| !LEFT_OUT.contains(&key.as_str()));
    if let Some((_, Printed::Map(deploy))) = map.iter_mut().find(|(key, _)| key == "deploy") {
        deploy.retain(|(key, _)| key != "replicas");
    }
    let position = |name: &str| shapes::SERVICE.iter().position(|field| field.key == name);
    let index = map.iter().take_while(|(key, _)| position(key) < position("environment")).count();
    let own = at.get("environment").map(|own| match items::variables(&own) {
        Printed::Dict(mut all) => {
            for (name, value) in all.iter_mut().filter(|(_, value)| *value == Printed::Null) {
                let found = at.cx.env.get(name);
                *value = found.map_or(Printed::Null, Printed::text);
            }
            Printed::Dict(all)
        }
        other => other,
    });
    let files = at.get("env_file").map(|at| items::env_files(&at));
    for (key, value) in [("env_file", files), ("environment", own)] {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            map.insert(index, (key.to_owned(), value));
        }
    }
    let digest = Sha256::digest(Printed::Map(map).compact_json());
    digest.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// With the folder and the file that are not stated.
fn build(at: &At<'_>) -> Printed {
    let Printed::Map(mut map) = value(at, shapes::SERVICE_BUILD) else { return Printed::Null };
    if at.get("context").is_none_or(|at| at.is_null()) {
        map.insert(0, ("context".into(), Printed::text(at.cx.dir.display().to_string())));
    }
    let stated = |key: &str| at.get(key).is_some_and(|at| !at.is_null());
    if !stated("dockerfile") && !stated("dockerfile_inline") {
        let index = map.iter().take_while(|(key, _)| key == "context").count();
        map.insert(index, ("dockerfile".into(), Printed::text("Dockerfile")));
    }
    Printed::Map(map)
}

/// Files and keys together; a name that has a value nowhere stays without.
fn environment(at: &At<'_>, read: &Service) -> Printed {
    let mut all: BTreeMap<String, Printed> = BTreeMap::new();
    if let Some(own) = at.get("environment") {
        all.extend(
            own.entries().into_iter().flatten().map(|at| (at.key().to_owned(), Printed::Null)),
        );
    }
    let read = read.environment.iter();
    all.extend(read.map(|(name, value)| (name.clone(), Printed::text(value))));
    Printed::Dict(all.into_iter().collect())
}

/// Labels over those of `label_file`. A file that cannot be read is passed over: labels mean
/// nothing here.
fn labels(at: &At<'_>) -> Printed {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    let files = at.get("label_file").and_then(|at| at.texts().ok()).unwrap_or_default();
    for path in files {
        let Ok(content) = (at.cx.read)(&at.cx.absolute(&path)) else { continue };
        let Ok(text) = load::utf8(&path, &content) else { continue };
        let values =
            dotenv::parse(&text, &|_| None, &all).map(|file| file.values).unwrap_or_default();
        all.extend(values);
    }
    let own = at.get("labels");
    for entry in own.iter().flat_map(|at| at.entries()).flatten() {
        all.insert(entry.key().to_owned(), text_of(&entry));
    }
    Printed::Dict(all.into_iter().map(|(name, value)| (name, Printed::Text(value))).collect())
}

/// With what `links`, `volumes_from` and joined namespaces imply.
fn depends_on(at: &At<'_>) -> Printed {
    let mut all: BTreeMap<String, Printed> = BTreeMap::new();
    let one = |condition: String, restart: bool, required: bool| {
        let restart = restart.then(|| ("restart".to_owned(), Printed::Truth(true)));
        let mut map = vec![("condition".to_owned(), Printed::Text(condition))];
        map.extend(restart);
        map.push(("required".to_owned(), Printed::Truth(required)));
        Printed::Map(map)
    };
    let own = at.get("depends_on");
    for entry in own.iter().flat_map(|at| at.entries()).flatten() {
        let condition = entry.get("condition").filter(|at| !at.is_unset()).map(|at| text_of(&at));
        let truth = |key: &str| entry.get(key).and_then(|at| at.truth().ok());
        let condition = condition.unwrap_or_else(|| "service_started".into());
        let restart = truth("restart").unwrap_or(false);
        let one = one(condition, restart, truth("required").unwrap_or(true));
        all.insert(entry.key().to_owned(), one);
    }
    let mut implied = |name: &str, restart: bool| {
        let made = || one("service_started".into(), restart, true);
        all.entry(name.to_owned()).or_insert_with(made);
    };
    let texts = |key: &str| at.get(key).and_then(|at| at.texts().ok()).unwrap_or_default();
    for link in texts("links") {
        implied(link.split(':').next().unwrap_or(&link), true);
    }
    for key in ["network_mode", "ipc", "pid", "uts", "cgroup"] {
        let text = at.get(key).map(|at| text_of(&at)).unwrap_or_default();
        if let Some(name) = text.strip_prefix("service:") {
            implied(name, true);
        }
    }
    for from in texts("volumes_from") {
        if !from.starts_with("container:") {
            implied(from.split(':').next().unwrap_or(&from), false);
        }
    }
    Printed::Dict(all.into_iter().collect())
}

/// The fields that are there, and those of extension keys.
fn object(at: &At<'_>, fields: &[Field]) -> Printed {
    let mut map = Pairs::new();
    for field in fields {
        let there = at.get(field.key).filter(|at| !at.is_null());
        let printed = match (&there, field.shape) {
            (Some(at), Shape::Section(fields)) => section(object(at, fields)),
            (None, Shape::Section(_)) => section(Printed::Map(Pairs::new())),
            (Some(at), shape) => value(at, shape),
            (None, _) => continue,
        };
        if field.kept || !printed.is_empty() {
            map.push((field.key.to_owned(), printed));
        }
    }
    for entry in at.entries().into_iter().flatten().filter(|at| at.key().starts_with("x-")) {
        map.push((entry.key().to_owned(), Printed::OnlyInYaml(Box::new(as_it_is(entry.node)))));
    }
    Printed::Map(map)
}

fn section(printed: Printed) -> Printed {
    if printed.is_empty() { Printed::OnlyInJson(Box::new(printed)) } else { printed }
}

/// One value as Compose prints it; as it is where it cannot be that.
fn value(at: &At<'_>, shape: Shape) -> Printed {
    let text = || text_of(at);
    let number = |valid: bool, text: String| match valid {
        true => Printed::Number(text),
        false => Printed::Text(text),
    };
    match shape {
        Shape::Text => Printed::Text(text()),
        Shape::Whole => number(text().parse::<i64>().is_ok(), text()),
        Shape::Float => match text().parse::<f32>() {
            Ok(value) if value.is_finite() => Printed::Number(value.to_string()),
            _ => Printed::Text(text()),
        },
        Shape::Truth => at.truth().map_or_else(|_| Printed::Text(text()), Printed::Truth),
        Shape::Bytes => match units::bytes(&text()) {
            Some(0) => Printed::Null,
            Some(bytes) => Printed::Text(bytes.to_string()),
            None => Printed::Text(text()),
        },
        Shape::Span => {
            let span = units::duration(&text()).map(units::span_as_text);
            Printed::Text(span.unwrap_or_else(text))
        }
        Shape::Texts => Printed::List(match at.is_list() {
            true => {
                at.items().into_iter().flatten().map(|at| Printed::Text(text_of(&at))).collect()
            }
            false => vec![Printed::Text(text())],
        }),
        Shape::Named => named(at, |at| Printed::Text(text_of(at))),
        Shape::Words => {
            let words = super::service::command(at).unwrap_or_default();
            Printed::List(words.into_iter().map(Printed::Text).collect())
        }
        Shape::List(of) => {
            let items = at.items().into_iter().flatten();
            Printed::List(items.map(|item| value(&item, *of)).collect())
        }
        Shape::Map(of) => named(at, |at| if at.is_null() { Printed::Null } else { value(at, *of) }),
        Shape::Object(fields) | Shape::Section(fields) => object(at, fields),
        Shape::Own(print) => print(at),
        Shape::AsItIs => as_it_is(at.node),
    }
}

fn named(at: &At<'_>, print: impl Fn(&At<'_>) -> Printed) -> Printed {
    let entries = at.entries().into_iter().flatten();
    Printed::Dict(entries.map(|entry| (entry.key().to_owned(), print(&entry))).collect())
}

/// The text of a scalar, numbers in the form of Compose; empty for anything else.
fn text_of(at: &At<'_>) -> String {
    if at.is_null() { String::new() } else { at.text().unwrap_or_default() }
}

/// A value as YAML has it.
fn as_it_is(node: &Node) -> Printed {
    match &node.value {
        _ if node.is_null() => Printed::Null,
        Value::Scalar(Scalar { text, plain: true }) => match text.as_str() {
            "true" | "True" | "TRUE" => Printed::Truth(true),
            "false" | "False" | "FALSE" => Printed::Truth(false),
            _ => match units::number_as_text(text) {
                Some(number) if !number.ends_with(['f', 'N']) => Printed::Number(number),
                _ => Printed::text(text),
            },
        },
        Value::Scalar(Scalar { text, .. }) => Printed::text(text),
        Value::List(list) => Printed::List(list.iter().map(as_it_is).collect()),
        Value::Map(map) => {
            let pair =
                |(key, entry): (&String, &super::yaml::Entry)| (key.clone(), as_it_is(&entry.node));
            Printed::Dict(map.iter().map(pair).collect())
        }
    }
}
