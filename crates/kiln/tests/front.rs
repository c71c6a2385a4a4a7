//! The front as a user of `kiln` meets it: a port that somebody else has, a newer program.

mod common;

use std::net::TcpListener;

use common::{KILN, PATIENCE, answer, kill, page, project, wait_for_answer, web};
use kiln_testkit::{Call, Port, wait_until};
use rustix::process::{Pid, Signal, kill_process};

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
