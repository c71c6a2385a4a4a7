//! What a root needs of its host: a range, a table, forwarding, and rules in other people's forward
//! chains. Made by [`Host::setup`], which finds again what an earlier agent made.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::NetError;
use super::attach::{NetSpec, sweep};
use super::conntrack::Forgetter;
use super::forward;
use super::message::Batch;
use super::netlink::{Refused, Socket};
use super::places::{self, GroupNumbers, Networks, Place, Places};
use super::range::{Block, Claims, PREFIX, RUN_DIR, Range};
use super::translation::{Table, delete_table};

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
const DEFAULT_MTU: u32 = 1500;

/// A root's network on its host.
#[derive(Debug)]
pub struct Host {
    range: RwLock<Arc<Range>>,
    growing: Mutex<()>,
    claims: Claims,
    mtu: Option<u32>,
    notices: Vec<String>,
    state: Mutex<State>,
    forgetter: Forgetter,
}

#[derive(Debug)]
struct State {
    nft: Socket,
    table: Table,
    groups: GroupNumbers,
    /// The ruleset's generation when all was last seen in order.
    seen: Option<u32>,
}

impl State {
    /// Changes the table. Returns what `change` does, say what has moved.
    fn write<T>(
        &mut self,
        change: impl FnOnce(&mut Socket, &mut Table) -> Result<T, Refused>,
    ) -> Result<T, Refused> {
        let moved = change(&mut self.nft, &mut self.table)?;
        // One transaction on top of what was in order: ours.
        let now = self.nft.generation()?;
        self.seen = self.seen.filter(|seen| now.wrapping_sub(*seen) <= 1).map(|_| now);
        Ok(moved)
    }
}

impl Host {
    /// Sets up the network of the root folder `root` in the network namespace of the calling
    /// thread, or takes over what is there. Doing it twice changes nothing.
    ///
    /// # Errors
    /// No free range; what the kernel refuses; files that cannot be written.
    pub fn setup(root: &Path) -> Result<Self, NetError> {
        Self::setup_in(Path::new(RUN_DIR), root)
    }

    /// As [`Self::setup`], with claims in another folder than [`RUN_DIR`]: a host of its own.
    ///
    /// # Errors
    /// As [`Self::setup`].
    pub fn setup_in(run_dir: &Path, root: &Path) -> Result<Self, NetError> {
        let mut route = Socket::route().map_err(NetError::socket)?;
        let mut nft = Socket::netfilter().map_err(NetError::socket)?;
        let routes = route.routes().map_err(NetError::Kernel)?;
        let links = route.links().map_err(NetError::Kernel)?;
        let names: Vec<_> = links.iter().map(|link| link.name.clone()).collect();

        let claims = Claims::at(run_dir);
        let claimed = claims.claim(root, &routes, &names)?;
        for abandoned in &claimed.abandoned {
            clean(&mut route, &mut nft, abandoned)?;
        }
        let range = claimed.range;
        let mut notices = Vec::new();
        notices.extend(switch_forwarding_on(run_dir)?);

        let uplink = routes.iter().find(|route| route.main_table && route.prefix == 0);
        let mtu = uplink
            .and_then(|route| links.iter().find(|link| Some(link.index) == route.interface))
            .and_then(|link| link.mtu)
            .filter(|mtu| *mtu < DEFAULT_MTU);

        let mut batch = Batch::new();
        for block in range.blocks() {
            batch.unreachable(block.network(), PREFIX);
            batch.translated(block.virtual_network(), PREFIX + 1);
        }
        route.run(batch).map_err(NetError::Kernel)?;
        let places = places::found(&mut nft, &links, &range).map_err(NetError::Translation)?;
        let table = Table::open(&mut nft, &range, places).map_err(NetError::Translation)?;
        let groups = GroupNumbers::default();
        let state = Mutex::new(State { nft, table, groups, seen: None });
        let forgetter = Forgetter::default();
        let (range, growing) = (RwLock::new(Arc::new(range)), Mutex::default());
        let mut host = Self { range, growing, claims, mtu, notices, state, forgetter };
        let opened = host.ensure()?;
        host.notices.extend(opened);
        Ok(host)
    }

    /// The addresses and names of this root, as of now.
    pub fn range(&self) -> Arc<Range> {
        Arc::clone(&self.range.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Claims one more block of addresses. What is open, and what is translated, stays as it is.
    ///
    /// # Errors
    /// No free block; what the kernel refuses.
    pub fn grow(&self) -> Result<Block, NetError> {
        let _alone = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut route = Socket::route().map_err(NetError::socket)?;
        let routes = route.routes().map_err(NetError::Kernel)?;
        let range = self.claims.grow(&self.range(), &routes)?;
        let missing = || NetError::NoRange { claims: PathBuf::new(), taken: 0 };
        let block = *range.blocks().last().ok_or_else(missing)?;
        let mut batch = Batch::new();
        batch.unreachable(block.network(), PREFIX);
        batch.translated(block.virtual_network(), PREFIX + 1);
        route.run(batch).map_err(NetError::Kernel)?;
        let mut state = self.lock();
        let state = &mut *state;
        state.table.grow(&mut state.nft, &range).map_err(NetError::Kernel)?;
        // Looked at again by the next `ensure`.
        state.seen = None;
        *self.range.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(range);
        Ok(block)
    }

    /// What [`Self::setup`] changed on the host, or could not, for the user. Empty if nothing.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// How instance number `n` (see [`Range::number_of`]) is to be attached.
    pub fn net_spec(&self, n: u32) -> Option<NetSpec> {
        let range = self.range();
        let address = range.instance(n)?;
        Some(NetSpec {
            host_ifname: range.interface_of(address)?,
            address,
            group: range.group(),
            mtu: self.mtu,
        })
    }

    /// Checks that the table and the rules in foreign chains are there, and puts back what is
    /// missing. Returns what it did. Costs one message when nobody changed any rule since.
    ///
    /// # Errors
    /// What the kernel or iptables-legacy refuses.
    pub fn ensure(&self) -> Result<Vec<String>, NetError> {
        let range = self.range();
        let mut did = self.ensure_own(&range)?;
        did.extend(self.forgetter.failure().map(|refused| {
            format!("UDP flows may still go to an instance that was replaced: {refused}")
        }));
        // A program of its own, which may take its time: nobody waits for the table meanwhile.
        did.extend(forward::accept_legacy(&range)?.map(|chain| self.opened(&chain)));
        Ok(did)
    }

    fn ensure_own(&self, range: &Range) -> Result<Vec<String>, NetError> {
        let mut state = self.lock();
        let state = &mut *state;
        let mut did = Vec::new();
        let now = state.nft.generation().map_err(NetError::Kernel)?;
        if state.seen != Some(now) {
            if !state.table.is_whole(&mut state.nft).map_err(NetError::Kernel)? {
                state.table.rebuild(&mut state.nft).map_err(NetError::Kernel)?;
                did.push(format!(
                    "the nftables table {} was changed or removed by another program, and was put \
                     back",
                    range.table()
                ));
            }
            for chain in forward::accept(&mut state.nft, range).map_err(NetError::Kernel)? {
                did.push(self.opened(&chain));
            }
            state.seen = if did.is_empty() { Some(now) } else { None };
        }
        Ok(did)
    }

    fn opened(&self, chain: &str) -> String {
        format!(
            "the forward chain `{chain}` drops what it does not know: two rules that accept {}* \
             were added to it",
            self.range().interface_prefix()
        )
    }

    /// Lets what is going to have `address` send from it, and reach all others that are on one of
    /// its networks and be reached by them. On none it reaches the outside only. One that had the
    /// address before is forgotten. Gives how it is to be attached.
    ///
    /// # Errors
    /// An address that is no instance's; what the kernel refuses. Nothing has changed then.
    pub fn admit(
        &self,
        address: Ipv4Addr,
        networks: Option<&Networks>,
    ) -> Result<NetSpec, NetError> {
        let range = self.range();
        let number = range.number_of(address);
        let spec = number.and_then(|number| self.net_spec(number));
        let mut spec = spec.ok_or(NetError::NotInstance(address))?;
        let mut state = self.lock();
        let State { groups, table, .. } = &mut *state;
        let group = match networks {
            Some(them) => Some(groups.of(them, table.places()).ok_or(NetError::NoGroup)?),
            None => None,
        };
        if let Some(group) = group {
            spec.group = range.network_group(group);
        }
        let interface = spec.host_ifname.clone();
        let mut places = table.places().clone();
        places.remove(&address);
        let place = Place { interface, group, from: BTreeSet::new() };
        places::put(&mut places, groups, address, Some(place));
        state.write(|nft, table| table.place(nft, places)).map_err(NetError::Kernel)?;
        Ok(spec)
    }

    /// Nobody has the address any more.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn expel(&self, address: Ipv4Addr) -> Result<(), NetError> {
        let mut state = self.lock();
        let mut places = state.table.places().clone();
        places.remove(&address);
        state.write(|nft, table| table.place(nft, places)).map_err(NetError::Kernel)
    }

    /// Admits exactly these (address, networks), which are attached already, whatever an earlier
    /// agent had admitted. Nothing changes between those who reached one another.
    ///
    /// # Errors
    /// As [`Self::admit`].
    pub fn admit_all(&self, all: &[(Ipv4Addr, Networks)]) -> Result<(), NetError> {
        let mut route = Socket::route().map_err(NetError::socket)?;
        let links = route.links().map_err(NetError::Kernel)?;
        let range = self.range();
        let mut state = self.lock();
        let State { groups, table, .. } = &mut *state;
        groups.learn(all, table.places());
        let mut places = Places::new();
        let mut batch = Batch::new();
        let mut moves = 0;
        for (address, networks) in all {
            let interface = range.interface_of(*address);
            let interface = interface.ok_or(NetError::NotInstance(*address))?;
            let group = groups.of(networks, table.places()).ok_or(NetError::NoGroup)?;
            // Those of a version that knew no groups.
            let link_group = range.network_group(group);
            if let Some(link) = links.iter().find(|link| link.name == interface)
                && link.group != Some(link_group)
            {
                batch.move_to_group(link.index, link_group);
                moves += 1;
            }
            let from = BTreeSet::new();
            places.insert(*address, Place { interface, group: Some(group), from });
        }
        places::settle(&mut places, groups);
        if moves > 0 {
            route.run(batch).map_err(NetError::Kernel)?;
        }
        state.write(|nft, table| table.place_all(nft, places)).map_err(NetError::Kernel)
    }

    /// Moves virtual addresses to instances, or away from any (`None`), all in one step. What is
    /// open stays with its instance until it closes; UDP follows within some 10 ms.
    ///
    /// # Errors
    /// An address outside the range; what the kernel refuses. Nothing has changed then.
    pub fn translate(&self, changes: &[(Ipv4Addr, Option<Ipv4Addr>)]) -> Result<(), NetError> {
        for (virtual_address, _) in changes {
            self.check(*virtual_address)?;
        }
        let moved = self.lock().write(|nft, table| {
            let mut map = table.map().clone();
            for (virtual_address, instance) in changes {
                match instance {
                    Some(instance) => map.insert(*virtual_address, *instance),
                    None => map.remove(virtual_address),
                };
            }
            table.replace(nft, map)
        });
        self.forgetter.forget(moved.map_err(NetError::Kernel)?).map_err(NetError::socket)
    }

    /// Makes the translation exactly `map`, whatever it was before, in one step.
    ///
    /// # Errors
    /// As [`Self::translate`].
    pub fn translate_all(&self, map: &[(Ipv4Addr, Ipv4Addr)]) -> Result<(), NetError> {
        for (virtual_address, _) in map {
            self.check(*virtual_address)?;
        }
        let new = map.iter().copied().collect();
        let moved = self.lock().write(|nft, table| table.reset(nft, new));
        self.forgetter.forget(moved.map_err(NetError::Kernel)?).map_err(NetError::socket)
    }

    /// Waits until UDP flows to what [`Self::translate`] has moved are let go of: some 10 ms, which
    /// otherwise pass in the background.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn settle(&self) -> Result<(), NetError> {
        self.forgetter.settle().map_err(NetError::Kernel)
    }

    /// The translation as it is.
    pub fn translation(&self) -> BTreeMap<Ipv4Addr, Ipv4Addr> {
        self.lock().table.map().clone()
    }

    fn check(&self, address: Ipv4Addr) -> Result<(), NetError> {
        let range = self.range();
        match range.is_virtual(address) {
            true => Ok(()),
            false => Err(NetError::NotVirtual { address, range: range.cidr() }),
        }
    }

    /// Removes interfaces of this root that belong to none of `alive`. Returns how many.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn sweep(&self, alive: &[NetSpec]) -> Result<usize, NetError> {
        let names: Vec<_> = alive.iter().map(|spec| spec.host_ifname.as_str()).collect();
        let range = self.range();
        sweep(&range.interface_prefix(), range.dying_group(), &names)
    }

    /// Removes all that this root has on its host: rules, table, interfaces, route, claim.
    /// `net.ipv4.ip_forward` stays as it is, since others may rely on it by now.
    ///
    /// # Errors
    /// What the kernel refuses. Doing it again goes on where it stopped.
    pub fn teardown(self) -> Result<(), NetError> {
        let mut route = Socket::route().map_err(NetError::socket)?;
        // What could not be forgotten is of no interest any more.
        let _ = self.forgetter.settle();
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut nft = state.nft;
        let range = self.range.into_inner().unwrap_or_else(PoisonError::into_inner);
        clean(&mut route, &mut nft, &range)?;
        self.claims.release(&range)
    }

    /// A map half changed cannot be: the kernel's transaction decides, the copy follows it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn clean(route: &mut Socket, nft: &mut Socket, range: &Range) -> Result<(), NetError> {
    sweep(&range.interface_prefix(), range.dying_group(), &[])?;
    forward::withdraw(nft, range).map_err(NetError::Kernel)?;
    forward::withdraw_legacy(range)?;
    delete_table(nft, &range.table()).map_err(NetError::Kernel)?;
    let mut batch = Batch::new();
    for block in range.blocks() {
        batch.not_translated(block.virtual_network(), PREFIX + 1);
        batch.not_unreachable(block.network(), PREFIX);
    }
    route.run(batch).map_err(NetError::Kernel)
}

/// Instances reach the outside only through a host that forwards. The value found is written down
/// beside the claims.
fn switch_forwarding_on(run_dir: &Path) -> Result<Option<String>, NetError> {
    let path = Path::new(IP_FORWARD);
    let before = fs::read_to_string(path).map_err(|e| NetError::file(path, e))?;
    if before.trim() != "0" {
        return Ok(None);
    }
    let record = run_dir.join("ip_forward.before");
    fs::write(&record, &before).map_err(|e| NetError::file(&record, e))?;
    fs::write(path, "1").map_err(|e| NetError::file(path, e))?;
    Ok(Some(format!(
        "net.ipv4.ip_forward was 0 and is 1 now, so that instances reach the network (as Docker \
         does); {} has the old value",
        record.display()
    )))
}

/// Wakes up when anybody changes any rule: then it is time for [`Host::ensure`].
#[derive(Debug)]
pub struct RuleWatch(Socket);

impl RuleWatch {
    /// Watches the network namespace of the calling thread from now on.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn new() -> Result<Self, NetError> {
        const NFNLGRP_NFTABLES: u32 = 7;
        Socket::netfilter_events(1 << (NFNLGRP_NFTABLES - 1)).map(Self).map_err(NetError::socket)
    }

    /// Waits at most `timeout` for a change (`None`: for ever). False if there was none.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn wait(&mut self, timeout: Option<std::time::Duration>) -> Result<bool, NetError> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) | Err(rustix::io::Errno::INTR) => Ok(false),
            Ok(_) => self.0.drain().map_err(NetError::Kernel),
            Err(errno) => Err(NetError::Kernel(Refused::new("wait for rule changes", errno))),
        }
    }
}
