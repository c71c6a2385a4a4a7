//! Bases of real packages, from the machine's own mirror.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use kiln_core::Tree;
use kiln_core::compose::Base;
use kiln_store::Store;

use super::runner::Chroot;
use crate::base::sources::HostApt;
use crate::base::{BaseError, Lock, Watch, bake_base, rebake_base, resolve};

static NEVER: AtomicBool = AtomicBool::new(false);

fn quiet() -> Watch<'static> {
    Watch { progress: &|_| (), cancel: &NEVER }
}

fn base(packages: &[&str]) -> Base {
    Base {
        debian: "bookworm".into(),
        packages: packages.iter().map(|name| (*name).to_owned()).collect(),
        minimal: false,
    }
}

#[test]
fn probe() {
    let names = std::env::var("BASE_PROBE").unwrap_or_default();
    if names.is_empty() {
        return;
    }
    let root = std::env::var("BASE_ROOT").unwrap();
    let store = Store::open(&root).unwrap();
    let start = std::time::Instant::now();
    let last = std::sync::Mutex::new(String::new());
    let tell = |progress: &crate::base::Progress| {
        let now = format!("{} {:?}", progress.base, progress.phase);
        let mut last = last.lock().unwrap();
        if *last != now || progress.phase == crate::base::Phase::Warning || (std::env::var("BASE_ALL").is_ok() && progress.phase==crate::base::Phase::Configure) {
            eprintln!(
                "{:6.2} {now} {}/{} {}",
                start.elapsed().as_secs_f64(),
                progress.done,
                progress.total,
                progress.detail
            );
            *last = now;
        }
    };
    let watch = Watch { progress: &tell, cancel: &NEVER };
    let list: Vec<&str> = names.split(',').collect();
    let bases = BTreeMap::from([(
        "probe".to_owned(),
        Base { minimal: std::env::var("BASE_MINIMAL").is_ok(), ..base(&list) },
    )]);
    let lock =
        resolve(&store, &bases, None, false, &Chroot, watch).unwrap_or_else(|e| panic!("{e}"));
    eprintln!("{:6.2} resolved", start.elapsed().as_secs_f64());
    lock.save(&std::path::Path::new(&root).join("kiln.lock")).unwrap();
    let one = bake_base(&store, "probe", &lock.bases["probe"], &Chroot, watch).unwrap();
    eprintln!("{:6.2} baked {one:?}", start.elapsed().as_secs_f64());
    let two = rebake_base(&store, "probe", &lock.bases["probe"], &Chroot, watch).unwrap();
    eprintln!("{:6.2} baked {two:?}", start.elapsed().as_secs_f64());
    let text =
        |image: kiln_core::ImageId| String::from_utf8(store.get(&image.tree).unwrap()).unwrap();
    std::fs::write(format!("{root}/one"), text(one)).unwrap();
    std::fs::write(format!("{root}/two"), text(two)).unwrap();
    assert_eq!(one, two);
}
