//! The switch under load: every request carries an id, and what clients and backends saw is
//! joined afterwards.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kiln_front::{App, Drain};

use crate::backend::Backend;
use crate::client::Client;
use crate::root::{Root, route, wait_for};

struct Load {
    stop: AtomicBool,
    count: AtomicUsize,
    answered: Mutex<Vec<String>>,
    failed: Mutex<Vec<String>>,
}

impl Load {
    fn run(self: &Arc<Self>, addr: SocketAddr, kind: usize) -> std::thread::JoinHandle<()> {
        let load = self.clone();
        std::thread::spawn(move || {
            // One connection for the whole test: a switch must not close it.
            let mut client = Client::connect(addr);
            let mut at = 0;
            while !load.stop.load(SeqCst) {
                let id = format!("{kind}-{at}");
                at += 1;
                load.count.fetch_add(1, SeqCst);
                match one(&mut client, kind, &id) {
                    Ok(()) => load.answered.lock().unwrap().push(id),
                    Err(why) => {
                        load.failed.lock().unwrap().push(format!("{id}: {why}"));
                        return;
                    }
                }
            }
        })
    }
}

fn one(client: &mut Client, kind: usize, id: &str) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let answer = match kind % 4 {
        0 => client.get("/", id),
        1 => {
            // A slow POST: the head, then the body bit by bit.
            let head = "POST /slow?5 HTTP/1.1\r\nHost: t\r\nContent-Length: 30\r\n";
            client.send(&format!("{head}X-Id: {id}\r\n\r\n")).map_err(text)?;
            for _ in 0..3 {
                std::thread::sleep(Duration::from_millis(3));
                client.send("0123456789").map_err(text)?;
            }
            client.read_answer()
        }
        2 => client.get("/ticks?10", id),
        _ => client.get("/big?300000", id),
    };
    let answer = answer.map_err(text)?;
    let complete = match kind % 4 {
        0 => answer.text().contains(&format!(" {id} 0 0")),
        1 => answer.text().contains(&format!(" {id} 30 ")),
        2 => {
            // All events of one answer come from one release.
            let text = answer.text();
            let names: BTreeSet<_> =
                text.lines().filter_map(|line| line.split(' ').nth(1)).collect();
            names.len() == 1 && text.contains(" 9\n")
        }
        _ => answer.body.len() == 300_000,
    };
    if answer.status == 200 && complete { Ok(()) } else { Err(format!("{answer:?}")) }
}

#[test]
fn no_request_is_lost_and_no_connection_closed() {
    let mut root = Root::new();
    let first = Backend::start("r0");
    let addr = root.serve(App::Auto, first.addr);
    let load = Arc::new(Load {
        stop: AtomicBool::new(false),
        count: AtomicUsize::new(0),
        answered: Mutex::default(),
        failed: Mutex::default(),
    });
    let clients: Vec<_> = (0..16).map(|kind| load.run(addr, kind)).collect();
    let mut served = Vec::new();
    let mut old = first;
    for switch in 1..=20 {
        let new = Backend::start(&format!("r{switch}"));
        let before = load.count.load(SeqCst);
        let failed = || !load.failed.lock().unwrap().is_empty();
        wait_for("load", || load.count.load(SeqCst) > before + 50 || failed());
        assert_eq!(root.serve(App::Auto, new.addr), addr);
        let drained = root.front.drain(&Drain::of([old.addr], Duration::from_secs(10))).unwrap();
        assert_eq!((drained.cut_requests, drained.remaining), (0, 0));
        // As an instance is stopped once it is drained.
        old.kill();
        served.extend(old.served());
        old = new;
    }
    load.stop.store(true, SeqCst);
    for client in clients {
        client.join().unwrap();
    }
    served.extend(old.served());
    let failed = load.failed.lock().unwrap();
    assert!(failed.is_empty(), "{failed:?}");
    let mut answered = load.answered.lock().unwrap().clone();
    assert_eq!(answered.len(), load.count.load(SeqCst));
    answered.sort();
    served.sort();
    let twice: Vec<_> = served.windows(2).filter(|pair| pair[0] == pair[1]).collect();
    assert!(twice.is_empty(), "served twice: {twice:?}");
    let unserved: Vec<_> = answered.iter().filter(|id| !served.contains(id)).collect();
    assert!(unserved.is_empty(), "answered by nobody: {unserved:?}");
    assert_eq!(answered.len(), served.len(), "each request was served exactly once");
}

#[test]
fn all_routes_switch_at_once() {
    const RELEASES: usize = 25;
    let mut root = Root::new();
    let start = |port: &str| -> Vec<Backend> {
        (0..RELEASES).map(|release| Backend::start(&format!("{port}-{release}"))).collect()
    };
    let (one, two) = (start("a"), start("b"));
    let table = |release: usize| {
        vec![route("a", App::Http, one[release].addr), route("b", App::Http, two[release].addr)]
    };
    let addrs = root.apply(table(0));
    let seen = Arc::new(AtomicUsize::new(0));
    let (a, b, told) = (addrs[0], addrs[1], seen.clone());
    // Whoever saw a release on one port sees none before it on the other.
    let watching = std::thread::spawn(move || {
        let mut clients = [Client::connect(a), Client::connect(b)];
        let mut last = 0;
        while last < RELEASES - 1 {
            for client in &mut clients {
                let text = client.get("/", "").unwrap().text();
                let name = text.split(' ').next().unwrap();
                let release = name.split('-').nth(1).unwrap().parse().unwrap();
                assert!(release >= last, "{name} after release {last}");
                last = release;
                told.store(last, SeqCst);
            }
        }
    });
    for release in 1..RELEASES {
        assert_eq!(root.apply(table(release)), addrs);
        wait_for("the release", || seen.load(SeqCst) >= release || watching.is_finished());
    }
    watching.join().unwrap();
}
