//! Which references still stand.
//!
//! What a lock, a bake or a release took from outside stays while something that stands needs it,
//! and for some of the root's days after its last use: a mirror may not have it any more, and who
//! goes back to an older commit wants its packages. Then it goes.

use std::collections::BTreeSet;

use super::{BATCH, Collector, Roots};
use crate::disk::{self, Site};
use crate::error::{Context as _, Error, Result};
use crate::refs::{HELD, PROJECTS, RefName, Reference};

/// References that are written again while bakes wait.
const FEW: usize = 20;

impl Collector<'_> {
    /// That everything is there that something needs: what is missing would go with its contents,
    /// and nobody said that it should.
    pub(super) fn all_needs_are_there(&self) -> Result<()> {
        let missing = self.store.missing_references(self.references.iter())?;
        let Some(((kind, name), needed_by)) = missing.into_iter().next() else { return Ok(()) };
        let path = self.store.root().join("refs").join(kind).join(name);
        let by: Vec<String> =
            needed_by.into_iter().map(|(kind, name)| format!("refs/{kind}/{name}")).collect();
        Err(Error::Reference {
            path,
            why: format!("it is not there, and {} needs it", by.join(", ")),
        })
    }

    /// Those that nothing needs any more and that were not used for a while.
    pub(super) fn fallen(&self, roots: &Roots) -> BTreeSet<RefName> {
        let mut fallen = BTreeSet::new();
        if roots.unknown {
            return fallen;
        }
        let gone = |(kind, name): &RefName, reference: &Reference| {
            kind == PROJECTS && roots.gone.contains(name) && self.is_old(reference)
        };
        let mut needed: BTreeSet<&RefName> = roots.needs.iter().collect();
        for (name, reference) in self.references.iter() {
            if gone(name, reference) {
                fallen.insert(name.clone());
            } else {
                needed.extend(&reference.needs);
            }
        }
        for (name, reference) in self.references.iter() {
            let held = HELD.contains(&name.0.as_str());
            if held && !needed.contains(name) && self.is_old(reference) {
                fallen.insert(name.clone());
            }
        }
        fallen
    }

    /// One of version 1 does not say when it was used, and one that was used on a day that has not
    /// come yet comes from before the days were counted anew: as if it were used today.
    fn is_old(&self, reference: &Reference) -> bool {
        let used = reference.used.unwrap_or(self.today).min(self.today);
        self.today - used >= self.options.unused
    }

    /// Removes those that have fallen, durably: after a power cut there must be none whose contents
    /// are gone.
    pub(super) fn collect_references(&mut self) -> Result<()> {
        if self.options.dry_run {
            self.report.references = self.fallen.len() as u64;
            return Ok(());
        }
        while !self.fallen.is_empty() {
            let alone = self.alone()?;
            let batch: Vec<RefName> = self.fallen.iter().take(BATCH).cloned().collect();
            let mut folders = BTreeSet::new();
            for (kind, name) in &batch {
                self.store.remove_ref(kind, name)?;
                folders.insert(self.store.root().join("refs").join(kind));
                self.fallen.remove(&(kind.clone(), name.clone()));
            }
            for folder in folders {
                disk::sync_dir(Site::References, &folder).doing("syncing", &folder)?;
            }
            self.report.references += batch.len() as u64;
            self.release(alone);
        }
        self.begin_to_count()
    }

    /// Gives those that do not say when they were used this day, and a sum.
    fn begin_to_count(&mut self) -> Result<()> {
        let today = self.today;
        let uncounted = |reference: &Reference| reference.used.is_none_or(|used| used > today);
        loop {
            let references = self.store.references()?;
            if !references.values().any(uncounted) {
                return Ok(());
            }
            let alone = self.alone()?;
            // They may be others by now.
            let references = self.store.references()?.into_iter();
            for ((kind, name), reference) in references.filter(|(_, one)| uncounted(one)).take(FEW)
            {
                let counted = Reference { used: Some(today), ..reference };
                self.store.write_reference(&kind, &name, &counted)?;
            }
            self.release(alone);
        }
    }
}
