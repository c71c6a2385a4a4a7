//! What folders inherit from the folder that somebody put the root into: a default ACL decides the
//! modes of all that is made below it, and a set-group-id bit its group. A root takes over neither.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{CWD, Mode};
use rustix::io::Errno;

const DEFAULT_ACL: &str = "system.posix_acl_default";
const ACCESS_ACL: &str = "system.posix_acl_access";

/// How deep folders of Kiln's own lie below the root; what is below volumes is not Kiln's.
const DEPTH: usize = 3;
const NOT_OURS: [&str; 1] = ["volumes"];

/// Takes off `root`, and off Kiln's own folders that an earlier version made in it, what they
/// inherited. The root itself, if it is `fresh`, is made as it would have been anywhere else: 0755,
/// root's group, no ACL. One that was there before keeps who may enter it, for somebody set that.
pub(crate) fn disown(root: &Path, fresh: bool) -> io::Result<()> {
    let inherited = remove(root, DEFAULT_ACL)? | unset_group_bit(root)?;
    if fresh {
        remove(root, ACCESS_ACL)?;
        rustix::fs::chown(root, None, Some(rustix::fs::Gid::ROOT))?;
        rustix::fs::chmod(root, Mode::from_raw_mode(0o755))?;
    }
    if inherited { below(root, DEPTH) } else { Ok(()) }
}

fn below(dir: &Path, depth: usize) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let ours = !NOT_OURS.iter().any(|name| entry.file_name() == *name);
        if ours && entry.file_type()?.is_dir() {
            remove(&entry.path(), DEFAULT_ACL)?;
            unset_group_bit(&entry.path())?;
            if depth > 1 {
                below(&entry.path(), depth - 1)?;
            }
        }
    }
    Ok(())
}

/// Whether there was such an attribute. File systems without ACLs have none to inherit.
fn remove(dir: &Path, name: &str) -> io::Result<bool> {
    match rustix::fs::lremovexattr(dir, name) {
        Ok(()) => Ok(true),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn unset_group_bit(dir: &Path) -> io::Result<bool> {
    let mode = fs::symlink_metadata(dir)?.mode() & 0o7777;
    if mode & 0o2000 == 0 {
        return Ok(false);
    }
    rustix::fs::chmodat(
        CWD,
        dir,
        Mode::from_raw_mode(mode & !0o2000),
        rustix::fs::AtFlags::empty(),
    )?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `default:user::rwx`, `group::rwx`, `other::rwx`: what `setfacl -d -m u::rwx,g::rwx,o::rwx`
    /// writes (version 2, then tag, permissions and id of each entry).
    const OPEN_TO_ALL: [u8; 28] = [
        2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 4, 0, 7, 0, 255, 255, 255, 255, 32, 0, 7, 0,
        255, 255, 255, 255,
    ];

    #[test]
    fn a_root_inherits_neither_acl_nor_group() {
        let parent = tempfile::tempdir().unwrap();
        rustix::fs::chmod(parent.path(), Mode::from_raw_mode(0o2777)).unwrap();
        rustix::fs::chown(parent.path(), None, Some(rustix::fs::Gid::from_raw(1234))).unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(parent.path(), DEFAULT_ACL, &OPEN_TO_ALL, flags).unwrap();
        let root = parent.path().join("root");
        // As an earlier version left it.
        fs::create_dir_all(root.join("cache/steps")).unwrap();
        fs::write(root.join("file"), "").unwrap();
        assert_eq!(fs::metadata(root.join("cache")).unwrap().mode() & 0o2777, 0o2777);

        crate::Store::open(&root).unwrap();
        fs::create_dir(root.join("cache/new")).unwrap();
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let umask = status.lines().find_map(|line| line.strip_prefix("Umask:\t")).unwrap();
        let plain = 0o777 & !u32::from_str_radix(umask, 8).unwrap();
        let meta = |path: &str| fs::metadata(root.join(path)).unwrap();
        assert_eq!((meta("").mode() & 0o7777, meta("").gid()), (0o755, 0));
        assert_eq!(
            (meta("cache/new").mode() & 0o7777, meta("tmp").mode() & 0o7777),
            (plain, 0o700)
        );
        assert_eq!(meta("tmp").gid(), 0);
        assert_eq!(
            rustix::fs::lgetxattr(root.join("tmp"), DEFAULT_ACL, &mut [0; 64][..]),
            Err(Errno::NODATA)
        );
    }
}
