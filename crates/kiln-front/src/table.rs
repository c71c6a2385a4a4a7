//! The routing table. It is applied whole: that is the atomic switch for every service of every
//! stage under one root.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// How long a held request waits when its route does not say: 30 s.
pub const DEFAULT_HOLD_MS: u64 = 30_000;

/// Everything the front serves, at one generation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Grows with every change; a table that is not newer than the one in force is refused.
    pub generation: u64,
    /// In any order; ids and listen addresses are unique.
    pub routes: Vec<Route>,
}

/// One published port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Name of the port, such as `shop/dev/web:8080/tcp`.
    pub id: String,
    /// Where clients come in. Port 0 lets the kernel choose; the reply tells, and the choice is
    /// kept for as long as the route exists. IPv6 sockets never take IPv4.
    pub listen: Vec<SocketAddr>,
    /// Transport.
    #[serde(default)]
    pub protocol: Protocol,
    /// What is spoken.
    #[serde(default)]
    pub app: App,
    /// The slot it leads to: a release's short digest. For people (answers over HTTP carry it as
    /// `X-Kiln-Release`, unless it is empty) and for [`crate::Drain`].
    #[serde(default)]
    pub slot: String,
    /// The instance. A listener is opened when its route first has one.
    pub upstream: Option<SocketAddr>,
    /// New requests and connections wait, up to `hold_ms`, until a later table lifts this.
    #[serde(default)]
    pub hold: bool,
    /// Bound of the wait in milliseconds.
    #[serde(default = "default_hold_ms")]
    pub hold_ms: u64,
    /// How long what is under way may go on after a switch has taken the upstream away, in
    /// milliseconds from that switch. Without it nothing is cut before somebody asks for it.
    #[serde(default)]
    pub drain_ms: Option<u64>,
}

fn default_hold_ms() -> u64 {
    DEFAULT_HOLD_MS
}

/// Transport of a route.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// A stream.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// What is spoken over a route.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum App {
    /// Told by who speaks first, and what.
    #[default]
    Auto,
    /// HTTP/1.1.
    Http,
    /// Anything else.
    Tcp,
    /// Over UDP: each datagram is a question of its own, so a client that speaks stays with nobody.
    Dns,
}

impl Route {
    /// A TCP route with the default bounds.
    pub fn new(id: impl Into<String>, listen: Vec<SocketAddr>, upstream: SocketAddr) -> Self {
        Self {
            id: id.into(),
            listen,
            protocol: Protocol::Tcp,
            app: App::Auto,
            slot: String::new(),
            upstream: Some(upstream),
            hold: false,
            hold_ms: DEFAULT_HOLD_MS,
            drain_ms: None,
        }
    }

    /// What a port without a host address listens on: every IPv4 and every IPv6 address.
    pub fn everywhere(port: u16) -> Vec<SocketAddr> {
        vec![
            SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
            SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port),
        ]
    }
}

impl Route {
    /// Checks what concerns this route alone.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.listen.is_empty() {
            return Err(format!("route `{}` listens nowhere", self.id));
        }
        let mut own = BTreeSet::new();
        match self.listen.iter().find(|addr| !own.insert(**addr)) {
            Some(addr) => Err(format!("route `{}` lists {addr} twice", self.id)),
            None => Ok(()),
        }
    }

    pub(crate) fn is_there_twice(&self) -> String {
        format!("route `{}` is there twice", self.id)
    }

    pub(crate) fn has_no_right_to(&self, addr: &SocketAddr) -> String {
        let Self { id, protocol, .. } = self;
        format!("route `{id}` listens on {addr}/{protocol}, which another route has")
    }
}

impl Table {
    /// Checks what the types cannot: unique ids, at least one and only unique addresses.
    ///
    /// # Errors
    /// A sentence naming the first offending route.
    pub fn check(&self) -> Result<(), String> {
        let mut ids = BTreeSet::new();
        let mut addrs = BTreeSet::new();
        for route in &self.routes {
            if !ids.insert(route.id.as_str()) {
                return Err(route.is_there_twice());
            }
            route.check()?;
            for addr in &route.listen {
                if addr.port() != 0 && !addrs.insert((route.protocol, *addr)) {
                    return Err(route.has_no_right_to(addr));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn refuses_what_cannot_be_served() {
        let route = |id: &str, at: &str| Route::new(id, vec![addr(at)], addr("10.0.0.1:80"));
        let table = |routes| Table { generation: 1, routes };
        assert!(table(vec![route("a", "[::]:80"), route("b", "0.0.0.0:80")]).check().is_ok());
        assert!(table(vec![route("a", "[::1]:0"), route("b", "[::1]:0")]).check().is_ok());
        let twice = table(vec![route("a", "[::]:80"), route("a", "[::]:81")]);
        assert_eq!(twice.check().unwrap_err(), "route `a` is there twice");
        let taken = table(vec![route("a", "[::]:80"), route("b", "[::]:80")]).check().unwrap_err();
        assert!(taken.contains("`b` listens on [::]:80/tcp"), "{taken}");
        let nowhere = Route { listen: vec![], ..route("a", "[::]:80") };
        assert!(table(vec![nowhere]).check().unwrap_err().contains("nowhere"));
    }

    #[test]
    fn short_form_has_defaults() {
        let text = r#"{"id":"a","listen":["0.0.0.0:80"],"upstream":null}"#;
        let route: Route = serde_json::from_str(text).unwrap();
        assert_eq!((route.app, route.protocol, route.hold), (App::Auto, Protocol::Tcp, false));
        assert_eq!(route.hold_ms, 30_000);
    }
}
