//! What is kept.

use kiln_core::tree::Kind;
use kiln_core::{Digest, Tree};

use super::{CONTAINER, Collector};
use crate::error::{Error, Result};

/// How a root is to be read.
#[derive(Clone, Copy)]
enum Expected {
    Release,
    /// Nobody says; a listing if it reads as one.
    Anything,
    /// One content; nothing hangs on it.
    Content,
}

impl Collector<'_> {
    /// Marks all that the roots lead to, themselves included.
    pub(super) fn mark(&mut self) -> Result<()> {
        for ((project, stage), pointer) in self.store.pointers()? {
            let releases = pointer.active.iter().chain(&pointer.standby).chain(&pointer.previous);
            for digest in releases {
                let who = || format!("stage {project}/{stage}");
                self.mark_root(*digest, Expected::Release, &who)?;
            }
        }
        self.store.look_again(&mut self.references)?;
        let roots = (self.roots)();
        self.all_needs_are_there()?;
        self.fallen = self.fallen(&roots);
        let references = std::mem::take(&mut self.references);
        for (name, reference) in references.iter() {
            if self.fallen.contains(name) {
                continue;
            }
            let expected = match name.0.as_str() {
                "releases" => Expected::Release,
                "locks" => Expected::Content,
                _ => Expected::Anything,
            };
            for digest in &reference.digests {
                self.mark_root(*digest, expected, &|| format!("refs/{}/{}", name.0, name.1))?;
            }
        }
        self.references = references;
        for digest in roots.digests {
            self.mark_root(digest, Expected::Anything, &|| "what runs".to_owned())?;
        }
        Ok(())
    }

    fn mark_root(
        &mut self,
        digest: Digest,
        expected: Expected,
        who: &dyn Fn() -> String,
    ) -> Result<()> {
        if self.traced.contains(&digest) {
            return Ok(());
        }
        if matches!(expected, Expected::Anything) && self.store.object_size(&digest)?.is_none() {
            // What is not there keeps nothing. It may come, with all that it leads to.
            return Ok(());
        }
        let traced = match expected {
            Expected::Content => self.kept.add(&digest),
            Expected::Release => self.mark_release(&digest),
            Expected::Anything => self.mark_anything(&digest),
        };
        traced.map_err(|error| match error {
            Error::Missing(_) | Error::Corrupt { .. } | Error::Kind { .. } | Error::Io { .. } => {
                Error::Stops { who: who(), source: Box::new(error) }
            }
            error => error,
        })?;
        // It need not be looked at again.
        self.traced.insert(digest);
        Ok(())
    }

    fn mark_release(&mut self, digest: &Digest) -> Result<()> {
        let release = self.store.get_release(digest)?;
        for tree in release.trees() {
            self.mark_tree(&tree)?;
        }
        for pin in release.pins() {
            self.kept.add(&pin)?;
        }
        self.kept.add(digest)?;
        self.traced.insert(*digest);
        Ok(())
    }

    /// The listing is read here and forgotten: there may be many.
    fn mark_tree(&mut self, digest: &Digest) -> Result<()> {
        if self.traced.contains(digest) {
            return Ok(());
        }
        let text = self.store.get(digest)?;
        self.mark_listing(digest, &text)
    }

    fn mark_listing(&mut self, digest: &Digest, text: &[u8]) -> Result<()> {
        let kind = |why: String| Error::Kind { digest: *digest, expected: "tree listing", why };
        let text = std::str::from_utf8(text).map_err(|error| kind(error.to_string()))?;
        // Entry by entry: as a tree it would be many times as much, for digests alone. What a
        // listing names that cannot be read to its end is kept for once.
        let mut added = Ok(());
        let mut last = None;
        let parsed = Tree::parse_each(text, &mut |_, node| {
            if let Kind::File { digest, .. } = node.kind
                && added.is_ok()
                && last.replace(digest) != Some(digest)
            {
                added = self.kept.add(&digest);
            }
        });
        added?;
        parsed.map_err(|error| kind(error.to_string()))?;
        self.kept.add(digest)?;
        self.traced.insert(*digest);
        Ok(())
    }

    /// Nothing says what kind of object it is but its first bytes: a listing begins with mtree's
    /// mark, a release with its format. It is checked before its word is taken; a large one is
    /// neither. A user's file that looks like one keeps too much, never too little.
    fn mark_anything(&mut self, digest: &Digest) -> Result<()> {
        if self.store.object_size(digest)?.is_none_or(|size| size > CONTAINER) {
            return self.kept.add(digest);
        }
        let content = self.store.get(digest)?;
        if kiln_core::tree::begins_listing(&content) && self.mark_listing(digest, &content).is_ok()
        {
            return Ok(());
        }
        if content.starts_with(b"{\"format\":")
            && content.windows(11).take(64).any(|part| part == b",\"project\":")
        {
            return self.mark_release(digest);
        }
        self.kept.add(digest)
    }
}
