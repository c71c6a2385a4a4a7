//! Who cannot reach whom: projects one another, steps of a bake the machine's own network.

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{instance, page, project, world};

#[test]
fn projects_do_not_reach_one_anothers_instances() {
    let world = world();
    let compose = "services:\n  web: { build: ./web }\n  db: { build: ./db }\n";
    let shop = project(&world, "shop", compose);
    let blog = project(&world, "blog", compose);
    for (project, name) in [(&shop, "shop"), (&blog, "blog")] {
        page(project, "web", name);
        page(project, "db", name);
        world.kiln_in(project, ["up"]).expect_done();
    }
    let address = |project, service: &str| {
        let found = instance(&world, project, service, "active").unwrap();
        found["address"].as_str().unwrap_or_default().to_owned()
    };
    let ask = |from, service: &str, at: &str| {
        let line = format!("exec timeout 5 busybox wget -q -O - http://{at}:8080/");
        world.kiln_in(from, ["exec", "-T", service, "sh", "-c", &line])
    };
    let (of_shop, of_blog) = (address(&shop, "db"), address(&blog, "db"));
    assert!(!of_shop.is_empty() && of_shop != of_blog);
    let names = world.kiln_in(&shop, ["exec", "-T", "web", "cat", "/etc/hosts"]).expect_done();
    let stable = names.stdout.lines().find(|line| line.ends_with("\tdb")).unwrap();
    let stable = stable.split('\t').next().unwrap();
    for at in ["db", stable, &of_shop] {
        assert_eq!(ask(&shop, "web", at).stdout, "shop", "{at}");
    }
    for at in [stable, &of_shop] {
        let said = ask(&blog, "web", at);
        assert!(said.code != Some(0) && said.stderr.contains("refused"), "{at}: {said}");
    }
    // The next agent goes on with it, and so does whoever comes after a change of the rules.
    let agent = world.role("agent");
    common::kill(agent.pid.cast_signed());
    assert_eq!(ask(&shop, "web", "db").stdout, "shop");
    assert_ne!(ask(&blog, "web", &of_shop).code, Some(0));
    page(&shop, "db", "fresh");
    world.kiln_in(&shop, ["up"]).expect_done();
    assert_eq!(ask(&shop, "web", "db").stdout, "shop", "the one that it began with");
    assert_eq!(ask(&shop, "web", &address(&shop, "db")).stdout, "fresh");
    assert_ne!(ask(&blog, "web", &address(&shop, "db")).code, Some(0));
}

/// Counts who comes, and says a line to them.
fn listen(at: &str) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(at).unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            counted.fetch_add(1, Ordering::SeqCst);
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nyes");
        }
    });
    (port, count)
}

#[test]
fn a_step_with_network_reaches_the_outside_and_nothing_of_this_machines_inside() {
    let world = world();
    let (inner, came) = listen("127.0.0.1:0");
    let (outer, reached) = listen("0.0.0.0:0");
    let target = project(&world, "target", "services:\n  web: { build: ./web }\n");
    page(&target, "web", "instance");
    world.kiln_in(&target, ["up"]).expect_done();
    let web = instance(&world, &target, "web", "active").unwrap();
    let at = web["address"].as_str().unwrap();
    let project =
        project(&world, "steps", "services:\n  a: { build: ., command: [sleep, '1000'] }\n");
    // The gateway is the machine as everybody sees it who is not on it; what fails is caught.
    project.write(
        "Dockerfile",
        format!(
            "FROM busybox
RUN --network=default wget -q -O /outer http://169.254.1.1:{outer}/ \\
    && (wget -T 3 -q -O /inner http://127.0.0.1:{inner}/; \\
        wget -T 3 -q -O /through http://169.254.1.1:{inner}/; \\
        wget -T 3 -q -O /instance http://{at}:8080/; true) \\
    && ls /sys/class/net > /interfaces && cat /proc/net/unix > /sockets && cat /etc/resolv.conf > /names
RUN ls /sys/class/net > /without && ! wget -T 3 -q -O /none http://169.254.1.1:{outer}/
"
        ),
    );
    world.kiln_in(&project, ["up"]).expect_done();
    assert_eq!(reached.load(Ordering::SeqCst), 1);
    assert_eq!(came.load(Ordering::SeqCst), 0, "nobody comes to the machine's own loopback");
    let read =
        |path: &str| world.kiln_in(&project, ["exec", "-T", "a", "cat", path]).expect_done().stdout;
    assert_eq!(read("/outer"), "yes");
    assert_eq!(read("/interfaces"), "eth0\nlo\n");
    assert_eq!(read("/without"), "lo\n");
    assert_eq!(read("/sockets").lines().count(), 1, "no socket of the machine's");
    let said =
        world.kiln_in(&project, ["exec", "-T", "a", "cat", "/inner", "/through", "/instance"]);
    assert_eq!(said.stdout, "", "{said}");
}
