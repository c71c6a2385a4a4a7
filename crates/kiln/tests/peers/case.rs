//! One case: a Dockerfile with its context, and what is known to differ.
//!
//! ```text
//! == what the case is about
//! # why, for readers
//! arg NAME=VALUE              a build argument; also `target NAME`, `dockerfile PATH`,
//!                             `secret ID=TEXT`
//! fails PEERS | WHY           these refuse it (`kiln`, `buildkit`, `classic`, `buildah`, `all`)
//! skip PEERS | WHY            these are not asked
//! differs PEERS | WHERE | KILN | THEIRS | WHY
//! --- PATH [MODE]             a file of the context, its lines follow; MODE has four digits, or is 0644
//! --- PATH -> TARGET          a symbolic link
//! --- $                       a shell script, run in the context when all files are there
//! ```
//! `WHERE` is a path and an attribute as in a listing (`./a mode`), a path and `entry` for one that
//! only one of them has, or `config.KEY`. `-` is what is not there; `*` is any value.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use kiln_testkit::Call;

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Case {
    /// File and line, for messages.
    pub(crate) place: String,
    pub(crate) name: String,
    pub(crate) args: Vec<(String, String)>,
    pub(crate) target: Option<String>,
    pub(crate) dockerfile: Option<String>,
    pub(crate) secrets: Vec<(String, String)>,
    pub(crate) fails: Vec<String>,
    pub(crate) skip: Vec<String>,
    pub(crate) differs: Vec<Differs>,
    files: Vec<File>,
}

/// A difference that is known and meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Differs {
    pub(crate) peers: Vec<String>,
    pub(crate) place: String,
    pub(crate) kiln: String,
    pub(crate) theirs: String,
}

#[derive(Debug)]
enum File {
    Plain { path: String, mode: u32, text: String },
    Link { path: String, target: String },
    Script(String),
}

impl Case {
    /// Whether a list of peers in a header names one.
    pub(crate) fn names(list: &[String], peer: &str) -> bool {
        list.iter().any(|name| name == peer || name == "all")
    }

    /// The cases of one file; `name` is the file's, for messages.
    pub(crate) fn parse(name: &str, text: &str) -> Vec<Self> {
        let mut cases: Vec<Self> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let place = format!("{name}:{}", index + 1);
            if let Some(title) = line.strip_prefix("== ") {
                cases.push(Self { place, name: title.to_owned(), ..Self::default() });
                continue;
            }
            let Some(case) = cases.last_mut() else { continue };
            if let Some(head) = line.strip_prefix("--- ") {
                case.files.push(File::parse(head));
            } else if let Some(file) = case.files.last_mut() {
                file.add(line, &place);
            } else {
                case.header(line, &place);
            }
        }
        cases
    }

    fn header(&mut self, line: &str, place: &str) {
        let (key, rest) = line.split_once(' ').unwrap_or((line, ""));
        let pair = || {
            let pair = rest.split_once('=').unwrap_or_else(|| panic!("{place}: NAME=VALUE"));
            (pair.0.to_owned(), pair.1.to_owned())
        };
        let parts: Vec<&str> = rest.split('|').map(str::trim).collect();
        let peers = || parts[0].split_whitespace().map(str::to_owned);
        match (key, parts.len()) {
            ("#" | "", _) => {}
            ("arg", _) => self.args.push(pair()),
            ("secret", _) => self.secrets.push(pair()),
            ("target", _) => self.target = Some(rest.to_owned()),
            ("dockerfile", _) => self.dockerfile = Some(rest.to_owned()),
            ("fails", 2) => self.fails.extend(peers()),
            ("skip", 2) => self.skip.extend(peers()),
            ("differs", 5) => self.differs.push(Differs {
                peers: peers().collect(),
                place: parts[1].to_owned(),
                kiln: parts[2].to_owned(),
                theirs: parts[3].to_owned(),
            }),
            _ => panic!("{place}: not a header: {line}"),
        }
    }

    /// Writes the context.
    pub(crate) fn write(&self, dir: &Path) {
        make_dir(dir);
        for file in &self.files {
            match file {
                File::Plain { path, mode, text } => {
                    let path = dir.join(path);
                    make_dir(path.parent().unwrap());
                    fs::write(&path, text).unwrap();
                    fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
                }
                File::Link { path, target } => {
                    let path = dir.join(path);
                    make_dir(path.parent().unwrap());
                    symlink(target, path).unwrap();
                }
                File::Script(script) => {
                    let script = format!("umask 022\n{script}");
                    let call = Call::new("/bin/sh").args(["-euc", &script]).dir(dir);
                    call.run_ok().unwrap_or_else(|error| panic!("{}: {error:#}", self.place));
                }
            }
        }
    }

    /// The Dockerfile's path below the context.
    pub(crate) fn dockerfile(&self) -> PathBuf {
        PathBuf::from(self.dockerfile.as_deref().unwrap_or("Dockerfile"))
    }
}

impl File {
    fn parse(head: &str) -> Self {
        if head == "$" {
            return Self::Script(String::new());
        }
        if let Some((path, target)) = head.split_once(" -> ") {
            return Self::Link { path: path.to_owned(), target: target.to_owned() };
        }
        let mode = |word: &str| (word.len() == 4).then(|| u32::from_str_radix(word, 8).ok())?;
        let (path, mode) = match head.rsplit_once(' ') {
            Some((path, word)) if mode(word).is_some() => (path, mode(word).unwrap()),
            _ => (head, 0o644),
        };
        Self::Plain { path: path.to_owned(), mode, text: String::new() }
    }

    fn add(&mut self, line: &str, place: &str) {
        match self {
            Self::Plain { text, .. } | Self::Script(text) => *text += &format!("{line}\n"),
            Self::Link { .. } => assert!(line.is_empty(), "{place}: a link has no lines"),
        }
    }
}

/// Makes a directory and those above it, with the mode that a checkout gives them.
fn make_dir(dir: &Path) {
    if !dir.exists() {
        make_dir(dir.parent().unwrap());
        fs::create_dir(dir).unwrap();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    }
}
