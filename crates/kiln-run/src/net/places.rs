//! Which instances there are, and which of them reach one another by address.
//!
//! An instance is on any number of networks, or on none; those that are on one network reach one
//! another. Who is on the same networks is in one *group*: the link group of the host's end of its
//! interface, which nobody inside can change. Two sets of the root's table say the rest:
//!
//! ```text
//! set member  { type devgroup . ipv4_addr; }       (group, address that it may reach)
//! set source  { type ifname . ipv4_addr; }         (interface, address that it may send from)
//! ```
//! So an instance has one element for each group that has a network in common with it, however many
//! instances are in that group.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::link::Link;
use super::netlink::{Refused, Socket};
use super::nft::{Element, SetKind, Transaction};
use super::range::Range;

pub(super) const MEMBERS: &str = "member";
pub(super) const SOURCES: &str = "source";

/// Groups from here on are those that nothing leads out of.
pub(super) const INSIDE: u16 = 0x8000;

/// The networks of an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Networks {
    /// Their names, unique in the root.
    pub names: BTreeSet<String>,
    /// Neither the outside nor the host is reached from there.
    pub inside: bool,
}

impl Networks {
    /// One, from which the outside is reached.
    pub fn one(name: impl Into<String>) -> Self {
        Self { names: BTreeSet::from([name.into()]), inside: false }
    }

    fn meets(&self, other: &Self) -> bool {
        !self.names.is_disjoint(&other.names)
    }
}

/// Where an instance is, and who may reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The host's end of its interface.
    pub(super) interface: String,
    /// `None`: it reaches no other instance.
    pub(super) group: Option<u16>,
    /// Groups from which it is reached.
    pub(super) from: BTreeSet<u16>,
}

/// By address.
pub(super) type Places = BTreeMap<Ipv4Addr, Place>;

/// What is on the host already. Who reaches whom is read from the kernel's set, so that nothing
/// changes between instances before their networks are known again.
pub(super) fn found(socket: &mut Socket, links: &[Link], range: &Range) -> Result<Places, Refused> {
    let mut from: BTreeMap<Ipv4Addr, BTreeSet<u16>> = BTreeMap::new();
    for key in socket.set_keys(&range.table(), MEMBERS)? {
        let (Some(group), Some(address)) = (word(&key, 0), word(&key, 4)) else { continue };
        if let Some(number) = range.network_of_group(u32::from_ne_bytes(group)) {
            from.entry(Ipv4Addr::from(address)).or_default().insert(number);
        }
    }
    let prefix = range.interface_prefix();
    let place = |link: &Link| {
        let number = link.name.strip_prefix(&prefix)?.parse().ok()?;
        let address = range.instance(number)?;
        let group = link.group.and_then(|group| range.network_of_group(group));
        let from = from.remove(&address).unwrap_or_else(|| group.into_iter().collect());
        Some((address, Place { interface: link.name.clone(), group, from }))
    };
    Ok(links.iter().filter_map(place).collect())
}

fn word(key: &[u8], at: usize) -> Option<[u8; 4]> {
    key.get(at..at + 4)?.try_into().ok()
}

/// Numbers for groups, by the networks that they stand for.
#[derive(Debug, Default)]
pub(super) struct GroupNumbers(BTreeMap<Networks, u16>);

impl GroupNumbers {
    /// The number of the group of those that are on `networks`, one that is no other's of `places`.
    pub(super) fn of(&mut self, networks: &Networks, places: &Places) -> Option<u16> {
        if let Some(number) = self.0.get(networks) {
            return Some(*number);
        }
        let used = used(places);
        let all = if networks.inside { INSIDE..=u16::MAX } else { 1..=INSIDE - 1 };
        let free = |names: &BTreeMap<Networks, u16>| {
            let named: BTreeSet<u16> = names.values().copied().collect();
            all.clone().find(|number| !used.contains(number) && !named.contains(number))
        };
        let number = free(&self.0).or_else(|| {
            self.0.retain(|_, number| used.contains(number));
            free(&self.0)
        })?;
        self.0.insert(networks.clone(), number);
        Some(number)
    }

    /// Learns the networks of groups that an earlier agent made: `named` says on which those at the
    /// addresses of `places` are.
    pub(super) fn learn(&mut self, named: &[(Ipv4Addr, Networks)], places: &Places) {
        for (address, networks) in named {
            let group = places.get(address).and_then(|place| place.group);
            let fits = |group: &u16| (*group >= INSIDE) == networks.inside;
            let taken = |group: &u16| self.0.values().any(|known| known == group);
            if let Some(group) = group.filter(|group| fits(group) && !taken(group)) {
                self.0.entry(networks.clone()).or_insert(group);
            }
        }
    }

    fn networks(&self, number: u16) -> Option<&Networks> {
        self.0.iter().find(|(_, known)| **known == number).map(|(networks, _)| networks)
    }

    /// From which groups of those at `places` one that is on `networks` is reached.
    fn meeting(&self, networks: &Networks, places: &Places) -> BTreeSet<u16> {
        let used = used(places);
        let meeting =
            self.0.iter().filter(|(other, number)| used.contains(number) && other.meets(networks));
        meeting.map(|(_, number)| *number).collect()
    }
}

fn used(places: &Places) -> BTreeSet<u16> {
    places.values().filter_map(|place| place.group).collect()
}

/// Puts `new` at `address` (`None`: nobody) into `places`, and has all those reached from its group
/// that have a network in common with it.
pub(super) fn put(
    places: &mut Places,
    groups: &GroupNumbers,
    address: Ipv4Addr,
    new: Option<Place>,
) {
    let Some(new) = new else {
        places.remove(&address);
        return;
    };
    let group = new.group;
    let known = group.is_none_or(|group| places.values().any(|place| place.group == Some(group)));
    places.insert(address, new);
    if let Some(group) = group
        && let Some(networks) = groups.networks(group)
    {
        let from = groups.meeting(networks, places);
        if let Some(place) = places.get_mut(&address) {
            place.from = from;
        }
        if !known {
            // The first of its group: the others have not been reached from there so far.
            let meets: BTreeSet<u16> = groups.meeting(networks, places);
            let others = places.values_mut();
            for place in others.filter(|place| place.group.is_some_and(|it| meets.contains(&it))) {
                place.from.insert(group);
            }
        }
    }
}

/// Who reaches whom of `places`, all anew.
pub(super) fn settle(places: &mut Places, groups: &GroupNumbers) {
    let mut known: BTreeMap<u16, BTreeSet<u16>> = BTreeMap::new();
    for group in used(places) {
        let from = groups.networks(group).map(|networks| groups.meeting(networks, places));
        known.insert(group, from.unwrap_or_else(|| BTreeSet::from([group])));
    }
    for place in places.values_mut() {
        let from = place.group.and_then(|group| known.get(&group));
        place.from = from.cloned().unwrap_or_default();
    }
}

/// Creates the sets, with `id` and the next.
pub(super) fn declare(change: &mut Transaction, table: &str, id: u32) {
    change.set(table, MEMBERS, SetKind::Members, id);
    change.set(table, SOURCES, SetKind::Sources, id + 1);
}

/// The elements of `places`, set by set.
fn elements(range: &Range, places: &Places) -> [(&'static str, BTreeSet<Vec<u8>>); 2] {
    let (mut members, mut sources) = (BTreeSet::new(), BTreeSet::new());
    for (address, place) in places {
        sources.insert(Element::Source(&place.interface, *address).key());
        let group = |number: &u16| Element::Member(range.network_group(*number), *address).key();
        members.extend(place.from.iter().map(group));
    }
    [(MEMBERS, members), (SOURCES, sources)]
}

/// Changes the sets from what `old` makes to what `new` makes.
pub(super) fn change(change: &mut Transaction, range: &Range, old: &Places, new: &Places) {
    let table = range.table();
    // Those that stay as they are cost a comparison and no more.
    let differing = |these: &Places, others: &Places| -> Places {
        let differs = |(at, place): &(&Ipv4Addr, &Place)| others.get(*at) != Some(*place);
        these.iter().filter(differs).map(|(at, place)| (*at, place.clone())).collect()
    };
    let (old, new) = (&differing(old, new), &differing(new, old));
    for ((set, was), (_, is)) in elements(range, old).iter().zip(&elements(range, new)) {
        let gone: Vec<Element<'_>> = was.difference(is).map(|key| Element::Raw(key)).collect();
        let added: Vec<Element<'_>> = is.difference(was).map(|key| Element::Raw(key)).collect();
        change.delete_elements(&table, set, &gone);
        change.add_elements(&table, set, &added);
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
    for (set, wanted) in elements(range, places) {
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
        Place { interface: "kl1".into(), group, from: BTreeSet::new() }
    }

    fn on(names: &[&str]) -> Networks {
        Networks { names: names.iter().map(|name| (*name).to_owned()).collect(), inside: false }
    }

    #[test]
    fn names_keep_their_numbers_and_share_none() {
        let found = Places::from([(at(1), place(Some(1))), (at(2), place(None))]);
        let mut numbers = GroupNumbers::default();
        let (a, b) = (numbers.of(&on(&["a"]), &found), numbers.of(&on(&["b"]), &found));
        assert!(a != Some(1) && b != Some(1) && a != b && a.is_some() && b.is_some());
        assert_eq!((numbers.of(&on(&["a"]), &found), numbers.of(&on(&["b"]), &found)), (a, b));
        let inside = numbers.of(&Networks { inside: true, ..on(&["a"]) }, &found);
        assert!(inside >= Some(INSIDE) && a < Some(INSIDE), "{inside:?}");
        // Names that nobody has any more make room in the end.
        for number in 0..70_000 {
            if number % 10_000 == 0 {
                let name = format!("n{number}");
                assert!(numbers.of(&on(&[&name]), &found).is_some_and(|n| n != 1));
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
        let named = |n, name: &str| (at(n), on(&[name]));
        numbers.learn(&[named(1, "a"), named(2, "b"), named(3, "b"), named(4, "c")], &found);
        assert_eq!(numbers.of(&on(&["a"]), &found), Some(7));
        assert_eq!(numbers.of(&on(&["b"]), &found), Some(8), "a number is one name's");
        assert!(numbers.of(&on(&["c"]), &found).is_some_and(|n| n != 7 && n != 8));
    }

    #[test]
    fn those_reach_one_another_that_have_a_network_in_common() {
        let mut numbers = GroupNumbers::default();
        let mut places = Places::new();
        let all = [on(&["a"]), on(&["b"]), on(&["a", "b"]), on(&["c"]), on(&["a"])];
        for (n, networks) in (0..).zip(&all) {
            let group = numbers.of(networks, &places);
            put(&mut places, &numbers, at(n), Some(place(group)));
        }
        let reaches = |places: &Places, from: u32, to: u32| {
            let group = places[&at(from)].group.unwrap();
            places[&at(to)].from.contains(&group)
        };
        let judge = |places: &Places| {
            for (n, one) in (0..).zip(&all) {
                for (m, other) in (0..).zip(&all) {
                    assert_eq!(reaches(places, n, m), one.meets(other), "{n} {m}");
                }
            }
        };
        judge(&places);
        // Leaving and coming back, as the first of its group again.
        let group = places[&at(1)].group;
        put(&mut places, &numbers, at(1), None);
        put(&mut places, &numbers, at(1), Some(place(group)));
        judge(&places);
        settle(&mut places, &numbers);
        judge(&places);
    }

    #[test]
    fn elements_grow_with_the_instances_and_not_with_their_pairs() {
        let range = Range::example();
        let count = |instances: u32| {
            let from = BTreeSet::from([1, 2]);
            let one = Place { from, ..place(Some(1)) };
            let places: Places = (0..instances).map(|n| (at(n), one.clone())).collect();
            elements(&range, &places).iter().map(|(_, all)| all.len()).sum::<usize>()
        };
        assert_eq!((count(10), count(1000)), (30, 3000));
    }
}
