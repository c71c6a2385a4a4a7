//! Changing nf_tables: as much of its messages as translation and a few accepting rules need.
//! Numbers here and in `expression` and `ruleset` are those of linux/netfilter/nf_tables.h.

use std::net::Ipv4Addr;

use super::expression::{Term, put_rule, put_value};
use super::message::{APPEND, Batch, CREATE};
use super::netlink::{Refused, Socket};
use super::ruleset::ChainName;

const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const SUBSYSTEM: u16 = 10;
const NEWTABLE: u16 = 0;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const NEWRULE: u16 = 6;
const DELRULE: u16 = 8;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;
const DELSETELEM: u16 = 14;

/// Address families of tables.
pub(super) const INET: u8 = 1;
pub(super) const IPV4: u8 = 2;
pub(super) const IPV6: u8 = 10;

/// Bytes that an interface's name fills as a key, as `IFNAMSIZ`.
const INTERFACE_NAME: usize = 16;

/// Hooks of the IP families.
pub(super) const PREROUTING: u32 = 0;
pub(super) const INPUT: u32 = 1;
pub(super) const FORWARD: u32 = 2;
pub(super) const OUTPUT: u32 = 3;
pub(super) const POSTROUTING: u32 = 4;

const POLICY_ACCEPT: u32 = 1;
const TYPE_IPV4: u32 = 7;
const TYPE_DEVGROUP: u32 = 35;
const TYPE_IFNAME: u32 = 41;
const SET_MAP: u32 = 8;

/// The message type of one of nf_tables' messages.
pub(super) const fn kind(message: u16) -> u16 {
    SUBSYSTEM << 8 | message
}

/// `struct nfgenmsg`.
pub(super) const fn body(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

/// One transaction: all of it or nothing, seen by packets in one step.
#[derive(Debug)]
pub(super) struct Transaction {
    batch: Batch,
    /// Of the tables that what follows is about.
    family: u8,
}

/// What a set holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SetKind {
    /// address → address
    Map,
    /// pairs of addresses
    Pairs,
    /// (link group, address)
    Members,
    /// (name of an interface, address)
    Sources,
}

/// A chain at a hook.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hook {
    pub(super) number: u32,
    pub(super) priority: i32,
    /// `nat` or `filter`.
    pub(super) kind: &'static str,
}

impl Transaction {
    pub(super) fn new() -> Self {
        Self::of(IPV4)
    }

    /// On tables of another family than IPv4.
    pub(super) fn of(family: u8) -> Self {
        let mut batch = Batch::new();
        batch.message("begin an nftables transaction", BATCH_BEGIN, 0, &[0, 0, 0, SUBSYSTEM as u8]);
        Self { batch, family }
    }

    pub(super) fn commit(mut self, socket: &mut Socket) -> Result<(), Refused> {
        // The last message of the subsystem is acknowledged, the end marker never is.
        self.batch.finish();
        self.batch.message(
            "end an nftables transaction",
            BATCH_END,
            0,
            &[0, 0, 0, SUBSYSTEM as u8],
        );
        socket.run(self.batch)
    }

    fn add(&mut self, action: &'static str, message: u16, flags: u16, family: u8) -> &mut Batch {
        self.batch.message(action, kind(message), flags, &body(family));
        &mut self.batch
    }

    pub(super) fn table(&mut self, name: &str, comment: &str) {
        let batch = self.add("create the nftables table", NEWTABLE, CREATE, self.family);
        batch.put_str(1, name);
        batch.put(6, &user_data(comment));
    }

    pub(super) fn delete_table(&mut self, name: &str) {
        self.add("delete the nftables table", DELTABLE, 0, self.family).put_str(1, name);
    }

    pub(super) fn chain(&mut self, table: &str, name: &str, hook: Hook) {
        let batch = self.add("create the nftables chain", NEWCHAIN, CREATE, self.family);
        batch.put_str(1, table);
        batch.put_str(3, name);
        let nest = batch.nest(4);
        batch.put_be32(1, hook.number);
        batch.put_be32(2, hook.priority as u32);
        batch.end(nest);
        batch.put_be32(5, POLICY_ACCEPT);
        batch.put_str(7, hook.kind);
    }

    pub(super) fn set(&mut self, table: &str, name: &str, of: SetKind, id: u32) {
        let batch = self.add("create the nftables set", NEWSET, CREATE, self.family);
        batch.put_str(1, table);
        batch.put_str(2, name);
        // Types of a concatenation are six bits each.
        let pair = |first: u32| first << 6 | TYPE_IPV4;
        let (data, key, length) = match of {
            SetKind::Map => (Some(TYPE_IPV4), TYPE_IPV4, 4),
            SetKind::Pairs => (None, pair(TYPE_IPV4), 8),
            SetKind::Members => (None, pair(TYPE_DEVGROUP), 8),
            SetKind::Sources => (None, pair(TYPE_IFNAME), 20),
        };
        batch.put_be32(3, if data.is_some() { SET_MAP } else { 0 });
        batch.put_be32(4, key);
        batch.put_be32(5, length);
        if let Some(data) = data {
            batch.put_be32(6, data);
            batch.put_be32(7, 4);
        }
        batch.put_be32(10, id);
    }

    /// Adds a rule to the end of the chain.
    pub(super) fn rule(&mut self, table: &str, chain: &str, terms: &[Term<'_>]) {
        let batch = self.add("add the nftables rule", NEWRULE, CREATE | APPEND, self.family);
        put_rule(batch, table, chain, None, terms);
    }

    /// Adds a rule to the head of a chain that may be somebody else's.
    pub(super) fn rule_at_head(&mut self, at: &ChainName, comment: &str, terms: &[Term<'_>]) {
        let action = "add the rule to the forward chain";
        let batch = self.add(action, NEWRULE, CREATE, at.family);
        put_rule(batch, &at.table, &at.chain, Some(comment), terms);
    }

    pub(super) fn delete_rule(&mut self, at: &ChainName, handle: u64) {
        let batch = self.add("delete the rule from the forward chain", DELRULE, 0, at.family);
        batch.put_str(1, &at.table);
        batch.put_str(2, &at.chain);
        batch.put(3, &handle.to_be_bytes());
    }

    /// Empties the set.
    pub(super) fn flush(&mut self, table: &str, set: &str) {
        let batch = self.add("empty the nftables set", DELSETELEM, 0, self.family);
        batch.put_str(1, table);
        batch.put_str(2, set);
    }

    /// Adds elements: keys, with data if the set is a map.
    pub(super) fn add_elements(&mut self, table: &str, set: &str, elements: &[Element<'_>]) {
        self.elements("add elements to the nftables set", NEWSETELEM, CREATE, table, set, elements);
    }

    pub(super) fn delete_elements(&mut self, table: &str, set: &str, elements: &[Element<'_>]) {
        let action = "delete elements from the nftables set";
        self.elements(action, DELSETELEM, 0, table, set, elements);
    }

    fn elements(
        &mut self,
        action: &'static str,
        message: u16,
        flags: u16,
        table: &str,
        set: &str,
        elements: &[Element<'_>],
    ) {
        // A nested attribute is at most 64 KiB long; an element takes at most 36 bytes.
        for part in elements.chunks(1024) {
            let batch = self.add(action, message, flags, self.family);
            batch.put_str(1, table);
            batch.put_str(2, set);
            let list = batch.nest(3);
            for element in part {
                let item = batch.nest(1);
                put_value(batch, 1, &element.key());
                if let Some(data) = element.data() {
                    put_value(batch, 2, &data);
                }
                batch.end(item);
            }
            batch.end(list);
        }
    }
}

/// One element of a set.
#[derive(Debug, Clone, Copy)]
pub(super) enum Element<'a> {
    Map(Ipv4Addr, Ipv4Addr),
    /// A map's key alone, to delete it.
    Key(Ipv4Addr),
    Pair(Ipv4Addr, Ipv4Addr),
    Member(u32, Ipv4Addr),
    Source(&'a str, Ipv4Addr),
    /// The bytes of a key.
    Raw(&'a [u8]),
}

impl Element<'_> {
    pub(super) fn key(&self) -> Vec<u8> {
        match self {
            Self::Pair(a, b) => [a.octets(), b.octets()].concat(),
            Self::Map(key, _) | Self::Key(key) => key.octets().to_vec(),
            Self::Raw(key) => key.to_vec(),
            Self::Member(group, address) => [group.to_ne_bytes(), address.octets()].concat(),
            Self::Source(interface, address) => {
                let mut key = vec![0; INTERFACE_NAME];
                let length = interface.len().min(INTERFACE_NAME);
                key[..length].copy_from_slice(&interface.as_bytes()[..length]);
                key.extend_from_slice(&address.octets());
                key
            }
        }
    }

    fn data(&self) -> Option<[u8; 4]> {
        match self {
            Self::Map(_, data) => Some(data.octets()),
            Self::Key(_) | Self::Pair(..) | Self::Member(..) | Self::Source(..) | Self::Raw(_) => {
                None
            }
        }
    }
}

/// A comment as nft and iptables-nft keep it: type 0, length, text with its end.
pub(super) fn user_data(comment: &str) -> Vec<u8> {
    let text = &comment.as_bytes()[..comment.len().min(200)];
    let mut data = vec![0, text.len() as u8 + 1];
    data.extend_from_slice(text);
    data.push(0);
    data
}
