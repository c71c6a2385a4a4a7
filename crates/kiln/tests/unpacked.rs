//! The tree of an image is the one that Podman and Docker unpack, of images that buildah and Docker
//! made: owners, modes, times, links, capabilities, whiteouts, opaque folders.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_testkit::peers::buildah::Driver;
use kiln_testkit::peers::{Buildah, Engine, Keep, Network, lacks};
use kiln_testkit::registry::Registry;
use kiln_testkit::{Call, World};

const PATIENCE: Duration = Duration::from_secs(120);

/// A root file system as a tar: what layers can have, and what the steps below change.
const ROOT: &str = r#"
set -e
mkdir -p bin etc dev/none tmp usr/sbin var/cache/old var/spool srv/deep/er opt/gone
cp "$BUSYBOX" bin/busybox; chmod 755 bin/busybox
printf root:x:0:0::/:/bin/sh > etc/passwd; printf one > etc/one; printf two > etc/two
ln etc/one etc/one-again; ln -s ../etc/one usr/link; ln -s /nowhere usr/dangling
printf x > var/cache/old/a; printf y > var/cache/b; printf z > srv/deep/er/file
printf gone > opt/gone/file; printf s > usr/sbin/suid; printf g > usr/sbin/sgid
printf cap > usr/sbin/ping; printf note > srv/note; mkfifo var/spool/pipe
chown 1000:1001 srv srv/deep; chown 33:33 var/cache/b; chmod 640 var/cache/b
chmod 4755 usr/sbin/suid; chmod 2711 usr/sbin/sgid; chmod 1777 tmp; chmod 700 srv/deep/er
setfattr -n user.note -v kept srv/note
setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 usr/sbin/ping
find . -exec touch -h -d '2019-03-04 05:06:07.89' {} +
touch -d '1969-06-01' etc/two
touch -d '2150-01-01' var/cache/b
tar --xattrs --xattrs-include='*' --format=posix --numeric-owner -cf "$OUT" .
"#;

/// What the layers on top do.
const DOCKERFILE: &str = r#"FROM rich
RUN ["/bin/busybox", "sh", "-c", "/bin/busybox rm /etc/two; /bin/busybox rm -r /var/cache; /bin/busybox mkdir /var/cache; echo new > /var/cache/new"]
RUN ["/bin/busybox", "sh", "-c", "/bin/busybox chown -R 7:8 /srv/deep; /bin/busybox ln /etc/passwd /etc/passwd-again; /bin/busybox rm /etc/one"]
RUN ["/bin/busybox", "sh", "-c", "/bin/busybox rm -r /opt/gone; echo file > /opt/gone; /bin/busybox mv /usr/link /usr/moved; /bin/busybox touch -d '2018-01-01 00:00:00' /srv/note"]
COPY more /more/
"#;

/// A world, a registry, and what an image is made of.
struct Place {
    world: World,
    registry: Registry,
    context: PathBuf,
    tar: PathBuf,
}

impl Place {
    fn new() -> Self {
        let world = World::new(common::KILN);
        let registry = Registry::start();
        let (root, context) = (world.home().join("rich"), world.home().join("context"));
        fs::create_dir_all(&root).unwrap();
        fs::create_dir_all(context.join("more")).unwrap();
        fs::write(context.join("Dockerfile"), DOCKERFILE).unwrap();
        fs::write(context.join("more/file"), "more").unwrap();
        let program = world.home().join("busybox");
        fs::write(&program, common::busybox()).unwrap();
        let tar = world.home().join("rich.tar");
        let made = Call::new("/bin/sh").args(["-c", ROOT]).dir(&root);
        made.env("BUSYBOX", &program).env("OUT", &tar).run_ok().unwrap();
        Self { world, registry, context, tar }
    }

    /// The tree of an image as Kiln has it.
    fn by_kiln(&self, name: &str) -> kiln_core::Tree {
        let image = format!("{}/{name}", self.registry.host());
        let compose = format!("name: tree\nservices:\n  a: {{ image: \"{image}\" }}\n");
        let project = self.world.project(&name.replace(':', "-"), &compose);
        let pulled = self.world.kiln_in(&project, ["pull", "--json"]).expect_done().json();
        let tree = pulled["images"][&image]["tree"].as_str().unwrap().to_owned();
        let hex = tree.trim_start_matches("sha256:");
        let object = self.world.root().join("objects").join(&hex[..2]).join(&hex[2..]);
        kiln_core::Tree::parse(&fs::read_to_string(object).unwrap()).unwrap()
    }

    /// As Podman unpacks it.
    fn by_podman(&self, name: &str) -> kiln_core::Tree {
        let home = self.world.home().join("podman");
        fs::create_dir_all(&home).unwrap();
        let podman = |words: &[&str]| {
            let mut call = Call::new("podman").patience(PATIENCE);
            for part in ["root", "runroot", "tmpdir"] {
                call = call.arg(format!("--{part}")).arg(home.join(part));
            }
            call = call.args(["--storage-driver", "vfs", "--events-backend", "none"]);
            call.args(["--cgroup-manager", "cgroupfs"]).args(words).env("TMPDIR", &home)
        };
        let image = format!("docker://{}/{name}", self.registry.host());
        let pulled = podman(&["pull", "-q", "--tls-verify=false", &image]).run_ok().unwrap();
        let id = pulled.stdout.trim().to_owned();
        let mounted = podman(&["image", "mount", &id]).run_ok().unwrap();
        let tree = listed(Path::new(mounted.stdout.trim()));
        podman(&["system", "reset", "--force"]).run_ok().unwrap();
        tree
    }
}

/// A folder as `docs/tree-digest.sh` lists it.
fn listed(dir: &Path) -> kiln_core::Tree {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/tree-digest.sh");
    let listing = Call::new(script).arg("-l").arg(dir).run_ok().unwrap();
    kiln_core::Tree::parse(&listing.stdout).unwrap()
}

/// Both trees, but for what the peer makes itself: `own` paths, and times of the folders in which it
/// makes them.
#[track_caller]
fn same(mut ours: kiln_core::Tree, mut theirs: kiln_core::Tree, own: &[&str], what: &str) {
    for tree in [&mut ours, &mut theirs] {
        for path in own {
            tree.remove(path.as_bytes());
            let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
            if let Some(node) = tree.entries.get_mut(parent.as_bytes()) {
                node.time = 1;
            }
        }
        // Of layers that do not have the root folder, podman makes one of 0555, Docker of 0755.
        let root = tree.entries.get_mut(&b""[..]).unwrap();
        (root.time, root.mode) = (1, 0o755);
    }
    let lines = |tree: &kiln_core::Tree| -> Vec<String> {
        tree.listing().lines().map(str::to_owned).collect()
    };
    let (ours, theirs) = (lines(&ours), lines(&theirs));
    let only = |a: &[String], b: &[String]| -> Vec<String> {
        a.iter().filter(|line| !b.contains(line)).cloned().collect()
    };
    let (here, there) = (only(&ours, &theirs), only(&theirs, &ours));
    assert!(here.is_empty() && there.is_empty(), "{what}\nKiln: {here:#?}\npeer: {there:#?}");
}

/// What there has to be in the tree, whoever unpacks it.
fn is_rich(tree: &kiln_core::Tree) {
    let node = |path: &str| tree.get(path.as_bytes()).unwrap_or_else(|| panic!("no {path}"));
    for gone in ["etc/two", "etc/one", "var/cache/b", "var/cache/old", "opt/gone/file", "usr/link"]
    {
        assert!(tree.get(gone.as_bytes()).is_none(), "{gone} is still there");
    }
    assert_eq!(node("usr/sbin/suid").mode, 0o4755);
    assert_eq!(node("usr/sbin/suid").time, 1_551_675_967);
    assert_eq!(node("srv/note").time, 1_514_764_800);
    assert_eq!(node("srv/deep/er/file").uid, 7);
    assert_eq!(node("srv/deep/er/file").time, 1_551_675_967, "chown changes no time");
    assert!(node("usr/sbin/ping").xattrs.contains_key(&b"security.capability"[..]));
}

#[test]
fn images_of_buildah_are_what_podman_unpacks() {
    if lacks(&["buildah", "podman", "getfattr", "skopeo"]) {
        return;
    }
    let place = Place::new();
    let buildah = Buildah::start(Driver::Vfs, Keep::InMemory).unwrap();
    buildah.import(&place.tar, "rich", &[]).unwrap();
    let build = ["build", "--quiet", "--layers", "--tag", "built"];
    buildah.buildah(&build).arg(&place.context).patience(PATIENCE).run_ok().unwrap();
    let saved = place.world.home().join("built.tar");
    buildah.save("built", &saved).unwrap();
    drop(buildah);
    let source = format!("docker-archive:{}", saved.display());
    let zstd = ["--format", "oci", "--dest-compress-format", "zstd"];
    for (name, options) in [("gzip:1", &["--format", "v2s2"][..]), ("zstd:1", &zstd[..])] {
        place.registry.copy(&source, name, options);
        let ours = place.by_kiln(name);
        is_rich(&ours);
        assert_eq!(
            ours.get(b"srv/note").unwrap().xattrs[&b"user.note"[..]],
            b"kept",
            "{name}: an attribute"
        );
        same(ours, place.by_podman(name), &[], name);
    }
}

#[test]
fn images_of_docker_are_what_docker_and_podman_unpack() {
    if lacks(&["dockerd", "docker", "podman", "getfattr", "skopeo"]) {
        return;
    }
    let place = Place::new();
    let engine = Engine::start(Network::None, Keep::InMemory).unwrap();
    engine.import(&place.tar, "rich", &[]).unwrap();
    for (name, kit) in [("classic:1", "0"), ("buildkit:1", "1")] {
        let build = engine.docker(&["build", "--quiet", "--network", "none", "--tag", name]);
        let build = build.arg(&place.context).env("DOCKER_BUILDKIT", kit).patience(PATIENCE);
        build.run_ok().unwrap();
        let (saved, exported) =
            (place.world.home().join("saved.tar"), place.world.home().join("exported.tar"));
        engine.save(name, &saved).unwrap();
        engine.export(name, &exported).unwrap();
        let source = format!("docker-archive:{}", saved.display());
        place.registry.copy(&source, name, &["--format", "v2s2"]);
        let ours = place.by_kiln(name);
        is_rich(&ours);
        same(ours.clone(), place.by_podman(name), &[], &format!("{name}, by podman"));

        let dir = place.world.home().join(name.replace(':', "-unpacked-"));
        fs::create_dir(&dir).unwrap();
        let flags = ["--delay-directory-restore", "--numeric-owner", "--same-owner", "-p"];
        let tar = Call::new("tar").args(flags).args(["--xattrs", "--xattrs-include=*", "-C"]);
        tar.arg(&dir).arg("-xf").arg(&exported).run_ok().unwrap();
        let own = [
            ".dockerenv",
            "dev/console",
            "dev/pts",
            "dev/shm",
            "etc/hostname",
            "etc/hosts",
            "etc/mtab",
            "etc/resolv.conf",
            "proc",
            "sys",
        ];
        // Docker exports capabilities, and no other attribute.
        let mut bare = ours;
        for node in bare.entries.values_mut() {
            node.xattrs.retain(|name, _| !name.starts_with(b"user."));
        }
        same(bare, listed(&dir), &own, &format!("{name}, by Docker"));
    }
}
