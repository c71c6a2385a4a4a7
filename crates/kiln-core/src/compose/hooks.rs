//! `post_start` and `pre_stop`: commands that are run in an instance beside its program.

use super::error::ComposeError;
use super::keys;
use super::model::Hook;
use super::reader::At;
use super::service::command;

/// Reads either key.
pub(super) fn read(at: &At<'_>) -> Result<Vec<Hook>, ComposeError> {
    if !at.is_list() {
        return Err(at
            .expected("a list of hooks")
            .with_hint("for example [{command: [\"/bin/sh\", \"-c\", \"…\"], user: root}]"));
    }
    at.items()?.filter(|item| !item.is_unset()).map(|item| hook(&item)).collect()
}

fn hook(at: &At<'_>) -> Result<Hook, ComposeError> {
    let mut hook = Hook::default();
    for key in at.entries()? {
        if !keys::HOOK.admit(&key)? || key.is_unset() {
            continue;
        }
        match key.key() {
            "command" => hook.command = command(&key)?,
            "user" => hook.user = Some(key.text()?),
            "working_dir" => hook.working_dir = Some(key.target(&key.text()?)?),
            _ => hook.env = environment(&key)?,
        }
    }
    if hook.command.is_empty() {
        return Err(at
            .error("a hook has no `command`")
            .with_hint("for example {command: [\"/bin/sh\", \"-c\", \"…\"]}"));
    }
    Ok(hook)
}

/// A name without a value takes that of the environment, as in `environment` of a service.
fn environment(at: &At<'_>) -> Result<Vec<String>, ComposeError> {
    let mut env = Vec::new();
    for entry in at.entries()? {
        let name = entry.key();
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(entry.refuse(format!("`{name}` is no name of a variable")));
        }
        let value = entry.optional_text()?.or_else(|| at.cx.env.get(name).cloned());
        env.extend(value.map(|value| format!("{name}={value}")));
    }
    env.sort();
    Ok(env)
}
