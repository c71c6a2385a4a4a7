//! Draining, cutting, holding.

use std::time::{Duration, Instant};

use kiln_front::{App, Drain, DrainPolicy, FrontError, Route};

use crate::backend::{Backend, lines};
use crate::client::Client;
use crate::root::{Root, route, wait_for};

fn under_way(root: &mut Root, count: usize) {
    wait_for("requests under way", || root.front.stats().unwrap().routes["web"].active == count);
}

#[test]
fn drain_waits_for_requests_under_way() {
    let (mut root, old, new) = (Root::new(), Backend::start("old"), Backend::start("new"));
    let addr = root.serve(App::Http, old.addr);
    let slow = std::thread::spawn(move || Client::connect(addr).get("/slow?300", "s").unwrap());
    under_way(&mut root, 1);
    root.serve(App::Http, new.addr);
    let start = Instant::now();
    let drained = root.front.drain(&Drain::of([old.addr], Duration::from_secs(10))).unwrap();
    assert_eq!((drained.upstreams, drained.cut_requests), (1, 0));
    assert_eq!(old.served(), ["s"], "it was answered before the drain ended");
    assert!(start.elapsed() < Duration::from_secs(9));
    assert_eq!(slow.join().unwrap().text(), "old s 0 0");
}

#[test]
fn the_deadline_cuts() {
    let (mut root, old, new) = (Root::new(), Backend::start("old"), Backend::start("new"));
    let addr = root.serve(App::Auto, old.addr);
    let mut events = Client::connect(addr);
    events.send("GET /ticks?100000 HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    events.read_head().unwrap();
    let mut socket = Client::connect(addr);
    socket
        .send("GET /upgrade HTTP/1.1\r\nHost: t\r\nConnection: upgrade\r\nUpgrade: lines\r\n\r\n")
        .unwrap();
    socket.read_head().unwrap();
    under_way(&mut root, 2);
    root.apply(vec![Route { slot: "next".into(), ..route("web", App::Auto, new.addr) }]);
    // By slot: the old route's was `web`.
    let drain = Drain { slot: Some("web".into()), deadline_ms: 50, ..Drain::default() };
    let patient = Drain { policy: DrainPolicy::UntilClosed, ..drain.clone() };
    assert_eq!(root.front.drain(&patient).unwrap().remaining, 2);
    let drained = root.front.drain(&drain).unwrap();
    assert_eq!((drained.cut_requests, drained.cut_connections), (1, 1));
    assert_eq!(socket.line().unwrap(), "old hello");
    assert!(socket.is_closed());
    while events.chunk().is_ok_and(|chunk| chunk.is_some()) {}
    assert!(events.is_closed(), "an answer that was cut does not look complete");
    under_way(&mut root, 0);
}

#[test]
fn pinned_connections_may_be_cut_while_requests_finish() {
    let mut root = Root::new();
    let (old, new) = (Backend::start("old"), Backend::start("new"));
    let addr = root.serve(App::Auto, old.addr);
    let mut socket = Client::connect(addr);
    socket
        .send("GET /upgrade HTTP/1.1\r\nHost: t\r\nConnection: upgrade\r\nUpgrade: lines\r\n\r\n")
        .unwrap();
    socket.read_head().unwrap();
    let slow = std::thread::spawn(move || Client::connect(addr).get("/slow?200", "s").unwrap());
    under_way(&mut root, 2);
    root.serve(App::Auto, new.addr);
    let drain =
        Drain { policy: DrainPolicy::CutPinned, ..Drain::of([old.addr], Duration::from_secs(10)) };
    let drained = root.front.drain(&drain).unwrap();
    assert_eq!((drained.cut_requests, drained.cut_connections), (0, 1));
    assert_eq!(slow.join().unwrap().text(), "old s 0 0");
}

#[test]
fn what_is_in_force_is_not_drained() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let addr = root.serve(App::Tcp, lines("live", false));
    let upstream = root.front.table().unwrap().0.routes[0].upstream.unwrap();
    let mut client = Client::connect(addr);
    client.send("a\n").unwrap();
    client.line().unwrap();
    let drained = root.front.drain(&Drain::of([upstream, backend.addr], Duration::ZERO)).unwrap();
    assert_eq!((drained.upstreams, drained.live), (0, vec![upstream]));
    client.send("b\n").unwrap();
    assert_eq!(client.line().unwrap(), "live b");
}

#[test]
fn a_held_route_waits_and_goes_on() {
    let (mut root, old, new) = (Root::new(), Backend::start("old"), Backend::start("new"));
    let addr = root.serve(App::Auto, old.addr);
    let mut kept = Client::connect(addr);
    assert_eq!(kept.get("/", "1").unwrap().text(), "old 1 0 0");
    root.front.hold(&["web".to_owned()], true, None).unwrap();
    let drained = root.front.drain(&Drain::of([old.addr], Duration::from_secs(10))).unwrap();
    assert_eq!((drained.upstreams, drained.cut_requests), (1, 0));
    old.kill();
    let waiting = std::thread::spawn(move || kept.get("/", "2").unwrap());
    let fresh = std::thread::spawn(move || Client::connect(addr).get("/", "3").unwrap());
    wait_for("two connections", || root.front.stats().unwrap().connections == 2);
    wait_for("two requests", || root.front.stats().unwrap().routes["web"].requests == 3);
    root.serve(App::Auto, new.addr);
    assert_eq!(waiting.join().unwrap().text(), "new 2 0 0");
    assert_eq!(fresh.join().unwrap().text(), "new 3 0 0");
}

#[test]
fn a_hold_is_bounded() {
    let mut root = Root::new();
    let backend = Backend::start("a");
    let tcp = Route { ..route("tcp", App::Tcp, backend.addr) };
    let addrs = root.apply(vec![route("web", App::Http, backend.addr), tcp]);
    root.front.hold(&["web".to_owned(), "tcp".to_owned()], true, Some(100)).unwrap();
    let start = Instant::now();
    let mut client = Client::connect(addrs[0]);
    let answer = client.get("/", "1").unwrap();
    assert_eq!((answer.status, answer.fields["retry-after"].as_str()), (503, "1"));
    assert!(start.elapsed() >= Duration::from_millis(100));
    assert!(Client::connect(addrs[1]).is_closed());
    root.front.hold(&["web".to_owned()], false, None).unwrap();
    assert_eq!(client.get("/", "2").unwrap().status, 200, "on the same connection");
    let unknown = root.front.hold(&["nobody".to_owned()], true, None).unwrap_err();
    assert!(matches!(&unknown, FrontError::Refused(why) if why.contains("`nobody`")), "{unknown}");
}

#[test]
fn a_port_opens_only_when_something_stands_behind_it() {
    let mut root = Root::new();
    let backend = Backend::start("a");
    let nothing = Route { upstream: None, ..route("web", App::Http, backend.addr) };
    assert!(root.apply(vec![nothing.clone()]).is_empty());
    let addr = root.serve(App::Http, backend.addr);
    assert_eq!(Client::connect(addr).get("/", "1").unwrap().status, 200);
    assert_eq!(root.apply(vec![nothing]), [addr], "once open it stays");
    assert_eq!(Client::connect(addr).get("/", "2").unwrap().status, 503);
}

#[test]
fn the_front_keeps_the_clock_from_the_switch() {
    let (mut root, old, new) = (Root::new(), Backend::start("old"), Backend::start("new"));
    let at = |slot: &str, backend: &Backend| {
        let route = route("web", App::Auto, backend.addr);
        vec![Route { slot: slot.into(), drain_ms: Some(600), ..route }]
    };
    let addr = root.apply(at("one", &old))[0];
    let mut events = Client::connect(addr);
    events.send("GET /ticks?100000 HTTP/1.1\r\nHost: t\r\n\r\n").unwrap();
    events.read_head().unwrap();
    under_way(&mut root, 1);
    assert_eq!(root.front.behind().unwrap().0, [], "nothing is behind what serves");
    let switched = Instant::now();
    root.apply(at("two", &new));
    let (behind, _) = root.front.behind().unwrap();
    assert_eq!(behind.len(), 1);
    assert_eq!((behind[0].slot.as_str(), behind[0].requests), ("one", 1));
    assert!(behind[0].cut_in_ms.unwrap() <= 600);
    // Back, and the clock stops; away again, and it starts anew.
    root.apply(at("one", &old));
    assert_eq!(root.front.behind().unwrap().0, []);
    std::thread::sleep(Duration::from_millis(900).saturating_sub(switched.elapsed()));
    assert!(events.chunk().unwrap().is_some(), "it serves: nothing is cut");
    let switched = Instant::now();
    root.apply(at("two", &new));
    // Whoever waits for the drain waits for that clock, and need not be there for it to run.
    let mut waiting = root.connect();
    let drain = Drain::of([old.addr], Duration::ZERO).as_routed();
    let waited = std::thread::spawn(move || waiting.drain(&drain).unwrap());
    while events.chunk().is_ok_and(|chunk| chunk.is_some()) {}
    assert!(events.is_closed());
    let took = switched.elapsed();
    assert!(took >= Duration::from_millis(590) && took < Duration::from_secs(20), "{took:?}");
    waited.join().unwrap();
    wait_for("nothing behind", || root.front.behind().unwrap().0.is_empty());
}
