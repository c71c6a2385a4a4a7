//! Which entries a COPY's sources name: paths and patterns looked up in a tree, symlinks followed,
//! as BuildKit's file operations do (`tonistiigi/fsutil/copy`).

use std::collections::{BTreeSet, HashMap};

use kiln_core::Tree;
use kiln_core::tree::{Kind, Node, Path};

use crate::edit::{Origin, Source};
use crate::ignore::{Ignore, Matched};
use crate::{glob, paths};

/// Looks `source` up in `tree`, without what `exclude` leaves out. A pattern that matches nothing
/// selects nothing; a path that is not there is an error. `origin` tells where the contents of an
/// entry at a path are.
///
/// # Errors
/// Says what is not there, or what is wrong with the pattern.
pub fn select(
    tree: &Tree,
    source: &str,
    exclude: &Ignore,
    origin: &dyn Fn(Path) -> Origin,
) -> Result<Vec<Source>, String> {
    let mut sources = Vec::new();
    for mut found in all(tree, source, origin)? {
        // The reference's documentation has it so; its code forgets files that are named directly.
        let name = String::from_utf8_lossy(&found.name);
        let file = found.entries.first().is_some_and(|(_, node)| !node.is_dir());
        if !(file && exclude.matches(&name, &Matched::new()).0) {
            narrow(&mut found, None, exclude);
            sources.push(found);
        }
    }
    Ok(sources)
}

/// As [`select`], with the directories above: those behind `/./`, or all of them if there is no
/// such point. The pattern may have `**` in it, which matches any number of directories.
///
/// # Errors
/// As [`select`].
pub fn select_with_parents(
    tree: &Tree,
    source: &str,
    exclude: &Ignore,
    origin: &dyn Fn(Path) -> Origin,
) -> Result<Vec<Source>, String> {
    let (above, pattern) = source.split_once("/./").unwrap_or(("/", source));
    let cleaned = paths::clean(&format!("/{pattern}"));
    let pattern = &cleaned[1..];
    let include = match pattern {
        "" => None,
        _ => Some(Ignore::of(&[pattern.to_owned()])?),
    };
    let mut sources = all(tree, above, origin)?;
    for found in &mut sources {
        narrow(found, include.as_ref(), exclude);
    }
    if !glob::has_wildcards(above) && !glob::has_wildcards(pattern) {
        let full = paths::clean(&format!("/{above}/{pattern}"));
        let at = paths::resolve(tree, full.as_bytes(), true).map_err(|error| error.to_string())?;
        if tree.get(&at).is_none() {
            return Err(not_found(full.as_bytes()));
        }
    }
    Ok(sources)
}

/// Looks up one path, without patterns.
///
/// # Errors
/// It is not there.
pub fn one(tree: &Tree, source: &str, origin: &dyn Fn(Path) -> Origin) -> Result<Source, String> {
    let clean = paths::clean(&format!("/{source}"));
    at(tree, &clean.as_bytes()[1..], origin)
}

/// Everything that a source names, with all below it.
fn all(tree: &Tree, source: &str, origin: &dyn Fn(Path) -> Origin) -> Result<Vec<Source>, String> {
    let clean = paths::clean(&format!("/{source}"));
    let matches = if glob::has_wildcards(&clean) {
        wildcard(tree, &clean[1..], source)?
    } else {
        vec![clean.as_bytes()[1..].to_vec()]
    };
    matches.iter().map(|path| at(tree, path, origin)).collect()
}

/// The reference's words.
fn not_found(path: &[u8]) -> String {
    format!("\"/{}\": not found", String::from_utf8_lossy(path).trim_start_matches('/'))
}

fn at(tree: &Tree, path: &[u8], origin: &dyn Fn(Path) -> Origin) -> Result<Source, String> {
    let at = paths::resolve(tree, path, true).map_err(|error| error.to_string())?;
    let Some(node) = tree.get(&at) else {
        return Err(not_found(path));
    };
    Ok(Source {
        name: paths::base_name(path).to_vec(),
        entries: subtree(tree, &at, node),
        origin: origin(at),
        unpacked: None,
        implied: BTreeSet::new(),
    })
}

/// Leaves of what is below a directory only what `include` names (everything, if there is none)
/// and `exclude` does not. The directory itself stays; those that hold something that stays do
/// too, as implied.
pub(crate) fn narrow(source: &mut Source, include: Option<&Ignore>, exclude: &Ignore) {
    if include.is_none() && exclude.is_empty() {
        return;
    }
    let mut dirs: HashMap<Path, (Matched, Matched)> = HashMap::new();
    let mut kept = BTreeSet::from([Path::new()]);
    for (path, node) in source.entries.iter().skip(1) {
        let text = String::from_utf8_lossy(path);
        let (in_above, out_above) = dirs.get(paths::parent(path)).cloned().unwrap_or_default();
        let (included, in_matched) = match include {
            Some(include) => include.matches(&text, &in_above),
            None => (true, Matched::new()),
        };
        let (excluded, out_matched) = exclude.matches(&text, &out_above);
        if included && !excluded {
            kept.insert(path.clone());
        }
        if node.is_dir() {
            dirs.insert(path.clone(), (in_matched, out_matched));
        }
    }
    for path in &kept {
        let mut above = paths::parent(path);
        while !above.is_empty() && !kept.contains(above) && source.implied.insert(above.to_vec()) {
            above = paths::parent(above);
        }
    }
    let before: HashMap<Path, Kind> =
        source.entries.iter().map(|(path, node)| (path.clone(), node.kind.clone())).collect();
    source.entries.retain(|(path, _)| kept.contains(path) || source.implied.contains(path));
    relink(&mut source.entries, b"", &|path| before.get(path).cloned());
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
    match tree.get(&dir) {
        None => return Err(not_found(parts[..fixed].join("/").as_bytes())),
        Some(node) if !node.is_dir() => {
            return Err(format!("`{}` is not a directory", parts[..fixed].join("/")));
        }
        Some(_) => {}
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
    relink(&mut entries, at, &|path| tree.get(path).map(|node| node.kind.clone()));
    entries
}

/// Makes the targets of hard links relative to the source; a link whose first name is not in the
/// source becomes the file, which `kind_of` knows by its path. Targets are what they were where
/// the entries lay below `at`.
fn relink(entries: &mut [(Path, Node)], at: &[u8], kind_of: &dyn Fn(&[u8]) -> Option<Kind>) {
    let mut firsts: HashMap<Path, Path> = HashMap::new();
    for (relative, node) in entries {
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
                if let Some(kind) = kind_of(to) {
                    node.kind = kind;
                }
            }
        }
    }
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
        listed(&select(&tree(), source, &Ignore::default(), &|_| Origin::Store)?)
    }

    fn listed(sources: &[Source]) -> Result<Vec<(String, Vec<String>)>, String> {
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
        let both = &select(&tree(), "src/lib", &Ignore::default(), &|_| Origin::Store).unwrap()[0];
        assert!(matches!(&both.entries[2].1.kind, Kind::Hardlink { to } if to == b"x.c"));
        let one =
            &select(&tree(), "src/lib/y.c", &Ignore::default(), &|_| Origin::Store).unwrap()[0];
        assert!(matches!(one.entries[0].1.kind, Kind::File { size: 1, .. }));
    }

    /// Entries of the sources, directories that are only implied with a slash.
    fn narrowed(source: &str, parents: bool, exclude: &[&str]) -> Result<Vec<String>, String> {
        let exclude: Vec<String> = exclude.iter().map(|text| (*text).to_owned()).collect();
        let exclude = Ignore::of(&exclude)?;
        let select = if parents { select_with_parents } else { select };
        let mut out = Vec::new();
        for source in select(&tree(), source, &exclude, &|_| Origin::Store)? {
            for (path, _) in source.entries.iter().skip(usize::from(parents)) {
                let slash = if source.implied.contains(path) { "/" } else { "" };
                out.push(format!("{}{slash}", String::from_utf8_lossy(path)));
            }
        }
        Ok(out)
    }

    #[test]
    fn parents_from_the_pivot_on() {
        for (source, expected) in [
            ("src/lib/x.c", &["src/", "src/lib/", "src/lib/x.c"][..]),
            ("./src/main.c", &["src/", "src/main.c"]),
            ("src/./lib/x.c", &["lib/", "lib/x.c"]),
            ("src/./lib", &["lib", "lib/x.c", "lib/y.c"]),
            ("src/lib/.", &["src/", "src/lib", "src/lib/x.c", "src/lib/y.c"]),
            ("s*/./lib/y*", &["lib/", "lib/y.c"]),
            ("src/./**/*.c", &["lib/", "lib/x.c", "lib/y.c", "main.c"]),
            ("./src/**/*.c", &["src/", "src/lib/", "src/lib/x.c", "src/lib/y.c", "src/main.c"]),
            ("src/./none*", &[]),
            ("none*/c", &[]),
        ] {
            assert_eq!(narrowed(source, true, &[]).unwrap(), expected, "{source}");
        }
        assert_eq!(narrowed("src/./lib", true, &["**/x.c"]).unwrap(), ["lib", "lib/y.c"]);
        assert!(narrowed("src/./none", true, &[]).unwrap_err().contains("not found"));
        assert!(narrowed("none/./x", true, &[]).is_err());
    }

    #[test]
    fn excluded_ones_stay_away() {
        for (source, exclude, expected) in [
            ("src", &["*.c"][..], &["", "lib", "lib/x.c", "lib/y.c"][..]),
            ("src", &["**/*.c"], &["", "lib"]),
            ("src", &["lib"], &["", "main.c"]),
            ("src", &["*", "!lib/x.c"], &["", "lib/", "lib/x.c"]),
            ("*.txt", &["b*"], &[""]),
            ("a.txt", &["a.txt"], &[]),
            ("src/lib", &["x.c"], &["", "y.c"]),
        ] {
            assert_eq!(narrowed(source, false, exclude).unwrap(), expected, "{source} {exclude:?}");
        }
        assert!(narrowed("src", false, &["["]).is_err());
    }
}
