//! Target and observed → what a deploy will do. Pure: the same values give the same plan.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::data::Data;
use crate::digest::Digest;
use crate::release::{Release, Settings};

/// One instance that is there now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Name of the instance.
    pub id: String,
    /// Its service.
    pub service: String,
    /// Its [`Release::instance_key`].
    pub key: Digest,
    /// Whether it may be shared: healthy, or completed with status 0, and not tainted.
    pub sound: bool,
    /// What it can write to and others could too.
    pub data: Data,
    /// The release in whose slot it started, if that is known.
    pub born: Option<Arc<Release>>,
    /// Whether it is a worker.
    pub worker: bool,
}

/// What a deploy will do, in the order in which it does it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Services that go on unchanged, with the instance that serves them.
    pub share: BTreeMap<String, String>,
    /// Services provisioned beside what serves, each after those it waits for.
    pub beside: Vec<String>,
    /// Services replaced under a pause, in start order: data cannot be written by two.
    pub paused: Vec<Paused>,
    /// Instances stopped at the beginning of the pause, dependents first.
    pub stop_first: Vec<String>,
    /// Workers started after the switch, once the old ones are stopped.
    pub workers: Vec<String>,
    /// Instances of workers stopped after the switch.
    pub stop_workers: Vec<String>,
}

/// One service of [`Plan::paused`] and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paused {
    /// The service.
    pub service: String,
    /// In words, for the user.
    pub why: String,
}

impl Plan {
    /// Whether there is nothing to start and nothing to stop.
    pub fn is_empty(&self) -> bool {
        self.beside.is_empty()
            && self.paused.is_empty()
            && self.workers.is_empty()
            && self.stop_workers.is_empty()
    }

    /// Whether clients will notice: something is replaced instead of switched.
    pub fn needs_pause(&self) -> bool {
        !self.paused.is_empty()
    }
}

/// What `release` needs beyond what is `observed` in its stage. `data` is what each of its services
/// will be able to write, as the kernel names it now.
pub fn plan(release: &Release, observed: &[Observed], data: &BTreeMap<String, Data>) -> Plan {
    let nothing = Data::default();
    let mut plan = Plan::default();
    let mut paused: BTreeMap<String, String> = BTreeMap::new();
    let mut conflicts: BTreeSet<String> = BTreeSet::new();
    let mut sound: HashMap<Digest, &Observed> = HashMap::new();
    for old in observed.iter().filter(|old| old.sound) {
        sound.entry(old.key).or_insert(old);
    }
    for (service, key) in release.instance_keys() {
        if let Some(found) = sound.get(&key) {
            plan.share.insert(service, found.id.clone());
        }
    }
    // Those that share one network go on together or not at all.
    for (service, group) in release.together() {
        if !group.iter().all(|member| plan.share.contains_key(member)) {
            plan.share.remove(&service);
        }
    }
    let workers = release.workers();
    // Services that are replaced under the pause, or wait for one that is: deps come first.
    let mut below: BTreeMap<String, String> = BTreeMap::new();
    let shared: BTreeSet<String> = plan.share.values().cloned().collect();
    for service in release.start_order() {
        let Some(released) = release.services.get(&service) else { continue };
        if plan.share.contains_key(&service) {
            below_pause(&released.settings, &paused, &mut below, &service);
            continue;
        }
        let data = data.get(&service).unwrap_or(&nothing);
        // What is shared goes on: it uses the data together with this service in any release.
        let holders: Vec<&Observed> = match data.is_empty() {
            true => Vec::new(),
            false => observed
                .iter()
                .filter(|old| !shared.contains(&old.id) && old.data.overlap(data).is_some())
                .collect(),
        };
        let below = below_pause(&released.settings, &paused, &mut below, &service);
        // Old workers end before new ones start anyway. Any other holder serves until the switch, so
        // a worker that takes over its data is not started behind that, but in its place.
        if workers.contains(&service) && holders.iter().all(|old| old.worker) {
            plan.workers.push(service);
        } else if !holders.is_empty() {
            conflicts.extend(holders.iter().map(|old| old.service.clone()));
            plan.stop_first.extend(holders.iter().map(|old| old.id.clone()));
            paused.insert(service.clone(), format!("it writes {}", data.names()));
            plan.paused.push(Paused { why: paused[&service].clone(), service });
        } else if let Some(dep) = below {
            paused.insert(service.clone(), format!("it depends on `{dep}`"));
            plan.paused.push(Paused { why: paused[&service].clone(), service });
        } else {
            plan.beside.push(service);
        }
    }
    let old = observed.iter().filter(|old| !shared.contains(&old.id));
    // Whatever uses the data through the old holder goes first, so nothing sees it half gone.
    let (mut first, holders): (Vec<String>, Vec<String>) =
        (reaching(old.clone(), &conflicts).collect(), std::mem::take(&mut plan.stop_first));
    let last: BTreeSet<&String> = holders.iter().collect();
    first.retain(|id| !last.contains(id));
    let mut seen = BTreeSet::new();
    first.extend(holders.iter().filter(|id| seen.insert(*id)).cloned());
    let going: BTreeSet<&String> = first.iter().collect();
    plan.stop_workers = old
        .filter(|old| old.worker && !going.contains(&old.id))
        .map(|old| old.id.clone())
        .collect();
    plan.stop_first = first;
    plan
}

/// A service nearest below `service` that is replaced under the pause, remembered for those above.
fn below_pause(
    settings: &Settings,
    paused: &BTreeMap<String, String>,
    below: &mut BTreeMap<String, String>,
    service: &str,
) -> Option<String> {
    let mut deps = settings.depends_on.keys();
    let found = deps.find_map(|dep| match paused.contains_key(dep) {
        true => Some(dep.clone()),
        false => below.get(dep).cloned(),
    })?;
    below.insert(service.to_owned(), found.clone());
    Some(found)
}

/// Those of `old` that reach any service of `targets` in the release that they were started for.
fn reaching<'a>(
    old: impl Iterator<Item = &'a Observed>,
    targets: &BTreeSet<String>,
) -> impl Iterator<Item = String> {
    let mut known: HashMap<*const Release, BTreeSet<String>> = HashMap::new();
    old.filter(move |old| {
        let Some(born) = &old.born else { return false };
        let reaching = known.entry(Arc::as_ptr(born)).or_insert_with(|| born.reaching(targets));
        reaching.contains(&old.service)
    })
    .map(|old| old.id.clone())
}

/// See [`Release::workers`].
pub fn is_worker(release: &Release, service: &str) -> bool {
    release.workers().contains(service)
}

/// See [`Release::jobs`].
pub fn is_job(release: &Release, service: &str) -> bool {
    release.jobs().contains(service)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compose::{Condition, Dependency, Mount, MountSource, Project, Service};
    use crate::data::{Held, Node, Spot};
    use crate::image::{ImageConfig, ImageId};
    use crate::release::ReleasedService;

    /// `name:dep,dep` with flags `!` data, `~` worker; a version after `@` decides the image.
    fn release(text: &str) -> Release {
        let project = Project {
            name: "p".into(),
            dir: "/p".into(),
            services: BTreeMap::new(),
            volumes: BTreeSet::new(),
            networks: BTreeMap::new(),
            kiln: Default::default(),
            in_stages: BTreeMap::new(),
            ignored: vec![],
            warnings: vec![],
        };
        let mut services = BTreeMap::new();
        for word in text.split_whitespace() {
            let (head, deps) = word.split_once(':').unwrap_or((word, ""));
            let (name, version) = head.split_once('@').unwrap_or((head, "1"));
            let bare = name.trim_end_matches(['!', '~']);
            let mut service = Service { worker: Some(name.contains('~')), ..Service::default() };
            if name.contains('!') {
                let source = MountSource::Volume(format!("{bare}-data"));
                service.volumes.push(Mount { source, target: "/d".into(), ..Mount::default() });
            }
            for dep in deps.split(',').filter(|dep| !dep.is_empty()) {
                let condition = Condition::ServiceHealthy;
                service.depends_on.insert(dep.into(), Dependency { condition, required: true });
            }
            let config = ImageConfig { cmd: Some(vec!["x".into()]), ..ImageConfig::default() };
            let settings =
                crate::settings::settings(&project, bare, &service, &config, vec![]).unwrap();
            let image = ImageId { tree: Digest::of(version), config: config.digest() };
            services.insert(bare.to_owned(), ReleasedService { image, settings });
        }
        let source = Default::default();
        Release { project: "p".into(), source, services, ..Release::default() }
    }

    /// Every volume is a folder of its own, told apart by its name.
    fn data(release: &Release, service: &str) -> Data {
        let mut data = Data::default();
        for mount in &release.services[service].settings.mounts {
            let MountSource::Volume(name) = &mount.source else { continue };
            let node = Node { dev: 1, ino: 1, rest: name.clone() };
            let spots = vec![Spot { node, above: BTreeSet::new() }];
            data.0.push(Held { name: format!("volume `{name}`"), spots });
        }
        data
    }

    fn planned(release: &Release, observed: &[Observed]) -> Plan {
        let all = release.services.keys().map(|name| (name.clone(), data(release, name)));
        plan(release, observed, &all.collect())
    }

    fn observe(release: &Release) -> Vec<Observed> {
        let born = Arc::new(release.clone());
        release
            .services
            .keys()
            .map(|name| Observed {
                id: format!("{name}-old"),
                service: name.clone(),
                key: release.instance_key(name).unwrap(),
                sound: true,
                data: data(release, name),
                born: Some(Arc::clone(&born)),
                worker: is_worker(release, name),
            })
            .collect()
    }

    /// `beside / paused / stop_first / workers / stop_workers`.
    fn shown(old: &str, new: &str) -> String {
        let observed = if old.is_empty() { vec![] } else { observe(&release(old)) };
        let plan = planned(&release(new), &observed);
        let paused: Vec<String> = plan.paused.iter().map(|p| p.service.clone()).collect();
        [plan.beside, paused, plan.stop_first, plan.workers, plan.stop_workers]
            .map(|list| list.join(","))
            .join(" / ")
    }

    #[test]
    fn table() {
        for (old, new, expected) in [
            ("", "web:api api:db db!", "db,api,web /  /  /  / "),
            ("web:api api:db db!", "web:api api:db db!", " /  /  /  / "),
            // An edit costs that service and those that depend on it.
            ("web:api api:db db!", "web:api api@2:db db!", "api,web /  /  /  / "),
            ("web:api api:db db!", "web@2:api api:db db!", "web /  /  /  / "),
            // Data is never run twice: it and its dependents are replaced under a pause.
            (
                "web:api api:db db!",
                "web:api api:db db!@2",
                " / db,api,web / api-old,web-old,db-old /  / ",
            ),
            ("web db!", "web@2 db!@2", "web / db / db-old /  / "),
            // Workers: the old one stops after the switch, then the new one starts.
            ("web w~", "web w~@2", " /  /  / w / w-old"),
            ("web w~", "web@2 w~", "web /  /  /  / "),
            ("db! w~:db", "db!@2 w~:db", " / db / w-old,db-old / w / "),
            ("web w~", "web", " /  /  /  / w-old"),
            // Data passes from a service to a worker and back, never to both at once.
            ("web s!", "web s!~", " / s / s-old /  / "),
            ("web s!~", "web s!", " / s / s-old /  / "),
            ("web s!~", "web s!~@2", " /  /  / s / s-old"),
            ("web:s s! w~", "web@2 s!~ w~@2", "web / s / web-old,s-old / w / w-old"),
        ] {
            assert_eq!(shown(old, new), expected, "{old} -> {new}");
        }
    }

    #[test]
    fn a_shared_service_keeps_the_data_that_it_has_in_common_with_a_changed_one() {
        let both = |text: &str| {
            let mut release = release(text);
            for released in release.services.values_mut() {
                released.settings.mounts[0].source = MountSource::Volume("common".into());
            }
            release
        };
        let plan = planned(&both("a!@2 b!"), &observe(&both("a! b!")));
        assert_eq!(plan.share.into_keys().collect::<Vec<_>>(), ["b"]);
        assert_eq!(plan.stop_first, ["a-old"]);
    }

    #[test]
    fn unsound_instances_are_not_shared() {
        let release = release("web");
        let mut observed = observe(&release);
        observed[0].sound = false;
        assert_eq!(planned(&release, &observed).beside, ["web"]);
    }

    #[test]
    fn a_worker_that_is_waited_for_runs_before_the_switch() {
        assert_eq!(shown("", "web:migrate migrate~"), "migrate,web /  /  /  / ");
    }
}
