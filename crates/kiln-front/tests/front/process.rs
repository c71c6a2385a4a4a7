//! The processes: restart, minder, ports, generations.

use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use kiln_front::{
    App, Bind, FrontClient, FrontError, Protocol, Route, Table, ensure_running, renew,
};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::backend::Backend;
use crate::client::Client;
use crate::root::{Root, exe, route, wait_for};

pub(crate) fn kill(pid: u32) {
    let status = Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

/// Whether a process is there, other than as something to be reaped.
pub(crate) fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

pub(crate) fn parent(pid: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
    line.trim().parse().unwrap()
}

#[test]
fn a_killed_worker_serves_again_at_once() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let addr = root.serve(App::Auto, backend.addr);
    assert_eq!(Client::connect(addr).get("/", "1").unwrap().status, 200);
    let pid = root.front.ping().unwrap().pid;
    kill(pid);
    let start = Instant::now();
    // The port is open all the time: the minder holds it, so this waits and is not refused.
    let mut client = Client::connect(addr);
    assert_eq!(client.get("/", "2").unwrap().status, 200);
    assert!(start.elapsed() < Duration::from_secs(10), "took {:?}", start.elapsed());
    wait_for("the control socket", || FrontClient::connect(&root.path()).is_ok());
    root.front = root.connect();
    let pong = root.front.ping().unwrap();
    assert_ne!(pong.pid, pid);
    assert_eq!((pong.generation, pong.minder), (1, true));
    assert_eq!(root.serve(App::Auto, backend.addr), addr, "port 0 keeps its port");
}

#[test]
fn a_killed_minder_is_replaced_without_a_new_worker() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let addr = root.serve(App::Auto, backend.addr);
    let pid = root.front.ping().unwrap().pid;
    let minder = parent(pid);
    kill(minder);
    wait_for("the worker to notice", || !root.front.ping().unwrap().minder);
    assert_eq!(Client::connect(addr).get("/", "1").unwrap().status, 200);
    root.front = ensure_running(&root.path(), exe()).unwrap();
    assert_eq!(root.front.ping().unwrap().pid, pid);
    // The new minder got the sockets as well.
    kill(pid);
    assert_eq!(Client::connect(addr).get("/", "2").unwrap().status, 200);
}

#[test]
fn a_worker_that_was_out_of_descriptors_lets_a_minder_in_later() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let addr = root.serve(App::Auto, backend.addr);
    let pid = root.front.ping().unwrap().pid;
    let worker = Pid::from_raw(pid.cast_signed());
    let limit = |current| {
        let limits = rustix::process::getrlimit(Resource::Nofile);
        let maximum = limits.maximum;
        prlimit(worker, Resource::Nofile, Rlimit { current, maximum }).unwrap()
    };
    let before = limit(Some(3));
    kill(parent(pid));
    wait_for("it to be out of them", || root.log().contains("no minder can be let in"));
    limit(before.current);
    root.front = ensure_running(&root.path(), exe()).unwrap();
    let pong = root.front.ping().unwrap();
    assert_eq!((pong.pid, pong.minder), (pid, true));
    assert_eq!(Client::connect(addr).get("/", "1").unwrap().status, 200);
}

#[test]
fn a_front_that_dies_at_once_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("program");
    std::fs::write(&program, "#!/bin/sh\nexit 9\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
    let begun = Instant::now();
    let error = ensure_running(&dir.path().join("root"), &program).unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    let said = error.to_string();
    assert!(said.contains("has ended with exit status: 9"), "{said}");
    assert!(said.contains("root/front/log"), "{said}");
}

#[test]
fn a_minder_that_was_just_killed_is_not_relied_on() {
    for _ in 0..20 {
        let (mut root, backend) = (Root::new(), Backend::start("a"));
        let addr = root.serve(App::Auto, backend.addr);
        let minder = parent(root.front.ping().unwrap().pid);
        kill(minder);
        wait_for("its end", || !lives(minder));
        // The worker's thread that hears of it may not have run yet: no new worker would come, and
        // this one would have left its ports.
        let refused = root.front.upgrade(Duration::from_secs(10)).unwrap_err();
        assert!(matches!(refused, FrontError::Refused(_)), "{refused}");
        assert_eq!(Client::connect(addr).get("/", "1").unwrap().status, 200);
    }
}

#[test]
fn both_killed_come_back_with_the_same_ports() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let addr = root.serve(App::Auto, backend.addr);
    let pid = root.front.ping().unwrap().pid;
    kill(parent(pid));
    kill(pid);
    wait_for("the port to shut", || TcpStream::connect(addr).is_err());
    root.front = ensure_running(&root.path(), exe()).unwrap();
    assert_eq!(Client::connect(addr).get("/", "1").unwrap().status, 200);
}

#[test]
fn an_upgrade_closes_no_port_and_loses_no_request() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let addr = root.serve(App::Auto, backend.addr);
    let pid = root.front.ping().unwrap().pid;
    let slow = std::thread::spawn(move || Client::connect(addr).get("/slow?300", "s").unwrap());
    wait_for("a request", || root.front.stats().unwrap().routes["web"].active == 1);
    root.front.upgrade(Duration::from_secs(10)).unwrap();
    for at in 0..50 {
        assert_eq!(Client::connect(addr).get("/", &at.to_string()).unwrap().status, 200);
    }
    assert_eq!(slow.join().unwrap().text(), "a s 0 0");
    wait_for("the new worker", || {
        let ping = FrontClient::connect(&root.path()).and_then(|mut front| front.ping());
        ping.is_ok_and(|pong| pong.pid != pid)
    });
    root.front = root.connect();
    assert_eq!(root.serve(App::Auto, backend.addr), addr);
    wait_for("the old worker to leave", || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
        status.is_err() || status.is_ok_and(|text| text.contains("State:\tZ"))
    });
}

#[test]
fn stop_frees_ports_and_ends_both() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let addr = root.serve(App::Auto, backend.addr);
    let pid = root.front.ping().unwrap().pid;
    let minder = parent(pid);
    root.connect().stop(Duration::ZERO).unwrap();
    let bound = TcpListener::bind(addr);
    assert!(bound.is_ok(), "{bound:?}");
    wait_for("minder to end", || std::fs::read(format!("/proc/{minder}/exe")).is_err());
    assert!(matches!(FrontClient::connect(&root.path()), Err(FrontError::Connect { .. })));
}

#[test]
fn a_taken_port_changes_nothing_and_names_its_holder() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let addr = root.serve(App::Http, backend.addr);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let bad = taken.local_addr().unwrap();
    let asked =
        [Bind { addr: bad, protocol: Protocol::Tcp }, Bind { addr, protocol: Protocol::Tcp }];
    let found = root.front.check_bind(&asked).unwrap();
    assert_eq!(found.len(), 1, "the front's own port counts as free: {found:?}");
    assert_eq!(found[0].holder.as_ref().unwrap().pid, std::process::id());
    let other = Route::new("shop/db", vec![bad], backend.addr);
    let next = Backend::start("next");
    let table = root.table(vec![route("web", App::Http, next.addr), other]);
    let refused = root.front.apply(&table).unwrap();
    assert!(!refused.applied);
    assert_eq!(refused.generation, table.generation - 1);
    let said = refused.errors[0].to_string();
    assert!(said.contains(&format!("{bad}/tcp for shop/db: taken by ")), "{said}");
    assert!(said.contains(&format!("(process {})", std::process::id())), "{said}");
    assert_eq!(Client::connect(addr).get("/", "1").unwrap().text(), "a 1 0 0", "not switched");
    let partial = root.front.apply_partial(&table).unwrap();
    assert!(partial.applied && partial.errors.len() == 1);
    assert_eq!(Client::connect(addr).get("/", "2").unwrap().text(), "next 2 0 0");
    // An address that failed before does not stop the next table, and is got once it is free.
    drop(taken);
    let table = Table { generation: table.generation + 1, ..table };
    let got = root.front.apply(&table).unwrap();
    assert!(got.applied && got.errors.is_empty());
    assert_eq!(Client::connect(bad).get("/", "3").unwrap().text(), "a 3 0 0");
}

#[test]
fn stale_tables_are_refused() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    root.serve(App::Http, backend.addr);
    let first = root.front.table().unwrap().0;
    root.serve(App::Tcp, backend.addr);
    let stale = root.front.apply(&first).unwrap_err();
    assert!(matches!(stale, FrontError::Stale { asked: 1, current: 2 }), "{stale}");
    let same = root.front.table().unwrap().0;
    assert!(root.front.apply(&same).unwrap().applied, "the same again is no harm");
    let other = Table { routes: Vec::new(), ..same };
    assert!(root.front.apply(&other).is_err(), "one number never means two tables");
    let twice = vec![route("a", App::Tcp, backend.addr), route("a", App::Tcp, backend.addr)];
    let table = root.table(twice);
    let error = root.front.apply(&Table { generation: 9, ..table }).unwrap_err();
    assert!(error.to_string().contains("`a` is there twice"), "{error}");
}

#[test]
fn both_families_share_a_port_that_was_chosen() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let bound = root.apply(vec![Route::new("web", Route::everywhere(0), backend.addr)]);
    assert_eq!(bound.len(), 2);
    assert_eq!(bound[0].port(), bound[1].port());
    let port = bound[0].port();
    for host in ["127.0.0.1", "::1"] {
        let addr = (host.parse::<std::net::IpAddr>().unwrap(), port).into();
        assert_eq!(Client::connect(addr).get("/", "1").unwrap().status, 200, "{host}");
    }
    // Narrowing the addresses: the wide listener makes room for the narrow one.
    let narrow = vec![Route::new("web", vec![([127, 0, 0, 1], port).into()], backend.addr)];
    assert_eq!(root.apply(narrow), [([127, 0, 0, 1], port).into()]);
    assert_eq!(Client::connect(([127, 0, 0, 1], port).into()).get("/", "1").unwrap().status, 200);
    assert!(TcpStream::connect(("::1", port)).is_err());
}

#[test]
fn a_root_may_lie_deep() {
    let base = tempfile::tempdir().unwrap();
    let deep = base.path().join("d".repeat(150));
    let mut front = ensure_running(&deep, exe()).unwrap();
    assert!(front.ping().unwrap().minder);
    front.stop(Duration::ZERO).unwrap();
}

#[test]
fn a_newer_program_takes_over_minder_and_worker_and_loses_nothing() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let addr = root.serve(App::Auto, backend.addr);
    let before = root.front.ping().unwrap();
    let old_minder = parent(before.pid);
    let newer = root.path().join("newer");
    std::fs::copy(exe(), &newer).unwrap();
    let slow = std::thread::spawn(move || Client::connect(addr).get("/slow?1500", "s").unwrap());
    wait_for("a request", || root.front.stats().unwrap().routes["web"].active == 1);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let asking = std::thread::spawn(move || {
        let mut count = 0;
        let mut kept = Client::connect(addr);
        let mut answered = Instant::now();
        while !stopped.load(std::sync::atomic::Ordering::SeqCst) {
            let answer = match kept.get("/", "1") {
                Ok(answer) => answer,
                // The old worker closes what was idle for half a second: of a client that the
                // machine let wait for so long, that is not a lost request, and it asks again.
                Err(error) => {
                    let idle = answered.elapsed();
                    assert!(idle > Duration::from_millis(400), "lost after {idle:?}: {error}");
                    kept = Client::connect(addr);
                    continue;
                }
            };
            answered = Instant::now();
            assert_eq!(answer.status, 200);
            // As a client has to: the connection ends where the answer says so.
            if answer.fields.get("connection").is_some_and(|value| value == "close") {
                kept = Client::connect(addr);
            }
            assert_eq!(Client::connect(addr).get("/", "2").unwrap().status, 200);
            count += 1;
        }
        count
    });
    assert!(renew(&root.path(), &newer, Duration::from_secs(10)).unwrap());
    let mut front = root.connect();
    let after = front.ping().unwrap();
    let minder = parent(after.pid);
    for pid in [after.pid, minder] {
        assert_eq!(std::fs::read_link(format!("/proc/{pid}/exe")).unwrap(), newer);
    }
    assert!(after.minder && minder != old_minder && after.build != before.build);
    assert_eq!(slow.join().unwrap().text(), "a s 0 0");
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    assert!(asking.join().unwrap() > 5);
    // The new minder has every socket.
    kill(after.pid);
    assert_eq!(Client::connect(addr).get("/", "3").unwrap().status, 200);
}
