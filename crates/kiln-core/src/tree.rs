//! A normalised file tree and its canonical listing, whose sha256 is the **tree digest**.
//!
//! The listing is mtree(5) text, specified in `docs/tree-digest.md`. What Kiln bakes has one
//! constant time, [`EPOCH`], and a tree of such entries alone is listed without times (version 1).
//! Files that came in an archive keep their own time; a tree with any of those is listed with the
//! time of every entry (version 2).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::digest::Digest;

/// The time of everything that did not come in an archive: 2020-01-01T00:00:00Z, in seconds.
pub const EPOCH: i64 = 1_577_836_800;

/// Latest time that is kept, in seconds: the last whole one that fits 64 bits of nanoseconds.
const LATEST: i64 = i64::MAX / 1_000_000_000;

/// First line of a listing without times, and of one with them.
const HEAD: [&str; 2] = ["#mtree", "#mtree 2"];

/// Path of an entry: bytes, relative, no leading or trailing slash; the root is empty.
pub type Path = Vec<u8>;

/// A file tree. Keys are in bytewise order, so a parent always comes before its children.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    /// All entries; every parent of an entry is present.
    pub entries: BTreeMap<Path, Node>,
}

/// One entry of a [`Tree`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Permission bits with set-id and sticky bits (`0o7777`). Always `0o777` for a symlink.
    pub mode: u16,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Extended attributes that are kept (`security.capability`, `user.*`), by full name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Modification time in whole seconds since 1970: [`EPOCH`], but for what came in an archive.
    pub time: i64,
}

/// The type of an entry, with what only that type has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A regular file; its content is an object of the store.
    File {
        /// Length in bytes.
        size: u64,
        /// sha256 of the content.
        digest: Digest,
    },
    /// A further name of the file at `to`, which sorts before this entry. Its `Node` fields equal
    /// those of the target.
    Hardlink {
        /// Path of the first name.
        to: Path,
    },
    /// A symbolic link.
    Symlink {
        /// The link's text.
        target: Vec<u8>,
    },
    /// A named pipe.
    Fifo,
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

impl Node {
    /// A node owned by root without extended attributes, with the constant time.
    pub fn new(kind: Kind, mode: u16) -> Self {
        let mode = if matches!(kind, Kind::Symlink { .. }) { 0o777 } else { mode };
        Self { kind, mode, uid: 0, gid: 0, xattrs: BTreeMap::new(), time: EPOCH }
    }

    /// The node with the time that an archive gives it. One that file systems do not keep becomes
    /// the start of 1970, as with Docker and Podman.
    #[must_use]
    pub fn with_archive_time(self, seconds: i64) -> Self {
        let time = if (0..=LATEST).contains(&seconds) { seconds } else { 0 };
        Self { time, ..self }
    }

    /// Bytes of content; 0 for everything but the first name of a file.
    pub fn size(&self) -> u64 {
        match self.kind {
            Kind::File { size, .. } => size,
            _ => 0,
        }
    }

    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        matches!(self.kind, Kind::Dir)
    }
}

impl Tree {
    /// A tree with only a root directory, mode 0755, owned by root.
    pub fn new() -> Self {
        Self { entries: BTreeMap::from([(Vec::new(), Node::new(Kind::Dir, 0o755))]) }
    }

    /// The entry at `path`, if any. Symlinks are not followed.
    pub fn get(&self, path: &[u8]) -> Option<&Node> {
        self.entries.get(path)
    }

    /// Puts `node` at `path`, making missing parents (0755, root) and replacing what was there:
    /// a directory replaced by something else loses its children, a directory over a directory
    /// keeps them.
    pub fn insert(&mut self, path: &[u8], node: Node) {
        for (at, byte) in path.iter().enumerate() {
            if *byte == b'/' {
                let parent = &path[..at];
                if !self.entries.get(parent).is_some_and(Node::is_dir) {
                    self.remove(parent);
                    self.entries.insert(parent.to_vec(), Node::new(Kind::Dir, 0o755));
                }
            }
        }
        let merges = node.is_dir() && self.entries.get(path).is_some_and(Node::is_dir);
        if !merges {
            self.remove(path);
        }
        self.entries.insert(path.to_vec(), node);
    }

    /// Removes the entry at `path` and all below it. Where a removed file was the first name of
    /// hard links, the next name takes its place.
    pub fn remove(&mut self, path: &[u8]) {
        let Some(node) = self.entries.remove(path) else { return };
        let mut gone = vec![(path.to_vec(), node)];
        let mut prefix = path.to_vec();
        prefix.push(b'/');
        let below: Vec<Path> = self
            .entries
            .range(prefix.clone()..)
            .take_while(|(key, _)| key.starts_with(&prefix))
            .map(|(key, _)| key.clone())
            .collect();
        for key in below {
            if let Some(node) = self.entries.remove(&key) {
                gone.push((key, node));
            }
        }
        if gone.iter().any(|(_, node)| matches!(node.kind, Kind::File { .. })) {
            self.rehome_links(&gone);
        }
    }

    fn rehome_links(&mut self, gone: &[(Path, Node)]) {
        let gone: BTreeMap<&[u8], &Node> =
            gone.iter().map(|(path, node)| (path.as_slice(), node)).collect();
        let mut moved: BTreeMap<Path, Path> = BTreeMap::new();
        for (path, node) in &mut self.entries {
            let Kind::Hardlink { to } = &mut node.kind else { continue };
            if let Some(first) = moved.get(to) {
                *to = first.clone();
            } else if let Some(target) = gone.get(to.as_slice()) {
                moved.insert(to.clone(), path.clone());
                node.kind = target.kind.clone();
            }
        }
    }

    /// Children of the directory at `path`: full path and node, in order.
    pub fn children<'a>(&'a self, path: &[u8]) -> impl Iterator<Item = (&'a [u8], &'a Node)> {
        let mut prefix = path.to_vec();
        if !prefix.is_empty() {
            prefix.push(b'/');
        }
        let skip = prefix.len();
        self.entries
            .range(prefix.clone()..)
            .take_while(move |(key, _)| key.starts_with(&prefix))
            .filter(move |(key, _)| key.len() > skip && !key[skip..].contains(&b'/'))
            .map(|(key, node)| (key.as_slice(), node))
    }

    /// Digests of all file contents that the tree names, without repeats.
    pub fn objects(&self) -> std::collections::BTreeSet<Digest> {
        self.entries
            .values()
            .filter_map(|node| match node.kind {
                Kind::File { digest, .. } => Some(digest),
                _ => None,
            })
            .collect()
    }

    /// Whether every entry has the constant time.
    pub fn is_timeless(&self) -> bool {
        self.entries.values().all(|node| node.time == EPOCH)
    }

    /// The canonical listing: what the tree digest is taken over.
    pub fn listing(&self) -> String {
        let times = !self.is_timeless();
        // Enough for nearly every tree: to grow would take the memory of two.
        let paths: usize = self.entries.keys().map(Vec::len).sum();
        let mut out = String::with_capacity(paths + self.entries.len() * 170);
        out.push_str(HEAD[usize::from(times)]);
        out.push('\n');
        for (path, node) in &self.entries {
            line(&mut out, path, node, times);
        }
        out
    }

    /// [`Tree::listing`] piece by piece: a tree of a million entries has a text as large as itself.
    pub fn listing_lines(&self) -> impl Iterator<Item = String> + '_ {
        let times = !self.is_timeless();
        let entry = move |(path, node): (&Vec<u8>, &Node)| {
            let mut out = String::with_capacity(path.len() + 170);
            line(&mut out, path, node, times);
            out
        };
        let head = format!("{}\n", HEAD[usize::from(times)]);
        std::iter::once(head).chain(self.entries.iter().map(entry))
    }

    /// The tree digest: sha256 of [`Tree::listing`].
    pub fn digest(&self) -> Digest {
        Digest::of(self.listing())
    }

    /// Reads a listing back. Whether it is canonical is not asked: who has its digest knows, for the
    /// tree's own digest is that of the canonical form.
    ///
    /// # Errors
    /// Names the first line that cannot be read.
    pub fn parse(listing: &str) -> Result<Self, ParseListingError> {
        let mut entries = BTreeMap::new();
        Self::parse_each(listing, &mut |path, node| drop(entries.insert(path, node)))?;
        Ok(Self { entries })
    }

    /// As [`Tree::parse`], entry by entry: for whoever wants but one thing of each.
    ///
    /// # Errors
    /// As [`Tree::parse`]; what stands before the line that cannot be read was given then.
    pub fn parse_each(
        listing: &str,
        each: &mut dyn FnMut(Vec<u8>, Node),
    ) -> Result<(), ParseListingError> {
        let mut lines = listing.lines().enumerate();
        let head = lines.next().map(|(_, line)| line);
        let Some(version) = HEAD.iter().position(|known| head == Some(known)) else {
            let what = format!("expected `{}` or `{}`", HEAD[0], HEAD[1]);
            return Err(ParseListingError { line: 1, what });
        };
        for (at, line) in lines {
            let (path, node) = parse_line(line, version == 1)
                .map_err(|what| ParseListingError { line: at + 1, what })?;
            each(path, node);
        }
        Ok(())
    }
}

/// One entry as a line of a listing of version 2, without the end of line.
pub fn entry_line(path: &[u8], node: &Node) -> String {
    let mut out = String::new();
    line(&mut out, path, node, true);
    out.truncate(out.trim_end().len());
    out
}

/// Reads what [`entry_line`] wrote.
///
/// # Errors
/// What is wrong with it.
pub fn parse_entry(line: &str) -> Result<(Path, Node), String> {
    parse_line(line, true)
}

/// A path as it stands in a listing.
pub fn path_text(path: &[u8]) -> String {
    let mut out = String::from(".");
    if !path.is_empty() {
        out.push('/');
        escape(&mut out, path);
    }
    out
}

/// Reads what [`path_text`] wrote.
///
/// # Errors
/// What is wrong with it.
pub fn parse_path_text(text: &str) -> Result<Path, String> {
    parse_path(text)
}

/// Whether bytes begin as a listing of any version does.
pub fn begins_listing(bytes: &[u8]) -> bool {
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    bytes.len() > line.len() && HEAD.iter().any(|head| line == head.as_bytes())
}

/// Bytes that suffice for [`begins_listing`].
pub const LISTING_HEAD: usize = HEAD[1].len() + 1;

/// Why a text is no listing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tree listing, line {line}: {what}")]
pub struct ParseListingError {
    /// One-based line.
    pub line: usize,
    /// What was wrong with it.
    pub what: String,
}

fn line(out: &mut String, path: &[u8], node: &Node, times: bool) {
    out.push_str(&path_text(path));
    let kind = match &node.kind {
        Kind::Dir => "dir",
        Kind::File { .. } | Kind::Hardlink { .. } => "file",
        Kind::Symlink { .. } => "link",
        Kind::Fifo => "fifo",
        Kind::CharDevice { .. } => "char",
        Kind::BlockDevice { .. } => "block",
    };
    let Node { mode, uid, gid, .. } = node;
    let _ = write!(out, " type={kind} mode={mode:04o} uid={uid} gid={gid}");
    if times {
        let _ = write!(out, " time={}.000000000", node.time);
    }
    match &node.kind {
        Kind::File { size, digest } => {
            let _ = write!(out, " size={size} sha256digest={}", digest.hex());
        }
        Kind::Hardlink { to } => {
            out.push_str(" hardlink=./");
            escape(out, to);
        }
        Kind::Symlink { target } => {
            out.push_str(" link=");
            escape(out, target);
        }
        Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
            let _ = write!(out, " device=linux,{major},{minor}");
        }
        Kind::Dir | Kind::Fifo => {}
    }
    for (name, value) in &node.xattrs {
        out.push_str(" xattr.");
        escape(out, name);
        out.push('=');
        for byte in value {
            let _ = write!(out, "{byte:02x}");
        }
    }
    out.push('\n');
}

/// vis(3) in its octal form, as mtree(5) readers expect it: everything but printable ASCII, and
/// of that space, `#`, `=`, `\` and the glob characters, becomes `\ooo`.
fn escape(out: &mut String, bytes: &[u8]) {
    for &byte in bytes {
        if byte.is_ascii_graphic() && !b"#=\\*?[".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "\\{byte:03o}");
        }
    }
}

fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'\\' {
            let byte = text
                .get(at + 1..at + 4)
                .and_then(|octal| u8::from_str_radix(octal, 8).ok())
                .ok_or_else(|| format!("broken escape in `{text}`"))?;
            out.push(byte);
            at += 4;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    Ok(out)
}

fn parse_path(text: &str) -> Result<Path, String> {
    if text == "." {
        return Ok(Vec::new());
    }
    unescape(text.strip_prefix("./").ok_or_else(|| format!("`{text}` does not begin with `./`"))?)
}

fn parse_line(line: &str, times: bool) -> Result<(Path, Node), String> {
    let mut words = line.split(' ');
    let path = parse_path(words.next().unwrap_or_default())?;
    let mut keys: BTreeMap<&str, &str> = BTreeMap::new();
    let mut xattrs = BTreeMap::new();
    for word in words {
        let (key, value) = word.split_once('=').ok_or_else(|| format!("`{word}` has no `=`"))?;
        if let Some(name) = key.strip_prefix("xattr.") {
            xattrs.insert(unescape(name)?, parse_hex(value)?);
        } else {
            keys.insert(key, value);
        }
    }
    let get = |key: &str| keys.get(key).copied().ok_or_else(|| format!("`{key}=` is missing"));
    let number =
        |key: &str| get(key)?.parse::<u32>().map_err(|_| format!("`{key}=` is not a number"));
    let device = || {
        let text = get("device")?;
        let mut parts = text.split(',').skip(1).map(str::parse::<u32>);
        match (parts.next(), parts.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
            _ => Err(format!("`device={text}` is not `linux,MAJOR,MINOR`")),
        }
    };
    let kind = match get("type")? {
        "dir" => Kind::Dir,
        "file" if keys.contains_key("hardlink") => {
            Kind::Hardlink { to: parse_path(get("hardlink")?)? }
        }
        "file" => Kind::File {
            size: get("size")?.parse().map_err(|_| "`size=` is not a number".to_owned())?,
            digest: get("sha256digest")?.parse().map_err(|_| "bad `sha256digest=`".to_owned())?,
        },
        "link" => Kind::Symlink { target: unescape(get("link")?)? },
        "fifo" => Kind::Fifo,
        "char" => device().map(|(major, minor)| Kind::CharDevice { major, minor })?,
        "block" => device().map(|(major, minor)| Kind::BlockDevice { major, minor })?,
        other => return Err(format!("unknown type `{other}`")),
    };
    let mode = u16::from_str_radix(get("mode")?, 8).map_err(|_| "bad `mode=`".to_owned())?;
    let time = if times { parse_time(get("time")?)? } else { EPOCH };
    Ok((path, Node { kind, mode, uid: number("uid")?, gid: number("gid")?, xattrs, time }))
}

/// Whole seconds, in the form that mtree(5) has for seconds and nanoseconds.
fn parse_time(text: &str) -> Result<i64, String> {
    let seconds = text.strip_suffix(".000000000").and_then(|text| text.parse().ok());
    seconds
        .filter(|seconds| (0..=LATEST).contains(seconds))
        .ok_or_else(|| format!("`time={text}` is no time in whole seconds"))
}

fn parse_hex(text: &str) -> Result<Vec<u8>, String> {
    let error = || format!("`{text}` is not hex");
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return Err(error());
    }
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| error()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Tree {
        let mut tree = Tree::new();
        let file = Kind::File { size: 3, digest: Digest::of(b"abc") };
        tree.insert(b"usr/bin/a b", Node::new(file, 0o755));
        tree.insert(b"usr/bin/c", Node::new(Kind::Hardlink { to: b"usr/bin/a b".to_vec() }, 0o755));
        tree.insert(b"bin", Node::new(Kind::Symlink { target: b"usr/bin".to_vec() }, 0));
        let mut tty = Node::new(Kind::CharDevice { major: 5, minor: 0 }, 0o666);
        tty.gid = 5;
        tty.xattrs.insert(b"user.x".to_vec(), vec![0, 255]);
        tree.insert(b"dev/tty", tty);
        tree
    }

    #[test]
    fn golden_listing() {
        let expected = "#mtree\n\
            . type=dir mode=0755 uid=0 gid=0\n\
            ./bin type=link mode=0777 uid=0 gid=0 link=usr/bin\n\
            ./dev type=dir mode=0755 uid=0 gid=0\n\
            ./dev/tty type=char mode=0666 uid=0 gid=5 device=linux,5,0 xattr.user.x=00ff\n\
            ./usr type=dir mode=0755 uid=0 gid=0\n\
            ./usr/bin type=dir mode=0755 uid=0 gid=0\n\
            ./usr/bin/a\\040b type=file mode=0755 uid=0 gid=0 size=3 \
            sha256digest=ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n\
            ./usr/bin/c type=file mode=0755 uid=0 gid=0 hardlink=./usr/bin/a\\040b\n";
        assert_eq!(sample().listing(), expected);
        assert_eq!(sample().listing_lines().collect::<String>(), expected);
    }

    /// The same with the time that an archive gave to one file and its further name.
    fn sample_with_times() -> Tree {
        let mut tree = sample();
        for path in [&b"usr/bin/a b"[..], b"usr/bin/c"] {
            tree.entries.get_mut(path).unwrap().time = 1_700_000_000;
        }
        tree
    }

    #[test]
    fn golden_listing_with_times() {
        let expected = "#mtree 2\n\
            . type=dir mode=0755 uid=0 gid=0 time=1577836800.000000000\n\
            ./bin type=link mode=0777 uid=0 gid=0 time=1577836800.000000000 link=usr/bin\n\
            ./dev type=dir mode=0755 uid=0 gid=0 time=1577836800.000000000\n\
            ./dev/tty type=char mode=0666 uid=0 gid=5 time=1577836800.000000000 device=linux,5,0 \
            xattr.user.x=00ff\n\
            ./usr type=dir mode=0755 uid=0 gid=0 time=1577836800.000000000\n\
            ./usr/bin type=dir mode=0755 uid=0 gid=0 time=1577836800.000000000\n\
            ./usr/bin/a\\040b type=file mode=0755 uid=0 gid=0 time=1700000000.000000000 size=3 \
            sha256digest=ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n\
            ./usr/bin/c type=file mode=0755 uid=0 gid=0 time=1700000000.000000000 \
            hardlink=./usr/bin/a\\040b\n";
        assert_eq!(sample_with_times().listing(), expected);
        let digest = "sha256:aac23707dd9d9199875dcb1e6418452227f91283fbf38754ef87a113bb47be19";
        assert_eq!(sample_with_times().digest().to_string(), digest);
    }

    #[test]
    fn listing_round_trips() {
        for tree in [sample(), sample_with_times()] {
            assert_eq!(Tree::parse(&tree.listing()).unwrap(), tree);
        }
    }

    #[test]
    fn a_time_of_an_archive_is_kept_where_a_file_system_can() {
        let node = Node::new(Kind::Dir, 0o755);
        let kept = |time| node.clone().with_archive_time(time).time;
        assert_eq!(
            [kept(0), kept(5), kept(-1), kept(LATEST), kept(LATEST + 1)],
            [0, 5, 0, LATEST, 0]
        );
        // A tree whose archive has the constant time is no other one than a baked one.
        let mut tree = Tree::new();
        tree.insert(b"a", Node::new(Kind::Fifo, 0o644).with_archive_time(EPOCH));
        assert!(tree.listing().starts_with("#mtree\n"));
    }

    #[test]
    fn a_listing_with_times_has_one_on_every_line() {
        let good = "#mtree 2\n. type=dir mode=0755 uid=0 gid=0 time=5.000000000\n";
        assert_eq!(Tree::parse(good).unwrap().entries[b"".as_slice()].time, 5);
        for time in ["", " time=5", " time=-5.000000000", " time=5.000000001", " time=x.000000000"]
        {
            let text = format!("#mtree 2\n. type=dir mode=0755 uid=0 gid=0{time}\n");
            assert_eq!(Tree::parse(&text).unwrap_err().line, 2, "{time}");
        }
        assert_eq!(Tree::parse("#mtree 3\n").unwrap_err().line, 1);
    }

    #[test]
    fn bad_listing_names_the_line() {
        let error = Tree::parse("#mtree\n. type=dir mode=0755 uid=0 gid=0\n./x\n").unwrap_err();
        assert_eq!(error.line, 3);
    }

    #[test]
    fn removing_the_first_name_rehomes_hard_links() {
        let mut tree = sample();
        tree.remove(b"usr/bin/a b");
        assert!(matches!(tree.get(b"usr/bin/c").unwrap().kind, Kind::File { size: 3, .. }));
    }

    #[test]
    fn file_over_directory_drops_children() {
        let mut tree = sample();
        tree.insert(b"usr", Node::new(Kind::Fifo, 0o644));
        assert!(tree.get(b"usr/bin").is_none());
        assert_eq!(tree.children(b"").count(), 3);
    }
}
