//! ADD: archives, URLs and repositories, from the Dockerfile to the tree.

use std::fs;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kiln_core::Digest;
use kiln_core::tree::Kind;

use super::fake::{Kitchen, summary};
use super::web::{Daemon, Web, commit, git};
use crate::BakeError;
use crate::remote::{LockedUrl, Mode, Options, Pins, Proxies, Remotes};

/// A tar archive with one file.
fn tar(name: &str, content: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o640);
    header.set_uid(5);
    builder.append_data(&mut header, name, content.as_bytes()).unwrap();
    builder.into_inner().unwrap()
}

fn write(kitchen: &Kitchen, name: &str, content: &[u8]) {
    fs::write(kitchen.context().join(name), content).unwrap();
}

#[test]
fn archives_of_the_context() {
    let kitchen = Kitchen::new();
    write(&kitchen, "a.tar", &tar("foo", "one"));
    write(&kitchen, "b.tar.zst", &zstd::encode_all(tar("bar", "two").as_slice(), 1).unwrap());
    write(&kitchen, "text.tar.gz", b"no archive at all");
    for (instruction, expected) in [
        ("ADD a.tar /", vec!["foo 640 5:0 file 3"]),
        ("ADD a.tar /x", vec!["x 755 0:0 dir", "x/foo 640 5:0 file 3"]),
        ("ADD --chown=1:2 --chmod=600 a.tar /x/", vec!["x 755 1:2 dir", "x/foo 640 1:2 file 3"]),
        (
            "ADD a.tar b.tar.zst /x",
            vec!["x 755 0:0 dir", "x/bar 640 5:0 file 3", "x/foo 640 5:0 file 3"],
        ),
        ("ADD --unpack=false b.tar.zst /b", vec!["b 644 0:0 file 106"]),
        ("ADD text.tar.gz /x/", vec!["x 755 0:0 dir", "x/text.tar.gz 644 0:0 file 17"]),
    ] {
        let found = summary(&kitchen.tree(&format!("FROM scratch\n{instruction}")));
        let cut = |line: &str| match line.starts_with("b ") {
            true => line.rsplit_once(' ').unwrap().0.to_owned(),
            false => line.to_owned(),
        };
        let (found, expected) = (found.iter().map(|l| cut(l)), expected.iter().map(|l| cut(l)));
        assert_eq!(found.collect::<Vec<_>>(), expected.collect::<Vec<_>>(), "{instruction}");
    }
    // Into what is a file.
    assert!(
        kitchen.error("FROM os\nADD a.tar /etc/passwd").to_string().contains("not a directory")
    );
}

#[test]
fn a_bad_archive_is_named_with_its_entry_and_line() {
    let kitchen = Kitchen::new();
    let mut archive = tar("foo", "one");
    archive.truncate(1024);
    let mut second = tar("xx/passwd", "two");
    second[..2].copy_from_slice(b"..");
    let sum: u32 =
        (0..512).map(|at| if (148..156).contains(&at) { 32 } else { u32::from(second[at]) }).sum();
    second[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    archive.extend(second);
    write(&kitchen, "bad.tar", &archive);
    let error = kitchen.error("FROM scratch\n\nADD bad.tar /");
    assert!(error.is_usage());
    let error = error.to_string();
    for part in ["Dockerfile:3", "`bad.tar`", "`../passwd`", "leads out"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn a_url_is_pinned_and_asked_for_once() {
    let kitchen = Kitchen::new();
    let web = Web::new();
    web.put("/dir/data.txt", b"content1");
    let dockerfile = format!(
        "FROM scratch\nADD {} /dest/\nADD {} /x",
        web.url("/dir/data.txt"),
        web.url("/to/dir/data.txt")
    );
    let tree = kitchen.tree(&dockerfile);
    let expected = ["dest 755 0:0 dir", "dest/data.txt 600 0:0 file 8", "x 600 0:0 file 8"];
    assert_eq!(summary(&tree), expected);
    assert_eq!(web.asked(), 3, "one of them by a detour");
    let (urls, _) = kitchen.pins.lock().unwrap().parts();
    assert_eq!(urls.len(), 2);
    assert_eq!(urls[0].sha256, Digest::of("content1"));
    // The content changed: the store has what is pinned, and nobody asks.
    web.put("/dir/data.txt", b"content2");
    assert_eq!(kitchen.bake(&dockerfile).unwrap().cached, 3);
    assert_eq!(kitchen.tree(&format!("{dockerfile}\nENV A=1")), tree);
    assert_eq!(web.asked(), 0);
    // Another machine has the lock and not the content.
    let other = Kitchen::new();
    *other.pins.lock().unwrap() = kitchen.pins.lock().unwrap().clone();
    let error = other.error(&dockerfile);
    assert!(!error.is_usage(), "not the Dockerfile's fault");
    let error = error.to_string();
    for part in ["input differs", &Digest::of("content1").hex(), &Digest::of("content2").hex()] {
        assert!(error.contains(part), "{part}: {error}");
    }
    // Collection leaves alone what is pinned.
    kitchen.store.gc(&Default::default(), false).unwrap();
    assert!(kitchen.store.contains(&Digest::of("content1")));
}

#[test]
fn what_is_pinned_can_be_fetched_before_the_bake() {
    let kitchen = Kitchen::new();
    let dir = tempfile::tempdir().unwrap();
    let repository = dir.path().join("r");
    fs::create_dir_all(&repository).unwrap();
    git(&repository, &["init", "-q"]);
    commit(&repository, "v1");
    let (web, daemon) = (Web::new(), Daemon::new(dir.path()));
    web.put("/data.txt", b"content1");
    let address = daemon.url("r/.git");
    let dockerfile =
        format!("FROM scratch\nADD {} /data\nADD {address}#v1 /r/", web.url("/data.txt"));
    let tree = kitchen.tree(&dockerfile);
    // Another machine has the lock, gets what it names, and then nobody has to be there.
    let other = Kitchen::new();
    let pins = kitchen.pins.lock().unwrap().clone();
    *other.pins.lock().unwrap() = pins.clone();
    let never = std::sync::atomic::AtomicBool::new(false);
    let remotes = Remotes::new(&other.store, pins, Mode::Frozen, &never);
    let proxies = Proxies::of(&Default::default());
    let options = Options { proxies, limit: 1 << 20, told: &|_| {} };
    assert_eq!(remotes.fetch(&options).unwrap(), Vec::<String>::new());
    assert_eq!(web.asked(), 2, "each kitchen asked once");
    drop(daemon);
    assert_eq!(other.tree(&dockerfile), tree);
    assert_eq!(web.asked(), 0);
    // A password does not stand in the lock.
    let pin = |url: &str| LockedUrl { url: url.into(), size: 1, sha256: Digest::of("other") };
    let masked = "http://me:xxxxx@127.0.0.1:1/secret";
    let pins = Pins::new(&[pin(masked)], &[]);
    let remotes = Remotes::new(&other.store, pins, Mode::Frozen, &never);
    assert_eq!(remotes.fetch(&options).unwrap(), [masked]);
}

#[test]
fn checksums_pin_without_a_lock() {
    let mut kitchen = Kitchen::new();
    kitchen.pinning = Mode::Frozen;
    let web = Web::new();
    web.put("/f", b"content");
    let add = |checksum: &str| format!("FROM scratch\nADD {checksum} {} /f", web.url("/f"));
    let good = format!("--checksum=sha256:{}", Digest::of("content").hex());
    assert_eq!(summary(&kitchen.tree(&add(&good))), ["f 600 0:0 file 7"]);
    assert_eq!(*kitchen.pins.lock().unwrap(), Pins::default());
    let other = format!("--checksum=sha256:{}", Digest::of("other").hex());
    // That the store has it from elsewhere does not matter.
    kitchen.store.put(b"other").unwrap();
    assert!(kitchen.error(&add(&other)).to_string().contains("input differs"));
    assert!(kitchen.error(&add("--checksum=md5:00")).to_string().contains("no checksum of a file"));
    let error = kitchen.error(&add(""));
    assert!(error.is_usage() && error.to_string().contains("not in kiln.lock"), "{error}");
    let local = kitchen.error(&format!("FROM scratch\nADD {good} Dockerfile /")).to_string();
    assert!(local.contains("checksum requires HTTP(S) or Git sources"), "{local}");
    let copy = kitchen.error(&format!("FROM scratch\nCOPY {} /", web.url("/f"))).to_string();
    assert!(copy.contains("source can't be a URL for COPY"), "{copy}");
}

#[test]
fn urls_that_do_not_give() {
    let kitchen = Kitchen::new();
    let web = Web::new();
    web.put("/f", b"content");
    let error =
        |path: &str| kitchen.error(&format!("FROM scratch\nADD {} /f", web.url(path))).to_string();
    assert!(error("/none").contains("404"));
    assert!(error("/short/f").contains("could not be fetched"), "{}", error("/short/f"));
    let refused = kitchen.error("FROM scratch\nADD http://127.0.0.1:1/x /f").to_string();
    assert!(refused.contains("http://127.0.0.1:1/x") && refused.contains("refused"), "{refused}");
    let mut kitchen = Kitchen::new();
    kitchen.args.insert("KILN_FETCH_LIMIT".into(), Some("5".into()));
    let large = kitchen.error(&format!("FROM scratch\nADD {} /f", web.url("/f"))).to_string();
    assert!(large.contains("larger than 5 bytes"), "{large}");
}

#[test]
fn a_silent_server_does_not_keep_the_user_waiting() {
    let kitchen = Kitchen::new();
    let web = Web::new();
    let begun = std::time::Instant::now();
    let dockerfile = format!("FROM scratch\nADD {} /f", web.url("/silent"));
    std::thread::scope(|scope| {
        let bake = scope.spawn(|| kitchen.bake(&dockerfile));
        while web.asked() == 0 {
            std::thread::yield_now();
        }
        kitchen.cancel.store(true, Ordering::Release);
        assert!(matches!(bake.join().unwrap(), Err(BakeError::Cancelled)));
    });
    assert!(begun.elapsed() < Duration::from_secs(30), "long before the server counts as dead");
}

#[test]
fn archives_behind_urls() {
    let kitchen = Kitchen::new();
    let web = Web::new();
    web.put("/t.tar", &tar("foo", "one"));
    let tree = kitchen.tree(&format!("FROM scratch\nADD --unpack=true {} /d", web.url("/t.tar")));
    assert_eq!(summary(&tree), ["d 755 0:0 dir", "d/foo 640 5:0 file 3"]);
    let tree = kitchen.tree(&format!("FROM scratch\nADD {} /", web.url("/t.tar")));
    assert_eq!(summary(&tree).len(), 1);
}

#[test]
fn repositories_by_name_and_commit() {
    let kitchen = Kitchen::new();
    let dir = tempfile::tempdir().unwrap();
    let repository = dir.path().join("r");
    fs::create_dir_all(repository.join("sub/deep")).unwrap();
    fs::write(repository.join("sub/deep/x"), "deep").unwrap();
    git(&repository, &["init", "-q"]);
    let one = commit(&repository, "v1");
    let two = commit(&repository, "v2");
    // Plain files over HTTP, as the reference's tests have it, and Git's own protocol.
    let web = Web::folder(&repository);
    let daemon = Daemon::new(dir.path());
    for url in [web.url("/.git"), daemon.url("r/.git")] {
        let foo = |source: &str| {
            let tree = kitchen.tree(&format!("FROM scratch\nADD {source} /r/"));
            assert!(tree.get(b"r/.git").is_none() && tree.get(b"r/sub/deep").is_some());
            kitchen.content(&tree, "r/foo")
        };
        assert_eq!(foo(&format!("{url}#v1")), "foo of v1\n");
        assert_eq!(foo(&url), "foo of v2\n");
        assert_eq!(foo(&format!("{url}?branch=master")), "foo of v2\n");
        assert_eq!(foo(&format!("{url}#{one}")), "foo of v1\n");
        assert_eq!(foo(&format!("--checksum={} {url}#v1", &one[..9])), "foo of v1\n");
        let deep = kitchen.tree(&format!("FROM scratch\nADD --chown=3 {url}#v1:sub /d"));
        let expected = ["d 755 3:3 dir", "d/deep 755 3:3 dir", "d/deep/x 644 3:3 file 4"];
        assert_eq!(summary(&deep), expected);
        for (source, what) in [
            (format!("--checksum={two} {url}#v1"), "input differs"),
            (format!("--checksum=foobar {url}#v1"), "invalid checksum"),
            (format!("{url}?branch=v1"), "does not contain ref refs/heads/v1"),
            (format!("{url}#v1:none"), "no folder `none`"),
            (format!("{url}?tag=v1#refs/heads/m"), "ref conflicts"),
        ] {
            let error = kitchen.error(&format!("FROM scratch\nADD {source} /r")).to_string();
            assert!(error.contains(what), "{source}: {error}");
        }
    }
    // A branch moves on; what is pinned stays, here and where it has to be fetched.
    let dockerfile = format!("FROM scratch\nADD {}?branch=master /r/", daemon.url("r/.git"));
    let pinned = kitchen.tree(&dockerfile);
    commit(&repository, "v3");
    assert_eq!(kitchen.tree(&format!("{dockerfile}\nENV A=1")), pinned);
    let other = Kitchen::new();
    *other.pins.lock().unwrap() = kitchen.pins.lock().unwrap().clone();
    assert_eq!(other.tree(&dockerfile), pinned);
}

#[test]
fn kept_git_dirs_are_the_same_everywhere_and_git_reads_them() {
    let dir = tempfile::tempdir().unwrap();
    let repository = dir.path().join("r");
    fs::create_dir_all(repository.join("a")).unwrap();
    fs::write(repository.join("a/b"), "x".repeat(100_000)).unwrap();
    fs::write(repository.join("a.txt"), "y").unwrap();
    git(&repository, &["init", "-q"]);
    commit(&repository, "v1");
    let two = commit(&repository, "v2");
    git(&repository, &["tag", "-a", "-m", "release", "r2"]);
    git(&repository, &["update-server-info"]);
    let web = Web::folder(&repository);
    let daemon = Daemon::new(dir.path());
    let mut listings = Vec::new();
    // A shallow clone and a whole one leave different things on disk, and the same here.
    for (source, name) in [(daemon.url("r/.git"), "r2"), (web.url("/.git"), "r2")] {
        let kitchen = Kitchen::new();
        let add = format!("FROM scratch\nADD --keep-git-dir=true {source}#{name} /");
        let tree = kitchen.tree(&add);
        assert_eq!(kitchen.content(&tree, ".git/HEAD"), format!("{two}\n"));
        let out = kitchen.dir.path().join("out");
        for (path, node) in tree.entries.iter().skip(1) {
            let at = out.join(String::from_utf8(path.clone()).unwrap());
            match &node.kind {
                Kind::Dir => fs::create_dir_all(at).unwrap(),
                Kind::File { digest, .. } => {
                    fs::create_dir_all(at.parent().unwrap()).unwrap();
                    fs::write(at, kitchen.store.get(digest).unwrap()).unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(git(&out, &["status", "--short"]), "");
        assert_eq!(git(&out, &["log", "--format=%H"]), two);
        assert_eq!(git(&out, &["describe", "--tags"]), "r2");
        git(&out, &["fsck", "--strict"]);
        listings
            .push(tree.listing().lines().filter(|l| !l.contains("/config")).collect::<String>());
    }
    assert_eq!(listings[0], listings[1]);
}

#[test]
fn submodules_come_along_over_the_network_only() {
    let kitchen = Kitchen::new();
    let dir = tempfile::tempdir().unwrap();
    let (inner, outer) = (dir.path().join("inner"), dir.path().join("outer"));
    for folder in [&inner, &outer] {
        fs::create_dir(folder).unwrap();
        git(folder, &["init", "-q"]);
        commit(folder, "v1");
    }
    let web = Web::folder(dir.path());
    git(&outer, &["submodule", "--quiet", "add", &web.url("/inner/.git"), "sub"]);
    commit(&outer, "v2");
    let url = web.url("/outer/.git");
    let tree = kitchen.tree(&format!("FROM scratch\nADD {url} /"));
    assert_eq!(kitchen.content(&tree, "sub/foo"), "foo of v1\n");
    assert!(tree.get(b"sub/.git").is_none());
    let without = kitchen.tree(&format!("FROM scratch\nADD {url}?submodules=false /"));
    assert!(without.get(b"sub/foo").is_none());
    // One that names a folder of this machine.
    let inner = inner.display().to_string();
    git(&outer, &["config", "-f", ".gitmodules", "submodule.sub.url", &inner]);
    commit(&outer, "v3");
    let error = kitchen.error(&format!("FROM scratch\nADD {url}#v3 /")).to_string();
    assert!(error.contains("transport 'file' not allowed"), "{error}");
}
