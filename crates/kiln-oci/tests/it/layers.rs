//! Layers as other builders make them.

use std::fs;

use kiln_core::Digest;
use kiln_core::tree::Kind;
use kiln_oci::{Error, Selector};
use serde_json::json;

use crate::kit::{Home, Layer, Layout};

fn paths(layers: Vec<Vec<u8>>) -> Vec<String> {
    let home = Home::new();
    Layout::new(&home, "in").image(&layers);
    let image = home.read("in").unwrap();
    home.paths(&image)
}

#[test]
fn whiteouts_hide_what_lower_layers_have() {
    let lower = Layer::new().file("a/x", "1").file("a/y", "1").file("b/z", "1").done();
    let upper = Layer::new().file("a/.wh.x", "").file(".wh.b", "").file("gone/.wh.none", "").done();
    assert_eq!(paths(vec![lower, upper]), ["a", "a/y"]);
}

#[test]
fn a_whiteout_spares_its_own_layer_in_either_order() {
    let lower = || Layer::new().file("a/old", "1").file("a/b/old", "1").done();
    let after = Layer::new().file("a/b/new", "2").file(".wh.a", "").done();
    let before = Layer::new().file(".wh.a", "").file("a/b/new", "2").done();
    for upper in [after, before] {
        assert_eq!(paths(vec![lower(), upper]), ["a", "a/b", "a/b/new"]);
    }
}

#[test]
fn an_opaque_directory_spares_its_own_layer_in_either_order() {
    let lower = || Layer::new().file("a/old", "1").file("a/b/old", "1").done();
    let after = Layer::new().dir("a").file("a/new", "2").file("a/.wh..wh..opq", "").done();
    let before = Layer::new().dir("a").file("a/.wh..wh..opq", "").file("a/new", "2").done();
    for upper in [after, before] {
        assert_eq!(paths(vec![lower(), upper]), ["a", "a/new"]);
    }
}

#[test]
fn a_file_replaces_a_directory_and_the_other_way_round() {
    let lower = Layer::new().file("a/x", "1").file("b", "1").done();
    let upper = Layer::new().file("a", "2").file("b/y", "2").done();
    // A parent that is a file in the way is nobody's layer.
    let home = Home::new();
    Layout::new(&home, "bad").image(&[lower.clone(), upper]);
    assert!(matches!(home.read("bad"), Err(Error::Malformed { .. })));
    let upper = Layer::new().file("a", "2").dir("b").file("b/y", "2").done();
    assert_eq!(paths(vec![lower, upper]), ["a", "b", "b/y"]);
}

#[test]
fn links_in_parents_are_followed_inside() {
    let lower = Layer::new().dir("usr/lib").symlink("lib", "usr/lib").symlink("abs", "/usr/lib");
    let lower = lower.symlink("up", "../../../usr").done();
    let upper = Layer::new().file("lib/x", "1").file("abs/y", "1").file("up/lib/z", "1").done();
    let expected = ["abs", "lib", "up", "usr", "usr/lib", "usr/lib/x", "usr/lib/y", "usr/lib/z"];
    assert_eq!(paths(vec![lower, upper]), expected);
}

#[test]
fn a_directory_over_a_link_replaces_it() {
    let lower = Layer::new().dir("usr/lib").symlink("lib", "usr/lib").done();
    let upper = Layer::new().dir("lib").file("lib/x", "1").done();
    assert_eq!(paths(vec![lower, upper]), ["lib", "lib/x", "usr", "usr/lib"]);
}

#[test]
fn hard_links_keep_their_file_when_its_first_name_goes() {
    let home = Home::new();
    let lower = Layer::new().file("a", "one").hardlink("b", "a").hardlink("./c", "/b").done();
    let upper = Layer::new().file("a", "two").done();
    Layout::new(&home, "in").image(&[lower, upper]);
    let image = home.read("in").unwrap();
    let tree = home.tree(&image);
    let file = |content: &str| home.file(content.as_bytes());
    assert_eq!(tree.get(b"a").unwrap().kind, file("two"));
    assert_eq!(tree.get(b"b").unwrap().kind, file("one"));
    assert_eq!(tree.get(b"c").unwrap().kind, Kind::Hardlink { to: b"b".to_vec() });
}

#[test]
fn pax_and_gnu_extensions_are_understood() {
    let home = Home::new();
    let long = "d/".repeat(120) + "file";
    let layer = Layer::new()
        .pax(&[
            ("path", long.as_bytes()),
            ("uid", b"3000000"),
            ("SCHILY.xattr.user.a", b"1\n2"),
            ("SCHILY.xattr.security.selinux", b"x"),
        ])
        .file("short", "content")
        .entry(b'L', b"././@LongLink", b"", b"gnu/long\0")
        .file("cut", "gnu")
        .entry(
            b'g',
            b"pax_global_header",
            b"",
            b"52 comment=0123456789012345678901234567890123456789\n",
        )
        .entry(b'\0', b"old/", b"", b"")
        .done();
    Layout::new(&home, "in").image(&[layer]);
    let tree = home.tree(&home.read("in").unwrap());
    let node = tree.get(long.as_bytes()).unwrap();
    assert_eq!(node.uid, 3_000_000);
    assert_eq!(node.xattrs, [(b"user.a".to_vec(), b"1\n2".to_vec())].into());
    assert_eq!(tree.get(b"gnu/long").unwrap().size(), 3);
    assert!(tree.get(b"old").unwrap().is_dir());
    assert!(tree.get(b"short").is_none() && tree.get(b"cut").is_none());
}

#[test]
fn an_archive_of_older_docker_is_read() {
    let home = Home::new();
    let layers = [
        Layer::new().file("a", "1").file("b", "1").done(),
        Layer::new().file(".wh.b", "").file("c", "1").done(),
    ];
    let diff_ids: Vec<Digest> = layers.iter().map(Digest::of).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "docker_version": "20.10",
        "config": { "Env": null, "Cmd": ["/a"], "Volumes": null, "User": "", "Labels": null,
                    "Hostname": "x", "ExposedPorts": { "80/tcp": {} } },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = config.to_string();
    let name = format!("{}.json", Digest::of(&config).hex());
    let manifest = json!([{ "Config": name, "RepoTags": ["app:latest"],
                            "Layers": ["one/layer.tar", "two/layer.tar"] }]);
    let archive = Layer::new()
        .entry(b'0', name.as_bytes(), b"", config.as_bytes())
        .entry(b'0', b"zero/layer.tar", b"", &layers[0])
        .symlink("one/layer.tar", "../zero/layer.tar")
        .entry(b'0', b"two/layer.tar", b"", &layers[1])
        .file("manifest.json", &manifest.to_string())
        .done();
    fs::write(home.path("in.tar"), archive).unwrap();
    let image = home.read("in.tar").unwrap();
    assert_eq!(home.paths(&image), ["a", "c"]);
    let config = home.store.get_config(&image.config).unwrap();
    assert_eq!(config.cmd, Some(vec!["/a".to_owned()]));
    assert_eq!(config.exposed_ports, ["80/tcp".to_owned()].into());
    assert_eq!((config.user, config.env.len()), (None, 0));
    let by = |selector: &Selector| kiln_oci::read(&home.path("in.tar"), selector, &home.store);
    assert_eq!(by(&Selector::Name("app".into())).unwrap(), image);
    assert!(matches!(by(&Selector::Name("other".into())), Err(Error::Select(_))));
}

#[test]
fn the_image_is_chosen_by_name_digest_or_platform() {
    let home = Home::new();
    let layout = Layout::new(&home, "in");
    let mut manifests = Vec::new();
    for (name, os, architecture) in [
        ("one", "linux", std::env::consts::ARCH),
        ("two", "linux", "sparc"),
        ("att", "unknown", "unknown"),
    ] {
        let architecture = if architecture == "x86_64" { "amd64" } else { architecture };
        let architecture = if architecture == "aarch64" { "arm64" } else { architecture };
        let layer = Layer::new().file(name, "").done();
        let descriptor = layout.blob("application/vnd.oci.image.layer.v1.tar", &layer);
        let mut manifest = layout.manifest(json!({}), &[Digest::of(&layer)], &[descriptor]);
        manifest["platform"] = json!({ "os": os, "architecture": architecture });
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        manifests.push(manifest);
    }
    layout.index(&manifests);
    let by = |selector: Selector| {
        let image = kiln_oci::read(&layout.path, &selector, &home.store);
        image.map(|image| home.paths(&image).join(" "))
    };
    assert_eq!(by(Selector::Any).unwrap(), "one", "the one for this machine");
    assert_eq!(by(Selector::Name("two".into())).unwrap(), "two");
    let digest = manifests[1]["digest"].as_str().unwrap().parse().unwrap();
    assert_eq!(by(Selector::Digest(digest)).unwrap(), "two");
    assert!(by(Selector::Name("three".into())).is_err());
    // The same in an index of its own, as builders for several platforms write it.
    let inner = json!({ "schemaVersion": 2, "manifests": manifests });
    let index_type = "application/vnd.oci.image.index.v1+json";
    let mut inner = layout.blob(index_type, inner.to_string().as_bytes());
    inner["annotations"] = json!({ "org.opencontainers.image.ref.name": "all" });
    layout.index(&[inner]);
    assert_eq!(by(Selector::Name("all".into())).unwrap(), "one");
}
