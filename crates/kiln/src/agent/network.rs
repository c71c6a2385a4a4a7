//! The networks of instances: on which one is, and which names lead where from there.
//!
//! A network is a name that is unique in the root: `PROJECT/STAGE NAME` for one of a stage's own,
//! `* STAGE NAME` for one that stages of that name of all projects may have a part in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use kiln_core::Release;
use kiln_core::compose::NetworkMode;
use kiln_core::data::{Held, Node, Spot};
use kiln_core::release::Settings;
use kiln_run::Network;
use kiln_run::net::{GATEWAY, Networks};
use serde::{Deserialize, Serialize};

use super::Agent;
use super::stage::{Instance, Life, Stage, StageId, StageState};
use crate::report::{Because, Report};

/// The network of who says nothing of networks.
const DEFAULT: &str = "default";
/// What names of joined networks begin with: no project is called so.
const JOINED: &str = "* ";
/// No network of Compose's can be called so.
const BRIDGE: &str = "(bridge)";

/// How an instance is on the network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Net {
    /// By an interface of its own, together with all of its stage that say nothing of networks.
    #[default]
    Stage,
    /// By an interface of its own.
    On {
        /// The networks.
        names: BTreeSet<String>,
        /// Nothing leads out of any of them.
        inside: bool,
    },
    /// Not at all.
    Alone,
    /// By the host's own.
    Host,
    /// By that of another instance, which has this id.
    With(String),
}

impl Net {
    /// What the settings of a service of a stage say; of one that shares a network, what the one
    /// that has it says.
    pub(crate) fn of(stage: &StageId, settings: &Settings) -> Self {
        let own = |name: &str| format!("{stage} {name}");
        match &settings.network_mode {
            Some(NetworkMode::None) => return Self::Alone,
            Some(NetworkMode::Host) => return Self::Host,
            Some(NetworkMode::Bridge) => {
                return Self::On { names: BTreeSet::from([own(BRIDGE)]), inside: false };
            }
            Some(NetworkMode::Service(_)) | None => {}
        }
        let Some(networks) = &settings.networks else { return Self::Stage };
        let name = |(name, part): (&String, &kiln_core::compose::Membership)| match &part.joined {
            Some(joined) => joined_name(stage, joined),
            None => own(name),
        };
        let inside = networks.values().all(|part| part.internal);
        Self::On { names: networks.iter().map(name).collect(), inside }
    }

    /// Whether the instance's address is its own.
    pub(crate) const fn has_address(&self) -> bool {
        matches!(self, Self::Stage | Self::On { .. } | Self::Alone)
    }

    /// The networks that its interface is on, if it has one.
    pub(crate) fn networks(&self, stage: &StageId) -> Option<Networks> {
        match self {
            Self::Stage => Some(Networks::one(format!("{stage} {DEFAULT}"))),
            Self::On { names, inside } => Some(Networks { names: names.clone(), inside: *inside }),
            Self::Alone | Self::Host | Self::With(_) => None,
        }
    }
}

/// What a joined network is called.
pub(crate) fn joined_name(stage: &StageId, name: &str) -> String {
    format!("{JOINED}{} {name}", stage.stage)
}

/// The joined ones of the networks of an instance.
pub(crate) fn joined(net: &Net) -> BTreeSet<String> {
    let Net::On { names, .. } = net else { return BTreeSet::new() };
    names.iter().filter(|name| name.starts_with(JOINED)).cloned().collect()
}

/// If `service` is on one of the networks `shared`: its aliases there.
pub(crate) fn aliases_on(
    stage: &StageId,
    release: &Release,
    service: &str,
    shared: &BTreeSet<String>,
) -> Option<Vec<String>> {
    let part = Part::of(stage, release, service);
    let networks: BTreeSet<String> = part.networks.intersection(shared).cloned().collect();
    if networks.is_empty() {
        return None;
    }
    let from = Part { name: "", settings: None, net: Net::Stage, networks, stage };
    Some(part.aliases(&from).into_iter().map(str::to_owned).collect())
}

/// The service whose network `service` has: mostly its own.
fn owner<'a>(release: &'a Release, service: &'a str) -> &'a str {
    let mut name = service;
    // The reader refuses loops; a release may come from elsewhere.
    for _ in 0..release.services.len() {
        let mode = release.services.get(name).and_then(|it| it.settings.network_mode.as_ref());
        let Some(NetworkMode::Service(next)) = mode else { break };
        name = next;
    }
    name
}

/// What an instance that is about to start is on: how, and at which address. One of its own is
/// taken where it needs one.
pub(crate) fn place(
    agent: &Agent,
    stage: &Stage,
    release: &Release,
    digest: &kiln_core::Digest,
    service: &str,
) -> Result<(Net, Ipv4Addr), Report> {
    let owner = owner(release, service);
    if owner != service {
        let state = stage.state();
        let lives = |found: &&Instance| {
            let going = matches!(found.life, Life::Starting | Life::Ready | Life::Unhealthy);
            going && found.running.is_some()
        };
        let host = state.member(digest, owner).filter(lives).ok_or_else(|| {
            Report::failed(format!("`{service}` has the network of `{owner}`, which does not run"))
        })?;
        return Ok((Net::With(host.id.clone()), host.address));
    }
    let settings = release.services.get(service).map(|released| &released.settings);
    let net = settings.map_or(Net::Stage, |settings| Net::of(&stage.id, settings));
    let address = match net {
        Net::Host => GATEWAY,
        _ => agent.addresses.take_instance(&agent.host)?,
    };
    Ok((net, address))
}

/// The network of its sandbox. Who has an interface of its own is let into its networks.
pub(crate) fn of_sandbox(
    agent: &Agent,
    stage: &Stage,
    instance: &Instance,
) -> Result<Network, Report> {
    match &instance.net {
        Net::Alone => Ok(Network::None),
        Net::Host => Ok(Network::Host),
        Net::With(id) => {
            let state = stage.state();
            let running = state.instances.get(id).and_then(|found| found.running.as_ref());
            let running = running.ok_or_else(|| Report::failed(format!("{id} has ended")))?;
            Ok(Network::With { pid: running.pid(), start_time: running.start_time() })
        }
        net @ (Net::Stage | Net::On { .. }) => {
            let address = instance.address;
            let admitted = agent.host.admit(address, net.networks(&stage.id).as_ref());
            let spec = admitted
                .because(|| format!("letting {address} into the networks of {}", stage.id))?;
            Ok(Network::Routed(spec))
        }
    }
}

/// `/etc/resolv.conf` of an instance. In the host's network the host's is right as it is, with the
/// servers on its loopback.
pub(crate) fn resolv_conf(agent: &Agent, net: &Net) -> String {
    let host = match net {
        Net::Host => std::fs::read_to_string("/etc/resolv.conf").ok(),
        _ => None,
    };
    host.unwrap_or_else(|| agent.resolv_conf())
}

/// What keeps a service in the host's network from running twice: two would want the same ports.
pub(crate) fn held(stage: &StageId, service: &str, settings: &Settings) -> Option<Held> {
    (settings.network_mode == Some(NetworkMode::Host)).then(|| {
        let node = Node { dev: 0, ino: 0, rest: format!("{stage}/{service}") };
        let spots = vec![Spot { node, above: BTreeSet::new() }];
        Held { name: "to the host's network".into(), spots }
    })
}

/// Instances that have their network by that of `id`: they go with it.
pub(crate) fn guests(state: &StageState, id: &str) -> Vec<String> {
    let with = |found: &&Instance| found.net == Net::With(id.to_owned());
    state.instances.values().filter(with).map(|found| found.id.clone()).collect()
}

/// Names and the addresses that they lead to, the first of a name only.
#[derive(Debug, Default)]
struct Lines {
    text: String,
    known: BTreeSet<String>,
}

impl Lines {
    fn add<'a>(&mut self, address: &str, names: impl IntoIterator<Item = &'a str>) {
        let names: Vec<&str> =
            names.into_iter().filter(|name| self.known.insert((*name).to_owned())).collect();
        if !names.is_empty() {
            self.text.push_str(&format!("{address}\t{}\n", names.join(" ")));
        }
    }
}

/// `/etc/hosts` of an instance of `service`: its own names lead to itself, those of the services
/// that share a network with it to their stable addresses, `joined` to those of other projects.
pub(crate) fn hosts(
    stage: &StageId,
    release: &Release,
    service: &str,
    instance: &Instance,
    addresses: &BTreeMap<String, Ipv4Addr>,
    joined: &[(Ipv4Addr, Vec<String>)],
) -> String {
    let mut lines = Lines::default();
    lines.text.push_str("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    lines.known.insert("localhost".into());
    let Some(released) = release.services.get(service) else { return lines.text };
    let settings = &released.settings;
    let own = Part::of(stage, release, service);
    let mut names: Vec<&str> = vec![service];
    names.extend(own.aliases(&own));
    names.push(&settings.hostname);
    let itself = match instance.net {
        Net::Alone | Net::Host => Ipv4Addr::LOCALHOST,
        _ => instance.address,
    };
    let names = names.into_iter().filter(|name| !name.is_empty());
    lines.add(&itself.to_string(), names);
    // What the user wrote comes before what follows from other services' names.
    for (alias, target) in &settings.links {
        if let Some(at) = Part::of(stage, release, target).address(&own, addresses) {
            lines.add(&at.to_string(), [alias.as_str()]);
        }
    }
    for name in release.services.keys().filter(|name| *name != service) {
        let other = Part::of(stage, release, name);
        if let Some(at) = other.address(&own, addresses) {
            let names = std::iter::once(name.as_str()).chain(other.aliases(&own));
            lines.add(&at.to_string(), names);
        }
    }
    // Of what serves, beside which an instance that is in no slot runs.
    for (name, at) in addresses.iter().filter(|(name, _)| !release.services.contains_key(*name)) {
        lines.add(&at.to_string(), [name.as_str()]);
    }
    for (at, names) in joined {
        lines.add(&at.to_string(), names.iter().map(String::as_str));
    }
    // These may stand for several addresses of one name, so all are written.
    for (name, at) in &settings.extra_hosts {
        // Docker's word for the host as instances see it.
        let gateway = GATEWAY.to_string();
        let at = if at == "host-gateway" { &gateway } else { at };
        lines.text.push_str(&format!("{at}\t{name}\n"));
    }
    lines.text
}

/// A service's part in the networks of its release.
struct Part<'a> {
    name: &'a str,
    settings: Option<&'a Settings>,
    net: Net,
    /// By the name of the root's that the network has.
    networks: BTreeSet<String>,
    stage: &'a StageId,
}

impl<'a> Part<'a> {
    fn of(stage: &'a StageId, release: &'a Release, name: &'a str) -> Self {
        let settings_of = |name: &str| release.services.get(name).map(|it| &it.settings);
        let net = settings_of(owner(release, name)).map_or(Net::Alone, |it| Net::of(stage, it));
        let networks = net.networks(stage).map(|networks| networks.names).unwrap_or_default();
        Self { name, settings: settings_of(name), net, networks, stage }
    }

    /// Where one of `from` finds this service, if it may see it.
    fn address(&self, from: &Self, all: &BTreeMap<String, Ipv4Addr>) -> Option<Ipv4Addr> {
        match (&self.net, &from.net) {
            (_, Net::Alone) | (Net::Alone, _) => None,
            (Net::Host, Net::Host) => Some(Ipv4Addr::LOCALHOST),
            (Net::Host, _) => Some(GATEWAY),
            // The host sees all.
            (_, Net::Host) => all.get(self.name).copied(),
            _ if self.networks.is_disjoint(&from.networks) => None,
            _ => all.get(self.name).copied(),
        }
    }

    /// Further names of this service on the networks that it has in common with `from`.
    fn aliases(&self, from: &Self) -> Vec<&'a str> {
        let Some(settings) = self.settings else { return Vec::new() };
        let Some(networks) = &settings.networks else {
            return settings.aliases.iter().map(String::as_str).collect();
        };
        let all = networks.iter().filter(|(name, part)| {
            let one = BTreeMap::from([((*name).clone(), (*part).clone())]);
            let only = Settings { networks: Some(one), ..Settings::default() };
            let name = Net::of(self.stage, &only).networks(self.stage);
            from.net == Net::Host || name.is_some_and(|it| !it.names.is_disjoint(&from.networks))
        });
        all.flat_map(|(_, part)| part.aliases.iter().map(String::as_str)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_core::compose::Membership;
    use kiln_core::release::ReleasedService;

    fn membership(aliases: &[&str], joined: Option<&str>) -> Membership {
        Membership {
            aliases: aliases.iter().map(|it| (*it).to_owned()).collect(),
            joined: joined.map(str::to_owned),
            internal: false,
        }
    }

    fn release(services: &[(&str, Settings)]) -> Release {
        let image = kiln_core::image::ImageId {
            tree: kiln_core::Digest::of("t"),
            config: kiln_core::Digest::of("c"),
        };
        let services = services.iter().map(|(name, settings)| {
            ((*name).to_owned(), ReleasedService { image, settings: settings.clone() })
        });
        Release { services: services.collect(), ..Release::default() }
    }

    fn on(parts: &[(&str, Membership)]) -> Settings {
        let networks = parts.iter().map(|(name, part)| ((*name).to_owned(), part.clone()));
        Settings { networks: Some(networks.collect()), ..Settings::default() }
    }

    /// What `service` finds, beside itself and the loopback.
    fn finds(release: &Release, service: &str) -> Vec<String> {
        let stage = StageId { project: "p".into(), stage: "dev".into() };
        let addresses: BTreeMap<String, Ipv4Addr> = (1..)
            .zip(release.services.keys())
            .map(|(n, name)| (name.clone(), Ipv4Addr::new(10, 0, 0, n)))
            .collect();
        let settings = &release.services[service].settings;
        let net = Net::of(&stage, settings);
        let instance = Instance { net, ..Instance::example(service) };
        let text = hosts(&stage, release, service, &instance, &addresses, &[]);
        text.lines().skip(3).map(|line| line.replace('\t', " ")).collect()
    }

    #[test]
    fn names_are_found_where_a_network_is_shared() {
        let mode = |mode| Settings { network_mode: Some(mode), ..Settings::default() };
        let links = BTreeMap::from([("store".to_owned(), "db".to_owned())]);
        let release = release(&[
            (
                "api",
                on(&[
                    ("front", membership(&["www"], None)),
                    ("back", membership(&["api.back"], None)),
                ]),
            ),
            ("db", on(&[("back", membership(&["database"], None))])),
            ("host", mode(NetworkMode::Host)),
            ("lone", mode(NetworkMode::None)),
            ("side", mode(NetworkMode::Service("db".into()))),
            ("usual", Settings { links, ..Settings::default() }),
            ("web", on(&[("front", membership(&[], None))])),
        ]);
        assert_eq!(finds(&release, "web"), ["10.0.0.1 api www", "169.254.1.1 host"]);
        let of_db = ["10.0.0.1 api api.back", "169.254.1.1 host", "10.0.0.5 side"];
        assert_eq!(finds(&release, "db"), of_db);
        assert_eq!(finds(&release, "lone"), [] as [&str; 0]);
        assert_eq!(
            finds(&release, "usual"),
            ["169.254.1.1 host"],
            "a link leads to no other network"
        );
        assert_eq!(finds(&release, "host").len(), 5, "the host sees all that are somewhere");
    }

    #[test]
    fn a_link_is_a_name_for_one_alone() {
        let links = BTreeMap::from([("store".to_owned(), "db".to_owned())]);
        let linking = Settings { links, ..Settings::default() };
        let release = release(&[("db", Settings::default()), ("web", linking)]);
        assert_eq!(finds(&release, "web"), ["10.0.0.1 store", "10.0.0.1 db"]);
        assert_eq!(finds(&release, "db"), ["10.0.0.2 web"]);
    }
}
