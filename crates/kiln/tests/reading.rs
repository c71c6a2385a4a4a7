//! How a project is read, through the binary: `kiln config`, refusals, and inputs that are no files.

mod common;

use std::fs;
use std::os::unix::fs::symlink;

use common::KILN;
use kiln_testkit::World;

const SHOP: &str = "\
name: shop
services:
  web: { build: ./web, ports: [\"8080:80\"], environment: { GREETING: \"${G:-hello}\" }, depends_on: [db] }
  db: { build: ./db, volumes: [\"data:/var/lib/db\"] }
  debug: { build: ., profiles: [debug] }
volumes: { data: , unused: }
";

#[test]
fn config_prints_the_project_in_composes_normal_form() {
    let world = World::new(KILN);
    let project = world.project("shop", SHOP);
    let config = |args: &[&str]| world.kiln_in(&project, [&["config"], args].concat());
    let yaml = config(&[]).expect_done().stdout;
    assert!(yaml.starts_with("name: shop\nservices:\n  db:\n"), "{yaml}");
    assert!(yaml.contains("      GREETING: hello\n"), "{yaml}");
    let json = config(&["--json"]).expect_done().json();
    assert_eq!(json["services"]["web"]["ports"][0]["published"], "8080");
    assert_eq!(json["volumes"].as_object().unwrap().len(), 1, "what nobody uses is left out");
    assert_eq!(json, config(&["--format", "json"]).expect_done().json());
    // What is printed reads as the same project.
    let again = world.call(["-f", "-", "config", "--json"]).dir(project.dir()).stdin(yaml);
    assert_eq!(again.run_ok().unwrap().json(), json);
    for (flag, expected) in [
        ("--services", "db\nweb\n"),
        ("--images", "shop-db\nshop-web\n"),
        ("--volumes", "data\n"),
        ("--networks", "default\n"),
        ("--profiles", "debug\n"),
        ("-q", ""),
    ] {
        assert_eq!(config(&[flag]).expect_done().stdout, expected, "{flag}");
    }
    assert_eq!(
        config(&["--services", "--json"]).expect_done().json(),
        serde_json::json!(["db", "web"])
    );
    let variables = "\
        NAME                REQUIRED            DEFAULT VALUE       ALTERNATE VALUE\n\
        G                   false               hello               \n";
    assert_eq!(config(&["--variables"]).expect_done().stdout, variables);
    let variables = config(&["--variables", "--json"]).expect_done().json();
    assert_eq!(variables["G"]["DefaultValue"], "hello");
    let environment = config(&["--environment"]).expect_done().stdout;
    assert!(environment.contains("COMPOSE_PROJECT_NAME=shop\n"), "{environment}");
    let hashes = config(&["--hash", "*"]).expect_done().stdout;
    let names: Vec<&str> = hashes.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(names, ["db", "web"]);
    let web = config(&["--hash", "web"]).expect_done().stdout;
    assert!(hashes.ends_with(&web) && web.trim_end().len() == "web ".len() + 64, "{web}");
    config(&["--hash", "nope"]).expect_code(2).expect_stderr("there is no service `nope`");
    project.write("needs.yaml", "services: { a: { image: \"${MUST:?set it}\" } }\n");
    let needs = world.kiln_in(&project, ["-f", "needs.yaml", "config", "--variables"]);
    assert!(needs.expect_done().stdout.contains("MUST                true "));
    let one = config(&["db", "--json"]).expect_done().json();
    assert_eq!(one["services"].as_object().unwrap().len(), 1);
    let with = config(&["web", "--json"]).expect_done().json();
    assert_eq!(with["services"].as_object().unwrap().len(), 2, "with what it depends on");
    config(&["nope"]).expect_code(2).expect_stderr("there is no service `nope`");
    config(&["-o", "out.yaml"]).expect_done();
    assert_eq!(fs::read_to_string(project.path("out.yaml")).unwrap(), config(&[]).stdout);
    assert!(world.processes().is_empty(), "no agent was started");
}

#[test]
fn strangers_values_are_quoted() {
    let world = World::new(KILN);
    let odd = "\\e[31m \\a ${ } $$ \\\" ' # : - {x} \\u2028 \\n end";
    let compose = format!("services: {{ a: {{ build: ., environment: {{ ODD: \"{odd}\" }} }} }}\n")
        .replace("${ }", "$ { }");
    let project = world.project("odd", &compose);
    let json = world.kiln_in(&project, ["config", "--json"]).expect_done();
    let yaml = world.kiln_in(&project, ["config"]).expect_done().stdout;
    for text in [&json.stdout, &yaml] {
        let odd = text.chars().find(|letter| letter.is_control() && *letter != '\n');
        assert_eq!(odd, None, "{text:?}");
    }
    let again = world.call(["-f", "-", "config", "--json"]).dir(project.dir()).stdin(yaml);
    assert_eq!(again.run_ok().unwrap().json(), json.json());
}

#[test]
fn one_run_says_all_that_is_refused() {
    let world = World::new(KILN);
    let project = world.project(
        "bad",
        "services:\n  a:\n    build: .\n    privileged: true\n    pid: host\n    prots: [\"80\"]\n  \
         b: { build: ., ipc: host, deploy: { mode: global, replicas: 2 } }\n",
    );
    for verb in ["config", "up"] {
        let said = world.kiln_in(&project, [verb]).expect_code(2).stderr;
        for line in [
            "6 things are wrong in the Compose files".to_owned(),
            "compose.yaml:4:5: services.a.privileged: `privileged` is not supported".into(),
            "hint: name what it needs in `cap_add`".into(),
            "compose.yaml:5:5: services.a.pid".into(),
            "compose.yaml:6:5: services.a.prots: the key `prots` is unknown".into(),
            "hint: did you mean `ports`?".into(),
            "compose.yaml:7:18: services.b.ipc".into(),
            "services.b.deploy.mode".into(),
            "services.b.deploy.replicas".into(),
        ] {
            assert!(said.contains(&line), "{line}\n{said}");
        }
    }
    let json = world.kiln_in(&project, ["config", "--json"]).expect_code(2).json();
    let refusals = json["error"]["refusals"].as_array().unwrap();
    assert_eq!(refusals.len(), 6, "{json}");
    assert_eq!((&refusals[0]["line"], &refusals[0]["column"]), (&4.into(), &5.into()));
    world.shutdown();
}

#[test]
fn a_project_is_one_however_its_folder_is_reached() {
    let world = World::new(KILN);
    let project = world.project("real-1", "services: { a: { build: . } }\n");
    let link = world.home().join("link");
    symlink(project.dir(), &link).unwrap();
    let name = |call: kiln_testkit::Call| call.run_ok().unwrap().json()["name"].clone();
    let expected = name(world.call(["config", "--json"]).dir(project.dir()));
    assert_eq!(expected, "real-1");
    assert_eq!(name(world.call(["config", "--json"]).dir(&link)), expected);
    let file = link.join("compose.yaml");
    let by_file = ["-f", file.to_str().unwrap(), "config", "--json"];
    assert_eq!(name(world.call(by_file).dir(world.home())), expected);
    let by_dir = ["--project-directory", link.to_str().unwrap(), "config", "--json"];
    assert_eq!(name(world.call(by_dir).dir(world.home())), expected);
}

#[test]
fn what_is_no_file_is_not_waited_for() {
    let world = World::new(KILN);
    let project = world.project("pipe", "services: { a: { build: ., env_file: pipe } }\n");
    rustix::fs::mkfifoat(rustix::fs::CWD, project.path("pipe"), rustix::fs::Mode::RUSR).unwrap();
    let said = world.kiln_in(&project, ["config"]).expect_code(2);
    said.expect_stderr("no regular file");
    world
        .kiln_in(&project, ["-f", "pipe", "config"])
        .expect_code(2)
        .expect_stderr("no regular file");
    let zero = world.kiln_in(&project, ["-f", "/dev/zero", "config"]).expect_code(2);
    zero.expect_stderr("no regular file");
    project.write("compose.yaml", "services: { a: { build: ., env_file: /dev/null } }\n");
    world.kiln_in(&project, ["config", "-q"]).expect_done();
    world
        .kiln_in(&project, ["--env-file", "none", "config"])
        .expect_code(2)
        .expect_stderr("--env-file");
}

#[test]
fn what_is_not_required_may_fail() {
    let world = common::world();
    let compose = |required: bool| {
        format!(
            "services:\n  mig: {{ image: busybox, restart: \"no\", command: [busybox, sh, -c, exit 3] }}\n  \
             app:\n    image: busybox\n    command: [busybox, sleep, \"1000\"]\n    \
             depends_on: {{ mig: {{ condition: service_completed_successfully, required: {required} }} }}\n"
        )
    };
    let project = common::project(&world, "d3", &compose(false));
    world.kiln_in(&project, ["up"]).expect_done().expect_stderr("`required: false`");
    let ps = world.kiln_in(&project, ["ps", "--json"]).expect_done().stdout;
    assert!(ps.contains("\"app\""), "{ps}");
    world.kiln_in(&project, ["down"]).expect_done();
    project.write("compose.yaml", format!("{}{}", compose(true), common::BUSYBOX));
    world.kiln_in(&project, ["up"]).expect_code(4).expect_stderr("`mig`");
    world.shutdown().expect_done();
}

#[test]
fn namespaces_reach_the_program() {
    let world = common::world();
    let compose = "services:\n  a:\n    image: busybox\n    user: \"${U:-}\"\n    group_add: [\"44\"]\n    \
                   sysctls: { net.ipv4.ip_default_ttl: 77 }\n    dns: 10.9.8.7\n    dns_search: [a.example]\n    \
                   security_opt: [\"seccomp:unconfined\"]\n    mem_limit: 64m\n    memswap_limit: 64m\n    \
                   cpu_shares: 512\n    command: [busybox, sleep, \"1000\"]\n";
    let project = common::project(&world, "spaces", compose);
    world
        .kiln_in(&project, ["up"])
        .expect_done()
        .expect_stderr("without the filter of system calls");
    let script = "busybox id -G; busybox cat /proc/sys/net/ipv4/ip_default_ttl /etc/resolv.conf; \
                  busybox grep Seccomp: /proc/self/status";
    let said = world.kiln_in(&project, ["exec", "-T", "a", "busybox", "sh", "-c", script]);
    let said = said.expect_done().stdout;
    for line in ["0 44", "77", "nameserver 10.9.8.7", "search a.example", "Seccomp:\t0"] {
        assert!(said.lines().any(|found| found == line), "{line}\n{said}");
    }
    world.shutdown().expect_done();
}
