//! What `lock`, `pull`, `images`, `gc`, `export` and `import` answer. `fsck` answers [`Findings`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use kiln_bake::base::LockedImage;
use kiln_core::Digest;
use kiln_oci::{Compression, Format};
use kiln_store::GcReport;
use serde::{Deserialize, Serialize};

pub(crate) use kiln_store::Findings;

pub(crate) use crate::agent::images::{Moved, Pulled};

/// `kiln lock`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Locked {
    /// The file.
    pub lock: PathBuf,
    /// Whether it is another one than before.
    pub changed: bool,
    pub bases: BTreeMap<String, LockedBase>,
    pub images: BTreeMap<String, LockedImage>,
    /// Pins of images that moved, or came.
    pub moved: Vec<Moved>,
    /// What was fetched besides, with `--fetch`.
    pub fetched: BTreeMap<String, Pulled>,
}

/// A base in [`Locked`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LockedBase {
    /// How many.
    pub packages: usize,
}

/// `kiln pull`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pull {
    pub images: BTreeMap<String, Pulled>,
    /// Which services need each of them.
    pub services: BTreeMap<String, BTreeSet<String>>,
}

/// `kiln images`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Images {
    pub images: Vec<StoredImage>,
    /// What could not be read on the way.
    pub broken: Vec<String>,
}

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoredImage {
    pub tree: Digest,
    /// How many.
    pub files: u64,
    pub bytes: u64,
    /// Services, imports and references of registries.
    pub used_by: BTreeSet<String>,
}

/// `kiln gc`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Gc {
    /// Nothing went: this is what would.
    pub dry_run: bool,
    /// Locks of projects that could not be read, so that what they may name stayed.
    pub unread: Vec<String>,
    pub collected: Collected,
}

/// What went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Collected {
    #[serde(flatten)]
    pub store: GcReport,
    /// Caches that steps mount.
    pub step_caches: usize,
    pub step_cache_bytes: u64,
    /// Lists of packages that apt had.
    pub package_lists: usize,
}

/// `kiln export`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Export {
    /// The file or folder; `-` is standard output.
    pub output: PathBuf,
    pub format: Format,
    pub compression: Compression,
    pub images: BTreeMap<String, kiln_oci::Exported>,
}

/// `kiln import`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Import {
    Taken(Imported),
    /// With `--remove`: the name that is forgotten.
    Removed {
        removed: String,
    },
}

/// An image that was taken in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Imported {
    pub tree: Digest,
    pub config: Digest,
    /// What it was there.
    pub manifest: Digest,
    /// Under which it is kept, if it is.
    pub name: Option<String>,
    /// Its name there.
    pub was: Option<String>,
    pub architecture: String,
    /// How many it had.
    pub layers: usize,
}

#[cfg(test)]
mod tests {
    use kiln_bake::base::LockedPlatform;
    use kiln_core::ImageId;
    use kiln_store::Damage;
    use serde_json::json;

    use super::super::tests::pinned;
    use super::*;

    fn digest() -> Digest {
        Digest::from_bytes([0xab; 32])
    }

    #[test]
    fn locks_and_pulls() {
        let digest = digest();
        let image = ImageId { tree: digest, config: digest };
        let pulled = Pulled { image, manifest: digest, fetched: 1, known: 2, bytes: 9 };
        let fetched = BTreeMap::from([("nginx:1".to_owned(), pulled)]);
        let fetched_as = json!({ "nginx:1": { "tree": digest, "config": digest,
            "manifest": digest, "fetched": 1, "known": 2, "bytes": 9 } });
        let platform = LockedPlatform { platform: "linux/amd64".into(), manifest: digest, size: 7 };
        let pin = LockedImage {
            reference: "docker.io/library/nginx:1".into(),
            index: digest,
            size: 8,
            platforms: vec![platform],
        };
        let pin_as = json!({ "reference": "docker.io/library/nginx:1", "index": digest, "size": 8,
            "platforms": [{ "platform": "linux/amd64", "manifest": digest, "size": 7 }] });
        let moved = Moved { name: "nginx:1".into(), old: None, new: pin.clone(), changes: None };
        let locked = Locked {
            lock: "/p/kiln.lock".into(),
            changed: true,
            bases: BTreeMap::from([("py".into(), LockedBase { packages: 3 })]),
            images: BTreeMap::from([("nginx:1".into(), pin)]),
            moved: vec![moved],
            fetched: fetched.clone(),
        };
        pinned(
            &locked,
            &json!({
                "lock": "/p/kiln.lock", "changed": true, "bases": { "py": { "packages": 3 } },
                "images": { "nginx:1": pin_as },
                "moved": [{ "name": "nginx:1", "old": null, "new": pin_as, "changes": null }],
                "fetched": fetched_as,
            }),
        );
        let services = BTreeMap::from([("nginx:1".to_owned(), BTreeSet::from(["web".to_owned()]))]);
        pinned(
            &Pull { images: fetched, services },
            &json!({ "images": fetched_as, "services": { "nginx:1": ["web"] } }),
        );
    }

    #[test]
    fn what_is_stored() {
        let image = StoredImage {
            tree: digest(),
            files: 4,
            bytes: 5,
            used_by: BTreeSet::from(["shop/web".to_owned()]),
        };
        pinned(
            &Images { images: vec![image], broken: vec!["torn".into()] },
            &json!({ "images": [{ "tree": digest(), "files": 4, "bytes": 5,
                "used_by": ["shop/web"] }], "broken": ["torn"] }),
        );
        let store = GcReport { objects: 1, bytes: 2, kept_bytes: 3, ..GcReport::default() };
        let collected = Collected { store, step_caches: 4, step_cache_bytes: 5, package_lists: 6 };
        pinned(
            &Gc { dry_run: true, unread: vec!["why".into()], collected },
            &json!({ "dry_run": true, "unread": ["why"], "collected": {
                "kept_objects": 0, "kept_bytes": 3, "references": 0, "objects": 1, "images": 0,
                "steps": 0, "contexts": 0, "bytes": 2, "interrupted": false, "longest_ms": 0,
                "step_caches": 4, "step_cache_bytes": 5, "package_lists": 6,
            } }),
        );
        let damage = Damage {
            path: "objects/ab".into(),
            what: "it is not there".into(),
            needed_by: vec!["stage a/dev".into()],
            healed: None,
            cure: Some("put it again".into()),
        };
        pinned(
            &Findings { objects: 1, bytes: 2, images: 3, entries: 4, damage: vec![damage] },
            &json!({ "objects": 1, "bytes": 2, "images": 3, "entries": 4, "damage": [
                { "path": "objects/ab", "what": "it is not there", "needed_by": ["stage a/dev"],
                  "healed": null, "cure": "put it again" },
            ] }),
        );
    }

    #[test]
    fn what_is_carried() {
        let digest = digest();
        let image = kiln_oci::Exported {
            name: "web".into(),
            image: ImageId { tree: digest, config: digest },
            manifest: digest,
            id: digest,
            layer: digest,
            diff_id: digest,
            bytes: 6,
        };
        let export = Export {
            output: "out.tar".into(),
            format: Format::OciArchive,
            compression: Compression::Zstd,
            images: BTreeMap::from([("web".into(), image)]),
        };
        pinned(
            &export,
            &json!({ "output": "out.tar", "format": "oci-archive", "compression": "zstd",
                "images": { "web": { "name": "web", "tree": digest, "config": digest,
                    "manifest": digest, "id": digest, "layer": digest, "diff_id": digest,
                    "bytes": 6 } } }),
        );
        let imported = Imported {
            tree: digest,
            config: digest,
            manifest: digest,
            name: Some("mine".into()),
            was: None,
            architecture: "amd64".into(),
            layers: 3,
        };
        pinned(
            &Import::Taken(imported),
            &json!({ "tree": digest, "config": digest, "manifest": digest, "name": "mine",
                "was": null, "architecture": "amd64", "layers": 3 }),
        );
        pinned(&Import::Removed { removed: "mine".into() }, &json!({ "removed": "mine" }));
    }
}
