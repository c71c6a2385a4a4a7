//! Index → the one manifest that is meant.

use std::collections::BTreeMap;

use kiln_core::Digest;

use crate::document::{self, Descriptor, Document, Index, Manifest};
use crate::error::{Error, Result};
use crate::platform::Platform;
use crate::read::Selector;
use crate::source::Source;
use crate::write::blob_path;

/// How deep indexes may lie in one another.
const MAX_DEPTH: usize = 4;

/// Manifests that are looked at.
const MAX_MANIFESTS: usize = 1000;

/// The manifest that `selector` means in a layout, with its digest and its name there.
pub(crate) fn in_layout(
    source: &Source,
    selector: &Selector,
) -> Result<(Digest, Manifest, Option<String>)> {
    let index = match Document::parse("index.json", &source.document("index.json")?)? {
        Document::Index(index) => index,
        Document::Manifest(_) => return Err(Error::malformed("index.json", "it is no index")),
    };
    let all = || index.manifests.iter().filter(|entry| entry.may_be_image());
    let meant: Vec<&Descriptor> = match selector {
        Selector::Any => all().collect(),
        Selector::Name(name) => all().filter(|entry| is_called(entry, name)).collect(),
        Selector::Digest(digest) => return by_digest(source, &index, digest),
    };
    let mut found = Found::default();
    for entry in meant {
        found.descend(source, entry, name_of(entry), 0)?;
    }
    found.one(source, selector, &all().filter_map(name_of).collect::<Vec<_>>())
}

/// What a name in an index means: itself, or the same with a registry, repository or `latest`.
fn is_called(entry: &Descriptor, name: &str) -> bool {
    let full = entry.annotation(document::CONTAINERD_NAME);
    let short = full.and_then(|full| full.strip_prefix("docker.io/"));
    let shorter = short.and_then(|short| short.strip_prefix("library/"));
    let same = |known: &str| known == name || known.strip_suffix(":latest") == Some(name);
    let plain = if full.is_none() { entry.annotation(document::REF_NAME) } else { None };
    [plain, full, short, shorter].into_iter().flatten().any(same)
}

fn name_of(entry: &Descriptor) -> Option<String> {
    let full = entry.annotation(document::CONTAINERD_NAME);
    let short = full.map(|full| {
        let full = full.strip_prefix("docker.io/").unwrap_or(full);
        full.strip_prefix("library/").unwrap_or(full)
    });
    short.or_else(|| entry.annotation(document::REF_NAME)).map(str::to_owned)
}

/// The manifest of that digest, wherever it is: what is named by digest need not be in the index.
fn by_digest(
    source: &Source,
    index: &Index,
    digest: &Digest,
) -> Result<(Digest, Manifest, Option<String>)> {
    let listed = index.manifests.iter().find(|entry| entry.digest == *digest);
    if listed.is_none() && !source.has(&blob_path(digest)) {
        return Err(Error::Select(format!("{} has no manifest {digest}", source.name)));
    }
    let entry = listed.cloned().unwrap_or_else(|| Descriptor::new("", *digest, u64::MAX));
    let mut found = Found::default();
    found.descend(source, &entry, name_of(&entry), 0)?;
    found.one(source, &Selector::Digest(*digest), &[])
}

/// Bytes of a blob of at most some megabytes, checked against its descriptor.
pub(crate) fn blob(source: &Source, entry: &Descriptor) -> Result<Vec<u8>> {
    let path = blob_path(&entry.digest);
    let bytes = source.document(&path)?;
    let what = || format!("`{path}` of {}", source.name);
    let found = Digest::of(&bytes);
    if found != entry.digest {
        return Err(Error::Mismatch { what: what(), expected: entry.digest, found });
    }
    if entry.size != bytes.len() as u64 && entry.size != u64::MAX {
        let why = format!("it has {} bytes, its descriptor says {}", bytes.len(), entry.size);
        return Err(Error::malformed(what(), why));
    }
    Ok(bytes)
}

/// Manifests that may be meant.
#[derive(Default)]
struct Found {
    manifests: BTreeMap<Digest, (Manifest, Option<Platform>, Option<String>)>,
    seen: usize,
}

impl Found {
    fn descend(
        &mut self,
        source: &Source,
        entry: &Descriptor,
        name: Option<String>,
        depth: usize,
    ) -> Result<()> {
        self.seen += 1;
        if depth > MAX_DEPTH || self.seen > MAX_MANIFESTS {
            return Err(Error::too_much(
                format!("{}: the nesting of its indexes", source.name),
                format!("{MAX_DEPTH} levels and {MAX_MANIFESTS} manifests"),
            ));
        }
        if self.manifests.contains_key(&entry.digest) {
            return Ok(());
        }
        let bytes = blob(source, entry)?;
        match Document::parse(&format!("manifest {}", entry.digest.short()), &bytes)? {
            Document::Manifest(manifest) => {
                let platform = entry.platform.clone();
                self.manifests.insert(entry.digest, (*manifest, platform, name));
            }
            Document::Index(index) => {
                for below in index.manifests.iter().filter(|below| below.may_be_image()) {
                    self.descend(source, below, name.clone(), depth + 1)?;
                }
            }
        }
        Ok(())
    }

    /// The only one; of several, the only one for this machine's processor.
    fn one(
        mut self,
        source: &Source,
        selector: &Selector,
        names: &[String],
    ) -> Result<(Digest, Manifest, Option<String>)> {
        if self.manifests.len() > 1 {
            let host = Platform::host();
            self.manifests.retain(|_, (_, platform, _)| {
                platform.as_ref().is_some_and(|platform| {
                    platform.os == host.os && platform.architecture == host.architecture
                })
            });
            if self.manifests.len() != 1 {
                let which = if names.is_empty() { String::new() } else { names.join(", ") };
                return Err(Error::Select(format!(
                    "{} has several images: say which one, by name or digest ({which})",
                    source.name
                )));
            }
        }
        match self.manifests.pop_first() {
            Some((digest, (manifest, _, name))) => Ok((digest, manifest, name)),
            None => Err(Error::Select(match selector {
                Selector::Name(name) => {
                    format!("{} has no image `{name}`; it has: {}", source.name, names.join(", "))
                }
                _ => format!("{} has no image", source.name),
            })),
        }
    }
}
