//! COPY: what lands where, with which mode and owner.

use super::fake::{Kitchen, summary};
use crate::Progress;

fn context(kitchen: &Kitchen) {
    kitchen.write("a", "a").write("b", "bb").write("dir/x", "x").write("dir/sub/y", "y");
}

#[test]
fn destinations() {
    let cases: &[(&str, &[&str])] = &[
        ("COPY a /x", &["x 644 0:0 file 1"]),
        ("COPY a /x/", &["x 755 0:0 dir", "x/a 644 0:0 file 1"]),
        ("COPY a /x/.", &["x 755 0:0 dir", "x/a 644 0:0 file 1"]),
        ("COPY a x/y", &["x 755 0:0 dir", "x/y 644 0:0 file 1"]),
        ("COPY a .", &["a 644 0:0 file 1"]),
        ("COPY a /", &["a 644 0:0 file 1"]),
        ("COPY dir/sub /x", &["x 755 0:0 dir", "x/y 644 0:0 file 1"]),
        ("COPY dir/sub /x/", &["x 755 0:0 dir", "x/y 644 0:0 file 1"]),
        ("COPY a b /x/", &["x 755 0:0 dir", "x/a 644 0:0 file 1", "x/b 644 0:0 file 2"]),
        ("COPY [ab] /x/", &["x 755 0:0 dir", "x/a 644 0:0 file 1", "x/b 644 0:0 file 2"]),
        ("COPY di*/s* /x/", &["x 755 0:0 dir", "x/y 644 0:0 file 1"]),
        ("COPY a none* /x/", &["x 755 0:0 dir", "x/a 644 0:0 file 1"]),
        ("COPY none* /x/", &[]),
        ("WORKDIR /w\nCOPY a x", &["w 755 0:0 dir", "w/x 644 0:0 file 1"]),
        ("WORKDIR /w\nCOPY a .", &["w 755 0:0 dir", "w/a 644 0:0 file 1"]),
        (
            "WORKDIR /w\nWORKDIR v/../u\nCOPY a ../x",
            &["w 755 0:0 dir", "w/u 755 0:0 dir", "w/x 644 0:0 file 1"],
        ),
        // The second replaces the first.
        ("COPY a /x\nCOPY b /x", &["x 644 0:0 file 2"]),
        // Into what is a directory by now.
        (
            "COPY dir/sub /x\nCOPY a /x",
            &["x 755 0:0 dir", "x/a 644 0:0 file 1", "x/y 644 0:0 file 1"],
        ),
        ("COPY --chown=7 a /x", &["x 644 7:7 file 1"]),
        (
            "COPY --chown=7:8 dir/sub /x/y",
            &["x 755 7:8 dir", "x/y 755 7:8 dir", "x/y/y 644 7:8 file 1"],
        ),
        ("COPY --chmod=600 a /x", &["x 600 0:0 file 1"]),
        ("COPY --chmod=u+x,go= a /x", &["x 700 0:0 file 1"]),
        ("COPY --chmod=a=rX dir/sub /x", &["x 755 0:0 dir", "x/y 444 0:0 file 1"]),
        ("COPY <<EOF /x\nhi\nEOF", &["x 644 0:0 file 3"]),
        (
            "COPY <<one <<two a /x/\n1\none\n22\ntwo",
            &[
                "x 755 0:0 dir",
                "x/a 644 0:0 file 1",
                "x/one 644 0:0 file 2",
                "x/two 644 0:0 file 3",
            ],
        ),
        ("ADD a /x", &["x 644 0:0 file 1"]),
    ];
    let kitchen = Kitchen::new();
    context(&kitchen);
    for (instructions, expected) in cases {
        let tree = kitchen.tree(&format!("FROM scratch\n{instructions}"));
        assert_eq!(summary(&tree), *expected, "{instructions}");
    }
}

#[test]
fn destinations_follow_links_of_the_image() {
    let kitchen = Kitchen::new();
    context(&kitchen);
    let tree = kitchen.tree("FROM os\nCOPY a /bin/tool\nCOPY a /bin/\nCOPY dir /bin/d");
    for path in ["usr/bin/tool", "usr/bin/a", "usr/bin/d/x", "usr/bin/d/sub/y"] {
        assert!(tree.get(path.as_bytes()).is_some(), "{path}");
    }
    let link = |line: &String| line.starts_with("bin 777");
    assert!(summary(&tree).iter().any(link));
}

#[test]
fn names_are_those_of_the_image() {
    let kitchen = Kitchen::new();
    context(&kitchen);
    let tree = kitchen.tree(
        "FROM os\nCOPY --chown=app a /1\nCOPY --chown=app:staff a /2\nCOPY --chown=app:9 a /3\n\
         USER app\nWORKDIR /home/app",
    );
    let lines = summary(&tree);
    for line in ["1 644 100:101 file 1", "2 644 100:50 file 1", "3 644 100:9 file 1"] {
        assert!(lines.iter().any(|found| found == line), "{line}: {lines:?}");
    }
    assert!(lines.contains(&"home/app 755 100:101 dir".to_owned()), "{lines:?}");
    let error = kitchen.error("FROM os\nCOPY a /x\nCOPY --chown=nobody a /x");
    assert_eq!(error.to_string(), "app/Dockerfile:3: no user `nobody` in the image's /etc/passwd");
    assert!(error.is_usage());
}

/// As BuildKit has it: whoever is not there is root, and a group that is not there is the user's.
#[test]
fn a_workdir_of_an_unknown_user_is_roots() {
    let kitchen = Kitchen::new();
    for (base, user, owner) in [
        ("os", "nobody", "0:0"),
        ("os", "nobody:nobody", "0:0"),
        ("os", "nobody:staff", "0:50"),
        ("os", "nobody:9", "0:9"),
        ("os", "app:nobody", "100:101"),
        ("os", "7:nobody", "7:7"),
        ("os", ":staff", "0:50"),
        ("scratch", "app", "0:0"),
        ("scratch", "app:app", "0:0"),
        ("scratch", "7", "7:7"),
    ] {
        let tree = kitchen.tree(&format!("FROM {base}\nUSER {user}\nWORKDIR /srv/{user}"));
        let line = format!("srv/{user} 755 {owner} dir");
        assert!(summary(&tree).contains(&line), "{base} {user}: {:?}", summary(&tree));
    }
}

#[test]
fn paths_that_are_too_long_are_named_with_their_step() {
    let kitchen = Kitchen::new();
    context(&kitchen);
    let name = "n".repeat(256);
    let deep = format!("/{}", ["d"; 2048].join("/"));
    for (line, instruction) in [
        (2, format!("WORKDIR /a/{name}")),
        (2, format!("COPY a /{name}")),
        (2, format!("COPY a /{name}/")),
        (2, format!("COPY a {deep}/a")),
        (2, format!("WORKDIR {deep}")),
        (3, format!("WORKDIR {}\nCOPY dir/ {}", &deep[..4090], &deep[..4093])),
    ] {
        let error = kitchen.error(&format!("FROM scratch\n{instruction}")).to_string();
        let place = format!("app/Dockerfile:{line}: the path `/");
        assert!(error.starts_with(&place) && error.contains("too long"), "{error}");
        assert!(error.len() < 300, "{error}");
    }
    kitchen.tree(&format!("FROM scratch\nCOPY a /{}\nWORKDIR {}", &name[1..], &deep[..4094]));
}

#[test]
fn a_pattern_that_matches_nothing_is_said() {
    let kitchen = Kitchen::new();
    context(&kitchen);
    let notices = |kitchen: &Kitchen| -> Vec<String> {
        let events = kitchen.progress.lock().unwrap().clone();
        let text = |event| match event {
            Progress::Notice { text, .. } => Some(text),
            _ => None,
        };
        events.into_iter().filter_map(text).collect()
    };
    let tree = kitchen.tree("FROM scratch\nCOPY mising*.conf /etc/app/\nCOPY a /");
    assert_eq!(summary(&tree), ["a 644 0:0 file 1"], "not even the destination is made");
    let said = "app/Dockerfile:2: nothing matches `mising*.conf`, so nothing is copied";
    assert_eq!(notices(&kitchen), [said]);
    kitchen.progress.lock().unwrap().clear();
    kitchen.tree("FROM os AS s\nFROM scratch\nCOPY --from=s etc/*.none a* /x/");
    assert!(notices(&kitchen).iter().any(|text| text.contains("`etc/*.none`")));
    let error = kitchen.error("FROM scratch\nCOPY nodir/*/x /y/").to_string();
    assert!(error.starts_with("app/Dockerfile:2: \"/nodir\": not found"), "{error}");
}

#[test]
fn hard_links_survive_their_first_name() {
    let kitchen = Kitchen::new();
    context(&kitchen);
    let tree = kitchen.tree("FROM os\nCOPY a /usr/bin/sh");
    assert_eq!(kitchen.content(&tree, "usr/bin/sh"), "a");
    assert_eq!(kitchen.content(&tree, "usr/bin/zsh"), "a shell");
}

#[test]
fn stages_and_contexts_are_sources() {
    let mut kitchen = Kitchen::new();
    context(&kitchen);
    let other = kitchen.dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("z"), "zzz").unwrap();
    std::fs::write(other.join("secret"), "s").unwrap();
    std::fs::write(other.join(".dockerignore"), "secret\n").unwrap();
    kitchen.contexts.insert("more".into(), other);
    let tree = kitchen.tree(
        "FROM os AS One\nCOPY --chown=5 a /out/a\nFROM scratch\nCOPY --from=one /out /o\n\
         COPY --from=0 /usr/bin/zsh /s\nCOPY --from=os /var/lib/data /\nCOPY --from=more * /m/",
    );
    let expected = [
        "data 600 0:0 file 4",
        "m 755 0:0 dir",
        "m/.dockerignore 644 0:0 file 7",
        "m/z 644 0:0 file 3",
        "o 755 0:0 dir",
        "o/a 644 5:5 file 1",
        "s 755 0:0 file 7",
    ];
    assert_eq!(summary(&tree), expected);
    assert_eq!(
        summary(&kitchen.tree("FROM more")),
        [".dockerignore 644 0:0 file 7", "z 644 0:0 file 3"]
    );
}

#[test]
fn documents_expand_unless_quoted() {
    let kitchen = Kitchen::new();
    let tree = kitchen.tree(
        "FROM scratch\nENV WHO=\"you all\"\nCOPY <<EOF <<\"RAW\" /x/\nhi '$WHO' \"${NO:-none}\"\nEOF\n\
         hi $WHO\nRAW",
    );
    assert_eq!(kitchen.content(&tree, "x/EOF"), "hi 'you all' \"none\"\n");
    assert_eq!(kitchen.content(&tree, "x/RAW"), "hi $WHO\n");
}

#[test]
fn mistakes_have_places() {
    let kitchen = Kitchen::new();
    context(&kitchen);
    kitchen.write(".dockerignore", "b\n").write("packed", "\x1f\u{8b}");
    std::fs::write(kitchen.context().join("packed"), b"\x1f\x8b\x08\0").unwrap();
    let socket = std::os::unix::net::UnixListener::bind(kitchen.context().join("sock")).unwrap();
    for (instructions, expected) in [
        ("COPY none /x", "app/Dockerfile:2: \"/none\": not found"),
        ("COPY b /x", "the ignore file leaves it out"),
        ("COPY sock /x", "sockets, pipes and devices"),
        ("COPY a dir/x /y", "end it with `/`"),
        ("COPY a /x\nCOPY dir /x", "app/Dockerfile:3: a directory cannot replace `/x`"),
        ("COPY a /x\nCOPY a /x/y", "app/Dockerfile:3: `/x` is not a directory"),
        ("COPY dir /x\nCOPY dir/x /x/sub/..\nCOPY dir/x /x/sub\nCOPY dir/sub/y /x/sub/", ""),
        ("COPY --chmod=99 a /x", "app/Dockerfile:2: invalid chmod parameter: '99'"),
        ("COPY ${NO?not-set} /x", "NO: not-set"),
        ("COPY --from=nowhere a /x", "app/Dockerfile:2: `nowhere` is not a base"),
        ("COPY --from=3 a /x", "invalid stage index 3"),
        ("COPY --from=$X a /x", "is not supported for --from"),
        // It only begins like an archive: it is a file like others.
        ("ADD packed /x", ""),
        ("WORKDIR /a\nCOPY a /f\nWORKDIR /f/g", "app/Dockerfile:4: `/f` is not a directory"),
    ] {
        let dockerfile = format!("FROM scratch\n{instructions}");
        if expected.is_empty() {
            kitchen.bake(&dockerfile).unwrap_or_else(|error| panic!("{instructions}: {error}"));
            continue;
        }
        let error = kitchen.error(&dockerfile);
        assert!(error.to_string().contains(expected), "{instructions}: {error}");
        assert!(error.is_usage(), "{instructions}");
    }
    // Whether a file of the host is there is nobody's business, and no reason is told that is none.
    std::os::unix::fs::symlink("/etc", kitchen.context().join("out")).unwrap();
    std::fs::create_dir(kitchen.context().join("in")).unwrap();
    std::os::unix::fs::symlink("/etc", kitchen.context().join("in/out")).unwrap();
    for (there, missing, link) in
        [("out/passwd", "out/nobody", "`/out`"), ("in/out/passwd", "in/out/nobody", "`/in/out`")]
    {
        let said = |path: &str| {
            let text = kitchen.error(&format!("FROM scratch\nCOPY {path} /x")).to_string();
            text.replace(path, "PATH")
        };
        assert_eq!(said(there), said(missing));
        assert!(said(there).contains(&format!("{link} is a link")), "{}", said(there));
    }
    kitchen.write(".dockerignore", "out\nin\n");
    for path in ["out/passwd", "in/out/passwd"] {
        let error = kitchen.error(&format!("FROM scratch\nCOPY {path} /x")).to_string();
        assert!(!error.contains("it exists"), "{error}");
    }
    kitchen.write(".dockerignore", "b\n");
    drop(socket);
    let late = "needs to be defined before current stage \"own\"";
    let own = "circular dependency detected on stage: own";
    for (from, expected) in [("later", late), ("2", late), ("1", own), ("OWN", own)] {
        let dockerfile = format!(
            "FROM os\nFROM scratch AS own\nCOPY --from={from} a /\nFROM scratch AS later\nFROM own"
        );
        let error = kitchen.error(&dockerfile);
        assert!(error.to_string().contains(expected), "{from}: {error}");
        assert!(error.to_string().starts_with("app/Dockerfile:3: "), "{from}: {error}");
    }
}
