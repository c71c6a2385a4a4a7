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
