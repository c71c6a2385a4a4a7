//! Build contexts from elsewhere, through the binary: repositories and archives give what a folder
//! gives, are pinned, and are not believed.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kiln_testkit::{Output, Project, World, wait_until};

/// The binary under test.
const KILN: &str = env!("CARGO_BIN_EXE_kiln");

/// `git daemon` for all below a folder; ends with its owner.
struct Daemon {
    child: Child,
    port: u16,
}

impl Daemon {
    fn new(base: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let base = format!("--base-path={}", base.display());
        // The daemon itself, for `git` would start it as a child; and not beyond a test that is killed.
        let place = Command::new("git").arg("--exec-path").output().unwrap().stdout;
        let program = format!("{}/git-daemon", String::from_utf8(place).unwrap().trim());
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", &program, "--reuseaddr", "--export-all"])
            .args(["--listen=127.0.0.1".to_owned(), format!("--port={port}"), base])
            .envs([("GIT_CONFIG_COUNT", "1"), ("GIT_CONFIG_KEY_0", "safe.directory")])
            .env("GIT_CONFIG_VALUE_0", "*")
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_until(Duration::from_secs(30), "git daemon", || {
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        Self { child, port }
    }

    fn url(&self, rest: &str) -> String {
        format!("git://127.0.0.1:{}/{rest}", self.port)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn git(dir: &Path, args: &[&str]) {
    let config = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=main"];
    let output = Command::new("git").current_dir(dir).args(config).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What every context of these tests holds.
fn fill(dir: &Path, text: &str) {
    fs::create_dir_all(dir.join("src")).unwrap();
    let dockerfile = "FROM scratch\nCOPY . /all/\nADD in.tar /unpacked/\nCMD [\"/x\"]\n";
    fs::write(dir.join("Dockerfile"), dockerfile).unwrap();
    fs::write(dir.join(".dockerignore"), "left-out\n").unwrap();
    fs::write(dir.join("left-out"), "x").unwrap();
    fs::write(dir.join("src/text"), text).unwrap();
    fs::write(dir.join("src/tool"), "#!/bin/sh\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(dir.join("src/tool"), mode).unwrap();
    let _ = fs::remove_file(dir.join("src/link"));
    std::os::unix::fs::symlink("text", dir.join("src/link")).unwrap();
    fs::write(dir.join("inner"), "in the archive").unwrap();
    let tar = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "-cf", "in.tar", "inner"];
    assert!(Command::new("tar").current_dir(dir).args(tar).status().unwrap().success());
    fs::remove_file(dir.join("inner")).unwrap();
}

/// A repository with the context in its folder `sub`.
fn repository(dir: &Path, text: &str) {
    fill(&dir.join("sub"), text);
    if !dir.join(".git").exists() {
        git(dir, &["init", "-q"]);
    }
    git(dir, &["add", "."]);
    git(dir, &["commit", "-q", "-m", text]);
}

/// Answers every request with `content`; ends with the test's process.
fn serve(content: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/ctx.tar.gz", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (mut request, mut byte) = (Vec::new(), [0]);
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
                request.push(byte[0]);
            }
            let length = content.len();
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&content));
        }
    });
    url
}

fn packed(dir: &Path) -> Vec<u8> {
    let tar = ["-C".as_ref(), dir.as_os_str(), "-czf".as_ref(), "-".as_ref(), ".".as_ref()];
    Command::new("tar").args(tar).output().unwrap().stdout
}

fn project(world: &World, name: &str, build: &str) -> Project {
    world.project(name, &format!("name: {name}\nservices:\n  web:\n    build: {build}\n"))
}

fn bake(world: &World, project: &Project) -> String {
    tree(&world.kiln_in(project, ["bake", "--json"]).expect_done())
}

fn tree(output: &Output) -> String {
    output.json()["images"]["web"]["tree"].as_str().unwrap_or_default().to_owned()
}

/// What a folder with that context gives.
fn of_folder(world: &World, text: &str) -> String {
    let project = project(world, "folder", "./ctx");
    fill(&project.path("ctx"), text);
    bake(world, &project)
}

#[test]
fn a_repository_is_a_context_and_pinned() {
    let home = tempfile::tempdir().unwrap();
    repository(&home.path().join("r"), "one");
    let daemon = Daemon::new(home.path());
    let world = World::new(KILN);
    let (one, two) = (of_folder(&world, "one"), of_folder(&world, "two"));
    assert_ne!(one, two);
    let project = project(&world, "repo", &format!("\"{}\"", daemon.url("r/.git#main:sub")));
    assert_eq!(bake(&world, &project), one);
    let lock = project.read("kiln.lock");
    assert!(lock.contains(&daemon.url("r/.git")) && lock.contains("refs/heads/main"), "{lock}");
    // It moves on, and the project does not before it is told.
    repository(&home.path().join("r"), "two");
    assert_eq!(bake(&world, &project), one);
    world.kiln_in(&project, ["lock", "--update"]).expect_done();
    assert_eq!(bake(&world, &project), two);
    // In a folder of its own, a named context, a stage, another Dockerfile; all from what is pinned.
    let named = format!(
        "\n      context: \"{0}\"\n      dockerfile: sub/Other\n      additional_contexts:\n        \
         there: \"{0}:sub\"",
        daemon.url("r/.git#main")
    );
    fs::write(
        home.path().join("r/sub/Other"),
        "FROM there AS t\nFROM scratch\nCOPY --from=t src /s\n",
    )
    .unwrap();
    git(&home.path().join("r"), &["add", "."]);
    git(&home.path().join("r"), &["commit", "-q", "-m", "three"]);
    let other = named_project(&world, &named);
    bake(&world, &other);
    // What is pinned and in the store asks nobody, also after a collection.
    drop(daemon);
    world.kiln(["gc", "--unused", "0"]).expect_done();
    fs::remove_dir_all(world.root().join("cache/checkouts")).unwrap();
    assert_eq!(bake(&world, &project), two);
    world.kiln(["fsck"]).expect_done();
}

fn named_project(world: &World, build: &str) -> Project {
    project(world, "named", build)
}

#[test]
fn an_archive_is_a_context_from_an_address_or_a_file() {
    let world = World::new(KILN);
    let home = tempfile::tempdir().unwrap();
    fill(home.path(), "one");
    let one = of_folder(&world, "one");
    let url = serve(packed(home.path()));
    let remote = project(&world, "remote", &format!("\"{url}\""));
    assert_eq!(bake(&world, &remote), one);
    assert!(remote.read("kiln.lock").contains(&url));
    let local = project(&world, "local", "./ctx.tgz");
    fs::write(local.path("ctx.tgz"), packed(home.path())).unwrap();
    assert_eq!(bake(&world, &local), one);
    assert_eq!(bake(&world, &local), one);
    fill(home.path(), "two");
    fs::write(local.path("ctx.tgz"), packed(home.path())).unwrap();
    assert_eq!(bake(&world, &local), of_folder(&world, "two"));
    // Whoever wrote into the folder that is made of it is not believed.
    let made = fs::read_dir(world.root().join("cache/checkouts")).unwrap();
    for entry in made {
        fs::write(entry.unwrap().path().join("context/src/text"), "forged").unwrap();
    }
    project_dockerfile(&local, home.path());
    let again = bake(&world, &local);
    let folder = project(&world, "again", "./ctx");
    fill(&folder.path("ctx"), "two");
    fs::copy(home.path().join("Dockerfile"), folder.path("ctx/Dockerfile")).unwrap();
    assert_eq!(again, bake(&world, &folder));
}

/// Another Dockerfile in the archive, so that nothing is known of it.
fn project_dockerfile(project: &Project, home: &Path) {
    fs::write(home.join("Dockerfile"), "FROM scratch\nCOPY src/text /only\n").unwrap();
    fs::write(project.path("ctx.tgz"), packed(home)).unwrap();
}

#[test]
fn a_release_takes_what_its_lock_pins() {
    let home = tempfile::tempdir().unwrap();
    repository(&home.path().join("r"), "one");
    let daemon = Daemon::new(home.path());
    let world = World::new(KILN);
    let project = project(&world, "repo", &format!("\"{}\"", daemon.url("r/.git#main:sub")));
    let archive = project.path("ctx.tgz");
    fill(&home.path().join("a"), "archive");
    fs::write(&archive, packed(&home.path().join("a"))).unwrap();
    let compose = project.read("compose.yaml");
    project.write("compose.yaml", format!("{compose}  local:\n    build: ./ctx.tgz\n"));
    git(project.dir(), &["init", "-q"]);
    git(project.dir(), &["add", "."]);
    git(project.dir(), &["commit", "-q", "-m", "without a lock"]);
    let refused = world.kiln_in(&project, ["release"]).expect_code(2);
    assert!(refused.stderr.contains("main"), "{refused}");
    world.kiln_in(&project, ["bake"]).expect_done();
    git(project.dir(), &["add", "."]);
    git(project.dir(), &["commit", "-q", "-m", "locked"]);
    let released = world.kiln_in(&project, ["release", "--json"]).expect_done().json();
    let baked = world.kiln_in(&project, ["bake", "--json"]).expect_done().json();
    for service in ["web", "local"] {
        assert_eq!(released["images"][service]["tree"], baked["images"][service]["tree"]);
    }
    // An archive that is not the commit's is seen.
    fs::write(&archive, packed(&home.path().join("r/sub"))).unwrap();
    let refused = world.kiln_in(&project, ["release"]).expect_code(4);
    assert!(refused.stderr.contains("ctx.tgz"), "{refused}");
}

#[test]
fn what_is_no_context_or_leads_out_of_it_is_refused() {
    let world = World::new(KILN);
    let home = tempfile::tempdir().unwrap();
    let page = serve(b"<html>not found</html>".to_vec());
    let refused =
        world.kiln_in(&project(&world, "page", &format!("\"{page}\"")), ["bake"]).expect_code(2);
    assert!(refused.stderr.contains(&page) && refused.stderr.contains("no archive"), "{refused}");
    let text = project(&world, "text", "./file");
    text.write("file", "FROM scratch\n");
    let refused = world.kiln_in(&text, ["bake"]).expect_code(2);
    assert!(refused.stderr.contains("/file") && refused.stderr.contains("no archive"), "{refused}");
    for name in ["Dockerfile", ".dockerignore"] {
        let _ = fs::remove_dir_all(home.path().join("r"));
        repository(&home.path().join("r"), "one");
        let path = home.path().join("r/sub").join(name);
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        git(&home.path().join("r"), &["add", "."]);
        git(&home.path().join("r"), &["commit", "-q", "-m", "link"]);
        let daemon = Daemon::new(home.path());
        let url = daemon.url("r/.git#main:sub");
        let hostile = project(&world, &format!("hostile{}", name.len()), &format!("\"{url}\""));
        let refused = world.kiln_in(&hostile, ["bake"]).expect_code(2);
        assert!(refused.stderr.contains(name) && refused.stderr.contains("leads out"), "{refused}");
        assert!(!refused.stderr.contains("root:x:0"), "{refused}");
    }
    let nobody = project(&world, "nobody", "git://127.0.0.1:1/x.git");
    let refused = world.kiln_in(&nobody, ["bake"]).expect_code(1);
    assert!(refused.stderr.contains("git://127.0.0.1:1/x.git"), "{refused}");
}
