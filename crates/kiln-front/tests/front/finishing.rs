//! Workers that were replaced: what they still have is held, drained, counted and ended like what
//! the new one has.

use std::time::Duration;

use kiln_front::{App, Drain, DrainPolicy, FrontClient, Route};

use crate::backend::Backend;
use crate::client::Client;
use crate::process::{kill, lives};
use crate::root::{Root, route, wait_for};

const UPGRADE: &str =
    "GET /upgrade HTTP/1.1\r\nHost: t\r\nConnection: upgrade\r\nUpgrade: lines\r\n\r\n";

fn at(slot: &str, backend: &Backend, drain_ms: u64) -> Vec<Route> {
    let route = route("web", App::Auto, backend.addr);
    vec![Route { slot: slot.into(), drain_ms: Some(drain_ms), ..route }]
}

/// Has a new worker take over, and gives the process id of the old one.
fn upgrade(root: &mut Root) -> u32 {
    let pid = root.front.ping().unwrap().pid;
    root.front.upgrade(Duration::from_secs(600)).unwrap();
    wait_for("the new worker", || {
        let ping = FrontClient::connect(&root.path()).and_then(|mut front| front.ping());
        ping.is_ok_and(|pong| pong.pid != pid)
    });
    root.front = root.connect();
    pid
}

/// An upgraded connection through the worker in force.
fn pinned(addr: std::net::SocketAddr, name: &str) -> Client {
    let mut client = Client::connect(addr);
    client.send(UPGRADE).unwrap();
    client.read_head().unwrap();
    assert_eq!(client.line().unwrap(), format!("{name} hello"));
    client
}

#[test]
fn what_an_old_worker_has_is_counted_and_drained() {
    let (mut root, old, new) = (Root::new(), Backend::start("old"), Backend::start("new"));
    let addr = root.apply(at("one", &old, 600_000))[0];
    // One at each of two workers that were replaced, one at the worker in force.
    let mut clients = vec![pinned(addr, "old")];
    let first = upgrade(&mut root);
    clients.push(pinned(addr, "old"));
    let second = upgrade(&mut root);
    clients.push(pinned(addr, "old"));
    assert_eq!(root.front.behind().unwrap().0, [], "nothing is behind what serves");
    root.apply(at("two", &new, 600_000));
    let (behind, _) = root.front.behind().unwrap();
    assert_eq!(behind.len(), 1, "{behind:?}");
    assert_eq!((behind[0].slot.as_str(), behind[0].connections), ("one", 3));
    assert!(behind[0].cut_in_ms.is_some_and(|left| left > 500_000), "{behind:?}");
    for client in &mut clients {
        client.send("a\n").unwrap();
        assert_eq!(client.line().unwrap(), "old a", "they go on");
    }
    let drain = Drain { slot: Some("one".into()), deadline_ms: 50, ..Drain::default() };
    let patient = Drain { policy: DrainPolicy::UntilClosed, ..drain.clone() };
    assert_eq!(root.front.drain(&patient).unwrap().remaining, 3);
    assert_eq!(root.front.drain(&drain).unwrap().cut_connections, 3);
    assert!(clients.iter_mut().all(Client::is_closed));
    wait_for("the old workers to end", || !lives(first) && !lives(second));
    assert_eq!(root.front.behind().unwrap().0, []);
}

#[test]
fn an_old_worker_keeps_the_clock_of_a_later_switch() {
    let (mut root, old, new) = (Root::new(), Backend::start("old"), Backend::start("new"));
    let addr = root.apply(at("one", &old, 300))[0];
    let mut client = pinned(addr, "old");
    let pid = upgrade(&mut root);
    root.apply(at("two", &new, 300));
    // Nobody asks for it.
    assert!(client.is_closed());
    wait_for("the old worker to end", || !lives(pid));
}

#[test]
fn a_request_that_is_held_at_an_upgrade_is_answered_after_it() {
    let (mut root, old, new) = (Root::new(), Backend::start("old"), Backend::start("new"));
    let addr = root.serve(App::Http, old.addr);
    root.front.hold(&["web".to_owned()], true, Some(120_000)).unwrap();
    let waiting = std::thread::spawn(move || Client::connect(addr).get("/", "1").unwrap());
    wait_for("the request", || root.front.stats().unwrap().routes["web"].requests == 1);
    upgrade(&mut root);
    root.serve(App::Http, new.addr);
    assert_eq!(waiting.join().unwrap().text(), "new 1 0 0");
}

#[test]
fn a_stop_ends_old_workers_too_and_a_killed_one_is_forgotten() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let addr = root.apply(at("one", &backend, 600_000))[0];
    let sockets = |root: &Root| {
        let entries = std::fs::read_dir(root.path().join("front")).unwrap().flatten();
        entries.filter(|it| it.file_name().to_string_lossy().starts_with("finishing-")).count()
    };
    let _one = pinned(addr, "a");
    let killed = upgrade(&mut root);
    let _two = pinned(addr, "a");
    let stopped = upgrade(&mut root);
    assert_eq!(sockets(&root), 2);
    kill(killed);
    wait_for("its socket to be cleared away", || {
        assert_eq!(root.front.behind().unwrap().0, []);
        sockets(&root) == 1
    });
    root.connect().stop(Duration::ZERO).unwrap();
    assert!(!lives(stopped), "it has ended before the stop is answered");
    assert_eq!(sockets(&root), 0);
}

#[test]
fn a_front_that_was_stopped_is_told_from_none_and_can_be_ended() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let addr = root.apply(at("one", &backend, 600_000))[0];
    let _one = pinned(addr, "a");
    let old = upgrade(&mut root);
    let worker = root.front.ping().unwrap().pid;
    for pid in [old, worker] {
        let stop = std::process::Command::new("kill").args(["-STOP", &pid.to_string()]).status();
        assert!(stop.unwrap().success());
    }
    let minder = crate::process::parent(worker);
    let error = kiln_front::ensure_running(&root.path(), crate::root::exe()).unwrap_err();
    assert!(error.is_silence(), "{error}");
    assert!(kiln_front::end(&root.path()).unwrap_err().is_silence());
    wait_for("their end", || ![old, worker, minder].into_iter().any(lives));
    assert!(std::net::TcpListener::bind(addr).is_ok(), "the port is free");
}

#[test]
fn streams_of_events_end_at_once_where_they_would_hold_up_a_pause() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let addr = root.serve(App::Auto, backend.addr);
    let mut events = Client::connect(addr);
    events.send("GET /ticks?100000 HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    events.read_head().unwrap();
    let mut socket = pinned(addr, "a");
    let slow = std::thread::spawn(move || Client::connect(addr).get("/slow?300", "s").unwrap());
    wait_for("all", || root.front.stats().unwrap().routes["web"].active == 3);
    root.front.hold(&["web".to_owned()], true, None).unwrap();
    let drain =
        Drain { policy: DrainPolicy::CutStreams, ..Drain::of([backend.addr], Duration::ZERO) };
    // With time for everything else: the slow request gets its answer, bytes go on until the end.
    let patient = Drain { deadline_ms: 2_000, ..drain };
    let drained = root.front.drain(&patient).unwrap();
    assert_eq!((drained.cut_requests, drained.cut_connections), (0, 1), "{drained:?}");
    assert_eq!(slow.join().unwrap().text(), "a s 0 0");
    while events.chunk().is_ok_and(|chunk| chunk.is_some()) {}
    assert!(events.is_closed() && socket.is_closed());
}
