//! COPY and ADD: from the instruction to an edit that waits.

use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

use kiln_core::tree::{Kind, Node};
use kiln_core::{Digest, Tree};

use super::{Build, Stage};
use crate::dockerfile;
use crate::dockerfile::expand::Lex;
use crate::edit::{self, CopyOp, Edit, Op, Origin};
use crate::error::BakeError;
use crate::mode::Chmod;
use crate::plan::{Source, lookup};
use crate::{copy, paths};

impl Build<'_> {
    pub(super) fn copy(
        &mut self,
        state: &mut Stage,
        copy: &dockerfile::Copy,
        from: Option<&Source>,
    ) -> Result<(), BakeError> {
        let chown = copy.chown.as_deref().map(|text| self.expand(state, text)).transpose()?;
        let chmod = copy.chmod.as_deref().map(|text| self.expand(state, text)).transpose()?;
        let chmod = match chmod.as_deref() {
            None | Some("") => None,
            Some(text) => {
                Some(Chmod::parse(text).map_err(|what| self.wrong(state.line, what, ""))?)
            }
        };
        let dest = self.expand(state, &copy.dest)?;
        let mut sources = Vec::new();
        for source in &copy.sources {
            let source = self.expand(state, source)?;
            sources.extend(self.select(state.line, &source, from)?);
        }
        if copy.add {
            self.refuse_archives(state.line, &sources)?;
        }
        for document in &copy.documents {
            let lex = Lex { skip_quotes: true, ..Lex::new('\\') };
            let content = match document.expand {
                false => document.content.clone(),
                true => lex
                    .word(&document.content, &|name| lookup(&state.env, name))
                    .map_err(|what| self.wrong(state.line, what, ""))?,
            };
            sources.push(inline(&document.name, content.into_bytes()));
        }
        let dir = state.config.working_dir.as_deref().unwrap_or("/");
        let into_directory =
            dest.is_empty() || dest == "." || dest.ends_with('/') || dest.ends_with("/.");
        let op = CopyOp {
            sources,
            dest: paths::absolute(dir, &dest),
            into_directory,
            chown: chown.filter(|text| !text.is_empty()),
            chmod,
        };
        let edit = Edit { number: self.number, line: state.line, op: Op::Copy(op) };
        state.pending.push(edit);
        Ok(())
    }

    /// Looks a source up where it is copied from.
    fn select(
        &self,
        line: usize,
        source: &str,
        from: Option<&Source>,
    ) -> Result<Vec<edit::Source>, BakeError> {
        let snapshot = match from {
            None => self.context.as_ref(),
            Some(Source::Context(name)) => self.contexts.get(name),
            Some(_) => None,
        };
        if let Some(snapshot) = snapshot {
            let root = &snapshot.root;
            let origin = |path| Origin::Host(root.clone(), path);
            return copy::select(&snapshot.tree, source, &origin).map_err(|what| {
                let clean = paths::clean(&format!("/{source}"));
                let special = snapshot.special.contains(&clean.as_bytes()[1..]);
                let ignored = std::fs::symlink_metadata(root.join(&clean[1..])).is_ok();
                let hint = match (special, ignored) {
                    (true, _) => "sockets, pipes and devices cannot be copied".to_owned(),
                    (false, true) => "it exists, but the ignore file leaves it out".to_owned(),
                    (false, false) => format!("the context is {}", root.display()),
                };
                self.wrong(line, what, &hint)
            });
        }
        let tree = match from {
            Some(Source::Stage(index)) => self.finished.get(index).map(|done| done.tree),
            Some(Source::Base(name)) => Some(self.base(name)?.tree),
            _ => None,
        };
        let tree = match tree {
            Some(tree) => self.store.get_tree(&tree).map_err(BakeError::store)?,
            None => Arc::new(Tree::new()),
        };
        copy::select(&tree, source, &|_| Origin::Store).map_err(|what| {
            self.wrong(line, what, "`--from` looks it up in that image, from its root")
        })
    }

    /// ADD would unpack an archive; that is not done yet, and copying it would be wrong.
    fn refuse_archives(&self, line: usize, sources: &[edit::Source]) -> Result<(), BakeError> {
        for source in sources {
            let (Origin::Host(root, path), Some((_, node))) =
                (&source.origin, source.entries.first())
            else {
                continue;
            };
            if !matches!(node.kind, Kind::File { .. }) {
                continue;
            }
            let file = root.join(std::ffi::OsStr::from_bytes(path));
            let mut head = Vec::new();
            std::fs::File::open(&file)
                .and_then(|open| open.take(512).read_to_end(&mut head))
                .map_err(|error| BakeError::io("cannot read", &file, error))?;
            if copy::is_archive(&head) {
                let name = String::from_utf8_lossy(path).into_owned();
                let what = format!("ADD of the archive `{name}` is not supported yet");
                let hint = "COPY it and unpack it in a RUN; to keep it packed, COPY it";
                return Err(self.wrong(line, what, hint));
            }
        }
        Ok(())
    }
}

fn inline(name: &str, content: Vec<u8>) -> edit::Source {
    let kind = Kind::File { size: content.len() as u64, digest: Digest::of(&content) };
    edit::Source {
        name: name.as_bytes().to_vec(),
        entries: vec![(Vec::new(), Node::new(kind, 0o644))],
        origin: Origin::Inline(content),
    }
}
