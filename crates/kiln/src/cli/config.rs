//! `kiln config`: reads the project here, as the caller; no agent is asked.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use kiln_core::compose::{self, Configuration, Variable};
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
    let as_json = json || args.format.as_deref() == Some("json");
    if args.part.variables {
        // They are asked for before they are set, so the project may not be whole.
        let all = compose::variables(&request).map_err(|errors| Report::compose("", &errors))?;
        return give(args.output.as_deref(), &variables(&all, as_json), json);
    }
    let configuration = compose::configuration(&request, &args.names)
        .map_err(|errors| Report::compose("", &errors))?;
    for warning in &configuration.warnings {
        let _ = writeln!(std::io::stderr(), "{}", terminal::clean(warning));
    }
    match wanted(&args.part, &configuration, as_json)? {
        Some(text) => give(args.output.as_deref(), &text, json),
        None => {
            // One document has to be there; that nothing is wrong is all it says.
            if json {
                super::print_json(&json!({ "warnings": configuration.warnings }));
            }
            Ok(Exit::Done)
        }
    }
}

/// Writes to the file that was asked for, else to standard output, where with `--json` it is said
/// that it was written.
fn give(file: Option<&Path>, text: &str, json: bool) -> Result<Exit, Report> {
    match file {
        Some(path) => {
            std::fs::write(path, text).because(|| format!("writing {}", path.display()))?;
            if json {
                super::print_json(&json!({ "written": path }));
            }
        }
        None => match super::write_out(text) {
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
fn wanted(part: &ConfigPart, all: &Configuration, json: bool) -> Result<Option<String>, Report> {
    let list = match part {
        ConfigPart { quiet: true, .. } => return Ok(None),
        ConfigPart { hash: Some(names), .. } => &hashes(names, all)?,
        ConfigPart { environment: true, .. } => &all.environment,
        ConfigPart { services: true, .. } => &all.services,
        ConfigPart { images: true, .. } => &all.images,
        ConfigPart { volumes: true, .. } => &all.volumes,
        ConfigPart { networks: true, .. } => &all.networks,
        ConfigPart { profiles: true, .. } => &all.profiles,
        _ if json => return Ok(Some(format!("{}\n", all.json))),
        _ => return Ok(Some(all.yaml.clone())),
    };
    if json {
        return Ok(Some(format!("{}\n", terminal::clean_json(&json!(list).to_string()))));
    }
    let mut text = String::new();
    for name in list {
        let _ = writeln!(text, "{}", terminal::clean(name));
    }
    Ok(Some(text))
}

/// `SERVICE HASH`, of the services in `names`, which have commas between them.
fn hashes(names: &str, all: &Configuration) -> Result<Vec<String>, Report> {
    let line = |name: &str| {
        let hash = all.hashes.get(name).map(|hash| format!("{name} {hash}"));
        hash.ok_or_else(|| {
            Report::usage(format!("there is no service `{name}`, or it is switched off"))
        })
    };
    match names {
        "*" => all.hashes.keys().map(|name| line(name)).collect(),
        _ => names.split(',').map(line).collect(),
    }
}

/// A table as Compose's, or its JSON.
fn variables(all: &BTreeMap<String, Variable>, json: bool) -> String {
    if json {
        let one = |(name, it): (&String, &Variable)| {
            let Variable { required, default, alternate } = it;
            let said = json!({
                "Name": name, "DefaultValue": default, "PresenceValue": alternate, "Required": required
            });
            (name.clone(), said)
        };
        let all: serde_json::Map<String, serde_json::Value> = all.iter().map(one).collect();
        return format!("{}\n", terminal::clean_json(&json!(all).to_string()));
    }
    let head = ["NAME", "REQUIRED", "DEFAULT VALUE", "ALTERNATE VALUE"].map(str::to_owned);
    let row = |(name, it): (&String, &Variable)| {
        [name, &it.required.to_string(), &it.default, &it.alternate]
            .map(|text| terminal::clean(text).to_string())
    };
    let rows: Vec<[String; 4]> = std::iter::once(head).chain(all.iter().map(row)).collect();
    let widest = |at: usize| rows.iter().map(|row| row[at].chars().count() + 3).max();
    let widths = [0, 1, 2].map(|at| widest(at).unwrap_or_default().max(20));
    let mut text = String::new();
    for [name, required, default, alternate] in &rows {
        let [first, second, third] = widths;
        let _ = writeln!(text, "{name:first$}{required:second$}{default:third$}{alternate}");
    }
    text
}
