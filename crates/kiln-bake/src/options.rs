//! What whoever asks for a build says beside the Dockerfile: Compose's `build` keys.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::key::Key;

/// See the module. The default is a build without any of it.
#[derive(Debug, Clone, Default)]
pub struct BuildOptions {
    /// The project: its caches are shared by its builds, and by nobody else's.
    pub project: String,
    /// Secrets by id. Their content is no part of any key.
    pub secrets: BTreeMap<String, Secret>,
    /// Sockets of SSH agents by id. No part of any key.
    pub ssh: BTreeMap<String, PathBuf>,
    /// Whether a RUN that does not say `--network` has one.
    pub network: bool,
    /// Size of `/dev/shm` of steps in bytes.
    pub shm_size: Option<u64>,
    /// Limits of steps: soft and hard, `-1` unlimited, by name.
    pub ulimits: BTreeMap<String, (i64, i64)>,
    /// Labels of the image; they count before those of the Dockerfile.
    pub labels: BTreeMap<String, String>,
}

/// A secret that a step may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    /// Where its content is.
    pub source: SecretSource,
    /// Owner of the file in the step, where the step does not say; 0 if nobody does.
    pub uid: Option<u32>,
    /// Group, likewise.
    pub gid: Option<u32>,
    /// Permission bits, likewise; 0400 if nobody says.
    pub mode: Option<u32>,
}

/// Where the content of a [`Secret`] is.
#[derive(Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// In a file of the host, read when a step needs it.
    File(PathBuf),
    /// Here.
    Text(String),
}

impl std::fmt::Debug for SecretSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Text(_) => f.write_str("Text(…)"),
        }
    }
}

impl BuildOptions {
    /// Adds all that decides the outcome of a build.
    pub(crate) fn key(&self, key: Key) -> Key {
        let key = key.number(u64::from(self.network)).number(self.shm_size.unwrap_or(0));
        let key = key.number(self.ulimits.len() as u64);
        let key = self.ulimits.iter().fold(key, |key, (name, (soft, hard))| {
            key.text(name).number(soft.cast_unsigned()).number(hard.cast_unsigned())
        });
        let key = key.number(self.labels.len() as u64);
        self.labels.iter().fold(key, |key, (name, value)| key.text(name).text(value))
    }
}

/// A size that the build argument `name` gives: bytes, or units of 1024 as Compose writes them.
///
/// # Errors
/// Says that it is none.
pub fn size_argument(
    args: &BTreeMap<String, Option<String>>,
    name: &str,
) -> Result<Option<u64>, String> {
    let text = args.get(name).and_then(Option::as_deref);
    let wrong = |text: &str| format!("the build argument {name}={text} is no size");
    text.map(|text| bytes(text).ok_or_else(|| wrong(text))).transpose()
}

/// A size as Compose writes them: `200gb`, units of 1024.
fn bytes(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let shift = match &lower[digits.len()..] {
        "" | "b" => 0,
        "k" | "kb" => 10,
        "m" | "mb" => 20,
        "g" | "gb" => 30,
        "t" | "tb" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}
