//! Remains of shims that were killed.

use std::collections::BTreeSet;

use kiln_run::{End, Known};

use crate::kit::{Kit, shim_of, until};

#[test]
fn remains_are_swept_and_the_living_are_not() {
    let kit = Kit::new();
    let lives = kit.spec("echo ready; sleep 100");
    let running = kit.start_ready(&lives);
    let mut spec = kit.spec("echo ready; sleep 100");
    spec.sandbox.limits.pids = Some(50);
    let killed = kit.start_ready(&spec);
    let shim = shim_of(killed.pid());
    rustix::process::kill_process(shim, rustix::process::Signal::KILL).unwrap();
    until("it is lost", || killed.status() == Known::Ended(End::Lost));
    assert!(kit.groups().iter().any(|path| path.ends_with(&spec.id)), "{:?}", kit.groups());
    let known = BTreeSet::from([spec.id.clone()]);
    let swept = kit.runtime.sweep(&known).unwrap();
    assert_eq!(swept, known, "its group goes");
    assert!(spec.dir.exists(), "its folder is known and stays");
    assert!(!kit.groups().iter().any(|path| path.ends_with(&spec.id)), "{:?}", kit.groups());
    kit.runtime.sweep(&BTreeSet::new()).unwrap();
    assert!(!spec.dir.exists());
    assert!(running.is_alive(), "what lives is no remains");
    assert!(kit.runtime.remove(&lives.id).is_err());
    running.kill();
    kit.runtime.remove(&lives.id).unwrap();
    kit.assert_clean();
}
