//! The client: what a reference names now, documents and blobs by digest.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use kiln_core::Digest;
use kiln_core::digest::Hasher;

use super::address::Address;
use super::auth::{Asker, Auth, locked};
use super::blob::Blob;
use super::credentials::Keychain;
use super::error::{Error, clean};
use super::manifest::{Wrong, media_type};
use super::patience::{Patience, Watch};
use super::reference::Reference;
use super::registries::{Place, Registries};
use super::wire::{Answer, Ask, Failure, Wire};

/// Largest document, in bytes: what Docker and containers/image take.
pub const DOCUMENT_BYTES: u64 = 4 << 20;

/// What is taken for a manifest, in the order of preference.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// What a reference names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Of the index or manifest; such as `application/vnd.oci.image.index.v1+json`. Others than
    /// those four that are asked for come as they are.
    pub media_type: String,
    /// Of `bytes`.
    pub digest: Digest,
    /// Of `bytes`.
    pub size: u64,
    /// The document.
    pub bytes: Vec<u8>,
}

/// Where a document lies at a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Document {
    /// An index or a manifest.
    Manifest,
    /// A blob: an image's configuration.
    Blob,
}

/// Asks registries. It can be used by several threads at once: connections and tokens are shared.
pub struct Client<'a> {
    wire: Wire<'a>,
    auth: Auth,
    keychain: &'a dyn Keychain,
    /// Whether a host speaks TLS, where that is open.
    schemes: Mutex<BTreeMap<String, bool>>,
    /// Hosts of mirrors that did not answer: they are not waited for again.
    gone: Mutex<BTreeSet<String>>,
}

impl std::fmt::Debug for Client<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

/// What is asked of a place, for the one image.
pub(super) struct Query<'q> {
    pub(super) reference: &'q Reference,
    /// Below `/v2/REPOSITORY/`.
    pub(super) path: String,
    pub(super) part: Part,
}

/// What is wanted of it.
pub(super) struct Part {
    pub(super) accept: &'static str,
    /// The first byte that is wanted.
    pub(super) from: u64,
    /// See [`Ask::document`].
    pub(super) document: bool,
}

impl<'a> Client<'a> {
    /// A client for one command. `watch` hears what a person may want to know while it takes long;
    /// once `cancel` is set, whatever is under way ends with [`Error::Cancelled`] soon after.
    pub fn new(
        registries: Arc<Registries>,
        keychain: &'a dyn Keychain,
        watch: &'a dyn Watch,
        cancel: &'a AtomicBool,
    ) -> Self {
        Self::patient(registries, keychain, watch, cancel, Patience::default())
    }

    /// As [`Client::new`], with other deadlines.
    pub fn patient(
        registries: Arc<Registries>,
        keychain: &'a dyn Keychain,
        watch: &'a dyn Watch,
        cancel: &'a AtomicBool,
        patience: Patience,
    ) -> Self {
        Self {
            wire: Wire::new(registries, patience, cancel, watch),
            auth: Auth::default(),
            keychain,
            schemes: Mutex::default(),
            gone: Mutex::default(),
        }
    }

    pub(super) fn wire(&self) -> &Wire<'a> {
        &self.wire
    }

    /// Reads a text as it stands in a project, by the rules of this host, and resolves it. Where a
    /// name without a registry may mean several, the first that there is counts.
    ///
    /// # Errors
    /// [`Error`].
    pub fn look_up(&self, text: &str) -> Result<(Reference, Resolved), Error> {
        let candidates = self.wire.registries.references(text)?;
        let mut errors = Vec::new();
        for reference in candidates {
            match self.resolve(&reference) {
                Ok(resolved) => return Ok((reference, resolved)),
                // A registry that does not answer may have it: then the next one's is not meant.
                Err(error) if !error.is_absent() => return Err(error),
                Err(error) => errors.push(error),
            }
        }
        Err(several(errors))
    }

    /// What a reference names now: its index or manifest. One with a digest names that.
    ///
    /// # Errors
    /// [`Error`]; [`Error::Kind`] for an image by Docker's schema 1.
    pub fn resolve(&self, reference: &Reference) -> Result<Resolved, Error> {
        let query = Query {
            reference,
            path: format!("manifests/{}", reference.target()),
            part: Part { accept: ACCEPT, from: 0, document: true },
        };
        self.at_places(&query, |ask, answer| self.manifest(reference, ask, answer))
    }

    fn manifest(
        &self,
        reference: &Reference,
        ask: &Ask<'_>,
        answer: Answer,
    ) -> Result<Resolved, Error> {
        let header = |name: &str| answer.header(name).map(str::to_owned);
        let (stated, claimed) = (header("content-type"), header("docker-content-digest"));
        let url = answer.address.shown();
        let differs =
            |what: String| Error::Differs { name: ask.name.into(), url: url.clone(), what };
        let bytes = self.read(ask, answer)?;
        let digest = Digest::of(&bytes);
        if let Some(expected) = reference.digest().filter(|expected| *expected != digest) {
            return Err(differs(format!("{digest}, not {expected}")));
        }
        let claimed = claimed.filter(|claimed| claimed.starts_with("sha256:"));
        if let Some(claimed) = claimed.filter(|claimed| *claimed != digest.to_string()) {
            return Err(differs(format!("{digest}, and says that it is {}", clean(&claimed, 80))));
        }
        let media_type =
            media_type(ask.name, stated.as_deref(), &bytes).map_err(|kind| match kind {
                Wrong::Kind(error) => error,
                Wrong::What(what) => differs(what),
            })?;
        Ok(Resolved { media_type, digest, size: bytes.len() as u64, bytes })
    }

    /// A document by its digest; checked, and never larger than [`DOCUMENT_BYTES`]. `size` is what
    /// its descriptor says, where one does.
    ///
    /// # Errors
    /// [`Error`].
    pub fn document(
        &self,
        reference: &Reference,
        digest: &Digest,
        kind: Document,
        size: Option<u64>,
    ) -> Result<Vec<u8>, Error> {
        let reference = reference.at(*digest);
        let (path, accept) = match kind {
            Document::Manifest => (format!("manifests/{digest}"), ACCEPT),
            Document::Blob => (format!("blobs/{digest}"), "*/*"),
        };
        if let Some(size) = size.filter(|size| *size > DOCUMENT_BYTES) {
            return Err(Error::Differs {
                name: reference.to_string(),
                url: reference.registry().to_owned(),
                what: format!("a document of {size} bytes; {DOCUMENT_BYTES} are read"),
            });
        }
        let part = Part { accept, from: 0, document: true };
        let query = Query { reference: &reference, path, part };
        self.at_places(&query, |ask, answer| {
            let url = answer.address.shown();
            let bytes = self.read(ask, answer)?;
            let found = Digest::of(&bytes);
            let wrong = match size {
                _ if found != *digest => Some(format!("{found}, not {digest}")),
                Some(size) if size != bytes.len() as u64 => {
                    Some(format!("{} bytes, not {size}", bytes.len()))
                }
                _ => None,
            };
            match wrong {
                Some(what) => Err(Error::Differs { name: ask.name.into(), url, what }),
                None => Ok(bytes),
            }
        })
    }

    /// Streams a blob. The reader gives exactly `size` bytes and ends well only if their digest is
    /// `digest`; a connection that breaks is taken up where it broke. `progress` hears how many
    /// bytes have come.
    ///
    /// # Errors
    /// [`Error`]. Those of the reader hold one too: [`Error::inside`].
    pub fn blob<'c>(
        &'c self,
        reference: &Reference,
        digest: &Digest,
        size: u64,
        progress: &'c (dyn Fn(u64) + Sync),
    ) -> Result<Blob<'c>, Error>
    where
        'a: 'c,
    {
        self.blob_from(reference, digest, size, (0, Hasher::new()), progress)
    }

    /// As [`Client::blob`], of which the caller has the first bytes already: how many, fewer than
    /// `size`, and a hasher that has seen them. The reader gives the others, and ends well only if
    /// all together have the digest; `progress` hears of all together.
    ///
    /// # Errors
    /// As [`Client::blob`].
    pub fn blob_from<'c>(
        &'c self,
        reference: &Reference,
        digest: &Digest,
        size: u64,
        begun: (u64, Hasher),
        progress: &'c (dyn Fn(u64) + Sync),
    ) -> Result<Blob<'c>, Error>
    where
        'a: 'c,
    {
        Blob::open(self, reference.at(*digest), (*digest, size), begun, progress)
    }

    /// Whether a registry takes what the keychain has for it.
    ///
    /// # Errors
    /// [`Error::Denied`] if it does not.
    pub fn check(&self, registry: &str) -> Result<(), Error> {
        let registry = self.wire.registries.registry(registry)?;
        let place = self.wire.registries.at(&registry, String::new(), false);
        let asker = Asker {
            wire: &self.wire,
            auth: &self.auth,
            keychain: self.keychain,
            name: &registry,
            place: &place,
            scope: String::new(),
        };
        let take = |_: &Ask<'_>, answer: Answer| match answer.header("content-type") {
            // A web site answers everybody, and would be told the password later.
            Some(kind) if kind.starts_with("text/html") => Err(Error::Answer {
                name: registry.clone(),
                url: answer.address.shown(),
                what: "that is a page for people, and no registry".into(),
            }),
            _ => Ok(()),
        };
        self.converse(&asker, "/v2/", &Part { accept: "*/*", from: 0, document: true }, take)
    }

    fn read(&self, ask: &Ask<'_>, answer: Answer) -> Result<Vec<u8>, Error> {
        let url = answer.address.shown();
        let bytes = self.wire.body(ask, answer, DOCUMENT_BYTES)?;
        bytes.ok_or_else(|| Error::Answer {
            name: ask.name.to_owned(),
            url,
            what: format!("the document is larger than {DOCUMENT_BYTES} bytes"),
        })
    }

    /// Asks one place after the other until `take` is content with an answer.
    pub(super) fn at_places<T>(
        &self,
        query: &Query<'_>,
        take: impl Fn(&Ask<'_>, Answer) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let places = self.wire.registries.places(query.reference)?;
        let mut errors = Vec::new();
        let last = places.len() - 1;
        for (number, place) in places.iter().enumerate() {
            if number < last && locked(&self.gone).contains(&place.host) {
                continue;
            }
            match self.at_place(query, place, &take) {
                Ok(done) => return Ok(done),
                Err(Error::Cancelled) => return Err(Error::Cancelled),
                Err(error) => {
                    if matches!(error, Error::Unreachable { .. }) {
                        locked(&self.gone).insert(place.host.clone());
                    }
                    errors.push(error);
                }
            }
        }
        Err(several(errors))
    }

    fn at_place<T>(
        &self,
        query: &Query<'_>,
        place: &Place,
        take: impl Fn(&Ask<'_>, Answer) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let name = query.reference.to_string();
        let asker = Asker {
            wire: &self.wire,
            auth: &self.auth,
            keychain: self.keychain,
            name: &name,
            place,
            scope: format!("repository:{}:pull", place.repository),
        };
        let path = format!("/v2/{}/{}", place.repository, query.path);
        self.converse(&asker, &path, &query.part, take)
    }

    /// Asks, and shows who asks where that is wanted.
    fn converse<T>(
        &self,
        asker: &Asker<'_, '_>,
        path: &str,
        part: &Part,
        take: impl Fn(&Ask<'_>, Answer) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.converse_once(asker, path, part, &take) {
                Err(Error::Broken { .. }) if tries < self.wire.patience.tries => {
                    self.wire.sleep(self.wire.patience.pause * tries)?;
                }
                result => return result,
            }
        }
    }

    fn converse_once<T>(
        &self,
        asker: &Asker<'_, '_>,
        path: &str,
        part: &Part,
        take: &impl Fn(&Ask<'_>, Answer) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let (mut ask, mut answer) = self.ask(asker, part, path, asker.ready()?)?;
        // A token that was had for this very request, and is not taken, gets no better.
        if answer.status() == 401
            && let Some(header) = asker.after(&answer, ask.authorization.as_deref())?
        {
            (ask, answer) = self.ask(asker, part, path, Some(header))?;
        }
        if matches!(answer.status(), 200 | 206) {
            return take(&ask, answer);
        }
        let mut error = self.wire.refusal(&ask, answer);
        if let Error::Denied { with_credentials, .. } = &mut error {
            *with_credentials = asker.is_known();
        }
        Err(error)
    }

    /// Asks by TLS, and without it where that is allowed and TLS is not spoken.
    fn ask<'q>(
        &self,
        asker: &Asker<'q, '_>,
        part: &Part,
        path: &str,
        authorization: Option<String>,
    ) -> Result<(Ask<'q>, Answer), Error> {
        let place = asker.place;
        let known = locked(&self.schemes).get(&place.host).copied();
        let secure = known.unwrap_or(true);
        let mut headers = vec![("accept", part.accept.to_owned())];
        if part.from > 0 {
            headers.push(("range", format!("bytes={}-", part.from)));
        }
        let mut ask = Ask {
            name: asker.name,
            address: Address::new(secure, &place.host, path),
            headers,
            authorization,
            form: None,
            registry: &place.registry,
            insecure: place.insecure,
            probing: place.insecure && known.is_none(),
            document: part.document,
        };
        let first = match self.wire.ask(&ask) {
            Ok(answer) => {
                locked(&self.schemes).insert(place.host.clone(), secure);
                return Ok((ask, answer));
            }
            Err(Failure::Connect(error)) if ask.probing => error,
            Err(failure) => return Err(failure.into()),
        };
        ask.address = Address::new(false, &place.host, path);
        ask.probing = false;
        match self.wire.ask(&ask) {
            Ok(answer) => {
                locked(&self.schemes).insert(place.host.clone(), false);
                Ok((ask, answer))
            }
            Err(Failure::Connect(second)) => Err(Error::Several(vec![first, second])),
            Err(Failure::Other(error)) => Err(error),
        }
    }
}

fn several(mut errors: Vec<Error>) -> Error {
    match errors.len() {
        1 => errors.remove(0),
        _ => Error::Several(errors),
    }
}
