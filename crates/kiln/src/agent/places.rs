//! A path → the place that the kernel says it is: the file or folder itself, every folder that it
//! lies in, and what is mounted in it.
//!
//! A bind mount shows a part of a file system at a second path. Going up from there leads to the
//! folders of that path only, so the folders that the part has in its file system are looked for
//! by the table of mounts, where another mount shows them.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use kiln_core::data::{Node, Spot};
use kiln_store::mount::Mounted;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;

/// Deeper than a path can be long.
const DEEPEST: usize = 4096;

/// Kinds of file systems that hold nobody's data.
const NO_DATA: [&str; 17] = [
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "sysfs",
    "tracefs",
];

/// What is at a path.
#[derive(Debug)]
pub(crate) struct Place {
    /// The file or folder; where it is not there yet, what it will be called.
    pub node: Node,
    /// Itself, and what is mounted in it. Empty if it holds no data: a socket, a pipe, a device.
    pub spots: Vec<Spot>,
}

/// The mounts that this process sees.
#[derive(Debug)]
pub(crate) struct Mounts(Vec<Mounted>);

impl Mounts {
    /// Reads the table.
    pub(crate) fn read() -> io::Result<Self> {
        Ok(Self(Mounted::all()?))
    }

    /// Something that is mounted at `path` or below it.
    pub(crate) fn below(&self, path: &Path) -> Option<&Path> {
        self.0.iter().map(|mount| mount.point.as_path()).find(|point| point.starts_with(path))
    }

    /// What is at `path`, links followed. What is not there is named by what is above it.
    pub(crate) fn place(&self, path: &Path) -> io::Result<Place> {
        let mut rest: Vec<&OsStr> = Vec::new();
        let mut at = path;
        let (found, real) = loop {
            match open(at) {
                Ok(fd) => break (Found::of(&fd)?, fd),
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
            let (Some(name), Some(parent)) = (at.file_name(), at.parent()) else {
                return Err(Errno::NOENT.into());
            };
            rest.push(name);
            at = parent;
        };
        if !rest.is_empty() {
            rest.reverse();
            let spot = self.missing(&real, &found, &rest)?;
            return Ok(Place { node: spot.node.clone(), spots: vec![spot] });
        }
        let mut spots = Vec::new();
        if matches!(found.kind, FileType::Directory | FileType::RegularFile) {
            spots.push(self.spot(&real, &found)?);
        }
        if found.kind == FileType::Directory {
            let real = real_path(&real)?;
            for mount in self.0.iter().filter(|mount| holds_data(mount)) {
                if !mount.point.starts_with(&real) || mount.point == real {
                    continue;
                }
                // One that another mount hides cannot be reached this way either.
                let Ok(fd) = open(&mount.point) else { continue };
                let found = Found::of(&fd)?;
                spots.push(self.spot(&fd, &found)?);
            }
        }
        Ok(Place { node: found.node, spots })
    }

    fn spot(&self, fd: &OwnedFd, found: &Found) -> io::Result<Spot> {
        let mut climb = Climb { mounts: self, above: BTreeSet::new(), seen: BTreeSet::new() };
        climb.from(fd, found)?;
        let mut above = climb.above;
        above.remove(&found.node);
        Ok(Spot { node: found.node.clone(), above })
    }

    /// `rest` below the folder `fd`, which is there.
    fn missing(&self, fd: &OwnedFd, found: &Found, rest: &[&OsStr]) -> io::Result<Spot> {
        let Spot { node, mut above } = self.spot(fd, found)?;
        above.insert(node.clone());
        let mut path = String::new();
        let mut last = node.clone();
        for name in rest {
            if !path.is_empty() {
                path.push('/');
            }
            path.push_str(&name.to_string_lossy());
            above.insert(last);
            last = Node { rest: path.clone(), ..node.clone() };
        }
        Ok(Spot { node: last, above })
    }
}

fn holds_data(mount: &Mounted) -> bool {
    !NO_DATA.contains(&mount.kind.as_str())
}

/// What an open descriptor is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    node: Node,
    kind: FileType,
    mount: u64,
}

impl Found {
    fn of(fd: &OwnedFd) -> io::Result<Self> {
        let wanted = StatxFlags::INO | StatxFlags::TYPE | StatxFlags::MNT_ID;
        let stat = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, wanted)?;
        let dev = rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor);
        let kind = FileType::from_raw_mode(stat.stx_mode.into());
        Ok(Self { node: Node::new(dev, stat.stx_ino), kind, mount: stat.stx_mnt_id })
    }
}

fn open(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
}

fn real_path(fd: &OwnedFd) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// The way up from one place, and from where else its file system is shown.
struct Climb<'a> {
    mounts: &'a Mounts,
    above: BTreeSet<Node>,
    /// Mounts whose place in their file system is known.
    seen: BTreeSet<u64>,
}

impl Climb<'_> {
    fn from(&mut self, fd: &OwnedFd, found: &Found) -> io::Result<()> {
        if found.kind == FileType::Directory {
            return self.up(open_beside(fd, ".")?, found.clone());
        }
        // A file has no `..`: its folder is found by its name, and has to have it still.
        let path = real_path(fd)?;
        let gone = || io::Error::other(format!("{} is being replaced", path.display()));
        let folder = open(path.parent().ok_or_else(gone)?)?;
        let same = Found::of(&open(&path)?)?;
        if same.node != found.node {
            return Err(gone());
        }
        let above = Found::of(&folder)?;
        if above.mount != found.mount {
            self.elsewhere(found)?;
        }
        self.above.insert(above.node.clone());
        self.up(folder, above)
    }

    fn up(&mut self, mut dir: OwnedFd, mut here: Found) -> io::Result<()> {
        for _ in 0..DEEPEST {
            let parent = open_beside(&dir, "..")?;
            let there = Found::of(&parent)?;
            if there.mount != here.mount || there == here {
                self.elsewhere(&here)?;
            }
            if there == here {
                return Ok(());
            }
            self.above.insert(there.node.clone());
            (dir, here) = (parent, there);
        }
        Err(io::Error::other("the path is too deep"))
    }

    /// `top` is what a mount shows. If that is a part of a file system which another mount shows
    /// with more around it, the folders there count too.
    fn elsewhere(&mut self, top: &Found) -> io::Result<()> {
        if !self.seen.insert(top.mount) {
            return Ok(());
        }
        let mounts = self.mounts;
        let Some(this) = mounts.0.iter().find(|mount| mount.id == top.mount) else {
            return Ok(());
        };
        for other in mounts.0.iter().filter(|other| other.device == this.device) {
            let Ok(rest) = this.root.strip_prefix(&other.root) else { continue };
            if rest.as_os_str().is_empty() || other.id == this.id {
                continue;
            }
            let Ok(fd) = open(&other.point.join(rest)) else { continue };
            let found = Found::of(&fd)?;
            if found.node == top.node {
                return self.from(&fd, &found);
            }
        }
        Ok(())
    }
}

fn open_beside(dir: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_core::data::{Data, Held};
    use rustix::mount::MountAttrFlags;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn data(path: &Path) -> Data {
        let place = Mounts::read().unwrap().place(path).unwrap();
        Data(vec![Held { name: path.display().to_string(), spots: place.spots }])
    }

    fn overlap(a: &Path, b: &Path) -> bool {
        let (a, b) = (data(a), data(b));
        assert_eq!(a.overlap(&b).is_some(), b.overlap(&a).is_some());
        a.overlap(&b).is_some()
    }

    #[test]
    fn links_aliases_and_parents_are_the_same_data() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        fs::create_dir_all(at("shared/data")).unwrap();
        fs::create_dir_all(at("other")).unwrap();
        fs::write(at("shared/file"), "x").unwrap();
        fs::hard_link(at("shared/file"), at("other/second")).unwrap();
        symlink("shared/data", at("alias")).unwrap();
        for (a, b, expected) in [
            ("shared/data", "alias", true),
            ("shared", "alias", true),
            ("shared", "shared/data", true),
            ("shared/file", "shared", true),
            ("shared/file", "shared/data", false),
            ("shared/file", "other/second", true),
            ("shared", "other", false),
            ("shared/data", "shared/../shared/./data", true),
            // Not there yet.
            ("new/volume", "new/volume", true),
            ("new/volume", "new/second", false),
            ("new/volume", "new", true),
            ("new/volume", ".", true),
            ("new/volume", "shared", false),
            ("alias/new", "shared/data/new", true),
        ] {
            assert_eq!(overlap(&at(a), &at(b)), expected, "{a} and {b}");
        }
    }

    #[test]
    fn a_socket_is_no_data() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(Mounts::read().unwrap().place(&path).unwrap().spots.is_empty());
        assert!(Mounts::read().unwrap().place(Path::new("/dev/null")).unwrap().spots.is_empty());
    }

    #[test]
    fn bind_mounts_lead_to_where_their_file_system_has_it() {
        let home = tempfile::tempdir().unwrap();
        // In a thread with a namespace of its own: nothing is left mounted, and the folder can go.
        std::thread::scope(|scope| {
            scope.spawn(|| bound_in(home.path())).join().unwrap();
        });
        let path = home.path().to_owned();
        home.close().unwrap();
        assert!(!path.exists());
    }

    fn bound_in(home: &Path) {
        rustix_unshare();
        let at = |name: &str| home.join(name);
        for dir in ["a/inner/deep", "mnt", "b/disk", "second", "c"] {
            fs::create_dir_all(at(dir)).unwrap();
        }
        let bind = |from: &str, to: &str| {
            let mount = kiln_store::mount::bind(at(from), false, false).unwrap();
            kiln_store::mount::attach(mount, at(to)).unwrap();
        };
        bind("a/inner", "mnt");
        assert!(overlap(&at("mnt"), &at("a/inner")), "the same folder");
        assert!(overlap(&at("mnt/deep"), &at("a/inner")), "inside of what is shown");
        assert!(overlap(&at("mnt"), &at("a")), "the folder above, which the mount does not show");
        assert!(overlap(&at("mnt/deep"), &at("a")));
        assert!(!overlap(&at("mnt"), &at("c")));
        // A file system of its own, mounted in one folder and shown at another.
        let tmpfs = kiln_store::mount::tmpfs(1 << 20, 0o755, MountAttrFlags::empty()).unwrap();
        kiln_store::mount::attach(tmpfs, at("b/disk")).unwrap();
        bind("b/disk", "second");
        assert!(overlap(&at("b"), &at("second")), "what is mounted in a folder comes with it");
        assert!(!overlap(&at("a"), &at("second")));
    }

    fn rustix_unshare() {
        // SAFETY: only this thread gets namespaces of its own, and it shares no file system state
        // that another thread relies on.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNS) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        let flags = rustix::mount::MountPropagationFlags::PRIVATE
            | rustix::mount::MountPropagationFlags::REC;
        rustix::mount::mount_change("/", flags).unwrap();
    }
}
