//! What a word on the command line of `kiln diff` means.

use std::collections::BTreeSet;
use std::sync::Arc;

use kiln_core::compose::Project;
use kiln_core::{Digest, Release};
use kiln_store::Pointer;

use super::super::{load_and_tell, no_service, nothing_serves, project_name};
use super::image::Image;
use crate::agent::session::Session;
use crate::agent::stage::{Stage, StageId};
use crate::agent::{Agent, bake, released};
use crate::answers::differing;
use crate::deliver::assemble;
use crate::protocol::ProjectArgs;
use crate::report::{Because, Report};

/// Fewer digits of a digest are a word.
const FEWEST_DIGITS: usize = 4;

/// One side of the comparison.
#[derive(Debug, Clone)]
pub(super) struct Side {
    /// As it was named.
    pub name: String,
    /// What it is.
    pub what: What,
}

/// What a [`Side`] is.
#[derive(Debug, Clone)]
pub(super) enum What {
    /// A release.
    Release {
        /// Its digest; the working tree's has none that anybody recorded.
        digest: Option<Digest>,
        /// What it pins.
        release: Arc<Release>,
    },
    /// An image.
    Image(Image),
}

impl Side {
    /// As the document names it.
    pub(super) fn told(&self) -> differing::Side {
        let what = match &self.what {
            What::Release { digest, release } => {
                differing::What::Release { release: *digest, source: release.source.clone() }
            }
            What::Image(image) => differing::What::Image { tree: image.tree, config: image.config },
        };
        differing::Side { name: self.name.clone(), what }
    }
}

/// Looks names up.
pub(super) struct Names<'a> {
    agent: &'a Agent,
    session: &'a Session,
    args: &'a ProjectArgs,
    /// The working tree as baked, once somebody has asked for it.
    working: Option<Arc<Release>>,
}

impl<'a> Names<'a> {
    pub(super) fn new(agent: &'a Agent, session: &'a Session, args: &'a ProjectArgs) -> Self {
        Self { agent, session, args, working: None }
    }

    /// What `word` names: `.`, a stage, a digest or its beginning, a service of the working tree;
    /// behind it, apart by colons, which release of a stage and which service of a release.
    pub(super) fn side(&mut self, word: &str) -> Result<Side, Report> {
        let bare = word.strip_prefix("sha256:").unwrap_or(word);
        let mut parts = bare.split(':');
        let head = parts.next().unwrap_or_default();
        let mut rest = parts.peekable();
        let mut what = if head == "." {
            self.working()?
        } else if let Some(stage) = self.stage(head) {
            let which = rest.next_if(|part| ["active", "standby", "previous"].contains(part));
            self.of_stage(&stage, which.unwrap_or("active"))?
        } else if let Some(found) = self.digest(head)? {
            found
        } else {
            self.service(head)?
        };
        for service in rest {
            what = image_of(&what, service, word)?;
        }
        Ok(Side { name: word.to_owned(), what })
    }

    /// What `word` names and the same of the working tree. A service by itself is first what
    /// serves in `dev`.
    pub(super) fn with_working(&mut self, word: &str) -> Result<(Side, Side), Report> {
        let named = self.side(word)?;
        let service = match &named.what {
            What::Release { .. } => return Ok((named, self.side(".")?)),
            What::Image(_) => word.rsplit(':').next().unwrap_or(word).to_owned(),
        };
        let project = self.project()?;
        if !project.services.contains_key(&service) {
            let what = format!("`{word}` is an image, and nothing is named to compare it with");
            return Err(Report::usage(what).hint(format!("kiln diff {word} SERVICE")));
        }
        let new = self.side(&format!(".:{service}"))?;
        let old = match word.contains(':') {
            true => named,
            false => self.side(&format!("dev:{service}"))?,
        };
        Ok((old, new))
    }

    fn project(&self) -> Result<Project, Report> {
        load_and_tell(self.session, self.args)
    }

    /// The project's stage of that name, if there is one.
    fn stage(&self, name: &str) -> Option<Arc<Stage>> {
        let stages = self.agent.stages();
        if name != "dev" && !stages.iter().any(|stage| stage.id.stage == name) {
            return None;
        }
        let project = project_name(self.session, self.args).ok()?;
        let id = StageId { project, stage: name.to_owned() };
        (name == "dev" || stages.iter().any(|stage| stage.id == id)).then(|| self.agent.stage(&id))
    }

    fn of_stage(&self, stage: &Stage, which: &str) -> Result<What, Report> {
        let pointer: Pointer = stage.state().pointer.clone();
        let digest = match which {
            "standby" => pointer.standby,
            "previous" => pointer.previous.first().copied(),
            _ => pointer.active,
        };
        match digest {
            Some(digest) => self.release(digest),
            None if which == "active" => Err(nothing_serves(stage)),
            None => Err(Report::failed(format!("{} has no {which} release", stage.id))
                .hint("kiln releases")),
        }
    }

    fn release(&self, digest: Digest) -> Result<What, Report> {
        Ok(What::Release { digest: Some(digest), release: self.agent.release(&digest)? })
    }

    /// All releases that stages and references name.
    fn releases(&self) -> Result<BTreeSet<Digest>, Report> {
        let mut all: BTreeSet<Digest> =
            released::all(self.agent)?.into_iter().map(|cut| cut.release).collect();
        for stage in self.agent.stages() {
            let pointer = stage.state().pointer.clone();
            all.extend(pointer.active.iter().chain(&pointer.standby).chain(&pointer.previous));
        }
        Ok(all)
    }

    /// The release or tree whose digest begins with `digits`; `None` if that is no such word or
    /// there is none.
    fn digest(&self, digits: &str) -> Result<Option<What>, Report> {
        let hexadecimal = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if digits.len() < FEWEST_DIGITS || !digits.bytes().all(hexadecimal) {
            return Ok(None);
        }
        let releases = self.releases()?;
        let begins = |digest: &&Digest| digest.hex().starts_with(digits);
        let found: Vec<Digest> = releases.iter().filter(begins).copied().collect();
        if let [one, rest @ ..] = found.as_slice() {
            return if rest.is_empty() { self.release(*one).map(Some) } else { Err(many(digits)) };
        }
        let mut images: BTreeSet<(Digest, Digest)> = BTreeSet::new();
        for digest in &releases {
            // One that cannot be read is not what was asked for.
            let Ok(release) = self.agent.release(digest) else { continue };
            let all = release.services.values().map(|s| (s.image.tree, s.image.config));
            images.extend(all.filter(|(tree, _)| begins(&tree)));
        }
        let mut trees: BTreeSet<Digest> = images.iter().map(|(tree, _)| *tree).collect();
        if trees.is_empty() {
            let stored = self.agent.store.images().because(|| "listing images".into())?;
            trees.extend(stored.iter().map(|image| image.tree).filter(|tree| begins(&tree)));
        }
        match trees.iter().copied().collect::<Vec<_>>().as_slice() {
            [] => Ok(None),
            // Of several configurations none is meant.
            [tree] => {
                let mut configs = images.iter().map(|(_, config)| *config);
                let config = configs.next().filter(|_| configs.next().is_none());
                Ok(Some(What::Image(Image { tree: *tree, config })))
            }
            _ => Err(many(digits)),
        }
    }

    fn service(&mut self, name: &str) -> Result<What, Report> {
        let unknown = || {
            let what = format!("`{name}` is no stage, service, release or tree that is known");
            Report::usage(what).hint("kiln releases; kiln images; kiln ps")
        };
        let project = self.project().map_err(|_| unknown())?;
        if !project.services.contains_key(name) {
            return Err(unknown());
        }
        let lock = bake::lock(self.agent, self.session, &project)?;
        let only = [name.to_owned()];
        let images = bake::images(self.agent, self.session, &project, &lock, &only)?;
        images.get(name).map(|id| What::Image(Image::from(*id))).ok_or_else(unknown)
    }

    /// The release that `up` would cut of the working tree.
    fn working(&mut self) -> Result<What, Report> {
        if self.working.is_none() {
            let project = self.project()?;
            let id = StageId { project: project.name.clone(), stage: "dev".into() };
            let stage = self.agent.stage(&id);
            let published = assemble(self.agent, self.session, &stage, &project)?;
            self.working = Some(published.release);
        }
        let missing = || Report::failed("the working tree gave no release");
        let release = self.working.clone().ok_or_else(missing)?;
        Ok(What::Release { digest: None, release })
    }
}

fn many(digits: &str) -> Report {
    Report::usage(format!("several digests begin with `{digits}`")).hint("give more digits")
}

fn image_of(what: &What, service: &str, word: &str) -> Result<What, Report> {
    let What::Release { release, .. } = what else {
        return Err(Report::usage(format!("`{word}`: an image has no services"))
            .hint("write RELEASE:SERVICE"));
    };
    let place = format!("`{word}`: the release");
    let missing = || no_service(&place, service, release.services.keys());
    let released = release.services.get(service).ok_or_else(missing)?;
    Ok(What::Image(Image::from(released.image)))
}
