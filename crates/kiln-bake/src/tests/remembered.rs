//! Snapshots that the process remembers: taken again only when something changed, and always then.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use kiln_store::{Backing, Store};

use crate::context::Snapshot;
use crate::error::BakeError;
use crate::ignore::Ignore;

struct Place {
    dir: tempfile::TempDir,
    store: Store,
    ignore: Ignore,
}

impl Place {
    fn new(ignore: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("root")).unwrap();
        let ignore = Ignore::parse(ignore, Path::new("x")).unwrap();
        let place = Self { dir, store, ignore };
        for n in 0..30 {
            place.write(&format!("d{}/s/f{n}", n % 5), "same");
        }
        place.write("out/of", "it");
        symlink("d1", place.at("link")).unwrap();
        place
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join("app").join(path)
    }

    fn write(&self, path: &str, content: &str) {
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        fs::write(self.at(path), content).unwrap();
    }

    fn recall(&self) -> Arc<Snapshot> {
        self.try_recall(&AtomicBool::new(false)).unwrap()
    }

    fn try_recall(&self, cancel: &AtomicBool) -> Result<Arc<Snapshot>, BakeError> {
        Snapshot::recall(&self.store, &self.at(""), &self.ignore, cancel)
    }

    /// Takes snapshots until one is remembered.
    fn settled(&self) -> Arc<Snapshot> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let (one, two) = (self.recall(), self.recall());
            if Arc::ptr_eq(&one, &two) {
                return one;
            }
            assert!(Instant::now() < deadline, "it is never remembered");
        }
    }

    /// A snapshot that is right, whatever anybody remembers.
    fn fresh(&self) -> Snapshot {
        let other = self.dir.path().join("other");
        let store = Store::open_with(other, Some(Backing::Links)).unwrap();
        let snapshot = Snapshot::take(&store, &self.at(""), &self.ignore).unwrap();
        fs::remove_dir_all(self.dir.path().join("other")).unwrap();
        snapshot
    }
}

#[test]
fn every_kind_of_change_is_seen() {
    type Change = fn(&Place);
    let changes: [(&str, Change); 12] = [
        ("written in place", |p| p.write("d1/s/f1", "diff")),
        ("written, with its old time", |p| {
            let file = fs::File::options().write(true).open(p.at("d1/s/f6")).unwrap();
            let time = file.metadata().unwrap().modified().unwrap();
            fs::write(p.at("d1/s/f6"), "othe").unwrap();
            file.set_modified(time).unwrap();
        }),
        ("renamed over", |p| {
            p.write("new", "over");
            fs::rename(p.at("new"), p.at("d2/s/f2")).unwrap();
        }),
        ("a new file", |p| p.write("d3/s/new", "")),
        ("a new file in a new directory", |p| p.write("d3/t/u/new", "")),
        ("a new empty directory", |p| fs::create_dir(p.at("d4/empty")).unwrap()),
        ("removed", |p| fs::remove_file(p.at("d3/s/new")).unwrap()),
        ("made executable", |p| {
            fs::set_permissions(p.at("d0/s/f0"), Permissions::from_mode(0o755)).unwrap();
        }),
        ("a link that leads elsewhere", |p| {
            fs::remove_file(p.at("link")).unwrap();
            symlink("d2", p.at("link")).unwrap();
        }),
        ("a file became a directory", |p| {
            fs::remove_file(p.at("d0/s/f5")).unwrap();
            fs::create_dir(p.at("d0/s/f5")).unwrap();
        }),
        ("a directory was moved away", |p| fs::rename(p.at("d4"), p.at("moved")).unwrap()),
        ("taken back from what is left out", |p| p.write("out/in", "")),
    ];
    let place = Place::new("out/*\n!out/in");
    for (what, change) in changes {
        let before = place.settled();
        change(&place);
        let after = place.recall();
        assert_ne!(before.tree, after.tree, "{what}");
        assert_eq!(after.tree, place.fresh().tree, "{what}");
        assert_eq!(place.settled().tree, after.tree, "{what}");
    }
}

#[test]
fn what_is_left_out_may_change() {
    let place = Place::new("out");
    let before = place.settled();
    place.write("out/of", "other");
    place.write("out/new", "");
    assert!(Arc::ptr_eq(&before, &place.recall()));
}

#[test]
fn changes_within_a_tick_are_seen() {
    let place = Place::new("");
    for round in 0..20 {
        place.write("d1/s/f1", &format!("{round:04}"));
        let one = place.recall();
        place.write(if round % 2 == 0 { "d1/s/f1" } else { "d1/s/g" }, &format!("{round:03}x"));
        let two = place.recall();
        assert_ne!(one.tree, two.tree, "round {round}");
        assert_eq!(two.tree, place.fresh().tree, "round {round}");
        fs::remove_file(place.at("d1/s/g")).ok();
    }
}

#[test]
fn keys_are_of_the_content() {
    let (one, two) = (Place::new(""), Place::new(""));
    assert_eq!(one.recall().key(), two.recall().key());
    two.write("d1/s/f1", "diff");
    assert_ne!(one.recall().key(), two.recall().key());
}

#[test]
fn reading_a_context_can_be_given_up() {
    let place = Place::new("");
    let given_up = place.try_recall(&AtomicBool::new(true));
    assert!(matches!(given_up, Err(BakeError::Cancelled)), "{given_up:?}");
    assert_eq!(place.recall().tree, place.fresh().tree);
}
