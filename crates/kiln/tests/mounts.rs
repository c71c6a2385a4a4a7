//! Where mounts come from: folders of the project that are not there yet, Docker's socket, volumes of
//! other projects, parts of volumes, memory.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};

use common::{instance, project, world};
use kiln_testkit::{Project, World};

/// A service that runs `script` with these `volumes` and is healthy when that is done.
fn service(name: &str, keys: &[&str], script: &str) -> String {
    let script = format!("{script}\ntouch /tmp/done; exec sleep 1000").replace('$', "$$");
    let script = serde_json::to_string(&script).unwrap();
    let keys: String = keys.iter().map(|key| format!("    {key}\n")).collect();
    format!(
        "  {name}:\n    image: busybox\n    command: [sh, -c, {script}]\n    healthcheck: {{ test: \
         [CMD, test, -e, /tmp/done], interval: 1s, timeout: 20s, retries: 60 }}\n{keys}"
    )
}

fn compose(name: &str, services: &[String], rest: &str) -> String {
    format!("name: {name}\nservices:\n{}{rest}\n", services.concat())
}

/// What the log of `app` says.
fn said(world: &World, project: &Project) -> String {
    world.kiln_in(project, ["logs", "app", "-n", "20"]).expect_done().stdout
}

#[test]
fn a_folder_that_is_not_there_is_made_for_the_caller_and_behind_no_link() {
    let world = world();
    let script = "echo hello > /a/file; ls -d /a /b";
    let binds = "volumes: ['./new/data:/a', './conf:/b:ro']";
    let text = compose("made", &[service("app", &[binds], script)], "");
    let project = project(&world, "made", &text);
    let call = world.call(["up"]).dir(project.dir());
    let up = call.env("SUDO_UID", "1234").env("SUDO_GID", "1235").run().unwrap().expect_done();
    for part in ["new/data was not there", "live from the project's folder: ./conf at `/b`"] {
        assert!(up.stderr.contains(part), "`{part}` in {}", up.stderr);
    }
    for name in ["new", "new/data", "conf"] {
        let meta = fs::metadata(project.path(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (1234, 1235), "{name}");
    }
    assert_eq!(project.read("new/data/file"), "hello\n");

    let outside = world.home().join("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, project.path("link")).unwrap();
    for (bind, says) in [
        ("./link/new:/a", "link"),
        ("/etc/kiln-test-is-not-there:/a", "is not there"),
        ("./app.conf:/bin/busybox", "the image has a file"),
    ] {
        let keys = format!("volumes: ['{bind}']");
        let text = compose("made", &[service("app", &[&keys], script)], common::BUSYBOX);
        project.write("compose.yaml", text);
        let refused = world.kiln_in(&project, ["up"]).expect_code(2);
        assert!(refused.stderr.contains(says), "`{says}` in {}", refused.stderr);
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "nothing was made there");
    assert!(!project.path("app.conf").exists());
    let long =
        "volumes: [{ type: bind, source: ./gone, target: /a, bind: { create_host_path: false } }]";
    let text = compose("made", &[service("app", &[long], script)], common::BUSYBOX);
    project.write("compose.yaml", text);
    world.kiln_in(&project, ["up"]).expect_code(2);
    assert!(!project.path("gone").exists());
}

#[test]
fn a_release_says_nothing_of_where_the_project_lies() {
    let world = world();
    let binds = "volumes: ['./data:/a', '../beside:/b', '/usr/share:/c:ro']";
    let text = compose("moved", &[service("app", &[binds], "cat /a/name /b/name")], "");
    let first = project(&world, "first/shop", &text);
    let second = project(&world, "second/shop", &text);
    for (project, name) in [(&first, "first"), (&second, "second")] {
        project.write("data/name", format!("{name}\n"));
        project.write("../beside/name", format!("beside {name}\n"));
    }
    let up = |project: &Project, args: &[&str]| {
        let up = world.kiln_in(project, args).expect_done().json();
        (up["release"].clone(), said(&world, project))
    };
    let (one, log) = up(&first, &["up", "--json"]);
    assert!(log.contains("first\n") && log.contains("beside first"), "{log}");
    // The same release in another folder mounts what lies there.
    let (two, log) = up(&second, &["up", "--json", "--take-over"]);
    assert_eq!(one, two);
    assert!(log.contains("second\n") && log.contains("beside second"), "{log}");
}

#[test]
fn dockers_socket_is_accepted_and_warned_of() {
    let world = world();
    let host = world.home().join("docker.sock");
    let bind = format!("volumes: ['{}:/var/run/docker.sock']", host.display());
    let script = "if [ -S /var/run/docker.sock ]; then echo socket=yes; else echo socket=no; fi";
    let text = compose("docker", &[service("app", &[&bind], script)], "");
    let project = project(&world, "docker", &text);
    let up = world.kiln_in(&project, ["up"]).expect_done();
    for part in ["is root on this machine", "so it is not mounted"] {
        assert!(up.stderr.contains(part), "`{part}` in {}", up.stderr);
    }
    assert!(said(&world, &project).contains("socket=no"));
    assert!(!host.exists(), "no folder stands where a socket should");
    world.kiln_in(&project, ["down"]).expect_done();
    let _listener = std::os::unix::net::UnixListener::bind(&host).unwrap();
    world.kiln_in(&project, ["up"]).expect_done();
    assert!(said(&world, &project).contains("socket=yes"));
}

#[test]
fn volumes_of_other_projects_parts_of_volumes_and_empty_ones() {
    let world = world();
    let owner = compose(
        "owner",
        &[service(
            "app",
            &["volumes: ['data:/data', 'bare:/bin2:nocopy']"],
            "mkdir -p /data/in; echo mine > /data/in/file; ls -A /bin2",
        )],
        "volumes: { data: { name: common }, bare: {} }",
    );
    let owner = project(&world, "owner", &owner);
    let mount = "volumes: [{ type: volume, source: theirs, target: /x, read_only: true, volume: { subpath: in } }]";
    let user = compose(
        "user",
        &[service("app", &[mount], "cat /x/file")],
        "volumes: { theirs: { external: true, name: common } }",
    );
    let user = project(&world, "user", &user);
    let early = world.kiln_in(&user, ["up"]).expect_code(2);
    assert!(early.stderr.contains("external volume `common` "), "{}", early.stderr);
    world.kiln_in(&owner, ["up"]).expect_done();
    world.kiln_in(&user, ["up"]).expect_done();
    assert!(said(&world, &user).contains("mine"), "{}", said(&world, &user));

    // What is not there in the volume, and what leads out of it.
    user.edit("compose.yaml", "subpath: in", "subpath: out");
    let missing = world.kiln_in(&user, ["up"]).expect_code(2);
    assert!(missing.stderr.contains("has no `out`"), "{}", missing.stderr);
    let data = world.root().join("volumes/owner/dev/data");
    symlink("/etc", data.join("out")).unwrap();
    world.kiln_in(&user, ["up"]).expect_code(2);
    // Both would write it: that is refused by name.
    user.edit("compose.yaml", "subpath: out", "subpath: in");
    user.edit("compose.yaml", "read_only: true, ", "");
    let both = world.kiln_in(&user, ["up"]).expect_code(4);
    assert!(both.stderr.contains("`app` of owner/dev"), "{}", both.stderr);
    // `down --volumes` of who only uses it leaves it.
    world.kiln_in(&user, ["down", "--volumes"]).expect_done();
    assert_eq!(fs::read_to_string(data.join("in/file")).unwrap(), "mine\n");
    // A second one of that name is not the same.
    let third = compose(
        "third",
        &[service("app", &["volumes: ['data:/data']"], ":")],
        "volumes: { data: { name: common } }",
    );
    let third = project(&world, "third", &third);
    let refused = world.kiln_in(&third, ["up"]).expect_code(4);
    assert!(refused.stderr.contains("another project"), "{}", refused.stderr);
    // Until the first is gone with its data.
    world.kiln_in(&owner, ["down", "--volumes"]).expect_done();
    assert!(world.root().join("volumes/.named/dev/common").symlink_metadata().is_err());
    world.kiln_in(&third, ["up"]).expect_done();
}

#[test]
fn nocopy_begins_empty_and_local_drivers_bind_folders() {
    let world = world();
    let volumes = "volumes: ['bare:/bin:nocopy', 'full:/etc', 'there:/there']";
    // Its programs are covered, so it is started by a path of its own.
    let script = "echo bare=$(ls -A /bin2 | wc -l); echo x > /there/file";
    let text = compose(
        "nocopy",
        &[service(
            "app",
            &[&volumes.replace("/bin:", "/bin2:").replace("full:/etc", "full:/bin3")],
            script,
        )],
        "volumes:\n  bare: {}\n  full: {}\n  there: { driver: local, driver_opts: { type: none, o: bind, device: ./here } }",
    );
    let project = project(&world, "nocopy", &text);
    project.write("here/keep", "");
    world.kiln_in(&project, ["up"]).expect_done();
    assert!(said(&world, &project).contains("bare=0"));
    assert_eq!(project.read("here/file"), "x\n");
}

#[test]
fn memory_as_it_is_asked_for() {
    let world = world();
    let keys = "tmpfs: ['/a:size=1m,uid=7,gid=8,mode=0750,noexec', '/b:size=50%,exec']";
    let script = "echo a=$(stat -c %u:%g:%a /a) $(df -k /a | awk 'END { print $2 }')
        for dir in /a /b; do printf '#!/bin/sh\\n:' > $dir/x; chmod 755 $dir/x; $dir/x && echo $dir=runs || echo $dir=not; done
        echo half=$(df -k /b | awk 'END { print $2 }') of=$(awk '/MemTotal/ { print $2 }' /proc/meminfo)";
    let text = compose("memory", &[service("app", &[keys], script)], "");
    let project = project(&world, "memory", &text);
    world.kiln_in(&project, ["up"]).expect_done();
    let log = said(&world, &project);
    for part in ["a=7:8:750 1024", "/b=runs"] {
        assert!(log.contains(part), "`{part}` in {log}");
    }
    assert!(!log.contains("/a=runs"), "{log}");
    let number = |key: &str| -> f64 {
        let rest = log.split(key).nth(1).unwrap();
        rest.split_whitespace().next().unwrap().parse().unwrap()
    };
    let part = number("half=") / number("of=");
    assert!((0.4..=0.501).contains(&part), "{part} in {log}");
    assert!(instance(&world, &project, "app", "active").is_some());
}

#[test]
fn what_is_mounted_read_only_from_the_project_is_part_of_its_release() {
    let world = world();
    let binds = "volumes: ['./conf:/conf:ro', './one.txt:/one:ro', './out:/out:ro']";
    let text = compose("pinned", &[service("app", &[binds], "cat /conf/deep/file /one")], "");
    let project = project(&world, "pinned", &text);
    project.write("conf/deep/file", "first\n").write("one.txt", "one\n");
    let outside = world.home().join("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, project.path("out")).unwrap();
    let up = || {
        let up = world.kiln_in(&project, ["up", "--json"]).expect_done().json();
        (up["release"].clone(), instance(&world, &project, "app", "active").unwrap()["id"].clone())
    };
    let first = up();
    assert_eq!(up(), first, "nothing changed");
    // What is read through a link that leads out is nobody's content.
    fs::write(outside.join("file"), "x").unwrap();
    project.write("conf/.git/x", "how it was checked out");
    assert_eq!(up(), first);
    for (file, text) in [("conf/deep/file", "second\n"), ("one.txt", "two\n")] {
        let before = up();
        project.write(file, text);
        // Live in `dev`, and in the release after the next `up`.
        let live = world.kiln_in(&project, ["exec", "app", "cat", "/conf/deep/file", "/one"]);
        assert!(live.expect_done().stdout.contains(text));
        let now = up();
        assert!(now.0 != before.0 && now.1 != before.1, "{file}");
    }
    // It is kept as long as a release names it.
    world.kiln(["gc"]).expect_done();
    world.kiln(["fsck"]).expect_done();

    // What another service writes is data, whoever reads it.
    let writer = service("other", &["volumes: ['./conf/deep:/w']"], ":");
    let text = compose("pinned", &[service("app", &[binds], ":"), writer], common::BUSYBOX);
    project.write("compose.yaml", text);
    let written = up();
    project.write("conf/deep/file", "third\n");
    assert_eq!(up(), written);
    // A pipe is waited for by nobody.
    fs::remove_file(project.path("one.txt")).unwrap();
    let pipe = rustix::fs::FileType::Fifo;
    let here = rustix::fs::CWD;
    rustix::fs::mknodat(here, project.path("one.txt"), pipe, rustix::fs::Mode::RUSR, 0).unwrap();
    up();
}
