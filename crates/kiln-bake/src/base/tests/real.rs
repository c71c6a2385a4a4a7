//! Bases of real packages, from the machine's own mirror.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;

use kiln_core::compose::Base;
use kiln_core::tree::Kind;
use kiln_core::{ImageId, Tree};
use kiln_store::Store;

use super::runner::Chroot;
use crate::base::accounts::{Accounts, text_of};
use crate::base::configure::configure;
use crate::base::{Lock, LockedBase, Watch, bake_base, rebake_base, resolve};

static NEVER: AtomicBool = AtomicBool::new(false);

fn watch() -> Watch<'static> {
    Watch { progress: &|progress| eprintln!("{progress:?}"), cancel: &NEVER }
}

fn base(packages: &[&str], minimal: bool) -> Base {
    let packages = packages.iter().map(|name| (*name).to_owned()).collect();
    Base { debian: "bookworm".into(), packages, minimal }
}

fn bake(store: &Store, lock: &Lock, name: &str) -> ImageId {
    bake_base(store, name, &lock.bases[name], &Chroot, watch())
        .unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// One test for all, so that they share a store: packages are downloaded and decoded once.
#[test]
fn real_packages() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let bases = BTreeMap::from([
        ("python".to_owned(), base(&["python3-minimal"], false)),
        ("redis".to_owned(), base(&["redis-server", "dbus"], false)),
        ("tiny".to_owned(), base(&["busybox-static"], true)),
    ]);
    let lock = resolve(&store, &bases, None, false, &Chroot, watch())
        .unwrap_or_else(|error| panic!("{error}"));
    assert!(lock.is_current(&bases));
    assert_eq!(Lock::parse(&lock.text()).unwrap(), lock);

    foretold_accounts_are_the_learned_ones(&store, &lock);
    images_are_whole(&store, &lock);
    another_store_and_order_give_the_same_digests(&store, &lock);
}

fn is_file(tree: &Tree, path: &str) -> bool {
    matches!(tree.get(path.as_bytes()).map(|node| &node.kind), Some(Kind::File { .. }))
}

/// python3-minimal makes no users, so none had to be learned by a bake.
fn foretold_accounts_are_the_learned_ones(store: &Store, lock: &Lock) {
    let locked = &lock.bases["python"];
    let open = LockedBase { users: Vec::new(), groups: Vec::new(), ..locked.clone() };
    let natural = configure(store, "python", &open, &Chroot, watch()).unwrap();
    let learned = Accounts::learn(store, &natural.tree).unwrap();
    assert_eq!((learned.users, learned.groups), (locked.users.clone(), locked.groups.clone()));
    assert!(is_file(&natural.tree, "usr/bin/python3.11"));
    let compiled = natural.tree.entries.keys().filter(|path| path.ends_with(b".pyc")).count();
    assert!(compiled > 100, "only {compiled} compiled modules");
}

fn images_are_whole(store: &Store, lock: &Lock) {
    let tree = |name: &str| store.get_tree(&bake(store, lock, name).tree).unwrap();
    let redis = tree("redis");
    let config = redis.get(b"etc/redis/redis.conf").unwrap();
    let user = &lock.bases["redis"].users.iter().find(|line| line.starts_with("redis:")).unwrap();
    let id: u32 = user.split(':').nth(2).unwrap().parse().unwrap();
    assert_eq!((config.uid, config.mode), (id, 0o640));
    let log = redis.get(b"var/log/redis").unwrap();
    assert_eq!(log.uid, id);
    for gone in ["usr/sbin/policy-rc.d", "var/lib/dpkg/kiln", "var/lib/dpkg/status-old"] {
        assert!(redis.get(gone.as_bytes()).is_none(), "{gone}");
    }
    let status = text_of(store, &redis, b"var/lib/dpkg/status").unwrap();
    assert_eq!(
        status.matches("Status: install ok installed").count(),
        lock.bases["redis"].unpack.len()
    );

    let tiny = tree("tiny");
    let link = Kind::Symlink { target: b"busybox".to_vec() };
    assert_eq!(tiny.get(b"usr/bin/sh").unwrap().kind, link);
    assert!(is_file(&tiny, "usr/bin/busybox") && tiny.entries.len() < 500);
}

/// Baked from nothing, and with two packages that make users configured the other way round: the
/// digests are the same, because the numbers are the lock's.
fn another_store_and_order_give_the_same_digests(store: &Store, lock: &Lock) {
    let mut turned = lock.clone();
    let configure = &mut turned.bases.get_mut("redis").unwrap().configure;
    let place = |name: &str| configure.iter().position(|each| each == name).unwrap();
    let (redis, dbus) = (place("redis-tools"), place("dbus-system-bus-common"));
    configure.swap(redis, dbus);
    let dir = tempfile::tempdir().unwrap();
    let other = Store::open(dir.path()).unwrap();
    for name in ["redis", "tiny"] {
        assert_eq!(bake(&other, &turned, name), bake(store, lock, name), "{name}");
    }
}

/// Larger bases, for a look by hand: `KILN_TEST_PACKAGES="a,b c"` bakes `a,b` and `c`.
#[test]
#[ignore = "takes minutes; `cargo test -p kiln-bake larger -- --ignored --nocapture`"]
fn larger_bases_bake_twice_the_same() {
    let wanted = std::env::var("KILN_TEST_PACKAGES")
        .unwrap_or_else(|_| "postgresql-15 nginx gcc,libc6-dev ca-certificates,curl".into());
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let mut differing = BTreeSet::new();
    for names in wanted.split(' ') {
        let packages: Vec<&str> = names.split(',').collect();
        let bases = BTreeMap::from([(names.to_owned(), base(&packages, false))]);
        let lock = resolve(&store, &bases, None, false, &Chroot, watch())
            .unwrap_or_else(|error| panic!("{names}: {error}"));
        let one = bake(&store, &lock, names);
        let two = rebake_base(&store, names, &lock.bases[names], &Chroot, watch()).unwrap();
        let lines = |image: ImageId| {
            let text = String::from_utf8(store.get(&image.tree).unwrap()).unwrap();
            text.lines().map(str::to_owned).collect::<BTreeSet<_>>()
        };
        differing.extend(lines(one).symmetric_difference(&lines(two)).cloned());
        eprintln!("baked {names}: {}", one.tree);
    }
    assert!(differing.is_empty(), "{differing:#?}");
}
