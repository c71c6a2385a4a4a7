//! `/var/lib/dpkg` as dpkg leaves it after unpacking: everything `unpacked`, nothing configured.
//!
//! Source of the formats: dpkg 1.21, `lib/dpkg/dump.c`, `lib/dpkg/triglib.c`, deb-triggers(5).

use std::collections::{BTreeMap, BTreeSet};

use kiln_core::Tree;
use kiln_core::tree::{Kind, Node};
use kiln_store::Store;

use super::accounts::text_of;
use super::assemble::{Unpacked, put_file};
use super::deb::MD5;
use super::error::BaseError;
use super::lock::LockedBase;

const ADMIN: &str = "var/lib/dpkg";
/// Control archives of packages with a preinst script, each in a directory of its own as dpkg
/// unpacks it before running the script. Only there while a base is configured.
pub(crate) const STAGING: &str = "var/lib/dpkg/kiln";

/// Writes the database of `packages` into `tree`.
pub(crate) fn write(
    store: &Store,
    base: &LockedBase,
    packages: &[Unpacked],
    tree: &mut Tree,
) -> Result<(), BaseError> {
    for dir in ["alternatives", "info", "parts", "triggers", "updates"] {
        tree.insert(format!("{ADMIN}/{dir}").as_bytes(), Node::new(Kind::Dir, 0o755));
    }
    let mut status = String::new();
    let mut triggers = Triggers::default();
    for package in packages {
        status.push_str(&paragraph(package));
        status.push('\n');
        info(store, package, tree)?;
        triggers.add(store, package)?;
    }
    let mut put = |name: &str, text: &str| {
        put_file(store, tree, format!("{ADMIN}/{name}").as_bytes(), text.as_bytes(), 0o644)
    };
    put("status", &status)?;
    put("statoverride", "")?;
    put("info/format", "1\n")?;
    put("diversions", &diversions(base))?;
    triggers.write(&mut put)
}

/// The `diversions` file: three lines each.
pub(crate) fn diversions(base: &LockedBase) -> String {
    let lines = base.diversions.iter().map(|line| line.replace(' ', "\n") + "\n");
    lines.collect()
}

/// The lock's form of a `diversions` file.
pub(crate) fn read_diversions(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    lines.chunks_exact(3).map(|three| three.join(" ")).collect()
}

/// Packages that are not `installed` in the `status` file of a configured tree, with their state.
pub(crate) fn unfinished(status: &str, base: &LockedBase) -> Vec<String> {
    let states: BTreeMap<String, String> = super::control::parse(status)
        .into_iter()
        .filter_map(|each| Some((each.get("Package")?.into(), each.get("Status")?.into())))
        .collect();
    base.unpack
        .iter()
        .filter_map(|package| match states.get(&package.name).map(String::as_str) {
            Some("install ok installed") => None,
            Some(state) => Some(format!("{}: {state}", package.name)),
            None => Some(format!("{}: not known to dpkg", package.name)),
        })
        .collect()
}

fn paragraph(package: &Unpacked) -> String {
    let mut out = String::new();
    let mut control = package.control.clone();
    control.fields.retain(|(name, _)| !["Status", "Conffiles"].contains(&name.as_str()));
    let at = control.fields.iter().position(|(name, _)| name == "Package").map_or(0, |at| at + 1);
    control.fields.insert(at, ("Status".into(), "install ok unpacked".into()));
    let mut conffiles = String::new();
    for (path, node) in &package.tree.entries {
        if let (Some(path), Some(md5)) = (path.strip_prefix(b"data"), node.xattrs.get(MD5)) {
            let (path, md5) = (String::from_utf8_lossy(path), String::from_utf8_lossy(md5));
            conffiles.push_str(&format!("\n {path} {md5}"));
        }
    }
    if !conffiles.is_empty() {
        control.fields.push(("Conffiles".into(), conffiles));
    }
    out.push_str(&control.text());
    out
}

/// `info/NAME.*`: the control archive without `control`, and the list of paths.
fn info(store: &Store, package: &Unpacked, tree: &mut Tree) -> Result<(), BaseError> {
    let name = package.info_name();
    let staged = package.tree.get(b"control/preinst").is_some();
    for (path, node) in package.tree.children(b"control") {
        let file = &path[b"control/".len()..];
        if staged {
            let at = [format!("{STAGING}/{name}/").as_bytes(), file].concat();
            tree.insert(&at, Node::new(node.kind.clone(), node.mode));
        }
        if file != b"control" {
            let at = [format!("{ADMIN}/info/{name}.").as_bytes(), file].concat();
            tree.insert(&at, Node::new(node.kind.clone(), node.mode));
        }
    }
    // A file that another package took over is no longer in the list; directories are shared.
    let own: BTreeSet<&[u8]> = package.paths.iter().map(Vec::as_slice).collect();
    let mut list = b"/.\n".to_vec();
    for (path, node) in &package.tree.entries {
        let Some(raw) = path.strip_prefix(b"data/") else { continue };
        if node.is_dir() || own.contains(raw) {
            list.extend([b"/", raw, b"\n"].concat());
        }
    }
    put_file(store, tree, format!("{ADMIN}/info/{name}.list").as_bytes(), &list, 0o644)
}

/// Who is interested in what.
#[derive(Debug, Default)]
struct Triggers {
    explicit: BTreeMap<String, Vec<String>>,
    files: Vec<String>,
}

impl Triggers {
    fn add(&mut self, store: &Store, package: &Unpacked) -> Result<(), BaseError> {
        let text = text_of(store, &package.tree, b"control/triggers")?;
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some(verb), Some(name)) = (words.next(), words.next()) else { continue };
            let suffix = match verb {
                "interest" | "interest-await" => "",
                "interest-noawait" => "/noawait",
                _ => continue,
            };
            let who = format!("{}{suffix}", package.info_name());
            if name.starts_with('/') {
                self.files.push(format!("{name} {who}\n"));
            } else {
                self.explicit.entry(name.to_owned()).or_default().push(who + "\n");
            }
        }
        Ok(())
    }

    fn write(
        &self,
        put: &mut dyn FnMut(&str, &str) -> Result<(), BaseError>,
    ) -> Result<(), BaseError> {
        put("triggers/Unincorp", "")?;
        put("triggers/File", &self.files.concat())?;
        for (name, who) in self.explicit.iter().filter(|(name, _)| !name.contains('/')) {
            put(&format!("triggers/{name}"), &who.concat())?;
        }
        Ok(())
    }
}
