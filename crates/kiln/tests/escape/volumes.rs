//! Data that is a trap: links where something is to be mounted, and what a new volume takes over.

use std::os::unix::fs::{FileTypeExt as _, symlink};

use crate::common::{project, world};
use crate::ways::{log, probed, verdicts};

#[test]
fn links_at_mount_targets() {
    let world = world();
    let outside = world.home().join("outside");
    std::fs::create_dir(&outside).unwrap();
    // What an earlier program left in the volume, which is a folder of the host here.
    let left = world.home().join("left");
    for (number, to) in
        ["/proc", "../proc", "/sys/kernel", "/proc/self/fd/3", "/", "../../../../../outside"]
            .into_iter()
            .map(str::to_owned)
            .chain([outside.to_str().unwrap().to_owned()])
            .enumerate()
    {
        for below in [
            "    volumes: ['LEFT:/v', 'other:/v/sub']\nvolumes: { other: {} }\n",
            "    volumes: ['LEFT:/v']\n    tmpfs: [/v/sub, /tmp]\n",
            "    volumes: ['LEFT:/v']\n    configs: [{ source: c, target: /v/sub/file }]\n\
             configs: { c: { file: ./c } }\n",
        ] {
            let _ = std::fs::remove_dir_all(&left);
            std::fs::create_dir(&left).unwrap();
            symlink(&to, left.join("sub")).unwrap();
            let keys = below.replace("LEFT", left.to_str().unwrap());
            let compose =
                format!("services:\n  a:\n    build: ./a\n    command: [probe, all, stay]\n{keys}");
            let project = probed(&world, &format!("left{number}"), &compose, &[("a", "")]);
            project.write("c", "content");
            let output = world.kiln_in(&project, ["up"]);
            assert_eq!(output.code, Some(4), "{to}: {keys}\n{output}");
            for part in ["`/v/sub", "link"] {
                assert!(output.stderr.contains(part), "`{part}` is not said\n{output}");
            }
            assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
        }
    }
    // A link that stays in the volume is the volume's own affair.
    let _ = std::fs::remove_dir_all(&left);
    std::fs::create_dir_all(left.join("real")).unwrap();
    symlink("real", left.join("sub")).unwrap();
    let compose = format!(
        "services:\n  a:\n    build: ./a\n    command: [probe, all, stay]\n    \
         volumes: ['{}:/v']\n    tmpfs: [/v/sub, /tmp]\n",
        left.display()
    );
    let project = probed(&world, "inside", &compose, &[("a", "")]);
    world.kiln_in(&project, ["up"]).expect_done();
    let said = verdicts(&log(&world, &project, "a", "END"));
    assert!(said.values().all(|verdict| verdict == "held"), "{said:#?}");
}

#[test]
fn nothing_is_mounted_over_what_hides_the_host() {
    let world = world();
    for target in ["/proc", "/proc/sys", "/proc/self/attr", "/sys", "/dev", "/x/../proc/sys/kernel"]
    {
        for keys in [format!("    volumes: ['v:{target}']\n"), format!("    tmpfs: ['{target}']\n")]
        {
            let volumes = if keys.contains("volumes") { "volumes: { v: {} }\n" } else { "" };
            let compose = format!(
                "services:\n  a:\n    image: busybox\n    command: [sleep, '9']\n{keys}{volumes}"
            );
            let output = world.kiln_in(&project(&world, "over", &compose), ["up"]);
            assert!(matches!(output.code, Some(2 | 4)), "{target}\n{output}");
        }
    }
}

#[test]
fn a_new_volume_takes_nothing_of_the_host() {
    let world = world();
    let outside = world.home().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("canary"), "of the host").unwrap();
    let compose = "services:\n  a:\n    build: ./a\n    command: [sleep, '1000']\n    \
                   volumes: ['one:/one', 'two:/two', 'three:/deep/../../../../three']\n\
                   volumes: { one: {}, two: {}, three: {} }\n";
    let project = project(&world, "fill", compose);
    std::fs::create_dir_all(project.path("a/rootfs/two")).unwrap();
    symlink(&outside, project.path("a/rootfs/one")).unwrap();
    symlink(&outside, project.path("a/rootfs/two/out")).unwrap();
    symlink(outside.join("canary"), project.path("a/rootfs/two/canary")).unwrap();
    project.write(
        "a/Dockerfile",
        "FROM busybox\nCOPY rootfs/ /\nRUN mkfifo /two/fifo && mknod /two/disk b 8 0\n",
    );
    let output = world.kiln_in(&project, ["up"]);
    if output.success() {
        let script = "cat /one/* /two/* /two/*/* /three/* 2> /dev/null | grep -c 'of the host'";
        world.kiln_in(&project, ["exec", "a", "timeout", "-s", "KILL", "3", "sh", "-c", script]);
    }
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
    let volumes = world.root().join("volumes");
    let mut files = vec![volumes];
    while let Some(path) = files.pop() {
        let meta = std::fs::symlink_metadata(&path).unwrap();
        assert!(!meta.file_type().is_block_device(), "{} is a disk", path.display());
        if meta.is_dir() {
            files.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if meta.is_file() {
            assert_ne!(std::fs::read(&path).unwrap(), b"of the host", "{}", path.display());
        }
    }
}
