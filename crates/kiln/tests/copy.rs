//! `kiln cp`: files come out of an instance, and nothing else; nothing goes in.

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;

use common::{PATIENCE, project, world};
use kiln_testkit::{Project, World, wait_until};

/// An instance whose program has put all sorts of things into `/w`.
fn strange() -> (World, Project) {
    let world = world();
    let compose = "name: demo\nservices:\n  web:\n    build: ./web\n    tmpfs: [/w]\n";
    let project = project(&world, "demo", compose);
    project.write(
        "web/script",
        "cd /w
mkdir -p sub/deep
echo plain > plain
echo deep > sub/deep/file
busybox chmod 4750 plain
busybox ln -s /etc/shadow absolute
busybox ln -s ../../../../../../../../etc up
busybox ln -s / root
busybox mkfifo fifo
busybox dd if=/dev/zero of=huge bs=1 count=0 seek=100G 2>/dev/null
echo ready > done
while :; do busybox sleep 1000; done
",
    );
    project.write(
        "web/Dockerfile",
        "FROM busybox\nCOPY script /script\nRUN echo baked > /etc/baked\n\
         CMD [\"busybox\", \"sh\", \"/script\"]\n",
    );
    world.kiln_in(&project, ["up"]).expect_done();
    wait_until(PATIENCE, "the program's files", || {
        let look = ["exec", "web", "busybox", "test", "-e", "/w/done"];
        world.kiln_in(&project, look).success().then_some(())
    });
    (world, project)
}

#[test]
fn what_comes_out_leads_nowhere() {
    let (world, project) = strange();
    let out = project.path("out");
    fs::create_dir(&out).unwrap();
    // All but what is too large for one copy.
    world.kiln_in(&project, ["exec", "web", "busybox", "rm", "/w/huge"]).expect_done();
    let copied = world.kiln_in(&project, ["cp", "web:/w", "out"]).expect_done();
    assert!(copied.stderr.contains("fifo is a FIFO, and left out"), "{copied}");
    let read = |name: &str| fs::read_to_string(out.join("w").join(name)).unwrap();
    assert_eq!((read("plain"), read("sub/deep/file")), ("plain\n".into(), "deep\n".into()));
    let mode = fs::metadata(out.join("w/plain")).unwrap().mode();
    assert_eq!(mode & 0o7000, 0, "nobody's identity comes along: {mode:o}");
    // Links are links, whatever they lead to.
    let link = |name: &str| fs::read_link(out.join("w").join(name)).unwrap();
    assert_eq!(link("absolute").to_str(), Some("/etc/shadow"));
    assert_eq!(link("root").to_str(), Some("/"));
    assert!(!out.join("w/fifo").exists());
    // Once more, over what is there: nothing is written through a link.
    fs::remove_file(out.join("w/plain")).unwrap();
    fs::write(project.path("mine"), "mine").unwrap();
    std::os::unix::fs::symlink(project.path("mine"), out.join("w/plain")).unwrap();
    world.kiln_in(&project, ["cp", "web:/w", "out"]).expect_done();
    assert_eq!(fs::read_to_string(project.path("mine")).unwrap(), "mine");
    assert_eq!(read("plain"), "plain\n");
}

#[test]
fn one_file_gets_the_name_that_is_asked_for() {
    let (world, project) = strange();
    world.kiln_in(&project, ["cp", "web:/w/plain", "renamed"]).expect_done();
    assert_eq!(fs::read_to_string(project.path("renamed")).unwrap(), "plain\n");
    // A link on the way stays in the instance's own root.
    world.kiln_in(&project, ["cp", "web:/w/root/etc/baked", "."]).expect_done();
    assert_eq!(fs::read_to_string(project.path("baked")).unwrap(), "baked\n");
    let json = world.kiln_in(&project, ["cp", "--json", "web:/w/sub/.", "."]).expect_done().json();
    assert_eq!(json["bytes"], 5, "{json}");
    assert_eq!(fs::read_to_string(project.path("deep/file")).unwrap(), "deep\n");
}

#[test]
fn what_cannot_be_copied_is_refused_by_name() {
    let (world, project) = strange();
    for (from, to, code, words) in [
        ("web:/w/fifo", "x", 1, "is a FIFO"),
        ("web:/dev/zero", "x", 1, "is a device"),
        ("web:/proc/version", "x", 1, "stored nowhere"),
        ("web:/w/huge", "x", 1, "more than 64 GiB"),
        ("web:/w/none", "x", 1, "there is no /w/none"),
        ("web:/w/../etc", "x", 2, "`..`"),
        ("nobody:/w", "x", 2, "no service `nobody`"),
        ("web:/w/plain", "none/x", 1, "none"),
        ("compose.yaml", "web:/w", 2, "never changed"),
        ("compose.yaml", "elsewhere", 2, "SERVICE:PATH"),
    ] {
        let refused = world.kiln_in(&project, ["cp", from, to]).expect_code(code);
        assert!(refused.stderr.contains(words), "{from}: {refused}");
        assert!(to != "none/x" || refused.stderr.contains("hint: make that folder"), "{refused}");
        assert!(!project.path("x").exists(), "{from}");
    }
}

/// `cp` runs as whoever calls it, often root: what is in its way may be a device of the machine.
#[test]
fn what_is_no_file_is_not_replaced() {
    use rustix::fs::{CWD, FileType, Mode, makedev, mkfifoat, mknodat};
    let (world, project) = strange();
    let at = |name: &str| project.path(name);
    mkfifoat(CWD, at("pipe"), Mode::RUSR | Mode::WUSR).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    mknodat(CWD, at("full"), FileType::CharacterDevice, Mode::RUSR, makedev(1, 7)).unwrap();
    fs::write(at("mine"), "mine").unwrap();
    std::os::unix::fs::symlink("mine", at("link")).unwrap();
    std::os::unix::fs::symlink("nowhere", at("dangling")).unwrap();
    for (to, words) in [
        ("pipe", "is a pipe"),
        ("socket", "is a socket"),
        ("full", "is a device"),
        ("link", "is a link"),
        ("dangling", "is a link"),
        ("-", "standard output"),
        ("none/", "is not there"),
        ("none/.", "is not there"),
        ("mine/", "no folder"),
    ] {
        let before = fs::symlink_metadata(at(to)).map(|meta| (meta.ino(), meta.mode())).ok();
        for from in ["web:/w/plain", "web:/w/absolute"] {
            let refused = world.kiln_in(&project, ["cp", from, to]).expect_code(2);
            assert!(refused.stderr.contains(words), "{to}: {refused}");
        }
        let after = fs::symlink_metadata(at(to)).map(|meta| (meta.ino(), meta.mode())).ok();
        assert_eq!(after, before, "{to}");
    }
    assert_eq!(fs::read_to_string(at("mine")).unwrap(), "mine");
    assert!(!at("none").exists() && !at("nowhere").exists());
    // The same below a folder, where the names are those of what is copied.
    fs::create_dir(at("out")).unwrap();
    mkfifoat(CWD, at("out/plain"), Mode::RUSR).unwrap();
    let refused = world.kiln_in(&project, ["cp", "web:/w/plain", "out"]).expect_code(1);
    assert!(refused.stderr.contains("plain is a pipe"), "{refused}");
    assert!(at("out/plain").exists());
    world.kiln_in(&project, ["cp", "web:/w/plain", "mine"]).expect_done();
    assert_eq!(fs::read_to_string(at("mine")).unwrap(), "plain\n");
}
