//! What whoever starts the agent has set for himself reaches neither images nor instances: umask,
//! ACL, nice value, limits, personality, scheduler, signals, control groups, and what else a
//! process inherits.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{PATIENCE, project, world};
use kiln_testkit::{Call, Project, World, wait_until};
use serde_json::Value;

/// Prints of the calling process what it may have inherited: of `stat` the fields from the priority
/// to the number of threads, and scheduling.
const TELL: &str = "umask; pwd; env | sort; cat /proc/self/limits /proc/self/personality \
    /proc/self/oom_score_adj /proc/self/coredump_filter /proc/self/timerslack_ns; \
    grep -E '^(Umask|Groups|Sig(Blk|Ign|Cgt)|Cap|NoNewPrivs|Seccomp|Speculation|Cpus_allowed|Mems_allowed|CoreDumping|THP)' \
    /proc/self/status; cut -d' ' -f18-19,40-41 /proc/self/stat; ls /proc/self/fd; \
    cut -d: -f2- /proc/self/cgroup | sed 's/exec-.*//'";

/// Folders that the runtime and the bake make for mounts, and whose modes show in the image.
const DOCKERFILE: &str = "FROM busybox
RUN --mount=type=cache,target=/opt/app/cache echo built > /opt/app/result
RUN --mount=type=tmpfs,target=/t/t touch /t/x
RUN --mount=type=bind,target=/b/b touch /b/x
RUN touch /f && mkdir -p /new/sub && mkfifo /p && echo x > /srv.txt
WORKDIR /w/d
COPY tell Dockerfile /in/
RUN touch h; sh /in/tell > /told
USER 1000
RUN cat /opt/app/result; sh /in/tell > /tmp/told; ls -ln /tmp/told
";

const COMPOSE: &str = "name: inherit
services:
  a:
    build: ./ctx
    user: '1000'
    working_dir: /place/here
    command: [sh, -c, 'sh /in/tell; stat -c \"%n %A %u %g\" / /srv /srv/deep /srv/deep/vol /etc/app /etc/app/c.conf /place /place/here /run/x /run/x/t /tmp; cat /etc/app/c.conf; echo all told; exec sleep 1000']
    volumes: ['vol:/srv/deep/vol']
    tmpfs: ['/run/x/t']
    configs: [{ source: c, target: /etc/app/c.conf }]
configs: { c: { content: 'hello config' } }
volumes: { vol: {} }
";

/// A control group of every hierarchy in which one can be made, and gone with the test.
struct Groups(Vec<PathBuf>);

impl Groups {
    fn make() -> Self {
        let name = format!("kiln-test-inherit-{}", std::process::id());
        let mut groups = Vec::new();
        for (hierarchy, file, value) in
            [("pids", "pids.max", "5000"), ("cpu", "cpu.shares", "512"), ("unified", "", "")]
        {
            let path = Path::new("/sys/fs/cgroup").join(hierarchy).join(&name);
            if fs::create_dir(&path).is_err() {
                continue;
            }
            if !file.is_empty() {
                fs::write(path.join(file), value).unwrap();
            }
            groups.push(path);
        }
        Self(groups)
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for path in &self.0 {
            let left = fs::remove_dir(path);
            assert!(left.is_ok() || std::thread::panicking(), "{}: {left:?}", path.display());
        }
    }
}

/// A shell that sets all that can be set, and then runs the call.
fn from_an_odd_shell(call: &Call, groups: &Groups) -> Call {
    let groups: Vec<String> =
        groups.0.iter().map(|path| format!("{}/cgroup.procs", path.display())).collect();
    let script = format!(
        "set -e; umask 077; trap '' USR1 HUP QUIT
         for file in {}; do echo $$ > $file; done
         echo 300 > /proc/self/oom_score_adj; echo 0x7f > /proc/self/coredump_filter
         echo 7777777 > /proc/self/timerslack_ns
         exec 9> open-file
         exec prlimit --core=unlimited: --stack=4194304: --memlock=32768: --msgqueue=1000: \
            --nofile=300: --nproc=5000: --sigpending=100: --cpu=10000: --fsize=10000000000: \
            --rss=10000000000: --data=10000000000: --as=100000000000: \
          nice -n 7 ionice -c 3 chrt -b 0 taskset -c 0 setarch -R \
          setpriv --regid 1234 --keep-groups --securebits=+no_setuid_fixup \
            --inh-caps=+net_raw --ambient-caps=+net_raw \
          env --block-signal=USR2 --ignore-signal=USR1 {}",
        groups.join(" "),
        call.line(),
    );
    let odd = Call::new("bash").args(["-c", &script]);
    [
        ("TZ", "Asia/Tokyo"),
        ("LC_ALL", "C"),
        ("HOME", "/nowhere"),
        ("TMPDIR", "/nowhere"),
        ("ODD", "1"),
    ]
    .iter()
    .fold(odd, |odd, (name, value)| odd.env(name, value))
}

fn write(world: &World) -> Project {
    let project = project(world, "inherit", COMPOSE);
    project.write("ctx/Dockerfile", DOCKERFILE).write("ctx/tell", TELL);
    project
}

/// The folder around the root hands a default ACL and a group down.
fn hand_down(dir: &Path) {
    // Version 2; owner, group and others: everything.
    let mut acl = vec![2, 0, 0, 0];
    for tag in [1, 4, 32] {
        acl.extend([tag, 0, 7, 0, 255, 255, 255, 255]);
    }
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(dir, "system.posix_acl_default", &acl, flags).unwrap();
    std::os::unix::fs::chown(dir, None, Some(1234)).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o2755);
    rustix::fs::chmod(dir, mode).unwrap();
}

fn image(json: &Value) -> Value {
    let image = &json["images"]["a"];
    assert!(image["tree"].is_string(), "{json}");
    serde_json::json!({ "tree": image["tree"], "config": image["config"] })
}

/// What the instance said of itself, and what a command in it says.
fn told(world: &World, project: &Project) -> (String, String) {
    let logs = || world.kiln_in(project, ["logs", "a"]).expect_done().stdout;
    let log = wait_until(PATIENCE, "the instance's report", || {
        let text = logs();
        text.contains("all told").then_some(text)
    });
    let exec = world.kiln_in(project, ["exec", "a", "sh", "/in/tell"]).expect_done();
    (log, exec.stdout)
}

#[test]
fn what_the_starter_has_set_reaches_nothing() {
    let plain = world();
    let first = write(&plain);
    let expected = image(&plain.kiln_in(&first, ["bake", "--json"]).expect_done().json());
    plain.kiln_in(&first, ["up"]).expect_done();
    let expected_told = told(&plain, &first);

    let groups = Groups::make();
    let odd = world();
    hand_down(odd.home());
    fs::rename(odd.root(), odd.home().join("copied")).unwrap();
    // Made again, so that it inherits; the base comes along.
    fs::create_dir(odd.root()).unwrap();
    for part in ["objects", "cache", "refs", "format"] {
        fs::rename(odd.home().join("copied").join(part), odd.root().join(part)).unwrap();
    }
    let second = write(&odd);
    let bake = from_an_odd_shell(&odd.call(["bake", "--json"]), &groups).dir(second.dir());
    let baked = image(&bake.run().unwrap().expect_done().json());
    assert_eq!(baked, expected, "{}", trees(&plain, &odd));
    let up = from_an_odd_shell(&odd.call(["up"]), &groups).dir(second.dir());
    up.run().unwrap().expect_done();
    let (log, exec) = told(&odd, &second);
    assert_eq!(log, expected_told.0);
    assert_eq!(exec, expected_told.1);
    for process in odd.processes() {
        let holds = fs::read_dir(format!("/proc/{}/fd", process.pid)).into_iter().flatten();
        let mut files = holds.flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
        let kept = files.find(|file| file.ends_with("open-file"));
        assert_eq!(kept, None, "{process:?}");
    }
    for line in ["Max open files            1024", "SigIgn:\t0000000000000000", "hello config"] {
        assert!(log.contains(line), "{line} in {log}");
    }
    // Before the control groups go.
    drop((plain, odd));
}

/// For the message of a difference: where both lie.
fn trees(one: &World, other: &World) -> String {
    format!("trees of {} and {}", one.root().display(), other.root().display())
}
