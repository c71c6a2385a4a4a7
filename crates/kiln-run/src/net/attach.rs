//! One instance's end of the network: a routed veth pair, made by the instance's shim.
//!
//! ```text
//!   instance's namespace                    host
//!   eth0  198.18.8.5/32  ── veth pair ──  kl1a2b3c5  169.254.1.1/32
//!   169.254.1.1 on link                   198.18.8.5/32 on link, source 169.254.1.1
//!   default via 169.254.1.1
//! ```
//! Both ends know each other's MAC as a permanent neighbour, so no packet waits for ARP. The pair
//! goes when its instance's namespace goes; nobody has to wait for that.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use rustix::process::Pid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};

use super::NetError;
use super::link::Pair;
use super::message::Batch;
use super::netlink::{Refused, Socket};

/// The host as every instance sees it: the next hop, and the source of what the front sends.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The name of the interface inside an instance.
pub const INNER_NAME: &str = "eth0";

/// Every host end has the same MAC: there are only two stations on each of these links.
const HOST_MAC: [u8; 6] = [0xee; 6];
const LOOPBACK_INDEX: u32 = 1;

/// What [`attach`] is to make. Comes from [`super::Host::net_spec`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetSpec {
    /// Name of the host's end, at most 15 bytes.
    pub host_ifname: String,
    /// The instance's address.
    pub address: Ipv4Addr,
    /// The link group of all interfaces of this root.
    pub group: u32,
    /// Largest packet in bytes; the kernel's default (1500) if `None`.
    pub mtu: Option<u32>,
}

impl NetSpec {
    /// Locally administered, and different for each address.
    fn inner_mac(&self) -> [u8; 6] {
        let [a, b, c, d] = self.address.octets();
        [0x0a, 0x6b, a, b, c, d]
    }
}

/// Gives the network namespace of process `pid` the interface that `spec` describes.
///
/// The calling thread visits that namespace for the time it takes to open one socket, so it must
/// have CAP_SYS_ADMIN and CAP_NET_ADMIN.
///
/// # Errors
/// Everything that the kernel refuses; the pair is removed again then.
pub fn attach(pid: Pid, spec: &NetSpec) -> Result<(), NetError> {
    let netns = open_namespace(&format!("/proc/{}/ns/net", pid.as_raw_nonzero()))?;
    attach_to(netns.as_fd(), spec)
}

/// As [`attach`], to a namespace that is already open.
///
/// # Errors
/// As [`attach`].
pub fn attach_to(netns: BorrowedFd<'_>, spec: &NetSpec) -> Result<(), NetError> {
    let mut host = Socket::route().map_err(NetError::socket)?;
    let mut inner = socket_inside(netns)?;
    let refused = |source| NetError::attach(spec, source);
    let inner_mac = spec.inner_mac();
    let mut batch = Batch::new();
    batch.new_pair(
        &Pair {
            host_name: &spec.host_ifname,
            host_mac: HOST_MAC,
            inner_name: INNER_NAME,
            inner_mac,
            group: spec.group,
            mtu: spec.mtu,
        },
        netns,
    );
    host.run(batch).map_err(refused)?;
    configure(&mut host, &mut inner, spec, &inner_mac).map_err(|source| {
        // The first error is the one to report.
        let _ = delete(&mut host, &spec.host_ifname);
        refused(source)
    })
}

fn configure(
    host: &mut Socket,
    inner: &mut Socket,
    spec: &NetSpec,
    inner_mac: &[u8; 6],
) -> Result<(), Refused> {
    let find = |errno| Refused::new("find the interface just made", errno);
    let index = name_to_index(&host, &spec.host_ifname).map_err(find)?;
    let inner_index = name_to_index(&inner, INNER_NAME).map_err(find)?;

    let mut batch = Batch::new();
    batch.forward_strictly(index);
    batch.without_ipv6(index);
    batch.up(index);
    batch.address(index, GATEWAY, true);
    batch.neighbour(index, spec.address, inner_mac);
    batch.link_route(index, spec.address, Some(GATEWAY));
    host.run(batch)?;

    let mut batch = Batch::new();
    batch.up(LOOPBACK_INDEX);
    batch.without_ipv6(inner_index);
    batch.up(inner_index);
    batch.address(inner_index, spec.address, false);
    batch.neighbour(inner_index, GATEWAY, &HOST_MAC);
    batch.link_route(inner_index, GATEWAY, None);
    batch.default_route(inner_index, GATEWAY);
    inner.run(batch)?;
    host.synchronise_link(index)
}

/// Brings up the loopback interface of the namespace and nothing else: all the network of a build
/// step without network.
///
/// # Errors
/// What the kernel refuses.
pub fn loopback_only(netns: BorrowedFd<'_>) -> Result<(), NetError> {
    let mut inner = socket_inside(netns)?;
    let mut batch = Batch::new();
    batch.up(LOOPBACK_INDEX);
    inner.run(batch).map_err(NetError::Kernel)
}

/// Removes the pair by the name of the host's end; no error if it is gone. The kernel makes the
/// caller wait some 30 ms: dropping the namespace does not.
///
/// # Errors
/// What the kernel refuses.
pub fn detach(host_ifname: &str) -> Result<(), NetError> {
    let mut host = Socket::route().map_err(NetError::socket)?;
    delete(&mut host, host_ifname).map_err(NetError::Kernel)
}

fn delete(host: &mut Socket, name: &str) -> Result<(), Refused> {
    let mut batch = Batch::new();
    batch.delete_link(name);
    host.run(batch)
}

/// Removes every interface whose name starts with `prefix` and is not in `alive`, all at once.
/// Returns how many there were.
///
/// # Errors
/// What the kernel refuses.
pub(super) fn sweep(prefix: &str, dying_group: u32, alive: &[&str]) -> Result<usize, NetError> {
    let mut host = Socket::route().map_err(NetError::socket)?;
    let links = host.links().map_err(NetError::Kernel)?;
    let ours = |name: &str| {
        name.strip_prefix(prefix)
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
    };
    let mut batch = Batch::new();
    let mut dead = 0;
    for link in &links {
        if ours(&link.name) && !alive.contains(&link.name.as_str()) {
            batch.move_to_group(link.index, dying_group);
            dead += 1;
        }
    }
    if dead > 0 {
        batch.delete_group(dying_group);
        host.run(batch).map_err(NetError::Kernel)?;
    }
    Ok(dead)
}

fn open_namespace(path: &str) -> Result<File, NetError> {
    File::open(path).map_err(|source| NetError::File { path: PathBuf::from(path), source })
}

/// An rtnetlink socket that belongs to `netns`. The thread is back in its own namespace when this
/// returns, or the error says that it is not.
fn socket_inside(netns: BorrowedFd<'_>) -> Result<Socket, NetError> {
    let home = open_namespace("/proc/thread-self/ns/net")?;
    enter(netns).map_err(|errno| NetError::Enter(errno.into()))?;
    let socket = Socket::route();
    enter(home.as_fd()).map_err(|errno| NetError::Return(errno.into()))?;
    socket.map_err(NetError::socket)
}

fn enter(netns: BorrowedFd<'_>) -> Result<(), Errno> {
    move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))
}

impl NetError {
    pub(super) fn socket(source: io::Error) -> Self {
        Self::Kernel(Refused { action: "open a netlink socket", source })
    }

    fn attach(spec: &NetSpec, source: Refused) -> Self {
        Self::Attach { ifname: spec.host_ifname.clone(), address: spec.address, source }
    }
}
