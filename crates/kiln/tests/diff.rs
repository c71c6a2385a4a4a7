//! `kiln diff`: what differs between images and between releases, for people and for programs.

mod common;

use std::fs;
use std::os::unix::fs::symlink;

use common::{project, world};
use kiln_testkit::{Project, World};
use serde_json::{Value, json};

const COMPOSE: &str = "name: demo
services:
  app:
    build: ./app
    command: [busybox, sleep, '1000']
    configs: [conf]
    secrets: [key]
configs: { conf: { file: ./conf } }
secrets: { key: { file: ./key } }
";

fn demo(world: &World) -> Project {
    let project = project(world, "demo", COMPOSE);
    project.write("app/Dockerfile", "FROM busybox\nENV A=1 B=2\nLABEL l=1\nCOPY . /app\n");
    project.write("app/text", "one\ntwo\nthree\n").write("app/gone", "x").write("app/tool", "y");
    project.write("conf", "old\n").write("key", "old secret");
    symlink("text", project.path("app/link")).unwrap();
    project
}

fn change(project: &Project) {
    project.write("app/text", "one\n2\nthree\n").write_program("app/tool", "y");
    fs::remove_file(project.path("app/gone")).unwrap();
    fs::remove_file(project.path("app/link")).unwrap();
    symlink("tool", project.path("app/link")).unwrap();
    for n in 0..5 {
        project.write(&format!("app/many/{n}"), "12345");
    }
    project.edit("app/Dockerfile", "A=1 B=2\nLABEL l=1", "A=1 B=3 C=4\nUSER 7");
    project.write("conf", "new\n").write("key", "new secret");
    let grown = "command: [busybox, sleep, '1000']\n    mem_limit: 64m\n    volumes: ['data:/d']";
    project.edit("compose.yaml", "command: [busybox, sleep, '1000']", grown);
    project.edit("compose.yaml", "configs: { conf: {", "volumes: { data: }\nconfigs: { conf: {");
    let sleeper = "  other: { image: busybox, command: [busybox, sleep, '1000'] }\n";
    project.edit("compose.yaml", "services:\n", &format!("services:\n{sleeper}"));
}

#[track_caller]
fn find<'a>(list: &'a Value, key: &str, value: &str) -> &'a Value {
    let all = list.as_array().unwrap_or_else(|| panic!("no list: {list}"));
    all.iter().find(|item| item[key] == value).unwrap_or_else(|| panic!("no {value} in {list:#}"))
}

#[test]
fn releases_are_compared_with_all_that_they_pin() {
    let world = world();
    let project = demo(&world);
    world.kiln_in(&project, ["up"]).expect_done();
    // The same source is the same release.
    let same = world.kiln_in(&project, ["diff"]).expect_done();
    assert!(same.stdout.contains("nothing differs"), "{same}");
    change(&project);

    let output = world.kiln_in(&project, ["diff", "--json", "--text"]).expect_code(3);
    let document = output.json();
    assert_eq!(document["kind"], "release");
    assert_eq!(document["same"], false);
    assert_eq!(find(&document["services"], "name", "other")["change"], "added");
    let app = find(&document["services"], "name", "app");
    let files = &app["image"]["files"];
    let text = find(files, "path", "app/text");
    assert_eq!(text["size"], json!({ "old": 14, "new": 12 }));
    let lines = text["text"].as_array().unwrap();
    assert!(lines.contains(&json!("-two")) && lines.contains(&json!("+2")), "{lines:?}");
    let tool = find(files, "path", "app/tool");
    assert_eq!(tool["aspects"], json!({ "mode": { "old": "0644", "new": "0755" } }));
    assert_eq!(find(files, "path", "app/gone")["change"], "removed");
    let link = find(files, "path", "app/link");
    assert_eq!(link["aspects"], json!({ "target": { "old": "text", "new": "tool" } }));
    assert_eq!(find(files, "path", "app/many/4")["size"], json!({ "new": 5 }));
    let config = &app["image"]["config"];
    assert_eq!(find(config, "key", "Env.B"), &json!({ "key": "Env.B", "old": "2", "new": "3" }));
    assert_eq!(find(config, "key", "Env.C"), &json!({ "key": "Env.C", "new": "4" }));
    assert_eq!(find(config, "key", "User")["new"], "7");
    assert_eq!(find(config, "key", "Labels")["old"], json!({ "l": "1" }));
    let settings = &app["settings"];
    assert_eq!(find(settings, "key", "limits.memory")["new"], 64 << 20);
    assert!(find(settings, "key", "mounts./d")["new"].is_object());
    let conf = find(settings, "key", "files./conf.content");
    assert_eq!(conf["text"], json!(["@@ -1 +1 @@", "-old", "+new"]));
    // Of a secret nothing shows, not even a digest that could be guessed back.
    let secret = json!({ "key": "files./run/secrets/key.content", "secret": true });
    assert_eq!(find(settings, "key", "files./run/secrets/key.content"), &secret);

    let person = world.kiln_in(&project, ["diff", "dev", "."]).expect_code(3).stdout;
    for line in [
        "+ service other",
        "~ service app",
        "    + app/many/  with 5 paths, 25 B",
        "    ~ app/link  target text → tool",
        "    ~ app/text  content, 14 B → 12 B",
        "    ~ app/tool  mode 0644 → 0755",
        "    - app/gone  1 B",
        "    ~ Env.B: 2 → 3",
        "    ~ files./run/secrets/key.content: another one (a secret is never shown)",
    ] {
        assert!(person.lines().any(|found| found == line), "no {line:?} in\n{person}");
    }
    assert!(!person.contains('\u{1b}') && !person.contains("secret\n"), "{person}");
}

#[test]
fn sides_are_named_in_many_ways() {
    let world = world();
    let project = demo(&world);
    world.kiln_in(&project, ["up"]).expect_done();
    let status = || world.kiln_in(&project, ["status", "--json"]).expect_done().json();
    let first = status()["active"].as_str().unwrap().to_owned();
    change(&project);
    world.kiln_in(&project, ["up"]).expect_done();
    let second = status()["active"].as_str().unwrap().to_owned();
    let diff = |words: &[&str]| {
        let call = world.call(["diff", "--json"]).args(words).dir(project.dir());
        call.run().unwrap()
    };
    let image = |release: &str| diff(&[&format!("{release}:app"), "app"]).json();
    let tree = image(&first)["old"]["tree"].as_str().unwrap().to_owned();
    assert_eq!(image(&first)["kind"], "image");
    assert_eq!(image(&second)["same"], true);
    for (words, code) in [
        (vec![first.as_str(), second.as_str()], 3),
        (vec![&first[7..15], &second[7..15]], 3),
        (vec!["dev:previous", "dev"], 3),
        (vec!["dev:standby", "dev:active"], 3),
        (vec!["dev:active", &second], 0),
        (vec![], 0),
        (vec!["dev:previous"], 3),
        (vec!["app"], 0),
        (vec!["dev:previous:app"], 3),
        (vec![&tree, "app"], 3),
        (vec![&tree[7..17], "dev:previous:app"], 0),
        (vec!["app", "other"], 3),
        (vec![".:app", "dev:app"], 0),
        // Not to be compared, not known, not one.
        (vec!["dev", "app"], 2),
        (vec!["dev:nothing", "app"], 2),
        (vec!["nothing"], 2),
        (vec!["0000000"], 2),
        (vec![&tree], 2),
        (vec!["app:app", "app"], 2),
    ] {
        let output = diff(&words);
        assert_eq!(output.code, Some(code), "{output}");
    }
    // From elsewhere digests are enough.
    world.kiln(["diff", &first[7..], &second[7..]]).expect_code(3);
}

#[test]
fn packages_are_told_and_their_files_folded() {
    let world = world();
    let project = project(&world, "demo", "name: demo\nservices:\n  app: { build: ./app }\n");
    // A database as dpkg writes it, so that no mirror is asked.
    let installed = |packages: &[(&str, &str)]| {
        let status = |(name, version): &(&str, &str)| {
            format!(
                "Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: \
                 {version}\n\n"
            )
        };
        project.write("app/status", packages.iter().map(status).collect::<String>());
        for (name, version) in packages {
            let list = format!("/.\n/bin\n/bin/{name}\n/usr/share/doc/{name}\n");
            project.write(&format!("app/info/{name}.list"), list);
            project.write(&format!("app/usr/bin/{name}"), version);
        }
    };
    project.write(
        "app/Dockerfile",
        "FROM scratch\nCOPY usr /usr\nCOPY own /own\nCOPY links /\nCOPY info /var/lib/dpkg/info\n\
         COPY status /var/lib/dpkg/status\nCMD [\"/x\"]\n",
    );
    fs::create_dir_all(project.path("app/links")).unwrap();
    symlink("usr/bin", project.path("app/links/bin")).unwrap();
    project.write("app/own", "1");
    installed(&[("same", "1"), ("grown", "1.9-1"), ("gone", "3")]);
    let bake = || world.kiln_in(&project, ["bake", "--json"]).expect_done().json();
    let old = bake()["images"]["app"]["tree"].as_str().unwrap().to_owned();
    for path in ["app/usr/bin/gone", "app/info/gone.list"] {
        fs::remove_file(project.path(path)).unwrap();
    }
    installed(&[("same", "1"), ("grown", "1.10-1"), ("come", "1:2")]);
    project.write("app/own", "2");

    let document = world.kiln_in(&project, ["diff", "--json", &old, "app"]).expect_code(3).json();
    let packages = &document["packages"];
    let told = |name: &str| {
        let package = find(packages, "name", name);
        (package["change"].clone(), package["old"].clone(), package["new"].clone())
    };
    assert_eq!(packages.as_array().unwrap().len(), 3, "{packages}");
    assert_eq!(told("grown"), (json!("upgraded"), json!("1.9-1"), json!("1.10-1")));
    assert_eq!(told("gone"), (json!("removed"), json!("3"), Value::Null));
    assert_eq!(told("come"), (json!("added"), Value::Null, json!("1:2")));
    // `/bin/grown` of the list is `usr/bin/grown` of the tree.
    assert_eq!(find(&document["files"], "path", "usr/bin/grown")["package"], "grown");
    assert_eq!(find(&document["files"], "path", "own")["package"], Value::Null);
    assert!(document["config"].is_null(), "of a bare tree no configuration is known");

    let person = |args: &[&str]| {
        let call = world.call(["diff", &old, "app"]).args(args).dir(project.dir());
        call.run().unwrap().expect_code(3).stdout
    };
    let folded = person(&[]);
    assert!(folded.contains("  ~ grown 1.9-1 → 1.10-1 (upgraded)"), "{folded}");
    assert!(folded.contains("  ~ own  content"), "{folded}");
    assert!(!folded.contains("usr/bin/grown") && folded.contains("(--files)"), "{folded}");
    assert!(person(&["--files"]).contains("~ usr/bin/grown"));
}
