//! Free TCP ports for tests that run at the same time in several processes.

use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the range from which the kernel takes the ports of outgoing connections.
const RANGE: std::ops::Range<u16> = 20_000..30_000;

/// Where the next search begins; differs between processes, so that they rarely meet.
static NEXT: AtomicU16 = AtomicU16::new(0);

/// A port that is this test's alone until the value is dropped.
///
/// The claim is a socket in the abstract namespace: the kernel drops it with the process, so
/// nothing is left behind.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _claim: UnixListener,
}

impl Port {
    /// Claims a port on which nothing listens, neither on IPv4 nor on IPv6.
    ///
    /// # Panics
    /// If all of them are taken.
    pub fn claim() -> Self {
        let size = RANGE.end - RANGE.start;
        let start = (std::process::id() as u16).wrapping_mul(97);
        for _ in 0..size {
            let step = NEXT.fetch_add(1, Ordering::Relaxed);
            let number = RANGE.start + start.wrapping_add(step) % size;
            let Some(claim) = claim_name(number) else { continue };
            if is_free(number) {
                return Self { number, _claim: claim };
            }
        }
        panic!("no free port in {RANGE:?}")
    }

    /// The port's number.
    pub fn number(&self) -> u16 {
        self.number
    }
}

impl std::fmt::Display for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.number.fmt(f)
    }
}

fn claim_name(number: u16) -> Option<UnixListener> {
    let name = format!("kiln-test-port-{number}");
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(name).ok()?).ok()
}

/// Whether both families can be bound; a machine without IPv6 has only one to ask.
fn is_free(number: u16) -> bool {
    let v6 = TcpListener::bind((Ipv6Addr::UNSPECIFIED, number));
    let v6_free = v6.as_ref().map_or_else(|e| e.kind() != std::io::ErrorKind::AddrInUse, |_| true);
    drop(v6);
    v6_free && TcpListener::bind((Ipv4Addr::UNSPECIFIED, number)).is_ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn claims_are_distinct_and_free() {
        let ports: Vec<Port> = (0..50).map(|_| Port::claim()).collect();
        let numbers: BTreeSet<u16> = ports.iter().map(Port::number).collect();
        assert_eq!(numbers.len(), ports.len());
        for number in numbers {
            assert!(claim_name(number).is_none(), "port {number} could be claimed twice");
        }
    }

    #[test]
    fn a_dropped_claim_can_be_had_again() {
        let port = Port::claim();
        let number = port.number();
        drop(port);
        assert!(claim_name(number).is_some());
    }

    #[test]
    fn a_port_that_somebody_listens_on_is_not_free() {
        let port = Port::claim();
        let _listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port.number())).unwrap();
        assert!(!is_free(port.number()));
    }
}
