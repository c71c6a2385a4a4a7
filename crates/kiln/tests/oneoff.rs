//! `kiln run` and `kiln up SERVICE…`.

mod common;

use std::fs;

use common::{PATIENCE, answer, instance, instances, page, project, wait_for_answer, world};
use kiln_testkit::{Port, Project, World, wait_until};
use rustix::process::Signal;

/// `web` serves, `tool` has done its work, `db` writes a volume.
fn shop() -> (World, Project) {
    let world = world();
    let compose = "name: demo
services:
  web: { build: ./web, expose: ['8080'] }
  db:
    build: ./web
    expose: ['8080']
    volumes: [\"data:/data\"]
  tool:
    build: ./tool
    volumes: [/own]
volumes: { data: {} }
";
    let project = project(&world, "demo", compose);
    page(&project, "web", "one");
    project.write(
        "tool/Dockerfile",
        "FROM busybox\nRUN mkdir /own && echo seed > /own/seed && mkdir -p /srv/place\n\
         CMD [\"busybox\", \"echo\", \"default\"]\n",
    );
    (world, project)
}

/// Folders of instances, the runtime's own word for what is there.
fn folders(world: &World) -> usize {
    fs::read_dir(world.root().join("instances")).map_or(0, Iterator::count)
}

#[test]
fn run_has_neighbours_and_fresh_volumes_and_is_gone_when_it_ends() {
    let (world, project) = shop();
    // Nothing serves, and it needs nobody.
    let early = world.kiln_in(&project, ["run", "tool"]).expect_done();
    assert_eq!(early.stdout, "default\n");
    assert!(instances(&world, &project).is_empty());
    world.kiln_in(&project, ["up"]).expect_done();
    let before = instances(&world, &project);
    let there = folders(&world);
    let script = "busybox wget -qO- http://web:8080/; cat /own/seed; echo mine > /own/mine; \
                  echo $WORD; busybox pwd; exit 5";
    let args = ["run", "-T", "-e", "WORD=said", "-w", "/srv/place", "tool", "busybox", "sh", "-c"];
    let ran = world.kiln_in(&project, [&args[..], &[script]].concat()).expect_code(5);
    assert_eq!(ran.stdout, "oneseed\nsaid\n/srv/place\n");
    // Nothing of it is left, in what it wrote or where it ran.
    let again = world.kiln_in(&project, ["run", "tool", "busybox", "ls", "/own"]).expect_done();
    assert_eq!(again.stdout, "seed\n");
    assert_eq!(instances(&world, &project), before);
    wait_until(PATIENCE, "no folder of it", || (folders(&world) == there).then_some(()));
    // The service's own command, and what it is given to read.
    assert_eq!(world.kiln_in(&project, ["run", "tool"]).expect_done().stdout, "default\n");
    let cat = world.call(["run", "-T", "tool", "busybox", "cat"]).dir(project.dir());
    assert_eq!(cat.stdin("typed\n").run().unwrap().expect_done().stdout, "typed\n");
    let none = world.kiln_in(&project, ["run", "tool", "no-such-program"]).expect_code(127);
    assert!(none.stderr.contains("no-such-program"), "{none}");
    world.kiln_in(&project, ["run", "nobody"]).expect_code(2);
    // What the service itself writes now is not written by two.
    let refused = world.kiln_in(&project, ["run", "db", "busybox", "true"]).expect_code(4);
    for part in ["`db` of demo/dev runs already and writes volume `data`", "kiln exec db"] {
        assert!(refused.stderr.contains(part), "`{part}` in {refused}");
    }
    assert!(!refused.stderr.contains("kiln down"), "{refused}");
    assert_eq!(instances(&world, &project), before);
}

#[test]
fn run_ends_with_its_client() {
    let (world, project) = shop();
    world.kiln_in(&project, ["up"]).expect_done();
    let there = folders(&world);
    let script = "echo begun; busybox sleep 100000";
    let running = world
        .call(["run", "-T", "tool", "busybox", "sh", "-c", script])
        .dir(project.dir())
        .spawn()
        .unwrap();
    running.wait_for("begun", PATIENCE);
    assert_eq!(folders(&world), there + 1);
    running.signal(Signal::KILL).unwrap();
    wait_until(PATIENCE, "its end", || (folders(&world) == there).then_some(()));
}

#[test]
fn run_of_a_killed_agent_is_ended_by_the_next_one() {
    let (world, project) = shop();
    world.kiln_in(&project, ["up"]).expect_done();
    let before = instances(&world, &project).len();
    let running = world
        .call(["run", "-T", "tool", "busybox", "sh", "-c", "echo begun; busybox sleep 100000"])
        .dir(project.dir())
        .spawn()
        .unwrap();
    running.wait_for("begun", PATIENCE);
    common::kill(world.role("agent").pid);
    let _ = running.wait();
    // The next command starts another agent, which finds what it knows, and nothing more.
    assert_eq!(instances(&world, &project).len(), before);
    let kept = instances(&world, &project);
    let known = |name: &str| kept.iter().any(|it| it["id"].as_str() == Some(name));
    wait_until(PATIENCE, "only what is known", || {
        let all = fs::read_dir(world.root().join("instances")).unwrap().flatten();
        all.map(|it| it.file_name()).all(|it| known(&it.to_string_lossy())).then_some(())
    });
}

#[test]
fn up_of_some_services_leaves_the_others_as_they_are() {
    let world = world();
    let (web, other) = (Port::claim(), Port::claim());
    let compose = format!(
        "name: demo\nservices:\n  web:\n    build: ./web\n    ports: [\"{}:8080\"]\n    \
         depends_on: [db]\n  db: {{ build: ./db, expose: ['8080'] }}\n  other:\n    build: \
         ./other\n    ports: [\"{}:8080\"]\n",
        web.number(),
        other.number()
    );
    let project = project(&world, "demo", &compose);
    for service in ["web", "db", "other"] {
        page(&project, service, "one");
    }
    let wrong = world.kiln_in(&project, ["up", "nobody"]).expect_code(2);
    assert!(wrong.stderr.contains("there are db, other, web"), "{wrong}");
    let names = || {
        let mut all: Vec<String> = instances(&world, &project)
            .iter()
            .map(|it| it["service"].as_str().unwrap().to_owned())
            .collect();
        all.sort();
        all.dedup();
        all
    };
    world.kiln_in(&project, ["up", "web"]).expect_done();
    assert_eq!(names(), ["db", "web"]);
    wait_for_answer(&web, "one");
    world.kiln_in(&project, ["up", "other"]).expect_done();
    assert_eq!(names(), ["db", "other", "web"]);
    // Both change, and one of them is asked for.
    page(&project, "web", "two");
    page(&project, "other", "two");
    let id = |service: &str| {
        instance(&world, &project, service, "active").unwrap()["id"].as_str().unwrap().to_owned()
    };
    let (old, db) = (id("other"), id("db"));
    let done = world.kiln_in(&project, ["up", "--json", "web"]).expect_done().json();
    assert_eq!(done["services"]["other"]["did"], "kept", "{done}");
    wait_for_answer(&web, "two");
    assert_eq!((answer(&other), id("other"), id("db")), ("one".into(), old, db));
    // Asked again, there is nothing to do; and a whole `up` brings the rest.
    let again = world.kiln_in(&project, ["up", "--json", "web"]).expect_done().json();
    assert_eq!(again["switched"], false, "{again}");
    world.kiln_in(&project, ["up"]).expect_done();
    wait_for_answer(&other, "two");
}

/// Who is named is switched on, and what it depends on comes first.
#[test]
fn who_is_named_need_neither_be_switched_on_nor_serve() {
    let world = world();
    let compose = "name: demo
services:
  web: { build: ./web, expose: ['8080'] }
  other: { build: ./web, expose: ['8080'], profiles: [tools] }
  tool:
    build: ./tool
    profiles: [tools]
    depends_on: { web: { condition: service_healthy } }
    volumes: ['./out:/out']
";
    let project = project(&world, "demo", compose);
    page(&project, "web", "one");
    project.write("tool/Dockerfile", "FROM busybox\n").write("out/x", "");
    let services = |args: &[&str]| {
        let shown = world.kiln_in(&project, [&["config", "--services"], args].concat());
        shown.expect_done().stdout
    };
    assert_eq!(services(&[]), "web\n");
    assert!(services(&["tool"]).contains("tool"), "{}", services(&["tool"]));
    let script = "busybox wget -qO- http://web:8080/ > /out/said";
    let alone = ["run", "-T", "--no-deps", "tool", "busybox", "sh", "-c", script];
    world.kiln_in(&project, alone).expect_code(1);
    assert!(instances(&world, &project).is_empty(), "nothing was started for it");
    let ran = world.kiln_in(&project, ["run", "-T", "tool", "busybox", "sh", "-c", script]);
    ran.expect_done();
    assert_eq!(fs::read_to_string(project.path("out/said")).unwrap(), "one");
    let names = || {
        let all = instances(&world, &project);
        let mut names: Vec<String> =
            all.iter().map(|it| it["service"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names.dedup();
        names
    };
    assert_eq!(names(), ["web"]);
    world.kiln_in(&project, ["bake", "tool"]).expect_done();
    world.kiln_in(&project, ["up", "other"]).expect_done();
    assert_eq!(names(), ["other", "web"]);
    world.kiln_in(&project, ["up", "nobody"]).expect_code(2);
}
