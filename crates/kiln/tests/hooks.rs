//! `post_start` and `pre_stop`.

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::{PATIENCE, answer, instance, instances, page, project, wait_for_answer, world};
use kiln_testkit::{Port, Project, World, wait_until};

/// A world with one service `web` that serves the folder `/ctl`, which is the project's `ctl`, and
/// is told of in `more`.
fn web(more: &str) -> (World, Project, Port) {
    let world = world();
    let port = Port::claim();
    let project = project(&world, "demo", &compose(&port, more));
    page(&project, "web", "unused");
    project.write("ctl/index.html", "one");
    (world, project, port)
}

fn compose(port: &Port, more: &str) -> String {
    format!(
        "name: demo\nservices:\n  web:\n    build: ./web\n    ports: [\"{}:8080\"]\n    \
         volumes: [\"./ctl:/ctl\"]\n    command: [busybox, httpd, -f, -p, '8080', -h, /ctl]\n    \
         user: '0'\n{more}",
        port.number()
    )
}

fn read(project: &Project, file: &str) -> String {
    fs::read_to_string(project.path(&format!("ctl/{file}"))).unwrap_or_default()
}

#[test]
fn hooks_run_before_it_counts_as_started() {
    let more = "    environment: { A: service, B: service }
    post_start:
      - command: busybox sh -c 'busybox sleep 1; echo $$A $$B $$C >> /ctl/said; busybox pwd >> /ctl/said'
        environment: [B=hook, C]
        working_dir: /www
      - command: [busybox, sh, -c, 'busybox id -u > /tmp/who; read line; echo \"<$$line>\" >> /tmp/who']
        user: '1000'
  after:
    build: ./tool
    command: [busybox, wget, -qO-, 'http://web:8080/said']
    depends_on: [web]
    restart: 'no'
  tool:
    build: ./tool
    command: [busybox, sleep, '100000']
    post_start: [{ command: busybox true }]
";
    let (world, project, _port) = web(more);
    project.write("tool/Dockerfile", "FROM busybox\n");
    let up = world.call(["up"]).dir(project.dir()).env("C", "caller").run().unwrap();
    up.expect_done();
    assert_eq!(read(&project, "said"), "service hook caller\n/www\n");
    // A hook of a user of its own, with nothing to read.
    let who = ["exec", "web", "busybox", "cat", "/tmp/who"];
    assert_eq!(world.kiln_in(&project, who).expect_done().stdout, "1000\n<>\n");
    // Who waits for the start waited for the hooks.
    let logs = world.kiln_in(&project, ["logs", "after"]).expect_done();
    assert!(logs.stdout.contains("service hook caller"), "{logs}");
    // Each fresh instance has its own.
    let before = instance(&world, &project, "web", "active").unwrap();
    common::kill(before["pid"].as_i64().unwrap());
    wait_until(PATIENCE, "a fresh instance", || {
        let now = instance(&world, &project, "web", "active")?;
        (now["id"] != before["id"] && now["state"] == "healthy").then_some(())
    });
    assert_eq!(read(&project, "said").lines().count(), 4);
    let ran = world.kiln_in(&project, ["run", "tool", "busybox", "true"]).expect_done();
    assert!(ran.stderr.contains("hooks of `tool` are not run"), "{ran}");
}

#[test]
fn a_hook_that_fails_fails_the_start_once() {
    let (world, project, port) = web("");
    world.kiln_in(&project, ["up"]).expect_done();
    wait_for_answer(&port, "one");
    let failing = "    post_start:
      - command: [busybox, sh, -c, 'echo x >> /ctl/count']
      - command: [busybox, sh, -c, 'echo no database here; exit 3']
      - command: [busybox, sh, -c, 'echo never >> /ctl/count']
";
    // What is bound for writing is never run twice, so the one before is stopped and comes back.
    project.write("compose.yaml", format!("{}{}", compose(&port, failing), common::BUSYBOX));
    let refused = world.kiln_in(&project, ["up"]).expect_code(4);
    for part in [
        "service `web` failed in post_start[1], `busybox sh -c echo no database here; exit 3`: exit 3",
        "post_start: no database here",
        "gets no traffic",
    ] {
        assert!(refused.stderr.contains(part), "`{part}` in {refused}");
    }
    assert_eq!(read(&project, "count"), "x\n", "it is not tried again");
    wait_for_answer(&port, "one");
    assert_eq!(instances(&world, &project).len(), 1);
    // There is no such program.
    let none = "    post_start: [{ command: /no/such/program }]\n";
    project.write("compose.yaml", format!("{}{}", compose(&port, none), common::BUSYBOX));
    let refused = world.kiln_in(&project, ["up"]).expect_code(4);
    assert!(refused.stderr.contains("post_start[0], `/no/such/program`"), "{refused}");
    wait_until(PATIENCE, "what served before", || (answer(&port) == "one").then_some(()));
}

#[test]
fn hooks_before_a_stop_have_its_grace() {
    let script = "trap \"echo term >> /ctl/log; exit 0\" TERM; while :; do busybox sleep 0.1; done";
    let hook = |command: &str| {
        format!(
            "    command: [busybox, sh, -c, '{script}']\n    expose: !reset []\n    ports: !reset []\n    \
             stop_grace_period: 3s\n    pre_stop:\n      - command: [busybox, sh, -c, '{command}']\n      \
             - command: [busybox, sh, -c, 'echo second >> /ctl/log']\n"
        )
    };
    let world = world();
    for (name, command, log) in [
        ("good", "echo first >> /ctl/log", "first\nsecond\nterm\n"),
        ("bad", "echo first >> /ctl/log; echo oh no; exit 7", "first\nterm\n"),
        ("hangs", "busybox sleep 1000", "term\n"),
    ] {
        let compose = format!(
            "name: {name}\nservices:\n  web:\n    build: ./web\n    volumes: [\"./ctl:/ctl\"]\n{}",
            hook(command).replace("    expose: !reset []\n    ports: !reset []\n", "")
        );
        let project = project(&world, name, &compose);
        project.write("web/Dockerfile", "FROM busybox\n").write("ctl/x", "");
        world.kiln_in(&project, ["up"]).expect_done();
        let began = Instant::now();
        world.kiln_in(&project, ["down"]).expect_done();
        assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
        assert_eq!(read(&project, "log"), log, "{name}");
        let history = world.kiln_in(&project, ["history", "--json"]).expect_done();
        let told = history.stdout.contains("instance.pre_stop");
        assert_eq!(told, name != "good", "{history}");
        if name == "bad" {
            assert!(history.stdout.contains("exit 7"), "{history}");
        }
    }
}

/// Nobody knows what the hooks of one have done whose agent was killed meanwhile: another one starts.
#[test]
fn a_killed_agent_takes_hooks_along() {
    let hook = "    post_start:
      - command: [busybox, sh, -c, 'echo x >> /ctl/count; if [ -e /ctl/slow ]; then busybox sleep 1000; fi']
";
    let (world, project, port) = web(hook);
    world.kiln_in(&project, ["up"]).expect_done();
    project.write("ctl/slow", "");
    let before = instance(&world, &project, "web", "active").unwrap();
    common::kill(before["pid"].as_i64().unwrap());
    wait_until(PATIENCE, "the hook", || (read(&project, "count") == "x\nx\n").then_some(()));
    common::kill(world.role("agent").pid);
    fs::remove_file(project.path("ctl/slow")).unwrap();
    wait_until(PATIENCE, "a whole instance", || {
        let now = instance(&world, &project, "web", "active")?;
        (now["state"] == "healthy").then_some(())
    });
    assert_eq!(read(&project, "count"), "x\nx\nx\n");
    wait_for_answer(&port, "one");
}
