//! Ports that somebody else has, ports that change their address, and many of them.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering::SeqCst};
use std::time::{Duration, Instant};

use kiln_front::{App, Bind, Protocol, Route, ensure_running};

use crate::backend::Backend;
use crate::client::Client;
use crate::process::{kill, parent};
use crate::root::{Root, exe, route, wait_for};

/// An address that nobody has just now, and that the kernel gives to nobody by itself.
fn free() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 10_000 + u16::try_from(std::process::id() % 15_000).unwrap();
    loop {
        let port = start + NEXT.fetch_add(1, SeqCst);
        if let Ok(listener) = TcpListener::bind(("0.0.0.0", port)) {
            return SocketAddr::from((Ipv4Addr::LOCALHOST, listener.local_addr().unwrap().port()));
        }
    }
}

fn at(id: &str, addr: SocketAddr, backend: &Backend) -> Route {
    Route { listen: vec![addr], ..route(id, App::Http, backend.addr) }
}

fn answers(addr: SocketAddr) -> bool {
    TcpStream::connect(addr).is_ok() && Client::connect(addr).get("/", "1").unwrap().status == 200
}

#[test]
fn a_front_that_comes_back_serves_all_but_the_port_that_was_taken() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let (mine, theirs) = (free(), free());
    root.apply(vec![at("p/dev/web", mine, &backend), at("q/dev/web", theirs, &backend)]);
    let pid = root.front.ping().unwrap().pid;
    kill(parent(pid));
    kill(pid);
    wait_for("the ports to shut", || TcpStream::connect(theirs).is_err());
    let stranger = TcpListener::bind(theirs).unwrap();
    root.front = ensure_running(&root.path(), exe()).unwrap();
    assert!(answers(mine), "the other project is served");
    let waiting = root.front.stats().unwrap().waiting;
    assert_eq!(waiting.len(), 1);
    assert_eq!(waiting[0].route, "q/dev/web");
    assert!(root.log().contains("cannot listen on"), "{}", root.log());
    // Nobody else is stopped by it: neither a new route nor one that goes.
    let (third, next) = (free(), Backend::start("b"));
    let all = || vec![at("p/dev/web", mine, &next), at("q/dev/web", theirs, &backend)];
    let mut more = all();
    more.push(at("p/dev/api", third, &backend));
    let table = root.table(more);
    let applied = root.front.apply(&table).unwrap();
    assert!(applied.applied && applied.errors.is_empty(), "{:?}", applied.errors);
    assert_eq!(applied.waiting.len(), 1);
    assert_eq!(Client::connect(mine).get("/", "1").unwrap().text(), "b 1 0 0");
    assert!(answers(third));
    let table = root.table(all());
    assert!(root.front.apply(&table).unwrap().errors.is_empty());
    // It is got by itself, once it is free.
    drop(stranger);
    wait_for("the port that was taken", || root.front.stats().unwrap().waiting.is_empty());
    assert!(answers(theirs));
    assert!(root.log().contains("is free again"), "{}", root.log());
}

#[test]
fn a_table_that_is_refused_leaves_every_port_as_it_was() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let port = free().port();
    let wide = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let narrow = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    root.apply(vec![at("web", wide, &backend)]);
    let mut kept = Client::connect(narrow);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let theirs = taken.local_addr().unwrap();
    let next = vec![at("web", narrow, &backend), at("db", theirs, &backend)];
    let table = root.table(next.clone());
    let refused = root.front.apply(&table).unwrap();
    assert!(!refused.applied);
    assert_eq!(root.front.table().unwrap().1[0].bound, wide);
    assert!(answers(narrow), "the wide one still listens");
    assert_eq!(kept.get("/", "1").unwrap().status, 200);
    // In part: what is told to listen does.
    let third = free();
    let table = root.table([next, vec![at("c", third, &backend)]].concat());
    let partial = root.front.apply_partial(&table).unwrap();
    assert!(partial.applied);
    let mut there: Vec<_> = partial.listeners.iter().map(|it| it.bound).collect();
    there.sort();
    let mut expected = vec![narrow, third];
    expected.sort();
    assert_eq!(there, expected);
    assert!(there.into_iter().all(answers));
}

#[test]
fn narrowing_and_widening_an_address_turns_nobody_away() {
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let port = free().port();
    let wide = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let narrow = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    root.apply(vec![at("web", wide, &backend)]);
    let bind = |addr| [Bind { addr, protocol: Protocol::Tcp }];
    assert_eq!(root.front.check_bind(&bind(narrow)).unwrap(), [], "our own counts as free");
    let prober = std::thread::spawn(move || {
        let deadline = Instant::now() + Duration::from_millis(500);
        let mut count = 0;
        while Instant::now() < deadline {
            match TcpStream::connect(narrow) {
                Ok(_) => count += 1,
                // It was in the queue of the one that went.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
                Err(error) => panic!("turned away: {error}"),
            }
        }
        count
    });
    for round in 0..20 {
        let addr = if round % 2 == 0 { narrow } else { wide };
        assert_eq!(root.apply(vec![at("web", addr, &backend)]), [addr]);
    }
    assert!(prober.join().unwrap() > 20);
    // Nobody else gets in beside the front afterwards.
    assert!(TcpListener::bind(narrow).is_err());
    let strangers = TcpListener::bind(("127.0.0.2", 0)).unwrap();
    let theirs = strangers.local_addr().unwrap().port();
    root.apply(vec![at("web", SocketAddr::from((Ipv4Addr::LOCALHOST, theirs)), &backend)]);
    let all = SocketAddr::from((Ipv4Addr::UNSPECIFIED, theirs));
    let found = root.front.check_bind(&bind(all)).unwrap();
    assert_eq!(found.len(), 1, "a stranger's overlapping port is not free: {found:?}");
}

#[test]
fn the_minder_keeps_every_socket_at_any_number() {
    const COUNT: usize = 1500;
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let routes = (0..COUNT).map(|at| route(&format!("web{at}"), App::Http, backend.addr));
    let addrs = root.apply(routes.collect());
    assert_eq!(addrs.len(), COUNT);
    let pid = root.front.ping().unwrap().pid;
    let minder = parent(pid);
    wait_for("the minder to have them", || {
        std::fs::read_dir(format!("/proc/{minder}/fd")).unwrap().count() > COUNT
    });
    kill(pid);
    // In the very moment in which there is no worker: the kernel queues.
    for addr in &addrs {
        TcpStream::connect(addr).unwrap_or_else(|error| panic!("{addr}: {error}"));
    }
    wait_for("the next worker", || ensure_running(&root.path(), exe()).is_ok());
    root.front = root.connect();
    assert_eq!(root.front.table().unwrap().1.len(), COUNT);
    assert!(answers(addrs[COUNT - 1]));
}

#[test]
fn a_change_costs_what_changed() {
    const COUNT: usize = 1000;
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let other = Backend::start("b");
    let mut routes: Vec<Route> =
        (0..COUNT).map(|at| route(&format!("web{at}"), App::Http, backend.addr)).collect();
    let addrs = root.apply(routes.clone());
    let mut spent = Vec::new();
    for round in 0..15 {
        routes[round].upstream = Some(other.addr);
        let table = root.table(routes.clone());
        let start = Instant::now();
        let applied = root.front.apply(&table).unwrap();
        spent.push(start.elapsed());
        assert!(applied.applied);
        assert_eq!(applied.listeners.len(), 1, "only what changed is told");
        let text = Client::connect(addrs[round]).get("/", "1").unwrap().text();
        assert_eq!(text, "b 1 0 0");
    }
    spent.sort();
    println!("a change among {COUNT} routes: {:?}", spent[spent.len() / 2]);
    // Two milliseconds in a release build; this one is not optimised, and shares its cores with
    // all other tests.
    assert!(spent[spent.len() / 2] < Duration::from_millis(400), "{spent:?}");
    // A route that goes, and one that comes.
    routes.pop();
    routes.push(route("new", App::Http, other.addr));
    let table = root.table(routes);
    assert!(root.front.apply(&table).unwrap().applied);
    assert!(TcpStream::connect(addrs[COUNT - 1]).is_err());
    let (in_force, _) = root.front.table().unwrap();
    assert_eq!(in_force.routes.last().unwrap().id, "new");
    assert_eq!(in_force.routes.len(), COUNT);
    // Somebody else was there meanwhile: the client notices and sends the whole.
    let mut second = root.connect();
    let next = kiln_front::Table { generation: in_force.generation + 1, routes: Vec::new() };
    assert!(second.apply(&next).unwrap().applied);
    let table = kiln_front::Table { generation: next.generation + 1, ..in_force };
    assert!(root.front.apply(&table).unwrap().applied);
    assert_eq!(root.front.table().unwrap().0, table);
}

/// The figures of `docs/front.md`: in a release build, with `--ignored --nocapture`.
#[test]
#[ignore = "measures"]
fn what_changes_cost_those_that_do_not_change() {
    const COUNT: usize = 1000;
    const LONG: Duration = Duration::from_secs(3);
    let (mut root, backend) = (Root::new(), Backend::start("a"));
    let other = Backend::start("b");
    let mut routes: Vec<Route> =
        (0..COUNT).map(|at| route(&format!("web{at}"), App::Http, backend.addr)).collect();
    let addr = root.apply(routes.clone())[COUNT - 1];
    let say = |what: &str, mut spent: Vec<Duration>| {
        spent.sort();
        let [half, most, all] = [50, 99, 100].map(|part| spent[(spent.len() - 1) * part / 100]);
        let count = spent.len();
        println!("{what}, {count} times: half within {half:?}, 99 of 100 {most:?}, all {all:?}");
    };
    let ask = move || {
        let (begun, mut spent) = (Instant::now(), Vec::new());
        while begun.elapsed() < LONG {
            let start = Instant::now();
            assert_eq!(Client::connect(addr).get("/", "1").unwrap().status, 200);
            spent.push(start.elapsed());
            std::thread::sleep(Duration::from_millis(1));
        }
        spent
    };
    say("a request", ask());
    let asking = std::thread::spawn(ask);
    let mut spent = Vec::new();
    for round in 0.. {
        let place = round % (COUNT - 1);
        let next = if (round / (COUNT - 1)).is_multiple_of(2) { &other } else { &backend };
        routes[place].upstream = Some(next.addr);
        let table = root.table(routes.clone());
        let start = Instant::now();
        assert!(root.front.apply(&table).unwrap().applied);
        spent.push(start.elapsed());
        if asking.is_finished() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    say("a change", spent);
    say("a request meanwhile", asking.join().unwrap());
}
