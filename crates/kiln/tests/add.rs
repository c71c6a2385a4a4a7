//! ADD through the binary: what is fetched is pinned in `kiln.lock`, and stays what it was.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use kiln_testkit::{Output, Project, World};

/// The binary under test.
const KILN: &str = env!("CARGO_BIN_EXE_kiln");

/// Answers every request with one content; ends with the test's process.
struct Page {
    url: String,
    content: Arc<Mutex<Vec<u8>>>,
    asked: Arc<Mutex<usize>>,
}

impl Page {
    fn new(path: &str, content: &[u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}{path}", listener.local_addr().unwrap());
        let content = Arc::new(Mutex::new(content.to_vec()));
        let asked = Arc::new(Mutex::new(0));
        let (served, count) = (content.clone(), asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                *count.lock().unwrap() += 1;
                let _ = answer(stream, &served.lock().unwrap());
            }
        });
        Self { url, content, asked }
    }

    fn asked(&self) -> usize {
        *self.asked.lock().unwrap()
    }
}

fn answer(mut stream: TcpStream, content: &[u8]) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte)? == 1 {
        request.push(byte[0]);
    }
    let length = content.len();
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")?;
    stream.write_all(content)
}

/// A project with one service, which is never run.
fn project(world: &World, name: &str, dockerfile: &str) -> Project {
    let project =
        world.project(name, &format!("name: {name}\nservices:\n  web:\n    build: ./web\n"));
    project.write("web/Dockerfile", dockerfile);
    project
}

fn tree(output: &Output) -> String {
    output.json()["images"]["web"]["tree"].as_str().unwrap_or_default().to_owned()
}

fn run(dir: &Path, program: &str, args: &[&str]) -> String {
    let output = Command::new(program).current_dir(dir).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_url_is_pinned_by_the_first_bake_and_by_lock_update() {
    let page = Page::new("/tool", b"version 1");
    let dockerfile = format!("FROM scratch\nADD {} /usr/bin/\n", page.url);
    let world = World::new(KILN);
    let one = project(&world, "one", &dockerfile);
    let first = tree(&world.kiln_in(&one, ["bake", "--json"]).expect_done());
    let lock = one.read("kiln.lock");
    assert!(lock.contains(&page.url) && lock.contains("size = 9"), "{lock}");
    assert_eq!(page.asked(), 1);
    *page.content.lock().unwrap() = b"version 2".to_vec();
    assert_eq!(tree(&world.kiln_in(&one, ["bake", "--json"]).expect_done()), first);
    assert_eq!(page.asked(), 1, "what is pinned and there is not asked for");
    // Another machine with this lock.
    let elsewhere = World::new(KILN);
    let two = project(&elsewhere, "two", &dockerfile);
    two.write("kiln.lock", &lock);
    let refused = elsewhere.kiln_in(&two, ["bake"]).expect_code(1);
    assert!(refused.stderr.contains("input differs"), "{refused:?}");
    assert!(refused.stderr.contains("kiln lock --update"), "{refused:?}");
    assert_eq!(two.read("kiln.lock"), lock, "a refusal changes no lock");
    world.kiln_in(&one, ["lock", "--update"]).expect_done();
    assert_ne!(one.read("kiln.lock"), lock);
    assert_ne!(tree(&world.kiln_in(&one, ["bake", "--json"]).expect_done()), first);
}

#[test]
fn archives_and_repositories_give_the_same_tree_everywhere() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir_all(home.path().join("in/sub")).unwrap();
    fs::write(home.path().join("in/sub/a"), "one").unwrap();
    run(home.path(), "tar", &["-czf", "in.tar.gz", "--owner=5", "--group=6", "-C", "in", "."]);
    let repository = home.path().join("in");
    run(&repository, "git", &["init", "-q"]);
    run(&repository, "git", &["add", "."]);
    let commit = ["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-q", "-m", "1"];
    run(&repository, "git", &commit);
    let hash = run(&repository, "git", &["rev-parse", "HEAD"]);
    run(&repository, "git", &["update-server-info"]);
    let archive = fs::read(home.path().join("in.tar.gz")).unwrap();
    let page = Page::new("/in.tar.gz", &archive);
    let dockerfile =
        format!("FROM scratch\nADD in.tar.gz /local/\nADD --unpack=true {} /remote/\n", page.url);
    let mut trees = Vec::new();
    for name in ["a", "b"] {
        let world = World::new(KILN);
        let project = project(&world, name, &dockerfile);
        fs::copy(home.path().join("in.tar.gz"), project.path("web/in.tar.gz")).unwrap();
        trees.push(tree(&world.kiln_in(&project, ["bake", "--json"]).expect_done()));
    }
    assert_eq!(trees[0], trees[1]);
    // Git does not reach into this machine, whatever a Dockerfile says.
    let world = World::new(KILN);
    let local = project(&world, "c", &format!("FROM scratch\nADD git://127.0.0.1:1/x#{hash} /\n"));
    let refused = world.kiln_in(&local, ["bake"]).expect_code(1);
    assert!(refused.stderr.contains("git://127.0.0.1:1/x"), "{refused:?}");
}

#[test]
fn a_hostile_archive_is_refused_with_its_entry() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("passwd"), "root::0:0::/:/bin/sh").unwrap();
    fs::create_dir(home.path().join("in")).unwrap();
    let args = ["-cf", "bad.tar", "-P", "-C", "in", "../passwd"];
    run(home.path(), "tar", &args);
    let world = World::new(KILN);
    let project = project(&world, "bad", "FROM scratch\nADD bad.tar /srv/\n");
    fs::copy(home.path().join("bad.tar"), project.path("web/bad.tar")).unwrap();
    let refused = world.kiln_in(&project, ["bake"]).expect_code(2);
    for part in ["web/Dockerfile:2", "`bad.tar`", "`../passwd`", "leads out of the destination"] {
        assert!(refused.stderr.contains(part), "{part}: {refused:?}");
    }
}
