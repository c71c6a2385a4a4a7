//! Paths: Go's `path.Clean`, and resolving symlinks inside a [`Tree`] as if it were the root.

use kiln_core::Tree;
use kiln_core::tree::Kind;

/// The shortest equivalent path: no empty or `.` parts, `..` taken back where it can be. The empty
/// path is `.`.
pub fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&last) if last != ".." => {
                    parts.pop();
                }
                _ if rooted => {}
                _ => parts.push(".."),
            },
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".into(),
        (false, false) => joined,
    }
}

/// `path` seen from the directory `dir`, both of the image: absolute and clean.
pub fn absolute(dir: &str, path: &str) -> String {
    if path.starts_with('/') { clean(path) } else { clean(&format!("/{dir}/{path}")) }
}

/// An absolute path as the key of a [`Tree`]: without the leading slash.
pub fn key(path: &str) -> Vec<u8> {
    clean(&format!("/{path}")).as_bytes()[1..].to_vec()
}

/// The last part of a key.
pub fn base_name(key: &[u8]) -> &[u8] {
    key.rsplit(|byte| *byte == b'/').next().unwrap_or(key)
}

/// Everything but the last part of a key; the root's parent is the root.
pub fn parent(key: &[u8]) -> &[u8] {
    key.iter().rposition(|byte| *byte == b'/').map_or(b"".as_slice(), |at| &key[..at])
}

/// `dir` and `name` as one key.
pub fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    match (dir.is_empty(), name.is_empty()) {
        (true, _) => name.to_vec(),
        (_, true) => dir.to_vec(),
        _ => [dir, b"/", name].concat(),
    }
}

/// Symlinks that lead in a circle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("too many symbolic links on the way to `/{}`", String::from_utf8_lossy(.0))]
pub struct LinkLoop(Vec<u8>);

/// How many links may follow one another, as in Linux.
const MAX_LINKS: usize = 40;

/// Follows every symlink on the way to `path`, the last part included if `last`; links are
/// relative to the tree's root and never leave it. Parts that do not exist stay as they are.
///
/// # Errors
/// [`LinkLoop`].
pub fn resolve(tree: &Tree, path: &[u8], last: bool) -> Result<Vec<u8>, LinkLoop> {
    let mut done: Vec<u8> = Vec::new();
    let mut rest: Vec<Vec<u8>> = parts(path).rev().collect();
    let mut links = 0;
    while let Some(part) = rest.pop() {
        if part == b".." {
            done = parent(&done).to_vec();
            continue;
        }
        let next = join(&done, &part);
        let follow = last || !rest.is_empty();
        match tree.get(&next).map(|node| &node.kind) {
            Some(Kind::Symlink { target }) if follow => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(LinkLoop(path.to_vec()));
                }
                if target.starts_with(b"/") {
                    done.clear();
                }
                rest.extend(parts(target).rev().collect::<Vec<_>>());
            }
            _ => done = next,
        }
    }
    Ok(done)
}

fn parts(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> {
    path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_core::tree::Node;

    #[test]
    fn cleans_like_go() {
        for (path, expected) in [
            ("", "."),
            (".", "."),
            ("a//b/./c/..", "a/b"),
            ("../a", "../a"),
            ("a/../../b", "../b"),
            ("/../a", "/a"),
            ("/", "/"),
            ("//a/", "/a"),
        ] {
            assert_eq!(clean(path), expected, "{path}");
        }
        assert_eq!(absolute("/app", "x/../y"), "/app/y");
        assert_eq!(absolute("/app", "/y/"), "/y");
        assert_eq!(absolute("", "."), "/");
    }

    #[test]
    fn links_stay_inside_the_tree() {
        let mut tree = Tree::new();
        let link = |target: &str| Node::new(Kind::Symlink { target: target.into() }, 0);
        tree.insert(b"usr/bin", Node::new(Kind::Dir, 0o755));
        tree.insert(b"bin", link("usr/bin"));
        tree.insert(b"up", link("../../../usr"));
        tree.insert(b"abs/here", link("/bin/x"));
        tree.insert(b"loop", link("loop"));
        for (path, last, expected) in [
            ("bin/sh", true, "usr/bin/sh"),
            ("bin", true, "usr/bin"),
            ("bin", false, "bin"),
            ("up/bin", true, "usr/bin"),
            ("abs/here/y", true, "usr/bin/x/y"),
            ("missing/a", true, "missing/a"),
        ] {
            assert_eq!(
                resolve(&tree, path.as_bytes(), last).unwrap(),
                expected.as_bytes(),
                "{path}"
            );
        }
        assert!(resolve(&tree, b"loop/x", true).is_err());
    }
}
