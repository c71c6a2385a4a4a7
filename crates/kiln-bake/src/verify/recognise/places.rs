//! What is known of a file by its path or by the first bytes of both contents.

use crate::verify::cause::{Cause, Finding};

/// Names of caches; one that ends in `/` is a directory anywhere in the path.
const CACHES: [&str; 22] = [
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
];

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
    if let Some(key) = KEYS.iter().find(|key| match key.starts_with('.') {
        true => name.ends_with(**key),
        false => name.starts_with(**key),
    }) {
        return Some(Finding::new(Cause::Key, format!("its name has `{key}`")));
    }
    if text.starts_with("var/log/") || name.ends_with(".log") {
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
