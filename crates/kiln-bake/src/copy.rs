//! Which entries a COPY's sources name: paths and patterns looked up in a tree, symlinks followed,
//! as BuildKit's file operations do (`tonistiigi/fsutil/copy`).

use kiln_core::Tree;
use kiln_core::tree::{Kind, Node, Path};

use crate::edit::{Origin, Source};
use crate::{glob, paths};

/// Looks `source` up in `tree`. A pattern that matches nothing selects nothing; a path that is not
/// there is an error. `origin` tells where the contents of an entry at a path are.
///
/// # Errors
/// Says what is not there, or what is wrong with the pattern.
pub fn select(
    tree: &Tree,
    source: &str,
    origin: &dyn Fn(Path) -> Origin,
) -> Result<Vec<Source>, String> {
    let clean = paths::clean(&format!("/{source}"));
    let matches = if glob::has_wildcards(&clean) {
        wildcard(tree, &clean[1..], source)?
    } else {
        vec![clean.as_bytes()[1..].to_vec()]
    };
    let mut sources = Vec::with_capacity(matches.len());
    for path in matches {
        let at = paths::resolve(tree, &path, true).map_err(|error| error.to_string())?;
        let Some(node) = tree.get(&at) else {
            return Err(format!("`{source}` is not there"));
        };
        let entries = subtree(tree, &at, node);
        let name = paths::base_name(&path).to_vec();
        sources.push(Source { name, entries, origin: origin(at) });
    }
    Ok(sources)
}

/// Paths that match, none of them below another one.
fn wildcard(tree: &Tree, pattern: &str, source: &str) -> Result<Vec<Path>, String> {
    glob::check(pattern).map_err(|error| format!("{error} `{source}`"))?;
    let parts: Vec<&str> = pattern.split('/').collect();
    let fixed = parts.iter().take_while(|part| !glob::has_wildcards(part)).count();
    let dir = paths::resolve(tree, parts[..fixed].join("/").as_bytes(), true)
        .map_err(|error| error.to_string())?;
    let rest = parts[fixed..].join("/");
    let depth = parts.len() - fixed;
    if !tree.get(&dir).is_some_and(Node::is_dir) {
        return Err(format!("`{}` is not a directory", parts[..fixed].join("/")));
    }
    let mut prefix = dir.clone();
    if !prefix.is_empty() {
        prefix.push(b'/');
    }
    let mut found = Vec::new();
    let below = tree.entries.range(prefix.clone()..);
    for (path, _) in below.take_while(|(path, _)| path.starts_with(&prefix)) {
        let relative = &path[prefix.len()..];
        let slashes = relative.iter().filter(|byte| **byte == b'/').count();
        // No wildcard matches a slash, so only this depth can match.
        if relative.is_empty() || slashes + 1 != depth {
            continue;
        }
        if glob::matches(&rest, &String::from_utf8_lossy(relative)).unwrap_or(false) {
            found.push(path.clone());
        }
    }
    Ok(found)
}

/// The entry at `at` and all below it, with paths relative to it. Hard links whose first name is
/// outside become files.
fn subtree(tree: &Tree, at: &[u8], node: &Node) -> Vec<(Path, Node)> {
    let mut entries = vec![(Path::new(), node.clone())];
    if node.is_dir() {
        let mut prefix = at.to_vec();
        if !prefix.is_empty() {
            prefix.push(b'/');
        }
        let below = tree.entries.range(prefix.clone()..);
        entries.extend(
            below
                .take_while(|(path, _)| path.starts_with(&prefix))
                .filter(|(path, _)| path.len() > prefix.len())
                .map(|(path, node)| (path[prefix.len()..].to_vec(), node.clone())),
        );
    }
    let mut firsts: std::collections::HashMap<Path, Path> = std::collections::HashMap::new();
    for (relative, node) in &mut entries {
        let Kind::Hardlink { to } = &node.kind else {
            if matches!(node.kind, Kind::File { .. }) {
                firsts.insert(paths::join(at, relative), relative.clone());
            }
            continue;
        };
        match firsts.get(to) {
            Some(first) => node.kind = Kind::Hardlink { to: first.clone() },
            None => {
                firsts.insert(to.clone(), relative.clone());
                if let Some(target) = tree.get(to) {
                    node.kind = target.kind.clone();
                }
            }
        }
    }
    entries
}

/// Whether the beginning of a file says that it is an archive, which ADD would unpack.
pub fn is_archive(head: &[u8]) -> bool {
    let magics: [&[u8]; 4] = [b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"];
    magics.iter().any(|magic| head.starts_with(magic))
        || head.get(257..262).is_some_and(|magic| magic == b"ustar")
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_core::Digest;

    fn tree() -> Tree {
        let mut tree = Tree::new();
        let file = |text: &str| {
            Node::new(Kind::File { size: text.len() as u64, digest: Digest::of(text) }, 0o644)
        };
        tree.insert(b"a.txt", file("a"));
        tree.insert(b"b.txt", file("b"));
        tree.insert(b"src/main.c", file("m"));
        tree.insert(b"src/lib/x.c", file("x"));
        tree.insert(
            b"src/lib/y.c",
            Node::new(Kind::Hardlink { to: b"src/lib/x.c".to_vec() }, 0o644),
        );
        tree.insert(b"link", Node::new(Kind::Symlink { target: b"src/lib".to_vec() }, 0));
        tree.insert(b"one", Node::new(Kind::Symlink { target: b"a.txt".to_vec() }, 0));
        tree
    }

    fn names(source: &str) -> Result<Vec<(String, Vec<String>)>, String> {
        let sources = select(&tree(), source, &|_| Origin::Store)?;
        let text = |path: &Path| String::from_utf8_lossy(path).into_owned();
        let entries = |source: &Source| source.entries.iter().map(|(path, _)| text(path)).collect();
        Ok(sources.iter().map(|source| (text(&source.name), entries(source))).collect())
    }

    #[test]
    fn table() {
        let found = |list: &[(&str, &[&str])]| {
            Ok(list
                .iter()
                .map(|(name, paths)| {
                    ((*name).to_owned(), paths.iter().map(|path| (*path).to_owned()).collect())
                })
                .collect::<Vec<(String, Vec<String>)>>())
        };
        assert_eq!(names("a.txt"), found(&[("a.txt", &[""])]));
        assert_eq!(names("./../a.txt"), found(&[("a.txt", &[""])]));
        assert_eq!(names("*.txt"), found(&[("a.txt", &[""]), ("b.txt", &[""])]));
        assert_eq!(names("s*/*.c"), found(&[("main.c", &[""])]));
        assert_eq!(names("none*"), found(&[]));
        assert_eq!(names("link"), found(&[("link", &["", "x.c", "y.c"])]));
        assert_eq!(names("link/*"), found(&[("x.c", &[""]), ("y.c", &[""])]));
        assert_eq!(names("one"), found(&[("one", &[""])]));
        assert_eq!(names("src/"), found(&[("src", &["", "lib", "lib/x.c", "lib/y.c", "main.c"])]));
        assert!(names("none").is_err());
        assert!(names("none/*").is_err());
        assert!(names("[").is_err());
    }

    #[test]
    fn hard_links_keep_to_the_copied_part() {
        let both = &select(&tree(), "src/lib", &|_| Origin::Store).unwrap()[0];
        assert!(matches!(&both.entries[2].1.kind, Kind::Hardlink { to } if to == b"x.c"));
        let one = &select(&tree(), "src/lib/y.c", &|_| Origin::Store).unwrap()[0];
        assert!(matches!(one.entries[0].1.kind, Kind::File { size: 1, .. }));
    }

    #[test]
    fn archives_are_known_by_content() {
        assert!(is_archive(b"\x1f\x8b\x08\0"));
        assert!(!is_archive(b"plain"));
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        assert!(is_archive(&tar));
    }
}
