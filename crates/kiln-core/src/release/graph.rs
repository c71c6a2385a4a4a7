//! What depends on what in a release. Everything here takes time in proportion to the number of
//! services and of `depends_on` between them.

use std::collections::{BTreeMap, BTreeSet};

use super::{Release, ReleasedService, write};
use crate::canonical::Members;
use crate::compose::{Condition, NetworkMode};
use crate::digest::Digest;

/// Version of instance keys: a key is the sha256 of a canonical text that begins with it.
pub const KEY_FORMAT: u32 = 2;

impl Release {
    /// Services that `service` reaches over `depends_on`, transitively, without itself.
    pub fn reach(&self, service: &str) -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        let mut todo = vec![service];
        while let Some(name) = todo.pop() {
            let Some(released) = self.services.get(name) else { continue };
            for next in released.settings.depends_on.keys() {
                if seen.insert(next.clone()) {
                    todo.push(next);
                }
            }
        }
        seen.remove(service);
        seen
    }

    /// Services that reach any of `targets`. Those are among them only if they reach another.
    pub fn reaching(&self, targets: &BTreeSet<String>) -> BTreeSet<String> {
        let dependents = self.dependents();
        let mut seen = BTreeSet::new();
        let mut todo: Vec<&str> = targets.iter().map(String::as_str).collect();
        while let Some(name) = todo.pop() {
            for next in dependents.get(name).into_iter().flatten() {
                if seen.insert((*next).to_owned()) {
                    todo.push(next);
                }
            }
        }
        seen
    }

    /// Who waits for each service.
    fn dependents(&self) -> BTreeMap<&str, Vec<&str>> {
        let mut all: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, released) in &self.services {
            for dep in released.settings.depends_on.keys() {
                all.entry(dep).or_default().push(name);
            }
        }
        all
    }

    /// All services, each after those it depends on; by name where nothing else decides. A loop
    /// (which the Compose reader refuses) would leave its members out.
    pub fn start_order(&self) -> Vec<String> {
        let dependents = self.dependents();
        let mut missing: BTreeMap<&str, usize> = BTreeMap::new();
        let mut ready: BTreeSet<&str> = BTreeSet::new();
        for (name, released) in &self.services {
            let deps = released.settings.depends_on.keys();
            let there = deps.filter(|dep| self.services.contains_key(*dep)).count();
            missing.insert(name, there);
            if there == 0 {
                ready.insert(name);
            }
        }
        let mut order = Vec::with_capacity(self.services.len());
        while let Some(name) = ready.pop_first() {
            order.push(name.to_owned());
            for next in dependents.get(name).into_iter().flatten() {
                let Some(left) = missing.get_mut(next) else { continue };
                *left -= 1;
                if *left == 0 {
                    ready.insert(next);
                }
            }
        }
        order
    }

    /// What an instance of each service depends on: its image, what of its settings reaches it
    /// (with what holds where nothing is stated), and the same of all that it reaches. Instances
    /// with equal keys are interchangeable, so releases share them.
    ///
    /// A service in a loop, or that needs what the release does not have, has no key.
    ///
    /// Those that share one network are one: what changes of any of them, or of what it reaches,
    /// changes the keys of all.
    pub fn instance_keys(&self) -> BTreeMap<String, Digest> {
        let together = self.together();
        let order = self.start_order();
        let mut keys = BTreeMap::new();
        loop {
            let before = keys.len();
            for name in &order {
                if !keys.contains_key(name)
                    && let Some(key) = self.key_of(name, &together, &keys)
                {
                    keys.insert(name.clone(), key);
                }
            }
            // Those together may need what comes later in that order; all others have theirs now.
            if together.is_empty() || keys.len() == before {
                return keys;
            }
        }
    }

    /// The key of `name`, if there are those of all that it reaches.
    fn key_of(
        &self,
        name: &str,
        together: &BTreeMap<String, BTreeSet<String>>,
        keys: &BTreeMap<String, Digest>,
    ) -> Option<Digest> {
        let released = self.services.get(name)?;
        let alone = BTreeSet::from([name.to_owned()]);
        let group = together.get(name).unwrap_or(&alone);
        let mut reaches = BTreeMap::new();
        let mut others = Vec::new();
        for member in group {
            let ReleasedService { image, settings } = self.services.get(member)?;
            for dep in settings.depends_on.keys().filter(|dep| !group.contains(*dep)) {
                reaches.insert(dep.clone(), (*keys.get(dep)?).into());
            }
            if member != name {
                let of = Members::new()
                    .with("image", Members::from(image))
                    .with("settings", write::part(&settings.resolved()));
                others.push((member.clone(), of.into()));
            }
        }
        let text = Members::new()
            .with("instance", KEY_FORMAT)
            .with("image", Members::from(&released.image))
            .with("reaches", Members::of(reaches))
            .with("service", name)
            .with("settings", write::part(&released.settings.resolved()))
            .unless(others.is_empty(), "together", Members::of(others));
        Some(Digest::of(text.bytes()))
    }

    /// Services whose instances are replaced together, by each of their names: those that share one
    /// network, and what lies between them. Those that are alone are not there.
    pub fn together(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let mut shares = false;
        for (name, released) in &self.services {
            edges
                .entry(name)
                .or_default()
                .extend(released.settings.depends_on.keys().map(|it| &**it));
            if let Some(NetworkMode::Service(host)) = &released.settings.network_mode {
                shares = true;
                edges.entry(name).or_default().insert(host);
                edges.entry(host).or_default().insert(name);
            }
        }
        if !shares {
            return BTreeMap::new();
        }
        let reach = |from: &str| -> BTreeSet<String> {
            let (mut seen, mut todo) = (BTreeSet::new(), vec![from]);
            while let Some(name) = todo.pop() {
                if seen.insert(name.to_owned()) {
                    todo.extend(edges.get(name).into_iter().flatten());
                }
            }
            seen
        };
        let reached: BTreeMap<&String, BTreeSet<String>> =
            self.services.keys().map(|name| (name, reach(name))).collect();
        let both = |name: &String, other: &String| {
            reached.get(other).is_some_and(|back| back.contains(name))
        };
        let groups = reached.iter().map(|(name, there)| {
            let group: BTreeSet<String> =
                there.iter().filter(|other| both(name, other)).cloned().collect();
            ((*name).clone(), group)
        });
        groups.filter(|(_, group)| group.len() > 1).collect()
    }

    /// One of [`Release::instance_keys`].
    pub fn instance_key(&self, service: &str) -> Option<Digest> {
        self.instance_keys().remove(service)
    }

    /// Workers that no other service waits for. One that is waited for (a migration, say) has to
    /// run before the switch, whatever it is called.
    pub fn workers(&self) -> BTreeSet<String> {
        let mut workers: BTreeSet<String> = self
            .services
            .iter()
            .filter(|(_, released)| released.settings.worker)
            .map(|(name, _)| name.clone())
            .collect();
        for (name, released) in &self.services {
            for dep in released.settings.depends_on.keys() {
                if !released.settings.worker && dep != name {
                    workers.remove(dep);
                }
            }
        }
        workers
    }

    /// Services that somebody waits for to end with status 0.
    pub fn jobs(&self) -> BTreeSet<String> {
        let all = self.services.values().flat_map(|released| &released.settings.depends_on);
        all.filter(|(_, dep)| dep.condition == Condition::ServiceCompletedSuccessfully)
            .map(|(name, _)| name.clone())
            .collect()
    }
}
