//! Who is asked for images: the registries of the host's files, by `kiln-remote`.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Mutex, OnceLock};

use kiln_bake::base::{LockedImage, LockedPlatform};
use kiln_core::Digest;
use kiln_core::exit::Exit;
use kiln_oci::remote::{self, Begun, Form, Remote, RemoteError};
use kiln_remote::registry::{Client, Document, Error, Reference};

use super::Images;
use crate::agent::lock as locked;
use crate::agent::session::Session;
use crate::report::Report;

/// A client for all images of a run: connections, tokens and what is known of mirrors are shared.
/// What the host's files say is asked of the client when a registry has to be asked.
pub(super) struct Registry<'a> {
    session: &'a Session,
    client: OnceLock<Result<Client<'a>, Report>>,
    /// Documents that have come: a name is resolved by those that its image is fetched by.
    seen: Mutex<BTreeMap<Digest, Vec<u8>>>,
}

/// So many bytes of documents are kept at hand.
const SEEN: usize = 8 << 20;

impl<'a> Registry<'a> {
    pub(super) fn new(session: &'a Session) -> Self {
        Self { session, client: OnceLock::new(), seen: Mutex::default() }
    }

    fn client(&self) -> Result<&Client<'a>, Report> {
        let made = self.client.get_or_init(|| {
            let registries =
                self.session.registries().map_err(|error| Report::of_registry(&error))?;
            let cancel = self.session.cancelled();
            Ok(Client::new(registries, self.session, self.session, cancel))
        });
        made.as_ref().map_err(Clone::clone)
    }

    /// Where `reference` is.
    pub(super) fn at<'b>(&'b self, reference: &'b Reference) -> Result<At<'b, 'a>, Report> {
        Ok(At { client: self.client()?, seen: &self.seen, reference })
    }
}

fn see(seen: &Mutex<BTreeMap<Digest, Vec<u8>>>, digest: Digest, bytes: &[u8]) {
    let mut seen = locked(seen);
    if seen.values().map(Vec::len).sum::<usize>() + bytes.len() <= SEEN {
        seen.insert(digest, bytes.to_vec());
    }
}

/// A repository of a registry.
pub(super) struct At<'b, 'a> {
    client: &'b Client<'a>,
    seen: &'b Mutex<BTreeMap<Digest, Vec<u8>>>,
    reference: &'b Reference,
}

impl Remote for At<'_, '_> {
    fn document(&self, form: Form, digest: &Digest, size: u64) -> Result<Vec<u8>, RemoteError> {
        let form = match form {
            Form::Manifest => Document::Manifest,
            Form::Config => Document::Blob,
        };
        let known = locked(self.seen).get(digest).filter(|it| it.len() as u64 == size).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let bytes = self.client.document(self.reference, digest, form, Some(size))?;
        see(self.seen, *digest, &bytes);
        Ok(bytes)
    }

    fn blob(
        &self,
        digest: &Digest,
        size: u64,
        begun: Begun,
    ) -> Result<Box<dyn Read + Send + '_>, RemoteError> {
        let begun = (begun.bytes, begun.hasher);
        Ok(Box::new(self.client.blob_from(self.reference, digest, size, begun, &|_| {})?))
    }
}

/// The error of a registry in what failed, if there is one.
pub(super) fn told<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Error> {
    let own = |error: &'a (dyn std::error::Error + 'static)| {
        let io = || Error::inside(error.downcast_ref::<std::io::Error>()?);
        error.downcast_ref::<Error>().or_else(io)
    };
    std::iter::successors(Some(error), |error| error.source()).find_map(own)
}

/// The place that a lock names.
pub(super) fn reference(text: &str) -> Result<Reference, Report> {
    Reference::parse(text).map_err(|error| Report::of_registry(&error))
}

impl Images<'_> {
    /// What a name names now, by the rules of this host.
    pub(super) fn resolve(&self, name: &str) -> Result<LockedImage, Report> {
        let node = self.session.begin("lock", name, "asking the registry");
        let found = self.ask(name);
        let words = found.as_ref().map(|found| found.index.short()).unwrap_or_default();
        node.end(&found, &words);
        found
    }

    fn ask(&self, name: &str) -> Result<LockedImage, Report> {
        let named = |mut report: Report| {
            report.message = format!("image `{name}`: {}", report.message);
            report
        };
        let failed = |error: &Error| {
            let message = error.without_name();
            named(Report { message, ..Report::of_registry(error) })
        };
        let client = self.registry.client()?;
        let (reference, resolved) = client.look_up(name).map_err(|error| failed(&error))?;
        let at = self.registry.at(&reference)?;
        see(at.seen, resolved.digest, &resolved.bytes);
        let offers = remote::offers(&at, &resolved.digest, &resolved.bytes);
        let offers = offers.map_err(|error| match told(&error) {
            Some(error) => failed(error),
            None => named(Report::from_error(Exit::Failed, &error)),
        })?;
        let mut platforms: Vec<LockedPlatform> = offers
            .into_iter()
            .map(|offer| LockedPlatform {
                platform: offer.platform.to_string(),
                manifest: offer.manifest,
                size: offer.size,
            })
            .collect();
        if platforms.is_empty() {
            return Err(Report::failed(format!("image `{name}` is none for Linux"))
                .hint("take another image: what Kiln runs are programs for Linux"));
        }
        platforms.sort_by(|a, b| a.platform.cmp(&b.platform));
        Ok(LockedImage {
            reference: reference.to_string(),
            index: resolved.digest,
            size: resolved.size,
            platforms,
        })
    }
}
