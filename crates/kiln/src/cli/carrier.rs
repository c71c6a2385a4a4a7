//! The client's end of `export`, `import` and `verify --against`: files are opened here, with the rights and the
//! working directory of whoever asks, and the agent works on the open file. So the agent, which is
//! root, opens no path that somebody else could have put a link in.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use kiln_oci::{Format, Owner};

use crate::protocol::Verb;
use crate::report::{Because, Report};

/// What stands for standard input and output.
const STANDARD: &str = "-";

/// For whom files are written, where that is not who this process runs as: the user who called
/// `sudo`.
fn owner() -> Option<Owner> {
    let id = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    let ids = (id("SUDO_UID")?, id("SUDO_GID")?);
    rustix::process::geteuid().is_root().then_some(ids)
}

/// Whom files that the agent makes are to belong to: see [`owner`].
pub(super) fn wanted_owner() -> Owner {
    let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    owner().unwrap_or(me)
}

/// An output that gets its name when all of it is there.
#[derive(Debug)]
pub(super) struct Output {
    fd: OwnedFd,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// A folder; whether it was made for this.
    Folder { path: PathBuf, made: bool },
    /// A file under a name of its own, and what it is to be called.
    File { temporary: PathBuf, target: PathBuf },
    /// A pipe, a terminal's other end, a device.
    Stream,
}

impl Output {
    /// Opens `path` for an export in this format.
    fn open(path: &Path, format: Format, json: bool) -> Result<Self, Report> {
        if path == Path::new(STANDARD) {
            return standard(format, json);
        }
        match format {
            Format::Oci => folder(path),
            Format::OciArchive | Format::DockerArchive => file(path),
        }
    }

    /// All of it is there.
    fn keep(mut self) -> Result<(), Report> {
        if let Kind::File { temporary, target } = &self.kind {
            let doing = || format!("writing {}", target.display());
            rustix::fs::fsync(&self.fd).because(doing)?;
            fs::rename(temporary, target).because(doing)?;
            // The name has to last as the content does.
            File::open(parent(target)).and_then(|dir| dir.sync_all()).because(doing)?;
        }
        self.kind = Kind::Stream;
        Ok(())
    }
}

impl Drop for Output {
    /// Without [`Output::keep`], takes back what was begun.
    fn drop(&mut self) {
        match &self.kind {
            Kind::File { temporary, .. } => drop(fs::remove_file(temporary)),
            // Only what is empty goes.
            Kind::Folder { path, made: true } => {
                for dir in ["blobs/sha256", "blobs", ""] {
                    let _ = fs::remove_dir(path.join(dir));
                }
            }
            Kind::Folder { .. } | Kind::Stream => {}
        }
    }
}

fn standard(format: Format, json: bool) -> Result<Output, Report> {
    if format == Format::Oci {
        return Err(Report::usage("an OCI layout is a folder: it cannot go to standard output")
            .hint("--format oci-archive or docker-archive"));
    }
    if json {
        return Err(Report::usage("`--json` and `-o -` both want standard output")
            .hint("name a file with -o"));
    }
    let stdout = io::stdout();
    if stdout.is_terminal() {
        return Err(
            Report::usage("an archive is nothing for a terminal").hint("name a file with -o")
        );
    }
    let fd = stdout.as_fd().try_clone_to_owned().because(|| "taking standard output".into())?;
    Ok(Output { fd, kind: Kind::Stream })
}

fn folder(path: &Path) -> Result<Output, Report> {
    let doing = || format!("making the folder {}", path.display());
    let made = match DirBuilder::new().mode(0o755).create(path) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(error).because(doing),
    };
    // A link at the end could be somebody else's, and lead anywhere.
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let dir = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|error| {
        let report = Report::usage(format!("{} is no folder: {error}", path.display()));
        match fs::metadata(path).is_ok_and(|meta| meta.is_dir()) {
            true => report.hint("it is a link; name the folder itself"),
            false => report.hint("for a file say --format oci-archive or docker-archive"),
        }
    })?;
    if let (true, Some((uid, gid))) = (made, owner()) {
        fchown(&dir, Some(uid), Some(gid)).because(doing)?;
    }
    Ok(Output { fd: dir.into(), kind: Kind::Folder { path: path.to_owned(), made } })
}

fn file(path: &Path) -> Result<Output, Report> {
    let doing = || format!("creating {}", path.display());
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => {
            return Err(Report::usage(format!("{} is a folder", path.display()))
                .hint("name a file, or say --format oci"));
        }
        Ok(meta) if meta.file_type().is_fifo() || meta.file_type().is_char_device() => {
            let stream = OpenOptions::new().write(true).open(path).because(doing)?;
            return Ok(Output { fd: stream.into(), kind: Kind::Stream });
        }
        _ => {}
    }
    let Some(name) = path.file_name() else {
        return Err(Report::usage(format!("{} names no file", path.display()))
            .hint("name one with -o: image.tar"));
    };
    let temporary = parent(path).join(beside(name));
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(&temporary).because(doing)?;
    let output =
        Output { fd: file.into(), kind: Kind::File { temporary, target: path.to_owned() } };
    if let Some((uid, gid)) = owner() {
        fchown(&output.fd, Some(uid), Some(gid)).because(doing)?;
    }
    Ok(output)
}

/// A name of this process' own for what is to become `name`.
fn beside(name: &OsStr) -> OsString {
    let mut temporary = OsString::from(".");
    // A long name must not get too long by what is added.
    temporary.push(name.to_string_lossy().chars().take(40).collect::<String>());
    temporary.push(format!(".kiln-{}", std::process::id()));
    temporary
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Opens the image that is to be read.
fn input(path: &Path) -> Result<OwnedFd, Report> {
    if path != Path::new(STANDARD) {
        let opened = File::open(path).map_err(|error| {
            Report::usage(format!("{} cannot be read: {error}", path.display()))
                .hint("name an OCI layout folder, or an archive as `podman save` writes it")
        });
        return Ok(opened?.into());
    }
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Err(Report::usage("an archive does not come from a terminal")
            .hint("name a file or folder, or pipe one in"));
    }
    stdin.as_fd().try_clone_to_owned().because(|| "taking standard input".into())
}

/// Files that go to the agent with a request.
#[derive(Debug)]
pub(super) enum Hand {
    /// None.
    Empty,
    /// What is written to.
    Output(Output),
    /// What is read.
    Input(OwnedFd),
}

impl Hand {
    /// Opens what `verb` needs.
    pub(super) fn of(verb: &Verb, json: bool) -> Result<Self, Report> {
        Ok(match verb {
            Verb::Export { output, format, .. } => {
                Self::Output(Output::open(output, *format, json)?)
            }
            Verb::Import { path, .. } | Verb::Verify { against: Some(path), .. } => {
                Self::Input(input(path)?)
            }
            _ => Self::Empty,
        })
    }

    /// In the order in which the agent expects them.
    pub(super) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Empty => Vec::new(),
            Self::Output(output) => vec![output.fd.as_fd()],
            Self::Input(fd) => vec![fd.as_fd()],
        }
    }

    /// The request was carried out: what was written gets its name.
    pub(super) fn keep(self) -> Result<(), Report> {
        match self {
            Self::Output(output) => output.keep(),
            Self::Empty | Self::Input(_) => Ok(()),
        }
    }
}
