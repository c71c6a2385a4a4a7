//! Values → canonical bytes. Every member is named here, with the condition under which it is left
//! out; `tests` pins the bytes.

use std::collections::BTreeMap;

use super::{FORMAT, PinnedFile, Release, ReleasedService, Settings, Source};
use crate::canonical::{Json, Members};
use crate::compose::{
    Condition, Content, Dependency, Device, Dns, Expose, Hook, Limits, Membership, Mount,
    MountSource, NetworkMode, Port, Protocol, Restart, Tmpfs,
};
use crate::image::{Healthcheck, ImageId};
use crate::stage::Policy;

impl From<&Release> for Members {
    fn from(release: &Release) -> Self {
        let Release { project, source, services, proposes, stages } = release;
        let of_stage = |(name, services): (&String, _)| (name.clone(), map(services).into());
        // Whoever sniffs at objects tells a release by `format` and `project` in the first bytes.
        Self::new()
            .with("format", FORMAT)
            .with("project", project)
            .unless(proposes.is_empty(), "proposes", map(proposes))
            .with("services", map(services))
            .unless(*source == Source::default(), "source", Self::from(source))
            .unless(stages.is_empty(), "stages", Self::of(stages.iter().map(of_stage)))
    }
}

fn map<'a, T: 'a>(entries: &'a BTreeMap<String, T>) -> Members
where
    Members: From<&'a T>,
{
    Members::of(entries.iter().map(|(name, value)| (name.clone(), Members::from(value).into())))
}

impl From<&Source> for Members {
    fn from(Source { commit, dirty }: &Source) -> Self {
        Self::new().stated("commit", commit.as_ref()).unless(!dirty, "dirty", *dirty)
    }
}

impl From<&Policy> for Members {
    fn from(Policy { keep, drain }: &Policy) -> Self {
        Self::new().stated("drain", *drain).stated("keep", *keep)
    }
}

impl From<&ReleasedService> for Members {
    fn from(ReleasedService { image, settings }: &ReleasedService) -> Self {
        Self::new().with("image", Self::from(image)).with("settings", Self::from(settings))
    }
}

impl From<&ImageId> for Members {
    fn from(ImageId { tree, config }: &ImageId) -> Self {
        Self::new().with("config", *config).with("tree", *tree)
    }
}

impl From<&Settings> for Members {
    fn from(settings: &Settings) -> Self {
        let ports = settings
            .ports
            .iter()
            .map(|(stage, ports)| (stage.clone(), Json::list(ports.iter().map(Self::from))));
        part(settings).unless(settings.ports.is_empty(), "ports", Self::of(ports))
    }
}

/// All of the settings that reaches an instance: ports belong to the front.
pub(super) fn part(settings: &Settings) -> Members {
    let Settings {
        argv,
        env,
        working_dir,
        user,
        hostname,
        aliases,
        networks,
        network_mode,
        links,
        ports: _,
        expose,
        depends_on,
        healthcheck,
        mounts,
        tmpfs,
        read_only,
        scratch,
        shm_size,
        stop_signal,
        stop_grace,
        restart,
        init,
        ulimits,
        capabilities,
        extra_hosts,
        limits,
        groups,
        sysctls,
        dns,
        unconfined,
        devices,
        post_start,
        pre_stop,
        files,
        worker,
    } = settings;
    let ulimits =
        ulimits.iter().map(|(name, (soft, hard))| (name.clone(), Json::list([*soft, *hard])));
    let linked = links.iter().map(|(alias, service)| (alias.clone(), service.into()));
    let sysctls = sysctls.iter().map(|(name, value)| (name.clone(), Json::from(value)));
    let hosts = extra_hosts.iter().map(|(name, at)| Json::list([name, at]));
    Members::new()
        .unless(aliases.is_empty(), "aliases", Json::list(aliases))
        .with("argv", Json::list(argv))
        .stated("capabilities", capabilities.as_ref().map(Json::list))
        .unless(depends_on.is_empty(), "depends_on", map(depends_on))
        .unless(devices.is_empty(), "devices", Json::list(devices.iter().map(Members::from)))
        .unless(env.is_empty(), "env", Json::list(env))
        .unless(dns.is_empty(), "dns", Members::from(dns))
        .unless(expose.is_empty(), "expose", Json::list(expose.iter().map(Members::from)))
        .unless(extra_hosts.is_empty(), "extra_hosts", Json::list(hosts))
        .unless(files.is_empty(), "files", Json::list(files.iter().map(Members::from)))
        .unless(groups.is_empty(), "groups", Json::list(groups))
        .stated("healthcheck", healthcheck.as_ref().map(Members::from))
        .unless(hostname.is_empty(), "hostname", hostname)
        .unless(!init, "init", *init)
        .unless(*limits == Limits::default(), "limits", Members::from(limits))
        .unless(links.is_empty(), "links", Members::of(linked))
        .unless(mounts.is_empty(), "mounts", Json::list(mounts.iter().map(Members::from)))
        .stated("network_mode", network_mode.as_ref().map(Json::from))
        .stated("networks", networks.as_ref().map(map))
        .unless(post_start.is_empty(), "post_start", hooks(post_start))
        .unless(pre_stop.is_empty(), "pre_stop", hooks(pre_stop))
        .stated("read_only", *read_only)
        .stated("restart", restart.map(Json::from))
        .stated("scratch", *scratch)
        .stated("shm_size", *shm_size)
        .stated("stop_grace", *stop_grace)
        .stated("stop_signal", stop_signal.as_ref())
        .unless(settings.sysctls.is_empty(), "sysctls", Members::of(sysctls))
        .unless(tmpfs.is_empty(), "tmpfs", Json::list(tmpfs.iter().map(Members::from)))
        .unless(settings.ulimits.is_empty(), "ulimits", Members::of(ulimits))
        .unless(!unconfined, "unconfined", *unconfined)
        .unless(user.is_empty(), "user", user)
        .unless(!worker, "worker", *worker)
        .unless(working_dir.is_empty(), "working_dir", working_dir)
}

impl From<&Device> for Members {
    fn from(Device { source, target, access }: &Device) -> Self {
        Self::new().with("access", access).with("source", source).with("target", target)
    }
}

fn hooks(hooks: &[Hook]) -> Json {
    let one = |Hook { command, user, working_dir, env }: &Hook| {
        Members::new()
            .with("command", Json::list(command))
            .unless(env.is_empty(), "env", Json::list(env))
            .stated("user", user.as_ref())
            .stated("working_dir", working_dir.as_ref())
    };
    Json::list(hooks.iter().map(one))
}

impl From<&Port> for Members {
    fn from(port: &Port) -> Self {
        let Port { host_ip, published, target, protocol, app_protocol } = port;
        Self::new()
            .stated("app_protocol", app_protocol.as_ref())
            .stated("host_ip", host_ip.map(|ip| ip.to_string()))
            .with("protocol", word(*protocol))
            .with("published", *published)
            .with("target", *target)
    }
}

impl From<&Membership> for Members {
    fn from(Membership { aliases, internal, joined }: &Membership) -> Self {
        Self::new()
            .unless(aliases.is_empty(), "aliases", Json::list(aliases))
            .unless(!internal, "internal", *internal)
            .stated("joined", joined.as_ref())
    }
}

impl From<&NetworkMode> for Json {
    fn from(mode: &NetworkMode) -> Self {
        match mode {
            NetworkMode::None => "none".into(),
            NetworkMode::Bridge => "bridge".into(),
            NetworkMode::Host => "host".into(),
            NetworkMode::Service(name) => Members::new().with("service", name).into(),
        }
    }
}

impl From<&Expose> for Members {
    fn from(Expose { target, protocol }: &Expose) -> Self {
        Self::new().with("protocol", word(*protocol)).with("target", *target)
    }
}

fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

impl From<&Dependency> for Members {
    fn from(Dependency { condition, required }: &Dependency) -> Self {
        let condition = match condition {
            Condition::ServiceStarted => "service_started",
            Condition::ServiceHealthy => "service_healthy",
            Condition::ServiceCompletedSuccessfully => "service_completed_successfully",
        };
        Self::new().with("condition", condition).with("required", *required)
    }
}

impl From<&Healthcheck> for Members {
    fn from(check: &Healthcheck) -> Self {
        let Healthcheck { test, interval, timeout, start_period, start_interval, retries } = check;
        Self::new()
            .stated("Interval", *interval)
            .stated("Retries", *retries)
            .stated("StartInterval", *start_interval)
            .stated("StartPeriod", *start_period)
            .with("Test", Json::list(test))
            .stated("Timeout", *timeout)
    }
}

impl From<&Mount> for Members {
    fn from(mount: &Mount) -> Self {
        let Mount { source, target, read_only, nocopy, subpath, known_as, must_exist, content } =
            mount;
        let pinned = |Content { tree, file }: &Content| {
            Self::new().unless(!file, "file", *file).with("tree", *tree)
        };
        let source: Json = match source {
            MountSource::Volume(name) => Self::new().with("volume", name).into(),
            MountSource::External(name) => Self::new().with("external", name).into(),
            MountSource::Bind(path) => {
                Self::new().with("bind", path.to_string_lossy().into_owned()).into()
            }
            MountSource::Anonymous => "anonymous".into(),
            MountSource::Volatile => "volatile".into(),
        };
        Self::new()
            .stated("content", content.as_ref().map(pinned))
            .stated("known_as", known_as.as_ref())
            .unless(!must_exist, "must_exist", *must_exist)
            .unless(!nocopy, "nocopy", *nocopy)
            .with("read_only", *read_only)
            .with("source", source)
            .stated("subpath", subpath.as_ref())
            .with("target", target)
    }
}

impl From<&Tmpfs> for Members {
    fn from(tmpfs: &Tmpfs) -> Self {
        let Tmpfs { target, size, mode, percent, uid, gid, noexec, filled } = tmpfs;
        Self::new()
            .unless(!filled, "filled", *filled)
            .stated("gid", *gid)
            .stated("mode", *mode)
            .unless(!noexec, "noexec", *noexec)
            .stated("percent", percent.map(u32::from))
            .stated("size", *size)
            .with("target", target)
            .stated("uid", *uid)
    }
}

impl From<Restart> for Json {
    fn from(restart: Restart) -> Self {
        match restart {
            Restart::No => "no".into(),
            Restart::Always => "always".into(),
            Restart::OnFailure { max } => {
                Members::new().with("on_failure", Members::new().stated("max", max)).into()
            }
        }
    }
}

impl From<&Limits> for Members {
    fn from(limits: &Limits) -> Self {
        let Limits { memory, nano_cpus, pids, period, shares, cpuset, reservation, swap } = limits;
        Self::new()
            .stated("cpuset", cpuset.as_ref())
            .stated("memory", *memory)
            .stated("nano_cpus", *nano_cpus)
            .stated("period", *period)
            .stated("pids", *pids)
            .stated("reservation", *reservation)
            .stated("shares", *shares)
            .stated("swap", *swap)
    }
}

impl From<&Dns> for Members {
    fn from(Dns { servers, search, options }: &Dns) -> Self {
        let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
        Self::new()
            .unless(options.is_empty(), "options", Json::list(options))
            .unless(search.is_empty(), "search", Json::list(search))
            .unless(servers.is_empty(), "servers", Json::list(&servers))
    }
}

impl From<&PinnedFile> for Members {
    fn from(file: &PinnedFile) -> Self {
        let PinnedFile { target, digest, uid, gid, mode, secret } = file;
        Self::new()
            .with("digest", *digest)
            .with("gid", *gid)
            .with("mode", *mode)
            .unless(!secret, "secret", *secret)
            .with("target", target)
            .with("uid", *uid)
    }
}
