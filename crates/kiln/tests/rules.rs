//! The rules: health gates, order, sharing, workers, data, restarts, logs, exec.

mod common;

use common::{PATIENCE, answer, instance, instances, page, project, wait_for_answer, web, world};
use kiln_testkit::{Port, wait_until};

#[test]
fn a_release_that_never_gets_healthy_gets_no_traffic() {
    let (world, project, port) = web();
    world.kiln_in(&project, ["up"]).expect_done();
    project.edit(
        "web/Dockerfile",
        "EXPOSE 8080",
        "EXPOSE 8080\nHEALTHCHECK --interval=200ms --retries=2 \
         CMD [\"/bin/sh\", \"-c\", \"echo not today; exit 7\"]",
    );
    project.write("web/index.html", "two");
    let refused = world.kiln_in(&project, ["up"]).expect_code(4);
    for part in ["service `web`", "exit 7: not today", "hint:"] {
        assert!(refused.stderr.contains(part), "`{part}` in {}", refused.stderr);
    }
    assert_eq!(answer(&port), "one");
    assert_eq!(instances(&world, &project).len(), 1, "the candidate is gone");
    let history = world.kiln_in(&project, ["history", "--json"]).json_lines();
    let last = history.iter().rfind(|entry| entry["kind"] == "deploy.outcome").unwrap();
    assert_eq!(last["data"]["outcome"], "failed");
}

#[test]
fn a_service_that_exits_at_once_is_named_with_its_last_words() {
    let world = world();
    let project = project(
        &world,
        "exits",
        "services:\n  broken:\n    image: busybox\n    expose: ['80']\n    \
         command: [sh, -c, 'echo cannot find my config; exit 3']\n",
    );
    let refused = world.kiln_in(&project, ["up"]).expect_code(4);
    for part in ["service `broken`", "status 3", "cannot find my config"] {
        assert!(refused.stderr.contains(part), "`{part}` in {}", refused.stderr);
    }
    assert!(instances(&world, &project).is_empty());
}

#[test]
fn dependencies_start_in_order_and_a_job_runs_once() {
    let world = world();
    let port = Port::claim();
    let project = project(
        &world,
        "order",
        &format!(
            "services:
  migrate:
    image: busybox
    command: [sh, -c, 'sleep 0.3; read up rest < /proc/uptime; echo $$up > /data/done']
    volumes: ['state:/data']
  web:
    image: busybox
    command: [sh, -c, 'read up rest < /proc/uptime; echo $$up > /tmp/started; busybox httpd -f -p 8080 -h /']
    ports: ['{}:8080']
    volumes: ['state:/data:ro']
    depends_on: {{ migrate: {{ condition: service_completed_successfully }} }}
volumes: {{ state: }}
",
            port.number()
        ),
    );
    world.kiln_in(&project, ["up"]).expect_done();
    let stamp = |path: &str| -> f64 {
        let text = kiln_testkit::http::get(port.number(), path).unwrap().text();
        text.trim().parse().unwrap_or_else(|_| panic!("{path}: {text}"))
    };
    let done = stamp("/data/done");
    assert!(done < stamp("/tmp/started"));
    world.kiln_in(&project, ["up"]).expect_done();
    assert!(stamp("/data/done") == done, "nothing changed, so it did not run again");
}

#[test]
fn a_job_that_fails_stops_the_release() {
    let world = world();
    let project = project(
        &world,
        "failing",
        "services:
  migrate: { image: busybox, restart: 'no', command: [sh, -c, 'echo no such table; exit 1'] }
  web:
    image: busybox
    command: [sleep, '1000']
    depends_on: { migrate: { condition: service_completed_successfully } }
",
    );
    let refused = world.kiln_in(&project, ["up"]).expect_code(4);
    assert!(refused.stderr.contains("service `migrate`"), "{}", refused.stderr);
    assert!(refused.stderr.contains("no such table"), "{}", refused.stderr);
}

#[test]
fn an_edit_costs_that_service_and_those_that_depend_on_it() {
    let world = world();
    let port = Port::claim();
    let project = project(
        &world,
        "shares",
        &format!(
            "services:
  web: {{ build: ./web, ports: ['{}:8080'], depends_on: [api] }}
  api: {{ build: ./api, depends_on: [cache] }}
  cache: {{ build: ./cache }}
",
            port.number()
        ),
    );
    for service in ["web", "api", "cache"] {
        page(&project, service, service);
    }
    world.kiln_in(&project, ["up"]).expect_done();
    let id = |service: &str, role: &str| {
        instance(&world, &project, service, role).map(|found| found["id"].to_string())
    };
    let (web, api, cache) = (id("web", "active"), id("api", "active"), id("cache", "active"));
    page(&project, "api", "changed");
    world.kiln_in(&project, ["up"]).expect_done();
    assert_ne!(id("web", "active"), web);
    assert_ne!(id("api", "active"), api);
    assert_eq!(id("cache", "active"), cache);
    assert_eq!(id("cache", "standby"), cache, "it is in both slots");
    assert_eq!(id("api", "standby"), api);
}

#[test]
fn a_worker_never_runs_twice_and_follows_the_switch() {
    let world = world();
    let compose = |version: u32| {
        format!(
            "services:
  web: {{ image: busybox, command: [busybox, httpd, -f, -p, '8080'], expose: ['8080'] }}
  worker:
    image: busybox
    environment: {{ VERSION: '{version}' }}
    command: [sh, -c, 'while :; do echo working $$VERSION; sleep 0.05; done']
"
        )
    };
    let project = project(&world, "worker", &compose(1));
    world.kiln_in(&project, ["up"]).expect_done();
    let first = instance(&world, &project, "worker", "active").expect("a worker");
    project.edit("compose.yaml", "'1'", "'2'");
    world.kiln_in(&project, ["up"]).expect_done();
    let workers: Vec<_> = instances(&world, &project)
        .into_iter()
        .filter(|instance| instance["service"] == "worker")
        .collect();
    assert_eq!(workers.len(), 1);
    assert_ne!(workers[0]["id"], first["id"]);
    world.kiln_in(&project, ["rollback"]).expect_done();
    let logs = world.kiln_in(&project, ["logs", "worker", "--json"]).expect_done().json_lines();
    let said: Vec<&str> = logs.iter().filter_map(|line| line["text"].as_str()).collect();
    let last = |text: &str| said.iter().rposition(|line| line.trim() == text);
    assert!(last("working 2") < last("working 1"), "the old one works again");
}

#[test]
fn data_is_replaced_under_a_pause_that_loses_nothing() {
    let world = world();
    let port = Port::claim();
    let project = project(
        &world,
        "data",
        &format!(
            "services:
  store:
    image: busybox
    environment: {{ VERSION: 'one' }}
    command: [sh, -c, 'echo $$VERSION >> /data/log; exec busybox httpd -f -p 8080 -h /data']
    ports: ['{}:8080']
    volumes: ['data:/data']
volumes: {{ data: }}
",
            port.number()
        ),
    );
    world.kiln_in(&project, ["up"]).expect_done();
    let log = || kiln_testkit::http::get(port.number(), "/log").unwrap().text();
    assert_eq!(log(), "one\n");
    let probing = kiln_testkit::Probe::local(port.number(), 200).path("/log").start();
    project.edit("compose.yaml", "'one'", "'two'");
    let said = world.kiln_in(&project, ["up"]).expect_done();
    assert!(said.stderr.contains("under a pause"), "it is said: {}", said.stderr);
    probing.stop().unwrap().expect_no_loss();
    assert_eq!(log(), "one\ntwo\n");
    assert_eq!(instances(&world, &project).len(), 1, "never two on the same data");
    world.kiln_in(&project, ["rollback"]).expect_done();
    assert_eq!(log(), "one\ntwo\none\n");
    // The data outlives `down`, and goes with `down --volumes`.
    world.kiln_in(&project, ["down"]).expect_done();
    world.kiln_in(&project, ["up"]).expect_done();
    assert!(log().starts_with("one\ntwo\none\n"));
    world.kiln_in(&project, ["down", "--volumes"]).expect_done();
    world.kiln_in(&project, ["up"]).expect_done();
    assert_eq!(log(), "two\n");
}

#[test]
fn a_failed_replacement_of_data_brings_the_old_one_back() {
    let world = world();
    let port = Port::claim();
    let project = project(
        &world,
        "undo",
        &format!(
            "services:
  store:
    image: busybox
    command: [busybox, httpd, -f, -p, '8080', -h, /data]
    ports: ['{}:8080']
    volumes: ['data:/data']
    configs: [{{ source: page, target: /data/index.html }}]
volumes: {{ data: }}
configs: {{ page: {{ content: 'kept' }} }}
",
            port.number()
        ),
    );
    world.kiln_in(&project, ["up"]).expect_done();
    assert_eq!(answer(&port), "kept");
    project.edit("compose.yaml", "[busybox, httpd,", "[busybox, no-such-applet,");
    world.kiln_in(&project, ["up"]).expect_code(4);
    wait_for_answer(&port, "kept");
    assert_eq!(instances(&world, &project).len(), 1);
}

#[test]
fn an_instance_that_ends_is_replaced_by_a_fresh_one() {
    let (world, project, port) = web();
    world.kiln_in(&project, ["up"]).expect_done();
    let before = instance(&world, &project, "web", "active").unwrap();
    common::kill(before["pid"].as_i64().unwrap());
    wait_until(PATIENCE, "a fresh instance", || {
        let now = instance(&world, &project, "web", "active")?;
        (now["id"] != before["id"] && now["state"] == "healthy").then_some(())
    });
    assert_eq!(answer(&port), "one");
}

#[test]
fn logs_are_kept_and_followed() {
    let world = world();
    let project = project(
        &world,
        "logs",
        "services:\n  talker:\n    image: busybox\n    \
         command: [sh, -c, 'echo hello; echo oops >&2; n=0; while :; do n=$$((n+1)); \
         echo line $$n; sleep 0.1; done']\n",
    );
    world.kiln_in(&project, ["up"]).expect_done();
    let lines = world.kiln_in(&project, ["logs", "--json"]).expect_done().json_lines();
    assert_eq!((&lines[0]["text"], &lines[0]["stream"]), (&"hello".into(), &"stdout".into()));
    assert!(lines.iter().any(|line| line["text"] == "oops" && line["stream"] == "stderr"));
    let following = world.call(["logs", "-f", "talker"]).dir(project.dir()).spawn().unwrap();
    following.wait_for("line 9", PATIENCE);
    assert!(following.stdout().contains("talker     | hello"));
    let tail = world.kiln_in(&project, ["logs", "-n", "2", "--json"]).expect_done().json_lines();
    assert_eq!(tail.len(), 2);
}

#[test]
fn exec_runs_inside_and_taints() {
    let (world, project, _port) = web();
    project.edit("compose.yaml", "build: ./web", "build: ./web\n    read_only: true");
    world.kiln_in(&project, ["up"]).expect_done();
    let said = world.kiln_in(&project, ["exec", "web", "cat", "/www/index.html"]).expect_done();
    assert_eq!(said.stdout, "one");
    let found = instance(&world, &project, "web", "active").unwrap();
    assert_eq!(found["verdict"], "drifted");
    world.kiln_in(&project, ["exec", "web", "sh", "-c", "exit 9"]).expect_code(9);
    world
        .kiln_in(&project, ["exec", "web", "sh", "-c", "echo x > /www/new"])
        .expect_code(1)
        .expect_stderr("Read-only file system");
    world.kiln_in(&project, ["exec", "web", "no-such-thing"]).expect_stderr("no-such-thing");
    world.kiln_in(&project, ["exec", "nobody", "true"]).expect_code(2);
}
