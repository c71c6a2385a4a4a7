//! The last table on disk, so that a worker serves again without the agent.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use crate::listener::Key;
use crate::routes::Routes;
use crate::table::Table;

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

/// The same as it is written.
#[derive(Serialize)]
struct Written<'a> {
    format: u32,
    boot: &'a str,
    generation: u64,
    routes: Vec<&'a RawValue>,
    bound: &'a RawValue,
    http: Vec<&'a str>,
}

/// Writes the file. What is as it was is not made text again: with a thousand routes that would be
/// most of the work of a switch.
#[derive(Debug)]
pub(crate) struct Saving {
    path: PathBuf,
    boot: String,
    /// Of that version.
    bound: Option<(u64, Box<RawValue>)>,
    text: Vec<u8>,
}

impl Saving {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, boot: boot(), bound: None, text: Vec::new() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes atomically. It is not flushed to disk: it is of use to the next worker only, and
    /// after a crash of the machine the agent applies its table anyway. `version` is that of `bound`;
    /// `http` are ids.
    pub(crate) fn write<'a>(
        &mut self,
        routes: &Routes,
        (version, bound): (u64, impl Iterator<Item = (&'a Key, SocketAddr)>),
        http: Vec<&str>,
    ) -> io::Result<()> {
        let bound = match self.bound.take() {
            Some(known) if known.0 == version => known,
            _ => (version, to_raw_value(&bound.collect::<Vec<_>>())?),
        };
        let file = Written {
            format: 1,
            boot: &self.boot,
            generation: routes.generation,
            routes: routes.all.iter().map(|entry| entry.text()).collect(),
            bound: &bound.1,
            http,
        };
        self.text.clear();
        serde_json::to_writer(&mut self.text, &file)?;
        self.bound = Some(bound);
        replace(&self.path, &self.text)
    }
}

/// Puts `text` at `path` in one step. What was there is written over the next time: to make a file and
/// to free another takes longer than to write one.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let next = path.with_extension("json.new");
    let mut file = fs::File::options().create(true).truncate(false).write(true).open(&next)?;
    file.write_all(text)?;
    if file.metadata()?.len() != text.len() as u64 {
        file.set_len(text.len() as u64)?;
    }
    match renameat_with(CWD, &next, CWD, path, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        // There is nothing yet to exchange, or the file system knows no such thing.
        Err(_) => fs::rename(next, path),
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
        let mut version = 0;
        let mut write = |saved: &Saved| {
            version += 1;
            let bound = saved.bound.iter().map(|(key, addr)| (key, *addr));
            let routes = Routes::of(saved.table.clone(), &Routes::default());
            let http = saved.http.iter().map(String::as_str).collect();
            saving.write(&routes, (version, bound), http).unwrap();
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
        write(&other);
        write(&saved);
        write(&other);
        assert_eq!(Saved::read(&path), other, "a shorter one over a longer one");
        fs::write(&path, text.replace(&boot()[..36], "another")).unwrap();
        assert_eq!(Saved::read(&path), Saved::default());
        fs::write(&path, "{").unwrap();
        assert_eq!(Saved::read(&path), Saved::default());
    }
}
