//! Collection through the binary: what was taken from outside stays as long as a lock, a release or a
//! recent use needs it, and then goes.

mod common;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use common::{KILN, answer, page, web};
use kiln_core::Digest;
use kiln_testkit::{Output, Project, World};

/// Answers every request with what it has at the moment; ends with the test's process.
struct Mirror {
    url: String,
    content: Arc<Mutex<String>>,
}

impl Mirror {
    fn new(content: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/tool", listener.local_addr().unwrap());
        let content = Arc::new(Mutex::new(content.to_owned()));
        let served = Arc::clone(&content);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let text = served.lock().unwrap().clone();
                let _ = serve(stream, &text);
            }
        });
        Self { url, content }
    }

    fn has(&self, content: &str) {
        *self.content.lock().unwrap() = content.to_owned();
    }
}

fn serve(mut stream: TcpStream, content: &str) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte)? == 1 {
        request.push(byte[0]);
    }
    let length = content.len();
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")?;
    stream.write_all(content.as_bytes())
}

/// A project that takes `tool` from a mirror, and was baked.
fn baked(world: &World, name: &str, mirror: &Mirror) -> Project {
    let compose = format!("name: {name}\nservices:\n  web:\n    build: ./web\n    command: [x]\n");
    let project = world.project(name, &compose);
    project.write("web/Dockerfile", format!("FROM scratch\nADD {} /usr/bin/\n", mirror.url));
    world.kiln_in(&project, ["bake"]).expect_done();
    project
}

fn object(world: &World, content: &str) -> PathBuf {
    let hex = Digest::of(content).hex();
    world.root().join("objects").join(&hex[..2]).join(&hex[2..])
}

fn is_there(world: &World, content: &str) -> bool {
    object(world, content).exists()
}

/// Collects, giving up at once what nothing needs.
fn collect(world: &World) -> Output {
    world.kiln(["gc", "--unused", "0", "--json"]).expect_done()
}

#[test]
fn what_a_lock_names_stays_and_what_it_named_goes_when_it_is_not_used() {
    let (world, mirror) = (World::new(KILN), Mirror::new("version 1"));
    let project = baked(&world, "one", &mirror);
    assert_eq!(collect(&world).json()["collected"]["references"], 0);
    assert!(is_there(&world, "version 1"), "the lock names it");
    mirror.has("version 2");
    world.kiln_in(&project, ["lock", "--update"]).expect_done();
    world.kiln_in(&project, ["bake"]).expect_done();
    world.kiln(["gc"]).expect_done();
    assert!(is_there(&world, "version 1"), "it was used today");
    let dry = world.kiln(["gc", "--unused", "0", "--dry-run", "--json"]).expect_done().json();
    assert_eq!(dry["collected"]["references"], 1);
    assert_eq!(collect(&world).json()["collected"]["references"], 1);
    assert!(!is_there(&world, "version 1") && is_there(&world, "version 2"));
    // The project is not there any more.
    fs::remove_dir_all(project.dir()).unwrap();
    world.kiln(["gc"]).expect_done();
    assert!(is_there(&world, "version 2"), "its disk may be away");
    assert_eq!(collect(&world).json()["collected"]["references"], 2);
    assert!(!is_there(&world, "version 2"));
    world.kiln(["fsck"]).expect_done();
}

#[test]
fn a_lock_that_cannot_be_read_gives_up_nothing() {
    let (world, mirror) = (World::new(KILN), Mirror::new("of one"));
    let one = baked(&world, "one", &mirror);
    mirror.has("of two");
    let two = baked(&world, "two", &mirror);
    fs::remove_dir_all(two.dir()).unwrap();
    let path = one.path("kiln.lock");
    let lock = fs::read(&path).unwrap();
    let pipe = || assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    let makes: [(&str, &dyn Fn()); 4] = [
        ("no lock", &|| fs::write(&path, "<<<<<<< HEAD\n").unwrap()),
        ("no regular file", &pipe),
        ("no regular file", &|| fs::create_dir(&path).unwrap()),
        ("it is a link", &|| std::os::unix::fs::symlink("kiln.lock", &path).unwrap()),
    ];
    for (why, make) in makes {
        let _ = fs::remove_file(&path);
        make();
        let told = collect(&world);
        assert_eq!(told.json()["collected"]["references"], 0, "{why}");
        let unread = told.json()["unread"][0].as_str().unwrap_or_default().to_owned();
        assert!(unread.contains("kiln.lock") && unread.contains(why), "{why}: {unread}");
        assert!(is_there(&world, "of one") && is_there(&world, "of two"), "{why}");
        let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
    }
    fs::write(&path, lock).unwrap();
    assert_eq!(collect(&world).json()["collected"]["references"], 2);
    assert!(is_there(&world, "of one") && !is_there(&world, "of two"));
}

#[test]
fn a_release_keeps_what_it_was_baked_from() {
    let (world, mirror) = (World::new(KILN), Mirror::new("released"));
    let project = baked(&world, "one", &mirror);
    let git = |args: &[&str]| {
        let config = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"];
        let mut command = Command::new("git");
        let output = command.current_dir(project.dir()).args(config).args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    git(&["init", "-q"]);
    git(&["add", "."]);
    git(&["commit", "-q", "-m", "one"]);
    world.kiln_in(&project, ["release"]).expect_done();
    mirror.has("later");
    world.kiln_in(&project, ["lock", "--update"]).expect_done();
    world.kiln_in(&project, ["bake"]).expect_done();
    fs::remove_dir_all(project.path(".git")).unwrap();
    collect(&world);
    assert!(is_there(&world, "released"));
    // Not by its image alone, which has a content of its own: by the reference to what was fetched.
    let refs = fs::read_dir(world.root().join("refs/remotes")).unwrap().count();
    assert_eq!(refs, 2);
}

#[test]
fn a_reference_that_was_damaged_stops_collection_and_the_lock_mends_it() {
    let (world, mirror) = (World::new(KILN), Mirror::new("version 1"));
    let project = baked(&world, "one", &mirror);
    let dir = world.root().join("refs/remotes");
    let path = fs::read_dir(&dir).unwrap().next().unwrap().unwrap().path();
    let text = fs::read_to_string(&path).unwrap();
    let harms: [&dyn Fn(); 3] = [
        &|| fs::write(&path, text.replace("sha256:", "sha256:0")).unwrap(),
        &|| fs::write(&path, &text[..text.len() / 2]).unwrap(),
        &|| fs::remove_file(&path).unwrap(),
    ];
    for harm in harms {
        harm();
        let stopped = world.kiln(["gc", "--unused", "0"]).expect_code(4);
        assert!(stopped.stderr.contains("refs/remotes/"), "{}", stopped.stderr);
        world.kiln(["fsck"]).expect_code(3);
        // Lists go on.
        world.kiln(["images"]).expect_done();
        world.kiln_in(&project, ["releases"]).expect_done();
        let healed = world.kiln(["fsck", "--repair"]).expect_done();
        assert!(healed.stdout.contains("written again from"), "{}", healed.stdout);
        world.kiln(["fsck"]).expect_done();
        collect(&world);
        assert!(is_there(&world, "version 1"));
    }
}

#[test]
fn what_is_baked_while_it_collects_is_whole() {
    let (world, project, port) = web();
    world.kiln_in(&project, ["up"]).expect_done();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let collecting = scope.spawn(|| {
            let mut rounds = 0;
            while !over.load(Ordering::Relaxed) {
                // It may be told to come again later, but never take what is needed.
                let output = world.kiln(["gc", "--unused", "0"]);
                assert!(matches!(output.code, Some(0 | 1)), "{output}");
                rounds += u32::from(output.code == Some(0));
            }
            rounds
        });
        for round in 0..6 {
            page(&project, "web", &format!("round {round}"));
            world.kiln_in(&project, ["up"]).expect_done();
            assert_eq!(answer(&port), format!("round {round}"));
        }
        over.store(true, Ordering::Relaxed);
        assert!(collecting.join().unwrap() > 0);
    });
    world.kiln(["fsck"]).expect_done();
    for round in (0..5).rev() {
        world.kiln_in(&project, ["rollback"]).expect_done();
        assert_eq!(answer(&port), format!("round {round}"));
        if round == 3 {
            break;
        }
    }
}
