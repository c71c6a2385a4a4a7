//! `networks`, `hostname` and `extra_hosts`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::error::ComposeError;
use super::keys;
use super::reader::At;

/// Refuses every network but `default`.
pub(super) fn only_default(network: &At<'_>) -> Result<(), ComposeError> {
    if network.key() == "default" {
        return Ok(());
    }
    Err(network
        .refuse(format!(
            "the network `{}` is not supported: there is one, `default`",
            network.key()
        ))
        .with_hint("leave `networks` out: every service is on it, by its name and aliases"))
}

/// The aliases under `networks.default` of a service.
pub(super) fn aliases(at: &At<'_>) -> Result<BTreeSet<String>, ComposeError> {
    let mut aliases = BTreeSet::new();
    for network in at.entries()? {
        only_default(&network)?;
        for key in network.entries()? {
            if !keys::NETWORK.admit(&key)? {
                continue;
            }
            for item in key.items()? {
                let alias = item.text()?;
                if !is_host_name(&alias) {
                    return Err(no_host_name(&item, &alias));
                }
                aliases.insert(alias);
            }
        }
    }
    Ok(aliases)
}

/// Reads `hostname`.
pub(super) fn hostname(at: &At<'_>) -> Result<String, ComposeError> {
    let text = at.text()?;
    // The kernel's limit, sethostname(2).
    if is_host_name(&text) && text.len() <= 64 { Ok(text) } else { Err(no_host_name(at, &text)) }
}

fn no_host_name(at: &At<'_>, text: &str) -> ComposeError {
    at.error(format!("`{text}` is no host name")).with_hint("use letters, digits, `-`, `_` and `.`")
}

fn is_host_name(text: &str) -> bool {
    let valid = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    !text.is_empty() && text.len() <= 253 && text.chars().all(valid)
}

/// Reads `extra_hosts`: `name=address` or `name:address`. `host-gateway` stays as the word.
pub(super) fn extra_hosts(at: &At<'_>) -> Result<Vec<(String, String)>, ComposeError> {
    let mut all = Vec::new();
    for item in at.items()? {
        let text = item.text()?;
        let Some((name, address)) = text.split_once('=').or_else(|| text.split_once(':')) else {
            return Err(item
                .error(format!("`{text}` is no `name=address`"))
                .with_hint("for example \"db=10.0.0.5\""));
        };
        let (name, address) = (name.trim(), address.trim());
        if !is_host_name(name) {
            return Err(no_host_name(&item, name));
        }
        let bare = address.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        let bare = bare.unwrap_or(address);
        if bare != "host-gateway" && bare.parse::<IpAddr>().is_err() {
            return Err(item
                .error(format!("`{address}` is no IP address"))
                .with_hint("write an address, or `host-gateway` for the host's"));
        }
        let pair = (name.to_owned(), bare.to_owned());
        if !all.contains(&pair) {
            all.push(pair);
        }
    }
    Ok(all)
}
