//! Each key of a service, in each of its forms.

use std::collections::BTreeMap;

use kiln_core::compose::{
    Condition, FileSource, Limits, Mount, MountSource, NetworkMode, Port, Project, Protocol,
    Restart, Tmpfs,
};
use kiln_core::image::Healthcheck;

use crate::{BASES, World, compose_of, web};

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn commands() {
    let cases: [(&str, Option<&[&str]>); 7] = [
        ("command: [a, 1, \"b c\"]", Some(&["a", "1", "b c"])),
        ("command: redis-server --save ''", Some(&["redis-server", "--save", ""])),
        ("command: sh -c \"exec $$HOME\"", Some(&["sh", "-c", "exec $HOME"])),
        ("command: []", Some(&[])),
        ("command: \"\"", Some(&[])),
        ("command:", None),
        ("hostname: x", None),
    ];
    for (yaml, expected) in cases {
        assert_eq!(web(yaml).command, expected.map(words), "{yaml}");
        let entrypoint = yaml.replace("command", "entrypoint");
        assert_eq!(web(&entrypoint).entrypoint, expected.map(words), "{entrypoint}");
    }
}

#[test]
fn environment() {
    let cases: [(&str, &[(&str, &str)]); 8] = [
        (
            "environment: {A: b, N: 5, T: true, F: 1.50, E: \"\"}",
            &[("A", "b"), ("E", ""), ("F", "1.5"), ("N", "5"), ("T", "true")],
        ),
        ("environment: [A=b, A=c, N=05]", &[("A", "c"), ("N", "05")]),
        ("environment: [FROM_ENV, NOT_SET]", &[("FROM_ENV", "e")]),
        ("environment: {FROM_ENV: , NOT_SET: }", &[("FROM_ENV", "e")]),
        ("environment: {A: \"x=$FROM_ENV\"}", &[("A", "x=e")]),
        ("environment: {A: $NOT_SET}", &[("A", "")]),
        ("environment: [\"A=a=b\"]", &[("A", "a=b")]),
        ("environment:", &[]),
    ];
    for (yaml, expected) in cases {
        let expected: BTreeMap<String, String> =
            expected.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        assert_eq!(web(yaml).environment, expected, "{yaml}");
    }
}

#[test]
fn env_files() {
    let yaml = "env_file:\n- one.env\n- {path: two.env}\n- {path: none.env, required: false}\n\
                - {path: raw.env, format: raw}\nenvironment: {C: mine, D: }";
    let project = World::new(&compose_of(yaml))
        .file("one.env", "A=1\nB=1\nC=1\nD=1\nE=$C-$H-${NOPE}\n")
        .file("two.env", "# later wins\nB='$2'\n")
        .file("raw.env", "R='$2'\n")
        .env("H", "host")
        .load()
        .unwrap();
    let env = &project.services["web"].environment;
    let shown: Vec<String> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(shown, ["A=1", "B=$2", "C=mine", "E=mine-host-", "R='$2'"]);
    assert_eq!(
        project.warnings,
        ["one.env:5: the variable `NOPE` is not set; it stands for nothing"]
    );
    let one = World::new(&compose_of("env_file: ./one.env")).file("one.env", "A=1").load();
    assert_eq!(one.unwrap().services["web"].environment["A"], "1");
}

fn port(host_ip: Option<&str>, published: u16, target: u16) -> Port {
    Port {
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        published,
        target,
        protocol: Protocol::Tcp,
        app_protocol: None,
    }
}

#[test]
fn ports() {
    let cases: [(&str, Vec<Port>); 12] = [
        ("[\"8080:80\"]", vec![port(None, 8080, 80)]),
        ("[\"80\", 81]", vec![port(None, 0, 80), port(None, 0, 81)]),
        ("[\"127.0.0.1:8080:80/tcp\"]", vec![port(Some("127.0.0.1"), 8080, 80)]),
        ("[\"127.0.0.1::80\"]", vec![port(Some("127.0.0.1"), 0, 80)]),
        ("[\"[::1]:8080:80\"]", vec![port(Some("::1"), 8080, 80)]),
        ("[\"8080-8081:80-81\"]", vec![port(None, 8080, 80), port(None, 8081, 81)]),
        ("[\"3000-3001\"]", vec![port(None, 0, 3000), port(None, 0, 3001)]),
        ("[22:22]", vec![port(None, 22, 22)]),
        ("[\"80:80\", \"80:80\"]", vec![port(None, 80, 80)]),
        ("[{target: 80, published: \"8080\"}]", vec![port(None, 8080, 80)]),
        (
            "[{target: 80, published: 81, host_ip: 10.0.0.1, protocol: tcp, mode: host}]",
            vec![port(Some("10.0.0.1"), 81, 80)],
        ),
        (
            "[{target: 80, app_protocol: http}]",
            vec![Port { app_protocol: Some("http".into()), ..port(None, 0, 80) }],
        ),
    ];
    for (yaml, expected) in cases {
        assert_eq!(web(&format!("ports: {yaml}")).ports, expected, "{yaml}");
    }
    let expose = web("expose: [3000, \"53/udp\", \"90-91\", 3000]").expose;
    let shown: Vec<_> = expose.iter().map(|port| (port.target, port.protocol)).collect();
    use Protocol::{Tcp, Udp};
    assert_eq!(shown, [(3000, Tcp), (53, Udp), (90, Tcp), (91, Tcp)]);
}

#[test]
fn volumes() {
    let mount = |source, target: &str, read_only| Mount {
        source,
        target: target.into(),
        read_only,
        ..Mount::default()
    };
    let volume = |name: &str| MountSource::Volume(name.into());
    let bind = |path: &str| MountSource::Bind(path.into());
    let cases = [
        ("data:/var/lib/x", mount(volume("data"), "/var/lib/x", false)),
        ("data:/x:ro", mount(volume("data"), "/x", true)),
        ("./src:/src:ro,z", mount(bind("/w/shop/src"), "/src", true)),
        ("../up:/src/", mount(bind("/w/up"), "/src", false)),
        ("/etc/x:/y:rw", mount(bind("/etc/x"), "/y", false)),
        ("~/d:/d", mount(bind("/home/u/d"), "/d", false)),
        ("/anon", mount(MountSource::Anonymous, "/anon", false)),
        ("{type: volume, source: more, target: /x}", mount(volume("more"), "/x", false)),
        ("{type: volume, target: /x}", mount(MountSource::Anonymous, "/x", false)),
        (
            "{type: bind, source: ., target: /x, read_only: true, bind: {create_host_path: true}}",
            mount(bind("/w/shop"), "/x", true),
        ),
    ];
    for (yaml, expected) in cases {
        assert_eq!(web(&format!("volumes:\n- {yaml}")).volumes, [expected], "{yaml}");
    }
    let part =
        Mount { nocopy: true, subpath: Some("a/b".into()), ..mount(volume("data"), "/x", false) };
    let yaml = "{type: volume, source: data, target: /x, volume: {nocopy: true, subpath: ./a//b}}";
    assert_eq!(web(&format!("volumes:\n- {yaml}")).volumes, [part]);
    let nocopy = Mount { nocopy: true, ..mount(volume("data"), "/x", true) };
    assert_eq!(web("volumes: ['data:/x:ro,nocopy']").volumes, [nocopy]);
    let yaml = "{type: bind, source: /y, target: /x, bind: {create_host_path: false}}";
    let must = Mount { must_exist: true, ..mount(bind("/y"), "/x", false) };
    assert_eq!(web(&format!("volumes:\n- {yaml}")).volumes, [must]);
}

#[test]
fn volumes_at_the_top() {
    let load = |top: &str| {
        let text =
            format!("services: {{a: {{build: ., volumes: ['v:/x']}}}}\nvolumes: {{v: {top}}}\n");
        World::new(&text).load().unwrap()
    };
    let mount = |project: &Project| project.services["a"].volumes[0].clone();
    let named = load("{name: other}");
    assert_eq!(mount(&named).source, MountSource::Volume("v".into()));
    assert_eq!(mount(&named).known_as.as_deref(), Some("other"));
    assert!(named.volumes.contains("v"));
    for (top, source) in [
        ("{external: true}", MountSource::External("v".into())),
        ("{external: true, name: other}", MountSource::External("other".into())),
        ("{external: {name: other}}", MountSource::External("other".into())),
        (
            "{driver: local, driver_opts: {type: none, o: bind, device: ./d}}",
            MountSource::Bind("/w/shop/d".into()),
        ),
    ] {
        let project = load(top);
        assert_eq!(mount(&project).source, source, "{top}");
        assert!(project.volumes.is_empty(), "not its own to remove: {top}");
    }
    let warned = World::new(&compose_of("volumes: ['/var/run/docker.sock:/var/run/docker.sock']"));
    let warnings = warned.load().unwrap().warnings;
    assert!(warnings[0].contains("root on this machine"), "{warnings:?}");
}

#[test]
fn tmpfs() {
    let tmpfs =
        |target: &str, size, mode| Tmpfs { target: target.into(), size, mode, ..Tmpfs::default() };
    for (yaml, expected) in [
        ("tmpfs: /run", vec![tmpfs("/run", None, None)]),
        (
            "tmpfs: [\"/u:uid=7,gid=8,size=50%,exec\"]",
            vec![Tmpfs {
                uid: Some(7),
                gid: Some(8),
                percent: Some(50),
                ..tmpfs("/u", None, None)
            }],
        ),
        (
            "tmpfs: [/a, \"/b:size=64m,mode=1777,noexec\"]",
            vec![
                tmpfs("/a", None, None),
                Tmpfs { noexec: true, ..tmpfs("/b", Some(64 << 20), Some(0o1777)) },
            ],
        ),
        ("tmpfs: [/a, \"/a:size=1k\"]", vec![tmpfs("/a", Some(1024), None)]),
        (
            "volumes: [{type: tmpfs, target: /t, tmpfs: {size: 1gb, mode: 0755}}]",
            vec![tmpfs("/t", Some(1 << 30), Some(0o755))],
        ),
    ] {
        assert_eq!(web(yaml).tmpfs, expected, "{yaml}");
    }
}

#[test]
fn health_checks() {
    let check = |test: &[&str]| Healthcheck { test: words(test), ..Healthcheck::default() };
    let full = Healthcheck {
        interval: Some(1_000_000_000),
        timeout: Some(500_000_000),
        start_period: Some(90_000_000_000),
        start_interval: Some(100_000),
        retries: Some(5),
        ..check(&["CMD", "true"])
    };
    for (yaml, expected) in [
        ("{test: curl -f localhost}", check(&["CMD-SHELL", "curl -f localhost"])),
        ("{test: [CMD-SHELL, exit 1]}", check(&["CMD-SHELL", "exit 1"])),
        ("{test: [NONE]}", check(&["NONE"])),
        ("{disable: true}", check(&["NONE"])),
        (
            "{test: [CMD, \"true\"], interval: 1s, timeout: 500ms, start_period: 1m30s, \
             start_interval: 100us, retries: 5}",
            full,
        ),
        ("{retries: 2}", Healthcheck { retries: Some(2), ..Healthcheck::default() }),
    ] {
        assert_eq!(web(&format!("healthcheck: {yaml}")).healthcheck, Some(expected), "{yaml}");
    }
}

#[test]
fn single_values() {
    let service = web("working_dir: /srv/\nuser: 1000:100\nhostname: box\nread_only: false\n\
                       shm_size: 128m\nstop_signal: int\nstop_grace_period: 1m30s\ninit: yes\n\
                       cap_add: [CAP_NET_ADMIN, sys_ptrace]\ncap_drop: [ALL]\n\
                       ulimits: {nofile: {soft: 1024, hard: 2048}, nproc: 100, core: -1}\n\
                       networks: {default: {aliases: [www]}}\nx-kiln: {worker: true}");
    assert_eq!(service.working_dir.as_deref(), Some("/srv"));
    assert_eq!(service.user.as_deref(), Some("1000:100"));
    assert_eq!(service.hostname.as_deref(), Some("box"));
    assert_eq!(service.read_only, Some(false));
    assert_eq!(service.shm_size, Some(128 << 20));
    assert_eq!(service.stop_signal.as_deref(), Some("SIGINT"));
    assert_eq!(service.stop_grace_period, Some(90_000_000_000));
    assert!(service.init);
    assert_eq!(service.cap_add.into_iter().collect::<Vec<_>>(), ["NET_ADMIN", "SYS_PTRACE"]);
    assert_eq!(service.cap_drop.into_iter().collect::<Vec<_>>(), ["ALL"]);
    let limits: Vec<_> = service.ulimits.into_iter().collect();
    let expected = [("core", (-1, -1)), ("nofile", (1024, 2048)), ("nproc", (100, 100))];
    assert_eq!(limits, expected.map(|(name, pair)| (name.to_owned(), pair)));
    assert_eq!(service.networks.unwrap()["default"], ["www".to_owned()].into());
    assert_eq!(service.worker, Some(true));
    assert_eq!(service.place, "compose.yaml:2");

    let nothing = web("user: 0");
    assert_eq!(nothing.user.as_deref(), Some("0"));
    assert_eq!(nothing.read_only, None);
    assert_eq!(nothing.worker, None);
    assert_eq!(nothing.restart, None);
    assert!(web("networks: [default]").networks.unwrap()["default"].is_empty());
    assert_eq!(web("networks: []").networks, None);
}

#[test]
fn restarts() {
    for (yaml, expected) in [
        ("\"no\"", Restart::No),
        ("no", Restart::No),
        ("always", Restart::Always),
        ("unless-stopped", Restart::Always),
        ("on-failure", Restart::OnFailure { max: None }),
        ("on-failure:3", Restart::OnFailure { max: Some(3) }),
    ] {
        assert_eq!(web(&format!("restart: {yaml}")).restart, Some(expected), "{yaml}");
    }
}

#[test]
fn limits() {
    let all = |memory, nano_cpus, pids| Limits { memory, nano_cpus, pids, ..Limits::default() };
    for (yaml, expected) in [
        (
            "mem_limit: 64m\ncpus: 0.5\npids_limit: 100",
            all(Some(64 << 20), Some(500_000_000), Some(100)),
        ),
        (
            "deploy: {resources: {limits: {memory: 1gb, cpus: '2', pids: 7}}}",
            all(Some(1 << 30), Some(2_000_000_000), Some(7)),
        ),
        (
            "mem_limit: 1g\ndeploy: {resources: {limits: {memory: 1024m}}}",
            all(Some(1 << 30), None, None),
        ),
        ("mem_limit: 0\npids_limit: -1", all(None, None, None)),
        ("cpu_quota: 50000", all(None, Some(500_000_000), None)),
        (
            "cpu_quota: 10000\ncpu_period: 20ms\ncpu_shares: 512\ncpuset: 0-2,4",
            Limits {
                period: Some(20_000),
                shares: Some(512),
                cpuset: Some("0-2,4".into()),
                ..all(None, Some(500_000_000), None)
            },
        ),
        (
            "mem_limit: 64m\nmemswap_limit: 128m\nmem_reservation: 32m",
            Limits {
                reservation: Some(32 << 20),
                swap: Some(128 << 20),
                ..all(Some(64 << 20), None, None)
            },
        ),
        ("memswap_limit: -1", Limits { swap: Some(-1), ..Limits::default() }),
        (
            "deploy: {resources: {reservations: {memory: 20M, cpus: '0.5'}}}",
            Limits { reservation: Some(20 << 20), ..Limits::default() },
        ),
    ] {
        assert_eq!(web(yaml).limits, expected, "{yaml}");
    }
}

#[test]
fn extra_hosts() {
    for yaml in [
        "[\"a:1.2.3.4\", \"b=::1\", \"c=host-gateway\"]",
        "{a: 1.2.3.4, b: \"[::1]\", c: host-gateway}",
        "[\"a=1.2.3.4\", \"b:::1\", \"c:host-gateway\"]",
        "{a: [1.2.3.4], b: \"::1\", c: host-gateway}",
    ] {
        let hosts = web(&format!("extra_hosts: {yaml}")).extra_hosts;
        let expected = [("a", "1.2.3.4"), ("b", "::1"), ("c", "host-gateway")];
        let expected = expected.map(|(name, address)| (name.to_owned(), address.to_owned()));
        assert_eq!(hosts, expected, "{yaml}");
    }
}

#[test]
fn configs_and_secrets() {
    let service = web("configs: [conf, {source: text, target: /etc/t, mode: 0440, uid: \"5\"}]\n\
                       secrets: [key, {source: key, target: other, mode: \"400\", gid: 6}]");
    let shown: Vec<_> = service
        .files
        .iter()
        .map(|file| (file.target.as_str(), file.uid, file.gid, file.mode, file.secret))
        .collect();
    assert_eq!(
        shown,
        [
            ("/conf", 0, 0, 0o444, false),
            ("/etc/t", 5, 0, 0o440, false),
            ("/run/secrets/key", 0, 0, 0o444, true),
            ("/run/secrets/other", 0, 6, 0o400, true),
        ]
    );
    assert_eq!(service.files[0].source, FileSource::File("/w/shop/c.conf".into()));
    assert_eq!(service.files[1].source, FileSource::Content("hello".into()));
    let text = "services: {a: {image: base, secrets: [k]}}\nsecrets: {k: {environment: KEY}}\n";
    let project = World::new(&format!("{text}{BASES}")).env("KEY", "s3").load().unwrap();
    assert_eq!(project.services["a"].files[0].source, FileSource::Content("s3".into()));
}

#[test]
fn builds() {
    let build = |yaml: &str| web(&format!("build: {yaml}")).build.unwrap();
    let short = build("./web");
    assert_eq!(short.context, std::path::Path::new("/w/shop/web"));
    // What has to be fetched stays as it is written, the Dockerfile within it.
    for address in [
        "https://h/x.git#v1:dir",
        "http://h/x.tar.gz",
        "git://h/x.git",
        "ssh://git@h/x.git",
        "git@h:x.git",
        "github.com/a/b",
    ] {
        let there = build(&format!("\"{address}\""));
        assert_eq!(there.context, std::path::Path::new(address));
        assert_eq!(there.dockerfile, std::path::Path::new("Dockerfile"));
        let long = build(&format!("{{context: \"{address}\", dockerfile: d/Other}}"));
        assert_eq!(long.dockerfile, std::path::Path::new("d/Other"));
    }
    assert_eq!(short.dockerfile, std::path::Path::new("/w/shop/web/Dockerfile"));
    let long = build(
        "{context: web, dockerfile: ../Docker.web, target: run, args: {A: 1, FROM_ENV: , NO: }, \
         additional_contexts: {lib: ../lib}, cache_from: [x]}",
    );
    assert_eq!(long.dockerfile, std::path::Path::new("/w/shop/Docker.web"));
    assert_eq!(long.target.as_deref(), Some("run"));
    let args: Vec<_> = long.args.iter().map(|(k, v)| (k.as_str(), v.as_deref())).collect();
    assert_eq!(args, [("A", Some("1")), ("FROM_ENV", Some("e")), ("NO", None)]);
    assert_eq!(long.additional_contexts["lib"], "/w/lib");
    assert_eq!(build("{args: [A=b]}").args["A"].as_deref(), Some("b"));
    assert_eq!(build("{dockerfile_inline: FROM base}").inline.as_deref(), Some("FROM base"));
    let tagged = web("build: .\nimage: registry.example/x:1");
    assert_eq!(tagged.image, None);
}

#[test]
fn what_a_build_may_use() {
    let build = |yaml: &str| web(&format!("build: {yaml}")).build.unwrap();
    let all = build(
        "{context: ., network: default, shm_size: 128m, ulimits: {nofile: 5}, labels: [a=b, c], \
         ssh: [default, other=~/agent], platforms: [], \
         secrets: [key, {source: key, target: token, uid: \"3\", mode: \"0440\"}]}",
    );
    assert!(all.network && !build("{network: none}").network && !build(".").network);
    assert_eq!((all.shm_size, all.ulimits["nofile"]), (Some(128 << 20), (5, 5)));
    let labels: Vec<_> = all.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(labels, [("a", "b"), ("c", "")]);
    // The caller has no agent: whoever needs it is told so.
    assert_eq!(all.ssh["default"], std::path::Path::new("$SSH_AUTH_SOCK"));
    assert_eq!(all.ssh["other"], std::path::Path::new("/home/u/agent"));
    let token = &all.secrets["token"];
    assert_eq!((token.uid, token.gid, token.mode), (Some(3), None, Some(0o440)));
    assert_eq!(all.secrets["key"].mode, None);
    assert_eq!(all.secrets["key"].source, FileSource::File("/w/shop/key".into()));
    let project = World::new("services: {a: {build: {context: ., ssh: default}}}")
        .env("SSH_AUTH_SOCK", "/run/me")
        .load();
    assert!(project.is_err(), "one text is no list");
    let project = World::new("services: {a: {build: {context: ., ssh: [default]}}}")
        .env("SSH_AUTH_SOCK", "/run/me")
        .load()
        .unwrap();
    let ssh = &project.services["a"].build.as_ref().unwrap().ssh;
    assert_eq!(ssh["default"], std::path::Path::new("/run/me"));
}

/// What Compose takes, though it says little, or says it in other words.
#[test]
fn other_words_and_empty_ones() {
    let service = web("ports: [\"8000-8010:80\", {target: 81, published: 9000-9001}]");
    let ports: Vec<_> = service.ports.iter().map(|port| (port.published, port.target)).collect();
    assert_eq!(ports, [(8000, 80), (9000, 81)]);
    let service =
        web("extra_hosts: [\"a=1.1.1.1,2.2.2.2\", \"b:${NONE}\"]\nexpose: [\"${NONE}\", 70]\n\
         tmpfs: [\"${NONE}\"]\nulimits: {locks: 1, nofile: 5}\nplatform: linux\nmem_swappiness: 5");
    let hosts: Vec<_> = service.extra_hosts.iter().map(|(_, ip)| ip.as_str()).collect();
    assert_eq!(hosts, ["1.1.1.1", "2.2.2.2"]);
    assert_eq!((service.expose.len(), service.tmpfs.len(), service.ulimits.len()), (1, 0, 1));
    let text = format!(
        "services:\n  vpn: {{image: base, container_name: x}}\n  \
         web: {{image: base, network_mode: \"container:x\", volumes: [v:/v], configs: [{{source: c, mode: 440}}]}}\n\
         volumes: {{v: {{driver_opts: {{type: \"\", o: \"${{NONE}}\", device: \"\"}}}}}}\n\
         configs: {{c: {{content: x}}}}\n{BASES}"
    );
    let project = World::new(&text).load().unwrap();
    let service = &project.services["web"];
    assert_eq!(service.network_mode, Some(NetworkMode::Service("vpn".into())));
    assert!(service.depends_on.contains_key("vpn"));
    assert_eq!(service.volumes[0].source, MountSource::Volume("v".into()));
    assert_eq!(service.files[0].mode, 0o670);
    let warning = project.warnings.iter().find(|text| text.contains("decimal"));
    assert!(warning.is_some_and(|text| text.contains("write `0440`")), "{:?}", project.warnings);
    let own = if cfg!(target_arch = "x86_64") { "x86_64" } else { std::env::consts::ARCH };
    let build = format!("build: {{context: ., platforms: [linux/{own}, linux/vax]}}");
    assert!(web(&build).build.is_some());
}

#[test]
fn dependencies() {
    let text = format!(
        "services:\n  a: {{image: base, depends_on: [b]}}\n  b: {{image: base, depends_on: \
         {{c: {{condition: service_healthy}}, d: {{condition: service_completed_successfully, \
         required: false, restart: true}}}}}}\n  c: {{image: base}}\n  d: {{image: base}}\n{BASES}"
    );
    let project = World::new(&text).load().unwrap();
    let depends = |of: &str, on: &str| project.services[of].depends_on[on].clone();
    assert_eq!(depends("a", "b").condition, Condition::ServiceStarted);
    assert!(depends("a", "b").required);
    assert_eq!(depends("b", "c").condition, Condition::ServiceHealthy);
    assert_eq!(depends("b", "d").condition, Condition::ServiceCompletedSuccessfully);
    assert!(!depends("b", "d").required);
}

#[test]
fn what_means_nothing_is_listed() {
    let project = World::new(&compose_of(
        "container_name: x\nlabels: {a: b}\nprivileged: false\nx-own: {a: 1}\n\
         security_opt: [no-new-privileges:true]\ndeploy: {replicas: 1, labels: [a]}\n\
         logging: {driver: json-file}\nbuild: .\nimage: some:tag",
    ))
    .load()
    .unwrap();
    assert_eq!(
        project.ignored,
        [
            "compose.yaml:3: services.web.container_name",
            "compose.yaml:4: services.web.labels",
            "compose.yaml:5: services.web.privileged",
            "compose.yaml:6: services.web.x-own",
            "compose.yaml:7: services.web.security_opt[0]",
            "compose.yaml:8: services.web.deploy.replicas",
            "compose.yaml:8: services.web.deploy.labels",
            "compose.yaml:9: services.web.logging",
            "compose.yaml:11: services.web.image: only a tag beside `build`",
        ]
    );
}

#[test]
fn kiln_section() {
    let text = "services:\n  web: {image: redis}\n  smoke: {image: redis, profiles: [test]}\n\
        x-kiln:\n  bases:\n    python: {debian: bookworm, packages: [python3-minimal]}\n    \
        redis: {debian: bookworm, packages: [redis-server, redis-server], minimal: true}\n  \
        stages:\n    ci: {after: dev, test: {service: smoke, command: [/smoke]}}\n    \
        prod: {after: ci, keep: 3, drain: 1m30s, rebuild: \"17:00\", strategy: {canary: [1, 25, 100], \
        hold: 10s}, ports: {web: \"80:8080\"}}\n";
    let project = World::new(text).load().unwrap();
    let kiln = &project.kiln;
    assert_eq!(kiln.bases["python"].packages, ["python3-minimal"]);
    assert!(!kiln.bases["python"].minimal);
    assert_eq!(kiln.bases["redis"].packages, ["redis-server"]);
    assert!(kiln.bases["redis"].minimal);
    assert_eq!(kiln.stages.keys().collect::<Vec<_>>(), ["ci", "dev", "prod"]);
    assert_eq!(kiln.stages["prod"].after.as_deref(), Some("ci"));
    assert_eq!(kiln.stages["prod"].keep, Some(3));
    assert_eq!(kiln.stages["prod"].drain, Some(90_000_000_000));
    assert_eq!(kiln.stages["prod"].ports["web"], [port(None, 80, 8080)]);
    let note = "accepted, without effect for now";
    assert_eq!(
        project.ignored,
        [
            format!("compose.yaml:9: x-kiln.stages.ci.test: {note}"),
            format!("compose.yaml:10: x-kiln.stages.prod.rebuild: {note}"),
            format!("compose.yaml:10: x-kiln.stages.prod.strategy: {note}"),
        ]
    );
}

#[test]
fn namespaces() {
    let text = |list: &[&str]| list.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
    let service =
        web("group_add: [audio, 44, audio]\nsysctls: [net.core.somaxconn=1024]\ndns: 10.0.0.2\n\
         dns_search: [a.org, .]\ndns_opt: [\"ndots:2\"]\n\
         security_opt: [\"no-new-privileges:true\", apparmor=unconfined, seccomp=unconfined]");
    assert_eq!(service.groups.into_iter().collect::<Vec<_>>(), ["44", "audio"]);
    assert_eq!(service.sysctls["net.core.somaxconn"], "1024");
    assert_eq!(service.dns.servers, ["10.0.0.2".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(service.dns.search, text(&["a.org", "."]));
    assert_eq!(service.dns.options, text(&["ndots:2"]));
    assert!(service.unconfined);
    let map = web("sysctls: {net.ipv4.ip_forward: 1, kernel.shmmax: 5, fs.mqueue.msg_max: 7}");
    assert_eq!(map.sysctls.len(), 3);
    assert!(!web("user: x").unconfined);
}

#[test]
fn hooks() {
    let service = web(
        "post_start:\n  - command: echo \"one two\"\n    environment: [B=2, A, NOT]\n  - \
         {command: [x], user: 5, privileged: false, working_dir: /srv}\npre_stop: [{command: bye}]",
    );
    let words = |list: &[&str]| list.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
    let [first, second] = &service.post_start[..] else { panic!("{:?}", service.post_start) };
    assert_eq!(first.command, words(&["echo", "one two"]));
    assert_eq!(first.env, ["B=2"]);
    assert_eq!((second.user.as_deref(), second.working_dir.as_deref()), (Some("5"), Some("/srv")));
    assert_eq!(service.pre_stop[0].command, ["bye"]);
    assert!(web("post_start: []").post_start.is_empty());
}

#[test]
fn devices() {
    let service = web("devices: [/dev/a, \"/dev/b:/dev/x\", \"/dev/c:/dev/y:mr\"]");
    let shown: Vec<String> = service
        .devices
        .iter()
        .map(|it| format!("{} {} {}", it.source, it.target, it.access))
        .collect();
    assert_eq!(shown, ["/dev/a /dev/a rwm", "/dev/b /dev/x rwm", "/dev/c /dev/y rm"]);
    let long = web("devices: [{source: /dev/a, target: /dev/b, permissions: w}, {source: /dev/c}]");
    assert_eq!(long.devices[0].access, "w");
    assert_eq!(
        (long.devices[1].target.as_str(), long.devices[1].access.as_str()),
        ("/dev/c", "rwm")
    );
}
