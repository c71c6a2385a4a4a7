//! Which instances there are, and which of them reach one another by address.
//!
//! Each instance is in one group or in none; those of one group reach one another. The group is the
//! link group of the host's end of its interface, which nobody inside can change. Two sets of the
//! root's table have one element for each instance, however many reach one another:
//!
//! ```text
//! set member  { type devgroup . ipv4_addr; }       (group, address that it may reach)
//! set source  { type ifname . ipv4_addr; }         (interface, address that it may send from)
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::link::Link;
use super::netlink::{Refused, Socket};
use super::nft::{Element, SetKind, Transaction};
use super::range::Range;

pub(super) const MEMBERS: &str = "member";
pub(super) const SOURCES: &str = "source";

/// Where an instance is, and whom it may reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The host's end of its interface.
    pub(super) interface: String,
    /// `None`: no other instance.
    pub(super) group: Option<u16>,
}

/// By address.
pub(super) type Places = BTreeMap<Ipv4Addr, Place>;

/// What is on the host already.
pub(super) fn found(links: &[Link], range: &Range) -> Places {
    let prefix = range.interface_prefix();
    let place = |link: &Link| {
        let number = link.name.strip_prefix(&prefix)?.parse().ok()?;
        let group = link.group.and_then(|group| range.network_of_group(group));
        Some((range.instance(number)?, Place { interface: link.name.clone(), group }))
    };
    links.iter().filter_map(place).collect()
}

/// Numbers for the names of groups.
#[derive(Debug, Default)]
pub(super) struct GroupNumbers(BTreeMap<String, u16>);

impl GroupNumbers {
    /// The number of `name`, one that is no other group's of `places`.
    pub(super) fn of(&mut self, name: &str, places: &Places) -> Option<u16> {
        if let Some(number) = self.0.get(name) {
            return Some(*number);
        }
        let used: BTreeSet<u16> = places.values().filter_map(|place| place.group).collect();
        let free = |names: &BTreeMap<String, u16>| {
            let named: BTreeSet<u16> = names.values().copied().collect();
            (1..=u16::MAX).find(|number| !used.contains(number) && !named.contains(number))
        };
        let number = free(&self.0).or_else(|| {
            self.0.retain(|_, number| used.contains(number));
            free(&self.0)
        })?;
        self.0.insert(name.to_owned(), number);
        Some(number)
    }

    /// Learns the names of groups that an earlier agent made: `named` says whose the addresses of
    /// `places` are.
    pub(super) fn learn(&mut self, named: &[(Ipv4Addr, String)], places: &Places) {
        for (address, name) in named {
            let group = places.get(address).and_then(|place| place.group);
            if let Some(group) = group.filter(|group| !self.0.values().any(|known| known == group))
            {
                self.0.entry(name.clone()).or_insert(group);
            }
        }
    }
}

/// Creates the sets, with `id` and the next.
pub(super) fn declare(change: &mut Transaction, table: &str, id: u32) {
    change.set(table, MEMBERS, SetKind::Members, id);
    change.set(table, SOURCES, SetKind::Sources, id + 1);
}

/// The elements of `places`, set by set.
fn elements<'a>(
    range: &Range,
    places: impl Iterator<Item = (&'a Ipv4Addr, &'a Place)>,
) -> [(&'static str, Vec<Element<'a>>); 2] {
    let (mut members, mut sources) = (Vec::new(), Vec::new());
    for (address, place) in places {
        sources.push(Element::Source(&place.interface, *address));
        let group = place.group.map(|group| range.network_group(group));
        members.extend(group.map(|group| Element::Member(group, *address)));
    }
    [(MEMBERS, members), (SOURCES, sources)]
}

pub(super) fn add<'a>(
    change: &mut Transaction,
    range: &Range,
    places: impl Iterator<Item = (&'a Ipv4Addr, &'a Place)>,
) {
    for (set, elements) in elements(range, places) {
        change.add_elements(&range.table(), set, &elements);
    }
}

pub(super) fn remove<'a>(
    change: &mut Transaction,
    range: &Range,
    places: impl Iterator<Item = (&'a Ipv4Addr, &'a Place)>,
) {
    for (set, elements) in elements(range, places) {
        change.delete_elements(&range.table(), set, &elements);
    }
}

pub(super) fn clear(change: &mut Transaction, table: &str) {
    for set in [MEMBERS, SOURCES] {
        change.flush(table, set);
    }
}

/// Whether the kernel's sets hold exactly `places`.
pub(super) fn are_there(
    socket: &mut Socket,
    range: &Range,
    places: &Places,
) -> Result<bool, Refused> {
    for (set, elements) in elements(range, places.iter()) {
        let wanted: BTreeSet<Vec<u8>> = elements.iter().map(Element::key).collect();
        let found: BTreeSet<Vec<u8>> = socket.set_keys(&range.table(), set)?.into_iter().collect();
        if found != wanted {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(n: u32) -> Ipv4Addr {
        Ipv4Addr::from(0xc612_0000 + n)
    }

    fn place(group: Option<u16>) -> Place {
        Place { interface: "kl1".into(), group }
    }

    #[test]
    fn names_keep_their_numbers_and_share_none() {
        let found = Places::from([(at(1), place(Some(1))), (at(2), place(None))]);
        let mut numbers = GroupNumbers::default();
        let (a, b) = (numbers.of("a", &found), numbers.of("b", &found));
        assert!(a != Some(1) && b != Some(1) && a != b && a.is_some() && b.is_some());
        assert_eq!((numbers.of("a", &found), numbers.of("b", &found)), (a, b));
        // Names that nobody has any more make room in the end.
        for number in 0..70_000 {
            if number % 10_000 == 0 {
                assert!(numbers.of(&format!("n{number}"), &found).is_some_and(|n| n != 1));
            }
        }
    }

    #[test]
    fn names_are_learnt_from_what_is_there() {
        let found = Places::from([
            (at(1), place(Some(7))),
            (at(2), place(Some(7))),
            (at(3), place(Some(8))),
            (at(4), place(None)),
        ]);
        let mut numbers = GroupNumbers::default();
        let named = |n, name: &str| (at(n), name.to_owned());
        numbers.learn(&[named(1, "a"), named(2, "b"), named(3, "b"), named(4, "c")], &found);
        assert_eq!(numbers.of("a", &found), Some(7));
        assert_eq!(numbers.of("b", &found), Some(8), "a number is one name's");
        assert!(numbers.of("c", &found).is_some_and(|n| n != 7 && n != 8));
    }

    #[test]
    fn elements_grow_with_the_instances_and_not_with_their_pairs() {
        let range = Range::example();
        let count = |instances: u32| {
            let places: Places = (0..instances).map(|n| (at(n), place(Some(1)))).collect();
            elements(&range, places.iter()).iter().map(|(_, all)| all.len()).sum::<usize>()
        };
        assert_eq!((count(10), count(1000)), (20, 2000));
    }
}
