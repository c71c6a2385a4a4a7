//! Datagrams together with the address of this machine that they were sent to, so that the answer comes
//! from there: a socket of all addresses would answer from whichever the kernel likes best, and a
//! client that is connected does not take that. ip(7), ipv6(7): `IP_PKTINFO`, `IPV6_PKTINFO`.
#![allow(unsafe_code)]

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd as _};
use std::ptr::from_mut;

/// An address of this machine that somebody asked, and the interface where that is part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Asked {
    ip: IpAddr,
    interface: u32,
}

/// Room for one control message of either kind, aligned as they have to be.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// What came.
pub(crate) struct Received {
    /// Bytes of it.
    pub(crate) count: usize,
    pub(crate) client: SocketAddr,
    /// `None`: the socket has one address only, or that is none to answer from.
    pub(crate) asked: Option<Asked>,
}

/// Has the kernel say of each datagram which address was asked, where a socket has all.
pub(crate) fn tell(socket: &impl AsFd, bound: SocketAddr) -> io::Result<()> {
    if !bound.ip().is_unspecified() {
        return Ok(());
    }
    let (level, name) = match bound {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_PKTINFO),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    };
    let on: libc::c_int = 1;
    // SAFETY: the value is a number that lives through the call, and its size is passed.
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const on).cast(),
            length(size_of::<libc::c_int>()),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn length(bytes: usize) -> libc::socklen_t {
    libc::socklen_t::try_from(bytes).unwrap_or(0)
}

/// Takes the next datagram without waiting.
pub(crate) fn receive(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    // SAFETY: all of these are plain numbers and addresses, for which zero is a value.
    let (mut name, mut message): (libc::sockaddr_storage, libc::msghdr) = unsafe { zeroed() };
    let mut control = Control([0; 64]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    message.msg_name = from_mut(&mut name).cast();
    message.msg_namelen = length(size_of::<libc::sockaddr_storage>());
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len();
    // SAFETY: the message names the buffers above with their sizes, and all live through the call.
    let count =
        unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    let client = address(&name).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Received { count, client, asked: asked_of(&message) })
}

/// Sends an answer without waiting, from the address that was asked.
pub(crate) fn answer(
    socket: &impl AsFd,
    datagram: &[u8],
    client: SocketAddr,
    asked: Option<Asked>,
) -> io::Result<()> {
    // SAFETY: as in `receive`.
    let (mut name, mut message): (libc::sockaddr_storage, libc::msghdr) = unsafe { zeroed() };
    let mut control = Control([0; 64]);
    let mut part =
        libc::iovec { iov_base: datagram.as_ptr().cast_mut().cast(), iov_len: datagram.len() };
    message.msg_namelen = put_address(&mut name, client);
    message.msg_name = from_mut(&mut name).cast();
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    match asked {
        None => {}
        Some(Asked { ip: IpAddr::V4(ip), interface }) => {
            let info = libc::in_pktinfo {
                ipi_ifindex: i32::try_from(interface).unwrap_or(0),
                ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            put(&mut message, &mut control, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
        }
        Some(Asked { ip: IpAddr::V6(ip), interface }) => {
            let info = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: ip.octets() },
                ipi6_ifindex: interface,
            };
            put(&mut message, &mut control, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
        }
    }
    // SAFETY: as in `receive`; the kernel only reads what the message names.
    let sent = unsafe {
        libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const message, libc::MSG_DONTWAIT)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The one control message of an answer.
fn put<T>(
    message: &mut libc::msghdr,
    control: &mut Control,
    level: libc::c_int,
    kind: libc::c_int,
    value: T,
) {
    let size = u32::try_from(size_of::<T>()).unwrap_or(0);
    message.msg_control = control.0.as_mut_ptr().cast();
    // SAFETY: only sizes are computed; the control's room is larger than either kind takes, so its
    // first header lies in it, aligned, and the value behind that, which is written whatever its
    // alignment is.
    unsafe {
        message.msg_controllen = libc::CMSG_SPACE(size) as usize;
        let header = libc::CMSG_FIRSTHDR(&raw const *message);
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        (*header).cmsg_len = libc::CMSG_LEN(size) as usize;
        libc::CMSG_DATA(header).cast::<T>().write_unaligned(value);
    }
}

/// Which address was asked, if the kernel says so.
fn asked_of(message: &libc::msghdr) -> Option<Asked> {
    // SAFETY: the kernel wrote whole messages into the control's room and their length into
    // `msg_controllen`; the macros stay within that. A message of this kind has such a value,
    // which is read whatever its alignment is.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while let Some(found) = header.as_ref() {
            let data = libc::CMSG_DATA(header);
            match (found.cmsg_level, found.cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                    // The local one, also of a datagram to many.
                    let ip = Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes());
                    return (!ip.is_unspecified()).then_some(Asked { ip: ip.into(), interface: 0 });
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    let ip = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                    let interface = if ip.is_unicast_link_local() { info.ipi6_ifindex } else { 0 };
                    let usable = !ip.is_unspecified() && !ip.is_multicast();
                    return usable.then_some(Asked { ip: ip.into(), interface });
                }
                _ => header = libc::CMSG_NXTHDR(message, header),
            }
        }
    }
    None
}

fn address(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the storage is large and aligned enough for each kind of address, and its
            // family says that it is of this one.
            let found = unsafe { &*std::ptr::from_ref(name).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(found.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddrV4::new(ip, u16::from_be(found.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let found = unsafe { &*std::ptr::from_ref(name).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(found.sin6_addr.s6_addr);
            let port = u16::from_be(found.sin6_port);
            Some(SocketAddrV6::new(ip, port, found.sin6_flowinfo, found.sin6_scope_id).into())
        }
        _ => None,
    }
}

fn family(number: libc::c_int) -> libc::sa_family_t {
    libc::sa_family_t::try_from(number).unwrap_or(0)
}

/// Writes an address; gives its length.
fn put_address(name: &mut libc::sockaddr_storage, to: SocketAddr) -> libc::socklen_t {
    match to {
        SocketAddr::V4(to) => {
            // SAFETY: the storage is large and aligned enough for each kind of address.
            let place = unsafe { &mut *from_mut(name).cast::<libc::sockaddr_in>() };
            place.sin_family = family(libc::AF_INET);
            place.sin_port = to.port().to_be();
            place.sin_addr.s_addr = u32::from_ne_bytes(to.ip().octets());
            length(size_of::<libc::sockaddr_in>())
        }
        SocketAddr::V6(to) => {
            // SAFETY: as above.
            let place = unsafe { &mut *from_mut(name).cast::<libc::sockaddr_in6>() };
            place.sin6_family = family(libc::AF_INET6);
            place.sin6_port = to.port().to_be();
            place.sin6_flowinfo = to.flowinfo();
            place.sin6_addr.s6_addr = to.ip().octets();
            place.sin6_scope_id = to.scope_id();
            length(size_of::<libc::sockaddr_in6>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::time::Duration;

    #[test]
    fn the_answer_comes_from_the_address_that_was_asked() {
        for (all, asked) in
            [("0.0.0.0:0", "127.0.0.9"), ("[::]:0", "::1"), ("127.0.0.1:0", "127.0.0.1")]
        {
            let server = UdpSocket::bind(all).unwrap();
            let bound = server.local_addr().unwrap();
            tell(&server, bound).unwrap();
            let asked: IpAddr = asked.parse().unwrap();
            let loopback: IpAddr = if asked.is_ipv4() {
                Ipv4Addr::LOCALHOST.into()
            } else {
                Ipv6Addr::LOCALHOST.into()
            };
            let client = UdpSocket::bind((loopback, 0)).unwrap();
            client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            client.connect((asked, bound.port())).unwrap();
            client.send(b"ask").unwrap();
            let mut buffer = [0; 16];
            // On the loopback it is there when `send` returns.
            let found = receive(&server, &mut buffer).unwrap();
            assert_eq!((found.count, found.client), (3, client.local_addr().unwrap()));
            assert_eq!(found.asked.is_some(), bound.ip().is_unspecified());
            answer(&server, &buffer[..found.count], found.client, found.asked).unwrap();
            assert_eq!(client.recv(&mut buffer).unwrap(), 3);
            assert!(receive(&server, &mut buffer).is_err());
        }
    }
}
