//! The client of registries against the distribution's own `docker-registry`, and against servers
//! that lie, hang and cut off.

mod hostile;
mod real;
mod server;
mod tls;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use kiln_core::Digest;
use kiln_remote::registry::{
    Anonymous, Client, Credential, Error, Keychain, Patience, Places, Reference, Registries,
};

static NEVER: AtomicBool = AtomicBool::new(false);

/// A host with some files below `etc`, and this environment.
fn host(files: &[(&str, &str)], env: &[(&str, &str)]) -> Arc<Registries> {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join("etc").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    read(dir.path(), env.collect()).unwrap()
}

fn read(dir: &Path, env: BTreeMap<String, String>) -> Result<Arc<Registries>, Error> {
    Registries::read(&Places { etc: dir.join("etc"), env }).map(Arc::new)
}

/// A client that soon gives up.
fn client<'a>(registries: &Arc<Registries>, keychain: &'a dyn Keychain) -> Client<'a> {
    Client::patient(Arc::clone(registries), keychain, &|_: &str| {}, &NEVER, patience())
}

fn patience() -> Patience {
    Patience {
        connect: Duration::from_secs(20),
        stall: Duration::from_secs(2),
        document: Duration::from_secs(5),
        pause: Duration::from_millis(5),
        longest_pause: Duration::from_secs(3),
        ..Patience::default()
    }
}

fn reference(text: &str) -> Reference {
    Reference::parse(text).unwrap()
}

/// The same name and password for every registry.
struct Known(Credential);

impl Known {
    fn password(username: &str, password: &str) -> Self {
        let (username, password) = (username.to_owned(), password.to_owned());
        Self(Credential::Password { username, password })
    }
}

impl Keychain for Known {
    fn credential(&self, _: &str, _: &str) -> Result<Option<Credential>, Error> {
        Ok(Some(self.0.clone()))
    }
}

/// Reads a blob to its end.
fn blob(client: &Client<'_>, reference: &Reference, bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let mut reader = client.blob(reference, &Digest::of(bytes), bytes.len() as u64, &|_| {})?;
    let mut found = Vec::new();
    match reader.read_to_end(&mut found) {
        Ok(_) => Ok(found),
        Err(error) => Err(inside(error)),
    }
}

/// The client's own error out of a reader's.
fn inside(error: std::io::Error) -> Error {
    assert!(Error::inside(&error).is_some(), "{error}");
    *error.into_inner().unwrap().downcast().unwrap()
}

/// Bytes that no compression makes smaller, the same ones each time.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| step()).collect()
}

#[test]
fn settings_that_cannot_be_read_are_not_passed_over() {
    let refused = |what: &str, make: &dyn Fn(&Path)| {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path());
        let home = dir.path().join("home").display().to_string();
        let error = read(dir.path(), BTreeMap::from([("HOME".to_owned(), home)])).unwrap_err();
        assert!(matches!(error, Error::Configuration { .. }), "{error}");
        assert!(error.to_string().contains(what), "{error} lacks {what}");
    };
    let looped = |path: &str| {
        let path = path.to_owned();
        move |dir: &Path| {
            let path = dir.join(&path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            // It leads to itself.
            std::os::unix::fs::symlink(path.file_name().unwrap(), &path).unwrap();
        }
    };
    refused("registries.conf.d", &looped("etc/containers/registries.conf.d"));
    refused("registries.conf.d", &looped("home/.config/containers/registries.conf.d"));
    refused("registries.conf:", &looped("home/.config/containers/registries.conf"));
    refused("certs.d", &looped("etc/docker/certs.d"));
    refused("registries.conf.d", &|dir| {
        std::fs::create_dir_all(dir.join("etc/containers")).unwrap();
        std::fs::write(dir.join("etc/containers/registries.conf.d"), "no folder").unwrap();
    });
    refused("more than 1024 entries", &|dir| {
        let folder = dir.join("etc/containers/registries.conf.d");
        std::fs::create_dir_all(&folder).unwrap();
        for number in 0..1025 {
            std::fs::write(folder.join(format!("{number}.conf")), "").unwrap();
        }
    });
    // Nothing there at all is nothing said, and a file beside the folders of hosts is no host.
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("etc/containers/certs.d")).unwrap();
    std::fs::write(dir.path().join("etc/containers/certs.d/README"), "").unwrap();
    std::fs::write(dir.path().join("home"), "a file").unwrap();
    let home = dir.path().join("home").display().to_string();
    read(dir.path(), BTreeMap::from([("HOME".to_owned(), home)])).unwrap();
}
