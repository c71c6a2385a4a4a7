//! One line of the log.

use kiln_core::Digest;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Record;

/// A recorded entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number; the first is 1.
    pub seq: u64,
    /// Milliseconds since the Unix epoch.
    pub time: u64,
    /// What kind of thing happened.
    pub kind: String,
    /// The project it belongs to, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// The stage it belongs to, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// Anything else.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub data: Value,
    /// sha256 of the line before without its newline; 64 zeros for the first.
    #[serde(with = "hex")]
    pub prev: Digest,
}

/// What stands for the line before the first.
pub(super) const NONE: Digest = Digest::from_bytes([0; 32]);

/// The line of `record`, without a newline.
pub(super) fn render(record: &Record, seq: u64, prev: &Digest) -> Vec<u8> {
    let Record { time, kind, project, stage, data } = record.clone();
    let entry = Entry { seq, time, kind, project, stage, data, prev: *prev };
    // JSON of strings, numbers and values always succeeds, and escapes newlines.
    serde_json::to_vec(&entry).unwrap_or_default()
}

/// Digests in the log go without the algorithm's name, which every line would repeat.
mod hex {
    use kiln_core::Digest;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(of: &Digest, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&of.hex())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Digest, D::Error> {
        Digest::deserialize(from)
    }
}
