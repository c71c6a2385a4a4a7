//! Binding an address.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    AddressFamily, Shutdown, SocketFlags, SocketType, bind as bind_to, getsockname, listen,
    shutdown, socket_with, sockopt,
};
use serde::{Deserialize, Serialize};

use crate::table::{Protocol, Route};

/// Connections that may wait to be accepted; the kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// What a listener is kept under from one table to the next, and from one worker to the next.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Key {
    pub(crate) protocol: Protocol,
    /// The address of the table.
    pub(crate) addr: SocketAddr,
    /// The route's id where the port is 0, for there the address alone tells nothing.
    pub(crate) route: Option<String>,
}

impl Key {
    pub(crate) fn new(route: &Route, addr: SocketAddr) -> Self {
        let id = (addr.port() == 0).then(|| route.id.clone());
        Self { protocol: route.protocol, addr, route: id }
    }
}

/// A socket bound to `addr`, not yet listening: binding all before listening on any means that a
/// table which is refused has opened nothing.
pub(crate) fn bind(protocol: Protocol, addr: SocketAddr) -> io::Result<OwnedFd> {
    bind_beside(protocol, addr, false)
}

/// As [`bind`]; with `beside` also where a socket of this process that was told to [`share`] has
/// the port.
pub(crate) fn bind_beside(
    protocol: Protocol,
    addr: SocketAddr,
    beside: bool,
) -> io::Result<OwnedFd> {
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if protocol == Protocol::Tcp {
        // On UDP it would let two processes share a port, and hide that it is taken.
        sockopt::set_socket_reuseaddr(&socket, true)?;
        // Accepted sockets inherit it.
        sockopt::set_tcp_nodelay(&socket, true)?;
        notice_the_dead(&socket)?;
    }
    if addr.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if beside {
        share(&socket, true)?;
    }
    bind_to(&socket, &addr)?;
    Ok(socket)
}

/// Lets another socket of this user have an overlapping address, for as long as one listener
/// takes the place of the other.
pub(crate) fn share(socket: &impl AsFd, shared: bool) -> io::Result<()> {
    Ok(sockopt::set_socket_reuseport(socket, shared)?)
}

/// A peer that vanished without a word (its machine lost power, its network went) is noticed
/// after two minutes, whatever is spoken.
pub(crate) fn notice_the_dead(socket: &impl AsFd) -> io::Result<()> {
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(socket, Duration::from_secs(15))?;
    sockopt::set_tcp_keepcnt(socket, 4)?;
    Ok(())
}

/// Lets clients in.
pub(crate) fn open(protocol: Protocol, socket: &OwnedFd) -> io::Result<()> {
    if protocol == Protocol::Tcp {
        listen(socket, BACKLOG)?;
    }
    Ok(())
}

/// Stops listening at once, although the minder may still hold a duplicate.
pub(crate) fn close(protocol: Protocol, socket: &impl AsFd) {
    if protocol == Protocol::Tcp {
        // Fails only on a socket that does not listen any more.
        let _ = shutdown(socket, Shutdown::Read);
    }
}

/// The address in use.
pub(crate) fn local_addr(socket: &impl AsFd) -> io::Result<SocketAddr> {
    Ok(SocketAddr::try_from(getsockname(socket)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    #[test]
    fn closing_frees_the_port_although_a_duplicate_lives() {
        let any = "127.0.0.1:0".parse().unwrap();
        let first = bind(Protocol::Tcp, any).unwrap();
        open(Protocol::Tcp, &first).unwrap();
        let addr = local_addr(&first).unwrap();
        let duplicate = first.try_clone().unwrap();
        TcpStream::connect(addr).unwrap();
        close(Protocol::Tcp, &first);
        assert!(TcpStream::connect(addr).is_err());
        let second = bind(Protocol::Tcp, addr).unwrap();
        open(Protocol::Tcp, &second).unwrap();
        TcpStream::connect(addr).unwrap();
        drop(duplicate);
    }

    #[test]
    fn ipv6_leaves_ipv4_alone() {
        let six = bind(Protocol::Tcp, "[::]:0".parse().unwrap()).unwrap();
        open(Protocol::Tcp, &six).unwrap();
        let port = local_addr(&six).unwrap().port();
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    }
}
