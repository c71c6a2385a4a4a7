//! Data: never written by two, whatever it is called; kept until somebody says otherwise.

mod common;

use std::fs;
use std::path::Path;

use common::{KILN, PATIENCE, instances, kill};
use kiln_testkit::{Port, Project, World, wait_until, writer};

/// A project whose services are writers.
fn project(world: &World, name: &str, compose: &str) -> Project {
    let project = world.project(name, compose);
    project.write_program("img/writer", writer::program());
    project.write("img/Dockerfile", "FROM scratch\nCOPY writer /writer\n");
    project
}

/// A service that writes `text` at `/data`, with further keys.
fn service(name: &str, text: &str, keys: &str) -> String {
    let command = format!("[/writer, /data, {text}, '8080']");
    format!("  {name}:\n    build: ./img\n    command: {command}\n    {keys}\n")
}

fn log(dir: &Path) -> String {
    fs::read_to_string(dir.join("log")).unwrap_or_default()
}

fn nobody_cried(dir: &Path) {
    assert!(!dir.join("cries").exists(), "two wrote {}: {}", dir.display(), log(dir));
}

/// Waits until `text` is written, and nothing else any more.
fn only_writer(dir: &Path, text: &str) {
    wait_until(PATIENCE, &format!("only `{text}` in {}", dir.display()), || {
        let said = log(dir);
        let mut last = said.lines().rev().take(5);
        (said.lines().count() > 5 && last.all(|line| line == text)).then_some(())
    });
    nobody_cried(dir);
}

#[test]
fn data_passes_from_a_service_to_a_worker_and_back() {
    let world = World::new(KILN);
    let data = world.root().join("volumes/passes/dev/data");
    let port = Port::claim();
    let compose = |text: &str, keys: &str| {
        let keys = format!("{keys}volumes: ['data:/data']");
        format!("name: passes\nservices:\n{}volumes: {{ data: }}\n", service("app", text, &keys))
    };
    let ports = format!("ports: ['{}:8080']\n    ", port.number());
    let project = project(&world, "passes", &compose("one", &ports));
    world.kiln_in(&project, ["up"]).expect_done();
    only_writer(&data, "one");
    for (text, keys) in [("two", ""), ("three", &*ports), ("four", ""), ("five", "")] {
        project.write("compose.yaml", compose(text, keys));
        world.kiln_in(&project, ["up"]).expect_done();
        only_writer(&data, text);
        assert_eq!(instances(&world, &project).len(), 1, "{text}");
    }
    world.kiln_in(&project, ["rollback"]).expect_done();
    only_writer(&data, "four");
    world.kiln_in(&project, ["rollback"]).expect_done();
    only_writer(&data, "three");
}

#[test]
fn an_alias_or_a_parent_folder_is_the_same_data() {
    let world = World::new(KILN);
    let compose = |text: &str, dir: &str, bind: &str| {
        let keys = format!("expose: ['8080']\n    volumes: ['{bind}']");
        let service =
            service("db", text, &keys).replace("/writer, /data", &format!("/writer, {dir}"));
        format!("name: alias\nservices:\n{service}")
    };
    let project = project(&world, "alias", &compose("one", "/data", "./alias:/data"));
    let data = project.path("shared/data");
    fs::create_dir_all(&data).unwrap();
    std::os::unix::fs::symlink("shared/data", project.path("alias")).unwrap();
    world.kiln_in(&project, ["up"]).expect_done();
    only_writer(&data, "one");
    for (text, dir, bind) in [
        ("two", "/base/data", "./shared:/base"),
        ("three", "/data", "./shared/data:/data"),
        ("four", "/data", "./shared/../alias:/data"),
    ] {
        project.write("compose.yaml", compose(text, dir, bind));
        let plan = world.kiln_in(&project, ["plan", "--json"]).expect_done().json();
        assert_eq!(plan["pause"], true, "{text}: {plan}");
        world.kiln_in(&project, ["up"]).expect_done();
        only_writer(&data, text);
    }
}

#[test]
fn what_another_project_writes_is_refused_by_name() {
    let world = World::new(KILN);
    let compose = |name: &str, bind: &str| {
        let keys = format!("expose: ['8080']\n    volumes: ['{bind}']");
        format!("name: {name}\nservices:\n{}", service("db", name, &keys))
    };
    let first = project(&world, "first", &compose("first", "./shared:/base"));
    first.edit("compose.yaml", "/writer, /data", "/writer, /base/data");
    let data = first.path("shared/data");
    fs::create_dir_all(&data).unwrap();
    let second = project(&world, "second", &compose("second", "./link:/data"));
    std::os::unix::fs::symlink(&data, second.path("link")).unwrap();
    world.kiln_in(&first, ["up"]).expect_done();

    let refuse = || {
        let refused = world.kiln_in(&second, ["up"]).expect_code(4);
        for part in ["`db` of second/dev", "`db` of first/dev", "never written by two"] {
            assert!(refused.stderr.contains(part), "`{part}` in {}", refused.stderr);
        }
    };
    refuse();
    world.kiln_in(&second, ["plan"]).expect_code(4);
    // The agent forgets nothing when it is killed.
    kill(world.role("agent").pid);
    refuse();
    assert!(instances(&world, &second).is_empty());
    only_writer(&data, "first");

    // Who only reads disturbs nobody.
    second.edit("compose.yaml", "./link:/data", "./link:/data:ro");
    second.edit("compose.yaml", "/writer, /data", "/writer, /tmp");
    world.kiln_in(&second, ["up"]).expect_done();
    world.kiln_in(&second, ["down"]).expect_done();
    second.write("compose.yaml", compose("second", "./link:/data"));
    world.kiln_in(&first, ["down"]).expect_done();
    world.kiln_in(&second, ["up"]).expect_done();
    only_writer(&data, "second");
}

#[test]
fn of_three_that_come_at_once_one_gets_the_data() {
    let world = World::new(KILN);
    let shared = world.home().join("shared");
    fs::create_dir(&shared).unwrap();
    let projects = ["a", "b", "c"].map(|name| {
        let keys = format!("expose: ['8080']\n    volumes: ['{}:/data']", shared.display());
        let services = service("db", name, &keys);
        let project = project(&world, name, &format!("name: {name}\nservices:\n{services}"));
        // Baked beforehand, so that they meet where it matters.
        world.kiln_in(&project, ["bake"]).expect_done();
        project
    });
    let up = |project| world.kiln_in(project, ["up"]).code;
    let codes: Vec<Option<i32>> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            projects.iter().map(|project| scope.spawn(move || up(project))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let ended = |code| codes.iter().filter(|found| **found == Some(code)).count();
    assert_eq!((ended(0), ended(4)), (1, 2), "{codes:?}");
    nobody_cried(&shared);
}
