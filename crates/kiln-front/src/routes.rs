//! The table as the worker holds it. A route that does not change is one and the same object in every
//! generation: so a change among a thousand costs little more than what changed.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use serde_json::value::{RawValue, to_raw_value};

use crate::table::{Route, Table};
use crate::wire::Change;

/// A route that was put in force.
#[derive(Debug)]
pub(crate) struct Entry {
    route: Route,
    text: OnceLock<Box<RawValue>>,
}

impl Deref for Entry {
    type Target = Route;

    fn deref(&self) -> &Route {
        &self.route
    }
}

impl Entry {
    pub(crate) fn new(route: Route) -> Arc<Self> {
        Arc::new(Self { route, text: OnceLock::new() })
    }

    /// As it is written down; made once.
    pub(crate) fn text(&self) -> &RawValue {
        // A route is always text; if it were none, it would be left out when it is read.
        let text = || to_raw_value(&self.route).unwrap_or_else(|_| RawValue::NULL.to_owned());
        self.text.get_or_init(text)
    }

    fn listens_as(&self, other: &Route) -> bool {
        (&self.id, self.protocol, &self.listen) == (&other.id, other.protocol, &other.listen)
    }
}

/// A [`Table`].
#[derive(Debug, Clone, Default)]
pub(crate) struct Routes {
    pub(crate) generation: u64,
    pub(crate) all: Vec<Arc<Entry>>,
}

impl Routes {
    /// Those of `table`. What is as it was `before`, in its place, is taken from there.
    pub(crate) fn of(table: Table, before: &Self) -> Self {
        let all =
            table.routes.into_iter().enumerate().map(|(at, route)| match before.all.get(at) {
                Some(entry) if entry.route == route => Arc::clone(entry),
                _ => Entry::new(route),
            });
        Self { generation: table.generation, all: all.collect() }
    }

    /// Whether they are those of `table`.
    pub(crate) fn are(&self, table: &Table) -> bool {
        let own = self.all.iter().map(|entry| &entry.route);
        self.generation == table.generation && own.eq(&table.routes)
    }

    pub(crate) fn to_table(&self) -> Table {
        let routes = self.all.iter().map(|entry| entry.route.clone()).collect();
        Table { generation: self.generation, routes }
    }

    /// What `change` makes of them, and the places where that differs.
    ///
    /// # Errors
    /// As [`Table::check`].
    pub(crate) fn changed(&self, change: Change) -> Result<(Self, BTreeSet<usize>), String> {
        let Change { generation, put, drop, .. } = change;
        let mut all = self.all.clone();
        if !drop.is_empty() {
            let drop: HashSet<&str> = drop.iter().map(String::as_str).collect();
            all.retain(|entry| !drop.contains(entry.id.as_str()));
        }
        let ids = put.iter().enumerate().map(|(at, route)| (route.id.clone(), at));
        let ids: HashMap<String, usize> = ids.collect();
        let mut put: Vec<Option<Route>> = put.into_iter().map(Some).collect();
        let mut places = BTreeSet::new();
        for (at, entry) in all.iter_mut().enumerate() {
            if let Some(route) = ids.get(&entry.id).and_then(|at| put[*at].take()) {
                *entry = Entry::new(route);
                places.insert(at);
            }
        }
        for route in put.into_iter().flatten() {
            places.insert(all.len());
            all.push(Entry::new(route));
        }
        let routes = Self { generation, all };
        routes.check(&places)?;
        Ok((routes, places))
    }

    /// As [`Table::check`], of what is in these places: the rest was in force.
    fn check(&self, places: &BTreeSet<usize>) -> Result<(), String> {
        let mut ids = BTreeSet::new();
        let mut addrs = BTreeMap::new();
        for entry in places.iter().filter_map(|at| self.all.get(*at)) {
            if !ids.insert(&entry.id) {
                return Err(entry.is_there_twice());
            }
            entry.check()?;
            for addr in entry.listen.iter().filter(|addr| addr.port() != 0) {
                if addrs.insert((entry.protocol, *addr), entry).is_some() {
                    return Err(entry.has_no_right_to(addr));
                }
            }
        }
        for entry in &self.all {
            for addr in &entry.listen {
                if let Some(new) = addrs.get(&(entry.protocol, *addr))
                    && !Arc::ptr_eq(new, entry)
                {
                    return Err(new.has_no_right_to(addr));
                }
            }
        }
        Ok(())
    }

    /// Whether all listen where those `before` did, in their places.
    pub(crate) fn listen_as(&self, before: &Self) -> bool {
        let mut pairs = self.all.iter().zip(&before.all);
        let as_before = |(now, before): (&Arc<Entry>, &Arc<Entry>)| {
            Arc::ptr_eq(now, before) || now.listens_as(before)
        };
        self.all.len() == before.all.len() && pairs.all(as_before)
    }
}

/// Finds the routes of a table in the one before. Most are where they were.
pub(crate) struct Former<'a> {
    all: &'a [Arc<Entry>],
    by_entry: OnceCell<HashMap<*const Entry, usize>>,
    by_id: OnceCell<HashMap<&'a str, usize>>,
}

impl<'a> Former<'a> {
    pub(crate) fn new(before: &'a Routes) -> Self {
        Self { all: &before.all, by_entry: OnceCell::new(), by_id: OnceCell::new() }
    }

    /// Where a route that is at place `at` by now was before, if it is as it was.
    pub(crate) fn place(&self, at: usize, entry: &Arc<Entry>) -> Option<usize> {
        match self.all.get(at) {
            Some(here) if Arc::ptr_eq(here, entry) => Some(at),
            Some(here) if here.id == entry.id => None,
            _ => {
                let all = || self.all.iter().map(Arc::as_ptr).zip(0..).collect();
                self.by_entry.get_or_init(all).get(&Arc::as_ptr(entry)).copied()
            }
        }
    }

    /// What the route with that id, at place `at` by now, was before.
    pub(crate) fn named(&self, at: usize, id: &str) -> Option<&'a Entry> {
        if let Some(here) = self.all.get(at).filter(|here| here.id == id) {
            return Some(here);
        }
        let all = || self.all.iter().map(|entry| entry.id.as_str()).zip(0..).collect();
        let place = self.by_id.get_or_init(all).get(id)?;
        self.all.get(*place).map(|entry| &**entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Protocol;

    fn route(id: &str, at: &str, to: u16) -> Route {
        Route::new(id, vec![at.parse().unwrap()], ([10, 0, 0, 1], to).into())
    }

    fn change(put: Vec<Route>, drop: &[&str]) -> Change {
        let drop = drop.iter().map(|id| (*id).to_owned()).collect();
        Change { base: 1, generation: 2, put, drop, partial: false }
    }

    fn three() -> Routes {
        let routes =
            vec![route("a", "[::1]:0", 1), route("b", "[::]:81", 2), route("c", "[::]:82", 3)];
        Routes::of(Table { generation: 1, routes }, &Routes::default())
    }

    #[test]
    fn what_does_not_change_is_the_same_object() {
        let before = three();
        let put = vec![route("d", "[::]:83", 4), route("b", "[::]:81", 5)];
        let (now, places) = before.changed(change(put, &[])).unwrap();
        assert_eq!(places, [1, 3].into());
        let ids: Vec<&str> = now.all.iter().map(|entry| entry.id.as_str()).collect();
        assert_eq!((ids, now.generation), (vec!["a", "b", "c", "d"], 2));
        let former = Former::new(&before);
        let place = |at: usize| former.place(at, &now.all[at]);
        assert_eq!([place(0), place(1), place(2), place(3)], [Some(0), None, Some(2), None]);
        assert_eq!(former.named(1, "b").unwrap().upstream.unwrap().port(), 2);
        assert!(former.named(3, "d").is_none());
        assert!(!now.listen_as(&before));
        // The same by its content, sent as a whole.
        let whole = Table { generation: 7, ..now.to_table() };
        let again = Routes::of(whole.clone(), &now);
        assert!(now.all.iter().zip(&again.all).all(|(one, two)| Arc::ptr_eq(one, two)));
        assert!(again.are(&whole) && !now.are(&whole));
        assert!(again.listen_as(&now));

        let (fewer, places) =
            before.changed(change(vec![route("c", "[::]:82", 9)], &["a"])).unwrap();
        assert_eq!(places, [1].into());
        let former = Former::new(&before);
        assert_eq!(former.place(0, &fewer.all[0]), Some(1), "it has moved up");
        assert_eq!(former.place(1, &fewer.all[1]), None);
        assert_eq!(former.named(1, "c").unwrap().upstream.unwrap().port(), 3);
    }

    #[test]
    fn a_change_is_checked_as_a_table_is() {
        let before = three();
        let udp = Route { protocol: Protocol::Udp, ..route("d", "[::]:82", 4) };
        let fine = [
            change(vec![udp], &[]),
            change(vec![route("d", "[::1]:0", 4)], &[]),
            change(vec![route("d", "[::]:82", 4)], &["c"]),
            change(vec![route("b", "[::]:82", 4), route("c", "[::]:81", 4)], &[]),
        ];
        for change in fine {
            let (now, _) = before.changed(change).unwrap();
            now.to_table().check().unwrap();
        }
        let wrong = [
            change(vec![route("d", "[::]:82", 4)], &[]),
            change(vec![route("b", "[::]:82", 4)], &[]),
            change(vec![route("d", "[::]:84", 4), route("e", "[::]:84", 4)], &[]),
            change(vec![route("d", "[::]:84", 4), route("d", "[::]:85", 4)], &[]),
            change(vec![route("b", "[::]:84", 4), route("b", "[::]:85", 4)], &[]),
            change(vec![Route { listen: Vec::new(), ..route("d", "[::]:84", 4) }], &[]),
        ];
        for change in wrong {
            let said = before.changed(change.clone()).unwrap_err();
            assert!(said.starts_with("route `"), "{change:?}: {said}");
        }
    }
}
