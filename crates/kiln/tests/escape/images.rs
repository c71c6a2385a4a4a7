//! Images that are traps in themselves: links in place of the places that the runtime makes its
//! own, and account files that are none.

use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use kiln_testkit::{Output, Project, World};

use crate::common::{project, world};
use crate::ways::{log, probe, verdicts};

/// Nothing that a stranger leaves in an image makes `up` wait so long.
const SOON: Duration = Duration::from_secs(20);

/// A project whose image is what `fill` puts into the folder that becomes the root, and then a
/// busybox and the probe.
fn trap(world: &World, lines: &str, keys: &str, fill: impl Fn(&std::path::Path)) -> Project {
    let compose = format!("name: trap\nservices:\n  a:\n    build: ./a\n{keys}");
    let project = project(world, "trap", &compose);
    let root = project.path("a/rootfs");
    let _ = std::fs::remove_dir_all(&root);
    std::fs::create_dir_all(&root).unwrap();
    fill(&root);
    project.write_program("a/probe", probe());
    project.write(
        "a/Dockerfile",
        format!(
            "FROM busybox AS tools\nFROM scratch\nCOPY rootfs/ /\n\
             COPY --from=tools /bin/busybox /bin/busybox\nCOPY --from=tools /bin/busybox /bin/sh\n\
             COPY probe /bin/\n{lines}"
        ),
    );
    project
}

#[track_caller]
fn up(world: &World, project: &Project) -> Output {
    let begun = Instant::now();
    let output = world.kiln_in(project, ["up"]);
    assert!(begun.elapsed() < SOON, "it was waited for\n{output}");
    output
}

/// Demands that the image is refused, and that the words are said.
#[track_caller]
fn refused(world: &World, project: &Project, words: &[&str]) {
    let output = up(world, project);
    assert!(matches!(output.code, Some(1 | 2 | 4)), "it was let through\n{output}");
    for word in words {
        assert!(output.stderr.contains(word), "`{word}` is not said\n{output}");
    }
}

const LOOK: &str = "CMD [\"probe\", \"all\", \"stay\"]\n";

#[test]
fn links_in_place_of_system_folders() {
    let world = world();
    for (name, to) in [("proc", "p"), ("sys", "../s"), ("dev", "/d"), ("proc", "none/where")] {
        let fill = |root: &std::path::Path| {
            std::fs::create_dir_all(root.join(to.trim_start_matches(['.', '/']))).unwrap();
            symlink(to, root.join(name)).unwrap();
        };
        let named = format!("`/{name}`");
        refused(&world, &trap(&world, LOOK, "", fill), &[&named, "link"]);
        let step = format!("RUN [\"probe\", \"all\"]\n{LOOK}");
        refused(&world, &trap(&world, &step, "", fill), &[&named, "link"]);
    }
    let file = |root: &std::path::Path| std::fs::write(root.join("proc"), "").unwrap();
    refused(&world, &trap(&world, LOOK, "", file), &["`/proc`", "a file"]);
}

#[test]
fn an_import_with_such_a_link_is_refused() {
    let (here, there) = (world(), world());
    let project = trap(&here, LOOK, "", |root| symlink("/p", root.join("proc")).unwrap());
    here.kiln_in(&project, ["export", "a", "--format", "oci-archive", "-o", "a.tar"]).expect_done();
    let archive = project.path("a.tar");
    let import = there.kiln(["import", archive.to_str().unwrap(), "--name", "a"]).expect_code(4);
    import.expect_stderr("`/proc`");
}

#[test]
fn links_elsewhere_lead_nowhere() {
    let world = world();
    let outside = world.home().join("outside");
    std::fs::create_dir(&outside).unwrap();
    // A link of many steps up, and then down to a folder of the host.
    let out = format!("../../../../../../../..{}", outside.display());
    for (lines, keys) in [
        (LOOK.to_owned(), String::new()),
        (format!("WORKDIR /etc/deep/er\n{LOOK}"), String::new()),
        (format!("RUN touch /etc/made\n{LOOK}"), String::new()),
        (LOOK.to_owned(), "    working_dir: /etc/new\n    tmpfs: [/etc/t, /tmp]\n".to_owned()),
    ] {
        let project = trap(&world, &lines, &keys, |root| {
            symlink(&out, root.join("etc")).unwrap();
            std::fs::create_dir_all(root.join(outside.strip_prefix("/").unwrap())).unwrap();
        });
        let output = up(&world, &project);
        if output.success() {
            let said = verdicts(&log(&world, &project, "a", "END"));
            assert_eq!(said["workdir"], "held");
        }
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "{output}");
    }
}

#[test]
fn dev_null_as_a_link_hides_nothing_less() {
    let world = world();
    let project = trap(&world, LOOK, "", |root| {
        std::fs::create_dir(root.join("dev")).unwrap();
        symlink("/proc/sysrq-trigger", root.join("dev/null")).unwrap();
    });
    up(&world, &project).expect_done();
    let said = verdicts(&log(&world, &project, "a", "END"));
    let escaped: Vec<_> = said.iter().filter(|(_, verdict)| *verdict != "held").collect();
    assert!(escaped.is_empty(), "{escaped:#?}");
}

#[test]
fn account_files_that_are_none() {
    let world = world();
    let user = "USER app\n";
    for (lines, words) in [
        (
            "RUN busybox rm -f /etc/passwd && busybox mkfifo /etc/passwd\n",
            ["/etc/passwd", "regular"],
        ),
        ("RUN busybox ln -sf /dev/zero /etc/passwd\n", ["/etc/passwd", "regular"]),
        ("RUN busybox ln -sf /proc/kmsg /etc/group\n", ["/etc/group", "stored"]),
        (
            "RUN busybox dd if=/dev/zero of=/etc/passwd bs=1M seek=1500 count=0\n",
            ["/etc/passwd", "longer"],
        ),
        (
            "RUN busybox mkdir /x && busybox rm -f /etc/group && busybox mv /x /etc/group\n",
            ["/etc/group", "regular"],
        ),
    ] {
        let fill = |root: &std::path::Path| {
            std::fs::create_dir(root.join("etc")).unwrap();
            std::fs::write(root.join("etc/passwd"), "app:x:70:70::/:/bin/sh\n").unwrap();
        };
        refused(&world, &trap(&world, &format!("{lines}{user}{LOOK}"), "", fill), &words);
        let limited = "    mem_limit: 64m\n    user: '0'\n";
        refused(&world, &trap(&world, &format!("{lines}{LOOK}"), limited, fill), &words);
        let step = format!("{lines}{user}RUN [\"probe\", \"all\"]\n{LOOK}");
        refused(&world, &trap(&world, &step, "", fill), &words);
    }
}

#[test]
fn users_who_are_not_who_they_seem() {
    let world = world();
    let passwd = |root: &std::path::Path| {
        std::fs::create_dir(root.join("etc")).unwrap();
        let text = "root:x:0:0::/:/bin/sh\n1000:x:0:0::/:/bin/sh\nlow:x:4294967295:0::/:\n";
        std::fs::write(root.join("etc/passwd"), text).unwrap();
    };
    let id = "CMD [\"busybox\", \"sh\", \"-c\", \"echo uid=$(busybox id -u); exec busybox sleep 1000\"]\n";
    let project = trap(&world, id, "    user: '1000'\n", passwd);
    up(&world, &project).expect_done();
    assert!(log(&world, &project, "a", "uid=").contains("uid=1000"));
    for user in ["4294967295", "4294967296", "low", "0:4294967295", "2147483648"] {
        let project = trap(&world, id, &format!("    user: '{user}'\n"), passwd);
        refused(&world, &project, &["user"]);
    }
}

#[test]
fn the_runtime_as_the_program() {
    let world = world();
    for keys in ["", "    init: true\n", "    cap_add: [SYS_PTRACE]\n    init: true\n"] {
        let project = trap(&world, "CMD [\"/bin/self\"]\n", keys, |root| {
            std::fs::create_dir(root.join("bin")).unwrap();
            symlink("/proc/self/exe", root.join("bin/self")).unwrap();
        });
        // What it then runs is a copy in memory: a program of the instance's like any other.
        let before = std::fs::metadata(crate::common::KILN).unwrap();
        up(&world, &project);
        let after = std::fs::metadata(crate::common::KILN).unwrap();
        assert_eq!(before.modified().unwrap(), after.modified().unwrap());
    }
    let look = "CMD [\"busybox\", \"sh\", \"-c\", \"echo exe=$(busybox readlink /proc/1/exe); \
                exec busybox sleep 1000\"]\n";
    let keys = "    init: true\n    cap_add: [SYS_PTRACE]\n";
    let project = trap(&world, look, keys, |_| {});
    up(&world, &project).expect_done();
    let said = log(&world, &project, "a", "exe=");
    assert!(said.contains("exe=/memfd:kiln"), "{said}");
    let step = "RUN busybox readlink /proc/1/exe > /exe || true\n";
    let project =
        trap(&world, &format!("{step}CMD [\"busybox\", \"sleep\", \"1000\"]\n"), "", |_| {});
    up(&world, &project).expect_done();
    let said =
        world.kiln_in(&project, ["exec", "a", "busybox", "cat", "/exe"]).expect_done().stdout;
    assert!(said.is_empty() || said.starts_with("/memfd:kiln"), "{said}");
}

#[test]
fn what_a_step_mounts_stays_where_it_belongs() {
    let world = world();
    let outside = world.home().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("canary"), "of the host").unwrap();
    let up_and_out = format!("../../../../../../../../../..{}", outside.display());
    let compose = "services:\n  a: { build: ./a, command: [sleep, '1000'] }\n";
    for lines in [
        format!("RUN --mount=type=cache,id={up_and_out},target=/c busybox touch /c/made\n"),
        format!(
            "RUN --mount=type=cache,target=/c/../../../../..{} busybox true\n",
            outside.display()
        ),
        "COPY link/ /link/\nRUN --mount=type=bind,source=link/out,target=/m busybox cp /m/canary /got || busybox true\n".to_owned(),
        "FROM busybox AS other\nCOPY link/ /link/\nFROM busybox\n\
                 RUN --mount=type=bind,from=other,source=/link/out,target=/m busybox cp /m/canary /got || busybox true\n".to_owned(),
        "ADD archive.tar /\n".to_owned(),
    ] {
        let project = project(&world, "mounts", compose);
        std::fs::create_dir_all(project.path("a/link")).unwrap();
        let link = project.path("a/link/out");
        let _ = std::fs::remove_file(&link);
        symlink(&outside, &link).unwrap();
        archive(&project.path("a/archive.tar"), &outside);
        project.write("a/Dockerfile", format!("FROM busybox\n{lines}"));
        let output = world.kiln_in(&project, ["up"]);
        if output.success() {
            world.kiln_in(&project, ["exec", "a", "test", "-e", "/got"]).expect_code(1);
        }
        let left = std::fs::read_dir(&outside).unwrap().count();
        assert_eq!(left, 1, "{lines} wrote to the host\n{output}");
    }
}

/// A link, and a file through it.
fn archive(path: &std::path::Path, outside: &std::path::Path) {
    let dir = tempfile::tempdir().unwrap();
    symlink(outside, dir.path().join("out")).unwrap();
    let tar = |args: &[&str]| {
        let mut tar = std::process::Command::new("tar");
        assert!(tar.args(args).arg("-C").arg(dir.path()).arg("out").status().unwrap().success());
    };
    let _ = std::fs::remove_file(path);
    let name = path.to_str().unwrap();
    tar(&["-cf", name]);
    std::fs::remove_file(dir.path().join("out")).unwrap();
    std::fs::create_dir(dir.path().join("out")).unwrap();
    std::fs::write(dir.path().join("out/written"), "by the archive").unwrap();
    tar(&["-rf", name]);
}
