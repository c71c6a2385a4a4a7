//! What a pull takes of memory, however large the image is.

use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;
use std::process::Command;

use kiln_core::Digest;
use kiln_oci::Limits;
use kiln_oci::remote::{Begun, Form, Remote, RemoteError, fetch};
use kiln_store::Store;
use serde_json::json;

use crate::kit::{Home, Layer, Layout};

/// Where the process of its own finds a folder with `root` and `far`, and what it is to fetch.
const PULL: &str = "KILN_TEST_PULL";

/// A layout folder, as a stream.
struct Streamed(PathBuf);

impl Remote for Streamed {
    fn document(&self, _: Form, digest: &Digest, _: u64) -> Result<Vec<u8>, RemoteError> {
        Ok(fs::read(self.0.join(digest.hex()))?)
    }

    fn blob(
        &self,
        digest: &Digest,
        _: u64,
        _: Begun,
    ) -> Result<Box<dyn Read + Send + '_>, RemoteError> {
        Ok(Box::new(File::open(self.0.join(digest.hex()))?))
    }
}

/// The most memory that this process has had, in KiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn one_that_is_started() {
    let Ok(told) = std::env::var(PULL) else { return };
    let words: Vec<&str> = told.split(' ').collect();
    let dir = PathBuf::from(words[0]);
    let store = Store::open(dir.join("root")).unwrap();
    let remote = Streamed(dir.join("far/blobs/sha256"));
    let (manifest, size) = (words[1].parse().unwrap(), words[2].parse().unwrap());
    let before = peak();
    let fetched = fetch(&store, &remote, &manifest, size, &Limits::default(), &|_, _| {}).unwrap();
    let entries = store.get_tree(&fetched.image.tree).unwrap().entries.len();
    fs::write(dir.join("took"), format!("{before} {} {entries}", peak())).unwrap();
}

#[test]
fn a_layer_of_many_entries_takes_little_memory() {
    let home = Home::new();
    let layout = Layout::new(&home, "far");
    let mut layer = Layer::new();
    for nth in 0..100_000 {
        let (folder, file) = (nth / 50, nth % 50);
        layer = layer.file(&format!("usr/share/doc/package-{folder}/changelog-{file}.gz"), "x");
    }
    let layer = layer.done();
    let blob = layout.blob("application/vnd.oci.image.layer.v1.tar", &layer);
    let manifest = layout.manifest(json!({}), &[Digest::of(&layer)], &[blob]);
    let told = format!(
        "{} {} {}",
        home.dir.path().display(),
        manifest["digest"].as_str().unwrap(),
        manifest["size"]
    );
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "size::one_that_is_started"]).env(PULL, told);
    let output = command.output().unwrap();
    let took = fs::read_to_string(home.path("took"));
    let took = took.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stdout)));
    let numbers: Vec<u64> = took.split(' ').map(|number| number.parse().unwrap()).collect();
    eprintln!("KiB before, at most, and entries: {took}");
    assert!(numbers[2] > 100_000);
    assert!(numbers[1] - numbers[0] < 48 << 10, "{took}");
}
