//! The agent on its operator's worst day: beside another, replaced, told to leave; what ends while
//! a deploy is under way; data in common; which release a rollback means.

mod common;

use std::time::Instant;

use common::{
    KILN, PATIENCE, answer, instance, instances, kill, page, project, wait_for_answer, web, world,
};
use kiln_testkit::{Call, Port, Probe, Project, World, wait_until};
use rustix::process::Signal;

/// The id of the instance of `service` that serves, once it is healthy.
fn serving(world: &World, project: &Project, service: &str) -> String {
    wait_until(PATIENCE, &format!("a healthy `{service}`"), || {
        let found = instance(world, project, service, "active")?;
        (found["state"] == "healthy").then(|| found["id"].as_str().unwrap().to_owned())
    })
}

#[test]
fn a_second_agent_is_refused_and_the_first_goes_on() {
    let (world, project, port) = web();
    world.kiln_in(&project, ["up"]).expect_done();
    let before = world.role("agent").pid;
    world.kiln(["serve"]).expect_code(1).expect_stderr("runs already");
    assert_eq!(world.role("agent").pid, before);
    assert_eq!(answer(&port), "one");
}

#[test]
fn another_build_takes_the_agents_place_and_nobody_notices() {
    let (world, project, port) = web();
    world.kiln_in(&project, ["up"]).expect_done();
    let (agent, web) = (world.role("agent").pid, instances(&world, &project)[0]["pid"].clone());
    // Somebody looks on meanwhile, which is no reason to wait.
    let following = world.call(["logs", "-f"]).dir(project.dir()).spawn().unwrap();
    let probing = Probe::local(port.number(), 200).start();
    let other = world.home().join("kiln-of-tomorrow");
    std::fs::copy(KILN, &other).unwrap();
    let ask = |verb: &[&str]| {
        let call = Call::new(&other).arg("--root").arg(world.root()).args(verb);
        call.dir(project.dir()).run().unwrap().expect_done()
    };
    let asked = Instant::now();
    let rows = ask(&["ps", "--json"]).json();
    assert!(asked.elapsed() < PATIENCE / 3, "it took {:?}", asked.elapsed());
    assert_eq!(rows["instances"][0]["pid"], web);
    assert_eq!(world.role("agent").pid, agent, "the same process");
    let exe = std::fs::read_link(format!("/proc/{agent}/exe")).unwrap();
    assert_eq!(exe, other, "with the other program in it");
    page(&project, "web", "two");
    ask(&["up"]);
    probing.stop().unwrap().expect_no_loss();
    assert_eq!(answer(&port), "two");
    let ended = following.wait().unwrap();
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
}

#[test]
fn a_root_may_be_named_from_the_working_directory() {
    let (world, project, port) = web();
    let name = world.home().file_name().unwrap().to_str().unwrap();
    let relative = format!("../../{name}/root");
    let up = Call::new(KILN).args(["--root", &relative, "up"]).dir(project.dir()).run().unwrap();
    up.expect_done();
    assert_eq!(answer(&port), "one");
    assert_eq!(instances(&world, &project).len(), 1, "it is the same root");
}

#[test]
fn a_command_right_after_shutdown_finds_an_agent() {
    let (world, project, port) = web();
    for _ in 0..3 {
        world.kiln_in(&project, ["up"]).expect_done();
        assert_eq!(answer(&port), "one");
        let shutdown = world.call(["shutdown"]).dir(project.dir()).spawn().unwrap();
        shutdown.wait_for("stopped", PATIENCE);
        world.kiln_in(&project, ["ps"]).expect_done();
        shutdown.wait().unwrap().expect_done();
    }
    wait_until(PATIENCE, "nothing half removed", || world.scratch().is_empty().then_some(()));
}

#[test]
fn what_ends_during_a_deploy_that_fails_is_replaced_and_stays_so() {
    let (world, project, port) = web();
    world.kiln_in(&project, ["up"]).expect_done();
    project.edit(
        "web/Dockerfile",
        "EXPOSE 8080",
        "HEALTHCHECK --interval=60s CMD [\"/bin/false\"]\nEXPOSE 8080",
    );
    let up = world.call(["up"]).dir(project.dir()).spawn().unwrap();
    wait_until(PATIENCE, "a candidate", || (instances(&world, &project).len() == 2).then_some(()));
    let first = instance(&world, &project, "web", "active").unwrap();
    kill(first["pid"].as_i64().unwrap());
    wait_until(PATIENCE, "a fresh instance", || {
        let now = instance(&world, &project, "web", "active")?;
        (now["id"] != first["id"]).then_some(())
    });
    let fresh = serving(&world, &project, "web");
    up.signal(Signal::INT).unwrap();
    up.wait().unwrap();
    wait_until(PATIENCE, "the candidate to be gone", || {
        (instances(&world, &project).len() == 1).then_some(())
    });
    assert_eq!(serving(&world, &project, "web"), fresh);
    assert_eq!(answer(&port), "one");
}

#[test]
fn rollback_after_down_and_up_means_the_release_before() {
    let (world, project, port) = web();
    let first = world.kiln_in(&project, ["up", "--json"]).expect_done().json();
    page(&project, "web", "two");
    world.kiln_in(&project, ["up"]).expect_done();
    world.kiln_in(&project, ["down"]).expect_done();
    world.kiln_in(&project, ["rollback"]).expect_code(1).expect_stderr("nothing serves");
    world.kiln_in(&project, ["up"]).expect_done();
    let releases = world.kiln_in(&project, ["releases", "--json"]).expect_done().json();
    assert_eq!(releases["releases"].as_array().unwrap().len(), 2, "none is there twice");
    assert_eq!(answer(&port), "two");
    let back = world.kiln_in(&project, ["rollback", "--json"]).expect_done().json();
    assert_eq!((&back["switched"], &back["release"]), (&true.into(), &first["release"]));
    assert_eq!(answer(&port), "one");
}

#[test]
fn rollback_twice_and_to_a_release_by_name() {
    let (world, project, port) = web();
    let mut releases = Vec::new();
    for text in ["one", "two", "three"] {
        page(&project, "web", text);
        let up = world.kiln_in(&project, ["up", "--json"]).expect_done().json();
        releases.push(up["release"].as_str().unwrap().to_owned());
    }
    for text in ["two", "one"] {
        world.kiln_in(&project, ["rollback"]).expect_done();
        assert_eq!(answer(&port), text);
    }
    world.kiln_in(&project, ["rollback"]).expect_code(1).expect_stderr("no release before");
    // By name also to one that was rolled back from; that lifts its quarantine.
    let third = releases[2].trim_start_matches("sha256:");
    world.kiln_in(&project, ["rollback", "dev", &third[..12]]).expect_done();
    assert_eq!(answer(&port), "three");
    let listed = world.kiln_in(&project, ["releases", "--json"]).expect_done().json();
    let active = listed["releases"].as_array().unwrap()[0].clone();
    assert_eq!(
        (active["role"].as_str(), active["release"].as_str()),
        (Some("active"), Some(releases[2].as_str()))
    );
    assert_eq!(active["quarantined"], false);
    let unknown = world.kiln_in(&project, ["rollback", "dev", "ffffffffffff"]);
    unknown.expect_code(2).expect_stderr("kiln releases");
    let no_stage = world.kiln_in(&project, ["rollback", &third[..12]]);
    no_stage.expect_code(2).expect_stderr(&format!("dev {}", &third[..12]));
}

#[test]
fn a_service_that_has_data_in_common_with_a_changed_one_goes_on() {
    let world = world();
    let port = Port::claim();
    let serve = "command: [busybox, httpd, -f, -p, '8080', -h, /data], volumes: ['data:/data']";
    let compose = format!(
        "services:\n  \
         one: {{ image: busybox, environment: {{ V: '1' }}, {serve}, expose: ['8080'] }}\n  \
         two: {{ image: busybox, {serve}, ports: ['{}:8080'],\n         \
         configs: [{{ source: page, target: /data/index.html }}] }}\n\
         volumes: {{ data: }}\nconfigs: {{ page: {{ content: 'still here' }} }}\n",
        port.number()
    );
    let project = project(&world, "common", &compose);
    world.kiln_in(&project, ["up"]).expect_done();
    let (one, two) = (serving(&world, &project, "one"), serving(&world, &project, "two"));
    project.edit("compose.yaml", "V: '1'", "V: '2'");
    world.kiln_in(&project, ["up"]).expect_done();
    assert_ne!(serving(&world, &project, "one"), one);
    assert_eq!(serving(&world, &project, "two"), two);
    assert_eq!(answer(&port), "still here");
}

#[test]
fn data_waits_for_its_last_writer_to_be_gone() {
    let world = world();
    let compose = "services:
  web: { image: busybox, command: [busybox, httpd, -f, -p, '8080'], expose: ['8080'],
         environment: { V: '1' } }
#begin
  store:
    image: busybox
    command: [sh, -c, 'mkdir /data/busy || { echo two writers; exit 9; };
      trap \"sleep 1; rmdir /data/busy; exit\" TERM; while :; do sleep 0.05; done']
    healthcheck: { test: [CMD, test, -d, /data/busy], interval: 1s }
    expose: ['1']
    restart: 'no'
    volumes: ['data:/data']
#end
volumes: { data: }
";
    let project = project(&world, "last", compose);
    let whole = project.read("compose.yaml");
    let (head, rest) = whole.split_once("#begin").unwrap();
    let without = format!("{head}{}", rest.split_once("#end").unwrap().1);
    world.kiln_in(&project, ["up"]).expect_done();
    let first = serving(&world, &project, "store");
    for version in ["'2'", "'3'"] {
        project.write("compose.yaml", without.replace("'1'", version));
        world.kiln_in(&project, ["up"]).expect_done();
    }
    // Its standby has just been given up, and it takes a second to end.
    project.write("compose.yaml", &whole);
    world.kiln_in(&project, ["up"]).expect_done();
    assert_ne!(serving(&world, &project, "store"), first);
}

#[test]
fn a_service_that_has_ended_for_good_answers_at_once_that_it_is_gone() {
    let (world, project, port) = web();
    project.edit("compose.yaml", "build: ./web", "build: ./web\n    restart: 'no'");
    world.kiln_in(&project, ["up"]).expect_done();
    kill(instances(&world, &project)[0]["pid"].as_i64().unwrap());
    wait_until(PATIENCE, "a refusal", || {
        let response = kiln_testkit::http::get(port.number(), "/").ok()?;
        (response.status == 503).then_some(())
    });
    let row = instances(&world, &project)[0].clone();
    assert_eq!(
        (row["state"].as_str(), row["how"].as_str()),
        (Some("failed"), Some("was ended by signal 9"))
    );
    // `up` brings it back, and so does the agent's own word that it serves.
    world.kiln_in(&project, ["up"]).expect_done();
    wait_for_answer(&port, "one");
}

#[test]
fn logs_are_followed_from_the_last_lines_and_unknown_services_are_refused() {
    let world = world();
    let compose = "services:\n  talker:\n    image: busybox\n    \
                   command: [sh, -c, 'for n in 1 2 3 4; do echo line $$n; done; sleep 1000']\n";
    let project = project(&world, "tail", compose);
    world.kiln_in(&project, ["up"]).expect_done();
    wait_until(PATIENCE, "four lines", || {
        let lines = world.kiln_in(&project, ["logs", "--json"]).expect_done().json_lines();
        (lines.len() >= 4).then_some(())
    });
    let following = world.call(["logs", "-f", "-n", "1"]).dir(project.dir()).spawn().unwrap();
    following.wait_for("line 4", PATIENCE);
    assert!(!following.stdout().contains("line 3"), "{}", following.stdout());
    world.kiln_in(&project, ["logs", "talkre"]).expect_code(2).expect_stderr("talker");
}

#[test]
fn a_killed_agent_knows_of_jobs_that_are_done() {
    let world = world();
    let compose = "services:
  job: { image: busybox, command: [echo, done once] }
  web:
    image: busybox
    command: [busybox, httpd, -f, -p, '8080']
    expose: ['8080']
    depends_on: { job: { condition: service_completed_successfully } }
";
    let project = project(&world, "jobs", compose);
    world.kiln_in(&project, ["up"]).expect_done();
    let ids = || -> Vec<String> {
        instances(&world, &project).iter().map(|row| row["id"].to_string()).collect()
    };
    let before = ids();
    kill(world.role("agent").pid);
    assert_eq!(ids(), before);
    let logs = world.kiln_in(&project, ["logs", "job", "--json"]).expect_done().json_lines();
    assert_eq!(logs.len(), 1);
    assert_eq!(logs[0]["text"], "done once");
    let up = world.kiln_in(&project, ["up", "--json"]).expect_done().json();
    assert_eq!(up["switched"], false);
}

/// One service with data, whose second version says when it starts and never gets ready.
fn data() -> (World, Project, Port) {
    let world = world();
    let port = Port::claim();
    let compose = format!(
        "services:
  store:
    image: busybox
    command: [sh, -c, 'echo $$V > /data/index.html; $$FIRST; exec busybox httpd -f -p 8080 -h /data']
    environment: {{ V: one, FIRST: 'true' }}
    ports: ['{}:8080']
    volumes: ['data:/data']
volumes: {{ data: }}
",
        port.number()
    );
    let project = project(&world, "paused", &compose);
    world.kiln_in(&project, ["up"]).expect_done();
    assert_eq!(answer(&port), "one\n");
    project.edit("compose.yaml", "V: one, FIRST: 'true'", "V: two, FIRST: 'sleep 1000'");
    (world, project, port)
}

/// Starts `up` and waits until it has got into the pause.
fn into_the_pause(world: &World, project: &Project) -> kiln_testkit::Running {
    let old = serving(world, project, "store");
    let up = world.call(["up"]).dir(project.dir()).spawn().unwrap();
    wait_until(PATIENCE, "the one and only fresh instance", || {
        let all = instances(world, project);
        (all.len() == 1 && all[0]["id"] != old.as_str()).then_some(())
    });
    up
}

#[test]
fn ctrl_c_in_a_pause_brings_back_what_served() {
    let (world, project, port) = data();
    let up = into_the_pause(&world, &project);
    up.signal(Signal::INT).unwrap();
    up.wait().unwrap();
    wait_for_answer(&port, "one\n");
    assert_eq!(instances(&world, &project).len(), 1);
    project.edit("compose.yaml", "FIRST: 'sleep 1000'", "FIRST: 'true'");
    world.kiln_in(&project, ["up"]).expect_done();
    assert_eq!(answer(&port), "two\n");
}

#[test]
fn an_agent_killed_in_a_pause_brings_back_what_served() {
    let (world, project, port) = data();
    let up = into_the_pause(&world, &project);
    kill(world.role("agent").pid);
    assert_eq!(up.wait().unwrap().code, Some(1));
    // The next command's agent builds it up again.
    wait_until(PATIENCE, "the old one again", || {
        let state = world.kiln_in(&project, ["status", "--json"]).expect_done().json();
        (state["services"][0]["state"] == "healthy").then_some(())
    });
    wait_for_answer(&port, "one\n");
    assert_eq!(instances(&world, &project).len(), 1);
}

#[test]
fn a_worker_that_does_not_get_healthy_takes_the_switch_back() {
    let (world, project, port) = web();
    let worker = "  worker:\n    image: busybox\n    command: [sleep, '1000']\n    \
                  healthcheck: { test: [CMD, 'true'], interval: 1s, retries: 1 }\n";
    project.edit("compose.yaml", "services:\n", &format!("services:\n{worker}"));
    world.kiln_in(&project, ["up"]).expect_done();
    let first = serving(&world, &project, "worker");
    page(&project, "web", "two");
    project.edit("compose.yaml", "[CMD, 'true']", "[CMD, 'false']");
    world.kiln_in(&project, ["up"]).expect_code(4).expect_stderr("service `worker`");
    assert_eq!(answer(&port), "one");
    assert_ne!(serving(&world, &project, "worker"), first, "the old one has begun again");
    assert_eq!(instances(&world, &project).len(), 2);
    let releases = world.kiln_in(&project, ["releases", "--json"]).expect_done().json();
    assert_eq!(releases["releases"].as_array().unwrap().len(), 1, "nothing was committed");
}

#[test]
fn an_agent_killed_after_the_switch_and_before_the_commit_has_not_switched() {
    let (world, project, port) = web();
    let worker = "  worker:\n    image: busybox\n    command: [sleep, '1000']\n    \
                  healthcheck: { test: [CMD, 'true'], interval: 60s }\n";
    project.edit("compose.yaml", "services:\n", &format!("services:\n{worker}"));
    world.kiln_in(&project, ["up"]).expect_done();
    page(&project, "web", "two");
    project.edit("compose.yaml", "[CMD, 'true']", "[CMD, 'false']");
    let up = world.call(["up"]).dir(project.dir()).spawn().unwrap();
    wait_for_answer(&port, "two");
    kill(world.role("agent").pid);
    assert_eq!(up.wait().unwrap().code, Some(1));
    serving(&world, &project, "worker");
    wait_for_answer(&port, "one");
    let said = wait_until(PATIENCE, "what was under way to be gone", || {
        let all = instances(&world, &project);
        (all.len() == 2).then_some(all)
    });
    assert!(said.iter().all(|row| row["slots"][0]["role"] == "active"), "{said:?}");
}

#[test]
fn a_pause_leaves_connections_to_unchanged_services_alone() {
    use std::io::{Read, Write};
    let world = world();
    let (port, chat) = (Port::claim(), Port::claim());
    let compose = format!(
        "services:
  chat: {{ image: busybox, command: [busybox, nc, -ll, -p, '7', -e, cat], ports: ['{}:7'] }}
  store:
    image: busybox
    command: [busybox, httpd, -f, -p, '8080', -h, /data]
    environment: {{ V: '1' }}
    ports: ['{}:8080']
    volumes: ['data:/data']
volumes: {{ data: }}
",
        chat.number(),
        port.number()
    );
    let project = project(&world, "chat", &compose);
    world.kiln_in(&project, ["up"]).expect_done();
    let mut connection = std::net::TcpStream::connect(("127.0.0.1", chat.number())).unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut echo = |text: &[u8; 6]| {
        connection.write_all(text).unwrap();
        let mut back = [0; 6];
        connection.read_exact(&mut back).unwrap();
        assert_eq!(&back, text);
    };
    echo(b"first\n");
    project.edit("compose.yaml", "V: '1'", "V: '2'");
    let up = world.kiln_in(&project, ["up", "--json"]).expect_done().json();
    assert!(up["ms"].as_u64().unwrap() < 8_000, "it did not wait for the connection: {up}");
    echo(b"again\n");
}

#[test]
fn a_front_that_is_gone_altogether_is_started_by_the_next_deploy() {
    let (world, project, port) = web();
    world.kiln_in(&project, ["up"]).expect_done();
    let front = || {
        let all = world.processes().into_iter();
        all.filter(|process| process.command.contains(" front ")).collect::<Vec<_>>()
    };
    assert_eq!(front().len(), 2, "minder and worker: {:?}", front());
    wait_until(PATIENCE, "the front to be dead", || {
        for process in front() {
            // Either may be gone already, or back for another moment.
            let pid = rustix::process::Pid::from_raw(i32::try_from(process.pid).ok()?)?;
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        front().is_empty().then_some(())
    });
    page(&project, "web", "two");
    world.kiln_in(&project, ["up"]).expect_done();
    assert_eq!(answer(&port), "two");
}

#[test]
fn data_never_has_two_writers_however_often_it_ends_during_deploys() {
    let world = world();
    let port = Port::claim();
    let compose = format!(
        "services:
  store:
    image: busybox
    command: [sh, -c, 'mkdir /data/busy || echo twice >> /data/said;
      trap \"rmdir /data/busy; exit 1\" TERM; echo once >> /data/said;
      busybox httpd -p 8080 -h /data; $$THEN; rmdir /data/busy; exit 1']
    environment: {{ THEN: 'sleep 0.1', V: '0' }}
    stop_grace_period: 1s
    ports: ['{}:8080']
    volumes: ['data:/data']
volumes: {{ data: }}
",
        port.number()
    );
    let project = project(&world, "writers", &compose);
    for version in 0..6 {
        // Whether it is healthy for a moment or ends before that is not the point.
        world.kiln_in(&project, ["up"]);
        project.edit("compose.yaml", &format!("V: '{version}'"), &format!("V: '{}'", version + 1));
    }
    project.edit("compose.yaml", "sleep 0.1", "sleep 1000");
    world.kiln_in(&project, ["up"]).expect_done();
    wait_until(PATIENCE, "what was said", || {
        let said = kiln_testkit::http::get(port.number(), "/said").ok()?;
        assert!(!said.text().contains("twice"), "{}", said.text());
        (said.text().lines().count() > 6).then_some(())
    });
    assert_eq!(instances(&world, &project).len(), 1);
}

/// Times beyond what a clock can tell are no reason to panic: they are for ever.
#[test]
fn patience_may_be_endless() {
    let (world, project, port) = web();
    let endless = u64::MAX.to_string();
    world.kiln_in(&project, ["up", "--timeout", &endless]).expect_done();
    assert_eq!(answer(&port), "one");
    page(&project, "web", "two");
    project.edit(
        "web/Dockerfile",
        "EXPOSE 8080",
        "EXPOSE 8080\nHEALTHCHECK --interval=2000000h --retries=2000000000 --start-interval=10ms \
         CMD [\"/bin/true\"]",
    );
    world.kiln_in(&project, ["up"]).expect_done();
    // Its check is content before it listens.
    wait_until(PATIENCE, "the new page", || (answer(&port) == "two").then_some(()));
}

/// 800 services, each of which waits for the next: what grows with the square of that takes minutes.
#[test]
fn a_long_chain_is_planned_at_once_and_every_step_has_its_reason() {
    let world = world();
    let name = |nth: u32| format!("s{:03}", 999 - nth);
    let mut compose = String::from("services:\n");
    for nth in 0..800 {
        let needs = match nth {
            0 => String::new(),
            nth => format!(", depends_on: [{}]", name(nth - 1)),
        };
        compose += &format!(
            "  {}: {{ image: busybox, expose: ['80'], command: [sleep, '9']{needs} }}\n",
            name(nth)
        );
    }
    let project = project(&world, "chain", &compose);
    world.kiln_in(&project, ["bake"]).expect_done();
    let began = std::time::Instant::now();
    let plan = world.kiln_in(&project, ["plan", "dev", "--json"]).expect_done().json();
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    let order = plan["plan"]["beside"].as_array().unwrap();
    assert_eq!((order.len(), &order[0], &order[799]), (800, &"s999".into(), &"s200".into()));
    let steps = plan["steps"].as_array().unwrap();
    let acts: Vec<&str> = steps.iter().filter_map(|step| step["act"].as_str()).collect();
    assert_eq!(acts, ["provision", "weigh", "commit", "drain"]);
    assert!(steps.iter().all(|step| !step["why"].as_str().unwrap().is_empty()));
}
