//! Pins of images: missing ones made, moved ones told of before they are written.

use std::collections::BTreeMap;

use kiln_bake::base::LockedImage;
use kiln_core::ImageId;
use serde::{Deserialize, Serialize};

use super::{Images, locked};
use crate::agent::verbs::diff;
use crate::answers::differing::{ImageDiff, Package};
use crate::report::Report;
use crate::words::count;

/// Packages that a sentence names.
const FEW: usize = 5;

/// A pin that moved, or came.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Moved {
    pub name: String,
    pub old: Option<LockedImage>,
    pub new: LockedImage,
    /// What is different in the image for this machine, as `kiln diff` has it; without it, the old
    /// one is not in this store.
    pub changes: Option<ImageDiff>,
}

impl Images<'_> {
    /// Pins `names` as far as they are not pinned, and `again` those of them that this says. What
    /// moves is fetched and compared.
    ///
    /// # Errors
    /// A registry or the store; nothing is pinned anew then.
    pub(crate) fn lock(
        &self,
        names: impl Iterator<Item = String>,
        again: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<Moved>, Report> {
        let mut pins = self.pins();
        let mut moved = Vec::new();
        for name in names {
            self.session.check()?;
            let old = pins.get(&name).cloned();
            if old.is_some() && !again(&name) {
                continue;
            }
            let new = self.resolve(&name)?;
            if old.as_ref() == Some(&new) {
                continue;
            }
            let changes = match &old {
                Some(old) => self.changes(&name, old, &new)?,
                None => None,
            };
            pins.insert(name.clone(), new.clone());
            moved.push(Moved { name, old, new, changes });
        }
        *locked(&self.pinned) = pins;
        Ok(moved)
    }

    fn changes(
        &self,
        name: &str,
        old: &LockedImage,
        new: &LockedImage,
    ) -> Result<Option<ImageDiff>, Report> {
        let Some(before) = self.there(name, old)? else { return Ok(None) };
        let after = self.pull(name, new)?.image;
        difference(self, before, after).map(Some)
    }
}

fn difference(images: &Images<'_>, before: ImageId, after: ImageId) -> Result<ImageDiff, Report> {
    diff::images(images.agent, before, after)
}

impl Moved {
    /// One sentence.
    pub(crate) fn words(&self) -> String {
        let new = self.new.index.short();
        let Some(old) = &self.old else {
            return format!("{} is pinned to {new}", self.name);
        };
        let head = format!("{} moves from {} to {new}", self.name, old.index.short());
        let Some(changes) = &self.changes else {
            return format!("{head}; the old one is not in this store, so it is not compared");
        };
        let packages: Vec<String> = changes.packages.iter().map(package).collect();
        let mut parts = Vec::new();
        if !packages.is_empty() {
            let few = packages.iter().take(FEW).cloned().collect::<Vec<_>>().join(", ");
            let more = if packages.len() > FEW { ", …" } else { "" };
            parts.push(format!("{} ({few}{more})", count(packages.len(), "package")));
        }
        let mut files: BTreeMap<&str, usize> = BTreeMap::new();
        for file in &changes.files {
            *files.entry(file.change.word()).or_default() += 1;
        }
        let paths =
            |(change, number): (&&str, &usize)| format!("{} {change}", count(*number, "path"));
        parts.extend(files.iter().map(paths));
        let keys = changes.config.as_deref().unwrap_or_default();
        if !keys.is_empty() {
            let keys: Vec<&str> = keys.iter().map(|change| change.key.as_str()).collect();
            parts.push(format!("configuration: {}", keys.join(", ")));
        }
        match parts.is_empty() {
            true => format!("{head}: nothing of the image for this machine differs"),
            false => format!("{head}: {}", parts.join("; ")),
        }
    }
}

fn package(package: &Package) -> String {
    let name = &package.name;
    match (&package.old, &package.new) {
        (Some(old), Some(new)) => format!("{name} {old} → {new}"),
        (None, Some(new)) => format!("+ {name} {new}"),
        (_, None) => format!("- {name}"),
    }
}
