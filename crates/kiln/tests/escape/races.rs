//! What is right when it is looked at and wrong a moment later: each is tried many times.

use std::time::{Duration, Instant};

use kiln_testkit::wait_until;

use crate::common::{PATIENCE, world};
use crate::ways::{log, probed, verdicts};

#[test]
fn a_process_on_its_way_in_shows_nothing_of_the_host() {
    let world = world();
    let compose = "services:\n  a:\n    build: ./a\n    command: [probe, watch]\n    \
                   cap_add: [SYS_PTRACE]\n    healthcheck: { test: [CMD, 'true'], interval: 1s }\n";
    let project = probed(&world, "watched", compose, &[("a", "")]);
    world.kiln_in(&project, ["up"]).expect_done();
    let seen = |text: &str| -> u32 {
        let counts = text.lines().filter_map(|line| line.strip_prefix("seen ")?.parse().ok());
        counts.max().unwrap_or(0)
    };
    let mut joined = 0;
    let text = wait_until(PATIENCE * 4, "enough joiners to have been seen", || {
        for _ in 0..5 {
            world.kiln_in(&project, ["exec", "a", "sleep", "0.1"]).expect_done();
            joined += 1;
        }
        let text = log(&world, &project, "a", "");
        (seen(&text) >= 15 && joined >= 20).then_some(text)
    });
    let escaped: Vec<&str> = text.lines().filter(|line| line.contains("ESCAPED")).collect();
    assert!(escaped.is_empty(), "{escaped:#?}");
}

#[test]
fn a_working_directory_that_changes_under_the_hand() {
    let world = world();
    let compose = "services:\n  \
        att:\n    build: ./a\n    command: [probe, swap, /v/wd, '3']\n    volumes: ['v:/v']\n  \
        vic:\n    build: ./a\n    command: [sleep, '1000']\n    working_dir: /v/wd\n    \
        volumes: ['v:/v']\n    \
        healthcheck:\n      test: [CMD-SHELL, 'probe where >> /tmp/where']\n      interval: 1s\n      \
        retries: 1000\n\
        volumes: { v: {} }\n";
    let project = probed(&world, "raced", compose, &[("a", "")]);
    // It may be refused, when the link is there; whoever gets in has to be inside.
    let begun = Instant::now();
    let (mut inside, mut refused) = (0, 0);
    // A start that meets the link is refused too, and leaves nothing.
    let vic_is_there = || {
        let there = world.kiln_in(&project, ["ps"]).stdout.contains("vic");
        there || world.kiln_in(&project, ["up"]).success()
    };
    // For some seconds, and on a busy machine until it was tried often enough.
    while inside + refused < 60
        && (begun.elapsed() < Duration::from_secs(8) || inside + refused < 10)
    {
        vic_is_there();
        let output = world.kiln_in(&project, ["exec", "vic", "probe", "where"]);
        match verdicts(&output.stdout).get("where").map(String::as_str) {
            Some("held") => inside += 1,
            Some(other) => panic!("{other}"),
            None => refused += 1,
        }
    }
    let checked = wait_until(PATIENCE * 4, "a command to get in", || {
        vic_is_there();
        let output = world.kiln_in(&project, ["exec", "vic", "cat", "/tmp/where"]);
        output.success().then_some(output.stdout)
    });
    assert!(!checked.contains("ESCAPED"), "{checked}");
}

#[test]
fn a_working_directory_that_is_a_link_to_any_descriptor() {
    let world = world();
    let compose = "services:\n  \
        att: { build: ./a, command: [sleep, '1000'], volumes: ['v:/v'] }\n  \
        vic: { build: ./a, command: [sleep, '1000'], volumes: ['v:/v'], working_dir: /v/wd }\n\
        volumes: { v: {} }\n";
    let project = probed(&world, "linked", compose, &[("a", "")]);
    world.kiln_in(&project, ["up"]).expect_done();
    // Whichever of them a session has open while it changes there.
    for number in 0..=24 {
        let script = format!("rm -rf /v/wd; ln -s /proc/self/fd/{number} /v/wd");
        world.kiln_in(&project, ["exec", "att", "sh", "-c", &script]).expect_done();
        let output = world.kiln_in(&project, ["exec", "vic", "probe", "where"]).expect_code(1);
        assert!(output.stderr.contains("`/v/wd`") && output.stdout.is_empty(), "{output}");
    }
}

#[test]
fn a_fifo_that_comes_later_holds_nobody_up() {
    let world = world();
    let compose = "services:\n  a:\n    build: ./a\n    command: [sh, -c, \
        'mkdir -p /run/etc; echo app:x:7:7::/: > /run/etc/passwd; touch /run/ready; \
        probe until /run/go; rm /run/etc/passwd; mkfifo /run/etc/passwd; touch /run/gone; sleep 1000']\n    \
        healthcheck: { test: [CMD, busybox, test, -e, /run/ready], interval: 1s, retries: 2 }\n";
    let project = probed(&world, "later", compose, &[("a", "")]);
    std::fs::create_dir_all(project.path("a/rootfs")).unwrap();
    project.write(
        "a/Dockerfile",
        "FROM busybox AS tools\nFROM scratch\nCOPY rootfs/ /\n\
         COPY --from=tools /bin /bin\nCOPY probe /bin/\n",
    );
    std::os::unix::fs::symlink("/run/etc", project.path("a/rootfs/etc")).unwrap();
    world.kiln_in(&project, ["up"]).expect_done();
    world.kiln_in(&project, ["exec", "a", "touch", "/run/go"]).expect_done();
    wait_until(PATIENCE, "the FIFO to be refused", || {
        let begun = Instant::now();
        let output = world.kiln_in(&project, ["exec", "a", "true"]);
        // A session that waits is given up after thirty.
        assert!(begun.elapsed() < Duration::from_secs(25), "it was waited for\n{output}");
        let said = output.stderr.contains("/etc/passwd") && output.stderr.contains("regular");
        (!output.success() && said).then_some(())
    });
}
