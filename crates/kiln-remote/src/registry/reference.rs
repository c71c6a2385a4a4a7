//! What a text like `postgres:16` names. The grammar is that of `distribution/reference`.

use std::fmt;

use kiln_core::Digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::error::Error;

/// The registry that is meant where none is named.
pub const DOCKER_HUB: &str = "docker.io";
/// Longest `registry/repository`, in bytes.
const NAME: usize = 255;
/// Longest tag.
const TAG: usize = 128;

/// An image at a registry: `registry/repository`, with a tag, a digest, or both.
///
/// Shown as it stands in a lock: nothing is left out (`docker.io/library/postgres:16`), except that
/// a reference with a digest need not have a tag.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// A text that was read, before it is known which registry an unqualified name means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parsed {
    /// As it was written, if the first component is one.
    pub(super) registry: Option<String>,
    pub(super) path: String,
    pub(super) tag: Option<String>,
    pub(super) digest: Option<Digest>,
}

impl Reference {
    /// Reads a reference by Docker's rules: no registry is `docker.io`, no namespace there is
    /// `library`, neither tag nor digest is `latest`. What the host's files say about unqualified
    /// names is [`Registries::references`](super::Registries::references)'.
    ///
    /// # Errors
    /// [`Error::Reference`] says what is wrong.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let Parsed { registry, path, tag, digest } = Parsed::read(text)?;
        let registry = registry.unwrap_or_else(|| DOCKER_HUB.to_owned());
        Self::new(text, registry, path, tag, digest)
    }

    pub(super) fn new(
        text: &str,
        registry: String,
        path: String,
        tag: Option<String>,
        digest: Option<Digest>,
    ) -> Result<Self, Error> {
        let registry = match registry.as_str() {
            "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB.to_owned(),
            _ => registry,
        };
        let bare = registry == DOCKER_HUB && !path.contains('/');
        let repository = if bare { format!("library/{path}") } else { path };
        if registry.len() + 1 + repository.len() > NAME {
            let what = format!("the name is longer than {NAME} characters");
            return Err(Error::reference(text, what));
        }
        let tag = tag.or_else(|| digest.is_none().then(|| "latest".to_owned()));
        Ok(Self { registry, repository, tag, digest })
    }

    /// Host and port: `docker.io`, `127.0.0.1:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// `library/postgres`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// `16`.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// What it has to be.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// `docker.io/library/postgres`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The same name with another digest: what was resolved.
    #[must_use]
    pub fn at(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }

    /// As people write it: `postgres:16`.
    pub fn familiar(&self) -> String {
        let whole = self.to_string();
        let rest = whole.strip_prefix("docker.io/").unwrap_or(&whole);
        rest.strip_prefix("library/").unwrap_or(rest).to_owned()
    }

    /// What stands in the address of its manifest.
    pub(super) fn target(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl std::str::FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

impl Parsed {
    pub(super) fn read(text: &str) -> Result<Self, Error> {
        let fail = |what: &str| Err(Error::reference(text, what));
        if text.is_empty() {
            return fail("it is empty");
        }
        if let Some((scheme, _)) = text.split_once("://") {
            let what = format!("an image is named without `{scheme}://`");
            return Err(Error::reference(text, what));
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(read_digest(text, digest)?)),
            None => (text, None),
        };
        // A colon after the last slash begins the tag; one before it is the port of a registry.
        let last = name.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match name[last..].find(':') {
            Some(colon) => (&name[..last + colon], Some(&name[last + colon + 1..])),
            None => (name, None),
        };
        if let Some(tag) = tag {
            check_tag(text, tag)?;
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, rest)) if is_registry(first) => (Some(first), rest),
            _ => (None, name),
        };
        if let Some(registry) = registry
            && let Some(what) = wrong_registry(registry)
        {
            return fail(what);
        }
        if path.is_empty() {
            return fail("it names no repository");
        }
        if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return fail("the name of a repository has no capital letters");
        }
        if let Some(part) = path.split('/').find(|part| !is_component(part)) {
            let what = format!("`{}` is no part of a repository's name", shown(part));
            return Err(Error::reference(text, what));
        }
        let hex = path.len() == 64 && path.bytes().all(|byte| byte.is_ascii_hexdigit());
        if registry.is_none() && hex {
            return fail("that is the identity of an image here, not a name at a registry");
        }
        let registry = registry.map(str::to_ascii_lowercase);
        Ok(Self { registry, path: path.to_owned(), tag: tag.map(str::to_owned), digest })
    }
}

fn read_digest(text: &str, digest: &str) -> Result<Digest, Error> {
    match digest.split_once(':') {
        Some(("sha256", _)) => digest.parse().map_err(|_| {
            Error::reference(text, "the digest is not `sha256:` and 64 lower-case hex digits")
        }),
        Some((other, _)) => {
            let what = format!("digests by `{}` are not supported, sha256 is", shown(other));
            Err(Error::reference(text, what))
        }
        None => Err(Error::reference(text, "after `@` a digest is expected, `sha256:…`")),
    }
}

fn check_tag(text: &str, tag: &str) -> Result<(), Error> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let begins = tag.bytes().next().is_some_and(word);
    if begins && tag.bytes().all(|byte| word(byte) || b".-".contains(&byte)) && tag.len() <= TAG {
        return Ok(());
    }
    Err(Error::reference(text, format!("`{}` is no tag", shown(tag))))
}

/// Whether the first component is a registry: it has a dot or a port, or is `localhost`.
fn is_registry(first: &str) -> bool {
    first.contains(['.', ':', '[']) || first == "localhost"
}

fn wrong_registry(registry: &str) -> Option<&'static str> {
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => {
            let Some((address, after)) = rest.split_once(']') else {
                return Some("the address of the registry has no `]`");
            };
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return Some("the registry is no address of IPv6");
            }
            match after {
                "" => return None,
                after => match after.strip_prefix(':') {
                    Some(port) => (None, Some(port)),
                    None => return Some("after the address of the registry a port is expected"),
                },
            }
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(registry), None),
        },
    };
    let label = |label: &str| {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty()
            && label.bytes().all(fits)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if host.is_some_and(|host| !host.split('.').all(label)) {
        return Some("the registry is no name of a host");
    }
    if port.is_some_and(|port| !port.parse::<u16>().is_ok_and(|number| number > 0)) {
        return Some("the port of the registry is no port");
    }
    None
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`.
fn is_component(part: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    if !(bytes.first().copied().is_some_and(plain) && bytes.last().copied().is_some_and(plain)) {
        return false;
    }
    bytes
        .split(|byte| plain(*byte))
        .all(|gap| matches!(gap, b"" | b"." | b"_" | b"__") || gap.iter().all(|byte| *byte == b'-'))
}

/// Part of a stranger's text, for a message.
fn shown(text: &str) -> String {
    text.chars().take(80).filter(|letter| !letter.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn familiar_forms_become_whole() {
        for (text, whole) in [
            ("postgres", "docker.io/library/postgres:latest"),
            ("postgres:16", "docker.io/library/postgres:16"),
            ("grafana/grafana", "docker.io/grafana/grafana:latest"),
            ("docker.io/postgres:16", "docker.io/library/postgres:16"),
            ("index.docker.io/postgres:16", "docker.io/library/postgres:16"),
            ("ghcr.io/a/b/c:v1.2_3-x", "ghcr.io/a/b/c:v1.2_3-x"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:1", "localhost:5000/app:1"),
            ("127.0.0.1:5000/app", "127.0.0.1:5000/app:latest"),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("GHCR.io/app", "ghcr.io/app:latest"),
            ("a--b/c__d.e", "docker.io/a--b/c__d.e:latest"),
        ] {
            assert_eq!(Reference::parse(text).unwrap().to_string(), whole, "{text}");
            let again = Reference::parse(whole).unwrap();
            assert_eq!(again.to_string(), whole);
            assert_eq!(Reference::parse(&again.familiar()).unwrap(), again, "{text}");
        }
        let both = format!("redis:7@{D}");
        let parsed = Reference::parse(&both).unwrap();
        assert_eq!(parsed.to_string(), format!("docker.io/library/redis:7@{D}"));
        assert_eq!(parsed.target(), D);
        let only = Reference::parse(&format!("redis@{D}")).unwrap();
        assert_eq!((only.tag(), only.digest()), (None, Some(Digest::of(b""))));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, what) in [
            ("", "empty"),
            ("https://ghcr.io/a", "without `https://`"),
            ("Postgres", "capital letters"),
            ("ghcr.io/A/b", "capital letters"),
            ("Registry/app", "capital letters"),
            ("a:", "`` is no tag"),
            ("a:-x", "`-x` is no tag"),
            ("a/b:c:d", "`c:d` is no tag"),
            ("ghcr.io/", "names no repository"),
            ("a//b", "`` is no part"),
            ("a/../b", "`..` is no part"),
            ("a/-b", "`-b` is no part"),
            ("a/b___c", "`b___c` is no part"),
            ("a@sha512:00", "`sha512`"),
            ("a@sha256:00", "64 lower-case"),
            ("a@latest", "a digest is expected"),
            ("a.b:0/c", "no port"),
            ("a.b:99999/c", "no port"),
            ("a..b/c", "no name of a host"),
            ("[::1/c", "no `]`"),
            ("a b", "no part"),
            ("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "identity"),
        ] {
            let error = Reference::parse(text).unwrap_err().to_string();
            assert!(error.contains(what), "{text}: {error}");
        }
        let long = format!("ghcr.io/{}", "a".repeat(300));
        assert!(Reference::parse(&long).unwrap_err().to_string().contains("longer than 255"));
    }
}
