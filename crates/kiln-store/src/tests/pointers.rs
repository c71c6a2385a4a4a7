use std::collections::BTreeSet;
use std::fs;
use std::thread;

use kiln_core::Digest;

use super::store;
use crate::ledger::{Filter, Record};
use crate::{Backing, Error, Pointer, Store};

fn to(release: &str) -> Pointer {
    Pointer { active: Some(Digest::of(release)), ..Pointer::default() }
}

fn outcome(text: &str) -> Record {
    Record {
        time: 1234,
        kind: "outcome".into(),
        project: Some("shop".into()),
        stage: Some("dev".into()),
        data: text.into(),
    }
}

#[test]
fn a_move_is_recorded_and_written() {
    let (_dir, store) = store(Backing::Links);
    assert_eq!(store.pointer("shop", "dev").unwrap(), None);
    let mut pointer = to("one");
    pointer.quarantined.insert(Digest::of("bad"));
    pointer.generation = 77;
    let moved = store.move_pointer("shop", "dev", &pointer, &[outcome("done")], 0).unwrap();
    assert_eq!(moved, Pointer { generation: 1, ..pointer });
    assert_eq!(store.pointer("shop", "dev").unwrap().unwrap(), moved);
    let file = store.root().join("stages/shop/dev.json");
    assert_eq!(serde_json::from_slice::<Pointer>(&fs::read(&file).unwrap()).unwrap(), moved);
    let kinds: Vec<_> = store
        .ledger()
        .read()
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|e| (e.kind, e.time))
        .collect();
    assert_eq!(kinds, [("outcome".into(), 1234), ("pointer".into(), 1234)]);
    store.ledger().verify().unwrap();
}

#[test]
fn stale_writers_are_refused() {
    let (_dir, first) = store(Backing::Links);
    let second = Store::open_with(first.root(), Some(Backing::Links)).unwrap();
    first.move_pointer("shop", "dev", &to("one"), &[], 0).unwrap();
    let error = second.move_pointer("shop", "dev", &to("two"), &[outcome("x")], 0).unwrap_err();
    assert!(matches!(error, Error::Stale { expected: 0, found: 1, .. }), "{error}");
    assert_eq!(second.ledger().last_seq().unwrap(), 1, "nothing of a refused move is recorded");
    second.move_pointer("shop", "dev", &to("two"), &[], 1).unwrap();
    second.move_pointer("shop", "prod", &to("three"), &[], 0).unwrap();
    let all = first.pointers().unwrap();
    assert_eq!(all.len(), 2);
    assert_eq!(all[&("shop".into(), "dev".into())].active, Some(Digest::of("two")));
    assert!(matches!(first.move_pointer("a/b", "dev", &to("x"), &[], 0), Err(Error::Name { .. })));
}

#[test]
fn files_that_lag_behind_are_put_right_at_open() {
    let (_dir, store) = store(Backing::Links);
    store.move_pointer("shop", "dev", &to("one"), &[], 0).unwrap();
    let moved = store.move_pointer("shop", "dev", &to("two"), &[], 1).unwrap();
    let file = store.root().join("stages/shop/dev.json");
    for content in ["", "{\"active\"", "{\"active\":null,\"standby\":null,\"generation\":1}"] {
        fs::write(&file, content).unwrap();
        Store::open_with(store.root(), Some(Backing::Links)).unwrap();
        assert_eq!(serde_json::from_slice::<Pointer>(&fs::read(&file).unwrap()).unwrap(), moved);
    }
    fs::remove_dir_all(store.root().join("stages")).unwrap();
    Store::open_with(store.root(), Some(Backing::Links)).unwrap();
    assert_eq!(serde_json::from_slice::<Pointer>(&fs::read(&file).unwrap()).unwrap(), moved);
}

#[test]
fn of_many_who_move_at_once_one_wins_each_generation() {
    let (_dir, store) = store(Backing::Links);
    thread::scope(|scope| {
        for nth in 0..4 {
            let store = &store;
            scope.spawn(move || {
                let mut won = 0;
                while won < 5 {
                    let at = store.pointer("shop", "dev").unwrap().map_or(0, |at| at.generation);
                    match store.move_pointer("shop", "dev", &to(&nth.to_string()), &[], at) {
                        Ok(moved) => {
                            assert_eq!(moved.generation, at + 1);
                            won += 1;
                        }
                        Err(Error::Stale { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    });
    assert_eq!(store.pointer("shop", "dev").unwrap().unwrap().generation, 20);
    let wanted = Filter { kinds: vec!["pointer".into()], ..Filter::default() };
    let generations: BTreeSet<u64> = store
        .ledger()
        .select(wanted)
        .unwrap()
        .map(|entry| entry.unwrap().data["generation"].as_u64().unwrap())
        .collect();
    assert_eq!(generations, (1..=20).collect());
}

#[test]
fn a_copy_that_knows_more_than_the_ledger_stops_moves_and_is_believed_for_what_runs() {
    let (_dir, store) = store(Backing::Links);
    store.move_pointer("shop", "dev", &to("one"), &[], 0).unwrap();
    let moved = store.move_pointer("shop", "dev", &to("two"), &[outcome("done")], 1).unwrap();
    let log = store.ledger().path().to_owned();
    let text = fs::read_to_string(&log).unwrap();
    let hex = Digest::of("two").hex();
    let flipped = hex.replace(&hex[..2], if &hex[..2] == "00" { "01" } else { "00" });
    let first = text.find('\n').unwrap() + 1;
    let last = text.trim_end().rfind('\n').unwrap() + 1;
    for (what, damaged) in [
        ("another digest in the last line", text.replace(&hex, &flipped)),
        ("no entry in the last line", format!("{}?{}", &text[..last], &text[last + 1..])),
        ("the last move is gone", text[..first].to_owned()),
        ("all is gone", String::new()),
    ] {
        // Also without the place that is kept beside the log.
        for head in [true, false] {
            fs::write(&log, &damaged).unwrap();
            let kept = fs::read(store.root().join("ledger/head")).unwrap();
            if !head {
                fs::write(store.root().join("ledger/head"), "").unwrap();
            }
            let opened = Store::open_with(store.root(), Some(Backing::Links)).unwrap();
            assert_eq!(opened.pointer("shop", "dev").unwrap().unwrap(), moved, "{what}");
            let error = opened.move_pointer("shop", "dev", &to("three"), &[], 2).unwrap_err();
            assert!(matches!(error, Error::Held { .. }), "{what}: {error}");
            assert!(
                matches!(opened.gc(&BTreeSet::new(), false), Err(Error::Held { .. })),
                "{what}"
            );
            assert_eq!(fs::read_to_string(&log).unwrap(), damaged, "{what}: evidence stays");
            fs::write(store.root().join("ledger/head"), kept).unwrap();
        }
    }
    let opened = Store::open_with(store.root(), Some(Backing::Links)).unwrap();
    opened.ledger().mend().unwrap();
    for store in [&opened, &Store::open_with(store.root(), Some(Backing::Links)).unwrap()] {
        let now = store.pointer("shop", "dev").unwrap().unwrap();
        assert_eq!(now, Pointer { generation: 3, ..moved.clone() }, "what served goes on serving");
        store.ledger_is_whole().unwrap();
    }
    opened.move_pointer("shop", "dev", &to("three"), &[], 3).unwrap();
}

#[test]
fn a_damaged_copy_is_put_right_and_never_believed() {
    let (_dir, store) = store(Backing::Links);
    let moved = store.move_pointer("shop", "dev", &to("one"), &[], 0).unwrap();
    let file = store.root().join("stages/shop/dev.json");
    let text = fs::read_to_string(&file).unwrap();
    for at in 0..text.len() {
        let mut bytes = text.clone().into_bytes();
        bytes[at] ^= 1;
        fs::write(&file, bytes).unwrap();
        let opened = Store::open_with(store.root(), Some(Backing::Links)).unwrap();
        assert_eq!(opened.pointer("shop", "dev").unwrap().unwrap(), moved, "byte {at}");
        let held = opened.ledger().faults().unwrap();
        assert_eq!(held, [], "byte {at}");
        let now = fs::read_to_string(&file).unwrap();
        assert_eq!(serde_json::from_str::<Pointer>(&now).unwrap(), moved, "byte {at}");
    }
}
