//! `devices`, by the root's own policy.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use common::{PATIENCE, instance, project, world};
use kiln_testkit::{World, wait_until};

fn allow(world: &World, lines: &[&str]) {
    let policy = world.root().join("policy/demo/dev");
    fs::create_dir_all(policy.parent().unwrap()).unwrap();
    fs::write(&policy, format!("kiln-policy 1\n{}\n", lines.join("\n"))).unwrap();
}

/// Services that live and do nothing, with these lines each.
fn compose(services: &[(&str, &str)]) -> String {
    let one = |(name, lines): &(&str, &str)| {
        format!(
            "  {name}:\n    image: busybox\n    command: [busybox, sleep, '100000']\n    {lines}\n"
        )
    };
    format!("name: demo\nservices:\n{}", services.iter().map(one).collect::<String>())
}

#[test]
fn what_the_policy_allows_is_there_and_nothing_else() {
    let world = world();
    let services = [
        ("has", "devices: ['/dev/fuse:/dev/mine', '/dev/loop-control::r', /dev/no-such-device]"),
        ("not", "init: true"),
    ];
    let project = project(&world, "demo", &compose(&services));
    let refused = world.kiln_in(&project, ["up"]).expect_code(4);
    for part in [
        "may not give these devices of the host to `has`",
        "allow-device has /dev/fuse rwm`",
        "`allow-device has /dev/loop-control r`",
        "policy/demo/dev",
    ] {
        assert!(refused.stderr.contains(part), "`{part}` in {refused}");
    }
    let rules = ["allow-device has /dev/fuse", "allow-device has /dev/loop-control r"];
    allow(&world, &[&rules[..], &["allow-device has /dev/no-such-device"]].concat());
    let up = world.kiln_in(&project, ["up"]).expect_done();
    for part in [
        "service `has` has the host's device /dev/fuse (rwm) at /dev/mine",
        "service `has` has the host's device /dev/loop-control (r)",
        "service `has`: the host has no device /dev/no-such-device",
    ] {
        assert!(up.stderr.contains(part), "`{part}` in {up}");
    }
    let status = world.kiln_in(&project, ["status"]).expect_done();
    assert!(status.stdout.contains("no device /dev/no-such-device"), "{status}");
    let open = |service: &str, how: &str| {
        let script = format!("busybox true {how}");
        let done = world.kiln_in(&project, ["exec", service, "busybox", "sh", "-c", &script]);
        (done.code == Some(0), done.stderr)
    };
    for (service, how, opens) in [
        ("has", "< /dev/mine", true),
        ("has", "<> /dev/mine", true),
        ("has", "< /dev/loop-control", true),
        ("has", "<> /dev/loop-control", false),
        ("has", "< /dev/fuse", false),
        ("not", "< /dev/mine", false),
    ] {
        let (opened, said) = open(service, how);
        assert_eq!(opened, opens, "{service} {how}: {said}");
    }
    // The node is the host's, and stays as it is.
    let mode = fs::metadata("/dev/fuse").unwrap().permissions();
    let chmod = ["exec", "has", "busybox", "chmod", "777", "/dev/mine"];
    world.kiln_in(&project, chmod).expect_code(1);
    assert_eq!(fs::metadata("/dev/fuse").unwrap().permissions(), mode);
    // So it is after a crash, and beside another one that has a device.
    let before = instance(&world, &project, "has", "active").unwrap();
    common::kill(before["pid"].as_i64().unwrap());
    wait_until(PATIENCE, "a fresh instance", || {
        let now = instance(&world, &project, "has", "active")?;
        (now["id"] != before["id"] && now["state"] == "healthy").then_some(())
    });
    assert!(open("has", "<> /dev/mine").0);
    let more = [services[0], ("not", "devices: [/dev/loop-control]")];
    project.write("compose.yaml", format!("{}{}", compose(&more), common::BUSYBOX));
    allow(
        &world,
        &[
            &rules[..],
            &["allow-device has /dev/no-such-device", "allow-device not /dev/loop-control"],
        ]
        .concat(),
    );
    world.kiln_in(&project, ["up"]).expect_done();
    assert!(open("has", "<> /dev/mine").0);
    assert!(open("not", "<> /dev/loop-control").0);
    assert!(!open("has", "<> /dev/loop-control").0);
}

#[test]
fn what_is_no_device_is_refused() {
    let world = world();
    let place = world.home().join("nodes");
    fs::create_dir(&place).unwrap();
    let named = |name: &str| place.join(name).display().to_string();
    symlink("/dev/fuse", named("link")).unwrap();
    symlink("/dev", named("folder")).unwrap();
    fs::write(named("file"), "").unwrap();
    assert!(Command::new("mkfifo").arg(named("fifo")).status().unwrap().success());
    assert!(Path::new("/dev/fuse").exists());
    for (name, said) in [
        ("link", "is a link, or a link is on the way to it: name /dev/fuse"),
        ("folder/fuse", "is a link, or a link is on the way to it: name /dev/fuse"),
        ("file", "is there and is no device"),
        ("fifo", "is there and is no device"),
        (".", "is there and is no device"),
    ] {
        let path = if name == "." { place.display().to_string() } else { named(name) };
        allow(&world, &[&format!("allow-device has {path}")]);
        let project =
            project(&world, "demo", &compose(&[("has", &format!("devices: ['{path}:/dev/x']"))]));
        let refused = world.kiln_in(&project, ["up"]).expect_code(4);
        assert!(refused.stderr.contains(said), "`{said}` in {refused}");
    }
}
