//! COPY and ADD: from the instruction to an edit that waits.

use std::collections::BTreeSet;
use std::sync::Arc;

use kiln_core::tree::{Kind, Node, Path};
use kiln_core::{Digest, Tree};

use super::{Build, Stage, add};
use crate::bake::Progress;
use crate::context::Snapshot;
use crate::dockerfile;
use crate::dockerfile::expand::Lex;
use crate::edit::{self, CopyOp, Edit, Op, Origin};
use crate::error::BakeError;
use crate::ignore::Ignore;
use crate::mode::Chmod;
use crate::plan::{Source, lookup};
use crate::{copy, glob, paths};

impl Build<'_> {
    pub(super) fn copy(
        &self,
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
        let exclude = Ignore::of(&copy.exclude)
            .map_err(|what| self.wrong(state.line, format!("--exclude: {what}"), ""))?;
        let which = Which { parents: copy.parents, exclude: &exclude };
        let mut sources = Vec::new();
        for source in &copy.sources {
            let source = self.expand(state, source)?;
            if !copy.add && add::is_remote(&source) {
                let kind = if add::is_git(&source) { "git ref" } else { "URL" };
                let what = format!("source can't be a {kind} for COPY: `{source}`");
                return Err(self.wrong(state.line, what, "ADD fetches it"));
            }
            if copy.add && add::is_remote(&source) {
                let mut fetched = self.fetch(state, copy, &source)?;
                for source in &mut fetched {
                    copy::narrow(source, None, &exclude);
                }
                sources.extend(fetched);
                continue;
            }
            let found = self.select(state.line, &source, from, which)?;
            if found.is_empty() && glob::has_wildcards(&source) {
                let (service, number) = (self.request.name.clone(), state.number);
                let place = format!("{}:{}", self.label, state.line);
                let text = format!("{place}: nothing matches `{source}`, so nothing is copied");
                (self.progress)(Progress::Notice { service, number, text });
            }
            sources.extend(if copy.add { self.unpack(state, copy, found)? } else { found });
        }
        for document in &copy.documents {
            let lex = Lex { skip_quotes: true, ..Lex::new('\\') };
            let content = match document.expand {
                false => document.content.clone(),
                true => lex
                    .word(&document.content, &|name| lookup(&state.env, name))
                    .map_err(|what| self.wrong(state.line, what, ""))?,
            };
            self.spend(state.line, content.len())?;
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
            // As in the reference: with a mode of its own it is no layer of its own.
            link: copy.link && chmod.is_none(),
            chmod,
        };
        let edit = Edit { number: state.number, line: state.line, op: Op::Copy(op) };
        state.pending.push(edit);
        Ok(())
    }

    /// Looks a source up where it is copied from.
    fn select(
        &self,
        line: usize,
        source: &str,
        from: Option<&Source>,
        which: Which<'_>,
    ) -> Result<Vec<edit::Source>, BakeError> {
        let snapshot = match from {
            None => self.context.as_ref(),
            Some(Source::Context(name)) => self.contexts.get(name),
            Some(_) => None,
        };
        if let Some(snapshot) = snapshot {
            let root = &snapshot.root;
            let origin = |path| Origin::Host(root.clone(), path);
            return which
                .of(&snapshot.tree, source, &origin)
                .map_err(|what| self.wrong(line, what, &why_missing(snapshot, source)));
        }
        let tree = match from {
            Some(Source::Stage(index)) => Some(self.finished(*index)?.tree),
            Some(Source::Base(name)) => Some(self.base(name)?.tree),
            _ => None,
        };
        let (digest, tree) = match tree {
            Some(tree) => (tree, self.store.get_tree(&tree).map_err(BakeError::store)?),
            None => (Tree::new().digest(), Arc::new(Tree::new())),
        };
        which.of(&tree, source, &|path| Origin::Tree(digest, path)).map_err(|what| {
            self.wrong(line, what, "`--from` looks it up in that image, from its root")
        })
    }
}

/// Which entries of a source are wanted.
#[derive(Clone, Copy)]
struct Which<'a> {
    parents: bool,
    exclude: &'a Ignore,
}

impl Which<'_> {
    fn of(
        self,
        tree: &Tree,
        source: &str,
        origin: &dyn Fn(Path) -> Origin,
    ) -> Result<Vec<edit::Source>, String> {
        let select = if self.parents { copy::select_with_parents } else { copy::select };
        select(tree, source, self.exclude, origin)
    }
}

/// Why a context does not have what is asked of it.
pub(super) fn why_missing(context: &Snapshot, source: &str) -> String {
    let clean = paths::clean(&format!("/{source}"));
    let path = &clean.as_bytes()[1..];
    if context.special.contains(path) {
        return "sockets, pipes and devices cannot be copied".to_owned();
    }
    if context.tree.get(path).is_some() {
        return "it is a link, and where it leads is not in the context".to_owned();
    }
    let mut ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    let is_link = |at: &usize| {
        let node = context.tree.get(&path[..*at]);
        node.is_some_and(|node| matches!(node.kind, Kind::Symlink { .. }))
    };
    if let Some(at) = ends.find(is_link) {
        return format!(
            "`/{}` is a link, and where it leads is not in the context",
            &clean[1..=at]
        );
    }
    match is_in_folder(&context.root, &clean[1..]) {
        true => "it exists, but the ignore file leaves it out".to_owned(),
        false => format!("the context is {}", context.root.display()),
    }
}

/// Whether there is such a path in the folder. No link is followed: where one leads outside, what is
/// there is nobody's business.
fn is_in_folder(folder: &std::path::Path, path: &str) -> bool {
    use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let found = openat(CWD, folder, flags | OFlags::DIRECTORY, Mode::empty())
        .and_then(|folder| openat2(folder, path, flags | OFlags::NOFOLLOW, Mode::empty(), beneath));
    found.is_ok()
}

fn inline(name: &str, content: Vec<u8>) -> edit::Source {
    let kind = Kind::File { size: content.len() as u64, digest: Digest::of(&content) };
    edit::Source {
        name: name.as_bytes().to_vec(),
        entries: vec![(Vec::new(), Node::new(kind, 0o644))],
        origin: Origin::Inline(content),
        unpacked: None,
        implied: BTreeSet::new(),
    }
}
