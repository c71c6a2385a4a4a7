//! What `bake`, `release`, `exec`, `shutdown` and `ping` answer.

use std::collections::BTreeMap;

use kiln_core::release::Source;
use kiln_core::{Digest, ImageId};
use serde::{Deserialize, Serialize};

/// `kiln bake`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Baked {
    pub images: BTreeMap<String, Bake>,
}

/// A service's image and what it took to make it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bake {
    #[serde(flatten)]
    pub image: ImageId,
    /// Number of steps; none for a service that runs a base as it is.
    pub steps: usize,
    /// Steps for which nothing had to be done.
    pub cached: usize,
}

impl From<ImageId> for Bake {
    fn from(image: ImageId) -> Self {
        Self { image, steps: 0, cached: 0 }
    }
}

/// `kiln release`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cut {
    pub project: String,
    pub release: Digest,
    pub source: Source,
    /// Whether it had not been there before.
    pub fresh: bool,
    pub images: BTreeMap<String, ImageId>,
    pub ms: u64,
}

/// `kiln exec`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Executed {
    pub service: String,
    /// The command's exit status; 126 and 127 where there was nothing to execute.
    pub code: i32,
    /// Why there was nothing to execute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// `kiln shutdown`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Shutdown {
    /// An agent ran, and has ended all there was.
    Ended { stopped: Vec<String>, agent: bool },
    /// None ran.
    NoAgent {
        agent: bool,
        /// Whether one had left something, which is cleared away.
        collected: bool,
    },
}

/// `kiln ping`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pong {
    /// The build of the agent.
    pub agent: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::pinned;
    use super::*;

    #[test]
    fn what_was_made() {
        let digest = Digest::from_bytes([0xab; 32]);
        let image = ImageId { tree: digest, config: digest };
        let one = |bake: Bake| BTreeMap::from([("web".to_owned(), bake)]);
        let baked = Baked { images: one(Bake { image, steps: 4, cached: 3 }) };
        let image_of = json!({ "tree": digest, "config": digest, "steps": 4, "cached": 3 });
        pinned(&baked, &json!({ "images": { "web": image_of } }));
        let cut = Cut {
            project: "shop".into(),
            release: digest,
            source: Source { commit: Some("0123".into()), dirty: false },
            fresh: true,
            images: BTreeMap::from([("web".into(), image)]),
            ms: 5,
        };
        pinned(
            &cut,
            &json!({
                "project": "shop", "release": digest, "source": { "commit": "0123" },
                "fresh": true, "images": { "web": { "tree": digest, "config": digest } }, "ms": 5,
            }),
        );
    }

    #[test]
    fn what_was_done() {
        let done = Executed { service: "web".into(), code: 3, message: None };
        pinned(&done, &json!({ "service": "web", "code": 3 }));
        let none = Executed { code: 127, message: Some("there is no such program".into()), ..done };
        let said = json!({ "service": "web", "code": 127, "message": "there is no such program" });
        pinned(&none, &said);
        let ended = Shutdown::Ended { stopped: vec!["a".into()], agent: true };
        pinned(&ended, &json!({ "stopped": ["a"], "agent": true }));
        let none = Shutdown::NoAgent { agent: false, collected: true };
        pinned(&none, &json!({ "agent": false, "collected": true }));
        pinned(&Pong { agent: "kiln 0.1.0 7".into() }, &json!({ "agent": "kiln 0.1.0 7" }));
    }
}
