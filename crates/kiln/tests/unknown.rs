//! What cannot be asked is unknown, and nothing is started, stopped or believed for it: shims that
//! were stopped, an agent without descriptors, run files of another boot, clients that are gone.

mod common;

use std::time::{Duration, Instant};

use common::{PATIENCE, answer, instances, kill, project, wait_for_answer, web, world};
use kiln_testkit::{Port, Project, World, wait_until};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::Value;

/// The parent of a program is its shim.
fn shim_of(instance: &Value) -> Pid {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", instance["pid"])).unwrap();
    let parent = stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap();
    Pid::from_raw(parent.parse().unwrap()).unwrap()
}

fn pid_of(instance: &Value) -> Pid {
    Pid::from_raw(i32::try_from(instance["pid"].as_i64().unwrap()).unwrap()).unwrap()
}

fn only(world: &World, project: &Project, service: &str) -> Value {
    let all = instances(world, project).into_iter();
    let mut all = all.filter(|instance| instance["service"] == service);
    let first = all.next().unwrap_or_else(|| panic!("no `{service}`"));
    assert!(all.next().is_none(), "`{service}` is there twice");
    first
}

/// Kinds of the ledger's entries about `instance`, oldest first.
fn findings(world: &World, project: &Project, instance: &Value) -> Vec<String> {
    let history = world.kiln_in(project, ["history", "--json"]).json_lines();
    let about = history.into_iter().filter(|entry| entry["data"]["instance"] == instance["id"]);
    about.map(|entry| entry["kind"].as_str().unwrap().to_owned()).collect()
}

fn wait_for_state(world: &World, project: &Project, service: &str, state: &str) -> Value {
    wait_until(PATIENCE, &format!("`{service}` to be {state}"), || {
        let found = only(world, project, service);
        (found["state"] == state).then_some(found)
    })
}

#[test]
fn a_hung_shim_delays_nobody_and_its_instance_is_unknown() {
    let world = world();
    let service = "{ image: busybox, command: [sleep, '100000'] }";
    let compose = format!("services:\n  a: {service}\n  b: {service}\n");
    let project = project(&world, "hung", &compose);
    world.kiln_in(&project, ["up"]).expect_done();
    let before = only(&world, &project, "a");
    let shim = shim_of(&before);
    kill_process(shim, Signal::STOP).unwrap();
    // It is noticed while the agent goes on.
    let found = wait_for_state(&world, &project, "a", "unknown");
    assert_eq!((&found["id"], &found["pid"]), (&before["id"], &before["pid"]));
    assert!(found["how"].as_str().unwrap().contains("shim"), "{found}");
    // A new agent comes up as fast as ever, and knows as much.
    kill(world.role("agent").pid);
    let begun = Instant::now();
    let found = only(&world, &project, "a");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!((&found["id"], &found["state"]), (&before["id"], &"unknown".into()));
    assert_eq!(found["pid"], before["pid"], "nothing was stopped");
    assert_eq!(only(&world, &project, "b")["state"], "healthy");
    let status = world.kiln_in(&project, ["status"]).expect_done();
    assert!(status.stdout.contains("unknown"), "{}", status.stdout);
    // An `up` starts nothing in its place.
    world.kiln_in(&project, ["up"]).expect_done();
    assert_eq!(only(&world, &project, "a")["id"], before["id"]);
    kill_process(shim, Signal::CONT).unwrap();
    let found = wait_for_state(&world, &project, "a", "healthy");
    assert_eq!((&found["id"], &found["pid"]), (&before["id"], &before["pid"]));
    let said = findings(&world, &project, &before);
    for kind in ["instance.unknown", "instance.known"] {
        assert!(said.iter().any(|said| said == kind), "{kind} in {said:?}");
    }
    // What is stopped by name ends, shim or no shim.
    kill_process(shim, Signal::STOP).unwrap();
    world.kiln_in(&project, ["down"]).expect_done();
    assert!(instances(&world, &project).is_empty());
}

/// Sets how many descriptors the agent may have. Gives what it might have before.
fn descriptors(world: &World, limit: u64) -> u64 {
    let agent = Pid::from_raw(world.role("agent").pid.cast_signed()).unwrap();
    let path = format!("/proc/{}/limits", agent.as_raw_nonzero());
    let limits = std::fs::read_to_string(path).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let maximum = line.split_whitespace().nth(4).unwrap().parse().ok();
    let wanted = Rlimit { current: Some(limit), maximum };
    prlimit(Some(agent), Resource::Nofile, wanted).unwrap().current.unwrap_or(u64::MAX)
}

#[test]
fn an_agent_without_descriptors_believes_nothing_and_says_so() {
    let world = world();
    let port = Port::claim();
    let compose = format!(
        "services:
  store:
    image: busybox
    command: [sh, -c, 'mkdir /data/busy || echo twice >> /data/said;
      trap \"rmdir /data/busy; exit 1\" TERM; echo once >> /data/said;
      busybox httpd -p 8080 -h /data; while :; do sleep 0.05; done']
    ports: ['{}:8080']
    volumes: ['data:/data']
volumes: {{ data: }}
",
        port.number()
    );
    let project = project(&world, "short", &compose);
    world.kiln_in(&project, ["up"]).expect_done();
    let before = only(&world, &project, "store");
    let enough = descriptors(&world, 8);
    world.kiln_in(&project, ["ps"]).expect_code(1).expect_stderr("short of file descriptors");
    // After a while it asks how the shim is, and cannot.
    let ledger = world.root().join("ledger");
    wait_until(PATIENCE, "an entry in the ledger", || {
        let said = std::process::Command::new("grep")
            .args(["-rq", "instance.unknown"])
            .arg(&ledger)
            .status();
        said.unwrap().success().then_some(())
    });
    descriptors(&world, enough);
    let found = wait_for_state(&world, &project, "store", "healthy");
    assert_eq!((&found["id"], &found["pid"]), (&before["id"], &before["pid"]));
    // What ends meanwhile has one in its place as soon as there can be one.
    descriptors(&world, 8);
    let program = pid_of(&before);
    kill_process(program, Signal::TERM).unwrap();
    let process = format!("/proc/{}", program.as_raw_nonzero());
    let gone = || !std::path::Path::new(&process).exists();
    wait_until(PATIENCE, "it to be gone", || gone().then_some(()));
    world.kiln_in(&project, ["ps"]).expect_code(1);
    descriptors(&world, enough);
    wait_until(PATIENCE, "a fresh one", || {
        let found = only(&world, &project, "store");
        (found["state"] == "healthy" && found["id"] != before["id"]).then_some(())
    });
    let said = kiln_testkit::http::get(port.number(), "/said").unwrap().text();
    assert_eq!(said, "once\nonce\n", "never two writers");
    let log = std::fs::read_to_string(world.root().join("agent.log")).unwrap();
    assert!(!log.contains("the front is not whole"), "nor was the front taken for gone: {log}");
}

#[test]
fn health_is_watched_by_the_next_agent_as_before() {
    let world = world();
    let compose = "services:
  w:
    image: busybox
    command: [sh, -c, 'trap \"rm /tmp/ok\" USR1; touch /tmp/ok; while :; do sleep 0.05; done']
    healthcheck: { test: [CMD, test, -e, /tmp/ok], interval: 200ms, retries: 2 }
";
    let project = project(&world, "stale", compose);
    world.kiln_in(&project, ["up"]).expect_done();
    let before = only(&world, &project, "w");
    kill(world.role("agent").pid);
    kill_process(pid_of(&before), Signal::USR1).unwrap();
    let found = wait_for_state(&world, &project, "w", "unhealthy");
    assert_eq!(found["id"], before["id"]);
}

#[test]
fn what_could_not_be_built_up_again_is_tried_again_and_shown() {
    let (world, project, port) = web();
    world.kiln_in(&project, ["up"]).expect_done();
    let first = only(&world, &project, "web");
    // The power goes: nothing runs, and what was not flushed is lost.
    for process in world.processes() {
        // Some are gone with others.
        let pid = Pid::from_raw(process.pid.cast_signed()).unwrap();
        let _ = kill_process(pid, Signal::KILL);
    }
    wait_until(PATIENCE, "all to be gone", || world.processes().is_empty().then_some(()));
    std::fs::remove_dir_all(world.root().join("run")).unwrap();
    // A killed process has no command line any more before its sockets are closed.
    let other = wait_until(PATIENCE, "the port to be free", || {
        std::net::TcpListener::bind(("0.0.0.0", port.number())).ok()
    });
    let trouble = wait_until(PATIENCE, "the trouble", || {
        let status = world.kiln_in(&project, ["status", "--json"]).expect_done().json();
        (!status["trouble"].is_null()).then(|| status["trouble"].clone())
    });
    assert!(trouble["why"].as_str().unwrap().contains("taken"), "{trouble}");
    let shown = world.kiln_in(&project, ["status"]).expect_done().stdout;
    assert!(shown.contains("could not be built up again"), "{shown}");
    drop(other);
    wait_for_answer(&port, "one");
    wait_until(PATIENCE, "the trouble to be over", || {
        let status = world.kiln_in(&project, ["status", "--json"]).expect_done().json();
        status["trouble"].is_null().then_some(())
    });
    assert_ne!(only(&world, &project, "web")["id"], first["id"]);
}

#[test]
fn a_command_whose_client_has_gone_does_nothing_afterwards() {
    let world = world();
    let compose = "services:
  w:
    image: busybox
    command: [sh, -c, 'trap \"touch /tmp/ok\" USR1; while :; do sleep 0.05; done']
    healthcheck: { test: [CMD, test, -e, /tmp/ok], interval: 1s, start_period: 60s }
    volumes: ['data:/data']
volumes: { data: }
";
    let project = project(&world, "gone", compose);
    let up = world.call(["up"]).dir(project.dir()).spawn().unwrap();
    let pid = wait_until(PATIENCE, "the program", || {
        let all = instances(&world, &project);
        all.first().and_then(|instance| instance["pid"].as_i64())
    });
    for signal in [Signal::INT, Signal::KILL, Signal::TERM] {
        let down = world.call(["down", "--volumes"]).dir(project.dir()).spawn().unwrap();
        down.wait_for("waiting", PATIENCE);
        down.signal(signal).unwrap();
        down.wait().unwrap();
    }
    let program = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(program, Signal::USR1).unwrap();
    up.wait().unwrap().expect_done();
    // Its turn would come now: one that is there to the end has it.
    world.kiln_in(&project, ["up"]).expect_done();
    assert_eq!(only(&world, &project, "w")["pid"], pid, "nothing was stopped");
    let history = world.kiln_in(&project, ["history", "--json"]).json_lines();
    let done = |kind: &str| history.iter().any(|entry| entry["kind"] == kind);
    assert!(!done("down") && !done("volumes.removed"), "{history:?}");
}

#[test]
fn clients_killed_at_any_moment_of_an_up_leave_the_old_or_the_new() {
    let (world, project, port) = web();
    world.kiln_in(&project, ["up"]).expect_done();
    let mut serving = "one".to_owned();
    for wait in [0, 5, 12, 20, 30, 45, 70, 100] {
        let next = format!("after {wait}");
        common::page(&project, "web", &next);
        let up = world.call(["up"]).dir(project.dir()).spawn().unwrap();
        // Not for a condition: this is the moment at which the client dies.
        std::thread::sleep(Duration::from_millis(wait));
        up.signal(Signal::KILL).unwrap();
        up.wait().unwrap();
        wait_until(PATIENCE, "either release and nothing beside it", || {
            let all = instances(&world, &project);
            let candidates = all.iter().any(|instance| {
                let slots = instance["slots"].as_array().unwrap();
                slots.is_empty() || slots.iter().any(|slot| slot["role"] == "candidate")
            });
            let said = answer(&port);
            let known = said == serving || said == next;
            assert!(known || said.starts_with("no answer"), "{said}");
            (known && !candidates).then(|| serving = said)
        });
    }
    common::page(&project, "web", "last");
    world.kiln_in(&project, ["up"]).expect_done();
    assert_eq!(answer(&port), "last");
}

#[test]
fn lost_and_garbled_run_files_cost_nobody_anything() {
    let world = world();
    let port = Port::claim();
    let compose = format!(
        "services:
  web:
    image: busybox
    command: [busybox, httpd, -f, -p, '8080', -h, /www]
    configs: [{{ source: page, target: /www/index.html }}]
    environment: {{ V: '1' }}
    depends_on: [back]
    ports: ['{}:8080']
  back: {{ image: busybox, command: [busybox, httpd, -f, -p, '80', -h, /bin], expose: ['80'] }}
configs: {{ page: {{ content: 'here' }} }}
",
        port.number()
    );
    let project = project(&world, "files", &compose);
    world.kiln_in(&project, ["up"]).expect_done();
    // `back` is shared by two slots from now on, and was born in the older one.
    project.edit("compose.yaml", "V: '1'", "V: '2'");
    world.kiln_in(&project, ["up"]).expect_done();
    let active = |service: &str| common::instance(&world, &project, service, "active").unwrap();
    let before = [active("web")["id"].clone(), active("back")["id"].clone()];
    let run = world.root().join("run/files/dev.json");
    let probing = kiln_testkit::Probe::local(port.number(), 100).start();
    for damage in ["", "{", "{\"slots\":[],\"instances\":[]}"] {
        kill(world.role("agent").pid);
        match damage {
            "" => std::fs::remove_file(&run).unwrap(),
            text => std::fs::write(&run, text).unwrap(),
        }
        let now = [active("web")["id"].clone(), active("back")["id"].clone()];
        assert_eq!(now, before, "after {damage:?}");
        wait_for_state(&world, &project, "back", "healthy");
        // Names lead where they did.
        let asked = ["exec", "web", "busybox", "wget", "-qO", "/dev/null", "http://back/busybox"];
        world.kiln_in(&project, asked).expect_done();
    }
    probing.stop().unwrap().expect_no_loss();
    project.edit("compose.yaml", "V: '2'", "V: '3'");
    world.kiln_in(&project, ["up"]).expect_done();
    assert_eq!(answer(&port), "here");
    assert_eq!(active("back")["id"], before[1]);
}

#[test]
fn a_full_disk_leaves_down_whole_or_undone() {
    let (world, project, port) = web();
    // The root lies on a small disk of its own.
    let (root, aside) = (world.root(), world.home().join("aside"));
    std::fs::rename(&root, &aside).unwrap();
    std::fs::create_dir(&root).unwrap();
    let sh = |script: &str| {
        let run = kiln_testkit::Call::new("/bin/sh").args(["-c", script]).env("ROOT", &root);
        run.env("ASIDE", &aside).run().unwrap()
    };
    sh("mount -t tmpfs -o size=256m none \"$ROOT\" && cp -a \"$ASIDE/.\" \"$ROOT\"").expect_done();
    world.kiln_in(&project, ["up"]).expect_done();
    let before = only(&world, &project, "web");
    // The last page of a file takes what fits into it, however full the disk is: leave little room.
    let ledger = root.join("ledger/log.jsonl");
    while ledger.metadata().unwrap().len() % 4096 < 3850 {
        world.kiln_in(&project, ["exec", "web", "true"]).expect_done();
    }
    sh("dd if=/dev/zero of=\"$ROOT/filler\" bs=4k; test -s \"$ROOT/filler\"").expect_done();
    world.kiln_in(&project, ["down"]).expect_code(1).expect_stderr("nothing was stopped");
    assert_eq!(only(&world, &project, "web")["id"], before["id"], "undone");
    assert_eq!(answer(&port), "one");
    std::fs::remove_file(root.join("filler")).unwrap();
    world.kiln_in(&project, ["down"]).expect_done();
    assert!(instances(&world, &project).is_empty(), "whole");
    kill(world.role("agent").pid);
    assert!(instances(&world, &project).is_empty(), "and it stays so");
    world.shutdown().expect_done();
    sh("umount -l \"$ROOT\"").expect_done();
}

#[test]
fn a_switch_that_is_taken_back_drains() {
    let world = world();
    let port = Port::claim();
    let compose = format!(
        "services:
  web:
    image: busybox
    command: [busybox, httpd, -f, -p, '8080', -h, /www]
    configs: [{{ source: page, target: /www/index.html }},
              {{ source: slow, target: /www/cgi-bin/slow, mode: 0755 }}]
    environment: {{ V: '1' }}
    ports: ['{}:8080']
  worker:
    image: busybox
    command: [sleep, '100000']
    healthcheck: {{ test: [CMD, 'true'], interval: 1s, retries: 1 }}
configs:
  page: {{ content: 'here' }}
  slow:
    content: |
      #!/bin/sh
      sleep 0.5
      echo; echo slow but there
",
        port.number()
    );
    let project = project(&world, "back", &compose);
    world.kiln_in(&project, ["up"]).expect_done();
    project.edit("compose.yaml", "V: '1'", "V: '2'");
    project.edit("compose.yaml", "[CMD, 'true']", "[CMD, 'false']");
    let judge = |text: String| match text.contains("slow but there") {
        true => Ok("slow".to_owned()),
        false => Err(text),
    };
    let quick = kiln_testkit::Probe::local(port.number(), 100).start();
    let slow = kiln_testkit::Probe::local(port.number(), 20)
        .path("/cgi-bin/slow")
        .judge(move |response| judge(response.text()))
        .start();
    world.kiln_in(&project, ["up"]).expect_code(4).expect_stderr("service `worker`");
    quick.stop().unwrap().expect_no_loss();
    slow.stop().unwrap().expect_no_loss();
}

#[test]
fn a_timeout_beyond_all_clocks_is_none() {
    let (world, project, port) = web();
    let longest = u64::MAX.to_string();
    world.kiln_in(&project, ["up", "--timeout", &longest]).expect_done();
    common::page(&project, "web", "two");
    world.kiln_in(&project, ["up", "--timeout", &longest]).expect_done();
    world.kiln_in(&project, ["rollback", "--timeout", &longest]).expect_done();
    assert_eq!(answer(&port), "one");
}
