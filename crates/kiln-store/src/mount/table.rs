//! `/proc/*/mountinfo`, as proc_pid_mountinfo(5) has it.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// The mount's id.
    pub id: u64,
    /// `MAJOR:MINOR` of the file system.
    pub device: String,
    /// What of the file system it shows.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
    /// Kind of file system.
    pub kind: String,
    /// Options of the file system itself, with commas in between.
    pub options: String,
}

impl Mounted {
    /// One line: `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS … - KIND SOURCE OPTIONS`.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
        let mut fields = line.split(|byte| *byte == b' ');
        let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let device = text(fields.nth(1)?);
        let root = path_of(fields.next()?);
        let point = path_of(fields.next()?);
        fields.find(|field| *field == b"-")?;
        let kind = text(fields.next()?);
        let options = fields.nth(1).map(text).unwrap_or_default();
        Some(Self { id, device, root, point, kind, options })
    }

    /// All lines of a table, in its order: parents first.
    pub fn parse_all(table: &[u8]) -> Vec<Self> {
        table.split(|byte| *byte == b'\n').filter_map(Self::parse).collect()
    }

    /// The mounts that this thread sees; another one may be in another namespace.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn all() -> io::Result<Vec<Self>> {
        Ok(Self::parse_all(&std::fs::read("/proc/thread-self/mountinfo")?))
    }
}

/// Spaces, tabs, newlines and backslashes are `\ooo` in the table.
fn path_of(text: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let code = text.get(at + 1..at + 4).and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) if text[at] == b'\\' => {
                out.push(byte);
                at += 4;
            }
            _ => {
                out.push(text[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(OsStr::from_bytes(&out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn names_in_the_table_are_unescaped() {
        let line =
            br"36 35 98:0 /with\040space /mnt\134x rw,noatime master:1 - ext3 /dev/root rw,x";
        let mount = Mounted::parse(line).unwrap();
        assert_eq!((mount.id, mount.device.as_str()), (36, "98:0"));
        assert_eq!(mount.root, Path::new("/with space"));
        assert_eq!(mount.point, Path::new(r"/mnt\x"));
        assert_eq!((mount.kind.as_str(), mount.options.as_str()), ("ext3", "rw,x"));
        assert_eq!(path_of(br"/a\040b\134c\"), Path::new(r"/a b\c\"));
        assert_eq!(Mounted::parse_all(b"garbage\n\n36 35 98:0 / /x rw - ext3\n").len(), 1);
    }
}
