//! Git, the host's own: which commit a name is, and what the files of a commit are.
//!
//! It runs with nothing of the machine but its path, its certificates, its proxies and root's SSH
//! keys: no configuration, no hooks, no helpers, no terminal, and only over the network.

use std::cell::Cell;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use kiln_core::Tree;
use kiln_core::tree::{Kind, Node};
use kiln_store::Store;

use serde::{Deserialize, Serialize};

use crate::dot_git;
use crate::error::RemoteError;
use crate::http::Proxies;
use crate::program::{self, Bounds, Output, ProgramError};
use crate::reference::{self, GitReference};

/// A commit of a repository, as `kiln.lock` pins it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedGit {
    /// The address, a password in it masked.
    pub remote: String,
    /// As the Dockerfile names it; empty for the default branch.
    #[serde(rename = "ref", default)]
    pub name: String,
    /// The full reference that it was: `refs/heads/main`.
    #[serde(default)]
    pub full: String,
    /// Hash of the annotated tag, if it is one.
    #[serde(default)]
    pub tag: String,
    /// Hash of the commit.
    pub commit: String,
}

/// Configuration that every call has. `file:` and `ext:` would reach into this machine, for a
/// repository names its submodules' addresses.
const CONFIG: [&str; 14] = [
    "protocol.allow=never",
    "protocol.https.allow=always",
    "protocol.http.allow=always",
    "protocol.ssh.allow=always",
    "protocol.git.allow=always",
    "core.hooksPath=/dev/null",
    "core.attributesFile=/dev/null",
    "core.fsmonitor=false",
    "core.autocrlf=false",
    "core.symlinks=true",
    "credential.helper=",
    "init.defaultBranch=master",
    "gc.auto=0",
    "maintenance.auto=false",
];

/// SSH as Git starts it: no configuration of a user, no question. Hosts must be known, for nobody
/// could be asked. A host that is gone is noticed within two minutes.
const SSH: &str = "ssh -F /dev/null -o BatchMode=yes -o ConnectTimeout=30 \
    -o ServerAliveInterval=30 -o ServerAliveCountMax=4";

/// What a repository may take. It is a stranger's.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Seconds without a byte before Git gives up. While a server packs, it sends a sign of life
    /// every five.
    silent: u32,
    /// How long a question may take.
    ask: Duration,
    /// How long a fetch or checkout may take.
    work: Duration,
    /// Bytes on disk: history and files together.
    disk: u64,
}

const LIMITS: Limits = Limits {
    silent: 120,
    ask: Duration::from_secs(5 * 60),
    work: Duration::from_secs(60 * 60),
    disk: 32 << 30,
};

/// Most that Git may print: a repository of a million references.
const PRINTED: usize = 128 << 20;

impl LockedGit {
    /// What must hold: the parts become arguments of Git.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), String> {
        let hash = |text: &str| reference::is_hash(text);
        if !hash(&self.commit) || !(self.tag.is_empty() || hash(&self.tag)) {
            return Err(format!("`{}`: its commit or tag is no whole hash", self.remote));
        }
        let full = &self.full;
        let odd = full.bytes().any(|byte| byte <= b' ' || b"~^:?*[\\\x7f".contains(&byte));
        if !full.is_empty() && (!full.starts_with("refs/") || full.contains("..") || odd) {
            return Err(format!("`{}`: `{full}` is no full name of a reference", self.remote));
        }
        Ok(())
    }
}

/// One repository.
pub struct Git<'a> {
    store: &'a Store,
    reference: &'a GitReference,
    proxies: &'a Proxies,
    cancel: &'a AtomicBool,
    limits: Limits,
}

impl std::fmt::Debug for Git<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Git").field("remote", &self.remote()).finish_non_exhaustive()
    }
}

impl<'a> Git<'a> {
    /// What `reference` names, over `proxies`; ends soon after `cancel` is set.
    pub fn new(
        store: &'a Store,
        reference: &'a GitReference,
        proxies: &'a Proxies,
        cancel: &'a AtomicBool,
    ) -> Self {
        Self { store, reference, proxies, cancel, limits: LIMITS }
    }

    fn remote(&self) -> String {
        reference::redacted(&self.reference.remote)
    }

    /// Asks the repository which commit the name is. Branches win over tags, as with `git checkout`.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub fn resolve(&self) -> Result<LockedGit, RemoteError> {
        let home = self.store.scratch_dir()?;
        let remote = self.reference.remote.as_str();
        let mut name = self.reference.name.clone();
        if name.is_empty() {
            let found = self.run(
                home.path(),
                "asking for its default branch",
                &["ls-remote", "--symref", "--", remote, "HEAD"],
            )?;
            let branch = found.lines().find_map(|line| {
                line.strip_prefix("ref: ")?.split_whitespace().next().map(str::to_owned)
            });
            name = branch.ok_or_else(|| {
                RemoteError::reference(remote, "it has no default branch; name one: `…#main`")
            })?;
        }
        let peeled = format!("{name}^{{}}");
        let found = self.run(
            home.path(),
            "asking for a reference",
            &["ls-remote", "--", remote, &name, &peeled],
        )?;
        let hash = |wanted: &str| {
            let line = |line: &str| -> Option<String> {
                let (hash, full) = line.split_once('\t')?;
                (full == wanted && reference::is_hash(hash)).then(|| hash.to_owned())
            };
            found.lines().find_map(line)
        };
        let under =
            |prefix: &str| format!("{prefix}{}", name.strip_prefix(prefix).unwrap_or(&name));
        for full in [under("refs/"), under("refs/heads/"), under("refs/tags/")] {
            let Some(own) = hash(&full) else { continue };
            let commit = hash(&format!("{full}^{{}}"));
            return Ok(LockedGit {
                remote: self.remote(),
                name: self.reference.name.clone(),
                full,
                tag: if commit.is_some() { own.clone() } else { String::new() },
                commit: commit.unwrap_or(own),
            });
        }
        Err(RemoteError::reference(remote, format!("repository does not contain ref {name}")))
    }

    /// The files of a pinned commit, submodules among them.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub fn checkout(&self, pin: &LockedGit, keep: bool) -> Result<Tree, RemoteError> {
        let scratch = self.store.scratch_dir()?;
        let home = scratch.path();
        let work = home.join("work");
        fs::create_dir(&work)?;
        let sha256 = if pin.commit.len() == 64 { "sha256" } else { "sha1" };
        let format = format!("--object-format={sha256}");
        self.run(
            home,
            "making a repository",
            &["init", "--quiet", "--bare", "--template=", &format, "git"],
        )?;
        let work_tree = "--work-tree=work";
        let inside = ["--git-dir=git", work_tree];
        self.run(
            home,
            "naming it",
            &[&inside[..], &["remote", "add", "origin", "--", &self.reference.remote]].concat(),
        )?;
        self.fetch(home, pin)?;
        self.run(
            home,
            "checking it out",
            &[&inside[..], &["-c", "core.bare=false", "read-tree", "--reset", "-u", &pin.commit]]
                .concat(),
        )?;
        if !self.reference.no_submodules && work.join(".gitmodules").is_file() {
            self.submodules(home)?;
        }
        let mut tree = Tree::new();
        read(self.store, &work, b"", &mut tree)?;
        if keep {
            dot_git::add(self.store, self, home, pin, &mut tree)?;
        }
        Ok(tree)
    }

    /// Gets the commit: by its hash; else by the name that it had; else all there is, for a server
    /// of plain files can do no better.
    fn fetch(&self, home: &Path, pin: &LockedGit) -> Result<(), RemoteError> {
        let wanted = if pin.tag.is_empty() { &pin.commit } else { &pin.tag };
        let by_name = format!("+{}:refs/kiln/it", pin.full);
        let all = ["+refs/heads/*:refs/kiln/heads/*", "+refs/tags/*:refs/kiln/tags/*"];
        let shallow = ["--git-dir=git", "fetch", "--quiet", "--no-tags", "--depth=1", "origin"];
        let whole = ["--git-dir=git", "fetch", "--quiet", "--no-tags", "origin"];
        let mut ways = vec![[&shallow[..], &[wanted.as_str()]].concat()];
        if !pin.full.is_empty() {
            ways.push([&shallow[..], &[by_name.as_str()]].concat());
        }
        ways.push([&whole[..], &all].concat());
        let commit = format!("{}^{{commit}}", pin.commit);
        let mut last = Ok(());
        for way in ways {
            last = self.run(home, "fetching it", &way).map(drop);
            if matches!(last, Err(RemoteError::Cancelled | RemoteError::NoGit(_))) {
                return last;
            }
            let there = ["--git-dir=git", "cat-file", "-e", &commit];
            if self.run(home, "looking for the commit", &there).is_ok() {
                return Ok(());
            }
        }
        last?;
        // The name leads elsewhere by now, and the repository no longer has what it led to.
        let found = self.resolve().map_or("something else".to_owned(), |now| now.commit);
        Err(RemoteError::Differs {
            source_text: format!("{}#{}", self.remote(), pin.name),
            found,
            expected: pin.commit.clone(),
            pinned_by: "kiln.lock",
        })
    }

    fn submodules(&self, home: &Path) -> Result<(), RemoteError> {
        let git_dir = format!("--git-dir={}", home.join("git").display());
        let work = home.join("work");
        let work_tree = format!("--work-tree={}", work.display());
        let update = [
            "-c",
            "core.bare=false",
            &git_dir,
            &work_tree,
            "submodule",
            "--quiet",
            "update",
            "--init",
            "--recursive",
        ];
        let what = "fetching its submodules";
        // Not every server gives a single commit.
        match self.run_in(home, &work, what, &[&update[..], &["--depth=1"]].concat()) {
            Err(RemoteError::Git { .. }) => self.run_in(home, &work, what, &update).map(drop),
            other => other.map(drop),
        }
    }

    pub(crate) fn run(
        &self,
        home: &Path,
        what: &str,
        args: &[&str],
    ) -> Result<String, RemoteError> {
        self.run_in(home, home, what, args)
    }

    fn run_in(
        &self,
        home: &Path,
        dir: &Path,
        what: &str,
        args: &[&str],
    ) -> Result<String, RemoteError> {
        let mut command = self.command(home, dir);
        command.args(args);
        let failed = |output: String| RemoteError::Git {
            remote: self.remote(),
            what: format!("{what} failed"),
            output,
        };
        let limits = self.limits;
        let full = Cell::new(false);
        let watch = || {
            full.set(on_disk(home, limits.disk)? > limits.disk);
            if full.get() { Err(std::io::Error::other("too much")) } else { Ok(()) }
        };
        let asks = args.contains(&"ls-remote");
        let within = if asks { limits.ask } else { limits.work };
        let bounds =
            Bounds { most: PRINTED, within: Some(within), watch: Some(&watch), ..program::FREE };
        let ran = program::run_within(command, &bounds, self.cancel);
        let run = ran.map_err(|error| match error {
            ProgramError::Cancelled => RemoteError::Cancelled,
            ProgramError::Failed { source, .. } if source.kind() == ErrorKind::NotFound => {
                RemoteError::NoGit(self.remote())
            }
            ProgramError::Failed { source, .. } if source.kind() == ErrorKind::TimedOut => {
                failed(format!("it took longer than {} s", within.as_secs()))
            }
            ProgramError::Failed { .. } if full.get() => failed(format!(
                "it takes more than {} MiB on disk; name a smaller repository or a part of it as \
                 an archive",
                limits.disk >> 20
            )),
            other => failed(other.to_string()),
        });
        let Output { success, stdout, stderr } = run?;
        if success {
            return Ok(stdout);
        }
        let stderr = stderr.replace(&self.reference.remote, &self.remote());
        let lines: Vec<&str> = stderr.lines().filter(|line| !line.trim().is_empty()).collect();
        Err(failed(lines[lines.len().saturating_sub(3)..].join("; ")))
    }

    /// Git with nothing of this machine but what the module's map names.
    pub(crate) fn command(&self, home: &Path, dir: &Path) -> Command {
        let mut command = Command::new("git");
        command.env_clear().current_dir(dir);
        for name in ["PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO", "SSH_AUTH_SOCK"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.envs(self.proxies.variables());
        command
            .env("HOME", home)
            .env("LC_ALL", "C")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_SSH_COMMAND", SSH);
        for pair in CONFIG {
            command.args(["-c", pair]);
        }
        command.args(["-c", "http.lowSpeedLimit=1"]);
        command.args(["-c", &format!("http.lowSpeedTime={}", self.limits.silent)]);
        command
    }
}

/// Bytes that a folder takes on disk; counted no further than beyond `most`. What goes meanwhile
/// does not count.
fn on_disk(folder: &Path, most: u64) -> std::io::Result<u64> {
    let gone = |error: &std::io::Error| error.kind() == ErrorKind::NotFound;
    let mut bytes = 0;
    let mut left = vec![folder.to_owned()];
    while let Some(folder) = left.pop() {
        let entries = match fs::read_dir(&folder) {
            Err(error) if gone(&error) => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let meta = match entry.metadata() {
                Err(error) if gone(&error) => continue,
                meta => meta?,
            };
            bytes += meta.blocks() * 512;
            if bytes > most {
                return Ok(bytes);
            }
            if meta.is_dir() {
                left.push(entry.path());
            }
        }
    }
    Ok(bytes)
}

/// Reads a checkout: Git's two modes, links, folders; everything is root's. What Git itself puts
/// into the folders of submodules tells of this machine, and is left out.
fn read(store: &Store, dir: &Path, at: &[u8], tree: &mut Tree) -> Result<(), RemoteError> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == ".git" {
            continue;
        }
        let path = join(at, name.as_bytes());
        let meta = entry.metadata()?;
        let kind = if meta.is_dir() {
            tree.insert(&path, Node::new(Kind::Dir, 0o755));
            read(store, &entry.path(), &path, tree)?;
            continue;
        } else if meta.is_symlink() {
            let target = fs::read_link(entry.path())?;
            Kind::Symlink { target: target.as_os_str().as_bytes().to_vec() }
        } else {
            let (digest, size) = store.put_file(entry.path())?;
            Kind::File { size, digest }
        };
        let mode = if meta.permissions().mode() & 0o100 != 0 { 0o755 } else { 0o644 };
        tree.insert(&path, Node::new(kind, mode));
    }
    Ok(())
}

/// What lies below a folder, as a tree of its own.
pub fn subtree(tree: &Tree, dir: &[u8]) -> Tree {
    let mut found = Tree::new();
    let prefix = [dir, b"/"].concat();
    let below = tree.entries.range(prefix.clone()..);
    for (path, node) in below.take_while(|(path, _)| path.starts_with(&prefix)) {
        found.entries.insert(path[prefix.len()..].to_vec(), node.clone());
    }
    found
}

/// `dir` and `name` as one key of a tree.
fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    static NEVER: AtomicBool = AtomicBool::new(false);

    /// What becomes of asking a server that does `serve` with each connection.
    fn asked(
        limits: Limits,
        serve: impl Fn(TcpStream) -> std::io::Result<()> + Send + Clone + 'static,
    ) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        // It ends with the process of the tests.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let serve = serve.clone();
                std::thread::spawn(move || serve(stream));
            }
        });
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let remote = format!("http://127.0.0.1:{port}/x.git");
        let reference = GitReference { remote, ..GitReference::default() };
        let proxies = Proxies::default();
        let git = Git { limits, ..Git::new(&store, &reference, &proxies, &NEVER) };
        git.resolve().unwrap_err().to_string()
    }

    #[test]
    fn a_server_that_hangs_or_trickles_is_given_up() {
        let silent = Limits { silent: 1, ask: Duration::from_secs(300), ..LIMITS };
        let hangs = |mut stream: TcpStream| stream.read_to_end(&mut Vec::new()).map(drop);
        let error = asked(silent, hangs);
        assert!(error.to_lowercase().contains("too slow"), "{error}");
        let slow = Limits { ask: Duration::from_secs(3), ..LIMITS };
        let trickles = |mut stream: TcpStream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")?;
            loop {
                stream.write_all(b"x")?;
                std::thread::sleep(Duration::from_millis(100));
            }
        };
        let error = asked(slow, trickles);
        assert!(error.contains("it took longer than 3 s"), "{error}");
    }

    #[test]
    fn what_a_repository_takes_on_disk_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("in")).unwrap();
        fs::write(dir.path().join("in/file"), vec![7; 3 << 20]).unwrap();
        assert!(on_disk(dir.path(), u64::MAX).unwrap() >= 3 << 20);
        assert!(on_disk(&dir.path().join("gone"), u64::MAX).unwrap() == 0);

        let store = Store::open(dir.path().join("root")).unwrap();
        let reference = GitReference::default();
        let limits = Limits { disk: 1 << 20, ..LIMITS };
        let proxies = Proxies::default();
        let git = Git { limits, ..Git::new(&store, &reference, &proxies, &NEVER) };
        // A call that does not end: it waits for somebody who writes.
        let pipe = dir.path().join("pipe");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let error = git.run(dir.path(), "waiting", &["hash-object", "--no-filters", "pipe"]);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("more than 1 MiB on disk"), "{error}");
    }
}
