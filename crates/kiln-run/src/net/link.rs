//! rtnetlink: the link, address, neighbour and route messages that instances need.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::message::{Attributes, Batch, CREATE, DUMP, EXCL, REPLACE};
use super::netlink::{Refused, Socket};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IFF_UP: u32 = 1;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_INET_CONF: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const ADDR_GEN_MODE_NONE: u8 = 1;
/// Indices of the per-interface IPv4 settings, from linux/ip.h.
const DEVCONF_FORWARDING: u16 = 1;
const DEVCONF_RP_FILTER: u16 = 8;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTA_TABLE: u16 = 15;
const RT_TABLE_MAIN: u8 = 254;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
const RTN_UNREACHABLE: u8 = 7;
const RTN_LOCAL: u8 = 2;
const NUD_PERMANENT: u16 = 0x80;

/// The routing protocol number in the routes that Kiln makes: a free one in iproute2's list.
pub(super) const PROTOCOL: u8 = 107;

/// `struct ifinfomsg`.
fn ifinfo(index: u32, flags: u32) -> [u8; 16] {
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&flags.to_ne_bytes());
    body[12..16].copy_from_slice(&flags.to_ne_bytes());
    body
}

/// `struct rtmsg`.
fn route(prefix: u8, scope: u8, kind: u8) -> [u8; 12] {
    [AF_INET, prefix, 0, 0, RT_TABLE_MAIN, PROTOCOL, scope, kind, 0, 0, 0, 0]
}

/// A veth pair as it is to be made.
#[derive(Debug)]
pub(super) struct Pair<'a> {
    pub(super) host_name: &'a str,
    pub(super) host_mac: [u8; 6],
    pub(super) inner_name: &'a str,
    pub(super) inner_mac: [u8; 6],
    pub(super) group: u32,
    pub(super) mtu: Option<u32>,
}

/// Index of the loopback interface, in every namespace.
const LOOPBACK: u32 = 1;

impl Batch {
    /// Makes both ends, the inner one directly in `netns`. One queue each: the kernel would make
    /// one for every processor, with its sysfs entries.
    pub(super) fn new_pair(&mut self, pair: &Pair<'_>, netns: BorrowedFd<'_>) {
        self.message("create the veth pair", RTM_NEWLINK, CREATE | EXCL, &ifinfo(0, 0));
        self.end_attributes(pair.host_name, &pair.host_mac, pair.mtu);
        self.put_u32(IFLA_GROUP, pair.group);
        let info = self.nest(IFLA_LINKINFO);
        self.put_str(IFLA_INFO_KIND, "veth");
        let data = self.nest(IFLA_INFO_DATA);
        let peer = self.nest(VETH_INFO_PEER);
        self.raw(&ifinfo(0, 0));
        self.end_attributes(pair.inner_name, &pair.inner_mac, pair.mtu);
        self.put_u32(IFLA_NET_NS_FD, netns.as_raw_fd() as u32);
        self.end(peer);
        self.end(data);
        self.end(info);
    }

    fn end_attributes(&mut self, name: &str, mac: &[u8; 6], mtu: Option<u32>) {
        self.put_str(IFLA_IFNAME, name);
        self.put(IFLA_ADDRESS, mac);
        self.put_u32(IFLA_NUM_TX_QUEUES, 1);
        self.put_u32(IFLA_NUM_RX_QUEUES, 1);
        if let Some(mtu) = mtu {
            self.put_u32(IFLA_MTU, mtu);
        }
    }

    /// Forwards what comes in there, if its source is routed back there: nobody can send in
    /// another instance's name. The same as writing to /proc/sys/net/ipv4/conf, without files.
    pub(super) fn forward_strictly(&mut self, index: u32) {
        self.message("set forwarding of the interface", RTM_SETLINK, 0, &ifinfo(index, 0));
        let spec = self.nest(IFLA_AF_SPEC);
        let inet = self.nest(u16::from(AF_INET));
        let conf = self.nest(IFLA_INET_CONF);
        self.put_u32(DEVCONF_FORWARDING, 1);
        self.put_u32(DEVCONF_RP_FILTER, 1);
        self.end(conf);
        self.end(inet);
        self.end(spec);
    }

    /// No IPv6 address on the interface. A kernel without IPv6 has nothing to switch off.
    pub(super) fn without_ipv6(&mut self, index: u32) {
        self.message("switch IPv6 off on the interface", RTM_SETLINK, 0, &ifinfo(index, 0));
        self.tolerate(Errno::AFNOSUPPORT);
        let spec = self.nest(IFLA_AF_SPEC);
        let inet6 = self.nest(u16::from(AF_INET6));
        self.put(IFLA_INET6_ADDR_GEN_MODE, &[ADDR_GEN_MODE_NONE]);
        self.end(inet6);
        self.end(spec);
    }

    pub(super) fn up(&mut self, index: u32) {
        self.message("bring the interface up", RTM_SETLINK, 0, &ifinfo(index, IFF_UP));
    }

    /// `address`/32.
    pub(super) fn address(&mut self, index: u32, address: Ipv4Addr, link_scope: bool) {
        let scope = if link_scope { RT_SCOPE_LINK } else { 0 };
        let mut body = [AF_INET, 32, 0, scope, 0, 0, 0, 0];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        self.message("add the address", RTM_NEWADDR, CREATE | EXCL, &body);
        self.put(1, &address.octets());
        self.put(2, &address.octets());
    }

    /// A permanent neighbour, so that no first packet ever waits for ARP.
    pub(super) fn neighbour(&mut self, index: u32, address: Ipv4Addr, mac: &[u8; 6]) {
        let mut body = [AF_INET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        body[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
        self.message("add the neighbour", RTM_NEWNEIGH, CREATE | REPLACE, &body);
        self.put(1, &address.octets());
        self.put(2, mac);
    }

    /// `to`/32 is on this link.
    pub(super) fn link_route(&mut self, index: u32, to: Ipv4Addr, source: Option<Ipv4Addr>) {
        let body = route(32, RT_SCOPE_LINK, RTN_UNICAST);
        self.message("add the route", RTM_NEWROUTE, CREATE | REPLACE, &body);
        self.put(RTA_DST, &to.octets());
        self.put_u32(RTA_OIF, index);
        if let Some(source) = source {
            self.put(RTA_PREFSRC, &source.octets());
        }
    }

    pub(super) fn default_route(&mut self, index: u32, gateway: Ipv4Addr) {
        self.message("add the default route", RTM_NEWROUTE, CREATE, &route(0, 0, RTN_UNICAST));
        self.put(RTA_GATEWAY, &gateway.octets());
        self.put_u32(RTA_OIF, index);
    }

    /// Packets to the network that no longer route takes are answered "host unreachable".
    pub(super) fn unreachable(&mut self, network: Ipv4Addr, prefix: u8) {
        let body = route(prefix, 0, RTN_UNREACHABLE);
        self.message("add the unreachable route", RTM_NEWROUTE, CREATE | REPLACE, &body);
        self.put(RTA_DST, &network.octets());
    }

    pub(super) fn not_unreachable(&mut self, network: Ipv4Addr, prefix: u8) {
        let body = route(prefix, 0, RTN_UNREACHABLE);
        self.message("remove the unreachable route", RTM_DELROUTE, 0, &body);
        self.tolerate(Errno::SRCH);
        self.put(RTA_DST, &network.octets());
    }

    /// Packets of the host's own to the network have a way out, on which they are translated.
    pub(super) fn translated(&mut self, network: Ipv4Addr, prefix: u8) {
        let body = route(prefix, RT_SCOPE_LINK, RTN_UNICAST);
        self.message("add the route to virtual addresses", RTM_NEWROUTE, CREATE | REPLACE, &body);
        self.put(RTA_DST, &network.octets());
        self.put_u32(RTA_OIF, LOOPBACK);
    }

    pub(super) fn not_translated(&mut self, network: Ipv4Addr, prefix: u8) {
        let body = route(prefix, RT_SCOPE_LINK, RTN_UNICAST);
        self.message("remove the route to virtual addresses", RTM_DELROUTE, 0, &body);
        self.tolerate(Errno::SRCH);
        self.put(RTA_DST, &network.octets());
        self.put_u32(RTA_OIF, LOOPBACK);
    }

    pub(super) fn delete_link(&mut self, name: &str) {
        self.message("delete the interface", RTM_DELLINK, 0, &ifinfo(0, 0));
        self.tolerate(Errno::NODEV);
        self.put_str(IFLA_IFNAME, name);
    }

    pub(super) fn move_to_group(&mut self, index: u32, group: u32) {
        self.message("mark the interface", RTM_SETLINK, 0, &ifinfo(index, 0));
        self.tolerate(Errno::NODEV);
        self.put_u32(IFLA_GROUP, group);
    }

    /// All links of the group at once: one wait for the kernel instead of one for each.
    pub(super) fn delete_group(&mut self, group: u32) {
        self.message("delete the interfaces", RTM_DELLINK, 0, &ifinfo(0, 0));
        self.tolerate(Errno::NODEV);
        self.put_u32(IFLA_GROUP, group);
    }
}

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mtu: Option<u32>,
    pub(super) group: Option<u32>,
}

/// One IPv4 route of any table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) to: Ipv4Addr,
    pub(super) prefix: u8,
    pub(super) protocol: u8,
    pub(super) interface: Option<u32>,
    pub(super) main_table: bool,
    pub(super) local: bool,
}

impl Socket {
    pub(super) fn links(&mut self) -> Result<Vec<Link>, Refused> {
        let mut batch = Batch::new();
        batch.message("list the interfaces", RTM_GETLINK, DUMP, &ifinfo(0, 0));
        let answers = self.query(batch)?;
        Ok(answers.iter().filter_map(|(kind, body)| parse_link(kind, body)).collect())
    }

    /// Asks for one link. The kernel then brings its state up to date: an end that was brought up
    /// before its peer starts to transmit only when the change of carrier has been worked off.
    pub(super) fn synchronise_link(&mut self, index: u32) -> Result<(), Refused> {
        let mut batch = Batch::new();
        batch.message("read the interface", RTM_GETLINK, 0, &ifinfo(index, 0));
        self.query(batch).map(drop)
    }

    pub(super) fn routes(&mut self) -> Result<Vec<Route>, Refused> {
        let mut batch = Batch::new();
        let body = [AF_INET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        batch.message("list the routes", RTM_GETROUTE, DUMP, &body);
        let answers = self.query(batch)?;
        Ok(answers.iter().filter_map(|(kind, body)| parse_route(kind, body)).collect())
    }
}

fn parse_link(kind: u16, body: &[u8]) -> Option<Link> {
    if kind != RTM_NEWLINK {
        return None;
    }
    let index = u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
    let attributes = Attributes(body.get(16..)?);
    let name = attributes.text(IFLA_IFNAME)?.to_owned();
    let (mtu, group) = (attributes.u32(IFLA_MTU), attributes.u32(IFLA_GROUP));
    Some(Link { index, name, mtu, group })
}

fn parse_route(kind: u16, body: &[u8]) -> Option<Route> {
    if kind != RTM_NEWROUTE {
        return None;
    }
    let header = body.first_chunk::<12>()?;
    let attributes = Attributes(&body[12..]);
    let table = attributes.u32(RTA_TABLE).unwrap_or(u32::from(header[4]));
    Some(Route {
        to: attributes.address(RTA_DST).unwrap_or(Ipv4Addr::UNSPECIFIED),
        prefix: header[1],
        protocol: header[5],
        interface: attributes.u32(RTA_OIF),
        main_table: table == u32::from(RT_TABLE_MAIN),
        local: header[7] == RTN_LOCAL,
    })
}
