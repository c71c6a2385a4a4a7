//! Datagrams: who stays with whom, what is too long, and who floods.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use kiln_front::{App, Drain, Route};

use crate::root::{Root, udp, wait_for};

/// Answers each datagram by its name, a space, and what came.
fn echo(name: &'static str) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 70_000];
        while let Ok((count, from)) = socket.recv_from(&mut buffer) {
            let answer = [name.as_bytes(), b" ", &buffer[..count]].concat();
            // The answer to the longest one would be too long itself.
            let answer = &answer[..answer.len().min(65_507)];
            let _ = socket.send_to(answer, from);
        }
    });
    addr
}

struct Client {
    socket: UdpSocket,
    to: SocketAddr,
}

impl Client {
    fn of(to: SocketAddr) -> Self {
        let ip: IpAddr =
            if to.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { "::1".parse().unwrap() };
        let socket = UdpSocket::bind((ip, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Self { socket, to }
    }

    fn send(&self, bytes: &[u8]) {
        self.socket.send_to(bytes, self.to).unwrap();
    }

    fn receive(&self) -> Vec<u8> {
        let mut buffer = vec![0; 70_000];
        let (count, _) = self.socket.recv_from(&mut buffer).unwrap();
        buffer.truncate(count);
        buffer
    }

    fn ask(&self, text: &str) -> String {
        self.send(text.as_bytes());
        String::from_utf8(self.receive()).unwrap()
    }

    /// Asks until `answer` comes: any datagram may be lost where a queue is full, or at a cut.
    fn ask_until(&self, text: &str, answer: &str) {
        self.socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        wait_for(answer, || {
            self.send(text.as_bytes());
            let mut buffer = [0; 64];
            let heard = self.socket.recv(&mut buffer);
            heard.is_ok_and(|count| &buffer[..count] == answer.as_bytes())
        });
    }
}

#[test]
fn a_client_stays_with_its_release_while_it_speaks() {
    let (old, new) = (echo("old"), echo("new"));
    let mut root = Root::new();
    let addr = root.apply(vec![udp("game", old)])[0];
    let client = Client::of(addr);
    assert_eq!(client.ask("a"), "old a");
    assert_eq!(client.ask("b"), "old b");
    assert_eq!(root.apply(vec![udp("game", new)])[0], addr);
    // One that comes now goes to the release in force.
    assert_eq!(client.ask("c"), "old c");
    assert_eq!(Client::of(addr).ask("d"), "new d");
    // The cut at the end of the drain moves those that are left.
    let drained = root.front.drain(&Drain::of([old], Duration::ZERO)).unwrap();
    assert_eq!(drained.cut_connections, 1);
    client.ask_until("e", "new e");
}

#[test]
fn who_only_sends_stays_too_and_who_is_silent_moves_on() {
    let old = UdpSocket::bind("127.0.0.1:0").unwrap();
    let new = echo("new");
    let mut root = Root::new();
    let addr = root.apply(vec![udp("statistics", old.local_addr().unwrap())])[0];
    let client = Client::of(addr);
    let hears = || {
        old.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        old.recv_from(&mut [0; 9]).is_ok()
    };
    client.send(b"1");
    assert!(hears());
    root.apply(vec![udp("statistics", new)]);
    // Longer than a silent one is remembered, with no answer ever.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(7) {
        client.send(b"2");
        assert!(hears(), "after {:?}", begun.elapsed());
        std::thread::sleep(Duration::from_millis(250));
    }
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(client.ask("3"), "new 3");
}

#[test]
fn a_question_of_dns_moves_with_the_switch() {
    let (old, new) = (echo("old"), echo("new"));
    let mut root = Root::new();
    let route = |to| Route { app: App::Dns, ..udp("dns", to) };
    let addr = root.apply(vec![route(old)])[0];
    let client = Client::of(addr);
    assert_eq!(client.ask("a"), "old a");
    root.apply(vec![route(new)]);
    assert_eq!(client.ask("b"), "new b");
    root.apply(vec![route(old)]);
    assert_eq!(client.ask("c"), "old c");
}

#[test]
fn long_ones_pass_over_both_families() {
    let mut root = Root::new();
    let long = echo("l");
    for at in ["127.0.0.1:0", "[::1]:0"] {
        let route = Route { listen: vec![at.parse().unwrap()], ..udp("long", long) };
        let addr = root.apply(vec![route])[0];
        let client = Client::of(addr);
        for size in [0, 1, 1472, 1473, 9000, 65_505, 65_507] {
            let bytes: Vec<u8> = (0..size).map(|n: usize| (n % 251) as u8).collect();
            client.send(&bytes);
            let answer = client.receive();
            let expected = &[b"l ", bytes.as_slice()].concat();
            assert_eq!(answer.len(), expected.len().min(65_507), "{at} {size}");
            assert!(expected.starts_with(&answer), "{at} {size}");
        }
    }
}

#[test]
fn who_asks_one_of_several_addresses_is_answered_from_it() {
    let mut root = Root::new();
    let all = "0.0.0.0:0".parse().unwrap();
    let addr = root.apply(vec![Route { listen: vec![all], ..udp("all", echo("here")) }])[0];
    for asked in ["127.0.0.1", "127.0.0.2", "127.0.0.3"] {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        client.connect((asked, addr.port())).unwrap();
        for text in ["a", "b"] {
            client.send(text.as_bytes()).unwrap();
            let mut buffer = [0; 16];
            let count = client.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..count], format!("here {text}").as_bytes(), "{asked}");
        }
    }
    // One client that asks two of them hears each.
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    for asked in ["127.0.0.2", "127.0.0.3", "127.0.0.2"] {
        client.send_to(b"x", (asked, addr.port())).unwrap();
        let (_, from) = client.recv_from(&mut [0; 16]).unwrap();
        assert_eq!(from.ip().to_string(), asked);
    }
}

#[test]
fn that_nobody_listens_is_no_end() {
    // A port that is free, for a while.
    let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut root = Root::new();
    let addr = root.apply(vec![udp("late", free)])[0];
    let client = Client::of(addr);
    client.socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    for _ in 0..3 {
        client.send(b"?");
        let refused = client.socket.recv_from(&mut [0; 9]).unwrap_err();
        assert!(matches!(refused.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{refused}");
    }
    let server = UdpSocket::bind(free).unwrap();
    server.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    // The very next one gets through: an old error is no reason to lose it.
    client.send(b"now");
    let mut buffer = [0; 9];
    let (count, from) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..count], b"now");
    server.send_to(b"yes", from).unwrap();
    client.socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    assert_eq!(client.receive(), b"yes");
}

#[test]
fn a_flood_of_senders_costs_a_bounded_amount_and_leaves_conversations_alone() {
    let mut root = Root::new();
    let upstream = echo("flooded");
    let quiet = echo("quiet");
    let addrs = root.apply(vec![udp("flooded", upstream), udp("quiet", quiet)]);
    let talking = Client::of(addrs[0]);
    for n in 0..3 {
        assert_eq!(talking.ask(&n.to_string()), format!("flooded {n}"));
    }
    let pid = root.front.ping().unwrap().pid;
    let before = memory_kib(pid);
    let mut senders = (0_u32..).map(|n| {
        let [_, _, high, low] = n.to_be_bytes();
        Ipv4Addr::new(127, 1, high, low)
    });
    let mut flood = |count| {
        for from in senders.by_ref().take(count) {
            UdpSocket::bind((from, 0)).unwrap().send_to(b"x", addrs[0]).unwrap();
        }
        // As fast as it is worked off, so that each becomes a flow.
        std::thread::sleep(Duration::from_millis(1));
    };
    (0..188).for_each(|_| flood(64));
    let open = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    wait_for("no more room", || {
        flood(64);
        // An eighth of the 2,048 makes room at a time.
        open() > 1792
    });
    assert!(open() < 2048 + 200, "{} descriptors", open());
    let grown = memory_kib(pid).saturating_sub(before);
    assert!(grown < 32 << 10, "{grown} KiB more");
    talking.ask_until("still", "flooded still");
    Client::of(addrs[1]).ask_until("here", "quiet here");
    // Who comes now is served, too.
    Client::of(addrs[0]).ask_until("late", "flooded late");
}

fn memory_kib(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
