//! `export` and `import`: images as standard OCI.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::BufWriter;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_core::exit::Exit;
use kiln_core::{Digest, ImageId};
use kiln_oci::remote::image_key;
use kiln_oci::{Compression, Error, Format, Imported, Item, Limits, Owner, Selector, Source};
use kiln_store::Store;

use super::build::known_services;
use super::{Answer, load_and_tell, no_service};
use crate::agent::session::Session;
use crate::agent::{Agent, bake, record, released};
use crate::answers::stored as answers;
use crate::protocol::ProjectArgs;
use crate::report::{Because, Report};
use crate::words::count;

/// References that keep imported images: `refs/imports/<name>`.
const IMPORTS: &str = "imports";

/// Fewer digits of a digest name nothing.
const FEWEST_DIGITS: usize = 4;

/// What is to be exported, and how.
#[derive(Debug)]
pub(super) struct Export<'a> {
    pub project: &'a ProjectArgs,
    pub services: &'a [String],
    pub image: Option<&'a str>,
    pub release: Option<&'a str>,
    pub name: Option<&'a str>,
    pub format: Format,
    pub compression: Compression,
    pub output: PathBuf,
    pub owner: Owner,
}

/// An error of the carrier, for a user.
pub(crate) fn report(error: &Error) -> Report {
    match error {
        Error::Select(text) => Report::usage(text.clone()),
        Error::Interrupted => Report::failed("interrupted"),
        other => Report::from_error(Exit::Failed, other),
    }
}

/// What is taken from anybody: as much as fits on the disk with some room left.
pub(crate) fn limits<'a>(agent: &Agent, session: &'a Session) -> Limits<'a> {
    let most = Limits::default().unpacked;
    let free = rustix::fs::statvfs(agent.store.root())
        .map_or(most, |disk| disk.f_bavail.saturating_mul(disk.f_frsize) / 10 * 9);
    Limits { unpacked: most.min(free), cancel: session.cancelled() }
}

/// `kiln export`: into the open file or folder.
pub(super) fn export(
    agent: &Arc<Agent>,
    session: &Session,
    wish: &Export<'_>,
    fds: Vec<OwnedFd>,
) -> Result<Answer, Report> {
    let [fd] = <[OwnedFd; 1]>::try_from(fds)
        .map_err(|_| Report::new(Exit::Bug, "no output came with the request"))?;
    let _lease = agent.lease()?;
    let items = items(agent, session, wish)?;
    let node = session.begin("export", &wish.output.display().to_string(), wish.format.word());
    let (store, cancel) = (&agent.store, session.cancelled());
    let exported = match wish.format {
        Format::Oci => {
            kiln_oci::to_layout(store, &items, wish.compression, &fd, Some(wish.owner), cancel)
        }
        Format::OciArchive | Format::DockerArchive => {
            let mut out = BufWriter::with_capacity(256 << 10, File::from(fd));
            kiln_oci::to_archive(store, &items, wish.format, wish.compression, &mut out, cancel)
        }
    };
    let exported = exported.map_err(|error| report(&error));
    node.end(&exported, &count(items.len(), "image"));
    let images = exported?.into_iter().map(|image| (image.name.clone(), image)).collect();
    Ok(Answer::of(&answers::Export {
        output: wish.output.clone(),
        format: wish.format,
        compression: wish.compression,
        images,
    }))
}

/// The images that are meant, by the names that they get.
fn items(agent: &Arc<Agent>, session: &Session, wish: &Export<'_>) -> Result<Vec<Item>, Report> {
    if let Some(word) = wish.image {
        let name = wish.name.unwrap_or("image").to_owned();
        let tag = tag_of(&name);
        return Ok(vec![Item { name, tag, image: image(agent, word)? }]);
    }
    let (project, images) = match wish.release {
        Some(word) => {
            let release = agent.release(&release(agent, word)?)?;
            let images: BTreeMap<String, ImageId> = release
                .services
                .iter()
                .map(|(name, released)| (name.clone(), released.image))
                .collect();
            (release.project.clone(), images)
        }
        None => {
            let project = load_and_tell(session, wish.project)?;
            known_services(&project, wish.services)?;
            let lock = bake::lock(agent, session, &project)?;
            let images = bake::images(agent, session, &project, &lock, wish.services)?;
            (project.name, images)
        }
    };
    for service in wish.services {
        if !images.contains_key(service) {
            return Err(no_service(&"the release", service, images.keys()));
        }
    }
    let wanted = |name: &String| wish.services.is_empty() || wish.services.contains(name);
    let item = |(name, image): (String, ImageId)| {
        let tag = tag_of(&format!("{project}-{name}"));
        Item { name, tag, image }
    };
    Ok(images.into_iter().filter(|(name, _)| wanted(name)).map(item).collect())
}

/// `repository:tag`, as Docker has it.
fn tag_of(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    let tagged = name.rsplit('/').next().is_some_and(|last| last.contains(':'));
    if tagged { name } else { format!("{name}:latest") }
}

/// Releases of which somebody has a record.
fn releases(agent: &Agent) -> Result<BTreeSet<Digest>, Report> {
    let mut releases = BTreeSet::new();
    for stage in agent.stages() {
        let pointer = stage.state().pointer.clone();
        releases.extend(pointer.active.iter().chain(&pointer.standby).chain(&pointer.previous));
    }
    releases.extend(released::all(agent)?.into_iter().map(|cut| cut.release));
    Ok(releases)
}

/// The one of `known` whose hex digits begin with `word`.
fn begins<T: Copy>(
    what: &str,
    word: &str,
    known: impl Iterator<Item = (Digest, T)>,
) -> Result<T, Report> {
    let digits = word.strip_prefix("sha256:").unwrap_or(word);
    let long = digits.len() >= FEWEST_DIGITS;
    let found: Vec<(Digest, T)> =
        known.filter(|(digest, _)| long && digest.hex().starts_with(digits)).collect();
    match found.as_slice() {
        [(_, one)] => Ok(*one),
        [] => Err(Report::usage(format!("no {what} `{word}` is known here"))),
        several => {
            let names: Vec<String> = several.iter().map(|(digest, _)| digest.short()).collect();
            Err(Report::usage(format!("`{word}` may be {}", names.join(" or ")))
                .hint("give more digits"))
        }
    }
}

fn release(agent: &Agent, word: &str) -> Result<Digest, Report> {
    if let Ok(digest) = word.parse::<Digest>() {
        return Ok(digest);
    }
    let known = releases(agent)?.into_iter().map(|digest| (digest, digest));
    begins("release", word, known).map_err(|report| report.hint("`kiln releases` lists them"))
}

/// The image that a word names: `TREE,CONFIG`, the name of an import, or the beginning of the tree
/// digest of an image that a release, an import or a base has.
fn image(agent: &Agent, word: &str) -> Result<ImageId, Report> {
    const BOTH: &str = "name it by both digests, TREE,CONFIG: `kiln bake --json` prints them";
    let usage =
        |error: kiln_core::digest::ParseDigestError| Report::usage(error.to_string()).hint(BOTH);
    if let Some((tree, config)) = word.split_once(',') {
        let image =
            ImageId { tree: tree.parse().map_err(usage)?, config: config.parse().map_err(usage)? };
        for digest in [image.tree, image.config] {
            if !agent.store.contains(&digest) {
                return Err(Report::usage(format!("{digest} is not in the store")).hint(BOTH));
            }
        }
        return Ok(image);
    }
    let mut known: BTreeSet<ImageId> = BTreeSet::new();
    for digest in releases(agent)? {
        let release = agent.release(&digest)?;
        known.extend(release.services.values().map(|released| released.image));
    }
    let refs = agent.store.refs().because(|| "listing images".into())?;
    for ((kind, name), digests) in refs {
        if kind != IMPORTS && kind != "bases" {
            continue;
        }
        let Some(image) = pair(agent, &digests) else { continue };
        if kind == IMPORTS && name == word {
            return Ok(image);
        }
        known.insert(image);
    }
    let known = known.into_iter().map(|image| (image.tree, image));
    begins("image", word, known).map_err(|report| report.hint(BOTH))
}

/// Which of a reference's two digests is the tree's.
fn pair(agent: &Agent, digests: &BTreeSet<Digest>) -> Option<ImageId> {
    let (a, b) = (*digests.first()?, *digests.last()?);
    let tree = |digest: &Digest| agent.store.get_tree(digest).is_ok();
    match (tree(&a), tree(&b)) {
        (true, false) => Some(ImageId { tree: a, config: b }),
        (false, true) => Some(ImageId { tree: b, config: a }),
        _ => None,
    }
}

/// The file or folder that came with a request to be read. The client opened it: the agent, which
/// is root, must not read for anybody what they cannot.
#[derive(Debug)]
pub(super) struct Opened<'a> {
    source: Source,
    store: &'a Store,
    limits: Limits<'a>,
}

impl<'a> Opened<'a> {
    /// Takes the one descriptor of `fds`; `path` is for messages.
    pub(super) fn of(
        agent: &'a Agent,
        session: &'a Session,
        path: &Path,
        fds: Vec<OwnedFd>,
    ) -> Result<Self, Report> {
        let [fd] = <[OwnedFd; 1]>::try_from(fds)
            .map_err(|_| Report::new(Exit::Bug, "no input came with the request"))?;
        let (store, limits) = (&agent.store, limits(agent, session));
        let source = Source::of_fd(fd, path.display().to_string(), store, &limits)
            .map_err(|error| report(&error))?;
        Ok(Self { source, store, limits })
    }

    /// Reads the image that `selector` means into the store.
    pub(super) fn load(&self, selector: &Selector) -> kiln_oci::Result<Imported> {
        self.source.find(selector)?.load(self.store, &self.limits)
    }
}

/// `kiln import`: from the open file or folder.
pub(super) fn import(
    agent: &Arc<Agent>,
    session: &Session,
    path: &Path,
    select: Option<&str>,
    name: Option<&str>,
    fds: Vec<OwnedFd>,
) -> Result<Answer, Report> {
    let _lease = agent.lease()?;
    let selector = match select {
        None => Selector::Any,
        Some(word) => match word.strip_prefix('@').unwrap_or(word).parse() {
            Ok(digest) => Selector::Digest(digest),
            Err(_) => Selector::Name(word.to_owned()),
        },
    };
    let shown = path.display().to_string();
    let node = session.begin("import", &shown, "");
    let imported = Opened::of(agent, session, path, fds)
        .and_then(|opened| opened.load(&selector).map_err(|error| report(&error)));
    node.end(&imported, "");
    let imported = imported?;
    let tree = agent.store.get_tree(&imported.image.tree).because(|| "reading the image".into())?;
    if let Some(place) = kiln_core::policy::taken_place(&tree) {
        let message = format!("{shown}: the image has something else than a folder at `/{place}`");
        return Err(Report::refused(message)
            .hint("no program runs on it: make that a directory, or leave it out"));
    }
    agent.flush_objects()?;
    if let Some(name) = name {
        let digests = [imported.image.tree, imported.image.config].into();
        agent.store.set_ref(IMPORTS, name, &digests).because(|| format!("keeping `{name}`"))?;
    }
    // A lock may pin it by its manifest: then nobody need be asked for it.
    let known = agent.store.set_step_result(&image_key(&imported.manifest), &imported.image);
    known.because(|| "keeping the image".into())?;
    let answer = Answer::of(&answers::Import::Taken(answers::Imported {
        tree: imported.image.tree,
        config: imported.image.config,
        manifest: imported.manifest,
        name: name.map(str::to_owned),
        was: imported.name,
        architecture: imported.architecture,
        layers: imported.layers,
    }));
    record::root_note(agent, "import", answer.data.clone());
    Ok(answer)
}

/// `kiln import --remove NAME`: what the name kept may be collected.
pub(super) fn forget(agent: &Agent, name: &str) -> Result<Answer, Report> {
    let refs = agent.store.refs().because(|| "listing images".into())?;
    if !refs.contains_key(&(IMPORTS.to_owned(), name.to_owned())) {
        let known = refs.keys().filter(|(kind, _)| kind == IMPORTS);
        let known: Vec<&str> = known.map(|(_, name)| name.as_str()).collect();
        let report = Report::unknown("this root", "import", name, known.iter().copied());
        let none = "none has a name yet: kiln import PATH --name NAME";
        return Err(if known.is_empty() { report.hint(none) } else { report });
    }
    agent.store.remove_ref(IMPORTS, name).because(|| format!("forgetting `{name}`"))?;
    Ok(Answer::of(&answers::Import::Removed { removed: name.to_owned() }))
}
