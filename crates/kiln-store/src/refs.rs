//! Named references: `refs/<kind>/<name>` holds digests that collection keeps, such as the
//! packages of a lock.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;

use kiln_core::Digest;

use crate::disk;
use crate::durable::write_durable;
use crate::error::{Context as _, Error, Result, component};
use crate::store::Store;

/// What a reference names, by kind and name.
pub type Refs = BTreeMap<(String, String), BTreeSet<Digest>>;

impl Store {
    /// Points the reference `kind`/`name` to `digests`, durably. Flush what it names first. Costs
    /// nothing when it says so already.
    ///
    /// # Errors
    /// [`Error::Name`]; I/O errors.
    pub fn set_ref(&self, kind: &str, name: &str, digests: &BTreeSet<Digest>) -> Result<()> {
        let dir = self.inner.root.join("refs").join(component("reference's kind", kind)?);
        let path = dir.join(component("reference", name)?);
        let text: String = digests.iter().map(|digest| format!("{digest}\n")).collect();
        if fs::read(&path).is_ok_and(|old| old == text.as_bytes()) {
            return Ok(());
        }
        disk::create_durable(&dir).doing("creating", &dir)?;
        write_durable(&path, text.as_bytes()).doing("writing", &path)
    }

    /// Whether the reference `kind`/`name` is there.
    ///
    /// # Errors
    /// [`Error::Name`]; I/O errors.
    pub fn has_ref(&self, kind: &str, name: &str) -> Result<bool> {
        let dir = self.inner.root.join("refs").join(component("reference's kind", kind)?);
        let path = dir.join(component("reference", name)?);
        path.try_exists().doing("looking at", &path)
    }

    /// Removes a reference; it need not be there.
    ///
    /// # Errors
    /// [`Error::Name`]; I/O errors.
    pub fn remove_ref(&self, kind: &str, name: &str) -> Result<()> {
        let dir = self.inner.root.join("refs").join(component("reference's kind", kind)?);
        let path = dir.join(component("reference", name)?);
        disk::remove(&path).doing("removing", &path)
    }

    /// All references.
    ///
    /// # Errors
    /// I/O errors, and [`io::ErrorKind::InvalidData`] for a file that holds something else:
    /// collection must not go on without knowing what it names.
    pub fn refs(&self) -> Result<Refs> {
        let mut refs = Refs::new();
        let top = self.inner.root.join("refs");
        for kind in fs::read_dir(&top).doing("reading", &top)? {
            let kind = kind.doing("reading", &top)?;
            let dir = kind.path();
            for entry in fs::read_dir(&dir).doing("reading", &dir)? {
                let entry = entry.doing("reading", &dir)?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.starts_with('.') {
                    continue;
                }
                let path = entry.path();
                let text = fs::read_to_string(&path).doing("reading", &path)?;
                let digests = text.lines().map(str::parse).collect::<Result<_, _>>();
                let digests = digests.map_err(|error| Error::Io {
                    doing: "reading",
                    path,
                    source: io::Error::new(io::ErrorKind::InvalidData, error),
                })?;
                refs.insert((kind.file_name().to_string_lossy().into_owned(), name), digests);
            }
        }
        Ok(refs)
    }
}
