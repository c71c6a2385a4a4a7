//! Named references: `refs/<kind>/<name>` holds digests that collection keeps, such as the
//! packages of a lock.
//!
//! Two kinds of kinds. Releases and imports stand until somebody takes them away. Those of
//! [`HELD`] are kept because a lock, a bake or a release took what they name: they live as long as
//! something that stands [needs](Reference::needs) them, or for a while after their last use.
//! A reference of [`PROJECTS`] says what a project's lock needs; see [`crate::gc`].
//!
//! A file carries a sum over its name and content: collection believes no other.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use kiln_core::Digest;
use rustix::fs::{CWD, Mode, OFlags};

use crate::disk;
use crate::durable::write_durable;
use crate::error::{Context as _, Error, Result, component};
use crate::store::Store;

/// Kinds that live by being needed or used: package files of a locked base, the image made of them,
/// what was fetched for an ADD or as a build context, images of registries.
pub const HELD: [&str; 4] = ["locks", "bases", "remotes", "images"];

/// Kind of the references that say what a project needs.
pub const PROJECTS: &str = "projects";

/// First line of a file. Version 1 had none, and no sum: lines of digests.
const MARK: &str = "kiln-ref 2";

/// A larger file is no reference.
const LARGEST: u64 = 64 << 20;

/// Kind and name.
pub type RefName = (String, String);

/// What a reference names, by kind and name.
pub type Refs = BTreeMap<RefName, BTreeSet<Digest>>;

/// References, by kind and name.
pub type References = BTreeMap<RefName, Reference>;

/// What a reference says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reference {
    /// What is kept, and all that it leads to.
    pub digests: BTreeSet<Digest>,
    /// References of the kinds in [`HELD`] that live as long as this one stands.
    pub needs: BTreeSet<RefName>,
    /// The folder of the project that it is about, if it is about one.
    pub folder: Option<PathBuf>,
    /// On which of the root's [days](Store::today) it was last used; `None` in a file of version 1.
    pub used: Option<u64>,
}

impl Reference {
    /// One that keeps `digests`.
    pub fn to(digests: BTreeSet<Digest>) -> Self {
        Self { digests, ..Self::default() }
    }

    fn text(&self, name: &RefName) -> String {
        let mut text = format!("{MARK}\n");
        if let Some(day) = self.used {
            text += &format!("used {day}\n");
        }
        if let Some(folder) = &self.folder {
            text += &format!("folder {}\n", escaped(folder));
        }
        for (kind, name) in &self.needs {
            text += &format!("needs {kind}/{name}\n");
        }
        for digest in &self.digests {
            text += &format!("{digest}\n");
        }
        let sum = sum(name, &text);
        text + &format!("sum {}\n", sum.hex())
    }

    fn parse(name: &RefName, text: &str) -> Result<Self, String> {
        if !text.starts_with("kiln-ref ") {
            return Self::parse_first_version(text);
        }
        let (body, last) = text.trim_end_matches('\n').rsplit_once('\n').unwrap_or_default();
        let body = &text[..(body.len() + 1).min(text.len())];
        if text.lines().next() != Some(MARK) && last.starts_with("sum ") {
            return Err("it is of a version that this kiln does not know".to_owned());
        }
        if last.strip_prefix("sum ") != Some(&sum(name, body).hex()) || !text.ends_with('\n') {
            return Err("it does not fit its sum".to_owned());
        }
        let mut reference = Self::default();
        for line in body.lines().skip(1) {
            let (key, value) = line.split_once(' ').unwrap_or((line, ""));
            match key {
                "used" => reference.used = value.parse().ok(),
                "folder" => reference.folder = Some(unescaped(value)),
                "needs" => {
                    let (kind, name) = value.split_once('/').ok_or("`needs` names nothing")?;
                    reference.needs.insert((kind.to_owned(), name.to_owned()));
                }
                _ => {
                    let digest = line.parse::<Digest>().map_err(|error| error.to_string())?;
                    reference.digests.insert(digest);
                }
            }
        }
        Ok(reference)
    }

    fn parse_first_version(text: &str) -> Result<Self, String> {
        // One that names nothing was never written, but a file that was cut looks like it.
        if text.is_empty() {
            return Err("it is empty".to_owned());
        }
        let digests =
            text.lines().map(|line| line.parse::<Digest>().map_err(|error| error.to_string()));
        Ok(Self::to(digests.collect::<Result<_, String>>()?))
    }
}

/// Over the name too: a reference that was copied over another one is none.
fn sum((kind, name): &RefName, body: &str) -> Digest {
    Digest::of(format!("refs/{kind}/{name}\n{body}"))
}

/// On one line, and the same again afterwards whatever it was.
fn escaped(path: &Path) -> String {
    let mut text = String::new();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'!'..=b'~' if *byte != b'%' => text.push(char::from(*byte)),
            byte => text += &format!("%{byte:02x}"),
        }
    }
    text
}

fn unescaped(text: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..2).and_then(|code| std::str::from_utf8(code).ok());
        let code = code.and_then(|code| u8::from_str_radix(code, 16).ok());
        match code.filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

impl Store {
    /// Points the reference `kind`/`name` to `digests`, durably, and notes that it is used today.
    /// Flush what it names first. Costs nothing when it says so already.
    ///
    /// # Errors
    /// [`Error::Name`]; I/O errors.
    pub fn set_ref(&self, kind: &str, name: &str, digests: &BTreeSet<Digest>) -> Result<()> {
        self.set_reference(kind, name, Reference::to(digests.clone()))
    }

    /// [`Store::set_ref`] with all that a reference can say; when it was used is filled in.
    ///
    /// # Errors
    /// As there.
    pub fn set_reference(&self, kind: &str, name: &str, reference: Reference) -> Result<()> {
        let reference = Reference { used: Some(self.today()?), ..reference };
        self.write_reference(kind, name, &reference)
    }

    pub(crate) fn write_reference(
        &self,
        kind: &str,
        name: &str,
        reference: &Reference,
    ) -> Result<()> {
        let path = self.ref_path(kind, name)?;
        let text = reference.text(&(kind.to_owned(), name.to_owned()));
        if fs::read(&path).is_ok_and(|old| old == text.as_bytes()) {
            return Ok(());
        }
        let dir = path.parent().unwrap_or(&path);
        disk::create_durable(dir).doing("creating", dir)?;
        write_durable(&path, text.as_bytes()).doing("writing", &path)
    }

    /// The reference `kind`/`name`, if it is there.
    ///
    /// # Errors
    /// [`Error::Name`]; [`Error::Reference`] if it is damaged; I/O errors.
    pub fn reference(&self, kind: &str, name: &str) -> Result<Option<Reference>> {
        let path = self.ref_path(kind, name)?;
        if !path.try_exists().doing("looking at", &path)? {
            return Ok(None);
        }
        read(&(kind.to_owned(), name.to_owned()), &path).map(Some)
    }

    fn ref_path(&self, kind: &str, name: &str) -> Result<PathBuf> {
        let dir = self.inner.root.join("refs").join(component("reference's kind", kind)?);
        Ok(dir.join(component("reference", name)?))
    }

    /// Whether the reference `kind`/`name` is there.
    ///
    /// # Errors
    /// [`Error::Name`]; I/O errors.
    pub fn has_ref(&self, kind: &str, name: &str) -> Result<bool> {
        let path = self.ref_path(kind, name)?;
        path.try_exists().doing("looking at", &path)
    }

    /// Removes a reference; it need not be there.
    ///
    /// # Errors
    /// [`Error::Name`]; I/O errors.
    pub fn remove_ref(&self, kind: &str, name: &str) -> Result<()> {
        let path = self.ref_path(kind, name)?;
        disk::remove(&path).doing("removing", &path)
    }

    /// Writes the reference to a release that was cut again: its name ends as the digest begins, and
    /// the second copies of releases say the rest. `None` if there is no such copy.
    ///
    /// # Errors
    /// I/O errors.
    pub fn heal_release_ref(&self, name: &str) -> Result<Option<Digest>> {
        let Some((_, start)) = name.rsplit_once('.') else { return Ok(None) };
        let dir = self.inner.root.join("spare");
        for entry in fs::read_dir(&dir).doing("reading", &dir)? {
            let hex = entry.doing("reading", &dir)?.file_name();
            let hex = hex.to_str().filter(|hex| start.len() == 16 && hex.starts_with(start));
            if let Some(release) = hex.and_then(|hex| hex.parse::<Digest>().ok())
                && self.get_release(&release).is_ok()
            {
                self.set_ref("releases", name, &BTreeSet::from([release]))?;
                self.healed(&format!("refs/releases/{name}"), "its name and the release");
                return Ok(Some(release));
            }
        }
        Ok(None)
    }

    /// What all references name.
    ///
    /// # Errors
    /// As [`Store::references`].
    pub fn refs(&self) -> Result<Refs> {
        let all = self.references()?.into_iter();
        Ok(all.map(|(name, reference)| (name, reference.digests)).collect())
    }

    /// All references.
    ///
    /// # Errors
    /// I/O errors, and [`Error::Reference`] for a file that is damaged: collection must not go on
    /// without knowing what it names.
    pub fn references(&self) -> Result<References> {
        self.look_at_references()?.into_iter().map(|(name, found)| Ok((name, found?))).collect()
    }

    /// References that others need and that are not there: by the name of the one that is missing,
    /// who needs it.
    ///
    /// # Errors
    /// I/O errors.
    pub fn missing_references<'a>(
        &self,
        references: impl Iterator<Item = (&'a RefName, &'a Reference)> + Clone,
    ) -> Result<BTreeMap<RefName, BTreeSet<RefName>>> {
        let there: BTreeSet<&RefName> = references.clone().map(|(name, _)| name).collect();
        let mut missing: BTreeMap<RefName, BTreeSet<RefName>> = BTreeMap::new();
        for (name, reference) in references {
            for need in reference.needs.iter().filter(|need| !there.contains(need)) {
                // It may have come while they were listed.
                if !self.has_ref(&need.0, &need.1)? {
                    missing.entry(need.clone()).or_default().insert(name.clone());
                }
            }
        }
        Ok(missing)
    }

    /// All references, those that cannot be read among them: for lists, which go on.
    ///
    /// # Errors
    /// I/O errors in reading folders.
    pub fn look_at_references(&self) -> Result<Vec<(RefName, Result<Reference>)>> {
        let mut found = Vec::new();
        for (name, path) in self.reference_files()? {
            match read(&name, &path) {
                // Replaced or removed meanwhile.
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                reference => found.push((name, reference)),
            }
        }
        Ok(found)
    }

    /// Brings `seen` up to date; what has not changed since is not read again.
    ///
    /// # Errors
    /// As [`Store::references`].
    pub(crate) fn look_again(&self, seen: &mut Seen) -> Result<()> {
        let mut before = std::mem::take(&mut seen.0);
        for (name, path) in self.reference_files()? {
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            // Each is written beside its place, so another one is another file.
            let stamp = (meta.ino(), meta.ctime(), meta.ctime_nsec());
            let reference = match before.remove(&name) {
                Some((same, reference)) if same == stamp => reference,
                _ => match read(&name, &path) {
                    Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                        continue;
                    }
                    reference => reference?,
                },
            };
            seen.0.insert(name, (stamp, reference));
        }
        Ok(())
    }

    fn reference_files(&self) -> Result<Vec<(RefName, PathBuf)>> {
        let mut found = Vec::new();
        let top = self.inner.root.join("refs");
        for kind in fs::read_dir(&top).doing("reading", &top)? {
            let kind = kind.doing("reading", &top)?;
            let dir = kind.path();
            let kind = kind.file_name().to_string_lossy().into_owned();
            for entry in fs::read_dir(&dir).doing("reading", &dir)? {
                let entry = entry.doing("reading", &dir)?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if !name.starts_with('.') {
                    found.push(((kind.clone(), name), entry.path()));
                }
            }
        }
        found.sort();
        Ok(found)
    }
}

/// References as they were last seen, each with what tells that it changed.
#[derive(Debug, Default)]
pub(crate) struct Seen(BTreeMap<RefName, ((u64, i64, i64), Reference)>);

impl Seen {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&RefName, &Reference)> + Clone {
        self.0.iter().map(|(name, (_, reference))| (name, reference))
    }
}

fn read(name: &RefName, path: &Path) -> Result<Reference> {
    let damaged = |why: String| Error::Reference { path: path.to_owned(), why };
    // Whatever stands in its place: nothing here waits for a pipe or follows a link.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file =
        File::from(rustix::fs::openat(CWD, path, flags, Mode::empty()).doing("opening", path)?);
    if !file.metadata().doing("looking at", path)?.is_file() {
        return Err(damaged("it is no regular file".to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes).doing("reading", path)?;
    let text = String::from_utf8(bytes).map_err(|error| damaged(error.to_string()))?;
    Reference::parse(name, &text).map_err(damaged)
}
