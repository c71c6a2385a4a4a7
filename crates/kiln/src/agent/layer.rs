//! The throw-away layers of instances: what lies in them, how much, and what goes with them.
//!
//! A layer is on the disk, so it does not count against the memory that an instance may have, and a
//! change of owner takes no content along (`metacopy`). Because of that only its *names* are
//! believed. They are a stranger's, and he may change them while they are read: folders are
//! opened from the descriptor of the one above, no link is followed, no file is opened, and no more
//! names are looked at than somebody would read.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kiln_core::Digest;
use kiln_core::defaults::Root;
use kiln_core::plan::Plan;
use kiln_core::release::ReleasedService;
use kiln_core::tree::{Kind, Tree};
use kiln_core::written::{Name, What, Written, fold};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, openat, statat};
use rustix::io::Errno;
use serde_json::json;

use super::card::Card;
use super::session::Session;
use super::stage::{Instance, Role, Seen as _, Stage, StageState};
use super::supervise::Word;
use super::{Agent, lock, record};

/// Names that are looked at for people.
const NAMES: usize = 50_000;
/// Folders in folders: each is a descriptor while it is looked at.
const DEPTH: usize = 200;
/// What a name takes beside its content.
const NAME: u64 = 512;

/// How often it is looked how much room the disk has.
const LOOK: Duration = Duration::from_millis(200);
/// How often layers are measured, at the least and at the most.
const PULSE: Duration = Duration::from_secs(1);
const REST: Duration = Duration::from_secs(60);
/// A round of measuring may take this part of the time; a larger one if somebody may have written
/// too much already.
const SHARE: u32 = 20;
const URGENT_SHARE: u32 = 4;
/// So much less room on the disk is no reason to measure anything.
const NOTHING: u64 = 1 << 20;

/// Folder of an instance that holds its layer.
pub(crate) fn dir(agent: &Agent, id: &str) -> PathBuf {
    agent.instance_dir(id).join("layer")
}

/// What instance `id` of `service` has written; `None`: it has no layer, or none that can be read.
pub(crate) fn written(agent: &Agent, id: &str, service: &str) -> Option<Written> {
    let top = open(CWD, dir(agent, id).join("upper")).ok()?;
    let mut image = None;
    let mut names = Vec::new();
    let whole = walk(top, &mut |at| {
        let mut name = at.name();
        if at.kind().is_symlink() && at.new.is_none() {
            let image = image.get_or_insert_with(|| image_of(agent, id));
            if image.as_ref().is_some_and(|image| is_same_link(at, image)) {
                name.what = What::Dressed;
            }
        }
        names.push(name);
        names.len() < NAMES
    });
    Some(fold(service, names, !whole.unwrap_or(false), &usual_tmpfs(agent, id)))
}

/// What an instance was started from.
fn released(agent: &Agent, id: &str) -> Option<ReleasedService> {
    let card = Card::read(&agent.instance_dir(id)).ok()??;
    let release = agent.release_in(&card.stage, &card.instance.born).ok()?;
    release.services.get(&card.instance.service).cloned()
}

/// The tree that an instance's root is over.
fn image_of(agent: &Agent, id: &str) -> Option<Arc<Tree>> {
    agent.store.get_tree(&released(agent, id)?.image.tree).ok()
}

/// Where it has tmpfs because it says nothing of `read_only`.
fn usual_tmpfs(agent: &Agent, id: &str) -> Vec<String> {
    let Some(ReleasedService { settings, .. }) = released(agent, id) else { return Vec::new() };
    settings.all_tmpfs().into_iter().filter(|it| it.filled).map(|it| it.target).collect()
}

/// Whether a link leads where the image's does. A change of its owner makes a new one, for it has no
/// content that could be left where it is.
fn is_same_link(at: &At<'_>, image: &Tree) -> bool {
    let Some(Kind::Symlink { target }) = image.get(at.path).map(|node| &node.kind) else {
        return false;
    };
    rustix::fs::readlinkat(at.dir, at.name, Vec::new())
        .is_ok_and(|found| found.to_bytes() == target.as_slice())
}

/// Tells which names go with the instances `ids`: before they do.
pub(crate) fn tell_what_goes(agent: &Agent, session: &Session, stage: &Stage, ids: &[String]) {
    for (id, service) in services(stage, ids) {
        let Some(written) = written(agent, &id, &service) else { continue };
        let names: Vec<&str> = written.losses().map(|line| line.path.as_str()).collect();
        if let Some(names) = some_of(&names) {
            let go = if written.losses().count() == 1 { "goes" } else { "go" };
            session.notice(format!("`{service}`: {names} {go} with this instance"));
        }
    }
}

/// The names that users were told, by instance.
#[derive(Debug, Default)]
pub(crate) struct Told(Mutex<BTreeMap<String, BTreeSet<String>>>);

impl Told {
    /// What the services of a release have written, where nobody was told that yet.
    pub(crate) fn news(
        &self,
        agent: &Agent,
        stage: &Stage,
        release: &Digest,
    ) -> BTreeMap<String, Written> {
        let members: Vec<String> = {
            let state = stage.state();
            state.slot(release).map(|slot| slot.all().cloned().collect()).unwrap_or_default()
        };
        let known: BTreeSet<String> = {
            let stages = agent.stages();
            let all = stages.iter().map(|stage| stage.state().instances.keys().cloned().collect());
            all.flat_map(|ids: Vec<String>| ids).collect()
        };
        let mut news = BTreeMap::new();
        for (id, service) in services(stage, &members) {
            let written = written(agent, &id, &service).filter(|written| !written.is_empty());
            let Some(written) = written else { continue };
            let mut told = lock(&self.0);
            told.retain(|id, _| known.contains(id));
            let told = told.entry(id).or_default();
            let before = told.len();
            told.extend(written.lines.iter().map(|line| line.path.clone()));
            if told.len() > before {
                news.insert(service, written);
            }
        }
        news
    }
}

/// The first few, in words.
fn some_of(names: &[&str]) -> Option<String> {
    const FEW: usize = 5;
    let shown = names.get(..names.len().min(FEW)).filter(|shown| !shown.is_empty())?.join(", ");
    Some(match names.len().saturating_sub(FEW) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    })
}

fn services(stage: &Stage, ids: &[String]) -> Vec<(String, String)> {
    let state = stage.state();
    let of = |id: &String| Some((id.clone(), state.instances.get(id)?.service.clone()));
    ids.iter().filter_map(of).collect()
}

/// The instances that serve now and that a plan replaces.
pub(crate) fn leaving(state: &StageState, plan: &Plan) -> Vec<String> {
    let stays: BTreeSet<&String> = plan.share.values().collect();
    let serving = state.with_role(Role::Active).map(|slot| slot.all().cloned().collect::<Vec<_>>());
    let mut leaving = serving.unwrap_or_default();
    leaving.retain(|id| !stays.contains(id));
    leaving
}

/// The ledger keeps the names of what went with an instance that nobody asked about.
pub(crate) fn note_what_goes(agent: &Agent, stage: &Stage, instance: &Instance) {
    let Some(written) = written(agent, &instance.id, &instance.service) else { return };
    let lost: Vec<&str> = written.losses().map(|line| line.path.as_str()).collect();
    if !lost.is_empty() {
        let what = some_of(&lost).map(|names| format!("{names} went with it"));
        let data = json!({ "instance": instance.id, "what": what, "lost": lost });
        record::note(agent, stage, "instance.layer", data);
    }
}

/// One name on the way through a layer.
struct At<'a> {
    dir: BorrowedFd<'a>,
    path: &'a [u8],
    name: &'a CStr,
    stat: Stat,
    new: Option<usize>,
}

impl At<'_> {
    fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    fn bytes(&self) -> u64 {
        let blocks = u64::try_from(self.stat.st_blocks).unwrap_or(0);
        blocks.saturating_mul(512)
    }

    fn name(&self) -> Name {
        let what = match self.kind() {
            // How overlayfs writes that something is no longer there.
            FileType::CharacterDevice if self.stat.st_rdev == 0 => What::Removed,
            FileType::RegularFile if has(self.dir, self.name, c"trusted.overlay.metacopy") => {
                What::Dressed
            }
            FileType::Directory => What::Folder,
            _ => What::File,
        };
        Name { path: self.path.to_vec(), what, bytes: self.bytes(), new: self.new }
    }
}

/// Whether `name` has an attribute of overlayfs. The name may be anything by now: then it has none.
fn has(dir: BorrowedFd<'_>, name: &CStr, attribute: &CStr) -> bool {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend(name.to_bytes());
    let Ok(path) = CString::new(path) else { return false };
    let mut value = [0; 256];
    rustix::fs::lgetxattr(&path, attribute, &mut value[..]).is_ok()
}

fn open(at: impl AsFd, path: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, path, flags, Mode::empty())
}

/// A folder that is being read.
struct Level {
    entries: Dir,
    fd: OwnedFd,
    /// Length of its path.
    length: usize,
    new: Option<usize>,
}

impl Level {
    fn new(fd: OwnedFd, length: usize, new: Option<usize>) -> io::Result<Self> {
        Ok(Self { entries: Dir::read_from(&fd)?, fd, length, new })
    }
}

/// Goes through the layer below `top` until `each` wants no more. Folders that the image has too are
/// no names of their own. False: not all was seen.
fn walk(top: OwnedFd, each: &mut dyn FnMut(&At<'_>) -> bool) -> io::Result<bool> {
    let mut whole = true;
    let mut path = Vec::new();
    let mut levels = vec![Level::new(top, 0, None)?];
    while let Some(level) = levels.last_mut() {
        path.truncate(level.length);
        let Some(entry) = level.entries.read() else {
            levels.pop();
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend(name.to_bytes());
        let stat = match statat(&level.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(error) if is_gone(error) => continue,
            Err(error) => return Err(error.into()),
        };
        let folder = FileType::from_raw_mode(stat.st_mode).is_dir();
        let dir = level.fd.as_fd();
        let opaque = || folder && has(dir, name, c"trusted.overlay.opaque");
        let new = level.new.or_else(|| opaque().then_some(path.len()));
        let at = At { dir, path: &path, name, stat, new };
        if (!folder || new.is_some()) && !each(&at) {
            return Ok(false);
        }
        if !folder {
            continue;
        }
        match open(dir, name) {
            Ok(fd) if levels.len() < DEPTH => levels.push(Level::new(fd, path.len(), new)?),
            Ok(_) => whole = false,
            Err(error) if is_gone(error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(whole)
}

/// Whether a name is gone, or something else than a folder by now. Every other error hides what may
/// be large.
fn is_gone(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
}

/// What a layer takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    /// Bytes, as far as they are needed to know whether it is larger than it may.
    Bytes(u64),
    /// Folders lie deeper in each other than is looked at: anything can be there.
    Deep,
}

fn size(upper: &Path, most: u64) -> io::Result<Size> {
    let mut bytes = 0_u64;
    // Files with several names, whose content is there once.
    let mut linked = BTreeSet::new();
    let whole = walk(open(CWD, upper)?, &mut |at| {
        let mut content = at.bytes();
        if content > 0 && at.stat.st_nlink > 1 && !at.kind().is_dir() {
            let file = (at.stat.st_dev, at.stat.st_ino);
            if linked.contains(&file) {
                content = 0;
            } else if linked.len() < NAMES {
                // Beyond that each name counts.
                linked.insert(file);
            }
        }
        bytes = bytes.saturating_add(content).saturating_add(NAME);
        bytes <= most
    })?;
    Ok(if whole || bytes > most { Size::Bytes(bytes) } else { Size::Deep })
}

/// Why an instance may not go on with a layer of this size.
fn too_much(size: Size, most: u64) -> Option<String> {
    match size {
        Size::Bytes(bytes) if bytes <= most => None,
        Size::Bytes(_) => Some(format!(
            "wrote more than {} MiB beside its volumes (`x-kiln.scratch` says how much it may)",
            most >> 20
        )),
        Size::Deep => Some(format!(
            "made more than {DEPTH} folders in each other beside its volumes, where what it writes \
             is not measured (a volume may have them)"
        )),
    }
}

/// Ends instances whose layer has grown beyond what it may, for as long as the agent is there.
pub(crate) fn keep_small(agent: &Arc<Agent>) {
    let watching = Arc::clone(agent);
    agent.background(move || {
        let (mut room, mut measured, mut took) = (None, Instant::now(), Duration::ZERO);
        let mut unmeasured = BTreeSet::new();
        // What the one that may write least may still write.
        let mut left = u64::MAX;
        while !watching.leaving() {
            std::thread::sleep(if left == u64::MAX { PULSE } else { LOOK });
            // Nobody can have written much without it.
            let now = free(&watching.root);
            let lost = match (room, now) {
                (Some(before), Some(now)) => u64::saturating_sub(before, now),
                _ => u64::MAX,
            };
            if !is_due(lost, left, measured.elapsed(), took) {
                room = room.max(now);
                continue;
            }
            (room, measured) = (now, Instant::now());
            let all = watching.stages();
            let lefts = all.iter().map(|stage| measure(&watching, stage, &mut unmeasured));
            left = lefts.min().unwrap_or(u64::MAX);
            took = measured.elapsed();
        }
    });
}

/// Whether it is time to measure: `lost` bytes of room are gone `since` it was last done, which `took`
/// so long; `left` is what somebody might still write then.
fn is_due(lost: u64, left: u64, since: Duration, took: Duration) -> bool {
    let seldom = (took * SHARE).clamp(PULSE, REST);
    let urgent = (took * URGENT_SHARE).clamp(LOOK, REST);
    since >= REST || lost > NOTHING && since >= seldom || lost >= left && since >= urgent
}

/// Free bytes of the disk that `path` is on.
fn free(path: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(path).ok()?;
    Some(found.f_bfree.saturating_mul(found.f_frsize))
}

/// Ends those that have written too much. One whose layer cannot be measured goes on, and that is
/// said once: `unmeasured` are those of which it was. Gives how many bytes the one may still write that
/// may write least.
fn measure(agent: &Agent, stage: &Stage, unmeasured: &mut BTreeSet<String>) -> u64 {
    let layered: Vec<_> = {
        let state = stage.state();
        let of = |instance: &Instance| {
            let most = match state.settings(instance)?.root(&stage.id.stage) {
                Root::Layer { most } => most,
                Root::ReadOnly => return None,
            };
            Some((instance.id.clone(), instance.inbox.clone()?, most))
        };
        state.instances.values().filter_map(of).collect()
    };
    let mut left = u64::MAX;
    for (id, inbox, most) in layered {
        match size(&dir(agent, &id).join("upper"), most) {
            Ok(size) => {
                unmeasured.remove(&id);
                if let Size::Bytes(bytes) = size {
                    left = left.min(most.saturating_sub(bytes));
                }
                if let Some(why) = too_much(size, most) {
                    let _ = inbox.send(Word::TooMuch(why));
                }
            }
            // It has just ended.
            Err(error) if Errno::from_io_error(&error).is_some_and(is_gone) => {}
            Err(error) => {
                if unmeasured.insert(id.clone()) {
                    agent.log(&format!("{id}: what it has written cannot be measured: {error}"));
                }
            }
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn layers_are_measured_as_soon_as_somebody_may_have_written_too_much() {
        let at = Duration::from_millis;
        let (mb, none) = (1 << 20, u64::MAX);
        for (lost, left, since, took, due) in [
            (0, 64 * mb, 59_000, 1, false),
            (0, 64 * mb, 60_000, 1, true),
            (10 * mb, 64 * mb, 900, 1, false),
            (10 * mb, 64 * mb, 1_000, 1, true),
            // It may be beyond its limit by now.
            (64 * mb, 64 * mb, 200, 1, true),
            (64 * mb, 64 * mb, 100, 1, false),
            // What takes long is done less often, and not much less then.
            (10 * mb, 64 * mb, 9_000, 500, false),
            (10 * mb, 64 * mb, 10_000, 500, true),
            (64 * mb, 64 * mb, 1_900, 500, false),
            (64 * mb, 64 * mb, 2_000, 500, true),
            (64 * mb, none, 500, 1, false),
            (none, none, 1_000, 0, true),
        ] {
            let found = is_due(lost, left, at(since), at(took));
            assert_eq!(found, due, "{lost} {left} {since} {took}");
        }
    }

    #[test]
    fn a_walk_follows_no_link_opens_no_pipe_and_ends() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        fs::create_dir_all(at("app/deep")).unwrap();
        fs::write(at("app/deep/file"), vec![b'x'; 10_000]).unwrap();
        symlink("/", at("app/root")).unwrap();
        symlink("..", at("app/up")).unwrap();
        rustix::fs::mknodat(CWD, at("app/pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let mut names = Vec::new();
        let mut look = |most: usize| {
            names.clear();
            let whole = walk(open(CWD, home.path()).unwrap(), &mut |at| {
                names.push(String::from_utf8_lossy(at.path).into_owned());
                names.len() < most
            });
            names.sort();
            (whole.unwrap(), names.join(" "))
        };
        assert_eq!(look(100), (true, "app/deep/file app/pipe app/root app/up".to_owned()));
        assert!(!look(2).0);
        let bytes = |most: u64| match size(home.path(), most).unwrap() {
            Size::Bytes(bytes) => bytes,
            Size::Deep => panic!("not measured"),
        };
        let whole = bytes(u64::MAX);
        assert!(whole >= 10_000);
        let small = bytes(1_000);
        assert!(small > 1_000, "it ends as soon as it is too much: {small}");
        // A further name takes no more than a name.
        for number in 0..8 {
            fs::hard_link(at("app/deep/file"), at(&format!("app/deep/{number}"))).unwrap();
        }
        assert_eq!(bytes(u64::MAX), whole + 8 * NAME);
        // Deeper than anybody reads.
        let mut deep = home.path().to_owned();
        for _ in 0..DEPTH + 5 {
            deep.push("d");
        }
        fs::create_dir_all(&deep).unwrap();
        assert!(!look(100).0);
        let hidden = size(home.path(), u64::MAX).unwrap();
        assert_eq!(hidden, Size::Deep, "what is not looked at is not small");
        assert!(too_much(hidden, u64::MAX).unwrap().contains("in each other"));
        for (error, gone) in [(Errno::NOENT, true), (Errno::LOOP, true), (Errno::NOTDIR, true)] {
            assert_eq!(is_gone(error), gone);
        }
        for error in [Errno::IO, Errno::MFILE, Errno::NFILE, Errno::ACCESS, Errno::NOMEM] {
            assert!(!is_gone(error), "{error}: nobody knows how large it is");
        }
        assert_eq!(too_much(Size::Bytes(7), 7), None);
        assert!(too_much(Size::Bytes(8), 7).unwrap().contains("x-kiln.scratch"));
    }
}
