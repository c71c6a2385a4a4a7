//! What the files of a host say about registries: which one a name means, where else it may be had,
//! who is trusted.
//!
//! It is read once, by the process whose user asks, and can be handed to another process: so an
//! agent that is root opens none of a user's files.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use kiln_store::regular::{self, Links};
use serde::{Deserialize, Serialize};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

use super::address::is_loopback;
use super::conf::Conf;
use super::error::Error;
use super::reference::{DOCKER_HUB, Parsed, Reference};
use crate::http::{self, Proxies};

/// Largest file that is read, in bytes.
const FILE_BYTES: u64 = 4 << 20;
/// Most entries that a folder of settings or certificates may have.
const FOLDERS: usize = 1024;

/// See the [module](self).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registries {
    conf: Conf,
    certificates: BTreeMap<String, Certificates>,
    pub(super) proxies: Proxies,
    /// Instead of the system's authorities: DER in base64.
    authorities: Option<Vec<String>>,
}

/// What holds for one `host:port`, in PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Certificates {
    authorities: Vec<String>,
    /// Certificates and key by which the client shows who it is.
    client: Option<(String, String)>,
}

/// Where files are looked for.
#[derive(Debug, Clone)]
pub struct Places {
    /// `/etc`.
    pub etc: PathBuf,
    /// Environment of whoever asks.
    pub env: BTreeMap<String, String>,
}

/// One place where an image may be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// As users write it; for certificates, credentials and messages.
    pub(super) registry: String,
    /// Who is asked.
    pub(super) host: String,
    pub(super) repository: String,
    pub(super) insecure: bool,
}

impl Registries {
    /// What this host says, for whoever has the environment `env`: `HOME`, `SSL_CERT_FILE`, proxies.
    ///
    /// # Errors
    /// [`Error::Configuration`] names the file that cannot be used.
    pub fn of_host(env: &BTreeMap<String, String>) -> Result<Self, Error> {
        Self::read(&Places { etc: PathBuf::from("/etc"), env: env.clone() })
    }

    /// As [`Registries::of_host`], with files elsewhere.
    ///
    /// # Errors
    /// As [`Registries::of_host`].
    pub fn read(places: &Places) -> Result<Self, Error> {
        let env = |name: &str| places.env.get(name).filter(|value| !value.is_empty());
        let home = env("HOME").map(|home| Path::new(home).join(".config"));
        let system = places.etc.join("containers");
        let user = home.as_ref().map(|home| home.join("containers"));
        let mut conf = Conf::default();
        let own = user.as_ref().map(|user| user.join("registries.conf"));
        let main = match env("CONTAINERS_REGISTRIES_CONF") {
            Some(path) => PathBuf::from(path),
            None => own.filter(|path| !is_absent(path)).unwrap_or(system.join("registries.conf")),
        };
        let mut files = vec![main];
        for folder in [Some(&system), user.as_ref()].into_iter().flatten() {
            files.extend(named(&folder.join("registries.conf.d"), ".conf")?);
        }
        for path in files {
            if let Some(text) = text(&path)? {
                conf.add(&path.display().to_string(), &text)?;
            }
        }
        let daemon = places.etc.join("docker/daemon.json");
        if let Some(text) = text(&daemon)?.filter(|text| !text.trim().is_empty()) {
            conf.add_daemon(&daemon.display().to_string(), &text)?;
        }
        let mut certificates: BTreeMap<String, Certificates> = BTreeMap::new();
        let docker = home.as_ref().map(|home| home.join("docker"));
        let folders = [Some(places.etc.join("docker")), Some(system), docker, user];
        for folder in folders.into_iter().flatten() {
            let hosts = entries(&folder.join("certs.d"))?;
            for host in hosts.into_iter().filter(|host| host.is_dir()) {
                let name = host.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
                certificates.entry(name).or_default().add(&host)?;
            }
        }
        let authorities = authorities(env("SSL_CERT_FILE"), env("SSL_CERT_DIR"));
        Ok(Self { conf, certificates, proxies: Proxies::of_env(&places.env), authorities })
    }

    /// What a text may mean, in the order in which it is to be looked for. Only a name without a
    /// registry can mean several.
    ///
    /// # Errors
    /// [`Error::Reference`]; [`Error::Configuration`] if the host's files do not decide.
    pub fn references(&self, text: &str) -> Result<Vec<Reference>, Error> {
        let Parsed { registry, path, tag, digest } = Parsed::read(text)?;
        let whole = |registry: &str| {
            Reference::new(text, registry.to_owned(), path.clone(), tag.clone(), digest)
        };
        if let Some(registry) = registry {
            return Ok(vec![whole(&registry)?]);
        }
        if let Some(alias) = self.conf.aliases.get(&path) {
            let alias = Reference::parse(alias)?;
            let repository = alias.repository().to_owned();
            return Ok(vec![Reference::new(
                text,
                alias.registry().to_owned(),
                repository,
                tag,
                digest,
            )?]);
        }
        match self.conf.unqualified.as_deref() {
            None | Some([]) => Ok(vec![whole(DOCKER_HUB)?]),
            Some(several @ [_, _, ..]) if !self.conf.several => Err(Error::reference(
                text,
                format!(
                    "it may mean the one at {}: short-name-mode is `enforcing`, so write which",
                    several.join(" or at ")
                ),
            )),
            Some(list) => list.iter().map(|registry| whole(registry)).collect(),
        }
    }

    /// Where a reference is to be had: mirrors first.
    pub(super) fn places(&self, reference: &Reference) -> Result<Vec<Place>, Error> {
        let whole = reference.to_string();
        let registry = reference.registry();
        let entry = self.conf.entry(registry, &whole);
        if let Some(entry) = entry.filter(|entry| entry.blocked) {
            return Err(Error::Blocked { name: whole, path: entry.path.clone() });
        }
        let name = reference.name();
        let rest = match entry {
            Some(entry) => entry.rest(registry, &name).unwrap_or_default(),
            None => &name[registry.len()..],
        };
        let by_digest = reference.digest().is_some();
        let mut places = Vec::new();
        for mirror in self.conf.mirrors(entry, registry) {
            if if by_digest { mirror.digests } else { mirror.tags } {
                let wanted = format!("{}{rest}", mirror.location);
                places.push(self.place(&whole, &wanted, mirror.insecure)?);
            }
        }
        let insecure = entry.is_some_and(|entry| entry.insecure);
        let wanted = match entry.and_then(|entry| entry.location.as_ref()) {
            Some(location) => format!("{location}{rest}"),
            None => name.clone(),
        };
        places.push(self.place(&whole, &wanted, insecure)?);
        Ok(places)
    }

    fn place(&self, whole: &str, wanted: &str, insecure: bool) -> Result<Place, Error> {
        let wrong = || Error::Configuration {
            path: "registries.conf".into(),
            what: format!("`{whole}` leads to `{wanted}`, which is no image"),
        };
        let parsed = Reference::parse(wanted).map_err(|_| wrong())?;
        // A location with one component is a host, whatever it looks like.
        let (registry, repository) = match wanted.split_once('/') {
            Some((registry, path)) if parsed.registry() == DOCKER_HUB && registry != DOCKER_HUB => {
                (registry.to_owned(), path.to_owned())
            }
            _ => (parsed.registry().to_owned(), parsed.repository().to_owned()),
        };
        Ok(self.at(&registry, repository, insecure))
    }

    /// A registry by the name that users write.
    pub(super) fn at(&self, registry: &str, repository: String, insecure: bool) -> Place {
        let insecure = insecure
            || is_loopback(registry)
            || self.conf.docker_takes_insecure(registry)
            || self.conf.entry(registry, registry).is_some_and(|entry| entry.insecure);
        let host = match registry {
            DOCKER_HUB => "registry-1.docker.io".to_owned(),
            other => other.to_owned(),
        };
        Place { registry: registry.to_owned(), host, repository, insecure }
    }

    /// Which registry is meant by what a user writes after `login`: `docker.io`,
    /// `https://index.docker.io/v1/`, `127.0.0.1:5000`.
    ///
    /// # Errors
    /// [`Error::Reference`]; [`Error::Blocked`].
    pub fn registry(&self, text: &str) -> Result<String, Error> {
        let plain = super::keychain::plain(text.trim());
        let whole = Reference::parse(&format!("{plain}/x"));
        let named = whole.ok().filter(|one| one.registry() == plain.to_ascii_lowercase());
        let Some(reference) = named else {
            return Err(Error::Reference {
                text: super::error::clean(text, 100),
                what: "a registry is a host, with a port perhaps: `docker.io`, `127.0.0.1:5000`"
                    .into(),
            });
        };
        self.places(&reference).map(|_| plain.to_ascii_lowercase())
    }

    /// Credential helpers that are asked for every registry.
    pub fn helpers(&self) -> &[String] {
        &self.conf.helpers
    }

    /// Who is trusted by a client of `registry`. `own` says whether the server is the registry
    /// itself, so that the client may show its certificate.
    pub(super) fn tls(
        &self,
        registry: &str,
        own: bool,
        insecure: bool,
    ) -> Result<TlsConfig, Error> {
        let certificates = self.certificates.get(registry);
        let fail =
            |what: String| Error::Configuration { path: format!("certs.d/{registry}"), what };
        let mut trusted: Vec<Certificate<'static>> = match &self.authorities {
            None => http::roots().to_vec(),
            Some(list) if list.is_empty() && !insecure => {
                return Err(Error::Configuration {
                    path: "SSL_CERT_FILE or SSL_CERT_DIR".into(),
                    what: "no certificate can be read there".into(),
                });
            }
            Some(list) => {
                let bytes = list.iter().filter_map(|text| BASE64_STANDARD.decode(text).ok());
                bytes.map(|der| Certificate::from_der(&der).to_owned()).collect()
            }
        };
        for pem in certificates.iter().flat_map(|known| &known.authorities) {
            trusted.extend(chain(pem).map_err(|error| fail(error.to_string()))?);
        }
        let client = match certificates.and_then(|known| known.client.as_ref()).filter(|_| own) {
            None => None,
            Some((chain_pem, key)) => {
                let chain = chain(chain_pem).map_err(|error| fail(error.to_string()))?;
                let key = PrivateKey::from_pem(key.as_bytes());
                let key = key.map_err(|error| fail(error.to_string()))?;
                Some(ClientCert::new_with_certs(&chain, key))
            }
        };
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&trusted))
            .client_cert(client)
            .disable_verification(insecure);
        Ok(http::with_provider(tls))
    }
}

impl Certificates {
    fn add(&mut self, folder: &Path) -> Result<(), Error> {
        for path in named(folder, ".crt")? {
            self.authorities.extend(text(&path)?);
        }
        for path in named(folder, ".cert")? {
            let key = path.with_extension("key");
            let Some(secret) = text(&key)? else {
                let what = format!("there is no key {} beside it", key.display());
                return Err(Error::Configuration { path: path.display().to_string(), what });
            };
            self.client = text(&path)?.map(|chain| (chain, secret));
        }
        Ok(())
    }
}

fn chain(pem: &str) -> Result<Vec<Certificate<'static>>, ureq::Error> {
    let certificate = |item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(Ok(certificate)),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    };
    parse_pem(pem.as_bytes()).filter_map(certificate).collect()
}

/// Who is trusted instead of the system's authorities, where the environment says so.
fn authorities(file: Option<&String>, dir: Option<&String>) -> Option<Vec<String>> {
    if file.is_none() && dir.is_none() {
        return None;
    }
    let found = rustls_native_certs::load_certs_from_paths(file.map(Path::new), dir.map(Path::new));
    Some(found.certs.iter().map(|certificate| BASE64_STANDARD.encode(certificate)).collect())
}

/// The entries of a folder, in order; none if it is not there. One that cannot be read is an error:
/// what it says may be that a registry is not to be asked.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let fail = |what: String| Error::Configuration { path: folder.display().to_string(), what };
    let listed = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        // It is below something that is no folder.
        Err(error)
            if error.kind() == ErrorKind::NotADirectory
                && std::fs::symlink_metadata(folder).is_err() =>
        {
            return Ok(Vec::new());
        }
        listed => listed.map_err(|error| fail(format!("it cannot be read: {error}")))?,
    };
    let mut paths = Vec::new();
    for entry in listed {
        let entry = entry.map_err(|error| fail(format!("it cannot be read: {error}")))?;
        if paths.len() == FOLDERS {
            return Err(fail(format!("it has more than {FOLDERS} entries; remove some")));
        }
        paths.push(entry.path());
    }
    paths.sort();
    Ok(paths)
}

fn named(folder: &Path, suffix: &str) -> Result<Vec<PathBuf>, Error> {
    let mut paths = entries(folder)?;
    paths.retain(|path| path.to_string_lossy().ends_with(suffix));
    Ok(paths)
}

/// Whether nothing is there, which is not the same as that it cannot be looked at.
fn is_absent(path: &Path) -> bool {
    let absent = [ErrorKind::NotFound, ErrorKind::NotADirectory];
    std::fs::metadata(path).is_err_and(|error| absent.contains(&error.kind()))
}

/// A file's text; `None` if it is not there.
fn text(path: &Path) -> Result<Option<String>, Error> {
    let Some(bytes) = small_file(path)? else { return Ok(None) };
    let text = String::from_utf8(bytes);
    text.map(Some).map_err(|_| Error::Configuration {
        path: path.display().to_string(),
        what: "it is not UTF-8".into(),
    })
}

/// A file's content; `None` if it is not there. What is no file, or endless, holds up nobody.
pub(super) fn small_file(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let fail = |what: String| Error::Configuration { path: path.display().to_string(), what };
    match regular::read(path, Links::Follow, FILE_BYTES) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(None)
        }
        read => read.map(Some).map_err(|error| fail(error.to_string())),
    }
}
