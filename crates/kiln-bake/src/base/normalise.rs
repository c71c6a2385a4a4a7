//! What must not be in a base: traces of the bake, and identities that belong to an instance.

use kiln_core::Tree;
use kiln_core::tree::{Kind, Node, Path};
use kiln_store::Store;

use super::error::BaseError;
use crate::keystore;

/// Removed with all below.
const FILES: [&str; 24] = [
    // Ours.
    "usr/sbin/policy-rc.d",
    super::dpkg_db::STAGING,
    // Traces of the bake.
    "etc/.pwd.lock",
    "etc/passwd-",
    "etc/group-",
    "etc/shadow-",
    "etc/gshadow-",
    "etc/subuid-",
    "etc/subgid-",
    "var/cache/ldconfig/aux-cache",
    "var/cache/apt/pkgcache.bin",
    "var/cache/apt/srcpkgcache.bin",
    "run/adduser",
    "var/log/alternatives.log",
    "var/log/bootstrap.log",
    "var/log/dpkg.log",
    "var/log/fontconfig.log",
    "var/lib/dpkg/lock",
    "var/lib/dpkg/lock-frontend",
    "var/lib/dpkg/triggers/Lock",
    // Identities: made when an instance first starts.
    "etc/ssl/private/ssl-cert-snakeoil.key",
    "etc/ssl/certs/ssl-cert-snakeoil.pem",
    "var/lib/dbus/machine-id",
    "var/lib/systemd/random-seed",
];

/// Directories that are emptied.
const EMPTIED: [&str; 9] = [
    "tmp",
    "var/tmp",
    "var/cache/apt/archives",
    "var/cache/fontconfig",
    "var/cache/man",
    "var/lib/apt/lists",
    "var/log/apt",
    // A database's first files are made when an instance first starts.
    "var/lib/mysql",
    "var/lib/dpkg/updates",
];

/// Takes out of `tree` what differs from bake to bake or must not be shared by instances.
pub(crate) fn normalise(store: &Store, mut tree: Tree) -> Result<Tree, BaseError> {
    for path in FILES {
        tree.remove(path.as_bytes());
    }
    for dir in EMPTIED {
        let dir = dir.as_bytes();
        let below: Vec<Path> = tree.children(dir).map(|(path, _)| path.to_vec()).collect();
        for path in below {
            tree.remove(&path);
        }
    }
    let doomed: Vec<Path> = tree
        .entries
        .iter()
        .filter(|(path, node)| is_backup(path) || is_host_key(path) || is_snakeoil(path, node))
        .map(|(path, _)| path.clone())
        .collect();
    for path in doomed {
        tree.remove(&path);
    }
    // systemd takes an empty file as "first start"; a missing one it could not write to.
    if matches!(tree.get(b"etc/machine-id").map(|node| &node.kind), Some(Kind::File { .. })) {
        let kind = Kind::File { size: 0, digest: store.put(b"")? };
        tree.insert(b"etc/machine-id", Node::new(kind, 0o644));
    }
    timeless_keystore(store, &mut tree)?;
    Ok(tree)
}

/// Takes out of Java's trust store when its entries were put in.
fn timeless_keystore(store: &Store, tree: &mut Tree) -> Result<(), BaseError> {
    let Some(node) = tree.get(keystore::PATH) else { return Ok(()) };
    let Kind::File { size, digest } = node.kind else { return Ok(()) };
    if size > keystore::LONGEST {
        return Ok(());
    }
    if let Some(content) = keystore::timeless(&store.get(&digest)?) {
        let kind = Kind::File { size, digest: store.put(&content)? };
        let node = Node { kind, ..node.clone() };
        tree.insert(keystore::PATH, node);
    }
    Ok(())
}

/// `status-old`, `config.dat-old` …
fn is_backup(path: &[u8]) -> bool {
    path.ends_with(b"-old")
        && (path.starts_with(b"var/lib/dpkg/") || path.starts_with(b"var/cache/debconf/"))
}

fn is_host_key(path: &[u8]) -> bool {
    path.starts_with(b"etc/ssh/ssh_host_")
}

/// The links by hash that `c_rehash` made.
fn is_snakeoil(path: &[u8], node: &Node) -> bool {
    path.starts_with(b"etc/ssl/certs/")
        && matches!(&node.kind, Kind::Symlink { target } if target == b"ssl-cert-snakeoil.pem")
}

#[cfg(test)]
mod tests {
    use kiln_core::Digest;

    use super::*;

    #[test]
    fn the_trust_store_of_java_has_no_times() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let normal = |content: &[u8]| {
            let mut tree = Tree::new();
            let digest = store.put(content).unwrap();
            let kind = Kind::File { size: content.len() as u64, digest };
            tree.insert(keystore::PATH, Node { uid: 5, ..Node::new(kind, 0o640) });
            normalise(&store, tree).unwrap().get(keystore::PATH).unwrap().clone()
        };
        let one = normal(&keystore::tests::store(1));
        assert_eq!(one, normal(&keystore::tests::store(2)));
        assert_eq!((one.uid, one.mode), (5, 0o640));
        let Kind::File { digest, .. } = normal(b"not one").kind else { panic!("a file") };
        assert_eq!(digest, Digest::of(b"not one"));
    }

    #[test]
    fn takes_out_traces_and_identities_only() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut tree = Tree::new();
        let digest = store.put(b"abc").unwrap();
        let file = || Node::new(Kind::File { size: 3, digest }, 0o644);
        let gone = [
            "tmp/x/y",
            "var/lib/dpkg/status-old",
            "var/cache/debconf/config.dat-old",
            "etc/ssh/ssh_host_rsa_key.pub",
            "etc/passwd-",
            "var/log/apt/history.log",
        ];
        let kept = ["etc/passwd", "etc/ssh/sshd_config", "usr/share/x-old", "var/log/wtmp"];
        for path in gone.iter().chain(&kept).chain(&["etc/machine-id"]) {
            tree.insert(path.as_bytes(), file());
        }
        let link = Kind::Symlink { target: b"ssl-cert-snakeoil.pem".to_vec() };
        tree.insert(b"etc/ssl/certs/0a1b2c3d.0", Node::new(link, 0o777));
        let tree = normalise(&store, tree).unwrap();
        for path in gone.iter().chain(&["etc/ssl/certs/0a1b2c3d.0"]) {
            assert!(tree.get(path.as_bytes()).is_none(), "{path}");
        }
        for path in kept {
            assert!(tree.get(path.as_bytes()).is_some(), "{path}");
        }
        assert!(tree.get(b"tmp").is_some());
        let empty = Kind::File { size: 0, digest: Digest::of(b"") };
        assert_eq!(tree.get(b"etc/machine-id").unwrap().kind, empty);
    }
}
