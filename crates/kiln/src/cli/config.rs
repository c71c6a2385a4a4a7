//! `kiln config`: reads the project here, as the caller; no agent is asked.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use kiln_core::compose::{self, Configuration};
use kiln_core::exit::Exit;
use serde_json::json;

use super::args::{ConfigArgs, ConfigPart};
use crate::protocol::ProjectArgs;
use crate::report::{Because as _, Report};
use crate::terminal;

pub(super) fn config(args: ConfigArgs, before: ProjectArgs, json: bool) -> Result<Exit, Report> {
    let project = before.and(args.project).naming(&args.names);
    let cwd = std::env::current_dir().because(|| "asking for the working directory".into())?;
    let env = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let read = |path: &Path| crate::compose::read(path, project.stdin.as_deref());
    let request = crate::compose::request(&project, &cwd, env, &read);
    let configuration = compose::configuration(&request, &args.names)
        .map_err(|errors| Report::compose("", &errors))?;
    for warning in &configuration.warnings {
        let _ = writeln!(std::io::stderr(), "{}", terminal::clean(warning));
    }
    let as_json = json || args.format.as_deref() == Some("json");
    let Some(text) = wanted(&args.part, &configuration, as_json) else {
        // One document has to be there; that nothing is wrong is all it says.
        if json {
            super::print_json(&json!({ "warnings": configuration.warnings }));
        }
        return Ok(Exit::Done);
    };
    match &args.output {
        Some(path) => {
            std::fs::write(path, text).because(|| format!("writing {}", path.display()))?;
            if json {
                super::print_json(&json!({ "written": path }));
            }
        }
        None => match super::write_out(&text) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                return Err(error).because(|| "writing to standard output".into());
            }
            _ => {}
        },
    }
    Ok(Exit::Done)
}

/// `None`: nothing is wanted. Control characters are escaped in the whole document; in names there
/// are none left.
fn wanted(part: &ConfigPart, all: &Configuration, json: bool) -> Option<String> {
    let list = match part {
        ConfigPart { quiet: true, .. } => return None,
        ConfigPart { services: true, .. } => &all.services,
        ConfigPart { images: true, .. } => &all.images,
        ConfigPart { volumes: true, .. } => &all.volumes,
        ConfigPart { networks: true, .. } => &all.networks,
        ConfigPart { profiles: true, .. } => &all.profiles,
        _ if json => return Some(format!("{}\n", all.json)),
        _ => return Some(all.yaml.clone()),
    };
    if json {
        return Some(format!("{}\n", terminal::clean_json(&json!(list).to_string())));
    }
    let mut text = String::new();
    for name in list {
        let _ = writeln!(text, "{}", terminal::clean(name));
    }
    Some(text)
}
