//! RUN steps.

use std::path::Path;

use kiln_core::compose::Tmpfs;
use kiln_run::net::NetSpec;
use kiln_run::{Around, BindMount, ImageMount, SecretFile, StepExit, StepSpec, Stopped};

use crate::kit::Kit;

fn step(kit: &Kit, script: &str) -> StepSpec {
    StepSpec {
        lower: kit.lower.clone(),
        upper_dir: kit.dir.path().join("step"),
        argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        env: vec![],
        cwd: "/".into(),
        user: String::new(),
        hostname: "builder".into(),
        network: None,
        mounts: vec![],
        stdin: vec![],
        rootful: false,
        around: Around::default(),
    }
}

fn run(kit: &Kit, spec: &StepSpec) -> (StepExit, String) {
    let mut text = Vec::new();
    let exit = kit.runtime.run_step(spec, &mut |bytes| text.extend_from_slice(bytes)).unwrap();
    (exit, String::from_utf8(text).unwrap())
}

/// Every path in the upper layer.
fn changes(kit: &Kit) -> Vec<String> {
    fn walk(dir: &Path, root: &Path, out: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            out.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            if entry.file_type().unwrap().is_dir() {
                walk(&path, root, out);
            }
        }
    }
    let root = kit.dir.path().join("step/upper");
    let mut out = Vec::new();
    walk(&root, &root, &mut out);
    out.sort();
    out
}

#[test]
fn only_what_the_step_did_is_in_the_upper_layer() {
    let kit = Kit::new();
    let source = kit.dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("f"), "mounted\n").unwrap();
    let mut spec = step(
        &kit,
        "cat /in/deep/f; cat; echo new > /etc/new; echo z >> /etc/hosts; echo q > /etc/resolv.conf; \
        mkdir /opt; hostname; ip -o link | wc -l; rm /bin/plain; exit 4",
    );
    spec.mounts =
        vec![BindMount { source, target: "/in/deep".into(), read_only: true, node: None }];
    spec.stdin = b"from stdin\n".to_vec();
    let (exit, text) = run(&kit, &spec);
    assert_eq!(exit, StepExit { code: 4, ..StepExit::default() });
    assert_eq!(text, "mounted\nfrom stdin\nbuilder\n1\n");
    assert_eq!(changes(&kit), ["bin", "bin/plain", "etc", "etc/new", "opt"]);
    kit.assert_clean();
}

/// What `/proc` tells of the machine is the same for every step, on every machine; the number of
/// processors is that of those that it may use.
#[test]
fn a_step_sees_no_machine_of_its_own() {
    let kit = Kit::new();
    let tell = "cat /proc/version /proc/cmdline /proc/loadavg /proc/sys/kernel/random/boot_id; \
        grep MemTotal /proc/meminfo; grep -c ^processor /proc/cpuinfo; nproc; \
        grep -m1 '^model name' /proc/cpuinfo; echo x > /proc/version; echo $?";
    let (exit, text) = run(&kit, &step(&kit, tell));
    assert_eq!(exit.code, 0, "{text}");
    let lines: Vec<&str> = text.lines().collect();
    let fixed = [
        "Linux version 6.1.0 (kiln@kiln) #1 SMP PREEMPT_DYNAMIC",
        "root=/dev/vda1 ro",
        "0.00 0.00 0.00 1/1 1",
        "4b696c6e-0000-4000-8000-000000000001",
        "MemTotal:        8388608 kB",
    ];
    assert_eq!(lines[..5], fixed, "{text}");
    assert_eq!(lines[5], lines[6], "an entry for each processor: {text}");
    assert!(lines.last() != Some(&"0"), "it cannot be written to: {text}");
    let mut one = kiln_run::Conditions { cores: vec![0], ..Default::default() };
    let under = |conditions: &kiln_run::Conditions| {
        let mut text = Vec::new();
        let spec = step(&kit, tell);
        let exit = kit.runtime.run_step_under(&spec, conditions, &|| false, &mut |bytes| {
            text.extend_from_slice(bytes);
        });
        assert_eq!(exit.unwrap().code, 0);
        String::from_utf8(text).unwrap()
    };
    let text = under(&one);
    assert_eq!(text.lines().nth(5), Some("1"), "{text}");
    one.other_machine = true;
    let other = under(&one);
    for (number, line) in fixed.iter().enumerate() {
        assert_ne!(other.lines().nth(number), Some(*line), "{other}");
    }
    kit.assert_clean();
}

#[test]
fn nothing_outlives_a_step() {
    let kit = Kit::new();
    let spec = step(&kit, "setsid sleep 1000 > /dev/null 2>&1 & echo started");
    let (exit, text) = run(&kit, &spec);
    assert_eq!((exit.code, text.as_str()), (0, "started\n"));
    kit.assert_clean();
}

#[test]
fn a_rootful_step_owns_the_tree() {
    let kit = Kit::new();
    let mut spec = step(
        &kit,
        "touch /a && chown 100:101 /a && chmod 4755 /a && mknod /n c 1 3 && \
        stat -c %a:%u:%g /a && chroot / true && grep Seccomp: /proc/self/status && \
        grep CapEff /proc/self/status",
    );
    spec.rootful = true;
    let (exit, text) = run(&kit, &spec);
    assert_eq!(exit.code, 0, "{text}");
    assert!(text.starts_with("4755:100:101\nSeccomp:\t2\n"), "{text}");
    assert_ne!(text.lines().last().unwrap(), "CapEff:\t00000000a80425fb");
    assert_eq!(changes(&kit), ["a", "n"]);
}

#[test]
fn network_is_its_own_with_a_way_out_when_asked_for() {
    let kit = Kit::new();
    let look = "readlink /proc/self/ns/net; ls /sys/class/net; cat /proc/net/unix";
    let mut spec = step(&kit, look);
    let host = std::fs::read_link("/proc/self/ns/net").unwrap();
    let listener = rustix::net::socket(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    let name = format!("kiln-abstract-{}", std::process::id());
    let address = rustix::net::SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
    rustix::net::bind(&listener, &address).unwrap();
    for (network, interfaces) in [(None, "lo\n"), (Some(way_out()), "eth0\nlo\n")] {
        spec.network = network;
        let (exit, text) = run(&kit, &spec);
        assert_eq!(exit.code, 0, "{text}");
        assert!(!text.contains(host.to_str().unwrap()), "{text}");
        assert!(text.contains(&format!("]\n{interfaces}")), "{text}");
        assert!(!text.contains(&name), "{text}");
    }
}

/// A name and an address that no root of this machine has.
fn way_out() -> NetSpec {
    NetSpec {
        host_ifname: format!("kts{}", std::process::id() % 100_000_000),
        address: std::net::Ipv4Addr::new(192, 0, 2, 77),
        group: 0,
        mtu: None,
    }
}

#[test]
fn a_step_that_cannot_begin_says_why() {
    let kit = Kit::new();
    let mut spec = step(&kit, "");
    spec.argv = vec!["make".into()];
    let error = kit.runtime.run_step(&spec, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("exec `make`: not found in PATH"), "{error}");
    kit.assert_clean();
}

#[test]
fn images_memory_and_secrets_are_around_it() {
    let kit = Kit::new();
    let mut spec = step(
        &kit,
        "ls /os/bin/sh && head -n 1 /one/line && ! touch /os/x 2> /dev/null && touch /rw/x && ls /rw/x && \
        echo t > /deep/mem/t && stat -c %a:%u:%g:%s /run/secrets/key && cat /run/secrets/key && \
        dd if=/dev/zero of=/deep/mem/big bs=1M count=3 2> /dev/null || echo full; \
        ulimit -n; touch /kept",
    );
    let image = |path: &str, dir: bool, target: &str| ImageMount {
        lower: kit.lower.clone(),
        upper: None,
        path: path.into(),
        dir,
        target: target.into(),
        read_only: true,
    };
    std::fs::create_dir(kit.dir.path().join("thrown")).unwrap();
    spec.around.images = vec![
        image("", true, "/os"),
        image("etc/passwd", false, "/one/line"),
        ImageMount {
            upper: Some(kit.dir.path().join("thrown")),
            read_only: false,
            ..image("", true, "/rw")
        },
    ];
    spec.around.tmpfs.push(Tmpfs {
        target: "/deep/mem".into(),
        size: Some(2 << 20),
        mode: None,
        ..Tmpfs::default()
    });
    spec.around.secrets.push(SecretFile {
        content: b"hush\n".to_vec(),
        target: "/run/secrets/key".into(),
        uid: 3,
        gid: 4,
        mode: 0o440,
    });
    spec.around.ulimits.insert("nofile".into(), (77, 77));
    let (exit, text) = run(&kit, &spec);
    assert_eq!(exit.code, 0, "{text}");
    assert_eq!(
        text,
        "/os/bin/sh\nroot:x:0:0:root:/root:/bin/sh\n/rw/x\n440:3:4:5\nhush\nfull\n77\n"
    );
    // No mount point of them shows up.
    assert_eq!(changes(&kit), ["kept"]);
    kit.assert_clean();
}

#[test]
fn a_place_below_what_is_read_only_has_to_be_there() {
    let kit = Kit::new();
    let mut spec = step(&kit, "true");
    let (lower, target) = (kit.lower.clone(), "/os".to_owned());
    spec.around.images.push(ImageMount {
        lower,
        upper: None,
        path: "".into(),
        dir: true,
        target,
        read_only: true,
    });
    let below = |path: &str| Tmpfs { target: path.into(), ..Tmpfs::default() };
    spec.around.tmpfs = vec![below("/os/bin")];
    assert_eq!(run(&kit, &spec).0.code, 0);
    std::fs::remove_dir_all(&spec.upper_dir).unwrap();
    spec.around.tmpfs = vec![below("/os/new")];
    let error = kit.runtime.run_step(&spec, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("os/new") && error.contains("is read-only"), "{error}");
    kit.assert_clean();
}

#[test]
fn what_it_leaves_running_is_named_and_killed() {
    let kit = Kit::new();
    let spec = step(&kit, "sleep 1000 & setsid sleep 999 > /dev/null & echo started");
    let (exit, text) = run(&kit, &spec);
    assert_eq!((exit.code, text.as_str()), (0, "started\n"));
    // Their names are those of programs that they may not have become yet.
    assert_eq!(exit.left.len(), 2, "{exit:?}");
    kit.assert_clean();
}

#[test]
fn a_step_may_close_its_output_and_go_on() {
    let kit = Kit::new();
    let spec = step(&kit, "exec > /dev/null 2>&1; sleep 1; touch /late; exit 5");
    let (exit, _) = run(&kit, &spec);
    assert_eq!(exit.code, 5);
    let upper = kit.dir.path().join("step/upper");
    assert!(upper.join("late").exists());
    std::fs::remove_dir_all(kit.dir.path().join("step")).unwrap();
    // And is still killed when nobody wants it any more.
    let spec = step(&kit, "echo ready; exec > /dev/null 2>&1; sleep 1000");
    let ready = std::cell::Cell::new(false);
    let exit = kit.runtime.run_step_unless(&spec, &|| ready.get(), &mut |_| ready.set(true));
    assert_eq!(exit.unwrap().signal, Some(9));
    kit.assert_clean();
}

#[test]
fn a_fork_bomb_is_ended_and_named() {
    let kit = Kit::new();
    let mut spec = step(&kit, "f() { sleep 1000 & f & f & wait; }; f");
    spec.around.tasks = 200;
    let (exit, _) = run(&kit, &spec);
    assert_eq!(exit.stopped, Some(Stopped::Processes { most: 200 }));
    kit.assert_clean();
}

#[test]
fn a_full_disk_is_ended_and_named() {
    let kit = Kit::new();
    let small = kit.dir.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let flags = rustix::mount::MountAttrFlags::empty();
    let tmpfs = kiln_store::mount::tmpfs(64 << 20, 0o755, flags).unwrap();
    kiln_store::mount::attach(&tmpfs, &small).unwrap();
    let mut spec = step(&kit, "echo begin; while :; do cat /bin/busybox >> /grows; done");
    spec.upper_dir = small.join("layer");
    spec.around.reserve = 24 << 20;
    let (exit, _) = run(&kit, &spec);
    let Some(Stopped::Disk { free, path, .. }) = &exit.stopped else { panic!("{exit:?}") };
    assert!(*free < 24 << 20 && path == &small, "{exit:?}");
    // What was mounted is gone with it, so it can be taken away.
    drop(tmpfs);
    kiln_store::mount::unmount_below(&small).unwrap();
    kit.assert_clean();
}
