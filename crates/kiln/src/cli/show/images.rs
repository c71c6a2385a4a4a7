//! What a lock and a pull of images look like for a person.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{diff, digits, row, size, table};
use crate::answers::stored::{Locked, Pull, Pulled};
use crate::words::count;

/// `kiln lock`.
pub(super) fn lock(done: &Locked) -> String {
    let changed = if done.changed { "wrote" } else { "unchanged:" };
    let mut out = format!("{changed} {}\n", done.lock.display());
    let mut rows = Vec::new();
    for (name, base) in &done.bases {
        let packages = count(base.packages, "package");
        rows.push(vec![format!("  {name}"), packages, String::new()]);
    }
    for (name, image) in &done.images {
        let platforms = count(image.platforms.len(), "platform");
        rows.push(vec![format!("  {name}"), digits(&image.index), platforms]);
    }
    out.push_str(&table(&rows));
    for moved in &done.moved {
        let (Some(changes), Some(old)) = (&moved.changes, &moved.old) else { continue };
        let (old, new) = (digits(&old.index), digits(&moved.new.index));
        let _ = writeln!(out, "{}: {old} → {new}", moved.name);
        out.push_str(&diff::of_image(changes));
    }
    out.push_str(&fetched(&done.fetched));
    out
}

/// `kiln pull`.
pub(super) fn pull(done: &Pull) -> String {
    match done.images.is_empty() {
        true => "the project names no image of a registry\n".to_owned(),
        false => fetched(&done.images),
    }
}

fn fetched(images: &BTreeMap<String, Pulled>) -> String {
    let mut rows = Vec::new();
    for (name, pulled) in images {
        let done = match pulled.fetched + pulled.known {
            0 => "is here".to_owned(),
            all => {
                let layers = count(all, "layer");
                format!("{} of {layers}, {}", pulled.fetched, size(pulled.bytes))
            }
        };
        rows.push(row([name, &digits(&pulled.manifest), &digits(&pulled.image.tree), &done]));
    }
    if !rows.is_empty() {
        rows.insert(0, row(["IMAGE", "MANIFEST", "TREE", "FETCHED"]));
    }
    table(&rows)
}
