//! Escape codes that an image or an instance wrote: shown, and obeyed by no terminal.

mod common;

use common::{PATIENCE, project, world};
use kiln_testkit::{Call, wait_until};

/// Sets the title, clears the screen, types, hides; by 7-bit and 8-bit codes; turns the direction.
const CODES: &str = "\\033]0;LAST\\007\\033[2J\\033[31mred\\033[0m\\033[6n\\033[8mhidden \\302\\2332J \\342\\200\\256 back\\rover";

/// What a terminal is told by one of Kiln's verbs, and how that ended.
fn on_a_terminal(call: &Call) -> String {
    // `script` gives it a terminal, and copies what comes out of that to its own output.
    let line = call.line();
    let said = Call::new("script").args(["-qec", &line, "/dev/null"]);
    said.run().unwrap().stdout
}

#[track_caller]
fn obeys_nothing(said: &str, allowed: &str) {
    let rest = allowed.split('|').filter(|code| !code.is_empty());
    let rest = rest.fold(said.to_owned(), |text, code| text.replace(code, ""));
    let bad = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t') || c == '\u{202e}';
    assert!(!rest.chars().any(bad), "{rest:?}");
}

#[test]
fn what_instances_write_is_shown_and_not_obeyed() {
    let world = world();
    let project = project(
        &world,
        "codes",
        &format!(
            "services:
  steady:
    image: busybox
    command: [sh, -c, 'printf ''{CODES}\\n''; exec sleep 1000']
    expose: ['81/udp']
"
        ),
    );
    world.kiln_in(&project, ["up"]).expect_done();
    wait_until(PATIENCE, "the log", || {
        let log = world.kiln_in(&project, ["logs"]).expect_done().stdout;
        log.contains("over").then_some(())
    });
    // A program gets what was written, as it was written.
    let raw = world.kiln_in(&project, ["logs"]).expect_done().stdout;
    assert!(raw.contains("\x1b]0;LAST\x07\x1b[2J\x1b[31mred"), "{raw:?}");
    let file = format!("{}/compose.yaml", project.dir().display());
    let shown = on_a_terminal(&world.call(["logs", "--file", &file]));
    assert!(shown.contains("^[]0;LAST^G^[[2J\x1b[31mred\x1b[0m"), "{shown:?}");
    obeys_nothing(&shown, "\x1b[31m|\x1b[0m");
    let json = world.kiln_in(&project, ["logs", "--json"]).expect_done();
    obeys_nothing(&json.stdout, "");
    assert!(json.json_lines()[0]["text"].as_str().unwrap().contains("\x1b]0;LAST"), "the same");

    // Last words in a refusal, a probe's answer, and what a step prints.
    project.edit("compose.yaml", "exec sleep 1000", "exit 3");
    let refused = world.kiln_in(&project, ["up"]);
    assert!(refused.stderr.contains("^[]0;LAST^G"), "{refused}");
    obeys_nothing(&refused.stderr, "");
    project.edit("compose.yaml", "exit 3", "exec sleep 1000");
    let check = format!(
        "    healthcheck: {{ test: [CMD-SHELL, 'printf ''{CODES}\\n  hint: be careless\\n''; exit 1'], \
         interval: 100ms, retries: 2 }}\n    expose:"
    );
    project.edit("compose.yaml", "    expose:", &check);
    let refused = world.kiln_in(&project, ["up"]).expect_code(4);
    assert!(refused.stderr.contains("^[]0;LAST^G"), "{refused}");
    assert!(!refused.stderr.contains("\n  hint: be careless"), "{refused}");
    obeys_nothing(&refused.stderr, "");
    for verb in ["status", "ps", "history"] {
        obeys_nothing(&world.kiln_in(&project, [verb]).expect_done().stdout, "");
        let shown = on_a_terminal(&world.call([verb, "--file", &file]));
        obeys_nothing(&shown, "");
    }
    let log = std::fs::read_to_string(world.root().join("agent.log")).unwrap();
    obeys_nothing(&log, "");
}

#[test]
fn what_a_step_prints_is_shown_and_not_obeyed() {
    let world = world();
    let compose = "services:\n  a: { build: ., command: [sleep, '1000'] }\n";
    let project = project(&world, "steps", compose);
    project.write("Dockerfile", format!("FROM busybox\nRUN printf '{CODES}\\n' && exit 7\n"));
    let refused = world.kiln_in(&project, ["bake"]);
    assert_ne!(refused.code, Some(0));
    assert!(refused.stderr.contains("^[]0;LAST^G"), "{refused}");
    obeys_nothing(&refused.stderr, "");
    // On a terminal there are codes, but Kiln's own.
    let file = format!("{}/compose.yaml", project.dir().display());
    let shown = on_a_terminal(&world.call(["bake", "--file", &file]));
    assert!(shown.contains("^[]0;LAST^G"), "{shown:?}");
    assert!(!shown.contains('\x07') && !shown.contains("\x1b[2J"), "{shown:?}");
}
