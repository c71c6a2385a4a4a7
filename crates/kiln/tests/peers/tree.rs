//! File trees as listings have them: a path and its attributes. Times are left out: of what a step
//! makes, Kiln and its peers have different ones on purpose.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use kiln_testkit::Call;

/// Attributes by name, as in a line of a listing (`docs/tree-digest.md`).
pub(crate) type Attributes = BTreeMap<String, String>;

/// Entries by path; `.` is the root, others begin with `./`.
pub(crate) type Tree = BTreeMap<String, Attributes>;

/// Reads a listing.
pub(crate) fn from_listing(text: &str) -> Tree {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let entry = |line: &str| {
        let mut words = line.split(' ');
        let path = words.next().unwrap().to_owned();
        let pairs = words.map(|word| word.split_once('=').unwrap());
        let pairs = pairs.filter(|(key, _)| *key != "time");
        (path, pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
    };
    lines.map(entry).collect()
}

/// Writes a tree of a Kiln store as a tar archive, by ways of a folder.
pub(crate) fn write_tar(tree: &Tree, objects: &Path, scratch: &Path, tar: &Path) {
    for (path, attributes) in tree {
        let target = match path.strip_prefix("./") {
            Some(path) => scratch.join(OsString::from_vec(unescape(path))),
            None => scratch.to_owned(),
        };
        match attributes["type"].as_str() {
            "dir" => std::fs::create_dir_all(&target).unwrap(),
            "link" => {
                let text = OsString::from_vec(unescape(&attributes["link"]));
                std::os::unix::fs::symlink(text, &target).unwrap();
            }
            "file" => {
                let (first, rest) = attributes["sha256digest"].split_at(2);
                std::fs::copy(objects.join(first).join(rest), &target).unwrap();
            }
            other => panic!("{path}: the base has a {other}"),
        }
        if attributes["type"] != "link" {
            let mode = u32::from_str_radix(&attributes["mode"], 8).unwrap();
            std::fs::set_permissions(&target, std::fs::Permissions::from_mode(mode)).unwrap();
        }
    }
    let call = Call::new("tar").args(["--owner=0", "--group=0", "--numeric-owner", "-C"]);
    call.arg(scratch).arg("-cf").arg(tar).arg(".").run_ok().unwrap();
}

/// A tree that layers of an image make, one upon the other.
#[derive(Debug, Default)]
pub(crate) struct Stack {
    /// What each path is: names of one file have the same number.
    paths: BTreeMap<Vec<u8>, usize>,
    entries: Vec<Attributes>,
}

impl Stack {
    /// Puts a layer, which is a tar archive, on top.
    pub(crate) fn add(&mut self, layer: &[u8]) {
        let mut archive = tar::Archive::new(layer);
        let mut fresh: Vec<Vec<u8>> = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = clean(&entry.path_bytes());
            let (dir, name) = match path.iter().rposition(|&byte| byte == b'/') {
                Some(at) => (path[..at].to_vec(), path[at + 1..].to_vec()),
                None => (Vec::new(), path.clone()),
            };
            if name == b".wh..wh..opq" {
                // Hides what lower layers have in the directory, not what this one has.
                self.remove_below(&dir, &fresh);
            } else if let Some(gone) = name.strip_prefix(b".wh.") {
                self.remove(&join(&dir, gone));
            } else {
                let number = self.number(&mut entry);
                let is_dir = self.entries[number]["type"] == "dir";
                if !is_dir {
                    self.remove(&path);
                }
                self.paths.insert(path.clone(), number);
                fresh.push(path);
            }
        }
    }

    /// The whole tree. Layers need not name its root.
    pub(crate) fn tree(&self) -> Tree {
        let mut first: BTreeMap<usize, String> = BTreeMap::new();
        let mut tree = from_listing(". type=dir mode=0755 uid=0 gid=0");
        for (path, number) in &self.paths {
            let name = if path.is_empty() { ".".to_owned() } else { format!("./{}", escape(path)) };
            let mut attributes = self.entries[*number].clone();
            if attributes["type"] == "file" {
                match first.get(number) {
                    Some(first) => {
                        attributes.remove("size");
                        attributes.remove("sha256digest");
                        attributes.insert("hardlink".to_owned(), first.clone());
                    }
                    None => drop(first.insert(*number, name.clone())),
                }
            }
            tree.insert(name, attributes);
        }
        tree
    }

    /// The number of what an entry is: a new one, or that of the file it is another name of.
    fn number(&mut self, entry: &mut tar::Entry<'_, &[u8]>) -> usize {
        use tar::EntryType;
        let kind = entry.header().entry_type();
        let link = entry.link_name_bytes().map(|name| name.into_owned());
        if kind == EntryType::Link {
            let target = clean(&link.unwrap());
            return *self.paths.get(&target).expect("the first name of a hard link");
        }
        let header = entry.header();
        let mut attributes = Attributes::new();
        let mut set = |key: &str, value: String| drop(attributes.insert(key.to_owned(), value));
        set("uid", header.uid().unwrap().to_string());
        set("gid", header.gid().unwrap().to_string());
        set("mode", format!("{:04o}", header.mode().unwrap() & 0o7777));
        let device = || {
            let (major, minor) = (header.device_major(), header.device_minor());
            format!("linux,{},{}", major.unwrap().unwrap(), minor.unwrap().unwrap())
        };
        match kind {
            EntryType::Directory => set("type", "dir".to_owned()),
            EntryType::Symlink => {
                set("type", "link".to_owned());
                set("mode", "0777".to_owned());
                set("link", escape(&link.unwrap()));
            }
            EntryType::Fifo => set("type", "fifo".to_owned()),
            EntryType::Char => {
                set("type", "char".to_owned());
                set("device", device());
            }
            EntryType::Block => {
                set("type", "block".to_owned());
                set("device", device());
            }
            _ => set("type", "file".to_owned()),
        }
        for extension in entry.pax_extensions().unwrap().into_iter().flatten().flatten() {
            if let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") {
                let value: String =
                    extension.value_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
                attributes.insert(format!("xattr.{}", escape(name)), value);
            }
        }
        if attributes["type"] == "file" {
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            attributes.insert("size".to_owned(), content.len().to_string());
            attributes.insert("sha256digest".to_owned(), digest(&content));
        }
        self.entries.push(attributes);
        self.entries.len() - 1
    }

    fn remove(&mut self, path: &[u8]) {
        self.paths.remove(path);
        self.remove_below(path, &[]);
    }

    fn remove_below(&mut self, dir: &[u8], keep: &[Vec<u8>]) {
        let start = if dir.is_empty() { Vec::new() } else { join(dir, b"") };
        self.paths
            .retain(|path, _| !path.starts_with(&start) || path.is_empty() || keep.contains(path));
    }
}

fn digest(content: &[u8]) -> String {
    kiln_core::digest::Digest::of(content).hex()
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

/// Without `./`, leading and trailing slashes.
fn clean(path: &[u8]) -> Vec<u8> {
    let parts = path.split(|&byte| byte == b'/');
    parts.filter(|part| !part.is_empty() && part != b".").collect::<Vec<_>>().join(&b'/')
}

/// As listings escape paths.
fn escape(bytes: &[u8]) -> String {
    let escape = |&byte: &u8| match byte {
        b'#' | b'=' | b'\\' | b'*' | b'?' | b'[' => format!("\\{byte:03o}"),
        0x21..=0x7e => char::from(byte).to_string(),
        _ => format!("\\{byte:03o}"),
    };
    bytes.iter().map(escape).collect()
}

fn unescape(text: &str) -> Vec<u8> {
    let mut parts = text.split('\\');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (octal, rest) = part.split_at(3);
        bytes.push(u8::from_str_radix(octal, 8).unwrap());
        bytes.extend(rest.bytes());
    }
    bytes
}
