//! `kiln export` and `kiln import`: standard OCI out of Kiln and in again, as users meet it.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use kiln_testkit::peers::{self, Engine, Keep, Network};
use kiln_testkit::{Project, World};
use serde_json::Value;

/// A project with a program, an environment, owners and links in its image.
fn app(world: &World) -> Project {
    let project = common::project(
        world,
        "demo",
        "name: demo\nservices:\n  app: { build: ./app }\n  plain: { image: busybox, command: [busybox, true] }\n",
    );
    project.write("app/message", "hello from kiln\n");
    project.write(
        "app/Dockerfile",
        "FROM busybox\nCOPY --chown=7:8 --chmod=0640 message /srv/message\n\
         RUN busybox ln /srv/message /srv/again && busybox mkdir -m 1777 /srv/open\n\
         ENV WHO=kiln\nWORKDIR /srv\nCMD [\"busybox\", \"sh\", \"-c\", \"busybox cat message; echo $WHO\"]\n",
    );
    project
}

/// What `kiln bake` says of a service's image.
fn baked(world: &World, project: &Project, service: &str) -> (Value, Value) {
    let bake = world.kiln_in(project, ["bake", "--json"]).expect_done().json();
    let image = &bake["images"][service];
    (image["tree"].clone(), image["config"].clone())
}

fn export(world: &World, project: &Project, args: &[&str]) -> Value {
    let args = ["export", "--json"].iter().chain(args).copied();
    world.kiln_in(project, args).expect_done().json()
}

fn import(world: &World, path: &Path, args: &[&str]) -> Value {
    let path = path.to_str().unwrap();
    let args = ["import", "--json", path].into_iter().chain(args.iter().copied());
    world.kiln(args).expect_done().json()
}

#[test]
fn two_worlds_export_the_same_and_read_it_back() {
    let (here, there) = (common::world(), common::world());
    let (ours, theirs) = (app(&here), app(&there));
    let first = export(&here, &ours, &["-o", "out"]);
    let second = export(&there, &theirs, &["-o", "out"]);
    assert_eq!(first["images"], second["images"]);
    assert_eq!(first["images"].as_object().unwrap().len(), 2);
    let index = |project: &Project| fs::read(project.path("out/index.json")).unwrap();
    assert_eq!(index(&ours), index(&theirs));

    let (tree, config) = baked(&here, &ours, "app");
    let none = World::new(common::KILN);
    let imported = import(&none, &ours.path("out"), &["--select", "app"]);
    assert_eq!((&imported["tree"], &imported["config"]), (&tree, &config));
    assert_eq!(imported["manifest"], first["images"]["app"]["manifest"]);
    // Two images are in it: which one has to be said.
    let several = none.kiln(["import", ours.path("out").to_str().unwrap()]).expect_code(2);
    several.expect_stderr("app, plain");
    for format in ["oci-archive", "docker-archive"] {
        let file = format!("{format}.tar");
        export(&here, &ours, &["app", "--format", format, "-o", &file]);
        let imported = import(&none, &ours.path(&file), &[]);
        assert_eq!((&imported["tree"], &imported["config"]), (&tree, &config), "{format}");
    }
    let zstd = export(&here, &ours, &["app", "--compression", "zstd", "-o", "zstd"]);
    assert_eq!(zstd["images"]["app"]["id"], first["images"]["app"]["id"]);
    assert_eq!(import(&none, &ours.path("zstd"), &[])["tree"], tree);
}

#[test]
fn what_is_imported_is_kept_by_its_name() {
    let world = common::world();
    let project = app(&world);
    let exported = export(&world, &project, &["app", "-o", "out"]);
    let other = World::new(common::KILN);
    let imported = import(&other, &project.path("out"), &["--name", "app"]);
    other.kiln(["gc"]).expect_done();
    let out = other.home().join("again");
    let args = ["export", "--json", "--image", "app", "--name", "app", "-o"];
    let again = other.kiln(args.iter().copied().chain(out.to_str())).expect_done().json();
    assert_eq!(again["images"], exported["images"]);
    let images = other.kiln(["images", "--json"]).expect_done().json();
    let kept = images["images"].as_array().unwrap().iter();
    let kept: Vec<&Value> = kept.filter(|image| image["tree"] == imported["tree"]).collect();
    assert_eq!(kept[0]["used_by"][0], "import app");

    other.kiln(["import", "--remove", "nobody"]).expect_code(2).expect_stderr("app");
    other.kiln(["import", "--remove", "app"]).expect_done();
    other.kiln(["gc"]).expect_done();
    let pair =
        format!("{},{}", imported["tree"].as_str().unwrap(), imported["config"].as_str().unwrap());
    let gone = ["export", "--image", &pair, "-o", "never"];
    other.kiln(gone).expect_code(2).expect_stderr("not in the store");
    assert!(!other.home().join("never").exists());
}

#[test]
fn a_release_is_exported_by_its_digest() {
    let (world, project, _port) = common::web();
    let up = world.kiln_in(&project, ["up", "--json"]).expect_done().json();
    let release = up["release"].as_str().unwrap();
    let first = export(&world, &project, &["-o", "one", "--release", release]);
    common::page(&project, "web", "two");
    world.kiln_in(&project, ["bake"]).expect_done();
    let short = &release["sha256:".len()..][..8];
    let again = export(&world, &project, &["-o", "two", "--release", short]);
    assert_eq!(first["images"], again["images"]);
    let tree = first["images"]["web"]["tree"].as_str().unwrap();
    let one = export(&world, &project, &["-o", "three", "--image", tree, "--name", "web"]);
    assert_eq!(first["images"], one["images"]);
    let now = export(&world, &project, &["-o", "four"]);
    assert_ne!(first["images"], now["images"]);
}

#[test]
fn files_are_the_users_and_links_of_others_lead_nowhere() {
    let world = common::world();
    let project = app(&world);
    let call = |args: &[&str]| {
        let call = world.call(["export", "plain"]).args(args).dir(project.dir());
        call.env("SUDO_UID", "1234").env("SUDO_GID", "5678").run().unwrap()
    };
    let owner = |name: &str| {
        let meta = fs::symlink_metadata(project.path(name)).unwrap();
        (meta.uid(), meta.gid())
    };
    call(&["-o", "folder"]).expect_done();
    for name in ["folder", "folder/index.json", "folder/blobs/sha256"] {
        assert_eq!(owner(name), (1234, 5678), "{name}");
    }
    call(&["--format", "oci-archive", "-o", "file.tar"]).expect_done();
    assert_eq!(owner("file.tar"), (1234, 5678));
    assert_eq!(fs::metadata(project.path("file.tar")).unwrap().mode() & 0o022, 0);

    // A link in the place of the file is replaced; one in the place of the folder is refused.
    fs::write(project.path("precious"), "precious").unwrap();
    symlink("precious", project.path("link.tar")).unwrap();
    call(&["--format", "docker-archive", "-o", "link.tar"]).expect_done();
    assert_eq!(project.read("precious"), "precious");
    assert!(fs::symlink_metadata(project.path("link.tar")).unwrap().is_file());
    fs::create_dir(project.path("elsewhere")).unwrap();
    symlink("elsewhere", project.path("link")).unwrap();
    call(&["-o", "link"]).expect_code(2).expect_stderr("it is a link");
    fs::write(project.path("elsewhere/mine"), "mine").unwrap();
    call(&["-o", "elsewhere"]).expect_code(1).expect_stderr("no OCI image layout");
    assert_eq!(fs::read_dir(project.path("elsewhere")).unwrap().count(), 1);
}

#[test]
fn what_fails_leaves_nothing() {
    let world = common::world();
    let project = app(&world);
    let before = names(&project);
    let fails = |args: &[&str], code: i32, says: &str| {
        let args = ["export"].iter().chain(args).copied();
        world.kiln_in(&project, args).expect_code(code).expect_stderr(says);
        assert_eq!(names(&project), before);
    };
    fails(&["nobody", "-o", "out"], 2, "no service `nobody`");
    fails(&["nobody", "-o", "out.tar", "--format", "oci-archive"], 2, "no service `nobody`");
    fails(&["-o", "out", "--format", "squashfs"], 2, "none of oci");
    fails(&["-o", "out", "--compression", "rar"], 2, "none of gzip");
    fails(&["-o", "app", "--format", "oci-archive"], 2, "is a folder");
    fails(&["-o", "compose.yaml"], 2, "--format oci-archive");
    fails(&["-o", "-"], 2, "standard output");
    let both = ["export", "--json", "--format", "oci-archive", "-o", "-"];
    let refused = world.kiln_in(&project, both).expect_code(2).json();
    assert!(refused["error"]["message"].as_str().unwrap().contains("both want"));
    fails(&["-o", "no/where", "--format", "oci"], 1, "no/where");
    fails(&["--image", "feedbeef", "-o", "out"], 2, "feedbeef");
    fails(&["--release", "feedbeef", "-o", "out"], 2, "feedbeef");
}

fn names(project: &Project) -> Vec<PathBuf> {
    let entries = fs::read_dir(project.dir()).unwrap();
    let mut names: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    names.sort();
    names
}

#[test]
fn archives_go_through_pipes() {
    let world = common::world();
    let project = app(&world);
    let (tree, _) = baked(&world, &project, "app");
    let script = "\"$0\" --root \"$1\" export app --format docker-archive -o - | \
                  \"$0\" --root \"$1\" import --json -";
    let mut pipe = Command::new("sh");
    pipe.args(["-c", script, common::KILN]).arg(world.root()).current_dir(project.dir());
    let output = pipe.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let imported: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(imported["tree"], tree);
    assert_eq!(imported["was"], "demo-app:latest");
}

#[test]
fn a_damaged_archive_is_refused() {
    let world = common::world();
    let project = app(&world);
    export(
        &world,
        &project,
        &["app", "--format", "oci-archive", "-o", "a.tar", "--compression", "none"],
    );
    let mut bytes = fs::read(project.path("a.tar")).unwrap();
    let at = bytes.windows(16).position(|part| part == b"hello from kiln\n").unwrap();
    bytes[at] = b'H';
    fs::write(project.path("a.tar"), bytes).unwrap();
    let output = world.kiln_in(&project, ["import", "a.tar"]).expect_code(1);
    output.expect_stderr("is not what it claims");
}

#[test]
fn a_build_begins_from_a_layout() {
    let world = common::world();
    let base = app(&world);
    export(&world, &base, &["app", "-o", "layout"]);
    let compose = "name: top\nservices:\n  top:\n    build:\n      context: ./top\n      \
                   additional_contexts: { ground: \"oci-layout://../demo/layout:app\" }\n";
    let project = common::project(&world, "top", compose);
    project.write(
        "top/Dockerfile",
        "FROM ground\nCOPY --from=ground /srv/message /copied\nRUN busybox test -f /srv/message\n",
    );
    let (first, _) = baked(&world, &project, "top");
    let (again, _) = baked(&world, &project, "top");
    assert_eq!(first, again);
    // The layout's content is an input; that it was written anew is not.
    base.write("app/message", "another\n");
    export(&world, &base, &["app", "-o", "layout"]);
    let (changed, _) = baked(&world, &project, "top");
    assert_ne!(first, changed);
    base.write("app/message", "hello from kiln\n");
    fs::remove_dir_all(base.path("layout")).unwrap();
    export(&world, &base, &["app", "-o", "layout", "--compression", "zstd"]);
    assert_eq!(baked(&world, &project, "top").0, first);
    fs::remove_dir_all(base.path("layout")).unwrap();
    world.kiln_in(&project, ["bake"]).expect_code(1).expect_stderr("oci-layout://");
}

/// What BuildKit takes from a registry is a base here, or nothing at all.
#[test]
fn a_build_begins_from_a_base_by_another_name() {
    let world = common::world();
    let compose = |image: &str| {
        format!(
            "name: top\nservices:\n  top:\n    build:\n      context: ./top\n      \
             additional_contexts: {{ ground: \"docker-image://{image}\" }}\n"
        )
    };
    let project = common::project(&world, "top", &compose("busybox"));
    project.write(
        "top/Dockerfile",
        "FROM ground\nRUN busybox test -f /bin/busybox\nCOPY Dockerfile /\n",
    );
    world.kiln_in(&project, ["bake"]).expect_done();
    project.edit("compose.yaml", "docker-image://busybox", "docker-image://scratch");
    world.kiln_in(&project, ["bake"]).expect_code(1).expect_stderr("busybox");
    project.write("top/Dockerfile", "FROM ground\nCOPY Dockerfile /\n");
    world.kiln_in(&project, ["bake"]).expect_done();
    // Any other is an image of a registry; here nobody listens.
    project.edit("compose.yaml", "docker-image://scratch", "docker-image://127.0.0.1:1/none:1");
    world.kiln_in(&project, ["bake"]).expect_code(1).expect_stderr("127.0.0.1:1/none:1");
}

#[test]
fn podman_runs_it_offline() {
    if peers::lacks(&["podman"]) {
        return;
    }
    let world = common::world();
    let project = app(&world);
    let podman = Podman(world.home().join("podman"));
    fs::create_dir(&podman.0).unwrap();
    for format in ["docker-archive", "oci-archive"] {
        let file = format!("{format}.tar");
        let exported = export(&world, &project, &["app", "--format", format, "-o", &file]);
        let archive = project.path(&file);
        podman.said(&["load", "-q", "-i", archive.to_str().unwrap()]);
        let id = exported["images"]["app"]["id"].as_str().unwrap().trim_start_matches("sha256:");
        // Without the right to raise limits, as in many sandboxes, podman's own are out of reach.
        let limits = ["--ulimit", "nofile=256:256", "--ulimit", "nproc=1024:1024"];
        let run = ["run", "--rm", "--network", "none", "--pull", "never"];
        let run: Vec<&str> = run.into_iter().chain(limits).chain([id]).collect();
        let said = podman.said(&run);
        assert_eq!(said, "hello from kiln\nkiln\n", "{format}");
        podman.said(&["image", "rm", "-f", id]);
    }
}

/// podman with a storage of its own.
struct Podman(PathBuf);

impl Podman {
    fn command(&self) -> Command {
        let mut command = Command::new("podman");
        for part in ["root", "runroot", "tmpdir"] {
            command.arg(format!("--{part}")).arg(self.0.join(part));
        }
        command.args(["--storage-driver", "vfs", "--events-backend", "none"]);
        command.args(["--cgroup-manager", "cgroupfs"]).env("TMPDIR", &self.0);
        command
    }

    #[track_caller]
    fn said(&self, args: &[&str]) -> String {
        let output = self.command().args(args).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "podman {args:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.command().args(["system", "reset", "--force"]).output();
    }
}

#[test]
fn docker_loads_runs_and_saves_it() {
    if peers::lacks(&["dockerd", "docker"]) {
        return;
    }
    let world = common::world();
    let project = app(&world);
    let (tree, config) = baked(&world, &project, "app");
    export(&world, &project, &["app", "--format", "docker-archive", "-o", "app.tar"]);
    let engine = Engine::start(Network::None, Keep::InMemory).unwrap();
    let said = engine.load(&project.path("app.tar")).unwrap();
    assert!(said.contains("demo-app:latest"), "{said}");
    let run = engine.docker(&["run", "--rm", "--network", "none", "demo-app:latest"]);
    assert_eq!(run.run_ok().unwrap().stdout, "hello from kiln\nkiln\n");
    engine.save("demo-app:latest", &project.path("saved.tar")).unwrap();
    let imported = import(&world, &project.path("saved.tar"), &[]);
    assert_eq!((&imported["tree"], &imported["config"]), (&tree, &config));
}
