//! The tables themselves.

use super::{Keys, honoured, listed, refused};

/// All tables, in the order of `docs/compose.md`.
pub(super) const ALL: &[&Keys] = &[
    &TOP,
    &SERVICE,
    &BUILD,
    &HEALTHCHECK,
    &HOOK,
    &DEVICE,
    &DEPENDS_ON,
    &ENV_FILE,
    &PORT,
    &MOUNT,
    &MOUNT_BIND,
    &MOUNT_VOLUME,
    &MOUNT_TMPFS,
    &FILE,
    &BUILD_SECRET,
    &CONFIG,
    &SECRET,
    &TOP_VOLUME,
    &TOP_NETWORK,
    &NETWORK,
    &DEPLOY,
    &RESTART_POLICY,
    &RESOURCES,
    &LIMITS,
    &RESERVATIONS,
    &ULIMIT,
    &KILN,
    &KILN_BASE,
    &KILN_STAGE,
    &KILN_TEST,
    &KILN_STRATEGY,
    &KILN_SERVICE,
    &KILN_NETWORK,
];

const NOT_IN_V2: &str =
    "control groups of version 2 have no such setting; Docker drops it there, too";

const DEPLOY_LIMITS: &str =
    "limits belong under deploy.resources.limits, or mem_limit, cpus, pids_limit";
const OTHER_PROJECTS: &str =
    "declare that project's network as `external` and be on it: its services are found by name";
/// What is listed of addresses that somebody asked for.
pub(in crate::compose) const OWN_ADDRESSES: &str =
    "Kiln gives addresses; a service is found by its name";

pub(in crate::compose) const TOP: Keys = Keys {
    name: "Top level",
    keys: &[
        honoured("configs", ""),
        honoured("include", "files and lists of files, `project_directory`, `env_file`"),
        honoured("name", "`-p` and `COMPOSE_PROJECT_NAME` win over it"),
        honoured("networks", "see [network](network.md)"),
        honoured("secrets", ""),
        honoured("services", ""),
        honoured("volumes", ""),
        honoured("x-kiln", "see below"),
        listed("version", "no versions any more"),
        refused("models", ""),
    ],
};

pub(in crate::compose) const SERVICE: Keys = Keys {
    name: "Services",
    keys: &[
        honoured("build", "a directory, or the long form"),
        honoured("cap_add", ""),
        honoured("cap_drop", ""),
        honoured(
            "command",
            "a list, or text that is split as a shell does; `[]` drops the image's",
        ),
        honoured("configs", ""),
        honoured("cpu_period", "with `cpu_quota`; microseconds"),
        honoured("cpu_quota", "microseconds in a period, as `cpus` in other words"),
        honoured("cpu_shares", "1024 is the usual weight"),
        honoured("cpus", "as `deploy.resources.limits.cpus`; different values are an error"),
        honoured("cpuset", "for example `0-2,4`"),
        honoured("depends_on", "list or long form; loops are an error"),
        honoured("deploy", "see below"),
        honoured(
            "devices",
            "`HOST`, `HOST:CONTAINER`, `HOST:CONTAINER:rwm` or the long form, by the root's own policy; names of CDI are refused; see [runtime](runtime.md#privileges)",
        ),
        honoured("dns", "instead of the host's name servers; names of services come from the slot"),
        honoured("dns_opt", ""),
        honoured("dns_search", ""),
        honoured("entrypoint", "as `command`"),
        honoured("env_file", "one, a list, or the long form"),
        honoured(
            "environment",
            "list or map; wins over `env_file`; a name without a value takes that of the environment",
        ),
        honoured("expose", "ports and ranges, `/udp` too"),
        honoured("extends", "a service of this file, or `file` and `service`"),
        honoured(
            "extra_hosts",
            "list (`name=address`, `name:address`) or map; `host-gateway` is the host's address",
        ),
        honoured("group_add", "names of the image's groups, or numbers"),
        honoured("healthcheck", ""),
        honoured("hostname", ""),
        honoured(
            "image",
            "a base of `x-kiln.bases`, else an image from a registry ([images.md](images.md)); beside `build` it is only a tag, and listed",
        ),
        honoured("init", ""),
        honoured(
            "links",
            "`SERVICE` or `SERVICE:ALIAS`: a name for this service alone, and a dependency",
        ),
        honoured("mem_limit", "as `deploy.resources.limits.memory`; at least 6 MB"),
        honoured("mem_reservation", "as `deploy.resources.reservations.memory`"),
        honoured("memswap_limit", "memory and swap together; -1 is no limit"),
        honoured(
            "network_mode",
            "`none`, `bridge`, `service:NAME`; `host` by the root's own policy",
        ),
        honoured("networks", "those of the top level and `default`, each with `aliases`"),
        honoured("pids_limit", "as `deploy.resources.limits.pids`; 0 and less is no limit"),
        honoured("platform", "this machine's; any other is refused"),
        honoured(
            "ports",
            "TCP; short form with ranges and addresses, or the long form; published in `dev` only",
        ),
        honoured(
            "post_start",
            "run in the instance before it counts as ready; one that fails fails the start; see [runtime](runtime.md#hooks)",
        ),
        honoured(
            "pre_stop",
            "run in the instance before the stop signal, within `stop_grace_period`; see [runtime](runtime.md#hooks)",
        ),
        honoured("profiles", "a service that is switched off is not read any further"),
        honoured(
            "read_only",
            "not stated means in `dev` a layer that goes with the instance, elsewhere read-only; see [runtime](runtime.md#what-an-instance-writes)",
        ),
        honoured(
            "restart",
            "a fresh instance, backed off; not stated: a service that nobody can call, or whose end others wait for, is completed when it ends with 0, all others are replaced",
        ),
        honoured("scale", "only 1, listed"),
        honoured("secrets", ""),
        honoured(
            "security_opt",
            "`seccomp:unconfined`, in other stages than `dev` by the root's policy; `seccomp:builtin` is listed; a profile of your own is read and refused; `no-new-privileges` is always on; `apparmor` and `label` are listed",
        ),
        honoured("shm_size", ""),
        honoured("stop_grace_period", ""),
        honoured("stop_signal", ""),
        honoured("sysctls", "`net.*`, `fs.mqueue.*`, `kernel.shm*`, `kernel.msg*`, `kernel.sem`"),
        honoured(
            "tmpfs",
            "options `size=` (bytes or `50%` of the machine's memory), `mode=`, `uid=`, `gid=`, `exec` (as without it), `noexec`; `rw`, `nosuid`, `nodev` are listed",
        ),
        honoured("ulimits", "-1 is no limit"),
        honoured("user", ""),
        honoured(
            "volumes",
            "short and long form; two with one target are an error in one file, and replace each other over several",
        ),
        honoured("working_dir", ""),
        honoured("x-kiln", "see below"),
        listed("annotations", ""),
        listed("attach", ""),
        listed("container_name", "names never resolve to an instance"),
        listed("develop", ""),
        listed("label_file", ""),
        listed("labels", ""),
        listed("logging", "Kiln keeps its own logs"),
        listed("mac_address", ""),
        listed("mem_swappiness", NOT_IN_V2),
        listed("oom_kill_disable", NOT_IN_V2),
        listed("pull_policy", ""),
        listed("pull_refresh_after", ""),
        listed("stdin_open", ""),
        listed("tty", ""),
        refused("blkio_config", "weights and rates of disks are not given; leave it out"),
        refused("cgroup", "leave it out: a group of its own is what every instance has")
            .unless(&["private"]),
        refused("cgroup_parent", "limits belong in the service itself"),
        refused("cpu_count", "write `cpus`").unless(&["0"]),
        refused("cpu_percent", "write `cpus`").unless(&["0"]),
        refused("cpu_rt_period", "write `cpus`").unless(&["0"]),
        refused("cpu_rt_runtime", "write `cpus`").unless(&["0"]),
        refused("credential_spec", "it is for Windows; leave it out"),
        refused(
            "device_cgroup_rules",
            "name each device in `devices`: an instance has the usual ones and those",
        ),
        refused("domainname", "write the full name into `hostname`"),
        refused("external_links", OTHER_PROJECTS),
        refused("gpus", "run what needs a GPU outside, and name its address in `extra_hosts`"),
        refused("ipc", "write `shm_size` for room; services share files by a volume")
            .unless(&["private", "shareable"]),
        refused("isolation", "it is for Windows; leave it out").unless(&["default"]),
        refused("models", "run it as a service with an image of its own"),
        refused("oom_score_adj", DEPLOY_LIMITS).unless(&["0"]),
        refused(
            "pid",
            "leave it out: `kiln exec` looks into an instance, and no instance out of it",
        ),
        refused("privileged", "name what it needs in `cap_add`"),
        refused("provider", "run it as a service with an image of its own"),
        refused("runtime", "Kiln runs instances itself").unless(&["runc"]),
        refused("storage_opt", "write `x-kiln.scratch` for the size of the throw-away layer"),
        refused("use_api_socket", ""),
        refused("userns_mode", "write `user` for who it runs as"),
        refused("uts", "write `hostname`"),
        refused("volumes_from", "name the volumes in both services"),
    ],
};

pub(in crate::compose) const BUILD: Keys = Keys {
    name: "`build`",
    keys: &[
        honoured(
            "additional_contexts",
            "a directory, a tar, an address, `service:NAME`, `docker-image://IMAGE` (a base, `scratch`, or of a registry), or `oci-layout://PATH`",
        ),
        honoured("args", "list or map; a name without a value takes that of the environment"),
        honoured(
            "context",
            "a directory, a tar, or an address: a Git repository or a tar, pinned in `kiln.lock`",
        ),
        honoured("dockerfile", "relative to the context"),
        honoured("dockerfile_inline", ""),
        honoured("labels", "of the image; they count before those of the Dockerfile"),
        honoured(
            "network",
            "`default` or `none`: what a RUN without `--network` has; without this key none; `host` is refused",
        ),
        honoured(
            "platforms",
            "this machine's own; others beside it are listed, and refused without it",
        ),
        honoured(
            "secrets",
            "for `RUN --mount=type=secret`; never in the image, a cache key, a log or the ledger",
        ),
        honoured("shm_size", "of `/dev/shm` in steps"),
        honoured(
            "ssh",
            "`default` (the caller's SSH_AUTH_SOCK) or `id=socket`; a step has only the agents named here; a key file is no agent",
        ),
        honoured("target", ""),
        honoured("ulimits", "of steps"),
        listed("cache_from", "steps are found in the store, wherever they were first carried out"),
        listed("cache_to", ""),
        listed("no_cache", "what is found in the store is what would be baked"),
        listed("provenance", ""),
        listed("pull", "bases are locked: `kiln lock --update`"),
        listed("sbom", ""),
        listed("tags", "an image is named by its digests"),
        refused("entitlements", ""),
        refused("extra_hosts", "steps have no network unless they ask: RUN --network=default"),
        refused("isolation", "").unless(&["default"]),
        refused("privileged", ""),
    ],
};

pub(in crate::compose) const HEALTHCHECK: Keys = Keys {
    name: "`healthcheck`",
    keys: &[
        honoured("disable", "the same as `test: [NONE]`"),
        honoured("interval", ""),
        honoured("retries", ""),
        honoured("start_interval", ""),
        honoured("start_period", ""),
        honoured("test", "text is for the shell; a list begins with CMD, CMD-SHELL or NONE"),
        honoured("timeout", ""),
    ],
};

pub(in crate::compose) const HOOK: Keys = Keys {
    name: "`post_start` and `pre_stop`",
    keys: &[
        honoured("command", "a list, or text that is split as a shell does"),
        honoured(
            "environment",
            "beside the service's own; list or map; a name without a value takes that of the environment",
        ),
        honoured("user", ""),
        honoured("working_dir", ""),
        refused(
            "privileged",
            "a hook has what its service has: name what it needs in `cap_add` of the service",
        ),
    ],
};

pub(in crate::compose) const DEVICE: Keys = Keys {
    name: "`devices`, long form",
    keys: &[
        honoured("permissions", "`r`, `w`, `m`, or several of them"),
        honoured("source", "an absolute path of the host"),
        honoured("target", "the same path, if not stated"),
    ],
};

pub(in crate::compose) const DEPENDS_ON: Keys = Keys {
    name: "`depends_on`, long form",
    keys: &[
        honoured("condition", ""),
        honoured("required", ""),
        listed("restart", "an instance whose dependency changed is always started anew"),
    ],
};

pub(in crate::compose) const ENV_FILE: Keys = Keys {
    name: "`env_file`, long form",
    keys: &[honoured("format", "`raw`"), honoured("path", ""), honoured("required", "")],
};

pub(in crate::compose) const PORT: Keys = Keys {
    name: "`ports`, long form",
    keys: &[
        honoured("app_protocol", ""),
        honoured("host_ip", ""),
        honoured("protocol", "`tcp` or `udp`"),
        honoured("published", "without it the system chooses; of a range it is the first port"),
        honoured("target", ""),
        listed("mode", ""),
        listed("name", ""),
    ],
};

pub(in crate::compose) const MOUNT: Keys = Keys {
    name: "`volumes` of a service, long form",
    keys: &[
        honoured("bind", ""),
        honoured("read_only", ""),
        honoured("source", ""),
        honoured("target", ""),
        honoured("tmpfs", ""),
        honoured("type", "`bind`, `volume`, `tmpfs`"),
        honoured("volume", ""),
        listed("consistency", ""),
        refused("image", "copy the files in with a Dockerfile"),
    ],
};

pub(in crate::compose) const MOUNT_BIND: Keys = Keys {
    name: "`volumes.bind`",
    keys: &[
        honoured("create_host_path", "`false`: what is not there is an error"),
        honoured("propagation", "`rprivate`, `private`, listed; others are refused"),
        honoured("recursive", "`enabled`, listed; others are refused"),
        listed("selinux", ""),
    ],
};

pub(in crate::compose) const MOUNT_VOLUME: Keys = Keys {
    name: "`volumes.volume`",
    keys: &[
        honoured("nocopy", "a new volume begins empty"),
        honoured("subpath", "a folder of a named volume, which has to be there"),
        listed("labels", ""),
    ],
};

pub(in crate::compose) const MOUNT_TMPFS: Keys =
    Keys { name: "`volumes.tmpfs`", keys: &[honoured("mode", ""), honoured("size", "")] };

pub(in crate::compose) const FILE: Keys = Keys {
    name: "`configs` and `secrets` of a service, long form",
    keys: &[
        honoured("gid", ""),
        honoured("mode", ""),
        honoured("source", ""),
        honoured("target", ""),
        honoured("uid", ""),
    ],
};

pub(in crate::compose) const BUILD_SECRET: Keys = Keys {
    name: "`secrets` of `build`, long form",
    keys: &[
        honoured("gid", "where the step says nothing; 0"),
        honoured("mode", "where the step says nothing; 0400"),
        honoured("source", ""),
        honoured(
            "target",
            "the id that the Dockerfile asks for; the source's name if it is not there",
        ),
        honoured("uid", "where the step says nothing; 0"),
    ],
};

pub(in crate::compose) const CONFIG: Keys = Keys {
    name: "`configs` at the top",
    keys: &[
        honoured("content", ""),
        honoured("environment", ""),
        honoured("external", "`false`, listed"),
        honoured("file", ""),
        listed("labels", ""),
        listed("name", ""),
        refused("template_driver", "write `content`, which is interpolated"),
    ],
};

pub(in crate::compose) const SECRET: Keys = Keys {
    name: "`secrets` at the top",
    keys: &[
        honoured("environment", ""),
        honoured("external", "`false`, listed"),
        honoured("file", ""),
        listed("labels", ""),
        listed("name", ""),
        refused("content", "a secret in the file is none: write `file` or `environment`"),
        refused("driver", "write `file` or `environment`"),
        refused("driver_opts", "write `file` or `environment`"),
        refused("template_driver", "write `file` or `environment`"),
    ],
};

pub(in crate::compose) const TOP_VOLUME: Keys = Keys {
    name: "`volumes` at the top",
    keys: &[
        honoured("driver", "`local`, listed"),
        honoured(
            "driver_opts",
            "`type: none`, `o: bind` and a `device`: a bind mount of that folder; others are refused",
        ),
        honoured(
            "external",
            "another project's volume, by its `name:`; see [data](data.md#volumes-of-other-projects)",
        ),
        honoured("name", "under it other projects have the volume as `external`"),
        listed("labels", ""),
    ],
};

pub(in crate::compose) const TOP_NETWORK: Keys = Keys {
    name: "`networks` at the top",
    keys: &[
        honoured("driver", "`bridge` and `overlay`, listed: there is one machine"),
        honoured("enable_ipv4", "`true`, listed"),
        honoured(
            "enable_ipv6",
            "listed: instances reach one another by IPv4, published ports have IPv6",
        ),
        honoured("external", "a network that another project shares"),
        honoured("internal", "neither the outside nor the host is reached from there"),
        honoured("name", "other projects may have a part in it by this name"),
        honoured("x-kiln", "see below"),
        listed("attachable", ""),
        listed("driver_opts", ""),
        listed("ipam", ""),
        listed("labels", ""),
    ],
};

pub(in crate::compose) const NETWORK: Keys = Keys {
    name: "`networks` of a service",
    keys: &[
        honoured("aliases", ""),
        listed("driver_opts", ""),
        listed("gw_priority", ""),
        listed("interface_name", ""),
        listed("ipv4_address", OWN_ADDRESSES),
        listed("ipv6_address", OWN_ADDRESSES),
        listed("link_local_ips", OWN_ADDRESSES),
        listed("mac_address", OWN_ADDRESSES),
        listed("priority", ""),
    ],
};

pub(in crate::compose) const DEPLOY: Keys = Keys {
    name: "`deploy`",
    keys: &[
        honoured("mode", "`replicated`, listed"),
        honoured("replicas", "only 1, listed"),
        honoured("resources", ""),
        honoured("restart_policy", "wins over `restart`"),
        listed("endpoint_mode", ""),
        listed("labels", ""),
        listed("placement", ""),
        refused("rollback_config", "`kiln rollback` moves the whole release back"),
        refused("update_config", "a release is switched as a whole"),
    ],
};

pub(in crate::compose) const RESTART_POLICY: Keys = Keys {
    name: "`deploy.restart_policy`",
    keys: &[
        honoured("condition", "`none`, `on-failure`, `any`"),
        honoured("max_attempts", "with `on-failure`"),
        listed("delay", "fresh instances are backed off"),
        listed("window", ""),
    ],
};

pub(in crate::compose) const RESOURCES: Keys = Keys {
    name: "`deploy.resources`",
    keys: &[honoured("limits", ""), honoured("reservations", "")],
};

pub(in crate::compose) const LIMITS: Keys = Keys {
    name: "`deploy.resources.limits`",
    keys: &[honoured("cpus", ""), honoured("memory", ""), honoured("pids", "")],
};

pub(in crate::compose) const RESERVATIONS: Keys = Keys {
    name: "`deploy.resources.reservations`",
    keys: &[
        honoured("memory", "left to it when memory is short"),
        listed("cpus", ""),
        refused("devices", "run what needs a GPU outside, and name its address in `extra_hosts`"),
        refused("generic_resources", "leave it out"),
    ],
};

pub(in crate::compose) const ULIMIT: Keys =
    Keys { name: "`ulimits`, long form", keys: &[honoured("hard", ""), honoured("soft", "")] };

pub(in crate::compose) const KILN: Keys = Keys {
    name: "`x-kiln` at the top",
    keys: &[
        honoured("bases", ""),
        honoured(
            "read_only",
            "`true`: root file systems are read-only in every stage where a service does not state otherwise; `kiln up --strict` is the same for once",
        ),
        honoured("scratch", "how much the layer of an instance takes, 1 GiB if not stated"),
        honoured("stages", ""),
        honoured(
            "volatile",
            "paths at which a volume without a name is no data, in whichever service; see [data](data.md)",
        ),
    ],
};

pub(in crate::compose) const KILN_BASE: Keys = Keys {
    name: "`x-kiln.bases`",
    keys: &[
        honoured("debian", "the suite"),
        honoured("minimal", "only the named packages, unpacked and not configured"),
        honoured("packages", "names without versions: those are in `kiln.lock`"),
    ],
};

pub(in crate::compose) const KILN_STAGE: Keys = Keys {
    name: "`x-kiln.stages`",
    keys: &[
        honoured("after", "the stage whose release is deployed by default"),
        honoured(
            "drain",
            "how long what is under way may go on after a switch; 10 s in `dev`, else 10 min",
        ),
        honoured(
            "files",
            "override files, merged over the project's for this stage; they say how a service runs, never its image or build, and the release pins what comes out",
        ),
        honoured("keep", "at most 1000"),
        honoured("ports", "published ports of a stage other than `dev`, by service"),
        honoured("rebuild", "`HH:MM`; checked and listed, without effect for now"),
        honoured("strategy", "checked and listed, without effect for now"),
        honoured("test", "checked and listed, without effect for now"),
    ],
};

pub(in crate::compose) const KILN_TEST: Keys = Keys {
    name: "`x-kiln.stages.test`",
    keys: &[honoured("command", ""), honoured("service", ""), honoured("timeout", "")],
};

pub(in crate::compose) const KILN_STRATEGY: Keys = Keys {
    name: "`x-kiln.stages.strategy`",
    keys: &[honoured("canary", ""), honoured("hold", "")],
};

pub(in crate::compose) const KILN_SERVICE: Keys = Keys {
    name: "`x-kiln` of a service",
    keys: &[
        honoured("scratch", "how much the layer of an instance takes"),
        honoured(
            "volatile",
            "paths whose content is no data: each is a folder that goes with the instance; see [data](data.md)",
        ),
        honoured("worker", "nobody can call it, whatever it exposes"),
    ],
};

pub(in crate::compose) const KILN_NETWORK: Keys = Keys {
    name: "`x-kiln` of a network",
    keys: &[honoured(
        "joinable",
        "other projects may have a part in it, as `PROJECT_NETWORK` unless `name` says otherwise",
    )],
};
