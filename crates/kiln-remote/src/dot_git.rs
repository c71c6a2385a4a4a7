//! `.git` for `--keep-git-dir`, the same for the same commit on every machine.
//!
//! Git's own would not be: packs depend on its version and threads, the index has times and inode
//! numbers, and samples of hooks come from the machine. So this one is written here: the objects of
//! the commit one by one, stored and not compressed; an index without anything of `stat`; `HEAD` at
//! the commit; the reference by its name; and no history. Submodules come without theirs.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::process::{ChildStdout, Stdio};

use kiln_core::Tree;
use kiln_core::tree::{Kind, Node};
use kiln_store::Store;

use crate::error::RemoteError;
use crate::git::{Git, LockedGit};

/// An entry of a commit's tree.
struct Entry {
    mode: u32,
    kind: String,
    hash: String,
    path: Vec<u8>,
}

/// Puts `.git` into the tree of a checkout, whose repository is `home`/git.
pub(crate) fn add(
    store: &Store,
    git: &Git<'_>,
    home: &Path,
    pin: &LockedGit,
    tree: &mut Tree,
) -> Result<(), RemoteError> {
    let entries = list(git, home, &pin.commit)?;
    let root = git.run(
        home,
        "looking for its tree",
        &["--git-dir=git", "rev-parse", &format!("{}^{{tree}}", pin.commit)],
    )?;
    let mut wanted = vec![pin.commit.clone(), root.trim().to_owned()];
    wanted.extend((!pin.tag.is_empty()).then(|| pin.tag.clone()));
    // A commit in the tree is a submodule: its objects are elsewhere.
    let own = entries.iter().filter(|entry| entry.kind != "commit");
    wanted.extend(own.map(|entry| entry.hash.clone()));
    wanted.sort();
    wanted.dedup();
    tree.insert(b".git", Node::new(Kind::Dir, 0o755));
    for dir in ["objects", "refs/heads", "refs/tags"] {
        tree.insert(format!(".git/{dir}").as_bytes(), Node::new(Kind::Dir, 0o755));
    }
    objects(store, git, home, &wanted, tree)?;
    let mut file = |path: &str, content: &[u8]| -> Result<(), RemoteError> {
        let kind = Kind::File { size: content.len() as u64, digest: store.put(content)? };
        tree.insert(format!(".git/{path}").as_bytes(), Node::new(kind, 0o644));
        Ok(())
    };
    file("HEAD", format!("{}\n", pin.commit).as_bytes())?;
    file("config", config(pin).as_bytes())?;
    file("index", &index(entries, pin.commit.len() == 64))?;
    let commit =
        git.run(home, "reading the commit", &["--git-dir=git", "cat-file", "commit", &pin.commit])?;
    let head = commit.split("\n\n").next().unwrap_or_default();
    if head.lines().any(|line| line.starts_with("parent ")) {
        file("shallow", format!("{}\n", pin.commit).as_bytes())?;
    }
    if pin.full.starts_with("refs/") {
        let hash = if pin.tag.is_empty() { &pin.commit } else { &pin.tag };
        file(&pin.full, format!("{hash}\n").as_bytes())?;
    }
    Ok(())
}

/// Everything in the commit's tree, folders among it.
fn list(git: &Git<'_>, home: &Path, commit: &str) -> Result<Vec<Entry>, RemoteError> {
    let args = ["--git-dir=git", "ls-tree", "-r", "-t", "-z", "--full-tree", commit];
    let mut command = git.command(home, home);
    let output = command.args(args).stdin(Stdio::null()).stderr(Stdio::null()).output()?;
    let entry = |line: &[u8]| {
        let tab = line.iter().position(|byte| *byte == b'\t')?;
        let head = std::str::from_utf8(&line[..tab]).ok()?;
        let mut words = head.split(' ');
        let mode = u32::from_str_radix(words.next()?, 8).ok()?;
        let (kind, hash) = (words.next()?.to_owned(), words.next()?.to_owned());
        Some(Entry { mode, kind, hash, path: line[tab + 1..].to_vec() })
    };
    let lines = output.stdout.split(|byte| *byte == 0).filter(|line| !line.is_empty());
    let entries: Option<Vec<Entry>> = lines.map(entry).collect();
    entries.filter(|_| output.status.success()).ok_or_else(|| odd("git ls-tree"))
}

/// Writes objects as loose ones.
fn objects(
    store: &Store,
    git: &Git<'_>,
    home: &Path,
    wanted: &[String],
    tree: &mut Tree,
) -> Result<(), RemoteError> {
    let names = home.join("objects");
    std::fs::write(&names, wanted.join("\n") + "\n")?;
    let mut command = git.command(home, home);
    command.args(["--git-dir=git", "cat-file", "--batch"]).stdin(File::open(&names)?);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let result = match child.stdout.take() {
        Some(stdout) => copy_objects(store, BufReader::new(stdout), wanted, tree),
        None => Err(odd("git cat-file")),
    };
    // It has ended, or would wait for somebody to read on.
    let _ = child.kill();
    child.wait()?;
    result
}

fn copy_objects(
    store: &Store,
    mut from: BufReader<ChildStdout>,
    wanted: &[String],
    tree: &mut Tree,
) -> Result<(), RemoteError> {
    for hash in wanted {
        let mut line = String::new();
        (&mut from).take(200).read_line(&mut line)?;
        let mut words = line.split_whitespace();
        let (Some(found), Some(kind), Some(size)) = (words.next(), words.next(), words.next())
        else {
            return Err(odd("git cat-file"));
        };
        let size: u64 = size.parse().map_err(|_| odd("git cat-file"))?;
        if found != hash {
            return Err(odd("git cat-file"));
        }
        let head = format!("{kind} {size}\0").into_bytes();
        let content = (&mut from).take(size);
        let mut stored = Stored::new(head.as_slice().chain(content));
        let (digest, length) = store.put_reader(&mut stored)?;
        if stored.read != size + head.len() as u64 {
            return Err(odd("git cat-file"));
        }
        let mut node = Node::new(Kind::File { size: length, digest }, 0o444);
        node.mode = 0o444;
        tree.insert(format!(".git/objects/{}/{}", &hash[..2], &hash[2..]).as_bytes(), node);
        from.read_exact(&mut [0])?;
    }
    Ok(())
}

fn odd(program: &str) -> RemoteError {
    io::Error::other(format!("`{program}` gave an odd answer")).into()
}

fn config(pin: &LockedGit) -> String {
    let (version, format) = match pin.commit.len() {
        64 => (1, "[extensions]\n\tobjectformat = sha256\n"),
        _ => (0, ""),
    };
    // A quoted value; an address has no control characters.
    let remote = pin.remote.replace('\\', "\\\\").replace('"', "\\\"");
    format!(
        "[core]\n\trepositoryformatversion = {version}\n\tfilemode = true\n\tbare = false\n\
         \tlogallrefupdates = true\n{format}[remote \"origin\"]\n\turl = \"{remote}\"\n\
         \tfetch = +refs/heads/*:refs/remotes/origin/*\n"
    )
}

/// The index, version 2, as `git read-tree` leaves it: zeros where `stat` would stand, so Git looks
/// at the files themselves.
fn index(mut entries: Vec<Entry>, sha256: bool) -> Vec<u8> {
    entries.retain(|entry| entry.kind != "tree");
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    let mut out = b"DIRC\0\0\0\x02".to_vec();
    out.extend((entries.len() as u32).to_be_bytes());
    for Entry { mode, hash, path, .. } in &entries {
        let begin = out.len();
        out.extend([0; 24]);
        out.extend(mode.to_be_bytes());
        out.extend([0; 12]);
        out.extend(hash.as_bytes().as_chunks::<2>().0.iter().map(|[high, low]| {
            let digit = |hex: u8| (hex as char).to_digit(16).unwrap_or_default() as u8;
            digit(*high) << 4 | digit(*low)
        }));
        out.extend((path.len().min(0xfff) as u16).to_be_bytes());
        out.extend(path);
        // At least one zero, up to a multiple of eight.
        let length = out.len() - begin;
        out.resize(begin + (length + 8) / 8 * 8, 0);
    }
    if sha256 {
        use sha2::Digest as _;
        out.extend_from_slice(&sha2::Sha256::digest(&out));
    } else {
        use sha1::Digest as _;
        out.extend_from_slice(&sha1::Sha1::digest(&out));
    }
    out
}

/// A zlib stream whose blocks are stored as they are (RFC 1950, 1951): no two encoders could differ.
struct Stored<R> {
    from: R,
    /// Encoded bytes that wait, and how many of them are gone.
    ready: Vec<u8>,
    gone: usize,
    ended: bool,
    adler: (u32, u32),
    /// Bytes read so far.
    read: u64,
}

impl<R: Read> Stored<R> {
    fn new(from: R) -> Self {
        Self { from, ready: vec![0x78, 0x01], gone: 0, ended: false, adler: (1, 0), read: 0 }
    }

    /// The next block: 65,535 bytes at most, and fewer only at the end.
    fn block(&mut self) -> io::Result<()> {
        let mut block = Vec::new();
        (&mut self.from).take(0xffff).read_to_end(&mut block)?;
        self.read += block.len() as u64;
        self.ended = block.len() < 0xffff;
        self.ready.clear();
        self.gone = 0;
        self.ready.push(u8::from(self.ended));
        let length = block.len() as u16;
        self.ready.extend(length.to_le_bytes());
        self.ready.extend((!length).to_le_bytes());
        for byte in &block {
            self.adler.0 = (self.adler.0 + u32::from(*byte)) % 65521;
            self.adler.1 = (self.adler.1 + self.adler.0) % 65521;
        }
        self.ready.extend(block);
        if self.ended {
            self.ready.extend((self.adler.1 << 16 | self.adler.0).to_be_bytes());
        }
        Ok(())
    }
}

impl<R: Read> Read for Stored<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.gone == self.ready.len() && !self.ended {
            self.block()?;
        }
        let rest = &self.ready[self.gone..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.gone += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_zlib_reads_what_is_stored() {
        for length in [0, 1, 0xfffe, 0xffff, 0x10000, 300_000] {
            let content: Vec<u8> = (0..length).map(|at: u32| (at * 31 % 251) as u8).collect();
            let mut packed = Vec::new();
            Stored::new(content.as_slice()).read_to_end(&mut packed).unwrap();
            let mut unpacked = Vec::new();
            flate2::read::ZlibDecoder::new(packed.as_slice()).read_to_end(&mut unpacked).unwrap();
            assert_eq!(unpacked, content);
        }
    }
}
