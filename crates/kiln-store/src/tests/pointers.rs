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
