//! Where the processes of a network namespace listen, as the kernel lists it.

use std::collections::BTreeSet;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use kiln_core::compose::Protocol;

/// One socket that takes what comes from anybody.
pub type Listening = (Protocol, SocketAddr);

/// No more of a list is read: programs may open what they like.
const MOST: u64 = 1 << 20;
/// States of a socket, of linux/net/tcp_states.h: of datagrams those that are not connected.
const LISTEN: &str = "0A";
const CLOSE: &str = "07";

/// What listens in the network of process `pid`.
///
/// # Errors
/// Nobody has that pid.
pub(crate) fn of_process(pid: i32) -> io::Result<BTreeSet<Listening>> {
    let mut all = BTreeSet::new();
    for (name, protocol, state) in [
        ("tcp", Protocol::Tcp, LISTEN),
        ("tcp6", Protocol::Tcp, LISTEN),
        ("udp", Protocol::Udp, CLOSE),
        ("udp6", Protocol::Udp, CLOSE),
    ] {
        let file = match std::fs::File::open(format!("/proc/{pid}/net/{name}")) {
            // A kernel without IPv6 has no such list.
            Err(error) if name.ends_with('6') && error.kind() == io::ErrorKind::NotFound => {
                continue;
            }
            file => file?,
        };
        let mut text = String::new();
        file.take(MOST).read_to_string(&mut text)?;
        all.extend(text.lines().filter_map(|line| Some((protocol, listener(line, state)?))));
    }
    Ok(all)
}

/// `sl local_address rem_address st …`; addresses are words in the machine's own order.
fn listener(line: &str, state: &str) -> Option<SocketAddr> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let (local, _) = (words.next()?, words.next()?);
    if words.next()? != state {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(address.get(at..at + 8)?, 16).ok();
    let ip = if address.len() == 8 {
        IpAddr::V4(Ipv4Addr::from(word(0)?.to_ne_bytes()))
    } else {
        let mut bytes = [0; 16];
        for (at, part) in bytes.chunks_exact_mut(4).enumerate() {
            part.copy_from_slice(&word(at * 8)?.to_ne_bytes());
        }
        IpAddr::V6(Ipv6Addr::from(bytes))
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    #[test]
    fn what_this_process_listens_on_is_found() {
        let four = TcpListener::bind("127.0.0.1:0").unwrap();
        let six = TcpListener::bind("[::1]:0").unwrap();
        let datagrams = UdpSocket::bind("0.0.0.0:0").unwrap();
        let connected = TcpStream::connect(four.local_addr().unwrap()).unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        let found = of_process(pid).unwrap();
        assert!(found.contains(&(Protocol::Tcp, four.local_addr().unwrap())));
        assert!(found.contains(&(Protocol::Tcp, six.local_addr().unwrap())));
        assert!(found.contains(&(Protocol::Udp, datagrams.local_addr().unwrap())));
        assert!(!found.contains(&(Protocol::Tcp, connected.local_addr().unwrap())));
        assert!(of_process(-1).is_err());
    }

    #[test]
    fn what_makes_no_sense_is_nothing() {
        for line in [
            "",
            "sl local_address rem_address st",
            "0: 0100007F 0 0A",
            "0: 01:0016 0 0A",
            "0: 0100007F:x 0 0A",
        ] {
            assert_eq!(listener(line, LISTEN), None, "{line}");
        }
    }
}
