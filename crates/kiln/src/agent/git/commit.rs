//! The files of one commit, and writing them down as they are in it: no filter, no change of line
//! ends, no `export-ignore`; modes 0644 and 0755, links as links.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use super::{Cage, Failure, run};
use crate::report::{Because, Report};

/// So many links are followed on the way to one file.
const MOST_LINKS: usize = 40;

/// What a commit has at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// A file.
    File {
        /// Whether it can be executed.
        executable: bool,
    },
    /// A symbolic link.
    Link,
    /// A commit of another repository.
    Submodule,
}

/// What a commit only names, with its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Elsewhere {
    /// A commit of another repository.
    Submodule(PathBuf),
    /// A file whose content is in Git LFS.
    Lfs(PathBuf),
}

/// One entry of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// What it is.
    pub what: What,
    /// Git's name of its content, hexadecimal.
    pub object: String,
}

/// All files of a commit by path, relative to the top folder.
#[derive(Debug)]
pub(crate) struct Commit<'a> {
    /// Its full name.
    pub name: String,
    /// Its files, in order of their paths as bytes.
    pub entries: BTreeMap<Vec<u8>, Entry>,
    cage: &'a Cage<'a>,
}

impl<'a> Commit<'a> {
    /// Reads the listing of the commit `name`.
    ///
    /// # Errors
    /// An object is missing (a shallow or partial clone), or a path in it could lead elsewhere.
    pub(crate) fn read(cage: &'a Cage<'a>, name: String) -> Result<Self, Report> {
        let mut git = cage.git(["ls-tree", "-r", "-z", "--full-tree", &name]);
        let listed = run(&mut git).map_err(|error| missing(&name, error))?;
        let mut entries = BTreeMap::new();
        for line in listed.split(|byte| *byte == 0).filter(|line| !line.is_empty()) {
            let (path, entry) = parse(line).ok_or_else(|| {
                let line = String::from_utf8_lossy(line).into_owned();
                Report::failed(format!("commit {name} has an entry that is not understood: {line}"))
            })?;
            if !is_safe(&path) {
                let path = String::from_utf8_lossy(&path).into_owned();
                return Err(Report::refused(format!(
                    "commit {name} names `{path}`, which leads out of the working tree"
                )));
            }
            entries.insert(path, entry);
        }
        Ok(Self { name, entries, cage })
    }

    /// Entries at or below `path`.
    pub(crate) fn below<'s>(
        &'s self,
        path: &'s [u8],
    ) -> impl Iterator<Item = (&'s [u8], &'s Entry)> {
        let inside = move |key: &[u8]| {
            path.is_empty()
                || key.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
        };
        // Between a folder and what is in it others can stand: `a-b` sorts before `a/b`.
        let range = self.entries.range(path.to_vec()..);
        let range = range.take_while(move |(key, _)| key.starts_with(path));
        range.filter(move |(key, _)| inside(key)).map(|(key, entry)| (key.as_slice(), entry))
    }

    /// Whether anything is at or below `path`.
    pub(crate) fn has(&self, path: &Path) -> bool {
        self.below(path.as_os_str().as_bytes()).next().is_some()
    }

    /// `path` with all links resolved inside the commit; `None` if one leads out of it or turns in
    /// circles. What is not there is no error.
    pub(crate) fn resolve(&self, path: &Path) -> Result<Option<PathBuf>, Report> {
        let mut done = PathBuf::new();
        let mut todo: Vec<PathBuf> = vec![path.to_owned()];
        let mut links = 0;
        while let Some(next) = todo.pop() {
            let mut components = next.components();
            let Some(component) = components.next() else { continue };
            todo.push(components.as_path().to_owned());
            match component {
                Component::Normal(name) => done.push(name),
                Component::ParentDir => {
                    if !done.pop() {
                        return Ok(None);
                    }
                    continue;
                }
                Component::CurDir => continue,
                Component::RootDir | Component::Prefix(_) => return Ok(None),
            }
            let entry = self.entries.get(done.as_os_str().as_bytes());
            if let Some(Entry { what: What::Link, object }) = entry {
                links += 1;
                if links > MOST_LINKS {
                    return Ok(None);
                }
                let target = self.contents([object.as_str()])?.pop().unwrap_or_default();
                done.pop();
                todo.push(PathBuf::from(OsStr::from_bytes(&target)));
            }
        }
        Ok(Some(done))
    }

    /// The contents of `objects`, in their order. For few and small ones.
    pub(crate) fn contents<'o>(
        &self,
        objects: impl IntoIterator<Item = &'o str>,
    ) -> Result<Vec<Vec<u8>>, Report> {
        let mut all = Vec::new();
        let objects: Vec<&str> = objects.into_iter().collect();
        self.stream(&objects, &mut |_, content| {
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes)?;
            all.push(bytes);
            Ok(())
        })?;
        Ok(all)
    }

    /// Writes all that is at or below `paths` under `to`, at its own path. Paths must be resolved.
    /// Gives what the commit has only a name of: submodules, and files that are in Git LFS, of
    /// which the pointer is written.
    ///
    /// # Errors
    /// A missing object; I/O errors.
    pub(crate) fn write(
        &self,
        paths: &BTreeSet<PathBuf>,
        to: &Path,
    ) -> Result<Vec<Elsewhere>, Report> {
        let mut wanted: BTreeMap<&[u8], &Entry> = BTreeMap::new();
        for path in paths {
            wanted.extend(self.below(path.as_os_str().as_bytes()));
        }
        let place = |path: &[u8]| PathBuf::from(OsStr::from_bytes(path));
        let (submodules, wanted): (Vec<_>, Vec<_>) =
            wanted.into_iter().partition(|(_, entry)| entry.what == What::Submodule);
        let mut elsewhere: Vec<Elsewhere> =
            submodules.iter().map(|(path, _)| Elsewhere::Submodule(place(path))).collect();
        let objects: Vec<&str> = wanted.iter().map(|(_, entry)| entry.object.as_str()).collect();
        self.stream(&objects, &mut |at, content| {
            let (path, entry) = wanted[at];
            if put(to, path, entry, content)? {
                elsewhere.push(Elsewhere::Lfs(place(path)));
            }
            Ok(())
        })?;
        Ok(elsewhere)
    }

    /// Where it is read.
    pub(crate) fn cage(&self) -> &Cage<'a> {
        self.cage
    }

    /// The first twelve digits of its name.
    pub(crate) fn short(&self) -> &str {
        self.name.get(..12).unwrap_or(&self.name)
    }

    /// Hands out the contents of `objects` one after the other, each to be read to its end or not.
    fn stream(
        &self,
        objects: &[&str],
        each: &mut dyn FnMut(usize, &mut dyn Read) -> io::Result<()>,
    ) -> Result<(), Report> {
        if objects.is_empty() {
            return Ok(());
        }
        let mut git = self.cage.git(["cat-file", "--batch"]);
        git.stdin(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
        let mut child = git.spawn().map_err(|error| Failure::Missing(error).report())?;
        let list: String = objects.iter().flat_map(|object| [*object, "\n"]).collect();
        let stdin = child.stdin.take();
        let writer = std::thread::spawn(move || stdin.map(|mut to| to.write_all(list.as_bytes())));
        let read = child.stdout.take().map_or(Ok(()), |out| {
            let mut out = BufReader::with_capacity(256 << 10, out);
            (0..objects.len()).try_for_each(|at| {
                let size = header(&mut out)?;
                let mut content = (&mut out).take(size);
                each(at, &mut content)?;
                io::copy(&mut content, &mut io::sink())?;
                out.read_exact(&mut [0])
            })
        });
        if read.is_err() {
            let _ = child.kill();
        }
        let _ = child.wait();
        let _ = writer.join();
        read.because(|| format!("reading commit {}", self.short()))
    }
}

fn missing(name: &str, error: Failure) -> Report {
    match error {
        Failure::Ended(text) => {
            let mut report = Report::failed(format!("commit {name} cannot be read"));
            report.causes.push(text.trim_end().to_owned());
            report.hint("a shallow or partial clone lacks objects: git fetch")
        }
        other => other.report(),
    }
}

/// `NAME blob SIZE`, the line before a content.
fn header(out: &mut impl BufRead) -> io::Result<u64> {
    let mut line = String::new();
    out.read_line(&mut line)?;
    let mut words = line.split_whitespace().skip(1);
    match (words.next(), words.next().map(str::parse)) {
        (Some("blob"), Some(Ok(size))) => Ok(size),
        _ => {
            let what = match line.trim_end() {
                "" => "git ended too early".to_owned(),
                line => format!("object {line}: a shallow or partial clone lacks it"),
            };
            Err(io::Error::new(io::ErrorKind::InvalidData, what))
        }
    }
}

/// `MODE TYPE OBJECT<tab>PATH`.
fn parse(line: &[u8]) -> Option<(Vec<u8>, Entry)> {
    let at = line.iter().position(|byte| *byte == b'\t')?;
    let (head, path) = (std::str::from_utf8(&line[..at]).ok()?, &line[at + 1..]);
    let words: Vec<&str> = head.split(' ').collect();
    let [mode, _, object] = words[..] else { return None };
    let what = match mode {
        "160000" => What::Submodule,
        "120000" => What::Link,
        // Git before 1.5 wrote modes such as 100664.
        mode if mode.starts_with("100") => What::File { executable: mode.as_bytes()[3] & 1 == 1 },
        _ => return None,
    };
    Some((path.to_vec(), Entry { what, object: object.to_owned() }))
}

/// Whether every component is an ordinary name: a tree object can hold any bytes.
fn is_safe(path: &[u8]) -> bool {
    let ordinary = |name: &[u8]| {
        !name.is_empty() && name != b"." && name != b".." && !name.eq_ignore_ascii_case(b".git")
    };
    path.split(|byte| *byte == b'/').all(ordinary)
}

/// Writes one entry. Nothing is followed or replaced: a tree that names a path both as a link and
/// as a folder is an error. Says whether it is a pointer of Git LFS.
fn put(to: &Path, path: &[u8], entry: &Entry, content: &mut dyn Read) -> io::Result<bool> {
    let at = to.join(OsStr::from_bytes(path));
    make_parents(to, &at)?;
    if entry.what == What::Link {
        let mut target = Vec::new();
        content.read_to_end(&mut target)?;
        symlink(OsStr::from_bytes(&target), &at)?;
        return Ok(false);
    }
    let mode = if entry.what == (What::File { executable: true }) { 0o755 } else { 0o644 };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&at)?;
    let mut head = Vec::new();
    content.take(LFS.len() as u64).read_to_end(&mut head)?;
    file.write_all(&head)?;
    io::copy(content, &mut file)?;
    // The process's umask may have taken bits away.
    rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(mode))?;
    Ok(head == LFS)
}

const LFS: &[u8] = b"version https://git-lfs.github.com/spec/";

fn make_parents(to: &Path, at: &Path) -> io::Result<()> {
    let Some(parent) = at.parent().and_then(|parent| parent.strip_prefix(to).ok()) else {
        return Ok(());
    };
    let mut dir = to.to_owned();
    for component in parent.components() {
        dir.push(component);
        match fs::DirBuilder::new().mode(0o755).create(&dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if !fs::symlink_metadata(&dir)?.is_dir() {
                    return Err(error);
                }
            }
            result => result?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_lead_elsewhere_are_told() {
        for (path, safe) in [
            ("a/b", true),
            ("a..b/...", true),
            ("../a", false),
            ("a/../b", false),
            ("a//b", false),
            ("./a", false),
            ("/a", false),
            (".git/config", false),
            ("sub/.GIT/hooks/x", false),
            (".gitignore", true),
        ] {
            assert_eq!(is_safe(path.as_bytes()), safe, "{path}");
        }
    }

    #[test]
    fn entries_are_parsed() {
        let what = |line: &str| parse(line.as_bytes()).map(|(_, entry)| entry.what);
        let file = |executable| Some(What::File { executable });
        assert_eq!(what("100644 blob ab\ta b"), file(false));
        assert_eq!(what("100664 blob ab\ta"), file(false));
        assert_eq!(what("100755 blob ab\ta"), file(true));
        assert_eq!(what("120000 blob ab\ta"), Some(What::Link));
        assert_eq!(what("160000 commit ab\ta"), Some(What::Submodule));
        assert_eq!(what("040000 tree ab\ta"), None);
        assert_eq!(parse(b"100644 blob ab\ta\tb").unwrap().0, b"a\tb");
    }

    #[test]
    fn what_is_there_is_never_followed_or_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("to");
        fs::create_dir(&to).unwrap();
        let file = Entry { what: What::File { executable: false }, object: String::new() };
        let link = Entry { what: What::Link, object: String::new() };
        assert!(!put(&to, b"a", &link, &mut dir.path().as_os_str().as_bytes()).unwrap());
        put(&to, b"a/outside", &file, &mut &b"x"[..]).unwrap_err();
        put(&to, b"a", &file, &mut &b"x"[..]).unwrap_err();
        assert!(!dir.path().join("outside").exists());
        assert!(put(&to, b"b/c", &file, &mut [LFS, b"v1\n"].concat().as_slice()).unwrap());
    }
}
