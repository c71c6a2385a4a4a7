//! What is damaged or meant to do harm is refused, and said.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;

use kiln_core::Digest;
use kiln_oci::{Compression, Error};
use serde_json::{Value, json};

use crate::kit::{self, Home, Layer, Layout};

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// Reads an image of this one layer, which is a lie in itself.
#[track_caller]
fn refused(layer: Vec<u8>, says: &str) {
    let home = Home::new();
    Layout::new(&home, "in").image(&[layer]);
    let error = home.read("in").expect_err("it was accepted").to_string();
    assert!(error.contains(says), "`{error}` does not say `{says}`");
}

#[test]
fn paths_that_lead_out() {
    refused(Layer::new().file("../x", "").done(), "`..`");
    refused(Layer::new().file("a/../../x", "").done(), "`..`");
    refused(Layer::new().file("a", "").hardlink("b", "../../etc/passwd").done(), "`..`");
    refused(Layer::new().pax(&[("path", b"a\0b")]).file("x", "").done(), "cannot be read");
    refused(Layer::new().file("a/.wh..", "").done(), "names no file");
    refused(Layer::new().file("a/.wh...", "").done(), "names no file");
}

#[test]
fn a_link_out_of_the_tree_leads_nowhere_else() {
    let home = Home::new();
    let outside = home.path("outside");
    fs::create_dir(&outside).unwrap();
    let layer =
        Layer::new().symlink("out", outside.to_str().unwrap()).file("out/x", "inside").done();
    Layout::new(&home, "in").image(&[layer]);
    let image = home.read("in").unwrap();
    let inside = format!("{}/x", outside.to_str().unwrap().trim_start_matches('/'));
    assert!(home.tree(&image).get(inside.as_bytes()).is_some());
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn links_that_go_round() {
    let layer = Layer::new().symlink("a", "b").symlink("b", "a").file("a/x", "").done();
    refused(layer, "too many links");
    refused(Layer::new().hardlink("a", "b").done(), "not there");
    refused(Layer::new().dir("d").hardlink("a", "d").done(), "a directory");
}

#[test]
fn entries_that_are_no_entries() {
    refused(Layer::new().entry(b'Z', b"a", b"", b"").done(), "unknown");
    let holes = [("GNU.sparse.major", &b"9"[..]), ("GNU.sparse.realsize", b"5")];
    refused(Layer::new().pax(&holes).file("a", "").done(), "sparse");
    refused(Layer::new().file("", "x").done(), "no directory");
    refused(Layer::new().entry(b'2', b"a", b"", b"").done(), "nothing");
    let mut torn = Layer::new().file("a", &"x".repeat(5000)).done();
    torn.truncate(2048);
    refused(torn, "ends in the middle");
    let mut broken = Layer::new().file("a", "x").done();
    broken[0] = b'b';
    refused(broken, "checksum");
    refused(b"this is no archive at all".repeat(100), "checksum");
}

/// A file that is one hole costs nothing to write down, and its size counts.
#[test]
fn holes_are_read_and_counted() {
    let home = Home::new();
    let hole = |size: &'static [u8]| {
        let keys = [("GNU.sparse.size", size), ("GNU.sparse.map", b"0,3")];
        Layer::new().pax(&keys).file("a", "abc").done()
    };
    Layout::new(&home, "in").image(&[hole(b"100")]);
    let tree = home.tree(&home.read("in").unwrap());
    assert_eq!(tree.get(b"a").unwrap().size(), 100);
    Layout::new(&home, "large").image(&[hole(b"99999999")]);
    let error = home.read_bounded("large", 1 << 20).unwrap_err();
    assert!(matches!(error, Error::TooMuch { .. }), "{error}");
}

#[test]
fn huge_headers() {
    let large = vec![b'x'; 2 << 20];
    refused(Layer::new().entry(b'L', b"long", b"", &large).file("a", "").done(), "1 MiB");
    refused(Layer::new().entry(b'x', b"pax", b"", &large).file("a", "").done(), "1 MiB");
    let long = vec![b'x'; 5000];
    refused(Layer::new().pax(&[("path", &long)]).file("a", "").done(), "no file name");
    refused(
        Layer::new().pax(&[("size", b"99999999999999999999")]).file("a", "").done(),
        "cannot be read",
    );
    let most = u64::MAX.to_string();
    refused(Layer::new().pax(&[("size", most.as_bytes())]).file("a", "").done(), "size");
    refused(Layer::new().pax(&[("uid", b"4294967296")]).file("a", "").done(), "4294967296");
}

/// A layout with one compressed layer; what it promises is up to the test.
fn packed(home: &Home, how: Compression, plain: &[u8]) -> (Layout, Value, Digest) {
    let layout = Layout::new(home, "in");
    let mut compressor = kiln_oci::compress::Compressor::new(Vec::new(), how, 1);
    compressor.write_all(plain).unwrap();
    let blob = layout.blob(TAR, &compressor.finish().unwrap());
    (layout, blob, Digest::of(plain))
}

#[test]
fn bombs() {
    let home = Home::new();
    let size = 16_u64 << 20;
    for how in [Compression::Gzip, Compression::Zstd] {
        let bomb = Layer::new().file("a", &"\0".repeat(size as usize)).done();
        let (layout, blob, diff_id) = packed(&home, how, &bomb);
        layout.index(&[layout.manifest(json!({}), &[diff_id], &[blob])]);
        let error = home.read_bounded("in", size / 2).unwrap_err();
        assert!(matches!(error, Error::TooMuch { .. }), "{error}");
        home.read_bounded("in", size * 2).unwrap();
        // After the end of the archive counts as well.
        let mut tail = Layer::new().done();
        tail.resize(size as usize, 0);
        let (layout, blob, diff_id) = packed(&home, how, &tail);
        layout.index(&[layout.manifest(json!({}), &[diff_id], &[blob])]);
        let error = home.read_bounded("in", size / 2).unwrap_err();
        assert!(matches!(error, Error::TooMuch { .. }), "{error}");
    }
}

#[test]
fn digests_that_do_not_fit() {
    let home = Home::new();
    let layer = Layer::new().file("a", "x").done();
    for how in [Compression::Gzip, Compression::Zstd, Compression::None] {
        let (layout, blob, diff_id) = packed(&home, how, &layer);
        let mismatch = |blob: &Value, diff_id: Digest, what: &str| {
            layout.index(&[layout.manifest(json!({}), &[diff_id], std::slice::from_ref(blob))]);
            let error = home.read("in").unwrap_err();
            let told = matches!(error, Error::Mismatch { .. } | Error::Malformed { .. });
            assert!(told, "{what}: {error}");
        };
        mismatch(&blob, Digest::of("else"), "another layer than the configuration says");
        let mut short = blob.clone();
        short["size"] = json!(blob["size"].as_u64().unwrap() - 1);
        mismatch(&short, diff_id, "a longer layer than the manifest says");
        let mut long = blob.clone();
        long["size"] = json!(blob["size"].as_u64().unwrap() + 1);
        mismatch(&long, diff_id, "a shorter layer than the manifest says");
        let name = blob["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
        let path = layout.path.join("blobs/sha256").join(name);
        let mut content = fs::read(&path).unwrap();
        content.push(0);
        fs::write(&path, content).unwrap();
        mismatch(&blob, diff_id, "a changed layer");
    }
}

#[test]
fn manifests_that_do_not_fit() {
    let home = Home::new();
    let layout = Layout::new(&home, "in");
    let layer = Layer::new().file("a", "x").done();
    let blob = layout.blob(TAR, &layer);
    let manifest = layout.manifest(json!({}), &[Digest::of(&layer)], std::slice::from_ref(&blob));
    let says = |what: &str| {
        let error = home.read("in").expect_err("it was accepted").to_string();
        assert!(error.contains(what), "`{error}` does not say `{what}`");
    };
    let read = |manifest: &Value| {
        let name = manifest["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
        let path = layout.path.join("blobs/sha256").join(name);
        serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap()
    };
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let with = |key: &str, value: Value| {
        let mut changed = read(&manifest);
        changed[key] = value;
        layout.index(&[layout.blob(manifest_type, changed.to_string().as_bytes())]);
    };
    with("manifests", json!([]));
    says("neither a manifest nor an index");
    with("schemaVersion", json!(1));
    says("schemaVersion");
    with("layers", json!([]));
    says("0 layers");
    with("layers", json!(vec![blob; 5000]));
    says("5000 layers");
    with(
        "config",
        json!({ "mediaType": "application/vnd.oci.empty.v1+json",
        "digest": Digest::of("{}"), "size": 2 }),
    );
    says("no image");
    let huge = layout.blob(manifest_type, &vec![b' '; 5 << 20]);
    layout.index(&[huge]);
    says("4 MiB");
    let mut changed = manifest.clone();
    changed["digest"] = json!(Digest::of("not there"));
    layout.index(&[changed]);
    says("it has no `blobs/sha256/");
    let mut wrong = read(&manifest);
    wrong["annotations"] = json!({});
    let name = manifest["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
    fs::write(layout.path.join("blobs/sha256").join(name), wrong.to_string()).unwrap();
    layout.index(std::slice::from_ref(&manifest));
    says("is not what it claims");
}

#[test]
fn indexes_that_lie_in_one_another() {
    let home = Home::new();
    let layout = Layout::new(&home, "in");
    let index_type = "application/vnd.oci.image.index.v1+json";
    let mut inner = layout.blob(index_type, br#"{"schemaVersion":2,"manifests":[]}"#);
    for _ in 0..20 {
        let index = json!({ "schemaVersion": 2, "manifests": [inner] });
        inner = layout.blob(index_type, index.to_string().as_bytes());
    }
    layout.index(&[inner]);
    assert!(matches!(home.read("in"), Err(Error::TooMuch { .. })));
    // One that names itself cannot have the digest that it names.
    let own = Digest::of("own");
    let index = json!({ "schemaVersion": 2, "manifests":
        [{ "mediaType": index_type, "digest": own, "size": 10 }] });
    fs::write(layout.path.join("blobs/sha256").join(own.hex()), index.to_string()).unwrap();
    fs::write(layout.path.join("index.json"), index.to_string()).unwrap();
    assert!(matches!(home.read("in"), Err(Error::Mismatch { .. })));
}

#[test]
fn a_layout_whose_files_lead_out() {
    let home = Home::new();
    let layout = Layout::new(&home, "in");
    layout.image(&[Layer::new().file("a", "x").done()]);
    let outside = home.path("outside.json");
    fs::rename(layout.path.join("index.json"), &outside).unwrap();
    symlink(&outside, layout.path.join("index.json")).unwrap();
    home.read("in").expect_err("a link out of the folder was followed");
    // One that stays inside is how some builders save copies.
    fs::rename(&outside, layout.path.join("real.json")).unwrap();
    fs::remove_file(layout.path.join("index.json")).unwrap();
    symlink("real.json", layout.path.join("index.json")).unwrap();
    home.read("in").unwrap();
}

#[test]
fn what_is_no_image_at_all() {
    let home = Home::new();
    fs::create_dir(home.path("empty")).unwrap();
    fs::write(home.path("text"), "hello").unwrap();
    fs::write(home.path("nothing"), "").unwrap();
    fs::write(home.path("other.tar"), Layer::new().file("a", "x").done()).unwrap();
    for name in ["empty", "text", "nothing", "other.tar", "missing"] {
        home.read(name).expect_err(name);
    }
}

#[test]
fn a_damaged_store_is_not_exported() {
    let home = Home::new();
    let image = home.image(&kit::everything(&home, false), &kit::full_config());
    let digest = Digest::of(b"key = value\n");
    fs::write(home.store.object_path(&digest), b"key = other\n").unwrap();
    fs::create_dir(home.path("out")).unwrap();
    let dir = fs::File::open(home.path("out")).unwrap().into();
    let items = [kit::item("app", image)];
    let error =
        kiln_oci::to_layout(&home.store, &items, Compression::None, &dir, None, &kit::GO_ON)
            .unwrap_err();
    assert!(error.to_string().contains("is damaged"), "{error}");
    assert!(!home.path("out/index.json").exists());
    let left = kit::files(&home.path("out"));
    assert!(left.is_empty(), "{:?}", left.keys());
}
