//! The spine: bake, serve, switch without loss, roll back, survive being killed.

mod common;

use common::{
    PATIENCE, answer, instance, instances, kill, page, project, wait_for_answer, web, world,
};
use kiln_testkit::{Port, Probe, wait_until};

#[test]
fn up_serves_and_up_again_does_nothing() {
    let (world, project, port) = web();
    let first = world.kiln_in(&project, ["up", "--json"]).expect_done().json();
    assert_eq!(first["switched"], true);
    assert_eq!(answer(&port), "one");
    let again = world.kiln_in(&project, ["up", "--json"]).expect_done().json();
    assert_eq!(again["switched"], false);
    assert_eq!(again["release"], first["release"]);
    assert_eq!(instances(&world, &project).len(), 1);
}

#[test]
fn an_edit_replaces_and_a_rollback_leads_back() {
    let (world, project, port) = web();
    let first = world.kiln_in(&project, ["up", "--json"]).expect_done().json();
    page(&project, "web", "two");
    let second = world.kiln_in(&project, ["up", "--json"]).expect_done().json();
    assert_ne!(first["release"], second["release"]);
    assert_eq!(answer(&port), "two");
    assert!(instance(&world, &project, "web", "standby").is_some(), "the old one stays warm");

    let back = world.kiln_in(&project, ["rollback", "--json"]).expect_done().json();
    assert_eq!(back["release"], first["release"]);
    assert_eq!(answer(&port), "one");
    let releases = world.kiln_in(&project, ["releases", "--json"]).expect_done().json();
    let left = releases["releases"]
        .as_array()
        .unwrap()
        .iter()
        .find(|release| release["release"] == second["release"])
        .unwrap()
        .clone();
    assert_eq!(left["quarantined"], true);
    let digits = &left["release"].as_str().unwrap().trim_start_matches("sha256:")[..12];
    let status = world.kiln_in(&project, ["status"]).expect_done();
    let words = format!("standby: {digits}, rolled back from (kiln rollback dev {digits})\n");
    assert!(status.stdout.contains(&words), "{words} in {status}");
    // There is none before the first.
    world.kiln_in(&project, ["rollback"]).expect_code(1).expect_stderr("no release before");
    // `up` deploys the source as it is: the quarantine is lifted.
    world.kiln_in(&project, ["up"]).expect_done();
    assert_eq!(answer(&port), "two");
}

#[test]
fn a_switch_loses_no_request_and_mixes_no_releases() {
    let (world, project, port) = web();
    world.kiln_in(&project, ["up"]).expect_done();
    let judge = |body: &[u8]| match body {
        b"one" | b"two" => Ok(String::from_utf8_lossy(body).into_owned()),
        other => Err(format!("{other:?}")),
    };
    let probing =
        Probe::local(port.number(), 500).judge(move |response| judge(&response.body)).start();
    page(&project, "web", "two");
    world.kiln_in(&project, ["up"]).expect_done();
    assert_eq!(answer(&port), "two", "the new release answers");
    world.kiln_in(&project, ["rollback"]).expect_done();
    assert_eq!(answer(&port), "one", "and then the old one again");
    let report = probing.stop().unwrap().expect_no_loss();
    assert!(report.requests() > 0, "{report}");
}

#[test]
fn down_frees_the_port_and_keeps_the_records() {
    let (world, project, port) = web();
    world.kiln_in(&project, ["up"]).expect_done();
    world.kiln_in(&project, ["down"]).expect_done();
    assert!(std::net::TcpListener::bind(("127.0.0.1", port.number())).is_ok());
    assert!(instances(&world, &project).is_empty());
    let history = world.kiln_in(&project, ["history", "--json"]).expect_done().json_lines();
    let kinds: Vec<&str> = history.iter().filter_map(|entry| entry["kind"].as_str()).collect();
    assert_eq!(kinds.first(), Some(&"release.cut"));
    assert_eq!(kinds.last(), Some(&"pointer"));
    assert!(kinds.contains(&"deploy.intent") && kinds.contains(&"deploy.outcome"));
    world.kiln_in(&project, ["up"]).expect_done();
    assert_eq!(answer(&port), "one");
}

#[test]
fn a_killed_agent_changes_nothing_for_clients() {
    let (world, project, port) = web();
    world.kiln_in(&project, ["up"]).expect_done();
    let before = instances(&world, &project);
    kill(world.role("agent").pid);
    assert_eq!(answer(&port), "one");
    // The next command starts an agent, which finds the same instance.
    let after = instances(&world, &project);
    assert_eq!(before[0]["pid"], after[0]["pid"]);
    page(&project, "web", "two");
    world.kiln_in(&project, ["up"]).expect_done();
    assert_eq!(answer(&port), "two");
}

#[test]
fn a_killed_front_serves_again_within_a_second() {
    let (world, project, port) = web();
    world.kiln_in(&project, ["up"]).expect_done();
    let worker = world
        .processes()
        .into_iter()
        .find(|process| process.command.contains("front") && process.command.contains("worker"))
        .expect("a front");
    kill(worker.pid);
    let killed = std::time::Instant::now();
    wait_for_answer(&port, "one");
    let took = killed.elapsed();
    assert!(took.as_millis() < 1000, "it took {took:?}");
}

#[test]
fn a_front_killed_together_with_its_minder_comes_back_by_itself() {
    let (world, project, port) = web();
    world.kiln_in(&project, ["up"]).expect_done();
    let front = || {
        let all = world.processes().into_iter();
        all.filter(|process| process.command.contains(" front ")).collect::<Vec<_>>()
    };
    let old = front();
    assert_eq!(old.len(), 2, "minder and worker: {old:?}");
    for process in &old {
        kill(process.pid);
    }
    wait_until(PATIENCE, "a new minder and worker", || {
        let now = front();
        let fresh = now.iter().all(|new| old.iter().all(|old| old.pid != new.pid));
        (now.len() == 2 && fresh).then_some(())
    });
    wait_for_answer(&port, "one");
}

#[test]
fn a_killed_shim_costs_its_instance_which_is_replaced() {
    let (world, project, port) = web();
    world.kiln_in(&project, ["up"]).expect_done();
    let before = instances(&world, &project)[0].clone();
    let id = before["id"].as_str().unwrap().to_owned();
    let shim = world
        .processes()
        .into_iter()
        .find(|process| process.command.contains("shim") && process.command.contains(&id))
        .expect("a shim");
    kill(shim.pid);
    wait_until(PATIENCE, "a fresh instance", || {
        let now = instance(&world, &project, "web", "active")?;
        (now["id"] != before["id"] && now["state"] == "healthy").then_some(())
    });
    assert_eq!(answer(&port), "one");
}

#[test]
fn two_roots_do_not_touch_each_other() {
    let (one, project_one, port_one) = web();
    let (two, project_two, port_two) = web();
    one.kiln_in(&project_one, ["up"]).expect_done();
    page(&project_two, "web", "other");
    two.kiln_in(&project_two, ["up"]).expect_done();
    assert_eq!((answer(&port_one), answer(&port_two)), ("one".into(), "other".into()));
    two.shutdown().expect_done();
    assert_eq!(answer(&port_one), "one");
}

#[test]
fn services_find_each_other_by_name_on_any_port() {
    let world = world();
    let port = Port::claim();
    let compose = format!(
        "name: names
services:
  web:
    image: busybox
    command: [busybox, httpd, -f, -p, '8080', -h, /www]
    ports: ['{}:8080']
    depends_on: [back]
    volumes: ['./cgi:/www:ro']
  back:
    image: busybox
    command: [busybox, nc, -ll, -p, '7777', -e, echo, from the back]
    expose: ['7777']
    networks: {{ default: {{ aliases: [also] }} }}
",
        port.number()
    );
    let project = project(&world, "names", &compose);
    project.write_program(
        "cgi/cgi-bin/ask",
        "#!/bin/sh\necho; busybox nc back 7777 </dev/null; busybox nc also 7777 </dev/null\n",
    );
    world.kiln_in(&project, ["up"]).expect_done();
    let said = kiln_testkit::http::get(port.number(), "/cgi-bin/ask").unwrap().text();
    assert_eq!(said, "from the back\nfrom the back\n");
}
