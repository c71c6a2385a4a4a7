//! The files in which Docker and podman keep names and passwords: `config.json` and
//! containers-auth.json(5).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use super::credentials::{Credential, Keychain};
use super::error::Error;
use super::helper::Helper;
use super::reference::DOCKER_HUB;
use super::registries::small_file;

/// The key of Docker's own registry in its files.
pub(super) const HUB_KEY: &str = "https://index.docker.io/v1/";
/// The word for these very files among credential helpers.
const THE_FILES: &str = "containers-auth.json";

/// What the user with an environment has logged in to. It has to be asked in a process of that user:
/// it reads the user's files and runs the user's programs.
#[derive(Debug)]
pub struct HostKeychain<'a> {
    files: Vec<(PathBuf, File)>,
    helpers: Vec<String>,
    env: BTreeMap<String, String>,
    /// What helpers have answered, by helper and registry: a safe is opened once.
    answers: Mutex<BTreeMap<(String, String), Option<Credential>>>,
    cancel: &'a AtomicBool,
}

/// One file.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default)]
    pub(super) creds_store: String,
    #[serde(default)]
    pub(super) cred_helpers: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
}

/// Never shows what only the user knows.
impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Entry")
    }
}

impl<'a> HostKeychain<'a> {
    /// Reads the files; `helpers` are those of containers-registries.conf(5).
    ///
    /// # Errors
    /// [`Error::Configuration`] names the file that cannot be used.
    pub fn read(
        env: &BTreeMap<String, String>,
        helpers: &[String],
        cancel: &'a AtomicBool,
    ) -> Result<Self, Error> {
        let mut files = Vec::new();
        for path in paths(env) {
            if let Some(file) = File::read(&path)? {
                files.push((path, file));
            }
        }
        let helpers = helpers.iter().filter(|name| *name != THE_FILES).cloned().collect();
        let answers = Mutex::default();
        Ok(Self { files, helpers, env: env.clone(), answers, cancel })
    }

    /// Which files have something for a registry or what is in it.
    pub(super) fn files_that_know(&self, registry: &str) -> Vec<PathBuf> {
        let known = self.files.iter().filter(|(_, file)| file.knows(registry));
        known.map(|(path, _)| path.clone()).collect()
    }

    fn ask(&self, helper: &str, registry: &str) -> Result<Option<Credential>, Error> {
        let key = (helper.to_owned(), registry.to_owned());
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = answers.get(&key) {
            return Ok(known.clone());
        }
        let helper = Helper { name: helper, env: &self.env, cancel: self.cancel };
        let mut found = None;
        for server in servers(registry) {
            if found.is_none() {
                found = helper.get(server)?;
            }
        }
        answers.insert(key, found.clone());
        Ok(found)
    }
}

impl Keychain for HostKeychain<'_> {
    fn credential(&self, registry: &str, repository: &str) -> Result<Option<Credential>, Error> {
        for (path, file) in &self.files {
            if let Some(helper) = file.helper(registry)
                && let Some(found) = self.ask(helper, registry)?
            {
                return Ok(Some(found));
            }
            let found = file.entry(registry, repository).map(Entry::credential);
            match found {
                None | Some(Ok(None)) => {}
                Some(Ok(found)) => return Ok(found),
                Some(Err(what)) => {
                    let path = path.display().to_string();
                    return Err(Error::Configuration { path, what: what.into() });
                }
            }
        }
        for helper in &self.helpers {
            if let Some(found) = self.ask(helper, registry)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

impl File {
    pub(super) fn read(path: &Path) -> Result<Option<Self>, Error> {
        let Some(bytes) = small_file(path)? else { return Ok(None) };
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Some(Self::default()));
        }
        // The words of the reader would show what is around the mistake: a password perhaps.
        serde_json::from_slice(&bytes).map(Some).map_err(|error| Error::Configuration {
            path: path.display().to_string(),
            what: format!("line {}, column {}: it cannot be read", error.line(), error.column()),
        })
    }

    /// The helper for a registry.
    pub(super) fn helper(&self, registry: &str) -> Option<&str> {
        let own = servers(registry).iter().find_map(|server| self.cred_helpers.get(*server));
        let any = Some(&self.creds_store).filter(|name| !name.is_empty());
        own.or(any).map(String::as_str)
    }

    /// The entry with the longest key that a repository begins with.
    fn entry(&self, registry: &str, repository: &str) -> Option<&Entry> {
        let name = format!("{registry}/{repository}");
        let mut best: Option<(usize, &Entry)> = None;
        for (key, entry) in &self.auths {
            let key = plain(key);
            let fits =
                name.strip_prefix(&key).is_some_and(|rest| rest.starts_with('/')) || name == key;
            if fits && best.is_none_or(|(length, _)| key.len() > length) && entry.says_something() {
                best = Some((key.len(), entry));
            }
        }
        best.map(|(_, entry)| entry)
    }

    /// Whether it says anything about a registry or what is in it.
    pub(super) fn knows(&self, registry: &str) -> bool {
        self.auths.iter().any(|(key, entry)| {
            let key = plain(key);
            let fits = key
                .strip_prefix(registry)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
            fits && entry.says_something()
        })
    }
}

impl Entry {
    fn says_something(&self) -> bool {
        [&self.auth, &self.username, &self.identitytoken].iter().any(|text| !text.is_empty())
    }

    fn credential(&self) -> Result<Option<Credential>, &'static str> {
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credential::Identity(self.identitytoken.clone())));
        }
        if self.auth.is_empty() {
            let (username, password) = (self.username.clone(), self.password.clone());
            let known = !username.is_empty();
            return Ok(known.then_some(Credential::Password { username, password }));
        }
        let wrong = "an `auth` is not a name and a password in base64";
        let bytes = BASE64_STANDARD.decode(self.auth.trim()).map_err(|_| wrong)?;
        let text = String::from_utf8(bytes).map_err(|_| wrong)?;
        let (username, password) = text.split_once(':').ok_or(wrong)?;
        let password = password.trim_end_matches('\0').to_owned();
        Ok(Some(Credential::Password { username: username.to_owned(), password }))
    }
}

/// By which names helpers know a registry.
pub(super) fn servers(registry: &str) -> Vec<&str> {
    match registry {
        DOCKER_HUB => vec![HUB_KEY, DOCKER_HUB],
        other => vec![other],
    }
}

/// A key as it stands in a reference: old ones are addresses.
pub(super) fn plain(key: &str) -> String {
    let (rest, is_address) = match key.split_once("://") {
        Some((_, rest)) => (rest, true),
        None => (key, false),
    };
    let rest = rest.trim_end_matches('/');
    let rest = match rest.split_once('/') {
        Some((host, "v1" | "v2")) if is_address || host == "index.docker.io" => host,
        _ => rest,
    };
    match rest.strip_prefix("index.docker.io") {
        Some(more) if more.is_empty() || more.starts_with('/') => format!("{DOCKER_HUB}{more}"),
        _ => rest.to_owned(),
    }
}

/// Where the user with an environment has such files; Docker's first, into which `kiln login` writes.
fn paths(env: &BTreeMap<String, String>) -> Vec<PathBuf> {
    let get = |name: &str| env.get(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(only) = get("REGISTRY_AUTH_FILE") {
        return vec![only];
    }
    let mut found: Vec<PathBuf> = docker_config(env).into_iter().collect();
    let runtime = get("XDG_RUNTIME_DIR").unwrap_or_else(|| {
        PathBuf::from(format!("/run/containers/{}", rustix::process::getuid().as_raw()))
    });
    found.push(match get("XDG_RUNTIME_DIR") {
        Some(_) => runtime.join("containers/auth.json"),
        None => runtime.join("auth.json"),
    });
    let config = get("XDG_CONFIG_HOME").or_else(|| get("HOME").map(|home| home.join(".config")));
    found.extend(config.map(|config| config.join("containers/auth.json")));
    found
}

/// Docker's file.
pub(super) fn docker_config(env: &BTreeMap<String, String>) -> Option<PathBuf> {
    let get = |name: &str| env.get(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = get("DOCKER_CONFIG").or_else(|| get("HOME").map(|home| home.join(".docker")));
    folder.map(|folder| folder.join("config.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    static NEVER: AtomicBool = AtomicBool::new(false);

    fn keychain(dir: &Path, files: &[(&str, &str)], env: &[(&str, &str)]) -> HostKeychain<'static> {
        for (path, text) in files {
            let path = dir.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let mut all = BTreeMap::from([
            ("HOME".to_owned(), dir.display().to_string()),
            ("XDG_RUNTIME_DIR".to_owned(), dir.join("run").display().to_string()),
        ]);
        all.extend(env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        HostKeychain::read(&all, &[], &NEVER).unwrap()
    }

    /// `auth` of `user:password`.
    fn auth(text: &str) -> String {
        BASE64_STANDARD.encode(text)
    }

    fn user(found: Option<Credential>) -> String {
        match found {
            Some(Credential::Password { username, password }) => format!("{username}:{password}"),
            Some(Credential::Identity(token)) => format!("token {token}"),
            None => "nobody".into(),
        }
    }

    #[test]
    fn the_longest_key_of_the_first_file_counts() {
        let dir = tempfile::tempdir().unwrap();
        let docker = format!(
            r#"{{ "auths": {{ "https://index.docker.io/v1/": {{ "auth": "{}" }},
                "a.example": {{ "auth": "{}" }}, "https://old.example/v1/": {{ "auth": "{}" }},
                "empty.example": {{}}, "t.example": {{ "identitytoken": "x" }} }},
                "HttpHeaders": {{}} }}"#,
            auth("hub:pw:with colon"),
            auth("docker:1"),
            auth("old:2")
        );
        let podman = format!(
            r#"{{ "auths": {{ "a.example/team": {{ "auth": "{}" }}, "b.example/team/app":
                {{ "auth": "{}" }}, "b.example": {{ "auth": "{}" }},
                "empty.example": {{ "auth": "{}" }} }} }}"#,
            auth("never:"),
            auth("app:3"),
            auth("b:4"),
            auth("full:5")
        );
        let files = [(".docker/config.json", &*docker), ("run/containers/auth.json", &*podman)];
        let keychain = keychain(dir.path(), &files, &[]);
        for (registry, repository, expected) in [
            ("docker.io", "library/redis", "hub:pw:with colon"),
            ("a.example", "team/app", "docker:1"),
            ("old.example", "x", "old:2"),
            ("b.example", "team/app", "app:3"),
            ("b.example", "team/apple", "b:4"),
            ("empty.example", "x", "full:5"),
            ("t.example", "x", "token x"),
            ("c.example", "x", "nobody"),
        ] {
            let found = keychain.credential(registry, repository).unwrap();
            assert_eq!(user(found), expected, "{registry}/{repository}");
        }
    }

    #[test]
    fn variables_say_where_the_files_are() {
        let dir = tempfile::tempdir().unwrap();
        let one =
            |name: &str| format!(r#"{{"auths":{{"a.example":{{"auth":"{}"}}}}}}"#, auth(name));
        let (home, other, only) = (one("home:"), one("other:"), one("only:"));
        let files = [
            (".docker/config.json", &*home),
            ("other/config.json", &*other),
            ("only.json", &*only),
        ];
        let folder = dir.path().join("other").display().to_string();
        let file = dir.path().join("only.json").display().to_string();
        let found = |env: &[(&str, &str)]| {
            user(keychain(dir.path(), &files, env).credential("a.example", "x").unwrap())
        };
        assert_eq!(found(&[]), "home:");
        assert_eq!(found(&[("DOCKER_CONFIG", &folder)]), "other:");
        assert_eq!(found(&[("DOCKER_CONFIG", &folder), ("REGISTRY_AUTH_FILE", &file)]), "only:");
    }

    /// Writes a helper, `docker-credential-NAME`, into `bin`.
    fn helper(dir: &Path, name: &str, script: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let path = dir.join("bin").join(format!("docker-credential-{name}"));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, format!("#!/bin/sh\n{script}")).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn helpers_are_asked_by_the_name_of_the_server() {
        let dir = tempfile::tempdir().unwrap();
        let answer = r#"read -r server
case "$server" in
https://index.docker.io/v1/) echo '{"ServerURL":"x","Username":"hub","Secret":"1"}';;
t.example) echo '{"Username":"<token>","Secret":"id"}';;
bad.example) echo rubbish;;
sad.example) echo 'the safe is locked' >&2; exit 1;;
*) echo 'credentials not found in native keychain'; exit 1;;
esac"#;
        helper(dir.path(), "all", answer);
        helper(dir.path(), "one", "echo '{\"Username\":\"one\",\"Secret\":\"'$HOME'\"}'");
        let config = format!(
            r#"{{ "credsStore": "all", "credHelpers": {{ "one.example": "one", "odd.example": "../x",
                "left.example": "desktop" }},
                "auths": {{ "file.example": {{ "auth": "{}" }} }} }}"#,
            auth("file:2")
        );
        let path = format!("{}:/usr/bin:/bin", dir.path().join("bin").display());
        let keychain =
            keychain(dir.path(), &[(".docker/config.json", &config)], &[("PATH", &path)]);
        let found = |registry: &str| keychain.credential(registry, "x");
        assert_eq!(user(found("docker.io").unwrap()), "hub:1");
        assert_eq!(user(found("t.example").unwrap()), "token id");
        assert_eq!(user(found("file.example").unwrap()), "file:2");
        assert_eq!(user(found("nowhere.example").unwrap()), "nobody");
        assert_eq!(user(found("left.example").unwrap()), "nobody");
        // It has the environment of whoever asks, and nothing else.
        assert_eq!(user(found("one.example").unwrap()), format!("one:{}", dir.path().display()));
        for (registry, what) in [
            ("bad.example", "cannot be read"),
            ("sad.example", "the safe is locked"),
            ("odd.example", "no name of a credential helper"),
        ] {
            let error = found(registry).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named_without_what_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let env = |dir: &Path| BTreeMap::from([("HOME".to_owned(), dir.display().to_string())]);
        std::fs::create_dir(dir.path().join(".docker")).unwrap();
        let path = dir.path().join(".docker/config.json");
        std::fs::write(&path, "{ \"auths\": { \"a\": secret } }").unwrap();
        let read = || HostKeychain::read(&env(dir.path()), &[], &NEVER).unwrap_err().to_string();
        let error = read();
        assert!(error.contains("config.json") && error.contains("line 1"), "{error}");
        assert!(!error.contains("secret"), "{error}");
        // A pipe holds up nobody.
        std::fs::remove_file(&path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
        assert!(read().contains("no regular file"));
    }
}
