//! `kiln cp`, the client's end: what comes out of an instance is written here, with the rights of
//! whoever asks. Names and links in it are a stranger's: everything is made below the destination, by
//! descriptor, and no link that was made is ever followed.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use kiln_core::exit::Exit;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, futimens, mkdirat,
    openat, openat2, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::json;

use super::client;
use crate::protocol::{CopiedEntry, Event, ProjectArgs, Verb};
use crate::report::{Because, Report};

/// The longest line that describes an entry: two paths in numbers.
const LONGEST_LINE: u64 = 64 << 10;

/// `kiln cp FROM TO`.
pub(super) fn copy(
    root: &Path,
    project: ProjectArgs,
    stage: String,
    from: &str,
    to: &str,
    json: bool,
) -> Result<Exit, Report> {
    let (service, path) = match (of_service(from), of_service(to)) {
        (Some(from), None) => from,
        (_, Some((service, _))) => {
            return Err(Report::usage(format!(
                "nothing is copied into `{service}`: what runs is never changed, only replaced"
            ))
            .hint(
                "bake it into the image (COPY), mount it (`volumes:`), or change data through the \
                 program that owns it",
            ));
        }
        (None, None) => {
            return Err(Report::usage("one of the two has to be SERVICE:PATH")
                .hint("kiln cp web:/var/log/app.log ."));
        }
    };
    if to == "-" {
        return Err(Report::usage(
            "a copy is files and folders: it does not go to standard output",
        )
        .hint(format!("kiln exec {service} cat {path}, or ./- for a file of that name")));
    }
    let top = Top::open(Path::new(to), Path::new(path))?;
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).because(|| "making a pipe".into())?;
    let (service, path) = (service.to_owned(), path.to_owned());
    let verb = Verb::Copy { project, stage, service, path };
    let mut answers = client::send(root, verb, &[write.as_fd()])?;
    drop(write);
    answers.cancel_on_interrupt();
    let writing = std::thread::spawn(move || receive(read, &top));
    let done = loop {
        match answers.next()? {
            Event::Done { data, .. } => break data,
            // What it says is why the pipe ended.
            Event::Failed(report) => return Err(report),
            Event::Notice { text } => {
                let text = crate::terminal::clean(&format!("note: {text}")).into_owned();
                let _ = writeln!(io::stderr(), "{text}");
            }
            Event::Progress(_) | Event::Item { .. } | Event::Ask { .. } => {}
        }
    };
    let bug = |_| Err(Report::new(Exit::Bug, "the writing thread panicked"));
    let written = writing.join().unwrap_or_else(bug)?;
    if json {
        let mut done = done;
        done["written"] = json!(written);
        super::print_json(&done);
    }
    Ok(Exit::Done)
}

/// `SERVICE:PATH`; a colon behind a slash or a dot is part of a file's name, as for Docker.
fn of_service(text: &str) -> Option<(&str, &str)> {
    let (service, path) = text.split_once(':')?;
    let named = !service.is_empty() && !service.contains('/') && !service.starts_with('.');
    named.then_some((service, path))
}

/// Where the copy goes: a folder, and the name of the copy in it.
struct Top {
    folder: OwnedFd,
    name: PathBuf,
    /// The name is the user's own word, not that of what is copied.
    own: bool,
}

impl Top {
    /// Into `to` if that is a folder, else under that name, as cp(1) does it.
    fn open(to: &Path, path: &Path) -> Result<Self, Report> {
        let found = std::fs::metadata(to);
        let own = !found.as_ref().is_ok_and(std::fs::Metadata::is_dir);
        let text = to.as_os_str().as_bytes();
        if own && (text.ends_with(b"/") || text.ends_with(b"/.")) {
            let there = !matches!(&found, Err(error) if error.kind() == io::ErrorKind::NotFound);
            let what = if there { "is no folder" } else { "is not there" };
            return Err(Report::usage(format!("the folder {} {what}", to.display()))
                .hint("make it first, or leave the last `/` out to give the copy that name"));
        }
        let (folder, name) = match found {
            Ok(meta) if meta.is_dir() => {
                let name = path.components().next_back();
                let name = name.filter(|part| matches!(part, Component::Normal(_)));
                // The root itself, or `DIR/.`: what is in it.
                let whole = path.as_os_str().as_bytes().ends_with(b"/.");
                let name = name.filter(|_| !whole).map(|part| PathBuf::from(part.as_os_str()));
                (to.to_owned(), name.unwrap_or_default())
            }
            _ => {
                let Some(name) = to.file_name() else {
                    return Err(Report::usage(format!("{} is no name", to.display()))
                        .hint("name a folder that is there, or what the copy is to be called"));
                };
                let parent = to.parent().filter(|it| !it.as_os_str().is_empty());
                (parent.unwrap_or(Path::new(".")).to_owned(), PathBuf::from(name))
            }
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat(CWD, &folder, flags, Mode::empty()).map_err(io::Error::from);
        let folder = opened
            .because(|| format!("opening the folder {}", folder.display()))
            .map_err(|report| report.hint("make that folder first, or name one that is there"))?;
        if own {
            in_the_way(&folder, &name, own).map_err(|error| {
                Report::usage(format!("nothing is written to {}: {error}", to.display()))
                    .hint("name a folder that is there, or another name")
            })?;
        }
        Ok(Self { folder, name, own })
    }

    /// Whether the entry has the name that the user gave.
    fn is_own(&self, path: &[u8]) -> bool {
        self.own && path.is_empty()
    }

    /// The folder and the name in it of an entry: reached without any link.
    fn place(&self, path: &[u8]) -> io::Result<(OwnedFd, PathBuf)> {
        let path = Path::new(std::ffi::OsStr::from_bytes(path));
        if path.components().any(|part| !matches!(part, Component::Normal(_))) {
            return Err(io::Error::other(format!("a name that is none: {}", path.display())));
        }
        let whole = self.name.join(path);
        let parent = whole.parent().filter(|parent| !parent.as_os_str().is_empty());
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = parent.unwrap_or(Path::new("."));
        let folder = openat2(&self.folder, parent, flags, Mode::empty(), how)?;
        Ok((folder, whole.file_name().map(PathBuf::from).unwrap_or_default()))
    }

    fn folder(&self, path: &[u8], mode: u32) -> io::Result<()> {
        let (folder, name) = self.place(path)?;
        if name.as_os_str().is_empty() {
            return Ok(());
        }
        // One can write into it, whatever its own mode is.
        match mkdirat(&folder, &name, Mode::from(mode | 0o700)) {
            Err(Errno::EXIST) => {
                let stat = statat(&folder, &name, AtFlags::SYMLINK_NOFOLLOW)?;
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => Ok(()),
                    _ => {
                        Err(io::Error::other(format!("{} is there, and no folder", name.display())))
                    }
                }
            }
            made => Ok(made?),
        }
    }

    fn link(&self, path: &[u8], target: &[u8]) -> io::Result<()> {
        let (folder, name) = self.place(path)?;
        remove(&folder, &name, self.is_own(path))?;
        Ok(symlinkat(std::ffi::OsStr::from_bytes(target), &folder, &name)?)
    }

    fn file(&self, path: &[u8], mode: u32) -> io::Result<File> {
        let (folder, name) = self.place(path)?;
        remove(&folder, &name, self.is_own(path))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        Ok(openat(&folder, &name, flags, Mode::from(mode | 0o200))?.into())
    }
}

/// Whether there is something that a copy may replace: a file, or a link that an earlier copy made. A
/// link that the user names may be meant for what it leads to, and nothing is written through links.
fn in_the_way(folder: &OwnedFd, name: &Path, own: bool) -> io::Result<bool> {
    let stat = match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(false),
        stat => stat?,
    };
    let is = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => return Ok(true),
        FileType::Symlink if !own => return Ok(true),
        FileType::Symlink => "a link: name what it leads to, or remove it",
        FileType::Directory => "a folder",
        FileType::Fifo => "a pipe",
        FileType::Socket => "a socket",
        _ => "a device",
    };
    Err(io::Error::other(format!("{} is {is}", name.display())))
}

/// A file or link that is in the way goes; all else stays, and is an error.
fn remove(folder: &OwnedFd, name: &Path, own: bool) -> io::Result<()> {
    if !in_the_way(folder, name, own)? {
        return Ok(());
    }
    match unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Writes all that comes, and says how many entries that were.
fn receive(pipe: OwnedFd, top: &Top) -> Result<u64, Report> {
    let mut pipe = BufReader::with_capacity(256 << 10, File::from(pipe));
    let mut written = 0;
    loop {
        let mut line = Vec::new();
        let read = (&mut pipe).take(LONGEST_LINE).read_until(b'\n', &mut line);
        read.because(|| "reading from the agent".into())?;
        if line.is_empty() {
            return Err(Report::failed("the copy broke off: it is not whole")
                .hint("copy it again; `kiln ps` says whether the instance is still there"));
        }
        let entry: CopiedEntry =
            serde_json::from_slice(&line).because(|| "reading from the agent".into())?;
        written += 1;
        let (path, made) = match &entry {
            CopiedEntry::End => return Ok(written - 1),
            CopiedEntry::Folder { path, mode, .. } => (path, top.folder(path, *mode)),
            CopiedEntry::Link { path, target } => (path, top.link(path, target)),
            CopiedEntry::File { path, mode, seconds, .. } => {
                let written = top.file(path, *mode).and_then(|mut file| {
                    fill(&mut pipe, &mut file)?;
                    let time = Timespec { tv_sec: *seconds, tv_nsec: 0 };
                    Ok(futimens(&file, &Timestamps { last_access: time, last_modification: time })?)
                });
                (path, written)
            }
        };
        made.because(|| format!("writing {}", String::from_utf8_lossy(path)))?;
    }
}

fn fill(pipe: &mut impl Read, file: &mut File) -> io::Result<()> {
    loop {
        let mut length = [0; 4];
        pipe.read_exact(&mut length)?;
        let length = u64::from(u32::from_le_bytes(length));
        if length == 0 {
            return Ok(());
        }
        if io::copy(&mut pipe.take(length), file)? < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_told_from_a_file() {
        for (text, expected) in [
            ("web:/x", Some(("web", "/x"))),
            ("web:", Some(("web", ""))),
            ("./web:x", None),
            ("/a/b:c", None),
            ("../b:c", None),
            ("plain", None),
            (":x", None),
        ] {
            assert_eq!(of_service(text), expected, "{text}");
        }
    }

    #[test]
    fn nothing_is_written_past_the_destination() {
        let dir = tempfile::tempdir().unwrap();
        let (into, outside) = (dir.path().join("into"), dir.path().join("outside"));
        for made in [&into, &outside] {
            std::fs::create_dir(made).unwrap();
        }
        let top = Top::open(&into, Path::new("/data")).unwrap();
        top.folder(b"", 0o755).unwrap();
        top.link(b"way", outside.as_os_str().as_bytes()).unwrap();
        for path in [&b"way/x"[..], b"../x", b"/x", b"a/../../x", b"."] {
            assert!(top.file(path, 0o644).is_err(), "{}", String::from_utf8_lossy(path));
            assert!(top.folder(path, 0o755).is_err(), "{}", String::from_utf8_lossy(path));
        }
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
        // A link in the way of a file is replaced, not written through.
        std::fs::write(outside.join("kept"), "kept").unwrap();
        top.link(b"file", outside.join("kept").as_os_str().as_bytes()).unwrap();
        top.file(b"file", 0o644).unwrap().write_all(b"new").unwrap();
        assert_eq!(std::fs::read_to_string(outside.join("kept")).unwrap(), "kept");
        assert_eq!(std::fs::read_to_string(into.join("data/file")).unwrap(), "new");
    }
}
