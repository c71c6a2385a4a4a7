//! An image of a registry in `kiln.lock`: the same on every machine, whichever of its platforms a
//! machine takes.

use kiln_core::Digest;
use serde::{Deserialize, Serialize};

/// What a name named when it was locked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedImage {
    /// Where it is: registry, repository, and tag or digest, in full.
    pub reference: String,
    /// Digest of the index; of an image for one platform alone, of its manifest.
    pub index: Digest,
    /// Bytes of that document.
    pub size: u64,
    /// The images in it, by platform.
    pub platforms: Vec<LockedPlatform>,
}

/// The image for one platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedPlatform {
    /// `os/architecture[/variant]`.
    pub platform: String,
    /// Digest of its manifest.
    pub manifest: Digest,
    /// Bytes of the manifest.
    pub size: u64,
}

/// The name under which a lock has an image that a project names: with a tag or digest.
pub fn lock_name(written: &str) -> String {
    let last = written.rsplit('/').next().unwrap_or(written);
    if last.contains([':', '@']) { written.to_owned() } else { format!("{written}:latest") }
}

impl LockedImage {
    /// What must hold for a pull to make sense; a merge of two locks can break it.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.platforms.is_empty() {
            return Err("it has no platforms".into());
        }
        let mut names: Vec<&str> = self.platforms.iter().map(|it| it.platform.as_str()).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("it has {} twice", pair[0]));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Lock;

    fn sample() -> Lock {
        let platform = |name: &str| LockedPlatform {
            platform: name.to_owned(),
            manifest: Digest::of(name),
            size: 7,
        };
        let image = LockedImage {
            reference: "docker.io/library/node:20".into(),
            index: Digest::of("index"),
            size: 9,
            platforms: vec![platform("linux/amd64"), platform("linux/arm64")],
        };
        let mut lock = Lock::new("2026-01-02");
        lock.images.insert("node:20".into(), image);
        lock
    }

    #[test]
    fn names_have_a_tag() {
        for (written, name) in [
            ("node", "node:latest"),
            ("node:20", "node:20"),
            ("h:5000/a/node", "h:5000/a/node:latest"),
            ("h:5000/a/node:1", "h:5000/a/node:1"),
            ("node@sha256:ab", "node@sha256:ab"),
        ] {
            assert_eq!(lock_name(written), name);
        }
    }

    #[test]
    fn a_lock_with_images_is_of_format_2() {
        let lock = sample();
        let text = lock.text();
        assert_eq!(Lock::parse(&text).unwrap(), lock, "{text}");
        assert!(text.contains("format = 2\n"));
        assert!(text.contains("[images.\"node:20\"]\nreference = \"docker.io/library/node:20\"\n"));
        assert!(Lock::new("2026-01-02").text().contains("format = 1\n"));
    }

    #[test]
    fn refuses_what_it_cannot_use() {
        let good = sample().text();
        for (from, to, expected) in [
            ("format = 2", "format = 1", "format 2"),
            ("format = 2", "format = 3", "format 3"),
            ("linux/arm64", "linux/amd64", "twice"),
            ("index = \"sha256:", "index = \"sha257:", "sha25"),
            ("size = 9", "length = 9", "length"),
        ] {
            let bad = good.replace(from, to);
            assert_ne!(bad, good, "{from}");
            let what = Lock::parse(&bad).unwrap_err();
            assert!(what.contains(expected), "{what}");
        }
        let start = good.find("  {").unwrap();
        let none = format!("{}]\n", &good[..start]);
        assert!(Lock::parse(&none).unwrap_err().contains("no platforms"));
    }
}
