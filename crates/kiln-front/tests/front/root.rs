//! A front of its own for each test.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln_front::{App, FrontClient, Protocol, Route, Table, ensure_running};

pub(crate) struct Root {
    dir: tempfile::TempDir,
    pub(crate) front: FrontClient,
    generation: u64,
}

pub(crate) fn exe() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_kiln-front-alone"))
}

impl Root {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let front = ensure_running(dir.path(), exe()).unwrap();
        Self { dir, front, generation: 0 }
    }

    /// A front with time-outs of its own, as `front/limits.json` states them.
    pub(crate) fn with_limits(limits: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("front")).unwrap();
        std::fs::write(dir.path().join("front/limits.json"), limits).unwrap();
        let front = ensure_running(dir.path(), exe()).unwrap();
        Self { dir, front, generation: 0 }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    pub(crate) fn connect(&self) -> FrontClient {
        FrontClient::connect(self.dir.path()).unwrap()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("front/log")).unwrap_or_default()
    }

    /// Applies `routes` and returns the bound addresses in the order of the table.
    pub(crate) fn apply(&mut self, routes: Vec<Route>) -> Vec<SocketAddr> {
        let table = self.table(routes);
        let applied = self.front.apply(&table).unwrap();
        assert!(applied.applied, "{:?}", applied.errors);
        assert_eq!(applied.generation, self.generation);
        applied.listeners.into_iter().map(|listener| listener.bound).collect()
    }

    pub(crate) fn table(&mut self, routes: Vec<Route>) -> Table {
        self.generation += 1;
        Table { generation: self.generation, routes }
    }

    /// One route to `upstream`.
    pub(crate) fn serve(&mut self, app: App, upstream: SocketAddr) -> SocketAddr {
        self.apply(vec![route("web", app, upstream)])[0]
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("front's log: {}", self.log());
        }
        let _ = kiln_front::end(self.dir.path());
    }
}

pub(crate) fn route(id: &str, app: App, upstream: SocketAddr) -> Route {
    let listen = vec!["127.0.0.1:0".parse().unwrap()];
    Route { app, slot: id.to_owned(), ..Route::new(id, listen, upstream) }
}

pub(crate) fn udp(id: &str, upstream: SocketAddr) -> Route {
    Route { protocol: Protocol::Udp, ..route(id, App::Auto, upstream) }
}

/// Polls until `condition` holds.
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
