//! Credential helpers: `docker-credential-NAME`, which keep names and passwords where the user wants
//! them. A helper is a program of the user's, and runs as the user.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::credentials::Credential;
use super::error::{Error, clean};
use crate::program::{Bounds, Output, ProgramError, run_within};

/// How long one may take: it may have to ask the user for a password.
const WITHIN: Duration = Duration::from_secs(120);
/// Most that one may print.
const MOST: usize = 64 << 10;
/// The name of a user that is none: the secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// One helper.
#[derive(Debug)]
pub(super) struct Helper<'a> {
    /// `pass` of `docker-credential-pass`.
    pub(super) name: &'a str,
    pub(super) env: &'a BTreeMap<String, String>,
    pub(super) cancel: &'a AtomicBool,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    #[serde(rename = "ServerURL", default)]
    server_url: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

impl Helper<'_> {
    /// What it has for a server; `None` if it says that it has nothing.
    pub(super) fn get(&self, server: &str) -> Result<Option<Credential>, Error> {
        let Some(output) = self.run("get", server, server.as_bytes())? else {
            // Docker's desktop leaves its name behind. One that is not there has kept nothing.
            return Ok(None);
        };
        if !output.success {
            let said = format!("{}{}", output.stdout, output.stderr);
            // The words of Docker's own helpers.
            if said.contains("credentials not found") {
                return Ok(None);
            }
            return Err(self.failed(server, "get", &said));
        }
        let entry: Entry = serde_json::from_str(&output.stdout)
            .map_err(|_| self.failed(server, "get", "its answer cannot be read"))?;
        Ok(match (entry.username.as_str(), entry.secret) {
            (_, secret) if secret.is_empty() => None,
            (TOKEN_USER, secret) => Some(Credential::Identity(secret)),
            (_, password) => Some(Credential::Password { username: entry.username, password }),
        })
    }

    /// Has it keep something.
    pub(super) fn store(&self, server: &str, credential: &Credential) -> Result<(), Error> {
        let (username, secret) = match credential {
            Credential::Password { username, password } => (username.clone(), password.clone()),
            Credential::Identity(token) => (TOKEN_USER.to_owned(), token.clone()),
        };
        let entry = Entry { server_url: server.to_owned(), username, secret };
        let input = serde_json::to_vec(&entry).map_err(|error| Error::Host(error.to_string()))?;
        self.done("store", server, &input)
    }

    /// Has it forget a server.
    pub(super) fn erase(&self, server: &str) -> Result<(), Error> {
        self.done("erase", server, server.as_bytes())
    }

    fn done(&self, verb: &str, server: &str, input: &[u8]) -> Result<(), Error> {
        let Some(output) = self.run(verb, server, input)? else {
            return Err(self.failed(server, verb, "there is no such program"));
        };
        if output.success {
            return Ok(());
        }
        Err(self.failed(server, verb, &format!("{}{}", output.stdout, output.stderr)))
    }

    /// `None` if there is no such program.
    fn run(&self, verb: &str, server: &str, stdin: &[u8]) -> Result<Option<Output>, Error> {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if self.name.is_empty() || !self.name.bytes().all(word) {
            return Err(Error::Credentials {
                registry: server.to_owned(),
                what: format!("`{}` is no name of a credential helper", clean(self.name, 60)),
            });
        }
        let mut command = Command::new(format!("docker-credential-{}", self.name));
        command.arg(verb).env_clear().envs(self.env).current_dir("/");
        let bounds = Bounds { stdin, most: MOST, within: Some(WITHIN), watch: None };
        match run_within(command, &bounds, self.cancel) {
            Ok(output) => Ok(Some(output)),
            Err(ProgramError::Cancelled) => Err(Error::Cancelled),
            Err(ProgramError::Failed { source, .. }) if source.kind() == ErrorKind::NotFound => {
                Ok(None)
            }
            Err(ProgramError::Failed { source, .. }) => {
                Err(self.failed(server, verb, &source.to_string()))
            }
        }
    }

    fn failed(&self, server: &str, verb: &str, what: &str) -> Error {
        let what = format!("`docker-credential-{} {verb}`: {}", self.name, clean(what, 200));
        Error::Credentials { registry: server.to_owned(), what }
    }
}
