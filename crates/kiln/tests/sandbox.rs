//! What a program really gets: each service writes down what it finds, and its log is the witness.

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Instant;

use common::{PATIENCE, instance, instances, project, world};
use kiln_testkit::{Call, Project, World, wait_until};

/// A service that runs `script` and then stays; `keys` are further lines of its own.
fn service(name: &str, keys: &[&str], script: &str) -> String {
    running(name, keys, &format!("{script}\necho END; exec sleep 1000"))
}

/// A service that runs `script`.
fn running(name: &str, keys: &[&str], script: &str) -> String {
    let script = serde_json::to_string(&script.replace('$', "$$")).unwrap();
    let mut text = format!("  {name}:\n    image: busybox\n    command: [sh, -c, {script}]\n");
    for key in keys {
        let _ = writeln!(text, "    {key}");
    }
    text
}

fn compose(services: &[String]) -> String {
    format!("name: sandbox\nservices:\n{}", services.concat())
}

/// What a service has written so far, `key=value` a line; a later line of a key wins.
fn said(world: &World, project: &Project, service: &str) -> BTreeMap<String, String> {
    let logs = world.kiln_in(project, ["logs", service, "--json"]).expect_done().json_lines();
    let lines = logs.iter().filter_map(|line| line["text"].as_str());
    let pair = |line: &str| {
        let (key, value) = line.trim().split_once('=').unwrap_or((line.trim(), ""));
        (key.to_owned(), value.to_owned())
    };
    lines.map(pair).collect()
}

/// What a service of [`service`] has written at its end.
fn facts(world: &World, project: &Project, name: &str) -> BTreeMap<String, String> {
    wait_until(PATIENCE, &format!("`{name}` to have looked around"), || {
        let said = said(world, project, name);
        said.contains_key("END").then_some(said)
    })
}

/// Brings services up and gives what each has written, by `service.key`.
fn brought_up(project: &Project, world: &World, names: &[&str]) -> BTreeMap<String, String> {
    world.kiln_in(project, ["up"]).expect_done();
    let mut all = BTreeMap::new();
    for name in names {
        let found = facts(world, project, name);
        all.extend(found.into_iter().map(|(key, value)| (format!("{name}.{key}"), value)));
    }
    all
}

#[track_caller]
fn expect(facts: &BTreeMap<String, String>, expected: &[(&str, &str)]) {
    for (key, value) in expected {
        let found = facts.get(*key).map(String::as_str);
        assert_eq!(found, Some(*value), "{key} in {facts:#?}");
    }
}

#[test]
fn who_where_and_with_what_environment() {
    let world = world();
    let script = "echo uid=$(id -u); echo gid=$(id -g); echo dir=$(pwd); echo host=$(hostname)
        echo a=$A; echo b=$B; echo c=$C; echo path=$PATH; echo pid=$$
        echo peer=$(grep peer.example /etc/hosts | cut -f1)";
    let project = project(
        &world,
        "identity",
        &compose(&[
            service("plain", &[], script),
            service(
                "told",
                &[
                    "user: '1000:1001'",
                    "working_dir: /made/up",
                    "env_file: [one.env, two.env]",
                    "environment: { C: compose }",
                    "hostname: other",
                    "extra_hosts: ['peer.example:198.51.100.7']",
                    "init: true",
                ],
                script,
            ),
            "  named:\n    build: ./named\n    command: [sh, -c, 'echo uid=$$(id -u); \
             echo gid=$$(id -g); echo groups=$$(id -G); echo dir=$$(pwd); echo a=$$A; echo END; \
             exec sleep 1000']\n    environment: { A: compose }\n"
                .to_owned(),
        ]),
    );
    project
        .write("one.env", "A=one\nB=one\n# B=comment\n")
        .write("two.env", "B='two words'\nC=x\n");
    project
        .write("named/passwd", "root:x:0:0::/:/bin/sh\napp:x:70:71::/:/bin/sh\n")
        .write("named/group", "root:x:0:\napp:x:71:\nextra:x:90:app\n")
        .write(
            "named/Dockerfile",
            "FROM busybox\nCOPY passwd group /etc/\nENV A=image\nWORKDIR /srv\nUSER app\n",
        );
    let facts = brought_up(&project, &world, &["plain", "told", "named"]);
    expect(
        &facts,
        &[
            ("plain.uid", "0"),
            ("plain.gid", "0"),
            ("plain.dir", "/"),
            ("plain.host", "plain"),
            ("plain.pid", "1"),
            ("plain.path", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            ("plain.a", ""),
            ("told.uid", "1000"),
            ("told.gid", "1001"),
            ("told.dir", "/made/up"),
            ("told.host", "other"),
            ("told.a", "one"),
            ("told.b", "two words"),
            ("told.c", "compose"),
            ("told.peer", "198.51.100.7"),
            ("named.uid", "70"),
            ("named.gid", "71"),
            ("named.groups", "71 90"),
            ("named.dir", "/srv"),
            ("named.a", "compose"),
        ],
    );
    assert_ne!(facts["told.pid"], "1", "`init` is the first process");
}

#[test]
fn what_can_be_written_to() {
    let world = world();
    let script = "for dir in / /etc /tmp /run /var/tmp /cache /dev/shm
        do if touch $dir/new 2>/dev/null; then echo $dir=yes; else echo $dir=no; fi; done
        echo shm=$(df -k /dev/shm | awk 'END { print $2 }')
        echo cache=$(df -k /cache 2>/dev/null | awk 'END { print $2 }')
        echo mode=$(stat -c %a /cache 2>/dev/null)";
    let project = project(
        &world,
        "places",
        &compose(&[
            service("unstated", &[], script),
            service("readonly", &["read_only: true"], script),
            service("layered", &["read_only: false"], script),
            service("scratch", &["tmpfs: ['/cache:size=1m,mode=0750']", "shm_size: 8m"], script),
        ]),
    );
    let facts = brought_up(&project, &world, &["unstated", "readonly", "layered", "scratch"]);
    let writable = |service: &str| {
        ["/", "/etc", "/tmp", "/run", "/var/tmp", "/cache", "/dev/shm"]
            .into_iter()
            .filter(|dir| facts[&format!("{service}.{dir}")] == "yes")
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(writable("unstated"), "/ /etc /tmp /run /var/tmp /dev/shm");
    assert_eq!(writable("readonly"), "/dev/shm");
    assert_eq!(writable("scratch"), "/ /etc /tmp /run /var/tmp /cache /dev/shm");
    assert!(writable("layered").starts_with("/ /etc "), "{}", writable("layered"));
    expect(
        &facts,
        &[
            ("unstated.shm", "65536"),
            ("scratch.shm", "8192"),
            ("scratch.cache", "1024"),
            ("scratch.mode", "750"),
        ],
    );
    // What was written into the layer goes with the instance.
    let before = instance(&world, &project, "layered", "active").unwrap();
    world.kiln_in(&project, ["exec", "layered", "sh", "-c", "echo x > /etc/mark"]).expect_done();
    let look = ["exec", "layered", "test", "-e", "/etc/mark"];
    world.kiln_in(&project, look).expect_done();
    common::kill(before["pid"].as_i64().unwrap());
    wait_until(PATIENCE, "a fresh instance", || {
        let now = instance(&world, &project, "layered", "active")?;
        (now["id"] != before["id"] && now["state"] == "healthy").then_some(())
    });
    world.kiln_in(&project, look).expect_code(1);
}

#[test]
fn what_it_may_do() {
    let world = world();
    let script = "for key in CapEff CapPrm CapBnd CapAmb NoNewPrivs Seccomp
        do echo $key=$(awk -v key=$key: '$1 == key { print $2 }' /proc/self/status); done
        for path in /proc/kcore /proc/keys /proc/timer_list /proc/sched_debug
        do echo $path=$(head -c 1 $path 2>/dev/null | wc -c); done
        for dir in /proc/acpi /proc/scsi /sys/firmware; do echo $dir=$(ls $dir 2>/dev/null | wc -l); done
        for path in /proc/kcore /proc/keys /proc/timer_list /proc/acpi /sys/firmware
        do if [ -e $path ] && ! grep -q \" $path \" /proc/mounts; then echo bare$path=yes; fi; done
        try() { if \"$@\" > /dev/null 2>&1; then echo $1=yes; else echo $1=no; fi; }
        try mount -t tmpfs none /tmp; try unshare -U true; try chroot / true; try hostname x
        try chown 5 /tmp; try mknod /dev/shm/disk b 8 0
        if (echo 1 > /proc/sys/kernel/printk) 2>/dev/null; then echo sysctl=yes; else echo sysctl=no; fi
        if (echo > /sys/power/state) 2>/dev/null; then echo sys=yes; else echo sys=no; fi
        echo devices=$(ls /dev | grep -c -e sd -e vd -e nvme -e mem$)";
    let project = project(
        &world,
        "privileges",
        &compose(&[
            service("plain", &[], script),
            service("bare", &["cap_drop: [ALL]", "cap_add: [NET_BIND_SERVICE]"], script),
            service("more", &["cap_add: [SYS_NICE]", "cap_drop: [CHOWN]"], script),
            service("user", &["user: '1000'"], script),
        ]),
    );
    let facts = brought_up(&project, &world, &["plain", "bare", "more", "user"]);
    for service in ["plain", "bare", "more", "user"] {
        let of = |key: &str| format!("{service}.{key}");
        let mut expected = vec![(of("NoNewPrivs"), "1"), (of("Seccomp"), "2")];
        let bare = facts.keys().find(|key| key.starts_with(&of("bare/")));
        assert_eq!(bare, None, "it is not covered");
        for path in ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug"] {
            expected.push((of(path), "0"));
        }
        for key in ["/proc/acpi", "/proc/scsi", "/sys/firmware", "devices"] {
            expected.push((of(key), "0"));
        }
        for key in ["mount", "unshare", "hostname", "sysctl", "sys"] {
            expected.push((of(key), "no"));
        }
        let expected: Vec<_> = expected.iter().map(|(key, value)| (key.as_str(), *value)).collect();
        expect(&facts, &expected);
    }
    let (docker, none) = ("00000000a80425fb", "0000000000000000");
    expect(
        &facts,
        &[
            ("plain.CapEff", docker),
            ("plain.CapPrm", docker),
            ("plain.CapBnd", docker),
            ("plain.CapAmb", none),
            ("plain.chown", "yes"),
            ("plain.chroot", "yes"),
            ("bare.CapEff", "0000000000000400"),
            ("bare.CapBnd", "0000000000000400"),
            ("bare.chown", "no"),
            ("bare.chroot", "no"),
            ("more.CapEff", "00000000a88425fa"),
            ("more.chown", "no"),
            ("user.CapEff", none),
            ("user.CapPrm", none),
            ("user.CapBnd", docker),
            ("user.chown", "no"),
        ],
    );
}

#[test]
fn how_much_it_may_take() {
    let world = world();
    let project = project(
        &world,
        "limits",
        &compose(&[
            service(
                "files",
                &["ulimits: { nofile: { soft: 100, hard: 200 }, core: 0 }"],
                "echo soft=$(ulimit -Sn); echo hard=$(ulimit -Hn); echo core=$(ulimit -Hc)",
            ),
            service(
                "plain",
                &[],
                "echo soft=$(ulimit -Sn); echo core=$(ulimit -Sc); echo stack=$(ulimit -Ss)",
            ),
            service("many", &["ulimits: { nofile: 4000 }"], "echo soft=$(ulimit -Sn)"),
            service(
                "processes",
                &["pids_limit: 12"],
                "(for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do sleep 1000 & echo n$n=yes; done) \
                 2>&1",
            ),
            service(
                "slow",
                &["cpus: 0.1"],
                "read start rest < /proc/uptime; end=$((${start%.*} + 2))
                 while read now rest < /proc/uptime; [ ${now%.*} -lt $end ]; do :; done
                 echo ticks=$(awk '{ print $14 + $15 }' /proc/1/stat)",
            ),
        ]),
    );
    // The agent's own limits, from the shell that it was started in, are not handed on.
    let odd = world.call(["up"]).line();
    let up = Call::new("sh").args(["-c", &format!("ulimit -Sn 512; ulimit -Ss 4096; exec {odd}")]);
    up.dir(project.dir()).run().unwrap().expect_done();
    let names = ["files", "plain", "many", "processes", "slow"];
    let facts = brought_up(&project, &world, &names);
    expect(
        &facts,
        &[
            ("files.soft", "100"),
            ("files.hard", "200"),
            ("files.core", "0"),
            ("plain.soft", "1024"),
            ("plain.core", "0"),
            ("plain.stack", "8192"),
            ("many.soft", "4000"),
        ],
    );
    let started = facts.keys().filter(|key| key.starts_with("processes.n")).count();
    assert!((5..12).contains(&started), "{started} processes: {facts:#?}");
    // One or two seconds of a loop, a tenth of one processor: 10 to 20 hundredths, and some more
    // for the rounding of periods.
    let ticks: u32 = facts["slow.ticks"].parse().unwrap();
    assert!((1..=40).contains(&ticks), "{ticks} hundredths of a second");
}

#[test]
fn out_of_memory_is_named() {
    let world = world();
    let hungry = "dd if=/dev/zero of=/dev/null bs=64M count=1";
    let compose = compose(&[
        service("modest", &["mem_limit: 64m"], "echo fine=yes"),
        running(
            "hungry",
            &["mem_limit: 16m", "restart: 'no'", "expose: ['80']"],
            &format!("exec {hungry}"),
        ),
    ]);
    let project = project(&world, "memory", &compose);
    let refused = world.kiln_in(&project, ["up"]).expect_code(4);
    assert!(refused.stderr.contains("service `hungry` ran out of"), "{refused}");
    assert!(refused.stderr.contains("memory limit"), "{refused}");

    // One that gets hungry later, by its `deploy` form: `ps` names it.
    let keys = [
        "deploy: { resources: { limits: { memory: 16m } } }",
        "restart: 'no'",
        "volumes: ['./ctl:/ctl:ro']",
    ];
    let script = format!("while ! [ -e /ctl/now ]; do sleep 0.02; done; exec {hungry}");
    project.write("ctl/keep", "");
    let text = format!("{}{}", self::compose(&[running("later", &keys, &script)]), common::BUSYBOX);
    project.write("compose.yaml", text);
    world.kiln_in(&project, ["up"]).expect_done();
    project.write("ctl/now", "");
    wait_until(PATIENCE, "`ps` to name it", || {
        let ps = world.kiln_in(&project, ["ps"]).expect_done().stdout;
        ps.contains("memory limit").then_some(())
    });
}

#[test]
fn configs_secrets_binds_and_volumes() {
    let world = world();
    let script = "for path in /conf /run/secrets/key /run/secrets/own /etc/deep/down.conf
        do echo $path=$(stat -c %u:%g:%a $path) $(cat $path); done
        if (echo x > /conf) 2>/dev/null; then echo conf=yes; else echo conf=no; fi
        if (echo x > /ro/file) 2>/dev/null; then echo ro=yes; else echo ro=no; fi
        if (echo x > /rw/file) 2>/dev/null; then echo rw=yes; else echo rw=no; fi
        echo bound=$(cat /ro/seen); echo single=$(cat /single)
        echo data=$(stat -c %u:%g:%a /data); echo seed=$(cat /data/sub/seed)
        echo seedmode=$(stat -c %u:%g:%a /data/sub/seed)
        if touch /data/new; then echo volume=yes; fi";
    let script = serde_json::to_string(&script.replace('$', "$$")).unwrap();
    let project = project(
        &world,
        "files",
        &format!(
            "name: sandbox
services:
  looker:
    build: ./image
    command: [sh, -c, {script}]
    user: '70:71'
    restart: 'no'
    configs:
      - conf
      - {{ source: inline, target: /etc/deep/down.conf, mode: 0440, uid: '70', gid: '71' }}
    secrets:
      - key
      - {{ source: key, target: own, mode: 0400, uid: '70' }}
    volumes:
      - ./bound:/ro:ro
      - ./wide:/rw
      - ./bound/seen:/single:ro
      - data:/data
volumes: {{ data: }}
configs:
  conf: {{ file: ./conf }}
  inline: {{ content: made here }}
secrets:
  key: {{ file: ./key }}
"
        ),
    );
    project.write("conf", "from a file").write("key", "very secret");
    project.write("bound/seen", "bound").write("wide/keep", "").write("image/seed", "seed");
    let wide = project.path("wide");
    std::os::unix::fs::chown(&wide, Some(70), Some(71)).unwrap();
    project.write(
        "image/Dockerfile",
        "FROM busybox\nRUN mkdir -p /data/sub\nCOPY --chown=70:71 --chmod=0640 seed /data/sub/\n\
         RUN chown 70:71 /data && chmod 0750 /data\n",
    );
    world.kiln_in(&project, ["up"]).expect_done();
    let facts = wait_until(PATIENCE, "it to have looked around", || {
        let said = said(&world, &project, "looker");
        said.contains_key("volume").then_some(said)
    });
    expect(
        &facts,
        &[
            ("/conf", "0:0:444 from a file"),
            ("/etc/deep/down.conf", "70:71:440 made here"),
            ("/run/secrets/key", "0:0:444 very secret"),
            ("/run/secrets/own", "70:0:400 very secret"),
            ("conf", "no"),
            ("ro", "no"),
            ("rw", "yes"),
            ("bound", "bound"),
            ("single", "bound"),
            ("data", "70:71:750"),
            ("seed", "seed"),
            ("seedmode", "70:71:640"),
            ("volume", "yes"),
        ],
    );
    assert_eq!(project.read("wide/file"), "x\n");
    // A secret's content is in no record that people read.
    for args in [["history", "--json"], ["ps", "--json"], ["releases", "--json"]] {
        let output = world.kiln_in(&project, args).expect_done();
        assert!(!output.stdout.contains("very secret"), "{output}");
    }
}

#[test]
fn it_is_stopped_as_it_asks() {
    let world = world();
    let project = project(
        &world,
        "stopping",
        &compose(&[
            running(
                "signalled",
                &["stop_signal: SIGUSR1", "volumes: ['./out:/out']"],
                "trap 'echo usr1 > /out/signalled; exit 0' USR1; trap '' TERM
                 echo ready=; while :; do sleep 0.02; done",
            ),
            running(
                "slow",
                &["stop_grace_period: 20s", "volumes: ['./out:/out']"],
                "trap 'sleep 0.7; echo finished > /out/slow; exit 0' TERM
                 echo ready=; while :; do sleep 0.02; done",
            ),
            running(
                "deaf",
                &["stop_grace_period: 600ms", "volumes: ['./out:/out']"],
                "trap '' TERM; echo ready=
                 while :; do read up rest < /proc/uptime; echo $up >> /out/deaf; sleep 0.02; done",
            ),
        ]),
    );
    project.write("out/keep", "");
    world.kiln_in(&project, ["up"]).expect_done();
    for service in ["signalled", "slow", "deaf"] {
        wait_until(PATIENCE, "the traps", || said(&world, &project, service).get("ready").cloned());
    }
    let uptime = || -> f64 {
        let text = std::fs::read_to_string("/proc/uptime").unwrap();
        text.split(' ').next().unwrap().parse().unwrap()
    };
    let (began, at) = (Instant::now(), uptime());
    world.kiln_in(&project, ["down"]).expect_done();
    assert_eq!(project.read("out/signalled"), "usr1\n");
    assert_eq!(project.read("out/slow"), "finished\n");
    let last: f64 = project.read("out/deaf").lines().last().unwrap().parse().unwrap();
    let lived = last - at;
    assert!(lived > 0.4, "the grace was cut to {lived} s");
    assert!(lived < 5.0 && began.elapsed().as_secs() < 8, "it was never killed: {lived} s");
}

#[test]
fn what_ends_is_started_anew_as_restart_says() {
    let world = world();
    let policies = [
        ("never", "restart: 'no'", 3, 1),
        ("failed", "restart: on-failure", 3, 2),
        ("well", "restart: on-failure", 0, 1),
        ("once", "restart: on-failure:1", 3, 2),
        ("always", "restart: always", 0, 2),
        ("stopped", "restart: unless-stopped", 3, 2),
        // Not stated: nobody can call these, so one that is done is done.
        ("done", "init: false", 0, 1),
        ("broken", "init: false", 3, 2),
        // Somebody calls this one.
        ("called", "healthcheck: { test: [CMD, 'true'], interval: 1h }\n    expose: ['80']", 0, 2),
    ];
    let services: Vec<String> = policies
        .iter()
        .map(|(name, policy, code, _)| {
            // The first one ends when it is told, and those of `once` always.
            let script = format!(
                "echo start >> /ctl/{name}; n=$(wc -l < /ctl/{name}); echo started=$n
                 if [ $n = 1 ] || [ {name} = once ]
                 then while ! [ -e /ctl/now ]; do sleep 0.02; done; exit {code}; fi
                 exec sleep 1000"
            );
            running(name, &[policy, "volumes: ['./ctl:/ctl']"], &script)
        })
        .collect();
    let project = project(&world, "restart", &compose(&services));
    project.write("ctl/keep", "");
    world.kiln_in(&project, ["up"]).expect_done();
    let before = instances(&world, &project);
    project.write("ctl/now", "");
    let state = |name: &str| {
        let found = instance(&world, &project, name, "active")?;
        Some((found["id"].clone(), found["state"].as_str()?.to_owned()))
    };
    for (name, policy, _, starts) in policies {
        let old = before.iter().find(|found| found["service"] == name).unwrap();
        wait_until(PATIENCE, &format!("`{name}` with `{policy}`"), || {
            let (id, state) = state(name)?;
            let settled = match (name, starts) {
                ("once", _) => id != old["id"] && state != "healthy" && state != "starting",
                (_, 1) => id == old["id"] && state != "healthy",
                _ => id != old["id"] && state == "healthy",
            };
            settled.then_some(())
        });
    }
    for (name, policy, _, starts) in policies {
        let found = project.read(&format!("ctl/{name}")).lines().count();
        assert_eq!(found, starts, "`{name}` with `{policy}`");
    }
}

#[test]
fn what_ends_while_no_agent_looks_is_judged_in_the_same_way() {
    let world = world();
    let cases = [("never", "restart: 'no'", "failed"), ("done", "init: false", "completed")];
    let services = cases.map(|(name, policy, state)| {
        let code = u8::from(state == "failed");
        let script = format!(
            "echo start >> /ctl/{name}; while ! [ -e /ctl/now ]; do sleep 0.02; done; exit {code}"
        );
        running(name, &[policy, "volumes: ['./ctl:/ctl']"], &script)
    });
    let project = project(&world, "unseen", &compose(&services));
    project.write("ctl/keep", "");
    world.kiln_in(&project, ["up"]).expect_done();
    let before = instances(&world, &project);
    common::kill(world.role("agent").pid);
    project.write("ctl/now", "");
    for found in &before {
        let exit = world.root().join("instances").join(found["id"].as_str().unwrap());
        wait_until(PATIENCE, "it to end", || exit.join("exit.json").exists().then_some(()));
    }
    for (name, policy, state) in cases {
        let found = instance(&world, &project, name, "active").unwrap();
        assert_eq!(found["state"], state, "`{name}` with {policy}: {found}");
        assert_eq!(project.read(&format!("ctl/{name}")), "start\n", "`{name}` ran once");
    }
}

#[test]
fn profiles_choose_services() {
    let world = world();
    let compose = compose(&[
        service("always", &[], ":"),
        service("debug", &["profiles: [debug, tools]"], ":"),
        service("other", &["profiles: [other]"], ":"),
    ]);
    let project = project(&world, "profiles", &compose);
    let names = || {
        let all = instances(&world, &project);
        let mut names: Vec<_> =
            all.iter().map(|found| found["service"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names.dedup();
        names.join(" ")
    };
    world.kiln_in(&project, ["up"]).expect_done();
    assert_eq!(names(), "always");
    world.kiln_in(&project, ["up", "--profile", "tools"]).expect_done();
    assert_eq!(names(), "always debug");
}

#[test]
fn program_and_health_check_of_image_and_compose_file() {
    let world = world();
    let project = project(
        &world,
        "programs",
        "name: sandbox
services:
  image: { build: ./image }
  command: { build: ./image, command: [x, 'y z'] }
  entrypoint: { build: ./image, entrypoint: [/show, other] }
  both: { build: ./image, entrypoint: /show text, command: [x] }
  shell: { build: { context: ./image, dockerfile: Shell } }
  checked: { build: { context: ./image, dockerfile: Checked } }
  unchecked:
    build: { context: ./image, dockerfile: Never }
    healthcheck: { disable: true }
",
    );
    project
        .write_program(
            "image/show",
            "#!/bin/sh\nfor word; do echo \"word=$word\"; echo \"[$word]\"; done\necho END\n\
             [ \"$1\" = check ] && sleep 0.5 && touch /tmp/ready && echo touched\n\
             exec sleep 1000\n",
        )
        .write("image/Dockerfile", "FROM busybox\nCOPY show /\nENTRYPOINT [\"/show\", \"e\"]\nCMD [\"c\"]\n")
        .write("image/Shell", "FROM busybox\nCOPY show /\nENV WORD=expanded\nCMD exec /show $WORD\n")
        .write(
            "image/Checked",
            "FROM busybox\nCOPY show /\nHEALTHCHECK --interval=100ms --retries=100 CMD test -e /tmp/ready\n\
             CMD [\"/show\", \"check\"]\n",
        )
        .write(
            "image/Never",
            "FROM busybox\nCOPY show /\nHEALTHCHECK --interval=100ms --retries=1 CMD false\nCMD [\"/show\", \"n\"]\n",
        );
    world.kiln_in(&project, ["up"]).expect_done();
    // `up` waited for the check that the image brings.
    assert!(said(&world, &project, "checked").contains_key("touched"));
    for (service, words) in [
        ("image", "e c"),
        ("command", "e x y z"),
        ("entrypoint", "other"),
        ("both", "text x"),
        ("shell", "expanded"),
        ("unchecked", "n"),
    ] {
        facts(&world, &project, service);
        let logs = world.kiln_in(&project, ["logs", service, "--json"]).json_lines();
        let found: Vec<&str> = logs
            .iter()
            .filter_map(|line| line["text"].as_str()?.trim().strip_prefix("word="))
            .collect();
        assert_eq!(found.join(" "), words, "{service}");
        let single = words == "e x y z";
        assert!(!single || found == ["e", "x", "y z"], "{found:?}");
    }
}
