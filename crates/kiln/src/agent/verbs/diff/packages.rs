//! What dpkg, or Alpine's apk, knows in each of two trees: packages that came, went or changed, and
//! their files.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use kiln_core::Tree;
use kiln_core::tree::Kind;
use kiln_core::tree_diff::content;
use kiln_store::Store;

/// Where dpkg keeps what it knows.
const ADMIN: &str = "var/lib/dpkg/";
/// Where apk does.
const APK: &str = "lib/apk/db/";
/// Larger databases are none.
const LARGEST: u64 = 64 << 20;

/// Name and architecture.
type Name = (String, String);

/// A package of which the two trees know different versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Package {
    /// Its name.
    pub name: String,
    /// Its architecture.
    pub architecture: String,
    /// The version in the old tree.
    pub old: Option<String>,
    /// The version in the new tree.
    pub new: Option<String>,
}

impl Package {
    /// `added`, `removed`, `upgraded` or `downgraded`.
    pub(super) fn change(&self) -> &'static str {
        match (&self.old, &self.new) {
            (None, _) => "added",
            (_, None) => "removed",
            (Some(old), Some(new)) => match compare(old, new) {
                Ordering::Greater => "downgraded",
                _ => "upgraded",
            },
        }
    }
}

/// All packages that differ, and to which of them a path belongs.
#[derive(Debug, Default)]
pub(super) struct Packages {
    /// By name.
    pub changed: Vec<Package>,
    owners: BTreeMap<Vec<u8>, String>,
}

impl Packages {
    /// Compares the databases of two trees.
    pub(super) fn of(store: &Store, old: &Tree, new: &Tree) -> Self {
        let mut found = Self::default();
        let mut known = |tree: &Tree| {
            let mut all = installed(store, tree);
            all.extend(by_apk(store, tree, &mut found.owners));
            all
        };
        let (before, after) = (known(old), known(new));
        let names: BTreeSet<&Name> = before.keys().chain(after.keys()).collect();
        for name in names {
            let (old_version, new_version) = (before.get(name), after.get(name));
            if old_version == new_version {
                continue;
            }
            for tree in [old, new] {
                found.own(store, tree, name);
            }
            found.changed.push(Package {
                name: name.0.clone(),
                architecture: name.1.clone(),
                old: old_version.cloned(),
                new: new_version.cloned(),
            });
        }
        // Of packages that are the same, files may differ all the same, and are told one by one.
        let changed: BTreeSet<&str> = found.changed.iter().map(|it| it.name.as_str()).collect();
        found.owners.retain(|_, owner| changed.contains(owner.as_str()));
        found
    }

    /// The package among [`Packages::changed`] that a path belongs to; dpkg's own files belong to
    /// `dpkg's database` if any package changed.
    pub(super) fn owner(&self, path: &[u8]) -> Option<&str> {
        if let Some(owner) = self.owners.get(path) {
            return Some(owner);
        }
        let of = |place: &str| !self.changed.is_empty() && path.starts_with(place.as_bytes());
        match () {
            () if of(ADMIN) => Some("dpkg's database"),
            () if of(APK) => Some("apk's database"),
            () => None,
        }
    }

    fn own(&mut self, store: &Store, tree: &Tree, (name, architecture): &Name) {
        for stem in [name.clone(), format!("{name}:{architecture}")] {
            let info = format!("{ADMIN}info/{stem}.");
            let Some(list) = read(store, tree, format!("{info}list").as_bytes()) else { continue };
            for line in list.split('\n') {
                let path = line.trim_start_matches('/').as_bytes();
                if !path.is_empty() && path != b"." {
                    self.owners.insert(real(tree, path), name.clone());
                }
            }
            let range = tree.entries.range(info.clone().into_bytes()..);
            for (path, _) in range.take_while(|(path, _)| path.starts_with(info.as_bytes())) {
                self.owners.insert(path.clone(), name.clone());
            }
        }
    }
}

/// A path of a package where it really is: `/bin` may be a link to `usr/bin`.
fn real(tree: &Tree, path: &[u8]) -> Vec<u8> {
    let Some(at) = path.iter().position(|byte| *byte == b'/') else { return path.to_vec() };
    match tree.get(&path[..at]).map(|node| &node.kind) {
        Some(Kind::Symlink { target }) if !target.starts_with(b"/") => {
            [target.as_slice(), &path[at..]].concat()
        }
        _ => path.to_vec(),
    }
}

fn read(store: &Store, tree: &Tree, path: &[u8]) -> Option<String> {
    let (size, digest) = content(tree, tree.get(path)?)?;
    (size <= LARGEST)
        .then(|| store.get(&digest).ok())
        .flatten()
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Versions of what is installed. Source of the form: deb-control(5), `Status` as in dpkg-query(1).
fn installed(store: &Store, tree: &Tree) -> BTreeMap<Name, String> {
    let text = read(store, tree, format!("{ADMIN}status").as_bytes()).unwrap_or_default();
    let paragraph = |text: &str| {
        let field = |name: &str| {
            text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(": ")?.trim()))
        };
        let there = field("Status").is_none_or(|status| status.ends_with(" installed"));
        let name = (field("Package")?.to_owned(), field("Architecture")?.to_owned());
        there.then_some((name, field("Version")?.to_owned()))
    };
    text.split("\n\n").filter_map(paragraph).collect()
}

/// Versions of what apk installed, and in `owners` whose each file is. Source of the form: apk-db(5):
/// paragraphs of `LETTER:VALUE`, files (`R`) below the folder (`F`) that stands last before them.
fn by_apk(
    store: &Store,
    tree: &Tree,
    owners: &mut BTreeMap<Vec<u8>, String>,
) -> BTreeMap<Name, String> {
    let text = read(store, tree, format!("{APK}installed").as_bytes()).unwrap_or_default();
    let mut all = BTreeMap::new();
    for paragraph in text.split("\n\n") {
        let field = |letter: &str| {
            paragraph.lines().find_map(|line| line.strip_prefix(letter)).map(str::to_owned)
        };
        let (Some(name), Some(version)) = (field("P:"), field("V:")) else { continue };
        let mut folder = "";
        for line in paragraph.lines() {
            if let Some(path) = line.strip_prefix("F:") {
                folder = path;
            } else if let Some(file) = line.strip_prefix("R:") {
                let slash = if folder.is_empty() { "" } else { "/" };
                owners.insert(format!("{folder}{slash}{file}").into_bytes(), name.clone());
            }
        }
        all.insert((name, field("A:").unwrap_or_default()), version);
    }
    all
}

/// The order of versions, deb-version(7): epoch, upstream version, revision.
fn compare(a: &str, b: &str) -> Ordering {
    fn split(version: &str) -> (u64, &str, &str) {
        let (epoch, rest) = version.split_once(':').unwrap_or(("0", version));
        let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
        (epoch.parse().unwrap_or(0), upstream, revision)
    }
    let ((a_epoch, a_upstream, a_revision), (b_epoch, b_upstream, b_revision)) =
        (split(a), split(b));
    a_epoch
        .cmp(&b_epoch)
        .then_with(|| compare_part(a_upstream, b_upstream))
        .then_with(|| compare_part(a_revision, b_revision))
}

/// Runs of other characters and runs of digits in turn; `~` sorts before the end, letters before
/// the rest.
fn compare_part(mut a: &str, mut b: &str) -> Ordering {
    fn weight(c: Option<char>) -> i64 {
        match c {
            Some('~') => -1,
            None => 0,
            Some(c) if c.is_ascii_digit() => 0,
            Some(c) if c.is_ascii_alphabetic() => i64::from(u32::from(c)),
            Some(c) => i64::from(u32::from(c)) + 256,
        }
    }
    fn digits<'a>(text: &mut &'a str) -> &'a str {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, rest) = text.split_at(end);
        *text = rest;
        digits.trim_start_matches('0')
    }
    while !a.is_empty() || !b.is_empty() {
        loop {
            let (x, y) = (a.chars().next(), b.chars().next());
            let other = |c: Option<char>| c.is_some_and(|c| !c.is_ascii_digit());
            if !other(x) && !other(y) {
                break;
            }
            match weight(x).cmp(&weight(y)) {
                Ordering::Equal => {
                    a = &a[x.map_or(0, char::len_utf8)..];
                    b = &b[y.map_or(0, char::len_utf8)..];
                }
                unequal => return unequal,
            }
        }
        let (x, y) = (digits(&mut a), digits(&mut b));
        match x.len().cmp(&y.len()).then_with(|| x.cmp(y)) {
            Ordering::Equal => {}
            unequal => return unequal,
        }
    }
    Ordering::Equal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_dpkg_does() {
        let ascending = ["1.0~rc1-1", "1.0-1", "1.0-1+b1", "1.0a-1", "1.2-1", "1.10-1", "1:0.1-1"];
        for (at, a) in ascending.iter().enumerate() {
            for (other, b) in ascending.iter().enumerate() {
                assert_eq!(compare(a, b), at.cmp(&other), "{a} {b}");
            }
        }
        assert_eq!(compare("1.0-01", "1.0-1"), Ordering::Equal);
        assert_eq!(compare("2.36-9+deb12u9", "2.36-9+deb12u10"), Ordering::Less);
    }
}
