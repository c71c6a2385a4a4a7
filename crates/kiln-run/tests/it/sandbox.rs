//! What a program sees, and what it may not do.

use kiln_core::compose::Tmpfs;
use kiln_run::{BindMount, FileMount};
use kiln_store::{Backing, Lower, Store};

use crate::kit::{Kit, fields};

#[test]
fn filter_capabilities_and_no_new_privileges() {
    let kit = Kit::new();
    let (code, lines) = kit.run("cat /proc/self/status");
    assert_eq!(code, 0);
    let status = fields(&lines);
    assert_eq!(status["Seccomp"], "2");
    assert_eq!(status["NoNewPrivs"], "1");
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        assert_eq!(status[set], "00000000a80425fb", "{set}");
    }
    assert_eq!(status["CapInh"], "0000000000000000");
    assert_eq!(status["CapAmb"], "0000000000000000");
    let mut spec = kit.spec("cat /proc/self/status");
    spec.sandbox.user = "app".to_owned();
    let status = fields(&kit.run_spec(&spec).1);
    assert_eq!(status["CapEff"], "0000000000000000");
    assert_eq!(status["CapBnd"], "00000000a80425fb");
    assert_eq!(status["Uid"], "100\t100\t100\t100");
    assert_eq!(status["Groups"], "101 102");
}

#[test]
fn the_filter_refuses() {
    let kit = Kit::new();
    for script in ["unshare -U true", "unshare -m true", "mount -t tmpfs x /tmp"] {
        let (code, lines) = kit.run(script);
        assert_ne!(code, 0, "{script}");
        assert!(lines[0].contains("not permitted") || lines[0].contains("denied"), "{lines:?}");
    }
    // With the capability, the same calls are let through.
    let mut spec = kit.spec("unshare -m true && echo done");
    spec.sandbox.capabilities.insert("SYS_ADMIN".to_owned());
    assert_eq!(kit.run_spec(&spec), (0, vec!["done".to_owned()]));
}

#[test]
fn the_root_is_read_only_and_has_its_stubs() {
    let kit = Kit::new();
    let mut spec = kit.spec(
        "touch /new; touch /etc/hosts; touch /tmp/new && echo tmp; \
        cat /etc/hosts /etc/hostname /etc/resolv.conf; hostname; stat -c %a:%u:%g /etc /data /",
    );
    spec.sandbox.tmpfs.push(Tmpfs { target: "/tmp".into(), ..Tmpfs::default() });
    spec.sandbox.hosts = "10.0.0.1 db\n".into();
    spec.sandbox.resolv_conf = "nameserver 10.0.0.2\n".into();
    spec.sandbox.hostname = "web".into();
    let (code, lines) = kit.run_spec(&spec);
    assert_eq!(code, 0);
    let (errors, lines): (Vec<_>, Vec<_>) =
        lines.into_iter().partition(|line| line.starts_with("touch:"));
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(errors.iter().all(|line| line.contains("Read-only file system")), "{errors:?}");
    let expected = [
        "tmp",
        "10.0.0.1 db",
        "web",
        "nameserver 10.0.0.2",
        "web",
        "755:0:0",
        "750:100:101",
        "755:0:0",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn a_writable_layer_goes_with_the_instance() {
    let kit = Kit::new();
    let mut spec = kit.spec("echo x > /new && cat /new && echo y > /etc/hosts && cat /etc/hosts");
    let upper = spec.dir.join("writable");
    spec.sandbox.upper = Some(upper.clone());
    assert_eq!(kit.run_spec(&spec), (0, vec!["x".to_owned(), "y".to_owned()]));
    crate::kit::until("the layer is removed", || !upper.exists());
    kit.assert_clean();
}

#[test]
fn mounts_files_and_nested_targets() {
    let kit = Kit::new();
    let host = kit.dir.path().join("host");
    std::fs::create_dir_all(host.join("sub")).unwrap();
    std::fs::write(host.join("file"), "from the host\n").unwrap();
    let mut spec = kit.spec(
        "cat /srv/a/b/file; touch /srv/a/b/x; touch /rw/new && echo rw; cat /one; \
        cat /run/secrets/key; stat -c %a:%u:%g /run/secrets/key; \
        echo no > /run/secrets/key; pwd; touch /var/run/pid && ls /run; \
        stat -c %a:%s /small; mknod /rw/disk b 254 0",
    );
    let bind = |source: &std::path::Path, target: &str, read_only| BindMount {
        source: source.to_owned(),
        target: target.to_owned(),
        read_only,
        node: None,
    };
    spec.sandbox.mounts = vec![
        bind(&host, "/srv/a/b", true),
        bind(&host.join("sub"), "/rw", false),
        bind(&host.join("file"), "/one", true),
    ];
    std::fs::write(host.join("secret"), "hush\n").unwrap();
    spec.sandbox.files = vec![FileMount {
        source: host.join("secret"),
        target: "/var/run/secrets/key".into(),
        uid: 100,
        gid: 101,
        mode: 0o440,
    }];
    spec.sandbox.tmpfs = vec![
        Tmpfs { target: "/run".into(), size: None, mode: Some(0o755), ..Tmpfs::default() },
        Tmpfs { target: "/small".into(), size: Some(4096), mode: Some(0o700), ..Tmpfs::default() },
    ];
    spec.sandbox.cwd = "/made/up".into();
    let (_, lines) = kit.run_spec(&spec);
    let text = lines.join("\n");
    for expected in [
        "from the host\n",
        "touch: /srv/a/b/x: Read-only file system",
        "\nrw\n",
        "\nhush\n440:100:101\n",
        "can't create /run/secrets/key: Read-only file system",
        "\n/made/up\n",
        "\npid\nsecrets\n",
        "\n700:40",
        "mknod: /rw/disk: Operation not permitted",
    ] {
        assert!(format!("\n{text}\n").contains(expected), "{expected:?} in {text}");
    }
    assert!(host.join("sub/new").exists());
    kit.assert_clean();
}

#[test]
fn a_volume_cannot_lead_out() {
    let kit = Kit::new();
    let volume = kit.dir.path().join("volume");
    let outside = kit.dir.path().join("outside");
    std::fs::create_dir_all(&volume).unwrap();
    std::fs::create_dir_all(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, volume.join("link")).unwrap();
    let mut spec = kit.spec("true");
    spec.sandbox.mounts =
        vec![BindMount { source: volume, target: "/v".into(), read_only: false, node: None }];
    spec.sandbox.tmpfs = vec![Tmpfs { target: "/v/link/x".into(), ..Tmpfs::default() }];
    let refused = kit.runtime.start(&spec).unwrap_err().to_string();
    assert!(refused.contains("`/v/link/x`") && refused.contains("leads out"), "{refused}");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    kit.assert_clean();
}

#[test]
fn what_tells_of_the_host_is_hidden() {
    let kit = Kit::new();
    let (_, lines) = kit.run(
        "ls /sys/firmware | wc -l; cat /proc/kcore /proc/keys /proc/timer_list /proc/latency_stats \
        /proc/sched_debug /proc/interrupts 2>/dev/null | wc -c; \
        ls /proc/scsi /proc/acpi /proc/asound 2>/dev/null | grep -v : | wc -w; \
        echo 1 > /proc/sys/kernel/panic; touch /sys/x; ls /dev; \
        echo x > /dev/null && echo null; stat -f -c %b /dev/shm; cat /proc/1/cgroup",
    );
    let text = lines.join("\n");
    assert!(text.starts_with("0\n0\n0\n"), "{text}");
    // The test means something only if the host has what is hidden.
    assert!(std::fs::read("/proc/interrupts").is_ok_and(|text| !text.is_empty()));
    for expected in [
        "can't create /proc/sys/kernel/panic: Read-only file system",
        "touch: /sys/x: Read-only file system",
        "\ncore\nfd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n",
        "\nnull\n",
        "\n16384\n",
        "0::/\n",
    ] {
        assert!(format!("{text}\n").contains(expected), "{expected:?} in {text}");
    }
}

#[test]
fn only_lo_and_any_port() {
    let kit = Kit::new();
    let mut spec = kit.spec(
        "ip -o link | wc -l; ip -o addr show lo | grep -c 'inet 127.0.0.1'; \
        cat /proc/sys/net/ipv4/ip_unprivileged_port_start",
    );
    spec.sandbox.user = "1000".into();
    let (_, lines) = kit.run_spec(&spec);
    assert_eq!(lines, ["1", "1", "0"]);
}

#[test]
fn environment_and_standard_streams() {
    let kit = Kit::new();
    let mut spec = kit.spec("env | sort; echo err >&2; echo out > /dev/stdout; cat");
    spec.sandbox.env = vec!["A=b c".into(), "EMPTY=".into()];
    spec.sandbox.user = "app".into();
    let (code, lines) = kit.run_spec(&spec);
    assert_eq!(code, 0);
    for expected in ["A=b c", "EMPTY=", "HOME=/home/app", "HOSTNAME=localhost", "err", "out"] {
        assert!(lines.iter().any(|line| line == expected), "{expected}: {lines:?}");
    }
    assert!(lines.iter().any(|line| line.starts_with("PATH=/usr/local/sbin:")), "{lines:?}");
}

#[test]
fn links_serve_as_well_as_images() {
    // What kernels without EROFS get.
    let kit = Kit::new();
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open_with(folder.path(), Some(Backing::Links)).unwrap();
    let tree = crate::kit::image(&store, &[]);
    let lower = store.lower(&store.put_tree(&tree).unwrap()).unwrap();
    let Lower::Links { dir } = lower.clone() else { panic!("{lower:?}") };
    let mut spec = kit.spec("cd /made && echo x > y");
    spec.sandbox.lower = lower;
    spec.sandbox.cwd = "/made".into();
    let (code, lines) = kit.run_spec(&spec);
    assert_ne!(code, 0);
    assert!(lines[0].contains("Read-only file system"), "{lines:?}");
    assert!(!dir.join("made").exists() && !dir.join("proc").exists(), "the tree is untouched");
}

#[test]
fn groups_are_added_and_own_kernel_settings_set() {
    let kit = Kit::new();
    let mut spec = kit.spec(
        "id -G; cat /proc/sys/net/ipv4/ip_default_ttl /proc/sys/kernel/shmmni /proc/sys/fs/mqueue/msg_max",
    );
    spec.sandbox.groups = vec!["44".into(), "7".into()];
    let wanted =
        [("net.ipv4.ip_default_ttl", "77"), ("kernel.shmmni", "99"), ("fs.mqueue.msg_max", "11")];
    spec.sandbox.sysctls =
        wanted.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect();
    let host = || std::fs::read_to_string("/proc/sys/net/ipv4/ip_default_ttl").unwrap();
    let before = host();
    assert_eq!(kit.run_spec(&spec), (0, ["0 7 44", "77", "99", "11"].map(str::to_owned).to_vec()));
    assert_eq!(host(), before);
    for (name, value) in
        [("kernel.panic", "1"), ("net.nothing.here", "1"), ("net.ipv4.ip_default_ttl", "x")]
    {
        let mut spec = kit.spec("true");
        spec.sandbox.sysctls = [(name.to_owned(), value.to_owned())].into();
        let error = kit.runtime.start(&spec).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
    let mut spec = kit.spec("true");
    spec.sandbox.groups = vec!["nobody-has-it".into()];
    assert!(kit.runtime.start(&spec).unwrap_err().to_string().contains("nobody-has-it"));
    kit.assert_clean();
}

#[test]
fn without_the_filter_a_program_may_ask_for_more() {
    let kit = Kit::new();
    let script = "grep Seccomp: /proc/self/status; grep NoNewPrivs /proc/self/status";
    let mode = |unconfined: bool| {
        let mut spec = kit.spec(script);
        spec.sandbox.unconfined = unconfined;
        kit.run_spec(&spec).1
    };
    assert_eq!(mode(false), ["Seccomp:\t2", "NoNewPrivs:\t1"]);
    assert_eq!(mode(true), ["Seccomp:\t0", "NoNewPrivs:\t1"]);
    kit.assert_clean();
}
