//! Stages side by side, and steps that several builds share.

use std::collections::BTreeMap;

use super::fake::{Kitchen, os};
use crate::BakeError;
use crate::BuildOptions;
use crate::bake::{Baker, BuildRequest, Progress};

/// Both steps wait for one another: one after the other they would never end well.
const TWO: &str = "FROM os AS one\nRUN <<E\nmeet 2\nwrite a 1\nE\n\
    FROM os AS two\nRUN <<E\nmeet 2\nwrite b 2\nE\n\
    FROM scratch\nCOPY --from=two b .\nCOPY --from=one a .";

#[test]
fn independent_steps_run_at_once() {
    let kitchen = Kitchen::new();
    let tree = kitchen.tree(TWO);
    assert_eq!(
        (kitchen.content(&tree, "a"), kitchen.content(&tree, "b")),
        ("1".into(), "2".into())
    );
    assert_eq!(kitchen.ran(), 2);
}

#[test]
fn numbers_do_not_depend_on_who_is_first() {
    let kitchen = Kitchen::new();
    kitchen.bake(TWO).unwrap();
    let mut steps: Vec<(usize, usize, usize, String)> = Vec::new();
    for event in kitchen.progress.lock().unwrap().iter() {
        if let Progress::Step { stage, number, total, text, .. } = event {
            steps.push((*number, *total, *stage, text.split(' ').next().unwrap().to_owned()));
        }
    }
    steps.sort();
    let expected = [
        (1, 7, 0, "FROM"),
        (2, 7, 0, "RUN"),
        (3, 7, 1, "FROM"),
        (4, 7, 1, "RUN"),
        (5, 7, 2, "FROM"),
        (6, 7, 2, "COPY"),
        (7, 7, 2, "COPY"),
    ];
    assert_eq!(steps, expected.map(|(a, b, c, text)| (a, b, c, text.to_owned())));
}

#[test]
fn a_stage_that_fails_ends_the_others_and_is_named() {
    let kitchen = Kitchen::new();
    let error = kitchen.error(
        "FROM os AS one\nRUN <<E\nmeet 2\nlinger\nE\n\
         FROM os AS two\nRUN <<E\nmeet 2\nexit 3\nE\n\
         FROM one\nCOPY --from=two / /two\nRUN write never 1",
    );
    let BakeError::Step(failed) = error else { panic!("{error}") };
    assert_eq!((failed.number, failed.total), (4, 7));
    assert_eq!(kitchen.ran(), 2, "nothing was begun any more");
}

#[test]
fn builds_that_share_a_step_run_it_once() {
    let kitchen = Kitchen::new();
    let bake = |name: &str| {
        let bases = |_: &str| Some(Ok(os(&kitchen.store)));
        let progress = |event| {
            if let Progress::Step { number: 2, .. } = event {
                kitchen.fake.come();
            }
        };
        let baker = Baker {
            store: &kitchen.store,
            runner: &kitchen.fake,
            progress: &progress,
            cancel: &kitchen.cancel,
            record: None,
            remotes: None,
        };
        // The step goes on only when the other build has come to it too.
        let text = format!("FROM os AS shared\nRUN await 2\nFROM shared\nLABEL of={name}");
        let request = BuildRequest {
            name: name.to_owned(),
            context: kitchen.context(),
            dockerfile: "Dockerfile".into(),
            inline: Some(text),
            args: BTreeMap::new(),
            target: None,
            images: Default::default(),
            contexts: BTreeMap::new(),
            bases: &bases,
            options: BuildOptions::default(),
        };
        baker.bake(&request).unwrap()
    };
    let (one, two) = std::thread::scope(|scope| {
        let one = scope.spawn(|| bake("one"));
        let two = scope.spawn(|| bake("two"));
        (one.join().unwrap(), two.join().unwrap())
    });
    assert_eq!(one.image.tree, two.image.tree);
    assert_ne!(one.image.config, two.image.config);
    assert_eq!(kitchen.ran(), 1);
    assert_eq!(one.cached + two.cached, 7, "one of both found the step");
}

#[test]
fn whoever_waits_for_a_shared_step_can_give_up() {
    let kitchen = Kitchen::new();
    let key = kiln_core::Digest::of("key");
    let turn = kitchen.store.step_turn(&key, &|| false).unwrap();
    assert!(kitchen.store.step_turn(&key, &|| true).is_none());
    drop(turn);
    assert!(kitchen.store.step_turn(&key, &|| true).is_some());
}
