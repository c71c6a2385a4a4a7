//! A small image, written as an OCI layout for skopeo and others to read.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Time of everything in its layers.
const TIME: u64 = 1_700_000_000;

/// Layers and a configuration.
#[derive(Debug, Clone, Default)]
pub struct Image {
    layers: Vec<Vec<u8>>,
    config: Option<Value>,
}

impl Image {
    /// Without any layer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a layer with one file, readable by everybody.
    #[must_use]
    pub fn file(self, path: &str, content: &[u8]) -> Self {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        header.set_mtime(TIME);
        let added = builder.append_data(&mut header, path, content);
        let tar = added.and_then(|()| builder.into_inner());
        self.layer(tar.unwrap_or_else(|error| panic!("a layer with {path}: {error}")))
    }

    /// Adds a layer: a tar, not compressed.
    #[must_use]
    pub fn layer(mut self, tar: Vec<u8>) -> Self {
        self.layers.push(tar);
        self
    }

    /// Sets the member `config` of the configuration: `Cmd`, `Env` …
    #[must_use]
    pub fn config(mut self, config: Value) -> Self {
        self.config = Some(config);
        self
    }

    /// Writes an OCI layout with one image, `image`, into a folder.
    ///
    /// # Panics
    /// If that fails.
    pub fn write(&self, folder: &Path) {
        let blobs = folder.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap_or_else(|error| panic!("{}: {error}", blobs.display()));
        let put = |media: &str, bytes: &[u8]| -> Value {
            let hex = hex(bytes);
            let path = blobs.join(&hex);
            fs::write(&path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            json!({ "mediaType": media, "digest": format!("sha256:{hex}"), "size": bytes.len() })
        };
        let oci = |what: &str| format!("application/vnd.oci.image.{what}");
        let tars: Vec<Value> =
            self.layers.iter().map(|tar| put(&oci("layer.v1.tar"), tar)).collect();
        let ids: Vec<&Value> = tars.iter().map(|layer| &layer["digest"]).collect();
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": self.config.clone().unwrap_or_else(|| json!({})),
            "rootfs": { "type": "layers", "diff_ids": ids },
        });
        let config = put(&oci("config.v1+json"), config.to_string().as_bytes());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": oci("manifest.v1+json"),
            "config": config,
            "layers": tars,
        });
        let mut manifest = put(&oci("manifest.v1+json"), manifest.to_string().as_bytes());
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "image" });
        let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
        let write = |name: &str, text: String| {
            fs::write(folder.join(name), text).unwrap_or_else(|error| panic!("{name}: {error}"));
        };
        write("index.json", index.to_string());
        write("oci-layout", json!({ "imageLayoutVersion": "1.0.0" }).to_string());
    }
}

/// The sha256 of `bytes`, in hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// This machine's, by Go's name.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
