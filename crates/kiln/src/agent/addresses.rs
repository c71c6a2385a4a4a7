//! Which addresses of the root's range are free. Those given back are used again last, so that
//! nobody's old connection meets a new instance.

use std::collections::{BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Mutex;

use kiln_run::net::{INSTANCES, Range, VIRTUALS};

use super::lock;
use crate::report::Report;

/// The free addresses of one root.
#[derive(Debug)]
pub(crate) struct Addresses {
    instances: Mutex<VecDeque<Ipv4Addr>>,
    virtuals: Mutex<VecDeque<Ipv4Addr>>,
    all_virtuals: BTreeSet<Ipv4Addr>,
}

impl Addresses {
    /// From the two halves of the root's range, less what is `taken`.
    pub(crate) fn new(range: &Range, taken: &BTreeSet<Ipv4Addr>) -> Self {
        Self::of(
            (1..=INSTANCES).filter_map(|n| range.instance(n)),
            (0..VIRTUALS).filter_map(|n| range.virtual_address(n)),
            taken,
            usize::try_from(super::now_ms() % 1_000_000).unwrap_or(0),
        )
    }

    fn of(
        instances: impl Iterator<Item = Ipv4Addr>,
        virtuals: impl Iterator<Item = Ipv4Addr>,
        taken: &BTreeSet<Ipv4Addr>,
        turn: usize,
    ) -> Self {
        let all_virtuals: BTreeSet<Ipv4Addr> = virtuals.collect();
        let free = |address: &Ipv4Addr| !taken.contains(address);
        let mut instances: VecDeque<Ipv4Addr> = instances.filter(free).collect();
        // An agent that was restarted knows not which were used last: begin somewhere else.
        instances.rotate_left(turn % instances.len().max(1));
        Self {
            instances: Mutex::new(instances),
            virtuals: Mutex::new(all_virtuals.iter().copied().filter(free).collect()),
            all_virtuals,
        }
    }

    /// An address for an instance.
    pub(crate) fn take_instance(&self) -> Result<Ipv4Addr, Report> {
        lock(&self.instances).pop_front().ok_or_else(|| used_up("instances"))
    }

    /// Stable addresses for the services of a slot: as many as asked for, or none.
    pub(crate) fn take_virtuals(&self, count: usize) -> Result<Vec<Ipv4Addr>, Report> {
        let mut free = lock(&self.virtuals);
        if free.len() < count {
            return Err(used_up("services"));
        }
        Ok(free.drain(..count).collect())
    }

    /// Gives an address of either kind back.
    pub(crate) fn give_back(&self, address: Ipv4Addr) {
        let list =
            if self.all_virtuals.contains(&address) { &self.virtuals } else { &self.instances };
        lock(list).push_back(address);
    }
}

fn used_up(what: &str) -> Report {
    Report::failed(format!("all addresses of this root for {what} are in use"))
        .hint("take stages down that are no longer needed, or use a second root with `--root`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_back_comes_last() {
        let at = |last| Ipv4Addr::new(198, 18, 0, last);
        let taken = BTreeSet::from([at(1)]);
        let all = Addresses::of((1..4).map(at), (10..11).map(at), &taken, 0);
        assert_eq!(all.take_instance().unwrap(), at(2));
        all.give_back(at(2));
        assert_eq!(all.take_instance().unwrap(), at(3));
        assert_eq!(all.take_instance().unwrap(), at(2));
        assert!(all.take_instance().is_err());
        assert!(all.take_virtuals(2).is_err(), "and nothing is taken by that");
        assert_eq!(all.take_virtuals(1).unwrap(), [at(10)]);
        assert!(all.take_virtuals(1).is_err());
    }
}
