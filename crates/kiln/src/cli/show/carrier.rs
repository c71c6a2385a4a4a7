//! What a person sees of `export` and `import`.

use std::path::Path;

use super::{digits, row, size, table};
use crate::answers::stored::{Export, Import};

/// `kiln export`.
pub(super) fn export(done: &Export) -> String {
    // An archive on standard output is all that may be there.
    if done.output == Path::new("-") {
        return String::new();
    }
    let mut rows = vec![row(["NAME", "MANIFEST", "TREE", "SIZE"])];
    for (name, exported) in &done.images {
        rows.push(vec![
            name.clone(),
            exported.manifest.to_string(),
            digits(&exported.image.tree),
            size(exported.bytes),
        ]);
    }
    format!("wrote {} ({})\n{}", done.output.display(), done.format.word(), table(&rows))
}

/// `kiln import`.
pub(super) fn import(done: &Import) -> String {
    let taken = match done {
        Import::Removed { removed } => {
            return format!(
                "`{removed}` is forgotten; `kiln gc` collects what nothing else names\n"
            );
        }
        Import::Taken(taken) => taken,
    };
    let kept = match &taken.name {
        Some(name) => format!("kept as `{name}`"),
        None => "not kept: `kiln gc` collects it unless a name or a release holds it".to_owned(),
    };
    let rows = [
        row(["tree", &taken.tree.to_string()]),
        row(["config", &taken.config.to_string()]),
        row(["manifest", &taken.manifest.to_string()]),
    ];
    format!("{}{kept}\n", table(&rows))
}
