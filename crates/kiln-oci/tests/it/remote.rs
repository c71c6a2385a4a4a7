//! Images that come from somewhere: layers side by side, each at most once.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Cursor, Read};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};

use kiln_core::Digest;
use kiln_oci::remote::{
    Begun, Fetched, Form, Moment, Remote, RemoteError, fetch, image_key, offers,
};
use kiln_oci::{Error, Limits};
use kiln_store::Store;
use serde_json::{Value, json};

use crate::kit::{Home, Layer, Layout, pattern};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A layout folder as if it were far away.
struct Folder {
    path: PathBuf,
    /// Layers that were asked for.
    asked: Mutex<Vec<Digest>>,
    /// What was there of them then.
    begun: Mutex<Vec<u64>>,
    /// Layers that break off in the middle.
    cut: BTreeSet<Digest>,
    /// Both of two askers are here before anything is given.
    together: Option<Barrier>,
}

impl Folder {
    fn of(layout: &Layout) -> Self {
        let (asked, begun, cut) = (Mutex::default(), Mutex::default(), BTreeSet::new());
        Self { path: layout.path.clone(), asked, begun, cut, together: None }
    }

    fn read(&self, digest: &Digest) -> Result<Vec<u8>, RemoteError> {
        let path = self.path.join("blobs/sha256").join(digest.hex());
        fs::read(path).map_err(|error| format!("{digest} is not there: {error}").into())
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

impl Remote for Folder {
    fn document(&self, _: Form, digest: &Digest, _: u64) -> Result<Vec<u8>, RemoteError> {
        if let Some(together) = &self.together {
            together.wait();
        }
        self.read(digest)
    }

    fn blob(
        &self,
        digest: &Digest,
        _: u64,
        begun: Begun,
    ) -> Result<Box<dyn Read + Send + '_>, RemoteError> {
        self.asked.lock().unwrap().push(*digest);
        self.begun.lock().unwrap().push(begun.bytes);
        let mut hasher = begun.hasher;
        let bytes = self.read(digest)?.split_off(usize::try_from(begun.bytes).unwrap());
        if self.cut.contains(digest) {
            let half = bytes.len() / 2;
            return Ok(Box::new(Cursor::new(bytes).take(half as u64).chain(Broken)));
        }
        hasher.update(&bytes);
        let wrong = hasher.finish() != *digest;
        let bytes = Cursor::new(bytes);
        if wrong { Ok(Box::new(bytes.chain(Broken))) } else { Ok(Box::new(bytes)) }
    }
}

/// The other end has gone.
struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::new(io::ErrorKind::ConnectionReset, "the line is dead"))
    }
}

fn digest_of(entry: &Value) -> (Digest, u64) {
    (entry["digest"].as_str().unwrap().parse().unwrap(), entry["size"].as_u64().unwrap())
}

fn get(store: &Store, folder: &Folder, manifest: &Value) -> Result<Fetched, Error> {
    let (digest, size) = digest_of(manifest);
    fetch(store, folder, &digest, size, &Limits::default(), &|_, _| {})
}

/// An image of plain layers.
fn image(layout: &Layout, layers: &[&[u8]]) -> Value {
    let diff_ids: Vec<Digest> = layers.iter().map(Digest::of).collect();
    let blobs: Vec<Value> = layers.iter().map(|layer| layout.blob(LAYER, layer)).collect();
    layout.manifest(json!({ "Env": ["A=b"] }), &diff_ids, &blobs)
}

/// Three layers that hide and replace one another.
fn three() -> [Vec<u8>; 3] {
    let lower = Layer::new().dir("a").file("a/x", "1").file("a/y", "2").hardlink("a/z", "a/x");
    let middle = Layer::new().file("a/.wh.x", "").dir("b").file("b/new", "3").symlink("l", "b");
    let upper = Layer::new().file("l/through", "4").file("b/.wh..wh..opq", "").file("c", "5");
    [lower.done(), middle.done(), upper.done()]
}

fn slices(layers: &[Vec<u8>]) -> Vec<&[u8]> {
    layers.iter().map(Vec::as_slice).collect()
}

#[test]
fn what_is_fetched_is_what_is_imported_however_it_is_packed() {
    let home = Home::new();
    let layout = Layout::new(&home, "far");
    let layers = three();
    let diff_ids: Vec<Digest> = layers.iter().map(Digest::of).collect();
    let gzip = |bytes: &[u8]| {
        let mut out = libdeflate(bytes);
        // What follows the compressed stream belongs to the blob.
        out.extend_from_slice(&[0; 10]);
        out
    };
    let docker = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    let blobs = [
        layout.blob(docker, &gzip(&layers[0])),
        layout.blob(&format!("{LAYER}+zstd"), &zstd::encode_all(&layers[1][..], 3).unwrap()),
        layout.blob(LAYER, &layers[2]),
    ];
    let manifest = layout.manifest(json!({ "Cmd": ["x"] }), &diff_ids, &blobs);
    layout.index(std::slice::from_ref(&manifest));
    let folder = Folder::of(&layout);
    let fetched = get(&home.store, &folder, &manifest).unwrap();
    assert_eq!((fetched.fetched, fetched.known), (3, 0));
    let expected = ["a", "a/y", "a/z", "b", "b/through", "c", "l"];
    assert_eq!(home.paths(&fetched.image), expected);
    let other = Home::new();
    let imported = kiln_oci::read(&layout.path, &kiln_oci::Selector::Any, &other.store).unwrap();
    assert_eq!(fetched.image, imported);
    // Times are the archive's.
    assert_eq!(home.tree(&fetched.image).get(b"c").unwrap().time, 99);
}

fn libdeflate(bytes: &[u8]) -> Vec<u8> {
    use std::process::{Command, Stdio};
    let mut gzip = Command::new("gzip")
        .arg("-nc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = gzip.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || io::Write::write_all(&mut stdin, &bytes).unwrap());
    let output = gzip.wait_with_output().unwrap();
    writer.join().unwrap();
    output.stdout
}

#[test]
fn a_layer_that_another_image_had_is_not_fetched_again() {
    let home = Home::new();
    let layout = Layout::new(&home, "far");
    let layers = three();
    let folder = Folder::of(&layout);
    let first = get(&home.store, &folder, &image(&layout, &slices(&layers[..2]))).unwrap();
    assert_eq!(folder.asked(), 2);
    let all = image(&layout, &slices(&layers));
    let second = get(&home.store, &folder, &all).unwrap();
    assert_eq!((second.fetched, second.known, folder.asked()), (1, 2, 3));
    assert!(first.listings.is_subset(&second.listings));
    // The image is the one that somebody has who fetched all of it.
    let other = Home::new();
    assert_eq!(get(&other.store, &folder, &all).unwrap().image, second.image);
    // A third that shows what all others hide fetches nothing.
    let shown = get(&home.store, &folder, &image(&layout, &slices(&layers[..1]))).unwrap();
    assert_eq!((shown.fetched, folder.asked()), (0, 6));
    // But if that was collected, the layer is asked for again.
    let hidden = Digest::of("1");
    fs::remove_file(home.store.object_path(&hidden)).unwrap();
    let again = get(&home.store, &folder, &image(&layout, &slices(&layers[..1]))).unwrap();
    assert_eq!((again.image, again.fetched, folder.asked()), (shown.image, 1, 7));
    assert!(home.store.contains(&hidden));
}

#[test]
fn collection_keeps_what_the_reference_names_and_the_layers_with_it() {
    let home = Home::new();
    let layout = Layout::new(&home, "far");
    let layers = three();
    let folder = Folder::of(&layout);
    let manifest = image(&layout, &slices(&layers));
    let fetched = get(&home.store, &folder, &manifest).unwrap();
    let mut kept = fetched.listings.clone();
    kept.extend([fetched.image.tree, fetched.image.config]);
    home.store.flush().unwrap();
    home.store.set_ref("images", "x", &kept).unwrap();
    home.store.gc(&BTreeSet::new(), false).unwrap();
    assert_eq!(get(&home.store, &folder, &manifest).unwrap().image, fetched.image);
    assert_eq!(folder.asked(), 3, "no layer was fetched again");
    assert!(home.store.fsck(false).unwrap().damage.is_empty());
    // Without the reference all of it goes.
    home.store.remove_ref("images", "x").unwrap();
    home.store.gc(&BTreeSet::new(), false).unwrap();
    assert_eq!(get(&home.store, &folder, &manifest).unwrap().fetched, 3);
}

#[test]
fn two_who_want_a_layer_at_once_fetch_it_once() {
    let home = Home::new();
    let layout = Layout::new(&home, "far");
    let large = Layer::new().file("large", &"x".repeat(3 << 20)).done();
    let own = [Layer::new().file("own", "1").done(), Layer::new().file("own", "2").done()];
    let images = own.each_ref().map(|own| image(&layout, &[&large, own]));
    let folder = Folder { together: Some(Barrier::new(2)), ..Folder::of(&layout) };
    std::thread::scope(|scope| {
        let threads = images
            .each_ref()
            .map(|image| scope.spawn(|| get(&home.store, &folder, image).unwrap()));
        for thread in threads {
            let fetched = thread.join().unwrap();
            assert_eq!(fetched.fetched + fetched.known, 2);
        }
    });
    assert_eq!(folder.asked(), 3);
}

#[test]
fn what_was_whole_when_another_layer_broke_is_kept() {
    let home = Home::new();
    let layout = Layout::new(&home, "far");
    let layers = [
        Layer::new().file("a", "1").done(),
        Layer::new().file("b", &String::from_utf8(pattern(2 << 20)).unwrap()).done(),
    ];
    let manifest = image(&layout, &slices(&layers));
    let mut folder = Folder::of(&layout);
    folder.cut.insert(Digest::of(&layers[1]));
    let error = get(&home.store, &folder, &manifest).unwrap_err();
    assert!(matches!(error, Error::Remote { .. }), "{error}");
    assert!(error.to_string().contains("the line is dead"), "{error}");
    assert_eq!(folder.asked(), 2);
    folder.cut.clear();
    let fetched = get(&home.store, &folder, &manifest).unwrap();
    assert_eq!((fetched.fetched, fetched.known, folder.asked()), (1, 1, 3));
    assert!(home.store.step_result(&image_key(&digest_of(&manifest).0)).is_none());
}

#[test]
fn a_layer_that_was_interrupted_goes_on_where_it_was() {
    let home = Home::new();
    let layout = Layout::new(&home, "far");
    let text = String::from_utf8(pattern(4 << 20)).unwrap();
    let layer = Layer::new().file("a", &text).done();
    let manifest = image(&layout, &[&layer]);
    let partial = home.store.root().join("cache/partial").join(Digest::of(&layer).hex());
    let mut folder = Folder::of(&layout);
    folder.cut.insert(Digest::of(&layer));
    let half = layer.len() as u64 / 2;
    let broken = |folder: &Folder| {
        let error = get(&home.store, folder, &manifest).unwrap_err();
        assert!(error.to_string().contains("the line is dead"), "{error}");
    };
    broken(&folder);
    assert_eq!(fs::metadata(&partial).unwrap().len(), half);
    broken(&folder);
    folder.cut.clear();
    let fetched = get(&home.store, &folder, &manifest).unwrap();
    let rest = layer.len() as u64 - half;
    assert_eq!(*folder.begun.lock().unwrap(), [0, half, half + rest / 2]);
    assert_eq!(fetched.bytes, rest - rest / 2, "only what came now counts");
    assert!(!partial.exists());
    let other = Home::new();
    assert_eq!(get(&other.store, &folder, &manifest).unwrap().image, fetched.image);

    // What was damaged since is not believed, and not the registry's fault: torn by a power cut, in
    // what was unpacked or in its padding; all of it there, but wrong; all of it, and right.
    let torn = |at: usize, length: usize| {
        let mut bytes = layer[..length].to_vec();
        bytes[at] ^= 1;
        bytes
    };
    let all = layer.len();
    let cases = [
        (torn(1000, 3 << 20), Some(0)),
        (torn(0, 3 << 20), Some(0)),
        (torn(all - 1, all), Some(0)),
        (layer.clone(), None),
    ];
    for (number, (bytes, asked)) in cases.into_iter().enumerate() {
        let home = Home::new();
        let path = home.store.root().join("cache/partial").join(Digest::of(&layer).hex());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        folder.begun.lock().unwrap().clear();
        let again = get(&home.store, &folder, &manifest).unwrap();
        assert_eq!(again.image, fetched.image, "case {number}");
        assert_eq!(folder.begun.lock().unwrap().last().copied(), asked, "case {number}");
        assert!(!path.exists(), "case {number}");
    }
}

#[test]
fn who_gives_up_gets_nothing() {
    let home = Home::new();
    let layout = Layout::new(&home, "far");
    let large = Layer::new().file("large", &"x".repeat(8 << 20)).done();
    let manifest = image(&layout, &[&large]);
    let folder = Folder::of(&layout);
    let cancel = AtomicBool::new(false);
    let limits = Limits { cancel: &cancel, ..Limits::default() };
    let (digest, size) = digest_of(&manifest);
    let told = |_: &_, moment: Moment| {
        if matches!(moment, Moment::Come(_)) {
            cancel.store(true, Ordering::Release);
        }
    };
    let error = fetch(&home.store, &folder, &digest, size, &limits, &told).unwrap_err();
    assert!(matches!(error, Error::Interrupted), "{error}");
    cancel.store(false, Ordering::Release);
    get(&home.store, &folder, &manifest).unwrap();
}

#[test]
fn what_is_wrong_is_refused_by_name() {
    let home = Home::new();
    let layout = Layout::new(&home, "far");
    let folder = Folder::of(&layout);
    let layer = Layer::new().file("a", "1").done();
    let diff = [Digest::of(&layer)];
    let of_type = |media_type: &str| {
        let blob = layout.blob(media_type, &layer);
        layout.manifest(json!({}), &diff, &[blob])
    };
    let fails = |manifest: &Value, expected: &str| {
        let error = get(&home.store, &folder, manifest).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} lacks {expected}");
    };
    let docker = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    for foreign in [docker, "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"] {
        fails(&of_type(foreign), "foreign layer");
    }
    fails(&of_type(&format!("{LAYER}+encrypted")), "+encrypted");
    fails(&of_type("application/vnd.in-toto+json"), "in-toto");
    assert_eq!(folder.asked(), 0, "nothing is fetched of such an image");
    // A configuration that says something else of its layer than it is.
    let blobs = [layout.blob(LAYER, &layer)];
    let lie = layout.manifest(json!({}), &[Digest::of("other")], &blobs);
    fails(&lie, "uncompressed, is not what it claims");
    // Also when the layer is known from an image that told the truth.
    get(&home.store, &folder, &layout.manifest(json!({}), &diff, &blobs)).unwrap();
    fails(&lie, "uncompressed, is not what it claims");
    fails(&layout.manifest(json!({}), &[], &blobs), "1 layers and 0 digests");
    // Nothing of a layer leads out of the tree.
    for hostile in [
        Layer::new().file("../out", "1").done(),
        Layer::new().hardlink("a", "../../etc/passwd").done(),
        Layer::new().file("a/.wh...", "").done(),
        Layer::new().hardlink("a", "nothing").done(),
    ] {
        let error = get(&home.store, &folder, &image(&layout, &[&hostile])).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{error}");
    }
    let rubbish = image(&layout, &[b"this is no tar at all"]);
    assert!(matches!(get(&home.store, &folder, &rubbish), Err(Error::Malformed { .. })));
}

#[test]
fn layers_are_bounded_together() {
    let home = Home::new();
    let layout = Layout::new(&home, "far");
    let layers = ["a", "b", "c"].map(|name| Layer::new().file(name, &name.repeat(1 << 20)).done());
    let manifest = image(&layout, &slices(&layers));
    let (digest, size) = digest_of(&manifest);
    let get = |unpacked: u64| {
        let home = Home::new();
        let limits = Limits { unpacked, ..Limits::default() };
        fetch(&home.store, &Folder::of(&layout), &digest, size, &limits, &|_, _| {})
    };
    assert!(matches!(get(2 << 20), Err(Error::TooMuch { .. })));
    get(4 << 20).unwrap();
}

/// A folder whose layers never end: behind what they are come zeros.
struct Endless {
    folder: Folder,
    given: Arc<AtomicU64>,
}

impl Remote for Endless {
    fn document(&self, form: Form, digest: &Digest, size: u64) -> Result<Vec<u8>, RemoteError> {
        self.folder.document(form, digest, size)
    }

    fn blob(
        &self,
        digest: &Digest,
        size: u64,
        begun: Begun,
    ) -> Result<Box<dyn Read + Send + '_>, RemoteError> {
        let blob = self.folder.blob(digest, size, begun)?.chain(io::repeat(0));
        Ok(Box::new(Counted(blob, Arc::clone(&self.given))))
    }
}

struct Counted<R>(R, Arc<AtomicU64>);

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(buffer)?;
        let before = self.1.fetch_add(read as u64, Ordering::Relaxed);
        assert!(before < 100 << 20, "it is read without end");
        Ok(read)
    }
}

#[test]
fn what_follows_a_layer_is_read_to_a_bound() {
    let home = Home::new();
    let layout = Layout::new(&home, "far");
    let layer = Layer::new().file("a", "1").done();
    let packed = libdeflate(&layer);
    let blob = layout.blob(&format!("{LAYER}+gzip"), &packed);
    let good = layout.manifest(json!({}), &[Digest::of(&layer)], &[blob]);
    let bad = image(&layout, &[b"this is no tar at all"]);
    let get = |manifest: &Value| {
        let (digest, size) = digest_of(manifest);
        let remote = Endless { folder: Folder::of(&layout), given: Arc::default() };
        fetch(&home.store, &remote, &digest, size, &Limits::default(), &|_, _| {}).unwrap_err()
    };
    let error = get(&good);
    assert!(matches!(error, Error::TooMuch { .. }), "{error}");
    assert!(error.to_string().contains("what follows the archive in layer"), "{error}");
    let error = get(&bad);
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
}

#[test]
fn layers_that_are_read_again_have_the_whole_bound_again() {
    let home = Home::new();
    let layout = Layout::new(&home, "far");
    let folder = Folder::of(&layout);
    let layers = ["a", "b"].map(|name| Layer::new().file(name, &name.repeat(1 << 20)).done());
    get(&home.store, &folder, &image(&layout, &slices(&layers[..1]))).unwrap();
    fs::remove_file(home.store.object_path(&Digest::of("a".repeat(1 << 20)))).unwrap();
    // The second layer is unpacked, and then both.
    let (digest, size) = digest_of(&image(&layout, &slices(&layers)));
    let limits = Limits { unpacked: 5 << 19, ..Limits::default() };
    let fetched = fetch(&home.store, &folder, &digest, size, &limits, &|_, _| {}).unwrap();
    assert_eq!((fetched.fetched, folder.asked()), (2, 4));
}

#[test]
fn a_listing_that_is_damaged_is_made_again() {
    let home = Home::new();
    let layout = Layout::new(&home, "far");
    let folder = Folder::of(&layout);
    let layers = three();
    let manifest = image(&layout, &slices(&layers));
    let first = get(&home.store, &folder, &manifest).unwrap();
    let diff = format!("diff {}", Digest::of(&layers[0]));
    let of_first = |listing: &&Digest| {
        home.store
            .get(listing)
            .is_ok_and(|text| text.windows(diff.len()).any(|w| w == diff.as_bytes()))
    };
    let listing = *first.listings.iter().find(of_first).unwrap();
    let path = home.store.object_path(&listing);
    let whole = fs::read(&path).unwrap();
    let damaged = |at: usize, to: u8| {
        let mut bytes = whole.clone();
        bytes[at] = to;
        // As a disk does it: nobody has written to the file.
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, &bytes).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    };
    // In its head; in the digest there; in an owner; in a line's end; no text any more.
    let digest = whole.windows(7).position(|part| part == b"sha256:").unwrap() + 10;
    let flipped = if whole[digest] == b'0' { b'1' } else { b'0' };
    let owner = whole.windows(5).rposition(|part| part == b"uid=0").unwrap() + 4;
    let (end, middle) = (whole.len() - 1, whole.len() / 2);
    for (at, to) in [(1, b'K'), (digest, flipped), (owner, b'7'), (end, b'x'), (middle, 255)] {
        damaged(at, to);
        let again = get(&home.store, &folder, &manifest).unwrap();
        assert_eq!(again.image, first.image, "byte {at}");
        assert_eq!(fs::read(&path).unwrap(), whole, "byte {at}");
        let asked = folder.asked();
        get(&home.store, &folder, &manifest).unwrap();
        assert_eq!(folder.asked(), asked, "byte {at}: once is enough");
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(get(&home.store, &folder, &manifest).unwrap().image, first.image);
    assert_eq!(fs::read(&path).unwrap(), whole);
}

#[test]
fn an_attribute_that_no_file_can_have_is_refused_with_its_path() {
    let home = Home::new();
    let layout = Layout::new(&home, "far");
    let folder = Folder::of(&layout);
    let with = |name: &str, length: usize| {
        let layer = Layer::new().pax(&[(&format!("SCHILY.xattr.{name}"), &vec![b'x'; length])]);
        image(&layout, &[&layer.file("opt/tool", "1").done()])
    };
    get(&home.store, &folder, &with("user.a", 65_535)).unwrap();
    // It is no part of an image at all.
    get(&home.store, &folder, &with("trusted.a", 65_536)).unwrap();
    let long = format!("user.{}", "n".repeat(251));
    for (name, length) in [("user.a", 65_536), (long.as_str(), 1)] {
        let error = get(&home.store, &folder, &with(name, length)).unwrap_err().to_string();
        assert!(error.contains("tar entry /opt/tool: its attribute `user."), "{error}");
        assert!(error.contains("build the image without it (`RUN setfattr -x user."), "{error}");
    }
}

#[test]
fn platforms_of_a_name() {
    let home = Home::new();
    let layout = Layout::new(&home, "far");
    let folder = Folder::of(&layout);
    let layer = Layer::new().file("a", "1").done();
    let own = image(&layout, &[&layer]);
    let with = |platform: Value| {
        let mut entry = own.clone();
        entry["platform"] = platform;
        entry
    };
    let index_type = "application/vnd.oci.image.index.v1+json";
    let index = |manifests: &[Value]| {
        let index = json!({ "schemaVersion": 2, "mediaType": index_type, "manifests": manifests,
                            "annotations": { "org.example.unknown": "kept" } });
        layout.blob(index_type, &serde_json::to_vec(&index).unwrap())
    };
    let found = |entry: &Value| -> Vec<String> {
        let (digest, size) = digest_of(entry);
        let bytes = folder.document(Form::Manifest, &digest, size).unwrap();
        let offers = offers(&folder, &digest, &bytes).unwrap();
        offers.iter().map(|offer| offer.platform.to_string()).collect()
    };
    // One image alone is for what its configuration says.
    assert_eq!(found(&own), ["linux/amd64"]);
    let mut attestation = with(json!({ "os": "unknown", "architecture": "unknown" }));
    attestation["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
    let nested = index(&[with(json!({ "os": "linux", "architecture": "riscv64" }))]);
    let all = index(&[
        with(json!({ "os": "linux", "architecture": "arm64", "variant": "v8" })),
        with(json!({ "os": "linux", "architecture": "arm", "variant": "v6" })),
        with(json!({ "os": "windows", "architecture": "amd64", "os.version": "10.0" })),
        attestation,
        own.clone(),
        with(json!({ "os": "linux", "architecture": "x86_64" })),
        nested,
    ]);
    assert_eq!(found(&all), ["linux/arm64", "linux/arm/v6", "linux/amd64", "linux/riscv64"]);
}
