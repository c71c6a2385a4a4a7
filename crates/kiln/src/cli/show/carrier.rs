//! What a person sees of `export` and `import`.

use serde_json::Value;

use super::{number, row, short, size, table, text};

/// `kiln export`.
pub(super) fn export(data: &Value) -> String {
    // An archive on standard output is all that may be there.
    if text(&data["output"]) == "-" {
        return String::new();
    }
    let mut rows = vec![row(["NAME", "MANIFEST", "TREE", "SIZE"])];
    for (name, image) in data["images"].as_object().into_iter().flatten() {
        rows.push(vec![
            name.clone(),
            text(&image["manifest"]).to_owned(),
            short(&image["tree"]).to_owned(),
            size(number(&image["bytes"])),
        ]);
    }
    format!("wrote {} ({})\n{}", text(&data["output"]), text(&data["format"]), table(&rows))
}

/// `kiln import`.
pub(super) fn import(data: &Value) -> String {
    if let Some(name) = data["removed"].as_str() {
        return format!("`{name}` is forgotten; `kiln gc` collects what nothing else names\n");
    }
    let kept = match data["name"].as_str() {
        Some(name) => format!("kept as `{name}`"),
        None => "not kept: `kiln gc` collects it unless a name or a release holds it".to_owned(),
    };
    let rows = [
        row(["tree", text(&data["tree"])]),
        row(["config", text(&data["config"])]),
        row(["manifest", text(&data["manifest"])]),
    ];
    format!("{}{kept}\n", table(&rows))
}
