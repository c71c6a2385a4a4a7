//! `kiln release`: what a commit gives, what is refused, and that it stays.

mod common;

use std::fs;
use std::os::unix::fs::symlink;

use common::{kill, page, project, world};
use kiln_testkit::{Call, Output, Port, Project, World};
use serde_json::Value;

fn sh(project: &Project, script: &str) -> String {
    let call = Call::new("sh").args(["-ec", script]).dir(project.dir());
    let call = call.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    let call = call.env("GIT_AUTHOR_NAME", "a").env("GIT_AUTHOR_EMAIL", "a@example.org");
    let call = call.env("GIT_COMMITTER_NAME", "a").env("GIT_COMMITTER_EMAIL", "a@example.org");
    call.run_ok().unwrap_or_else(|error| panic!("{error:#}")).stdout.trim().to_owned()
}

fn commit(project: &Project, message: &str) -> String {
    sh(project, &format!("git add -A && git commit -qm {message} && git rev-parse HEAD"))
}

/// A committed project with one service.
fn repository(world: &World) -> (Project, String) {
    let project = project(world, "demo", "name: demo\nservices:\n  web: { build: ./web }\n");
    page(&project, "web", "one");
    sh(&project, "git init -q -b main .");
    let name = commit(&project, "one");
    (project, name)
}

fn release(world: &World, project: &Project, args: &[&str]) -> Output {
    let call = world.call(["release", "--json"]).args(args).dir(project.dir());
    call.run().unwrap_or_else(|error| panic!("{error:#}"))
}

#[track_caller]
fn digest(output: &Output) -> String {
    output.json()["release"].as_str().unwrap_or_else(|| panic!("{output}")).to_owned()
}

#[test]
fn a_commit_gives_one_release_on_every_machine() {
    let one = world();
    let (project, name) = repository(&one);
    let output = release(&one, &project, &[]).expect_done();
    let first = digest(&output);
    assert_eq!(output.json()["source"], serde_json::json!({ "commit": name }));
    assert_eq!(output.json()["fresh"], true);
    assert_eq!(release(&one, &project, &[]).expect_done().json()["fresh"], false);

    // A person gets the digest in the first line.
    let printed = one.kiln_in(&project, ["release"]).expect_done().stdout;
    assert_eq!(printed.lines().next(), Some(first.as_str()));
    assert!(printed.contains(&format!("demo from commit {}", &name[..12])), "{printed}");

    // Another machine: another store, other things before, another folder.
    let two = world();
    sh(&project, &format!("git clone -q . {}", two.home().join("elsewhere").display()));
    let other = Project::new(two.home().join("elsewhere"), &project.read("compose.yaml"));
    page(&other, "web", "two");
    two.kiln_in(&other, ["bake"]).expect_done();
    let output = release(&two, &other, &["--commit", "HEAD"]).expect_done();
    assert_eq!(digest(&output), first);

    // The commit counts, not the working tree, from wherever in it one asks.
    project.write("web/index.html", "another").write("web/new", "x");
    fs::remove_file(project.path("kiln.lock")).unwrap();
    assert_eq!(digest(&release(&one, &project, &["--commit", "main"]).expect_done()), first);
    let call = one.call(["release", "--json", "--commit", &name[..10]]).dir(project.path("web"));
    assert_eq!(digest(&call.run().unwrap().expect_done()), first);
    sh(&project, "git checkout -q kiln.lock");
    let second = commit(&project, "two");
    let later = release(&one, &project, &[]).expect_done();
    assert_ne!(digest(&later), first);
    assert_eq!(later.json()["source"]["commit"], Value::from(second));
    assert_eq!(digest(&release(&one, &project, &["--commit", "HEAD~1"]).expect_done()), first);
}

#[test]
fn a_working_tree_that_is_not_clean_is_refused() {
    let world = world();
    let (project, _) = repository(&world);
    for (script, word) in [
        ("echo x >> web/index.html", "web/index.html (changed)"),
        ("echo x > web/new", "web/new (untracked)"),
        ("rm web/index.html", "web/index.html (deleted)"),
        ("chmod +x web/index.html", "web/index.html (changed)"),
        ("echo x > web/new; git add web/new", "web/new (added)"),
        ("ln -sf x web/index.html", "web/index.html (changed)"),
    ] {
        sh(&project, script);
        let refused = world.kiln_in(&project, ["release"]).expect_code(4);
        assert!(refused.stderr.contains(word), "{script}: {refused}");
        assert!(refused.stderr.contains("kiln release --commit HEAD"), "{refused}");
        sh(&project, "git reset -q --hard && git clean -qfdx -e kiln.lock");
    }
    // What Git is told to ignore is no change, and what is elsewhere is none of this project.
    project.write(".gitignore", "*.log\n");
    commit(&project, "ignore");
    project.write("web/a.log", "x");
    release(&world, &project, &[]).expect_done();
    sh(&project, "mkdir ../demo-sub; git mv compose.yaml web && git mv kiln.lock web");
    project.edit("web/compose.yaml", "./web", ".");
    commit(&project, "sub");
    project.write("README", "not of the project");
    let call = world.call(["release", "--json"]).dir(project.path("web"));
    call.run().unwrap().expect_done();
}

#[test]
fn what_a_commit_does_not_have_is_named() {
    let world = world();
    let (project, _) = repository(&world);
    let refused = |args: &[&str], code: i32, text: &str| {
        let call = world.call(["release"]).args(args).dir(project.dir());
        call.run().unwrap().expect_code(code).expect_stderr(text);
    };
    refused(&["--commit", "nonsense"], 2, "`nonsense` is no commit");
    refused(&["--commit=--help"], 2, "`--help` is no commit");
    let at_head = ["--commit", "HEAD"];

    sh(&project, "git rm -q --cached kiln.lock && git commit -qm unlocked");
    refused(&at_head, 2, "has no kiln.lock");
    sh(&project, "git add kiln.lock && git commit -qm locked");

    let sub = format!("160000,{},web/vendor", "1".repeat(40));
    sh(&project, &format!("git update-index --add --cacheinfo {sub} && git commit -qm sub"));
    refused(&at_head, 4, "`web/vendor` is a submodule");
    // Where nothing reads it, it does no harm.
    project.write("web/.dockerignore", "vendor\n");
    sh(&project, "git add web/.dockerignore && git commit -qm ignored");
    release(&world, &project, &at_head).expect_done();
    sh(&project, "git rm -qf --cached web/vendor web/.dockerignore && git commit -qm no-sub");
    fs::remove_file(project.path("web/.dockerignore")).unwrap();

    project
        .write("web/large", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n");
    commit(&project, "lfs");
    refused(&at_head, 4, "`web/large` is a pointer of Git LFS");
    sh(&project, "git rm -qf web/large && git commit -qm no-lfs");

    // Links that lead out of the commit lead to what the machine has.
    fs::remove_file(project.path("compose.yaml")).unwrap();
    symlink("/etc/hostname", project.path("compose.yaml")).unwrap();
    commit(&project, "out");
    refused(&["--commit", "HEAD", "-f", "compose.yaml"], 2, "compose.yaml");
    sh(&project, "git reset -q --hard HEAD~1");

    project.edit("compose.yaml", "./web", "'./${WHERE:-web}'");
    commit(&project, "variable");
    let with = |value: &str, args: &[&str]| {
        let call = world.call(["release"]).args(at_head).args(args).dir(project.dir());
        call.env("WHERE", value).run().unwrap()
    };
    with("web", &[]).expect_code(2).expect_stderr("would depend on the environment: `WHERE`");
    with("web", &["--env", "WHERE"]).expect_done();
    with("missing", &["--env", "WHERE"]).expect_code(2).expect_stderr("is not in commit");
    // `.env` counts if it is committed.
    project.write(".env", "WHERE=other\n");
    refused(&[], 4, ".env (untracked)");
    world.call(["release"]).args(at_head).dir(project.dir()).run_ok().unwrap();
    commit(&project, "env");
    refused(&at_head, 2, "other is not in commit");

    let outside = world.project("outside", "services: { a: { image: x } }\n");
    world.kiln_in(&outside, ["release"]).expect_code(2).expect_stderr("is in no Git repository");
}

#[test]
fn secrets_are_those_of_the_real_folder_and_mounts_the_commits() {
    let world = world();
    let (project, _) = repository(&world);
    let compose = project.read("compose.yaml").replace(
        "build: ./web",
        "build: ./web, volumes: ['./data:/data:ro'], secrets: [key], configs: [conf]",
    );
    project.write("compose.yaml", compose).write("conf", "committed\n").write("data/x", "");
    project.edit(
        "compose.yaml",
        "x-kiln",
        "secrets: { key: { file: ./key } }\nconfigs: { conf: { file: ./conf } }\nx-kiln",
    );
    project.write(".gitignore", "key\n");
    commit(&project, "files");
    release(&world, &project, &[]).expect_code(2);
    project.write("key", "secret");
    let output = release(&world, &project, &[]).expect_done();
    let hex = digest(&output).trim_start_matches("sha256:").to_owned();
    let object = |hex: &str| {
        let path = world.root().join("objects").join(&hex[..2]).join(&hex[2..]);
        fs::read_to_string(path).unwrap()
    };
    let metafile: Value = serde_json::from_str(&object(&hex)).unwrap();
    let settings = &metafile["services"]["web"]["settings"];
    let source = settings["mounts"][0]["source"]["bind"].as_str().unwrap();
    assert_eq!(source, "./data");
    let pinned = settings["mounts"][0]["content"]["tree"].as_str().unwrap();
    assert!(object(pinned.trim_start_matches("sha256:")).contains("./x "), "as in the commit");
    let content = |target: &str| {
        let files = settings["files"].as_array().unwrap();
        let file = files.iter().find(|file| file["target"] == target).unwrap();
        object(file["digest"].as_str().unwrap().trim_start_matches("sha256:"))
    };
    assert_eq!(content("/conf"), "committed\n");
    assert_eq!(content("/run/secrets/key"), "secret");
    // Configs and what is mounted read-only are the commit's, whatever lies there now.
    project.write("conf", "edited\n").write("data/x", "edited").write("data/y", "new");
    let again = release(&world, &project, &["--commit", "HEAD"]).expect_done();
    assert_eq!(digest(&again), digest(&output));
}

#[test]
fn releases_are_listed_and_kept() {
    let world = world();
    let (project, name) = repository(&world);
    let mut all = vec![digest(&release(&world, &project, &[]).expect_done())];
    for n in 0..11 {
        project.write("web/index.html", format!("page {n}"));
        commit(&project, "more");
        all.push(digest(&release(&world, &project, &[]).expect_done()));
    }
    world.kiln(["gc"]).expect_done();
    let listed = world.kiln_in(&project, ["releases", "--json"]).expect_done().json();
    let listed: Vec<&str> = listed["releases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["release"].as_str().unwrap())
        .collect();
    // The newest ten, the newest first.
    let newest: Vec<&str> = all[2..].iter().rev().map(String::as_str).collect();
    assert_eq!(listed, newest);
    // And they are whole.
    world.kiln_in(&project, ["diff", newest[0], newest[9]]).expect_code(3);
    world.kiln_in(&project, ["diff", &all[0], newest[0]]).expect_code(2);
    let history = world.kiln_in(&project, ["history"]).expect_done();
    assert!(history.stdout.contains(&format!("commit {}", &name[..12])), "{history}");
}

#[test]
fn a_release_can_be_switched_to_and_up_says_what_is_dirty() {
    let world = world();
    let port = Port::claim();
    let (project, _) = repository(&world);
    let ports = format!("{{ build: ./web, ports: ['{}:8080'] }}", port.number());
    project.edit("compose.yaml", "{ build: ./web }", &ports);
    let name = commit(&project, "ports");
    let first = digest(&release(&world, &project, &[]).expect_done());

    page(&project, "web", "two");
    let up = world.kiln_in(&project, ["up"]).expect_done();
    let dirty = format!("from commit {} dirty: web/index.html (changed)", &name[..12]);
    assert!(up.stdout.contains(&dirty), "{up}");
    assert_eq!(common::answer(&port), "two");
    for verb in [["status", "dev"], ["releases", "dev"], ["history", "--all"]] {
        let output = world.kiln_in(&project, verb).expect_done();
        assert!(output.stdout.contains(&format!("commit {} dirty", &name[..12])), "{output}");
    }
    // A clean one says so by saying nothing, and lists what was released.
    sh(&project, "git commit -qam two");
    page(&project, "web", "three");
    let name = commit(&project, "three");
    let up = world.kiln_in(&project, ["up"]).expect_done();
    assert!(up.stdout.contains(&format!("from commit {}\n", &name[..12])), "{up}");
    let releases = world.kiln_in(&project, ["releases"]).expect_done();
    assert!(releases.stdout.contains("released"), "{releases}");

    world.kiln_in(&project, ["rollback", "dev", &first[7..19]]).expect_done();
    assert_eq!(common::answer(&port), "one");
}

/// `up` of a clean checkout and `kiln release` of its commit are two ways to one release, whatever
/// served before, and whichever comes first.
#[test]
fn a_clean_up_and_a_release_of_its_commit_have_one_digest() {
    let world = world();
    let (project, _) = repository(&world);
    let up = |world: &World| {
        let output = world.kiln_in(&project, ["up", "--json"]).expect_done();
        digest(&output)
    };
    let (first, machine) = (up(&world), common::world());
    assert_eq!(first, digest(&release(&world, &project, &[]).expect_done()));

    // Edited and tried out first, committed then: nothing is started, but it is the commit's.
    page(&project, "web", "two");
    let dirty = up(&world);
    let before = common::instance(&world, &project, "web", "active").unwrap();
    let name = commit(&project, "two");
    let second = up(&world);
    assert_ne!(dirty, second);
    let after = common::instance(&world, &project, "web", "active").unwrap();
    assert_eq!(before["id"], after["id"], "the same runs");
    assert_eq!(second, digest(&release(&world, &project, &[]).expect_done()));
    assert_eq!(second, up(&world));

    // A commit that changes nothing that runs is another commit all the same.
    project.write("README", "words");
    let other = commit(&project, "words");
    assert_ne!(name, other);
    let third = digest(&release(&world, &project, &[]).expect_done());
    assert_eq!(third, up(&world));
    // Nor does it count what a machine has seen before.
    assert_eq!(third, up(&machine));
    // What served before is in the ledger.
    let history = world.kiln_in(&project, ["history", "--json"]).json_lines();
    let cut = history.iter().rfind(|entry| entry["kind"] == "release.cut").unwrap();
    assert_eq!(cut["data"]["parent"], second.as_str());
    let object = world.root().join("objects").join(&third[7..9]).join(&third[9..]);
    let metafile: Value = serde_json::from_slice(&fs::read(object).unwrap()).unwrap();
    assert_eq!((metafile.get("parent"), &metafile["format"]), (None, &2.into()));
}

/// What a project says of a stage comes with the release, is held by the stage, and outlives the
/// agent that read it.
#[test]
fn how_many_releases_stay_is_the_stages_own_to_know() {
    let world = world();
    let (project, _) = repository(&world);
    project.edit("compose.yaml", "x-kiln:\n", "x-kiln:\n  stages: { dev: { keep: 12 } }\n");
    for nth in 0..14 {
        page(&project, "web", &nth.to_string());
        world.kiln_in(&project, ["up"]).expect_done();
    }
    let kept = || {
        let output = world.kiln_in(&project, ["releases", "--json"]).expect_done().json();
        let rows = output["releases"].as_array().unwrap().clone();
        rows.iter().filter(|row| row["role"] != "released").count()
    };
    assert_eq!(kept(), 13);
    common::kill(world.role("agent").pid);
    world.kiln_in(&project, ["rollback"]).expect_done();
    assert_eq!(kept(), 13, "going back loses nothing");

    project.edit("compose.yaml", "keep: 12", "keep: 3");
    for nth in 20..26 {
        world.kiln_in(&project, ["down"]).expect_done();
        page(&project, "web", &nth.to_string());
        world.kiln_in(&project, ["up"]).expect_done();
    }
    assert_eq!(kept(), 4);
}

#[test]
fn a_release_pins_what_its_stages_say() {
    let world = world();
    let compose =
        "name: demo\nservices:\n  web:\n    build: ./web\n    environment: { WHO: all }\n";
    let project = project(&world, "demo", compose);
    let stages = "x-kiln:\n  stages:\n    dev: { files: [stages/dev.yaml] }\n    \
                  prod: { files: [stages/prod.yaml] }\n";
    project.write("compose.override.yaml", stages);
    page(&project, "web", "one");
    let of_stage = |stage: &str, who: &str| {
        let text = format!("services: {{ web: {{ environment: {{ WHO: {who} }} }} }}\n");
        project.write(&format!("stages/{stage}.yaml"), text);
    };
    of_stage("dev", "dev");
    of_stage("prod", "prod");
    sh(&project, "git init -q -b main .");
    commit(&project, "one");
    let first = digest(&release(&world, &project, &[]).expect_done());
    let up = world.kiln_in(&project, ["up", "--json"]).expect_done();
    assert_eq!(up.json()["release"], first.as_str(), "{up}");
    let who = ["exec", "web", "sh", "-c", "echo $WHO"];
    assert_eq!(world.kiln_in(&project, who).expect_done().stdout.trim(), "dev");

    // Another setting of `prod` is another release, and no other instance in `dev`.
    let instance = |world: &World| {
        let status = world.kiln_in(&project, ["status", "--json"]).expect_done().json();
        status["services"][0]["id"].as_str().unwrap().to_owned()
    };
    let before = instance(&world);
    of_stage("prod", "production");
    let dirty = release(&world, &project, &[]);
    assert!(dirty.expect_code(4).stdout.contains("stages/prod.yaml"));
    let changed = world.kiln_in(&project, ["diff"]).expect_code(3);
    assert!(changed.stdout.contains("settings in prod"), "{changed}");
    assert!(changed.stdout.contains("production"), "{changed}");
    world.kiln_in(&project, ["up"]).expect_done();
    assert_eq!(instance(&world), before);
    of_stage("dev", "me");
    world.kiln_in(&project, ["up"]).expect_done();
    assert_ne!(instance(&world), before);
    assert_eq!(world.kiln_in(&project, who).expect_done().stdout.trim(), "me");

    // It is known again after a restart of the agent.
    let after = instance(&world);
    kill(world.role("agent").pid);
    assert_eq!(instance(&world), after);

    project.write("stages/prod.yaml", "services:\n  web:\n    build: ./other\n");
    let refused = world.kiln_in(&project, ["up"]).expect_code(2);
    assert!(refused.stderr.contains("stages/prod.yaml:3:5"), "{refused}");
}
