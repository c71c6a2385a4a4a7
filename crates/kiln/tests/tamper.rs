//! Every file of a root that serves is flipped, cut and removed, one at a time; then the agent is
//! killed and comes back, and commands follow. Whatever it was: what serves goes on and is never
//! another release, nothing that a kept release needs is collected, and the damage is named or
//! healed. In CI by seed a part of it, all of it by `cargo xtask soak`.
//!
//! What programs read while they serve (their own files, the image that they run on) is damaged
//! too, but their answers are not asked for then: a disk that lies to a program lies to its clients.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use common::{PATIENCE, kill, page, wait_for_answer, web};
use kiln_testkit::{Port, Project, World, wait_until};

/// What is done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    Flip,
    Cut,
    Remove,
}

impl Harm {
    const ALL: [Self; 3] = [Self::Flip, Self::Cut, Self::Remove];

    fn to(self, path: &Path, at: u64) {
        let bytes = fs::read(path).unwrap();
        match self {
            Self::Remove => fs::remove_file(path).unwrap(),
            Self::Cut => {
                let length = if bytes.is_empty() { 0 } else { at % bytes.len() as u64 };
                fs::File::options().write(true).open(path).unwrap().set_len(length).unwrap();
            }
            Self::Flip => {
                let mut bytes = bytes;
                let bit = at % (bytes.len().max(1) as u64 * 8);
                if let Some(byte) = bytes.get_mut((bit / 8) as usize) {
                    *byte ^= 1 << (bit % 8);
                }
                fs::write(path, bytes).unwrap();
            }
        }
    }
}

/// Files of which nothing is promised but that nobody is harmed by them: logs, locks, sockets of
/// processes, what is only shown, and what is made again in silence.
fn is_silent(path: &str) -> bool {
    let folders = ["logs/", "front/", "unsynced/", "tmp/", "cache/", "instances/", "run/"];
    let files =
        ["agent.log", "agent.lock", "lease.lock", "gc.lock", "backing", "days", "ledger/head"];
    folders.iter().any(|folder| path.starts_with(folder))
        || files.contains(&path)
        || path.ends_with(".sum")
}

/// All regular files of the root, in order.
fn files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && !kind.is_socket() {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

/// A root that serves `three`, with `two` on standby and `one` to go back to.
struct Scene {
    world: World,
    project: Project,
    port: Port,
    /// Objects that a kept release needs.
    needed: BTreeSet<PathBuf>,
}

impl Scene {
    fn new() -> Self {
        let (world, project, port) = web();
        for text in ["one", "two", "three"] {
            page(&project, "web", text);
            world.kiln_in(&project, ["up"]).expect_done();
        }
        // Whatever is not needed is gone already.
        world.kiln(["gc"]).expect_done();
        let objects = files(&world.root().join("objects")).into_iter().collect();
        wait_for_answer(&port, "three");
        Self { world, project, port, needed: objects }
    }

    fn kill_agent(&self) {
        let processes = self.world.processes().into_iter();
        for pid in processes.filter(|one| one.command.ends_with(" agent")).map(|one| one.pid) {
            kill(pid);
            wait_until(PATIENCE, "the agent's end", || {
                (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
            });
        }
    }

    /// Damages one file, looks on, and puts everything right again.
    fn try_one(&self, path: &Path, harm: Harm, at: u64) -> Result<(), String> {
        let Ok(name) = path.strip_prefix(self.world.root()) else { return Ok(()) };
        let name = name.display().to_string();
        let what = format!("{harm:?} of {name} at {at}");
        let wrong = |why: &str| Err(format!("{what}: {why}"));
        let Ok(before) = fs::read(path) else { return Ok(()) };
        let served = self.is_served(path);
        harm.to(path, at);
        let harmed = fs::read(path).ok();
        if harmed.as_ref() == Some(&before) {
            return Ok(());
        }
        if !served {
            self.answers("three").map_err(|why| format!("{what}, at once: {why}"))?;
        }
        self.kill_agent();
        let ps = self.world.kiln_in(&self.project, ["ps"]);
        if !served {
            self.answers("three").map_err(|why| format!("{what}, with a new agent: {why}"))?;
        }
        let fsck = self.world.kiln(["fsck"]);
        let history = self.world.kiln(["history", "--all"]);
        let told = ps.code != Some(0)
            || fsck.code != Some(0)
            || history.code != Some(0)
            || history.stdout.contains("damage.healed");
        let healed = fs::read(path).is_ok_and(|now| now == before);
        // Nobody is harmed for a month, and the next command in the project writes it again.
        let forgotten = harm == Harm::Remove && name.starts_with("refs/projects/");
        if !told && !healed && !forgotten && !is_silent(&name) {
            return wrong(&format!("nothing says so\n{}{}", fsck.stdout, fsck.stderr));
        }
        self.world.kiln(["gc"]);
        if let Some(gone) =
            self.needed.iter().find(|object| !object.exists() && object.as_path() != path)
        {
            return wrong(&format!("{} was collected", gone.display()));
        }
        if !served {
            self.answers("three").map_err(|why| format!("{what}, after gc: {why}"))?;
        }
        self.put_right(path, &before, &what)
    }

    /// As it was, so that the next damage is the only one.
    fn put_right(&self, path: &Path, before: &[u8], what: &str) -> Result<(), String> {
        self.kill_agent();
        if path.parent().is_some_and(Path::exists)
            && !path.starts_with(self.world.root().join("ledger"))
        {
            fs::write(path, before).map_err(|error| format!("{what}: {error}"))?;
            if path.starts_with(self.world.root().join("objects")) {
                let file = fs::File::open(path).unwrap();
                let epoch = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_577_836_800);
                file.set_modified(epoch).unwrap();
            }
        }
        self.world.kiln(["fsck", "--repair"]);
        let whole = self.world.kiln(["fsck"]);
        if whole.code != Some(0) {
            return Err(format!("{what}, put right: {}{}", whole.stdout, whole.stderr));
        }
        self.answers("three").map_err(|why| format!("{what}, put right: {why}"))
    }

    /// Whether a program reads the file as it serves: nothing can keep it from telling what is there.
    fn is_served(&self, path: &Path) -> bool {
        let content = fs::read(path).unwrap_or_default();
        let derived = path.extension().is_some_and(|extension| extension == "erofs");
        let large = fs::metadata(path).is_ok_and(|meta| meta.size() > 500_000);
        derived
            || content == b"three"
            || large && path.starts_with(self.world.root().join("objects"))
    }

    fn answers(&self, text: &str) -> Result<(), String> {
        for _ in 0..5 {
            match common::answer(&self.port) {
                answer if answer == text => {}
                answer => return Err(format!("it says `{answer}`")),
            }
        }
        Ok(())
    }
}

#[test]
fn whatever_is_damaged_what_serves_goes_on_and_nothing_needed_is_lost() {
    let scene = Scene::new();
    let seed = std::env::var("KILN_SOAK").ok();
    let mut state = seed.as_deref().and_then(|seed| seed.parse().ok()).unwrap_or(1_u64);
    state = state.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut dice = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let all = files(&scene.world.root());
    let mut wrong = Vec::new();
    for path in &all {
        for harm in Harm::ALL {
            let at = dice();
            let name = path.strip_prefix(scene.world.root()).unwrap();
            // In CI the records always, of the rest some.
            let record = ["ledger", "stages", "spare", "run", "refs"]
                .iter()
                .any(|part| name.starts_with(part));
            if seed.is_none() && !record && dice() % 40 != 0 {
                continue;
            }
            if let Err(why) = scene.try_one(path, harm, at) {
                eprintln!("{why}");
                wrong.push(why);
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} files:\n{}", wrong.len(), all.len(), wrong.join("\n"));
}
