//! Other tools read what Kiln writes, and Kiln reads what they write.

use std::fs;
use std::process::Command;

use kiln_core::{ImageConfig, ImageId};
use kiln_oci::{Compression, Format};
use kiln_testkit::peers::lacks;
use serde_json::Value;

use crate::kit::{self, Home};
use crate::script::{digest, listing, said};

fn image(home: &Home, odd: bool) -> ImageId {
    home.image(&kit::everything(home, odd), &kit::full_config())
}

/// skopeo, without asking anybody about signatures. Its scratch files stay with the test.
fn skopeo(home: &Home) -> Command {
    let mut command = Command::new("skopeo");
    command.arg("--insecure-policy").env("TMPDIR", home.dir.path());
    command
}

/// `oci:PATH:app`, or an archive in the words of skopeo.
fn place(home: &Home, transport: &str, name: &str) -> String {
    let name_there = if transport == "docker-archive" { "kiln-test-app:latest" } else { "app" };
    format!("{transport}:{}:{name_there}", home.path(name).display())
}

#[test]
fn skopeo_understands_what_is_written() {
    if lacks(&["skopeo"]) {
        return;
    }
    let home = Home::new();
    let image = image(&home, true);
    let exported = home.layout("oci", image, Compression::Zstd);
    home.archive("oci-archive", image, Format::OciArchive);
    home.archive("docker-archive", image, Format::DockerArchive);
    for transport in ["oci", "oci-archive", "docker-archive"] {
        let from = place(&home, transport, transport);
        let said = said(skopeo(&home).arg("inspect").arg(&from));
        let inspected: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(inspected["Architecture"], "amd64", "{transport}");
        assert_eq!(inspected["Created"], "2020-01-01T00:00:00Z", "{transport}");
        assert_eq!(inspected["Labels"]["a"], "1", "{transport}");
        assert_eq!(inspected["Env"][0], "PATH=/usr/bin", "{transport}");
        assert_eq!(inspected["Layers"].as_array().unwrap().len(), 1, "{transport}");
        if transport == "oci" {
            assert_eq!(inspected["Digest"], exported.manifest.to_string());
        }
    }
}

/// The image as skopeo translates it from Docker's form to OCI's, which has no such members.
fn without_dockers_own(home: &Home, image: ImageId) -> ImageId {
    let config = ImageConfig {
        // Go leaves out what is empty.
        cmd: None,
        healthcheck: None,
        shell: None,
        on_build: Vec::new(),
        ..home.store.get_config(&image.config).unwrap()
    };
    home.image(&home.tree(&image), &config)
}

#[test]
fn what_skopeo_copies_is_the_same_image() {
    if lacks(&["skopeo"]) {
        return;
    }
    let home = Home::new();
    let image = image(&home, true);
    home.layout("oci", image, Compression::Gzip);
    home.archive("docker-archive", image, Format::DockerArchive);
    for from in ["oci", "docker-archive"] {
        for to in ["oci", "oci-archive", "docker-archive", "dir"] {
            let name = format!("{from}-to-{to}");
            let target = match to {
                "dir" => format!("dir:{}", home.path(&name).display()),
                to => place(&home, to, &name),
            };
            said(skopeo(&home).arg("copy").arg(place(&home, from, from)).arg(&target));
            if to != "dir" {
                let lossy = from == "docker-archive" && to.starts_with("oci");
                let expected = if lossy { without_dockers_own(&home, image) } else { image };
                assert_eq!(home.read(&name).unwrap(), expected, "{name}");
            }
        }
    }
}

#[test]
fn umoci_unpacks_the_same_tree() {
    if lacks(&["umoci", "getfattr"]) {
        return;
    }
    let home = Home::new();
    let image = image(&home, true);
    home.layout("oci", image, Compression::Gzip);
    let bundle = home.path("bundle");
    let from = format!("{}:app", home.path("oci").display());
    said(Command::new("umoci").args(["unpack", "--image", &from]).arg(&bundle));
    assert_eq!(digest(&bundle.join("rootfs")), image.tree.to_string());
    // A second layer on top, by umoci, is read back as its own unpacking has it.
    fs::write(bundle.join("rootfs/srv/new"), "new").unwrap();
    fs::remove_file(bundle.join("rootfs/srv/a-b")).unwrap();
    fs::remove_dir_all(bundle.join("rootfs/srv/a")).unwrap();
    said(Command::new("umoci").args(["repack", "--image", &from]).arg(&bundle));
    let again = home.path("again");
    said(Command::new("umoci").args(["unpack", "--image", &from]).arg(&again));
    let read = home.read("oci").unwrap();
    assert_ne!(read.tree, image.tree);
    assert_eq!(digest(&again.join("rootfs")), read.tree.to_string());
}

/// podman with a storage of its own, which is gone with the test.
struct Podman<'a>(&'a Home);

impl Podman<'_> {
    fn command(&self) -> Command {
        let mut command = Command::new("podman");
        command.arg("--root").arg(self.0.path("storage"));
        command.arg("--runroot").arg(self.0.path("runroot"));
        command.arg("--tmpdir").arg(self.0.path("libpod"));
        command.args(["--storage-driver", "vfs", "--events-backend", "none"]);
        command.args(["--cgroup-manager", "cgroupfs"]);
        command.env("TMPDIR", self.0.dir.path());
        command
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        // Layers of others' owners and mounts of its own: podman takes both away.
        let _ = self.command().args(["system", "reset", "--force"]).output();
    }
}

#[test]
fn podman_loads_mounts_and_saves_the_same_tree() {
    if lacks(&["podman", "getfattr"]) {
        return;
    }
    let home = Home::new();
    let podman = Podman(&home);
    let image = image(&home, true);
    for format in [Format::OciArchive, Format::DockerArchive] {
        let name = format!("{}.tar", format.word());
        let exported = home.archive(&name, image, format);
        said(podman.command().args(["load", "-q", "-i"]).arg(home.path(&name)));
        let id = exported.id.hex();
        let mounted = said(podman.command().args(["image", "mount", &id]));
        // The root folder is podman's own, and has the time at which it was made.
        let mut found = kiln_core::Tree::parse(&listing(mounted.as_ref())).unwrap();
        found.entries.get_mut(&b""[..]).unwrap().time = kiln_store::EPOCH;
        assert_eq!(found.listing(), home.tree(&image).listing(), "{name}");
        said(podman.command().args(["image", "unmount", &id]));
        for saved in ["oci-archive", "docker-archive"] {
            let back = format!("{}-{saved}.tar", format.word());
            let save = ["save", "-q", "--format", saved, "-o"];
            said(podman.command().args(save).arg(home.path(&back)).arg(&id));
            assert_eq!(home.read(&back).unwrap(), image, "{back}");
        }
        said(podman.command().args(["image", "rm", "-f", &id]));
    }
}

#[test]
fn buildah_builds_on_it_and_kiln_reads_the_result() {
    if lacks(&["buildah", "podman"]) {
        return;
    }
    let home = Home::new();
    let podman = Podman(&home);
    let image = home.image(&kit::everything(&home, false), &ImageConfig::default());
    home.layout("oci", image, Compression::Gzip);
    let context = home.path("context");
    fs::create_dir(&context).unwrap();
    let buildah = |verb: &str| {
        let mut command = Command::new("buildah");
        command.arg("--root").arg(home.path("storage")).arg("--runroot").arg(home.path("runroot"));
        command.args(["--storage-driver", "vfs", verb, "-q"]).env("TMPDIR", home.dir.path());
        // It makes a name of the path, which then may have no capitals.
        command.current_dir(home.dir.path());
        command
    };
    let id = said(buildah("pull").arg("oci:oci:app"));
    let dockerfile = format!("FROM {id}\nCOPY note /srv/note\nENV A=b\n");
    fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    fs::write(context.join("note"), "note").unwrap();
    said(buildah("build").args(["--isolation", "chroot", "-t", "oci:built:built"]).arg(&context));
    drop(podman);
    let built = home.read("built").unwrap();
    let mut expected = home.tree(&image);
    let note = kiln_core::tree::Node::new(home.file(b"note"), 0o644);
    expected.insert(b"srv/note", note);
    let found = home.tree(&built);
    // The file of its context has its own time, the folder that of the build.
    for path in [&b"srv"[..], b"srv/note"] {
        expected.entries.get_mut(path).unwrap().time = found.get(path).unwrap().time;
        assert_ne!(found.get(path).unwrap().time, kiln_store::EPOCH);
    }
    assert_eq!(found.listing(), expected.listing());
    let config = home.store.get_config(&built.config).unwrap();
    assert_eq!(config.env_get("A"), Some("b"));
}
