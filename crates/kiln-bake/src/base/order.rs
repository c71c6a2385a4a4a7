//! In which order scripts run: all is unpacked at once here, so only preinst scripts that lean on
//! configured packages need care.

use std::collections::{BTreeMap, BTreeSet};

use super::assemble::Unpacked;
use super::lock::LockedBase;

/// One thing that the driver does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Runs the preinst script of this package, named as dpkg names its files.
    Preinst(String),
    /// Lets dpkg configure these packages, in one call.
    Configure(Vec<String>),
}

/// The preinst scripts in unpack order, then everything in configure order. A package that
/// pre-depends on others may use them in its preinst script (`adduser`, mostly), so those and the
/// essential ones are configured before (Debian Policy 7.2, 3.8).
pub(crate) fn plan(base: &LockedBase, packages: &[Unpacked]) -> Vec<Action> {
    let relations = Relations::new(packages);
    let (late, early): (Vec<usize>, Vec<usize>) = (0..packages.len())
        .filter(|at| packages[*at].tree.get(b"control/preinst").is_some())
        .partition(|at| {
            let control = &packages[*at].control;
            !relations.core.contains(at) && control.get("Pre-Depends").is_some()
        });
    let preinst = |at: &usize| Action::Preinst(packages[*at].info_name());
    let mut actions: Vec<Action> = early.iter().map(preinst).collect();
    let mut started: BTreeSet<usize> = early.into_iter().collect();
    let mut configured: BTreeSet<&str> = BTreeSet::new();
    for at in &late {
        if !started.insert(*at) {
            continue;
        }
        let before = relations.before(*at);
        for other in late.iter().filter(|other| before.contains(other)) {
            if started.insert(*other) {
                actions.push(preinst(other));
            }
        }
        let names: BTreeSet<&str> =
            before.iter().map(|at| packages[*at].locked.name.as_str()).collect();
        let now: Vec<&str> =
            in_order(base, |name| names.contains(name) && !configured.contains(name));
        configured.extend(&now);
        if !now.is_empty() {
            actions.push(Action::Configure(now.into_iter().map(str::to_owned).collect()));
        }
        actions.push(preinst(at));
    }
    let rest = in_order(base, |name| !configured.contains(name));
    actions.push(Action::Configure(rest.into_iter().map(str::to_owned).collect()));
    actions
}

fn in_order(base: &LockedBase, wanted: impl Fn(&str) -> bool) -> Vec<&str> {
    base.configure.iter().map(String::as_str).filter(|name| wanted(name)).collect()
}

struct Relations<'a> {
    packages: &'a [Unpacked],
    /// Packages by their names and by what they provide.
    by_name: BTreeMap<&'a str, Vec<usize>>,
    /// The essential packages and all that they need: what every script may use.
    core: BTreeSet<usize>,
}

impl<'a> Relations<'a> {
    fn new(packages: &'a [Unpacked]) -> Self {
        let mut by_name: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        let mut essential = Vec::new();
        for (at, package) in packages.iter().enumerate() {
            by_name.entry(&package.locked.name).or_default().push(at);
            for name in package.control.related("Provides") {
                by_name.entry(name).or_default().push(at);
            }
            if package.control.get("Essential") == Some("yes") {
                essential.push(at);
            }
        }
        let mut relations = Self { packages, by_name, core: BTreeSet::new() };
        relations.core = relations.closure(essential, None);
        relations
    }

    /// What has to be configured before the preinst script of `at` runs.
    fn before(&self, at: usize) -> BTreeSet<usize> {
        let mut found = self.closure(self.named(at, "Pre-Depends"), Some(at));
        found.extend(&self.core);
        found
    }

    /// `todo` and all that it needs to be configured, without `without`.
    fn closure(&self, mut todo: Vec<usize>, without: Option<usize>) -> BTreeSet<usize> {
        let mut found = BTreeSet::new();
        while let Some(next) = todo.pop() {
            if Some(next) != without && found.insert(next) {
                todo.extend(self.named(next, "Pre-Depends"));
                todo.extend(self.named(next, "Depends"));
            }
        }
        found
    }

    fn named(&self, at: usize, field: &str) -> Vec<usize> {
        let names = self.packages[at].control.related(field);
        names.iter().filter_map(|name| self.by_name.get(name)).flatten().copied().collect()
    }
}
