//! Networks: each way to write what one is and who is on it.

use std::collections::{BTreeMap, BTreeSet};

use kiln_core::compose::{Membership, Network, NetworkMode, Project};
use kiln_core::image::ImageConfig;
use kiln_core::release::Settings;

use crate::{BASES, World};

/// Two services, `web` with these keys, and this at the top.
fn project(web: &str, top: &str) -> Project {
    let web: String = web.lines().map(|line| format!("    {line}\n")).collect();
    let text = format!(
        "name: shop\nservices:\n  db: {{image: base}}\n  web:\n    image: base\n{web}{top}\n{BASES}"
    );
    World::new(&text).load().unwrap_or_else(|error| panic!("{text}: {error} {:?}", error.hint))
}

fn settings(project: &Project) -> Settings {
    let image = ImageConfig { cmd: Some(vec!["x".into()]), ..ImageConfig::default() };
    let web = &project.services["web"];
    kiln_core::settings::settings(project, "web", web, &image, vec![]).unwrap()
}

fn on(parts: &[(&str, &[&str], bool, Option<&str>)]) -> Option<BTreeMap<String, Membership>> {
    let part = |(name, aliases, internal, joined): &(&str, &[&str], bool, Option<&str>)| {
        let aliases = aliases.iter().map(|alias| (*alias).to_owned()).collect();
        let joined = joined.map(str::to_owned);
        ((*name).to_owned(), Membership { aliases, internal: *internal, joined })
    };
    Some(parts.iter().map(part).collect())
}

#[test]
fn who_is_on_which_network() {
    let none: &[&str] = &[];
    for (web, top, expected) in [
        ("", "", None),
        ("", "networks: {unused: }", None),
        ("networks: [default]", "networks: {default: }", None),
        ("networks: {default: {aliases: [www]}}", "", None),
        ("networks: [front]", "networks: {front: }", on(&[("front", none, false, None)])),
        (
            "networks:\n  front:\n  back: {aliases: [w, w], ipv4_address: 10.0.0.1, priority: 3}",
            "networks: {front: {driver: bridge}, back: {internal: true, ipam: {driver: default}}}",
            on(&[("back", &["w"], true, None), ("front", none, false, None)]),
        ),
        ("", "networks: {default: {internal: true}}", on(&[("default", none, true, None)])),
        (
            "networks: [a, b, c, d, e]",
            "networks:\n  a: {name: own}\n  b: {external: true}\n  c: {external: {name: old}}\n  \
             d: {x-kiln: {joinable: true}}\n  e: {external: true, name: long}",
            on(&[
                ("a", none, false, Some("own")),
                ("b", none, false, Some("b")),
                ("c", none, false, Some("old")),
                ("d", none, false, Some("shop_d")),
                ("e", none, false, Some("long")),
            ]),
        ),
        (
            "networks: [a]",
            "networks: {a: {external: false, driver: overlay}}",
            on(&[("a", none, false, None)]),
        ),
    ] {
        let settings = settings(&project(web, top));
        assert_eq!(settings.networks, expected, "{web} {top}");
    }
    let usual = settings(&project("networks: {default: {aliases: [www]}}", ""));
    assert_eq!(usual.aliases, BTreeSet::from(["www".to_owned()]));
}

#[test]
fn modes_and_what_follows_from_them() {
    for (text, expected) in [
        ("none", Some(NetworkMode::None)),
        ("bridge", Some(NetworkMode::Bridge)),
        ("host", Some(NetworkMode::Host)),
        ("\"service:db\"", Some(NetworkMode::Service("db".into()))),
        ("default", None),
        ("\"\"", None),
        ("\"${NOT_SET:-}\"", None),
    ] {
        let project = project(&format!("network_mode: {text}\nports: ['80:80']"), "");
        assert_eq!(project.services["web"].network_mode, expected, "{text}");
        let waits = project.services["web"].depends_on.contains_key("db");
        assert_eq!(waits, matches!(expected, Some(NetworkMode::Service(_))), "{text}");
        let published = !settings(&project).ports.is_empty();
        let reached = !matches!(expected, Some(NetworkMode::None | NetworkMode::Host));
        assert_eq!(published, reached, "{text}");
    }
}

#[test]
fn links_are_names_and_dependencies() {
    let project = project("links: [db, \"db:store\"]", "");
    let web = &project.services["web"];
    let links: Vec<_> = web.links.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    assert_eq!(links, [("db", "db"), ("store", "db")]);
    assert!(web.depends_on["db"].required);
    assert_eq!(settings(&project).links, web.links);
}

#[test]
fn what_is_accepted_and_means_nothing_is_told() {
    let project = project(
        "mac_address: 02:42:ac:11:65:43\nnetworks: {a: {ipv6_address: \"::5\"}}",
        "networks: {a: {ipam: {config: [{subnet: 10.5.0.0/16}]}, driver_opts: {x: y}, enable_ipv6: true}}",
    );
    for key in
        ["mac_address", "ipv6_address: Kiln gives addresses", "ipam", "driver_opts", "enable_ipv6"]
    {
        assert!(
            project.ignored.iter().any(|line| line.contains(key)),
            "{key}: {:?}",
            project.ignored
        );
    }
    assert_eq!(project.networks["a"], Network::default());
}

#[test]
fn an_empty_host_address_is_every_address() {
    let ports =
        project("ports: [\"${BIND:-}:21020:80\", {target: 81, host_ip: \"\"}, \"53:53/udp\"]", "");
    let ports = &ports.services["web"].ports;
    assert!(ports.iter().all(|port| port.host_ip.is_none()), "{ports:?}");
    assert_eq!(ports.iter().map(|port| port.published).collect::<Vec<_>>(), [21020, 0, 53]);
}
