//! Numeric users and groups: learned once by `kiln lock`, then put in place before the first
//! script runs, so that the order in which scripts run no longer decides who gets which number.

use std::collections::BTreeMap;

use kiln_core::Tree;
use kiln_core::tree::{Kind, Node};
use kiln_store::Store;

use super::assemble::{Unpacked, put_file};
use super::error::BaseError;
use super::lock::LockedBase;

/// Words in scripts that make users or groups.
const MAKERS: [&str; 8] = [
    "adduser",
    "addgroup",
    "useradd",
    "groupadd",
    "usermod",
    "gpasswd",
    "sysusers",
    "update-passwd",
];

/// Lines of passwd(5) and group(5) by numeric id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Accounts {
    pub(crate) users: Vec<String>,
    pub(crate) groups: Vec<String>,
}

/// Numbers of names, for owners in package files.
#[derive(Debug, Clone, Default)]
pub(crate) struct Numbers {
    users: BTreeMap<String, u32>,
    groups: BTreeMap<String, u32>,
}

impl Accounts {
    /// What a configured tree has.
    pub(crate) fn learn(store: &Store, tree: &Tree) -> Result<Self, BaseError> {
        let users = text_of(store, tree, b"etc/passwd")?;
        let groups = text_of(store, tree, b"etc/group")?;
        Ok(Self { users: table(&users), groups: table(&groups) })
    }

    /// What a bake would learn, where no script of `packages` makes users, groups or diversions:
    /// the master tables of base-passwd. `None` where a bake has to be done.
    pub(crate) fn foretell(
        store: &Store,
        packages: &[Unpacked],
    ) -> Result<Option<Self>, BaseError> {
        let mut found = Self::default();
        for package in packages {
            let tree = &package.tree;
            let script = |name: &str| text_of(store, tree, format!("control/{name}").as_bytes());
            // These three are the tools themselves.
            let tools = ["adduser", "base-passwd", "passwd"];
            if !tools.contains(&package.locked.name.as_str()) {
                let scripts = [script("preinst")?, script("config")?, script("postinst")?].concat();
                let sysusers = tree.get(b"data/usr/lib/sysusers.d").is_some();
                if sysusers || MAKERS.iter().any(|word| scripts.contains(word)) {
                    return Ok(None);
                }
            }
            if script("preinst")?.contains("dpkg-divert") {
                return Ok(None);
            }
            let master = |name: &str| {
                text_of(store, tree, format!("data/usr/share/base-passwd/{name}.master").as_bytes())
            };
            found.users.extend(table(&master("passwd")?));
            found.groups.extend(table(&master("group")?));
        }
        Ok((!found.users.is_empty() && !found.groups.is_empty()).then_some(found))
    }

    /// Puts the locked tables in place as base-passwd would: without a password, so that
    /// `pwconv` of the package passwd makes `/etc/shadow` of them.
    pub(crate) fn place(
        store: &Store,
        base: &LockedBase,
        tree: &mut Tree,
    ) -> Result<(), BaseError> {
        for (path, lines) in
            [(b"etc/passwd".as_slice(), &base.users), (b"etc/group".as_slice(), &base.groups)]
        {
            if !lines.is_empty() {
                let text: String =
                    lines.iter().map(|line| with_password(line, "*") + "\n").collect();
                put_file(store, tree, path, text.as_bytes(), 0o644)?;
            }
        }
        Ok(())
    }
}

impl Numbers {
    /// From the lock, else from the master tables of base-passwd among the packages.
    pub(crate) fn new(
        store: &Store,
        base: &LockedBase,
        packages: &[std::sync::Arc<Tree>],
    ) -> Result<Self, BaseError> {
        let mut numbers = Self::default();
        for tree in packages {
            let master = |name: &str| {
                let path = format!("data/usr/share/base-passwd/{name}.master");
                text_of(store, tree, path.as_bytes())
            };
            numbers.users.extend(master("passwd")?.lines().filter_map(number));
            numbers.groups.extend(master("group")?.lines().filter_map(number));
        }
        numbers.users.extend(base.users.iter().filter_map(|line| number(line)));
        numbers.groups.extend(base.groups.iter().filter_map(|line| number(line)));
        Ok(numbers)
    }

    /// Resolves `user:group`; a name that nobody knows keeps the number of the archive.
    pub(crate) fn own(&self, node: &mut Node, names: &[u8]) {
        let names = String::from_utf8_lossy(names);
        let (user, group) = names.split_once(':').unwrap_or((&names, ""));
        if user == "root" {
            node.uid = 0;
        } else if let Some(id) = self.users.get(user) {
            node.uid = *id;
        }
        if group == "root" {
            node.gid = 0;
        } else if let Some(id) = self.groups.get(group) {
            node.gid = *id;
        }
    }
}

/// The content of the regular file at `path`; empty when there is none.
pub(crate) fn text_of(store: &Store, tree: &Tree, path: &[u8]) -> Result<String, BaseError> {
    match tree.get(path).map(|node| &node.kind) {
        Some(Kind::File { digest, .. }) => {
            Ok(String::from_utf8_lossy(&store.get(digest)?).into_owned())
        }
        Some(Kind::Hardlink { to }) => text_of(store, tree, &to.clone()),
        _ => Ok(String::new()),
    }
}

/// Lines by number, members of a group in order, passwords hidden.
fn table(text: &str) -> Vec<String> {
    let mut lines: Vec<(u32, String)> = text
        .lines()
        .filter_map(|line| Some((number(line)?.1, with_password(&sorted_members(line), "x"))))
        .collect();
    lines.sort();
    lines.into_iter().map(|(_, line)| line).collect()
}

fn number(line: &str) -> Option<(String, u32)> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    Some((name.to_owned(), fields.nth(1)?.parse().ok()?))
}

fn with_password(line: &str, password: &str) -> String {
    let mut fields: Vec<&str> = line.split(':').collect();
    if let Some(field) = fields.get_mut(1) {
        *field = password;
    }
    fields.join(":")
}

fn sorted_members(line: &str) -> String {
    let fields: Vec<&str> = line.split(':').collect();
    // group(5) has four fields, passwd(5) seven.
    let [name, password, id, members] = fields.as_slice() else { return line.to_owned() };
    let mut members: Vec<&str> = members.split(',').filter(|name| !name.is_empty()).collect();
    members.sort_unstable();
    format!("{name}:{password}:{id}:{}", members.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_ordered_by_number_and_hide_passwords() {
        let text = "b:$6$x:101:5::/:/bin/sh\nroot:*:0:0:r:/root:/bin/sh\nbroken\n";
        assert_eq!(table(text), ["root:x:0:0:r:/root:/bin/sh", "b:x:101:5::/:/bin/sh"]);
        assert_eq!(table("g:!:7:z,a,\n"), ["g:x:7:a,z"]);
    }

    #[test]
    fn names_win_over_numbers_of_the_archive() {
        let numbers = Numbers {
            users: BTreeMap::from([("man".into(), 6)]),
            groups: BTreeMap::from([("shadow".into(), 42)]),
        };
        let mut node = Node::new(Kind::Fifo, 0o644);
        (node.uid, node.gid) = (1000, 1000);
        numbers.own(&mut node, b"root:shadow");
        assert_eq!((node.uid, node.gid), (0, 42));
        numbers.own(&mut node, b"man:unknown");
        assert_eq!((node.uid, node.gid), (6, 42));
    }
}
