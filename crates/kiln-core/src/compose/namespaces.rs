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
            ("seccomp", _) => at.cx.refuse(
                item.error("a seccomp profile of your own is not supported")
                    .with_hint("the usual filter is on; `seccomp:unconfined` takes it off, by the root's policy"),
            ),
            _ => at.cx.refuse(
                item.error(format!("`{text}` is not supported"))
                    .with_hint("no-new-privileges and a seccomp filter are always on"),
            ),
        }
    }
    Ok(())
}
