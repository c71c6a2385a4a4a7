//! Same source, same bits, whatever the machine is like: its file systems, its cores, what its
//! store has seen before, whether steps were known, and how the checkout was made. What a test
//! varies would show if it leaked, and each says so by another digest at the end.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use common::{project, world};
use kiln_testkit::{Call, Output, Project, World};
use rustix::fs::XattrFlags;
use serde_json::Value;

const COMPOSE: &str = "name: exact\nservices:\n  app: { build: . }\n";

/// Stages side by side, and steps that see names, modes and contents of all that they are given.
const DOCKERFILE: &str = "FROM busybox AS one
COPY . /src
RUN mkdir /out && cd /src && find . -exec stat -c '%n %a %u %g %Y %F' {} + | sort > /out/stat
FROM busybox AS two
COPY . /src
RUN mkdir /out && cd /src && find . -type f -exec sha256sum {} + | sort > /out/sums
FROM busybox
COPY --from=one /out /one
COPY --from=two /out /two
COPY . /src
RUN cd /src && for link in $(find . -type l | sort); do readlink $link; done > /links
";

/// What a repository can hold.
fn fill(dir: &Path) {
    let write = |path: &str, content: &str, mode: u32| {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    write("Dockerfile", DOCKERFILE, 0o644);
    write("README", "two\nlines\n", 0o644);
    write("windows.txt", "two\r\nlines\r\n", 0o644);
    write("run", "#!/bin/sh\necho $1\n", 0o755);
    write("deep/er/file", "x", 0o644);
    write("deep/empty", "", 0o644);
    write("deep-er", "sorts between", 0o644);
    write("case", "lower", 0o644);
    write("CASE", "upper", 0o644);
    write("gr\u{fc}\u{df}e *[x]?", "odd name", 0o644);
    write("bytes", "\u{0}\u{1}\r\n\u{0}", 0o644);
    symlink("deep/er/file", dir.join("link")).unwrap();
    symlink("nowhere", dir.join("deep/dangling")).unwrap();
}

fn sh(dir: &Path, script: &str) -> Output {
    let call = Call::new("sh").args(["-ec", script]).dir(dir);
    // Nobody's configuration but the test's.
    let call = call.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    call.run_ok().unwrap_or_else(|error| panic!("{error:#}"))
}

const COMMIT: &str = "git init -q -b main . && git add -A && \
    git -c user.name=a -c user.email=a@example.org commit -qm one";

/// A project as [`fill`] makes it, and its commit.
fn repository(world: &World, name: &str) -> Project {
    let project = project(world, name, COMPOSE);
    fill(project.dir());
    sh(project.dir(), COMMIT);
    project
}

#[track_caller]
fn image(output: &Output) -> Value {
    let image = output.json()["images"]["app"].clone();
    assert!(image["tree"].is_string() && image["config"].is_string(), "{output}");
    Value::from(format!("{} {}", image["tree"], image["config"]))
}

#[track_caller]
fn baked(world: &World, dir: &Path) -> Value {
    image(&world.call(["bake", "--json"]).dir(dir).run_ok().unwrap_or_else(|e| panic!("{e:#}")))
}

#[track_caller]
fn released(world: &World, dir: &Path, args: &[&str]) -> (Value, Value) {
    let call = world.call(["release", "--json"]).args(args).dir(dir);
    let output = call.run_ok().unwrap_or_else(|error| panic!("{error:#}"));
    (image(&output), output.json()["release"].clone())
}

#[test]
fn how_a_checkout_was_made_does_not_count() {
    let world = world();
    let origin = repository(&world, "origin");
    let expected = baked(&world, origin.dir());
    let (image, release) = released(&world, origin.dir(), &[]);
    assert_eq!(image, expected);
    let home = world.home();
    let checkouts = [
        ("clone", "git clone -q origin clone"),
        ("shallow", "git clone -q --depth 1 file://$PWD/origin shallow"),
        ("tree", "git -C origin worktree add -q --detach ../tree"),
        ("packed", "git clone -q origin packed && git -C packed gc -q"),
        ("borrowed", "git clone -q --shared origin borrowed"),
        ("other-format", "cp -a origin other-format && git -C other-format pack-refs --all"),
    ];
    for (name, script) in checkouts {
        sh(home, script);
        assert_eq!(baked(&world, &home.join(name)), expected, "{name}");
        assert_eq!(released(&world, &home.join(name), &[]), (expected.clone(), release.clone()));
    }
    // What whoever calls has set for a `git` of their own is not for ours, as in a hook.
    let call = world.call(["release", "--json"]).dir(home.join("tree"));
    let call = call.env("GIT_DIR", "/nowhere").env("GIT_INDEX_FILE", "/nowhere/index");
    assert_eq!(call.run_ok().unwrap().json()["release"], release);
    // Git's own folder is in no context, unless it is taken back.
    let clone = home.join("clone");
    assert!(clone.join(".git").is_dir());
    fs::write(clone.join(".dockerignore"), "!.git\n").unwrap();
    assert_ne!(baked(&world, &clone), expected);
    // Without Git.
    let copies = [
        ("tar", "mkdir tar && git -C origin archive HEAD | tar -x -C tar"),
        ("umask", "umask 077; cp -r --no-preserve=mode origin umask; chmod u+x umask/run"),
        ("hard", "cp -al origin hard"),
    ];
    for (name, script) in copies {
        sh(home, &format!("{script}; rm -rf {name}/.git"));
        assert_eq!(baked(&world, &home.join(name)), expected, "{name}");
    }
}

/// What a checkout really changes, is another source: said of the working tree, and no matter to a
/// release.
#[test]
fn a_checkout_that_changes_files_is_dirty_and_its_release_is_not() {
    let world = world();
    let origin = repository(&world, "origin");
    let (expected, release) = released(&world, origin.dir(), &[]);
    let home = world.home();
    let checkouts = [
        ("crlf", "git clone -q -c core.autocrlf=true origin crlf", true),
        ("eol", "git clone -q -c core.eol=crlf -c core.autocrlf=true origin eol", true),
        ("links", "git clone -q -c core.symlinks=false origin links", true),
        (
            "modes",
            "git clone -q origin modes && git -C modes config core.fileMode false && \
             chmod -x modes/run",
            true,
        ),
        (
            "sparse",
            "git clone -q --no-checkout origin sparse && cd sparse && \
             git sparse-checkout init --cone && git checkout -q main",
            true,
        ),
        (
            "ignored",
            "git clone -q origin ignored && echo '*.o' > ignored/.git/info/exclude && \
                     echo x > ignored/deep/x.o",
            true,
        ),
        ("fine", "git clone -q -c core.autocrlf=input origin fine", false),
    ];
    for (name, script, dirty) in checkouts {
        sh(home, script);
        let dir = home.join(name);
        // Git calls each of them clean.
        assert_eq!(sh(&dir, "git status --porcelain").stdout, "", "{name}");
        assert_eq!(released(&world, &dir, &[]), (expected.clone(), release.clone()), "{name}");
        let against = format!("{}:app", release.as_str().unwrap());
        let call = world.call(["diff", "--json", &against, "app"]).dir(&dir);
        let code = call.run().unwrap().code;
        assert_eq!(code, Some(if dirty { 3 } else { 0 }), "{name}");
        let call = world.call(["diff", "--json", release.as_str().unwrap(), "."]).dir(&dir);
        let source = call.run().unwrap().json()["new"]["source"].clone();
        assert_eq!(source["dirty"].as_bool().unwrap_or(false), dirty, "{name}: {source}");
    }
}

#[test]
fn attributes_and_configuration_of_a_repository_do_not_reach_its_release() {
    let world = world();
    let origin = repository(&world, "origin");
    // The same files with attributes that change what a checkout or an archive gives.
    let attributes = "* text=auto eol=crlf\nREADME export-ignore\nrun ident\n\
                      deep/empty filter=evil\n*.txt working-tree-encoding=UTF-16\n\
                      windows.txt -text\n";
    origin.write(".gitattributes", attributes);
    sh(origin.dir(), "git add .gitattributes && git -c user.name=a -c user.email=a@b commit -qm 2");
    let (expected, release) = released(&world, origin.dir(), &["--commit", "HEAD"]);
    let home = world.home();
    sh(home, "git clone -q origin evil");
    let dir = home.join("evil");
    // Whatever runs because of the repository's configuration leaves a mark.
    let mark = home.join("mark");
    let program = home.join("program");
    fs::write(&program, format!("#!/bin/sh\necho $0 >> {}\nexec cat\n", mark.display())).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let run = program.display();
    for key in [
        "core.fsmonitor",
        "filter.evil.clean",
        "filter.evil.smudge",
        "filter.evil.process",
        "core.sshCommand",
        "core.pager",
        "diff.external",
        "core.alternateRefsCommand",
        "core.gitProxy",
        "core.askPass",
        "core.editor",
        "gpg.program",
        "credential.helper",
    ] {
        sh(&dir, &format!("git config {key} {run}"));
    }
    sh(
        &dir,
        &format!(
            "git config core.hooksPath {home}; git config include.path {home}/more
         printf '[core]\\n fsmonitor = {run}\\n' > {home}/more
         git config extensions.partialClone evil; git config remote.evil.promisor true
         git config remote.evil.url 'ext::{run}'; git config protocol.ext.allow always
         for hook in post-checkout post-index-change reference-transaction; do
             cp {run} .git/hooks/$hook; done
         touch -d '2001-01-01' README run deep/empty",
            home = home.display()
        ),
    );
    let found = released(&world, &dir, &["--commit", "HEAD"]);
    assert_eq!(found, (expected, release));
    world.call(["release"]).dir(&dir).run().unwrap();
    world.call(["diff", "."]).dir(&dir).run().unwrap();
    world.call(["diff", found.1.as_str().unwrap(), "."]).dir(&dir).run().unwrap();
    assert!(!mark.exists(), "{}", fs::read_to_string(&mark).unwrap_or_default());
    // The traps are real: Git by itself goes into one.
    sh(&dir, "git status --porcelain; true");
    assert!(mark.exists());
}

#[test]
fn what_a_file_system_adds_to_a_context_does_not_count() {
    let world = world();
    let origin = repository(&world, "origin");
    let expected = baked(&world, origin.dir());
    let other = repository(&world, "other");
    sh(
        other.dir(),
        "chmod 3775 deep; chmod 1777 deep/er; chmod 4755 run; chmod 0600 README; chmod 2644 case
         ln windows.txt second && mv -f second deep/third && rm deep/third
         chgrp 7 deep/er/file; chown 5 deep",
    );
    for (path, name) in [("README", "user.note"), ("deep", "user.note"), ("run", "trusted.x")] {
        rustix::fs::setxattr(other.path(path), name, b"x", XattrFlags::empty()).unwrap();
    }
    // Two names of one file are two files.
    fs::remove_file(other.path("case")).unwrap();
    fs::write(other.path("case"), "lower").unwrap();
    fs::hard_link(other.path("deep/empty"), other.path("deep/also-empty")).unwrap();
    fs::remove_file(other.path("deep/empty")).unwrap();
    fs::rename(other.path("deep/also-empty"), other.path("deep/empty")).unwrap();
    assert_eq!(baked(&world, other.dir()), expected);
}

/// A mount that goes when it is dropped, after the root on it was shut down.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        sh(at, &format!("mount -t tmpfs -o size=400m tmpfs {}", at.display()));
        Self(at.to_owned())
    }

    /// A file system of `kind` in a file, if this machine can make and mount it.
    fn made(kind: &str, file: &Path, at: &Path) -> Option<Self> {
        let script = format!(
            "truncate -s 400M {file} && mkfs.{kind} -q {file} >/dev/null 2>&1 && \
             mkdir -p {at} && mount -o loop {file} {at}",
            file = file.display(),
            at = at.display()
        );
        let made = Call::new("sh").args(["-ec", &script]).run().unwrap();
        made.success().then(|| Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn the_file_system_does_not_count() {
    let first = world();
    let origin = repository(&first, "origin");
    let expected = baked(&first, origin.dir());

    // The context elsewhere. Folders are ordered by hashes that each file system makes anew.
    for kind in ["ext4", "xfs", "btrfs"] {
        let at = first.home().join(kind);
        let file = first.home().join(format!("{kind}.img"));
        // Only ext4 is everywhere.
        let Some(_mounted) = Mounted::made(kind, &file, &at) else {
            assert!(kind != "ext4" || !required(), "ext4 cannot be made or mounted");
            continue;
        };
        let there = at.join("project");
        copy(origin.dir(), &there);
        assert_eq!(baked(&first, &there), expected, "{kind}");
    }
    let memory = Mounted::tmpfs(&first.home().join("memory"));
    copy(origin.dir(), &memory.0.join("project"));
    assert_eq!(baked(&first, &memory.0.join("project")), expected);
    drop(memory);

    // The root elsewhere.
    let second = World::new(common::KILN);
    let mounted = Mounted::tmpfs(&second.root());
    sh(second.home(), &format!("cp -a {}/root/. root/", common::template().display()));
    assert_eq!(baked(&second, origin.dir()), expected);
    second.shutdown().expect_done();
    drop(mounted);
}

fn required() -> bool {
    std::env::var_os("KILN_TEST_REQUIRE").is_some()
}

fn copy(from: &Path, to: &Path) {
    sh(Path::new("/"), &format!("cp -a {} {}", from.display(), to.display()));
}

#[test]
fn the_number_of_cores_does_not_count() {
    let many = world();
    let origin = repository(&many, "origin");
    let expected = baked(&many, origin.dir());
    let one = world();
    // The agent that it starts, and all that this starts, have one core.
    let call = one.call(["bake", "--json"]);
    let line = call.line();
    let mut words = line.split(' ');
    let program = words.next().unwrap();
    let call = Call::new("taskset").args(["-c", "0", program]).args(words).dir(origin.dir());
    assert_eq!(image(&call.run_ok().unwrap()), expected);
}

#[test]
fn what_a_store_has_seen_before_does_not_count() {
    let fresh = world();
    let origin = repository(&fresh, "origin");
    let expected = baked(&fresh, origin.dir());

    let used = world();
    let other = repository(&used, "other");
    for n in 0..4 {
        // The same contents under other names, owners and modes, and neighbours of all steps.
        other.write("README", format!("{n}")).write(&format!("deep/{n}"), "x");
        let chown = format!("FROM busybox AS one\nCOPY --chown={n}:{n} --chmod=0600 ");
        other.write("Dockerfile", DOCKERFILE.replace("FROM busybox AS one\nCOPY ", &chown));
        baked(&used, other.dir());
    }
    assert_eq!(baked(&used, origin.dir()), expected);
    used.kiln(["gc"]).expect_done();
    assert_eq!(baked(&used, origin.dir()), expected);
}

/// Numbers that look random and are the same in each run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        usize::try_from(self.0 >> 33).unwrap() % sides
    }
}

/// One edit of a project, of a kind that people make.
fn edit(dir: &Path, dice: &mut Dice) -> String {
    let names = ["README", "run", "deep/er/file", "new/a", "new/b", "deep-er", "CASE"];
    let name = names[dice.roll(names.len())];
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    match dice.roll(6) {
        0 => {
            let _ = fs::remove_file(&path);
            format!("remove {name}")
        }
        1 => {
            let _ = fs::remove_file(&path);
            symlink(format!("to-{}", dice.roll(3)), &path).unwrap();
            format!("link {name}")
        }
        2 if path.is_file() => {
            let mode = [0o644, 0o755, 0o600][dice.roll(3)];
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            format!("mode {name} {mode:o}")
        }
        3 => {
            let text = fs::read_to_string(dir.join("Dockerfile")).unwrap();
            let step = format!("RUN echo {} >> /log && rm -f /src/new/a\n", dice.roll(3));
            // Some come back: what was known then has to fit now.
            let at = text.find("FROM busybox AS two").unwrap();
            let text = match text.find("RUN echo ") {
                Some(old) => {
                    let end = old + text[old..].find('\n').unwrap() + 1;
                    format!("{}{step}{}", &text[..old], &text[end..])
                }
                None => format!("{}{step}{}", &text[..at], &text[at..]),
            };
            fs::write(dir.join("Dockerfile"), text).unwrap();
            "a step".to_owned()
        }
        _ => {
            let _ = fs::remove_file(&path);
            let text = format!("text {}\n", dice.roll(4));
            fs::write(&path, &text).unwrap();
            format!("write {name} {text:?}")
        }
    }
}

#[test]
fn cached_and_cold_bakes_are_the_same() {
    let warm = world();
    let origin = repository(&warm, "origin");
    // The cold one forgets every step before each bake; its store is of the other kind.
    let cold = world().env("KILN_STORE_BACKING", "links");
    let steps = cold.root().join("cache/steps");
    let known: BTreeSet<_> = fs::read_dir(&steps).unwrap().map(|e| e.unwrap().path()).collect();
    let forget = || {
        for entry in fs::read_dir(&steps).unwrap() {
            let path = entry.unwrap().path();
            if !known.contains(&path) {
                fs::remove_file(path).unwrap();
            }
        }
    };
    let seed = 20_200_101;
    let mut dice = Dice(seed);
    let mut seen = BTreeSet::new();
    let mut done = Vec::new();
    for _ in 0..12 {
        done.push(edit(origin.dir(), &mut dice));
        let cached = baked(&warm, origin.dir());
        forget();
        let from_nothing = baked(&cold, origin.dir());
        assert_eq!(cached, from_nothing, "seed {seed}, after {done:#?}");
        seen.insert(cached.to_string());
    }
    // They were edits.
    assert!(seen.len() > 5, "{seen:?}");
}
