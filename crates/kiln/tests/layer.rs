//! What instances write beside their volumes: where they may, what is told of it, and when it goes.

mod common;

use std::path::Path;

use common::{PATIENCE, instance, instances, kill, project, world};
use kiln_testkit::{Project, World, wait_until};
use serde_json::Value;

/// A service of an image that has `/app/keep` and a file of 20 MB at `/srv/large`. It runs `script`
/// and is healthy when that is done.
fn service(name: &str, keys: &[&str], script: &str) -> String {
    let script = format!("{script}\ntouch /tmp/done; exec sleep 1000").replace('$', "$$");
    let script = serde_json::to_string(&script).unwrap();
    let keys: String = keys.iter().map(|key| format!("    {key}\n")).collect();
    format!(
        "  {name}:\n    build: ./img\n    command: [sh, -c, {script}]\n    healthcheck: {{ test: \
         [CMD, test, -e, /tmp/done], interval: 1s, timeout: 20s, retries: 60 }}\n{keys}"
    )
}

fn made(world: &World, name: &str, services: &[String]) -> Project {
    let compose = format!("name: {name}\nservices:\n{}", services.concat());
    let project = project(world, name, &compose);
    project.write("img/keep", "kept").write("img/large", vec![b'x'; 20_000_000]);
    project.write("img/Dockerfile", "FROM busybox\nCOPY keep /app/\nCOPY large /srv/\n");
    project
}

/// The kinds of the history's entries, with what they say.
fn history(world: &World, project: &Project, kind: &str) -> Vec<Value> {
    let lines = world.kiln_in(project, ["history", "--json"]).expect_done().json_lines();
    lines.into_iter().filter(|entry| entry["kind"] == kind).collect()
}

const WRITES: &str = "echo 1 > /app/db.sqlite; mkdir /app/__pycache__
    touch /app/__pycache__/a.pyc /app/__pycache__/b.pyc
    mkdir -p /var/cache/pages/deep; echo 1 > /var/cache/pages/deep/x; rm /app/keep";

#[test]
fn what_is_written_is_told_once_and_named_again_before_it_goes() {
    let world = world();
    let project = made(&world, "told", &[service("app", &[], WRITES)]);
    let up = world.kiln_in(&project, ["up"]).expect_done();
    for part in [
        "app has written into its layer",
        "/app/db.sqlite ",
        "/var/cache/",
        "/app/keep ",
        "2 files",
        "    - \"app-app:/app/data\"   # with /app/db.sqlite moved into it",
        "  volumes: { app-app: {} }",
        "tmpfs: [\"/var/cache",
        "read_only: true",
    ] {
        assert!(up.stdout.contains(part), "`{part}` in {}", up.stdout);
    }
    assert!(!up.stdout.contains("a.pyc"), "caches are one line: {}", up.stdout);
    let again = world.kiln_in(&project, ["up"]).expect_done();
    assert!(!again.stdout.contains("db.sqlite"), "told twice: {}", again.stdout);
    let status = world.kiln_in(&project, ["status", "--json"]).expect_done().json();
    let lines = status["services"][0]["written"]["lines"].as_array().unwrap();
    let kinds: Vec<(&str, &str)> = lines
        .iter()
        .map(|line| (line["kind"].as_str().unwrap(), line["path"].as_str().unwrap()))
        .collect();
    assert!(kinds.contains(&("data", "/app/db.sqlite")), "{kinds:?}");
    assert!(kinds.contains(&("removed", "/app/keep")), "{kinds:?}");
    assert!(world.kiln_in(&project, ["status"]).expect_done().stdout.contains("db.sqlite"));

    // Before it is lost: on a replacement by `up`, and on `down`.
    let warning = "`app`: /app/db.sqlite goes with this instance";
    project.edit("compose.yaml", "echo 1 > /app/db", "echo 2 > /app/db");
    let replaced = world.kiln_in(&project, ["up"]).expect_done();
    assert!(replaced.stderr.contains(warning), "{}", replaced.stderr);
    // One that ends by itself is replaced too; nobody is asked, so the ledger keeps the names.
    let before = instance(&world, &project, "app", "active").unwrap();
    kill(before["pid"].as_i64().unwrap());
    wait_until(PATIENCE, "a fresh instance", || {
        let now = instance(&world, &project, "app", "active")?;
        (now["id"] != before["id"] && now["state"] == "healthy").then_some(())
    });
    let lost = history(&world, &project, "instance.layer");
    let of = lost.iter().find(|entry| entry["data"]["instance"] == before["id"]);
    assert_eq!(of.unwrap()["data"]["lost"][0], "/app/db.sqlite", "{lost:?}");
    let down = world.kiln_in(&project, ["down"]).expect_done();
    assert!(down.stderr.contains(warning), "{}", down.stderr);
}

#[test]
fn what_is_offered_can_be_pasted_and_is_enough() {
    let world = world();
    let script = "set -e; mkdir -p /app/todo/a /app/up/b /var/log/x; echo 1 > /app/up/b/c
        echo 1 > /etc/app.conf; echo 1 > /var/log/x/log; chown 7 /app/keep /srv/large";
    let project = made(&world, "pasted", &[service("app", &[], script)]);
    world.kiln_in(&project, ["up"]).expect_done();
    let status = world.kiln_in(&project, ["status", "--json"]).expect_done().json();
    let written = &status["services"][0]["written"];
    let texts = |part: &str| -> Vec<String> {
        let all = written[part].as_array().into_iter().flatten();
        all.map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let cures = texts("cures");
    assert_eq!(cures.last().map(String::as_str), Some("read_only: true"), "{written}");
    let indented: String = cures.iter().map(|cure| format!("    {cure}\n")).collect();
    let volumes: String = texts("volumes").iter().map(|name| format!("  {name}: {{}}\n")).collect();
    let pasted = format!("services:\n  app:\n{indented}volumes:\n{volumes}");
    project.write("compose.override.yaml", pasted);
    world.kiln_in(&project, ["up"]).expect_done();
    let status = world.kiln_in(&project, ["status", "--json"]).expect_done().json();
    assert!(status["services"][0]["written"].is_null(), "{status}");
    assert_eq!(status["services"][0]["state"], "healthy", "{status}");
}

#[test]
fn a_change_of_owner_costs_no_space_and_too_much_content_ends_the_instance() {
    let world = world();
    let owner =
        "chown -R 70:71 /srv; echo sum=$(md5sum < /srv/large) owner=$(stat -c %u /srv/large)";
    let keys = ["x-kiln: { scratch: 8m }", "restart: 'no'"];
    let much = "dd if=/dev/zero of=/app/much bs=1M count=30 2>/dev/null";
    let services = [
        service("owner", &keys, owner),
        service("much", &keys, &format!("{much} || echo cut short")),
    ];
    let project = made(&world, "scratch", &services[..1]);
    world.kiln_in(&project, ["up"]).expect_done();
    let logs = world.kiln_in(&project, ["logs", "owner"]).expect_done().stdout;
    assert!(logs.contains("owner=70"), "{logs}");
    // What md5sum says of 20,000,000 times `x`: the content is all there.
    assert!(logs.contains("sum=d52626322ee0b934ba699935cac991b2"), "{logs}");
    let status = world.kiln_in(&project, ["status", "--json"]).expect_done().json();
    let written = &status["services"][0]["written"]["lines"];
    assert_eq!(written[0]["kind"], "owner", "{written}");
    // No content, though the file system may take a block for the attributes.
    assert!(written[0]["bytes"].as_u64().unwrap() <= 8_192, "{written}");

    let compose = format!("name: scratch\nservices:\n{}{}", services.concat(), common::BUSYBOX);
    project.write("compose.yaml", compose);
    // It may still get healthy: the limit is looked after while it runs.
    let _ = world.kiln_in(&project, ["up"]);
    let said = wait_until(PATIENCE, "it to be ended", || {
        let exits = history(&world, &project, "instance.exit");
        let how = exits.iter().find_map(|entry| Some(entry["data"]["how"].as_str()?.to_owned()));
        how.filter(|how| how.contains("wrote more than 8 MiB"))
    });
    assert!(said.contains("x-kiln.scratch"), "{said}");
    let kept = instance(&world, &project, "owner", "active");
    assert_eq!(kept.unwrap()["restarts"], 0, "the other one has written nothing");
}

#[test]
fn what_is_written_does_not_count_as_memory() {
    let world = world();
    let script = "dd if=/dev/zero of=/app/much bs=1M count=200 2>/dev/null && echo all=written";
    let project = made(&world, "memory", &[service("app", &["mem_limit: 32m"], script)]);
    world.kiln_in(&project, ["up"]).expect_done();
    let logs = world.kiln_in(&project, ["logs", "app"]).expect_done().stdout;
    assert!(logs.contains("all=written"), "{logs}");
    assert_eq!(instances(&world, &project)[0]["restarts"], 0);
}

#[test]
fn strict_is_read_only_as_elsewhere() {
    let world = world();
    let script = "touch /tmp/x /run/x /var/tmp/x && ! touch /app/x 2>/dev/null && echo strict=yes";
    let project = made(&world, "strict", &[service("app", &[], script)]);
    let strict = || {
        let logs = world.kiln_in(&project, ["logs", "app"]).expect_done().stdout;
        logs.contains("strict=yes")
    };
    world.kiln_in(&project, ["up"]).expect_done();
    assert!(!strict(), "not stated, it has a layer");
    world.kiln_in(&project, ["up", "--strict"]).expect_done();
    assert!(strict());
    let strict_id = instance(&world, &project, "app", "active").unwrap()["id"].clone();
    project.edit("compose.yaml", "x-kiln:\n", "x-kiln:\n  read_only: true\n");
    world.kiln_in(&project, ["up"]).expect_done();
    let now = instance(&world, &project, "app", "active").unwrap()["id"].clone();
    assert_eq!(now, strict_id, "the project says the same as the option");
}

#[test]
fn names_of_a_stranger_are_bounded_and_do_nothing() {
    let world = world();
    let script = "mkdir /app/d; cd /app/d; n=0; while [ $n -lt 3000 ]; do : > f$n; n=$((n+1)); done
        cd /app; touch \"$(printf 'bell\\033[2J\\007name')\"; mkfifo pipe; ln -s /etc/shadow link
        ln -s . loop; p=.; n=0; while [ $n -lt 150 ]; do mkdir e; cd e; n=$((n+1)); done";
    let project = made(&world, "hostile", &[service("app", &[], script)]);
    let up = world.kiln_in(&project, ["up"]).expect_done();
    assert!(up.stdout.contains("/app/d/"), "{}", up.stdout);
    assert!(up.stdout.lines().count() < 40 && up.stdout.len() < 8_000, "{}", up.stdout);
    let status = world.kiln_in(&project, ["status"]).expect_done();
    assert!(status.stdout.contains("bell\\u{1b}[2J\\u{7}name"), "{}", status.stdout);
    assert!(!status.stdout.contains('\u{7}') && !up.stdout.contains('\u{7}'));
}

#[test]
fn what_the_image_has_below_run_is_there() {
    let world = world();
    let project = made(&world, "run", &[service("db", &["read_only: false"], ":")]);
    project.write("img/file", "text");
    project.edit("img/Dockerfile", "COPY keep /app/", "COPY --chown=70:71 file /run/mysqld/");
    let look = "stat -c '%u:%g %a' /run/mysqld /run/mysqld/file; cat /run/mysqld/file
        echo; touch /run/mysqld/new && echo written; grep -c ' /run ' /proc/mounts";
    let found = || {
        world.kiln_in(&project, ["up"]).expect_done();
        let exec = world.kiln_in(&project, ["exec", "db", "sh", "-c", look]);
        exec.stdout.rsplit_once("written\n").map(|(a, b)| (a.to_owned(), b.trim().to_owned()))
    };
    let (bare, mounts) = found().unwrap();
    assert!(bare.contains("70:71") && bare.contains("text"), "{bare}");
    assert_eq!(mounts, "0");
    // The same where memory lies over it by default, with and without a layer.
    for (from, to) in
        [("    read_only: false\n", ""), ("x-kiln:\n", "x-kiln:\n  read_only: true\n")]
    {
        project.edit("compose.yaml", from, to);
        assert_eq!(found(), Some((bare.clone(), "1".to_owned())));
    }
}

#[test]
fn what_the_host_cannot_give_is_said() {
    let world = world();
    let project = made(
        &world,
        "lacks",
        &[service("app", &["ulimits: { memlock: -1 }"], "echo lock=$(ulimit -l)")],
    );
    let up = world.kiln_in(&project, ["up"]).expect_done();
    let status = world.kiln_in(&project, ["status"]).expect_done();
    let logs = world.kiln_in(&project, ["logs", "app"]).expect_done().stdout;
    let has = logs.contains("lock=unlimited");
    let lacking = "runs without all that it asks for";
    assert_eq!(up.stderr.contains(lacking), !has, "{}", up.stderr);
    assert_eq!(status.stdout.contains(lacking), !has, "{}", status.stdout);
    assert!(has || up.stderr.contains("memlock"), "{}", up.stderr);
}

#[test]
fn the_layer_lies_on_the_disk_and_goes_with_its_instance() {
    let world = world();
    let project = made(&world, "gone", &[service("app", &[], WRITES)]);
    world.kiln_in(&project, ["up"]).expect_done();
    let id = instance(&world, &project, "app", "active").unwrap()["id"].clone();
    let dir = world.root().join("instances").join(id.as_str().unwrap());
    assert!(dir.join("layer/upper/app/db.sqlite").exists());
    world.kiln_in(&project, ["down"]).expect_done();
    let gone = |dir: &Path| (!dir.exists()).then_some(());
    wait_until(PATIENCE, "the layer to be gone", || gone(&dir));
}

#[test]
fn what_fails_on_a_read_only_root_is_told_what_to_write_and_learns_beside_what_serves() {
    let world = world();
    let keys = ["read_only: true", "tmpfs: [/tmp]", "volumes: ['data:/data']"];
    let good = service("app", &keys, "echo one > /data/kept");
    let rest = "volumes: { data: {} }\n";
    let project = made(&world, "learns", &[good, rest.to_owned()]);
    world.kiln_in(&project, ["up"]).expect_done();
    let before = instance(&world, &project, "app", "active").unwrap();

    let script =
        "echo two > /data/kept; mkdir -p /app/cache/pages || exit 3; echo x > /app/cache/pages/x
        getent hosts app || cat /etc/hosts";
    let bad = service("app", &keys, script);
    let compose = format!("name: learns\nservices:\n{bad}{rest}{}", common::BUSYBOX);
    project.write("compose.yaml", compose);
    let data = world.root().join("volumes/learns/dev/data/kept");
    let refused = world.kiln_in(&project, ["up"]).expect_code(4);
    for part in ["its log names /app/cache", "x-kiln: { volatile", "kiln up --learn app"] {
        assert!(refused.stderr.contains(part), "`{part}` in {}", refused.stderr);
    }
    // What served is back, as it had its data; learning does not touch that.
    world.kiln_in(&project, ["exec", "app", "sh", "-c", "echo mine > /data/kept"]).expect_done();
    let serving = instance(&world, &project, "app", "active").unwrap();
    let learnt = world.kiln_in(&project, ["up", "--learn", "app"]).expect_done();
    for part in ["it got ready", "/app/cache/", "- \"app-cache:/app/cache\""] {
        assert!(learnt.stdout.contains(part), "`{part}` in {}", learnt.stdout);
    }
    assert_eq!(std::fs::read_to_string(&data).unwrap(), "mine\n");
    let now = instances(&world, &project);
    assert_eq!(now.len(), 1, "the one that learnt is gone: {now:?}");
    assert_eq!(now[0]["id"], serving["id"]);
    assert_ne!(before["id"], serving["id"], "it was replaced under the pause, and back again");
    let json = world.kiln_in(&project, ["up", "--learn", "app", "--json"]).expect_done().json();
    assert_eq!((&json["good"], &json["service"]), (&true.into(), &"app".into()));
    world.kiln_in(&project, ["up", "--learn", "nobody"]).expect_code(2);

    // One that fails with a layer, too: the end of its log is shown.
    project.edit("compose.yaml", "mkdir -p /app/cache/pages || exit 3", "echo no luck; exit 3");
    let failed = world.kiln_in(&project, ["up", "--learn", "app"]).expect_code(1);
    assert!(failed.stdout.contains("status 3") && failed.stdout.contains("no luck"));
    wait_until(PATIENCE, "its folder to be gone", || world.scratch().is_empty().then_some(()));
}
