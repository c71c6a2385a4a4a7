//! `group_add`, `sysctls`, `dns` and its kin, `security_opt`: what a program finds in its namespaces.

use std::collections::{BTreeMap, BTreeSet};

use super::error::ComposeError;
use super::model::{Dns, Service};
use super::reader::At;

/// Reads `group_add`: names of the image's own groups, or numbers.
pub(super) fn groups(at: &At<'_>) -> Result<BTreeSet<String>, ComposeError> {
    let mut groups = BTreeSet::new();
    for item in at.items()?.filter(|item| !item.is_unset()) {
        let Some(text) = at.cx.keep(item.text()) else { continue };
        if text.contains([':', ',', '\n', '\0']) {
            let error = item.error(format!("`{text}` is no group"));
            at.cx.refuse(error.with_hint("a name or a number"));
            continue;
        }
        groups.insert(text);
    }
    Ok(groups)
}

/// Settings of the IPC namespace, beside those that begin with `fs.mqueue.` and `net.`.
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shm_rmid_forced",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
];

/// Whether a kernel setting belongs to namespaces that an instance has of its own.
pub fn is_own_sysctl(name: &str) -> bool {
    let valid = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    let own = IPC.contains(&name) || name.starts_with("fs.mqueue.") || name.starts_with("net.");
    own && name.chars().all(valid) && !name.contains("..")
}

/// Reads `sysctls`, a map by now.
pub(super) fn sysctls(at: &At<'_>) -> Result<BTreeMap<String, String>, ComposeError> {
    let mut all = BTreeMap::new();
    for entry in at.entries()? {
        let name = entry.key();
        if !is_own_sysctl(name) {
            let error =
                entry.refuse(format!("the kernel setting `{name}` is not the instance's own"));
            at.cx.refuse(error.with_hint(
                "net.*, fs.mqueue.*, kernel.shm*, kernel.msg* and kernel.sem are; set others on the host",
            ));
            continue;
        }
        all.insert(name.to_owned(), entry.optional_text()?.unwrap_or_default());
    }
    Ok(all)
}

/// Reads `dns`, `dns_search` or `dns_opt` into `dns`; each is a list by now, or one text.
pub(super) fn dns(at: &At<'_>, dns: &mut Dns) -> Result<(), ComposeError> {
    let mut texts = Vec::new();
    if at.is_list() {
        for item in at.items()?.filter(|item| !item.is_unset()) {
            texts.push((item.text()?, item.error("")));
        }
    } else {
        texts.push((at.text()?, at.error("")));
    }
    for (text, place) in texts {
        let wrong =
            |what: String, hint: &str| ComposeError { what, ..place.clone() }.with_hint(hint);
        let is_word = |text: &str| {
            !text.is_empty()
                && !text.contains(|letter: char| letter.is_whitespace() || letter.is_control())
        };
        match at.key() {
            "dns" => {
                let server = text.parse::<std::net::IpAddr>().map_err(|_| {
                    wrong(format!("`{text}` is no IP address"), "for example 10.0.0.2")
                });
                match server {
                    Ok(server) => dns.servers.push(server),
                    Err(error) => at.cx.refuse_to_run(error),
                }
            }
            _ if !is_word(&text) => {
                at.cx.refuse(wrong(format!("`{text}` is no single word"), ""));
            }
            "dns_search" => dns.search.push(text),
            _ => dns.options.push(text),
        }
    }
    Ok(())
}

/// Reads `security_opt`.
pub(super) fn security(at: &At<'_>, service: &mut Service) -> Result<(), ComposeError> {
    for item in at.items()?.filter(|item| !item.is_unset()) {
        let Some(text) = at.cx.keep(item.text()) else { continue };
        let (name, value) = text.split_once([':', '=']).unwrap_or((&text, ""));
        match (name, value) {
            ("no-new-privileges", "" | "true") => item.list(),
            ("no-new-privileges", "false") => item.list_as("it is always on"),
            ("apparmor" | "label", _) => item.list(),
            ("seccomp", "unconfined") => service.unconfined = true,
            ("seccomp", "builtin") => item.list_as("the usual filter is on"),
            ("seccomp", path) => at.cx.refuse(profile(&item, path)),
            _ => at.cx.refuse(
                item.error(format!("`{text}` is not supported"))
                    .with_hint("no-new-privileges and a seccomp filter are always on"),
            ),
        }
    }
    Ok(())
}

/// What to do without a profile of one's own.
const USUAL: &str = "leave it out: the usual filter is Docker's default profile or stricter, and \
                     `cap_add` opens in it what each capability needs; `seccomp:unconfined` takes \
                     it off, by the root's policy";

/// Why a seccomp profile is refused: what is wrong with it, or that none is put into force.
fn profile(item: &At<'_>, path: &str) -> ComposeError {
    let path = item.cx.absolute(path);
    let shown = item.cx.shown(&path);
    let content = match (item.cx.read)(&path) {
        Ok(content) => content,
        Err(error) => {
            return item
                .error(format!("the seccomp profile {shown} cannot be read: {error}"))
                .with_hint("`seccomp:` takes `unconfined`; without it the usual filter is on");
        }
    };
    let wrong = |line: usize, column: usize, what: String| {
        let to = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        ComposeError { file: shown.clone(), line: to(line), column: to(column), ..item.error(what) }
            .with_hint(
                "a profile is an object with `defaultAction` and `syscalls`, as Docker has it",
            )
    };
    let profile: Profile = match serde_json::from_slice(&content) {
        Ok(profile) => profile,
        Err(error) => {
            return wrong(
                error.line(),
                error.column(),
                format!("it is no seccomp profile: {error}"),
            );
        }
    };
    let calls: usize = profile.syscalls.iter().flatten().map(|rule| rule.names.len()).sum();
    let what = match profile.default_action.as_str() {
        "SCMP_ACT_ALLOW" => format!("it allows all but {calls} calls"),
        other => format!("it names {calls} calls, all others are {other}"),
    };
    item.error(format!("a seccomp profile of your own is not supported ({shown}: {what})"))
        .with_hint(USUAL)
}

/// As much of Docker's form of a profile as says what it is about.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    syscalls: Option<Vec<Rule>>,
}

#[derive(serde::Deserialize)]
struct Rule {
    #[serde(default)]
    names: Vec<String>,
}
