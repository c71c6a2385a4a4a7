//! The front as a user of `kiln` meets it: a port that somebody else has, what a switch leaves
//! behind, a newer program.

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use common::{KILN, PATIENCE, answer, instances, kill, page, project, wait_for_answer, web, world};
use kiln_testkit::{Call, Port, Project, World, wait_until};
use rustix::process::{Pid, Signal, kill_process};

/// A service that gives back what it gets, over TCP.
fn echo(world: &World, port: &Port) -> Project {
    let compose = format!(
        "name: echo\nservices:\n  echo:\n    image: busybox\n    environment: {{ V: '1' }}\n    \
         command: [busybox, nc, -ll, -p, '8080', -e, busybox, cat]\n    \
         ports: [\"{}:8080\"]\n",
        port.number()
    );
    project(world, "echo", &compose)
}

fn says(stream: &mut TcpStream, word: &[u8]) -> bool {
    let mut back = vec![0; word.len()];
    stream.write_all(word).is_ok() && stream.read_exact(&mut back).is_ok() && back == word
}

#[test]
fn a_port_that_somebody_else_took_stops_no_other_project() {
    let (world, first, port) = web();
    world.kiln_in(&first, ["up"]).expect_done();
    let other = Port::claim();
    let compose = format!(
        "name: other\nservices:\n  web:\n    build: ./web\n    ports: [\"{}:8080\"]\n",
        other.number()
    );
    let second = project(&world, "other", &compose);
    page(&second, "web", "two");
    world.kiln_in(&second, ["up"]).expect_done();
    // Front and minder die, and before the agent brings them back somebody takes a port.
    let agent = Pid::from_raw(i32::try_from(world.role("agent").pid).unwrap()).unwrap();
    kill_process(agent, Signal::STOP).unwrap();
    let front: Vec<_> =
        world.processes().into_iter().filter(|it| it.command.contains(" front ")).collect();
    assert_eq!(front.len(), 2, "{front:#?}");
    front.iter().for_each(|process| kill(process.pid));
    let stranger = wait_until(PATIENCE, "the port to be free", || {
        TcpListener::bind(("0.0.0.0", port.number())).ok()
    });
    kill_process(agent, Signal::CONT).unwrap();
    wait_for_answer(&other, "two");
    page(&second, "web", "three");
    world.kiln_in(&second, ["up"]).expect_done();
    assert_eq!(answer(&other), "three");
    let said = world.kiln_in(&first, ["status"]).expect_done().stdout;
    assert!(said.contains(&format!("cannot listen on 0.0.0.0:{}/tcp", port.number())), "{said}");
    world.kiln_in(&second, ["down"]).expect_done();
    drop(stranger);
    wait_for_answer(&port, "one");
    let said = world.kiln_in(&first, ["status", "--json"]).expect_done().json();
    assert_eq!(said["front"], serde_json::json!([]));
}

#[test]
fn what_stays_behind_is_told_and_an_agent_that_dies_changes_nothing() {
    let world = world();
    let port = Port::claim();
    let project = echo(&world, &port);
    world.kiln_in(&project, ["up"]).expect_done();
    let mut client = TcpStream::connect(("127.0.0.1", port.number())).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(says(&mut client, b"one"));
    let switched = Instant::now();
    project.edit("compose.yaml", "V: '1'", "V: '2'");
    let left = "1 connection is still with release";
    let says_so = |verb: &str| {
        let said = world.kiln_in(&project, [verb]).expect_done().stdout;
        assert!(said.contains(left), "{verb}: {said}");
    };
    says_so("up");
    // From here on its release is neither active nor standby.
    project.edit("compose.yaml", "V: '2'", "V: '3'");
    says_so("up");
    kill(world.role("agent").pid);
    assert_eq!(instances(&world, &project).len(), 3, "found again by the next agent");
    assert!(says(&mut client, b"two"), "it goes on");
    says_so("status");
    while says(&mut client, b"more") {
        std::thread::sleep(Duration::from_millis(20));
    }
    // Ten seconds in `dev`, counted from the switch away from it.
    let lived = switched.elapsed();
    assert!(lived > Duration::from_secs(9), "{lived:?}");
    assert!(lived < Duration::from_secs(20), "{lived:?}");
    wait_until(PATIENCE, "its instance to be stopped", || {
        (instances(&world, &project).len() == 2).then_some(())
    });
}

#[test]
fn a_newer_program_brings_its_own_front_and_nobody_notices() {
    let (world, project, port) = web();
    world.kiln_in(&project, ["up"]).expect_done();
    let probing = kiln_testkit::Probe::local(port.number(), 200).start();
    let other = world.home().join("kiln-of-tomorrow");
    std::fs::copy(KILN, &other).unwrap();
    let call = Call::new(&other).arg("--root").arg(world.root()).arg("ps");
    call.dir(project.dir()).run().unwrap().expect_done();
    wait_until(PATIENCE, "a front of the newer program", || {
        let front =
            world.processes().into_iter().filter(|process| process.command.contains(" front "));
        let exes: Vec<_> = front
            .filter_map(|process| std::fs::read_link(format!("/proc/{}/exe", process.pid)).ok())
            .collect();
        (exes.len() == 2 && exes.iter().all(|exe| *exe == other)).then_some(())
    });
    assert_eq!(answer(&port), "one");
    probing.stop().unwrap().expect_no_loss();
}

#[test]
fn a_front_that_was_stopped_costs_one_question_and_not_each() {
    let (world, project, port) = web();
    world.kiln_in(&project, ["up"]).expect_done();
    let worker = world.role("front").pid;
    let worker = Pid::from_raw(i32::try_from(worker).unwrap()).unwrap();
    kill_process(worker, Signal::STOP).unwrap();
    let front =
        || world.kiln_in(&project, ["status", "--json"]).expect_done().json()["front"].clone();
    // Whoever finds it out first, the agent by itself or this.
    wait_until(PATIENCE, "it to be found out", || {
        front().to_string().contains("has not answered").then_some(())
    });
    // Each of these waited for ten seconds.
    let begun = Instant::now();
    for _ in 0..4 {
        assert!(front().to_string().contains("has not answered"));
        world.kiln_in(&project, ["ps"]).expect_done();
    }
    page(&project, "web", "two");
    let refused = world.kiln_in(&project, ["up"]).expect_code(1);
    let cure = format!("kill -CONT {}", worker.as_raw_nonzero());
    assert!(refused.stderr.contains(&cure), "{refused}");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    kill_process(worker, Signal::CONT).unwrap();
    wait_until(PATIENCE, "it to be heard again", || {
        (front() == serde_json::json!([])).then_some(())
    });
    assert_eq!(answer(&port), "one", "nothing was changed");
    world.kiln_in(&project, ["up"]).expect_done();
    assert_eq!(answer(&port), "two");
    // One that is stopped for good is not left behind: the world looks when it ends.
    kill_process(worker, Signal::STOP).unwrap();
    world.shutdown().expect_done();
}

#[test]
fn streams_of_events_do_not_hold_up_a_pause() {
    let world = world();
    let port = Port::claim();
    let events = r#"printf "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"; while echo "data: x" && echo; do sleep 1; done"#;
    let compose = format!(
        "name: events\nservices:\n  events:\n    image: busybox\n    environment: {{ V: '1' }}\n    \
         command: [busybox, nc, -ll, -p, '8080', -e, busybox, sh, -c, '{events}']\n    \
         volumes: ['data:/data']\n    ports: [\"{}:8080\"]\nvolumes: {{ data: }}\n",
        port.number()
    );
    let project = project(&world, "events", &compose);
    world.kiln_in(&project, ["up"]).expect_done();
    let mut client = TcpStream::connect(("127.0.0.1", port.number())).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut heard = String::new();
    while !heard.contains("data: x") {
        let mut block = [0; 512];
        let count = client.read(&mut block).unwrap();
        heard.push_str(&String::from_utf8_lossy(&block[..count]));
        assert!(count > 0, "{heard}");
    }
    project.edit("compose.yaml", "V: '1'", "V: '2'");
    let begun = Instant::now();
    let up = world.kiln_in(&project, ["up"]).expect_done();
    // So long the pause waits for what may still end by itself.
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}: {up}", begun.elapsed());
    assert!(up.stderr.contains("replaced what holds data"), "{up}");
    client.read_to_end(&mut Vec::new()).unwrap_or_default();
}
