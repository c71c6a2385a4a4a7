//! What becomes an inode: one per entry that is no hard link, in path order, with its links
//! counted and, for directories, its names gathered.

use std::borrow::Cow;
use std::collections::HashMap;

use kiln_core::tree::{Kind, Node, Tree};

use super::{dir, format};

/// A path and what is wrong with it.
type Fault = (Vec<u8>, String);

/// All inodes; the root is the first.
pub(super) struct Plan<'a> {
    pub(super) entries: Vec<Entry<'a>>,
}

/// One inode.
pub(super) struct Entry<'a> {
    pub(super) path: &'a [u8],
    pub(super) node: &'a Node,
    pub(super) nlink: u32,
    pub(super) xattrs: Vec<Xattr<'a>>,
    /// Index of the directory it is in; the root is in itself.
    pub(super) parent: usize,
    /// Of a directory: its entries in bytewise order, without `.` and `..`.
    pub(super) names: Vec<Name<'a>>,
    /// Of a directory: length of its data.
    dir_len: usize,
}

/// An entry of a directory.
pub(super) struct Name<'a> {
    pub(super) name: &'a [u8],
    /// Index of the inode.
    pub(super) to: usize,
    pub(super) kind: u8,
}

/// An extended attribute by its full name.
pub(super) struct Xattr<'a> {
    pub(super) name: Cow<'a, [u8]>,
    pub(super) value: Cow<'a, [u8]>,
}

impl Xattr<'_> {
    /// The number of the name's prefix, and the rest of the name.
    pub(super) fn split(&self) -> Result<(u8, &[u8]), String> {
        const PREFIXES: [(u8, &[u8]); 5] = [
            (2, b"system.posix_acl_access"),
            (3, b"system.posix_acl_default"),
            (1, b"user."),
            (4, b"trusted."),
            (6, b"security."),
        ];
        PREFIXES
            .iter()
            .find_map(|(index, prefix)| Some((*index, self.name.strip_prefix(*prefix)?)))
            .ok_or_else(|| {
                let name = String::from_utf8_lossy(&self.name);
                format!("attribute `{name}` is in no namespace that an image can carry")
            })
    }
}

impl<'a> Plan<'a> {
    pub(super) fn of(tree: &'a Tree) -> Result<Self, Fault> {
        let mut entries: Vec<Entry<'a>> = Vec::with_capacity(tree.entries.len());
        let mut dirs: HashMap<&[u8], usize> = HashMap::new();
        // Only the first names of hard links are looked up.
        let mut linked: HashMap<&[u8], usize> =
            tree.entries.values().filter_map(target).map(|to| (to, usize::MAX)).collect();
        let mut last: Option<(&[u8], usize)> = None;
        if !tree.get(b"").is_some_and(Node::is_dir) {
            return Err((Vec::new(), "the tree has no root directory".into()));
        }
        for (path, node) in &tree.entries {
            let fault = |why: &str| (path.clone(), why.to_owned());
            let (above, name) = split(path);
            // Most entries follow another one of the same directory.
            let parent = match last {
                Some((path, parent)) if path == above => parent,
                _ if path.is_empty() => 0,
                _ => match dirs.get(above) {
                    Some(parent) => *parent,
                    None => return Err(fault("its parent is missing or no directory")),
                },
            };
            last = Some((above, parent));
            let to = match &node.kind {
                Kind::Hardlink { to } => match linked.get(to.as_slice()) {
                    Some(index) if *index != usize::MAX => *index,
                    _ => return Err(fault("it is a hard link to no file before it")),
                },
                _ => entries.len(),
            };
            if !path.is_empty() {
                check_name(name).map_err(|why| fault(&why))?;
                let kind = format::dirent_type(&node.kind);
                entries[parent].names.push(Name { name, to, kind });
            }
            if to < entries.len() {
                entries[to].nlink += 1;
                continue;
            }
            if node.is_dir() {
                dirs.insert(path, to);
                if !path.is_empty() {
                    entries[parent].nlink += 1;
                }
            } else if let Some(index) = linked.get_mut(path.as_slice()) {
                *index = to;
            }
            entries.push(Entry::new(path, node, parent).map_err(|why| fault(&why))?);
        }
        for entry in &mut entries {
            entry.dir_len = dir::length(&entry.names);
        }
        Ok(Self { entries })
    }
}

impl<'a> Entry<'a> {
    fn new(path: &'a [u8], node: &'a Node, parent: usize) -> Result<Self, String> {
        match &node.kind {
            Kind::CharDevice { major: 0, minor: 0 } => {
                return Err("a character device 0:0 means a deletion to overlayfs".into());
            }
            Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor }
                if *major > 0xfff || *minor > 0xf_ffff =>
            {
                return Err(format!("device {major}:{minor} is out of range"));
            }
            Kind::File { size, .. } if *size > format::CHUNK_MAX => {
                return Err(format!("a file of {size} bytes is too large"));
            }
            Kind::Symlink { target } if target.is_empty() || target.len() > 4095 => {
                return Err(format!("a link of {} bytes; 1 to 4095 fit", target.len()));
            }
            _ => {}
        }
        let nlink = if node.is_dir() { 2 } else { 1 };
        let xattrs = xattrs(node);
        Ok(Self { path, node, nlink, xattrs, parent, names: Vec::new(), dir_len: 0 })
    }

    /// Length of data that the image itself holds; `None` for what has none.
    pub(super) fn data_len(&self) -> Option<usize> {
        match &self.node.kind {
            Kind::Dir => Some(self.dir_len),
            Kind::Symlink { target } => Some(target.len()),
            _ => None,
        }
    }

    /// Whether it is a file whose content is an object.
    pub(super) fn chunked(&self) -> bool {
        matches!(self.node.kind, Kind::File { size, .. } if size > 0)
    }

    /// Whether its numbers are beyond a compact inode's fields.
    pub(super) fn needs_extended(&self) -> bool {
        let narrow = u32::from(u16::MAX);
        let size = match &self.node.kind {
            Kind::File { size, .. } => *size,
            _ => self.data_len().unwrap_or(0) as u64,
        };
        let Node { uid, gid, time, .. } = self.node;
        let numbers = *uid > narrow || *gid > narrow || self.nlink > narrow;
        size > u64::from(u32::MAX) || numbers || *time != crate::EPOCH
    }
}

/// Attributes as the image carries them: the tree's own, with those of overlayfs escaped so that
/// this overlay does not take them for its own, and the way to the object.
fn xattrs(node: &Node) -> Vec<Xattr<'_>> {
    const OVERLAY: &[u8] = b"trusted.overlay.";
    let mut xattrs: Vec<Xattr<'_>> = node
        .xattrs
        .iter()
        .map(|(name, value)| {
            let name = match name.strip_prefix(OVERLAY) {
                Some(rest) => [OVERLAY, b"overlay.", rest].concat().into(),
                None => name.into(),
            };
            Xattr { name, value: value.into() }
        })
        .collect();
    // An empty file is complete without its object.
    if let Kind::File { size: 1.., digest } = &node.kind {
        let name: &[u8] = b"trusted.overlay.metacopy";
        xattrs.push(Xattr { name: name.into(), value: Cow::Borrowed(b"") });
        let name: &[u8] = b"trusted.overlay.redirect";
        // `/ab/<62 hex>`: where the object is in `objects/`.
        let mut value = digest.hex().into_bytes();
        value.splice(0..2, [b'/', value[0], value[1], b'/']);
        xattrs.push(Xattr { name: name.into(), value: value.into() });
        xattrs.sort_by(|a, b| a.name.cmp(&b.name));
    }
    xattrs
}

fn target(node: &Node) -> Option<&[u8]> {
    match &node.kind {
        Kind::Hardlink { to } => Some(to),
        _ => None,
    }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

fn check_name(name: &[u8]) -> Result<(), String> {
    if name.is_empty() || name == b"." || name == b".." || name.contains(&0) {
        return Err("its last component is no file name".into());
    }
    if name.len() > 255 {
        return Err(format!("a name of {} bytes; 255 fit", name.len()));
    }
    Ok(())
}
