//! Names and passwords for registries.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::error::Error;

/// What a registry is shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Credential {
    /// A name and a password.
    Password {
        /// The user's name there.
        username: String,
        /// What only the user knows.
        password: String,
    },
    /// A token that a token server takes instead of a password.
    Identity(String),
}

/// Never shows what only the user knows.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { username, .. } => write!(f, "Password({username})"),
            Self::Identity(_) => f.write_str("Identity"),
        }
    }
}

/// Who knows names and passwords.
pub trait Keychain: Sync {
    /// For a repository at a registry, as it stands in a reference; `None` where nobody has logged
    /// in.
    ///
    /// # Errors
    /// [`Error::Configuration`], [`Error::Credentials`], [`Error::Cancelled`].
    fn credential(&self, registry: &str, repository: &str) -> Result<Option<Credential>, Error>;
}

/// Nobody has logged in anywhere.
#[derive(Debug, Clone, Copy)]
pub struct Anonymous;

impl Keychain for Anonymous {
    fn credential(&self, _: &str, _: &str) -> Result<Option<Credential>, Error> {
        Ok(None)
    }
}
