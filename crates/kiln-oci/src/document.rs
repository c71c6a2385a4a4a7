//! The JSON documents of the OCI image specification v1.1, and Docker's forms of them.
//!
//! Written compactly with keys in the order of the fields here and empty members left out: the
//! bytes are a promise. Read leniently where Docker writes `null`, and strictly where two readers
//! could see two different things.

use std::collections::BTreeMap;

use kiln_core::image::Healthcheck;
use kiln_core::{Digest, ImageConfig};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::platform::Platform;

pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// What all types of layers begin with.
const LAYER: &str = "application/vnd.oci.image.layer.";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.";

/// An error for a layer of a type that is none of an image's own, or whose content lies elsewhere.
/// How it is packed, its content says.
pub(crate) fn layer_form(layer: &Descriptor) -> Result<()> {
    let kind = layer.media_type.as_str();
    let what = || format!("layer {}", layer.digest.short());
    let own = kind.strip_prefix(LAYER).or_else(|| kind.strip_prefix(DOCKER_LAYER));
    let packing = |rest: &str| {
        let rest = rest.strip_prefix("v1.").or_else(|| rest.strip_prefix("diff."))?;
        let rest = rest.strip_prefix("tar")?;
        matches!(rest, "" | "+gzip" | ".gzip" | "+zstd" | ".zstd").then_some(())
    };
    match own {
        _ if kind.is_empty() => Ok(()),
        Some(rest) if packing(rest).is_some() => Ok(()),
        Some(rest) if rest.starts_with("nondistributable") || rest.starts_with("foreign") => {
            let why = format!(
                "it is a foreign layer (`{kind}`): its content is not in the registry, and may not \
                 be copied"
            );
            Err(Error::malformed(what(), why))
        }
        _ => Err(Error::malformed(what(), format!("layers of type `{kind}` are not known"))),
    }
}

/// Content of `oci-layout`.
pub(crate) const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// Annotation of an index entry: the name of the image there.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The same with its repository, as containerd and newer Docker have it.
pub(crate) const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// Annotation of a manifest: the tree digest.
pub(crate) const TREE: &str = "dev.kiln.image.tree";
/// Annotation of a manifest: the config digest in Kiln's canonical form.
pub(crate) const CONFIG_DIGEST: &str = "dev.kiln.image.config";
/// Marks what is no image, such as BuildKit's attestations.
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";

/// When everything was created: [`kiln_store::EPOCH`] in RFC 3339.
pub(crate) const CREATED: &str = "2020-01-01T00:00:00Z";

/// Digest, size and type of a content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// What others wrote beside that, kept when an index is written again.
    #[serde(flatten)]
    pub rest: BTreeMap<String, serde_json::Value>,
}

impl Descriptor {
    /// Of `content`.
    pub(crate) fn of(media_type: &str, content: &[u8]) -> Self {
        Self::new(media_type, Digest::of(content), content.len() as u64)
    }

    pub(crate) fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size,
            platform: None,
            annotations: None,
            rest: BTreeMap::new(),
        }
    }

    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }

    /// Whether the entry says that it is a list.
    pub(crate) fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), INDEX | DOCKER_LIST)
    }

    /// Whether this is an image or a list of images, as far as the entry says.
    pub(crate) fn may_be_image(&self) -> bool {
        let typed = matches!(
            self.media_type.as_str(),
            "" | INDEX | MANIFEST | DOCKER_LIST | DOCKER_MANIFEST
        );
        let unknown = self.platform.as_ref().is_some_and(|platform| platform.os == "unknown");
        typed && !unknown && self.annotation(REFERENCE_TYPE).is_none()
    }
}

/// A list of manifests.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    pub schema_version: u32,
    #[serde(default)]
    pub media_type: String,
    pub manifests: Vec<Descriptor>,
}

/// One image: its configuration and its layers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub schema_version: u32,
    #[serde(default)]
    pub media_type: String,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// What the bytes of a manifest or index are.
#[derive(Debug)]
pub(crate) enum Document {
    Index(Index),
    Manifest(Box<Manifest>),
}

impl Document {
    /// Reads a manifest or an index. What could be taken for both is refused.
    pub(crate) fn parse(what: &str, bytes: &[u8]) -> Result<Self> {
        let bad = |why: &dyn ToString| Error::malformed(what, why.to_string());
        let keys: BTreeMap<String, serde_json::Value> =
            serde_json::from_slice(bytes).map_err(|error| bad(&error))?;
        let (list, image) = (keys.contains_key("manifests"), keys.contains_key("layers"));
        let media_type = keys.get("mediaType").and_then(|value| value.as_str()).unwrap_or_default();
        let fits = match media_type {
            "" => list != image,
            INDEX | DOCKER_LIST => list && !image,
            MANIFEST | DOCKER_MANIFEST => image && !list,
            _ => false,
        };
        if !fits {
            return Err(bad(&format!(
                "it is neither a manifest nor an index (`mediaType` is `{media_type}`)"
            )));
        }
        let version = keys.get("schemaVersion").and_then(serde_json::Value::as_u64);
        if version != Some(2) {
            return Err(bad(&"`schemaVersion` is not 2"));
        }
        if list {
            return serde_json::from_slice(bytes).map(Self::Index).map_err(|error| bad(&error));
        }
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(|error| bad(&error))?;
        match manifest.config.media_type.as_str() {
            CONFIG | DOCKER_CONFIG => Ok(Self::Manifest(Box::new(manifest))),
            other => Err(bad(&format!("it is no image: its configuration is of type `{other}`"))),
        }
    }
}

/// The configuration of an OCI image, as far as it says what the image is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Config {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    #[serde(default)]
    pub config: Option<Run>,
    pub rootfs: Rootfs,
    #[serde(default)]
    pub history: Option<Vec<History>>,
}

impl Config {
    /// Reads a configuration.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let bad = |why: &dyn ToString| Error::malformed("the image configuration", why.to_string());
        // A list would be taken for the members in their order.
        let found: serde_json::Value =
            serde_json::from_slice(bytes).map_err(|error| bad(&error))?;
        if !found.is_object() {
            return Err(bad(&format!("it is {} where an object belongs", kind_of(&found))));
        }
        if let Some(run) = found.get("config").filter(|run| !run.is_object() && !run.is_null()) {
            return Err(bad(&format!("its `config` is {} where an object belongs", kind_of(run))));
        }
        serde_json::from_slice(bytes).map_err(|error| bad(&error))
    }

    /// The digests of so many uncompressed layers.
    pub(crate) fn diff_ids(&self, layers: usize, most: usize) -> Result<Vec<Digest>> {
        let bad = |why: String| Err(Error::malformed("the image configuration", why));
        if !matches!(self.os.as_str(), "" | "linux") {
            return bad(format!("it is for `{}`", self.os));
        }
        let diff_ids = self.rootfs.diff_ids.clone().unwrap_or_default();
        if layers != diff_ids.len() || layers > most {
            return bad(format!(
                "it has {layers} layers and {} digests of layers, where {most} are allowed",
                diff_ids.len()
            ));
        }
        Ok(diff_ids)
    }

    /// For which machines it is.
    pub(crate) fn platform(&self) -> Platform {
        let os = if self.os.is_empty() { "linux" } else { &self.os };
        Platform {
            architecture: self.architecture.clone(),
            os: os.to_owned(),
            variant: self.variant.clone().filter(|variant| !variant.is_empty()),
        }
    }
}

fn kind_of(value: &serde_json::Value) -> &'static str {
    match value {
        serde_json::Value::Null => "nothing",
        serde_json::Value::Array(_) => "a list",
        serde_json::Value::Object(_) => "an object",
        _ => "one value",
    }
}

impl From<Config> for ImageConfig {
    fn from(config: Config) -> Self {
        let author = config.author.filter(|author| !author.is_empty());
        Self { author, ..Self::from(config.config.unwrap_or_default()) }
    }
}

/// Digests of the uncompressed layers, lowest first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Rootfs {
    #[serde(rename = "type", default)]
    pub kind: String,
    #[serde(default)]
    pub diff_ids: Option<Vec<Digest>>,
}

/// How a layer came to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct History {
    #[serde(default)]
    pub created: Option<String>,
    #[serde(default)]
    pub created_by: Option<String>,
}

/// An empty object: what OCI has for the members of a set.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Empty {}

/// The `config` member: [`ImageConfig`] in OCI's form.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Run {
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exposed_ports: Option<BTreeMap<String, Option<Empty>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    env: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cmd: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    healthcheck: Option<Health>,
    #[serde(skip_serializing_if = "Option::is_none")]
    volumes: Option<BTreeMap<String, Option<Empty>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    working_dir: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_signal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shell: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_build: Option<Vec<String>>,
}

/// Docker's health check; times in nanoseconds, 0 for the default.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Health {
    test: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interval: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_period: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_interval: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retries: Option<i64>,
}

impl From<ImageConfig> for Run {
    fn from(config: ImageConfig) -> Self {
        let set = |names: std::collections::BTreeSet<String>| {
            let map: BTreeMap<_, _> =
                names.into_iter().map(|name| (name, Some(Empty {}))).collect();
            (!map.is_empty()).then_some(map)
        };
        let full = |list: Vec<String>| (!list.is_empty()).then_some(list);
        Self {
            user: config.user,
            exposed_ports: set(config.exposed_ports),
            env: full(config.env),
            entrypoint: config.entrypoint,
            cmd: config.cmd,
            healthcheck: config.healthcheck.map(Health::from),
            volumes: set(config.volumes),
            working_dir: config.working_dir,
            labels: (!config.labels.is_empty()).then_some(config.labels),
            stop_signal: config.stop_signal,
            shell: config.shell,
            on_build: full(config.on_build),
        }
    }
}

impl From<Run> for ImageConfig {
    fn from(run: Run) -> Self {
        let text = |text: Option<String>| text.filter(|text| !text.is_empty());
        let set = |map: Option<BTreeMap<String, _>>| {
            map.unwrap_or_default().into_keys().collect::<std::collections::BTreeSet<String>>()
        };
        Self {
            user: text(run.user),
            exposed_ports: set(run.exposed_ports),
            env: run.env.unwrap_or_default(),
            entrypoint: run.entrypoint,
            cmd: run.cmd,
            volumes: set(run.volumes),
            working_dir: text(run.working_dir),
            labels: run.labels.unwrap_or_default(),
            stop_signal: text(run.stop_signal),
            healthcheck: run.healthcheck.map(Healthcheck::from),
            shell: run.shell,
            on_build: run.on_build.unwrap_or_default(),
            // It stands beside the `config` member.
            author: None,
        }
    }
}

impl From<Healthcheck> for Health {
    fn from(check: Healthcheck) -> Self {
        let time = |time: Option<u64>| time.map(|time| i64::try_from(time).unwrap_or(i64::MAX));
        Self {
            test: Some(check.test),
            interval: time(check.interval),
            timeout: time(check.timeout),
            start_period: time(check.start_period),
            start_interval: time(check.start_interval),
            retries: check.retries.map(i64::from),
        }
    }
}

impl From<Health> for Healthcheck {
    fn from(health: Health) -> Self {
        let time = |time: Option<i64>| time.and_then(|time| u64::try_from(time).ok());
        let set = |time: Option<u64>| time.filter(|time| *time > 0);
        Self {
            test: health.test.unwrap_or_default(),
            interval: set(time(health.interval)),
            timeout: set(time(health.timeout)),
            start_period: set(time(health.start_period)),
            start_interval: set(time(health.start_interval)),
            retries: health.retries.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0),
        }
    }
}

/// The bytes of a document.
pub(crate) fn bytes(document: &impl Serialize) -> Vec<u8> {
    // Maps with text keys and numbers: nothing in it can fail.
    serde_json::to_vec(document).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_an_object_and_so_is_what_it_says_of_running() {
        let said = |text: &str| Config::parse(text.as_bytes()).map_err(|error| error.to_string());
        assert!(said(r#"{"rootfs":{},"config":null}"#).is_ok());
        for (text, what) in [
            ("[]", "it is a list where an object belongs"),
            ("null", "it is nothing where"),
            (r#"{"rootfs":{},"config":[]}"#, "its `config` is a list where an object belongs"),
        ] {
            let error = said(text).unwrap_err();
            assert!(error.contains(what), "{text}: {error}");
        }
    }
}
