//! Whole builds: stages, configuration, caches, cold against warm.

use std::fs;
use std::sync::atomic::Ordering;

use super::fake::{Kitchen, summary};
use crate::bake::Progress;

#[test]
fn configuration_follows_the_instructions() {
    let kitchen = Kitchen::new();
    let config = kitchen.config(
        "FROM os\nARG V=1\nENV A=$V B='x $V' C=\"y ${V}\"\nENV OLD  form  $V\nLABEL l=$A k=\"a b\"\n\
         EXPOSE 80 $NONE 90-91/udp\nVOLUME /data /v$V\nUSER app\nSTOPSIGNAL SIGINT\n\
         SHELL [\"/bin/bash\", \"-ec\"]\nHEALTHCHECK --retries=2 CMD ok\nCMD run $V\nWORKDIR /w",
    );
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(config.env, ["LANG=C", path, "A=1", "B=x $V", "C=y 1", "OLD=form  1"]);
    assert_eq!(config.labels["l"], "1");
    assert_eq!(config.labels["k"], "a b");
    let ports: Vec<&str> = config.exposed_ports.iter().map(String::as_str).collect();
    assert_eq!(ports, ["80/tcp", "90/udp", "91/udp"]);
    assert!(config.volumes.contains("/v1"));
    assert_eq!(config.cmd.unwrap(), ["/bin/bash", "-ec", "run $V"]);
    assert_eq!((config.user.as_deref(), config.working_dir.as_deref()), (Some("app"), Some("/w")));
    assert_eq!(config.stop_signal.as_deref(), Some("SIGINT"));
    assert_eq!(config.healthcheck.unwrap().retries, Some(2));
}

#[test]
fn entrypoint_resets_an_inherited_cmd() {
    let kitchen = Kitchen::new();
    assert_eq!(kitchen.config("FROM os").cmd.unwrap(), ["sh"]);
    assert_eq!(kitchen.config("FROM os\nENTRYPOINT [\"e\"]").cmd, None);
    let both = kitchen.config("FROM os\nCMD c\nENTRYPOINT e");
    assert_eq!(both.cmd.unwrap(), ["/bin/sh", "-c", "c"]);
    assert_eq!(both.entrypoint.unwrap(), ["/bin/sh", "-c", "e"]);
    assert_eq!(kitchen.config("FROM os\nENTRYPOINT [\"e\"]\nENTRYPOINT []").entrypoint, None);
    let staged = kitchen.config("FROM os AS a\nCMD c\nFROM a\nENTRYPOINT [\"e\"]");
    assert_eq!(staged.cmd, None);
}

#[test]
fn args_have_scopes() {
    let mut kitchen = Kitchen::new();
    let label = |kitchen: &Kitchen, text: &str| kitchen.config(text).labels["x"].clone();
    // A global ARG is seen in a stage only where it is declared again.
    assert_eq!(label(&kitchen, "ARG A=1\nFROM os\nLABEL x=[$A]"), "[]");
    assert_eq!(label(&kitchen, "ARG A=1\nFROM os\nARG A\nLABEL x=[$A]"), "[1]");
    assert_eq!(label(&kitchen, "ARG A=1\nFROM os\nARG A=2\nLABEL x=[$A]"), "[2]");
    assert_eq!(label(&kitchen, "FROM os\nLABEL x=[$A]\nARG A=2"), "[]");
    // ENV after ARG wins; stages inherit; others do not.
    assert_eq!(label(&kitchen, "FROM os\nARG A=1\nENV A=2\nLABEL x=$A"), "2");
    assert_eq!(label(&kitchen, "FROM os AS a\nARG A=1\nFROM a\nLABEL x=[$A]"), "[1]");
    assert_eq!(label(&kitchen, "FROM os AS a\nARG A=1\nFROM os\nLABEL x=[$A]"), "[]");
    kitchen.args.insert("A".into(), Some("given".into()));
    assert_eq!(label(&kitchen, "ARG A=1\nFROM os\nARG A\nLABEL x=[$A]"), "[given]");
    assert_eq!(label(&kitchen, "FROM os\nARG A=2\nLABEL x=[$A]"), "[given]");
    assert_eq!(label(&kitchen, "FROM os\nARG A=2\nARG B=$A!\nLABEL x=[$B]"), "[given!]");
    kitchen.args.insert("OS".into(), Some("os".into()));
    assert_eq!(label(&kitchen, "ARG OS\nARG S=${OS}\nFROM ${S:-none}\nLABEL x=1"), "1");
}

#[test]
fn only_what_the_target_needs_is_built() {
    let mut kitchen = Kitchen::new();
    let dockerfile = "FROM os AS a\nRUN write /a a\nFROM broken AS b\nRUN write /b b\n\
                      FROM os AS c\nRUN write /c c\nFROM a AS d\nCOPY --from=c /c /c\n\
                      FROM nowhere AS last";
    kitchen.target = Some("D".into());
    let lines = summary(&kitchen.tree(dockerfile));
    assert!(lines.iter().any(|line| line.starts_with("a 644")));
    assert!(lines.iter().any(|line| line.starts_with("c 644")));
    assert_eq!(kitchen.ran(), 2);
    kitchen.target = Some("b".into());
    let error = kitchen.error(dockerfile);
    assert!(!error.is_usage() && error.to_string().contains("the base is broken"), "{error}");
    kitchen.target = None;
    let error = kitchen.error(dockerfile);
    assert!(error.is_usage());
    let head = "app/Dockerfile:9: `nowhere` is not a base, an earlier stage or `scratch`";
    assert!(error.to_string().starts_with(head), "{error}");
    kitchen.target = Some("none".into());
    assert!(kitchen.error(dockerfile).to_string().contains("has a, b, c, d, last"));
}

#[test]
fn nothing_changed_means_no_work() {
    let kitchen = Kitchen::new();
    kitchen.write("src/a", "1").write("src/b", "2").write("README", "r");
    let dockerfile = "FROM os\nCOPY src /src\nRUN cp /src/a /out\nCOPY README /\nCMD [\"x\"]";
    let first = kitchen.bake(dockerfile).unwrap();
    assert_eq!((first.steps, kitchen.ran()), (5, 1));
    let again = kitchen.bake(dockerfile).unwrap();
    assert_eq!((again.image, again.cached, kitchen.ran()), (first.image, 5, 1));
    // A change after the RUN does not run it again; one before it does.
    kitchen.write("README", "changed");
    let second = kitchen.bake(dockerfile).unwrap();
    assert_eq!(kitchen.ran(), 1);
    assert_ne!(second.image.tree, first.image.tree);
    kitchen.write("src/a", "changed");
    let third = kitchen.bake(dockerfile).unwrap();
    assert_eq!(kitchen.ran(), 2);
    assert_eq!(third.image.config, first.image.config);
    // Back again: known.
    kitchen.write("src/a", "1").write("README", "r");
    assert_eq!(kitchen.bake(dockerfile).unwrap().image, first.image);
    assert_eq!(kitchen.ran(), 2);
    // What no COPY takes changes nothing; a label does not run anything.
    kitchen.write("other", "x");
    assert_eq!(kitchen.bake(dockerfile).unwrap().image, first.image);
    kitchen.bake(&dockerfile.replace("FROM os\n", "FROM os\nLABEL a=b\n")).unwrap();
    assert_eq!(kitchen.ran(), 2);
    // The environment of a step and its network do.
    kitchen.bake(&dockerfile.replace("RUN", "ENV Q=1\nRUN")).unwrap();
    kitchen.bake(&dockerfile.replace("RUN", "RUN --network=default")).unwrap();
    assert_eq!(kitchen.ran(), 4);
}

#[test]
fn progress_tells_steps_and_output() {
    let kitchen = Kitchen::new();
    let baked = kitchen.bake("FROM os\nRUN echo hello").unwrap();
    let events = kitchen.progress.lock().unwrap().clone();
    let texts: Vec<String> = events
        .iter()
        .map(|event| match event {
            Progress::Step { number, total, text, line, .. } => {
                format!("{number}/{total} {text} :{line}")
            }
            Progress::Cached { number, .. } => format!("{number} cached"),
            Progress::Output { number, bytes, .. } => {
                format!("{number} {}", String::from_utf8_lossy(bytes).trim_end())
            }
            Progress::Notice { number, text, .. } => format!("{number} notice {text}"),
            Progress::StageDone { stage, .. } => format!("stage {stage} done"),
            Progress::Done { image, .. } => format!("done {}", *image == baked.image),
        })
        .collect();
    let expected =
        ["1/2 FROM os :1", "2/2 RUN echo hello :2", "2 hello", "stage 0 done", "done true"];
    assert_eq!(texts, expected);
}

#[test]
fn a_cancelled_bake_stops() {
    let kitchen = Kitchen::new();
    kitchen.cancel.store(true, Ordering::Relaxed);
    let error = kitchen.error("FROM os\nRUN echo x");
    assert!(matches!(error, crate::BakeError::Cancelled));
    assert_eq!(kitchen.ran(), 0);
}

#[test]
fn a_dockerfile_may_have_its_own_ignore_file() {
    let kitchen = Kitchen::new();
    kitchen.write("a", "a").write("b", "b").write(".dockerignore", "a\n");
    let names = |kitchen: &Kitchen| {
        let lines = summary(&kitchen.tree("FROM scratch\nCOPY [ab] /"));
        lines.iter().map(|line| line[..1].to_owned()).collect::<String>()
    };
    assert_eq!(names(&kitchen), "b");
    kitchen.write("Dockerfile.dockerignore", "b\n");
    assert_eq!(names(&kitchen), "a");
}

#[test]
fn missing_and_broken_files_are_the_users() {
    let kitchen = Kitchen::new();
    let error = kitchen.error("FROM os\nCOPPY a b");
    assert_eq!(
        error.to_string(),
        "app/Dockerfile:2: unknown instruction: COPPY\n  hint: did you mean COPY?"
    );
    assert!(error.is_usage());
}

/// A generator that needs no crate and repeats (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// One random edit of a context: write, remove, make executable, rename.
fn edit(kitchen: &Kitchen, random: &mut Random) {
    let name = format!("src/d{}/f{}", random.below(3), random.below(4));
    let path = kitchen.context().join(&name);
    match random.below(5) {
        0..=2 => {
            kitchen.write(&name, &format!("{}", random.below(1000)));
        }
        3 => {
            let _ = fs::remove_file(&path);
        }
        _ if path.exists() => {
            use std::os::unix::fs::PermissionsExt as _;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        }
        _ => {}
    }
}

#[test]
fn warm_and_cold_bakes_agree_after_random_edits() {
    let warm = Kitchen::new();
    warm.write("src/d0/f0", "begin");
    let mut random = Random(42);
    for round in 0..12 {
        // Every third round the context stays as it is.
        if round % 3 != 2 {
            for _ in 0..=random.below(3) {
                edit(&warm, &mut random);
            }
            warm.write("src/d0/f0", &format!("{}", random.below(3)));
        }
        let dockerfile = format!(
            "FROM os AS build\nWORKDIR /b\nCOPY src/ .\nRUN cp /b/d0/f0 /b/out\n\
             FROM os\nARG R={}\nENV R=$R\nCOPY --from=build /b/out /out\nCOPY src/d* /all/\n\
             RUN <<EOF\nwrite /r {}\nrm /var/lib/data\nln /out /out2\nEOF\nLABEL r={}",
            random.below(2),
            random.below(2),
            random.below(2),
        );
        let baked = warm.bake(&dockerfile).unwrap();
        let cold = Kitchen::new();
        fs::remove_dir(cold.context()).unwrap();
        copy_dir(&warm.context(), &cold.context());
        let again = cold.bake(&dockerfile).unwrap();
        assert_eq!(baked.image, again.image, "round {round}: {dockerfile}");
    }
    assert!(warm.ran() < 24, "some steps were found");
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}
