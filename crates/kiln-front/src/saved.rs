//! The last table on disk, so that a worker serves again without the agent.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use crate::listener::Key;
use crate::table::{Route, Table};

/// What is kept.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Saved {
    pub(crate) table: Table,
    /// The addresses in use, by what was asked.
    pub(crate) bound: BTreeMap<Key, SocketAddr>,
    /// Ids of the routes that are known to speak HTTP: a connection to one of them is read as
    /// HTTP from the first one on.
    pub(crate) http: BTreeSet<String>,
}

/// Changes with every boot of the machine; a table from before leads to instances that are gone.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Format 1. Routes and addresses are read one by one: an unreadable one costs only itself.
#[derive(Deserialize)]
struct File {
    format: u32,
    boot: String,
    generation: u64,
    routes: Vec<Value>,
    bound: Vec<Value>,
    #[serde(default)]
    http: Vec<Value>,
}

/// The same as it is written. What was written before and is as it was is not made again: with a
/// thousand routes that would be most of the work of a switch.
#[derive(Serialize)]
struct Written<'a> {
    format: u32,
    boot: &'a str,
    generation: u64,
    routes: Vec<&'a RawValue>,
    bound: Vec<&'a RawValue>,
    http: Vec<&'a str>,
}

/// Writes the file.
#[derive(Debug)]
pub(crate) struct Saving {
    path: PathBuf,
    boot: String,
    routes: HashMap<String, (Route, Box<RawValue>)>,
    bound: HashMap<Key, (SocketAddr, Box<RawValue>)>,
}

impl Saving {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, boot: boot(), routes: HashMap::new(), bound: HashMap::new() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes atomically. It is not flushed to disk: it is of use to the next worker only, and
    /// after a crash of the machine the agent applies its table anyway.
    pub(crate) fn write<'a>(
        &mut self,
        table: &Table,
        bound: impl Iterator<Item = (&'a Key, SocketAddr)>,
        http: impl Fn(&Route) -> bool,
    ) -> io::Result<()> {
        let bound: Vec<_> = bound.collect();
        for route in &table.routes {
            if self.routes.get(&route.id).is_none_or(|(known, _)| known != route) {
                let text = to_raw_value(route)?;
                self.routes.insert(route.id.clone(), (route.clone(), text));
            }
        }
        for (key, addr) in &bound {
            if self.bound.get(key).is_none_or(|(known, _)| known != addr) {
                let text = to_raw_value(&(key, addr))?;
                self.bound.insert((*key).clone(), (*addr, text));
            }
        }
        let routes = table.routes.iter().filter_map(|it| Some(&*self.routes.get(&it.id)?.1));
        let file = Written {
            format: 1,
            boot: &self.boot,
            generation: table.generation,
            routes: routes.collect(),
            bound: bound.iter().filter_map(|(key, _)| Some(&*self.bound.get(key)?.1)).collect(),
            http: table.routes.iter().filter(|it| http(it)).map(|it| it.id.as_str()).collect(),
        };
        let temporary = self.path.with_extension("json.new");
        fs::write(&temporary, serde_json::to_vec(&file)?)?;
        fs::rename(temporary, &self.path)?;
        if self.routes.len() > 2 * table.routes.len() + 16 {
            self.routes.clear();
        }
        if self.bound.len() > 2 * bound.len() + 16 {
            self.bound.clear();
        }
        Ok(())
    }
}

impl Saved {
    /// Reads back what can be read; the rest is told on standard error.
    pub(crate) fn read(path: &Path) -> Self {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::default(),
            Err(error) => {
                say!("front: {}: {error}", path.display());
                return Self::default();
            }
        };
        let file = match serde_json::from_slice::<File>(&bytes) {
            Ok(file) if file.format == 1 && file.boot != boot() => return Self::default(),
            Ok(file) if file.format == 1 => file,
            Ok(file) => {
                say!("front: {}: format {} is not known", path.display(), file.format);
                return Self::default();
            }
            Err(error) => {
                say!("front: {}: {error}", path.display());
                return Self::default();
            }
        };
        let table = Table { generation: file.generation, routes: each(file.routes, path) };
        let bound = each::<(Key, SocketAddr)>(file.bound, path).into_iter().collect();
        Self { table, bound, http: each(file.http, path).into_iter().collect() }
    }
}

fn boot() -> String {
    fs::read_to_string(BOOT_ID).unwrap_or_default()
}

fn each<T: serde::de::DeserializeOwned>(values: Vec<Value>, path: &Path) -> Vec<T> {
    let read = values.into_iter().filter_map(|value| match serde_json::from_value(value) {
        Ok(item) => Some(item),
        Err(error) => {
            say!("front: {}: one entry left out: {error}", path.display());
            None
        }
    });
    read.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Protocol, Route};

    #[test]
    fn round_trip_and_one_bad_entry() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("table.json");
        assert_eq!(Saved::read(&path), Saved::default());
        let addr: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let route = Route::new("a", vec![addr], "10.0.0.1:80".parse().unwrap());
        let key = Key { protocol: Protocol::Tcp, addr, route: Some("a".into()) };
        let saved = Saved {
            table: Table { generation: 7, routes: vec![route] },
            bound: [(key.clone(), "127.0.0.1:4711".parse().unwrap())].into(),
            http: ["a".to_owned()].into(),
        };
        let mut saving = Saving::new(path.clone());
        let mut write = |saved: &Saved| {
            let bound = saved.bound.iter().map(|(key, addr)| (key, *addr));
            saving.write(&saved.table, bound, |route| saved.http.contains(&route.id)).unwrap();
        };
        write(&saved);
        assert_eq!(Saved::read(&path), saved);
        let other = Table { generation: 8, routes: Vec::new() };
        let other = Saved { table: other, bound: [(key, addr)].into(), http: [].into() };
        write(&other);
        assert_eq!(Saved::read(&path), other);
        write(&saved);
        assert_eq!(Saved::read(&path), saved);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replacen("\"routes\":[", "\"routes\":[{\"id\":3},", 1)).unwrap();
        assert_eq!(Saved::read(&path), saved);
        fs::write(&path, text.replace(&boot()[..36], "another")).unwrap();
        assert_eq!(Saved::read(&path), Saved::default());
        fs::write(&path, "{").unwrap();
        assert_eq!(Saved::read(&path), Saved::default());
    }
}
