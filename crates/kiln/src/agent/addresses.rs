//! Which addresses of the root's range are free. Those given back are used again last, so that
//! nobody's old connection meets a new instance. When none is left the root claims one more block.

use std::collections::{BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Mutex;

use kiln_run::net::{Block, Host, Range};

use super::lock;
use crate::report::{Because, Report};

/// The free addresses of one root.
#[derive(Debug)]
pub(crate) struct Addresses {
    free: Mutex<Free>,
    /// Held while one more block is claimed, so that two who find none do not claim two.
    growing: Mutex<()>,
}

#[derive(Debug, Default)]
struct Free {
    instances: VecDeque<Ipv4Addr>,
    virtuals: VecDeque<Ipv4Addr>,
    /// Tells the two kinds apart.
    all_virtuals: BTreeSet<Ipv4Addr>,
}

/// What an address is for.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Instance,
    Virtual,
}

impl Addresses {
    /// From the blocks of the root's range, less what is `taken`. Of the blocks that are `withheld`,
    /// by their first address, nothing is free.
    pub(crate) fn new(
        range: &Range,
        taken: &BTreeSet<Ipv4Addr>,
        withheld: &BTreeSet<Ipv4Addr>,
    ) -> Self {
        let mut free = Free::default();
        for block in range.blocks() {
            free.add(*block, |address| {
                !taken.contains(address) && !withheld.contains(&block.network())
            });
        }
        // An agent that was restarted knows not which were used last: begin somewhere else.
        let turn = usize::try_from(super::now_ms() % 1_000_000).unwrap_or(0);
        let count = free.instances.len().max(1);
        free.instances.rotate_left(turn % count);
        Self { free: Mutex::new(free), growing: Mutex::default() }
    }

    /// An address for an instance.
    pub(crate) fn take_instance(&self, host: &Host) -> Result<Ipv4Addr, Report> {
        let taken = self.take(Kind::Instance, 1, || host.grow().because(doing))?;
        taken.first().copied().ok_or_else(|| Report::failed("no address was taken"))
    }

    /// Stable addresses for the services of a slot: as many as asked for, or none.
    pub(crate) fn take_virtuals(&self, host: &Host, count: usize) -> Result<Vec<Ipv4Addr>, Report> {
        self.take(Kind::Virtual, count, || host.grow().because(doing))
    }

    fn take(
        &self,
        kind: Kind,
        count: usize,
        grow: impl Fn() -> Result<Block, Report>,
    ) -> Result<Vec<Ipv4Addr>, Report> {
        loop {
            if let Some(taken) = lock(&self.free).take(kind, count) {
                return Ok(taken);
            }
            let _alone = lock(&self.growing);
            if lock(&self.free).list(kind).len() < count {
                let block = grow()?;
                lock(&self.free).add(block, |_| true);
            }
        }
    }

    /// Gives an address of either kind back.
    pub(crate) fn give_back(&self, address: Ipv4Addr) {
        let mut free = lock(&self.free);
        let virtual_one = free.all_virtuals.contains(&address);
        free.list(if virtual_one { Kind::Virtual } else { Kind::Instance }).push_back(address);
    }
}

fn doing() -> String {
    "claiming more addresses for this root".to_owned()
}

impl Free {
    fn add(&mut self, block: Block, free: impl Fn(&Ipv4Addr) -> bool) {
        self.instances.extend(block.instances().filter(&free));
        self.virtuals.extend(block.virtuals().filter(&free));
        self.all_virtuals.extend(block.virtuals());
    }

    fn list(&mut self, kind: Kind) -> &mut VecDeque<Ipv4Addr> {
        match kind {
            Kind::Instance => &mut self.instances,
            Kind::Virtual => &mut self.virtuals,
        }
    }

    fn take(&mut self, kind: Kind, count: usize) -> Option<Vec<Ipv4Addr>> {
        let list = self.list(kind);
        (list.len() >= count).then(|| list.drain(..count).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, 0, last)
    }

    fn three() -> Addresses {
        let free = Free {
            instances: (1..4).map(at).collect(),
            virtuals: (10..11).map(at).collect(),
            all_virtuals: (10..11).map(at).collect(),
        };
        Addresses { free: Mutex::new(free), growing: Mutex::default() }
    }

    fn none() -> Result<Block, Report> {
        Err(Report::failed("no more"))
    }

    #[test]
    fn given_back_comes_last() {
        let all = three();
        let one = || all.take(Kind::Instance, 1, none).map(|taken| taken[0]);
        assert_eq!(one().unwrap(), at(1));
        all.give_back(at(1));
        assert_eq!(one().unwrap(), at(2));
        assert_eq!(one().unwrap(), at(3));
        assert_eq!(one().unwrap(), at(1));
        assert!(one().is_err());
        assert!(all.take(Kind::Virtual, 2, none).is_err(), "and nothing is taken by that");
        assert_eq!(all.take(Kind::Virtual, 1, none).unwrap(), [at(10)]);
        all.give_back(at(10));
        assert_eq!(all.take(Kind::Virtual, 1, none).unwrap(), [at(10)]);
    }
}
