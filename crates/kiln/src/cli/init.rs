//! `kiln init`: a commented starter file.

use std::path::Path;

use kiln_core::exit::Exit;
use serde_json::json;

use crate::report::{Because, Report};

const STARTER: &str = include_str!("starter.yaml");

/// Writes `compose.yaml` into `dir` unless a Compose file is there.
pub(crate) fn init(dir: &Path, json: bool) -> Result<Exit, Report> {
    const NAMES: [&str; 4] =
        ["compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml"];
    if let Some(name) = NAMES.iter().find(|name| dir.join(name).exists()) {
        return Err(Report::usage(format!("{} is there already", dir.join(name).display()))
            .hint("`kiln up` deploys it; remove it first to begin anew"));
    }
    let path = dir.join("compose.yaml");
    std::fs::write(&path, STARTER).because(|| format!("writing {}", path.display()))?;
    if json {
        super::print_line(&json!({ "written": path }).to_string());
    } else {
        super::print_line("wrote compose.yaml; edit it, then: kiln up");
    }
    Ok(Exit::Done)
}
