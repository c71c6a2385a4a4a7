//! Published ports: datagrams, several addresses, numbers that the system chooses, ports at which
//! nobody answers, and when a service counts as ready.

mod common;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use common::{PATIENCE, answer, instance, page, project, wait_for_answer, world};
use kiln_testkit::{Client, Port, Project, World, datagrams, wait_until};
use serde_json::Value;

/// Clients of an echo over UDP.
struct Asker(UdpSocket);

impl Asker {
    fn new(port: &Port) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect((Ipv4Addr::LOCALHOST, port.number())).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    fn ask(&self, bytes: &[u8]) -> Vec<u8> {
        let mut buffer = vec![0; 70_000];
        self.0.send(bytes).unwrap();
        let count = self.0.recv(&mut buffer).unwrap();
        buffer.truncate(count);
        buffer
    }

    fn says(&self, text: &str) -> String {
        String::from_utf8(self.ask(text.as_bytes())).unwrap()
    }
}

fn echoes(world: &World, name: &str, port: &Port, rest: &str) -> Project {
    let compose = format!(
        "services:
  echo:
    build: ./echo
    command: [/datagrams, '5353', one]
    ports: [{{ target: 5353, published: {port}, protocol: udp{rest} }}]
"
    );
    let project = project(world, name, &compose);
    project.write_program("echo/datagrams", datagrams::program());
    project.write("echo/Dockerfile", "FROM scratch\nCOPY datagrams /\n");
    project
}

#[test]
fn datagrams_go_through_and_a_client_stays_with_its_release() {
    let world = world();
    let port = Port::claim();
    let project = echoes(&world, "udp", &port, "");
    let up = world.kiln_in(&project, ["up"]).expect_done();
    assert!(up.stdout.contains(&format!("localhost:{port}/udp")), "{up}");
    let early = Asker::new(&port);
    assert_eq!(early.says("a"), "one a");
    let long: Vec<u8> = (0..60_000_u32).map(|n| (n % 251) as u8).collect();
    assert_eq!(early.ask(&long), [b"one ".as_slice(), &long].concat());
    let six = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
    six.set_read_timeout(Some(PATIENCE)).unwrap();
    six.send_to(b"six", (Ipv6Addr::LOCALHOST, port.number())).unwrap();
    let mut buffer = [0; 16];
    assert_eq!(six.recv(&mut buffer).unwrap(), 7);

    project.edit("compose.yaml", "one]", "two]");
    world.kiln_in(&project, ["up"]).expect_done();
    assert_eq!(Asker::new(&port).says("b"), "two b");
    assert_eq!(early.says("c"), "one c", "half a conversation is of no use to the next release");
    // Until the drain is over, which is 10 s in `dev`.
    early.0.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    wait_until(PATIENCE, "the end of the drain", || {
        let _ = early.0.send(b"d");
        let mut buffer = [0; 16];
        let count = early.0.recv(&mut buffer).ok()?;
        (&buffer[..count] == b"two d").then_some(())
    });
    // The port is the front's as long as somebody serves there, and nobody's afterwards.
    world.kiln_in(&project, ["down"]).expect_done();
    assert!(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port.number())).is_ok());
}

#[test]
fn questions_of_dns_move_at_once() {
    let world = world();
    let port = Port::claim();
    let project = echoes(&world, "dns", &port, ", app_protocol: dns");
    world.kiln_in(&project, ["up"]).expect_done();
    let client = Asker::new(&port);
    assert_eq!(client.says("a"), "one a");
    project.edit("compose.yaml", "one]", "two]");
    world.kiln_in(&project, ["up"]).expect_done();
    assert_eq!(client.says("b"), "two b");
    world.kiln_in(&project, ["rollback"]).expect_done();
    assert_eq!(client.says("c"), "one c");
}

/// What `ps --json` says of the ports: target and where the front listens.
fn told(world: &World, project: &Project) -> Vec<(u64, Vec<SocketAddr>)> {
    let ps = world.kiln_in(project, ["ps", "--json"]).expect_done().json();
    let bound = |port: &Value| -> Vec<SocketAddr> {
        let all = port["bound"].as_array().cloned().unwrap_or_default();
        all.iter().map(|at| at.as_str().unwrap().parse().unwrap()).collect()
    };
    let ports = ps["ports"].as_array().cloned().unwrap_or_default();
    ports.iter().map(|port| (port["target"].as_u64().unwrap(), bound(port))).collect()
}

#[test]
fn several_addresses_and_numbers_of_the_systems_choice() {
    let world = world();
    let ports: Vec<Port> = (0..3).map(|_| Port::claim()).collect();
    let [same, range, other] = ports.as_slice() else { panic!() };
    let text = format!(
        "services:
  web:
    build: ./web
    ports:
      - '127.0.0.1:{same}:8080'
      - '[::1]:{same}:8080'
      - '127.0.0.1::8080'
      - '[::1]::8080'
      - '8080'
      - '${{NO_SUCH:-}}:{range}:8080'
      - '127.0.0.2:{other}:8080'
"
    );
    let project = project(&world, "mixed", &text);
    page(&project, "web", "here");
    let up = world.kiln_in(&project, ["up"]).expect_done();
    let first = told(&world, &project);
    assert_eq!(first.len(), 7, "{first:?}");
    for (_, bound) in &first {
        assert!(!bound.is_empty(), "{first:?}");
        for at in bound {
            let at = match at {
                at if !at.ip().is_unspecified() => *at,
                SocketAddr::V4(at) => SocketAddr::from((Ipv4Addr::LOCALHOST, at.port())),
                SocketAddr::V6(at) => SocketAddr::from((Ipv6Addr::LOCALHOST, at.port())),
            };
            assert_eq!(Client::new(at).get("/").unwrap().text(), "here", "{at}");
            assert!(up.stdout.contains(&at.port().to_string()), "{at}: {up}");
        }
    }
    let chosen: std::collections::BTreeSet<u16> =
        first[2..5].iter().map(|(_, bound)| bound[0].port()).collect();
    assert_eq!(chosen.len(), 3, "each has its own: {first:?}");
    // They stay what they are, over a change and over the agent's death.
    page(&project, "web", "there");
    world.kiln_in(&project, ["up"]).expect_done();
    assert_eq!(told(&world, &project), first);
    common::kill(world.role("agent").pid.cast_signed());
    assert_eq!(told(&world, &project), first);
    let status = world.kiln_in(&project, ["status"]).expect_done();
    for port in chosen {
        assert!(status.stdout.contains(&port.to_string()), "{status}");
    }
}

/// A service that answers on 8080, and on 9229 once `/tmp/go` is there.
fn debugged(world: &World, name: &str, ports: &str) -> Project {
    let text = format!(
        "services:
  web:
    image: busybox
    command: [sh, -c, 'mkdir /tmp/w; echo here > /tmp/w/index.html; busybox httpd -p 8080 -h /tmp/w;
      until [ -e /tmp/go ]; do sleep 0.1; done; exec busybox httpd -f -p 9229 -h /tmp/w']
    {ports}
"
    );
    project(world, name, &text)
}

#[test]
fn a_port_that_nobody_answers_is_opened_when_somebody_does() {
    let world = world();
    let (port, debug) = (Port::claim(), Port::claim());
    let project = debugged(&world, "debug", &format!("ports: ['{port}:8080', '{debug}:9229']"));
    let up = world.kiln_in(&project, ["up"]).expect_done();
    assert_eq!(answer(&port), "here\n");
    assert!(up.stdout.contains("not open: nothing accepts on 9229 yet"), "{up}");
    let shut = || TcpStream::connect((Ipv4Addr::LOCALHOST, debug.number())).is_err();
    assert!(shut(), "a client is told at once");
    world.kiln_in(&project, ["exec", "-T", "web", "touch", "/tmp/go"]).expect_done();
    wait_for_answer(&debug, "here\n");
    assert!(told(&world, &project).iter().all(|(_, bound)| !bound.is_empty()));
    // From now on it belongs to what serves: a release without it does not follow.
    project.edit("compose.yaml", "-p 9229", "-p 9230");
    project.edit("compose.yaml", "until [ -e /tmp/go ]", "until true");
    let refused = world.kiln_in(&project, ["up", "--timeout", "3"]).expect_code(4);
    assert!(
        refused.stderr.contains("nothing accepts on 9229/tcp, as the release before"),
        "{refused}"
    );
    assert!(refused.stderr.contains(":9230/tcp"), "{refused}");
    assert_eq!((answer(&port), answer(&debug)), ("here\n".into(), "here\n".into()));
}

#[test]
fn an_exposed_port_that_nobody_answers_is_nobodys_loss() {
    let world = world();
    let port = Port::claim();
    let project =
        debugged(&world, "exposed", &format!("ports: ['{port}:8080']\n    expose: [9229]"));
    world.kiln_in(&project, ["up"]).expect_done();
    assert_eq!(answer(&port), "here\n");
}

#[test]
fn what_stays_silent_says_where_it_listens_instead() {
    let world = world();
    let port = Port::claim();
    let text = format!(
        "services:
  web:
    image: busybox
    command: [sh, -c, 'mkdir /tmp/w; echo here > /tmp/w/index.html; busybox httpd -p 127.0.0.1:3000;
      until [ -e /tmp/go ]; do sleep 0.1; done; exec busybox httpd -f -p 8080 -h /tmp/w']
    ports: ['{port}:8080']
"
    );
    let project = project(&world, "silent", &text);
    let up = world.kiln_in(&project, ["up", "--timeout", "2"]).expect_done();
    for part in ["`web` is silent", "8080/tcp", "127.0.0.1:3000/tcp", "listen on 0.0.0.0"] {
        assert!(up.stderr.contains(part), "{part}: {up}");
    }
    let found = instance(&world, &project, "web", "active").unwrap();
    assert_eq!(found["state"], "silent");
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port.number())).is_err());
    // Still so after the agent's death; and then it speaks.
    common::kill(world.role("agent").pid.cast_signed());
    assert_eq!(instance(&world, &project, "web", "active").unwrap()["state"], "silent");
    world.kiln_in(&project, ["exec", "-T", "web", "touch", "/tmp/go"]).expect_done();
    wait_for_answer(&port, "here\n");
    assert_eq!(instance(&world, &project, "web", "active").unwrap()["state"], "healthy");
    // What served is not given up for what is silent, in `dev` neither.
    project.edit("compose.yaml", "-p 8080", "-p 127.0.0.1:8080");
    project.edit("compose.yaml", "until [ -e /tmp/go ]", "until true");
    let refused = world.kiln_in(&project, ["up", "--timeout", "2"]).expect_code(4);
    assert!(refused.stderr.contains("127.0.0.1:8080/tcp"), "{refused}");
    assert_eq!(answer(&port), "here\n");
}
