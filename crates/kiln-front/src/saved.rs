//! The last table on disk, so that a worker serves again without the agent.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::listener::Key;
use crate::table::Table;

/// What is kept.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Saved {
    pub(crate) table: Table,
    /// The addresses in use, by what was asked.
    pub(crate) bound: BTreeMap<Key, SocketAddr>,
}

/// Changes with every boot of the machine; a table from before leads to instances that are gone.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Format 1. Routes and addresses are read one by one: an unreadable one costs only itself.
#[derive(Serialize, Deserialize)]
struct File {
    format: u32,
    boot: String,
    generation: u64,
    routes: Vec<Value>,
    bound: Vec<Value>,
}

impl Saved {
    /// Writes atomically. It is not flushed to disk: it is of use to the next worker only, and
    /// after a crash of the machine the agent applies its table anyway.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let file = File {
            format: 1,
            boot: boot(),
            generation: self.table.generation,
            routes: values(&self.table.routes)?,
            bound: values(&self.bound.iter().collect::<Vec<_>>())?,
        };
        let temporary = path.with_extension("json.new");
        fs::write(&temporary, serde_json::to_vec(&file)?)?;
        fs::rename(temporary, path)
    }

    /// Reads back what can be read; the rest is told on standard error.
    pub(crate) fn read(path: &Path) -> Self {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::default(),
            Err(error) => {
                eprintln!("front: {}: {error}", path.display());
                return Self::default();
            }
        };
        let file = match serde_json::from_slice::<File>(&bytes) {
            Ok(file) if file.format == 1 && file.boot != boot() => return Self::default(),
            Ok(file) if file.format == 1 => file,
            Ok(file) => {
                eprintln!("front: {}: format {} is not known", path.display(), file.format);
                return Self::default();
            }
            Err(error) => {
                eprintln!("front: {}: {error}", path.display());
                return Self::default();
            }
        };
        let table = Table { generation: file.generation, routes: each(file.routes, path) };
        Self { table, bound: each::<(Key, SocketAddr)>(file.bound, path).into_iter().collect() }
    }
}

fn boot() -> String {
    fs::read_to_string(BOOT_ID).unwrap_or_default()
}

fn values<T: Serialize>(items: &[T]) -> io::Result<Vec<Value>> {
    Ok(items.iter().map(serde_json::to_value).collect::<Result<_, _>>()?)
}

fn each<T: serde::de::DeserializeOwned>(values: Vec<Value>, path: &Path) -> Vec<T> {
    let read = values.into_iter().filter_map(|value| match serde_json::from_value(value) {
        Ok(item) => Some(item),
        Err(error) => {
            eprintln!("front: {}: one entry left out: {error}", path.display());
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
            bound: [(key, "127.0.0.1:4711".parse().unwrap())].into(),
        };
        saved.write(&path).unwrap();
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
