//! What of a root folder belongs to the root user only: all of it. Volumes hold what programs in
//! instances made, set-id programs and devices included, and whoever may open a lock file may hold
//! it. So modes are said wherever a thing is made, whatever the umask, and put right here for
//! roots of earlier versions.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Metadata, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use crate::report::{Because, Report};

/// Everything that stands directly in a root folder. What else is there is not Kiln's.
const PARTS: [&str; 27] = [
    "agent.failed",
    "agent.lock",
    "agent.log",
    "backing",
    "cache",
    "commands",
    "days",
    "format",
    "gc.lock",
    "front",
    "images",
    "instances",
    "keys",
    "lease.lock",
    "ledger",
    "links",
    "logs",
    "objects",
    "policy",
    "refs",
    "run",
    "secrets",
    "spare",
    "stages",
    "tmp",
    "unsynced",
    "volumes",
];
/// Folders that are made here, so that nobody makes them with the modes of the moment.
const MADE: [&str; 3] = ["logs", "run", "volumes"];

/// Who called `sudo`, if somebody did: the one user beside root who may talk to the agent.
pub(crate) fn invited() -> Option<u32> {
    std::env::var("SUDO_UID").ok().and_then(|uid| uid.parse().ok())
}

/// Makes the root folder if it is not there; the way to it is nothing secret.
pub(crate) fn make_root(root: &Path) -> io::Result<()> {
    if let Some(parent) = root.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(root) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && root.is_dir() => Ok(()),
        made => made,
    }
}

/// A file of the root user's, to be written.
pub(crate) fn private_file() -> fs::OpenOptions {
    let mut options = File::options();
    options.create(true).mode(0o600);
    options
}

/// Takes the root folder and all its parts away from everybody else.
pub(crate) fn close(root: &Path) -> Result<(), Report> {
    make_root(root).because(|| format!("creating the root folder {}", root.display()))?;
    close_root(root)?;
    for name in PARTS {
        close_part(&root.join(name))?;
    }
    for name in MADE {
        let path = root.join(name);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.because(|| format!("creating {}", path.display()))?;
    }
    Ok(())
}

/// A folder that holds nothing but what is Kiln's is Kiln's. Of another one, only the parts are.
fn close_root(root: &Path) -> Result<(), Report> {
    let doing = || format!("closing the root folder {}", root.display());
    let folder = File::open(root).because(doing)?;
    let found = folder.metadata().because(doing)?;
    let entries = fs::read_dir(root).because(doing)?.collect::<io::Result<Vec<_>>>();
    let known = |name: &OsStr| PARTS.iter().any(|part| *part == name) || name == "agent.sock";
    let ours = root.join("format").exists()
        || entries.because(doing)?.iter().all(|entry| known(&entry.file_name()));
    if ours {
        // The way to the socket may be walked, not read.
        let mode = if invited().is_some() { 0o711 } else { 0o700 };
        fchown(&folder, Some(0), Some(0)).because(doing)?;
        return folder.set_permissions(Permissions::from_mode(mode)).because(doing);
    }
    if found.uid() != 0 || found.mode() & 0o022 != 0 {
        return Err(Report::failed(format!(
            "{} holds other things than Kiln's, and others than root may write to it",
            root.display()
        ))
        .hint("name an empty or new folder with `--root`"));
    }
    Ok(())
}

fn close_part(path: &Path) -> Result<(), Report> {
    let doing = || format!("closing {}", path.display());
    let link = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).because(doing),
    };
    // Root may have put a part elsewhere by a link.
    let found = if link.is_symlink() { fs::metadata(path).because(doing)? } else { link.clone() };
    let roots = |meta: &Metadata| meta.uid() == 0;
    if !roots(&link) || !roots(&found) {
        let text = format!("{} belongs to user {}", path.display(), found.uid().max(link.uid()));
        return Err(Report::failed(text)
            .hint("look at what it is; only what is root's can be part of a root folder"));
    }
    let mode = match (found.is_dir(), found.is_file()) {
        (true, _) => 0o700,
        (_, true) => 0o600,
        _ => return Err(Report::failed(format!("{} is no file or folder", path.display()))),
    };
    if found.mode() & 0o7777 == mode {
        return Ok(());
    }
    fs::set_permissions(path, Permissions::from_mode(mode)).because(doing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn an_old_root_is_closed() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("deep/root");
        make_root(&root).unwrap();
        for (name, mode) in [("volumes", 0o755), ("run", 0o777)] {
            fs::create_dir(root.join(name)).unwrap();
            fs::set_permissions(root.join(name), Permissions::from_mode(mode)).unwrap();
        }
        for name in ["agent.lock", "lease.lock", "agent.log"] {
            fs::write(root.join(name), "").unwrap();
        }
        fs::set_permissions(&root, Permissions::from_mode(0o777)).unwrap();
        close(&root).unwrap();
        for name in ["", "volumes", "run", "logs"] {
            assert_eq!(mode(&root.join(name)) & 0o066, 0, "{name}");
        }
        for name in ["agent.lock", "lease.lock", "agent.log"] {
            assert_eq!(mode(&root.join(name)), 0o600, "{name}");
        }
        assert_eq!(mode(home.path().join("deep").as_path()) & 0o055, 0o055);
    }

    #[test]
    fn what_is_not_kilns_stays_as_it_is() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("letter"), "").unwrap();
        fs::set_permissions(home.path(), Permissions::from_mode(0o755)).unwrap();
        close(home.path()).unwrap();
        assert_eq!(mode(home.path()), 0o755);
        assert_eq!(mode(&home.path().join("volumes")), 0o700);
        fs::remove_dir(home.path().join("run")).unwrap();
        fs::set_permissions(home.path(), Permissions::from_mode(0o777)).unwrap();
        let refused = close(home.path()).unwrap_err();
        assert!(refused.message.contains("others than root"), "{refused}");
        assert!(!home.path().join("run").exists());
    }

    #[test]
    fn a_part_of_somebody_elses_is_refused() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("volumes")).unwrap();
        std::os::unix::fs::chown(home.path().join("volumes"), Some(65_534), None).unwrap();
        let refused = close(home.path()).unwrap_err();
        assert!(refused.message.contains("belongs to user 65534"), "{refused}");
    }
}
