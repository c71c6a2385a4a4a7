//! It holds at size: more services than a select, a queue or a table of old would take.

mod common;

use common::{instances, project, world};
use kiln_testkit::wait_until;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

/// More than the 128 after which `logs` once fell silent.
const SERVICES: usize = 140;

#[test]
fn logs_of_many_services_are_read_and_followed() {
    let world = world();
    let mut compose = String::from("name: many\nservices:\n");
    for number in 0..SERVICES {
        let _ = write!(
            compose,
            "  s{number}:\n    build: ./one\n    volumes: [\"./go:/go:ro\"]\n    stop_signal: KILL\n"
        );
    }
    let project = project(&world, "many", &compose);
    project.write("go/README", "the programs wait for a file here\n");
    project.write(
        "one/Dockerfile",
        "FROM busybox\nCMD [\"busybox\", \"sh\", \"-c\", \"echo first; \
         until [ -e /go/now ]; do busybox sleep 1; done; echo second; busybox sleep 100000\"]\n",
    );
    let up = world.call(["up"]).dir(project.dir()).patience(Duration::from_secs(180));
    up.run().unwrap().expect_done();
    assert_eq!(instances(&world, &project).len(), SERVICES);
    let who = |text: &str, word: &str| -> BTreeSet<String> {
        let lines = text.lines().filter_map(|line| line.split_once('|'));
        let said = lines.filter(|(_, said)| said.trim() == word);
        said.map(|(service, _)| service.trim().to_owned()).collect()
    };
    let read = || world.kiln_in(&project, ["logs"]).expect_done().stdout;
    let patience = Duration::from_secs(60);
    wait_until(patience, "the first line of each", || {
        (who(&read(), "first").len() == SERVICES).then_some(())
    });
    let last = world.kiln_in(&project, ["logs", "-n", "1"]).expect_done().stdout;
    assert_eq!(last.lines().count(), SERVICES, "one of each: {last}");
    let follow = world.call(["logs", "-f"]).dir(project.dir()).spawn().unwrap();
    wait_until(patience, "the follower", || {
        (who(&follow.stdout(), "first").len() == SERVICES).then_some(())
    });
    project.write("go/now", "");
    wait_until(patience, "the second line of each", || {
        (who(&follow.stdout(), "second").len() == SERVICES).then_some(())
    });
    follow.signal(rustix::process::Signal::TERM).unwrap();
    let _ = follow.wait();
    let down = world.call(["down"]).dir(project.dir()).patience(Duration::from_secs(180));
    down.run().unwrap().expect_done();
}
