//! Git, the host's own: which commit a name is, and what the files of a commit are.
//!
//! It runs with nothing of the machine but its path, its certificates, its proxies and root's SSH
//! keys: no configuration, no hooks, no helpers, no terminal, and only over the network.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

use kiln_core::Tree;
use kiln_core::tree::{Kind, Node};
use kiln_store::Store;

use serde::{Deserialize, Serialize};

use crate::dot_git;
use crate::error::RemoteError;
use crate::http::Proxies;
use crate::program::{self, Output, ProgramError};
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
/// could be asked.
const SSH: &str = "ssh -F /dev/null -o BatchMode=yes";

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
        Self { store, reference, proxies, cancel }
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
        let run = program::run(command, self.cancel).map_err(|error| match error {
            ProgramError::Cancelled => RemoteError::Cancelled,
            ProgramError::Failed { source, .. }
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                RemoteError::NoGit(self.remote())
            }
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
        command
    }
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
