//! Images of registries: pinned once, fetched by digest, kept; from the distribution's registry.

mod common;

use std::fs;
use std::path::Path;

use common::{PATIENCE, answer, busybox, wait_for_answer};
use kiln_testkit::registry::{Image, Registry};
use kiln_testkit::{Call, Port, Project, World, wait_until};
use serde_json::{Value, json};

/// An image that answers `text` on port 8080, in three layers.
fn page(text: &str) -> Image {
    Image::new()
        .file("bin/busybox", busybox())
        .file("etc/passwd", b"root:x:0:0::/:/bin/sh\nweb:x:33:33::/:/bin/sh\n")
        .file("www/index.html", text.as_bytes())
        .config(json!({
            "Cmd": ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/www"],
            "ExposedPorts": { "8080/tcp": {} },
            "Env": ["FROM_IMAGE=yes"],
            "User": "web",
        }))
}

fn world() -> World {
    World::new(common::KILN)
}

/// A project whose service `web` is the image of that name, and where it answers.
fn project(world: &World, image: &str) -> (Project, Port) {
    let port = Port::claim();
    let compose = format!(
        "name: strange\nservices:\n  web:\n    image: {image}\n    ports: [\"{}:8080\"]\n",
        port.number()
    );
    (world.project("strange", &compose), port)
}

/// The pin of an image, as `kiln lock` tells it.
fn pin(world: &World, project: &Project, image: &str) -> Value {
    let lock = world.kiln_in(project, ["lock", "--json"]).expect_done().json();
    lock["images"][image].clone()
}

/// How often the registry was asked for anything.
fn asked(registry: &Registry) -> usize {
    registry.asked("/v2/")
}

#[test]
fn a_strangers_folder_runs_and_its_lock_asks_nobody() {
    let registry = Registry::start();
    registry.push(&page("one"), "team/web:1");
    let image = format!("{}/team/web:1", registry.host());
    let world = world();
    let (project, port) = project(&world, &image);
    let first = world.kiln_in(&project, ["up", "--json"]).expect_done().json();
    assert_eq!(first["switched"], true);
    wait_for_answer(&port, "one");
    let lock = project.read("kiln.lock");
    assert!(lock.contains("format = 2\n"), "{lock}");
    assert!(lock.contains(&format!("[images.\"{image}\"]\nreference = \"{image}\"\n")), "{lock}");

    // The configuration counts: its user, and its environment.
    let exec = |command: &str| {
        let argv = ["exec", "web", "/bin/busybox", "sh", "-c", command];
        world.kiln_in(&project, argv).expect_done().stdout
    };
    assert_eq!(exec("echo $FROM_IMAGE; /bin/busybox id -u").trim(), "yes\n33");

    let before = asked(&registry);
    world.kiln_in(&project, ["up"]).expect_done();
    let pulled = world.kiln_in(&project, ["pull", "--json"]).expect_done().json();
    assert_eq!(pulled["images"][&image]["fetched"], 0);
    world.kiln_in(&project, ["lock"]).expect_done();
    assert_eq!(asked(&registry), before, "what is pinned and here is asked of nobody");
    assert_eq!(project.read("kiln.lock"), lock);
    // Nor does it have to be there.
    drop(registry);
    world.kiln_in(&project, ["up"]).expect_done();
    assert_eq!(answer(&port), "one");

    // Elsewhere there is nothing of it: said is which, and what to do.
    let elsewhere = self::world();
    let (copy, _port) = self::project(&elsewhere, &image);
    copy.write("kiln.lock", &lock);
    let failed = elsewhere.kiln_in(&copy, ["up"]).expect_code(1);
    failed.expect_stderr(&image).expect_stderr("`kiln import`");
    assert_eq!(copy.read("kiln.lock"), lock, "a pull that failed moves no pin");
}

#[test]
fn a_tag_that_moved_changes_nothing_until_it_is_updated() {
    let registry = Registry::start();
    registry.push(&page("one"), "web:latest");
    let image = format!("{}/web", registry.host());
    let world = world();
    let (project, port) = project(&world, &image);
    let none = world.kiln(["images"]).expect_done();
    assert_eq!(none.stdout, "");
    assert!(none.stderr.contains("no images yet"), "{none}");
    world.kiln_in(&project, ["up"]).expect_done();
    let name = format!("{image}:latest");
    let first = pin(&world, &project, &name);
    registry.push(&page("two"), "web:latest");

    world.kiln_in(&project, ["up"]).expect_done();
    assert_eq!(answer(&port), "one");
    assert_eq!(pin(&world, &project, &name), first);
    // Also where nothing is in the store: yesterday's image is fetched by its digest.
    let elsewhere = self::world();
    let other = elsewhere.project("strange", &project.read("compose.yaml"));
    other.write("kiln.lock", project.read("kiln.lock"));
    let pulled = elsewhere.kiln_in(&other, ["pull", "--json"]).expect_done().json();
    assert_eq!(pulled["images"][&name]["manifest"], first["platforms"][0]["manifest"]);
    // No release has it, and it is listed all the same: by its name, and else by its digest.
    let listed = || elsewhere.kiln(["images"]).expect_done().stdout;
    let table = listed();
    assert!(table.starts_with("TREE") && table.contains(&format!("  {name}\n")), "{table}");
    let lock = other.read("kiln.lock");
    std::fs::remove_file(other.path("kiln.lock")).unwrap();
    let digest = first["platforms"][0]["manifest"].as_str().unwrap();
    let digest = digest.trim_start_matches("sha256:");
    let table = listed();
    assert!(table.contains(&format!("  image sha256:{}\n", &digest[..12])), "{table}");
    other.write("kiln.lock", lock);

    world.kiln_in(&project, ["lock", "--update", "nginx"]).expect_code(2).expect_stderr(&name);
    let moved = world.kiln_in(&project, ["lock", "--update", &image]).expect_done();
    let moved = moved.expect_stderr(&format!("{name} moves from"));
    assert!(moved.stdout.contains("www/index.html"), "{moved}");
    assert_ne!(pin(&world, &project, &name), first);
    world.kiln_in(&project, ["up"]).expect_done();
    wait_for_answer(&port, "two");
    world.kiln_in(&project, ["rollback"]).expect_done();
    wait_for_answer(&port, "one");
    let none = world.kiln_in(&project, ["lock", "--update", "--json"]).expect_done().json();
    assert_eq!(
        (&none["changed"], none["moved"].as_array().map(Vec::len)),
        (&json!(false), Some(0))
    );
}

#[test]
fn what_the_registry_no_longer_has_is_named_or_comes_from_elsewhere() {
    let registry = Registry::start();
    registry.push(&page("one"), "web:1");
    let image = format!("{}/web:1", registry.host());
    let world = world();
    let (project, port) = project(&world, &image);
    let manifest = pin(&world, &project, &image)["index"].as_str().unwrap().to_owned();
    // Somebody keeps a copy, and the registry loses it.
    let kept = world.home().join("kept");
    let copy = Call::new("skopeo").args(["copy", "--insecure-policy", "--preserve-digests"]);
    let copy = copy.arg("--src-tls-verify=false").arg(format!("docker://{image}"));
    copy.arg(format!("oci:{}:web", kept.display())).run_ok().unwrap();
    let gone = format!("docker://{}/web@{manifest}", registry.host());
    Call::new("skopeo").args(["delete", "--tls-verify=false"]).arg(gone).run_ok().unwrap();

    let failed = world.kiln_in(&project, ["up"]).expect_code(1);
    failed.expect_stderr(&image).expect_stderr(&format!("kiln lock --update {image}"));
    // What is imported is what the lock names, whoever brought it.
    world.kiln(["import", &kept.display().to_string()]).expect_done();
    world.kiln_in(&project, ["up"]).expect_done();
    wait_for_answer(&port, "one");
}

#[test]
fn dockerfiles_take_images_in_every_way() {
    let registry = Registry::start();
    registry.push(&page("one"), "base:1");
    registry.push(&Image::new().file("files/a", b"a").file("files/b", b"b"), "files:1");
    let host = registry.host();
    let compose = format!(
        "name: ways\nservices:\n  app:\n    build:\n      context: .\n      additional_contexts:\n        \
         named: docker-image://{host}/files:1\n"
    );
    let world = world();
    let project = world.project("ways", &compose);
    project.write(
        "Dockerfile",
        format!(
            "FROM {host}/base:1 AS first\nCOPY --from={host}/files:1 /files/a /a\n\
             COPY --from=named /files/b /b\nUSER root\n\
             RUN --mount=type=bind,from={host}/files:1,source=/files,target=/mnt \
             [\"/bin/busybox\", \"cp\", \"/mnt/b\", \"/c\"]\nFROM first\nCOPY Dockerfile /\n"
        ),
    );
    let named = world.kiln_in(&project, ["lock", "--json"]).expect_done().json();
    let pinned: Vec<&String> = named["images"].as_object().unwrap().keys().collect();
    assert_eq!(pinned, [&format!("{host}/base:1"), &format!("{host}/files:1")]);
    let pulled = world.kiln_in(&project, ["pull", "app", "--json"]).expect_done().json();
    assert_eq!(pulled["images"].as_object().unwrap().len(), 2);
    drop(registry);
    let bake = || world.kiln_in(&project, ["bake", "--json"]).expect_done().json();
    let image = bake()["images"]["app"].clone();
    let listing = object(&world, image["tree"].as_str().unwrap());
    let line = |path: &str| {
        let start = format!("./{path} ");
        listing.lines().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("{path}"))
    };
    // What came in a layer has its time, also when it is copied; what a step made has not.
    for path in ["a", "b", "bin/busybox"] {
        assert!(line(path).contains(" time=1700000000.000000000 "), "{}", line(path));
    }
    for path in ["c", "Dockerfile"] {
        assert!(line(path).contains(" time=1577836800.000000000 "), "{}", line(path));
    }
    // A proof bakes in stores of its own, and has the images from this one.
    world.kiln_in(&project, ["verify", "--deep"]).expect_done();
    // A name that is nobody's is looked for, and told with its place.
    project.edit("Dockerfile", "AS first", "AS frist");
    let failed = world.kiln_in(&project, ["bake"]);
    assert!(failed.code == Some(1), "{failed}");
    failed.expect_stderr("Dockerfile:6").expect_stderr("did you mean frist?");
}

fn object(world: &World, digest: &str) -> String {
    let hex = digest.trim_start_matches("sha256:");
    let path = world.root().join("objects").join(&hex[..2]).join(&hex[2..]);
    fs::read_to_string(path).unwrap()
}

#[test]
fn a_base_has_the_name_before_any_image() {
    let world = common::world();
    let compose = "name: based\nservices:\n  a: { image: busybox, command: [busybox, true] }\n";
    let project = common::project(&world, "based", compose);
    let baked = world.kiln_in(&project, ["bake", "--json"]).expect_done().json();
    assert!(baked["images"]["a"]["tree"].is_string());
    assert!(project.read("kiln.lock").contains("format = 1\n"));
}

#[test]
fn layers_are_fetched_once_however_many_want_them() {
    let registry = Registry::start();
    registry.push(&page("one"), "one:1");
    registry.push(&page("two"), "two:1");
    let host = registry.host();
    let compose = format!(
        "name: shared\nservices:\n  one: {{ image: \"{host}/one:1\" }}\n  \
         two: {{ image: \"{host}/two:1\" }}\n  same: {{ image: \"{host}/one:1\" }}\n"
    );
    let world = world();
    let project = world.project("shared", &compose);
    world.kiln_in(&project, ["bake"]).expect_done();
    // Two layers of both, one of each, and two configurations.
    assert_eq!(registry.asked("\"GET /v2/one/blobs") + registry.asked("\"GET /v2/two/blobs"), 6);
    let pulled = world.kiln_in(&project, ["pull", "--json"]).expect_done().json();
    assert_eq!(pulled["images"].as_object().unwrap().len(), 2);
}

#[test]
fn collection_and_fsck_know_what_a_lock_pins() {
    let registry = Registry::start();
    registry.push(&page("one"), "web:1");
    let image = format!("{}/web:1", registry.host());
    let world = world();
    let (project, _port) = project(&world, &image);
    world.kiln_in(&project, ["pull"]).expect_done();
    let before = asked(&registry);
    world.kiln(["gc"]).expect_done();
    world.kiln(["fsck"]).expect_done();
    world.kiln_in(&project, ["pull"]).expect_done();
    assert_eq!(asked(&registry), before, "collection took nothing of it");
}

/// A small disk at the place of a world's root; gone with its mount, also after a panic.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn at(root: &Path, size: &str) -> Self {
        fs::create_dir_all(root).unwrap();
        let mount = Call::new("mount").args(["-t", "tmpfs", "-o"]).arg(format!("size={size}"));
        mount.arg("kiln-test").arg(root).run_ok().unwrap();
        Self(root.to_owned())
    }

    fn resize(&self, size: &str) {
        let options = format!("remount,size={size}");
        Call::new("mount").args(["-o", &options]).arg(&self.0).run_ok().unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What still holds it lets go in a moment; the mount goes at once from where others look.
        let _ = Call::new("umount").arg("-l").arg(&self.0).run_ok();
    }
}

#[test]
fn a_full_disk_is_named_and_the_pull_goes_on_when_there_is_room() {
    let registry = Registry::start();
    let large = |seed: u32| -> Vec<u8> {
        (0..20_000_000_u32).map(|n| (n.wrapping_mul(seed) >> 7) as u8).collect()
    };
    let image = page("one").file("large", &large(2_654_435_761)).file("larger", &large(40_503));
    registry.push(&image, "web:1");
    let image = format!("{}/web:1", registry.host());
    let world = world();
    let disk = SmallDisk::at(&world.root(), "30m");
    let (project, _port) = project(&world, &image);
    let failed = world.kiln_in(&project, ["pull"]).expect_code(1);
    failed.expect_stderr(&image).expect_stderr("kiln gc");
    disk.resize("400m");
    let pulled = world.kiln_in(&project, ["pull", "--json"]).expect_done().json();
    let counts = &pulled["images"][&image];
    assert_eq!(counts["fetched"].as_u64().unwrap() + counts["known"].as_u64().unwrap(), 5);
    assert!(counts["known"].as_u64().unwrap() > 0, "layers that came whole are kept: {counts}");
    world.shutdown().expect_done();
    drop(disk);
}

/// A tar with one entry whose name nobody checked.
fn entry(kind: u8, name: &str, link: &str) -> Vec<u8> {
    let mut block = [0_u8; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..108].copy_from_slice(b"0000644\0");
    for (at, length) in [(108, 8), (116, 8), (124, 12), (136, 12)] {
        block[at..at + length].fill(b'0');
        block[at + length - 1] = 0;
    }
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link.as_bytes());
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = block.to_vec();
    tar.resize(512 * 3, 0);
    tar
}

#[test]
fn a_layer_that_leads_out_of_its_tree_is_refused_by_name() {
    let registry = Registry::start();
    let world = world();
    let escape = world.home().join("escaped");
    let bad = [
        entry(b'0', "../../../../../tmp/kiln-escaped", ""),
        entry(b'1', "link", "../../../../../etc/shadow"),
        entry(b'0', "etc/.wh...", ""),
        entry(b'1', "link", "not/there"),
    ];
    for (nth, layer) in bad.into_iter().enumerate() {
        let name = format!("bad:{nth}");
        registry.push(&page("one").layer(layer), &name);
        let image = format!("{}/{name}", registry.host());
        let compose = format!("name: bad\nservices:\n  web: {{ image: \"{image}\" }}\n");
        let project = world.project(&format!("bad{nth}"), &compose);
        world
            .kiln_in(&project, ["up"])
            .expect_code(1)
            .expect_stderr(&image)
            .expect_stderr("layer ");
        let fsck = world.kiln(["fsck", "--json"]).expect_done().json();
        assert_eq!(fsck["damage"].as_array().map(Vec::len), Some(0));
    }
    // What stays inside does: a link that leads up ends at the top, as for a program in it.
    let inside = page("one").layer(entry(b'2', "up", "../../../..")).file("up/inside", b"1");
    registry.push(&inside, "good:1");
    let image = format!("{}/good:1", registry.host());
    let (project, _port) = project(&world, &image);
    let pulled = world.kiln_in(&project, ["pull", "--json"]).expect_done().json();
    let listing = object(&world, pulled["images"][&image]["tree"].as_str().unwrap());
    assert!(listing.contains("\n./inside type=file"), "{listing}");
    assert!(!escape.exists() && !Path::new("/tmp/kiln-escaped").exists());
}

#[test]
fn a_lock_gets_all_that_it_names() {
    let registry = Registry::start();
    registry.push(&page("one"), "web:1");
    let image = format!("{}/web:1", registry.host());
    let world = world();
    let (project, port) = project(&world, &image);
    world.kiln_in(&project, ["lock"]).expect_done();
    assert_eq!(registry.asked("\"GET /v2/web/blobs"), 1, "the configuration, for the platform");
    let fetched = world.kiln_in(&project, ["lock", "--fetch", "--json"]).expect_done().json();
    assert_eq!(fetched["fetched"][&image]["fetched"], 3);
    drop(registry);
    world.kiln_in(&project, ["up"]).expect_done();
    wait_for_answer(&port, "one");
}

#[test]
fn an_interrupted_pull_goes_on_where_it_was() {
    let registry = Registry::start();
    let large: Vec<u8> = (0..80_000_000_u32).map(|n| (n >> 3 ^ n.wrapping_mul(97)) as u8).collect();
    registry.push(&page("one").file("large", &large), "web:1");
    let image = format!("{}/web:1", registry.host());
    let world = world();
    let (project, port) = project(&world, &image);
    let running = world.call(["pull"]).dir(project.dir()).spawn().unwrap();
    wait_until(PATIENCE, "a pull under way", || {
        (registry.asked("\"GET /v2/web/blobs") > 1).then_some(())
    });
    running.signal(rustix::process::Signal::INT).unwrap();
    let output = running.wait().unwrap();
    assert_ne!(output.code, Some(70), "{output}");
    world.kiln_in(&project, ["up"]).expect_done();
    wait_for_answer(&port, "one");
    assert!(world.scratch().is_empty(), "{:?}", world.scratch());
}

#[test]
fn what_is_not_for_this_machine_is_refused() {
    let registry = Registry::start();
    let world = world();
    let (project, _port) = project(&world, &format!("{}/none:1", registry.host()));
    world.kiln_in(&project, ["up"]).expect_code(1).expect_stderr("none:1");
    project.edit("compose.yaml", "none:1", "None:1");
    world.kiln_in(&project, ["up"]).expect_code(2).expect_stderr("None");
    registry.push(&page("one"), "web:1");
    project.edit("compose.yaml", "None:1", "web:1");
    project.edit("compose.yaml", "    ports", "    platform: linux/s390x\n    ports");
    world.kiln_in(&project, ["up"]).expect_code(2).expect_stderr("linux/s390x");
    project.edit("compose.yaml", "    platform: linux/s390x\n", "");
    world.kiln_in(&project, ["lock"]).expect_done();
    let (amd, arm) = ("linux/amd64", "linux/arm64");
    let (own, other) = if cfg!(target_arch = "x86_64") { (amd, arm) } else { (arm, amd) };
    project.edit("kiln.lock", own, other);
    world.kiln_in(&project, ["up"]).expect_code(2).expect_stderr(&format!("it is for {other}"));
}

/// A root file system with the host's Python, as a distribution installs it: modules compiled, each
/// naming the time of its source.
fn python(root: &Path) -> bool {
    let home = ["/usr/lib/python3.11", "/usr/lib/python3.13", "/usr/lib/python3.12"];
    let Some(library) = home.into_iter().find(|home| Path::new(home).join("os.py").exists()) else {
        return false;
    };
    let program = format!("/usr/bin/{}", library.rsplit('/').next().unwrap());
    let libraries = Call::new("ldd").arg(&program).run_ok().unwrap().stdout;
    let libraries = libraries.split_whitespace().filter(|word| word.starts_with('/'));
    for path in libraries.chain([program.as_str(), library]) {
        let to = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        Call::new("cp").args(["-aL"]).arg(path).arg(&to).run_ok().unwrap();
    }
    fs::rename(root.join(program.trim_start_matches('/')), root.join("usr/bin/python")).unwrap();
    true
}

#[test]
fn compiled_modules_of_python_are_valid_as_under_podman() {
    let scratch = tempfile::tempdir().unwrap();
    let context = scratch.path().join("context");
    let root = context.join("root");
    fs::create_dir_all(&root).unwrap();
    if kiln_testkit::peers::lacks(&["buildah"]) || !python(&root) {
        return;
    }
    fs::create_dir_all(root.join("app/site")).unwrap();
    let own = root.join("app/site/own.py");
    fs::write(&own, "VALUE = 'own'\n").unwrap();
    // buildah rounds times to whole seconds, up as well as down, and Python rounds down.
    Call::new("touch").args(["-d", "2024-05-06 07:08:09"]).arg(&own).run_ok().unwrap();
    fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY root /\n").unwrap();
    // As `pip install` leaves it.
    let compile = "import compileall; compileall.compile_dir('app/site', quiet=1)";
    let python = |code: &str| Call::new("/usr/bin/python3").args(["-c", code]).dir(&root);
    python(compile).env_remove("PYTHONDONTWRITEBYTECODE").run_ok().unwrap();
    let layout = scratch.path().join("layout");
    let buildah = Call::new("buildah")
        .arg("--root")
        .arg(scratch.path().join("storage"))
        .arg("--runroot")
        .arg(scratch.path().join("run"))
        .args(["--storage-driver", "vfs", "build", "-q", "--isolation", "chroot", "-t"])
        .arg(format!("oci:{}:image", layout.display()))
        .arg(&context)
        .env("TMPDIR", scratch.path());
    buildah.patience(std::time::Duration::from_secs(120)).run_ok().unwrap();
    let registry = Registry::start();
    registry.copy(&format!("oci:{}:image", layout.display()), "python:1", &[]);

    let world = world();
    let image = format!("{}/python:1", registry.host());
    let code = "import sys; sys.path.insert(0, '/app/site'); import own, json, email.message, \
                decimal; print('all', own.VALUE)";
    let compose = format!(
        "name: snake\nservices:\n  app:\n    image: {image}\n    restart: \"no\"\n    \
         command: [/usr/bin/python, -v, -c, \"{code}\"]\n"
    );
    let project = world.project("snake", &compose);
    // It ends at once, whatever `up` makes of that.
    world.kiln_in(&project, ["up", "--timeout", "20"]);
    let log = wait_until(PATIENCE, "what Python says", || {
        let log = world.kiln_in(&project, ["logs"]).stdout;
        log.contains("all own").then_some(log)
    });
    let valid = |module: &str| {
        let compiled = |line: &&str| line.contains("matches") && line.contains(module);
        log.lines().any(|line| compiled(&line))
    };
    for module in ["own.cpython", "json/__pycache__/decoder", "email/__pycache__/message"] {
        assert!(valid(module), "{module} was not valid: {log}");
    }
    for stale in ["bytecode is stale", "wrote "] {
        assert!(!log.contains(stale), "{log}");
    }
}
