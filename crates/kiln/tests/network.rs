//! The way in, the ways between, and the way out: published ports, what is spoken over them, names
//! inside a slot, and outgoing traffic beside a strict firewall.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::{PATIENCE, answer, page, project, world};
use kiln_testkit::{Call, Client, Port, Probe, Project, Running, World, http, server, wait_until};

#[test]
fn ports_are_published_where_the_file_says() {
    let world = world();
    let ports: Vec<Port> = (0..4).map(|_| Port::claim()).collect();
    let [both, v4, v6, long] = ports.as_slice() else { panic!() };
    let project = project(
        &world,
        "published",
        &format!(
            "services:
  web:
    build: ./web
    ports:
      - '{both}:8080'
      - '127.0.0.1:{v4}:8080'
      - '[::1]:{v6}:8080'
      - {{ target: 8080, published: '{long}', host_ip: 127.0.0.3, protocol: tcp }}
"
        ),
    );
    page(&project, "web", "here");
    world.kiln_in(&project, ["up"]).expect_done();
    let (one, two, three) =
        (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]), IpAddr::from([127, 0, 0, 3]));
    let six = IpAddr::from(Ipv6Addr::LOCALHOST);
    for (port, open) in
        [(both, &[one, two, three, six][..]), (v4, &[one]), (v6, &[six]), (long, &[three])]
    {
        for address in [one, two, three, six] {
            let got = Client::new(SocketAddr::new(address, port.number())).get("/");
            assert_eq!(got.is_ok(), open.contains(&address), "{address} port {port}: {got:?}");
        }
    }
    world.kiln_in(&project, ["down"]).expect_done();
    for port in &ports {
        assert!(std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, port.number())).is_ok());
    }
}

/// The stage's own ports make room for what it asks for next, wider or narrower.
#[test]
fn a_port_moves_between_all_addresses_and_one() {
    let world = world();
    let port = Port::claim();
    let compose = format!("services:\n  web:\n    build: ./web\n    ports: ['{port}:8080']\n");
    let project = project(&world, "rebind", &compose);
    page(&project, "web", "here");
    let at = |last: u8| {
        let address = SocketAddr::from(([127, 0, 0, last], port.number()));
        Client::new(address).get("/").is_ok()
    };
    world.kiln_in(&project, ["up"]).expect_done();
    assert!(at(1) && at(2));
    project.edit("compose.yaml", &format!("'{port}:"), &format!("'127.0.0.1:{port}:"));
    world.kiln_in(&project, ["up"]).expect_done();
    assert!(at(1) && !at(2));
    project.edit("compose.yaml", "127.0.0.1:", "");
    world.kiln_in(&project, ["up"]).expect_done();
    assert!(at(1) && at(2));
    // Another stage is told by name, whichever addresses it asks for.
    let other =
        format!("services:\n  web:\n    build: ./web\n    ports: ['127.0.0.1:{port}:8080']\n");
    let other = common::project(&world, "other", &other);
    page(&other, "web", "there");
    let refused = world.kiln_in(&other, ["up"]).expect_code(1);
    assert!(refused.stderr.contains("rebind/dev/web"), "{refused}");
}

/// A service that runs `/serve` for each connection to port 7777.
fn by_connection(world: &World, name: &str, port: &Port, serve: &str) -> Project {
    let compose = format!("services:\n  server:\n    build: .\n    ports: ['{port}:7777']\n");
    let project = project(world, name, &compose);
    project.write_program("serve", format!("#!/bin/sh\n{serve}\n"));
    project.write(
        "Dockerfile",
        "FROM busybox\nCOPY serve /\n\
         CMD [\"busybox\", \"nc\", \"-ll\", \"-p\", \"7777\", \"-e\", \"/serve\"]\n",
    );
    project
}

fn connect(port: &Port) -> BufReader<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port.number())).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    BufReader::new(stream)
}

fn line(stream: &mut BufReader<TcpStream>) -> String {
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

#[test]
fn a_server_may_speak_first_and_stays_with_its_client() {
    let world = world();
    let port = Port::claim();
    let project = by_connection(&world, "first", &port, "echo hello from one; exec cat");
    world.kiln_in(&project, ["up"]).expect_done();
    let mut old = connect(&port);
    assert_eq!(line(&mut old), "hello from one");
    old.get_mut().write_all(b"said\n").unwrap();
    assert_eq!(line(&mut old), "said");

    project.edit("serve", "one", "two");
    world.kiln_in(&project, ["up"]).expect_done();
    let mut new = connect(&port);
    assert_eq!(line(&mut new), "hello from two");
    // The open connection goes on with whom it began.
    old.get_mut().write_all(b"still there\n").unwrap();
    assert_eq!(line(&mut old), "still there");
    // One side may end before the other: what was said last comes back all the same.
    old.get_mut().write_all(b"last words").unwrap();
    old.get_mut().shutdown(Shutdown::Write).unwrap();
    let mut rest = String::new();
    old.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "last words");
}

#[test]
fn an_upgraded_connection_passes_and_outlives_a_switch() {
    let world = world();
    let port = Port::claim();
    let serve = r#"end=$(printf '\r')
IFS= read -r request || exit
while IFS= read -r field && [ "$field" != "$end" ]; do
    case $field in "Upgrade: echo$end" | "upgrade: echo$end") asked=yes ;; esac
done
[ "$asked" = yes ] || { printf 'HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n'; exit; }
printf 'HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n'
echo upgraded one
exec cat"#;
    let project = by_connection(&world, "upgrade", &port, serve);
    world.kiln_in(&project, ["up"]).expect_done();
    let upgrade = || {
        let mut stream = connect(&port);
        let request = "GET /chat HTTP/1.1\r\nHost: here\r\nConnection: Upgrade\r\n\
                       Upgrade: echo\r\n\r\nearly\n";
        stream.get_mut().write_all(request.as_bytes()).unwrap();
        assert_eq!(line(&mut stream), "HTTP/1.1 101 Switching Protocols");
        while !line(&mut stream).is_empty() {}
        let greeting = line(&mut stream);
        assert_eq!(line(&mut stream), "early", "what came before the answer is not lost");
        (stream, greeting)
    };
    let (mut old, greeting) = upgrade();
    assert_eq!(greeting, "upgraded one");
    project.edit("serve", "upgraded one", "upgraded two");
    world.kiln_in(&project, ["up"]).expect_done();
    assert_eq!(upgrade().1, "upgraded two");
    old.get_mut().write_all(&[b"\x81\xfe\0".as_slice(), b"frame\n"].concat()).unwrap();
    let mut frame = Vec::new();
    old.read_until(b'\n', &mut frame).unwrap();
    assert_eq!(frame, b"\x81\xfe\0frame\n");
}

#[test]
fn large_bodies_go_both_ways() {
    let world = world();
    let port = Port::claim();
    let compose = format!("services:\n  web:\n    build: .\n    ports: ['{port}:8080']\n");
    let project = project(&world, "large", &compose);
    // No two pages of it are alike.
    let body: Vec<u8> = (0..4_u64 << 20)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect();
    project.write("www/large", &body);
    project.write_program("www/cgi-bin/sum", "#!/bin/sh\necho; exec sha256sum\n");
    project.write(
        "Dockerfile",
        "FROM busybox\nCOPY www /www\n\
         CMD [\"busybox\", \"httpd\", \"-f\", \"-p\", \"8080\", \"-h\", \"/www\"]\n",
    );
    world.kiln_in(&project, ["up"]).expect_done();
    let mut client = Client::local(port.number()).patience(PATIENCE);
    let down = client.get("/large").unwrap();
    assert!(down.body == body, "{} of {} bytes, or others", down.body.len(), body.len());
    let up = client.request("POST", "/cgi-bin/sum", &[], &body).unwrap();
    let sum = Call::new("sha256sum").stdin(body).run_ok().unwrap();
    assert_eq!(up.text(), sum.stdout);
}

#[test]
fn a_service_of_datagrams_that_ends_at_once_is_not_ready() {
    let world = world();
    // Nobody can be asked whether a UDP port answers: it has to live for a while.
    let compose = "services:\n  echo:\n    image: busybox\n    expose: ['5353/udp']\n    \
                   restart: 'no'\n    command: [sh, -c, 'echo no such device; exit 3']\n";
    let project = project(&world, "datagrams", compose);
    let refused = world.kiln_in(&project, ["up"]).expect_code(4);
    assert!(refused.stderr.contains("no such device"), "{refused}");
}

/// `web` says its own version and what `api` says, by both of its names.
fn write_pair(project: &Project, version: &str) {
    page(project, "api", version);
    project.write_program(
        "web/ask",
        format!(
            "#!/bin/sh\necho\nask() {{ busybox wget -q -O - http://$1:8080/; }}\n\
             echo {version} $(ask api) $(ask backend)\n"
        ),
    );
}

#[test]
fn a_candidate_is_tested_against_its_own_neighbours() {
    let world = world();
    let port = Port::claim();
    let project = project(
        &world,
        "pair",
        &format!(
            "services:
  web:
    build: ./web
    ports: ['{port}:8080']
    depends_on: [api]
    healthcheck:
      test: [CMD-SHELL, 'busybox wget -q -O - http://127.0.0.1:8080/cgi-bin/ask | grep one.one.one']
      interval: 100ms
      retries: 50
  api:
    build: ./api
    networks: {{ default: {{ aliases: [backend] }} }}
"
        ),
    );
    project.write(
        "web/Dockerfile",
        "FROM busybox\nCOPY ask /www/cgi-bin/ask\n\
         CMD [\"busybox\", \"httpd\", \"-f\", \"-p\", \"8080\", \"-h\", \"/www\"]\n",
    );
    write_pair(&project, "one");
    world.kiln_in(&project, ["up"]).expect_done();
    let judge = |answer: &http::Response| match answer.text().trim() {
        same @ ("one one one" | "two two two") => Ok(same[..3].to_owned()),
        mixed => Err(format!("status {}: {mixed:?}", answer.status)),
    };
    let probing = Probe::local(port.number(), 25).path("/cgi-bin/ask").judge(judge).start();
    // The new web's own check wants the new api's word, while the old ones still serve.
    write_pair(&project, "two");
    project.edit("compose.yaml", "one.one.one", "two.two.two");
    world.kiln_in(&project, ["up"]).expect_done();
    assert_eq!(http::get(port.number(), "/cgi-bin/ask").unwrap().text(), "two two two\n");
    // And the old web, kept warm, still has the old api when it serves again.
    world.kiln_in(&project, ["rollback"]).expect_done();
    assert_eq!(http::get(port.number(), "/cgi-bin/ask").unwrap().text(), "one one one\n");
    probing.stop().unwrap().expect_no_loss();

    // A web that the new api does not suit is found out before it serves.
    project.write("api/index.html", "three");
    world.kiln_in(&project, ["up", "--timeout", "2"]).expect_code(4).expect_stderr("`web`");
    assert_eq!(http::get(port.number(), "/cgi-bin/ask").unwrap().text(), "one one one\n");
}

/// An agent in a network namespace of its own, joined by a pair of interfaces to another one: an
/// "outside" that answers `from outside` at 192.0.2.2.
struct Outside {
    world: World, // first, so that the agent still runs when the world is shut down
    agent: Running,
    peer: Running,
    _servers: [Running; 2],
}

/// Runs a program in the network namespace of a process.
fn within(namespace: &Running, program: &[&str]) -> Call {
    let pid = namespace.pid().to_string();
    Call::new("nsenter").args(["--net", "--target", &pid, "--"]).args(program)
}

#[track_caller]
fn do_within(namespace: &Running, line: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    within(namespace, &words).run_ok().unwrap_or_else(|error| panic!("{error:#}"));
}

impl Outside {
    fn new() -> Self {
        let world = world();
        let isolated = |script: &str| {
            let args = ["--net", "sh", "-ec", &format!("ip link set lo up; echo ready; {script}")];
            Call::new("unshare").args(args).patience(Duration::from_secs(600))
        };
        let peer = isolated("exec sleep 1000").spawn().unwrap();
        peer.wait_for("ready", PATIENCE);
        // Forwards already, as hosts with Docker do: nothing of the host's is written down then.
        let script = "echo 1 > /proc/sys/net/ipv4/ip_forward; iptables -P FORWARD DROP;
                      exec \"$0\" --root \"$1\" serve";
        let agent = isolated(script).arg(common::KILN).arg(world.root()).spawn().unwrap();
        wait_until(PATIENCE, "the agent", || {
            UnixStream::connect(world.root().join("agent.sock")).ok()
        });
        do_within(
            &agent,
            &format!("ip link add outward type veth peer name inward netns {}", peer.pid()),
        );
        for (namespace, link, address) in
            [(&agent, "outward", "192.0.2.1/30"), (&peer, "inward", "192.0.2.2/30")]
        {
            do_within(namespace, &format!("ip address add {address} dev {link}"));
            do_within(namespace, &format!("ip link set {link} up"));
        }
        let file = world.home().join("outside");
        std::fs::write(&file, "from outside\n").unwrap();
        let program = world.home().join("server");
        std::fs::write(&program, server::program()).unwrap();
        do_within(&peer, &format!("chmod 755 {}", program.display()));
        let serve = |namespace: &Running, port: &str| {
            let words = [program.to_str().unwrap(), port, file.to_str().unwrap()];
            within(namespace, &words).patience(Duration::from_secs(600)).spawn().unwrap()
        };
        let servers = [serve(&peer, "80"), serve(&agent, "81")];
        Self { world, agent, peer, _servers: servers }
    }

    /// What an instance of `web` is told at an address.
    fn ask(&self, project: &Project, at: &str) -> String {
        let ask = format!("exec timeout 5 busybox wget -q -O - http://{at}/");
        let ask = ["exec", "web", "sh", "-c", &ask];
        let output = self.world.kiln_in(project, ask);
        format!("{}{}", output.stdout, output.stderr)
    }

    /// What is answered to somebody outside, at a port of 192.0.2.1.
    fn asked(&self, port: &Port) -> String {
        let script = format!(
            "exec 3<>/dev/tcp/192.0.2.1/{port}; printf 'GET / HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n' >&3; cat <&3"
        );
        let output = within(&self.peer, &["bash", "-c", &script]).run().unwrap();
        format!("{}{}", output.stdout, output.stderr)
    }
}

#[test]
fn traffic_leaves_through_a_firewall_that_forwards_nothing() {
    let outside = Outside::new();
    let (open, local) = (Port::claim(), Port::claim());
    let compose = format!(
        "services:\n  web:\n    build: ./web\n    ports: ['{open}:8080', '127.0.0.1:{local}:8080']\n    \
         extra_hosts: ['host.docker.internal:host-gateway']\n"
    );
    let project = project(&outside.world, "out", &compose);
    page(&project, "web", "inside");
    outside.world.kiln_in(&project, ["up"]).expect_done();
    assert!(!answer(&open).contains("inside"), "the agent has a network of its own");
    wait_until(PATIENCE, "the listener outside", || {
        outside.ask(&project, "192.0.2.2").contains("from outside").then_some(())
    });
    // The host itself, by the name that Docker's users know.
    assert_eq!(outside.ask(&project, "host.docker.internal:81"), "from outside\n");
    let rules = within(&outside.agent, &["iptables", "-S", "FORWARD"]).run_ok().unwrap();
    assert!(rules.stdout.contains("-P FORWARD DROP"), "{rules}");
    // The way in is the front's.
    assert!(outside.asked(&open).contains("inside"));
    assert!(outside.asked(&local).contains("refused"));

    // Somebody restarts the firewall: what Kiln needs is put back.
    do_within(&outside.agent, "nft flush ruleset");
    do_within(&outside.agent, "iptables -P FORWARD DROP");
    wait_until(PATIENCE, "the way out to be open again", || {
        (outside.ask(&project, "192.0.2.2") == "from outside\n").then_some(())
    });
    page(&project, "web", "changed");
    outside.world.kiln_in(&project, ["up"]).expect_done();
    assert!(outside.asked(&open).contains("changed"));
    outside.world.shutdown().expect_done();
    let left = within(&outside.agent, &["ip", "-o", "link"]).run();
    let left = left.map(|output| output.stdout).unwrap_or_default();
    assert!(!left.contains("kl"), "{left}");
}
