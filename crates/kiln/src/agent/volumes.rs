//! Where the data of a stage lies, and what each service can write of it.
//!
//! ```text
//! volumes/PROJECT/STAGE/NAME                                  a named volume
//! volumes/PROJECT/STAGE/.anonymous/N/SERVICE/REPLICA/TARGET   one without a name
//! volumes/.named/STAGE/NAME                                   a link to one with `name:`
//! instances/ID/volumes/N                                      what is volatile
//! ```
//! A volume without a name belongs to stage, service, replica and target; `N` counts how often they
//! were renewed. Names that Kiln makes begin with a dot, which no name of a volume does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use kiln_core::compose::{Mount, MountSource, valid_volume};
use kiln_core::data::{Data, Held};
use kiln_core::defaults::learns;
use kiln_core::exit::Exit;
use kiln_core::plan::{Observed, Plan};
use kiln_core::release::{ReleasedService, Settings};
use kiln_core::{Digest, Release};
use kiln_run::BindMount;

use super::claims::Claim;
use super::part::Part;
use super::places::Mounts;
use super::stage::{Seen as _, Stage, StageId};
use super::{Agent, binds, fill, lock, network};
use crate::answers;
use crate::report::{Because, Report};

/// Below the folder of a stage's volumes: those without a name.
const ANONYMOUS: &str = ".anonymous";

/// Below the folder of all volumes: links to those that have a name for other projects, by stage.
const NAMED: &str = ".named";

/// The replica of a service with one instance.
const ONLY: &str = "1";

/// Everything that an instance gets from the host.
#[derive(Debug)]
pub(crate) struct Sources {
    /// What is mounted; each names the file or folder that it has to be.
    pub mounts: Vec<BindMount>,
    /// What of it can be written.
    pub data: Data,
}

/// One service of a stage, as a slot has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Of<'a> {
    /// The stage.
    pub stage: &'a Stage,
    /// The service.
    pub service: &'a str,
    /// Which of its volumes without a name: see [`Stage::renewal`].
    pub renewal: u64,
    /// Where the project lies.
    pub folder: Option<&'a Path>,
}

impl Of<'_> {
    /// Where `mount`, the instance's `number`th, comes from.
    fn path(
        &self,
        agent: &Agent,
        mount: &Mount,
        number: usize,
        dir: &Path,
    ) -> Result<PathBuf, Report> {
        let id = &self.stage.id;
        match &mount.source {
            MountSource::Bind(path) => binds::source(self.folder, path),
            MountSource::External(name) if valid_volume(name) => Ok(shared(agent, id, name)),
            MountSource::External(name) => {
                Err(Report::usage(format!("`{name}` is no valid name of a volume")))
            }
            MountSource::Volume(name) if valid_volume(name) => Ok(agent.volumes_dir(id).join(name)),
            // Releases come from elsewhere too.
            MountSource::Volume(name) => {
                Err(Report::usage(format!("`{name}` is no valid name of a volume")))
            }
            MountSource::Anonymous => {
                let of_service = anonymous(agent, id, self.renewal).join(encoded(self.service));
                Ok(of_service.join(ONLY).join(encoded(&mount.target)))
            }
            MountSource::Volatile => Ok(dir.join("volumes").join(number.to_string())),
        }
    }
}

/// Where volumes are found by the name that their project gives them for others.
fn shared(agent: &Agent, id: &StageId, name: &str) -> PathBuf {
    agent.root.join("volumes").join(NAMED).join(&id.stage).join(name)
}

/// Where the link of a name leads to the volume at `own`.
fn shared_as(root: &Path, own: &Path) -> PathBuf {
    let volumes = root.join("volumes");
    Path::new("../..").join(own.strip_prefix(&volumes).unwrap_or(own))
}

/// Lets other projects have the volume as `external` by this name.
fn share(agent: &Agent, id: &StageId, own: &Path, name: &str) -> Result<(), Report> {
    if !valid_volume(name) {
        return Err(Report::usage(format!("`{name}` is no valid name of a volume")));
    }
    let target = shared_as(&agent.root, own);
    match link_shared(&shared(agent, id, name), &target) {
        Ok(true) => Ok(()),
        Ok(false) => {
            let what = format!("another project of this root has a volume `{name}`");
            Err(Report::refused(what).hint(format!(
                "to use that one, write `external: true` beside `name: {name}`; else another name"
            )))
        }
        Err(error) => Err(error).because(|| format!("giving a volume the name `{name}`")),
    }
}

/// One name is given or taken at a time.
static NAMING: Mutex<()> = Mutex::new(());

/// Makes the link; false if it is somebody else's. One that led to a volume which is gone is free.
fn link_shared(link: &Path, target: &Path) -> io::Result<bool> {
    let _naming = lock(&NAMING);
    if let Some(parent) = link.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    match std::os::unix::fs::symlink(target, link) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => return made.map(|()| true),
    }
    let Ok(found) = std::fs::read_link(link) else { return Ok(false) };
    if found == target {
        return Ok(true);
    }
    // A person's own link may lead to a disk that is not mounted now.
    if !found.starts_with("../..") || link.try_exists()? {
        return Ok(false);
    }
    std::fs::remove_file(link)?;
    std::os::unix::fs::symlink(target, link).map(|()| true)
}

/// Takes the names in the folder `names` from the volume that links lead to by `target`.
fn unlink_shared(names: &Path, target: &Path) -> Result<(), Report> {
    let _naming = lock(&NAMING);
    for (name, link) in entries(names)? {
        if std::fs::read_link(&link).is_ok_and(|found| found == target) {
            std::fs::remove_file(&link)
                .because(|| format!("taking the name `{name}` from a volume"))?;
        }
    }
    Ok(())
}

/// Folder of the volumes without a name.
fn anonymous(agent: &Agent, id: &StageId, renewal: u64) -> PathBuf {
    agent.volumes_dir(id).join(ANONYMOUS).join(renewal.to_string())
}

/// Any text as the name of a folder.
pub(crate) fn encoded(text: &str) -> String {
    use std::fmt::Write as _;
    let mut name = String::new();
    for (at, byte) in text.trim_end_matches('/').bytes().enumerate() {
        match byte {
            b'.' if at > 0 => name.push('.'),
            b'_' | b'-' => name.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => name.push(char::from(byte)),
            _ => {
                let _ = write!(name, "%{byte:02x}");
            }
        }
    }
    match name.len() {
        0..=200 => name,
        _ => Digest::of(text).hex(),
    }
}

/// What was [`encoded`], for people: what stands for too long a text stays as it is.
fn decoded(name: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = name.as_bytes();
    while let [first, after @ ..] = rest {
        let code = after.get(..2).and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether a service has data in volumes without a name.
pub(crate) fn has_anonymous(settings: &Settings) -> bool {
    let anonymous = |mount: &Mount| mount.source == MountSource::Anonymous && !mount.read_only;
    settings.mounts.iter().any(anonymous)
}

fn name(mount: &Mount) -> String {
    match &mount.source {
        MountSource::Volume(name) => format!("volume `{name}`"),
        MountSource::External(name) => format!("external volume `{name}`"),
        MountSource::Bind(path) => format!("`{}`", path.display()),
        MountSource::Anonymous | MountSource::Volatile => {
            format!("its volume at `{}`", mount.target)
        }
    }
}

/// Whether it is data that an instance with this mount can change.
fn writes(mount: &Mount) -> bool {
    !mount.read_only && mount.source != MountSource::Volatile
}

/// What each service of `release` would be able to write if it started now. Nothing is made.
pub(crate) fn data(
    agent: &Agent,
    stage: &Stage,
    release: &Release,
    folder: Option<&Path>,
) -> Result<BTreeMap<String, Data>, Report> {
    let table = mounts()?;
    let mut all = BTreeMap::new();
    // What is about to be renewed is replaced in the pause like all data: so the old ones count too.
    let now = stage.state().pointer.renewed;
    let renewals = BTreeSet::from([now, stage.renewal()]);
    for (service, released) in &release.services {
        let mut data = Data::default();
        for mount in released.settings.mounts.iter().filter(|mount| writes(mount)) {
            let mut spots = Vec::new();
            for renewal in &renewals {
                let of = Of { stage, service, renewal: *renewal, folder };
                let path = of.path(agent, mount, 0, Path::new(""))?;
                if matches!(mount.source, MountSource::Bind(_)) && binds::is_left_out(&path) {
                    break;
                }
                let part = Part::find(&name(mount), path, mount.subpath.as_deref())?;
                spots.extend(place(&table, service, mount, &part)?.spots);
                if mount.source != MountSource::Anonymous {
                    break;
                }
            }
            if !spots.is_empty() {
                data.0.push(Held { name: name(mount), spots });
            }
        }
        data.0.extend(network::held(&stage.id, service, &released.settings));
        all.insert(service.clone(), data);
    }
    Ok(all)
}

fn mounts() -> Result<Mounts, Report> {
    Mounts::read().because(|| "reading the table of mounts".into())
}

fn place(
    table: &Mounts,
    service: &str,
    mount: &Mount,
    part: &Part,
) -> Result<super::places::Place, Report> {
    part.place(table, || format!("finding out what {} of `{service}` is", name(mount)))
}

/// With volumes to be renewed, no instance that has any goes on; and none that has mounted another
/// folder than the one that is the project now; and none of which a fresh one is wanted.
pub(crate) fn none_goes_on(stage: &Stage, mut observed: Vec<Observed>) -> Vec<Observed> {
    let fresh = stage.wished().fresh;
    observed
        .iter_mut()
        .filter(|old| fresh.contains(&old.service))
        .for_each(|old| old.sound = false);
    let (folder, state) = (stage.wished().folder, stage.state());
    if state.pointer.folder.is_some() && folder.is_some() && folder != state.pointer.folder {
        let bound = |id: &str| {
            let settings = state.instances.get(id).and_then(|instance| state.settings(instance));
            settings.is_none_or(|settings| binds::is_bound_to_folder(&settings.mounts))
        };
        observed.iter_mut().filter(|old| bound(&old.id)).for_each(|old| old.sound = false);
    }
    drop(state);
    if stage.wished().renew {
        let state = stage.state();
        let has_any = |id: &str| state.instances.get(id).is_some_and(|one| one.renewed.is_some());
        observed.iter_mut().filter(|old| has_any(&old.id)).for_each(|old| old.sound = false);
    }
    observed
}

/// Refuses what would start if another stage or project writes its data: before anything is done.
pub(crate) fn free(
    agent: &Agent,
    stage: &Stage,
    digest: &Digest,
    plan: &Plan,
    data: &BTreeMap<String, Data>,
) -> Result<(), Report> {
    for (service, data) in data {
        if !plan.share.contains_key(service) && !data.is_empty() {
            agent.claims.elsewhere(&Claim {
                stage: stage.id.clone(),
                service: service.clone(),
                born: *digest,
                data: data.clone(),
            })?;
        }
    }
    Ok(())
}

/// Makes the volumes that are not there yet, and says what is to be mounted and what of it is data.
/// `dir` is the instance's folder.
pub(crate) fn prepare(
    agent: &Agent,
    of: Of<'_>,
    released: &ReleasedService,
    dir: &Path,
) -> Result<Sources, Report> {
    let mounts = &released.settings.mounts;
    let mut sources = Vec::new();
    for (number, mount) in mounts.iter().enumerate() {
        let path = of.path(agent, mount, number, dir)?;
        if mount.content.is_some() && !learns(&of.stage.id.stage) {
            // It is mounted from the store.
            continue;
        }
        let lasts = match mount.source {
            MountSource::Bind(_) if binds::is_left_out(&path) => continue,
            MountSource::Bind(_) | MountSource::External(_) => None,
            MountSource::Volatile => Some(fill::Lasts::Instance),
            MountSource::Volume(_) | MountSource::Anonymous => Some(fill::Lasts::Stage),
        };
        if let Some(lasts) = lasts {
            let image = Some(&released.image.tree).filter(|_| !mount.nocopy);
            fill::fill_if_new(&agent.store, &path, image, &mount.target, lasts)?;
        }
        if let MountSource::External(name) = &mount.source
            && !path.is_dir()
        {
            return Err(not_there(name, &path));
        }
        if let Some(name) = &mount.known_as {
            share(agent, &of.stage.id, &path, name)?;
        }
        sources.push((mount, Part::open(&name(mount), path, mount.subpath.as_deref())?));
    }
    let mut all = Sources { mounts: Vec::new(), data: Data::default() };
    if sources.is_empty() {
        return Ok(all);
    }
    let table = self::mounts()?;
    for (mount, part) in sources {
        let place = place(&table, of.service, mount, &part)?;
        let source = part.path;
        if !place.node.rest.is_empty() {
            return Err(binds::missing(&source));
        }
        let node = Some((place.node.dev, place.node.ino));
        if writes(mount) && !place.spots.is_empty() {
            all.data.0.push(Held { name: name(mount), spots: place.spots });
        }
        let (target, read_only) = (mount.target.clone(), mount.read_only);
        all.mounts.push(BindMount { source, target, read_only, node });
    }
    Ok(all)
}

fn not_there(name: &str, path: &Path) -> Report {
    Report::usage(format!("the external volume `{name}` is not there")).hint(format!(
        "deploy the project that has it, with `name: {name}` under `volumes:`, first; or put a folder, \
         or a link to one, at {}",
        path.display()
    ))
}

/// One volume that is there.
#[derive(Debug)]
pub(crate) struct Volume {
    /// What a person calls it.
    pub name: String,
    /// What it belongs to.
    pub kind: Kind,
    path: PathBuf,
}

impl Volume {
    /// Whether anything is in it; one that cannot be looked into counts as if there were.
    pub(crate) fn has_something(&self) -> bool {
        std::fs::read_dir(&self.path).map_or(true, |mut entries| entries.next().is_some())
    }
}

/// What a volume belongs to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The stage, under this name.
    Named(String),
    /// A service, whose name is [`encoded`].
    Anonymous {
        /// Which.
        service: String,
        /// Where it is mounted.
        target: String,
    },
}

impl Volume {
    /// As an answer names it.
    pub(crate) fn named(&self) -> answers::Volume {
        match &self.kind {
            Kind::Named(name) => answers::Volume::Named { name: name.clone() },
            Kind::Anonymous { service, target } => {
                answers::Volume::Unnamed { service: decoded(service), target: target.clone() }
            }
        }
    }
}

/// The entries of a folder by name; none if it is not there.
fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>, Report> {
    let doing = || format!("reading {}", dir.display());
    let read = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.because(doing)?,
    };
    let mut all = Vec::new();
    for entry in read {
        let entry = entry.because(doing)?;
        all.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    all.sort();
    Ok(all)
}

/// All volumes of a stage.
pub(crate) fn list(agent: &Agent, id: &StageId) -> Result<Vec<Volume>, Report> {
    let dir = agent.volumes_dir(id);
    let mut all = Vec::new();
    for (name, path) in entries(&dir)? {
        if !name.starts_with('.') {
            all.push(Volume { name: format!("`{name}`"), kind: Kind::Named(name), path });
        }
    }
    for (_, generation) in entries(&dir.join(ANONYMOUS))? {
        for (service, replicas) in entries(&generation)? {
            for (_, targets) in entries(&replicas)? {
                for (target, path) in entries(&targets)? {
                    let name = format!("`{}` of `{}`", decoded(&target), decoded(&service));
                    let target = decoded(&target);
                    let kind = Kind::Anonymous { service: service.clone(), target };
                    all.push(Volume { name, kind, path });
                }
            }
        }
    }
    Ok(all)
}

/// Removes a volume that nobody writes and in which nothing is mounted. It goes in one step; what
/// was in it is cleared away afterwards, by the next time at the latest.
pub(crate) fn remove(agent: &Agent, id: &StageId, volume: &Volume) -> Result<(), Report> {
    let doing = || format!("removing the volume {}", volume.name);
    let stays = |why: String| {
        let what = format!("the volume {} stays: {why}", volume.name);
        Err(Report::refused(what).hint("end what uses it, and give the same command again"))
    };
    let table = mounts()?;
    let spots = table.place(&volume.path).because(doing)?.spots;
    let held = Data(vec![Held { name: volume.name.clone(), spots }]);
    if let Some(writer) = agent.claims.writer(&held) {
        return stays(format!("`{}` of {} may still write it", writer.service, writer.stage));
    }
    let real = volume.path.canonicalize().because(doing)?;
    if let Some(point) = table.below(&real) {
        return stays(format!("something is mounted at {}", point.display()));
    }
    let dir = agent.volumes_dir(id);
    let gone = dir.join(format!(".gone-{}", &Digest::of(format!("{real:?}")).hex()[..16]));
    kiln_store::mount::remove_tree(&gone).because(doing)?;
    std::fs::rename(&volume.path, &gone).because(doing)?;
    let names = agent.root.join("volumes").join(NAMED).join(&id.stage);
    unlink_shared(&names, &shared_as(&agent.root, &volume.path))?;
    kiln_store::mount::remove_tree(&gone).because(doing)?;
    // Folders that hold nothing any more; the first that does ends it.
    for above in volume.path.ancestors().skip(1).take_while(|above| above.starts_with(&dir)) {
        if std::fs::remove_dir(above).is_err() {
            break;
        }
    }
    Ok(())
}

/// Clears away volumes without a name that no renewal leads to any more, but those that somebody
/// still writes; and what is half renewed, if nothing is under way.
pub(crate) fn drop_renewed(agent: &Agent, stage: &Stage) -> Result<(), Report> {
    let now = stage.state().pointer.renewed.to_string();
    let dir = agent.volumes_dir(&stage.id).join(ANONYMOUS);
    for (name, path) in entries(&dir)? {
        if name == now {
            continue;
        }
        let kind = Kind::Anonymous { service: String::new(), target: String::new() };
        let old = Volume { name: format!("of renewal {name}"), kind, path };
        match remove(agent, &stage.id, &old) {
            // The release before may keep one running.
            Err(report) if report.exit == Exit::Refused => {}
            removed => removed?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_free_when_its_volume_is_gone() {
        let home = tempfile::tempdir().unwrap();
        let volumes = home.path().join("volumes");
        let (one, two) = (volumes.join("one/dev/data"), volumes.join("two/dev/data"));
        std::fs::create_dir_all(&one).unwrap();
        std::fs::create_dir_all(&two).unwrap();
        let names = volumes.join(NAMED).join("dev");
        let link = names.join("common");
        let take = |own: &Path| link_shared(&link, &shared_as(home.path(), own)).unwrap();
        assert!(take(&one) && take(&one));
        assert_eq!(link.canonicalize().unwrap(), one.canonicalize().unwrap());
        assert!(!take(&two), "it is somebody else's");
        std::fs::remove_dir(&one).unwrap();
        assert!(take(&two), "it leads nowhere");
        unlink_shared(&names, &shared_as(home.path(), &one)).unwrap();
        assert_eq!(link.canonicalize().unwrap(), two.canonicalize().unwrap());
        unlink_shared(&names, &shared_as(home.path(), &two)).unwrap();
        assert!(link.symlink_metadata().is_err());
        // One that a person made is left alone.
        std::os::unix::fs::symlink("/not/mounted/now", &link).unwrap();
        assert!(!take(&two));
    }

    #[test]
    fn any_text_becomes_the_name_of_a_folder() {
        for (text, name) in [
            ("/var/lib/db", "%2fvar%2flib%2fdb"),
            ("/var/lib/db/", "%2fvar%2flib%2fdb"),
            ("web.1", "web.1"),
            ("..", "%2e."),
            (".hidden", "%2ehidden"),
            ("a%2fb", "a%252fb"),
            ("ä\n", "%c3%a4%0a"),
        ] {
            assert_eq!(encoded(text), name);
            assert_eq!(decoded(name), text.trim_end_matches('/'));
        }
        assert_eq!(encoded(&"/long".repeat(60)).len(), 64);
    }
}
