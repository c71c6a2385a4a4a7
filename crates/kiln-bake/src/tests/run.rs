//! RUN: what is captured from a real overlay, and what a step is given.

use super::fake::{Kitchen, summary};

/// Lines that go and lines that come by a script.
fn changed(kitchen: &Kitchen, script: &str) -> (Vec<String>, Vec<String>) {
    let before = summary(&kitchen.tree("FROM os"));
    let after = summary(&kitchen.tree(&format!("FROM os\nRUN <<EOF\n{script}\nEOF")));
    let without = |all: &[String], others: &[String]| {
        all.iter().filter(|line| !others.contains(line)).cloned().collect()
    };
    (without(&before, &after), without(&after, &before))
}

#[test]
fn changes_are_captured() {
    let cases: &[(&str, &[&str], &[&str])] = &[
        ("write /x hello", &[], &["x 644 0:0 file 5"]),
        (
            "mkdir /a/b\nchmod 2750 /a/b\nchown 1 2 /a/b",
            &[],
            &["a 755 0:0 dir", "a/b 2750 1:2 dir"],
        ),
        ("rm /var/lib/data", &["var/lib/data 600 0:0 file 4"], &[]),
        (
            "chmod 4755 /var/lib/data",
            &["var/lib/data 600 0:0 file 4"],
            &["var/lib/data 4755 0:0 file 4"],
        ),
        ("chown 3 4 /etc", &["etc 755 0:0 dir"], &["etc 755 3:4 dir"]),
        (
            "mv /var/lib/data /var/moved",
            &["var/lib/data 600 0:0 file 4"],
            &["var/moved 600 0:0 file 4"],
        ),
        // A directory that is removed and made again shows nothing of the old one.
        (
            "rmdir /var/lib\nmkdir /var/lib\nwrite /var/lib/new n",
            &["var/lib/data 600 0:0 file 4"],
            &["var/lib/new 644 0:0 file 1"],
        ),
        (
            "rmdir /var/lib\nwrite /var/lib file",
            &["var/lib 755 0:0 dir", "var/lib/data 600 0:0 file 4"],
            &["var/lib 644 0:0 file 4"],
        ),
        (
            "rm /bin\nmkdir /bin\nwrite /bin/x y",
            &["bin 777 0:0 -> usr/bin"],
            &["bin 755 0:0 dir", "bin/x 644 0:0 file 1"],
        ),
        (
            "write /one 1\nln /one /two\nln /one /a",
            &[],
            &["a 644 0:0 file 1", "one 644 0:0 = a", "two 644 0:0 = a"],
        ),
        ("symlink /x/y /link", &[], &["link 777 0:0 -> /x/y"]),
        ("socket /s\nwrite /t t", &[], &["t 644 0:0 file 1"]),
        // Caches and logs are left out, their directories are not.
        (
            "mkdir /var/lib/apt/lists\nwrite /var/lib/apt/lists/x y\nmkdir /var/log\n\
             write /var/log/dpkg.log z\nmkdir /var/lib/dpkg\nwrite /var/lib/dpkg/status-old s\n\
             write /var/lib/dpkg/status s",
            &[],
            &[
                "var/lib/apt 755 0:0 dir",
                "var/lib/apt/lists 755 0:0 dir",
                "var/lib/dpkg 755 0:0 dir",
                "var/lib/dpkg/status 644 0:0 file 1",
                "var/log 755 0:0 dir",
            ],
        ),
        (
            "mkdir /root/.npm/_logs\nwrite /root/.npm/_logs/now-debug-0.log l\n\
             write /root/.wget-hsts h\nmkdir /home/u\nwrite /home/u/.wget-hsts h\n\
             write /home/.wget-hsts k\nmkdir /var/cache/man/de\nwrite /var/cache/man/de/index.db i",
            &[],
            &[
                "home 755 0:0 dir",
                "home/.wget-hsts 644 0:0 file 1",
                "home/u 755 0:0 dir",
                "root 755 0:0 dir",
                "root/.npm 755 0:0 dir",
                "root/.npm/_logs 755 0:0 dir",
                "var/cache 755 0:0 dir",
                "var/cache/man 755 0:0 dir",
                "var/cache/man/de 755 0:0 dir",
            ],
        ),
    ];
    let kitchen = Kitchen::new();
    let owned = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
    for (script, gone, new) in cases {
        assert_eq!(changed(&kitchen, script), (owned(gone), owned(new)), "{script}");
    }
}

#[test]
fn content_is_read_through_the_mount() {
    let kitchen = Kitchen::new();
    let tree = kitchen.tree("FROM os\nRUN chmod 755 /var/lib/data");
    assert_eq!(kitchen.content(&tree, "var/lib/data"), "data");
    let tree = kitchen.tree("FROM os\nRUN mv /var/lib/data /moved\nRUN mv /moved /again");
    assert_eq!(kitchen.content(&tree, "again"), "data");
    // Writing to one name of a file leaves the other name's content of the image below alone, as
    // overlays do without an index.
    let tree = kitchen.tree("FROM os\nRUN write /usr/bin/sh new");
    assert_eq!(kitchen.content(&tree, "usr/bin/sh"), "new");
    assert_eq!(kitchen.content(&tree, "usr/bin/zsh"), "a shell");
}

#[test]
fn attributes_are_kept_or_dropped() {
    let kitchen = Kitchen::new();
    let tree = kitchen.tree(
        "FROM os\nRUN <<EOF\nwrite /f x\nsetxattr user.a 1 /f\nsetxattr trusted.b 2 /f\n\
         mkdir /d\nsetxattr user.c 3 /d\nEOF",
    );
    let names = |path: &str| {
        let xattrs = &tree.get(path.as_bytes()).unwrap().xattrs;
        xattrs.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names("f"), ["user.a"]);
    assert_eq!(names("d"), ["user.c"]);
}

#[test]
fn what_a_step_is_given() {
    let mut kitchen = Kitchen::new();
    kitchen.args.insert("GIVEN".into(), Some("g".into()));
    kitchen.args.insert("HTTP_PROXY".into(), Some("http://p".into()));
    kitchen.args.insert("UNSET".into(), None);
    kitchen
        .bake(
            "ARG GLOBAL=glob\nFROM os\nARG GIVEN=default\nARG DEFAULT=\"a $GIVEN\"\nARG GLOBAL\n\
             ARG UNSET\nARG TARGETOS\nENV OWN=${DEFAULT}!\nUSER app:staff\nWORKDIR /work\n\
             RUN echo one\nENV HOME=/elsewhere\nRUN --network=default echo two\n\
             RUN <<EOF\n#!/bin/sh\necho three\nEOF",
        )
        .unwrap();
    let specs = kitchen.fake.specs.lock().unwrap();
    let one = &specs[0];
    let env: Vec<&str> = one.env.iter().map(String::as_str).collect();
    assert_eq!(
        env,
        [
            "LANG=C",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "GIVEN=g",
            "DEFAULT=a g",
            "GLOBAL=glob",
            "TARGETOS=linux",
            "OWN=a g!",
            "SOURCE_DATE_EPOCH=1577836800",
            "TZ=UTC",
            "LC_ALL=C.UTF-8",
            "HOME=/home/app",
        ]
    );
    assert_eq!((one.cwd.as_str(), one.user.as_str()), ("/work", "app:staff"));
    assert!(!one.network && !one.rootful && one.hostname == "kiln" && one.mounts.is_empty());
    let two = &specs[1];
    assert!(two.network);
    assert!(two.env.contains(&"HOME=/elsewhere".to_owned()));
    assert!(two.env.contains(&"HTTP_PROXY=http://p".to_owned()));
    assert_eq!(specs[2].argv, ["/dev/pipes/EOF"]);
    assert!(specs[2].mounts[0].read_only);
}

#[test]
fn a_failing_step_says_all() {
    let kitchen = Kitchen::new();
    let mut script = String::new();
    for n in 0..30 {
        script.push_str(&format!("echo line {n}\n"));
    }
    let dockerfile = format!("FROM os\nENV A=b\n\nRUN <<EOF\n{script}exit 2\nEOF\nRUN echo never");
    let error = kitchen.error(&dockerfile);
    assert!(!error.is_usage());
    let text = error.to_string();
    let head = "bake step 3/4 `RUN <<EOF` at app/Dockerfile:4 failed with exit status 2";
    assert!(text.starts_with(head), "{text}");
    assert!(text.contains("| line 29") && text.contains("| line 10") && !text.contains("line 9\n"));
    assert_eq!(kitchen.ran(), 1);
    assert!(!text.contains("hint"), "{text}");
    // A step without network that asks for one is told how.
    let asks = |flag: &str| {
        let script = "echo Temporary failure resolving 'x'\nexit 1";
        kitchen.error(&format!("FROM os\nRUN {flag}<<EOF\n{script}\nEOF")).to_string()
    };
    assert!(asks("").ends_with("unless it says `RUN --network=default …`"), "{}", asks(""));
    assert!(!asks("--network=default ").contains("hint"));
    kitchen.fake.ran.store(1, std::sync::atomic::Ordering::Relaxed);
    // A failure is not remembered.
    kitchen.error(&dockerfile);
    assert_eq!(kitchen.ran(), 2);
    // A command that cannot be started at all is a failure too.
    let error = kitchen.error("FROM os\nRUN [\"/none\"]");
    assert!(error.to_string().contains("cannot start"), "{error}");
    // The store's folder for new objects stays, empty.
    for left in std::fs::read_dir(kitchen.dir.path().join("root/tmp")).unwrap() {
        let left = left.unwrap().path();
        let inside = std::fs::read_dir(&left).unwrap().count();
        assert!(left.to_string_lossy().contains("/objects.") && inside == 0, "{}", left.display());
    }
}
