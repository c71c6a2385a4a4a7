//! Shims that cannot be asked: nothing is believed of their instances, and nothing is done to them,
//! but what somebody orders by name.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use kiln_run::{End, InstanceSpec, Known, RunError, Running};
use rustix::process::{Signal, kill_process};

use crate::kit::{Kit, shim_of, until};

/// Neither swept nor removed, and its program goes on.
fn assert_left_alone(kit: &Kit, spec: &InstanceSpec, running: &Running) {
    let Known::Unknown(why) = running.status() else { panic!("{:?}", running.status()) };
    assert!(!why.is_empty());
    assert!(kit.runtime.sweep(&BTreeSet::new()).unwrap().is_empty());
    assert!(matches!(kit.runtime.remove(&spec.id), Err(RunError::Unknown { .. })));
    assert!(matches!(running.signal(0), Err(RunError::Unknown { .. })));
    assert!(matches!(kit.attach(spec).known, Known::Unknown(_)));
    assert!(std::path::Path::new(&format!("/proc/{}", running.pid())).exists());
}

#[test]
fn a_stopped_shim_says_nothing_of_its_instance() {
    let kit = Kit::new();
    let spec = kit.spec("trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done");
    let running = kit.start_ready(&spec);
    let shim = shim_of(running.pid());
    kill_process(shim, Signal::STOP).unwrap();
    assert_left_alone(&kit, &spec, &running);
    kill_process(shim, Signal::CONT).unwrap();
    until("it is known again", || matches!(running.status(), Known::Runs(_)));
    // Who is told to stop it does so, with its grace, and leaves no shim behind.
    kill_process(shim, Signal::STOP).unwrap();
    assert_eq!(running.stop(15, Duration::from_secs(20)), Known::Ended(End::Lost));
    kit.assert_clean();
}

#[test]
fn many_stopped_shims_are_waited_for_together() {
    let kit = Kit::new();
    let specs: Vec<_> = (0..12).map(|_| kit.spec("echo ready; sleep 1000")).collect();
    let all: Vec<_> = specs.iter().map(|spec| kit.start_ready(spec)).collect();
    all.iter().for_each(|one| kill_process(shim_of(one.pid()), Signal::STOP).unwrap());
    let ids: Vec<_> = specs.iter().map(|spec| spec.id.clone()).collect();
    let limit = Duration::from_secs(1);
    let begun = Instant::now();
    let found = kit.runtime.attach_all(&ids, limit);
    assert!(begun.elapsed() < limit * 6, "{:?}", begun.elapsed());
    assert!(found.iter().all(|one| matches!(one.known, Known::Unknown(_))), "{found:?}");
    assert!(found.iter().zip(&all).all(|(one, old)| one.running.pid() == old.pid()));
    all.iter().for_each(|one| kill_process(shim_of(one.pid()), Signal::CONT).unwrap());
    all.iter().for_each(|one| assert!(matches!(one.kill(), Known::Ended(End::Exited(_)))));
    kit.assert_clean();
}

#[test]
fn a_missing_socket_is_not_a_missing_program() {
    let kit = Kit::new();
    let spec = kit.spec("echo ready; sleep 1000");
    let running = kit.start_ready(&spec);
    std::fs::remove_file(spec.dir.join("shim.sock")).unwrap();
    assert_left_alone(&kit, &spec, &running);
    // Nor is a missing folder.
    let aside = spec.dir.with_extension("aside");
    std::fs::rename(&spec.dir, &aside).unwrap();
    assert!(matches!(running.status(), Known::Unknown(_)));
    std::fs::rename(&aside, &spec.dir).unwrap();
    assert!(matches!(running.kill(), Known::Ended(_)));
    kit.assert_clean();
}

#[test]
fn a_garbled_answer_is_none() {
    let kit = Kit::new();
    let spec = kit.spec("echo ready; sleep 1000");
    let running = kit.start_ready(&spec);
    let socket = spec.dir.join("shim.sock");
    let aside = spec.dir.join("aside.sock");
    std::fs::rename(&socket, &aside).unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    let answering = std::thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(mut client) = client else { return };
            let mut request = [0; 512];
            let length = client.read(&mut request).unwrap_or(0);
            if request[..length].starts_with(b"end") {
                return;
            }
            let _ = client.write_all(b"{\"running\":{\"pid\":\n");
        }
    });
    assert_left_alone(&kit, &spec, &running);
    let mut last = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    last.write_all(b"end\n").unwrap();
    answering.join().unwrap();
    std::fs::rename(&aside, &socket).unwrap();
    assert!(matches!(running.status(), Known::Runs(_)));
    assert!(matches!(running.kill(), Known::Ended(End::Exited(_))));
    kit.assert_clean();
}
