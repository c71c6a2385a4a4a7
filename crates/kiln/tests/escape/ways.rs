//! `probe all` from every entry: what it says is what holds.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use kiln_testkit::{Call, Project, World, wait_until};

use crate::cases::{CASES, Entry};
use crate::common::{PATIENCE, project, world};

/// The probe, compiled once.
pub(crate) fn probe() -> &'static [u8] {
    static PROGRAM: OnceLock<Vec<u8>> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("probe");
        Call::new("cc")
            .args(["-std=gnu17", "-O1", "-Wall", "-Wextra", "-Werror", "-static", "-s"])
            .args(["-x", "c", "-", "-o"])
            .arg(&out)
            .stdin(include_str!("probe.c"))
            .run_ok()
            .unwrap_or_else(|error| panic!("compiling the probe: {error:#}"));
        std::fs::read(out).unwrap()
    })
}

/// A project whose contexts `names` have the probe, and a Dockerfile of these lines, which begin
/// after FROM and COPY.
pub(crate) fn probed(world: &World, name: &str, compose: &str, images: &[(&str, &str)]) -> Project {
    let project = project(world, name, compose);
    for (image, lines) in images {
        project.write_program(&format!("{image}/probe"), probe());
        project.write(
            &format!("{image}/Dockerfile"),
            format!("FROM busybox\nCOPY probe /bin/\n{lines}"),
        );
    }
    project
}

/// What a probe has written, by name.
pub(crate) fn verdicts(text: &str) -> BTreeMap<String, String> {
    let pair = |line: &str| {
        // A step's output has its number before it.
        let line = line.rsplit_once(" | ").map_or(line, |(_, line)| line).trim();
        let (name, verdict) = line.split_once(' ')?;
        (verdict == "held" || verdict.starts_with("ESCAPED"))
            .then(|| (name.to_owned(), verdict.to_owned()))
    };
    text.lines().filter_map(pair).collect()
}

/// Demands that every case of `probe.c` for this entry was tried and held.
#[track_caller]
fn all_held(entry: Entry, text: &str) {
    let verdicts = verdicts(text);
    assert!(verdicts.contains_key("END"), "{entry:?}: the probe did not come to its end:\n{text}");
    let escaped: Vec<_> = verdicts.iter().filter(|(_, verdict)| *verdict != "held").collect();
    assert!(escaped.is_empty(), "{entry:?}: {escaped:#?}");
    let source = include_str!("probe.c");
    for case in CASES.iter().filter(|case| case.entries.contains(&Entry::Run)) {
        if source.contains(&format!("(\"{}\"", case.name)) && case.entries.contains(&entry) {
            assert!(verdicts.contains_key(case.name), "{entry:?}: `{}` was not tried", case.name);
        }
    }
}

/// The log of `service` once its probe has come to the end.
pub(crate) fn log(world: &World, project: &Project, service: &str, until: &str) -> String {
    wait_until(PATIENCE, &format!("`{until}` in the log of `{service}`"), || {
        let output = world.kiln_in(project, ["logs", service, "--json"]);
        let lines = output.json_lines();
        let text: Vec<&str> = lines.iter().filter_map(|line| line["text"].as_str()).collect();
        let text = text.join("\n");
        text.contains(until).then_some(text)
    })
}

#[test]
fn at_start_by_exec_and_by_a_health_check() {
    let world = world();
    let project = probed(
        &world,
        "ways",
        "name: ways\nservices:\n  \
         plain: { build: ./a, command: [probe, all, stay] }\n  \
         init: { build: ./a, init: true, command: [probe, all, stay] }\n  \
         user: { build: ./a, user: '1000:1000', command: [probe, all, stay] }\n  \
         layered: { build: ./a, read_only: false, tmpfs: [/tmp, /run, /var/tmp], \
         command: [probe, all, stay] }\n  \
         checked:\n    build: ./a\n    command: [sleep, '1000']\n    healthcheck:\n      \
         test: [CMD-SHELL, 'probe all | cat > /tmp/all && mv /tmp/all /tmp/done']\n      interval: 1s\n      \
         timeout: 20s\n",
        &[("a", "")],
    );
    world.kiln_in(&project, ["up"]).expect_done();
    for service in ["plain", "init", "user", "layered"] {
        all_held(Entry::Start, &log(&world, &project, service, "END"));
    }
    for service in ["init", "user"] {
        all_held(Entry::Exec, &world.kiln_in(&project, ["exec", service, "probe", "all"]).stdout);
    }
    let told = wait_until(PATIENCE, "a health check to end", || {
        let output = world.kiln_in(&project, ["exec", "checked", "cat", "/tmp/done"]);
        output.success().then_some(output.stdout)
    });
    all_held(Entry::Check, &told);
}

#[test]
fn in_a_step() {
    let world = world();
    let project = probed(
        &world,
        "steps",
        "services:\n  a: { build: ./a, command: [sleep, '1000'] }\n",
        &[(
            "a",
            "RUN --mount=type=tmpfs,target=/run --mount=type=tmpfs,target=/var/tmp probe all | cat > /all\n\
             RUN --network=none probe all | cat > /closed\n\
             USER 1000:1000\nRUN mkdir -p /tmp && probe all | cat > /tmp/user && cat /tmp/user\n",
        )],
    );
    world.kiln_in(&project, ["up"]).expect_done();
    for file in ["/all", "/closed"] {
        let told = world.kiln_in(&project, ["exec", "a", "cat", file]).expect_done().stdout;
        let without: Vec<&str> = told
            .lines()
            // A step may make nodes, which are dead, and has the network that it asks for.
            .filter(|line| file == "/closed" || !line.starts_with("abstract-sockets"))
            .collect();
        all_held_but(
            Entry::Run,
            &without.join("\n"),
            if file == "/all" { &["abstract-sockets"] } else { &[] },
        );
    }
}

/// As [`all_held`], for a text that does not speak of `left_out`.
#[track_caller]
fn all_held_but(entry: Entry, text: &str, left_out: &[&str]) {
    let added: Vec<String> = left_out.iter().map(|name| format!("{name} held")).collect();
    all_held(entry, &format!("{text}\n{}", added.join("\n")));
}

#[test]
fn from_an_archive_of_a_root() {
    let world = world();
    let compose = "services:\n  a: { build: ./a, command: [/bin/probe, all, stay] }\n";
    let project = project(&world, "archived", compose);
    project.write_program("a/root/bin/probe", probe());
    project.write("a/Dockerfile", "FROM scratch\nADD root.tar /\n");
    let root = project.path("a/root");
    std::os::unix::fs::symlink("/proc/self/fd/3", root.join("home")).unwrap();
    Call::new("tar")
        .args([
            "-C",
            root.to_str().unwrap(),
            "-cf",
            project.path("a/root.tar").to_str().unwrap(),
            ".",
        ])
        .run_ok()
        .unwrap_or_else(|error| panic!("{error:#}"));
    world.kiln_in(&project, ["up"]).expect_done();
    all_held(Entry::Import, &log(&world, &project, "a", "END"));
}

#[test]
fn with_every_capability_devices_stay_shut() {
    let world = world();
    let compose = "services:\n  admin:\n    build: ./a\n    cap_add: [SYS_ADMIN, MKNOD]\n    \
                   command: [probe, devices, stay]\n";
    let project = probed(&world, "admin", compose, &[("a", "")]);
    for device in ["/dev/loop-control", "/dev/fuse"] {
        assert!(Path::new(device).exists(), "the test means nothing without {device}");
    }
    let up = world.kiln_in(&project, ["up"]).expect_done();
    for part in ["`admin`", "CAP_SYS_ADMIN"] {
        assert!(up.stderr.contains(part), "`{part}` in {}", up.stderr);
    }
    let verdicts = verdicts(&log(&world, &project, "admin", "END"));
    let escaped: Vec<_> = verdicts.iter().filter(|(_, verdict)| *verdict != "held").collect();
    assert!(escaped.is_empty(), "{escaped:#?}");
    for case in CASES.iter().filter(|case| case.name.starts_with("admin-")) {
        assert!(verdicts.contains_key(case.name), "`{}` was not tried", case.name);
    }
}
