//! What an image is: its tree and its configuration, out of a store or out of an archive as
//! `docker save` writes it.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};

use super::tree::{self, Stack, Tree};

/// A built image.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) tree: Tree,
    /// The members of the configuration that say how it runs; empty ones are left out.
    pub(crate) config: Map<String, Value>,
}

/// Members that engines write into every image, that no Dockerfile can set.
const NOT_TOLD: &[&str] = &[
    "ArgsEscaped",
    "AttachStderr",
    "AttachStdin",
    "AttachStdout",
    "Domainname",
    "Hostname",
    "Image",
    "MacAddress",
    "NetworkDisabled",
    "OpenStdin",
    "StdinOnce",
    "Tty",
];

impl Image {
    fn new(tree: Tree, config: &Value) -> Self {
        let config = config.as_object().into_iter().flatten();
        let config = config.map(|(key, value)| (key.clone(), as_map(key, value)));
        let told = config.filter(|(key, value)| {
            !NOT_TOLD.contains(&key.as_str())
                && match value {
                    Value::Null => false,
                    Value::String(text) => !text.is_empty(),
                    Value::Array(list) => !list.is_empty(),
                    Value::Object(map) => !map.is_empty(),
                    _ => true,
                }
        });
        Self { tree, config: told.collect() }
    }

    /// An image of a Kiln store, by its digests as `kiln bake --json` prints them.
    pub(crate) fn of_store(root: &Path, tree: &Value, config: &Value) -> Self {
        let read = |digest: &Value| {
            let hex = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
            let path = root.join("objects").join(&hex[..2]).join(&hex[2..]);
            std::fs::read_to_string(path).unwrap()
        };
        let config = serde_json::from_str(&read(config)).unwrap();
        Self::new(tree::from_listing(&read(tree)), &config)
    }

    /// The images of an archive, by their tags without `:latest`.
    pub(crate) fn of_archive(path: &Path) -> HashMap<String, Self> {
        let files = read_all(path);
        let manifest: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        let mut images = HashMap::new();
        for image in manifest.as_array().unwrap() {
            let mut stack = Stack::default();
            for layer in image["Layers"].as_array().unwrap() {
                stack.add(&files[layer.as_str().unwrap()]);
            }
            let mut config: Value =
                serde_json::from_slice(&files[image["Config"].as_str().unwrap()]).unwrap();
            // OCI has the author beside the members that say how an image runs.
            let author = config["author"].take();
            config["config"]["Author"] = author;
            let built = Self::new(stack.tree(), &config["config"]);
            for tag in image["RepoTags"].as_array().into_iter().flatten() {
                let name = tag.as_str().unwrap().trim_end_matches(":latest");
                let name = name.rsplit('/').next().unwrap();
                images.insert(name.to_owned(), built.clone());
            }
        }
        images
    }
}

/// Kiln's store has sets as lists; OCI has them as maps to nothing.
fn as_map(key: &str, value: &Value) -> Value {
    match value {
        Value::Array(list) if ["ExposedPorts", "Volumes"].contains(&key) => {
            let names = list.iter().map(|name| name.as_str().unwrap().to_owned());
            names.map(|name| (name, Value::Object(Map::new()))).collect()
        }
        other => other.clone(),
    }
}

/// All files of an archive; one that is there under another name is a link to it.
fn read_all(path: &Path) -> HashMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(File::open(path).unwrap());
    let mut files: HashMap<String, Vec<u8>> = HashMap::new();
    let mut links = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_string_lossy().into_owned();
        if let Some(target) = entry.link_name().unwrap() {
            let target = target.to_string_lossy().trim_start_matches("../").to_owned();
            links.push((name, target));
        } else {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            files.insert(name, bytes);
        }
    }
    for (name, target) in links {
        let bytes = files[&target].clone();
        files.insert(name, bytes);
    }
    files
}
