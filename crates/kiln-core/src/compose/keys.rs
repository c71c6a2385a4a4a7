//! Which key of the Compose Specification has which standing. `docs/compose.md` shows the same
//! tables, and a test holds the two together.

use super::error::ComposeError;
use super::reader::At;

/// The keys of one kind of map. Keys that begin with `x-` are accepted everywhere.
#[derive(Debug)]
pub(super) struct Keys {
    /// Heading in `docs/compose.md`.
    pub(super) name: &'static str,
    pub(super) honoured: &'static [&'static str],
    /// Accepted and listed: they mean nothing here.
    pub(super) listed: &'static [&'static str],
    /// Refused, each with a hint (empty: none).
    pub(super) refused: &'static [(&'static str, &'static str)],
}

impl Keys {
    /// Whether to read the key at `at`; a key that means nothing here is listed.
    ///
    /// # Errors
    /// A key that is refused or unknown.
    pub(super) fn admit(&self, at: &At<'_>) -> Result<bool, ComposeError> {
        let key = at.key();
        if self.honoured.contains(&key) {
            return Ok(true);
        }
        if self.listed.contains(&key) || key.starts_with("x-") {
            at.list();
            return Ok(false);
        }
        if let Some((_, hint)) = self.refused.iter().find(|(refused, _)| *refused == key) {
            return Err(at.refuse(format!("`{key}` is not supported")).with_hint(*hint));
        }
        let known = self.honoured.iter().chain(self.listed).copied();
        let known = known.chain(self.refused.iter().map(|(key, _)| *key));
        Err(at
            .refuse(format!("the key `{key}` is unknown"))
            .with_hint(format!("docs/compose.md lists the keys under \"{}\"", self.name))
            .with_closest(key, known))
    }
}

const DEPLOY_LIMITS: &str =
    "limits belong under deploy.resources.limits, or mem_limit, cpus, pids_limit";
const HOST_OWNED: &str = "an instance has namespaces, names and devices of its own";
const ONE_NETWORK: &str = "every service is on the one network `default`, by its name and aliases";

pub(super) const TOP: Keys = Keys {
    name: "Top level",
    honoured: &["configs", "name", "networks", "secrets", "services", "volumes", "x-kiln"],
    listed: &["version"],
    refused: &[("include", "name the files with -f"), ("models", "")],
};

pub(super) const SERVICE: Keys = Keys {
    name: "Services",
    honoured: &[
        "build",
        "cap_add",
        "cap_drop",
        "command",
        "configs",
        "cpus",
        "depends_on",
        "deploy",
        "entrypoint",
        "env_file",
        "environment",
        "expose",
        "extra_hosts",
        "healthcheck",
        "hostname",
        "image",
        "init",
        "mem_limit",
        "networks",
        "pids_limit",
        "ports",
        "profiles",
        "read_only",
        "restart",
        "scale",
        "secrets",
        "security_opt",
        "shm_size",
        "stop_grace_period",
        "stop_signal",
        "tmpfs",
        "ulimits",
        "user",
        "volumes",
        "working_dir",
        "x-kiln",
    ],
    listed: &[
        "annotations",
        "attach",
        "container_name",
        "develop",
        "label_file",
        "labels",
        "logging",
        "platform",
        "pull_policy",
        "pull_refresh_after",
        "stdin_open",
        "tty",
    ],
    refused: &[
        ("blkio_config", DEPLOY_LIMITS),
        ("cgroup", HOST_OWNED),
        ("cgroup_parent", HOST_OWNED),
        ("cpu_count", "write `cpus`"),
        ("cpu_percent", "write `cpus`"),
        ("cpu_period", "write `cpus`"),
        ("cpu_quota", "write `cpus`"),
        ("cpu_rt_period", "write `cpus`"),
        ("cpu_rt_runtime", "write `cpus`"),
        ("cpu_shares", "write `cpus`"),
        ("cpuset", "write `cpus`"),
        ("credential_spec", ""),
        ("device_cgroup_rules", HOST_OWNED),
        ("devices", HOST_OWNED),
        ("dns", "names of services come from the slot, all others from the host's resolvers"),
        ("dns_opt", "names come from the host's resolvers"),
        ("dns_search", "names come from the host's resolvers"),
        ("domainname", "write the full name into `hostname`"),
        ("extends", "use a YAML anchor and `<<`, or another file with -f"),
        ("external_links", ONE_NETWORK),
        ("gpus", HOST_OWNED),
        ("group_add", "write `user: USER:GROUP`"),
        ("ipc", HOST_OWNED),
        ("isolation", ""),
        ("links", "services find each other by name; an alias goes under networks.default.aliases"),
        ("mac_address", ONE_NETWORK),
        ("mem_reservation", DEPLOY_LIMITS),
        ("mem_swappiness", DEPLOY_LIMITS),
        ("memswap_limit", DEPLOY_LIMITS),
        ("models", ""),
        ("network_mode", ONE_NETWORK),
        ("oom_kill_disable", DEPLOY_LIMITS),
        ("oom_score_adj", DEPLOY_LIMITS),
        ("pid", HOST_OWNED),
        ("post_start", "do it in the image's entrypoint"),
        ("pre_stop", "do it when the program gets its stop signal"),
        ("privileged", "name what it needs in `cap_add`"),
        ("provider", ""),
        ("runtime", "Kiln runs instances itself"),
        ("storage_opt", ""),
        ("sysctls", HOST_OWNED),
        ("use_api_socket", ""),
        ("userns_mode", HOST_OWNED),
        ("uts", HOST_OWNED),
        ("volumes_from", "name the volumes in both services"),
    ],
};

pub(super) const BUILD: Keys = Keys {
    name: "`build`",
    honoured: &[
        "additional_contexts",
        "args",
        "context",
        "dockerfile",
        "dockerfile_inline",
        "labels",
        "network",
        "platforms",
        "secrets",
        "shm_size",
        "ssh",
        "target",
        "ulimits",
    ],
    listed: &["cache_from", "cache_to", "no_cache", "provenance", "pull", "sbom", "tags"],
    refused: &[
        ("entitlements", ""),
        ("extra_hosts", "steps have no network unless they ask: RUN --network=default"),
        ("isolation", ""),
        ("privileged", ""),
    ],
};

pub(super) const HEALTHCHECK: Keys = Keys {
    name: "`healthcheck`",
    honoured: &[
        "disable",
        "interval",
        "retries",
        "start_interval",
        "start_period",
        "test",
        "timeout",
    ],
    listed: &[],
    refused: &[],
};

pub(super) const DEPENDS_ON: Keys = Keys {
    name: "`depends_on`, long form",
    honoured: &["condition", "required"],
    // An instance whose dependency changed is always started anew.
    listed: &["restart"],
    refused: &[],
};

pub(super) const ENV_FILE: Keys = Keys {
    name: "`env_file`, long form",
    honoured: &["format", "path", "required"],
    listed: &[],
    refused: &[],
};

pub(super) const PORT: Keys = Keys {
    name: "`ports`, long form",
    honoured: &["app_protocol", "host_ip", "protocol", "published", "target"],
    listed: &["mode", "name"],
    refused: &[],
};

pub(super) const MOUNT: Keys = Keys {
    name: "`volumes` of a service, long form",
    honoured: &["bind", "read_only", "source", "target", "tmpfs", "type", "volume"],
    listed: &["consistency"],
    refused: &[("image", "copy the files in with a Dockerfile")],
};

pub(super) const MOUNT_BIND: Keys = Keys {
    name: "`volumes.bind`",
    honoured: &["propagation"],
    listed: &["create_host_path", "selinux"],
    refused: &[("recursive", "")],
};

pub(super) const MOUNT_VOLUME: Keys = Keys {
    name: "`volumes.volume`",
    honoured: &["nocopy"],
    listed: &["labels"],
    refused: &[("subpath", "mount the volume as a whole")],
};

pub(super) const MOUNT_TMPFS: Keys =
    Keys { name: "`volumes.tmpfs`", honoured: &["mode", "size"], listed: &[], refused: &[] };

pub(super) const FILE: Keys = Keys {
    name: "`configs` and `secrets` of a service, long form",
    honoured: &["gid", "mode", "source", "target", "uid"],
    listed: &[],
    refused: &[],
};

pub(super) const BUILD_SECRET: Keys = Keys {
    name: "`secrets` of `build`, long form",
    honoured: &["gid", "mode", "source", "target", "uid"],
    listed: &[],
    refused: &[],
};

pub(super) const CONFIG: Keys = Keys {
    name: "`configs` at the top",
    honoured: &["content", "environment", "external", "file"],
    listed: &["labels", "name"],
    refused: &[("template_driver", "write `content`, which is interpolated")],
};

pub(super) const SECRET: Keys = Keys {
    name: "`secrets` at the top",
    honoured: &["environment", "external", "file"],
    listed: &["labels", "name"],
    refused: &[
        ("content", "a secret in the file is none: write `file` or `environment`"),
        ("driver", "write `file` or `environment`"),
        ("driver_opts", "write `file` or `environment`"),
        ("template_driver", "write `file` or `environment`"),
    ],
};

pub(super) const TOP_VOLUME: Keys = Keys {
    name: "`volumes` at the top",
    honoured: &["driver", "external"],
    // A volume belongs to its project and stage.
    listed: &["labels", "name"],
    refused: &[(
        "driver_opts",
        "a volume is a directory of Kiln's own; for another use a bind mount",
    )],
};

pub(super) const TOP_NETWORK: Keys = Keys {
    name: "`networks` at the top",
    honoured: &["driver", "external"],
    listed: &["attachable", "labels", "name"],
    refused: &[
        ("driver_opts", ONE_NETWORK),
        ("enable_ipv4", ONE_NETWORK),
        ("enable_ipv6", ONE_NETWORK),
        ("internal", ONE_NETWORK),
        ("ipam", "Kiln claims its addresses by itself"),
    ],
};

pub(super) const NETWORK: Keys = Keys {
    name: "`networks` of a service",
    honoured: &["aliases"],
    listed: &["gw_priority", "priority"],
    refused: &[
        ("driver_opts", ONE_NETWORK),
        ("interface_name", ONE_NETWORK),
        ("ipv4_address", "addresses are Kiln's to give; use the service's name"),
        ("ipv6_address", "addresses are Kiln's to give; use the service's name"),
        ("link_local_ips", "addresses are Kiln's to give; use the service's name"),
        ("mac_address", ONE_NETWORK),
    ],
};

pub(super) const DEPLOY: Keys = Keys {
    name: "`deploy`",
    honoured: &["mode", "replicas", "resources"],
    listed: &["endpoint_mode", "labels", "placement"],
    refused: &[
        ("restart_policy", "write `restart` in the service"),
        ("rollback_config", "`kiln rollback` moves the whole release back"),
        ("update_config", "a release is switched as a whole"),
    ],
};

pub(super) const RESOURCES: Keys = Keys {
    name: "`deploy.resources`",
    honoured: &["limits", "reservations"],
    listed: &[],
    refused: &[],
};

pub(super) const LIMITS: Keys = Keys {
    name: "`deploy.resources.limits`",
    honoured: &["cpus", "memory", "pids"],
    listed: &[],
    refused: &[],
};

pub(super) const RESERVATIONS: Keys = Keys {
    name: "`deploy.resources.reservations`",
    honoured: &[],
    listed: &["cpus", "memory"],
    refused: &[("devices", HOST_OWNED), ("generic_resources", "")],
};

pub(super) const ULIMIT: Keys =
    Keys { name: "`ulimits`, long form", honoured: &["hard", "soft"], listed: &[], refused: &[] };

pub(super) const KILN: Keys = Keys {
    name: "`x-kiln` at the top",
    honoured: &["bases", "stages", "volatile"],
    listed: &[],
    refused: &[],
};

pub(super) const KILN_BASE: Keys = Keys {
    name: "`x-kiln.bases`",
    honoured: &["debian", "minimal", "packages"],
    listed: &[],
    refused: &[],
};

pub(super) const KILN_STAGE: Keys = Keys {
    name: "`x-kiln.stages`",
    honoured: &["after", "drain", "keep", "ports", "rebuild", "strategy", "test"],
    listed: &[],
    refused: &[],
};

pub(super) const KILN_TEST: Keys = Keys {
    name: "`x-kiln.stages.test`",
    honoured: &["command", "service", "timeout"],
    listed: &[],
    refused: &[],
};

pub(super) const KILN_STRATEGY: Keys = Keys {
    name: "`x-kiln.stages.strategy`",
    honoured: &["canary", "hold"],
    listed: &[],
    refused: &[],
};

pub(super) const KILN_SERVICE: Keys = Keys {
    name: "`x-kiln` of a service",
    honoured: &["volatile", "worker"],
    listed: &[],
    refused: &[],
};

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &[&Keys] = &[
        &TOP,
        &SERVICE,
        &BUILD,
        &HEALTHCHECK,
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
    ];

    /// The rows of `docs/compose.md`: heading, key, standing.
    fn documented() -> Vec<(String, String, String)> {
        let mut heading = String::new();
        let mut rows = Vec::new();
        for line in include_str!("../../../../docs/compose.md").lines() {
            if let Some(text) = line.strip_prefix("### ") {
                heading = text.to_owned();
            }
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            if let ["", key, standing, ..] = cells[..]
                && let Some(key) = key.strip_prefix('`').and_then(|key| key.strip_suffix('`'))
            {
                rows.push((heading.clone(), key.to_owned(), standing.to_owned()));
            }
        }
        rows.sort();
        rows
    }

    #[test]
    fn the_documentation_says_the_same() {
        let mut rows = Vec::new();
        for keys in ALL {
            let mut row = |key: &str, standing: &str| {
                rows.push((keys.name.to_owned(), key.to_owned(), standing.to_owned()));
            };
            keys.honoured.iter().for_each(|key| row(key, "honoured"));
            keys.listed.iter().for_each(|key| row(key, "listed"));
            keys.refused.iter().for_each(|(key, _)| row(key, "refused"));
        }
        rows.sort();
        assert_eq!(documented(), rows);
    }

    #[test]
    fn no_key_has_two_standings() {
        for keys in ALL {
            let mut seen = std::collections::BTreeSet::new();
            let refused = keys.refused.iter().map(|(key, _)| key);
            for key in keys.honoured.iter().chain(keys.listed).chain(refused) {
                assert!(seen.insert(key), "{}: {key}", keys.name);
            }
        }
    }
}
