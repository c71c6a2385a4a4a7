//! RUN --mount: what a step sees, what stays of it, and what its key is over.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use super::fake::{Kitchen, summary};
use crate::mount::caches;
use crate::options::{Secret, SecretSource};

fn paths(kitchen: &Kitchen, dockerfile: &str) -> Vec<String> {
    let tree = kitchen.tree(dockerfile);
    let os = kitchen.tree("FROM os");
    tree.entries
        .keys()
        .filter(|path| os.get(path).is_none())
        .map(|path| String::from_utf8_lossy(path).into_owned())
        .collect()
}

#[test]
fn binds_show_contexts_stages_and_bases() {
    let kitchen = Kitchen::new();
    kitchen.write("in/a", "from the context").write("other", "o");
    let tree = kitchen.tree(
        "FROM os AS build\nRUN write /made by a step\nFROM os\nWORKDIR /w\n\
         RUN --mount=target=/ctx --mount=from=build,source=/made,target=one \
         --mount=from=os,target=/base,rw --mount=src=in,dst=/in <<EOF\n\
         cp /ctx/in/a /a\ncp /w/one /b\ncp /base/usr/bin/sh /c\nwrite /base/x thrown away\n\
         cp /in/a /d\nEOF",
    );
    for (path, expected) in
        [("a", "from the context"), ("b", "by a step"), ("c", "a shell"), ("d", "from the context")]
    {
        assert_eq!(kitchen.content(&tree, path), expected);
    }
    for path in ["ctx", "in", "base", "w/one"] {
        assert!(tree.get(path.as_bytes()).is_none(), "{path} is a mount point only");
    }
    // A second time it is known; a change that no mount shows does not matter, one that does does.
    let ran = kitchen.ran();
    let dockerfile = "FROM os\nRUN --mount=src=in,target=/in cp /in/a /a";
    kitchen.tree(dockerfile);
    kitchen.write("other", "changed").tree(dockerfile);
    assert_eq!(kitchen.ran(), ran + 1);
    kitchen.write("in/a", "changed").tree(dockerfile);
    assert_eq!(kitchen.ran(), ran + 2);
}

#[test]
fn what_cannot_be_mounted_is_refused_with_its_line() {
    let kitchen = Kitchen::new();
    kitchen.write("file", "x");
    for (flag, what, hint) in [
        ("src=none,target=/x", "\"/none\": not found", "the context is"),
        ("from=os,src=/none,target=/x", "\"/none\": not found", "from its root"),
        ("target=/", "the root itself", "below it"),
        ("target=.", "the root itself", "WORKDIR"),
        ("from=$X,target=/x", "doesn't support variable expansion", "name a stage"),
        ("type=cache,target=/x,from=os,source=/etc/passwd", "no directory", ""),
        ("type=secret,id=token,required", "needs the secret `token`", "build.secrets: [token]"),
        ("type=ssh,required", "needs the SSH agent `default`", "build.ssh: [default]"),
        ("type=secret,id=a,env=A=B", "name of a variable", ""),
    ] {
        let error = kitchen.error(&format!("FROM os\nRUN --mount={flag} exit 1"));
        let text = error.to_string();
        assert!(error.is_usage() && text.contains("Dockerfile:2"), "{flag}: {text}");
        assert!(text.contains(what) && text.contains(hint), "{flag}: {text}");
    }
    assert_eq!(kitchen.ran(), 0);
}

#[test]
fn variables_in_mounts() {
    let kitchen = Kitchen::new();
    kitchen.write("in/a", "x");
    let tree = kitchen.tree(
        "FROM os\nARG KIND=bind\nENV AT=/at\n\
         RUN --mount=type=$KIND,source=${NONE:-in},target=$AT cp /at/a /a",
    );
    assert_eq!(kitchen.content(&tree, "a"), "x");
}

#[test]
fn caches_persist_and_are_no_input() {
    let mut kitchen = Kitchen::new();
    kitchen.options.project = "shop".into();
    let write = "FROM os\nRUN --mount=type=cache,target=/c write /c/x 1";
    assert_eq!(paths(&kitchen, write), Vec::<String>::new());
    let read = |target: &str, options: &str| {
        format!("FROM os\nRUN --mount=type=cache,target={target}{options} cp {target}/x /got")
    };
    let tree = kitchen.tree(&read("/c", ""));
    assert_eq!(kitchen.content(&tree, "got"), "1");
    // Another path has another id; the same id is the same cache.
    assert!(kitchen.bake(&read("/other", "")).is_err());
    let tree = kitchen.tree(&read("/other", ",id=/c"));
    assert_eq!(kitchen.content(&tree, "got"), "1");
    // What a cache holds is no input: the step is not run again.
    let room = caches::room(kitchen.store.root());
    let cache = fs::read_dir(&room)
        .unwrap()
        .flatten()
        .find(|entry| fs::read_to_string(entry.path().join("about")).unwrap() == "shop\n/c\n");
    fs::write(cache.unwrap().path().join("0/data/x"), "2").unwrap();
    let ran = kitchen.ran();
    kitchen.tree(&read("/c", ""));
    assert_eq!(kitchen.ran(), ran);
    // Another project has another cache.
    kitchen.options.project = "other".into();
    assert!(kitchen.bake(&format!("{}\nRUN exit 0", read("/c", ",mode=0755"))).is_ok());
    assert!(kitchen.bake("FROM os\nRUN --mount=type=cache,target=/c cp /c/x /fresh").is_err());
    // None of them is in use, and all were used just now.
    let month = Duration::from_secs(30 * 24 * 3600);
    assert_eq!(caches::collect(&room, month, false).unwrap().caches, 0);
    let would = caches::collect(&room, Duration::ZERO, true).unwrap();
    assert!(would.caches >= 2 && room.exists());
    assert_eq!(caches::collect(&room, Duration::ZERO, false).unwrap(), would);
    assert_eq!(fs::read_dir(&room).unwrap().count(), 0);
}

#[test]
fn a_step_does_not_wait_for_its_own_cache() {
    let kitchen = Kitchen::new();
    for (first, second) in [("locked", "locked"), ("shared", "locked"), ("private", "shared")] {
        let tree = kitchen.tree(&format!(
            "FROM os\nRUN --mount=type=cache,id={first}{second},target=/a,sharing={first} \
             --mount=type=cache,id={first}{second},target=/b,sharing={second} <<EOF\n\
             write /a/x one cache\ncp /b/x /got\nEOF"
        ));
        assert_eq!(kitchen.content(&tree, "got"), "one cache");
    }
    let seeded = "--mount=type=cache,id=s,from=os,source=/var/lib,target=";
    let error = kitchen.error(&format!("FROM os\nRUN {seeded}/a {seeded}/b exit 0"));
    assert!(error.is_usage() && error.to_string().contains("mounted twice"), "{error}");
}

#[test]
fn a_cache_can_begin_with_an_image_and_have_an_owner() {
    let kitchen = Kitchen::new();
    let tree = kitchen.tree(
        "FROM os\nRUN --mount=type=cache,target=/c,from=os,source=/var/lib <<EOF\n\
         cp /c/data /got\nwrite /c/more m\nEOF\n\
         RUN --mount=type=cache,target=/c,from=os,source=/var/lib cp /c/more /more",
    );
    assert_eq!(kitchen.content(&tree, "got"), "data");
    assert_eq!(kitchen.content(&tree, "more"), "m");
    kitchen.tree("FROM os\nRUN --mount=type=cache,target=/o,uid=7,gid=8,mode=0750 write /o/x 1");
    let specs = kitchen.fake.specs.lock().unwrap();
    let source = &specs.last().unwrap().mounts[0].source;
    let meta = fs::metadata(source).unwrap();
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (7, 8, 0o750));
}

#[test]
fn a_link_in_a_cache_leads_nowhere() {
    let kitchen = Kitchen::new();
    kitchen.tree("FROM os\nRUN --mount=type=cache,id=c,target=/c symlink /etc /c/sel");
    let error = kitchen.error("FROM os\nRUN --mount=type=cache,id=c,source=sel,target=/v cat /v/x");
    assert!(error.to_string().contains("cannot mount from the cache sel"), "{error}");
    kitchen.tree("FROM os\nRUN --mount=type=cache,id=c,target=/c mkdir /c/real");
    kitchen.tree("FROM os\nRUN --mount=type=cache,id=c,source=real,target=/v write /v/x 1");
}

fn secret(text: &str) -> Secret {
    Secret { source: SecretSource::Text(text.into()), uid: None, gid: Some(9), mode: None }
}

#[test]
fn secrets_are_seen_by_the_step_only() {
    let mut kitchen = Kitchen::new();
    kitchen.options.secrets.insert("token".into(), secret("swordfish\n"));
    let dockerfile = "FROM os\nENV TOKEN=public\n\
         RUN --mount=type=secret,id=token,env=TOKEN --mount=type=secret,id=token,uid=3 \
         --mount=type=secret,id=absent <<EOF\ncat /run/secrets/token\nenv TOKEN /length\n\
         write /length 1\nabsent /run/secrets/absent\nEOF";
    let tree = kitchen.tree(dockerfile);
    assert_eq!(kitchen.content(&tree, "length"), "1");
    assert!(tree.get(b"run/secrets").is_none());
    let shown = format!("{:?}", kitchen.progress.lock().unwrap());
    assert!(!shown.contains("swordfish") && shown.contains("`absent`"), "{shown}");
    let specs = format!("{:?}", kitchen.fake.specs.lock().unwrap().last().unwrap().around);
    assert!(!specs.contains("swordfish"), "{specs}");
    {
        let specs = kitchen.fake.specs.lock().unwrap();
        let file = &specs.last().unwrap().around.secrets[0];
        assert_eq!((file.uid, file.gid, file.mode), (3, 9, 0o400));
    }
    // Another content is no other step; nothing of it is anywhere in the root.
    let ran = kitchen.ran();
    kitchen.options.secrets.insert("token".into(), secret("halibut-halibut"));
    kitchen.tree(dockerfile);
    assert_eq!(kitchen.ran(), ran);
    let found = std::process::Command::new("grep")
        .args(["-rlE", "swordfish|halibut"])
        .arg(kitchen.store.root())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
}

#[test]
fn an_agent_is_forwarded_while_the_step_runs() {
    let mut kitchen = Kitchen::new();
    let path = kitchen.dir.path().join("agent");
    let agent = UnixListener::bind(&path).unwrap();
    let asked = std::thread::spawn(move || {
        // The first connection only looks whether somebody is there.
        drop(agent.accept().unwrap());
        let (mut client, _) = agent.accept().unwrap();
        let mut question = [0; 4];
        client.read_exact(&mut question).unwrap();
        client.write_all(b"pong").unwrap();
        question
    });
    kitchen.options.ssh.insert("default".into(), path);
    let tree = kitchen.tree(
        "FROM os\nRUN --mount=type=ssh,mode=0666 <<EOF\nping /run/buildkit/ssh_agent.0 /answer\n\
         env SSH_AUTH_SOCK /where\nEOF",
    );
    assert_eq!(kitchen.content(&tree, "answer"), "pong");
    assert_eq!(kitchen.content(&tree, "where"), "/run/buildkit/ssh_agent.0");
    assert_eq!(&asked.join().unwrap(), b"ping");
    let specs = kitchen.fake.specs.lock().unwrap();
    assert!(!specs.last().unwrap().mounts[0].source.exists(), "it is gone with the step");
    drop(specs);
    kitchen.options.ssh.insert("gone".into(), kitchen.dir.path().join("nobody"));
    let error = kitchen.error("FROM os\nRUN --mount=type=ssh,id=gone exit 0");
    assert!(error.to_string().contains("does not answer"), "{error}");
}

#[test]
fn memory_and_limits_reach_the_runner() {
    let mut kitchen = Kitchen::new();
    kitchen.options.shm_size = Some(5 << 20);
    kitchen.options.ulimits.insert("nofile".into(), (5, 6));
    kitchen.options.labels.insert("by".into(), "compose".into());
    kitchen.options.network = true;
    let dockerfile = "FROM os\nLABEL by=me more=1\nRUN --mount=type=tmpfs,target=/t,size=1m \
                      write /t/x 1\nRUN --network=none write /x 1";
    let config = kitchen.config(dockerfile);
    assert_eq!(config.labels["by"], "compose");
    assert_eq!(config.labels["more"], "1");
    let specs = kitchen.fake.specs.lock().unwrap();
    let first = &specs[0];
    assert_eq!(first.around.tmpfs[0].size, Some(1 << 20));
    assert_eq!((first.around.shm_size, first.around.ulimits["nofile"]), (Some(5 << 20), (5, 6)));
    assert_eq!((first.network, specs[1].network), (true, false));
    drop(specs);
    assert!(kitchen.tree(dockerfile).get(b"t").is_none());
}

#[test]
fn link_parents_and_exclude() {
    let kitchen = Kitchen::new();
    kitchen.write("a/b/c.txt", "c").write("a/b/d.md", "d").write("a/e.txt", "e");
    let base = "FROM scratch\nCOPY <<x /real/old\nx\n";
    for (rest, expected) in [
        (
            "COPY --parents a/b/*.txt a/e.txt /out/",
            &[
                "out/a 755 0:0 dir",
                "out/a/b 755 0:0 dir",
                "out/a/b/c.txt 644 0:0 file 1",
                "out/a/e.txt 644 0:0 file 1",
            ][..],
        ),
        (
            "COPY --parents --chown=5 a/./**/*.txt /real/",
            &["real/b 755 5:5 dir", "real/b/c.txt 644 5:5 file 1", "real/e.txt 644 5:5 file 1"],
        ),
        // What was there keeps its owner.
        (
            "COPY --chown=7 --chmod=700 a /out/a\nCOPY --parents --chown=5 a/e.txt /out",
            &["out/a 755 7:7 dir", "out/a/b 700 7:7 dir", "out/a/e.txt 644 5:5 file 1"],
        ),
        (
            "COPY --exclude=**/*.txt --exclude=x a /out",
            &["out/b 755 0:0 dir", "out/b/d.md 644 0:0 file 1"],
        ),
        ("COPY --exclude=*.txt a/*.txt /out/", &[]),
        ("COPY --link --chown=5:6 a/e.txt /out/", &["out 755 5:6 dir", "out/e.txt 644 5:6 file 1"]),
        (
            "COPY --link --chown=5 a/b /real",
            &["real 755 5:5 dir", "real/c.txt 644 5:5 file 1", "real/old 644 0:0 file 0"],
        ),
    ] {
        let found = summary(&kitchen.tree(&format!("{base}{rest}")));
        for line in expected {
            assert!(found.contains(&(*line).to_owned()), "{rest}: {line} in {found:#?}");
        }
    }
    let excluded = summary(&kitchen.tree(&format!("{base}COPY --exclude=**/*.txt a /out")));
    assert!(!excluded.iter().any(|line| line.contains(".txt")), "{excluded:?}");
    // The base has /bin → usr/bin: without --link it is followed, with it a directory is there.
    let followed = kitchen.tree("FROM os\nCOPY a/e.txt /bin/e");
    assert!(followed.get(b"usr/bin/e").is_some());
    let linked = kitchen.tree("FROM os\nCOPY --link a/e.txt /bin/e");
    assert!(linked.get(b"bin/e").is_some() && linked.get(b"usr/bin/e").is_none());
    let error = kitchen.error("FROM os\nCOPY --link --chown=app a /x");
    assert!(error.to_string().contains("needs numbers"), "{error}");
    let error = kitchen.error("FROM os\nCOPY --parents a/./none /x/");
    assert!(error.to_string().contains("\"/a/none\": not found"), "{error}");
}
