//! What is known of a file by its path or by the first bytes of both contents.

use crate::verify::cause::{Cause, Finding};

/// Names of caches; one that ends in `/` is a directory anywhere in the path.
const CACHES: [&str; 25] = [
    "var/cache/",
    ".cache/",
    "__pycache__/",
    ".mypy_cache/",
    ".pytest_cache/",
    ".npm/",
    ".gradle/",
    ".m2/",
    ".ccache/",
    ".cargo/registry/",
    "go-build/",
    ".git/index",
    "ld.so.cache",
    "aux-cache",
    "icon-theme.cache",
    "mimeinfo.cache",
    "mime.cache",
    "gschemas.compiled",
    "pkgcache.bin",
    "srcpkgcache.bin",
    ".ninja_log",
    ".ninja_deps",
    "meson-private/build.dat",
    "meson-private/coredata.dat",
    ".rustc_info.json",
];

/// Ends of the names of logs; one that ends in `/` is a directory anywhere in the path. What the
/// compiler said to nginx's `configure` is in `autoconf.err`.
const LOGS: [&str; 4] = ["var/log/", "meson-logs/", ".log", "autoconf.err"];

/// Names that keys and certificates have.
const KEYS: [&str; 10] = [
    "ssh_host_",
    "id_rsa",
    "id_ed25519",
    "id_ecdsa",
    ".pem",
    ".key",
    ".crt",
    ".p12",
    ".jks",
    ".der",
];

/// What in a repository has names or contents that follow from a commit's time.
const COMMITTED: [&str; 6] =
    ["objects/", "refs/", "logs/", "packed-refs", "ORIG_HEAD", "COMMIT_EDITMSG"];

/// Why that differs.
pub(super) const COMMIT: &str = "a commit's name follows from its time";

/// Whether the path is that of a commit, or of what names one.
pub(super) fn is_of_commit(path: &[u8]) -> bool {
    let text = String::from_utf8_lossy(path);
    let inside = match text.strip_prefix(".git/") {
        Some(inside) => Some(inside),
        None => text.split_once("/.git/").map(|(_, inside)| inside),
    };
    inside.is_some_and(|inside| COMMITTED.iter().any(|part| inside.starts_with(part)))
}

/// What the path, or the head of both contents, says.
pub(super) fn place(path: &[u8], a: &[u8], b: &[u8]) -> Option<Finding> {
    let text = String::from_utf8_lossy(path);
    let name = text.rsplit('/').next().unwrap_or_default();
    let both = |head: &[u8]| a.starts_with(head) && b.starts_with(head);
    if both(b"-----BEGIN ") {
        let end = a.iter().position(|byte| *byte == b'\n').unwrap_or(a.len()).min(60);
        let what = String::from_utf8_lossy(&a[11..end.max(11)]).replace('-', "").to_lowercase();
        return Some(Finding::new(Cause::Key, format!("it begins as a {} does", what.trim())));
    }
    if both(&[0xfe, 0xed, 0xfe, 0xed]) || both(&[0xce, 0xce, 0xce, 0xce]) {
        return Some(Finding::new(Cause::Key, "it is a Java keystore"));
    }
    if both(b"ssh-rsa ") || both(b"ssh-ed25519 ") || both(b"ecdsa-sha2-") {
        return Some(Finding::new(Cause::Key, "it is a public key of ssh"));
    }
    if is_of_commit(path) {
        return Some(Finding::new(Cause::Time, COMMIT));
    }
    if both(b"v1 ") && is_of_go(name) {
        let evidence = "it is an entry of Go's build cache";
        return Some(Finding::new(Cause::Cache, evidence));
    }
    if let Some(key) = KEYS.iter().find(|key| match key.starts_with('.') {
        true => name.ends_with(**key),
        false => name.starts_with(**key),
    }) {
        return Some(Finding::new(Cause::Key, format!("its name has `{key}`")));
    }
    let logs = LOGS.iter().any(|log| match log.ends_with('/') {
        true => text.starts_with(log) || text.contains(&format!("/{log}")),
        false => name.ends_with(log),
    });
    if logs {
        return Some(Finding::new(Cause::Log, "its name is that of a log"));
    }
    let cache = CACHES.iter().find(|cache| match cache.ends_with('/') {
        true => text.starts_with(**cache) || text.contains(&format!("/{cache}")),
        false => name == cache.rsplit('/').next().unwrap_or(cache) && text.ends_with(**cache),
    });
    if let Some(cache) = cache {
        return Some(Finding::new(Cause::Cache, format!("`{cache}` is a cache")));
    }
    None
}

/// Whether Go's build cache, wherever `GOCACHE` has put it, names an action like that.
fn is_of_go(name: &str) -> bool {
    name.strip_suffix("-a")
        .is_some_and(|id| id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
}
