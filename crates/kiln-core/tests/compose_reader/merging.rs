//! Several files, anchors and merge keys.

use kiln_core::compose::{MountSource, Project};

use crate::{BASES, World, compose_of};

/// Two files whose service `web` has these keys.
fn merged(base: &str, over: &str) -> Project {
    let over: String = over.lines().map(|line| format!("    {line}\n")).collect();
    World::new(&compose_of(base))
        .file("over.yaml", &format!("services:\n  web:\n{over}"))
        .named(&["compose.yaml", "over.yaml"])
        .load()
        .unwrap_or_else(|error| panic!("{base} + {over}: {error}"))
}

/// What one key of `web` becomes, as JSON.
fn key(base: &str, over: &str, key: &str) -> String {
    let service = &merged(base, over).services["web"];
    serde_json::to_value(service).unwrap()[key].to_string()
}

#[test]
fn rules_by_key() {
    for (base, over, name, expected) in [
        ("hostname: a", "hostname: b", "hostname", "\"b\""),
        ("hostname: a", "user: b", "hostname", "\"a\""),
        ("hostname: a", "hostname:", "hostname", "\"a\""),
        ("command: [a, b]", "command: [c]", "command", "[\"c\"]"),
        ("command: a b", "command: [c]", "command", "[\"c\"]"),
        ("command: a", "command: !reset null", "command", "null"),
        ("entrypoint: [a, b]", "entrypoint: c d", "entrypoint", "[\"c\",\"d\"]"),
        (
            "environment: {A: 1, B: 1}",
            "environment: [B=2, C=3]",
            "environment",
            r#"{"A":"1","B":"2","C":"3"}"#,
        ),
        ("environment: [A=1]", "environment: {B: 2}", "environment", r#"{"A":"1","B":"2"}"#),
        ("environment: [A=1]", "environment: !override {B: 2}", "environment", r#"{"B":"2"}"#),
        ("environment: [A=1, B=1]", "environment: {A: !reset null}", "environment", r#"{"B":"1"}"#),
        ("cap_add: [KILL]", "cap_add: [CHOWN]", "cap_add", r#"["CHOWN","KILL"]"#),
        (
            "extra_hosts: [a=1.1.1.1]",
            "extra_hosts: {b: 2.2.2.2}",
            "extra_hosts",
            r#"[["a","1.1.1.1"],["b","2.2.2.2"]]"#,
        ),
        (
            "ulimits: {nofile: 5, core: 1}",
            "ulimits: {nofile: {soft: 1, hard: 2}}",
            "ulimits",
            r#"{"core":[1,1],"nofile":[1,2]}"#,
        ),
        (
            "tmpfs: /a",
            "tmpfs: [/b]",
            "tmpfs",
            r#"[{"target":"/a","size":null,"mode":null},{"target":"/b","size":null,"mode":null}]"#,
        ),
        (
            "volumes: [data:/a, data:/b]",
            "volumes: [more:/a]",
            "volumes",
            r#"[{"source":{"volume":"more"},"target":"/a","read_only":false},{"source":{"volume":"data"},"target":"/b","read_only":false}]"#,
        ),
        ("read_only: true", "read_only: false", "read_only", "false"),
        ("user: a", "user: !reset null", "user", "null"),
        (
            "networks: [default]",
            "networks: {default: {aliases: [x]}}",
            "networks",
            r#"{"default":["x"]}"#,
        ),
    ] {
        let value = key(base, over, name);
        assert_eq!(sorted(&value), sorted(expected), "{base} + {over}");
    }
}

fn sorted(json: &str) -> serde_json::Value {
    serde_json::from_str(json).unwrap()
}

#[test]
fn ports_append_and_are_kept_once() {
    let ports = |over: &str| -> Vec<(u16, u16)> {
        let project = merged("ports: [\"80:80\", \"81:81\"]", over);
        project.services["web"].ports.iter().map(|port| (port.published, port.target)).collect()
    };
    let appended = ports("ports: [{target: 80, published: 80}, \"82:82\"]");
    assert_eq!(appended, [(80, 80), (81, 81), (82, 82)]);
    assert_eq!(ports("ports: !override [\"90:90\"]"), [(90, 90)]);
    assert_eq!(ports("ports: !reset []"), []);
}

#[test]
fn health_checks_merge_but_tests_replace() {
    let project = merged(
        "healthcheck: {test: [CMD, a, b], retries: 5}",
        "healthcheck: {test: [CMD, c], interval: 1s}",
    );
    let check = project.services["web"].healthcheck.clone().unwrap();
    assert_eq!(check.test, ["CMD", "c"]);
    assert_eq!((check.retries, check.interval), (Some(5), Some(1_000_000_000)));
}

#[test]
fn builds_and_dependencies_merge_across_forms() {
    let text = format!(
        "services:\n  web: {{build: ./web, depends_on: [a]}}\n  a: {{image: base}}\n  \
         b: {{image: base}}\n{BASES}"
    );
    let over = "services:\n  web: {build: {target: run, args: [A=1]}, depends_on: \
                {b: {condition: service_healthy}}}\n";
    let project = World::new(&text)
        .file("over.yaml", over)
        .named(&["compose.yaml", "over.yaml"])
        .load()
        .unwrap();
    let web = &project.services["web"];
    let build = web.build.as_ref().unwrap();
    assert_eq!(build.context, std::path::Path::new("/w/shop/web"));
    assert_eq!(build.target.as_deref(), Some("run"));
    assert_eq!(web.depends_on.keys().collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn later_files_add_services_and_places_stay() {
    let over = "services:\n  web:\n    mem_limit: lots\n  more: {image: base}\n";
    let world = World::new(&compose_of("user: a"))
        .file("dir/over.yaml", over)
        .named(&["compose.yaml", "dir/over.yaml"]);
    let error = world.load().unwrap_err();
    assert_eq!((error.file.as_str(), error.line), ("dir/over.yaml", 3));
    let world = World::new(&compose_of("user: a"))
        .file("dir/over.yaml", "services: {more: {image: base, volumes: [./x:/x]}}\n")
        .named(&["compose.yaml", "dir/over.yaml"]);
    let project = world.load().unwrap();
    // All relative paths are of the first file's directory.
    let source = &project.services["more"].volumes[0].source;
    assert_eq!(*source, MountSource::Bind("/w/shop/x".into()));
}

#[test]
fn forms_that_do_not_merge_are_refused() {
    let error = World::new(&compose_of("ports: [\"80\"]"))
        .file("over.yaml", "services:\n  web:\n    ports: {a: b}\n")
        .named(&["compose.yaml", "over.yaml"])
        .load()
        .unwrap_err();
    assert_eq!((error.file.as_str(), error.line), ("over.yaml", 3));
    assert_eq!(error.key, "services.web.ports");
    assert!(error.what.contains("a map cannot be merged over a list"), "{error}");
}

#[test]
fn anchors_and_merge_keys() {
    let text = format!(
        "x-env: &env {{A: 1, B: 1}}\nx-common: &common\n  image: base\n  restart: \"no\"\n  \
         environment: &both\n    <<: *env\n    B: 2\nservices:\n  a:\n    <<: *common\n  b:\n    \
         <<: [{{user: x}}, *common]\n    user: y\n    environment: {{<<: *both, C: 3}}\n{BASES}"
    );
    let project = World::new(&text).load().unwrap();
    let env = |name: &str| -> Vec<String> {
        let env = &project.services[name].environment;
        env.iter().map(|(name, value)| format!("{name}={value}")).collect()
    };
    assert_eq!(env("a"), ["A=1", "B=2"]);
    assert_eq!(env("b"), ["A=1", "B=2", "C=3"]);
    assert_eq!(project.services["b"].user.as_deref(), Some("y"));
}
