//! Resolving and fetching against a mirror on loopback: what is right, and what can go wrong.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use kiln_core::compose::Base;
use kiln_store::Store;

use super::mirror::{Mirror, host, package};
use crate::base::image::bake_from;
use crate::base::resolve::resolve_from;
use crate::base::{BaseError, Lock, REF_KIND, Watch};
use crate::runner::{StepExit, StepRunner, StepSpec};

static NEVER: AtomicBool = AtomicBool::new(false);

fn quiet() -> Watch<'static> {
    Watch { progress: &|_| (), cancel: &NEVER }
}

/// Nothing in a minimal base is run.
struct Nobody;

impl StepRunner for Nobody {
    fn run(&self, _: &StepSpec, _: &mut dyn FnMut(&[u8])) -> Result<StepExit, String> {
        Err("nothing should be run".into())
    }
}

fn bases(packages: &[&str]) -> BTreeMap<String, Base> {
    let packages = packages.iter().map(|name| (*name).to_owned()).collect();
    BTreeMap::from([("tiny".to_owned(), Base { debian: "test".into(), packages, minimal: true })])
}

struct World {
    _dir: tempfile::TempDir,
    store: Store,
    mirror: Mirror,
}

impl World {
    fn new(packages: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let packages: Vec<_> =
            packages.iter().map(|(name, version)| package(name, version)).collect();
        Self { _dir: dir, store, mirror: Mirror::new(&packages) }
    }

    fn lock(&self, packages: &[&str], old: Option<&Lock>, update: bool) -> Result<Lock, BaseError> {
        let ask = || Ok(self.mirror.host());
        resolve_from(&self.store, &bases(packages), old, update, &Nobody, quiet(), &ask)
    }

    /// Bakes `lock` in a store of its own, with `port` as the mirror's.
    fn bake_elsewhere(&self, lock: &Lock, port: Option<u16>) -> Result<(), BaseError> {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let ask = || Ok(port.map_or_else(|| self.mirror.host(), host));
        bake_from(&store, "tiny", &lock.bases["tiny"], &Nobody, quiet(), &ask).map(|_| ())
    }
}

#[test]
fn locks_fetches_and_bakes_without_asking_again() {
    let world = World::new(&[("one", "1:2.0~a+b"), ("two", "3"), ("three", "4")]);
    let lock = world.lock(&["one", "two"], None, false).unwrap();
    let base = &lock.bases["tiny"];
    let names: Vec<String> = base.unpack.iter().map(|each| each.label()).collect();
    assert_eq!(names, ["one 1:2.0~a+b", "two 3"]);
    assert_eq!(base.unpack[0].filename, format!("pool/+{}.deb", &base.unpack[0].sha256.hex()[..8]));
    assert!(world.store.contains(&base.unpack[1].sha256));
    let key = (REF_KIND.to_owned(), base.digest().hex());
    assert_eq!(world.store.refs().unwrap()[&key].len(), 2);

    let asked = world.mirror.questions();
    let nobody = || -> Result<_, BaseError> { panic!("apt is not needed") };
    let bake = || bake_from(&world.store, "tiny", base, &Nobody, quiet(), &nobody).unwrap();
    let image = bake();
    assert_eq!(bake(), image);
    let tree = world.store.get_tree(&image.tree).unwrap();
    assert!(tree.get(b"usr/share/one").is_some() && tree.get(b"usr/share/three").is_none());
    assert_eq!(tree.get(b"tmp").unwrap().mode, 0o1777);
    assert!(tree.get(b"etc/passwd").is_some() && tree.get(b"proc").is_some());
    assert!(tree.get(b"var/lib/dpkg/status.d/two").is_some());
    assert_eq!(world.mirror.questions(), asked);
}

#[test]
fn keeps_what_is_locked_until_an_update_is_asked_for() {
    let world = World::new(&[("one", "1")]);
    let first = world.lock(&["one"], None, false).unwrap();
    world.mirror.publish(&[package("one", "2"), package("two", "1")]);
    let again = world.lock(&["one"], Some(&first), false).unwrap();
    assert_eq!(again, first);
    let newer = world.lock(&["one"], Some(&first), true).unwrap();
    assert_eq!(newer.bases["tiny"].unpack[0].version, "2");
    // A base that the file has otherwise is resolved, though nobody asked for an update.
    let other = world.lock(&["two"], Some(&newer), false).unwrap();
    assert_eq!(other.bases["tiny"].unpack[0].name, "two");
}

#[test]
fn stale_lists_are_brought_anew_when_a_file_is_gone() {
    let world = World::new(&[("one", "1"), ("two", "1")]);
    world.lock(&["two"], None, false).unwrap();
    world.mirror.publish(&[package("one", "2")]);
    let lock = world.lock(&["one"], None, false).unwrap();
    assert_eq!(lock.bases["tiny"].unpack[0].version, "2");
}

#[test]
fn names_a_package_that_does_not_exist() {
    let world = World::new(&[("one", "1")]);
    let error = world.lock(&["one", "nosuch"], None, false).unwrap_err();
    assert_eq!(error.to_string(), "base `tiny`: there is no package `nosuch` in `test`");
    assert!(error.is_usage() && error.hint().is_some());
}

#[test]
fn names_a_suite_that_the_host_does_not_have() {
    let world = World::new(&[]);
    let mut wanted = bases(&["one"]);
    wanted.get_mut("tiny").unwrap().debian = "elsewhere".into();
    let ask = || Ok(world.mirror.host());
    let error =
        resolve_from(&world.store, &wanted, None, false, &Nobody, quiet(), &ask).unwrap_err();
    assert!(error.to_string().contains("`elsewhere`") && error.to_string().contains("found: test"));
}

#[test]
fn package_that_left_the_mirror() {
    let world = World::new(&[("one", "1")]);
    let lock = world.lock(&["one"], None, false).unwrap();
    world.mirror.withdraw();
    let error = world.bake_elsewhere(&lock, None).unwrap_err();
    assert!(matches!(error, BaseError::PackageGone { .. }), "{error}");
    assert!(error.to_string().contains("one 1") && error.hint().unwrap().contains("lock --update"));
}

#[test]
fn mirror_that_serves_something_else() {
    let world = World::new(&[("one", "1")]);
    let lock = world.lock(&["one"], None, false).unwrap();
    world.mirror.corrupt();
    let error = world.bake_elsewhere(&lock, None).unwrap_err();
    let BaseError::WrongHash { package, expected, found } = &error else { panic!("{error}") };
    assert_eq!((package.as_str(), *expected), ("one 1", lock.bases["tiny"].unpack[0].sha256));
    assert!(found.starts_with("sha256:") && *found != expected.to_string(), "{found}");
}

#[test]
fn mirror_that_is_down() {
    let world = World::new(&[("one", "1")]);
    let lock = world.lock(&["one"], None, false).unwrap();
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = world.bake_elsewhere(&lock, Some(port)).unwrap_err();
    assert!(matches!(error, BaseError::MirrorDown { .. }), "{error}");
    let ask = || Ok(host(port));
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let error = resolve_from(&store, &bases(&["one"]), None, false, &Nobody, quiet(), &ask)
        .unwrap_err()
        .to_string();
    assert!(error.contains("apt-get update") && error.contains(&port.to_string()), "{error}");
}

#[test]
fn stops_when_the_user_wants() {
    let world = World::new(&[("one", "1")]);
    let cancel = AtomicBool::new(true);
    let watch = Watch { progress: &|_| (), cancel: &cancel };
    let ask = || Ok(world.mirror.host());
    let found = resolve_from(&world.store, &bases(&["one"]), None, false, &Nobody, watch, &ask);
    assert!(matches!(found, Err(BaseError::Cancelled)));
}
