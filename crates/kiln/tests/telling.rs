//! What a person reads on the way: rows, hints, what is waited for, what a list says that is empty.

mod common;

use common::{page, project, web, world};
use kiln_testkit::{Call, Port, World};

/// A service `web` that ends at once.
const ENDS: &str = "FROM busybox\nCMD [\"sh\", \"-c\", \"echo no luck; exit 3\"]\n";

#[test]
fn what_served_before_is_promised_only_where_something_did() {
    let (world, project, _port) = web();
    let good = project.read("web/Dockerfile");
    project.write("web/Dockerfile", ENDS);
    let first = world.kiln_in(&project, ["up"]).expect_code(4);
    let first = first.expect_stderr("hint: mend the service and run the same command again");
    assert!(!first.stderr.contains("what served before"), "{first}");
    project.write("web/Dockerfile", good);
    world.kiln_in(&project, ["up"]).expect_done();
    project.write("web/Dockerfile", ENDS);
    let second = world.kiln_in(&project, ["up"]).expect_code(4);
    second.expect_stderr("hint: what served before goes on serving; mend the service");
}

#[test]
fn a_plan_says_whether_clients_move() {
    let (world, project, _port) = web();
    let plan = || world.kiln_in(&project, ["plan"]).expect_done().stdout;
    let first = plan();
    assert!(first.contains("where nothing serves") && first.contains("  start: web"), "{first}");
    assert!(!first.contains("clients"), "{first}");
    world.kiln_in(&project, ["up"]).expect_done();
    assert!(plan().contains("serves release") && plan().contains("nothing to do"), "{}", plan());
    page(&project, "web", "two");
    world.kiln_in(&project, ["up"]).expect_done();
    world.kiln_in(&project, ["rollback"]).expect_done();
    // Nothing is started for it, and yet every client is moved.
    let back = plan();
    for part in ["it was rolled back from", "  keep: web", "all clients move from "] {
        assert!(back.contains(part), "`{part}` in {back}");
    }
    let json = world.kiln_in(&project, ["plan", "--json"]).expect_done().json();
    assert!(json["changes"] == true && json["quarantined"] == true, "{json}");
    assert!(json["active"].is_string() && json["active"] != json["release"], "{json}");
}

#[test]
fn what_is_started_again_after_a_failed_pause_has_rows_of_its_own() {
    let world = world();
    let compose = "name: demo\nservices:\n  db:\n    build: ./web\n    volumes: ['data:/data']\n\
                   volumes: { data: {} }\n";
    let project = project(&world, "demo", compose);
    page(&project, "web", "one");
    world.kiln_in(&project, ["up"]).expect_done();
    project.write("web/Dockerfile", ENDS);
    let plan = world.kiln_in(&project, ["plan"]).expect_done().stdout;
    assert!(plan.contains("requests wait while it is replaced"), "{plan}");
    let failed = world.kiln_in(&project, ["up"]).expect_code(4);
    let row = |phase: &str, end: &str| {
        let mut lines = failed.stderr.lines();
        lines.any(|line| line.starts_with(&format!("{phase:<7} db ")) && line.contains(end))
    };
    assert!(row("start", "FAILED") && !row("start", "done"), "{failed}");
    assert!(row("restore", "done   healthy"), "{failed}");
}

/// What a terminal of 80 columns is told, without its codes.
fn on_a_terminal(world: &World, dir: &std::path::Path, words: &str) -> String {
    let line =
        format!("stty cols 80; cd {}; {}", dir.display(), world.call(words.split(' ')).line());
    let said = Call::new("script").args(["-qec", &line, "/dev/null"]).run().unwrap().stdout;
    let mut parts = said.split('\x1b');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| c.is_ascii_alphabetic()).map_or(part.len(), |at| at + 1);
        plain.push_str(&part[end..]);
    }
    plain
}

#[test]
fn it_is_said_what_is_waited_for() {
    let world = world();
    let port = Port::claim();
    let compose = format!(
        "name: demo\nservices:\n  silent:\n    build: ./web\n    command: [busybox, sleep, '1000']\n    \
         ports: ['{}:8080']\n  after:\n    build: ./web\n    depends_on: {{ silent: {{ condition: \
         service_healthy }} }}\n",
        port.number()
    );
    let project = project(&world, "demo", &compose);
    page(&project, "web", "one");
    let said = on_a_terminal(&world, project.dir(), "up --timeout 3");
    assert!(said.contains("waiting, 1 of 3 s: nothing accepts on 8080"), "{said}");
    assert!(said.contains("waiting for `silent`"), "{said}");
    // It is not healthy, and its row does not say so.
    let row =
        |line: &str| line.contains("✓ silent") && line.contains("silent: nothing accepts yet");
    assert!(said.lines().any(row), "{said}");
    for line in said.lines().filter(|line| line.starts_with("  ")) {
        assert!(line.trim_end().chars().count() < 80, "{line}");
    }
    let ps = world.kiln_in(&project, ["ps"]).expect_done().stdout;
    assert!(ps.contains("\n  silent is silent: nothing accepts on 8080/tcp"), "{ps}");
}

#[test]
fn a_list_of_nothing_says_so_beside_standard_output() {
    let (world, project, _port) = web();
    for (args, words) in [
        (&["ps"][..], "kiln up"),
        (&["ls"], "kiln ls -a"),
        (&["ls", "-a"], "kiln up"),
        (&["stats", "--no-stream"], "kiln up"),
        (&["releases"], "kiln release"),
        (&["history"], "nothing is recorded"),
        (&["logs"], "kiln up"),
    ] {
        let said = world.kiln_in(&project, args.to_vec()).expect_done();
        assert!(said.stdout.is_empty() && said.stderr.contains(words), "{said}");
        let json = world.kiln_in(&project, [args, &["--json"]].concat()).expect_done();
        assert!(json.stderr.is_empty(), "{json}");
    }
}
