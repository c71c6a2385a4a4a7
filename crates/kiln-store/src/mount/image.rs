//! Mounting an image: read-only, or below a writable layer.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid};
use rustix::mount::{MountAttrFlags, UnmountFlags};

use super::{Context, errno_of, told};
use crate::lower::Lower;

/// Where a writable layer goes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Upper {
    /// Holds `upper/` (what changed) and `work/`, `work.*` (overlayfs's own); made if missing.
    pub dir: PathBuf,
    /// A change of owner or mode does not copy the content (`metacopy`). Then `upper/` tells only
    /// which names may have changed: a file of it may be of zeros, a folder that was renamed empty.
    #[serde(default)]
    pub names_only: bool,
}

impl Upper {
    /// A layer whose files are whole, as far as the kernel lets us have it so.
    pub fn whole(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), names_only: false }
    }

    /// A layer of which only the names are to be believed.
    pub fn names_only(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), names_only: true }
    }
}

/// Mounts an image; the mount is detached, so the caller attaches it with [`super::attach`] or
/// reads through the descriptor. Without `upper` it is read-only for good: there is no layer to
/// write to. Devices are dead (`nodev`), set-id bits work.
///
/// With an [`Upper::whole`], overlayfs neither leaves data behind in the lower layer (`metacopy`) nor redirects
/// folders, where the kernel lets us have it so (6.16); so a file in the upper layer is whole. On
/// older kernels a changed mode gives an upper file of zeros. Whoever captures reads through the
/// mount. The layer is throw-away: it is never synced (`volatile`), so after a crash of the machine
/// it must not be used again.
///
/// # Errors
/// I/O errors that name the step and carry the kernel's own message.
pub fn mount_image(lower: &Lower, upper: Option<&Upper>) -> io::Result<OwnedFd> {
    mount_image_under(lower, upper, &[])
}

/// As [`mount_image`], with the folders `over` as further read-only layers above the image and
/// below the writable one, the topmost first. A folder of a higher layer gives its owner and mode
/// to the merged one.
///
/// # Errors
/// As [`mount_image`].
pub fn mount_image_under(
    lower: &Lower,
    upper: Option<&Upper>,
    over: &[&Path],
) -> io::Result<OwnedFd> {
    Opened::open(lower)?.mount(upper, over)
}

/// An image whose names, owners and modes can be looked at before it is mounted, for no more than
/// what mounting it costs.
#[derive(Debug)]
pub struct Opened<'a> {
    lower: &'a Lower,
    names: OwnedFd,
}

impl<'a> Opened<'a> {
    /// Opens the image.
    ///
    /// # Errors
    /// As [`mount_image`].
    pub fn open(lower: &'a Lower) -> io::Result<Self> {
        let names = match lower {
            Lower::Composefs { image, .. } => erofs(image)?,
            Lower::Links { dir } => open_dir(dir)?,
        };
        Ok(Self { lower, names })
    }

    /// Its root. Files that it leads to may be empty: their content is elsewhere.
    pub fn names(&self) -> BorrowedFd<'_> {
        self.names.as_fd()
    }

    /// Mounts it as [`mount_image_under`] does.
    ///
    /// # Errors
    /// As [`mount_image`].
    pub fn mount(self, upper: Option<&Upper>, over: &[&Path]) -> io::Result<OwnedFd> {
        let over = over.iter().map(|dir| open_dir(dir)).collect::<io::Result<Vec<_>>>()?;
        match self.lower {
            Lower::Composefs { image, objects } => {
                let objects = open_dir(objects)?;
                composefs(image, self.names, &objects, upper, &over)
            }
            Lower::Links { dir } => linked(dir, &self.names, upper, &over),
        }
    }
}

/// A detached mount of an EROFS image file (Linux 6.12).
fn erofs(image: &Path) -> io::Result<OwnedFd> {
    let file = File::open(image)
        .map_err(|error| told(error, format_args!("opening {}", image.display())))?;
    let context = Context::open("erofs")?;
    context.set("source", &name_of(image, &file))?;
    context.flag("ro")?;
    context.mount(MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV)
}

/// What this kernel was seen to want: nothing known, or a bit set of the two below.
static WANTS: AtomicU8 = AtomicU8::new(0);
/// Overlayfs takes a data-only layer only with `metacopy=on` (before 6.16).
const METACOPY: u8 = 1;
/// A lower layer has to be attached somewhere in the namespace (before 6.15).
const ATTACHED: u8 = 2;

fn composefs(
    image: &Path,
    names: OwnedFd,
    data: &OwnedFd,
    upper: Option<&Upper>,
    over: &[OwnedFd],
) -> io::Result<OwnedFd> {
    let mut names = Some(names);
    let known = WANTS.load(Ordering::Relaxed);
    let mut first = None;
    for wants in [known, METACOPY, ATTACHED, METACOPY | ATTACHED] {
        if wants == known && first.is_some() {
            continue;
        }
        let names = names.take().map_or_else(|| erofs(image), Ok)?;
        let result = composefs_as(&names, data, upper, over, wants);
        match result {
            Ok(mount) => {
                WANTS.store(wants, Ordering::Relaxed);
                return Ok(mount);
            }
            Err(error) if errno_of(&error) == Some(libc::EINVAL) => {
                first.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(first.unwrap_or_else(|| io::ErrorKind::Unsupported.into()))
}

fn composefs_as(
    names: &OwnedFd,
    data: &OwnedFd,
    upper: Option<&Upper>,
    over: &[OwnedFd],
    wants: u8,
) -> io::Result<OwnedFd> {
    let attached = if wants & ATTACHED == 0 { None } else { Some(Attached::new(names)?) };
    let overlay = Context::open("overlay")?;
    overlay.set("source", "kiln")?;
    for layer in over {
        overlay.set("lowerdir+", &proc_name(layer))?;
    }
    match &attached {
        Some(attached) => overlay.set("lowerdir+", &attached.name())?,
        None => overlay.set("lowerdir+", &proc_name(names))?,
    }
    overlay.set("datadir+", &proc_name(data))?;
    finish(&overlay, names, upper, wants & METACOPY != 0)
}

/// With the older kernels' wants, which a newer one takes as well: for tests.
#[cfg(test)]
pub(crate) fn composefs_forced(
    image: &Path,
    objects: &Path,
    upper: Option<&Upper>,
    metacopy: bool,
    attached: bool,
) -> io::Result<OwnedFd> {
    let wants = if metacopy { METACOPY } else { 0 } | if attached { ATTACHED } else { 0 };
    composefs_as(&erofs(image)?, &open_dir(objects)?, upper, &[], wants)
}

/// A tree of hard links. An overlay without an upper layer wants two lower ones, so the second is
/// an empty folder; that keeps the mount from ever becoming writable, as a mere bind could.
fn linked(
    dir: &Path,
    tree: &OwnedFd,
    upper: Option<&Upper>,
    over: &[OwnedFd],
) -> io::Result<OwnedFd> {
    let overlay = Context::open("overlay")?;
    overlay.set("source", "kiln")?;
    let empty = match upper {
        Some(_) => None,
        None => Some(open_dir(&crate::links::empty_beside(dir))?),
    };
    let layers = over.iter().chain([tree]).chain(&empty).map(proc_name).collect::<Vec<_>>();
    overlay.set("lowerdir", &layers.join(":"))?;
    finish(&overlay, tree, upper, false)
}

/// Sets what all overlays have in common, and mounts. Every option whose default is a choice of
/// the distribution's kernel is stated.
fn finish(
    overlay: &Context,
    lower: &OwnedFd,
    upper: Option<&Upper>,
    metacopy: bool,
) -> io::Result<OwnedFd> {
    let metacopy = metacopy || upper.is_some_and(|upper| upper.names_only);
    overlay.set("index", "off")?;
    overlay.set("xino", "off")?;
    overlay.set("metacopy", if metacopy { "on" } else { "off" })?;
    // Older kernels follow a metadata file to its data only with redirects on.
    overlay.set("redirect_dir", if metacopy { "on" } else { "off" })?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NODEV;
    let mut layers = None;
    match upper {
        None => attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY,
        Some(upper) => {
            let (changed, work, work_path) = prepare(upper, lower)?;
            overlay.set("upperdir", &name_of(&upper.dir.join("upper"), &changed))?;
            overlay.set("workdir", &name_of(&work_path, &work))?;
            overlay.flag("volatile")?;
            layers = Some((changed, work));
        }
    }
    let mount = overlay.mount(attributes);
    drop(layers);
    mount
}

/// Makes the folders of a writable layer. The root of an overlay shows its upper folder's owner
/// and mode, so those are taken from the image.
fn prepare(upper: &Upper, lower: &OwnedFd) -> io::Result<(OwnedFd, OwnedFd, PathBuf)> {
    let changed = upper.dir.join("upper");
    // A second mount of the same layer gets a second folder: emptying the first one takes the kernel
    // milliseconds, and it carries the mark of a volatile mount, which would be refused.
    let mut work = upper.dir.join("work");
    if work.join("work").exists() {
        work = upper.dir.join(crate::owner::unique("work"));
    }
    fs::create_dir_all(&upper.dir)
        .map_err(|error| told(error, format_args!("creating {}", upper.dir.display())))?;
    match DirBuilder::new().mode(0o700).create(&changed) {
        Ok(()) => {
            let root = rustix::fs::fstat(lower)?;
            let (owner, group) = (Uid::from_raw(root.st_uid), Gid::from_raw(root.st_gid));
            rustix::fs::chown(&changed, Some(owner), Some(group))?;
            rustix::fs::chmod(&changed, Mode::from_raw_mode(root.st_mode & 0o7777))?;
            let times = super::times(root.st_mtime);
            rustix::fs::utimensat(CWD, &changed, &times, AtFlags::empty())?;
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(told(error, format_args!("creating {}", changed.display()))),
    }
    fs::create_dir_all(&work)
        .map_err(|error| told(error, format_args!("creating {}", work.display())))?;
    let layers = (open_dir(&changed)?, open_dir(&work)?, work);
    Ok(layers)
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|error| told(error.into(), format_args!("opening {}", path.display())))
}

fn proc_name(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// A name for `path` that fits in an option: those are cut at 255 bytes and split at commas and
/// colons in places.
fn name_of(path: &Path, fd: impl AsFd) -> String {
    match path.to_str() {
        Some(text) if text.len() < 250 && !text.contains([',', ':', '\\']) => text.to_owned(),
        _ => proc_name(fd),
    }
}

/// A mount that is attached to a folder of its own for as long as an overlay over it is made.
struct Attached(tempfile::TempDir);

impl Attached {
    fn new(mount: &OwnedFd) -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix(".kiln-lower.").tempdir()?;
        super::attach(mount, dir.path())?;
        Ok(Self(dir))
    }

    fn name(&self) -> String {
        self.0.path().to_string_lossy().into_owned()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // The overlay has its own hold on the file system; the folder goes with the `TempDir`.
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        let _ = rustix::mount::unmount(self.0.path(), flags);
    }
}
