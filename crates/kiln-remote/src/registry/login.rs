//! Keeping a name and a password where Docker keeps them, and forgetting them.

use std::collections::BTreeMap;
use std::fs::{self, File as Opened};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustix::fs::{FlockOperation, OFlags, flock};
use serde_json::{Map, Value, json};

use super::credentials::Credential;
use super::error::Error;
use super::helper::Helper;
use super::keychain::{File, HUB_KEY, HostKeychain, docker_config, plain, servers};
use super::reference::DOCKER_HUB;
use super::registries::small_file;

/// How long another `kiln login` may take.
const TURN: Duration = Duration::from_secs(10);

/// Where something is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// In this file, which only its owner can read.
    File(PathBuf),
    /// By `docker-credential-NAME`.
    Helper(String),
}

/// What `logout` has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// From where something was taken away.
    pub from: Vec<String>,
    /// Files of others in which there still is something.
    pub remains: Vec<PathBuf>,
}

/// The file of the user with an environment: `REGISTRY_AUTH_FILE`, else Docker's `config.json`.
fn own_file(env: &BTreeMap<String, String>) -> Result<PathBuf, Error> {
    let only = env.get("REGISTRY_AUTH_FILE").filter(|path| !path.is_empty()).map(PathBuf::from);
    only.or_else(|| docker_config(env)).ok_or_else(|| Error::Configuration {
        path: "the environment".into(),
        what: "neither HOME nor DOCKER_CONFIG says where credentials are kept".into(),
    })
}

/// The key of a registry in the file, as Docker writes it.
fn key(registry: &str) -> &str {
    if registry == DOCKER_HUB { HUB_KEY } else { registry }
}

/// Keeps what a registry is to be shown, as the user's file says: by a helper, else in the file.
///
/// # Errors
/// [`Error::Configuration`], [`Error::Credentials`].
pub fn keep(
    env: &BTreeMap<String, String>,
    registry: &str,
    credential: &Credential,
    cancel: &AtomicBool,
) -> Result<Kept, Error> {
    let path = own_file(env)?;
    let file = Edited::open(&path)?;
    let known = File::read(&file.path)?.unwrap_or_default();
    if let Some(name) = known.helper(registry) {
        Helper { name, env, cancel }.store(servers(registry)[0], credential)?;
        // Docker notes beside it that there is one.
        file.change(|auths| drop(auths.insert(key(registry).to_owned(), json!({}))))?;
        return Ok(Kept::Helper(name.to_owned()));
    }
    let entry = match credential {
        Credential::Password { username, password } => {
            json!({ "auth": BASE64_STANDARD.encode(format!("{username}:{password}")) })
        }
        Credential::Identity(token) => json!({ "identitytoken": token }),
    };
    file.change(|auths| {
        auths.retain(|key, _| plain(key) != registry);
        auths.insert(key(registry).to_owned(), entry);
    })?;
    Ok(Kept::File(path))
}

/// Forgets what a registry is to be shown, where [`keep`] keeps it.
///
/// # Errors
/// As [`keep`].
pub fn forget(
    env: &BTreeMap<String, String>,
    registry: &str,
    cancel: &AtomicBool,
) -> Result<Forgotten, Error> {
    let path = own_file(env)?;
    let mut forgotten = Forgotten::default();
    if path.exists() {
        let file = Edited::open(&path)?;
        let known = File::read(&file.path)?.unwrap_or_default();
        if let Some(name) = known.helper(registry) {
            let helper = Helper { name, env, cancel };
            for server in servers(registry) {
                if helper.get(server)?.is_some() {
                    helper.erase(server)?;
                    forgotten.from.push(format!("docker-credential-{name}"));
                }
            }
        }
        let mut gone = false;
        file.change(|auths| {
            let before = auths.len();
            auths.retain(|key, _| plain(key) != registry);
            gone = auths.len() < before;
        })?;
        if gone && known.knows(registry) {
            forgotten.from.push(path.display().to_string());
        }
    }
    let rest = HostKeychain::read(env, &[], cancel)?;
    forgotten.remains = rest.files_that_know(registry);
    Ok(forgotten)
}

/// The user's file while it is changed: no other process of Kiln changes it meanwhile.
struct Edited {
    /// Where it really is, for it may be a link.
    path: PathBuf,
    whole: Value,
    _turn: Opened,
}

impl Edited {
    fn open(path: &Path) -> Result<Self, Error> {
        let fail = |what: String| Error::Configuration { path: path.display().to_string(), what };
        let path = resolved(path).map_err(fail)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        if !folder.exists() {
            let mut builder = fs::DirBuilder::new();
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
            builder.recursive(true).create(folder).map_err(|error| fail(error.to_string()))?;
        }
        let turn = turn(folder).map_err(fail)?;
        let bytes = small_file(&path)?.unwrap_or_default();
        let whole = match bytes.iter().all(u8::is_ascii_whitespace) {
            true => json!({}),
            false => serde_json::from_slice(&bytes).map_err(|error| {
                fail(format!("line {}, column {}: it cannot be read", error.line(), error.column()))
            })?,
        };
        if !whole.is_object() {
            return Err(fail("it is no configuration of Docker's: no object".into()));
        }
        Ok(Self { path, whole, _turn: turn })
    }

    /// Changes `auths` and writes the file if that made a difference; all else in it stays.
    fn change(mut self, change: impl FnOnce(&mut Map<String, Value>)) -> Result<(), Error> {
        let path = self.path.display().to_string();
        let fail = |what: String| Error::Configuration { path: path.clone(), what };
        let before = self.whole.clone();
        let Some(members) = self.whole.as_object_mut() else {
            return Err(fail("no object".into()));
        };
        let auths = members.entry("auths").or_insert_with(|| json!({}));
        let Some(auths) = auths.as_object_mut() else {
            return Err(fail("`auths` is no object".into()));
        };
        change(auths);
        if auths.is_empty() && before.get("auths").is_none() {
            return Ok(());
        }
        if self.whole == before {
            return Ok(());
        }
        self.write().map_err(|error| fail(error.to_string()))
    }

    fn write(&self) -> std::io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let new = folder.join(format!(".{name}.{}.{}", std::process::id(), now.as_nanos()));
        let written = (|| {
            let mut file = Opened::options().write(true).create_new(true).mode(0o600).open(&new)?;
            let old = fs::symlink_metadata(&self.path).or_else(|_| fs::metadata(folder))?;
            // Who runs this by sudo still owns the file afterwards.
            if (old.uid(), old.gid()) != owner(&file)? {
                std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()))?;
            }
            file.set_permissions(fs::Permissions::from_mode(0o600))?;
            let mut text = serde_json::to_vec_pretty(&self.whole)?;
            text.push(b'\n');
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)?;
            opened(folder)?.sync_all()
        })();
        if written.is_err() {
            let _ = fs::remove_file(&new);
        }
        written
    }
}

fn owner(file: &Opened) -> std::io::Result<(u32, u32)> {
    let metadata = file.metadata()?;
    Ok((metadata.uid(), metadata.gid()))
}

/// Where a file really is, for the file itself may be a link: one that belongs to whoever runs this
/// is followed, as Docker follows it, and any other is refused. Folders on the way are not looked
/// at; whoever names them trusts who owns them.
fn resolved(path: &Path) -> Result<PathBuf, String> {
    let own = rustix::process::geteuid().as_raw();
    let mut path = path.to_owned();
    for _ in 0..8 {
        let metadata = match fs::symlink_metadata(&path) {
            // It is to be made.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(path),
            metadata => metadata.map_err(|error| error.to_string())?,
        };
        if !metadata.is_symlink() {
            return Ok(path);
        }
        if metadata.uid() != own {
            return Err(format!("it is a link that user {} has made", metadata.uid()));
        }
        let target = fs::read_link(&path).map_err(|error| error.to_string())?;
        path = path.parent().unwrap_or(Path::new("/")).join(target);
    }
    Err("it is a link that leads on and on".into())
}

/// Opens a folder. What else has its name, a pipe for instance, is refused and not waited for.
fn opened(folder: &Path) -> std::io::Result<Opened> {
    Opened::options().read(true).custom_flags(OFlags::DIRECTORY.bits().cast_signed()).open(folder)
}

/// Waits until no other process of Kiln changes the files of a folder.
fn turn(folder: &Path) -> Result<Opened, String> {
    let opened = opened(folder).map_err(|error| error.to_string())?;
    let deadline = Instant::now() + TURN;
    loop {
        match flock(&opened, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(opened),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err("another program keeps its folder locked".into());
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Keychain as _;

    static NEVER: AtomicBool = AtomicBool::new(false);

    fn env(dir: &Path, more: &[(&str, &str)]) -> BTreeMap<String, String> {
        let mut env = BTreeMap::from([
            ("HOME".to_owned(), dir.display().to_string()),
            ("XDG_RUNTIME_DIR".to_owned(), dir.join("run").display().to_string()),
        ]);
        env.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        env
    }

    fn password(username: &str) -> Credential {
        Credential::Password { username: username.into(), password: "pw".into() }
    }

    #[test]
    fn what_is_kept_is_found_again_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let env = env(dir.path(), &[]);
        let path = dir.path().join(".docker/config.json");
        assert_eq!(
            keep(&env, "docker.io", &password("a"), &NEVER).unwrap(),
            Kept::File(path.clone())
        );
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777,
            0o700
        );
        let text = r#"{ "auths": { "https://index.docker.io/v1/": { "auth": "eDp5" }, "b.example": {
            "auth": "eDp5", "email": "x" } }, "psFormat": "kept", "HttpHeaders": { "A": "b" } }"#;
        fs::write(&path, text).unwrap();
        keep(&env, "docker.io", &password("c"), &NEVER).unwrap();
        keep(&env, "t.example", &Credential::Identity("id".into()), &NEVER).unwrap();
        let whole: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(whole["psFormat"], "kept");
        assert_eq!(whole["HttpHeaders"]["A"], "b");
        assert_eq!(whole["auths"]["b.example"]["email"], "x");
        let keychain = HostKeychain::read(&env, &[], &NEVER).unwrap();
        assert_eq!(keychain.credential("docker.io", "x/y").unwrap(), Some(password("c")));
        let token = Some(Credential::Identity("id".into()));
        assert_eq!(keychain.credential("t.example", "x").unwrap(), token);

        let forgotten = forget(&env, "docker.io", &NEVER).unwrap();
        assert_eq!(forgotten.from, [path.display().to_string()]);
        assert_eq!(forget(&env, "docker.io", &NEVER).unwrap(), Forgotten::default());
        let keychain = HostKeychain::read(&env, &[], &NEVER).unwrap();
        assert_eq!(keychain.credential("docker.io", "x/y").unwrap(), None);
        let left: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn several_at_once_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let env = env(dir.path(), &[]);
        let names: Vec<String> = (0..8).map(|number| format!("r{number}.example")).collect();
        std::thread::scope(|scope| {
            for name in &names {
                let env = &env;
                scope.spawn(move || keep(env, name, &password(name), &NEVER).unwrap());
            }
        });
        let keychain = HostKeychain::read(&env, &[], &NEVER).unwrap();
        for name in &names {
            assert_eq!(keychain.credential(name, "x").unwrap(), Some(password(name)));
        }
    }

    #[test]
    fn root_follows_no_link_of_somebody_else() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(".docker")).unwrap();
        let target = dir.path().join("target.json");
        fs::write(&target, "{}").unwrap();
        let path = dir.path().join(".docker/config.json");
        std::os::unix::fs::symlink(&target, &path).unwrap();
        std::os::unix::fs::lchown(&path, Some(1234), Some(1234)).unwrap();
        let kept = keep(&env(dir.path(), &[]), "a.example", &password("a"), &NEVER);
        let error = kept.unwrap_err().to_string();
        assert!(error.contains("a link that user 1234 has made"), "{error}");
        assert_eq!(fs::read_to_string(&target).unwrap(), "{}");
        // A file of somebody else stays theirs.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "{}").unwrap();
        std::os::unix::fs::chown(&path, Some(1234), Some(1234)).unwrap();
        keep(&env(dir.path(), &[]), "a.example", &password("a"), &NEVER).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().uid(), 1234);
    }

    #[test]
    fn a_pipe_in_place_of_the_folder_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join(".docker");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        let (give, take) = std::sync::mpsc::channel();
        std::thread::spawn(move || give.send(turn(&pipe).map(drop)));
        let refused = take.recv_timeout(Duration::from_secs(30)).expect("it does not wait");
        assert!(refused.unwrap_err().contains("Not a directory"));
        let error = keep(&env(dir.path(), &[]), "a.example", &password("a"), &NEVER).unwrap_err();
        assert!(error.to_string().contains(".docker"), "{error}");
    }

    #[test]
    fn what_others_keep_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let theirs = dir.path().join("run/containers/auth.json");
        fs::create_dir_all(theirs.parent().unwrap()).unwrap();
        fs::write(&theirs, r#"{"auths":{"a.example/team":{"auth":"eDp5"}}}"#).unwrap();
        let forgotten = forget(&env(dir.path(), &[]), "a.example", &NEVER).unwrap();
        assert_eq!(forgotten, Forgotten { from: vec![], remains: vec![theirs] });
        assert!(!dir.path().join(".docker").exists());
    }

    #[test]
    fn a_helper_keeps_it_where_the_file_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let (bin, safe) = (dir.path().join("bin"), dir.path().join("safe"));
        fs::create_dir(&bin).unwrap();
        let script = format!(
            "#!/bin/sh\ncase $1 in store) cat > {0};; erase) rm {0};; get) cat {0} 2> /dev/null || \
             {{ echo credentials not found; exit 1; }};; esac\n",
            safe.display()
        );
        fs::write(bin.join("docker-credential-safe"), script).unwrap();
        let executable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(bin.join("docker-credential-safe"), executable).unwrap();
        fs::create_dir(dir.path().join(".docker")).unwrap();
        let path = dir.path().join(".docker/config.json");
        fs::write(&path, r#"{"credsStore":"safe"}"#).unwrap();
        let on_path = format!("{}:/usr/bin:/bin", bin.display());
        let env = env(dir.path(), &[("PATH", &on_path)]);
        let kept = keep(&env, "a.example", &password("a"), &NEVER).unwrap();
        assert_eq!(kept, Kept::Helper("safe".into()));
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains("auth\"") && text.contains("\"a.example\": {}"), "{text}");
        let keychain = HostKeychain::read(&env, &[], &NEVER).unwrap();
        assert_eq!(keychain.credential("a.example", "x").unwrap(), Some(password("a")));
        let forgotten = forget(&env, "a.example", &NEVER).unwrap();
        assert_eq!(forgotten.from, ["docker-credential-safe"]);
        assert!(!safe.exists());
    }

    #[test]
    fn what_is_no_configuration_is_not_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let env = env(dir.path(), &[]);
        fs::create_dir(dir.path().join(".docker")).unwrap();
        let path = dir.path().join(".docker/config.json");
        for text in ["root:x:0:0", "[]", r#"{"auths":[]}"#] {
            fs::write(&path, text).unwrap();
            let error = keep(&env, "a.example", &password("a"), &NEVER).unwrap_err();
            assert!(error.is_usage(), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        // A link of the user's own is followed, and stays one.
        fs::remove_file(&path).unwrap();
        let real = dir.path().join("real.json");
        std::os::unix::fs::symlink("../real.json", &path).unwrap();
        keep(&env, "a.example", &password("a"), &NEVER).unwrap();
        assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
        assert!(fs::read_to_string(real).unwrap().contains("a.example"));
    }
}
