//! Virtual address → instance, inside the kernel.
//!
//! One nftables table for each root, changed in transactions: a packet sees all of a change or
//! nothing of it. Connection tracking pins what is open to the instance with which it began, until
//! it closes. UDP never closes, so its entries are dropped when their virtual address moves.
//!
//! ```text
//! table ip kiln-1a2b3c4d {
//!   map virtual  { type ipv4_addr : ipv4_addr; }
//!   set hairpin  { type ipv4_addr . ipv4_addr; }     (each instance with itself)
//!   set member, set source                           (see `places`)
//!   chain sources     { type filter hook prerouting priority -300;
//!     iifname "kl1a2b3c*" iifname . ip saddr != @source drop
//!     iifname "kl1a2b3c*" ip daddr 127.0.0.0/8 drop }
//!   chain prerouting  { type nat hook prerouting priority -100;
//!     iifname "kl1a2b3c*" dnat to ip daddr map @virtual }
//!   chain output      { type nat hook output priority -100;
//!     dnat to ip daddr map @virtual
//!     ip daddr VIRTUALS drop }                       (this one for each block)
//!   chain unmapped    { type filter hook prerouting priority -90;
//!     iifname "kl1a2b3c*" ip daddr VIRTUALS meta l4proto tcp reject with tcp reset
//!     iifname "kl1a2b3c*" ip daddr VIRTUALS reject }  (these two for each block)
//!   chain input       { type filter hook input priority 0;
//!     iifname "kl1a2b3c*" iifgroup & 0x8000 == 0x8000 ct state established,related accept
//!     iifname "kl1a2b3c*" iifgroup & 0x8000 == 0x8000 meta l4proto tcp reject with tcp reset
//!     iifname "kl1a2b3c*" iifgroup & 0x8000 == 0x8000 reject }
//!   chain forward     { type filter hook forward priority 0;
//!     iifname "kl1a2b3c*" oifname "kl1a2b3c*" iifgroup . ip daddr @member accept
//!     iifname "kl1a2b3c*" oifname "kl1a2b3c*" meta l4proto tcp reject with tcp reset
//!     iifname "kl1a2b3c*" oifname "kl1a2b3c*" reject
//!     iifname "kl1a2b3c*" iifgroup & 0x8000 == 0x8000 meta l4proto tcp reject with tcp reset
//!     iifname "kl1a2b3c*" iifgroup & 0x8000 == 0x8000 reject
//!     iifname "kl1a2b3c*" accept
//!     oifname "kl1a2b3c*" ct state established,related accept
//!     oifname "kl1a2b3c*" drop }
//!   chain postrouting { type nat hook postrouting priority 100;
//!     ip saddr . ip daddr @hairpin snat to 169.254.1.1
//!     ip saddr BLOCK oifname != "kl1a2b3c*" masquerade }  (this one for each block)
//! }
//! table ip6 kiln-1a2b3c4d {
//!   chain nothing     { type filter hook prerouting priority -300;
//!     iifname "kl1a2b3c*" drop }
//! }
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use rustix::io::Errno;

use super::attach::GATEWAY;
use super::expression::Term;
use super::netlink::{Refused, Socket};
use super::nft::{
    Element, FORWARD, Hook, INPUT, IPV4, IPV6, OUTPUT, POSTROUTING, PREROUTING, SetKind,
    Transaction,
};
use super::places::{self, INSIDE, MEMBERS, Places, SOURCES};
use super::range::{PREFIX, Range};
use super::ruleset::ChainName;

const MAP: &str = "virtual";
const HAIRPIN: &str = "hairpin";
const NO_IPV6: &str = "nothing";
/// Raise it with every change of the table: an older agent's table is then replaced.
const FORMAT: u32 = 4;
const TCP: u8 = 6;
/// How many rules each chain has, of a root with so many blocks: fewer, and somebody emptied it.
fn chains(blocks: usize) -> [(&'static str, usize); 7] {
    [
        ("sources", 2),
        ("prerouting", 1),
        ("output", 1 + blocks),
        ("unmapped", 2 * blocks),
        ("input", 3),
        ("forward", 8),
        ("postrouting", 1 + blocks),
    ]
}

type Map = BTreeMap<Ipv4Addr, Ipv4Addr>;

/// A root's table.
#[derive(Debug)]
pub(super) struct Table {
    name: String,
    interfaces: String,
    range: Range,
    /// What the kernel's map holds.
    map: Map,
    /// What its sets of instances hold.
    places: Places,
}

impl Table {
    /// Takes over the table of an earlier agent with its map, or makes a new one.
    /// Those at `places` are on the host already.
    pub(super) fn open(
        socket: &mut Socket,
        range: &Range,
        places: Places,
    ) -> Result<Self, Refused> {
        let name = range.table();
        let map = socket.map_elements(&name, MAP)?.into_iter().collect();
        let interfaces = range.interface_prefix();
        let table = Self { name, interfaces, range: range.clone(), map, places };
        if !table.is_whole(socket)? {
            table.rebuild(socket)?;
        }
        Ok(table)
    }

    pub(super) fn map(&self) -> &Map {
        &self.map
    }

    pub(super) fn places(&self) -> &Places {
        &self.places
    }

    /// Whether the kernel still has it as it was made.
    pub(super) fn is_whole(&self, socket: &mut Socket) -> Result<bool, Refused> {
        if socket.table_comment(&self.name)? != Some(self.comment()) {
            return Ok(false);
        }
        for (chain, count) in chains(self.range.blocks().len()) {
            let at = ChainName { family: IPV4, table: self.name.clone(), chain: chain.to_owned() };
            if socket.rules(&at)?.len() != count {
                return Ok(false);
            }
        }
        let (family, chain) = (IPV6, NO_IPV6.to_owned());
        let ipv6 = ChainName { family, table: self.name.clone(), chain };
        if host_has_ipv6() && socket.rules(&ipv6)?.len() != 1 {
            return Ok(false);
        }
        let kernel: Map = socket.map_elements(&self.name, MAP)?.into_iter().collect();
        Ok(kernel == self.map && places::are_there(socket, &self.range, &self.places)?)
    }

    /// From now on for the blocks of `range`, which has one more.
    pub(super) fn grow(&mut self, socket: &mut Socket, range: &Range) -> Result<(), Refused> {
        let before = std::mem::replace(&mut self.range, range.clone());
        self.rebuild(socket).inspect_err(|_| self.range = before)
    }

    fn comment(&self) -> String {
        format!("kiln format {FORMAT}, {}", self.range.cidr())
    }

    /// Replaces the table in one step, with the map as it is known here.
    pub(super) fn rebuild(&self, socket: &mut Socket) -> Result<(), Refused> {
        let mut change = Transaction::new();
        // Deleting what may not be there: create it first.
        change.table(&self.name, &self.comment());
        change.delete_table(&self.name);
        change.table(&self.name, &self.comment());
        change.set(&self.name, MAP, SetKind::Map, 1);
        change.set(&self.name, HAIRPIN, SetKind::Pairs, 2);
        places::declare(&mut change, &self.name, 3);
        self.rules(&mut change);
        self.add_all(&mut change, &self.map);
        places::change(&mut change, &self.range, &Places::new(), &self.places);
        change.commit(socket)?;
        self.without_ipv6(socket)
    }

    /// Instances have no IPv6, but a program with CAP_NET_RAW can send such packets all the same:
    /// an advertisement of itself as the host's router (CVE-2020-13401), or a datagram to a server
    /// that listens on all addresses of the host.
    fn without_ipv6(&self, socket: &mut Socket) -> Result<(), Refused> {
        if !host_has_ipv6() {
            return Ok(());
        }
        let (table, hook) =
            (self.name.as_str(), Hook { number: PREROUTING, priority: -300, kind: "filter" });
        let mut change = Transaction::of(IPV6);
        change.table(table, &self.comment());
        change.delete_table(table);
        change.table(table, &self.comment());
        change.chain(table, NO_IPV6, hook);
        change.rule(table, NO_IPV6, &[Term::In(&self.interfaces), Term::Drop]);
        change.commit(socket)
    }

    fn rules(&self, change: &mut Transaction) {
        let table = self.name.as_str();
        let ours = self.interfaces.as_str();
        let nat = |number, priority| Hook { number, priority, kind: "nat" };
        let filter = |number, priority| Hook { number, priority, kind: "filter" };

        // Nobody sends in another's name, whatever the host's reverse path filter is set to.
        change.chain(table, "sources", filter(PREROUTING, -300));
        change.rule(table, "sources", &[Term::In(ours), Term::NotItself(SOURCES), Term::Drop]);
        // Where `route_localnet` is set, as by Kubernetes, the host takes such a packet for its own
        // loopback (CVE-2020-8558).
        let loopback = Term::DestinationIn(Ipv4Addr::new(127, 0, 0, 0), 8);
        change.rule(table, "sources", &[Term::In(ours), loopback, Term::Drop]);

        change.chain(table, "prerouting", nat(PREROUTING, -100));
        change.rule(table, "prerouting", &[Term::In(ours), Term::TranslateBy(MAP)]);

        // What the host itself calls: who has its network finds the others by their names. Without
        // an instance behind it a connection fails at once.
        change.chain(table, "output", nat(OUTPUT, -100));
        change.rule(table, "output", &[Term::TranslateBy(MAP)]);
        for block in self.range.blocks() {
            let virtuals = Term::DestinationIn(block.virtual_network(), PREFIX + 1);
            change.rule(table, "output", &[virtuals, Term::Drop]);
        }

        change.chain(table, "unmapped", filter(PREROUTING, -90));
        for block in self.range.blocks() {
            let virtuals = Term::DestinationIn(block.virtual_network(), PREFIX + 1);
            let reset = [Term::In(ours), virtuals, Term::Protocol(TCP), Term::TcpReset];
            change.rule(table, "unmapped", &reset);
            change.rule(table, "unmapped", &[Term::In(ours), virtuals, Term::PortUnreachable]);
        }

        // Nothing leads out of there: not to the host's own servers either.
        let inside = Term::GroupHas(u32::from(INSIDE));
        change.chain(table, "input", filter(INPUT, 0));
        for then in [
            &[Term::Established, Term::Accept][..],
            &[Term::Protocol(TCP), Term::TcpReset],
            &[Term::PortUnreachable],
        ] {
            change.rule(table, "input", &[&[Term::In(ours), inside], then].concat());
        }

        change.chain(table, "forward", filter(FORWARD, 0));
        // Each packet is asked, not the first of a connection only: an address may have come to
        // another project meanwhile.
        let between = [Term::In(ours), Term::Out(ours)];
        let group = Term::SameGroup(MEMBERS);
        for then in [
            &[group, Term::Accept][..],
            &[Term::Protocol(TCP), Term::TcpReset],
            &[Term::PortUnreachable],
        ] {
            change.rule(table, "forward", &[&between, then].concat());
        }
        for then in [&[Term::Protocol(TCP), Term::TcpReset][..], &[Term::PortUnreachable]] {
            change.rule(table, "forward", &[&[Term::In(ours), inside], then].concat());
        }
        change.rule(table, "forward", &[Term::In(ours), Term::Accept]);
        change.rule(table, "forward", &[Term::Out(ours), Term::Established, Term::Accept]);
        change.rule(table, "forward", &[Term::Out(ours), Term::Drop]);

        change.chain(table, "postrouting", nat(POSTROUTING, 100));
        let hairpin = [Term::PairIn(HAIRPIN), Term::SourceBecomes(GATEWAY)];
        change.rule(table, "postrouting", &hairpin);
        for block in self.range.blocks() {
            let from_it = Term::SourceIn(block.network(), PREFIX);
            let leaving = [from_it, Term::NotOut(ours), Term::Masquerade];
            change.rule(table, "postrouting", &leaving);
        }
    }

    fn add_all(&self, change: &mut Transaction, map: &Map) {
        let elements: Vec<_> = map.iter().map(|(v, i)| Element::Map(*v, *i)).collect();
        change.add_elements(&self.name, MAP, &elements);
        let pairs: Vec<_> = instances(map).into_iter().map(|i| Element::Pair(i, i)).collect();
        change.add_elements(&self.name, HAIRPIN, &pairs);
    }

    /// Makes the map `new` in one step. Returns the virtual addresses that had another instance,
    /// or have none now.
    pub(super) fn replace(
        &mut self,
        socket: &mut Socket,
        new: Map,
    ) -> Result<Vec<Ipv4Addr>, Refused> {
        if new == self.map {
            return Ok(Vec::new());
        }
        match self.change(socket, &new) {
            // Somebody else wrote to the table: make it anew rather than guess.
            Err(refused) if refused.is(Errno::NOENT) || refused.is(Errno::EXIST) => {
                let old = std::mem::replace(&mut self.map, new);
                if let Err(refused) = self.rebuild(socket) {
                    self.map = old;
                    return Err(refused);
                }
                Ok(moved(&old, &self.map))
            }
            Err(refused) => Err(refused),
            Ok(()) => {
                let old = std::mem::replace(&mut self.map, new);
                Ok(moved(&old, &self.map))
            }
        }
    }

    /// Only what differs: elements that stay are never touched.
    fn change(&self, socket: &mut Socket, new: &Map) -> Result<(), Refused> {
        let table = self.name.as_str();
        let mut change = Transaction::new();
        let gone: Vec<_> = moved(&self.map, new).into_iter().map(Element::Key).collect();
        let added: Vec<_> = new
            .iter()
            .filter(|(v, i)| self.map.get(v) != Some(i))
            .map(|(v, i)| Element::Map(*v, *i))
            .collect();
        let (was, is) = (instances(&self.map), instances(new));
        let pair = |i: &Ipv4Addr| Element::Pair(*i, *i);
        let gone_pairs: Vec<_> = was.difference(&is).map(pair).collect();
        let added_pairs: Vec<_> = is.difference(&was).map(pair).collect();
        change.delete_elements(table, MAP, &gone);
        change.add_elements(table, MAP, &added);
        change.delete_elements(table, HAIRPIN, &gone_pairs);
        change.add_elements(table, HAIRPIN, &added_pairs);
        change.commit(socket)
    }

    /// Replaces all elements, whatever the kernel's map holds, in one step.
    pub(super) fn reset(
        &mut self,
        socket: &mut Socket,
        new: Map,
    ) -> Result<Vec<Ipv4Addr>, Refused> {
        let mut change = Transaction::new();
        change.flush(&self.name, MAP);
        change.flush(&self.name, HAIRPIN);
        self.add_all(&mut change, &new);
        change.commit(socket)?;
        let old = std::mem::replace(&mut self.map, new);
        Ok(moved(&old, &self.map))
    }
}

impl Table {
    /// Makes who is where, and who reaches whom, `new` in one step. Only what differs is touched.
    pub(super) fn place(&mut self, socket: &mut Socket, new: Places) -> Result<(), Refused> {
        if new == self.places {
            return Ok(());
        }
        let mut change = Transaction::new();
        places::change(&mut change, &self.range, &self.places, &new);
        let result = change.commit(socket);
        let old = std::mem::replace(&mut self.places, new);
        let result = match result {
            // Somebody else wrote to the table: make it anew rather than guess.
            Err(refused) if refused.is(Errno::NOENT) || refused.is(Errno::EXIST) => {
                self.rebuild(socket)
            }
            result => result,
        };
        if result.is_err() {
            self.places = old;
        }
        result
    }

    /// Exactly these, whatever the kernel's sets hold, in one step.
    pub(super) fn place_all(&mut self, socket: &mut Socket, new: Places) -> Result<(), Refused> {
        let mut change = Transaction::new();
        places::clear(&mut change, &self.name);
        places::change(&mut change, &self.range, &Places::new(), &new);
        change.commit(socket)?;
        self.places = new;
        Ok(())
    }
}

/// Whether this kernel speaks IPv6, in the network namespace of the calling thread.
fn host_has_ipv6() -> bool {
    std::path::Path::new("/proc/thread-self/net/if_inet6").exists()
}

/// Deletes the tables of that name, if they are there.
pub(super) fn delete_table(socket: &mut Socket, name: &str) -> Result<(), Refused> {
    if host_has_ipv6() {
        let mut change = Transaction::of(IPV6);
        // Deleting what may not be there: create it first.
        change.table(name, "");
        change.delete_table(name);
        change.commit(socket)?;
    }
    if socket.table_comment(name)?.is_none() {
        return Ok(());
    }
    let mut change = Transaction::new();
    change.delete_table(name);
    change.commit(socket)
}

fn instances(map: &Map) -> BTreeSet<Ipv4Addr> {
    map.values().copied().collect()
}

fn moved(old: &Map, new: &Map) -> Vec<Ipv4Addr> {
    old.iter().filter(|(v, i)| new.get(v) != Some(i)).map(|(v, _)| *v).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moved_are_those_that_changed_or_went() {
        let address = |n| Ipv4Addr::new(198, 18, 0, n);
        let old = Map::from([(address(1), address(11)), (address(2), address(12))]);
        let new = Map::from([(address(1), address(13)), (address(3), address(14))]);
        assert_eq!(moved(&old, &new), [address(1), address(2)]);
        assert!(moved(&Map::new(), &new).is_empty());
        assert_eq!(instances(&old).len(), 2);
    }
}
