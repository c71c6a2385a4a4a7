//! What an instance wrote into its throw-away layer: names → a few lines, and what to write into the
//! Compose file so that nothing is lost.
//!
//! Names are a stranger's: there may be any number of them, with anything in them. They are escaped
//! and cut here.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Lines that are shown.
const LINES: usize = 20;
/// Files of one folder that are named; more are one line.
const FILES: usize = 4;
/// Characters of a name that are shown.
const NAME: usize = 200;

/// Folders whose content nobody misses.
const CACHES: [&str; 7] = [
    "__pycache__",
    ".cache",
    ".npm",
    ".pytest_cache",
    ".ruff_cache",
    ".mypy_cache",
    ".parcel-cache",
];
/// Below these everybody expects that what is written goes.
const PASSING: [&str; 7] = ["run", "tmp", "var/run", "var/tmp", "var/log", "var/cache", "var/lock"];
/// What programs come with: it is changed where it lies, not added to.
const SYSTEM: [&str; 8] = ["etc", "usr", "opt", "bin", "sbin", "lib", "lib64", "root"];

/// One name of the layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// From the root, without a slash at the beginning.
    pub path: Vec<u8>,
    /// What happened there.
    pub what: What,
    /// Bytes that it takes.
    pub bytes: u64,
    /// Length of the beginning of `path` that is a folder which the image has not.
    pub new: Option<usize>,
}

/// What happened at a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A file, link, socket or pipe was written.
    File,
    /// A folder was made.
    Folder,
    /// What the image has there was removed.
    Removed,
    /// Only owner, mode or attributes changed.
    Dressed,
}

/// Everything that an instance wrote, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// What, folded.
    pub lines: Vec<Line>,
    /// Lines that are left out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: usize,
    /// Not all names were looked at.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
    /// Lines for the service in the Compose file, with remarks where they are needed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cures: Vec<String>,
    /// Volumes that those lines name; the file has to have them at its top.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's form
fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Absolute, escaped; a folder ends with `/`.
    pub path: String,
    /// What kind of thing was written.
    pub kind: Kind,
    /// How many files.
    pub files: u64,
    /// Bytes that they take.
    pub bytes: u64,
}

/// See [`Line::kind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// What somebody may miss.
    Data,
    /// What the image has, changed.
    System,
    /// Logs, sockets, and what is below `/run`, `/tmp` and their like.
    Passing,
    /// Caches, all in one.
    Cache,
    /// What the image has, removed.
    Removed,
    /// Owners and modes, all in one.
    Owner,
}

impl Written {
    /// Whether nothing was.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// What somebody may miss when the instance goes.
    pub fn losses(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(|line| matches!(line.kind, Kind::Data | Kind::System))
    }
}

/// Folds the names that the layer of an instance of `service` has. `cut`: they are not all. `usual`:
/// where it has tmpfs that nobody asked for, and that it loses when it states `read_only`.
pub fn fold(service: &str, names: Vec<Name>, cut: bool, usual: &[String]) -> Written {
    let (mut caches, mut owners) = (Sum::default(), Sum::default());
    let mut folders: BTreeMap<Vec<u8>, Folder> = BTreeMap::new();
    let mut removed: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
    for name in names {
        if name.what == What::Dressed {
            owners.add(&name);
        } else if let Some(cache) = cache(&name.path) {
            caches.add(&name);
            caches.places.insert(name.path[..cache].to_vec());
        } else if name.what == What::Removed {
            removed.entry(parent(&name.path).to_vec()).or_default().push(name.path);
        } else {
            let (of, new) = match name.new {
                Some(length) => (&name.path[..length], true),
                None => (parent(&name.path), false),
            };
            let folder = folders.entry(of.to_vec()).or_default();
            folder.new |= new;
            folder.sum.add(&name);
            if name.what == What::File && folder.files.len() <= FILES {
                folder.files.push((name.path, name.bytes));
            }
        }
    }
    let mut lines = Vec::new();
    let mut cures = Cures { service, usual, ..Cures::default() };
    for (path, folder) in folders {
        cures.folder(&path, &folder);
        folder.lines(&path, &mut lines);
    }
    for (folder, names) in removed {
        cures.volatile(&folder);
        if names.len() > FILES {
            let files = names.len() as u64;
            lines.push(Line { path: shown(&folder, true), kind: Kind::Removed, files, bytes: 0 });
        } else {
            let line = |path: &Vec<u8>| Line {
                path: shown(path, false),
                kind: Kind::Removed,
                files: 1,
                bytes: 0,
            };
            lines.extend(names.iter().map(line));
        }
    }
    // What matters most comes first: it is what is left when there are too many.
    lines.sort_by(|a, b| a.kind.cmp(&b.kind).then(a.path.cmp(&b.path)));
    let more = lines.len().saturating_sub(LINES);
    lines.truncate(LINES);
    if caches.files > 0 {
        let first = caches.places.first().map(|path| shown(path, true)).unwrap_or_default();
        lines.push(caches.line(first, Kind::Cache));
    }
    if owners.files > 0 {
        let common = common(&owners.places);
        // Of a folder like /var an instance would take all of the image's.
        match common.contains(&b'/') {
            true => cures.volatile(&common),
            false => topmost(&owners.places).into_iter().for_each(|place| cures.volatile(place)),
        }
        lines.push(owners.line(shown(&common, true), Kind::Owner));
    }
    let (cures, volumes) = if lines.is_empty() { Default::default() } else { cures.lines() };
    Written { lines, more, cut, cures, volumes }
}

/// Counted, not named.
#[derive(Debug, Default)]
struct Sum {
    files: u64,
    bytes: u64,
    places: BTreeSet<Vec<u8>>,
}

impl Sum {
    fn add(&mut self, name: &Name) {
        self.files += u64::from(name.what != What::Folder);
        self.bytes += name.bytes;
        if name.what == What::Dressed {
            self.places.insert(parent(&name.path).to_vec());
        }
    }

    fn line(&self, path: String, kind: Kind) -> Line {
        Line { path, kind, files: self.files, bytes: self.bytes }
    }
}

#[derive(Debug, Default)]
struct Folder {
    new: bool,
    sum: Sum,
    files: Vec<(Vec<u8>, u64)>,
}

impl Folder {
    fn lines(&self, path: &[u8], lines: &mut Vec<Line>) {
        if self.new || self.files.len() > FILES {
            lines.push(self.sum.line(shown(path, true), kind(path, self.new)));
            return;
        }
        lines.extend(self.files.iter().map(|(path, bytes)| Line {
            path: shown(path, false),
            kind: kind(path, false),
            files: 1,
            bytes: *bytes,
        }));
    }
}

fn kind(path: &[u8], new: bool) -> Kind {
    let last = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let ends = |end: &str| last.ends_with(end.as_bytes());
    if below(path, &PASSING) || [".pid", ".sock", ".lock", ".log"].into_iter().any(ends) {
        Kind::Passing
    } else if !new && below(path, &SYSTEM) {
        Kind::System
    } else {
        Kind::Data
    }
}

fn below(path: &[u8], folders: &[&str]) -> bool {
    folders.iter().any(|folder| {
        let rest = path.strip_prefix(folder.as_bytes());
        rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
    })
}

/// Length of the beginning of `path` that is a cache.
fn cache(path: &[u8]) -> Option<usize> {
    let mut end = 0;
    for part in path.split(|byte| *byte == b'/') {
        end += part.len();
        if CACHES.iter().any(|cache| cache.as_bytes() == part) {
            return Some(end);
        }
        end += 1;
    }
    None
}

fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(b"", |end| &path[..end])
}

/// The folder that all of these lie in.
fn common(folders: &BTreeSet<Vec<u8>>) -> Vec<u8> {
    let mut all = folders.iter();
    let Some(first) = all.next() else { return Vec::new() };
    let mut parts: Vec<&[u8]> = first.split(|byte| *byte == b'/').collect();
    for other in all {
        let same = parts.iter().zip(other.split(|byte| *byte == b'/'));
        let length = same.take_while(|(a, b)| *a == b).count();
        parts.truncate(length);
    }
    parts.join(&b'/')
}

/// Those that lie in no other of them.
fn topmost(folders: &BTreeSet<Vec<u8>>) -> Vec<&[u8]> {
    let mut all: Vec<&[u8]> = Vec::new();
    for folder in folders {
        let inside = |top: &&[u8]| folder.strip_prefix(*top).is_some_and(|rest| rest[0] == b'/');
        if !all.iter().any(inside) {
            all.push(folder);
        }
    }
    all
}

/// A name as YAML has it between quotes; `None` for one that could not be pasted.
fn pasted(path: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(path).ok().filter(|text| text.len() <= NAME)?;
    let safe = |letter: char| !letter.is_control() && !"\"\\:$".contains(letter);
    text.chars().all(safe).then(|| format!("/{text}"))
}

/// A name for people: absolute, on one line, of bounded length.
fn shown(path: &[u8], folder: bool) -> String {
    let text = String::from_utf8_lossy(path);
    let mut out: String = text.escape_debug().take(NAME).collect();
    if text.escape_debug().nth(NAME).is_some() {
        out.push('…');
    }
    let end = if folder && !out.is_empty() { "/" } else { "" };
    format!("/{out}{end}")
}

/// What goes into the Compose file.
#[derive(Debug, Default)]
struct Cures<'a> {
    service: &'a str,
    /// Tmpfs that it has as long as it says nothing of `read_only`.
    usual: &'a [String],
    tmpfs: BTreeSet<String>,
    /// By target: the name, and a file that has to move into it.
    volumes: BTreeMap<String, (String, Option<String>)>,
    volatile: BTreeSet<String>,
    /// Something has no line.
    lacking: bool,
}

impl Cures<'_> {
    fn folder(&mut self, path: &[u8], folder: &Folder) {
        let named =
            |kind_of: Kind| folder.files.iter().find(|(path, _)| kind(path, false) == kind_of);
        match kind(path, folder.new) {
            Kind::Passing => self.tmpfs(path),
            Kind::System => self.volatile(path),
            // Work folders that a program makes when it starts.
            _ if folder.new && folder.sum.files == 0 => self.tmpfs(path),
            _ if folder.new => self.volume(path, path, None),
            // A volume over a folder that the image has would keep the image's own files as they are
            // now, for ever.
            _ => {
                if let Some((file, _)) = named(Kind::Data) {
                    let inside: &[u8] = if path.is_empty() { b"" } else { b"/" };
                    let data = [path, inside, b"data"].concat();
                    self.volume(path, &data, Some(file));
                }
                if named(Kind::Passing).is_some() {
                    self.volatile(path);
                }
            }
        }
    }

    fn tmpfs(&mut self, path: &[u8]) {
        match pasted(path) {
            Some(target) => drop(self.tmpfs.insert(target)),
            None => self.lacking = true,
        }
    }

    fn volatile(&mut self, path: &[u8]) {
        match pasted(path).filter(|_| !path.is_empty()) {
            Some(target) => drop(self.volatile.insert(target)),
            None => self.lacking = true,
        }
    }

    /// A volume at `target`, named after the folder `of`.
    fn volume(&mut self, of: &[u8], target: &[u8], moved: Option<&[u8]>) {
        let moved = moved.map(pasted);
        let (Some(target), Some(moved)) =
            (pasted(target), moved.map_or(Some(None), |path| path.map(Some)))
        else {
            self.lacking = true;
            return;
        };
        let last = of.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let plain = |byte: &&u8| byte.is_ascii_alphanumeric();
        let last: String = last.iter().filter(plain).map(|byte| char::from(*byte)).collect();
        let last = if last.is_empty() { "data" } else { &last };
        let mut name = format!("{}-{last}", self.service);
        // Two folders of one name are two volumes.
        while self.volumes.values().any(|(other, _)| *other == name) {
            name.push('2');
        }
        self.volumes.insert(target, (name, moved));
    }

    /// The service's lines, and the volumes that they name.
    fn lines(self) -> (Vec<String>, Vec<String>) {
        const MOST: usize = 6;
        let list = |set: &BTreeSet<String>| {
            let quoted: Vec<String> =
                set.iter().take(MOST).map(|text| format!("\"{text}\"")).collect();
            quoted.join(", ")
        };
        let (mut lines, mut names) = (Vec::new(), Vec::new());
        if !self.volumes.is_empty() {
            lines.push("volumes:".to_owned());
        }
        for (target, (name, moved)) in self.volumes.iter().take(MOST) {
            let remark = moved.as_ref().map(|file| format!("   # with {file} moved into it"));
            lines.push(format!("  - \"{name}:{target}\"{}", remark.unwrap_or_default()));
            names.push(name.clone());
        }
        let most = self.volumes.len().max(self.tmpfs.len()).max(self.volatile.len());
        let enough = !self.lacking && most <= MOST;
        let usual = self.usual.iter().filter(|_| enough).map(|text| format!("\"{text}\""));
        let own = Some(list(&self.tmpfs)).filter(|own| !own.is_empty());
        let tmpfs: Vec<String> = own.into_iter().chain(usual).collect();
        if !tmpfs.is_empty() {
            lines.push(format!("tmpfs: [{}]", tmpfs.join(", ")));
        }
        if !self.volatile.is_empty() {
            lines.push(format!("x-kiln: {{ volatile: [{}] }}", list(&self.volatile)));
        }
        if enough {
            lines.push("read_only: true".to_owned());
        }
        (lines, names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `path=bytes`; `+` new folder up to `|`, `-` removed, `~` dressed, `/` at the end a folder.
    fn name(text: &str) -> Name {
        let (text, bytes) = text.split_once('=').unwrap_or((text, "0"));
        let (mark, rest) = match text.as_bytes()[0] {
            b'+' | b'-' | b'~' => text.split_at(1),
            _ => ("", text),
        };
        let new = (mark == "+").then(|| rest.find('|').unwrap_or(rest.trim_end_matches('/').len()));
        let path = rest.replacen('|', "", 1);
        let what = match mark {
            "-" => What::Removed,
            "~" => What::Dressed,
            _ if path.ends_with('/') => What::Folder,
            _ => What::File,
        };
        let path = path.trim_end_matches('/').as_bytes().to_vec();
        Name { path, what, bytes: bytes.parse().unwrap(), new }
    }

    fn folded(names: &[&str]) -> (Vec<String>, Vec<String>) {
        let written = fold("web", names.iter().map(|text| name(text)).collect(), false, &[]);
        let lines = written
            .lines
            .iter()
            .map(|line| format!("{:?} {} {} {}", line.kind, line.path, line.files, line.bytes));
        (lines.collect(), written.cures)
    }

    #[test]
    fn read_only_is_offered_with_the_tmpfs_that_it_would_take_away() {
        let usual = ["/run".to_owned(), "/tmp".to_owned()];
        let cures = |names: &[&str]| {
            fold("web", names.iter().map(|text| name(text)).collect(), false, &usual).cures
        };
        let lines = ["tmpfs: [\"/var/log/nginx\", \"/run\", \"/tmp\"]", "read_only: true"];
        assert_eq!(cures(&["var/log/nginx/error.log=9"]), lines);
        let lines = ["tmpfs: [\"/run\", \"/tmp\"]", "read_only: true"];
        assert_eq!(cures(&["root/.cache/c=1"]), lines);
        assert!(cures(&[]).is_empty());
    }

    #[test]
    fn names_become_lines_and_cures() {
        let cases: [(&[&str], &[&str], &[&str]); 10] = [
            (&[], &[], &[]),
            (
                &["app/db.sqlite=4096"],
                &["Data /app/db.sqlite 1 4096"],
                &[
                    "volumes:",
                    "  - \"web-app:/app/data\"   # with /app/db.sqlite moved into it",
                    "read_only: true",
                ],
            ),
            (
                &["+app/up|/", "+app/up|/a=1", "+app/up|/deep/b=2"],
                &["Data /app/up/ 2 3"],
                &["volumes:", "  - \"web-up:/app/up\"", "read_only: true"],
            ),
            (
                &["app/__pycache__/a.pyc=5", "app/x/__pycache__/b.pyc=5", "root/.cache/c=1"],
                &["Cache /app/__pycache__/ 3 11"],
                &["read_only: true"],
            ),
            (
                &["+var/cache/nginx/client_temp/", "var/log/nginx/error.log=9"],
                &[
                    "Passing /var/cache/nginx/client_temp/ 0 0",
                    "Passing /var/log/nginx/error.log 1 9",
                ],
                &[
                    "tmpfs: [\"/var/cache/nginx/client_temp\", \"/var/log/nginx\"]",
                    "read_only: true",
                ],
            ),
            (
                &["etc/nginx/conf.d/default.conf=7"],
                &["System /etc/nginx/conf.d/default.conf 1 7"],
                &["x-kiln: { volatile: [\"/etc/nginx/conf.d\"] }", "read_only: true"],
            ),
            (
                &["~var/lib/pg/a", "~var/lib/pg/b", "~var/lib/pg/deep/c"],
                &["Owner /var/lib/pg/ 3 0"],
                &["x-kiln: { volatile: [\"/var/lib/pg\"] }", "read_only: true"],
            ),
            (
                &["+var/lib/nginx/body|/", "~var/www/a", "~etc/nginx/b"],
                &["Data /var/lib/nginx/body/ 0 0", "Owner / 2 0"],
                &[
                    "tmpfs: [\"/var/lib/nginx/body\"]",
                    "x-kiln: { volatile: [\"/etc/nginx\", \"/var/www\"] }",
                    "read_only: true",
                ],
            ),
            (
                &["+a/data|/x=1", "+b/data|/x=1"],
                &["Data /a/data/ 1 1", "Data /b/data/ 1 1"],
                &[
                    "volumes:",
                    "  - \"web-data:/a/data\"",
                    "  - \"web-data2:/b/data\"",
                    "read_only: true",
                ],
            ),
            (
                &["-etc/nginx/conf.d/default.conf"],
                &["Removed /etc/nginx/conf.d/default.conf 1 0"],
                &["x-kiln: { volatile: [\"/etc/nginx/conf.d\"] }", "read_only: true"],
            ),
        ];
        for (names, lines, cures) in cases {
            let (found, cured) = folded(names);
            assert_eq!(found, lines, "{names:?}");
            assert_eq!(cured, cures, "{names:?}");
        }
    }

    #[test]
    fn many_are_few_lines_and_what_matters_is_among_them() {
        let many: Vec<String> =
            (0..5_000).map(|nth| format!("srv/d{}/f{nth}", nth % 100)).collect();
        let mut names: Vec<Name> = many.iter().map(|text| name(text)).collect();
        names.extend((0..50).map(|nth| name(&format!("var/log/l{nth}"))));
        names.push(name("app/db"));
        let written = fold("web", names, true, &[]);
        assert_eq!(written.lines.len(), LINES);
        assert_eq!((written.lines[0].path.as_str(), written.more), ("/app/db", 82));
        assert!(written.cut && written.cures.iter().all(|cure| cure.len() < 400));
        assert!(written.losses().count() > 1);
    }

    #[test]
    fn names_are_a_strangers() {
        let path = b"app/\x1b[2J\n\xff\"evil".to_vec();
        let bad = Name { path, what: What::File, bytes: 1, new: None };
        let long = Name { path: vec![b'x'; 4_000], what: What::File, bytes: 1, new: None };
        let written = fold("web", vec![bad, long], false, &[]);
        for line in &written.lines {
            assert!(line.path.len() < NAME * 4, "{line:?}");
            assert!(!line.path.contains(|letter: char| letter.is_control()), "{line:?}");
        }
        assert!(written.lines[0].path.starts_with("/app/\\u{1b}[2J\\n"), "{written:?}");
        // What YAML would read as something else is not offered, and so nothing is promised.
        assert_eq!(written.cures, Vec::<String>::new());
    }
}
