//! Images at registries: the OCI distribution protocol as a client has to speak it.
//!
//! ```no_run
//! # use std::{collections::BTreeMap, io::Read, sync::{Arc, atomic::AtomicBool}};
//! # use kiln_remote::registry::{Anonymous, Client, Registries};
//! # fn main() -> Result<(), kiln_remote::registry::Error> {
//! let registries = Arc::new(Registries::of_host(&std::env::vars().collect::<BTreeMap<_, _>>())?);
//! let cancel = AtomicBool::new(false);
//! let client = Client::new(registries, &Anonymous, &|_: &str| {}, &cancel);
//! let (reference, index) = client.look_up("postgres:16")?;
//! println!("{reference} is {} ({})", index.digest, index.media_type);
//! # let (digest, size) = (index.digest, 0);
//! let mut blob = client.blob(&reference, &digest, size, &|bytes| println!("{bytes} bytes"))?;
//! let mut content = Vec::new();
//! blob.read_to_end(&mut content).unwrap(); // an error unless size and digest are right
//! # Ok(()) }
//! ```
//!
//! Whoever answers is a stranger: every answer has a bound, silence has an end, redirects are
//! counted and get no password, what has a digest is checked, and the user can stop at any time.
//!
//! | module | noun |
//! |---|---|
//! | [`reference`] | what a text like `postgres:16` names |
//! | [`registries`] | what the host's files say: names, mirrors, certificates, proxies |
//! | `conf` | containers-registries.conf(5) |
//! | [`credentials`] | names and passwords, and who knows them |
//! | [`keychain`] · `helper` | the files in which users have them · the programs that keep them |
//! | [`login`] | keeping them where Docker keeps them |
//! | [`client`] | resolves references, fetches documents |
//! | `manifest` | what kind of manifest a document is |
//! | [`blob`] | a blob as a reader |
//! | `auth` · [`challenge`] | what a registry has to be shown · how it says so |
//! | `wire` · `address` | one request and its answer · where it goes |
//! | `patience` | how long and how often |
//! | [`error`] | what can go wrong |

mod address;
mod auth;
pub mod blob;
pub mod challenge;
pub mod client;
mod conf;
pub mod credentials;
pub mod error;
mod helper;
pub mod keychain;
pub mod login;
mod manifest;
mod patience;
pub mod reference;
pub mod registries;
mod wire;

pub use blob::Blob;
pub use client::{Client, DOCUMENT_BYTES, Document, Resolved};
pub use credentials::{Anonymous, Credential, Keychain};
pub use error::Error;
pub use keychain::HostKeychain;
pub use patience::{Patience, Watch};
pub use reference::Reference;
pub use registries::{Places, Registries};
