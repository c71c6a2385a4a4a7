//! The spine once more over folders of hard links, as kernels before 6.12 have it: `common::world`
//! asks for them in this program.

mod common;
#[path = "spine.rs"]
#[allow(clippy::duplicate_mod)] // `common` is in there as well
mod spine;

use kiln_testkit::wait_until;

#[test]
fn the_store_really_uses_links() {
    let (world, project, _port) = common::web();
    world.kiln_in(&project, ["up"]).expect_done();
    let root_of = |pid: u64| {
        let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap().to_owned()
    };
    let before = common::instance(&world, &project, "web", "active").unwrap();
    let root = root_of(before["pid"].as_u64().unwrap());
    // EROFS images have their contents in a layer of data.
    assert!(root.contains("- overlay ") && !root.contains("datadir"), "{root}");
    let trees = std::fs::read_dir(world.root().join("links")).unwrap();
    assert!(trees.count() > 0, "folders of links");
    // A fresh one, too, is mounted in this way.
    common::kill(before["pid"].as_i64().unwrap());
    let fresh = wait_until(common::PATIENCE, "a fresh instance", || {
        let now = common::instance(&world, &project, "web", "active")?;
        (now["id"] != before["id"] && now["state"] == "healthy").then_some(now)
    });
    let root = root_of(fresh["pid"].as_u64().unwrap());
    assert!(root.contains("- overlay ") && !root.contains("datadir"), "{root}");
}

#[test]
fn a_layer_over_links_changes_no_object() {
    let world = common::world();
    let script = "before=$$(md5sum < /bin/busybox); chown -R 7:8 /usr/bin; echo 1 > /usr/bin/new
        [ \"$$before\" = \"$$(md5sum < /bin/busybox)\" ] && echo owner=$$(stat -c %u:%g /bin/busybox)
        exec sleep 1000";
    let script = serde_json::to_string(script).unwrap();
    let compose =
        format!("services:\n  app:\n    image: busybox\n    command: [sh, -c, {script}]\n");
    let project = common::project(&world, "layer", &compose);
    world.kiln_in(&project, ["up"]).expect_done();
    wait_until(common::PATIENCE, "the owner to be changed", || {
        let logs = world.kiln_in(&project, ["logs", "app"]).expect_done().stdout;
        logs.contains("owner=7:8").then_some(())
    });
    let status = world.kiln_in(&project, ["status", "--json"]).expect_done().json();
    let lines = status["services"][0]["written"]["lines"].to_string();
    assert!(lines.contains("/usr/bin/new") && lines.contains("\"owner\""), "{lines}");
    world.kiln(["fsck"]).expect_done();
}
