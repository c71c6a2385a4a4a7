//! The figures of `docs/network.md`:
//! `cargo test --release -p kiln-run net::tests::measure -- --ignored --nocapture`

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use super::world::{Namespace, Server, World, on_a_host};
use crate::net::attach::attach_to;

#[test]
#[ignore = "a measurement, not a check"]
fn figures() {
    on_a_host(|| {
        let world = World::new();
        let namespaces: Vec<_> = (1..=200).map(|n| (n, Namespace::new())).collect();
        let attach = sample(namespaces.iter(), |(n, namespace)| {
            attach_to(namespace.fd(), &world.host.net_spec(*n).unwrap()).unwrap();
        });
        eprintln!("attach                         {attach}");
        drop(namespaces);

        let bare = Namespace::new();
        bare.run(|| {
            let (from, to) = (Namespace::new(), Namespace::new());
            for (n, namespace) in [(1, &from), (2, &to)] {
                attach_to(namespace.fd(), &world.host.net_spec(n).unwrap()).unwrap();
            }
            let to_address = world.host.range().instance(2).unwrap();
            let _serving = to.run(|| Server::start("x", 80));
            from.run(|| round_trips("no rules at all", to_address));
        });

        let (client, server) = (world.instance(301), world.instance(302));
        let _serving = server.serve("x", 80);
        world.map(0, &server);
        let address = world.virtual_address(0);
        let moves = sample(0..500, |n| {
            let to = world.host.range().instance(400 + n % 2).unwrap();
            world.host.translate(&[(world.virtual_address(1), Some(to))]).unwrap();
        });
        eprintln!("move one address               {moves}");
        for size in [12, 200] {
            let resets = sample(0..100, |round| {
                let map: Vec<(Ipv4Addr, Ipv4Addr)> = (1..size)
                    .map(|n| {
                        let instance =
                            world.host.range().instance(u32::from(400 + n + round % 2)).unwrap();
                        (world.virtual_address(n), instance)
                    })
                    .chain([(address, server.spec.address)])
                    .collect();
                world.host.translate_all(&map).unwrap();
            });
            eprintln!("replace all of {size:<3} addresses   {resets}");
        }
        eprintln!(
            "ensure, nothing changed        {}",
            sample(0..200, |_| {
                world.host.ensure().unwrap();
            })
        );
        let first = sample(501..601, |n| {
            let fresh = world.instance(n);
            let begun = Instant::now();
            fresh.ask(address, 80).unwrap();
            assert!(begun.elapsed() < Duration::from_millis(500), "a first packet was lost");
        });
        eprintln!("namespace, attach, first answer {first}");
        client.namespace.run(|| {
            round_trips("direct", server.spec.address);
            round_trips("virtual", address);
            for (name, to) in [("direct", server.spec.address), ("virtual", address)] {
                for _ in 0..2 {
                    let connects = sample(0..3000, |_| {
                        TcpStream::connect((to, 80)).unwrap();
                    });
                    eprintln!("connect and close, {name:<8}    {connects}");
                }
            }
        });
        let begun = Instant::now();
        world.host.teardown().unwrap();
        eprintln!("teardown                       {:.1?}", begun.elapsed());
    });
}

/// One line there and back on an open connection, and a new connection each time.
fn round_trips(name: &str, to: Ipv4Addr) {
    let mut stream = TcpStream::connect((to, 80)).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    answers.read_line(&mut line).unwrap();
    let trips = sample(0..10_000, |_| {
        stream.write_all(b"x\n").unwrap();
        answers.read_line(&mut line).unwrap();
    });
    eprintln!("round trip, {name:<16}   {trips}");
}

struct Spread(Vec<Duration>);

fn sample<T>(items: impl Iterator<Item = T>, mut work: impl FnMut(T)) -> Spread {
    let mut times: Vec<_> = items
        .map(|item| {
            let begun = Instant::now();
            work(item);
            begun.elapsed()
        })
        .collect();
    times.sort();
    Spread(times)
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = |percent: usize| self.0[(self.0.len() - 1) * percent / 100];
        write!(f, "p50 {:.0?}, p90 {:.0?}, p99 {:.0?}", at(50), at(90), at(99))
    }
}
