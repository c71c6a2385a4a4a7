//! Volumes: an empty one takes content, owner and mode from the image, else a database that runs
//! as its own user could not write to it.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::sync::Mutex;

use kiln_core::Digest;
use kiln_core::tree::{Kind, Node};
use kiln_store::Store;

use crate::report::{Because, Report};

/// One at a time: services that start together may have a volume in common, and an empty folder
/// would be renamed over the one that another instance has mounted already.
static FILLING: Mutex<()> = Mutex::new(());

/// Makes the volume at `dir` unless it is there, with what the image has at `target`. It appears
/// whole or not at all.
pub(crate) fn fill_if_new(
    store: &Store,
    dir: &Path,
    tree: &Digest,
    target: &str,
) -> Result<(), Report> {
    let _alone = super::lock(&FILLING);
    if dir.exists() {
        return Ok(());
    }
    let doing = || format!("making the volume {}", dir.display());
    let parent = dir.parent().unwrap_or(dir);
    fs::create_dir_all(parent).because(doing)?;
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    // What a killed agent left half-way is begun anew.
    let part = parent.join(format!(".part-{name}"));
    let _ = fs::remove_dir_all(&part);
    fs::create_dir(&part).because(doing)?;
    let tree = store.get_tree(tree).because(doing)?;
    let base = resolve(&tree, target);
    if let Some(node) = tree.get(&base).filter(|node| node.is_dir()) {
        copy_children(store, &tree, &base, &part).because(doing)?;
        own(&part, node).because(doing)?;
    }
    fs::rename(&part, dir).because(doing)
}

/// `target` with the symlinks of the image followed (`/var/run` is one, often).
fn resolve(tree: &kiln_core::Tree, target: &str) -> Vec<u8> {
    let mut path: Vec<u8> = Vec::new();
    let mut todo: Vec<Vec<u8>> =
        target.split('/').rev().map(|part| part.as_bytes().to_vec()).collect();
    let mut links = 0;
    while let Some(part) = todo.pop() {
        match part.as_slice() {
            b"" | b"." => continue,
            b".." => {
                let end = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                path.truncate(end);
                continue;
            }
            _ => {}
        }
        let parent = path.len();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&part);
        if let Some(Kind::Symlink { target }) = tree.get(&path).map(|node| &node.kind)
            && links < 40
        {
            links += 1;
            path.truncate(if target.starts_with(b"/") { 0 } else { parent });
            todo.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
        }
    }
    path
}

fn copy_children(
    store: &Store,
    tree: &kiln_core::Tree,
    from: &[u8],
    to: &Path,
) -> std::io::Result<()> {
    for (path, node) in tree.children(from) {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
        let to = to.join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name));
        match &node.kind {
            Kind::Dir => {
                fs::create_dir(&to)?;
                copy_children(store, tree, path, &to)?;
            }
            Kind::File { digest, .. } => copy_file(store, digest, &to)?,
            Kind::Hardlink { to: first } => {
                if let Some(Kind::File { digest, .. }) = tree.get(first).map(|node| &node.kind) {
                    copy_file(store, digest, &to)?;
                }
            }
            Kind::Symlink { target } => {
                symlink(
                    <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(target),
                    &to,
                )?;
            }
            // Devices and pipes have no place in data.
            Kind::Fifo | Kind::CharDevice { .. } | Kind::BlockDevice { .. } => continue,
        }
        own(&to, node)?;
    }
    Ok(())
}

fn copy_file(store: &Store, digest: &Digest, to: &Path) -> std::io::Result<()> {
    let mut from = File::open(store.object_path(digest))?;
    let mut file = File::create_new(to)?;
    std::io::copy(&mut from, &mut file)?;
    file.flush()
}

fn own(path: &Path, node: &Node) -> std::io::Result<()> {
    if matches!(node.kind, Kind::Symlink { .. }) {
        return std::os::unix::fs::lchown(path, Some(node.uid), Some(node.gid));
    }
    chown(path, Some(node.uid), Some(node.gid))?;
    fs::set_permissions(path, fs::Permissions::from_mode(u32::from(node.mode)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_core::Tree;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn services_that_start_together_get_the_same_folder() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        let tree = store.put_tree(&Tree::new()).unwrap();
        let dir = root.path().join("volumes/v");
        let fill = || {
            fill_if_new(&store, &dir, &tree, "/data").unwrap();
            fs::metadata(&dir).unwrap().ino()
        };
        let seen: std::collections::BTreeSet<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(fill)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(seen.len(), 1);
    }

    #[test]
    fn takes_content_and_owner_once() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        let mut tree = Tree::new();
        let mut data = Node::new(Kind::Dir, 0o700);
        data.uid = 70;
        tree.insert(b"var/lib/data", data);
        let digest = store.put(b"hello").unwrap();
        tree.insert(b"var/lib/data/seed", Node::new(Kind::File { size: 5, digest }, 0o640));
        tree.insert(b"data", Node::new(Kind::Symlink { target: b"/var/lib/data".to_vec() }, 0));
        let tree = store.put_tree(&tree).unwrap();
        let dir = root.path().join("volumes/v");
        fill_if_new(&store, &dir, &tree, "/data/").unwrap();
        assert_eq!(fs::read(dir.join("seed")).unwrap(), b"hello");
        let meta = fs::metadata(&dir).unwrap();
        assert_eq!((meta.uid(), meta.mode() & 0o7777), (70, 0o700));
        // What the program writes later is never touched again.
        fs::write(dir.join("seed"), b"changed").unwrap();
        fill_if_new(&store, &dir, &tree, "/data/").unwrap();
        assert_eq!(fs::read(dir.join("seed")).unwrap(), b"changed");
    }
}
