//! Compose service + image configuration → the [`Settings`] that a release pins.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use crate::compose::{
    Expose, Membership, Mount, MountSource, Network, NetworkMode, Port, Project, Protocol, Service,
};
use crate::defaults;
use crate::image::ImageConfig;
use crate::release::{PinnedFile, Settings};

/// All capabilities of Linux 6.x, for `cap_add: [ALL]`.
pub const ALL_CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// Why a service has no settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Neither the Compose file nor the image says what to run.
    #[error(
        "{place}: service `{service}` has nothing to run: neither `command` nor `entrypoint` is \
         set, and its image has no CMD"
    )]
    NothingToRun {
        /// Name of the service.
        service: String,
        /// `file:line`.
        place: String,
    },
    /// The image declares a volume where there can be none.
    #[error(
        "{place}: the image of service `{service}` declares the volume `{volume}`, which is {what}"
    )]
    NoVolume {
        /// Name of the service.
        service: String,
        /// `file:line`.
        place: String,
        /// As the image has it.
        volume: String,
        /// Why there can be none.
        what: &'static str,
    },
}

impl SettingsError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NothingToRun { .. } => "set `command`",
            Self::NoVolume { .. } => {
                "no engine runs such an image: mend the VOLUME line of its Dockerfile, which takes an \
                 absolute path below `/`"
            }
        }
    }
}

/// Joins what the Compose file says of `name` with the image's own configuration. `files` are the
/// service's configs and secrets, already pinned.
///
/// # Errors
/// If there is nothing to run.
pub fn settings(
    project: &Project,
    name: &str,
    service: &Service,
    image: &ImageConfig,
    files: Vec<PinnedFile>,
) -> Result<Settings, SettingsError> {
    let argv = command_line(service, image);
    if argv.is_empty() {
        let (service, place) = (name.to_owned(), service.place.clone());
        return Err(SettingsError::NothingToRun { service, place });
    }
    let expose = callable(service, image);
    let declared = declared(image).map_err(|(volume, what)| {
        let (service, place) = (name.to_owned(), service.place.clone());
        SettingsError::NoVolume { service, place, volume, what }
    })?;
    let mounts = mounts(project, service, &declared);
    let healthcheck = healthcheck(service, image);
    let network = networks(project, service);
    let strict = project.kiln.read_only && service.read_only.is_none();
    let worker = service.worker.unwrap_or(expose.is_empty());
    let settings = Settings {
        argv,
        env: environment(service, image),
        working_dir: service
            .working_dir
            .clone()
            .or_else(|| image.working_dir.clone())
            .unwrap_or_default(),
        user: service.user.clone().or_else(|| image.user.clone()).unwrap_or_default(),
        hostname: service.hostname.clone().unwrap_or_else(|| name.to_owned()),
        aliases: network.aliases,
        networks: network.networks,
        network_mode: service.network_mode.clone(),
        links: service.links.clone(),
        ports: published(project, name, service),
        expose,
        depends_on: service.depends_on.clone(),
        healthcheck,
        mounts,
        tmpfs: service.tmpfs.clone(),
        read_only: service.read_only,
        scratch: service.scratch.or(project.kiln.scratch),
        shm_size: service.shm_size,
        stop_signal: service.stop_signal.clone().or_else(|| image.stop_signal.clone()),
        stop_grace: service.stop_grace_period,
        restart: service.restart,
        init: service.init,
        ulimits: service.ulimits.clone(),
        capabilities: capabilities(&service.cap_add, &service.cap_drop),
        extra_hosts: service.extra_hosts.clone(),
        limits: service.limits.clone(),
        groups: service.groups.clone(),
        sysctls: service.sysctls.clone(),
        dns: service.dns.clone(),
        unconfined: service.unconfined,
        devices: service.devices.clone(),
        post_start: service.post_start.clone(),
        pre_stop: service.pre_stop.clone(),
        files,
        worker,
    };
    if strict {
        // As in a stage that learns nothing: read-only, with the usual places to write to.
        let tmpfs = settings.all_tmpfs();
        return Ok(Settings { read_only: Some(true), tmpfs, ..settings });
    }
    Ok(settings)
}

/// As Docker does: a service's `entrypoint` drops the image's CMD.
fn command_line(service: &Service, image: &ImageConfig) -> Vec<String> {
    let mut argv = match &service.entrypoint {
        Some(entrypoint) => entrypoint.clone(),
        None => image.entrypoint.clone().unwrap_or_default(),
    };
    match (&service.command, &service.entrypoint) {
        (Some(command), _) => argv.extend(command.iter().cloned()),
        (None, None) => argv.extend(image.cmd.iter().flatten().cloned()),
        (None, Some(_)) => {}
    }
    argv
}

fn environment(service: &Service, image: &ImageConfig) -> Vec<String> {
    let mut env: BTreeMap<&str, &str> =
        image.env.iter().filter_map(|pair| pair.split_once('=')).collect();
    env.extend(service.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    env.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

/// Who has no network of its own is called by nobody, or by what is the host's affair.
fn callable(service: &Service, image: &ImageConfig) -> BTreeSet<Expose> {
    if service.network_mode == Some(NetworkMode::None) {
        return BTreeSet::new();
    }
    let from_image = image.exposed_ports.iter().filter_map(|text| {
        let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = if protocol == "udp" { Protocol::Udp } else { Protocol::Tcp };
        Some(Expose { target: port.parse().ok()?, protocol })
    });
    let published =
        service.ports.iter().map(|port| Expose { target: port.target, protocol: port.protocol });
    from_image.chain(published).chain(service.expose.iter().copied()).collect()
}

/// A service's part in the networks of its project.
struct Networks {
    aliases: BTreeSet<String>,
    networks: Option<BTreeMap<String, Membership>>,
}

/// Who is on `default` alone, and that is nothing but the usual, says nothing of networks.
fn networks(project: &Project, service: &Service) -> Networks {
    let usual = BTreeMap::from([("default".to_owned(), BTreeSet::new())]);
    let on = match &service.network_mode {
        Some(_) => return Networks { aliases: BTreeSet::new(), networks: None },
        None => service.networks.as_ref().unwrap_or(&usual),
    };
    let top = |name: &String| project.networks.get(name).cloned().unwrap_or_default();
    if let [(name, aliases)] = on.iter().collect::<Vec<_>>().as_slice()
        && *name == "default"
        && top(name) == Network::default()
    {
        return Networks { aliases: (*aliases).clone(), networks: None };
    }
    let part = |(name, aliases): (&String, &BTreeSet<String>)| {
        let Network { internal, joined, .. } = top(name);
        (name.clone(), Membership { aliases: aliases.clone(), internal, joined })
    };
    Networks { aliases: BTreeSet::new(), networks: Some(on.iter().map(part).collect()) }
}

/// Only `dev` publishes Compose's `ports`; other stages say their own.
fn published(project: &Project, name: &str, service: &Service) -> BTreeMap<String, Vec<Port>> {
    let mut ports = BTreeMap::new();
    // The front leads to instances that have an address.
    if matches!(service.network_mode, Some(NetworkMode::None | NetworkMode::Host)) {
        return ports;
    }
    if !service.ports.is_empty() {
        ports.insert("dev".to_owned(), service.ports.clone());
    }
    for (stage, settings) in &project.kiln.stages {
        if let Some(own) = settings.ports.get(name).filter(|_| stage != "dev") {
            ports.insert(stage.clone(), own.clone());
        }
    }
    ports
}

/// The volumes that an image declares, as paths that are what they say.
fn declared(image: &ImageConfig) -> Result<BTreeSet<String>, (String, &'static str)> {
    let mut all = BTreeSet::new();
    for volume in &image.volumes {
        if !volume.starts_with('/') {
            return Err((volume.clone(), "no absolute path"));
        }
        let mut clean = PathBuf::from("/");
        for part in Path::new(volume).components() {
            match part {
                Component::Normal(name) => clean.push(name),
                Component::ParentDir => {
                    clean.pop();
                }
                _ => {}
            }
        }
        if clean == Path::new("/") {
            return Err((volume.clone(), "the root file system itself"));
        }
        all.insert(clean.display().to_string());
    }
    Ok(all)
}

/// The service's own mounts, the volumes that its image declares, and what is volatile: that is
/// what neither is data nor fits into memory, so it has a folder that goes with the instance.
fn mounts(project: &Project, service: &Service, declared: &BTreeSet<String>) -> Vec<Mount> {
    let mut mounts = service.volumes.clone();
    for mount in &mut mounts {
        let relative = service.relative.contains(&mount.target);
        if let MountSource::Bind(path) = &mut mount.source {
            *path = named_from(&project.dir, path, relative);
        }
    }
    let covered = |mounts: &[Mount], target: &str| {
        mounts.iter().any(|mount| mount.target.trim_end_matches('/') == target)
            || service.tmpfs.iter().any(|tmpfs| tmpfs.target.trim_end_matches('/') == target)
    };
    let wanted = |source: MountSource| Mount { source, ..Mount::default() };
    for target in declared {
        if !covered(&mounts, target) {
            mounts.push(Mount { target: target.clone(), ..wanted(MountSource::Anonymous) });
        }
    }
    for mount in mounts.iter_mut().filter(|mount| mount.source == MountSource::Anonymous) {
        let target = mount.target.trim_end_matches('/');
        if service.volatile.contains(target) || project.kiln.volatile.contains(target) {
            mount.source = MountSource::Volatile;
        }
    }
    for target in &service.volatile {
        if !covered(&mounts, target) {
            mounts.push(Mount { target: target.clone(), ..wanted(MountSource::Volatile) });
        }
    }
    mounts
}

/// A path of the host as a release names it: what lies in the project, and what was stated relative to
/// it, is meant from there on every machine.
pub fn named_from(dir: &Path, path: &Path, relative: bool) -> PathBuf {
    if let Ok(inside) = path.strip_prefix(dir) {
        let here = std::iter::once(Component::CurDir);
        return here.chain(inside.components()).collect();
    }
    if !relative {
        return path.to_owned();
    }
    let common = dir.components().zip(path.components()).take_while(|(a, b)| a == b).count();
    let up = dir.components().skip(common).map(|_| Component::ParentDir);
    up.chain(path.components().skip(common)).collect()
}

/// The service's own check wins member by member, as in Docker.
fn healthcheck(service: &Service, image: &ImageConfig) -> Option<crate::image::Healthcheck> {
    let mut check = image.healthcheck.clone().unwrap_or_default();
    if let Some(own) = &service.healthcheck {
        if !own.test.is_empty() {
            check.test.clone_from(&own.test);
        }
        check.interval = own.interval.or(check.interval);
        check.timeout = own.timeout.or(check.timeout);
        check.start_period = own.start_period.or(check.start_period);
        check.start_interval = own.start_interval.or(check.start_interval);
        check.retries = own.retries.or(check.retries);
    }
    let none = check.test.is_empty() || check.test[0] == "NONE";
    (!none).then_some(check)
}

fn capabilities(add: &BTreeSet<String>, drop: &BTreeSet<String>) -> Option<BTreeSet<String>> {
    if add.is_empty() && drop.is_empty() {
        return None;
    }
    let bare = |name: &String| name.trim_start_matches("CAP_").to_owned();
    let mut set: BTreeSet<String> = defaults::CAPABILITIES.map(str::to_owned).into();
    if drop.contains("ALL") {
        set.clear();
    }
    if add.contains("ALL") {
        set = ALL_CAPABILITIES.map(str::to_owned).into();
    }
    set.extend(add.iter().map(bare));
    for name in drop {
        set.remove(&bare(name));
    }
    set.remove("ALL");
    Some(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project() -> Project {
        Project {
            name: "p".into(),
            dir: "/p".into(),
            services: BTreeMap::new(),
            volumes: BTreeSet::new(),
            networks: BTreeMap::new(),
            kiln: Default::default(),
            in_stages: BTreeMap::new(),
            ignored: Vec::new(),
            warnings: Vec::new(),
        }
    }

    fn words(text: &str) -> Option<Vec<String>> {
        Some(text.split_whitespace().map(str::to_owned).collect())
    }

    #[test]
    fn command_line_follows_docker() {
        let image =
            ImageConfig { entrypoint: words("ent"), cmd: words("a b"), ..ImageConfig::default() };
        let line = |entrypoint, command| {
            let service = Service { entrypoint, command, ..Service::default() };
            command_line(&service, &image).join(" ")
        };
        assert_eq!(line(None, None), "ent a b");
        assert_eq!(line(None, words("c")), "ent c");
        assert_eq!(line(words("x"), None), "x");
        assert_eq!(line(words("x"), words("y")), "x y");
        assert_eq!(line(Some(vec![]), words("y")), "y");
    }

    #[test]
    fn nothing_to_run_is_named() {
        let service = Service { place: "compose.yaml:3".into(), ..Service::default() };
        let image = ImageConfig::default();
        let error = settings(&project(), "web", &service, &image, vec![]).unwrap_err();
        assert!(error.to_string().starts_with("compose.yaml:3: service `web`"));
    }

    #[test]
    fn what_nobody_stated_stays_open() {
        let image = ImageConfig { cmd: words("x"), ..ImageConfig::default() };
        let open = settings(&project(), "s", &Service::default(), &image, vec![]).unwrap();
        let words = words("x").unwrap();
        let nothing = Settings { argv: words, hostname: "s".into(), ..Settings::default() };
        assert_eq!(open, Settings { worker: true, ..nothing });
        for stated in [true, false] {
            let service = Service { read_only: Some(stated), ..Service::default() };
            let said = settings(&project(), "s", &service, &image, vec![]).unwrap();
            assert_eq!(said.read_only, Some(stated));
        }
    }

    #[test]
    fn a_strict_project_is_read_only_where_nobody_says_otherwise() {
        let image = ImageConfig { cmd: words("x"), ..ImageConfig::default() };
        let mut project = project();
        project.kiln.read_only = true;
        let of = |read_only| {
            let service = Service { read_only, ..Service::default() };
            let settings = settings(&project, "s", &service, &image, vec![]).unwrap();
            (settings.read_only, settings.tmpfs.len())
        };
        assert_eq!(of(None), (Some(true), 3));
        assert_eq!(of(Some(true)), (Some(true), 0));
        assert_eq!(of(Some(false)), (Some(false), 0));
    }

    #[test]
    fn volumes_of_an_image_are_paths_below_the_root() {
        let of = |volume: &str| {
            let volumes = [volume.to_owned()].into();
            let image = ImageConfig { cmd: words("x"), volumes, ..ImageConfig::default() };
            let service = Service { place: "compose.yaml:3".into(), ..Service::default() };
            settings(&project(), "s", &service, &image, vec![])
        };
        for (volume, target) in [("/v", "/v"), ("/v//w/", "/v/w"), ("/v/../w/./x", "/w/x")] {
            assert_eq!(of(volume).unwrap().mounts[0].target, target);
        }
        for (volume, what) in
            [("/", "the root"), ("/v/../..", "the root"), ("//", "the root"), ("v", "no absolute")]
        {
            let error = of(volume).unwrap_err();
            let said = error.to_string();
            assert!(said.contains(&format!("the volume `{volume}`, which is {what}")), "{said}");
            assert!(error.hint().contains("VOLUME"));
        }
    }

    #[test]
    fn binds_are_named_from_the_project() {
        let dir = Path::new("/home/u/shop");
        for (path, relative, named) in [
            ("/home/u/shop", true, "."),
            ("/home/u/shop/a/b", true, "./a/b"),
            ("/home/u/shop/a", false, "./a"),
            ("/home/u/data", true, "../data"),
            ("/home/u/data", false, "/home/u/data"),
            ("/srv", true, "../../../srv"),
            ("/home/u", true, ".."),
            ("/home/u/shopping", true, "../shopping"),
        ] {
            let found = named_from(dir, Path::new(path), relative);
            assert_eq!(found.as_os_str(), named, "{path} {relative}");
        }
    }

    #[test]
    fn what_is_volatile_is_no_data() {
        let set = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
        let image = ImageConfig {
            cmd: words("x"),
            volumes: set(&["/var/lib/db/", "/var/cache", "/top"]),
            ..ImageConfig::default()
        };
        let mut project = project();
        project.kiln.volatile = set(&["/top", "/of/nobody"]);
        let mut service =
            Service { volatile: set(&["/var/cache", "/spool", "/x"]), ..Service::default() };
        let anonymous = |target: &str| Mount {
            source: MountSource::Anonymous,
            target: target.to_owned(),
            ..Mount::default()
        };
        service.volumes = vec![anonymous("/x"), anonymous("/kept")];
        let settings = settings(&project, "s", &service, &image, vec![]).unwrap();
        let shown: BTreeMap<&str, &MountSource> =
            settings.mounts.iter().map(|mount| (mount.target.as_str(), &mount.source)).collect();
        let (data, none) = (&MountSource::Anonymous, &MountSource::Volatile);
        let expected = [
            ("/kept", data),
            ("/spool", none),
            ("/top", none),
            ("/var/cache", none),
            ("/var/lib/db", data),
            ("/x", none),
        ];
        assert_eq!(shown, BTreeMap::from(expected));
    }

    #[test]
    fn capabilities_add_and_drop() {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(capabilities(&set(&[]), &set(&[])), None);
        assert_eq!(capabilities(&set(&[]), &set(&["ALL"])), Some(set(&[])));
        assert_eq!(capabilities(&set(&["CHOWN"]), &set(&["ALL"])), Some(set(&["CHOWN"])));
        assert_eq!(capabilities(&set(&["ALL"]), &set(&["NET_RAW"])).unwrap().len(), 40);
    }
}
