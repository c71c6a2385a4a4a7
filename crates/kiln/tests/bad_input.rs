//! Bad input and bad luck: every refusal names the place and says what to do, and nothing is left
//! half done.

mod common;

use common::{PATIENCE, answer, instances, page, project, wait_for_answer, web, world};
use kiln_testkit::{Call, Port, World, wait_until};
use rustix::process::Signal;

/// Runs `up` on a Compose file and demands `code` and `parts` in what it says, and that nothing
/// runs afterwards.
#[track_caller]
fn refused(compose: &str, code: i32, parts: &[&str]) {
    let world = world();
    let project = project(&world, "bad", compose);
    project.write("web/Dockerfile", "FROM busybox\nCMD [\"sleep\", \"9\"]\n");
    let output = world.kiln_in(&project, ["up"]).expect_code(code);
    for part in parts {
        assert!(output.stderr.contains(part), "`{part}` in:\n{}", output.stderr);
    }
    assert!(instances(&world, &project).is_empty());
    // Scripts read the same from one JSON document.
    let json = world.kiln_in(&project, ["up", "--json"]).expect_code(code).json();
    assert!(json["error"]["message"].is_string(), "{json}");
}

#[test]
fn no_compose_file() {
    let world = world();
    let output = world.kiln(["up"]).expect_code(2);
    assert!(output.stderr.contains("compose.yaml"), "{}", output.stderr);
    assert!(output.stderr.contains("hint:"), "{}", output.stderr);
}

#[test]
fn a_compose_file_that_is_not_there() {
    let output = world().kiln(["up", "-f", "nowhere.yaml"]).expect_code(2);
    assert!(output.stderr.contains("nowhere.yaml"), "{}", output.stderr);
}

#[test]
fn broken_yaml() {
    refused("services:\n  web: { image: busybox\n", 2, &["compose.yaml:"]);
}

#[test]
fn an_unsupported_key() {
    let compose = "services:\n  web:\n    image: busybox\n    privileged: true\n";
    refused(compose, 2, &["compose.yaml:4", "privileged"]);
}

/// A pipe that nobody writes to, a device that never ends, a link to what is not the project's.
#[test]
fn a_lock_a_config_or_a_secret_that_is_no_file() {
    let world = world();
    let head = "services:\n  web:\n    image: busybox\n    command: [sleep, '9']\n";
    let project = project(&world, "bad", head);
    let lock = project.read("kiln.lock");
    let fifo = |name: &str| {
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, project.path(name), mode).unwrap();
    };
    let up = |words: &[&str]| {
        let said = world.kiln_in(&project, ["up"]).expect_code(2);
        for part in words {
            assert!(said.stderr.contains(part), "`{part}` in {said}");
        }
        assert!(instances(&world, &project).is_empty());
        said
    };
    let compose = project.read("compose.yaml");
    for kind in ["config", "secret"] {
        fifo(kind);
        let uses = head.to_owned() + &format!("    {kind}s: [it]\n");
        let top = format!("{kind}s: {{ it: {{ file: ./{kind} }} }}\n");
        project.write("compose.yaml", compose.replace(head, &uses) + &top);
        up(&[&format!("the {kind} for"), "no regular file"]);
    }
    project.write("compose.yaml", &compose);
    std::fs::remove_file(project.path("kiln.lock")).unwrap();
    fifo("kiln.lock");
    up(&["kiln.lock", "no regular file"]);
    std::fs::remove_file(project.path("kiln.lock")).unwrap();
    project.write("elsewhere", "SECRET of somebody");
    std::os::unix::fs::symlink("elsewhere", project.path("kiln.lock")).unwrap();
    let said = up(&["kiln.lock", "it is a link"]);
    assert!(!said.stderr.contains("SECRET"), "{said}");
    std::fs::remove_file(project.path("kiln.lock")).unwrap();
    project.write("kiln.lock", lock);
    world.kiln_in(&project, ["plan"]).expect_done();
}

#[test]
fn a_loop_in_depends_on() {
    let compose = "services:\n  a: { image: busybox, depends_on: [b] }\n  \
                   b: { image: busybox, depends_on: [a] }\n";
    refused(compose, 2, &["compose.yaml:", "depends_on"]);
}

/// Where a name that means nothing here leads to a registry, nobody outside is asked.
#[test]
fn a_registry_that_is_not_there() {
    let compose = "services:\n  web: { image: '127.0.0.1:9/nginx:1.27' }\n";
    refused(compose, 1, &["127.0.0.1:9/nginx:1.27", "cannot be reached"]);
}

#[test]
fn a_dockerfile_that_does_not_parse() {
    let world = world();
    let project = project(&world, "bad", "services:\n  web: { build: ./web }\n");
    project.write("web/Dockerfile", "FROM busybox\n\nCOPPY a b\n");
    let output = world.kiln_in(&project, ["up"]).expect_code(2);
    assert!(output.stderr.contains("Dockerfile:3"), "{}", output.stderr);
    assert!(output.stderr.contains("COPPY"), "{}", output.stderr);
}

#[test]
fn no_dockerfile() {
    let world = world();
    let project = project(&world, "bad", "services:\n  web: { build: ./none }\n");
    let output = world.kiln_in(&project, ["up"]).expect_code(2);
    assert!(output.stderr.contains("none"), "{}", output.stderr);
}

#[test]
fn a_step_that_fails() {
    let world = world();
    let project = project(&world, "bad", "services:\n  web: { build: ./web }\n");
    project.write("web/Dockerfile", "FROM busybox\nRUN echo about to fail; exit 7\n");
    let output = world.kiln_in(&project, ["up"]).expect_code(1);
    for part in ["Dockerfile:2", "RUN echo about to fail", "7", "about to fail"] {
        assert!(output.stderr.contains(part), "`{part}` in {}", output.stderr);
    }
}

#[test]
fn a_base_that_is_not_there() {
    let world = world();
    let conf = world.home().join("registries.conf");
    let blocked = "[[registry]]\nlocation = \"docker.io\"\nblocked = true\n";
    std::fs::write(&conf, blocked).unwrap();
    let world = world.env("CONTAINERS_REGISTRIES_CONF", conf.to_str().unwrap());
    let project = project(&world, "bad", "services:\n  web: { build: ./web }\n");
    project.write("web/Dockerfile", "FROM bussybox\n");
    let output = world.kiln_in(&project, ["up"]);
    assert_eq!(output.code, Some(1), "{output}");
    for part in ["Dockerfile:1", "bussybox", "blocked", "did you mean the base `busybox`?"] {
        assert!(output.stderr.contains(part), "`{part}` in {}", output.stderr);
    }
}

#[test]
fn a_package_that_does_not_exist() {
    let world = World::new(common::KILN);
    let project = world.project(
        "bad",
        "services:\n  web: { image: b, command: [x] }\nx-kiln:\n  bases:\n    \
         b: { debian: bookworm, packages: [no-such-package-anywhere], minimal: true }\n",
    );
    let output = world.kiln_in(&project, ["up"]);
    assert_ne!(output.code, Some(0));
    assert!(output.stderr.contains("no-such-package-anywhere"), "{}", output.stderr);
    assert!(output.stderr.contains("`b`"), "{}", output.stderr);
    assert!(!project.path("kiln.lock").exists());
}

#[test]
fn a_package_that_left_the_mirror_or_changed_there() {
    let (_world, with_lock, _port) = web();
    let lock = with_lock.read("kiln.lock");
    // A store that has nothing, and a lock that names what no mirror has.
    let world = World::new(common::KILN);
    let compose = format!(
        "services:\n  web: {{ image: busybox, command: [sleep, '9'] }}\n{}",
        common::BUSYBOX
    );
    let project = world.project("gone", &compose);
    let digest = lock
        .split(|c: char| !c.is_ascii_hexdigit())
        .find(|word| word.len() == 64)
        .expect("the lock pins its packages");
    project.write("kiln.lock", lock.replace(digest, &"0".repeat(64)));
    let output = world.kiln_in(&project, ["up"]).expect_code(1);
    assert!(output.stderr.contains("busybox-static"), "{}", output.stderr);
    assert!(output.stderr.contains("lock --update"), "{}", output.stderr);
}

/// The agent sees another `/etc/apt` than the machine: in a mount namespace of its own.
#[test]
fn a_mirror_that_is_down() {
    let world = World::new(common::KILN);
    let apt = world.home().join("apt");
    let sources = apt.join("sources.list.d");
    std::fs::create_dir_all(&sources).unwrap();
    let closed = Port::claim();
    let mirror = format!(
        "Types: deb\nURIs: http://127.0.0.1:{}/debian\nSuites: bookworm\nComponents: main\n\
         Trusted: yes\n",
        closed.number()
    );
    std::fs::write(sources.join("down.sources"), mirror).unwrap();
    let script = "mount --bind \"$1\" /etc/apt && exec \"$2\" --root \"$3\" serve";
    let serve = Call::new("unshare")
        .args(["--mount", "--", "sh", "-c", script, "sh"])
        .arg(&apt)
        .arg(common::KILN)
        .arg(world.root())
        .spawn()
        .unwrap();
    wait_until(PATIENCE, "the agent", || world.root().join("agent.sock").exists().then_some(()));
    let compose = format!(
        "services:\n  web: {{ image: busybox, command: [sleep, '9'] }}\n{}",
        common::BUSYBOX
    );
    let project = world.project("down", &compose);
    let output = world.kiln_in(&project, ["up"]).expect_code(1);
    assert!(output.stderr.contains("127.0.0.1"), "which mirror: {}", output.stderr);
    assert!(output.stderr.contains("hint:"), "{}", output.stderr);
    assert!(!project.path("kiln.lock").exists(), "nothing is half done");
    world.shutdown().expect_done();
    serve.wait().unwrap();
}

#[test]
fn a_lock_for_other_bases() {
    let world = world();
    let project = project(&world, "bad", "services:\n  web: { image: busybox, command: [x] }\n");
    project.edit("compose.yaml", "busybox-static]", "busybox-static, bash-static]");
    let output = world.kiln_in(&project, ["up"]).expect_code(2);
    assert!(output.stderr.contains("kiln lock"), "{}", output.stderr);
}

#[test]
fn a_port_that_is_taken_says_by_whom() {
    let (world, project, port) = web();
    let holder = std::net::TcpListener::bind(("0.0.0.0", port.number())).unwrap();
    let output = world.kiln_in(&project, ["up"]).expect_code(1);
    let pid = std::process::id().to_string();
    assert!(output.stderr.contains(&port.number().to_string()), "{}", output.stderr);
    assert!(output.stderr.contains(&pid), "who holds it: {}", output.stderr);
    assert!(instances(&world, &project).is_empty());
    drop(holder);
    world.kiln_in(&project, ["up"]).expect_done();
    assert_eq!(answer(&port), "one");
}

#[test]
fn a_bind_mount_that_is_not_there() {
    refused(
        "services:\n  web: { image: busybox, command: [sleep, '9'], volumes: ['./none:/bin/busybox'] }\n",
        2,
        &["none", "is not there", "create it: the image has a file at /bin/busybox"],
    );
}

#[test]
fn a_program_that_is_not_there() {
    refused(
        "services:\n  web: { image: busybox, command: [no-such-program] }\n",
        4,
        &["service `web`", "no-such-program"],
    );
}

#[test]
fn ctrl_c_leaves_what_serves_alone() {
    let (world, project, port) = web();
    world.kiln_in(&project, ["up"]).expect_done();
    project.edit(
        "web/Dockerfile",
        "EXPOSE 8080",
        "HEALTHCHECK --interval=60s CMD [\"/bin/false\"]\nEXPOSE 8080",
    );
    let up = world.call(["up"]).dir(project.dir()).spawn().unwrap();
    wait_until(PATIENCE, "a candidate", || (instances(&world, &project).len() == 2).then_some(()));
    up.signal(Signal::INT).unwrap();
    up.wait().unwrap();
    wait_until(PATIENCE, "the candidate to be gone", || {
        (instances(&world, &project).len() == 1).then_some(())
    });
    assert_eq!(answer(&port), "one");
    page(&project, "web", "two");
    world.kiln_in(&project, ["up"]).expect_done();
    assert_eq!(answer(&port), "two");
}

#[test]
fn ctrl_c_ends_a_step_that_runs() {
    let world = world();
    let project = project(&world, "long", "services:\n  web: { build: ./web }\n");
    // A length of sleep that no other process on this machine has.
    let length = (1_000_000 + std::process::id()).to_string();
    project.write("web/Dockerfile", format!("FROM busybox\nRUN echo begun; sleep {length}\n"));
    let wanted = format!("sleep\0{length}\0").into_bytes();
    let sleeps = || {
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let lines = all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
        lines.filter(|line| *line == wanted).count()
    };
    let up = world.call(["up"]).dir(project.dir()).spawn().unwrap();
    wait_until(PATIENCE, "the step", || (sleeps() > 0).then_some(()));
    up.signal(Signal::INT).unwrap();
    let ended = up.wait().unwrap();
    assert_eq!(ended.code, Some(1), "{ended}");
    assert!(ended.stderr.contains("interrupted"), "it is said: {ended}");
    wait_until(PATIENCE, "the end of the step", || (sleeps() == 0).then_some(()));
}

#[test]
fn an_agent_killed_half_way_through_a_deploy_leaves_no_half_deploy() {
    let (world, project, port) = web();
    world.kiln_in(&project, ["up"]).expect_done();
    project.edit(
        "web/Dockerfile",
        "EXPOSE 8080",
        "HEALTHCHECK --interval=60s CMD [\"/bin/false\"]\nEXPOSE 8080",
    );
    let up = world.call(["up"]).dir(project.dir()).spawn().unwrap();
    wait_until(PATIENCE, "a candidate", || (instances(&world, &project).len() == 2).then_some(()));
    common::kill(world.role("agent").pid);
    let ended = up.wait().unwrap();
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("went away"), "{}", ended.stderr);
    assert_eq!(answer(&port), "one");
    // The next command's agent knows nothing of the candidate and clears it away.
    wait_until(PATIENCE, "the candidate to be gone", || {
        (instances(&world, &project).len() == 1).then_some(())
    });
    page(&project, "web", "two");
    world.kiln_in(&project, ["up"]).expect_done();
    assert_eq!(answer(&port), "two");
}

#[test]
fn after_a_reboot_serve_builds_the_active_release_up_again() {
    let (world, project, port) = web();
    world.kiln_in(&project, ["up"]).expect_done();
    page(&project, "web", "two");
    world.kiln_in(&project, ["up"]).expect_done();
    // Everything dies at once, as in a power cut: agent, minder, front, shims, instances.
    for _ in 0..3 {
        for process in world.processes() {
            let pid = i32::try_from(process.pid).ok().and_then(rustix::process::Pid::from_raw);
            let _ = rustix::process::kill_process(pid.unwrap(), Signal::KILL);
        }
    }
    wait_until(PATIENCE, "everything to be dead", || world.processes().is_empty().then_some(()));
    let serve = world.call(["serve"]).spawn().unwrap();
    wait_for_answer(&port, "two");
    serve.signal(Signal::TERM).unwrap();
    serve.wait().unwrap();
    // The agent has left; what it built up goes on.
    assert_eq!(answer(&port), "two");
}

#[test]
fn two_commands_at_once_take_turns() {
    let (world, project, port) = web();
    let first = world.call(["up"]).dir(project.dir()).spawn().unwrap();
    let second = world.call(["up"]).dir(project.dir()).spawn().unwrap();
    first.wait().unwrap().expect_done();
    second.wait().unwrap().expect_done();
    assert_eq!(answer(&port), "one");
    assert_eq!(instances(&world, &project).len(), 1);
}

#[test]
fn wrong_words_are_wrong_usage() {
    let world = world();
    world.kiln(["upp"]).expect_code(2);
    world.kiln(["rollback", "--releas"]).expect_code(2);
    let (world, project, _port) = web();
    world.kiln_in(&project, ["bake", "wbe"]).expect_code(2).expect_stderr("wbe");
    world.kiln_in(&project, ["rollback"]).expect_code(1).expect_stderr("nothing serves");
}

#[test]
fn init_writes_a_project_that_serves() {
    let world = world();
    let port = Port::claim();
    let dir = world.home().join("fresh");
    std::fs::create_dir(&dir).unwrap();
    world.call(["init"]).dir(&dir).run().unwrap().expect_done();
    world.call(["init"]).dir(&dir).run().unwrap().expect_code(2);
    let path = dir.join("compose.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("8080:8080", &format!("{}:8080", port.number()))).unwrap();
    let lock = project(&world, "lock", "services: { a: { image: busybox, command: [x] } }\n");
    std::fs::copy(lock.path("kiln.lock"), dir.join("kiln.lock")).unwrap();
    world.call(["up"]).dir(&dir).run().unwrap().expect_done();
    assert!(answer(&port).contains("Hello from Kiln"));
}

#[test]
fn a_root_that_is_too_long_for_a_socket_is_refused_and_starts_nothing() {
    let world = world();
    let home = world.home().display().to_string();
    for (length, code) in [(96, 0), (97, 2), (300, 2)] {
        let root = format!("{home}/{}", "r".repeat(length - home.len() - 1));
        let root = if length > 200 { root.replacen("rrrr", "rrr/", 1) } else { root };
        let call = |verb| Call::new(common::KILN).args(["--root", &root, verb]);
        let output = call("ps").run().unwrap().expect_code(code);
        if code == 2 {
            assert!(output.stderr.contains("96 are the most"), "{output}");
            assert!(!std::path::Path::new(&root).exists());
        } else {
            call("shutdown").run().unwrap().expect_done();
        }
    }
}

#[test]
fn gc_keeps_what_is_named() {
    let (world, project, port) = web();
    world.kiln_in(&project, ["up"]).expect_done();
    project.write("big/Dockerfile", "FROM busybox\nRUN echo unused > /file\n");
    project.write(
        "other.yaml",
        format!("name: other\nservices: {{ a: {{ build: ./big }} }}\n{}", common::BUSYBOX),
    );
    world.kiln_in(&project, ["bake", "-f", "other.yaml"]).expect_done();
    let dry = world.kiln_in(&project, ["gc", "--dry-run", "--json"]).expect_done().json();
    let real = world.kiln_in(&project, ["gc", "--json"]).expect_done().json();
    assert_eq!(dry["collected"]["objects"], real["collected"]["objects"]);
    assert!(real["collected"]["objects"].as_u64().unwrap() > 0, "{real}");
    // What serves, and what it would take to serve it anew, is there: the locked base too.
    world.kiln_in(&project, ["down"]).expect_done();
    project.write("web/index.html", "one");
    let again = world.kiln_in(&project, ["up"]).expect_done();
    assert!(!again.stderr.contains("base "), "no base is baked again: {again}");
    assert_eq!(answer(&port), "one");
}

/// A full disk takes nothing, and who asked must learn it; a reader that went away has enough.
#[test]
fn what_cannot_be_written_out_is_a_failure() {
    let world = world();
    let compose = "services:\n  web: { image: busybox, command: [sleep, '9'] }\n";
    let project = project(&world, "bad", compose);
    let call = |args: &[&str], out: std::process::Stdio| {
        let mut call = std::process::Command::new(common::KILN);
        call.arg("--root").arg(world.root()).args(args).current_dir(project.dir()).stdout(out);
        call.output().unwrap()
    };
    world.kiln_in(&project, ["ps"]).expect_done();
    for args in [
        &["completions", "bash"][..],
        &["ps", "--json"],
        &["images"],
        &["config"],
        &["config", "--services"],
    ] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let said = call(args, full.into());
        let words = String::from_utf8_lossy(&said.stderr);
        assert_eq!(said.status.code(), Some(1), "{args:?}: {words}");
        assert!(words.contains("writing to standard output"), "{args:?}: {words}");
        let (read, gone) = std::io::pipe().unwrap();
        drop(read);
        let said = call(args, gone.into());
        assert_eq!(said.status.code(), Some(0), "{args:?}");
        assert_eq!(String::from_utf8_lossy(&said.stderr), "", "{args:?}");
    }
    // What failed is no success because nobody reads why.
    let (read, gone) = std::io::pipe().unwrap();
    drop(read);
    let failed = call(&["config", "--json", "-f", "none.yaml"], gone.into());
    assert_eq!(failed.status.code(), Some(2));
}
