//! A normalised file tree and its canonical listing, whose sha256 is the **tree digest**.
//!
//! The listing is mtree(5) text, specified in `docs/tree-digest.md`. Times are no part of it: all
//! files of an image carry one epoch, which is a property of the carrier (EROFS, tar).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::digest::Digest;

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
    /// A node owned by root without extended attributes.
    pub fn new(kind: Kind, mode: u16) -> Self {
        let mode = if matches!(kind, Kind::Symlink { .. }) { 0o777 } else { mode };
        Self { kind, mode, uid: 0, gid: 0, xattrs: BTreeMap::new() }
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

    /// The canonical listing: what the tree digest is taken over.
    pub fn listing(&self) -> String {
        let mut out = String::with_capacity(self.entries.len() * 128);
        out.push_str("#mtree\n");
        for (path, node) in &self.entries {
            line(&mut out, path, node);
        }
        out
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
        let mut lines = listing.lines().enumerate();
        if lines.next().map(|(_, line)| line) != Some("#mtree") {
            return Err(ParseListingError { line: 1, what: "expected `#mtree`".into() });
        }
        let mut entries = BTreeMap::new();
        for (at, line) in lines {
            let (path, node) =
                parse_line(line).map_err(|what| ParseListingError { line: at + 1, what })?;
            entries.insert(path, node);
        }
        Ok(Self { entries })
    }
}

/// Why a text is no listing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tree listing, line {line}: {what}")]
pub struct ParseListingError {
    /// One-based line.
    pub line: usize,
    /// What was wrong with it.
    pub what: String,
}

fn line(out: &mut String, path: &[u8], node: &Node) {
    out.push('.');
    if !path.is_empty() {
        out.push('/');
        escape(out, path);
    }
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

fn parse_line(line: &str) -> Result<(Path, Node), String> {
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
    Ok((path, Node { kind, mode, uid: number("uid")?, gid: number("gid")?, xattrs }))
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
    }

    #[test]
    fn listing_round_trips() {
        let tree = sample();
        assert_eq!(Tree::parse(&tree.listing()).unwrap(), tree);
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
