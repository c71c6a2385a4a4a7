//! What a lock and a pull of images look like for a person.

use std::fmt::Write as _;

use serde_json::Value;

use super::{diff, list, number, row, short, size, table, text};

/// `kiln lock`.
pub(super) fn lock(data: &Value) -> String {
    let changed = if data["changed"].as_bool() == Some(true) { "wrote" } else { "unchanged:" };
    let mut out = format!("{changed} {}\n", text(&data["lock"]));
    let mut rows = Vec::new();
    for (name, base) in data["bases"].as_object().into_iter().flatten() {
        let packages = format!("{} packages", number(&base["packages"]));
        rows.push(vec![format!("  {name}"), packages, String::new()]);
    }
    for (name, image) in data["images"].as_object().into_iter().flatten() {
        let platforms = match list(&image["platforms"]).count() {
            1 => "1 platform".to_owned(),
            count => format!("{count} platforms"),
        };
        rows.push(vec![format!("  {name}"), short(&image["index"]).to_owned(), platforms]);
    }
    out.push_str(&table(&rows));
    for moved in list(&data["moved"]).filter(|moved| moved["changes"].is_object()) {
        let (old, new) = (short(&moved["old"]["index"]), short(&moved["new"]["index"]));
        let _ = writeln!(out, "{}: {old} → {new}", text(&moved["name"]));
        out.push_str(&diff::of_image(&moved["changes"]));
    }
    out.push_str(&fetched(&data["fetched"]));
    out
}

/// `kiln pull`.
pub(super) fn pull(data: &Value) -> String {
    match data["images"].as_object().is_none_or(serde_json::Map::is_empty) {
        true => "the project names no image of a registry\n".to_owned(),
        false => fetched(&data["images"]),
    }
}

fn fetched(images: &Value) -> String {
    let mut rows = Vec::new();
    for (name, image) in images.as_object().into_iter().flatten() {
        let (new, known) = (number(&image["fetched"]), number(&image["known"]));
        let done = match new + known {
            0 => "is here".to_owned(),
            all => format!("{new} of {all} layers, {}", size(number(&image["bytes"]))),
        };
        rows.push(row([name, short(&image["manifest"]), short(&image["tree"]), &done]));
    }
    if !rows.is_empty() {
        rows.insert(0, row(["IMAGE", "MANIFEST", "TREE", "FETCHED"]));
    }
    table(&rows)
}
