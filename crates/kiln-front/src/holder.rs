//! Who holds a port: `/proc/net/{tcp,tcp6,udp,udp6}` tells the socket's inode, `/proc/PID/fd` the
//! process. Format: proc_net_tcp.rst of the kernel.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::table::Protocol;
use crate::wire::Holder;

/// The process whose socket keeps `addr` from being bound, if it can be found.
pub(crate) fn find(addr: SocketAddr, protocol: Protocol) -> Option<Holder> {
    let tables = match protocol {
        Protocol::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
        Protocol::Udp => ["/proc/net/udp", "/proc/net/udp6"],
    };
    let state = match protocol {
        Protocol::Tcp => "0A",
        Protocol::Udp => "07",
    };
    tables
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|text| inodes(&text, state, addr))
        .find_map(process_of)
}

/// Inodes of the sockets in `table` that are in `state` and overlap with `addr`.
fn inodes(table: &str, state: &str, addr: SocketAddr) -> Vec<u64> {
    let found = table.lines().skip(1).filter_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let local = parse_addr(words.get(1)?)?;
        let conflict = local.port() == addr.port() && overlap(local.ip(), addr.ip());
        let inode = words.get(9)?.parse().ok()?;
        (conflict && *words.get(3)? == state && inode != 0).then_some(inode)
    });
    found.collect()
}

/// Whether a socket on one address keeps another from being bound to the other.
pub(crate) fn overlap(theirs: IpAddr, ours: IpAddr) -> bool {
    match (theirs, ours) {
        // A dual-stack `[::]` has the IPv4 port as well.
        (IpAddr::V6(theirs), IpAddr::V4(_)) => theirs.is_unspecified(),
        (IpAddr::V4(_), IpAddr::V6(_)) => false,
        _ => theirs == ours || theirs.is_unspecified() || ours.is_unspecified(),
    }
}

/// `0100007F:1F90`: 32-bit words in host order, port in hex.
fn parse_addr(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let word = u32::from_str_radix(ip.get(at * 8..at * 8 + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (at, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(at)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

fn process_of(inode: u64) -> Option<Holder> {
    let link = format!("socket:[{inode}]");
    let pids = fs::read_dir("/proc").ok()?.flatten();
    let mut pids: Vec<u32> =
        pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids.into_iter().find_map(|pid| {
        let mut fds = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
        fds.find(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == link.as_str()))?;
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        Some(Holder { pid, comm: comm.trim_end().to_owned() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};

    #[test]
    fn finds_this_process() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("[::1]:0").unwrap();
        let found = find(tcp.local_addr().unwrap(), Protocol::Tcp).unwrap();
        assert_eq!(found.pid, std::process::id());
        assert!(!found.comm.is_empty());
        let everywhere = SocketAddr::new("0.0.0.0".parse().unwrap(), found_port(&tcp));
        assert_eq!(find(everywhere, Protocol::Tcp).unwrap().pid, std::process::id());
        assert!(find(udp.local_addr().unwrap(), Protocol::Udp).is_some());
        let other = SocketAddr::new("127.0.0.2".parse().unwrap(), found_port(&tcp));
        assert_eq!(find(other, Protocol::Tcp), None);
    }

    fn found_port(listener: &TcpListener) -> u16 {
        listener.local_addr().unwrap().port()
    }

    #[test]
    fn reads_the_kernels_form() {
        let v6 = "00000000000000000000000001000000:0050";
        assert_eq!(parse_addr("0100007F:1F90"), Some("127.0.0.1:8080".parse().unwrap()));
        assert_eq!(parse_addr(v6), Some("[::1]:80".parse().unwrap()));
        assert_eq!(parse_addr("7F:1"), None);
    }
}
