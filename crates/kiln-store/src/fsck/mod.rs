//! Looking at everything that is stored, and healing what can be made again.
//!
//! Nothing that runs is touched: what is replaced is replaced by a rename, and whoever has the old
//! file keeps it. An object that is wrong stays where it is, but with a time by which everybody
//! sees that it is not to be believed, so that whoever puts its content again heals it.

mod derived;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::Path;

use kiln_core::{Digest, ImageId};
use serde::{Deserialize, Serialize};

use crate::durable::{Published, write_atomic};
use crate::error::{Context as _, Error, Result};
use crate::refs::{HELD, PROJECTS, References};
use crate::store::Store;

/// What helps a reference that a lock says how to make again, and what became of one where none did.
const CURE: &str = "kiln lock in the project that uses it; else kiln fsck --repair gives it up";
const GIVEN_UP: &str = "given up: the next kiln lock or kiln up of its project writes it again";

/// What [`Store::fsck`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// Objects that were read and hashed.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Derived images that were compared with what they are made of.
    pub images: u64,
    /// Entries of the ledger.
    pub entries: u64,
    /// What is damaged, in the order of the root's layout.
    pub damage: Vec<Damage>,
}

/// Something that is not as it was written, or is not there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Damage {
    /// Where, below the root.
    pub path: String,
    /// What is wrong with it.
    pub what: String,
    /// Who needs it: references, stages, images.
    #[serde(default)]
    pub needed_by: Vec<String>,
    /// What was done about it.
    #[serde(default)]
    pub healed: Option<String>,
    /// What makes it again, if nothing was done.
    #[serde(default)]
    pub cure: Option<String>,
}

impl Damage {
    fn at(path: impl Into<String>, what: impl Into<String>) -> Self {
        let (path, what) = (path.into(), what.into());
        Self { path, what, needed_by: Vec::new(), healed: None, cure: None }
    }
}

/// One look at everything.
struct Look<'a> {
    store: &'a Store,
    repair: bool,
    found: Findings,
    /// Objects whose content is wrong.
    wrong: BTreeSet<Digest>,
}

impl Store {
    /// Reads and hashes everything, derived files too; with `repair`, heals what can be made again
    /// from what is there. The caller holds a lease.
    ///
    /// # Errors
    /// I/O errors in reading folders.
    pub fn fsck(&self, repair: bool) -> Result<Findings> {
        let mut look =
            Look { store: self, repair, found: Findings::default(), wrong: BTreeSet::new() };
        look.ledger()?;
        look.objects()?;
        look.spares()?;
        look.needs()?;
        look.images()?;
        look.link_trees()?;
        look.contexts()?;
        look.steps()?;
        if repair {
            self.flush()?;
        }
        Ok(look.found)
    }
}

impl Look<'_> {
    fn tell(&mut self, damage: Damage) {
        self.found.damage.push(damage);
    }

    /// The chain, the place beside it, and the copies of pointers.
    fn ledger(&mut self) -> Result<()> {
        let ledger = self.store.ledger();
        let faults = if self.repair { ledger.mend()? } else { ledger.faults()? };
        for fault in faults {
            let mut damage = Damage::at("ledger/log.jsonl", fault.to_string());
            if self.repair {
                damage.healed = Some("taken note of; the log stays as it is".to_owned());
            } else {
                damage.cure = Some("kiln fsck --repair takes note of it and goes on".to_owned());
            }
            self.tell(damage);
        }
        self.found.entries = ledger.last_seq()?;
        for (project, stage) in ledger.copies(self.repair)? {
            let path = format!("stages/{project}/{stage}.json");
            let mut damage = Damage::at(path, "it is not what the ledger says");
            damage.healed = self.repair.then(|| "written again".to_owned());
            damage.cure = (!self.repair).then(|| "kiln fsck --repair".to_owned());
            self.tell(damage);
        }
        Ok(())
    }

    fn objects(&mut self) -> Result<()> {
        let report = self.store.check()?;
        (self.found.objects, self.found.bytes) = (report.objects, report.bytes);
        for path in report.foreign {
            let path = path.strip_prefix(self.store.root()).unwrap_or(&path).display().to_string();
            let mut damage = Damage::at(path, "it is no object");
            damage.cure = Some("kiln gc removes it".to_owned());
            self.tell(damage);
        }
        for corrupt in report.corrupt {
            self.wrong.insert(corrupt.digest);
            self.store.suspect(&corrupt.digest);
            let what = match corrupt.found {
                Some(found) => format!("its content has digest {found}"),
                None => "it cannot be read".to_owned(),
            };
            let mut damage = Damage::at(object(&corrupt.digest), what);
            if self.repair && self.store.heal_release(&corrupt.digest)? {
                self.wrong.remove(&corrupt.digest);
                damage.healed = Some("made again from its second copy".to_owned());
            } else {
                if self.repair {
                    self.store.distrust(&corrupt.digest);
                }
                damage.cure = Some("put it again: kiln up, kiln bake or kiln import".to_owned());
            }
            self.tell(damage);
        }
        Ok(())
    }

    /// Second copies of releases.
    fn spares(&mut self) -> Result<()> {
        let dir = self.store.root().join("spare");
        for entry in fs::read_dir(&dir).doing("reading", &dir)? {
            let entry = entry.doing("reading", &dir)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let Ok(release) = name.parse::<Digest>() else { continue };
            if !fs::read(entry.path()).is_ok_and(|bytes| Digest::of(bytes) == release) {
                self.spare(&release, "its content is another one")?;
            }
        }
        for release in self.store.releases_of_stages()? {
            if self.store.lacks_second_copy(&release) {
                self.spare(&release, "there is no second copy of this release")?;
            }
        }
        Ok(())
    }

    /// Tells of the second copy of `release`, and makes it again from the first if that is whole.
    fn spare(&mut self, release: &Digest, what: &str) -> Result<()> {
        let mut damage = Damage::at(format!("spare/{}", release.hex()), what);
        if self.repair
            && let Ok(bytes) = self.store.get(release)
        {
            self.store.write_spare(release, &bytes)?;
            damage.healed = Some("made again from the release".to_owned());
        } else {
            damage.cure =
                Some("kiln fsck --repair makes it again if the first is whole".to_owned());
        }
        self.tell(damage);
        Ok(())
    }

    /// What stages and references need, and is not there or not whole.
    fn needs(&mut self) -> Result<()> {
        let mut roots: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
        for ((project, stage), pointer) in self.store.pointers()? {
            let all = pointer.active.iter().chain(&pointer.standby).chain(&pointer.previous);
            for digest in all {
                roots.entry(*digest).or_default().push(format!("stage {project}/{stage}"));
            }
        }
        let mut references = References::new();
        for (name, reference) in self.store.look_at_references()? {
            match reference {
                Ok(reference) => {
                    for digest in &reference.digests {
                        let who = format!("refs/{}/{}", name.0, name.1);
                        roots.entry(*digest).or_default().push(who);
                    }
                    references.insert(name, reference);
                }
                Err(error) => self.reference(&name.0, &name.1, &error)?,
            }
        }
        self.missing_references(&mut references)?;
        let mut needed: BTreeMap<Digest, BTreeSet<String>> = BTreeMap::new();
        for (digest, who) in roots {
            self.need(&mut needed, &digest, &who);
        }
        for (digest, who) in needed {
            let needed_by: Vec<String> = who.into_iter().take(5).collect();
            let path = object(&digest);
            if let Some(told) = self.found.damage.iter_mut().find(|damage| damage.path == path) {
                told.needed_by = needed_by;
            } else {
                let mut damage = Damage::at(path, "it is not there");
                damage.needed_by = needed_by;
                damage.cure = Some("put it again: kiln up, kiln bake or kiln import".to_owned());
                self.tell(damage);
            }
        }
        Ok(())
    }

    /// Tells of a reference that cannot be believed. That of a release is made again if its second
    /// copy is there: the name says which one it is.
    fn reference(&mut self, kind: &str, name: &str, error: &Error) -> Result<()> {
        let what = match error {
            Error::Reference { why, .. } => why.clone(),
            error => error.to_string(),
        };
        let mut damage = Damage::at(format!("refs/{kind}/{name}"), what);
        damage.cure = Some(match kind {
            "imports" => format!("kiln import it again as `{name}`, or kiln import --remove it"),
            "releases" => "kiln fsck --repair, if its second copy is there".to_owned(),
            _ => CURE.to_owned(),
        });
        if self.repair {
            damage.healed = self.mend_reference(kind, name)?;
        }
        self.tell(damage);
        Ok(())
    }

    /// Tells of references that are needed and not there; they are given up with `repair`.
    fn missing_references(&mut self, references: &mut References) -> Result<()> {
        for (missing, needed_by) in self.store.missing_references(references.iter())? {
            let mut damage =
                Damage::at(format!("refs/{}/{}", missing.0, missing.1), "it is not there");
            damage.cure = Some(CURE.to_owned());
            for by in &needed_by {
                damage.needed_by.push(format!("refs/{}/{}", by.0, by.1));
                if let Some(reference) = references.get_mut(by).filter(|_| self.repair) {
                    reference.needs.remove(&missing);
                    self.store.write_reference(&by.0, &by.1, reference)?;
                    damage.healed = Some(GIVEN_UP.to_owned());
                }
            }
            self.tell(damage);
        }
        Ok(())
    }

    fn mend_reference(&self, kind: &str, name: &str) -> Result<Option<String>> {
        if kind == "releases" {
            let release = self.store.heal_release_ref(name)?;
            return Ok(release.map(|release| format!("made again: it names {}", release.short())));
        }
        if !HELD.contains(&kind) && kind != PROJECTS {
            return Ok(None);
        }
        self.store.remove_ref(kind, name)?;
        Ok(Some(GIVEN_UP.to_owned()))
    }

    /// Notes what of `digest`, and of all that it leads to, is not whole.
    fn need(
        &self,
        needed: &mut BTreeMap<Digest, BTreeSet<String>>,
        digest: &Digest,
        who: &[String],
    ) {
        let mut want = |digest: &Digest| {
            if self.wrong.contains(digest) || !self.store.contains(digest) {
                needed.entry(*digest).or_default().extend(who.iter().cloned());
            }
        };
        want(digest);
        let mut trees = vec![*digest];
        if let Ok(release) = self.store.get_release(digest) {
            release.pins().iter().for_each(&mut want);
            trees = release.trees().into_iter().collect();
        }
        for tree in trees {
            if let Ok(tree) = self.store.get_tree(&tree) {
                tree.objects().iter().for_each(&mut want);
            }
        }
    }

    /// Images, which are the same each time that they are made.
    fn images(&mut self) -> Result<()> {
        let dir = self.store.root().join("images");
        for entry in fs::read_dir(&dir).doing("reading", &dir)? {
            let path = entry.doing("reading", &dir)?.path();
            let name = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".erofs"));
            let Some(tree) = name.and_then(|hex| hex.parse::<Digest>().ok()) else { continue };
            let Ok(listed) = self.store.get_tree(&tree) else { continue };
            self.found.images += 1;
            let made = crate::erofs::build(&listed, &tree)?;
            if fs::read(&path).is_ok_and(|there| there == made) {
                continue;
            }
            let name = format!("images/{}.erofs", tree.hex());
            let mut damage = Damage::at(name, "it is not what its tree makes");
            if self.repair {
                self.store.write_image(&path, &made)?;
                damage.healed = Some("made again; what runs keeps the old one".to_owned());
            } else {
                damage.cure = Some("kiln fsck --repair".to_owned());
            }
            self.tell(damage);
        }
        Ok(())
    }

    /// Step results: one whose image is damaged would be taken for done.
    fn steps(&mut self) -> Result<()> {
        let dir = self.store.root().join("cache/steps");
        for entry in fs::read_dir(&dir).doing("reading", &dir)? {
            let path = entry.doing("reading", &dir)?.path();
            let image = fs::read(&path).ok();
            let image = image.and_then(|text| serde_json::from_slice::<ImageId>(&text).ok());
            let what = match image {
                None => "it is no step result",
                Some(image) if self.is_damaged(&image) => "its image is damaged",
                Some(_) => continue,
            };
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let mut damage = Damage::at(format!("cache/steps/{name}"), what);
            if self.repair {
                crate::disk::remove(&path).doing("removing", &path)?;
                damage.healed = Some("removed: the step is done again".to_owned());
            } else {
                damage.cure = Some("kiln fsck --repair".to_owned());
            }
            self.tell(damage);
        }
        Ok(())
    }

    fn is_damaged(&self, image: &ImageId) -> bool {
        let bad = |digest: &Digest| self.wrong.contains(digest) || !self.store.contains(digest);
        bad(&image.tree)
            || bad(&image.config)
            || match self.store.get_tree(&image.tree) {
                Ok(tree) => tree.objects().iter().any(bad),
                Err(_) => true,
            }
    }
}

fn object(digest: &Digest) -> String {
    let hex = digest.hex();
    format!("objects/{}/{}", &hex[..2], &hex[2..])
}

impl Store {
    /// Leaves a sign on an object that it is not to be believed unread: another time than all have.
    fn distrust(&self, digest: &Digest) {
        self.suspect(digest);
        // What cannot be marked is at least remembered.
        if let Ok(file) = File::open(self.object_path(digest)) {
            let _ = file.set_modified(std::time::SystemTime::now());
        }
    }

    /// Writes a derived image in the place of another one.
    pub(crate) fn write_image(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let beside = self.temporary("image");
        fs::write(&beside, bytes).doing("writing", &beside)?;
        let sum = path.with_extension("sum");
        write_atomic(&sum, Digest::of(bytes).hex().as_bytes()).doing("writing", &sum)?;
        let _unsynced = self.inner.unsynced.mark(Published::File(path))?;
        fs::rename(&beside, path).doing("renaming", &beside)
    }

    /// Whether the derived image at `path` is the one that was written: its sum stands beside it.
    pub(crate) fn image_is_whole(&self, path: &Path) -> bool {
        let Ok(sum) = fs::read_to_string(path.with_extension("sum")) else { return false };
        fs::read(path).is_ok_and(|bytes| Digest::of(bytes).hex() == sum)
    }
}
