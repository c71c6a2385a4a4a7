//! What the agent asks of the user's own process: what the host's files say about registries, and
//! names and passwords for them.
//!
//! The files are those of whoever gave the command (`~/.docker/config.json`, a helper's safe), and
//! the agent is root. So it opens none of them, follows none of their links and runs none of their
//! programs: the client does, as the user and in the user's environment, and only for what is
//! needed. What the agent does by itself has no client, and logs in nowhere.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kiln_remote::registry::{Credential, Error, Keychain, Registries};

use super::session::Session;
use crate::protocol::{Question, Reply};

/// How long a client may take: a credential helper may have to ask its user.
const PATIENCE: Duration = Duration::from_secs(150);

impl Session {
    /// What the host's files say about registries, for whoever gave the command.
    ///
    /// # Errors
    /// What the client could not read.
    pub(crate) fn registries(&self) -> Result<Arc<Registries>, Error> {
        match self.question(Question::Registries, PATIENCE) {
            Some(Reply::Registries(registries)) => Ok(Arc::new(registries)),
            Some(reply) => Err(failed(reply)),
            None if self.is_own() => Registries::of_host(&BTreeMap::new()).map(Arc::new),
            None => Err(silent(self)),
        }
    }
}

impl Keychain for Session {
    fn credential(&self, registry: &str, repository: &str) -> Result<Option<Credential>, Error> {
        let (registry, repository) = (registry.to_owned(), repository.to_owned());
        match self.question(Question::Credential { registry, repository }, PATIENCE) {
            Some(Reply::Credential(credential)) => Ok(credential),
            Some(reply) => Err(failed(reply)),
            None if self.is_own() => Ok(None),
            None => Err(silent(self)),
        }
    }
}

fn failed(reply: Reply) -> Error {
    match reply {
        Reply::Failed { what, usage } => Error::Told { what, usage },
        _ => Error::Host("the client answered something else than it was asked".into()),
    }
}

/// A client that has gone wants nothing any more.
fn silent(session: &Session) -> Error {
    match session.check() {
        Err(_) => Error::Cancelled,
        Ok(()) => Error::Host(format!(
            "the client did not say within {} s which credentials it has",
            PATIENCE.as_secs()
        )),
    }
}
