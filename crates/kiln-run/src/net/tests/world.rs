//! A host, instances and an outside, all in network namespaces of this process.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use tempfile::TempDir;

use crate::net::attach::attach_to;
use crate::net::link::Pair;
use crate::net::message::Batch;
use crate::net::netlink::Socket;
use crate::net::{Host, NetSpec, Networks};

/// Longer than anything here takes, shorter than a TCP handshake that lost its first packet.
pub(super) const PATIENCE: Duration = Duration::from_millis(2500);

/// A network namespace.
pub(super) struct Namespace(OwnedFd);

impl Namespace {
    pub(super) fn new() -> Self {
        std::thread::spawn(|| {
            leave_namespace();
            loopback_up();
            Self(File::open("/proc/thread-self/ns/net").unwrap().into())
        })
        .join()
        .unwrap()
    }

    /// Runs `work` on a thread in this namespace.
    pub(super) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let fd = self.0.as_fd();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                move_into_link_name_space(fd, Some(LinkNameSpaceType::Network)).unwrap();
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    pub(super) fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn leave_namespace() {
    // SAFETY: only the network namespace of this thread changes, no file descriptors or memory.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("tests of the network need root");
}

fn loopback_up() {
    let mut batch = Batch::new();
    batch.up(1);
    Socket::route().unwrap().run(batch).unwrap();
}

/// Runs `test` on a thread whose network namespace is a host of its own.
pub(super) fn on_a_host(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        leave_namespace();
        loopback_up();
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A root with its network, on the host that the thread is.
pub(super) struct World {
    pub(super) run: TempDir,
    pub(super) root: TempDir,
    pub(super) host: Host,
}

impl World {
    pub(super) fn new() -> Self {
        let run = tempfile::tempdir().unwrap();
        let root = tempfile::tempdir().unwrap();
        let host = Host::setup_in(run.path(), root.path()).unwrap();
        Self { run, root, host }
    }

    pub(super) fn instance(&self, n: u32) -> Instance {
        self.instance_of(n, Some("all"))
    }

    pub(super) fn instance_of(&self, n: u32, group: Option<&str>) -> Instance {
        self.instance_on(n, group.map(Networks::one).as_ref())
    }

    pub(super) fn instance_on(&self, n: u32, networks: Option<&Networks>) -> Instance {
        let namespace = Namespace::new();
        let address = self.host.range().instance(n).unwrap();
        let spec = self.host.admit(address, networks).unwrap();
        attach_to(namespace.fd(), &spec).unwrap();
        Instance { namespace, spec }
    }

    pub(super) fn virtual_address(&self, n: u16) -> Ipv4Addr {
        self.host.range().virtual_address(n).unwrap()
    }

    pub(super) fn map(&self, n: u16, to: &Instance) {
        self.host.translate(&[(self.virtual_address(n), Some(to.spec.address))]).unwrap();
    }
}

/// A namespace with an attached interface.
pub(super) struct Instance {
    pub(super) namespace: Namespace,
    pub(super) spec: NetSpec,
}

impl Instance {
    pub(super) fn serve(&self, name: &'static str, port: u16) -> Server {
        self.namespace.run(|| Server::start(name, port))
    }

    /// What a server says to a connection from here.
    pub(super) fn ask(&self, to: Ipv4Addr, port: u16) -> std::io::Result<String> {
        self.namespace.run(|| ask(to, port))
    }
}

/// Connects and reads the server's greeting.
pub(super) fn ask(to: Ipv4Addr, port: u16) -> std::io::Result<String> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from((to, port)), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

/// Greets each connection with its name and the client's address, then echoes lines with its name;
/// answers each datagram with its name.
pub(super) struct Server {
    tcp: TcpListener,
    udp: UdpSocket,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// In the thread's namespace, on TCP and UDP.
    pub(super) fn start(name: &'static str, port: u16) -> Self {
        let tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
        let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
        let (listener, socket) = (tcp.try_clone().unwrap(), udp.try_clone().unwrap());
        let accepting = std::thread::spawn(move || {
            while let Ok((stream, peer)) = listener.accept() {
                std::thread::spawn(move || greet(name, stream, peer));
            }
        });
        let answering = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer)
                && length > 0
            {
                let _ = socket.send_to(name.as_bytes(), peer);
            }
        });
        Self { tcp, udp, threads: vec![accepting, answering] }
    }
}

fn greet(name: &str, mut stream: TcpStream, peer: SocketAddr) {
    let _ = stream.set_nodelay(true);
    let Ok(copy) = stream.try_clone() else { return };
    let mut say = |what: &str| stream.write_all(format!("{name} {what}\n").as_bytes());
    let _ = say(&peer.ip().to_string());
    for line in BufReader::new(copy).lines().map_while(Result::ok) {
        if say(&line).is_err() {
            return;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.tcp, rustix::net::Shutdown::Both);
        let _ = rustix::net::shutdown(&self.udp, rustix::net::Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

pub(super) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(super) const UPLINK: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// Gives the host an uplink to a namespace that knows only the host's own address.
pub(super) fn outside() -> Namespace {
    let namespace = Namespace::new();
    let mut host = Socket::route().unwrap();
    let mut batch = Batch::new();
    let pair = Pair {
        host_name: "up0",
        host_mac: [2, 0, 0, 0, 0, 1],
        inner_name: "eth0",
        inner_mac: [2, 0, 0, 0, 0, 2],
        group: 0,
        mtu: Some(1400),
    };
    batch.new_pair(&pair, namespace.fd());
    host.run(batch).unwrap();
    let configure = |name: &str, own: Ipv4Addr, other: Ipv4Addr, default: bool| {
        let mut socket = Socket::route().unwrap();
        let index = rustix::net::netdevice::name_to_index(&socket, name).unwrap();
        let mut batch = Batch::new();
        batch.up(index);
        batch.address(index, own, false);
        batch.link_route(index, other, None);
        if default {
            batch.default_route(index, other);
        }
        socket.run(batch).unwrap();
        socket.synchronise_link(index).unwrap();
    };
    configure("up0", UPLINK, OUTSIDE, true);
    namespace.run(|| configure("eth0", OUTSIDE, UPLINK, false));
    // The end that came up first transmits only now.
    let index = rustix::net::netdevice::name_to_index(&host, "up0").unwrap();
    host.synchronise_link(index).unwrap();
    namespace
}

/// Whether a program for checking is there; a reason to skip is printed if not, and
/// `KILN_TEST_REQUIRE=1` makes that a failure.
pub(super) fn have(program: &str) -> bool {
    if Command::new(program).arg("--version").output().is_ok() {
        return true;
    }
    let require = std::env::var_os("KILN_TEST_REQUIRE").is_some_and(|value| value == "1");
    assert!(!require, "{program} is not installed, and KILN_TEST_REQUIRE=1");
    eprintln!("skipped: {program} is not installed");
    false
}

/// Runs a program in the thread's namespace and returns what it printed.
pub(super) fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits for `condition`, at most five seconds.
pub(super) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        std::thread::yield_now();
    }
}

/// All that a host's network consists of, to compare.
pub(super) fn snapshot() -> Vec<String> {
    let mut route = Socket::route().unwrap();
    let mut all: Vec<_> = route.links().unwrap().into_iter().map(|link| link.name).collect();
    all.extend(route.routes().unwrap().iter().map(|route| format!("{route:?}")));
    let mut nft = Socket::netfilter().unwrap();
    for chain in nft.base_chains().unwrap() {
        all.push(format!("{} {}", chain.name, chain.hook));
        let rules = nft.rules(&chain.name).unwrap();
        all.extend(rules.iter().map(|rule| format!("{} {rule:?}", chain.name)));
    }
    all
}
