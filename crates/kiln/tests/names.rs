//! What a command names has to be there. Whatever it is that is not, a project, a stage, a service, a
//! release or an image, that is wrong usage, and the message says what there is.

mod common;

use common::web;

#[test]
fn a_name_that_names_nothing_is_wrong_usage() {
    let (world, project, _port) = web();
    // Where nothing serves, that is what is wrong.
    for args in [
        &["status"][..],
        &["rollback"],
        &["restart"],
        &["exec", "web", "true"],
        &["wait", "web"],
        &["logs", "web"],
        &["port", "web"],
        &["cp", "web:/x", "."],
    ] {
        let said = world.kiln_in(&project, args.to_vec()).expect_code(1);
        said.expect_stderr("nothing serves in demo/dev").expect_stderr("hint: kiln up");
    }
    world.kiln_in(&project, ["up"]).expect_done();
    let services = [
        &["bake", "wbe"][..],
        &["build", "wbe"],
        &["pull", "wbe"],
        &["verify", "wbe"],
        &["export", "-o", "x", "wbe"],
        &["up", "wbe"],
        &["up", "--learn", "wbe"],
        &["restart", "wbe"],
        &["exec", "wbe", "true"],
        &["run", "wbe"],
        &["wait", "wbe"],
        &["logs", "wbe"],
        &["port", "wbe"],
        &["cp", "wbe:/x", "."],
        &["stats", "wbe"],
        &["diff", "dev:wbe", "dev:web"],
    ];
    for args in services {
        let said = world.kiln_in(&project, args.to_vec()).expect_code(2);
        said.expect_stderr("has no service `wbe`")
            .expect_stderr("did you mean `web`? there is web");
    }
    let stages = [
        &["plan", "nope"][..],
        &["rollback", "nope"],
        &["releases", "nope"],
        &["status", "nope"],
        &["down", "nope"],
        &["history", "--stage", "nope"],
        &["logs", "--stage", "nope"],
        &["restart", "--stage", "nope"],
        &["exec", "--stage", "nope", "web", "true"],
        &["port", "--stage", "nope", "web"],
    ];
    for args in stages {
        let said = world.kiln_in(&project, args.to_vec()).expect_code(2);
        said.expect_stderr("has no stage `nope`").expect_stderr("hint: there is dev");
    }
    for verb in
        ["status", "rollback", "releases", "ps", "history", "stats", "down", "restart", "logs"]
    {
        let said = world.kiln([verb, "-p", "dmeo"]).expect_code(2);
        said.expect_stderr("this root has no project `dmeo`").expect_stderr("did you mean `demo`?");
        // Nor is it there because it was asked for.
        world.kiln([verb, "-p", "dmeo"]).expect_code(2).expect_stderr("did you mean `demo`?");
    }
    for (args, words) in [
        (&["rollback", "dev", "abcd"][..], "has no release `abcd`"),
        (&["diff", "abcd"], "`abcd` is no stage"),
        (&["export", "-o", "x", "--release", "abcd"], "no release `abcd`"),
        (&["export", "-o", "x", "--image", "abcd"], "no image `abcd`"),
        (&["import", "nowhere.tar"], "nowhere.tar cannot be read"),
        (&["import", "--remove", "nope"], "has no import `nope`"),
        (&["lock", "--update", "nope"], "no base `nope`"),
        (&["config", "wbe"], "no service `wbe`"),
        (&["up", "-f", "nowhere.yaml"], "nowhere.yaml"),
        (&["verify", "--against", "nowhere.tar"], "nowhere.tar cannot be read"),
    ] {
        let said = world.kiln_in(&project, args.to_vec()).expect_code(2);
        said.expect_stderr(words).expect_stderr("hint:");
    }
    assert!(!project.path("x").exists(), "nothing is exported");
}
