//! Images → a layout folder, or an archive for `podman load` and `docker load`.
//!
//! A folder is written through an open descriptor of it, so that nothing which somebody else puts
//! there can lead elsewhere: every name is opened below it without following links, contents are
//! written under a name of their own and renamed, the index comes last.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io::{self, Seek as _, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::str::FromStr;
use std::sync::atomic::AtomicBool;

use kiln_core::{Digest, ImageId};
use kiln_store::Store;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use serde::{Deserialize, Serialize};

use crate::compress::Compression;
use crate::document::{self, Descriptor, Document, Index};
use crate::error::{Doing as _, Error, Result};
use crate::header;
use crate::image::{Encoded, encode};
use crate::read::Source;

/// In what the images are carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// An OCI image layout: a folder.
    #[default]
    Oci,
    /// The same as one tar file.
    OciArchive,
    /// The same with the `manifest.json` that `docker load` reads.
    DockerArchive,
}

impl Format {
    /// The word for it on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Oci => "oci",
            Self::OciArchive => "oci-archive",
            Self::DockerArchive => "docker-archive",
        }
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Oci, Self::OciArchive, Self::DockerArchive]
            .into_iter()
            .find(|format| format.word() == text)
            .ok_or_else(|| format!("`{text}` is none of oci, oci-archive, docker-archive"))
    }
}

/// One image to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Its name in the index (`org.opencontainers.image.ref.name`).
    pub name: String,
    /// `repository:tag`, for `docker load`.
    pub tag: String,
    /// Which one.
    pub image: ImageId,
}

/// Numeric owner and group for what is written.
pub type Owner = (u32, u32);

/// One image that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    /// Its name in the index.
    pub name: String,
    /// Which one.
    #[serde(flatten)]
    pub image: ImageId,
    /// Digest of the manifest.
    pub manifest: Digest,
    /// Digest of the configuration in OCI's form: what Docker calls the image's ID.
    pub id: Digest,
    /// Digest of the compressed layer.
    pub layer: Digest,
    /// Digest of the uncompressed layer.
    pub diff_id: Digest,
    /// Bytes of the compressed layer.
    pub bytes: u64,
}

impl Exported {
    fn of(item: &Item, encoded: &Encoded) -> Self {
        Self {
            name: item.name.clone(),
            image: encoded.image,
            manifest: encoded.manifest.digest,
            id: encoded.config.digest,
            layer: encoded.layer.digest,
            diff_id: encoded.diff_id,
            bytes: encoded.layer.size,
        }
    }
}

/// Writes images into the layout folder that `dir` is open on. It may be empty, or a layout: then
/// images are added to it, and take the place of those of the same name.
///
/// # Errors
/// [`Error::Malformed`] if the folder holds something else, [`Error::Unfit`], store and I/O errors.
pub fn to_layout(
    store: &Store,
    items: &[Item],
    compression: Compression,
    dir: &OwnedFd,
    owner: Option<Owner>,
    cancel: &AtomicBool,
) -> Result<Vec<Exported>> {
    let folder = Folder { fd: dir.as_fd(), owner };
    let mut index = folder.index()?;
    let blobs = folder.enter("blobs")?;
    let blobs = Folder { fd: blobs.as_fd(), owner };
    let sha256 = blobs.enter("sha256")?;
    let sha256 = Folder { fd: sha256.as_fd(), owner };
    let mut done: BTreeMap<ImageId, Encoded> = BTreeMap::new();
    let mut exported = Vec::new();
    for item in items {
        let encoded = match done.entry(item.image) {
            Entry::Occupied(encoded) => encoded.into_mut(),
            Entry::Vacant(place) => {
                let mut layer = sha256.begin()?;
                let encoded = encode(store, &item.image, compression, &mut layer.file, cancel)?;
                layer.publish(&encoded.layer.digest.hex())?;
                sha256.write(&encoded.config.digest.hex(), &encoded.config_bytes)?;
                sha256.write(&encoded.manifest.digest.hex(), &encoded.manifest_bytes)?;
                place.insert(encoded)
            }
        };
        index.manifests.retain(|there| there.annotation(document::REF_NAME) != Some(&item.name));
        index.manifests.push(entry(item, encoded, Format::Oci));
        exported.push(Exported::of(item, encoded));
    }
    index.manifests.sort_by(|a, b| key(a).cmp(&key(b)));
    folder.write("oci-layout", document::LAYOUT.as_bytes())?;
    folder.write("index.json", &document::bytes(&index))?;
    for folder in [&sha256, &folder] {
        rustix::fs::fsync(folder.fd).doing(|| "syncing the folder".into())?;
    }
    Ok(exported)
}

/// Writes images as one archive. `out` need not be a file: layers are prepared in the store's
/// scratch space, which takes as much room as the archive.
///
/// # Errors
/// As [`to_layout`].
pub fn to_archive(
    store: &Store,
    items: &[Item],
    format: Format,
    compression: Compression,
    out: &mut dyn Write,
    cancel: &AtomicBool,
) -> Result<Vec<Exported>> {
    let scratch = store.scratch_dir()?;
    let mut done: BTreeMap<ImageId, (Encoded, File)> = BTreeMap::new();
    let mut exported = Vec::new();
    let mut manifests = Vec::new();
    for item in items {
        let (encoded, _) = match done.entry(item.image) {
            Entry::Occupied(encoded) => encoded.into_mut(),
            Entry::Vacant(place) => {
                let doing = || "preparing the archive".to_owned();
                let mut spool = tempfile::tempfile_in(scratch.path()).doing(doing)?;
                let encoded = encode(store, &item.image, compression, &mut spool, cancel)?;
                place.insert((encoded, spool))
            }
        };
        manifests.push(entry(item, encoded, format));
        exported.push(Exported::of(item, encoded));
    }
    manifests.sort_by(|a, b| key(a).cmp(&key(b)));
    let index = Index { schema_version: 2, media_type: document::INDEX.to_owned(), manifests };
    let doing = || "writing the archive".to_owned();
    write_archive(out, format, items, &index, &mut done).doing(doing)?;
    Ok(exported)
}

/// The archive's entries: what is small first, so that a reader of a stream knows what comes.
fn write_archive(
    mut out: &mut dyn Write,
    format: Format,
    items: &[Item],
    index: &Index,
    done: &mut BTreeMap<ImageId, (Encoded, File)>,
) -> io::Result<()> {
    let mut contents: BTreeMap<Digest, Content<'_>> = BTreeMap::new();
    let docker = document::bytes(&docker_manifest(items, done));
    for (encoded, spool) in done.values_mut() {
        contents.insert(encoded.config.digest, Content::Bytes(&encoded.config_bytes));
        contents.insert(encoded.manifest.digest, Content::Bytes(&encoded.manifest_bytes));
        contents.insert(encoded.layer.digest, Content::File(spool, encoded.layer.size));
    }
    let file = |out: &mut dyn Write, name: &str, content: Content<'_>| -> io::Result<()> {
        let size = content.size();
        out.write_all(&header::of_member(name, Some(size)))?;
        match content {
            Content::Bytes(bytes) => out.write_all(bytes)?,
            Content::File(file, _) => {
                file.rewind()?;
                io::copy(file, &mut &mut *out)?;
            }
        }
        out.write_all(header::padding(size))
    };
    file(&mut out, "oci-layout", Content::Bytes(document::LAYOUT.as_bytes()))?;
    file(&mut out, "index.json", Content::Bytes(&document::bytes(index)))?;
    if format == Format::DockerArchive {
        file(&mut out, "manifest.json", Content::Bytes(&docker))?;
    }
    out.write_all(&header::of_member("blobs/", None))?;
    out.write_all(&header::of_member("blobs/sha256/", None))?;
    for (digest, content) in contents {
        file(&mut out, &blob_path(&digest), content)?;
    }
    out.write_all(&header::END)?;
    out.flush()
}

enum Content<'a> {
    Bytes(&'a [u8]),
    File(&'a mut File, u64),
}

impl Content<'_> {
    fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(_, size) => *size,
        }
    }
}

/// Where a content is in a layout.
pub(crate) fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// One image in Docker's `manifest.json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

fn docker_manifest(items: &[Item], done: &BTreeMap<ImageId, (Encoded, File)>) -> Vec<DockerImage> {
    let images = done.iter().map(|(image, (encoded, _))| DockerImage {
        config: blob_path(&encoded.config.digest),
        repo_tags: items
            .iter()
            .filter(|item| item.image == *image)
            .map(|item| item.tag.clone())
            .collect(),
        layers: vec![blob_path(&encoded.layer.digest)],
    });
    images.collect()
}

/// The index's entry for an image.
fn entry(item: &Item, encoded: &Encoded, format: Format) -> Descriptor {
    let mut annotations = BTreeMap::new();
    match format {
        Format::Oci | Format::OciArchive => {
            annotations.insert(document::REF_NAME.to_owned(), item.name.clone());
        }
        // As `docker save` has it: the whole name for containerd, the tag for others.
        Format::DockerArchive => {
            let (_, tag) = item.tag.rsplit_once(':').unwrap_or(("", "latest"));
            annotations.insert(document::REF_NAME.to_owned(), tag.to_owned());
            let full = format!("docker.io/library/{}", item.tag);
            annotations.insert(document::CONTAINERD_NAME.to_owned(), full);
        }
    }
    Descriptor { annotations: Some(annotations), ..encoded.manifest.clone() }
}

fn key(entry: &Descriptor) -> (Option<&str>, Option<&str>, Digest) {
    let containerd = entry.annotation(document::CONTAINERD_NAME);
    (entry.annotation(document::REF_NAME), containerd, entry.digest)
}

/// A folder that is being written.
struct Folder<'a> {
    fd: BorrowedFd<'a>,
    owner: Option<Owner>,
}

impl Folder<'_> {
    /// The index that is there, or an empty one. A folder with anything else in it is not ours.
    fn index(&self) -> Result<Index> {
        let mut names = Vec::new();
        let dir = rustix::fs::Dir::read_from(self.fd).doing(|| "reading the folder".into())?;
        for entry in dir {
            let entry = entry.doing(|| "reading the folder".into())?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        if names.is_empty() {
            let media_type = document::INDEX.to_owned();
            return Ok(Index { schema_version: 2, media_type, manifests: Vec::new() });
        }
        if !names.iter().any(|name| name == "oci-layout" || name == "blobs") {
            let why = format!("it holds `{}` and is no OCI image layout", names[0]);
            return Err(Error::malformed("the folder to export to", why));
        }
        if !names.iter().any(|name| name == "index.json") {
            // An export that was interrupted.
            let media_type = document::INDEX.to_owned();
            return Ok(Index { schema_version: 2, media_type, manifests: Vec::new() });
        }
        let fd = self.fd.try_clone_to_owned().doing(|| "opening the folder".into())?;
        let there = Source::of_folder(fd, "the folder to export to".to_owned())?;
        match Document::parse("index.json", &there.document("index.json")?)? {
            Document::Index(index) => Ok(index),
            Document::Manifest(_) => Err(Error::malformed("index.json", "it is no index")),
        }
    }

    /// The folder `name` in this one, made if it is not there. A link is not followed.
    fn enter(&self, name: &str) -> Result<OwnedFd> {
        let doing = || format!("making the folder `{name}`");
        match rustix::fs::mkdirat(self.fd, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => self.give(self.open_dir(name).doing(doing)?, doing),
            Err(rustix::io::Errno::EXIST) => self.open_dir(name).doing(doing),
            Err(error) => Err(error).doing(doing),
        }
    }

    fn open_dir(&self, name: &str) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::openat(self.fd, name, flags, Mode::empty())
    }

    fn give<F: AsFd>(&self, file: F, doing: impl FnOnce() -> String) -> Result<F> {
        if let Some((uid, gid)) = self.owner {
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            rustix::fs::fchown(&file, uid, gid).doing(doing)?;
        }
        Ok(file)
    }

    /// A new file, as yet under a name that nobody else takes.
    fn begin(&self) -> Result<New<'_>> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::RDWR;
        let mode = Mode::from_raw_mode(0o644);
        loop {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = format!(".kiln-{}-{number}", std::process::id());
            let doing = || format!("creating `{name}`");
            match rustix::fs::openat(self.fd, &name, flags | OFlags::CLOEXEC, mode) {
                // A process of that number was killed here once.
                Err(rustix::io::Errno::EXIST) => {}
                opened => {
                    let file = File::from(opened.doing(doing)?);
                    return Ok(New { folder: self, file, name, published: false });
                }
            }
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut new = self.begin()?;
        new.file.write_all(bytes).doing(|| format!("writing `{name}`"))?;
        new.publish(name)
    }
}

/// A file without its final name; removed unless it gets that.
struct New<'a> {
    folder: &'a Folder<'a>,
    file: File,
    name: String,
    published: bool,
}

impl New<'_> {
    fn publish(mut self, name: &str) -> Result<()> {
        let doing = || format!("writing `{name}`");
        self.folder.give(&self.file, doing)?;
        rustix::fs::fchmod(&self.file, Mode::from_raw_mode(0o644)).doing(doing)?;
        self.file.sync_all().doing(doing)?;
        rustix::fs::renameat(self.folder.fd, &self.name, self.folder.fd, name).doing(doing)?;
        self.published = true;
        Ok(())
    }
}

impl Drop for New<'_> {
    fn drop(&mut self) {
        if !self.published {
            let _ = rustix::fs::unlinkat(self.folder.fd, &self.name, AtFlags::empty());
        }
    }
}
