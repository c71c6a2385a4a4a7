//! Command lines of `exec`, which hold passwords: the ledger, which is kept for ever and shown to
//! whoever asks, has the program and a keyed digest. The lines themselves stand in
//! `commands/<day>.jsonl`, for root alone, and go after thirty days. Whoever has a line and the
//! root's key can show that it is the one that an entry is about.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use kiln_core::Digest;
use serde_json::json;

use super::lasting::{self, Site};
use super::now_ms;

/// So long lines are kept, in days.
const DAYS: u64 = 30;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// The longest line that is kept, in bytes. The digest is of all of it.
const LINE: usize = 64 << 10;

/// Keeps `argv`, which is run in `instance`, and gives what the ledger is to have of it.
///
/// # Errors
/// I/O errors.
pub(crate) fn keep(root: &Path, instance: &str, argv: &[String]) -> io::Result<String> {
    let folder = root.join("commands");
    DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    let text = serde_json::to_vec(argv)?;
    let digest = hmac(&key(&folder)?, &text).hex();
    let now = now_ms();
    let mut line = json!({ "time": now, "instance": instance, "digest": digest });
    if text.len() <= LINE {
        line["argv"] = json!(argv);
    } else {
        line["bytes"] = json!(text.len());
    }
    super::who::sign(&mut line);
    let mut bytes = serde_json::to_vec(&line)?;
    bytes.push(b'\n');
    let today = now / DAY_MS;
    let path = day(&folder, today);
    let fresh = !path.exists();
    File::options().create(true).append(true).mode(0o600).open(path)?.write_all(&bytes)?;
    if fresh {
        forget(&folder, today)?;
    }
    Ok(digest)
}

/// Days are counted from the Unix epoch.
fn day(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number}.jsonl"))
}

/// Removes lines that are older than they may get.
pub(crate) fn forget(folder: &Path, today: u64) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let number =
            name.to_str().and_then(|name| name.strip_suffix(".jsonl")?.parse::<u64>().ok());
        if number.is_some_and(|number| number + DAYS < today) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Removes lines of `root` that are older than they may get, as of now.
pub(crate) fn forget_old(root: &Path) -> io::Result<()> {
    match forget(&root.join("commands"), now_ms() / DAY_MS) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// The root's key for these digests, made when first needed.
fn key(folder: &Path) -> io::Result<[u8; 32]> {
    let path = folder.join("key");
    let mut key = [0; 32];
    match File::open(&path) {
        Ok(mut file) => {
            file.read_exact(&mut key)?;
            return Ok(key);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    File::open("/dev/urandom")?.read_exact(&mut key)?;
    let beside = folder.join(format!(".key.{}", std::process::id()));
    let mut file =
        File::options().create(true).truncate(true).write(true).mode(0o600).open(&beside)?;
    file.write_all(&key)?;
    lasting::file(Site::Key, &beside)?;
    // Whoever is first has made the key.
    let linked = fs::hard_link(&beside, &path);
    lasting::named(&path);
    fs::remove_file(&beside)?;
    for folder in [Some(folder), folder.parent()].into_iter().flatten() {
        lasting::folder(Site::KeyName, folder)?;
    }
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    File::open(&path)?.read_exact(&mut key)?;
    Ok(key)
}

/// HMAC-SHA256, RFC 2104.
fn hmac(key: &[u8; 32], text: &[u8]) -> Digest {
    let pad = |with: u8| {
        let mut block = [with; 64];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let inner = Digest::of([&pad(0x36)[..], text].concat());
    Digest::of([&pad(0x5c)[..], inner.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn hmac_is_that_of_rfc_4231() {
        let mut key = [0; 32];
        key[..4].copy_from_slice(b"Jefe");
        let digest = hmac(&key, b"what do ya want for nothing?");
        assert_eq!(
            digest.hex(),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    /// Without the key nobody could show any more which line an entry is about.
    #[test]
    fn a_power_cut_leaves_a_whole_key_or_none() {
        use lasting::tape;
        let made = |without: Option<Site>| {
            let root = tempfile::tempdir().unwrap();
            let folder = root.path().join("commands");
            let events = tape::record(without, || {
                keep(root.path(), "shop-dev-db-1", &["true".to_owned()]).unwrap();
            });
            let beside = folder.join(format!(".key.{}", std::process::id()));
            let named = folder.join("key");
            let above = vec![named.clone(), folder];
            let work = tape::Work { files: [beside].into(), named, above, ..Default::default() };
            tape::wrong(&events, &work)
        };
        assert_eq!(made(None), None);
        for site in [Site::Key, Site::KeyName] {
            assert!(made(Some(site)).is_some(), "it does without {site:?}");
        }
    }

    #[test]
    fn lines_are_roots_own_and_go_after_thirty_days() {
        let root = tempfile::tempdir().unwrap();
        let argv = ["psql".to_owned(), "password=hush".to_owned()];
        let one = keep(root.path(), "shop-dev-db-1", &argv).unwrap();
        assert!(!one.contains("hush"));
        assert_eq!(keep(root.path(), "shop-dev-db-2", &argv).unwrap(), one, "one key, one digest");
        let folder = root.path().join("commands");
        let today = now_ms() / DAY_MS;
        for (age, there) in [(0, true), (DAYS, true), (DAYS + 1, false)] {
            fs::write(day(&folder, today - age), fs::read(day(&folder, today)).unwrap()).unwrap();
            forget(&folder, today).unwrap();
            assert_eq!(day(&folder, today - age).exists(), there, "{age} days");
        }
        let text = fs::read_to_string(day(&folder, today)).unwrap();
        assert!(text.contains("hush") && text.contains("shop-dev-db-2"));
        for own in [day(&folder, today), folder.join("key")] {
            assert_eq!(fs::metadata(&own).unwrap().mode() & 0o077, 0, "{}", own.display());
        }
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o077, 0);
    }
}
