//! Collection at size: its time, its memory, and how long bakes wait meanwhile.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kiln_core::tree::{Kind, Node};
use kiln_core::{Digest, Tree};

use super::file;
use crate::{Backing, Store};

/// Where the process of its own finds its root.
const ROOT: &str = "KILN_TEST_COLLECT";

/// What a collection took.
#[derive(Debug, Clone, Copy)]
struct Took {
    /// Of it alone.
    time: Duration,
    /// The most memory that its process had, in KiB.
    peak: u64,
    /// Time of processors, which does not hang on who else is there.
    cpu: Duration,
    /// The longest that a bake waited for its lease.
    shut_out: Duration,
}

/// A store of `count` objects in trees of a thousand, of which every second one is kept; and so many
/// trees more that are kept and whose contents are gone: they are marked like others.
fn filled(count: usize, ghosts: usize) -> (tempfile::TempDir, Store) {
    let (dir, store) = super::store(Backing::Links);
    let trees = count / 1000;
    for tree in 0..trees + ghosts {
        let mut listed = Tree::new();
        for nth in 0..999 {
            let content = format!("{tree} {nth}");
            let node = match tree < trees {
                true => file(&store, content.as_bytes(), 0o644),
                false => {
                    let digest = Digest::of(&content);
                    Node::new(Kind::File { size: content.len() as u64, digest }, 0o644)
                }
            };
            listed.insert(format!("{nth}").as_bytes(), node);
        }
        let digest = store.put_tree(&listed).unwrap();
        if tree >= trees || tree % 2 == 0 {
            store.flush().unwrap();
            store.set_ref("imports", &format!("{tree}"), &BTreeSet::from([digest])).unwrap();
        }
    }
    (dir, store)
}

/// Tells the other thread to end when it goes.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Collects in a process of its own, while this one takes leases as bakes do.
fn collected(count: usize, ghosts: usize) -> Took {
    let (_dir, store) = filled(count, ghosts);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "tests::size::one_that_is_started"]);
    command.env(ROOT, store.root());
    let over = AtomicBool::new(false);
    let (output, shut_out) = std::thread::scope(|scope| {
        // Also when something panics: the scope waits for its threads.
        let ends = Ends(&over);
        let baking = scope.spawn(|| {
            let mut longest = Duration::ZERO;
            while !over.load(Ordering::Relaxed) {
                let asked = Instant::now();
                let lease = store.lease().unwrap();
                longest = longest.max(asked.elapsed());
                drop(lease);
                // Bakes do not come without end: one that never pauses would starve it.
                std::thread::sleep(Duration::from_millis(5));
            }
            longest
        });
        let output = command.output().unwrap();
        drop(ends);
        (output, baking.join().unwrap())
    });
    let text = fs::read_to_string(store.root().with_extension("took"));
    let text = text.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    let numbers: Vec<u64> = text.split_whitespace().map(|number| number.parse().unwrap()).collect();
    let trees = (count / 1000) as u64;
    let dropped = trees / 2;
    let kept = (trees - dropped) * 1000 + ghosts as u64;
    assert_eq!((numbers[2], numbers[3]), (dropped * 1000, kept), "{text}");
    let (time, cpu) = (Duration::from_millis(numbers[0]), Duration::from_millis(numbers[4]));
    Took { time, peak: numbers[1], cpu, shut_out }
}

#[test]
fn one_that_is_started() {
    let Some(root) = std::env::var_os(ROOT) else { return };
    let store = Store::open_with(root, Some(Backing::Links)).unwrap();
    let began = Instant::now();
    let report = store.gc(&BTreeSet::new(), false).unwrap();
    let took = began.elapsed().as_millis();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak = peak.trim().trim_end_matches(" kB");
    // User and system time stand behind the name, in hundredths of a second.
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let cpu: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap() * 10).sum();
    let said = format!("{took} {peak} {} {} {cpu}", report.objects, report.kept_objects);
    fs::write(store.root().with_extension("took"), said).unwrap();
}

#[test]
fn memory_does_not_grow_with_the_store_and_bakes_wait_for_a_batch_only() {
    let many = if std::env::var_os("KILN_SOAK").is_some() { 100_000 } else { 20_000 };
    let (few, many) = (collected(4_000, 20), collected(many, 200));
    eprintln!("of 4,000 objects {few:?}; of more {many:?}");
    eprintln!("processors were at it for {:?} and {:?}", few.cpu, many.cpu);
    // Of 200,000 digests that are kept, the digests alone would be 6,400 KiB.
    assert!(many.peak < few.peak + 2048, "{few:?} {many:?}");
    // One batch is 500 of them: what a bake waits for is less than all of it.
    assert!(many.shut_out < many.time * 3 / 4, "{many:?}");
}
