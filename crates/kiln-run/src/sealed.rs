//! A copy of Kiln's own binary that nobody can write to: what every process runs that a program of
//! an instance or a step may come to see, so that no way leads from it to the file on the host
//! (CVE-2019-5736).

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// Allowed on kernels where a memfd is else no program (`vm.memfd_noexec`), from 6.3 on.
const MFD_EXEC: u32 = 0x10;

/// The copy. Executed by [`Sealed::path`] for as long as this is kept.
#[derive(Debug)]
pub(crate) struct Sealed(File);

impl Sealed {
    /// Copies `exe`, without what only a debugger reads.
    pub(crate) fn copy_of(exe: &Path) -> io::Result<Self> {
        let mut from = File::open(exe)?;
        let length = loaded(&mut from)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = memfd_create("kiln", flags | MemfdFlags::from_bits_retain(MFD_EXEC))
            .or_else(|_| memfd_create("kiln", flags))?;
        let mut to = File::from(fd);
        match length {
            None => io::copy(&mut from, &mut to).map(drop)?,
            Some(length) => {
                io::copy(&mut from.take(length), &mut to)?;
                // Sections are not there any more, so nobody shall look for them.
                for (offset, width) in SECTIONS {
                    to.seek(SeekFrom::Start(offset))?;
                    to.write_all(&[0; 8][..width])?;
                }
            }
        }
        let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        fcntl_add_seals(&to, seals)?;
        Ok(Self(to))
    }

    /// What to execute, from this process or one that was just forked from it.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

/// Fields of the header of a 64-bit ELF file that tell of sections. Source: elf(5).
const SECTIONS: [(u64, usize); 3] = [(40, 8), (60, 2), (62, 2)];

/// How many bytes of an ELF file are ever loaded; `None`: of another file, all. The file is at its
/// beginning afterwards.
fn loaded(file: &mut File) -> io::Result<Option<u64>> {
    let mut head = [0; 64];
    let known = file.read_exact(&mut head).is_ok() && head.starts_with(b"\x7fELF\x02\x01");
    let mut end = 0;
    if known {
        let word = |bytes: &[u8], at: usize| {
            u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default())
        };
        let half = |at: usize| u64::from(u16::from_le_bytes([head[at], head[at + 1]]));
        let (table, width, count) = (word(&head, 32), half(54), half(56));
        let mut entry = [0; 56];
        end = table.saturating_add(width * count);
        for number in 0..count {
            file.seek(SeekFrom::Start(table.saturating_add(number * width)))?;
            file.read_exact(&mut entry)?;
            end = end.max(word(&entry, 8).saturating_add(word(&entry, 32)));
        }
    }
    file.rewind()?;
    Ok(known.then_some(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_copy_runs_and_cannot_be_changed() {
        let whole = std::fs::metadata("/bin/true").unwrap().len();
        let sealed = Sealed::copy_of(Path::new("/bin/true")).unwrap();
        assert!(Command::new(sealed.path()).status().unwrap().success());
        assert!(sealed.0.metadata().unwrap().len() <= whole);
        assert!((&sealed.0).write_all(b"x").is_err());
        assert!(sealed.0.set_len(0).is_err());
        let again = File::options().write(true).open(sealed.path());
        assert!(again.and_then(|mut file| file.write_all(b"x")).is_err());
    }
}
