//! A power cut at any moment: nothing that was promised is lost, and nothing torn is believed.
//!
//! Some work is recorded (see [`tape`]). At each moment of it, what a power cut may leave is made
//! and opened, in many ways: only what lasts; all of it; all but one thing; one thing too many; and
//! some by seed. With any one sync taken out, some of them have to fail: a suite that passes
//! without it tests nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use kiln_core::{Digest, ImageConfig, ImageId};

use super::collect::release;
use super::small;
use super::tape::{self, Event, Moment};
use crate::disk::Site;
use crate::ledger::Durability;
use crate::{Backing, Pointer, Store};

/// What one round of work promised.
struct Promised {
    release: Digest,
    content: String,
    generation: u64,
    reference: BTreeSet<Digest>,
}

fn content(nth: usize) -> String {
    format!("content {nth} {}", "x".repeat(nth * 100))
}

/// One delivery: contents, listing, configuration, release; flushed; then a reference, then the
/// pointer with an entry. One round is of many contents, which are flushed all at once.
fn work(store: &Store, nth: usize) -> Promised {
    let mut tree = small(store, &content(nth));
    let many = if nth == 2 { 30 } else { 1 };
    for file in 0..many {
        let path = format!("data/{file}");
        tree.insert(path.as_bytes(), super::file(store, format!("{nth} {file}").as_bytes(), 0o600));
    }
    let tree = store.put_tree(&tree).unwrap();
    let config = store.put_config(&ImageConfig::default()).unwrap();
    let image = ImageId { tree, config };
    store.set_step_result(&Digest::of(format!("{nth}")), &image).unwrap();
    let release = store.put_release(&release(&[image])).unwrap();
    store.flush().unwrap();
    let reference = BTreeSet::from([tree, config]);
    if nth == 1 {
        // What only a lock needs, and soon nothing.
        let package = store.put(b"package").unwrap();
        store.flush().unwrap();
        store.set_ref("locks", "old", &BTreeSet::from([package])).unwrap();
    }
    store.set_ref(&format!("kind{nth}"), "name", &reference).unwrap();
    let found = crate::ledger::Record {
        time: 1,
        kind: "finding".into(),
        project: None,
        stage: None,
        data: nth.into(),
    };
    store.ledger().append(&[found], Durability::Later).unwrap();
    let pointer = Pointer { active: Some(release), ..Pointer::default() };
    let before = store.pointer("shop", "dev").unwrap().map_or(0, |pointer| pointer.generation);
    let moved = store.move_pointer("shop", "dev", &pointer, &[], before).unwrap();
    Promised { release, content: content(nth), generation: moved.generation, reference }
}

/// The work, recorded.
fn recorded(without: Option<Site>) -> (Vec<Event>, BTreeSet<Site>, Vec<Promised>) {
    let dir = tempfile::tempdir_in(memory()).unwrap();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    let root = root.canonicalize().unwrap();
    tape::record(&root, without);
    let store = Store::open_with(&root, Some(Backing::Links)).unwrap();
    let mut promised = Vec::new();
    for nth in 0..4 {
        promised.push(work(&store, nth));
        tape::promise(&root, nth + 1);
    }
    drop(store);
    // A while later, when the system has written everything by itself, what nothing names goes.
    tape::rest(&root);
    let store = Store::open_with(&root, Some(Backing::Links)).unwrap();
    store.set_ref("kind0", "name", &BTreeSet::new()).unwrap();
    let options = crate::GcOptions { unused: 0, ..crate::GcOptions::default() };
    assert_eq!(store.gc_with(&crate::Roots::default, &options).unwrap().references, 1);
    drop(store);
    let (events, sites) = tape::stop(&root);
    (events, sites, promised)
}

fn memory() -> &'static Path {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory } else { Path::new("/tmp") }
}

/// Opens what a power cut left, and says what is wrong with it.
fn wrong(root: &Path, promised: &[Promised]) -> Option<String> {
    // Another boot, as far as markers and the ledger's head can tell.
    let unsynced = root.join("unsynced");
    for entry in fs::read_dir(&unsynced).into_iter().flatten() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let mut parts: Vec<&str> = name.split('.').collect();
        parts[1] = "00000000";
        fs::rename(&path, unsynced.join(parts.join("."))).unwrap();
    }
    other_boot(&root.join("ledger/head"));
    let store = match Store::open_with(root, Some(Backing::Links)) {
        Ok(store) => store,
        Err(error) => return Some(format!("it does not open: {error}")),
    };
    let faults = store.ledger().faults().unwrap();
    if !faults.is_empty() {
        return Some(format!("a power cut is taken for damage: {}", faults[0]));
    }
    if let Err(error) = store.ledger().verify() {
        return Some(error.to_string());
    }
    let corrupt = store.check().unwrap().corrupt;
    if let Some(corrupt) = corrupt.first() {
        return Some(format!("{} is torn and stays", corrupt.digest));
    }
    let pointer = store.pointer("shop", "dev").unwrap().unwrap_or_default();
    if let Some(last) = promised.last() {
        if pointer.generation < last.generation {
            let Pointer { generation, .. } = pointer;
            return Some(format!("generation {generation} instead of {}", last.generation));
        }
        let at = promised.iter().position(|one| Some(one.release) == pointer.active);
        let active = at.map(|at| &promised[at]);
        if let Some(error) = active.and_then(|active| lacks(&store, active)) {
            return Some(error);
        }
        for (nth, one) in promised.iter().enumerate() {
            let there =
                store.refs().map(|refs| refs.get(&(format!("kind{nth}"), "name".into())).cloned());
            match there {
                // The first is emptied at the end of the work.
                Ok(Some(digests)) if digests == one.reference || nth == 0 => {}
                other => return Some(format!("reference {nth}: {other:?}")),
            }
        }
    }
    if let Some(error) = misled(&store) {
        return Some(error);
    }
    // Whatever it points to is there, also what nobody was told of yet.
    if let Some(active) = pointer.active {
        match store.get_release(&active) {
            Err(error) => return Some(error.to_string()),
            Ok(release) => {
                for pin in release.pins() {
                    if let Err(error) = store.get(&pin) {
                        return Some(error.to_string());
                    }
                }
            }
        }
    }
    // No step is taken for done whose contents are not all there.
    for nth in 0..4 {
        if let Some(image) = store.step_result(&Digest::of(format!("{nth}"))) {
            let tree = match store.get_tree(&image.tree) {
                Ok(tree) => tree,
                Err(error) => return Some(error.to_string()),
            };
            for object in tree.objects() {
                if let Err(error) = store.get(&object) {
                    return Some(format!("step {nth} is taken for done: {error}"));
                }
            }
        }
    }
    None
}

/// A reference that cannot be read, or that names what is not there.
fn misled(store: &Store) -> Option<String> {
    let refs = match store.refs() {
        Ok(refs) => refs,
        Err(error) => return Some(error.to_string()),
    };
    let mut named = refs
        .into_iter()
        .flat_map(|(name, digests)| digests.into_iter().map(move |digest| (name.clone(), digest)));
    let (name, digest) = named.find(|(_, digest)| !store.contains(digest))?;
    Some(format!("reference {name:?} names {digest}, which is not there"))
}

fn lacks(store: &Store, promised: &Promised) -> Option<String> {
    let release = match store.get_release(&promised.release) {
        Ok(release) => release,
        Err(error) => return Some(error.to_string()),
    };
    for released in release.services.values() {
        match store.get_tree(&released.image.tree) {
            Err(error) => return Some(error.to_string()),
            Ok(tree) => {
                for object in tree.objects() {
                    if let Err(error) = store.get(&object) {
                        return Some(error.to_string());
                    }
                }
            }
        }
    }
    store.get(&Digest::of(&promised.content)).err().map(|error| error.to_string())
}

fn other_boot(head: &Path) {
    let Ok(text) = fs::read_to_string(head) else { return };
    let Some((line, _)) = text.lines().next().unwrap_or_default().rsplit_once(' ') else { return };
    let Some((_, rest)) = line.split_once(' ') else { return };
    // A torn one stays torn.
    if text.trim_end().ends_with(&Digest::of(line).hex()) {
        let line = format!("00000000 {rest}");
        fs::write(head, format!("{line} {}\n", Digest::of(&line).hex())).unwrap();
    }
}

/// A small generator of numbers: the same each time.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }
}

/// How many ways of losing things are tried at how many moments.
#[derive(Clone, Copy)]
struct Thorough {
    /// Every so many moments.
    stride: usize,
    /// Of the ways in which one thing is lost, or one too many there, so many.
    single: usize,
    /// Ways by seed.
    seeds: usize,
}

type Choose<'a> = Box<dyn FnMut(usize, usize) -> usize + 'a>;

/// The ways in which a power cut at the `at`-th moment may go, of `choices` things.
fn ways(at: usize, choices: usize, thorough: Thorough) -> Vec<(String, Choose<'static>)> {
    let mut ways: Vec<(String, Choose<'static>)> = vec![
        ("nothing more than lasts".into(), Box::new(|_, _| 0)),
        ("all of it".into(), Box::new(last_whole)),
        ("all, but torn".into(), Box::new(|_, outcomes| outcomes - 1)),
    ];
    for one in 0..choices.min(thorough.single) {
        // Others at other moments, if not all.
        let one = (one + at) % choices;
        let lost = move |nth, outcomes| if nth == one { 0 } else { last_whole(nth, outcomes) };
        let only = move |nth, outcomes| if nth == one { last_whole(nth, outcomes) } else { 0 };
        ways.push((format!("all but {one}"), Box::new(lost)));
        ways.push((format!("only {one}"), Box::new(only)));
    }
    for seed in 0..thorough.seeds {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ ((seed + 1) * 7919) as u64 ^ at as u64);
        ways.push((format!("seed {seed}"), Box::new(move |_, outcomes| dice.throw(outcomes))));
    }
    ways
}

/// Cuts the power at these moments; gives the first thing that is wrong after it. The first moments
/// and the last ones come first: there most is at stake.
fn cut(events: &[Event], promised: &[Promised], thorough: Thorough) -> Option<String> {
    let mut moments = Vec::new();
    let mut moment = Moment::default();
    for (at, event) in events.iter().enumerate() {
        moment.after(event);
        if at % thorough.stride == 0 || matches!(event, Event::Promise(_)) {
            moments.push((at, moment.clone()));
        }
    }
    let mut from_both_ends = Vec::new();
    let mut left = moments.as_slice();
    while let [first, rest @ ..] = left {
        from_both_ends.push(first);
        left = match rest {
            [rest @ .., last] => {
                from_both_ends.push(last);
                rest
            }
            rest => rest,
        };
    }
    for (at, moment) in from_both_ends {
        for (way, mut choose) in ways(*at, moment.choices(), thorough) {
            let dir = tempfile::tempdir_in(memory()).unwrap();
            let root = dir.path().join("root");
            moment.make(&root, &mut choose);
            if let Some(wrong) = wrong(&root, &promised[..moment.promised]) {
                let event = events[*at].word();
                return Some(format!("cut after event {at} ({event}), {way}: {wrong}"));
            }
        }
    }
    None
}

/// The newest that is whole: contents have as many torn outcomes as whole ones behind those.
fn last_whole(_: usize, outcomes: usize) -> usize {
    if outcomes > 2 && outcomes % 2 == 1 { outcomes / 2 } else { outcomes - 1 }
}

/// Whether there is time for all of it: `cargo xtask soak` says so.
fn soaking() -> bool {
    std::env::var_os("KILN_SOAK").is_some()
}

#[test]
fn a_power_cut_at_any_moment_loses_nothing_that_was_promised() {
    let (events, _, promised) = recorded(None);
    let thorough = match soaking() {
        true => Thorough { stride: 1, single: usize::MAX, seeds: 40 },
        false => Thorough { stride: 5, single: 2, seeds: 2 },
    };
    if let Some(wrong) = cut(&events, &promised, thorough) {
        panic!("{wrong}");
    }
}

/// Each sync is there because something is lost without it.
#[test]
fn without_any_one_sync_something_is_lost() {
    let (_, sites, _) = recorded(None);
    let all = BTreeSet::from(Site::EVERY);
    assert_eq!(sites, all, "the work asks for each of them");
    let idle = |site: &Site| {
        let (events, _, promised) = recorded(Some(*site));
        // Most is seen right after a promise, when all that may be lost is.
        let few = Thorough { stride: usize::MAX, single: 0, seeds: 0 };
        let many = Thorough { stride: 1, single: usize::MAX, seeds: 0 };
        cut(&events, &promised, few).or_else(|| cut(&events, &promised, many)).is_none()
    };
    let idle: Vec<Site> = all.into_iter().filter(idle).collect();
    assert_eq!(idle, [], "nothing is lost without these syncs");
}
