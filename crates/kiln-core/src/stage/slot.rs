//! Slots: the instances of one release, and the stable addresses at which they find each other.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::Digest;

/// What a slot is for. It follows from traffic, pointer and what is being delivered; see
/// [`super::Stage::role`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It serves.
    Active,
    /// It is kept warm for rollback.
    Standby,
    /// It is being provisioned and tested.
    Candidate,
    /// Only its names are still needed, by instances that started in it and are shared.
    Names,
}

/// The set of instances of one release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// The release.
    pub release: Digest,
    /// Virtual address of each service.
    pub addresses: BTreeMap<String, Ipv4Addr>,
    /// Instances of each service that has any.
    #[serde(deserialize_with = "one_or_many")]
    pub members: BTreeMap<String, Vec<String>>,
}

impl Slot {
    /// The instances of `service`.
    pub fn of(&self, service: &str) -> &[String] {
        self.members.get(service).map_or(&[], Vec::as_slice)
    }

    /// Whether `id` is an instance of `service` here.
    pub fn has(&self, service: &str, id: &str) -> bool {
        self.of(service).iter().any(|member| member == id)
    }

    /// All instances.
    pub fn all(&self) -> impl Iterator<Item = &String> {
        self.members.values().flatten()
    }

    pub(super) fn add(&mut self, service: &str, id: &str) {
        let list = self.members.entry(service.to_owned()).or_default();
        if !list.iter().any(|member| member == id) {
            list.push(id.to_owned());
        }
    }

    pub(super) fn keep(&mut self, wanted: impl Fn(&str) -> bool) {
        self.members.retain(|_, list| {
            list.retain(|id| wanted(id));
            !list.is_empty()
        });
    }
}

/// Kiln up to 0.1 wrote the one instance of a service instead of a list.
fn one_or_many<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<BTreeMap<String, Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Members {
        One(String),
        Many(Vec<String>),
    }
    let read = BTreeMap::<String, Members>::deserialize(from)?;
    let list = |members| match members {
        Members::One(id) => vec![id],
        Members::Many(ids) => ids,
    };
    Ok(read.into_iter().map(|(service, members)| (service, list(members))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_instance_is_read_as_a_list() {
        let release = Digest::of("r");
        let old = format!(r#"{{"release":"{release}","addresses":{{}},"members":{{"a":"x"}}}}"#);
        let slot: Slot = serde_json::from_str(&old).unwrap();
        assert!(slot.has("a", "x") && !slot.has("b", "x"));
        let again: Slot = serde_json::from_str(&serde_json::to_string(&slot).unwrap()).unwrap();
        assert_eq!(again, slot);
    }
}
