//! What nf_tables rules are made of.

use std::net::Ipv4Addr;

use super::message::Batch;
use super::nft::{IPV4, user_data};

pub(super) const ACCEPT: u32 = 1;
pub(super) const DROP: u32 = 0;
pub(super) const META_IIFNAME: u32 = 6;
pub(super) const META_OIFNAME: u32 = 7;
const META_L4PROTO: u32 = 16;
const META_IIFGROUP: u32 = 21;
const REG_1: u32 = 1;
const REG32_0: u32 = 8;
const REG32_1: u32 = 9;
/// What follows a name of sixteen bytes in the first register.
const REG32_4: u32 = 12;
const NOT_IN_SET: u32 = 1;
/// Offsets in the IP header.
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;
/// `established` and `related`, in the host's order.
const STATE_OLD: u32 = 2 | 4;

/// A part of a rule: a condition or what is done.
#[derive(Debug, Clone, Copy)]
pub(super) enum Term<'a> {
    /// The incoming interface's name starts so.
    In(&'a str),
    /// The outgoing interface's name starts so.
    Out(&'a str),
    /// The outgoing interface's name does not start so.
    NotOut(&'a str),
    SourceIn(Ipv4Addr, u8),
    DestinationIn(Ipv4Addr, u8),
    Protocol(u8),
    /// The connection is established, or related to one that is.
    Established,
    /// (source, destination) is in the set of pairs.
    PairIn(&'a str),
    /// (link group of the incoming interface, destination) is in the set.
    SameGroup(&'a str),
    /// The link group of the incoming interface has these bits.
    GroupHas(u32),
    /// (incoming interface, source) is not in the set.
    NotItself(&'a str),
    Counter,
    Accept,
    Drop,
    TcpReset,
    PortUnreachable,
    /// The destination becomes what the map says; without an entry the rule does not match.
    TranslateBy(&'a str),
    SourceBecomes(Ipv4Addr),
    Masquerade,
}

/// A value, in an attribute of its own.
pub(super) fn put_value(batch: &mut Batch, kind: u16, value: &[u8]) {
    let nest = batch.nest(kind);
    batch.put(1, value);
    batch.end(nest);
}

/// All attributes of a rule.
pub(super) fn put_rule(
    batch: &mut Batch,
    table: &str,
    chain: &str,
    comment: Option<&str>,
    terms: &[Term<'_>],
) {
    batch.put_str(1, table);
    batch.put_str(2, chain);
    let list = batch.nest(4);
    for term in terms {
        put_term(batch, term);
    }
    batch.end(list);
    if let Some(comment) = comment {
        batch.put(7, &user_data(comment));
    }
}

fn put_expression(batch: &mut Batch, name: &str, fill: impl FnOnce(&mut Batch)) {
    let item = batch.nest(1);
    batch.put_str(1, name);
    let data = batch.nest(2);
    fill(batch);
    batch.end(data);
    batch.end(item);
}

fn put_meta(batch: &mut Batch, key: u32, register: u32) {
    put_expression(batch, "meta", |batch| {
        batch.put_be32(2, key);
        batch.put_be32(1, register);
    });
}

fn put_compare(batch: &mut Batch, equal: bool, value: &[u8]) {
    put_expression(batch, "cmp", |batch| {
        batch.put_be32(1, REG_1);
        batch.put_be32(2, u32::from(!equal));
        put_value(batch, 3, value);
    });
}

fn put_mask(batch: &mut Batch, mask: &[u8; 4]) {
    put_expression(batch, "bitwise", |batch| {
        batch.put_be32(1, REG_1);
        batch.put_be32(2, REG_1);
        batch.put_be32(3, 4);
        put_value(batch, 4, mask);
        put_value(batch, 5, &[0; 4]);
    });
}

/// Loads four bytes of the IP header.
fn put_header(batch: &mut Batch, register: u32, offset: u32) {
    put_expression(batch, "payload", |batch| {
        batch.put_be32(1, register);
        batch.put_be32(2, 1);
        batch.put_be32(3, offset);
        batch.put_be32(4, 4);
    });
}

fn put_in_network(batch: &mut Batch, offset: u32, network: Ipv4Addr, prefix: u8) {
    let mask = (u32::MAX << (32 - u32::from(prefix.clamp(1, 32)))).to_be_bytes();
    put_header(batch, REG_1, offset);
    put_mask(batch, &mask);
    put_compare(batch, true, &network.octets());
}

fn put_verdict(batch: &mut Batch, code: u32) {
    put_expression(batch, "immediate", |batch| {
        batch.put_be32(1, 0);
        let data = batch.nest(2);
        let verdict = batch.nest(2);
        batch.put_be32(1, code);
        batch.end(verdict);
        batch.end(data);
    });
}

fn put_nat(batch: &mut Batch, destination: bool) {
    put_expression(batch, "nat", |batch| {
        batch.put_be32(1, u32::from(destination));
        batch.put_be32(2, u32::from(IPV4));
        batch.put_be32(3, REG_1);
    });
}

fn put_term(batch: &mut Batch, term: &Term<'_>) {
    match *term {
        // A prefix is compared without its end: what iptables makes of `-i NAME+`.
        Term::In(prefix) => {
            put_meta(batch, META_IIFNAME, REG_1);
            put_compare(batch, true, prefix.as_bytes());
        }
        Term::Out(prefix) | Term::NotOut(prefix) => {
            put_meta(batch, META_OIFNAME, REG_1);
            put_compare(batch, matches!(term, Term::Out(_)), prefix.as_bytes());
        }
        Term::SourceIn(network, prefix) => put_in_network(batch, SOURCE, network, prefix),
        Term::DestinationIn(network, prefix) => put_in_network(batch, DESTINATION, network, prefix),
        Term::Protocol(number) => {
            put_meta(batch, META_L4PROTO, REG_1);
            put_compare(batch, true, &[number]);
        }
        Term::Established => {
            put_expression(batch, "ct", |batch| {
                batch.put_be32(2, 0);
                batch.put_be32(1, REG_1);
            });
            put_mask(batch, &STATE_OLD.to_ne_bytes());
            put_compare(batch, false, &[0; 4]);
        }
        Term::PairIn(set) => {
            put_header(batch, REG32_0, SOURCE);
            put_header(batch, REG32_1, DESTINATION);
            put_expression(batch, "lookup", |batch| {
                batch.put_str(1, set);
                batch.put_be32(2, REG_1);
            });
        }
        Term::SameGroup(members) => {
            put_meta(batch, META_IIFGROUP, REG32_0);
            put_header(batch, REG32_1, DESTINATION);
            put_expression(batch, "lookup", |batch| {
                batch.put_str(1, members);
                batch.put_be32(2, REG_1);
            });
        }
        Term::GroupHas(bits) => {
            put_meta(batch, META_IIFGROUP, REG_1);
            put_mask(batch, &bits.to_ne_bytes());
            put_compare(batch, true, &bits.to_ne_bytes());
        }
        Term::NotItself(sources) => {
            put_meta(batch, META_IIFNAME, REG_1);
            put_header(batch, REG32_4, SOURCE);
            put_expression(batch, "lookup", |batch| {
                batch.put_str(1, sources);
                batch.put_be32(2, REG_1);
                batch.put_be32(5, NOT_IN_SET);
            });
        }
        Term::Counter => put_expression(batch, "counter", |batch| {
            batch.put(1, &[0; 8]);
            batch.put(2, &[0; 8]);
        }),
        Term::Accept => put_verdict(batch, ACCEPT),
        Term::Drop => put_verdict(batch, DROP),
        Term::TcpReset => put_expression(batch, "reject", |batch| batch.put_be32(1, 1)),
        Term::PortUnreachable => put_expression(batch, "reject", |batch| {
            batch.put_be32(1, 0);
            batch.put(2, &[3]);
        }),
        Term::TranslateBy(map) => {
            put_header(batch, REG_1, DESTINATION);
            put_expression(batch, "lookup", |batch| {
                batch.put_str(1, map);
                batch.put_be32(2, REG_1);
                batch.put_be32(3, REG_1);
            });
            put_nat(batch, true);
        }
        Term::SourceBecomes(address) => {
            put_expression(batch, "immediate", |batch| {
                batch.put_be32(1, REG_1);
                put_value(batch, 2, &address.octets());
            });
            put_nat(batch, false);
        }
        Term::Masquerade => put_expression(batch, "masq", |_| {}),
    }
}
