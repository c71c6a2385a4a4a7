//! Data: never written by two, whatever it is called; kept until somebody says otherwise.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{KILN, PATIENCE, instances, kill};
use kiln_testkit::{Port, Project, World, wait_until, writer};
use serde_json::json;

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

/// What is in the only volume without a name of `service`, since the `renewal`th renewal.
fn anonymous(world: &World, project: &str, renewal: u32, service: &str) -> PathBuf {
    let stage = world.root().join("volumes").join(project).join("dev");
    stage.join(format!(".anonymous/{renewal}/{service}/1/%2fdata"))
}

#[test]
fn a_volume_without_a_name_stays_until_somebody_says_otherwise() {
    let world = World::new(KILN);
    let compose =
        |text: &str| format!("name: anon\nservices:\n{}", service("db", text, "expose: ['8080']"));
    let project = project(&world, "anon", &compose("one"));
    project.write("img/Dockerfile", "FROM scratch\nCOPY writer /writer\nVOLUME /data\n");
    world.kiln_in(&project, ["up"]).expect_done();
    let data = anonymous(&world, "anon", 0, "db");
    only_writer(&data, "one");
    let began_with = |dir: &Path, text: &str| {
        assert_eq!(log(dir).lines().next(), Some(text), "{}", dir.display());
    };

    // Over a restart, a change, and `down`.
    let pid = instances(&world, &project)[0]["pid"].as_i64().unwrap();
    kill(pid);
    wait_until(PATIENCE, "a fresh instance", || {
        let now = instances(&world, &project);
        (now[0]["pid"].as_i64() != Some(pid) && now[0]["state"] == "healthy").then_some(())
    });
    project.write("compose.yaml", compose("two"));
    let said = world.kiln_in(&project, ["up"]).expect_done();
    assert!(said.stderr.contains("under a pause"), "{}", said.stderr);
    only_writer(&data, "two");
    world.kiln_in(&project, ["rollback"]).expect_done();
    only_writer(&data, "one");
    world.kiln_in(&project, ["down"]).expect_done();
    world.kiln_in(&project, ["up"]).expect_done();
    only_writer(&data, "two");
    began_with(&data, "one");

    // A renewal that fails leaves everything as it was.
    project.edit("compose.yaml", "/writer, /data", "/writer, /nowhere");
    world.kiln_in(&project, ["up", "--renew-anon-volumes", "--timeout", "3"]).expect_code(4);
    only_writer(&data, "two");
    assert!(!anonymous(&world, "anon", 1, "db").join("log").exists());
    project.write("compose.yaml", compose("two"));

    let renewing = world.kiln_in(&project, ["up", "-V"]).expect_done();
    assert!(renewing.stderr.contains("begin anew (`-V`), and what is in them goes"), "{renewing}");
    let renewed = anonymous(&world, "anon", 1, "db");
    only_writer(&renewed, "two");
    began_with(&renewed, "two");
    assert!(!data.exists(), "the old one has ended");
    let lines = log(&renewed).lines().count();
    world.kiln_in(&project, ["up"]).expect_done();
    kill(world.role("agent").pid);
    assert_eq!(instances(&world, &project).len(), 1);
    assert!(log(&renewed).lines().count() >= lines);
    nobody_cried(&renewed);

    let down = world.kiln_in(&project, ["down", "--volumes"]).expect_done();
    assert!(down.stderr.contains("`/data` of `db`"), "it is named: {}", down.stderr);
    assert!(!world.root().join("volumes/anon/dev").exists());
}

#[test]
fn what_is_volatile_goes_with_its_instance() {
    let world = World::new(KILN);
    let keys = "expose: ['8080']\n    x-kiln: { volatile: [/data] }";
    let compose = format!("name: volatile\nservices:\n{}", service("db", "one", keys));
    let project = project(&world, "volatile", &compose);
    project.write("img/seed", "from the image");
    let dockerfile = "FROM scratch\nCOPY writer /writer\nCOPY seed /data/\nVOLUME /data\n";
    project.write("img/Dockerfile", dockerfile);
    world.kiln_in(&project, ["up"]).expect_done();
    let dir = || {
        let id = instances(&world, &project)[0]["id"].as_str().unwrap().to_owned();
        world.root().join("instances").join(id).join("volumes/0")
    };
    let first = dir();
    only_writer(&first, "one");
    assert_eq!(fs::read_to_string(first.join("seed")).unwrap(), "from the image");
    assert!(!world.root().join("volumes").join("volatile").exists());
    kill(instances(&world, &project)[0]["pid"].as_i64().unwrap());
    wait_until(PATIENCE, "a fresh instance", || {
        (dir() != first && !log(&dir()).is_empty()).then_some(())
    });
    assert!(dir().join("seed").exists() && !first.exists());
    // It is no data, so two may run at once: a change needs no pause.
    project.edit("compose.yaml", "one", "two");
    let plan = world.kiln_in(&project, ["plan", "--json"]).expect_done().json();
    assert_eq!(plan["pause"], false, "{plan}");
}

#[test]
fn down_removes_what_the_files_declare_and_names_the_rest() {
    let world = World::new(KILN);
    let keys = |volume: &str| format!("expose: ['8080']\n    volumes: ['{volume}:/data']");
    let both = format!(
        "name: shop\nservices:\n{}{}volumes: {{ data: , old: }}\n",
        service("db", "db", &keys("data")),
        service("gone", "gone", &keys("old")),
    );
    let project = project(&world, "shop", &both);
    world.kiln_in(&project, ["up"]).expect_done();
    let volume = |name: &str| world.root().join("volumes/shop/dev").join(name);
    only_writer(&volume("old"), "gone");

    // What the files do not have any more is named before it is touched.
    let less = format!(
        "name: shop\nservices:\n{}volumes: {{ data: }}\n",
        service("db", "db", &keys("data"))
    );
    project.write("compose.yaml", &less);
    let up = world.kiln_in(&project, ["up"]).expect_done();
    assert!(
        up.stderr.contains("not in the new release") && up.stderr.contains("`gone`"),
        "{}",
        up.stderr
    );

    // Which volumes they declare has to be known.
    project.write("compose.yaml", less.replace("build:", "bild:"));
    let refused = world.kiln_in(&project, ["down", "--volumes"]).expect_code(2);
    assert!(refused.stderr.contains("nothing is stopped"), "{}", refused.stderr);
    assert!(!instances(&world, &project).is_empty() && volume("data").exists());

    project.write("compose.yaml", &less);
    let down = world.kiln_in(&project, ["down", "--volumes"]).expect_done();
    for part in ["with all data: `data`", "left: `old`", "stopped with them: `gone`"] {
        assert!(down.stderr.contains(part), "`{part}` in {}", down.stderr);
    }
    assert!(down.stdout.contains("removed `data`; left `old`"), "{}", down.stdout);
    assert!(!volume("data").exists() && volume("old").exists());
    // By name, from anywhere: what the last release has; `old` is of none.
    let elsewhere = world.project("elsewhere", "");
    fs::remove_file(elsewhere.path("compose.yaml")).unwrap();
    let args = ["down", "-p", "shop", "--volumes", "--json"];
    let again = world.kiln_in(&elsewhere, args).expect_done().json();
    assert_eq!((&again["removed"], &again["left"]), (&json!([]), &json!([{ "name": "old" }])));
    assert!(volume("old").exists());
}

#[test]
fn a_project_that_is_not_there_is_said_not_to_be() {
    let world = World::new(KILN);
    let project =
        project(&world, "shop", &format!("name: shop\nservices:\n{}", service("db", "db", "")));
    world.kiln_in(&project, ["down"]).expect_done();
    project.edit("compose.yaml", "/writer, /data", "/writer, /tmp");
    world.kiln_in(&project, ["up"]).expect_done();
    let refused = world.kiln_in(&project, ["down", "-p", "shpo"]).expect_code(2);
    for part in ["no project `shpo`", "did you mean `shop`?"] {
        assert!(refused.stderr.contains(part), "`{part}` in {}", refused.stderr);
    }
    assert_eq!(instances(&world, &project).len(), 1);
    world.kiln_in(&project, ["down", "-p", "shop"]).expect_done();
    world.kiln_in(&project, ["down", "-p", "shop"]).expect_done();
}

#[test]
fn two_folders_of_one_name_touch_nothing_of_each_other() {
    let world = World::new(KILN);
    let volumes = "expose: ['8080']\n    volumes: ['data:/data']";
    let compose = |text: &str| {
        format!("name: shop\nservices:\n{}volumes: {{ data: }}\n", service("db", text, volumes))
    };
    let first = project(&world, "first", &compose("first"));
    let second = project(&world, "second", &compose("second"));
    let data = world.root().join("volumes/shop/dev/data");
    world.kiln_in(&first, ["up"]).expect_done();
    let before = instances(&world, &first);

    let refuse = |args: &[&str], words: &[&str]| {
        let refused = world.kiln_in(&second, args.iter().copied()).expect_code(4);
        let folders = [first.dir(), second.dir()].map(|dir| dir.display().to_string());
        let folders = folders.iter().map(String::as_str);
        for part in
            folders.chain(["`db` runs here", "`data` holds its data"]).chain(words.iter().copied())
        {
            assert!(refused.stderr.contains(part), "`{part}` in {}", refused.stderr);
        }
    };
    refuse(&["up"], &["--take-over"]);
    refuse(&["down"], &["nothing is stopped", "kiln down -p shop"]);
    refuse(&["down", "--volumes"], &["nothing is stopped"]);
    // Nobody forgets it.
    kill(world.role("agent").pid);
    refuse(&["up"], &["--take-over"]);
    assert_eq!(instances(&world, &first)[0]["pid"], before[0]["pid"]);
    only_writer(&data, "first");

    // Down, the data is still the first one's.
    world.kiln_in(&first, ["down"]).expect_done();
    let refused = world.kiln_in(&second, ["up"]).expect_code(4);
    assert!(refused.stderr.contains("`data` holds its data"), "{}", refused.stderr);

    let taken = world.kiln_in(&second, ["up", "--take-over"]).expect_done();
    assert!(taken.stderr.contains("was deployed from"), "it is said: {}", taken.stderr);
    only_writer(&data, "second");
    world.kiln_in(&second, ["up"]).expect_done();
    world.kiln_in(&first, ["up"]).expect_code(4);

    // A folder that is gone has nothing to say, and a link to it is no other folder.
    let moved = world.home().join("moved");
    fs::rename(second.dir(), &moved).unwrap();
    let link = world.home().join("link");
    std::os::unix::fs::symlink(&moved, &link).unwrap();
    let up = |dir: &Path| world.call(["up"]).dir(dir).run().unwrap().expect_done();
    assert!(up(&moved).stderr.contains("that folder is gone"));
    assert!(!up(&link).stderr.contains("was deployed from"));
}

#[test]
fn a_volume_that_is_the_root_itself_is_refused_by_name() {
    let world = World::new(KILN);
    let project = project(&world, "rooted", "services:\n  a: { build: ./img }\n");
    for (volume, what) in [
        ("/", "the root file system itself"),
        ("/v/../..", "the root file system itself"),
        ("v", "no absolute path"),
    ] {
        project.write(
            "img/Dockerfile",
            format!(
                "FROM scratch\nCOPY writer /writer\nVOLUME [\"{volume}\"]\nCMD [\"/writer\"]\n"
            ),
        );
        let refused = world.kiln_in(&project, ["up"]).expect_code(2);
        let said =
            format!("the image of service `a` declares the volume `{volume}`, which is {what}");
        assert!(refused.stderr.contains(&said), "{refused}");
    }
}
