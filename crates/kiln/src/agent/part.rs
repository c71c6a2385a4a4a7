//! The part of a volume that a mount's `subpath` names. What is in a volume is a stranger's, who may
//! change it meanwhile: no link in it is followed, and what was opened is what has to be mounted.

use std::io;
use std::path::{Path, PathBuf};

use kiln_core::data::Node;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::places::{Mounts, Place};
use crate::report::{Because, Report};

/// Where a mount comes from.
#[derive(Debug)]
pub(crate) struct Part {
    pub path: PathBuf,
    /// The only file or folder that the path may lead to.
    node: Option<Node>,
}

impl Part {
    /// What `subpath` says of the volume `name` at `path`. What is not there is an error only later.
    pub(crate) fn find(name: &str, path: PathBuf, subpath: Option<&str>) -> Result<Self, Report> {
        let Some(below) = subpath else { return Ok(Self { path, node: None }) };
        let node = match open(&path, below) {
            Ok(node) => node,
            // A name that no file or folder has.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Node::new(0, 0),
            Err(error) => return Err(not_there(name, below, &error)),
        };
        Ok(Self { path: path.join(below), node: Some(node) })
    }

    /// As [`Self::find`], of what has to be there.
    pub(crate) fn open(name: &str, path: PathBuf, subpath: Option<&str>) -> Result<Self, Report> {
        let Some(below) = subpath else { return Ok(Self { path, node: None }) };
        let node = open(&path, below).map_err(|error| not_there(name, below, &error))?;
        Ok(Self { path: path.join(below), node: Some(node) })
    }

    /// What the kernel says that it is: refused if that is not what was opened.
    pub(crate) fn place(
        &self,
        table: &Mounts,
        doing: impl FnOnce() -> String,
    ) -> Result<Place, Report> {
        let place = table.place(&self.path).because(doing)?;
        match &self.node {
            Some(node) if *node != place.node && place.node.rest.is_empty() => {
                let what = format!("{} is another file or folder by now", self.path.display());
                Err(Report::refused(what)
                    .hint("something changes the volume while it is mounted: try again"))
            }
            _ => Ok(place),
        }
    }
}

fn open(path: &Path, below: &str) -> io::Result<Node> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let whole = rustix::fs::open(path, flags | OFlags::DIRECTORY, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let part = rustix::fs::openat2(&whole, below, flags, Mode::empty(), resolve)?;
    let found = rustix::fs::fstat(&part)?;
    Ok(Node::new(found.st_dev, found.st_ino))
}

fn not_there(name: &str, below: &str, error: &io::Error) -> Report {
    Report::usage(format!("the {name} has no `{below}` to be mounted: {error}"))
        .hint("create it, without links on the way, or leave `subpath` out")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_is_put_in_the_place_of_a_part_is_not_mounted() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        fs::create_dir_all(at("volume/sub")).unwrap();
        fs::create_dir_all(at("host")).unwrap();
        let table = Mounts::read().unwrap();
        let place = |part: &Part| part.place(&table, String::new);
        let find = || Part::find("volume `v`", at("volume"), Some("sub"));
        let open = || Part::open("volume `v`", at("volume"), Some("sub"));
        let (found, opened) = (find().unwrap(), open().unwrap());
        let node = place(&opened).unwrap().node;
        assert_eq!(Some(&node), opened.node.as_ref());
        assert_eq!(place(&found).unwrap().node, node);
        // A program in the volume exchanges it, between the look at it and its mount.
        fs::rename(at("volume/sub"), at("volume/kept")).unwrap();
        assert!(open().is_err());
        let missing = find().unwrap();
        assert_eq!(place(&missing).unwrap().node.rest, "sub", "it is not there yet");
        symlink("../host", at("volume/sub")).unwrap();
        for part in [&found, &opened, &missing] {
            assert!(place(part).is_err(), "{part:?}");
        }
        assert!(find().is_err() && open().is_err(), "no link is followed");
        let whole = Part::open("volume `v`", at("volume"), None).unwrap();
        assert!(place(&whole).is_ok());
    }
}
