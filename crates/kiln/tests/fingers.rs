//! What fingers expect that know Compose: `port`, `ls`, `wait`, `stats`, `logs --since`, `restart`,
//! `build`, completions and pages for `man`.

mod common;

use common::{PATIENCE, answer, instance, page, project, wait_for_answer, web, world};
use kiln_testkit::{Port, Project, World, wait_until};
use serde_json::Value;

fn stdout(world: &World, project: &Project, args: &[&str]) -> String {
    world.kiln_in(project, args.to_vec()).expect_done().stdout
}

fn id(world: &World, project: &Project, service: &str) -> String {
    let found = instance(world, project, service, "active").expect("an instance");
    found["id"].as_str().unwrap().to_owned()
}

#[test]
fn port_says_where_clients_reach_a_service() {
    let world = world();
    let (port, udp) = (Port::claim(), Port::claim());
    let compose = format!(
        "name: demo\nservices:\n  web:\n    build: ./web\n    ports: [\"{}:8080\", \"{}:53/udp\"]\n  auto:\n    \
         build: ./web\n    ports: [\"127.0.0.1::8080\"]\n  back:\n    build: ./web\n",
        port.number(),
        udp.number()
    );
    let project = project(&world, "demo", &compose);
    page(&project, "web", "one");
    let none = world.kiln_in(&project, ["port", "web", "8080"]).expect_code(1);
    assert!(none.stderr.contains("nothing serves"), "{none}");
    world.kiln_in(&project, ["up"]).expect_done();
    let said = stdout(&world, &project, &["port", "web", "8080"]);
    assert_eq!(said, format!("0.0.0.0:{}\n", port.number()));
    // The kernel chose that one.
    let chosen = stdout(&world, &project, &["port", "auto", "8080"]);
    let number: u16 = chosen.trim().strip_prefix("127.0.0.1:").unwrap().parse().unwrap();
    assert_eq!(kiln_testkit::http::get(number, "/").unwrap().text(), "one");
    let all = stdout(&world, &project, &["port", "auto"]);
    assert_eq!(all, format!("8080/tcp -> {chosen}"));
    // Datagrams are asked for as Compose does it, and as Docker does.
    let datagrams = format!("0.0.0.0:{}\n", udp.number());
    for args in [&["port", "web", "53/udp"][..], &["port", "--protocol", "udp", "web", "53"]] {
        assert_eq!(stdout(&world, &project, args), datagrams);
    }
    let wrong = world.kiln_in(&project, ["port", "web", "53"]).expect_code(1);
    wrong.expect_stderr("publishes no port 53/tcp").expect_stderr("8080/tcp, 53/udp");
    let wrong = ["port", "--protocol", "tcp", "web", "53/udp"];
    world.kiln_in(&project, wrong).expect_code(2).expect_stderr("contradict");
    let json = world.kiln_in(&project, ["port", "web", "8080", "--json"]).expect_done().json();
    assert_eq!(json["ports"][0]["port"], port.number());
    for (args, exit) in [
        (&["port", "web", "80"][..], 1),
        (&["port", "--protocol", "udp", "web", "8080"], 1),
        (&["port", "back"], 1),
        (&["port", "nobody", "8080"], 2),
        (&["port", "web", "70000"], 2),
        (&["port", "web", "0"], 2),
        (&["port", "web", "53/dccp"], 2),
    ] {
        world.kiln_in(&project, args.to_vec()).expect_code(exit);
    }
}

#[test]
fn ls_names_all_projects_of_the_root() {
    let (world, first, _port) = web();
    let compose = "name: other\nservices:\n  job:\n    build: ./job\n";
    let second = project(&world, "other", compose);
    page(&second, "job", "x");
    let none = world.kiln(["ls"]).expect_done();
    assert_eq!(none.stdout, "");
    assert!(none.stderr.contains("no project of this root runs"), "{none}");
    world.kiln_in(&first, ["build"]).expect_done();
    world.kiln_in(&first, ["up"]).expect_done();
    world.kiln_in(&second, ["up"]).expect_done();
    let json = world.kiln(["ls", "--json"]).expect_done().json();
    let names: Vec<&str> = json["projects"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|it| it["project"].as_str())
        .collect();
    assert_eq!(names, ["demo", "other"]);
    assert_eq!(json["projects"][0]["states"]["healthy"], 1);
    assert_eq!(json["projects"][0]["folder"], first.dir().to_str().unwrap());
    let text = world.kiln(["ls"]).expect_done().stdout;
    assert!(text.contains("demo") && text.contains("healthy(1)"), "{text}");
    world.kiln_in(&first, ["down"]).expect_done();
    assert_eq!(world.kiln(["ls", "-q"]).expect_done().stdout, "other\n");
    let all = world.kiln(["ls", "-a"]).expect_done().stdout;
    assert!(all.lines().any(|line| line.starts_with("demo") && line.contains("down")), "{all}");
}

#[test]
fn wait_ends_with_the_programs_own_code() {
    let world = world();
    let compose = "name: demo\nservices:\n  job:\n    build: ./job\n    restart: 'no'\n    \
                   tmpfs: [/go]\n";
    let project = project(&world, "demo", compose);
    project.write(
        "job/Dockerfile",
        "FROM busybox\nCMD [\"busybox\", \"sh\", \"-c\", \
         \"until [ -e /go/now ]; do busybox sleep 0.05; done; exit 7\"]\n",
    );
    world.kiln_in(&project, ["up"]).expect_done();
    let waiting = world.call(["wait", "job"]).dir(project.dir()).spawn().unwrap();
    world.kiln_in(&project, ["exec", "job", "busybox", "touch", "/go/now"]).expect_done();
    let ended = waiting.wait().unwrap();
    let ended = ended.expect_code(7);
    assert_eq!(ended.stdout, "job exited with status 7\n");
    world.kiln_in(&project, ["wait", "nobody"]).expect_code(2);
    // Who comes later is told the same.
    let json = world.kiln_in(&project, ["wait", "--json", "job"]).expect_code(7).json();
    assert_eq!(json["services"][0]["code"], 7);
}

#[test]
fn stats_tell_what_instances_use() {
    let world = world();
    let compose = "name: demo\nservices:\n  busy:\n    build: ./busy\n  lazy:\n    build: ./lazy\n";
    let project = project(&world, "demo", compose);
    let program =
        |script: &str| format!("FROM busybox\nCMD [\"busybox\", \"sh\", \"-c\", \"{script}\"]\n");
    project.write("busy/Dockerfile", program("while :; do :; done"));
    project.write("lazy/Dockerfile", program("busybox sleep 100000"));
    world.kiln_in(&project, ["up"]).expect_done();
    let json = world.kiln_in(&project, ["stats", "--no-stream", "--json"]).expect_done().json();
    let of = |service: &str| -> Value {
        let all = json["instances"].as_array().unwrap();
        all.iter().find(|it| it["service"] == service).expect(service).clone()
    };
    let (busy, lazy) = (of("busy"), of("lazy"));
    let cpu = |usage: &Value| usage["cpu_percent"].as_f64().unwrap();
    assert!(cpu(&busy) > cpu(&lazy) && cpu(&lazy) < 5.0, "{json}");
    for usage in [&busy, &lazy] {
        assert!(usage["memory"].as_u64().unwrap() > 10_000, "{json}");
        assert!(usage["pids"].as_u64().unwrap() >= 1, "{json}");
        assert!(usage["received"].is_u64() && usage["sent"].is_u64(), "{json}");
    }
    let text = stdout(&world, &project, &["stats", "--no-stream", "lazy"]);
    assert!(text.contains("demo/dev lazy") && !text.contains("busy"), "{text}");
    let refused = world.kiln_in(&project, ["stats", "lazy", "nosuch"]).expect_code(2);
    assert!(refused.stderr.contains("demo has no service `nosuch`"), "{refused}");
    assert!(refused.stderr.contains("there are busy, lazy"), "{refused}");
    // A stream goes on until nobody reads it any more.
    let stream = world.call(["stats", "--json"]).dir(project.dir()).spawn().unwrap();
    stream.wait_for("cpu_percent", PATIENCE);
    stream.signal(rustix::process::Signal::TERM).unwrap();
    stream.wait().unwrap();
    world.kiln_in(&project, ["ps"]).expect_done();
}

#[test]
fn logs_are_cut_by_time() {
    let world = world();
    let compose = "name: demo\nservices:\n  web:\n    build: ./web\n";
    let project = project(&world, "demo", compose);
    project.write(
        "web/Dockerfile",
        "FROM busybox\nCMD [\"busybox\", \"sh\", \"-c\", \
         \"for n in 1 2 3; do echo line $n; busybox sleep 0.2; done; busybox sleep 100000\"]\n",
    );
    world.kiln_in(&project, ["up"]).expect_done();
    let entries = || world.kiln_in(&project, ["logs", "--json"]).expect_done().json_lines();
    wait_until(PATIENCE, "three lines", || (entries().len() == 3).then_some(()));
    let times: Vec<u64> = entries().iter().map(|entry| entry["time"].as_u64().unwrap()).collect();
    let moment = |ns: u64| format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000);
    let lines = |args: &[&str]| -> Vec<String> {
        let out = world.kiln_in(&project, [&["logs"], args].concat()).expect_done().stdout;
        out.lines().map(|line| line.rsplit("line ").next().unwrap().to_owned()).collect()
    };
    let (second, third) = (moment(times[1]), moment(times[2]));
    assert_eq!(lines(&["--since", &second]), ["2", "3"]);
    assert_eq!(lines(&["--until", &second]), ["1", "2"]);
    assert_eq!(lines(&["--until", &second, "-n", "1"]), ["2"]);
    assert_eq!(lines(&["--since", &second, "-n", "1"]), ["3"]);
    assert_eq!(lines(&["--since", &third, "--until", &second]), Vec::<String>::new());
    assert_eq!(lines(&["--since", "1h"]), ["1", "2", "3"]);
    let timed = world.kiln_in(&project, ["logs", "-t", "-n", "1"]).expect_done().stdout;
    let fraction = format!(".{:09}Z line 3", times[2] % 1_000_000_000);
    assert!(timed.contains(&fraction), "{timed} has no {fraction}");
    // Of each service so many, as Compose counts them.
    project.edit(
        "compose.yaml",
        "    build: ./web\n",
        "    build: ./web\n  other:\n    build: ./web\n",
    );
    world.kiln_in(&project, ["up"]).expect_done();
    wait_until(PATIENCE, "six lines", || (entries().len() == 6).then_some(()));
    let last = |args: &[&str]| -> Vec<String> {
        let args = [&["logs", "--json"], args].concat();
        let entries = world.kiln_in(&project, args).expect_done().json_lines();
        let mut said: Vec<String> = entries
            .iter()
            .map(|entry| format!("{}: {}", entry["service"], entry["text"]))
            .collect();
        said.sort();
        said
    };
    let both = ["\"other\": \"line 3\"", "\"web\": \"line 3\""];
    assert_eq!(last(&["-n", "1"]), both);
    assert_eq!(last(&["--tail", "1", "other", "web"]), both);
    assert_eq!(last(&["--tail", "all"]).len(), 6);
    assert_eq!(last(&["-n", "0"]), Vec::<String>::new());
    world.kiln_in(&project, ["logs", "-n", "some"]).expect_code(2);
    let wrong = world.kiln_in(&project, ["logs", "--since", "yesterday"]).expect_code(2);
    assert!(wrong.stderr.contains("no moment"), "{wrong}");
}

#[test]
fn restart_gives_fresh_instances_through_the_switch() {
    let (world, project, port) = web();
    world.kiln_in(&project, ["restart"]).expect_code(1);
    world.kiln_in(&project, ["up"]).expect_done();
    let before = id(&world, &project, "web");
    let probing = kiln_testkit::Probe::local(port.number(), 200).start();
    let done = world.kiln_in(&project, ["restart", "--json"]).expect_done().json();
    let report = probing.stop().unwrap();
    assert!(report.losses.is_empty(), "{report}");
    assert_eq!(done["services"]["web"]["did"], "started");
    let after = id(&world, &project, "web");
    assert_ne!(before, after);
    assert_eq!(answer(&port), "one");
    world.kiln_in(&project, ["restart", "web"]).expect_done();
    assert_ne!(id(&world, &project, "web"), after);
    wait_for_answer(&port, "one");
    let wrong = world.kiln_in(&project, ["restart", "nobody"]).expect_code(2);
    assert!(wrong.stderr.contains("there is web"), "{wrong}");
    // It is the release that it was, and nothing is left to do.
    let up = world.kiln_in(&project, ["up", "--json"]).expect_done().json();
    assert_eq!((&up["switched"], &up["release"]), (&Value::Bool(false), &done["release"]));
    let history = world.kiln_in(&project, ["history"]).expect_done().stdout;
    assert!(history.contains("restart"), "{history}");
}

#[test]
fn restart_of_one_service_leaves_the_others_alone() {
    let world = world();
    let compose = "name: demo\nservices:\n  web:\n    build: ./web\n    expose: ['8080']\n    \
                   depends_on: [db]\n  db:\n    build: ./web\n    expose: ['8080']\n";
    let project = project(&world, "demo", compose);
    page(&project, "web", "one");
    world.kiln_in(&project, ["up"]).expect_done();
    let (web, db) = (id(&world, &project, "web"), id(&world, &project, "db"));
    world.kiln_in(&project, ["restart", "db"]).expect_done();
    assert_eq!(id(&world, &project, "web"), web);
    assert_ne!(id(&world, &project, "db"), db);
    // Its name leads to the fresh one.
    let asked = ["exec", "web", "busybox", "wget", "-qO-", "http://db:8080/"];
    assert_eq!(stdout(&world, &project, &asked).trim(), "one");
}

#[test]
fn completions_and_pages_come_from_the_help() {
    let world = world();
    for (shell, sign) in
        [("bash", "complete -F"), ("zsh", "#compdef kiln"), ("fish", "complete -c kiln")]
    {
        let text = world.kiln(["completions", shell]).expect_done().stdout;
        assert!(text.contains(sign) && text.contains("rollback"), "{shell}");
        assert!(text.contains("restart"), "{shell}");
    }
    world.kiln(["completions", "abacus"]).expect_code(2);
    let dir = world.home().join("pages");
    world.kiln(["man", dir.to_str().unwrap()]).expect_done();
    let page = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    // At the foot of each page stands what it is a page of.
    let of = format!("\"kiln {}\"", env!("CARGO_PKG_VERSION"));
    assert!(
        page("kiln.1").contains(&of) && page("kiln-up.1").contains(&of),
        "{}",
        page("kiln-up.1")
    );
    // Verbs that nobody is to call are offered nowhere; nor is what this very shell has set.
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let text = world.kiln(["completions", shell]).expect_done().stdout;
        assert!(!text.contains("agent as a verb") && !text.contains("kiln__agent"), "{shell}");
    }
    assert!(!dir.join("kiln-agent.1").exists());
    let alone = world.kiln(Vec::<&str>::new()).expect_code(2).expect_stderr("Write a commented");
    assert!(alone.stdout.is_empty() && !alone.stderr.contains("agent, help"), "{alone}");
    world.kiln(["up", "--timeout", "soon"]).expect_code(2).expect_stderr("number of seconds");
    let here = world.call(["up", "--help"]).env("KILN_ROOT", "/tmp/of-this-shell").run().unwrap();
    assert!(here.stdout.contains("[env: KILN_ROOT]"), "{here}");
    assert!(!here.stdout.contains("of-this-shell"), "{here}");
    assert!(page("kiln.1").contains("Immutable delivery"));
    assert!(page("kiln-up.1").contains("renew"));
    // One for each verb that the help has.
    let help = world.kiln(["--help"]).expect_done().stdout;
    let verbs = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    let verbs: Vec<&str> = verbs
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|verb| *verb != "help")
        .collect();
    assert!(verbs.len() > 20, "{help}");
    for verb in verbs {
        assert!(dir.join(format!("kiln-{verb}.1")).exists(), "{verb}");
    }
}
