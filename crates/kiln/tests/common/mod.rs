//! What the end-to-end tests share: worlds whose store holds the busybox base already, so that one
//! test asks the mirror for it and all others do not.
#![allow(dead_code)] // each test binary uses its own part

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use kiln_testkit::{Port, Project, World, wait_until};

/// The binary under test.
pub(crate) const KILN: &str = env!("CARGO_BIN_EXE_kiln");

/// Long enough for a loaded machine; no test waits so long when all is well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The bases of [`world`]s, to be put at the end of a Compose file.
pub(crate) const BUSYBOX: &str = "
x-kiln:
  bases:
    busybox: { debian: bookworm, packages: [busybox-static], minimal: true }
";

/// Where the template is: made once by whichever test comes first.
pub(crate) fn template() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("template");
    fs::create_dir_all(&dir).unwrap();
    let lock = File::create(dir.join("lock")).unwrap();
    lock.lock().unwrap();
    if !dir.join("done").exists() {
        let _ = fs::remove_dir_all(dir.join("root"));
        let world = World::new(KILN);
        let service = "services:\n  a: { image: busybox, command: [busybox, true] }\n";
        let project = world.project("template", &format!("{service}{BUSYBOX}"));
        world.kiln_in(&project, ["bake"]).expect_done();
        world.shutdown().expect_done();
        fs::create_dir_all(dir.join("root")).unwrap();
        for part in ["format", "objects", "cache", "refs"] {
            copy(&world.root().join(part), &dir.join("root"));
        }
        copy(&project.path("kiln.lock"), &dir);
        File::create(dir.join("done")).unwrap();
    }
    dir
}

/// The program of the busybox base: static, so one file is a whole image.
pub(crate) fn busybox() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let objects = template().join("root/objects");
        let mut found = Vec::new();
        for dir in fs::read_dir(objects).unwrap() {
            for object in fs::read_dir(dir.unwrap().path()).unwrap() {
                let bytes = fs::read(object.unwrap().path()).unwrap();
                if bytes.starts_with(b"\x7fELF") && bytes.len() > found.len() {
                    found = bytes;
                }
            }
        }
        assert!(found.len() > 500_000, "no busybox in the template");
        found
    })
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success(), "copying {}", from.display());
}

/// A world whose store has the busybox base; in `backing.rs` one without EROFS.
pub(crate) fn world() -> World {
    filled(match env!("CARGO_CRATE_NAME") {
        "backing" => World::new(KILN).env("KILN_STORE_BACKING", "links"),
        _ => World::new(KILN),
    })
}

/// That world with what the template has.
pub(crate) fn filled(world: World) -> World {
    copy(&template().join("root"), world.home());
    world
}

/// A project of that world; `compose` without its bases, which are added with their lock.
pub(crate) fn project(world: &World, name: &str, compose: &str) -> Project {
    let project = world.project(name, &format!("{compose}{BUSYBOX}"));
    copy(&template().join("kiln.lock"), project.dir());
    project
}

/// A service that answers `text` on port 8080 and is published at `port`.
pub(crate) fn page(project: &Project, service: &str, text: &str) {
    project.write(&format!("{service}/index.html"), text);
    project.write(
        &format!("{service}/Dockerfile"),
        "FROM busybox\nCOPY index.html /www/\nEXPOSE 8080\n\
         CMD [\"busybox\", \"httpd\", \"-f\", \"-p\", \"8080\", \"-h\", \"/www\"]\n",
    );
}

/// A world with one service `web` that answers `one`.
pub(crate) fn web() -> (World, Project, Port) {
    web_in(world())
}

/// The same in that world.
pub(crate) fn web_in(world: World) -> (World, Project, Port) {
    let port = Port::claim();
    let compose = format!(
        "name: demo\nservices:\n  web:\n    build: ./web\n    ports: [\"{}:8080\"]\n",
        port.number()
    );
    let project = project(&world, "demo", &compose);
    page(&project, "web", "one");
    (world, project, port)
}

/// What the page at `port` says.
pub(crate) fn answer(port: &Port) -> String {
    match kiln_testkit::http::get(port.number(), "/") {
        Ok(response) => response.text(),
        Err(error) => format!("no answer: {error:#}"),
    }
}

/// Waits until the page at `port` says `text`.
pub(crate) fn wait_for_answer(port: &Port, text: &str) {
    wait_until(PATIENCE, &format!("`{text}` at port {}", port.number()), || {
        (answer(port) == text).then_some(())
    });
}

/// Instances as `kiln ps --json` lists them.
pub(crate) fn instances(world: &World, project: &Project) -> Vec<serde_json::Value> {
    let output = world.kiln_in(project, ["ps", "--json"]).expect_done();
    output.json()["instances"].as_array().cloned().unwrap_or_default()
}

/// The instance of `service` in the slot with `role`.
pub(crate) fn instance(
    world: &World,
    project: &Project,
    service: &str,
    role: &str,
) -> Option<serde_json::Value> {
    instances(world, project).into_iter().find(|instance| {
        let slots = instance["slots"].as_array().cloned().unwrap_or_default();
        instance["service"] == service && slots.iter().any(|slot| slot["role"] == role)
    })
}

/// Sends SIGKILL.
pub(crate) fn kill(pid: impl TryInto<i32>) {
    let pid = pid.try_into().ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it was there");
}
