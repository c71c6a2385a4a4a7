//! Which files are read, the project's name, variables, profiles.

use std::path::Path;

use crate::{BASES, World};

const ONE: &str = "services: {a: {build: ., hostname: one}}\n";

#[test]
fn files_are_found_here_and_above() {
    for (name, over) in [
        ("compose.yaml", "compose.override.yaml"),
        ("compose.yml", "compose.override.yml"),
        ("docker-compose.yaml", "docker-compose.override.yaml"),
        ("docker-compose.yml", "docker-compose.override.yml"),
    ] {
        let world = World::default().file(name, ONE).file(over, "services: {a: {hostname: two}}\n");
        for dir in ["/w/shop", "/w/shop/deep/er"] {
            let project = world.load_in(dir).unwrap();
            assert_eq!(project.services["a"].hostname.as_deref(), Some("two"), "{name}");
            assert_eq!(project.dir, Path::new("/w/shop"));
            assert_eq!(project.name, "shop");
        }
    }
    let both = World::new(ONE).file("docker-compose.yml", "services: {b: {build: .}}\n");
    assert!(both.load().unwrap().services.contains_key("a"));
    // Named files come without the override.
    let world = World::new(ONE).file("compose.override.yaml", "services: {a: {hostname: two}}");
    let project = world.named(&["compose.yaml"]).load().unwrap();
    assert_eq!(project.services["a"].hostname.as_deref(), Some("one"));
}

#[test]
fn compose_file_names_files() {
    let world =
        World::default().file("one.yaml", ONE).file("two.yaml", "services: {a: {hostname: two}}\n");
    let by_env =
        world.file(".env", "COMPOSE_FILE=one.yaml\n").env("COMPOSE_FILE", "one.yaml:two.yaml");
    let project = by_env.load().unwrap();
    assert_eq!(project.services["a"].hostname.as_deref(), Some("two"));
    let separated =
        by_env.env("COMPOSE_FILE", "one.yaml;two.yaml").env("COMPOSE_PATH_SEPARATOR", ";");
    assert_eq!(separated.load().unwrap().services["a"].hostname.as_deref(), Some("two"));
    let by_dotenv = World::default().file("one.yaml", ONE).file(".env", "COMPOSE_FILE=one.yaml\n");
    assert_eq!(by_dotenv.load().unwrap().services["a"].hostname.as_deref(), Some("one"));
}

#[test]
fn names() {
    let named = format!("name: from-file\n{ONE}");
    assert_eq!(World::new(&named).load().unwrap().name, "from-file");
    let by_env = World::new(&named).env("COMPOSE_PROJECT_NAME", "from_env");
    assert_eq!(by_env.load().unwrap().name, "from_env");
    let asked = World { project_name: Some("asked".into()), ..by_env };
    assert_eq!(asked.load().unwrap().name, "asked");
    let by_dotenv = World::new(&named).file(".env", "COMPOSE_PROJECT_NAME=dot\n");
    assert_eq!(by_dotenv.load().unwrap().name, "dot");
    let variable = format!("name: ${{WHO:-x}}-app\n{ONE}");
    assert_eq!(World::new(&variable).env("WHO", "me").load().unwrap().name, "me-app");
    let odd = World::default().file("../My Shop.2/compose.yaml", ONE);
    let odd = World {
        files: odd
            .files
            .into_values()
            .map(|text| ("/w/My Shop.2/compose.yaml".into(), text))
            .collect(),
        ..World::default()
    };
    assert_eq!(odd.load_in("/w/My Shop.2").unwrap().name, "myshop2");
    assert!(World::new(ONE).env("COMPOSE_PROJECT_NAME", "Bad").load().is_err());
    let used = "services: {a: {build: ., hostname: \"h-$COMPOSE_PROJECT_NAME\"}}\n";
    assert_eq!(World::new(used).load().unwrap().services["a"].hostname.as_deref(), Some("h-shop"));
}

#[test]
fn variables_come_from_env_then_dotenv() {
    let text = "services:\n  a:\n    build: .\n    user: \"$A-$B\"\n    hostname: h$C\n    working_dir: /$C\n";
    let world = World::new(text).file(".env", "A=dot\nB=\"dot $A\"\n").env("A", "env");
    let project = world.load().unwrap();
    assert_eq!(project.services["a"].user.as_deref(), Some("env-dot env"));
    assert_eq!(
        project.warnings,
        [
            "compose.yaml:5: the variable `C` is not set; it stands for nothing",
            "compose.yaml:6: the variable `C` is not set; it stands for nothing",
        ]
    );
}

#[test]
fn typed_values_may_come_from_variables() {
    let text = "services:\n  a:\n    build: .\n    init: $INIT\n    ports: [\"${PORT}:80\"]\n    \
                mem_limit: ${MEM:-64m}\n    stop_grace_period: ${GRACE:-1s}\n";
    let world = World::new(text).env("INIT", "true").env("PORT", "8080");
    let project = world.load().unwrap();
    let a = &project.services["a"];
    assert!(a.init);
    assert_eq!(a.ports[0].published, 8080);
    assert_eq!(a.limits.memory, Some(64 << 20));
}

#[test]
fn profiles() {
    let text = format!(
        "services:\n  a: {{image: base}}\n  b: {{image: base, profiles: [debug]}}\n  \
         c: {{image: far/away, privileged: true, profiles: [other]}}\n{BASES}"
    );
    let names =
        |world: World| -> Vec<String> { world.load().unwrap().services.into_keys().collect() };
    assert_eq!(names(World::new(&text)), ["a"]);
    assert_eq!(names(World::new(&text).profile("debug")), ["a", "b"]);
    assert_eq!(names(World::new(&text).env("COMPOSE_PROFILES", "x, debug")), ["a", "b"]);
    // What is switched off is not read; what is switched on is.
    assert!(World::new(&text).profile("*").load().unwrap_err().key.starts_with("services.c"));

    let needs = |required: &str| {
        format!(
            "services:\n  a: {{image: base, depends_on: {{b: {{condition: service_started{required}}}}}}}\n  \
             b: {{image: base, profiles: [debug]}}\n{BASES}"
        )
    };
    let error = World::new(&needs("")).load().unwrap_err();
    assert_eq!((error.line, error.key.as_str()), (2, "services.a.depends_on.b"));
    assert!(error.hint.unwrap().contains("--profile debug"));
    let project = World::new(&needs(", required: false")).load().unwrap();
    assert!(project.services["a"].depends_on.is_empty());
}

/// Six services, in the size of a real file, parse in a fraction of a millisecond when optimised;
/// unoptimised tests only hold that the cost grows in line with the size.
#[test]
fn cost_is_linear() {
    let text = |services: usize| -> String {
        let service = |at: usize| {
            format!(
                "  s{at}:\n    image: base\n    command: [a, b]\n    environment: {{A: \"${{X:-1}}\", B: 2}}\n    \
                 ports: [\"{}:80\"]\n    depends_on: [s{}]\n    healthcheck: {{test: x, interval: 1s}}\n",
                10_000 + at,
                if at == 0 { String::from("x") } else { (at - 1).to_string() },
            )
        };
        let all: String = (0..services).map(service).collect();
        format!("services:\n  sx: {{image: base}}\n{all}{BASES}")
    };
    let time = |services: usize| {
        let world = World::new(&text(services));
        let once = || {
            let begun = std::time::Instant::now();
            assert_eq!(world.load().unwrap().services.len(), services + 1);
            begun.elapsed()
        };
        (0..5).map(|_| once()).min().unwrap()
    };
    let (small, large) = (time(50), time(800));
    assert!(large < small * 64, "50 services {small:?}, 800 services {large:?}");
}

#[test]
fn a_service_that_is_named_is_switched_on_and_so_are_its_profiles() {
    let text = format!(
        "services:\n  web: {{image: base}}\n  tool: {{image: base, profiles: [tools], depends_on: \
         [aid]}}\n  aid: {{image: base, profiles: [tools]}}\n  other: {{image: base, profiles: \
         [others]}}\n{BASES}"
    );
    let names = |asked: &[&str]| {
        let asked = asked.iter().map(|name| (*name).to_owned()).collect();
        let world = World { asked, ..World::new(&text) };
        world.load().unwrap().services.into_keys().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(&[]), "web");
    assert_eq!(names(&["web"]), "web");
    assert_eq!(names(&["tool"]), "aid tool web");
    assert_eq!(names(&["tool", "other"]), "aid other tool web");
    assert_eq!(names(&["nobody"]), "web");
}

#[test]
fn a_stage_has_files_of_its_own_over_the_projects() {
    let main = format!(
        "{ONE}x-kiln: {{stages: {{prod: {{files: [prod.yaml, more.yaml], keep: 2}}, ci: {{}}}}}}\n"
    );
    let world = World::new(&main)
        .file("prod.yaml", "services: {a: {hostname: prod, environment: {A: 1, B: $WHO}}}\n")
        .file("more.yaml", "services: {a: {environment: {A: 2}}}\n")
        .env("WHO", "me");
    let project = world.load().unwrap();
    assert_eq!(project.services["a"].hostname.as_deref(), Some("one"));
    assert_eq!(project.in_stages.keys().collect::<Vec<_>>(), ["prod"]);
    let a = &project.in_stage("prod").services["a"];
    assert_eq!(a.hostname.as_deref(), Some("prod"));
    assert_eq!((&*a.environment["A"], &*a.environment["B"]), ("2", "me"));
    assert_eq!(project.in_stage("ci"), &project);

    // A variable that only a stage's file names is told, and once.
    let unset = world.file("more.yaml", "services: {a: {environment: {A: $NOBODY}}}\n");
    let warnings = unset.load().unwrap().warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("more.yaml") && warnings[0].contains("NOBODY"), "{warnings:?}");

    let missing = World::new(&main).file("prod.yaml", ONE);
    let error = missing.load().unwrap_err().to_string();
    assert!(error.contains("more.yaml: cannot be read"), "{error}");
}

#[test]
fn a_stage_changes_no_image() {
    let main = "services:\n  a: {build: ., hostname: one}\n  b: {image: one}\nx-kiln:\n  \
                bases: {one: {debian: x}}\n  stages: {prod: {files: [prod.yaml]}}\n";
    for (over, place, what) in [
        ("services:\n  b: {image: two}\n", "prod.yaml:2:7", "has another `image` for `b`"),
        ("services:\n  a:\n    build: other\n", "prod.yaml:3:5", "has another `build` for `a`"),
        ("services:\n  c: {image: one}\n", "prod.yaml:2:3", "has a service more, `c`"),
        ("services:\n  b: {profiles: [x]}\n", "prod.yaml:2:7", "lacks the service `b`"),
        ("x-kiln: {bases: {one: {debian: y}}}\n", "x-kiln.bases", "has other bases"),
    ] {
        let world = World::new(main).file("prod.yaml", over);
        let error = world.load().unwrap_err().to_string();
        assert!(error.contains(place) && error.contains(what), "{over}: {error}");
        assert!(error.contains("the stage `prod`"), "{error}");
        let shown = world.configuration().unwrap_err().to_string();
        assert_eq!(shown, error, "`kiln config` says it, too");
    }
}
