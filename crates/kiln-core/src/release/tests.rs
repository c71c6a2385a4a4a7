use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::compose::{Condition, Dns, Membership, MountSource, NetworkMode, Protocol};

/// Everything that a service can say, nothing left at its default.
fn full() -> Settings {
    let text = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    Settings {
        argv: text(&["/bin/server", "-v"]),
        env: text(&["A=1", "B=zwei\n"]),
        working_dir: "/srv".into(),
        user: "web:web".into(),
        hostname: "box".into(),
        aliases: BTreeSet::from(["www".to_owned()]),
        // See `golden_bytes_of_networks`.
        networks: None,
        network_mode: None,
        links: BTreeMap::new(),
        ports: BTreeMap::from([(
            "dev".to_owned(),
            vec![Port {
                host_ip: Some("::1".parse().unwrap()),
                published: 8080,
                target: 80,
                protocol: Protocol::Tcp,
                app_protocol: Some("http".into()),
            }],
        )]),
        expose: BTreeSet::from([Expose { target: 53, protocol: Protocol::Udp }]),
        depends_on: BTreeMap::from([(
            "db".to_owned(),
            Dependency { condition: Condition::ServiceCompletedSuccessfully, required: true },
        )]),
        healthcheck: Some(Healthcheck {
            test: text(&["CMD", "true"]),
            interval: Some(1),
            timeout: Some(2),
            start_period: Some(3),
            start_interval: Some(4),
            retries: Some(5),
        }),
        mounts: [
            MountSource::Volume("data".into()),
            MountSource::Bind("/host".into()),
            MountSource::Anonymous,
        ]
        .into_iter()
        .map(|source| Mount { source, target: "/d".into(), read_only: true, ..Mount::default() })
        .collect(),
        tmpfs: vec![Tmpfs {
            target: "/t".into(),
            size: Some(1 << 20),
            mode: Some(0o700),
            ..Tmpfs::default()
        }],
        read_only: Some(false),
        scratch: None,
        shm_size: Some(1 << 30),
        stop_signal: Some("SIGINT".into()),
        stop_grace: Some(u64::MAX),
        restart: Some(Restart::OnFailure { max: Some(3) }),
        init: true,
        ulimits: BTreeMap::from([("nofile".to_owned(), (-1, 1024))]),
        capabilities: Some(BTreeSet::from(["CHOWN".to_owned()])),
        extra_hosts: vec![("other".into(), "host-gateway".into())],
        limits: Limits { memory: Some(1), nano_cpus: Some(2), pids: Some(3), ..Limits::default() },
        groups: BTreeSet::new(),
        sysctls: BTreeMap::new(),
        dns: Dns::default(),
        unconfined: false,
        devices: Vec::new(),
        post_start: Vec::new(),
        pre_stop: Vec::new(),
        files: vec![PinnedFile {
            target: "/etc/x".into(),
            digest: Digest::of("x"),
            uid: 1,
            gid: 2,
            mode: 0o400,
            secret: true,
        }],
        worker: true,
    }
}

fn image(version: &str) -> ImageId {
    ImageId { tree: Digest::of(version), config: Digest::of("config") }
}

/// `name:dep,dep` separated by spaces, each service with the least that it can say.
fn small(text: &str) -> Release {
    let mut release = Release { project: "p".into(), ..Release::default() };
    for word in text.split_whitespace() {
        let (name, deps) = word.split_once(':').unwrap_or((word, ""));
        let dependency = Dependency { condition: Condition::ServiceStarted, required: true };
        let deps = deps.split(',').filter(|dep| !dep.is_empty());
        let depends_on = deps.map(|dep| (dep.to_owned(), dependency.clone())).collect();
        let settings = Settings { argv: vec!["x".into()], depends_on, ..Settings::default() };
        let image = image(name);
        release.services.insert(name.to_owned(), ReleasedService { image, settings });
    }
    release
}

fn whole() -> Release {
    let mut release = small("db");
    let settings = full();
    release.services.insert("web".into(), ReleasedService { image: image("web"), settings });
    release.source = Source { commit: Some("c0ffee".into()), dirty: true };
    let policy = Policy { keep: Some(3), drain: Some(5) };
    release.proposes.insert("prod".into(), policy);
    release
}

/// What came later is written only where it is stated.
#[test]
fn later_settings_are_written_where_they_are_stated() {
    let settings = Settings {
        argv: vec!["x".into()],
        groups: BTreeSet::from(["audio".into(), "7".into()]),
        sysctls: BTreeMap::from([("net.core.somaxconn".into(), "5".into())]),
        dns: Dns {
            servers: vec!["10.0.0.2".parse().unwrap()],
            search: vec!["x.org".into()],
            options: vec!["ndots:2".into()],
        },
        unconfined: true,
        devices: vec![Device {
            source: "/dev/kvm".into(),
            target: "/dev/other".into(),
            access: "rw".into(),
        }],
        post_start: vec![Hook {
            command: vec!["/seed".into(), "-a".into()],
            user: Some("db:db".into()),
            working_dir: Some("/srv".into()),
            env: vec!["A=1".into()],
        }],
        pre_stop: vec![Hook { command: vec!["bye".into()], ..Hook::default() }],
        limits: Limits {
            period: Some(50_000),
            shares: Some(512),
            cpuset: Some("0-1".into()),
            reservation: Some(5),
            swap: Some(-1),
            ..Limits::default()
        },
        ..Settings::default()
    };
    let text = String::from_utf8(Members::from(&settings).bytes()).unwrap();
    assert_eq!(
        text,
        r#"{"argv":["x"],"devices":[{"access":"rw","source":"/dev/kvm","target":"/dev/other"}],"dns":{"options":["ndots:2"],"search":["x.org"],"servers":["10.0.0.2"]},"groups":["7","audio"],"limits":{"cpuset":"0-1","period":50000,"reservation":5,"shares":512,"swap":-1},"post_start":[{"command":["/seed","-a"],"env":["A=1"],"user":"db:db","working_dir":"/srv"}],"pre_stop":[{"command":["bye"]}],"sysctls":{"net.core.somaxconn":"5"},"unconfined":true}"#
    );
    let read: Settings = serde_json::from_str(&text).unwrap();
    assert_eq!(read, settings);
    let none = Settings { argv: vec!["x".into()], ..Settings::default() };
    assert_eq!(Members::from(&none).bytes(), br#"{"argv":["x"]}"#);
}

/// The bytes of a release are its identity: they change with [`FORMAT`] and never otherwise.
#[test]
fn golden_bytes_of_everything() {
    let text = String::from_utf8(whole().canonical()).unwrap();
    assert_eq!(text, include_str!("golden/whole.json").trim_end());
    let text = String::from_utf8(small("web").canonical()).unwrap();
    assert_eq!(text, include_str!("golden/small.json").trim_end());
}

#[test]
fn a_stage_runs_its_own_settings_and_all_of_them_are_pinned() {
    let mut release = small("db web:db");
    assert_eq!(release.for_stage("prod"), None);
    let file = PinnedFile {
        target: "/etc/x".into(),
        digest: Digest::of("of prod"),
        uid: 0,
        gid: 0,
        mode: 0o400,
        secret: false,
    };
    let own = Settings {
        env: vec!["A=prod".into()],
        files: vec![file],
        ..release.services["web"].settings.clone()
    };
    let plain = release.clone();
    release.stages.insert("prod".into(), BTreeMap::from([("web".into(), own.clone())]));
    assert!(!release.runs_as(&plain));
    assert_eq!(release.for_stage("ci"), None);
    let there = release.for_stage("prod").unwrap();
    assert_eq!(there.services["web"].settings, own);
    assert_eq!(there.services["db"], release.services["db"]);
    assert_ne!(there.instance_key("web"), release.instance_key("web"));
    assert_eq!(there.instance_key("db"), release.instance_key("db"));
    assert!(release.pins().contains(&Digest::of("of prod")));
    assert!(!plain.pins().contains(&Digest::of("of prod")));

    let text = String::from_utf8(release.canonical()).unwrap();
    let end = r#""stages":{"prod":{"web":{"argv":["x"],"depends_on":{"db":{"condition":"service_started","required":true}},"env":["A=prod"],"files":["#;
    assert!(text.contains(end), "{text}");
    assert_eq!(read(text.as_bytes()).unwrap(), release);
}

/// What was not known before is written only where it is stated: the vectors above stay.
#[test]
fn golden_bytes_of_networks() {
    let mut release = small("db web");
    let part = |aliases: &[&str], internal, joined: Option<&str>| Membership {
        aliases: aliases.iter().map(|it| (*it).to_owned()).collect(),
        internal,
        joined: joined.map(str::to_owned),
    };
    let mut change = |name: &str, change: &dyn Fn(&mut Settings)| {
        change(&mut release.services.get_mut(name).unwrap().settings);
    };
    change("web", &|web| {
        let parts = [
            ("back".to_owned(), part(&["w", "v"], true, None)),
            ("front".to_owned(), part(&[], false, Some("proxy"))),
        ];
        web.networks = Some(BTreeMap::from(parts));
        web.links = BTreeMap::from([("store".to_owned(), "db".to_owned())]);
    });
    change("db", &|db| db.network_mode = Some(NetworkMode::Service("web".into())));
    let text = String::from_utf8(release.canonical()).unwrap();
    assert_eq!(text, include_str!("golden/networks.json").trim_end());
    assert_eq!(read(&release.canonical()).unwrap(), release);
    for mode in [NetworkMode::None, NetworkMode::Bridge, NetworkMode::Host] {
        release.services.get_mut("db").unwrap().settings.network_mode = Some(mode);
        assert_eq!(read(&release.canonical()).unwrap(), release);
    }
}

#[test]
fn those_that_share_a_network_have_one_fate() {
    let shared = |images: &[&str]| {
        let mut release = small("net app:net,db db web:net far");
        let app = release.services.get_mut("app").unwrap();
        app.settings.network_mode = Some(NetworkMode::Service("net".into()));
        for name in images {
            release.services.get_mut(*name).unwrap().image = image("other");
        }
        release
    };
    let before = shared(&[]).instance_keys();
    assert_eq!(before.len(), 5);
    for (changed, expected) in [
        ("app", "app net web"),
        ("net", "app net web"),
        ("db", "app db net web"),
        ("web", "web"),
        ("far", "far"),
    ] {
        let after = shared(&[changed]).instance_keys();
        let different = after.keys().filter(|name| before[*name] != after[*name]);
        assert_eq!(different.cloned().collect::<Vec<_>>().join(" "), expected, "{changed}");
    }
    // What lies between the two belongs to them, and neither order of the two is needed for a key.
    let mut between = small("net app:net,mid mid:net");
    let app = between.services.get_mut("app").unwrap();
    app.settings.network_mode = Some(NetworkMode::Service("net".into()));
    assert_eq!(between.instance_keys().len(), 3);
    assert_eq!(between.together()["mid"].len(), 3);
    assert!(small("a:b b").together().is_empty());
}

#[test]
fn what_is_written_is_read() {
    for release in [whole(), small("web:db db")] {
        assert_eq!(read(&release.canonical()).unwrap(), release);
    }
    for restart in [Restart::No, Restart::Always, Restart::OnFailure { max: None }] {
        let mut release = whole();
        release.services.get_mut("web").unwrap().settings.restart = Some(restart);
        assert_eq!(read(&release.canonical()).unwrap(), release);
    }
}

/// A member that a later Kiln adds is not there as long as it has its default; one that is there
/// means something.
#[test]
fn what_is_not_known_is_refused() {
    let text = String::from_utf8(whole().canonical()).unwrap();
    for (at, member) in [
        ("{\"format\":2,", "{\"format\":2,\"afresh\":1,"),
        ("\"settings\":{", "\"settings\":{\"afresh\":1,"),
        ("\"keep\":3", "\"keep\":3,\"afresh\":1"),
        ("\"published\":8080", "\"published\":8080,\"afresh\":1"),
    ] {
        let newer = text.replacen(at, member, 1);
        assert_ne!(newer, text, "{at}");
        let error = read(newer.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("afresh"), "{error}");
    }
    let newer = text.replacen("{\"format\":2,", "{\"format\":3,", 1);
    assert!(matches!(read(newer.as_bytes()), Err(ReadError::Newer(3))));
}

/// As Kiln wrote them when defaults were folded in. It is read, it runs as it did, and its
/// instances are shared with a release of today that says nothing of those defaults. (Of the root
/// file system and of `restart`, "not stated" is a state of its own by now.)
#[test]
fn a_release_of_format_1_is_read_and_runs_the_same() {
    let old = read(include_bytes!("golden/format-1.json")).unwrap();
    let web = &old.services["web"].settings;
    assert_eq!(web.read_only, Some(true));
    assert_eq!(web.tmpfs.len(), 3);
    assert_eq!(old.source.commit.as_deref(), Some("c0ffee"));
    let mut new = old.clone();
    let settings = &mut new.services.get_mut("web").unwrap().settings;
    settings.env.retain(|pair| !pair.starts_with("PATH="));
    (settings.shm_size, settings.stop_signal) = (None, None);
    (settings.stop_grace, settings.capabilities) = (None, None);
    settings.working_dir.clear();
    assert_eq!(new.instance_key("web"), old.instance_key("web"));
    assert!(old.instance_key("web").is_some());
    let settings = &mut new.services.get_mut("web").unwrap().settings;
    (settings.read_only, settings.tmpfs) = (None, Vec::new());
    assert_ne!(new.instance_key("web"), old.instance_key("web"), "it may have a layer");
}

#[test]
fn golden_instance_keys() {
    let keys = whole().instance_keys();
    let of = |name: &str| keys[name].hex()[..16].to_owned();
    assert_eq!([of("db"), of("web")], ["d3da02d5d7549f3c", "ac13fcd860f00822"]);
}

/// Each member of the settings reaches the key, but for ports; and so does what is below.
#[test]
fn a_key_changes_with_what_reaches_the_instance() {
    let base = small("web:api api:db db");
    let key = |release: &Release| release.instance_key("web").unwrap();
    let mut changed = base.clone();
    changed.services.get_mut("db").unwrap().image = image("db@2");
    assert_ne!(key(&changed), key(&base));
    assert_ne!(changed.instance_key("api"), base.instance_key("api"));
    let mut ports = base.clone();
    ports.services.get_mut("web").unwrap().settings.ports = full().ports;
    assert_eq!(key(&ports), key(&base));
    // Stated or not, the same reaches the instance.
    let mut stated = base.clone();
    stated.services.get_mut("web").unwrap().settings.shm_size = Some(64 << 20);
    assert_eq!(key(&stated), key(&base));
    assert_ne!(stated.digest(), base.digest());
    assert_eq!(small("a:b b:a c:a d").instance_keys().into_keys().collect::<Vec<_>>(), ["d"]);
    assert_eq!(small("web:gone").instance_key("web"), None);
}

#[test]
fn what_is_mounted_from_the_project_is_pinned() {
    let mut release = small("web");
    let plain = release.clone();
    let content = Some(crate::compose::Content { tree: Digest::of("conf"), file: true });
    let source = MountSource::Bind("./conf".into());
    let mount = Mount { source, target: "/c".into(), content, ..Mount::default() };
    release.services.get_mut("web").unwrap().settings.mounts.push(mount);
    assert_eq!(read(&release.canonical()).unwrap(), release);
    assert!(release.pins().contains(&Digest::of("conf")));
    assert!(release.trees().contains(&Digest::of("conf")));
    assert_eq!(release.trees().len(), plain.trees().len() + 1);
    let key = release.instance_key("web");
    let mounts = &mut release.services.get_mut("web").unwrap().settings.mounts;
    mounts[0].content.as_mut().unwrap().tree = Digest::of("edited");
    assert_ne!(release.instance_key("web"), key);
}

#[test]
fn order_reach_and_who_reaches() {
    for (text, expected) in [
        ("web:api api:db db", "db api web"),
        ("a:c b c d", "b c a d"),
        ("a:b b:a c", "c"),
        ("web:gone", "web"),
    ] {
        assert_eq!(small(text).start_order().join(" "), expected, "{text}");
    }
    let release = small("web:api api:db db other");
    let set = |text: &str| -> BTreeSet<String> { text.split(' ').map(str::to_owned).collect() };
    assert_eq!(release.reach("web"), set("api db"));
    assert_eq!(release.reaching(&set("db")), set("api web"));
    assert_eq!(release.reaching(&set("other")), BTreeSet::new());
    assert_eq!(small("a:b b:a c").reaching(&set("a")), set("a b"));
}

/// 10,000 services in one chain, named so that an order by name is the wrong way round. Anything
/// that is quadratic takes minutes.
#[test]
fn long_chains_cost_little() {
    let name = |nth: u32| format!("s{:05}", 99_999 - nth);
    let words: Vec<String> = (0..10_000)
        .map(|nth| match nth {
            0 => name(0),
            nth => format!("{}:{}", name(nth), name(nth - 1)),
        })
        .collect();
    let release = small(&words.join(" "));
    let began = std::time::Instant::now();
    assert_eq!(release.start_order().len(), 10_000);
    assert_eq!(release.instance_keys().len(), 10_000);
    let plan = crate::plan::plan(&release, &[], &BTreeMap::new());
    assert_eq!(plan.beside.len(), 10_000);
    assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
}
