//! The fields that Compose prints, in its order, and what each is.

use super::items;
use super::print::Printed;
use crate::compose::reader::At;

/// What a value is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    Text,
    Whole,
    /// Of single precision.
    Float,
    Truth,
    /// A size; printed as a number of bytes in quotes.
    Bytes,
    /// A duration.
    Span,
    /// A list of texts; one text is a list of one.
    Texts,
    /// Text by name.
    Named,
    /// A command line.
    Words,
    List(&'static Shape),
    Map(&'static Shape),
    Object(&'static [Field]),
    /// One that is there in JSON even when nothing is in it.
    Section(&'static [Field]),
    Own(fn(&At<'_>) -> Printed),
    AsItIs,
}

/// A field of an object.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    pub(super) key: &'static str,
    pub(super) shape: Shape,
    /// Printed also when it is zero or empty.
    pub(super) kept: bool,
}

const fn field(key: &'static str, shape: Shape) -> Field {
    Field { key, shape, kept: false }
}

const fn kept(key: &'static str, shape: Shape) -> Field {
    Field { key, shape, kept: true }
}

use Shape::{
    AsItIs, Bytes, Float, List, Map, Named, Object, Own, Section, Span, Text, Texts, Truth, Whole,
    Words,
};

/// Those left out are made where the whole project is known.
pub(super) const SERVICE: &[Field] = &[
    field("profiles", Texts),
    field("annotations", Named),
    kept("attach", Truth),
    kept("build", Object(BUILD)),
    kept("develop", Object(&[field("watch", List(&Own(items::trigger)))])),
    kept("blkio_config", AsItIs),
    field("cap_add", Texts),
    field("cap_drop", Texts),
    field("cgroup_parent", Text),
    field("cgroup", Text),
    field("cpu_count", Whole),
    field("cpu_percent", Float),
    field("cpu_period", Whole),
    field("cpu_quota", Whole),
    field("cpu_rt_period", Whole),
    field("cpu_rt_runtime", Whole),
    field("cpus", Float),
    field("cpuset", Text),
    field("cpu_shares", Whole),
    kept("command", Words),
    field("configs", List(&Own(items::config))),
    field("container_name", Text),
    kept("credential_spec", AsItIs),
    field("depends_on", Map(&Object(DEPENDENCY))),
    kept("deploy", Object(DEPLOY)),
    field("device_cgroup_rules", Texts),
    field("devices", List(&Own(items::device))),
    field("dns", Texts),
    field("dns_opt", Texts),
    field("dns_search", Texts),
    field("domainname", Text),
    kept("entrypoint", Words),
    kept("provider", AsItIs),
    field("environment", AsItIs),
    field("expose", Texts),
    field("external_links", Texts),
    field("extra_hosts", Own(items::hosts)),
    field("group_add", Texts),
    field("gpus", AsItIs),
    field("hostname", Text),
    kept("healthcheck", Object(HEALTHCHECK)),
    field("image", Text),
    kept("init", Truth),
    field("ipc", Text),
    field("isolation", Text),
    field("labels", Named),
    field("links", Texts),
    kept("logging", Object(LOGGING)),
    field("mem_limit", Bytes),
    field("mem_reservation", Bytes),
    field("memswap_limit", Bytes),
    field("mem_swappiness", Bytes),
    field("mac_address", Text),
    field("models", AsItIs),
    field("network_mode", Text),
    field("networks", Map(&Object(NETWORK))),
    field("oom_kill_disable", Truth),
    field("oom_score_adj", Whole),
    field("pid", Text),
    field("pids_limit", Whole),
    field("platform", Text),
    field("ports", Own(items::ports)),
    field("privileged", Truth),
    field("pull_policy", Own(items::pull_policy)),
    field("read_only", Truth),
    field("restart", Text),
    field("runtime", Text),
    kept("scale", Whole),
    field("secrets", List(&Own(items::secret))),
    field("security_opt", Texts),
    field("shm_size", Bytes),
    field("stdin_open", Truth),
    kept("stop_grace_period", Span),
    field("stop_signal", Text),
    field("storage_opt", Named),
    field("sysctls", Named),
    field("tmpfs", Texts),
    field("tty", Truth),
    field("ulimits", Map(&Own(items::ulimit))),
    field("use_api_socket", Truth),
    field("user", Text),
    field("userns_mode", Text),
    field("uts", Text),
    field("volumes", List(&Own(items::volume))),
    field("volumes_from", Texts),
    field("working_dir", Text),
    field("post_start", List(&Object(HOOK))),
    field("pre_stop", List(&Object(HOOK))),
];

/// `deploy` of a service.
pub(super) const SERVICE_DEPLOY: Shape = Object(DEPLOY);

/// `build` of a service.
pub(super) const SERVICE_BUILD: Shape = Object(BUILD);

const BUILD: &[Field] = &[
    field("context", Text),
    field("dockerfile", Text),
    field("dockerfile_inline", Text),
    field("entitlements", Texts),
    field("args", Own(items::arguments)),
    field("provenance", Text),
    field("sbom", Text),
    field("ssh", Own(items::agents)),
    field("labels", Named),
    field("cache_from", Texts),
    field("cache_to", Texts),
    field("no_cache", Truth),
    field("additional_contexts", Named),
    field("pull", Truth),
    field("extra_hosts", Own(items::hosts)),
    field("isolation", Text),
    field("network", Text),
    field("target", Text),
    field("secrets", List(&Own(items::config))),
    field("shm_size", Bytes),
    field("tags", Texts),
    field("ulimits", Map(&Own(items::ulimit))),
    field("platforms", Texts),
    field("privileged", Truth),
];

const DEPENDENCY: &[Field] =
    &[field("condition", Text), field("restart", Truth), kept("required", Truth)];

const DEPLOY: &[Field] = &[
    field("mode", Text),
    kept("replicas", Whole),
    field("labels", Named),
    kept("update_config", Object(UPDATE)),
    kept("rollback_config", Object(UPDATE)),
    field("resources", Section(RESOURCES)),
    kept("restart_policy", Object(RESTART_POLICY)),
    field("placement", Section(PLACEMENT)),
    field("endpoint_mode", Text),
];

const UPDATE: &[Field] = &[
    kept("parallelism", Whole),
    field("delay", Span),
    field("failure_action", Text),
    field("monitor", Span),
    field("max_failure_ratio", Float),
    field("order", Text),
];

const RESOURCES: &[Field] =
    &[kept("limits", Object(RESOURCE)), kept("reservations", Object(RESOURCE))];

const RESOURCE: &[Field] = &[
    field("cpus", Float),
    field("memory", Bytes),
    field("pids", Whole),
    field("devices", AsItIs),
    field("generic_resources", AsItIs),
];

const RESTART_POLICY: &[Field] = &[
    field("condition", Text),
    kept("delay", Span),
    kept("max_attempts", Whole),
    kept("window", Span),
];

const PLACEMENT: &[Field] = &[
    field("constraints", Texts),
    field("preferences", AsItIs),
    field("max_replicas_per_node", Whole),
];

const HEALTHCHECK: &[Field] = &[
    field("test", Own(items::test)),
    kept("timeout", Span),
    kept("interval", Span),
    kept("retries", Whole),
    kept("start_period", Span),
    kept("start_interval", Span),
    field("disable", Truth),
];

const LOGGING: &[Field] = &[field("driver", Text), field("options", Named)];

pub(super) const NETWORK: &[Field] = &[
    field("aliases", Texts),
    field("driver_opts", Named),
    field("gw_priority", Whole),
    field("interface_name", Text),
    field("ipv4_address", Text),
    field("ipv6_address", Text),
    field("link_local_ips", Texts),
    field("mac_address", Text),
    field("priority", Whole),
];

const HOOK: &[Field] = &[
    kept("command", Words),
    field("user", Text),
    field("privileged", Truth),
    field("working_dir", Text),
    field("environment", Own(items::variables)),
];

/// Of `develop.watch`.
pub(super) const TRIGGER: &[Field] = &[
    kept("path", Text),
    kept("action", Text),
    field("target", Text),
    field("exec", Object(HOOK)),
    field("include", Texts),
    field("ignore", Texts),
    field("initial_sync", Truth),
];

/// Of a device in its long form.
pub(super) const DEVICE: &[Field] =
    &[field("source", Text), field("target", Text), field("permissions", Text)];

/// Of a mount in its long form.
pub(super) const VOLUME: &[Field] = &[
    field("type", Text),
    field("source", Text),
    field("target", Own(items::target)),
    field("read_only", Truth),
    field("consistency", Text),
    kept("bind", Object(BIND)),
    kept("volume", Object(VOLUME_OPTIONS)),
    kept("tmpfs", Object(&[field("size", Bytes), field("mode", Whole)])),
    kept("image", Object(&[field("subpath", Text)])),
];

const BIND: &[Field] = &[
    field("selinux", Text),
    field("propagation", Text),
    field("create_host_path", Truth),
    field("recursive", Text),
];

const VOLUME_OPTIONS: &[Field] =
    &[field("labels", Named), field("nocopy", Truth), field("subpath", Text)];

const POOL: &[Field] = &[
    field("subnet", Text),
    field("gateway", Text),
    field("ip_range", Text),
    field("aux_addresses", Named),
];

pub(super) const TOP_NETWORK: &[Field] = &[
    field("name", Text),
    field("driver", Text),
    field("driver_opts", Named),
    field("ipam", Section(&[field("driver", Text), field("config", List(&Object(POOL)))])),
    field("external", Truth),
    field("internal", Truth),
    field("attachable", Truth),
    field("labels", Named),
    kept("enable_ipv4", Truth),
    kept("enable_ipv6", Truth),
];

pub(super) const TOP_VOLUME: &[Field] = &[
    field("name", Text),
    field("driver", Text),
    field("driver_opts", Named),
    field("external", Truth),
    field("labels", Named),
];

/// Configs and secrets.
pub(super) const TOP_FILE: &[Field] = &[
    field("name", Text),
    field("file", Text),
    field("environment", Text),
    field("content", Text),
    field("external", Truth),
    field("labels", Named),
    field("driver", Text),
    field("driver_opts", Named),
    field("template_driver", Text),
];
