//! Networks: who finds and reaches whom, what leads out, and who has whose network.

mod common;

use common::{PATIENCE, instance, page, project, world};
use kiln_testkit::{Port, Project, World, wait_until};
use serde_json::Value;

/// What `service` gets from `at`, as words: the answer, or why there is none.
fn ask(world: &World, project: &Project, service: &str, at: &str) -> String {
    let line = format!("exec timeout 5 busybox wget -q -O - http://{at}:8080/ 2>&1");
    world.kiln_in(project, ["exec", "-T", service, "sh", "-c", &line]).stdout
}

fn address(world: &World, project: &Project, service: &str) -> String {
    let found = instance(world, project, service, "active").unwrap();
    found["address"].as_str().unwrap().to_owned()
}

/// A service of busybox that answers its own name on port 8080.
fn named(project: &Project, services: &[&str]) {
    for service in services {
        page(project, service, service);
    }
}

#[test]
fn who_shares_no_network_is_neither_found_nor_reached() {
    let world = world();
    let project = project(
        &world,
        "split",
        "services:
  web: { build: ./web, networks: [front] }
  api: { build: ./api, networks: { front: , back: { aliases: [backend] } } }
  db: { build: ./db, networks: [back] }
  plain: { build: ./plain }
networks: { front: , back: { internal: true }, unused: }
",
    );
    named(&project, &["web", "api", "db", "plain"]);
    world.kiln_in(&project, ["up"]).expect_done();
    let ask = |service: &str, at: &str| ask(&world, &project, service, at);
    assert_eq!(ask("web", "api"), "api");
    assert_eq!(ask("api", "db"), "db");
    assert_eq!(ask("db", "backend"), "api");
    for (from, to) in
        [("web", "db"), ("db", "web"), ("plain", "web"), ("web", "plain"), ("web", "backend")]
    {
        let said = ask(from, to);
        assert!(said.contains("bad address"), "{from} finds {to}: {said}");
    }
    let stable = |service: &str, name: &str| {
        let hosts = world.kiln_in(&project, ["exec", "-T", service, "cat", "/etc/hosts"]);
        let line = hosts.stdout.lines().find(|line| line.contains(&format!("\t{name}")));
        line.and_then(|line| line.split('\t').next()).unwrap_or_default().to_owned()
    };
    // By address, its own or the one of its name, likewise; also when another slot is beside it.
    let of_db = stable("api", "db");
    page(&project, "web", "newer");
    world.kiln_in(&project, ["up"]).expect_done();
    for at in [&address(&world, &project, "db"), &of_db] {
        assert_eq!(ask("api", at), "db", "{at}");
        for from in ["web", "plain"] {
            let said = ask(from, at);
            assert!(said.contains("refused"), "{from} reaches {at}: {said}");
        }
    }
    assert_eq!(ask("api", "web"), "web", "the one that it began with");
    // Nothing leads out of `back`: not to the machine either, which others reach.
    let server = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = server.local_addr().unwrap().port();
    std::thread::spawn(move || server.incoming().for_each(drop));
    let dial = |service: &str| {
        let line = format!("busybox nc -w 5 169.254.1.1 {port} < /dev/null");
        world.kiln_in(&project, ["exec", "-T", service, "sh", "-c", &line]).code
    };
    assert_eq!(dial("api"), Some(0));
    assert_ne!(dial("db"), Some(0));
    // The next agent goes on with all of it.
    common::kill(world.role("agent").pid.cast_signed());
    assert_eq!(ask("api", "db"), "db");
    assert!(ask("web", &of_db).contains("refused"));
    assert_ne!(dial("db"), Some(0));
}

#[test]
fn links_are_further_names_for_one_alone() {
    let world = world();
    let text = "services:
  web: { build: ./web, links: ['db:database', db] }
  db: { build: ./db }
  other: { build: ./other }
";
    let project = project(&world, "linked", text);
    named(&project, &["web", "db", "other"]);
    world.kiln_in(&project, ["up"]).expect_done();
    assert_eq!(ask(&world, &project, "web", "database"), "db");
    assert_eq!(ask(&world, &project, "web", "db"), "db");
    assert!(ask(&world, &project, "other", "database").contains("bad address"));
    // A link is a dependency: who links is replaced with what it links to.
    let before = instance(&world, &project, "web", "active").unwrap()["id"].clone();
    page(&project, "db", "changed");
    world.kiln_in(&project, ["up"]).expect_done();
    assert_ne!(instance(&world, &project, "web", "active").unwrap()["id"], before);
    assert_eq!(ask(&world, &project, "web", "database"), "changed");
}

#[test]
fn none_is_nothing_and_bridge_is_apart() {
    let world = world();
    let text = "services:
  lone: { build: ./lone, network_mode: none, ports: ['8080'] }
  one: { build: ./one, network_mode: bridge }
  two: { build: ./two, network_mode: bridge }
  usual: { build: ./usual }
";
    let project = project(&world, "modes", text);
    named(&project, &["lone", "one", "two", "usual"]);
    let up = world.kiln_in(&project, ["up"]).expect_done();
    assert!(up.stderr.contains("nothing is published"), "{up}");
    let links = world.kiln_in(&project, ["exec", "-T", "lone", "ls", "/sys/class/net"]);
    assert_eq!(links.stdout.trim(), "lo");
    assert_eq!(ask(&world, &project, "lone", "localhost"), "lone");
    assert_eq!(ask(&world, &project, "one", "two"), "two");
    let said = ask(&world, &project, "usual", "one");
    assert!(said.contains("bad address"), "{said}");
    let said = ask(&world, &project, "usual", &address(&world, &project, "one"));
    assert!(said.contains("refused"), "{said}");
}

#[test]
fn those_that_share_one_network_are_replaced_together() {
    let world = world();
    let port = Port::claim();
    let text = format!(
        "services:
  app:
    image: busybox
    command: [sh, -c, 'mkdir -p /tmp/w && echo app > /tmp/w/index.html && exec busybox httpd -f -p 127.0.0.1:8080 -h /tmp/w']
    network_mode: 'service:net'
  net: {{ build: ./net, ports: ['{port}:9090'] }}
  web: {{ build: ./web, depends_on: [net] }}
"
    );
    let project = project(&world, "together", &text);
    page(&project, "web", "web");
    let net = |text: &str| {
        project.write("net/index.html", text);
        project.write(
            "net/Dockerfile",
            "FROM busybox\nCOPY index.html /www/\nEXPOSE 9090\n\
             CMD [\"busybox\", \"httpd\", \"-f\", \"-p\", \"9090\", \"-h\", \"/www\"]\n",
        );
    };
    net("one");
    world.kiln_in(&project, ["up"]).expect_done();
    let id = |service: &str| -> Value {
        instance(&world, &project, service, "active")
            .map(|found| found["id"].clone())
            .unwrap_or_default()
    };
    let inside =
        |line: &str| world.kiln_in(&project, ["exec", "-T", "net", "sh", "-c", line]).stdout;
    // What listens on the loopback of one is found there by the other.
    wait_until(PATIENCE, "the app", || {
        (inside("busybox wget -q -O - http://127.0.0.1:8080/ 2>&1") == "app\n").then_some(())
    });
    assert_eq!(address(&world, &project, "app"), address(&world, &project, "net"));
    let before = ["app", "net", "web"].map(id);
    project.edit("compose.yaml", "echo app >", "echo new >");
    world.kiln_in(&project, ["up"]).expect_done();
    let after = ["app", "net", "web"].map(id);
    for (before, after) in before.iter().zip(&after) {
        assert_ne!(before, after);
    }
    wait_until(PATIENCE, "the new app", || {
        (inside("busybox wget -q -O - http://127.0.0.1:8080/ 2>&1") == "new\n").then_some(())
    });
    common::wait_for_answer(&port, "one");
    // When the one with the network dies, the other one follows it into the new network.
    let pid = instance(&world, &project, "net", "active").unwrap()["pid"].as_i64().unwrap();
    common::kill(pid);
    wait_until(PATIENCE, "both anew", || {
        let fresh = id("net") != after[1] && id("app") != after[0];
        (fresh && inside("busybox wget -q -O - http://127.0.0.1:8080/ 2>&1") == "new\n")
            .then_some(())
    });
    common::wait_for_answer(&port, "one");
}

#[test]
fn the_hosts_network_is_the_roots_to_give() {
    let world = world();
    let port = Port::claim();
    let text = format!(
        "services:
  host:
    image: busybox
    network_mode: host
    command: [sh, -c, 'mkdir -p /tmp/w && echo host > /tmp/w/index.html && exec busybox httpd -f -p {port} -h /tmp/w']
    depends_on: [db]
  db: {{ build: ./db }}
"
    );
    let project = project(&world, "hosted", &text);
    page(&project, "db", "db");
    let refused = world.kiln_in(&project, ["up"]).expect_code(4);
    assert!(refused.stderr.contains("allow-host-network host"), "{refused}");
    let policy = world.root().join("policy/hosted/dev");
    std::fs::create_dir_all(policy.parent().unwrap()).unwrap();
    std::fs::write(&policy, "kiln-policy 1\nallow-host-network host\n").unwrap();
    world.kiln_in(&project, ["up"]).expect_done();
    common::wait_for_answer(&port, "host\n");
    // Others find it at the machine, it finds them by name.
    let line = format!("busybox wget -q -O - http://host:{port}/");
    let said = world.kiln_in(&project, ["exec", "-T", "db", "sh", "-c", &line]);
    assert_eq!(said.stdout, "host\n", "{said}");
    assert_eq!(ask(&world, &project, "host", "db"), "db");
    // Never two of them: the second could not have the port.
    project.edit("compose.yaml", "echo host >", "echo again >");
    world.kiln_in(&project, ["up"]).expect_done();
    common::wait_for_answer(&port, "again\n");
}

#[test]
fn a_joined_network_leads_to_what_serves_in_the_other_project() {
    let world = world();
    let owner = "services:
  api: { build: ./api, networks: { shared: { aliases: [www] } } }
  own: { build: ./own }
networks: { shared: { name: bridge-of-both } }
";
    let guest = "services:
  web: { build: ./web, networks: [theirs] }
  apart: { build: ./apart }
networks: { theirs: { external: true, name: bridge-of-both } }
";
    let owner = project(&world, "owner", owner);
    named(&owner, &["api", "own"]);
    let guest = project(&world, "guest", guest);
    named(&guest, &["web", "apart"]);
    // Who comes too early is told so.
    let early = world.kiln_in(&guest, ["up"]).expect_done();
    assert!(early.stderr.contains("`bridge-of-both`"), "{early}");
    // And who was there before is named, with what makes it find those that came.
    let came = world.kiln_in(&owner, ["up"]).expect_done();
    assert!(came.stderr.contains("kiln -p guest restart web"), "{came}");
    page(&guest, "web", "web again");
    let late = world.kiln_in(&guest, ["up"]).expect_done();
    assert!(!late.stderr.contains("bridge-of-both"), "{late}");
    assert_eq!(ask(&world, &guest, "web", "api"), "api");
    assert_eq!(ask(&world, &guest, "web", "www"), "api");
    assert!(ask(&world, &guest, "web", "own").contains("bad address"));
    assert!(ask(&world, &guest, "apart", "api").contains("bad address"));
    for (from, to) in [("web", "own"), ("apart", "api")] {
        let said = ask(&world, &guest, from, &address(&world, &owner, to));
        assert!(said.contains("refused"), "{from} reaches {to}: {said}");
    }
    // What is called is what serves, whenever the caller began; also for the agent that follows.
    page(&owner, "api", "newer");
    let newer = world.kiln_in(&owner, ["up"]).expect_done();
    assert!(!newer.stderr.contains("kiln -p guest"), "{newer}");
    assert_eq!(ask(&world, &guest, "web", "api"), "newer");
    common::kill(world.role("agent").pid.cast_signed());
    world.kiln_in(&owner, ["rollback"]).expect_done();
    assert_eq!(ask(&world, &guest, "web", "api"), "api");
    world.kiln_in(&owner, ["down"]).expect_done();
    assert!(ask(&world, &guest, "web", "api").contains("refused"));
}

#[test]
fn an_address_of_which_nothing_is_known_any_more_is_not_given_to_another() {
    let world = world();
    let text = |service: &str| {
        format!(
            "services:\n  {service}: {{ build: ./{service}, networks: [shared] }}\n\
             networks: {{ shared: {{ name: of-all }} }}\n"
        )
    };
    let up = |name: &str| {
        let project = project(&world, name, &text(name));
        named(&project, &[name]);
        world.kiln_in(&project, ["up"]).expect_done();
        project
    };
    let path = world.root().join("run/joined.json");
    let addresses = || {
        let text = std::fs::read_to_string(&path).unwrap();
        let file: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        file["addresses"].as_object().unwrap().clone()
    };
    let one = up("one");
    up("two");
    let given = addresses()["one/dev one"].clone();
    let agent = world.role("agent").pid;
    common::kill(agent.cast_signed());
    wait_until(PATIENCE, "the agent's end", || {
        (!std::path::Path::new(&format!("/proc/{agent}")).exists()).then_some(())
    });
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.iter().position(|byte| *byte == b'"').unwrap();
    bytes[at + 1] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    // What ran goes on, and what starts has addresses that nobody had.
    let three = up("three");
    assert_eq!(ask(&world, &three, "three", "one"), "one");
    let now = addresses();
    let block = |at: &str| at.parse::<std::net::Ipv4Addr>().unwrap().to_bits() >> 11;
    let before = block(given.as_str().unwrap());
    for (name, at) in &now {
        assert_ne!(block(at.as_str().unwrap()), before, "{name} has {at}");
    }
    assert_ne!(block(&address(&world, &three, "three")), before);
    assert_eq!(block(&address(&world, &one, "one")), before);
    // Nor by the agent that follows.
    common::kill(world.role("agent").pid.cast_signed());
    let four = up("four");
    assert_ne!(block(&address(&world, &four, "four")), before);
    assert_eq!(ask(&world, &four, "four", "one"), "one");
}

#[test]
fn nobody_joins_a_network_that_its_owner_keeps() {
    let world = world();
    let kept = project(&world, "kept", "services:\n  api: { build: ./api }\n");
    page(&kept, "api", "api");
    world.kiln_in(&kept, ["up"]).expect_done();
    let text = "services:
  web: { build: ./web, networks: [theirs] }
networks: { theirs: { external: true, name: kept_default } }
";
    let guest = project(&world, "stranger", text);
    page(&guest, "web", "web");
    let up = world.kiln_in(&guest, ["up"]).expect_done();
    assert!(up.stderr.contains("`kept_default`"), "{up}");
    assert!(ask(&world, &guest, "web", "api").contains("bad address"));
    assert!(ask(&world, &guest, "web", &address(&world, &kept, "api")).contains("refused"));
    // Its owner says so: then it is.
    let base = std::fs::read_to_string(kept.path("compose.yaml")).unwrap();
    kept.write(
        "compose.yaml",
        format!("networks: {{ default: {{ x-kiln: {{ joinable: true }} }} }}\n{base}"),
    );
    world.kiln_in(&kept, ["up"]).expect_done();
    page(&guest, "web", "web again");
    world.kiln_in(&guest, ["up"]).expect_done();
    assert_eq!(ask(&world, &guest, "web", "api"), "api");
}

#[test]
fn what_no_network_can_be_is_refused_by_name_and_place() {
    let world = world();
    let project = project(&world, "refused", "services: {}\n");
    for (services, top, place, said) in [
        ("networks: [back]", "", "networks.back", "there is no network `back`"),
        ("networks: [lan]", "lan: { driver: macvlan }", "networks.lan.driver", "`macvlan`"),
        (
            "networks: [h]",
            "h: { external: true, name: host }",
            "networks.h",
            "`network_mode: host`",
        ),
        ("networks: [n]", "n: { enable_ipv4: false }", "networks.n.enable_ipv4", "without IPv4"),
        ("networks: [n]", "n: { x-kiln: { open: true } }", "x-kiln.open", "unknown"),
        ("network_mode: none\n    networks: [default]", "", "networks", "beside `network_mode`"),
        ("network_mode: 'container:x'", "", "network_mode", "`container:x` names a container"),
        ("network_mode: 'service:gone'", "", "network_mode", "no service `gone`"),
        ("network_mode: 'service:web'", "", "network_mode", "loop"),
        ("network_mode: lan", "", "network_mode", "no network mode `lan`"),
        ("links: ['gone:x']", "", "links", "no service `gone`"),
        ("external_links: [other]", "", "external_links", "`external`"),
        ("ports: ['80:80/sctp']", "", "ports[0]", "tcp or udp"),
    ] {
        let text = format!(
            "services:\n  web:\n    image: busybox\n    {services}\nnetworks: {{ {top} }}\n"
        );
        project.write("compose.yaml", format!("{text}{}", common::BUSYBOX));
        let refused = world.kiln_in(&project, ["up"]).expect_code(2);
        for part in [place, said, "compose.yaml:"] {
            assert!(refused.stderr.contains(part), "{services} {top}: {part}: {refused}");
        }
    }
}
