//! What containers-registries.conf(5), version 2, says; and `/etc/docker/daemon.json` about mirrors
//! and registries that are not encrypted.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::address::{Address, host_of};
use super::error::Error;

/// Mirrors that are tried for one image.
const MIRRORS: usize = 32;

/// All files together; later ones count.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Conf {
    /// Where a name without a registry is looked for; `None` where no file says so.
    pub(super) unqualified: Option<Vec<String>>,
    /// Whether several such places may be tried.
    pub(super) several: bool,
    /// Names without a registry that mean something else.
    pub(super) aliases: BTreeMap<String, String>,
    pub(super) entries: Vec<Entry>,
    /// Credential helpers that are asked for every registry.
    pub(super) helpers: Vec<String>,
    /// Registries that Docker's daemon takes without encryption: hosts and networks.
    docker_insecure: Vec<String>,
    /// Mirrors of `docker.io` that Docker's daemon asks.
    docker_mirrors: Vec<Mirror>,
}

/// What holds for names with a prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) prefix: String,
    pub(super) location: Option<String>,
    pub(super) insecure: bool,
    pub(super) blocked: bool,
    pub(super) mirrors: Vec<Mirror>,
    /// The file in which it stands.
    pub(super) path: String,
}

/// Where else the same may be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mirror {
    pub(super) location: String,
    pub(super) insecure: bool,
    /// Whether it is asked what a tag is.
    pub(super) tags: bool,
    /// Whether it is asked for digests.
    pub(super) digests: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    unqualified_search_registries: Option<Vec<String>>,
    short_name_mode: Option<String>,
    credential_helpers: Option<Vec<String>>,
    #[serde(default)]
    aliases: BTreeMap<String, String>,
    #[serde(default)]
    registry: Vec<FileEntry>,
    registries: Option<toml::Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct FileEntry {
    prefix: Option<String>,
    location: Option<String>,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<FileMirror>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct FileMirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    pull_from_mirror: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Daemon {
    #[serde(default)]
    insecure_registries: Vec<String>,
    #[serde(default)]
    registry_mirrors: Vec<String>,
}

impl Conf {
    /// Takes a file of containers-registries.conf(5) into account.
    pub(super) fn add(&mut self, path: &str, text: &str) -> Result<(), Error> {
        let fail = |what: String| Error::Configuration { path: path.to_owned(), what };
        let file: File = toml::from_str(text).map_err(|error| fail(error.to_string()))?;
        if file.registries.is_some() {
            let what = "`[registries…]` is the old form; write `[[registry]]` as in version 2 of \
                        containers-registries.conf(5)";
            return Err(fail(what.into()));
        }
        if let Some(list) = file.unqualified_search_registries {
            self.unqualified = Some(list);
        }
        match file.short_name_mode.as_deref() {
            None => {}
            Some("enforcing") => self.several = false,
            Some("permissive" | "disabled") => self.several = true,
            Some(other) => return Err(fail(format!("short-name-mode `{other}` is unknown"))),
        }
        if let Some(helpers) = file.credential_helpers {
            self.helpers = helpers;
        }
        for (name, value) in file.aliases {
            // An empty one takes back what an earlier file said.
            match value.is_empty() {
                true => self.aliases.remove(&name),
                false => self.aliases.insert(name, value),
            };
        }
        for entry in file.registry {
            let entry = entry.read(path).map_err(fail)?;
            self.entries.retain(|other| other.prefix != entry.prefix);
            self.entries.push(entry);
        }
        Ok(())
    }

    /// Takes Docker's own file into account.
    pub(super) fn add_daemon(&mut self, path: &str, text: &str) -> Result<(), Error> {
        let fail = |what: String| Error::Configuration { path: path.to_owned(), what };
        let daemon: Daemon = serde_json::from_str(text).map_err(|error| fail(error.to_string()))?;
        self.docker_insecure = daemon.insecure_registries;
        for mirror in daemon.registry_mirrors {
            let address = Address::parse(&mirror);
            let address = address.ok_or_else(|| fail(format!("`{mirror}` is no mirror")))?;
            let path = address.target.trim_end_matches('/');
            self.docker_mirrors.push(Mirror {
                location: format!("{}{path}", address.authority),
                insecure: !address.secure,
                tags: true,
                digests: true,
            });
        }
        Ok(())
    }

    /// What holds for a name: the entry with the longest prefix.
    pub(super) fn entry(&self, registry: &str, whole: &str) -> Option<&Entry> {
        let fits = |entry: &&Entry| entry.rest(registry, whole).is_some();
        self.entries.iter().filter(fits).max_by_key(|entry| entry.prefix.len())
    }

    /// Mirrors of a name, in the order in which they are asked.
    pub(super) fn mirrors<'a>(&'a self, entry: Option<&'a Entry>, registry: &str) -> &'a [Mirror] {
        let mirrors = match entry {
            Some(entry) if !entry.mirrors.is_empty() => &entry.mirrors,
            _ if registry == super::reference::DOCKER_HUB => &self.docker_mirrors,
            _ => return &[],
        };
        &mirrors[..mirrors.len().min(MIRRORS)]
    }

    /// Whether Docker's daemon takes a registry without encryption.
    pub(super) fn docker_takes_insecure(&self, authority: &str) -> bool {
        let address: Option<std::net::IpAddr> = host_of(authority).parse().ok();
        self.docker_insecure.iter().any(|named| {
            let network = named.split_once('/').zip(address).is_some_and(|(parts, address)| {
                let (Ok(network), Ok(bits)) = (parts.0.parse(), parts.1.parse()) else {
                    return false;
                };
                crate::http::in_network(address, network, bits)
            });
            named.eq_ignore_ascii_case(authority) || network
        })
    }
}

impl FileEntry {
    fn read(self, path: &str) -> Result<Entry, String> {
        let prefix = self.prefix.filter(|prefix| !prefix.is_empty());
        let location = self.location.filter(|location| !location.is_empty());
        let Some(prefix) = prefix.or_else(|| location.clone()) else {
            return Err("a [[registry]] has neither `prefix` nor `location`".into());
        };
        let clean = |text: &str| text.trim_end_matches('/').to_owned();
        let wrong = |text: &str| text.contains("://") || text.is_empty();
        if let Some(text) =
            [Some(&prefix), location.as_ref()].into_iter().flatten().find(|t| wrong(t))
        {
            return Err(format!("`{text}` is no prefix: it has no `http://` or `https://`"));
        }
        let only_digests = self.mirror_by_digest_only;
        let mirrors = self.mirror.into_iter().map(|mirror| {
            if wrong(&mirror.location) {
                return Err(format!("`{}` is no location of a mirror", mirror.location));
            }
            let (tags, digests) = match mirror.pull_from_mirror.as_deref() {
                None | Some("") => (!only_digests, true),
                Some("all") => (true, true),
                Some("digest-only") => (false, true),
                Some("tag-only") => (true, false),
                Some(other) => return Err(format!("pull-from-mirror `{other}` is unknown")),
            };
            let (location, insecure) = (clean(&mirror.location), mirror.insecure);
            Ok(Mirror { location, insecure, tags, digests })
        });
        Ok(Entry {
            prefix: clean(&prefix),
            location: location.map(|location| clean(&location)),
            insecure: self.insecure,
            blocked: self.blocked,
            mirrors: mirrors.collect::<Result<_, _>>()?,
            path: path.to_owned(),
        })
    }
}

impl Entry {
    /// What of a whole name follows the prefix; `None` if it does not begin with it.
    pub(super) fn rest<'a>(&self, registry: &str, whole: &'a str) -> Option<&'a str> {
        if let Some(suffix) = self.prefix.strip_prefix('*') {
            let host = host_of(registry);
            let below = suffix.starts_with('.') && host.ends_with(suffix) && host != suffix;
            return below.then(|| &whole[registry.len().min(whole.len())..]);
        }
        let rest = whole.strip_prefix(self.prefix.as_str())?;
        (rest.is_empty() || rest.starts_with(['/', ':', '@'])).then_some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_counts_and_later_files_too() {
        let mut conf = Conf::default();
        conf.add(
            "a",
            r#"
unqualified-search-registries = ["docker.io", "quay.io"]
short-name-mode = "enforcing"
[[registry]]
location = "a.example"
insecure = true
[[registry]]
prefix = "a.example/team"
location = "b.example/other/"
mirror-by-digest-only = true
[[registry.mirror]]
location = "m.example"
[[registry.mirror]]
location = "n.example/x"
pull-from-mirror = "tag-only"
[[registry]]
prefix = "*.wild.example"
blocked = true
[aliases]
"fedora" = "registry.fedoraproject.org/fedora"
"gone" = "x.example/gone"
"#,
        )
        .unwrap();
        conf.add("b", "[aliases]\ngone = ''\n[[registry]]\nlocation = 'a.example'\n").unwrap();
        let entry = |registry: &str, whole: &str| conf.entry(registry, whole);
        let team = entry("a.example", "a.example/team/app:1").unwrap();
        assert_eq!(team.location.as_deref(), Some("b.example/other"));
        let seen: Vec<_> =
            team.mirrors.iter().map(|mirror| (mirror.tags, mirror.digests)).collect();
        assert_eq!(seen, [(false, true), (true, false)]);
        let other = entry("a.example", "a.example/teams/app:1").unwrap();
        assert_eq!(
            (other.prefix.as_str(), other.insecure, other.path.as_str()),
            ("a.example", false, "b")
        );
        assert!(entry("x.wild.example:5000", "x.wild.example:5000/a").unwrap().blocked);
        assert!(entry("wild.example", "wild.example/a").is_none());
        assert!(entry("a.example.org", "a.example.org/a").is_none());
        assert_eq!(conf.aliases.len(), 1);
        assert!(!conf.several);
    }

    #[test]
    fn what_is_wrong_names_the_file() {
        for (text, what) in [
            ("[[registry]]\n", "neither"),
            ("[[registry]]\nlocation = 'https://a.example'\n", "https://"),
            ("[registries.search]\nregistries = []\n", "the old form"),
            ("short-name-mode = 'x'\n", "`x` is unknown"),
            (
                "[[registry]]\nlocation='a'\n[[registry.mirror]]\nlocation='b'\npull-from-mirror='x'\n",
                "`x` is unknown",
            ),
            ("no toml", "expected"),
        ] {
            let error = Conf::default().add("/etc/x.conf", text).unwrap_err();
            let words = error.to_string();
            assert!(words.starts_with("/etc/x.conf: ") && words.contains(what), "{words}");
            assert!(error.is_usage());
        }
    }

    #[test]
    fn what_dockers_daemon_takes_is_taken() {
        let mut conf = Conf::default();
        let text = r#"{ "insecure-registries": ["10.0.0.0/8", "reg.example:5000"],
            "registry-mirrors": ["https://m.example/", "http://n.example/hub"], "debug": true }"#;
        conf.add_daemon("d", text).unwrap();
        for (authority, taken) in [
            ("10.1.2.3:5000", true),
            ("reg.example:5000", true),
            ("reg.example", false),
            ("11.0.0.1", false),
        ] {
            assert_eq!(conf.docker_takes_insecure(authority), taken, "{authority}");
        }
        let mirrors = conf.mirrors(None, "docker.io");
        let seen: Vec<_> = mirrors.iter().map(|m| (m.location.as_str(), m.insecure)).collect();
        assert_eq!(seen, [("m.example", false), ("n.example/hub", true)]);
        assert!(conf.mirrors(None, "quay.io").is_empty());
    }
}
