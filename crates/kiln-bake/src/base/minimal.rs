//! Minimal bases: the named packages alone, unpacked and not configured.

use std::sync::Arc;

use kiln_core::Tree;
use kiln_core::tree::{Kind, Node};
use kiln_store::Store;

use super::accounts::Numbers;
use super::assemble::{assemble, put_file};
use super::error::{BaseError, tail};
use super::lock::LockedBase;
use super::progress::{Phase, Watch};
use super::unpack::unpack;
use crate::runner::{Around, StepRunner, StepSpec};

const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
    nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
const GROUP: &[u8] = b"root:x:0:\nnogroup:x:65534:\n";
const BUSYBOX: &[u8] = b"usr/bin/busybox";

/// The tree of a minimal base, whose package files are in the store.
pub(crate) fn minimal(
    store: &Store,
    name: &str,
    base: &LockedBase,
    runner: &dyn StepRunner,
    watch: Watch<'_>,
) -> Result<Tree, BaseError> {
    let mut packages = unpack(store, name, base, watch)?;
    let trees: Vec<_> = packages.iter().map(|package| package.tree.clone()).collect();
    let numbers = Numbers::new(store, base, &trees)?;
    let mut tree = assemble(base, &numbers, &mut packages)?;
    for package in &packages {
        // Where scanners look for packages of an image without a package manager.
        let path = format!("var/lib/dpkg/status.d/{}", package.locked.name);
        put_file(store, &mut tree, path.as_bytes(), package.control.text().as_bytes(), 0o644)?;
    }
    for (dir, mode) in [
        ("dev", 0o755),
        ("etc", 0o755),
        ("proc", 0o755),
        ("root", 0o700),
        ("run", 0o755),
        ("sys", 0o755),
        ("tmp", 0o1777),
        ("var/tmp", 0o1777),
    ] {
        if tree.get(dir.as_bytes()).is_none() {
            tree.insert(dir.as_bytes(), Node::new(Kind::Dir, mode));
        }
    }
    for (path, text) in [(b"etc/passwd".as_slice(), PASSWD), (b"etc/group", GROUP)] {
        if tree.get(path).is_none() {
            put_file(store, &mut tree, path, text, 0o644)?;
        }
    }
    if tree.get(BUSYBOX).is_some() {
        for applet in applets(store, name, &tree, runner, watch)? {
            let path = format!("usr/bin/{applet}");
            if tree.get(path.as_bytes()).is_none() {
                let link = Kind::Symlink { target: b"busybox".to_vec() };
                tree.insert(path.as_bytes(), Node::new(link, 0o777));
            }
        }
    }
    Ok(tree)
}

/// What the tree's own busybox says that it can do.
fn applets(
    store: &Store,
    name: &str,
    tree: &Tree,
    runner: &dyn StepRunner,
    watch: Watch<'_>,
) -> Result<Vec<String>, BaseError> {
    watch.step(name, Phase::Configure, (0, 1), "busybox")?;
    let lower = store.step_lower(&store.put_tree(tree)?)?;
    let scratch = store.scratch_dir()?;
    let spec = StepSpec {
        lower: lower.clone(),
        upper_dir: scratch.path().to_owned(),
        argv: vec!["/bin/busybox".into(), "--list".into()],
        env: vec!["PATH=/usr/bin".into()],
        cwd: "/".into(),
        user: "0:0".into(),
        network: false,
        hostname: "kiln".into(),
        mounts: Vec::new(),
        stdin: Vec::new(),
        rootful: false,
        stop: Arc::default(),
        around: Around::default(),
    };
    let mut output = Vec::new();
    let exit = runner
        .run(&spec, &mut |bytes| output.extend_from_slice(bytes))
        .map_err(|what| BaseError::Sandbox { base: name.to_owned(), what })?;
    watch.check()?;
    let text = String::from_utf8_lossy(&output);
    let names: Vec<String> = text
        .lines()
        .map(str::trim)
        .filter(|name| !name.is_empty() && *name != "busybox")
        .map(str::to_owned)
        .collect();
    let plain = |name: &String| !name.contains('/') && !name.contains(char::is_whitespace);
    if !exit.success() || !names.iter().all(plain) || !names.iter().any(|name| name == "sh") {
        return Err(BaseError::Script {
            base: name.to_owned(),
            what: "`busybox --list` did not list its applets".into(),
            log: tail(&text, 10),
        });
    }
    Ok(names)
}
