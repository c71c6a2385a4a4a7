//! `kiln.lock`: what a bake takes from outside, pinned. The format is `docs/kiln-lock.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use kiln_core::Digest;
use kiln_core::compose::Base;
use kiln_store::Store;
use kiln_store::regular::{self, Links};
use serde::{Deserialize, Serialize};

use super::error::BaseError;
use super::lock_text::{self, quote};
use super::locked_image::LockedImage;
use crate::remote::{LockedGit, LockedUrl, Pins};

/// Version of the file's format. A lock without images is written as version 1, which every Kiln
/// reads.
pub const FORMAT: u32 = 2;

/// A whole `kiln.lock`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// [`FORMAT`].
    pub format: u32,
    /// The day on which something in it was last resolved, `YYYY-MM-DD` in UTC.
    pub date: String,
    /// Files behind URLs that an ADD takes, by address.
    #[serde(default)]
    pub urls: Vec<LockedUrl>,
    /// Commits of repositories that an ADD takes, by address and name.
    #[serde(default)]
    pub git: Vec<LockedGit>,
    /// Images of registries, by the name that the project has for them.
    #[serde(default)]
    pub images: BTreeMap<String, LockedImage>,
    /// The locked bases, by name.
    #[serde(default)]
    pub bases: BTreeMap<String, LockedBase>,
}

/// One base. Everything here, and nothing else, decides its digests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedBase {
    /// Suite of the distribution.
    pub suite: String,
    /// Debian architecture, for example `amd64`.
    pub arch: String,
    /// Without essential packages and without configuration.
    #[serde(default)]
    pub minimal: bool,
    /// The packages that the compose file names, as it names them.
    pub packages: Vec<String>,
    /// Seconds since 1970 that scripts get as `SOURCE_DATE_EPOCH`, as `YYYY-MM-DD` in UTC.
    pub epoch: String,
    /// All packages, in the order in which they are unpacked.
    pub unpack: Vec<LockedPackage>,
    /// Their names, in the order in which they are configured; empty for a minimal base.
    #[serde(default)]
    pub configure: Vec<String>,
    /// Lines of `/etc/passwd`, by numeric id; the password field is always `x`.
    #[serde(default)]
    pub users: Vec<String>,
    /// Lines of `/etc/group`, by numeric id.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Diversions that the packages' scripts make before unpacking: `FROM TO PACKAGE`.
    #[serde(default)]
    pub diversions: Vec<String>,
}

/// One package file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedPackage {
    /// Name.
    pub name: String,
    /// Version, with epoch.
    pub version: String,
    /// `amd64`, `all` …
    pub arch: String,
    /// Path on a mirror, below its root.
    pub filename: String,
    /// Bytes.
    pub size: u64,
    /// sha256 of the file.
    #[serde(with = "hex")]
    pub sha256: Digest,
}

impl LockedPackage {
    /// Name and version, for messages.
    pub fn label(&self) -> String {
        format!("{} {}", self.name, self.version)
    }
}

impl LockedBase {
    /// Whether this is what `base` of the compose file asks for.
    pub fn satisfies(&self, base: &Base) -> bool {
        let sorted = |names: &[String]| {
            let mut names = names.to_vec();
            names.sort();
            names.dedup();
            names
        };
        self.suite == base.debian
            && self.minimal == base.minimal
            && sorted(&self.packages) == sorted(&base.packages)
    }

    /// Identity of the locked content: equal for equal content, whatever the base is called.
    pub fn digest(&self) -> Digest {
        Digest::of(lock_text::base(self))
    }

    /// [`LockedBase::epoch`] in seconds since 1970.
    pub(crate) fn epoch_seconds(&self) -> u64 {
        super::date::parse(&self.epoch).unwrap_or_default()
    }
}

impl Lock {
    /// An empty lock of the day `date`.
    pub fn new(date: &str) -> Self {
        Self { format: FORMAT, date: date.to_owned(), ..Self::default() }
    }

    /// A larger file, in bytes, is no lock.
    pub const LARGEST: u64 = 64 << 20;

    /// Reads the file at `path`; `None` when there is none.
    ///
    /// # Errors
    /// [`BaseError::Lock`] names the file and what is wrong with it.
    pub fn load(path: &Path) -> Result<Option<Self>, BaseError> {
        // Where a link leads, a complaint about a line would show what its owner alone may read.
        let failed = |what| BaseError::Lock { path: path.to_owned(), what };
        match regular::read(path, Links::Refuse, Self::LARGEST) {
            Ok(text) => {
                let text = String::from_utf8(text).map_err(|error| failed(error.to_string()))?;
                Self::parse(&text).map(Some).map_err(failed)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// Reads the text form.
    ///
    /// # Errors
    /// Says what is wrong, with the line where there is one.
    pub fn parse(text: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let head: Head = toml::from_str(text).map_err(|error| error.to_string())?;
        if !(1..=FORMAT).contains(&head.format) {
            return Err(format!(
                "format {} is not known to this version of kiln, which knows up to {FORMAT}",
                head.format
            ));
        }
        let mut lock: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        if head.format < 2 && !lock.images.is_empty() {
            return Err("`images` are of format 2".into());
        }
        lock.format = FORMAT;
        for (name, image) in &lock.images {
            image.check().map_err(|what| format!("image `{name}`: {what}"))?;
        }
        for (name, base) in &lock.bases {
            base.check().map_err(|what| format!("base `{name}`: {what}"))?;
        }
        lock.git.iter().try_for_each(LockedGit::check)?;
        Ok(lock)
    }

    /// Takes over what the remotes of a run have pinned, and says whether that is anything new.
    pub fn pin(&mut self, pins: &Pins) -> bool {
        let (urls, git) = pins.parts();
        let new = (&urls, &git) != (&self.urls, &self.git);
        if new {
            (self.urls, self.git, self.date) = (urls, git, super::date::today());
        }
        new
    }

    /// Takes over pins of images, and says whether they are other ones.
    pub fn pin_images(&mut self, images: BTreeMap<String, LockedImage>) -> bool {
        let new = images != self.images;
        if new {
            (self.images, self.date) = (images, super::date::today());
        }
        new
    }

    /// The references of the store, by kind and name, that keep what this lock names.
    pub fn references(&self) -> BTreeSet<(String, String)> {
        let mut names = BTreeSet::new();
        for base in self.bases.values() {
            names.insert((super::REF_KIND.to_owned(), base.digest().hex()));
            names.insert((super::IMAGE_REF_KIND.to_owned(), super::key(base).hex()));
        }
        for platform in self.images.values().flat_map(|image| &image.platforms) {
            names.insert(("images".to_owned(), platform.manifest.hex()));
        }
        let remotes = crate::remote::kept_for(&self.urls, &self.git);
        names.extend(remotes.into_iter().map(|name| (crate::remote::REF_KIND.to_owned(), name)));
        names
    }

    /// What the reference of this kind and name keeps, if it is one of this lock's and it is known.
    pub fn kept(&self, store: &Store, name: &(String, String)) -> Option<BTreeSet<Digest>> {
        let (kind, name) = (name.0.as_str(), name.1.as_str());
        let mut bases = self.bases.values();
        match kind {
            super::REF_KIND => {
                let base = bases.find(|base| base.digest().hex() == name)?;
                Some(base.unpack.iter().map(|package| package.sha256).collect())
            }
            super::IMAGE_REF_KIND => {
                let key = bases.map(super::key).find(|key| key.hex() == name)?;
                let image = store.step_result(&key)?;
                Some(BTreeSet::from([image.tree, image.config]))
            }
            crate::remote::REF_KIND => crate::remote::kept_by(store, name, &self.urls, &self.git),
            _ => None,
        }
    }

    /// The text form: stable, one package a line.
    pub fn text(&self) -> String {
        lock_text::write(self)
    }

    /// Writes the file at `path`, whole or not at all. It belongs to whom its directory belongs to:
    /// the agent is root, the project is a user's.
    ///
    /// # Errors
    /// [`BaseError::Io`] when the directory cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), BaseError> {
        let failed = |error| BaseError::io(path)(error);
        kiln_store::write_durable(path, self.text().as_bytes()).map_err(failed)?;
        if rustix::process::geteuid().is_root() {
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
            let owner = std::fs::metadata(dir.unwrap_or(Path::new("."))).map_err(failed)?;
            // Whoever owns the folder may have put a link there by now.
            std::os::unix::fs::lchown(path, Some(owner.uid()), Some(owner.gid()))
                .map_err(failed)?;
        }
        Ok(())
    }

    /// Whether the lock holds exactly the bases of the compose file, as they stand there.
    pub fn is_current(&self, bases: &BTreeMap<String, Base>) -> bool {
        self.differences(bases).is_empty()
    }

    /// Names of the bases that are missing here, left over here, or not as the file has them.
    pub fn differences(&self, bases: &BTreeMap<String, Base>) -> Vec<String> {
        let mut names: Vec<String> = bases
            .iter()
            .filter(|(name, base)| {
                !self.bases.get(*name).is_some_and(|locked| locked.satisfies(base))
            })
            .map(|(name, _)| name.clone())
            .collect();
        names.extend(self.bases.keys().filter(|name| !bases.contains_key(*name)).cloned());
        names
    }
}

impl LockedBase {
    /// What must hold for a bake to make sense; a merge of two locks can break it.
    fn check(&self) -> Result<(), String> {
        let mut unpack: Vec<&str> = self.unpack.iter().map(|each| each.name.as_str()).collect();
        let mut configure: Vec<&str> = self.configure.iter().map(String::as_str).collect();
        unpack.sort_unstable();
        configure.sort_unstable();
        if let Some(pair) = unpack.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("`unpack` names {} twice", pair[0]));
        }
        if !self.minimal && unpack != configure {
            return Err("`unpack` and `configure` do not name the same packages".into());
        }
        if super::date::parse(&self.epoch).is_none() {
            return Err(format!("`epoch = {}` is not YYYY-MM-DD", quote(&self.epoch)));
        }
        for package in &self.unpack {
            // Names become paths and arguments.
            let name = &package.name;
            let known = |byte: u8| byte.is_ascii_alphanumeric() || b"+.-".contains(&byte);
            if !name.bytes().all(known) || !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
                return Err(format!("{} is no name of a package", quote(name)));
            }
            let filename = &package.filename;
            if filename.starts_with('/') || filename.split('/').any(|part| part == "..") {
                return Err(format!("`{filename}` is not a path below a mirror's root"));
            }
        }
        Ok(())
    }
}

pub(crate) mod hex {
    use kiln_core::Digest;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(digest: &Digest, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&digest.hex())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Digest, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Lock {
        let package = |name: &str| LockedPackage {
            name: name.into(),
            version: "1:2.0~rc1+b\"1".into(),
            arch: "amd64".into(),
            filename: format!("pool/main/{name}.deb"),
            size: 7,
            sha256: Digest::of(name),
        };
        let base = LockedBase {
            suite: "bookworm".into(),
            arch: "amd64".into(),
            minimal: false,
            packages: vec!["b".into(), "a".into()],
            epoch: "2020-01-01".into(),
            unpack: vec![package("a"), package("b")],
            configure: vec!["b".into(), "a".into()],
            users: vec!["root:x:0:0:r\\oot:/root:/bin/bash".into()],
            groups: vec!["root:x:0:".into()],
            diversions: vec!["/bin/x /bin/x.real a".into()],
        };
        let mut lock = Lock::new("2026-01-02");
        lock.bases.insert("web server".into(), base);
        let url = "https://h/\"a\"".to_owned();
        lock.urls = vec![LockedUrl { url, size: 3, sha256: Digest::of("abc") }];
        lock.git = vec![LockedGit {
            remote: "git@h:x.git".into(),
            name: "v1".into(),
            full: "refs/tags/v1".into(),
            tag: "a".repeat(40),
            commit: "b".repeat(40),
        }];
        lock
    }

    #[test]
    fn text_round_trips_and_puts_one_package_on_a_line() {
        let lock = sample();
        let text = lock.text();
        assert_eq!(Lock::parse(&text).unwrap(), lock, "{text}");
        assert_eq!(text.lines().filter(|line| line.contains("sha256 =")).count(), 3);
    }

    #[test]
    fn save_and_load() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kiln.lock");
        assert!(Lock::load(&path).unwrap().is_none());
        std::os::unix::fs::chown(dir.path(), Some(4321), Some(4322)).unwrap();
        sample().save(&path).unwrap();
        let data = std::fs::metadata(&path).unwrap();
        assert_eq!((data.uid(), data.gid()), (4321, 4322));
        assert_eq!(Lock::load(&path).unwrap(), Some(sample()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn knows_whether_it_is_current() {
        let lock = sample();
        let base = Base {
            debian: "bookworm".into(),
            packages: vec!["a".into(), "b".into()],
            minimal: false,
        };
        let mut bases = BTreeMap::from([("web server".to_owned(), base)]);
        assert!(lock.is_current(&bases));
        bases.insert("more".into(), Base::default());
        assert_eq!(lock.differences(&bases), ["more"]);
        bases.remove("more");
        bases.get_mut("web server").unwrap().debian = "trixie".into();
        assert!(!lock.is_current(&bases));
        assert_eq!(lock.differences(&BTreeMap::new()), ["web server"]);
    }

    #[test]
    fn refuses_what_it_cannot_use() {
        let good = sample().text();
        for (from, to, expected) in [
            ("format = 1", "format = 9", "format 9"),
            ("configure = [\n  \"b\",", "configure = [\n", "do not name the same"),
            ("pool/main/a.deb", "../a.deb", "below a mirror"),
            ("epoch = \"2020", "epoch = \"x020", "YYYY-MM-DD"),
            ("suite = ", "sweet = ", "sweet"),
            ("commit = \"b", "commit = \"-", "no whole hash"),
            ("refs/tags/v1", "--upload-pack=x", "no full name"),
        ] {
            let bad = good.replace(from, to);
            assert_ne!(bad, good, "{from}");
            let what = Lock::parse(&bad).unwrap_err();
            assert!(what.contains(expected), "{what}");
        }
    }

    #[test]
    fn name_of_a_base_is_no_part_of_its_digest() {
        let lock = sample();
        let base = &lock.bases["web server"];
        let mut other = base.clone();
        assert_eq!(other.digest(), base.digest());
        other.configure.reverse();
        assert_ne!(other.digest(), base.digest());
    }
}
