//! Images of registries: what a project names, pinned by its lock, fetched once, kept in the store.
//!
//! ```text
//! name ─ resolve ─▶ kiln.lock ─ pull ─▶ image in the store, named by refs/images/<manifest>
//! ```
//!
//! | module | noun |
//! |---|---|
//! | [`named`] | which images a project names |
//! | [`pull`] | a pinned image → the store |
//! | [`registry`] | who is asked |
//! | [`update`] | pins that move, and what that changes |
//!
//! What is pinned and in the store is asked of nobody. `docs/images.md` has the reasons.

pub(crate) mod named;
mod pull;
mod registry;
pub(crate) mod update;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

use kiln_bake::base::locked_image::lock_name;
use kiln_bake::base::{Lock, LockedImage};
use kiln_core::ImageId;
use kiln_core::compose::{Project, closest};
use kiln_store::Store;

pub(crate) use self::pull::Pulled;
use self::registry::Registry;
pub(crate) use self::update::Moved;
use super::session::Session;
use super::{Agent, lock as locked};
use crate::report::{Because, Report};

/// One at a time works on a name; the others get what it found.
type Asked = Arc<OnceLock<Result<Pulled, Report>>>;

/// The images of one run: of a bake, a lock or a pull.
pub(crate) struct Images<'a> {
    agent: &'a Agent,
    session: &'a Session,
    /// Names of bases, for who mistyped one.
    bases: Vec<String>,
    /// Whether what the lock does not pin is refused: it is part of a commit.
    frozen: bool,
    pinned: Mutex<BTreeMap<String, LockedImage>>,
    asked: Mutex<BTreeMap<String, Asked>>,
    registry: Registry<'a>,
}

impl<'a> Images<'a> {
    pub(crate) fn new(
        agent: &'a Agent,
        session: &'a Session,
        project: &Project,
        lock: &Lock,
        frozen: bool,
    ) -> Self {
        Self {
            agent,
            session,
            bases: project.kiln.bases.keys().cloned().collect(),
            frozen,
            pinned: Mutex::new(lock.images.clone()),
            asked: Mutex::default(),
            registry: Registry::new(session),
        }
    }

    /// The pins as they are now.
    pub(crate) fn pins(&self) -> BTreeMap<String, LockedImage> {
        locked(&self.pinned).clone()
    }

    /// The image that `written` names, in the agent's store: as pinned; if it is not, it is now.
    pub(crate) fn get(&self, written: &str) -> Result<Pulled, Report> {
        let name = lock_name(written);
        let cell = Arc::clone(locked(&self.asked).entry(name.clone()).or_default());
        cell.get_or_init(|| self.fetch(&name).map_err(|report| self.meant(written, report))).clone()
    }

    /// As [`Images::get`], in `store`, which may be one that is there for a proof.
    pub(crate) fn image_in(&self, store: &Store, written: &str) -> Result<ImageId, Report> {
        let image = self.get(written)?.image;
        if store.root() != self.agent.store.root() {
            copy(&self.agent.store, store, image)
                .because(|| format!("copying image `{written}`"))?;
        }
        Ok(image)
    }

    /// The pin of a name: that of the lock, or what the name names now.
    pub(crate) fn pin(&self, name: &str) -> Result<LockedImage, Report> {
        if let Some(pin) = locked(&self.pinned).get(name) {
            return Ok(pin.clone());
        }
        if self.frozen {
            let what = format!("image `{name}` is not in kiln.lock");
            return Err(Report::usage(what).hint("kiln lock, and commit the file"));
        }
        let pin = self.resolve(name)?;
        locked(&self.pinned).insert(name.to_owned(), pin.clone());
        Ok(pin)
    }

    fn fetch(&self, name: &str) -> Result<Pulled, Report> {
        self.session.check()?;
        let pin = self.pin(name)?;
        self.pull(name, &pin)
    }

    /// Who mistyped a base is told so.
    fn meant(&self, written: &str, report: Report) -> Report {
        match closest(written, self.bases.iter().map(String::as_str)) {
            Some(near) => report.hint(format!("did you mean the base `{near}`?")),
            None => report,
        }
    }
}

/// Brings an image from one store into another.
fn copy(from: &Store, to: &Store, image: ImageId) -> kiln_store::Result<()> {
    let tree = from.get_tree(&image.tree)?;
    for object in tree.objects().into_iter().chain([image.tree, image.config]) {
        if !to.contains(&object) {
            to.put_open_file(&from.open_object(&object)?)?;
        }
    }
    Ok(())
}
