//! Users and groups by name, as the tree's own `/etc/passwd` and `/etc/group` know them.

use kiln_core::Tree;
use kiln_core::tree::Kind;
use kiln_store::Store;

use crate::paths;

/// Bytes of an account file that are read, as when a program starts.
const MOST: u64 = 1 << 20;

/// Owner of copied files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// Numeric user.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
}

/// Resolves `user[:group]`, names or numbers. Without a group, a number is its own group and a
/// name has its primary one.
///
/// # Errors
/// Says which name is not there.
pub fn owner(store: &Store, tree: &Tree, text: &str) -> Result<Owner, String> {
    find(store, tree, text)?.map_err(|unknown| match unknown {
        Unknown::User(name) => format!("no user `{name}` in the image's /etc/passwd"),
        Unknown::Group(name) => format!("no group `{name}` in the image's /etc/group"),
    })
}

/// As [`owner`], but who is not there is root, and a group that is not there is the user's: what
/// BuildKit makes of it.
///
/// # Errors
/// An account file is none.
pub fn owner_or_root(store: &Store, tree: &Tree, text: &str) -> Result<Owner, String> {
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    let root = Owner { uid: 0, gid: 0 };
    Ok(match find(store, tree, text)? {
        Ok(owner) => owner,
        Err(Unknown::Group(_)) => find(store, tree, user)?.unwrap_or(root),
        Err(Unknown::User(_)) => {
            let group = find(store, tree, &format!("0:{group}"))?;
            group.unwrap_or(root)
        }
    })
}

/// A name that the image does not have.
enum Unknown {
    User(String),
    Group(String),
}

fn find(store: &Store, tree: &Tree, text: &str) -> Result<Result<Owner, Unknown>, String> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let mut owner = match user.parse::<u32>() {
        Ok(uid) => Owner { uid, gid: uid },
        Err(_) if user.is_empty() => Owner { uid: 0, gid: 0 },
        Err(_) => {
            let Some(fields) = entry(store, tree, "etc/passwd", |fields| fields[0] == user)? else {
                return Ok(Err(Unknown::User(user.to_owned())));
            };
            let number = |at: usize| fields.get(at).and_then(|field| field.parse().ok());
            match (number(2), number(3)) {
                (Some(uid), Some(gid)) => Owner { uid, gid },
                _ => return Err(format!("the line of `{user}` in /etc/passwd is broken")),
            }
        }
    };
    if let Some(group) = group.filter(|group| !group.is_empty()) {
        owner.gid = match group.parse() {
            Ok(gid) => gid,
            Err(_) => {
                let fields = entry(store, tree, "etc/group", |fields| fields[0] == group)?;
                let Some(gid) = fields.and_then(|fields| fields.get(2)?.parse().ok()) else {
                    return Ok(Err(Unknown::Group(group.to_owned())));
                };
                gid
            }
        };
    }
    Ok(Ok(owner))
}

/// Home directory of the user part of `user[:group]`; `/root` for root and `/` for the unknown.
pub fn home(store: &Store, tree: &Tree, text: &str) -> String {
    let user = text.split(':').next().unwrap_or_default();
    let user = if user.is_empty() { "0" } else { user };
    let is_it = |fields: &[String]| fields[0] == user || fields.get(2).is_some_and(|id| id == user);
    let found = entry(store, tree, "etc/passwd", is_it)
        .ok()
        .flatten()
        .and_then(|fields| fields.into_iter().nth(5))
        .filter(|home| !home.is_empty());
    found.unwrap_or_else(|| if matches!(user, "0" | "root") { "/root" } else { "/" }.into())
}

/// The first line of `file` that is wanted.
fn entry(
    store: &Store,
    tree: &Tree,
    file: &str,
    wanted: impl Fn(&[String]) -> bool,
) -> Result<Option<Vec<String>>, String> {
    let Ok(path) = paths::resolve(tree, file.as_bytes(), true) else { return Ok(None) };
    let Some(mut node) = tree.get(&path) else { return Ok(None) };
    if let Kind::Hardlink { to } = &node.kind {
        let Some(first) = tree.get(to) else { return Ok(None) };
        node = first;
    }
    let Kind::File { digest, size } = &node.kind else {
        return Err(format!("the image's /{file} is no regular file"));
    };
    if *size > MOST {
        return Err(format!("the image's /{file} is longer than {MOST} bytes"));
    }
    let content = store.get(digest).map_err(|error| format!("the image's /{file}: {error}"))?;
    Ok(String::from_utf8_lossy(&content)
        .lines()
        .map(|line| line.split(':').map(str::to_owned).collect::<Vec<_>>())
        .find(|fields| wanted(fields)))
}
