//! What `diff` answers. The document is described in `docs/diff.md`.

use std::collections::BTreeMap;

use kiln_core::release::Source;
use kiln_core::{Digest, ImageId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `kiln diff`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Diff {
    /// Version of the document.
    pub format: u32,
    pub old: Side,
    pub new: Side,
    /// Nothing differs.
    pub same: bool,
    #[serde(flatten)]
    pub found: Found,
}

/// What differs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(crate) enum Found {
    /// Of two releases, the services that differ.
    Release {
        services: Vec<Service>,
    },
    Image(ImageDiff),
}

/// One of the two.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Side {
    /// As it was named.
    pub name: String,
    #[serde(flatten)]
    pub what: What,
}

/// What a [`Side`] is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum What {
    Release {
        /// The working tree has none that anybody recorded.
        release: Option<Digest>,
        source: Source,
    },
    Image {
        tree: Digest,
        /// That of a bare tree is not known.
        config: Option<Digest>,
    },
}

/// Two values of one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Both<T> {
    pub old: T,
    pub new: T,
}

/// A service that differs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Service {
    pub name: String,
    #[serde(flatten)]
    pub change: ServiceChange,
}

/// How.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "lowercase")]
pub(crate) enum ServiceChange {
    Added(ImageId),
    Removed(ImageId),
    Changed {
        /// Where it has another image.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        image: Option<ImageDiff>,
        settings: Vec<KeyChange>,
        /// By stage, where it runs otherwise there.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        stages: BTreeMap<String, Vec<KeyChange>>,
    },
}

/// What differs between two images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ImageDiff {
    pub tree: Both<Option<Digest>>,
    pub packages: Vec<Package>,
    pub files: Vec<File>,
    /// Key by key; not there where that of one is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Vec<KeyChange>>,
    /// In `lock`: how many paths are left out of `files`, of which only the time differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<usize>,
}

impl ImageDiff {
    /// Whether nothing differs.
    pub(crate) fn is_empty(&self) -> bool {
        self.packages.is_empty()
            && self.files.is_empty()
            && self.config.as_ref().is_none_or(Vec::is_empty)
    }
}

/// A package of which the two have different versions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Package {
    pub name: String,
    pub architecture: String,
    /// `added`, `removed`, `upgraded` or `downgraded`.
    pub change: String,
    pub old: Option<String>,
    pub new: Option<String>,
    /// How many of its paths differ.
    pub files: u64,
}

/// A path that differs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct File {
    pub path: String,
    /// Its bytes, where they are no text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// The one of [`ImageDiff::packages`] that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<String>,
    /// Of what is there, or was: `file`, `directory`, `link`, …
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(flatten)]
    pub change: FileChange,
}

/// How it differs. Bytes are those of a content, if it has one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "lowercase")]
pub(crate) enum FileChange {
    Added {
        size: NewSize,
        new: Entry,
    },
    Removed {
        size: OldSize,
        old: Entry,
    },
    Changed {
        size: Both<Option<u64>>,
        /// What of it, in words: `content`, `mode`, …
        aspects: BTreeMap<String, Both<String>>,
        /// Lines of a unified difference, with `--text`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        text: Option<Vec<String>>,
    },
}

impl FileChange {
    /// `added`, `removed` or `changed`.
    pub(crate) const fn word(&self) -> &'static str {
        match self {
            Self::Added { .. } => "added",
            Self::Removed { .. } => "removed",
            Self::Changed { .. } => "changed",
        }
    }
}

/// Bytes of what came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NewSize {
    pub new: Option<u64>,
}

/// Bytes of what went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OldSize {
    pub old: Option<u64>,
}

/// What only one of the two has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    #[serde(rename = "type")]
    pub kind: String,
    /// Four octal digits.
    pub mode: String,
    pub uid: u32,
    pub gid: u32,
    /// Digest of a file's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Of a link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// A key with two values. A side that does not have it is left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct KeyChange {
    /// Keys of maps, apart by dots.
    pub key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<Value>,
    /// Lines of a unified difference, with `--text`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<Vec<String>>,
    /// No more is told than that it differs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub secret: bool,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::pinned;
    use super::*;

    fn digest() -> Digest {
        Digest::from_bytes([0xab; 32])
    }

    fn entry() -> (Entry, Value) {
        let entry = Entry {
            kind: "file".into(),
            mode: "0644".into(),
            uid: 0,
            gid: 5,
            content: Some("sha256:1".into()),
            target: None,
        };
        let document = json!({ "type": "file", "mode": "0644", "uid": 0, "gid": 5,
            "content": "sha256:1" });
        (entry, document)
    }

    fn image() -> (ImageDiff, Value) {
        let (entry, entry_as) = entry();
        let file = |path: &str, change| File {
            path: path.into(),
            path_hex: None,
            package: None,
            kind: "file".into(),
            change,
        };
        let both = |old: &str, new: &str| Both { old: old.to_owned(), new: new.to_owned() };
        let changed = FileChange::Changed {
            size: Both { old: Some(3), new: None },
            aspects: BTreeMap::from([("mode".into(), both("0644", "0755"))]),
            text: Some(vec!["-a".into()]),
        };
        let files = vec![
            file("a", FileChange::Added { size: NewSize { new: Some(1) }, new: entry.clone() }),
            file("b", FileChange::Removed { size: OldSize { old: None }, old: entry }),
            File {
                path_hex: Some("63ff".into()),
                package: Some("curl".into()),
                ..file("c\u{fffd}", changed)
            },
        ];
        let package = Package {
            name: "curl".into(),
            architecture: "amd64".into(),
            change: "added".into(),
            old: None,
            new: Some("1".into()),
            files: 1,
        };
        let key = KeyChange { key: "Env.A".into(), new: Some(json!("1")), ..KeyChange::default() };
        let image = ImageDiff {
            tree: Both { old: None, new: Some(digest()) },
            packages: vec![package],
            files,
            config: Some(vec![key]),
            times: None,
        };
        let document = json!({
            "tree": { "old": null, "new": digest() },
            "packages": [{ "name": "curl", "architecture": "amd64", "change": "added",
                "old": null, "new": "1", "files": 1 }],
            "files": [
                { "path": "a", "type": "file", "change": "added", "size": { "new": 1 },
                  "new": entry_as },
                { "path": "b", "type": "file", "change": "removed", "size": { "old": null },
                  "old": entry_as },
                { "path": "c\u{fffd}", "path_hex": "63ff", "package": "curl", "type": "file",
                  "change": "changed", "size": { "old": 3, "new": null },
                  "aspects": { "mode": { "old": "0644", "new": "0755" } }, "text": ["-a"] },
            ],
            "config": [{ "key": "Env.A", "new": "1" }],
        });
        (image, document)
    }

    #[test]
    fn images() {
        let (found, document) = image();
        let side = |name: &str, config| Side {
            name: name.into(),
            what: What::Image { tree: digest(), config },
        };
        let mut expected = document.clone();
        expected["format"] = json!(1);
        expected["kind"] = json!("image");
        expected["same"] = json!(false);
        expected["old"] = json!({ "name": "x", "tree": digest(), "config": null });
        expected["new"] = json!({ "name": "y", "tree": digest(), "config": digest() });
        let diff = Diff {
            format: 1,
            old: side("x", None),
            new: side("y", Some(digest())),
            same: false,
            found: Found::Image(found.clone()),
        };
        pinned(&diff, &expected);
        // As `lock` has it; and one of bare trees.
        let mut expected = document;
        expected["times"] = json!(7);
        expected.as_object_mut().unwrap().remove("config");
        pinned(&ImageDiff { times: Some(7), config: None, ..found }, &expected);
    }

    #[test]
    fn releases() {
        let (image, image_as) = image();
        let id = ImageId { tree: digest(), config: digest() };
        let secret = KeyChange { key: "files./k".into(), secret: true, ..KeyChange::default() };
        let text = KeyChange {
            key: "files./c".into(),
            old: Some(json!(1)),
            new: Some(json!({ "a": 2 })),
            text: Some(vec!["+a".into()]),
            secret: false,
        };
        let changed = ServiceChange::Changed {
            image: Some(image),
            settings: vec![secret, text],
            stages: BTreeMap::new(),
        };
        let only = ServiceChange::Changed {
            image: None,
            settings: Vec::new(),
            stages: BTreeMap::from([("prod".into(), Vec::new())]),
        };
        let services = [
            ("a", ServiceChange::Added(id)),
            ("b", ServiceChange::Removed(id)),
            ("c", changed),
            ("d", only),
        ];
        let services = services.map(|(name, change)| Service { name: name.into(), change });
        let side = |release| Side {
            name: "dev".into(),
            what: What::Release { release, source: Source::default() },
        };
        let diff = Diff {
            format: 1,
            old: side(Some(digest())),
            new: side(None),
            same: false,
            found: Found::Release { services: services.to_vec() },
        };
        pinned(
            &diff,
            &json!({
                "format": 1, "kind": "release", "same": false,
                "old": { "name": "dev", "release": digest(), "source": {} },
                "new": { "name": "dev", "release": null, "source": {} },
                "services": [
                    { "name": "a", "change": "added", "tree": digest(), "config": digest() },
                    { "name": "b", "change": "removed", "tree": digest(), "config": digest() },
                    { "name": "c", "change": "changed", "image": image_as, "settings": [
                        { "key": "files./k", "secret": true },
                        { "key": "files./c", "old": 1, "new": { "a": 2 }, "text": ["+a"] },
                    ] },
                    { "name": "d", "change": "changed", "settings": [], "stages": { "prod": [] } },
                ],
            }),
        );
    }
}
