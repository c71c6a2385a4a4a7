//! Damage to what is stored: told, healed, never believed, never spread.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{KILN, PATIENCE, answer, filled, instances, kill, page, wait_for_answer, web, web_in};
use kiln_testkit::{Project, World, wait_until};
use serde_json::Value;

/// Changes one bit in the middle of a file, in place.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn object(world: &World, digest: &Value) -> PathBuf {
    let hex = digest.as_str().unwrap().trim_start_matches("sha256:").to_owned();
    world.root().join("objects").join(&hex[..2]).join(&hex[2..])
}

/// Three releases, of which the last serves and the second stands by; gives their digests.
fn three(world: &World, project: &Project) -> Vec<Value> {
    let up = |text: &&str| {
        page(project, "web", text);
        world.kiln_in(project, ["up", "--json"]).expect_done().json()["release"].clone()
    };
    let releases = ["one", "two", "three"].iter().map(up).collect();
    wait_until(PATIENCE, "the first to be gone", || {
        (instances(world, project).len() == 2).then_some(())
    });
    releases
}

fn kill_agent(world: &World) {
    let pid = world.role("agent").pid;
    kill(pid);
    wait_until(PATIENCE, "the agent's end", || {
        (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    });
}

#[test]
fn a_damaged_ledger_stops_deliveries_and_collection_and_nothing_that_runs() {
    let (world, project, port) = web();
    three(&world, &project);
    let log = world.root().join("ledger/log.jsonl");
    let before = instances(&world, &project);
    for running in [true, false] {
        let text = fs::read_to_string(&log).unwrap();
        if !running {
            kill_agent(&world);
        }
        // The last move looks as if it had never been written whole.
        let last = text.rfind("\"kind\":\"pointer\"").unwrap();
        let mut damaged = text.clone().into_bytes();
        damaged[last] = b'?';
        fs::write(&log, &damaged).unwrap();
        page(&project, "web", "four");
        for verb in [&["up"][..], &["gc"], &["rollback"], &["down"]] {
            let refused = world.kiln_in(&project, verb).expect_code(4);
            assert!(refused.stderr.contains("ledger"), "{verb:?}: {}", refused.stderr);
        }
        assert_eq!(answer(&port), "three");
        let now = instances(&world, &project);
        assert_eq!(now.len(), before.len());
        assert!(now.iter().zip(&before).all(|(now, before)| now["pid"] == before["pid"]));
        let status = world.kiln_in(&project, ["status"]).expect_done();
        assert!(status.stdout.contains("damaged: ledger/log.jsonl"), "{}", status.stdout);
        world.kiln_in(&project, ["fsck"]).expect_code(3);
        assert!(fs::read(&log).unwrap().len() >= damaged.len(), "evidence stays");
        world.kiln_in(&project, ["fsck", "--repair"]).expect_done();
        assert_eq!(answer(&port), "three", "the release that served is the one that serves");
        page(&project, "web", "three");
        world.kiln_in(&project, ["up"]).expect_done();
        world.kiln_in(&project, ["gc"]).expect_done();
    }
    world.kiln_in(&project, ["rollback"]).expect_done();
    wait_for_answer(&port, "two");
}

#[test]
fn a_release_that_was_damaged_is_healed_or_listed_as_broken_and_keeps_its_instances() {
    let (world, project, port) = web();
    let releases = three(&world, &project);
    let before = instances(&world, &project);
    let active = object(&world, &releases[2]);
    // One copy: healed without anybody's doing.
    flip(&active);
    kill_agent(&world);
    assert_eq!(instances(&world, &project).len(), before.len());
    world.kiln_in(&project, ["fsck"]).expect_done();
    let history = world.kiln_in(&project, ["history", "--json"]).json_lines();
    let healed = |entry: &&Value| entry["kind"] == "damage.healed";
    let all = world.kiln(["history", "--all", "--json"]).json_lines();
    assert!(history.iter().chain(&all).find(healed).is_some(), "it is said");
    // Both: nothing is stopped, nothing is collected, all lists go on.
    flip(&active);
    let hex = releases[2].as_str().unwrap().trim_start_matches("sha256:").to_owned();
    flip(&world.root().join("spare").join(hex));
    kill_agent(&world);
    let now = instances(&world, &project);
    assert!(now.iter().zip(&before).all(|(now, before)| now["pid"] == before["pid"]), "{now:?}");
    assert_eq!(answer(&port), "three");
    let listed = world.kiln_in(&project, ["releases", "--json"]).expect_done().json();
    assert!(listed["releases"][0]["broken"].is_string(), "{listed}");
    assert!(listed["releases"][1]["broken"].is_null(), "{listed}");
    for verb in ["images", "status"] {
        let shown = world.kiln_in(&project, [verb]).expect_done();
        assert!(shown.stdout.contains("damaged"), "{verb}: {}", shown.stdout);
    }
    world.kiln(["gc"]).expect_code(4);
    world.kiln_in(&project, ["fsck"]).expect_code(3);
    assert_eq!(answer(&port), "three");
    // Whoever delivers it again heals it.
    world.kiln_in(&project, ["up"]).expect_done();
    assert_eq!(answer(&port), "three");
    world.kiln(["gc"]).expect_done();
    world.kiln_in(&project, ["fsck"]).expect_done();
}

#[test]
fn a_listing_that_was_damaged_stops_collection_and_the_next_bake_heals_it() {
    let (world, project, port) = web();
    three(&world, &project);
    let listed = world.kiln_in(&project, ["images", "--json"]).expect_done().json();
    let rows = listed["images"].as_array().unwrap().clone();
    let used = |row: &&Value| row["used_by"].as_array().is_some_and(|by| !by.is_empty());
    for row in rows.iter().filter(used) {
        let path = object(&world, &row["tree"]);
        flip(&path);
        let before = fs::read_dir(world.root().join("objects")).unwrap().count();
        let stopped = world.kiln(["gc"]).expect_code(4);
        assert!(stopped.stderr.contains("stage demo/dev"), "{}", stopped.stderr);
        assert_eq!(fs::read_dir(world.root().join("objects")).unwrap().count(), before);
        let found = world.kiln(["fsck", "--json"]).expect_code(3).json();
        assert!(found["damage"][0]["needed_by"][0].is_string(), "{found}");
        flip(&path);
    }
    assert_eq!(answer(&port), "three");
    let active = rows.iter().find(used).unwrap();
    flip(&object(&world, &active["tree"]));
    for text in ["one", "two", "three"] {
        page(&project, "web", text);
        world.kiln_in(&project, ["up"]).expect_done();
        assert_eq!(answer(&port), text);
    }
    world.kiln(["fsck"]).expect_done();
    world.kiln(["gc"]).expect_done();
}

#[test]
fn a_content_and_an_image_that_were_damaged_are_found_and_made_again() {
    let (world, project, port) = web();
    three(&world, &project);
    let image = fs::read_dir(world.root().join("images")).unwrap();
    let image = image.map(|entry| entry.unwrap().path());
    let image = image.filter(|path| path.extension().is_some_and(|e| e == "erofs")).max().unwrap();
    // Nobody's: what runs has its file open.
    let bytes = fs::read(&image).unwrap();
    fs::remove_file(&image).unwrap();
    fs::write(&image, &bytes).unwrap();
    flip(&image);
    let found = world.kiln(["fsck", "--json"]).expect_code(3).json();
    assert!(found["damage"][0]["path"].as_str().unwrap().starts_with("images/"), "{found}");
    world.kiln(["fsck", "--repair"]).expect_done();
    assert_eq!(fs::read(&image).unwrap(), bytes);
    let content = world.root().join("objects");
    let hex = kiln_core::Digest::of("two").hex();
    let content = content.join(&hex[..2]).join(&hex[2..]);
    flip(&content);
    let found = world.kiln(["fsck"]).expect_code(3);
    assert!(found.stdout.contains(&hex[2..]), "{}", found.stdout);
    world.kiln(["fsck", "--repair"]).expect_code(3);
    page(&project, "web", "two");
    world.kiln_in(&project, ["up"]).expect_done();
    assert_eq!(answer(&port), "two");
    world.kiln(["fsck"]).expect_done();
}

#[test]
fn a_line_of_the_ledger_that_cannot_be_read_is_listed_as_broken() {
    let (world, project, port) = web();
    three(&world, &project);
    let path = world.root().join("ledger/log.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    let before = world.kiln_in(&project, ["history", "--json"]).expect_done().json_lines().len();
    kill_agent(&world);
    // The third line of the log, whoever's it is.
    let at = text.match_indices('\n').nth(2).unwrap().0 - 1;
    let mut bytes = text.into_bytes();
    bytes[at] = b'{';
    fs::write(&path, bytes).unwrap();
    let shown = world.kiln_in(&project, ["history"]).expect_done().stdout;
    assert!(
        shown.lines().any(|line| line.starts_with("line 3 ") && line.contains("broken")),
        "{shown}"
    );
    let lines = world.kiln_in(&project, ["history", "--json"]).expect_done().json_lines();
    assert_eq!(lines.iter().filter(|line| line["broken"].is_string()).count(), 1);
    assert!(lines.len() >= before, "the rest is there");
    assert_eq!(answer(&port), "three");
    world.kiln(["gc"]).expect_code(4);
}

#[test]
fn the_ledger_takes_little_of_what_an_instance_says_and_names_who_gave_a_command() {
    let (world, project, _port) = web();
    world.kiln_in(&project, ["up"]).expect_done();
    let id = instances(&world, &project)[0]["id"].as_str().unwrap().to_owned();
    let service = id.rsplit_once('-').unwrap().0.to_owned();
    for nth in 0..14 {
        let (now, pid) = wait_until(PATIENCE, "an instance that runs", || {
            let now = instances(&world, &project).into_iter().next()?;
            Some((now["id"].clone(), now["pid"].as_i64()?))
        });
        kill(pid);
        wait_until(PATIENCE, &format!("a fresh instance, {nth}"), || {
            let fresh = instances(&world, &project).into_iter().next()?;
            (fresh["id"] != now && fresh["pid"].is_i64()).then_some(())
        });
        // Enough has been said already.
        if nth >= 5 {
            break;
        }
    }
    world.kiln_in(&project, ["exec", "web", "true", "--password=hush"]).expect_done();
    world.kiln_in(&project, ["down"]).expect_done();
    world.shutdown().expect_done();
    // What was folded is written when the minute is over, or the agent leaves.
    let log = wait_until(PATIENCE, "what was folded", || {
        let log = fs::read_to_string(world.root().join("ledger/log.jsonl")).unwrap();
        log.contains("\"instance.folded\"").then_some(log)
    });
    assert!(!log.contains("hush"));
    let entries: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let said = |entry: &&Value| {
        entry["data"]["instance"].as_str().is_some_and(|id| id.starts_with(&service))
            && entry["kind"].as_str().unwrap().starts_with("instance.")
    };
    assert!(entries.iter().filter(said).count() <= 20, "within two minutes at most");
    let folded = entries.iter().find(|entry| entry["kind"] == "instance.folded").unwrap();
    assert!(folded["data"]["entries"].as_u64().unwrap() > 0);
    for kind in ["deploy.outcome", "exec", "down"] {
        let entry = entries.iter().find(|entry| entry["kind"] == kind).unwrap();
        assert_eq!(entry["data"]["by"]["uid"], 0, "{entry}");
    }
    let exec = entries.iter().find(|entry| entry["kind"] == "exec").unwrap();
    assert_eq!(exec["data"]["program"], "true");
    let kept = fs::read_dir(world.root().join("commands")).unwrap();
    let kept: String = kept
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    assert!(kept.contains("hush") && kept.contains(exec["data"]["command"].as_str().unwrap()));
}

/// A disk of its own, which is gone with this.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new(size: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let size = std::ffi::CString::new(format!("size={size},mode=0755")).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", dir.path(), "tmpfs", flags, Some(size.as_c_str())).unwrap();
        Self(dir)
    }

    /// Takes all the room there is; gives the file that has it.
    fn fill(&self) -> PathBuf {
        let path = self.0.path().join("large");
        let mut large = fs::File::create(&path).unwrap();
        for size in [1 << 20, 1 << 12, 1] {
            let zeros = vec![0; size];
            while std::io::Write::write_all(&mut large, &zeros).is_ok() {}
        }
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let detach = rustix::mount::UnmountFlags::DETACH;
        rustix::mount::unmount(self.0.path(), detach).unwrap();
    }
}

#[test]
fn why_an_instance_does_not_come_back_on_a_full_disk_is_said_and_it_does_when_there_is_room() {
    let disk = Disk::new("400m");
    let (world, project, port) = web_in(filled(World::within(KILN, disk.0.path())));
    world.kiln_in(&project, ["up"]).expect_done();
    let large = disk.fill();
    kill(instances(&world, &project)[0]["pid"].as_i64().unwrap());
    let said = wait_until(PATIENCE, "the reason", || {
        let status = world.kiln_in(&project, ["status"]).expect_done().stdout;
        status.contains("No space left on device").then_some(status)
    });
    assert!(said.contains("backing off"), "{said}");
    page(&project, "web", "two");
    let failed = world.kiln_in(&project, ["up"]).expect_code(1);
    let line = |line: &str| line.contains("FAILED") && line.contains("No space left on device");
    assert!(failed.stderr.lines().any(line), "{failed}");
    fs::remove_file(large).unwrap();
    wait_for_answer(&port, "one");
}
