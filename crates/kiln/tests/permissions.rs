//! What of a root folder local users can do: nothing, whatever the umask of whoever started the
//! agent, and also with a root that an earlier version made.

mod common;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use common::{project, world};
use kiln_testkit::{Call, World};

/// Runs a line of shell as somebody who has no part in this.
fn as_stranger(line: &str) -> kiln_testkit::Output {
    let args = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    Call::new("setpriv").args(args).args(["sh", "-c", line]).run().unwrap()
}

/// With `umask 0`, under which everything made without a mode is everybody's.
fn kiln(world: &World, dir: &Path, args: &str) -> kiln_testkit::Output {
    let line = format!("umask 0; exec {} --root {} {args}", common::KILN, world.root().display());
    Call::new("sh").args(["-c", &line]).dir(dir).run().unwrap()
}

/// Paths in `dir` that group or others may do something with, if they get there.
fn open_to_others(dir: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| fs::symlink_metadata(path).unwrap().mode() & 0o077 != 0).collect()
}

#[test]
fn strangers_run_nothing_of_a_volume_and_hold_no_lock() {
    let world = world();
    let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    open(world.home());
    // As an earlier version left them.
    fs::create_dir(world.root().join("volumes")).unwrap();
    fs::write(world.root().join("agent.lock"), "").unwrap();
    fs::write(world.root().join("lease.lock"), "").unwrap();
    open(&world.root());
    open(&world.root().join("volumes"));
    let project = project(
        &world,
        "keeps",
        "services:
  a:
    image: busybox
    command: [sh, -c, 'cp /bin/busybox /data/id; chmod 4755 /data/id; echo row > /data/row; exec sleep 1000']
    volumes: ['data:/data']
volumes: { data: }
",
    );
    kiln(&world, project.dir(), "up").expect_done();
    let root = world.root();
    let volume = root.join("volumes/keeps/dev/data");
    kiln_testkit::wait_until(common::PATIENCE, "the set-id program", || {
        volume.join("row").exists().then_some(())
    });
    assert_eq!(fs::metadata(volume.join("id")).unwrap().mode() & 0o7777, 0o4755, "a real one");
    let tried = as_stranger(&format!("exec {}/id id -u", volume.display()));
    assert_ne!(tried.code, Some(0), "{tried}");
    for lock in ["agent.lock", "lease.lock", "agent.log", "ledger/log.jsonl"] {
        assert!(root.join(lock).exists(), "{lock}");
        let tried = as_stranger(&format!("exec flock -n {} true", root.join(lock).display()));
        assert_ne!(tried.code, Some(0), "{lock}: {tried}");
    }
    let tried = as_stranger(&format!("ls {}", root.display()));
    assert_ne!(tried.code, Some(0), "{tried}");
    // Nothing that stands in the root leans on the root folder alone.
    assert_eq!(open_to_others(&root), Vec::<PathBuf>::new());
    assert!(fs::metadata(root.join("agent.sock")).unwrap().file_type().is_socket());
    // And the root still works for its owner.
    kiln(&world, project.dir(), "down").expect_done();
    world.kiln_in(&project, ["up"]).expect_done();
}

#[test]
fn a_folder_of_somebody_elses_things_is_no_root() {
    let world = world();
    fs::write(world.root().join("letter"), "").unwrap();
    fs::remove_file(world.root().join("format")).unwrap();
    fs::set_permissions(world.root(), fs::Permissions::from_mode(0o1777)).unwrap();
    world.kiln(["status"]).expect_code(1).expect_stderr("others than root may write to it");
    assert_eq!(fs::metadata(world.root()).unwrap().mode() & 0o7777, 0o1777);
}
