//! Everything that is refused: the line, the key, what is said, and what to do.

use crate::{BASES, World, compose_of};

/// `yaml` are the keys of the service `web`; its first line is line 3 of the file.
#[test]
fn keys_of_a_service() {
    for (yaml, line, key, what, hint) in [
        ("privileged: true", 3, "privileged", "`privileged` is not supported", "cap_add"),
        ("network_mode: \"container:x\"", 3, "network_mode", "container", "service:NAME"),
        ("network_mode: front", 3, "network_mode", "no network mode", "under `networks`"),
        ("network_mode: \"service:gone\"", 3, "network_mode", "no service `gone`", ""),
        (
            "network_mode: none\nnetworks: [default]",
            4,
            "networks",
            "beside `network_mode`",
            "keep one",
        ),
        ("pid: host", 3, "pid", "not supported", ""),
        ("ipc: host", 3, "ipc", "not supported", ""),
        ("devices: [dev/x]", 3, "devices[0]", "no absolute path", "/dev/fuse"),
        ("devices: [\"vendor.com/gpu=all\"]", 3, "devices[0]", "a CDI name", "/dev/fuse"),
        ("devices: [\"/dev/x:/dev/null\"]", 3, "devices[0]", "the instance's own", "colon"),
        ("devices: [\"/dev/x:/dev/y:rx\"]", 3, "devices[0]", "`rx` says not", "`r`"),
        ("devices: [\"/dev/x:/dev/y:r:w\"]", 3, "devices[0]", "is no device", "rwm"),
        ("devices: [\"/dev/x:r\"]", 3, "devices[0]", "no path of the instance", "/dev/x:/dev/x:r"),
        ("devices: [{target: /dev/x}]", 3, "devices[0]", "`source` is missing", ""),
        ("devices: [{source: /dev/x, mode: r}]", 3, "devices[0].mode", "unknown", ""),
        (
            "device_cgroup_rules: [\"c 1:3 r\"]",
            3,
            "device_cgroup_rules",
            "not supported",
            "`devices`",
        ),
        ("links: [db]", 3, "links", "no service `db`", ""),
        ("links: [\"db:a b\"]", 3, "links[0]", "SERVICE:ALIAS", "for example"),
        (
            "sysctls: {kernel.panic: 1}",
            3,
            "sysctls.kernel.panic",
            "not the instance's own",
            "net.*",
        ),
        ("dns: [a]", 3, "dns[0]", "no IP address", ""),
        ("cpuset: a", 3, "cpuset", "no list of cpus", "0-2,4"),
        ("memswap_limit: 64m", 3, "memswap_limit", "needs one of memory", "mem_limit"),
        ("group_add: [\"a:b\"]", 3, "group_add[0]", "no group", ""),
        ("extends: {service: x}", 3, "extends", "no service `x`", ""),
        ("prots: [\"80\"]", 3, "prots", "the key `prots` is unknown", "did you mean `ports`?"),
        ("zzzzzz: 1", 3, "zzzzzz", "unknown", "docs/compose.md"),
        ("networks: [back]", 3, "networks.back", "network `back`", "declare it"),
        ("networks: {default: {aliases: [a b]}}", 3, "networks.default.aliases[0]", "`a b`", ""),
        ("ports: [\"80:x\"]", 3, "ports[0]", "`x` is no port", "for example"),
        ("ports:\n- \"80:80\"\n- \"70000:80\"", 5, "ports[1]", "`70000` is no port", "65535"),
        ("ports: [\"80:80/sctp\"]", 3, "ports[0]", "`sctp`", "tcp or udp"),
        ("ports: [\"80-90:80-81\"]", 3, "ports[0]", "11 host ports stand for 2", "same length"),
        ("ports: [\"90-80:90-80\"]", 3, "ports[0]", "`90-80` is no range", ""),
        ("ports: [\"nohost:80:80\"]", 3, "ports[0]", "`nohost` is no IP", ""),
        ("ports: [{published: 80}]", 3, "ports[0]", "`target`", ""),
        ("ports: [{target: 80, published: 81-80}]", 3, "ports[0].published", "no range", ""),
        ("ports: [{target: 80, hostip: x}]", 3, "ports[0].hostip", "unknown", "host_ip"),
        ("ports: \"80:80\"", 3, "ports", "expected a list, found `80:80`", ""),
        ("expose: [x]", 3, "expose[0]", "no port", ""),
        ("volumes: [nothere:/x]", 3, "volumes[0]", "volume `nothere` is not defined", "./nothere"),
        ("volumes: [dat:/x]", 3, "volumes[0]", "`dat` is not defined", "did you mean `data`?"),
        ("volumes: [data:x]", 3, "volumes[0]", "no absolute path", "write `/x`"),
        ("volumes: [data:/]", 3, "volumes[0]", "over `/`", ""),
        ("volumes: [data:/x:rshared]", 3, "volumes[0]", "`rshared`", "`ro`"),
        ("volumes: [\"a:b:c:d\"]", 3, "volumes[0]", "colons", "long form"),
        ("volumes: [{type: npipe, source: a, target: /x}]", 3, "volumes[0]", "type `npipe`", ""),
        ("volumes: [{type: bind, target: /x}]", 3, "volumes[0]", "`source` is missing", ""),
        ("volumes: [{source: data, target: /x}]", 3, "volumes[0]", "`type` is missing", ""),
        (
            "volumes: [{type: volume, source: data, target: /x, volume: {subpath: a/../b}}]",
            3,
            "volumes[0].volume.subpath",
            "no path in the volume",
            "without `..`",
        ),
        (
            "volumes: [{type: volume, target: /x, volume: {subpath: a}}]",
            3,
            "volumes[0]",
            "`subpath` is of a named volume",
            "",
        ),
        (
            "volumes: [{type: bind, source: ., target: /x, bind: {propagation: rshared}}]",
            3,
            "volumes[0].bind.propagation",
            "`rshared` is not supported",
            "leave it out",
        ),
        ("tmpfs: [\"/run:size=101%\"]", 3, "tmpfs[0]", "`size=101%`", "size=50%"),
        ("tmpfs: [\"/run:uid=me\"]", 3, "tmpfs[0]", "`uid=me`", "uid=1000"),
        ("x-kiln: {scratch: 10k}", 3, "x-kiln.scratch", "less than 1 MiB", "2g"),
        ("tmpfs: [run]", 3, "tmpfs[0]", "no absolute path", ""),
        ("tmpfs: [\"/run:size=big\"]", 3, "tmpfs[0]", "`size=big`", "size=64m"),
        ("tmpfs: [\"/run:suid\"]", 3, "tmpfs[0]", "`suid` of a tmpfs is not supported", ""),
        (
            "tmpfs: /x\nvolumes: [data:/x]",
            2,
            "",
            "`/x` is named twice: in volumes and in tmpfs",
            "",
        ),
        ("mem_limit: lots", 3, "mem_limit", "expected a size in bytes, found `lots`", "64m"),
        ("mem_limit: 1m", 3, "mem_limit", "6 MB", ""),
        ("cpus: two", 3, "cpus", "number of cpus", "0.5"),
        ("pids_limit: many", 3, "pids_limit", "number of processes", ""),
        (
            "mem_limit: 1g\ndeploy: {resources: {limits: {memory: 2g}}}",
            4,
            "deploy.resources.limits.memory",
            "set twice",
            "",
        ),
        (
            "deploy: {resources: {reservations: {devices: [{driver: x}]}}}",
            3,
            "deploy.resources.reservations.devices",
            "not supported",
            "",
        ),
        ("deploy: {replicas: 2}", 3, "deploy.replicas", "one instance", ""),
        (
            "deploy: {update_config: {parallelism: 2}}",
            3,
            "deploy.update_config",
            "not supported",
            "switched",
        ),
        ("deploy: {mode: global}", 3, "deploy.mode", "`global`", ""),
        ("scale: 3", 3, "scale", "one instance", ""),
        ("stop_grace_period: 10", 3, "stop_grace_period", "expected a duration, found `10`", "10s"),
        (
            "stop_signal: SIGTREM",
            3,
            "stop_signal",
            "`SIGTREM` is no signal",
            "did you mean `SIGTERM`?",
        ),
        ("restart: sometimes", 3, "restart", "no restart policy", "unless-stopped"),
        ("restart: on-failure:x", 3, "restart", "no restart policy", ""),
        ("init: perhaps", 3, "init", "expected `true` or `false`, found `perhaps`", ""),
        ("command: \"sh -c 'x\"", 3, "command", "single quote is never closed", "as a list"),
        ("command: {a: b}", 3, "command", "found a map", ""),
        ("command: [a, [b]]", 3, "command[1]", "expected text, found a list", ""),
        ("healthcheck: {test: [curl, x]}", 3, "healthcheck.test", "begins with CMD", ""),
        (
            "healthcheck: {test: x, intervall: 1s}",
            3,
            "healthcheck.intervall",
            "unknown",
            "interval",
        ),
        ("healthcheck: {interval: soon}", 3, "healthcheck.interval", "duration", ""),
        ("ulimits: {nofiles: 5}", 3, "ulimits.nofiles", "no limit `nofiles`", "`nofile`"),
        ("ulimits: {nofile: {soft: 5}}", 3, "ulimits.nofile", "both", ""),
        ("ulimits: {nofile: {soft: 5, hard: 4}}", 3, "ulimits.nofile", "above", ""),
        ("cap_add: [NET_ADMINS]", 3, "cap_add[0]", "no capability", "NET_ADMIN"),
        ("extra_hosts: [\"a\"]", 3, "extra_hosts[0]", "`name=address`", ""),
        ("extra_hosts: [\"a=b\"]", 3, "extra_hosts[0]", "no IP address", "host-gateway"),
        ("hostname: a b", 3, "hostname", "no host name", ""),
        ("working_dir: srv", 3, "working_dir", "no absolute path", "/srv"),
        ("environment: [{A: b}]", 3, "environment[0]", "expected text", "without dashes"),
        ("environment: {A: [b]}", 3, "environment.A", "found a list", ""),
        ("environment: text", 3, "environment", "expected a map, found `text`", ""),
        (
            "env_file: nothere.env",
            3,
            "env_file[0]",
            "nothere.env cannot be read",
            "required: false",
        ),
        ("configs: [nope]", 3, "configs[0]", "config `nope` is not defined", "configs:"),
        ("secrets: [kee]", 3, "secrets[0]", "secret `kee` is not defined", "`key`"),
        (
            "configs: [{source: conf, mode: 5000}]",
            3,
            "configs[0].mode",
            "octal",
            "for example `0440`",
        ),
        ("build: oci://x.org/a", 3, "build.context", "is no context", "`https://….git#ref:folder`"),
        ("build: {context: ., network: host}", 3, "build.network", "host", "`default`"),
        ("build: {secrets: [nope]}", 3, "build.secrets[0]", "secret `nope` is not defined", "top"),
        ("build: {ssh: [other]}", 3, "build.ssh.other", "no socket", "other=/path"),
        (
            "build: {platforms: [linux/vax]}",
            3,
            "build.platforms[0]",
            "`linux/vax` is not this machine's platform",
            "bake on",
        ),
        (
            "build: {dockerfile: a, dockerfile_inline: b}",
            3,
            "build.dockerfile_inline",
            "beside",
            "",
        ),
        (
            "build: {additional_contexts: {a: ftp://x.org/y.git}}",
            3,
            "build.additional_contexts.a",
            "is no context",
            "",
        ),
        (
            "build: {additional_contexts: {a: \"service:x\"}}",
            3,
            "build.additional_contexts.a",
            "no service `x`",
            "",
        ),
        (
            "image: base\nplatform: linux/s390x",
            4,
            "platform",
            "`linux/s390x` is not this machine's platform",
            "bake on a machine",
        ),
        ("depends_on: [dbb]", 3, "depends_on.dbb", "there is no service `dbb`", ""),
        ("depends_on: [web]", 3, "depends_on.web", "loop: web → web", ""),
        (
            "depends_on: {web: {condition: healthy}}",
            3,
            "depends_on.web.condition",
            "no condition",
            "service_healthy",
        ),
        (
            "post_start: [{command: x, privileged: true}]",
            3,
            "post_start[0].privileged",
            "not supported",
            "cap_add",
        ),
        ("pre_stop: [{user: x}]", 3, "pre_stop[0]", "no `command`", "/bin/sh"),
        ("pre_stop: [{command: []}]", 3, "pre_stop[0]", "no `command`", ""),
        ("post_start: [{command: x, usr: x}]", 3, "post_start[0].usr", "unknown", "user"),
        ("post_start: {command: x}", 3, "post_start", "expected a list of hooks", "command"),
        ("post_start: [x]", 3, "post_start[0]", "expected", ""),
        (
            "post_start:\n  - command: x\n    working_dir: srv",
            5,
            "post_start[0].working_dir",
            "no absolute path",
            "/srv",
        ),
        (
            "security_opt: [\"seccomp:x.json\"]",
            3,
            "security_opt[0]",
            "x.json cannot be read",
            "usual",
        ),
        ("x-kiln: {wroker: true}", 3, "x-kiln.wroker", "unknown", "worker"),
        ("user: ${U:?who}", 3, "user", "`U` must be set: who", "`.env`"),
        ("hostname: a\nhostname: b", 4, "", "`hostname` is there already, on line 3", ""),
    ] {
        let errors = World::new(&compose_of(yaml)).load_all("/w/shop").expect_err(yaml);
        let said = errors.all().iter().find(|error| error.what.contains(what));
        let error = said.unwrap_or_else(|| panic!("{yaml}: {errors}"));
        assert_eq!((error.file.as_str(), error.line), ("compose.yaml", line), "{yaml}: {error}");
        assert!(error.column > 0, "{yaml}: {error}");
        if yaml.starts_with("hostname: a\nhostname") {
            continue;
        }
        let path =
            if key.is_empty() { "services.web".into() } else { format!("services.web.{key}") };
        assert_eq!(error.key, path, "{yaml}: {error}");
        let found = error.hint.as_deref().unwrap_or_default();
        assert!(found.contains(hint), "{yaml}: {error} ({found})");
    }
}

/// One run says all, in the order of the lines; a key whose value asks for nothing is no refusal.
#[test]
fn everything_in_one_run() {
    let text = format!(
        "services:\n  a:\n    image: base\n    privileged: true\n    pid: host\n    cap_add: [NO]\n    \
         mem_limit: lots\n    depends_on: [z]\n    ipc: private\n    network_mode: \"${{N:-}}\"\n  \
         b:\n    image: nowhere/x\n    gpus: []\n    frob: 1\nmodels: {{m: {{}}}}\n{BASES}"
    );
    let errors = World::new(&text).load_all("/w/shop").unwrap_err();
    let found: Vec<(u32, &str)> =
        errors.all().iter().map(|error| (error.line, error.key.as_str())).collect();
    let expected = [
        (4, "services.a.privileged"),
        (5, "services.a.pid"),
        (6, "services.a.cap_add[0]"),
        (7, "services.a.mem_limit"),
        (8, "services.a.depends_on.z"),
        (14, "services.b.frob"),
        (15, "models"),
    ];
    assert_eq!(found, expected, "{errors}");
    assert!(errors.all().iter().all(|error| error.column > 0), "{errors}");
    // What is wrong with variables comes before what is read with them.
    let text = "services:\n  a:\n    user: ${A:?x}\n    hostname: ${B:?y}\n    privileged: true\n";
    let errors = World::new(text).load_all("/w/shop").unwrap_err();
    assert_eq!(errors.all().iter().map(|error| error.line).collect::<Vec<_>>(), [3, 4]);
}

/// Whole files.
#[test]
fn projects() {
    for (text, line, key, what) in [
        ("", 0, "", "is empty"),
        ("# only this\n", 0, "", "is empty"),
        ("- a\n", 1, "", "no map of Compose keys"),
        ("services: [a\n", 0, "", "no valid YAML"),
        ("services:\n\ta: b\n", 2, "", "no valid YAML"),
        ("name: shop\n", 1, "", "there are no services"),
        ("services: {}\n", 1, "services", "there are no services"),
        ("services:\n  a:\n", 2, "services.a", "expected a map of keys, found nothing"),
        ("services:\n  a: {hostname: x}\n", 2, "services.a", "neither `image` nor `build`"),
        ("services:\n  'a b': {image: x}\n", 2, "services.a b", "no valid name"),
        ("service:\n  a: {image: x}\n", 1, "service", "the key `service` is unknown"),
        ("include: [a]\nservices: {a: {build: .}}\n", 1, "include[0]", "cannot be read"),
        ("name: \"!\"\nservices: {a: {build: .}}\n", 1, "name", "no valid project name"),
        (
            "services: {a: {build: .}}\nnetworks: {lan: {driver: macvlan}}\n",
            2,
            "networks.lan.driver",
            "`macvlan` is not supported",
        ),
        (
            "services: {a: {build: .}}\nnetworks: {h: {external: true, name: host}}\n",
            2,
            "networks.h",
            "none that can be joined",
        ),
        (
            "services: {a: {build: .}}\nnetworks: {n: {x-kiln: {joinabel: true}}}\n",
            2,
            "networks.n.x-kiln.joinabel",
            "the key `joinabel` is unknown",
        ),
        (
            "services: {a: {build: .}}\nnetworks: {n: {enable_ipv4: false}}\n",
            2,
            "networks.n.enable_ipv4",
            "without IPv4",
        ),
        (
            "services: {a: {build: .}}\nvolumes: {v: {driver_opts: {type: nfs, o: addr=1, device: x}}}\n",
            2,
            "volumes.v.driver_opts.o",
            "`addr=1` is not supported",
        ),
        (
            "services: {a: {build: .}}\nvolumes: {v: {driver_opts: {type: tmpfs, device: tmpfs}}}\n",
            2,
            "volumes.v.driver_opts",
            "`tmpfs` is not supported",
        ),
        (
            "services: {a: {build: .}}\nvolumes: {v: {name: .named}}\n",
            2,
            "volumes.v.name",
            "no valid name of a volume",
        ),
        (
            "services: {a: {build: .}}\nvolumes: {v: {driver: nfs}}\n",
            2,
            "volumes.v.driver",
            "`nfs`",
        ),
        (
            "services: {a: {build: .}}\nsecrets: {s: {content: x}}\n",
            2,
            "secrets.s.content",
            "not supported",
        ),
        ("services: {a: {build: .}}\nsecrets: {s: {}}\n", 2, "secrets.s", "has no source"),
        (
            "services: {a: {build: .}}\nsecrets: {s: {file: x, environment: Y}}\n",
            2,
            "secrets.s",
            "more than one source",
        ),
        (
            "services: {a: {build: .}}\nconfigs: {s: {file: x, content: Y}}\n",
            2,
            "configs.s",
            "more than one source",
        ),
        ("services: {a: {build: .}}\nx-kiln: {base: {}}\n", 2, "x-kiln.base", "unknown"),
        ("services: {a: {build: .}}\nx-kiln: {bases: {b: {}}}\n", 2, "x-kiln.bases.b", "`debian`"),
        (
            "services: {a: {build: .}}\nx-kiln: {bases: {b: {debian: bookworm, packages: [a=1]}}}\n",
            2,
            "x-kiln.bases.b.packages[0]",
            "no name of a package",
        ),
        (
            "services: {a: {build: .}}\nx-kiln: {bases: {scratch: {debian: bookworm}}}\n",
            2,
            "x-kiln.bases.scratch",
            "no valid name",
        ),
        (
            "services: {a: {build: .}}\nx-kiln: {bases: {b: {debian: bookworm, minimal: true}}}\n",
            2,
            "x-kiln.bases.b",
            "is empty",
        ),
        (
            "services: {a: {build: .}}\nx-kiln: {stages: {ci: {after: test}}}\n",
            2,
            "x-kiln.stages.ci.after",
            "no stage `test`",
        ),
        (
            "services: {a: {build: .}}\nx-kiln: {stages: {x: {after: y}, y: {after: x}}}\n",
            2,
            "x-kiln.stages.x.after",
            "in a loop: x → y → x",
        ),
        (
            "services: {a: {build: .}}\nx-kiln: {stages: {p: {ports: {b: \"80\"}}}}\n",
            2,
            "x-kiln.stages.p.ports.b",
            "no service `b`",
        ),
        (
            "services: {a: {build: .}}\nx-kiln: {stages: {p: {rebuild: 5pm}}}\n",
            2,
            "x-kiln.stages.p.rebuild",
            "time of day",
        ),
        (
            "services: {a: {build: .}}\nx-kiln: {stages: {p: {strategy: {canary: [5, 5]}}}}\n",
            2,
            "x-kiln.stages.p.strategy.canary[1]",
            "does not rise",
        ),
        (
            "services: {a: {build: .}}\nx-kiln: {stages: {p: {test: {}}}}\n",
            2,
            "x-kiln.stages.p.test",
            "needs",
        ),
        (
            "services: {a: {build: .}}\nx-kiln: {stages: {p: {kep: 1}}}\n",
            2,
            "x-kiln.stages.p.kep",
            "unknown",
        ),
        (
            "services:\n  a: {build: ., depends_on: [b]}\n  b: {build: ., depends_on: [c]}\n  c:\n    build: .\n    depends_on:\n      a: {condition: service_healthy}\n",
            2,
            "services.a.depends_on.b",
            "loop: a → b → c → a",
        ),
        (
            "services:\n  a: {build: ., depends_on: [b]}\n  b: {build: ., depends_on: [c]}\n  c:\n    build: .\n    depends_on: [b]\n",
            3,
            "services.b.depends_on.c",
            "loop: b → c → b",
        ),
        (
            "services:\n  a: {build: ., ports: [\"80:80\"]}\n  b:\n    build: .\n    ports:\n    - \"81:80\"\n    - \"127.0.0.1:80:81\"\n",
            7,
            "services.b.ports[1]",
            "port 80 is published by `a` already",
        ),
        (
            "services:\n  a: {build: ., ports: [\"80:80\", \"80:81\"]}\n",
            2,
            "services.a.ports[1]",
            "port 80 is published twice",
        ),
    ] {
        let errors = World::new(text).load_all("/w/shop").expect_err(text);
        let said = errors.all().iter().find(|error| error.what.contains(what));
        let error = said.unwrap_or_else(|| panic!("{text}: {errors}"));
        if line > 0 {
            assert_eq!((error.line, error.key.as_str()), (line, key), "{text}: {error}");
        }
        assert_eq!(error.file, "compose.yaml", "{text}: {error}");
    }
}

/// One run tells all, within a list and within the keys of one value, too.
#[test]
fn every_bad_item_is_said() {
    let text = compose_of(
        "ports: [\"x\", \"80:80\", {target: y}, \"z/sctp\"]\n\
         expose: [a, \"81\", b]\n\
         volumes: [none:/a, other:/b, data:/]\n\
         tmpfs: [\"/t:size=x,what\", \"/\"]\n\
         cap_add: [A, CHOWN, B]\n\
         links: [\":x\", \"a b:c d\"]\n\
         extra_hosts: [a, b]\n\
         group_add: [\"a:b\", \"c:d\"]\n\
         ulimits: {no: 1, nope: 2, nofile: x}\n\
         healthcheck: {interval: x, timeout: y, retries: z}\n\
         depends_on: {a: {condition: x}, b: {condition: y}}\n\
         secrets: [none, other]\n\
         environment: [\"=a\", \"=b\"]\n\
         mem_limit: x\n\
         cpus: y\n\
         command: [a, {b: c}, {d: e}]",
    );
    let errors = World::new(&text).load_all("/w/shop").unwrap_err();
    let keys: Vec<&str> = errors
        .all()
        .iter()
        .map(|error| error.key.strip_prefix("services.web.").unwrap_or(&error.key))
        .collect();
    for key in [
        "ports[0]",
        "ports[2].target",
        "ports[3]",
        "expose[0]",
        "expose[2]",
        "volumes[0]",
        "volumes[1]",
        "volumes[2]",
        "tmpfs[0]",
        "tmpfs[1]",
        "cap_add[0]",
        "cap_add[2]",
        "links[0]",
        "links[1]",
        "extra_hosts[0]",
        "extra_hosts[1]",
        "group_add[0]",
        "group_add[1]",
        "ulimits.no",
        "ulimits.nope",
        "ulimits.nofile",
        "healthcheck.interval",
        "healthcheck.timeout",
        "healthcheck.retries",
        "depends_on.a.condition",
        "depends_on.b.condition",
        "secrets[0]",
        "secrets[1]",
        "mem_limit",
        "cpus",
        "command[1]",
        "command[2]",
    ] {
        assert!(keys.contains(&key), "{key} is missing: {errors}");
    }
    assert_eq!(keys.iter().filter(|key| **key == "tmpfs[0]").count(), 2, "{errors}");
}

/// All host ports that are there twice, not only the first.
#[test]
fn every_port_taken_twice_is_said() {
    let text = format!(
        "services:\n  a: {{image: base, ports: [\"80:80\", \"81:81\"]}}\n  \
         b: {{image: base, ports: [\"80:80\", \"81:81\"]}}\n{BASES}"
    );
    let errors = World::new(&text).load_all("/w/shop").unwrap_err();
    let keys: Vec<&str> = errors.all().iter().map(|error| error.key.as_str()).collect();
    assert_eq!(keys, ["services.b.ports[0]", "services.b.ports[1]"], "{errors}");
}

/// Loops of builds, and ports of stages.
#[test]
fn builds_and_stages() {
    let builds = |of_a: &str, of_b: &str| {
        let build =
            |of: &str| format!("{{build: {{additional_contexts: {{x: \"service:{of}\"}}}}}}");
        format!(
            "services:\n  a: {}\n  b: {}\n  c: {{image: base}}\n  d: {{build: .}}\n{BASES}",
            build(of_a),
            build(of_b)
        )
    };
    assert!(World::new(&builds("b", "d")).load().is_ok());
    for (of_a, of_b, what) in [
        ("b", "a", "loop: a → b → a"),
        ("a", "d", "loop: a → a"),
        ("c", "d", "`c` has no `build`"),
        ("e", "d", "no service `e`"),
    ] {
        let error = World::new(&builds(of_a, of_b)).load().unwrap_err();
        assert!(error.what.contains(what), "{error}");
        assert_eq!(error.line, 2, "{error}");
        assert!(error.key.starts_with("services.a.build.additional_contexts"), "{error}");
    }
    let text = "services:\n  a: {build: .}\n  b: {build: .}\nx-kiln:\n  stages:\n    prod:\n      \
                ports:\n        a: \"80:80\"\n        b: [\"81:1\", \"80:2\"]\n";
    let error = World::new(text).load().unwrap_err();
    assert_eq!((error.line, error.key.as_str()), (9, "x-kiln.stages.prod.ports.b[1]"), "{error}");
}

/// Whatever is changed in a file, the reader answers and does not panic.
#[test]
fn broken_files_are_refused_and_never_panic() {
    let text = include_str!("../compose/forms/compose.yaml");
    let letters: Vec<char> = text.chars().collect();
    let mut refused = 0;
    for at in (0..letters.len()).step_by(17) {
        for change in ["", "\n", "*x", "[", "${", "é", "\"", ":", "!x "] {
            let mut broken: String = letters[..at].iter().collect();
            broken.push_str(change);
            broken.extend(&letters[at + 1..]);
            refused += usize::from(World::new(&broken).load().is_err());
        }
    }
    assert!(refused > 300, "{refused}");
}

#[test]
fn ports_on_different_addresses_are_no_clash() {
    let text = format!(
        "services:\n  a: {{image: base, ports: [\"127.0.0.1:80:80\", \"[::1]:80:80\", \"81\"]}}\n  \
         b: {{image: base, ports: [\"127.0.0.2:80:80\", \"81\"]}}\n{BASES}"
    );
    assert!(World::new(&text).load().is_ok());
}

#[test]
fn no_file_and_bad_files() {
    let error = World::default().load().unwrap_err();
    assert_eq!(error.to_string(), "no compose.yaml in /w/shop or above it");
    assert!(error.hint.unwrap().contains("kiln init"));
    let error = World::default().named(&["other.yaml"]).load().unwrap_err();
    assert!(error.to_string().starts_with("other.yaml: cannot be read"), "{error}");
    let text = "services: {a: {build: .}}";
    let error = World::new(text).file(".env", "A=1\nB C=2\n").load().unwrap_err();
    assert_eq!((error.file.as_str(), error.line), (".env", 2));
    let text = compose_of("env_file: bad.env");
    let error = World::new(&text).file("bad.env", "A='x\n").load().unwrap_err();
    assert_eq!((error.file.as_str(), error.line), ("bad.env", 1));
}

#[test]
fn a_place_inside_an_anchor_is_the_anchors_own() {
    let text =
        "x-common: &common\n  restart: never\nservices:\n  a:\n    <<: *common\n    build: .\n";
    let error = World::new(text).load().unwrap_err();
    assert_eq!((error.line, error.key.as_str()), (2, "services.a.restart"));
}

/// A profile is read: what is wrong in it is said with its own line.
#[test]
fn seccomp_profiles_are_read_and_refused() {
    let of = |profile: &str| {
        let world = World::new(&compose_of("security_opt: [\"seccomp=./p.json\"]"));
        world.file("p.json", profile).load().unwrap_err()
    };
    for (profile, place, what) in [
        ("{\n  \"defaultAction\": ,\n}", ("p.json", 2), "no seccomp profile"),
        ("{\n}", ("p.json", 2), "missing field `defaultAction`"),
        ("[]", ("p.json", 1), "no seccomp profile"),
        (
            "{\"defaultAction\": \"SCMP_ACT_ERRNO\", \"syscalls\": [{\"names\": [\"read\", \"write\"], \
             \"action\": \"SCMP_ACT_ALLOW\"}]}",
            ("compose.yaml", 3),
            "(p.json: it names 2 calls, all others are SCMP_ACT_ERRNO)",
        ),
        ("{\"defaultAction\": \"SCMP_ACT_ALLOW\"}", ("compose.yaml", 3), "allows all but 0 calls"),
    ] {
        let error = of(profile);
        assert!(error.what.contains(what), "{profile}: {error}");
        assert_eq!((error.file.as_str(), error.line), place, "{error}");
        assert!(error.hint.is_some());
    }
    let usual = World::new(&compose_of("security_opt: [\"seccomp=builtin\"]")).load().unwrap();
    assert!(usual.ignored.iter().any(|line| line.contains("usual filter")), "{:?}", usual.ignored);
}
