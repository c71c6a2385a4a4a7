//! Ways out of a sandbox, tried from inside: what others' runtimes were found to let through, from
//! every door through which a stranger's program or file comes in.
//!
//! `cases.rs` lists them with where they come from. Most are words of `probe.c`, one program that
//! tries everything a plain program can; the others are images that are traps in themselves
//! (`images.rs`), data that is (`volumes.rs`), and races (`races.rs`).

#[path = "../common/mod.rs"]
mod common;

mod cases;
mod images;
mod races;
mod volumes;
mod ways;

use std::collections::BTreeSet;

use cases::{CASES, Class, Entry};

#[test]
fn every_case_has_a_name_and_a_source() {
    let names: BTreeSet<&str> = CASES.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), CASES.len(), "a name is there twice");
    assert!(CASES.iter().all(|case| !case.report.is_empty() && !case.entries.is_empty()));
    let reported = CASES.iter().filter(|case| case.report.contains("CVE-"));
    assert!(reported.count() >= 40, "the known ones are cases");
}

#[test]
fn every_class_is_tried_and_every_entry() {
    let classes: BTreeSet<Class> = CASES.iter().map(|case| case.class).collect();
    assert_eq!(classes.len(), 11, "{classes:?}");
    for entry in [Entry::Start, Entry::Exec, Entry::Check, Entry::Run, Entry::Import, Entry::Fill] {
        let of_it = CASES.iter().filter(|case| case.entries.contains(&entry));
        assert!(of_it.count() >= 2, "{entry:?}");
    }
}
