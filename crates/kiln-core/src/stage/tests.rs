//! All moves, legal and illegal, as a table; and a play of random moves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use super::*;
use crate::image::ImageId;
use crate::release::{ReleasedService, Settings};

#[derive(Debug, Clone, PartialEq)]
struct Thing {
    id: String,
    service: String,
    born: Digest,
    life: Life,
}

impl Member for Thing {
    fn id(&self) -> &str {
        &self.id
    }
    fn service(&self) -> &str {
        &self.service
    }
    fn born(&self) -> Digest {
        self.born
    }
    fn life(&self) -> &Life {
        &self.life
    }
    fn set_life(&mut self, life: Life) {
        self.life = life;
    }
}

fn release(version: u8) -> (Digest, Arc<Release>) {
    let image = ImageId { tree: Digest::of([version]), config: Digest::of("c") };
    let mut release = Release { project: "p".into(), ..Release::default() };
    for service in ["a", "b"] {
        let settings = Settings { argv: vec!["x".into()], ..Settings::default() };
        release.services.insert(service.into(), ReleasedService { image, settings });
    }
    (release.digest(), Arc::new(release))
}

fn digest(version: u8) -> Digest {
    release(version).0
}

/// A stage, with what a host would hand out.
struct World {
    stage: Stage<Thing>,
    count: u32,
}

impl World {
    fn new() -> Self {
        Self { stage: Stage::new(Pointer::default()), count: 0 }
    }

    fn name(&mut self) -> u32 {
        self.count += 1;
        self.count
    }

    fn open(&mut self, version: u8, shared: &BTreeMap<String, String>) -> Result<(), Illegal> {
        let (digest, release) = release(version);
        let addresses: BTreeMap<String, Ipv4Addr> =
            ["a", "b"].map(|name| (name.to_owned(), Ipv4Addr::from(self.name()))).into();
        self.stage.open(digest, &release, addresses, shared).map(drop)
    }

    fn join(&mut self, version: u8, service: &str) -> Result<(), Illegal> {
        let thing = self.thing(version, service);
        self.stage.join(thing)
    }

    fn thing(&mut self, version: u8, service: &str) -> Thing {
        let id = format!("{service}{}", self.name());
        Thing { id, service: service.into(), born: digest(version), life: Life::Ready }
    }

    fn to(&self, version: u8, cause: Cause) -> Pointer {
        self.stage.pointer.moved(digest(version), cause)
    }

    /// Brings version `version` in without a hitch.
    fn deliver(&mut self, version: u8) {
        self.stage.begin().unwrap();
        self.open(version, &BTreeMap::new()).unwrap();
        for service in ["a", "b"] {
            self.join(version, service).unwrap();
        }
        self.stage.weigh(vec![Share::all(digest(version))]).unwrap();
        let pointer = self.to(version, Cause::Entered(Policy::default()));
        self.stage.record(pointer).unwrap();
        self.stage.end().unwrap();
        for id in self.stage.retire() {
            self.stage.forget(&id);
        }
        self.stage.forget_slots();
        self.stage.check().unwrap();
    }

    fn roles(&self) -> Vec<Role> {
        self.stage.slots.iter().map(|slot| self.stage.role(&slot.release)).collect()
    }
}

/// Puts a stage in which version 1 serves into `phase`; 2 is then its candidate.
fn in_phase(phase: &str) -> World {
    let mut world = World::new();
    world.deliver(1);
    let upto = ["at rest", "begun", "trying", "switched"].iter().position(|name| *name == phase);
    let upto = upto.unwrap();
    if upto >= 1 {
        world.stage.begin().unwrap();
    }
    if upto >= 2 {
        world.open(2, &BTreeMap::new()).unwrap();
        world.join(2, "a").unwrap();
        world.join(2, "b").unwrap();
    }
    if upto >= 3 {
        world.stage.weigh(vec![Share::all(digest(2))]).unwrap();
    }
    assert_eq!(world.stage.phase(), phase);
    world
}

type Move = fn(&mut World) -> Result<(), Illegal>;

#[test]
fn each_move_is_legal_in_its_phases_and_nowhere_else() {
    let moves: [(&str, Move, &str); 11] = [
        ("begin", |w| w.stage.begin(), "R..."),
        ("end", |w| w.stage.end(), "RB.."),
        ("open", |w| w.open(3, &BTreeMap::new()), ".B.."),
        ("hold", |w| w.stage.hold(), "..T."),
        ("weigh", |w| w.stage.weigh(vec![Share::all(digest(2))]), "..TS"),
        ("weigh back", |w| w.stage.weigh(vec![Share::all(digest(1))]), "..TS"),
        ("take back", |w| w.stage.take_back(false), "...S"),
        ("close", |w| w.stage.close(), "..T."),
        ("resume", |w| w.stage.resume(), ".B.."),
        ("down", |w| w.stage.down().map(drop), ".B.."),
        (
            "record",
            |w| {
                let pointer = w.to(2, Cause::Entered(Policy::default()));
                w.stage.record(pointer)
            },
            "...S",
        ),
    ];
    for (name, make, legal) in moves {
        for (nth, phase) in ["at rest", "begun", "trying", "switched"].into_iter().enumerate() {
            let mut world = in_phase(phase);
            let before = format!("{:?}", world.stage);
            let made = make(&mut world);
            let expected = legal.as_bytes()[nth] != b'.';
            assert_eq!(made.is_ok(), expected, "{name} of a stage that is {phase}: {made:?}");
            if !expected {
                assert_eq!(format!("{:?}", world.stage), before, "{name} changed something");
            }
            world.stage.check().unwrap_or_else(|rule| panic!("{name}, {phase}: {rule}"));
        }
    }
}

#[test]
fn traffic_is_shared_out_between_those_who_take_part() {
    let share = |version: u8, percent| Share { release: digest(version), percent };
    for (shares, legal) in [
        (vec![share(1, 90), share(2, 10)], true),
        (vec![share(2, 100)], true),
        (vec![share(1, 90), share(2, 11)], false),
        (vec![share(1, 100), share(2, 0)], false),
        (vec![share(2, 50), share(2, 50)], false),
        (vec![share(3, 100)], false),
        (vec![], false),
    ] {
        let mut world = in_phase("trying");
        let made = world.stage.weigh(shares.clone());
        assert_eq!(made.is_ok(), legal, "{shares:?}: {made:?}");
        world.stage.check().unwrap();
        if shares.len() == 2 && legal {
            assert_eq!(world.roles(), [Role::Active, Role::Active]);
            let pointer = world.to(2, Cause::Entered(Policy::default()));
            assert_eq!(world.stage.record(pointer), Err(Illegal::Pointer), "not all of it");
        }
    }
}

#[test]
fn roles_follow_from_traffic_and_pointer() {
    let mut world = in_phase("trying");
    assert_eq!(world.roles(), [Role::Active, Role::Candidate]);
    world.stage.hold().unwrap();
    world.stage.weigh(vec![Share::all(digest(2))]).unwrap();
    assert!(!world.stage.is_held());
    assert_eq!(world.roles(), [Role::Standby, Role::Active]);
    world.stage.take_back(true).unwrap();
    assert!(world.stage.is_held());
    assert_eq!(world.roles(), [Role::Active, Role::Candidate]);
    let mut started = world.stage.leftovers();
    started.sort();
    assert_eq!(started.len(), 2);
    for id in started {
        world.stage.forget(&id);
    }
    world.stage.close().unwrap();
    world.stage.end().unwrap();
    assert!(!world.stage.is_held());
    assert_eq!(world.roles(), [Role::Active, Role::Names]);
    assert_eq!(world.stage.forget_slots().len(), 2, "its addresses come back");
    assert!(world.stage.serves(&digest(1)));
}

#[test]
fn going_back_takes_up_the_slot_that_is_kept_warm() {
    let mut world = World::new();
    world.deliver(1);
    world.deliver(2);
    let kept = world.stage.member(&digest(1), "a").unwrap().id.clone();
    world.stage.begin().unwrap();
    let shared = BTreeMap::from([("a".to_owned(), kept.clone())]);
    world.open(1, &shared).unwrap();
    world.join(1, "b").unwrap();
    assert_eq!(world.stage.slot(&digest(1)).unwrap().of("b").len(), 1, "in the old one's place");
    // It does not come to that, and all is as before.
    let before = world.stage.leftovers();
    assert_eq!(before.len(), 1);
    world.stage.forget(&before[0]);
    world.stage.close().unwrap();
    world.stage.end().unwrap();
    assert_eq!(world.roles(), [Role::Standby, Role::Active]);
    assert!(world.stage.slot(&digest(1)).unwrap().has("a", &kept));
    assert_eq!(world.stage.slot(&digest(1)).unwrap().of("b").len(), 1);
    world.stage.check().unwrap();
}

#[test]
fn who_took_whose_place_is_known_as_long_as_a_delivery_goes_on() {
    let mut world = in_phase("begun");
    let old = world.stage.member(&digest(1), "a").unwrap().id.clone();
    let fresh = world.thing(1, "a");
    let next = world.thing(1, "a");
    let (first, second) = (fresh.id.clone(), next.id.clone());
    assert!(world.stage.inherit(&old, fresh));
    world.stage.forget(&old);
    assert!(world.stage.inherit(&first, next));
    world.stage.forget(&first);
    assert_eq!(world.stage.current(&old), second);
    world.open(2, &BTreeMap::from([("a".to_owned(), old.clone())])).unwrap();
    assert!(world.stage.slot(&digest(2)).unwrap().has("a", &second));
    assert!(world.stage.leftovers().is_empty(), "a fresh one is none of the candidate's");
    // One that is being stopped has no heir.
    world.stage.stopping(std::slice::from_ref(&second));
    let late = world.thing(1, "a");
    assert!(!world.stage.inherit(&second, late));
    world.stage.check().unwrap();
}

#[test]
fn after_a_restart_the_pointer_says_what_serves() {
    let mut world = in_phase("switched");
    let slots = |stage: &Stage<Thing>| -> Vec<(Slot, Option<Arc<Release>>)> {
        let with = |slot: &Slot| (slot.clone(), stage.releases.get(&slot.release).cloned());
        stage.slots.iter().map(with).collect()
    };
    let mut again = Stage::new(world.stage.pointer.clone());
    let things: Vec<Thing> = world.stage.instances.values().cloned().collect();
    again.found(slots(&world.stage), things.clone(), &BTreeMap::new());
    again.check().unwrap();
    assert!(again.serves(&digest(1)), "a switch that was not recorded has never happened");
    assert_eq!(again.unneeded().len(), 2);
    // A pointer that cannot be believed stops nothing of what ran.
    let mut doubted = Stage::new(Pointer::default());
    let roles = BTreeMap::from([(digest(1), Role::Standby), (digest(2), Role::Active)]);
    doubted.found(slots(&world.stage), things, &roles);
    doubted.check().unwrap();
    assert!(doubted.unneeded().is_empty());
    assert_eq!(doubted.role(&digest(2)), Role::Active);
    // After a reboot nothing is there.
    world.stage = Stage::new(again.pointer.clone());
    world.stage.check().unwrap();
    assert_eq!(world.stage.missing(), None);
    world.deliver(1);
}

#[test]
fn going_down_is_whole_or_undone() {
    let mut world = in_phase("begun");
    assert!(world.stage.stay().is_err());
    assert_eq!(world.stage.down().unwrap().len(), 2);
    assert_eq!(world.roles(), [Role::Names]);
    assert!(world.stage.down().is_err() && world.open(2, &BTreeMap::new()).is_err());
    world.stage.stay().unwrap();
    assert_eq!(world.roles(), [Role::Active]);
    // Whoever dies of it without a word has not done it.
    world.stage.down().unwrap();
    world.stage.end().unwrap();
    assert!(world.stage.serves(&digest(1)));
    world.stage.begin().unwrap();
    world.stage.down().unwrap();
    let pointer = world.stage.pointer.down();
    world.stage.record(pointer).unwrap();
    assert!(world.stage.stay().is_err(), "it is recorded");
    world.stage.end().unwrap();
    assert_eq!(world.roles(), [Role::Names]);
}

#[test]
fn what_is_found_by_itself_gets_the_place_that_is_free() {
    let mut world = World::new();
    world.deliver(1);
    let pointer = world.stage.pointer.clone();
    let (first, second) = (world.thing(1, "a"), world.thing(1, "a"));
    let mut again = Stage::new(pointer);
    let (digest, release) = release(1);
    again.found_slot(digest, Arc::clone(&release), BTreeMap::new());
    again.found_slot(digest, release, BTreeMap::from([("a".into(), Ipv4Addr::from(1))]));
    assert!(again.serves(&digest));
    assert!(again.adopt(first, &[digest]));
    assert!(!again.adopt(second.clone(), &[digest]), "it is taken");
    assert_eq!(again.instances[&second.id].life, Life::Stopping);
    again.check().unwrap();
}

#[test]
fn only_what_fits_joins() {
    let mut world = in_phase("trying");
    let there = world.stage.member(&digest(2), "a").unwrap().clone();
    let join = |world: &mut World, change: fn(&mut Thing)| {
        let mut thing = world.thing(2, "a");
        change(&mut thing);
        world.stage.join(thing)
    };
    assert_eq!(
        world.stage.join(there.clone()).unwrap_err().to_string(),
        format!("{} cannot join: it is there already", there.id)
    );
    assert!(matches!(join(&mut world, |t| t.service = "z".into()), Err(Illegal::Join { .. })));
    assert!(matches!(join(&mut world, |t| t.born = Digest::of("x")), Err(Illegal::NoSlot(_))));
    join(&mut world, |_| {}).unwrap();
    assert_eq!(
        world.stage.slot(&digest(2)).unwrap().of("a").len(),
        2,
        "a service may have several"
    );
    assert!(world.stage.turn("nobody", Life::Ready).is_ok());
    world.stage.stopping(std::slice::from_ref(&there.id));
    assert!(world.stage.turn(&there.id, Life::Ready).is_err());
}

/// Random moves, legal or not, by many seeds. Whatever is tried, what must hold holds; nothing is
/// at rest that is not where the pointer says; and the way back always leads home.
#[test]
fn no_play_of_moves_leads_astray() {
    let mut reached: BTreeSet<(&str, usize, bool)> = BTreeSet::new();
    for seed in 0..400_u64 {
        let mut dice = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut roll = |sides: u64| {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            dice % sides
        };
        let mut world = World::new();
        for step in 0..120 {
            let version = u8::try_from(roll(4)).unwrap();
            let service = if roll(2) == 0 { "a" } else { "b" };
            let ids: Vec<String> = world.stage.instances.keys().cloned().collect();
            let any = |n: u64| ids.get(usize::try_from(n).unwrap() % ids.len().max(1)).cloned();
            let id = any(roll(50)).unwrap_or_default();
            let _ = match roll(18) {
                0 | 1 => world.stage.begin(),
                2 => world.stage.end(),
                3 => world.open(version, &BTreeMap::new()),
                4 => world.open(version, &BTreeMap::from([(service.to_owned(), id)])),
                5..=7 => world.join(version, service),
                8 => world.stage.hold(),
                9 => world.stage.weigh(vec![Share::all(digest(version))]),
                10 => {
                    let other = Share { release: digest(version), percent: 40 };
                    let most = world.stage.traffic.first().copied();
                    let most = most.map(|share| Share { percent: 60, ..share });
                    world.stage.weigh(most.into_iter().chain([other]).collect())
                }
                11 => world.stage.take_back(roll(2) == 0),
                12 => world.stage.close(),
                13 => {
                    let cause = match roll(3) {
                        0 => Cause::RolledBack,
                        1 => Cause::Restored,
                        _ => Cause::Entered(Policy { keep: Some(2), drain: None }),
                    };
                    let pointer = match roll(4) {
                        0 => world.stage.pointer.down(),
                        _ => world.to(version, cause),
                    };
                    world.stage.record(pointer)
                }
                14 if roll(2) == 0 => match roll(3) {
                    0 => world.stage.stay_down(),
                    _ => world.stage.stay(),
                },
                14 => world.stage.down().map(drop),
                15 => {
                    let fresh = world.thing(version, service);
                    let same =
                        world.stage.instances.get(&id).is_some_and(|old| {
                            old.service == fresh.service && old.born == fresh.born
                        });
                    if same {
                        world.stage.inherit(&id, fresh);
                        world.stage.forget(&id);
                    }
                    Ok(())
                }
                16 => {
                    world.stage.forget(&id);
                    Ok(())
                }
                _ => {
                    for id in world.stage.retire() {
                        world.stage.forget(&id);
                    }
                    world.stage.forget_slots();
                    Ok(())
                }
            };
            world.stage.check().unwrap_or_else(|rule| {
                panic!("seed {seed}, step {step}: {rule}: {:#?}", world.stage)
            });
            let (phase, shares) = (world.stage.phase(), world.stage.traffic.len());
            reached.insert((phase, shares, world.stage.is_held()));
            assert!(
                world
                    .stage
                    .slots
                    .iter()
                    .filter(|slot| { world.stage.role(&slot.release) == Role::Active })
                    .count()
                    <= 2,
                "no more than a delivery has releases"
            );
        }
        // Home, from wherever it is.
        if world.stage.is_switched() {
            world.stage.take_back(true).unwrap();
        }
        if world.stage.is_trying() {
            for id in world.stage.leftovers() {
                world.stage.forget(&id);
            }
            world.stage.close().unwrap();
        }
        world.stage.end().unwrap();
        world.stage.check().unwrap();
        assert!(world.stage.traffic.len() <= 1);
    }
    for phase in ["at rest", "begun", "trying", "switched"] {
        assert!(reached.iter().any(|(name, ..)| *name == phase), "{phase} was never reached");
    }
    assert!(reached.iter().any(|(_, shares, _)| *shares == 2), "traffic was never shared");
    assert!(reached.iter().any(|(.., held)| *held), "nobody ever waited");
}
