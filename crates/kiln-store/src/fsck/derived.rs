//! Files that are made of others: folders of links, and what is known of build contexts. Derived
//! images and step results are in the module above.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use kiln_core::Digest;
use kiln_core::tree::{Kind, Node};

use super::{Damage, Look};
use crate::check::hash;
use crate::error::{Context as _, Result};

impl Look<'_> {
    /// Folders of links: each file is what its tree says. A file is read once, whatever the number
    /// of its names.
    pub(super) fn link_trees(&mut self) -> Result<()> {
        let top = self.store.root().join("links/trees");
        let mut contents: HashMap<u64, Option<Digest>> = HashMap::new();
        let mut wrong: HashSet<u64> = HashSet::new();
        for entry in fs::read_dir(&top).doing("reading", &top)? {
            let dir = entry.doing("reading", &top)?.path();
            let tree = dir.file_name().and_then(|name| name.to_str()?.parse::<Digest>().ok());
            let Some(tree) = tree else { continue };
            let Ok(listed) = self.store.get_tree(&tree) else { continue };
            self.found.images += 1;
            for (path, node) in &listed.entries {
                let at = dir.join(OsStr::from_bytes(path));
                let inode = fs::symlink_metadata(&at).map(|meta| meta.ino()).ok();
                if let Some(what) = differs(&at, node, &mut contents) {
                    wrong.extend(inode);
                    let shown = String::from_utf8_lossy(path);
                    let name = format!("links/trees/{}/{shown}", tree.hex());
                    self.link(&at, node, Damage::at(name, what));
                }
            }
        }
        self.copies(&wrong, &contents)
    }

    /// Tells of a file in a folder of links, and replaces it if its content is there. The folder
    /// may be mounted, so nothing of it is taken away.
    fn link(&mut self, at: &Path, node: &Node, mut damage: Damage) {
        damage.cure = Some("kiln fsck --repair".to_owned());
        if let (true, Kind::File { digest, .. }) = (self.repair, &node.kind)
            && self.store.check_these(&[*digest].into()).is_empty()
            && crate::links::replace(self.store, at, node, digest).is_ok()
        {
            damage.healed = Some("made again from the content".to_owned());
        }
        self.tell(damage);
    }

    /// Copies that folders of links share. One that no folder uses does not say what it should be,
    /// and one that is wrong must not get into the next folder.
    fn copies(&mut self, wrong: &HashSet<u64>, used: &HashMap<u64, Option<Digest>>) -> Result<()> {
        let top = self.store.root().join("links/objects");
        if !self.repair || !top.is_dir() {
            return Ok(());
        }
        for shard in fs::read_dir(&top).doing("reading", &top)? {
            let shard = shard.doing("reading", &top)?.path();
            for entry in fs::read_dir(&shard).doing("reading", &shard)? {
                let path = entry.doing("reading", &shard)?.path();
                let inode = fs::symlink_metadata(&path).map(|meta| meta.ino()).unwrap_or_default();
                if wrong.contains(&inode) || !used.contains_key(&inode) {
                    crate::disk::remove(&path).doing("removing", &path)?;
                }
            }
        }
        Ok(())
    }

    /// What is known of the files of build contexts: each cache ends with the sha256 of the rest.
    pub(super) fn contexts(&mut self) -> Result<()> {
        let dir = self.store.root().join("cache/contexts");
        let Ok(entries) = fs::read_dir(&dir) else { return Ok(()) };
        for entry in entries {
            let path = entry.doing("reading", &dir)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with('.') {
                continue;
            }
            let bytes = fs::read(&path).unwrap_or_default();
            let whole = bytes
                .split_last_chunk::<32>()
                .is_some_and(|(body, sum)| Digest::of(body).as_bytes() == sum);
            if whole {
                continue;
            }
            let mut damage =
                Damage::at(format!("cache/contexts/{name}"), "it does not fit its sum");
            if self.repair {
                crate::disk::remove(&path).doing("removing", &path)?;
                damage.healed = Some("removed: the context is read again".to_owned());
            } else {
                damage.cure = Some("none needed: it is not believed, and written anew".to_owned());
            }
            self.tell(damage);
        }
        Ok(())
    }
}

/// What is wrong with the file at `at`, if it is not what `node` says.
fn differs(
    at: &Path,
    node: &Node,
    contents: &mut HashMap<u64, Option<Digest>>,
) -> Option<&'static str> {
    let Ok(meta) = fs::symlink_metadata(at) else { return Some("it is not there") };
    let kind = meta.file_type();
    match &node.kind {
        Kind::Dir if kind.is_dir() => {}
        Kind::Dir => return Some("it is no folder"),
        Kind::Symlink { target } => {
            let there = fs::read_link(at).ok();
            let same = there.is_some_and(|there| there.as_os_str().as_bytes() == target.as_slice());
            return (!same).then_some("it leads elsewhere");
        }
        Kind::File { digest, .. } => {
            if !kind.is_file() {
                return Some("it is no regular file");
            }
            let found = contents.entry(meta.ino()).or_insert_with(|| hash(at).ok());
            if *found != Some(*digest) {
                return Some("its content is another one");
            }
        }
        // The name that it is another one of is looked at.
        _ => return None,
    }
    let mode = meta.mode() & 0o7777 == u32::from(node.mode);
    let time = meta.mtime() == node.time;
    let owner = (meta.uid(), meta.gid()) == (node.uid, node.gid);
    (!mode || !owner || !time).then_some("its owner, mode or time is another one")
}
