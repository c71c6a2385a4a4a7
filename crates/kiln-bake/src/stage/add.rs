//! ADD: what it does beside copying: URLs and Git repositories are fetched, archives unpacked.
//!
//! [`Build::copy`] hands every source of an ADD to this file: [`is_remote`] decides by the expanded
//! text, [`Build::fetch`] turns a remote one into an [`edit::Source`], and [`Build::unpack`] marks
//! those that were found in the context and are archives. Flags are those of [`dockerfile::Copy`],
//! not expanded (`self.expand` does that). What is marked is unpacked when the edit is applied,
//! right into the tree that is there: an archive may write through links that it has.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;

use kiln_core::Digest;
use kiln_core::tree::{Kind, Node};

use super::{Build, Stage};
use crate::archive::{self, Limits, UNPACK_LIMIT};
use crate::bake::Progress;
use crate::dockerfile;
use crate::edit::{self, Origin};
use crate::error::BakeError;
use crate::options::size_argument;
use crate::remote::{
    self, FETCH_BYTES, FETCH_LIMIT, GitReference, LockedUrl, Options, Proxies, Reference,
    RemoteError, Remotes,
};

/// Whether a source, expanded, is a URL or a Git repository, or tries to be one.
pub(super) fn is_remote(source: &str) -> bool {
    !matches!(Reference::parse(source), Ok(None))
}

/// Whether a source, expanded, is a Git repository.
pub(super) fn is_git(source: &str) -> bool {
    matches!(Reference::parse(source), Ok(Some(Reference::Git(_))))
}

/// A digest as `--checksum` gives it, or what is wrong with it.
fn digest(text: &str) -> Result<Digest, &'static str> {
    let Some((algorithm, hex)) = text.split_once(':') else {
        return Err("invalid checksum digest format");
    };
    if algorithm != "sha256" {
        return Err("unsupported digest algorithm");
    }
    match hex.parse() {
        Ok(digest) => Ok(digest),
        Err(_) if hex.len() == 64 => Err("invalid checksum digest format"),
        Err(_) => Err("invalid checksum digest length"),
    }
}

impl Build<'_> {
    /// Fetches a remote source.
    pub(super) fn fetch(
        &self,
        state: &Stage,
        add: &dockerfile::Copy,
        source: &str,
    ) -> Result<Vec<edit::Source>, BakeError> {
        let line = state.line;
        let told = |what: &str| {
            (self.progress)(Progress::Output {
                service: self.request.name.clone(),
                number: state.number,
                bytes: format!("fetching {what}\n").into_bytes(),
            });
        };
        let limit = self.size(line, FETCH_LIMIT)?.unwrap_or(FETCH_BYTES);
        let options = Options { proxies: Proxies::of(&self.request.args), limit, told: &told };
        let checksum = add.checksum.as_deref().map(|text| self.expand(state, text)).transpose()?;
        let checksum = checksum.filter(|text| !text.is_empty());
        if checksum.is_some() && add.sources.len() + add.documents.len() != 1 {
            return Err(self.wrong(line, "checksum can't be specified for multiple sources", ""));
        }
        let failed = |error: RemoteError| self.remote_failed(line, &error);
        let found = match Reference::parse(source).map_err(failed)? {
            Some(Reference::Url(url)) => {
                self.url(line, add, &url, checksum.as_deref(), &options)?
            }
            Some(Reference::Git(git)) => self.git(line, add, git, checksum.as_deref(), &options)?,
            None => return Err(BakeError::Failed(format!("`{source}` is no address"))),
        };
        Ok(vec![found])
    }

    fn url(
        &self,
        line: usize,
        add: &dockerfile::Copy,
        url: &str,
        checksum: Option<&str>,
        options: &Options<'_>,
    ) -> Result<edit::Source, BakeError> {
        let digest = |text: &str| -> Result<Digest, BakeError> {
            digest(text).map_err(|why| {
                let what = format!("{why}: `--checksum={text}` is no checksum of a file");
                self.wrong(line, what, "write `sha256:` and 64 hex digits")
            })
        };
        let checksum = checksum.map(digest).transpose()?;
        let pin = self.remotes(line)?.url(url, checksum, options);
        let LockedUrl { size, sha256, .. } = pin.map_err(|e| self.remote_failed(line, &e))?;
        let mut unpacked = None;
        if add.unpack == Some(true) {
            let mut file = self.store.open_object(&sha256).map_err(BakeError::store)?;
            let at = self.store.object_path(&sha256);
            let found = archive::is_archive(&mut file);
            let found = found.map_err(|error| BakeError::io("cannot read", at, error))?;
            unpacked = found.then_some(self.unpack_limits(line)?);
        }
        Ok(edit::Source {
            name: remote::file_name(url).into_bytes(),
            entries: vec![(Vec::new(), Node::new(Kind::File { size, digest: sha256 }, 0o600))],
            origin: Origin::Store,
            unpacked,
            implied: BTreeSet::new(),
        })
    }

    fn git(
        &self,
        line: usize,
        add: &dockerfile::Copy,
        mut git: GitReference,
        checksum: Option<&str>,
        options: &Options<'_>,
    ) -> Result<edit::Source, BakeError> {
        if let Some(text) = checksum {
            let given = remote::commit_checksum(text).map_err(|what| self.wrong(line, what, ""))?;
            if let Some(other) = git.checksum.replace(given.clone()).filter(|old| *old != given) {
                let what = format!("checksum mismatch: `{given}` and `{other}`");
                return Err(self.wrong(line, what, "keep one"));
            }
        }
        let keep = match (add.keep_git_dir, git.keep_git_dir) {
            (Some(flag), Some(query)) if flag != query => {
                return Err(self.wrong(
                    line,
                    "inconsistent keep-git-dir configuration",
                    "keep one",
                ));
            }
            (flag, query) => query.or(flag).unwrap_or(false),
        };
        let tree = self.remotes(line)?.git(&git, keep, options);
        let tree = tree.map_err(|error| self.remote_failed(line, &error))?;
        let tree = self.store.get_tree(&tree).map_err(BakeError::store)?;
        let entries = tree.entries.iter().map(|(path, node)| (path.clone(), node.clone()));
        Ok(edit::Source {
            name: Vec::new(),
            entries: entries.collect(),
            origin: Origin::Store,
            unpacked: None,
            implied: BTreeSet::new(),
        })
    }

    fn remotes(&self, line: usize) -> Result<&Remotes<'_>, BakeError> {
        let nobody = || self.wrong(line, "nothing can be fetched here", "");
        self.remotes.ok_or_else(nobody)
    }

    fn remote_failed(&self, line: usize, error: &RemoteError) -> BakeError {
        let hint = error.hint().unwrap_or_default();
        match error {
            RemoteError::Cancelled => BakeError::Cancelled,
            error if error.is_usage() => self.wrong(line, error.to_string(), hint),
            error => {
                let hint =
                    if hint.is_empty() { String::new() } else { format!("\n  hint: {hint}") };
                BakeError::Failed(format!("{}:{line}: {error}{hint}", self.label))
            }
        }
    }

    /// Unpacks those of `sources` that are archives, unless `--unpack=false` says not to.
    pub(super) fn unpack(
        &self,
        state: &Stage,
        add: &dockerfile::Copy,
        sources: Vec<edit::Source>,
    ) -> Result<Vec<edit::Source>, BakeError> {
        if add.checksum.is_some() {
            let what = "checksum requires HTTP(S) or Git sources";
            return Err(self.wrong(
                state.line,
                what,
                "a local file needs none: the context is read as it is",
            ));
        }
        if add.unpack == Some(false) {
            return Ok(sources);
        }
        let limits = self.unpack_limits(state.line)?;
        let mark = |mut source: edit::Source| {
            let (Origin::Host(root, path), Some((_, node))) =
                (&source.origin, source.entries.first())
            else {
                return Ok(source);
            };
            if matches!(node.kind, Kind::File { .. }) {
                let file = root.join(std::ffi::OsStr::from_bytes(path));
                let found = File::open(&file).and_then(|mut open| archive::is_archive(&mut open));
                let found = found.map_err(|error| BakeError::io("cannot read", &file, error))?;
                source.unpacked = found.then_some(limits);
            }
            Ok(source)
        };
        sources.into_iter().map(mark).collect()
    }

    /// How much an archive may unpack to.
    fn unpack_limits(&self, line: usize) -> Result<Limits, BakeError> {
        let given = self.size(line, UNPACK_LIMIT)?;
        Ok(given.map_or_else(Limits::default, Limits::of_bytes))
    }

    /// A size that the build argument `name` gives.
    fn size(&self, line: usize, name: &str) -> Result<Option<u64>, BakeError> {
        let hint = "write a number of bytes, or `200gb`";
        size_argument(&self.request.args, name).map_err(|what| self.wrong(line, what, hint))
    }
}
