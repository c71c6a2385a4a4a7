//! Who reaches whom, and what happens when the map changes.

use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::world::{OUTSIDE, PATIENCE, Server, UPLINK, World, ask, on_a_host, outside};
use crate::net::message::Batch;
use crate::net::netlink::Socket;
use crate::net::{GATEWAY, Networks};

#[test]
fn instances_reach_one_another_by_virtual_address() {
    on_a_host(|| {
        let world = World::new();
        let (web, db) = (world.instance(1), world.instance(2));
        let _server = db.serve("db", 5432);
        let address = world.virtual_address(1);
        world.map(1, &db);

        let from_web = format!("db {}", web.spec.address);
        assert_eq!(web.ask(address, 5432).unwrap(), from_web, "TCP");
        assert_eq!(web.ask(db.spec.address, 5432).unwrap(), from_web, "directly");
        let (text, from) = web.namespace.run(|| datagram(&udp(), address, 5432)).unwrap();
        assert_eq!(
            (text.as_str(), from),
            ("db", address.into()),
            "UDP, answered by the address asked"
        );
        assert_eq!(
            db.ask(address, 5432).unwrap(),
            format!("db {GATEWAY}"),
            "an instance reaches itself"
        );
        assert_eq!(
            ask(db.spec.address, 5432).unwrap(),
            format!("db {GATEWAY}"),
            "and so does the host"
        );
        world.host.teardown().unwrap();
    });
}

#[test]
fn nothing_behind_an_address_is_said_at_once() {
    on_a_host(|| {
        let world = World::new();
        let web = world.instance(1);
        let unmapped = world.virtual_address(9);
        let begun = Instant::now();
        for _ in 0..20 {
            let refused = web.ask(unmapped, 80).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{refused}");
        }
        let refused = web.namespace.run(|| {
            let socket = udp();
            socket.connect((unmapped, 53)).unwrap();
            socket.send(b"?").unwrap();
            socket.recv(&mut [0; 9]).unwrap_err()
        });
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{refused}");
        let gone = world.host.range().instance(77).unwrap();
        let refused = web.ask(gone, 80).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::HostUnreachable, "{refused}");
        let refused = ask(gone, 80).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::HostUnreachable, "from the host: {refused}");
        assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
        world.host.teardown().unwrap();
    });
}

#[test]
fn the_map_moves_between_two_packets() {
    on_a_host(|| {
        let world = World::new();
        let (client, old, new) = (world.instance(1), world.instance(2), world.instance(3));
        let (_a, _b) = (old.serve("old", 80), new.serve("new", 80));
        let address = world.virtual_address(0);
        world.map(0, &old);

        let mut open = client.namespace.run(|| TcpStream::connect((address, 80)).unwrap());
        open.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answers = BufReader::new(open.try_clone().unwrap());
        let mut said = || {
            let mut line = String::new();
            answers.read_line(&mut line).unwrap();
            line
        };
        assert!(said().starts_with("old "));
        let socket = client.namespace.run(udp);
        assert_eq!(datagram(&socket, address, 80).unwrap().0, "old");

        world.map(0, &new);
        assert!(client.ask(address, 80).unwrap().starts_with("new "));
        writeln!(open, "still here").unwrap();
        assert_eq!(said(), "old still here\n", "what is open stays");
        world.host.settle().unwrap();
        assert_eq!(datagram(&socket, address, 80).unwrap().0, "new", "UDP follows");
        world.host.teardown().unwrap();
    });
}

#[test]
fn no_connection_is_lost_while_the_map_moves() {
    on_a_host(|| {
        let world = World::new();
        let (client, old, new) = (world.instance(1), world.instance(2), world.instance(3));
        let (_a, _b) = (old.serve("old", 80), new.serve("new", 80));
        let address = world.virtual_address(0);
        world.map(0, &old);
        world.map(1, &old);
        let done = AtomicBool::new(false);
        let count = AtomicUsize::new(0);
        let mut moves = 0;
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    client.namespace.run(|| {
                        while !done.load(Ordering::Relaxed) {
                            let said = ask(address, 80).expect("a connection was lost");
                            assert!(said.starts_with("old ") || said.starts_with("new "));
                            count.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                });
            }
            let deadline = Instant::now() + PATIENCE * 4;
            while (count.load(Ordering::Relaxed) < 400 || moves < 200) && Instant::now() < deadline
            {
                let to = if moves % 2 == 0 { &new } else { &old };
                if moves % 5 == 0 {
                    let all =
                        [(address, to.spec.address), (world.virtual_address(1), to.spec.address)];
                    world.host.translate_all(&all).unwrap();
                } else {
                    world.map(0, to);
                }
                moves += 1;
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(count.into_inner() >= 400 && moves >= 200, "too slow to tell");
        world.host.teardown().unwrap();
    });
}

#[test]
fn what_leaves_wears_the_hosts_address() {
    on_a_host(|| {
        let outside = outside();
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        let world = World::new();
        let notices = world.host.notices();
        assert!(notices.iter().any(|notice| notice.contains("ip_forward")), "{notices:?}");
        let again = crate::net::Host::setup_in(world.run.path(), world.root.path()).unwrap();
        assert!(again.notices().is_empty(), "{:?}", again.notices());
        let web = world.instance(1);
        assert_eq!(web.spec.mtu, Some(1400), "that of the uplink");
        let _server = outside.run(|| Server::start("outside", 80));
        assert_eq!(web.ask(OUTSIDE, 80).unwrap(), format!("outside {UPLINK}"));
        let (text, _) = web.namespace.run(|| datagram(&udp(), OUTSIDE, 80)).unwrap();
        assert_eq!(text, "outside");
        world.host.teardown().unwrap();
    });
}

#[test]
fn nobody_outside_reaches_an_instance() {
    on_a_host(|| {
        let outside = outside();
        let world = World::new();
        let web = world.instance(1);
        let _server = web.serve("web", 80);
        // Somebody on the uplink's network routes our addresses to us.
        let address = web.spec.address;
        outside.run(|| {
            let mut socket = Socket::route().unwrap();
            let index = rustix::net::netdevice::name_to_index(&socket, "eth0").unwrap();
            let mut batch = Batch::new();
            batch.default_route(index, UPLINK);
            socket.run(batch).unwrap();
        });
        let refused = outside.run(|| ask(address, 80)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::TimedOut, "{refused}");
        assert!(ask(address, 80).is_ok(), "while the host does");
        world.host.teardown().unwrap();
    });
}

#[test]
fn only_those_of_a_group_reach_one_another() {
    on_a_host(|| {
        let outside = outside();
        let world = World::new();
        let (a, a2) = (world.instance_of(1, Some("a")), world.instance_of(2, Some("a")));
        let (b, step) = (world.instance_of(3, Some("b")), world.instance_of(4, None));
        let _servers = [
            a.serve("a", 80),
            b.serve("b", 80),
            step.serve("step", 80),
            outside.run(|| Server::start("outside", 80)),
        ];
        world.map(0, &a);
        let of_a = world.virtual_address(0);
        assert!(a2.ask(a.spec.address, 80).is_ok() && a2.ask(of_a, 80).is_ok());
        for (who, name) in [(&b, "b"), (&step, "step")] {
            for to in [a.spec.address, of_a] {
                let refused = who.ask(to, 80).unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{name} to {to}");
                let refused = who.namespace.run(|| {
                    let socket = udp();
                    socket.connect((to, 80)).unwrap();
                    socket.send(b"?").unwrap();
                    socket.recv(&mut [0; 9]).unwrap_err()
                });
                assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{name} to {to}, UDP");
            }
            assert!(who.ask(OUTSIDE, 80).is_ok(), "{name} reaches the outside");
        }
        assert!(a.ask(b.spec.address, 80).is_err() && a.ask(step.spec.address, 80).is_err());
        assert!(ask(b.spec.address, 80).is_ok(), "the host, and so the front, reaches all");

        // An address changes hands while a datagram's sender goes on: no flow of before is a way in.
        let (text, from) = (a2.namespace.run(udp), a.spec.address);
        assert_eq!(datagram(&text, from, 80).unwrap().0, "a");
        world.host.admit(from, Some(&Networks::one("b"))).unwrap();
        assert!(datagram(&text, from, 80).is_err());
        world.host.expel(from).unwrap();
        assert!(b.ask(from, 80).is_err());

        // The next agent knows names, not numbers: all move in at once, wherever they were.
        let again = crate::net::Host::setup_in(world.run.path(), world.root.path()).unwrap();
        let named = |instance: &super::world::Instance, name: &str| {
            (instance.spec.address, Networks::one(name))
        };
        again.admit_all(&[named(&a, "b"), named(&a2, "a"), named(&b, "b")]).unwrap();
        assert!(b.ask(from, 80).is_ok() && a2.ask(from, 80).is_err());
        again.admit_all(&[named(&a, "a"), named(&a2, "a"), named(&b, "b")]).unwrap();
        assert!(a2.ask(from, 80).is_ok() && b.ask(from, 80).is_err());
        assert!(again.ensure().unwrap().is_empty(), "all is in order");
        drop(again);
        world.host.teardown().unwrap();
    });
}

#[test]
fn by_networks_and_nothing_leads_out_of_those_that_are_internal() {
    on_a_host(|| {
        let outside = outside();
        let world = World::new();
        let _server = outside.run(|| Server::start("outside", 80));
        let on = |names: &[&str], inside| Networks {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            inside,
        };
        let front = world.instance_on(1, Some(&on(&["front"], false)));
        let back = world.instance_on(2, Some(&on(&["back"], true)));
        let both = world.instance_on(3, Some(&on(&["front", "back"], false)));
        let _servers = [front.serve("front", 80), back.serve("back", 80), both.serve("both", 80)];
        let reaches = |from: &super::world::Instance, to: &super::world::Instance| {
            from.ask(to.spec.address, 80).is_ok()
        };
        let judge = || {
            assert!(reaches(&front, &both) && reaches(&both, &front));
            assert!(reaches(&back, &both) && reaches(&both, &back));
            assert!(!reaches(&front, &back) && !reaches(&back, &front));
            assert!(front.ask(OUTSIDE, 80).is_ok() && both.ask(OUTSIDE, 80).is_ok());
            let refused = back.ask(OUTSIDE, 80).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        };
        judge();
        // The host reaches what is inside, and is not reached from there.
        assert!(ask(back.spec.address, 80).is_ok());
        let host = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let port = host.local_addr().unwrap().port();
        assert!(both.namespace.run(|| connect(GATEWAY, port)).is_ok());
        let refused = back.namespace.run(|| connect(GATEWAY, port)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        // The next agent finds it so before it knows any name, and goes on with it.
        let again = crate::net::Host::setup_in(world.run.path(), world.root.path()).unwrap();
        judge();
        again
            .admit_all(&[
                (front.spec.address, on(&["front"], false)),
                (back.spec.address, on(&["back"], true)),
                (both.spec.address, on(&["front", "back"], false)),
            ])
            .unwrap();
        judge();
        assert!(again.ensure().unwrap().is_empty(), "all is in order");
        drop(again);
        world.host.teardown().unwrap();
    });
}

fn connect(to: Ipv4Addr, port: u16) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&(to, port).into(), PATIENCE)
}

#[test]
fn the_host_calls_by_virtual_address_too() {
    on_a_host(|| {
        let world = World::new();
        let _outside = outside();
        let (one, two) = (world.instance(1), world.instance(2));
        let _servers = [one.serve("one", 80), two.serve("two", 80)];
        let at = world.virtual_address(0);
        assert!(ask(at, 80).is_err(), "nobody is behind it");
        world.map(0, &one);
        assert!(ask(at, 80).unwrap().starts_with("one "));
        world.map(0, &two);
        assert!(ask(at, 80).unwrap().starts_with("two "));
        world.host.teardown().unwrap();
    });
}

#[test]
fn a_thousand_instances_cost_a_thousand_times_one() {
    on_a_host(|| {
        let world = World::new();
        let time = |from: u32, to: u32| {
            // Of the processor, for others have it, too.
            let spent = || rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            let begun = spent();
            for n in from..to {
                let address = world.host.range().instance(n).unwrap();
                world.host.admit(address, Some(&Networks::one("all"))).unwrap();
            }
            Duration::try_from(spent() - begun).unwrap()
        };
        // Quadratic, the second hundred would cost a hundred times the first.
        let first = time(1, 101);
        time(101, 900);
        let last = time(900, 1000);
        assert!(last < first * 20 + PATIENCE / 50, "{first:?}, then {last:?}");
        world.host.teardown().unwrap();
    });
}

#[test]
fn no_ipv6_comes_from_an_instance() {
    if !super::world::have("ip") {
        return;
    }
    on_a_host(|| {
        let world = World::new();
        let web = world.instance(1);
        super::world::sh("ip -6 address add fd00:1::1/128 dev lo nodad");
        let receiver = UdpSocket::bind(("::", 53)).unwrap();
        receiver.set_read_timeout(Some(PATIENCE / 5)).unwrap();
        // What takes CAP_NET_ADMIN here, CAP_NET_RAW can do by writing whole packets.
        web.namespace.run(|| {
            super::world::sh(
                "ip -6 address add fd00:2::2/64 dev eth0 nodad
                 ip -6 neighbour add fd00:2::1 lladdr ee:ee:ee:ee:ee:ee dev eth0
                 ip -6 route add fd00:1::1 via fd00:2::1 dev eth0",
            );
            let socket = UdpSocket::bind(("::", 0)).unwrap();
            socket.send_to(b"!", ("fd00:1::1", 53)).unwrap();
        });
        let heard = receiver.recv_from(&mut [0; 9]);
        assert!(heard.is_err(), "{heard:?}");
        let own = UdpSocket::bind(("::", 0)).unwrap();
        own.send_to(b"!", ("fd00:1::1", 53)).unwrap();
        assert!(receiver.recv_from(&mut [0; 9]).is_ok(), "the host's own does");
        world.host.teardown().unwrap();
    });
}

#[test]
fn the_hosts_loopback_is_out_of_reach_wherever_it_is_routed() {
    if !super::world::have("ip") {
        return;
    }
    on_a_host(|| {
        // What Kubernetes sets.
        std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").unwrap();
        let world = World::new();
        let web = world.instance(1);
        let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 53)).unwrap();
        receiver.set_read_timeout(Some(PATIENCE / 5)).unwrap();
        let everywhere = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 54)).unwrap();
        everywhere.set_read_timeout(Some(PATIENCE)).unwrap();
        // What takes CAP_NET_ADMIN here, CAP_NET_RAW can do by writing whole packets.
        web.namespace.run(|| {
            super::world::sh(
                "ip route del local 127.0.0.1 table local 2>/dev/null
                 ip route del local 127.0.0.0/8 table local 2>/dev/null
                 ip route add 127.0.0.1 via 169.254.1.1 dev eth0 onlink",
            );
            let socket = UdpSocket::bind((web.spec.address, 0)).unwrap();
            socket.send_to(b"!", (Ipv4Addr::LOCALHOST, 53)).unwrap();
            socket.send_to(b"!", (Ipv4Addr::new(169, 254, 1, 1), 54)).unwrap();
        });
        assert!(everywhere.recv_from(&mut [0; 9]).is_ok(), "what it serves on all addresses is");
        let heard = receiver.recv_from(&mut [0; 9]);
        assert!(heard.is_err(), "{heard:?}");
        let own = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        own.send_to(b"!", (Ipv4Addr::LOCALHOST, 53)).unwrap();
        assert!(receiver.recv_from(&mut [0; 9]).is_ok(), "the host's own does");
        world.host.teardown().unwrap();
    });
}

#[test]
fn nobody_sends_in_anothers_name() {
    on_a_host(|| {
        // Loose: what a host with several uplinks has.
        std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "2").unwrap();
        let world = World::new();
        let (web, db, thief) = (world.instance(1), world.instance(2), world.instance(3));
        let port = 53;
        let receiver = db.namespace.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap();
        receiver.set_read_timeout(Some(PATIENCE / 5)).unwrap();
        let send_as = |from: &super::world::Instance, source: Ipv4Addr| {
            from.namespace.run(|| {
                let socket = UdpSocket::bind((source, 0)).unwrap();
                socket.send_to(b"!", (db.spec.address, port)).unwrap();
            });
        };
        thief.namespace.run(|| {
            let mut socket = Socket::route().unwrap();
            let index = rustix::net::netdevice::name_to_index(&socket, "eth0").unwrap();
            let mut batch = Batch::new();
            batch.address(index, web.spec.address, false);
            socket.run(batch).unwrap();
        });
        send_as(&thief, web.spec.address);
        let heard = receiver.recv_from(&mut [0; 9]);
        assert!(heard.is_err(), "{heard:?}");
        send_as(&web, web.spec.address);
        assert_eq!(receiver.recv_from(&mut [0; 9]).unwrap().1.ip(), web.spec.address);
        world.host.teardown().unwrap();
    });
}

pub(super) fn udp() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Sends a datagram; the answer and who gave it.
pub(super) fn datagram(
    socket: &UdpSocket,
    to: Ipv4Addr,
    port: u16,
) -> std::io::Result<(String, std::net::IpAddr)> {
    socket.send_to(b"?", (to, port))?;
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer)?;
    Ok((String::from_utf8_lossy(&buffer[..length]).into_owned(), from.ip()))
}
