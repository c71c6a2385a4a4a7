//! Files by which another agent goes on: one line of JSON, then one with its sha256 in hex. They are
//! whole or of no use, and what cannot be read is never taken for nothing. None is flushed: after a
//! power cut nothing that they tell of lives.

use std::io::{self, ErrorKind, Write as _};
use std::path::Path;

use kiln_core::Digest;
use kiln_store::regular::{self, Links};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of a file; all that a root can run takes far less.
const LARGEST: u64 = 256 << 20;

/// Writes `value` to `path`, whole or not at all. The folder is made if it is not there.
pub(super) fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let parent = path.parent().unwrap_or(path);
    std::fs::create_dir_all(parent)?;
    let part = tempfile::NamedTempFile::new_in(parent)?;
    // In one piece: a file takes a system call for each write.
    let mut text = serde_json::to_vec(value)?;
    let sum = Digest::of(&text).hex();
    text.extend_from_slice(format!("\n{sum}\n").as_bytes());
    (&part).write_all(&text)?;
    part.persist(path)?;
    Ok(())
}

/// What is written at `path`; `None`: nothing. A file without a sum is of an older Kiln.
///
/// # Errors
/// When it cannot be read, does not fit its sum, or makes no sense.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let text = match regular::read(path, Links::Refuse, LARGEST) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        read => read?,
    };
    let end = text.iter().position(|byte| *byte == b'\n').unwrap_or(text.len());
    let (json, sum) = text.split_at(end);
    if !sum.is_empty() && sum.trim_ascii() != Digest::of(json).hex().as_bytes() {
        return Err(io::Error::other("its sum does not fit"));
    }
    Ok(Some(serde_json::from_slice(json)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_bit_is_another_one_it_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/file.json");
        let read = || read::<Vec<String>>(&path);
        assert_eq!(read().unwrap(), None, "nothing is there, which is known");
        write(&path, &["one", "two"]).unwrap();
        assert_eq!(read().unwrap().unwrap(), ["one", "two"]);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() - 1 {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            std::fs::write(&path, &flipped).unwrap();
            assert!(read().is_err(), "byte {at}");
            std::fs::write(&path, &whole[..at]).unwrap();
            // Without its last lines it is as an older Kiln wrote it.
            assert_eq!(read().is_ok(), at == whole.len() - 66, "{at}");
        }
        std::fs::write(&path, "[\"old\"]").unwrap();
        assert_eq!(read().unwrap().unwrap(), ["old"]);
    }
}
