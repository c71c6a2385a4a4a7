//! Where a differing path goes: into an image, into a later COPY, or nowhere. What a build tree keeps
//! for itself and leaves behind in its stage makes no image another one.
//!
//! Recorded steps hang together by their trees: one begins from the tree that another one left. So
//! the way of a path is followed from tree to tree, without knowing stages.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use kiln_core::tree::Path;
use kiln_core::{Digest, Tree};
use kiln_store::Store;

use super::Subject;
use super::report::{StepReport, Verdict};
use crate::bake::{Act, RecordedStep};
use crate::edit::{Edit, Op, Origin, Source};
use crate::error::BakeError;
use crate::mount::{Content, Mount};

/// Marks the reports of steps of which nothing that differs gets anywhere. `images` are the trees of
/// all images.
///
/// # Errors
/// A tree cannot be read.
pub fn mark_left_behind(
    store: &Store,
    subjects: &[Subject],
    images: &[Digest],
    reports: &mut [StepReport],
) -> Result<(), BakeError> {
    let steps = subjects.iter().filter_map(|subject| match subject {
        Subject::Step(step) => Some(step),
        Subject::Base { .. } => None,
    });
    let mut ways = Ways::new(store, steps.collect(), images);
    for (subject, report) in subjects.iter().zip(reports) {
        let (Some(difference), Verdict::Diverged) = (&mut report.difference, report.verdict) else {
            continue;
        };
        let (mut read, mut left) = (false, 0);
        for path in &difference.all {
            match ways.of(subject.recorded(), path)? {
                Way::Taken => {}
                Way::Left { read: by_run } => {
                    left += 1;
                    read |= by_run;
                }
            }
        }
        difference.left_behind = left;
        if left == difference.all.len() {
            report.verdict = Verdict::LeftBehind;
            let mut why =
                "nothing of it is in the image, and no later COPY takes any of it".to_owned();
            if read {
                why.push_str("; a later RUN of its stage may have read it");
            }
            report.why = Some(why);
        }
    }
    Ok(())
}

/// Where a path goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Into an image, or what a later step takes.
    Taken,
    /// It stays where it is; whether a RUN had it before it.
    Left {
        /// A later RUN could read it.
        read: bool,
    },
}

struct Ways<'a> {
    store: &'a Store,
    steps: Vec<&'a RecordedStep>,
    images: &'a [Digest],
    trees: HashMap<Digest, Arc<Tree>>,
}

impl<'a> Ways<'a> {
    fn new(store: &'a Store, steps: Vec<&'a RecordedStep>, images: &'a [Digest]) -> Self {
        Self { store, steps, images, trees: HashMap::new() }
    }

    fn tree(&mut self, digest: Digest) -> Result<Arc<Tree>, BakeError> {
        if let Some(known) = self.trees.get(&digest) {
            return Ok(Arc::clone(known));
        }
        let tree = self.store.get_tree(&digest).map_err(BakeError::store)?;
        self.trees.insert(digest, Arc::clone(&tree));
        Ok(tree)
    }

    /// Where the path goes that differs in `tree`; one that only another run left is not in it.
    fn of(&mut self, tree: Digest, path: &Path) -> Result<Way, BakeError> {
        let mut seen = BTreeSet::new();
        let mut open = vec![tree];
        let mut read = false;
        while let Some(digest) = open.pop() {
            if !seen.insert(digest) {
                continue;
            }
            if self.images.contains(&digest) {
                return Ok(Way::Taken);
            }
            let here = self.tree(digest)?;
            let there = here.get(path).is_some();
            for step in self.steps.clone() {
                if takes(step, &digest, path, there) {
                    return Ok(Way::Taken);
                }
                if step.input != digest {
                    continue;
                }
                let next = self.tree(step.output)?;
                let stays = match &step.act {
                    // A command may have made what is there now of what was there.
                    Act::Run(_) => !there || next.get(path).is_some(),
                    Act::Edits(_) => next.get(path) == here.get(path),
                };
                read |= matches!(step.act, Act::Run(_));
                if stays {
                    open.push(step.output);
                }
            }
        }
        Ok(Way::Left { read })
    }
}

/// Whether a step takes `path` out of the tree `digest`, by COPY or by a mount.
fn takes(step: &RecordedStep, digest: &Digest, path: &Path, there: bool) -> bool {
    match &step.act {
        Act::Edits(edits) => edits.iter().flat_map(sources).any(|source| {
            below(source, digest, path).is_some_and(|relative| {
                !there || source.entries.iter().any(|(entry, _)| *entry == relative)
            })
        }),
        Act::Run(command) => command.mounts.iter().any(|mount| match mount {
            Mount::Bind { content: Content::Tree(tree), .. } => tree == digest,
            Mount::Bind { content: Content::Entries(source), .. } => {
                below(source, digest, path).is_some()
            }
            _ => false,
        }),
    }
}

fn sources(edit: &Edit) -> &[Source] {
    match &edit.op {
        Op::Copy(copy) => &copy.sources,
        Op::Workdir { .. } => &[],
    }
}

/// `path` relative to what `source` is of the tree `digest`.
fn below(source: &Source, digest: &Digest, path: &Path) -> Option<Path> {
    let Origin::Tree(tree, at) = &source.origin else { return None };
    if tree != digest {
        return None;
    }
    if at.is_empty() || at == path {
        return Some(if at.is_empty() { path.clone() } else { Path::new() });
    }
    let rest = path.strip_prefix(at.as_slice())?;
    rest.strip_prefix(b"/").map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use kiln_core::tree::{Kind, Node};

    use super::*;
    use crate::edit::CopyOp;
    use crate::mount::Caches;
    use crate::step::Command;

    fn command() -> Act {
        Act::Run(Box::new(Command {
            argv: Vec::new(),
            env: Vec::new(),
            unkeyed: Vec::new(),
            cwd: "/".into(),
            user: "0".into(),
            hostname: String::new(),
            network: false,
            script: None,
            mounts: Vec::new(),
            caches: Caches::Empty,
            shm_size: None,
            ulimits: Default::default(),
        }))
    }

    fn step(act: Act, input: Digest, output: Digest) -> RecordedStep {
        let (service, text, file) = ("a".to_owned(), String::new(), String::new());
        RecordedStep { service, number: 1, total: 1, text, file, line: 1, act, input, output }
    }

    fn copy(tree: Digest, at: &[u8], relative: &[&[u8]]) -> Act {
        let node = Node::new(Kind::Dir, 0o755);
        let entries = relative.iter().map(|path| (path.to_vec(), node.clone())).collect();
        let source = Source {
            name: b"x".to_vec(),
            entries,
            origin: Origin::Tree(tree, at.to_vec()),
            unpacked: None,
            implied: Default::default(),
        };
        let op = CopyOp {
            sources: vec![source],
            dest: "/".into(),
            into_directory: true,
            chown: None,
            chmod: None,
            link: false,
        };
        Act::Edits(vec![Edit { number: 1, line: 1, op: Op::Copy(op) }])
    }

    #[test]
    fn a_path_is_followed_to_where_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let put = |paths: &[&str]| {
            let mut tree = Tree::new();
            for path in paths {
                tree.insert(path.as_bytes(), Node::new(Kind::Dir, 0o755));
            }
            store.put_tree(&tree).unwrap()
        };
        let built = put(&["out", "out/program", "log", "gone"]);
        let cleaned = put(&["out", "out/program", "log"]);
        let image = put(&["program"]);
        let kept = put(&["log", "out", "out/program", "more"]);
        let way = |steps: &[RecordedStep], images: &[Digest], path: &str| {
            let mut ways = Ways::new(&store, steps.iter().collect(), images);
            ways.of(built, &path.as_bytes().to_vec()).unwrap()
        };
        let steps = [
            step(command(), built, cleaned),
            step(copy(cleaned, b"out", &[b"", b"program"]), put(&[]), image),
        ];
        assert_eq!(way(&steps, &[image], "out/program"), Way::Taken);
        assert_eq!(way(&steps, &[image], "out/only-in-another-run"), Way::Taken);
        assert_eq!(way(&steps, &[image], "log"), Way::Left { read: true });
        assert_eq!(way(&steps, &[image], "gone"), Way::Left { read: true });
        // The stage is the image's own.
        let steps = [step(command(), built, kept)];
        assert_eq!(way(&steps, &[kept], "log"), Way::Taken);
        assert_eq!(way(&steps, &[kept], "gone"), Way::Left { read: true });
        assert_eq!(way(&[], &[image], "log"), Way::Left { read: false });
    }
}
