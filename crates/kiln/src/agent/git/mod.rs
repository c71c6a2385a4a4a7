//! A project's Git repository, read without trusting it.
//!
//! The agent is root and repositories are other people's. Git runs programs that a repository's
//! configuration names (`core.fsmonitor`, filters, hooks, transports for missing objects), so no
//! `git` of ours ever sees that configuration: it works in a [`Cage`], a Git directory of our own
//! that leads to the repository's objects, references and index by links. `docs/release.md` has
//! the reasons.
//!
//! | module | what |
//! |---|---|
//! | [`commit`] | the files of a commit, written down exactly as they are in it |
//! | [`compare`] | what of a working tree is not as in the commit |

pub(crate) mod commit;
pub(crate) mod compare;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kiln_store::regular::{self, Links};

use crate::report::{Because, Report};

/// Configuration that is taken over: how this machine's file system shows a checkout. None of it
/// can name a program.
const TAKEN_OVER: [&str; 10] = [
    "core.autocrlf",
    "core.eol",
    "core.filemode",
    "core.symlinks",
    "core.ignorecase",
    "core.precomposeunicode",
    "core.trustctime",
    "core.checkstat",
    "extensions.objectformat",
    "extensions.refstorage",
];

/// Where a project is in Git.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Repository {
    /// The working tree's top folder, without links in its path.
    pub top: PathBuf,
    /// Git's folder for this working tree: its `HEAD` and index.
    own: PathBuf,
    /// Git's folder for all working trees: objects, references, configuration.
    common: PathBuf,
}

impl Repository {
    /// The repository whose working tree holds `dir`; `None` outside of any. Decided by looking at
    /// folders alone: neither `GIT_DIR` of whoever asks nor configuration counts, and projects
    /// outside of Git pay for no process.
    pub(crate) fn find(dir: &Path) -> Option<Self> {
        let dir = dir.canonicalize().ok()?;
        let top = dir.ancestors().find(|dir| dir.join(".git").exists())?;
        let mut own = top.join(".git");
        if own.is_file() {
            // A linked working tree or a submodule.
            let text = small_file(&own)?;
            own = top.join(text.strip_prefix("gitdir: ")?.trim_end());
        }
        let common = match small_file(&own.join("commondir")) {
            Some(path) => own.join(path.trim_end()),
            None => own.clone(),
        };
        let is_git = own.join("HEAD").exists() && common.join("objects").is_dir();
        is_git.then(|| Self { top: top.to_owned(), own, common })
    }

    /// The commit that is checked out, as the files of references tell it, without a process.
    /// `None`: they do not (a reference of a reference, another form of storage): ask Git.
    pub(crate) fn head(&self) -> Option<String> {
        let text = small_file(&self.own.join("HEAD"))?;
        let Some(name) = text.strip_prefix("ref: ") else { return full_name(&text) };
        let name = name.trim_end();
        let plain = name.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        if !name.starts_with("refs/") || !plain {
            return None;
        }
        let loose = [&self.own, &self.common].map(|folder| folder.join(name));
        if let Some(loose) = loose.iter().find(|path| path.exists()) {
            return full_name(&small_file(loose)?);
        }
        let packed = small_file(&self.common.join("packed-refs"))?;
        let mut lines = packed.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(_, other)| *other == name).and_then(|(commit, _)| full_name(commit))
    }

    /// `path`, which may not exist, relative to the top folder; `None` if it is elsewhere.
    pub(crate) fn relative(&self, path: &Path) -> Option<PathBuf> {
        if let Ok(inside) = path.strip_prefix(&self.top) {
            return Some(inside.to_owned());
        }
        // The same place by another name: links above the working tree.
        let (there, real) =
            path.ancestors().find_map(|dir| Some((dir, dir.canonicalize().ok()?)))?;
        let rest = path.strip_prefix(there).ok()?;
        real.join(rest).strip_prefix(&self.top).ok().map(Path::to_owned)
    }
}

/// `text` if it is the full name of an object: 40 or 64 hexadecimal digits.
fn full_name(text: &str) -> Option<String> {
    let text = text.trim_end();
    let is_name = matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit());
    is_name.then(|| text.to_owned())
}

/// A small file that really is one: no pipe that never ends.
fn small_file(path: &Path) -> Option<String> {
    String::from_utf8(regular::read(path, Links::Follow, 64 << 10).ok()?).ok()
}

/// A Git directory of our own over somebody's repository.
#[derive(Debug)]
pub(crate) struct Cage<'a> {
    /// The repository.
    pub repository: &'a Repository,
    dir: tempfile::TempDir,
}

impl<'a> Cage<'a> {
    /// Builds it in `dir`. `home` is the home of the user who asks: their settings count, too.
    pub(crate) fn new(
        repository: &'a Repository,
        dir: tempfile::TempDir,
        home: Option<&Path>,
    ) -> Result<Self, Report> {
        let cage = Self { repository, dir };
        cage.lay_out(home)
            .because(|| format!("looking at the Git repository {}", repository.top.display()))?;
        Ok(cage)
    }

    fn lay_out(&self, home: Option<&Path>) -> io::Result<()> {
        let Repository { own, common, .. } = self.repository;
        let cage = self.dir.path();
        let head = small_file(&own.join("HEAD"))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "`HEAD` cannot be read"))?;
        fs::write(cage.join("HEAD"), head)?;
        fs::write(cage.join("config"), "[core]\nrepositoryformatversion = 1\n")?;
        fs::create_dir(cage.join("info"))?;
        for name in ["objects", "refs", "packed-refs", "reftable", "shallow", "info/exclude"] {
            if common.join(name).exists() {
                symlink(common.join(name).canonicalize()?, cage.join(name))?;
            }
        }
        let shared = fs::read_dir(own)?.flatten().map(|entry| entry.file_name());
        let shared = shared.filter(|name| name.as_encoded_bytes().starts_with(b"sharedindex."));
        for name in shared.chain(["index".into(), "logs".into()]) {
            if own.join(&name).exists() {
                symlink(own.join(&name).canonicalize()?, cage.join(&name))?;
            }
        }
        let config = self.config(home)?;
        fs::write(cage.join("config"), config)
    }

    /// The configuration of the cage: what of the machine's, the user's and the repository's may
    /// be taken over. The later file wins, as in Git.
    fn config(&self, home: Option<&Path>) -> io::Result<String> {
        let Repository { own, common, .. } = self.repository;
        let mut files = vec![PathBuf::from("/etc/gitconfig")];
        if let Some(home) = home {
            files.extend([home.join(".config/git/config"), home.join(".gitconfig")]);
        }
        files.extend([common.join("config"), own.join("config.worktree")]);
        let mut taken: BTreeMap<&str, String> = BTreeMap::new();
        let mut excludes = home.map(|home| home.join(".config/git/ignore"));
        // Git reads a copy: what is at the path by then may be anything else.
        let copy = self.dir.path().join("config.read");
        for text in files.iter().filter_map(|file| small_file(file)) {
            fs::write(&copy, text)?;
            let listed = self.git(["config", "--no-includes", "-z", "--list", "--file"]);
            let Ok(listed) = run({ listed }.arg(&copy)) else { continue };
            for setting in String::from_utf8_lossy(&listed).split('\0') {
                let (key, value) = setting.split_once('\n').unwrap_or((setting, "true"));
                if let Some(key) = TAKEN_OVER.iter().find(|name| **name == key) {
                    taken.insert(key, value.to_owned());
                } else if key == "core.excludesfile" {
                    let home = home.unwrap_or(Path::new("/"));
                    excludes = Some(match value.strip_prefix("~/") {
                        Some(rest) => home.join(rest),
                        None => self.repository.top.join(value),
                    });
                }
            }
        }
        // A file of patterns is only read, and only if it is one.
        let excludes = excludes.filter(|path| small_file(path).is_some());
        let excludes = excludes.map_or("/dev/null".into(), |path| path.display().to_string());
        let mut text = String::from("[core]\nrepositoryformatversion = 1\nbare = false\n");
        let _ = writeln!(text, "excludesfile = {}", quoted(&excludes));
        for (key, value) in taken {
            let (section, name) = key.split_once('.').unwrap_or(("core", key));
            let _ = writeln!(text, "[{section}]\n{name} = {}", quoted(&value));
        }
        Ok(text)
    }

    /// A `git` in the cage: no configuration but ours, no environment, no terminal.
    fn git<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new("git");
        command.args(args).env_clear().current_dir(&self.repository.top);
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        for (name, value) in [
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_ATTR_NOSYSTEM", "1"),
            ("HOME", "/nonexistent"),
            // What is not there is missing; nobody is asked for it.
            ("GIT_NO_LAZY_FETCH", "1"),
            // A commit is what its name says, not what somebody wants to be seen instead.
            ("GIT_NO_REPLACE_OBJECTS", "1"),
            ("GIT_OPTIONAL_LOCKS", "0"),
            ("GIT_LITERAL_PATHSPECS", "1"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("LC_ALL", "C"),
        ] {
            command.env(name, value);
        }
        command.env("GIT_DIR", self.dir.path()).env("GIT_WORK_TREE", &self.repository.top);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The commit that `revision` means, as a full name.
    ///
    /// # Errors
    /// There is none, or `git` is missing.
    pub(crate) fn commit(&self, revision: &str) -> Result<String, Report> {
        let wanted = format!("{revision}^{{commit}}");
        let args = ["rev-parse", "--verify", "--quiet", "--end-of-options", &wanted];
        let named = run(&mut self.git(args)).map_err(|error| match error {
            Failure::Ended(_) => {
                let top = self.repository.top.display();
                let what = match revision {
                    "HEAD" => format!("{top} has no commit yet"),
                    _ => format!("`{revision}` is no commit of {top}"),
                };
                Report::usage(what).hint("git log")
            }
            other => other.report(),
        })?;
        Ok(String::from_utf8_lossy(&named).trim_end().to_owned())
    }
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out + "\""
}

/// How a `git` failed.
#[derive(Debug)]
enum Failure {
    /// It could not be started.
    Missing(io::Error),
    /// It ended otherwise than well, and said this.
    Ended(String),
}

impl Failure {
    fn report(self) -> Report {
        match self {
            Self::Missing(error) if error.kind() == io::ErrorKind::NotFound => {
                Report::failed("there is no `git` on this machine: it reads the repository")
                    .hint("apt install git")
            }
            Self::Missing(error) => Report::failed(format!("`git` cannot be started: {error}")),
            Self::Ended(text) => Report::failed(format!("git: {}", text.trim_end())),
        }
    }
}

/// Runs to the end and gives what was printed.
fn run(command: &mut Command) -> Result<Vec<u8>, Failure> {
    let output = command.output().map_err(Failure::Missing)?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(Failure::Ended(String::from_utf8_lossy(&output.stderr).into_owned())),
    }
}

/// As [`run`], with `input` on its standard input.
fn run_with(command: &mut Command, input: Vec<u8>) -> Result<Vec<u8>, Failure> {
    let mut child = command.stdin(Stdio::piped()).spawn().map_err(Failure::Missing)?;
    let stdin = child.stdin.take();
    // Written beside reading: both pipes may be full.
    let writer = std::thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(&input)));
    let output = child.wait_with_output().map_err(Failure::Missing)?;
    let _ = writer.join();
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(Failure::Ended(String::from_utf8_lossy(&output.stderr).into_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn git(dir: &Path, args: &[&str]) -> String {
        let mut command = Command::new("git");
        command.arg("-C").arg(dir).args(args);
        for name in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{name}_NAME"), "x").env(format!("GIT_{name}_EMAIL"), "x@x");
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "git {args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    #[test]
    fn the_commit_is_read_as_git_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let (top, beside) = (dir.path().join("a"), dir.path().join("b"));
        fs::create_dir(&top).unwrap();
        git(&top, &["init", "-q"]);
        assert_eq!(Repository::find(&top).unwrap().head(), None, "no commit yet");
        git(&top, &["commit", "-q", "--allow-empty", "-m", "one"]);
        let agree = |dir: &Path, what: &str| {
            let read = Repository::find(dir).unwrap().head();
            assert_eq!(read, Some(git(dir, &["rev-parse", "HEAD"])), "{what}");
        };
        agree(&top, "a loose reference");
        git(&top, &["pack-refs", "--all"]);
        agree(&top, "a packed one");
        git(&top, &["commit", "-q", "--allow-empty", "-m", "two"]);
        agree(&top, "a loose one over a packed one");
        git(&top, &["worktree", "add", "-q", "-b", "other", beside.to_str().unwrap()]);
        git(&beside, &["commit", "-q", "--allow-empty", "-m", "three"]);
        agree(&beside, "another working tree");
        git(&top, &["checkout", "-q", "--detach"]);
        agree(&top, "no branch");
        git(&top, &["symbolic-ref", "refs/heads/alias", "refs/heads/other"]);
        git(&top, &["symbolic-ref", "HEAD", "refs/heads/alias"]);
        assert_eq!(Repository::find(&top).unwrap().head(), None, "left to Git");
    }
}
