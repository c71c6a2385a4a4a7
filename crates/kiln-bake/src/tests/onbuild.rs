//! ONBUILD across stages and across builds, and image configurations as BuildKit makes them.

use super::fake::{Kitchen, os};
use crate::bake::Progress;
use kiln_core::{ImageConfig, ImageId};

/// Bakes an image that other builds know as `parent`.
fn parent(kitchen: &mut Kitchen, dockerfile: &str) -> ImageId {
    let image = kitchen.bake(dockerfile).unwrap_or_else(|error| panic!("{error}")).image;
    kitchen.images.insert("parent".into(), image);
    image
}

fn config(kitchen: &Kitchen, image: &ImageId) -> ImageConfig {
    kitchen.store.get_config(&image.config).unwrap()
}

#[test]
fn a_trigger_runs_in_the_build_that_is_from_it_and_in_no_other() {
    let mut kitchen = Kitchen::new();
    let base = parent(&mut kitchen, "FROM os\nONBUILD RUN write /out 11\nONBUILD LABEL a=b");
    assert_eq!(config(&kitchen, &base).on_build, ["RUN write /out 11", "LABEL a=b"]);
    assert_eq!(kitchen.ran(), 0);

    let child = parent(&mut kitchen, "FROM parent");
    assert_eq!(kitchen.ran(), 1);
    let found = config(&kitchen, &child);
    assert!(found.on_build.is_empty());
    assert_eq!(found.labels["a"], "b");
    let tree = kitchen.store.get_tree(&child.tree).unwrap();
    assert_eq!(kitchen.content(&tree, "out"), "11");

    // The child's own children run nothing.
    let tree = kitchen.tree("FROM parent AS base\nFROM scratch\nCOPY --from=base /out /o");
    assert_eq!(kitchen.content(&tree, "o"), "11");
    assert_eq!(kitchen.ran(), 1);
}

#[test]
fn triggers_come_first_and_once() {
    let mut kitchen = Kitchen::new();
    parent(&mut kitchen, "FROM os\nONBUILD RUN write /didrun yes");
    let tree = kitchen.tree(
        "FROM parent AS base\nRUN mv /didrun /moved\nFROM base AS child\nRUN cp /moved /copy",
    );
    assert!(tree.get(b"didrun").is_none());
    assert_eq!(kitchen.content(&tree, "copy"), "yes");
}

#[test]
fn a_trigger_may_take_from_a_stage_or_a_base_that_nobody_names() {
    let mut kitchen = Kitchen::new();
    let dockerfile = "FROM os AS src\nRUN write /file 12\nFROM os AS base\n\
                      ONBUILD COPY --from=src /file /out\nFROM base AS mid\nRUN cp /out /bar\n\
                      FROM scratch\nCOPY --from=mid /bar /";
    assert_eq!(kitchen.content(&kitchen.tree(dockerfile), "bar"), "12");

    parent(&mut kitchen, "FROM scratch\nONBUILD COPY --from=os /var/lib/data /data");
    assert_eq!(kitchen.content(&kitchen.tree("FROM parent"), "data"), "data");

    parent(&mut kitchen, "FROM scratch\nONBUILD COPY --from=otherstage /file /data");
    let tree = kitchen.tree(
        "FROM os AS otherstage\nRUN write /file hello\nFROM parent AS input\nFROM scratch\n\
         COPY --from=input /data /bar",
    );
    assert_eq!(kitchen.content(&tree, "bar"), "hello");
    let error = kitchen.error("FROM parent").to_string();
    assert!(error.contains("app/Dockerfile:1: `otherstage` is not a base"), "{error}");
}

#[test]
fn a_trigger_reads_the_context_of_the_build_that_runs_it() {
    let mut kitchen = Kitchen::new();
    parent(&mut kitchen, "FROM scratch\nONBUILD COPY src /app\nONBUILD COPY <<EOF /doc\n$V!\nEOF");
    kitchen.write("src", "child's");
    let tree = kitchen.tree("FROM parent");
    assert_eq!(kitchen.content(&tree, "app"), "child's");
    assert_eq!(kitchen.content(&tree, "doc"), "!\n");
    // A change of it bakes again; none does not.
    let first = kitchen.bake("FROM parent").unwrap();
    assert_eq!(first.steps, first.cached);
    kitchen.write("src", "changed");
    assert_ne!(kitchen.bake("FROM parent").unwrap().image, first.image);
}

#[test]
fn a_here_document_travels_with_its_trigger() {
    let mut kitchen = Kitchen::new();
    parent(&mut kitchen, "FROM os\nONBUILD RUN <<EOF\nwrite /one 1\nwrite /two 2\nEOF");
    let tree = kitchen.tree("FROM parent");
    assert_eq!(kitchen.content(&tree, "two"), "2");
}

#[test]
fn a_context_that_is_an_image_comes_before_a_stage_of_its_name() {
    let mut kitchen = Kitchen::new();
    parent(&mut kitchen, "FROM os\nENV FROM=context\nRUN write /it context");
    let dockerfile = "FROM os AS parent\nRUN write /it stage\nFROM parent\nLABEL from=$FROM";
    let baked = kitchen.bake(dockerfile).unwrap();
    assert_eq!(config(&kitchen, &baked.image).labels["from"], "context");
    let tree = kitchen.store.get_tree(&baked.image.tree).unwrap();
    assert_eq!(kitchen.content(&tree, "it"), "context");
    kitchen.target = Some("parent".into());
    let target = kitchen.bake(dockerfile).unwrap();
    assert_eq!(target.image.tree, kitchen.images["parent"].tree);
}

/// What stands in a configuration, compactly.
fn members(kitchen: &Kitchen, dockerfile: &str) -> String {
    let text = String::from_utf8(kitchen.config(dockerfile).canonical()).unwrap();
    let path = r#""PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin""#;
    text.replace(path, "PATH").replace('"', "")
}

#[test]
fn configurations_are_those_of_buildkit() {
    let kitchen = Kitchen::new();
    for (dockerfile, expected) in [
        ("FROM scratch", "{Env:[PATH],WorkingDir:/}"),
        ("FROM scratch\nENV foo=bar", "{Env:[PATH,foo=bar],WorkingDir:/}"),
        // SHELL counts from where it stands; `CMD []` and `ENTRYPOINT []` leave nothing.
        (
            "FROM os\nSHELL [\"ls\"]\nENTRYPOINT my entrypoint",
            "{Env:[LANG=C,PATH],Entrypoint:[ls,my entrypoint],Shell:[ls]}",
        ),
        ("FROM os\nSHELL [\"/bin/sh\", \"-c\"]", "{Env:[LANG=C,PATH],Cmd:[sh],Shell:[/bin/sh,-c]}"),
        ("FROM os\nCMD []", "{Env:[LANG=C,PATH]}"),
        ("FROM os\nENTRYPOINT []", "{Env:[LANG=C,PATH]}"),
        ("FROM os\nCMD", "{Env:[LANG=C,PATH],Cmd:[/bin/sh,-c,]}"),
        (
            "FROM os\nENTRYPOINT []random string",
            "{Env:[LANG=C,PATH],Entrypoint:[/bin/sh,-c,[]random string]}",
        ),
        ("FROM os\nUSER u\nUSER $NONE", "{Env:[LANG=C,PATH],Cmd:[sh]}"),
        ("FROM os\nWORKDIR a\nWORKDIR ../b/", "{Env:[LANG=C,PATH],Cmd:[sh],WorkingDir:/b}"),
        ("FROM os\nWORKDIR /a\nWORKDIR $NONE", "{Env:[LANG=C,PATH],Cmd:[sh],WorkingDir:/a}"),
        ("FROM os\nMAINTAINER me <me@x>", "{Env:[LANG=C,PATH],Cmd:[sh],Author:me <me@x>}"),
        (
            "FROM os\nONBUILD USER x\nONBUILD RUN y",
            "{Env:[LANG=C,PATH],Cmd:[sh],OnBuild:[USER x,RUN y]}",
        ),
        (
            "FROM os AS a\nONBUILD USER x\nFROM a AS b\nFROM b",
            "{User:x,Env:[LANG=C,PATH],Cmd:[sh]}",
        ),
        // A variable of the image comes before an ARG of the stage that it is from.
        (
            "FROM os AS a\nENV A=env\nARG A=arg\nFROM a\nENV B=$A",
            "{Env:[LANG=C,PATH,A=env,B=env],Cmd:[sh]}",
        ),
        ("FROM os\nENV A=env\nARG A=arg\nENV B=$A", "{Env:[LANG=C,PATH,A=env,B=arg],Cmd:[sh]}"),
        // All of one ENV see what was before it.
        ("FROM os\nENV A=1\nENV A=2 B=$A", "{Env:[LANG=C,PATH,A=2,B=1],Cmd:[sh]}"),
        ("FROM os\nENV LANG=de", "{Env:[LANG=de,PATH],Cmd:[sh]}"),
        (
            "FROM scratch\nARG PORTS=\"3000 4000/udp\"\nEXPOSE $PORTS\nEXPOSE 5000",
            "{ExposedPorts:[3000/tcp,4000/udp,5000/tcp],Env:[PATH],WorkingDir:/}",
        ),
        ("FROM os\nVOLUME /a /b$NONE", "{Env:[LANG=C,PATH],Cmd:[sh],Volumes:[/a,/b]}"),
        (
            "FROM os AS a\nHEALTHCHECK --interval=1s CMD x\nFROM a",
            "{Env:[LANG=C,PATH],Cmd:[sh],Healthcheck:{Test:[CMD-SHELL,x],Interval:1000000000}}",
        ),
        (
            "FROM os AS a\nHEALTHCHECK CMD x\nFROM a\nHEALTHCHECK --interval=2s NONE",
            "{Env:[LANG=C,PATH],Cmd:[sh],Healthcheck:{Test:[NONE]}}",
        ),
        (
            "FROM os\nARG my_arg\nENV my_arg \"my_arg=${my_arg:-def_val}\"\n\
             ENV trimmed \"${my_arg%%e*}\"",
            "{Env:[LANG=C,PATH,my_arg=my_arg=def_val,trimmed=my_arg=d],Cmd:[sh]}",
        ),
    ] {
        assert_eq!(members(&kitchen, dockerfile), expected, "{dockerfile}");
    }
}

#[test]
fn what_a_default_demands_is_told_only_where_it_counts() {
    let mut kitchen = Kitchen::new();
    let dockerfile = "FROM scratch\nARG FOO\nARG BAR=${FOO:?\"foo missing\"}";
    let error = kitchen.error(dockerfile).to_string();
    assert!(error.contains("app/Dockerfile:3: ") && error.contains("FOO: foo missing"), "{error}");
    for name in ["FOO", "BAR"] {
        kitchen.args = [(name.to_owned(), Some("123".to_owned()))].into();
        kitchen.bake(dockerfile).unwrap();
    }
}

#[test]
fn steps_see_what_the_arguments_without_a_daemon_say() {
    let mut kitchen = Kitchen::new();
    let step = |kitchen: &Kitchen, dockerfile: &str| {
        kitchen.bake(dockerfile).unwrap_or_else(|error| panic!("{error}"));
        let spec = kitchen.fake.specs.lock().unwrap().pop().expect("a step ran");
        let epoch = spec.env.iter().find(|pair| pair.starts_with("SOURCE_DATE_EPOCH="));
        (spec.hostname.clone(), epoch.unwrap()["SOURCE_DATE_EPOCH=".len()..].to_owned())
    };
    let run = "FROM os\nRUN write /a a";
    assert_eq!(step(&kitchen, run), ("kiln".to_owned(), "1577836800".to_owned()));
    let own = format!("ARG SOURCE_DATE_EPOCH=5\n{run}");
    assert_eq!(step(&kitchen, &own).1, "5");
    for (name, value) in [("SOURCE_DATE_EPOCH", "7"), ("BUILDKIT_SANDBOX_HOSTNAME", "foo")] {
        kitchen.args.insert(name.into(), Some(value.into()));
    }
    assert_eq!(step(&kitchen, run), ("foo".to_owned(), "7".to_owned()));
    let told = kitchen.progress.lock().unwrap();
    assert!(!told.iter().any(|event| matches!(event, Progress::Notice { .. })));
}

#[test]
fn what_is_not_taken_is_told() {
    let mut kitchen = Kitchen::new();
    kitchen.args.insert("LONE".into(), Some("1".into()));
    kitchen.bake("FROM os AS build\nARG OTHER").unwrap();
    let told = kitchen.progress.lock().unwrap().clone();
    let notice = told.iter().find_map(|event| match event {
        Progress::Notice { text, .. } => Some(text.as_str()),
        _ => None,
    });
    let words = "app/Dockerfile: [Warning] One or more build-args [LONE] were not consumed";
    assert_eq!(notice, Some(words));
    let error = kitchen.error("FROM os AS build\nFROM os\nCOPY --from=bulid a b").to_string();
    assert!(error.contains("app/Dockerfile:3: `bulid` is not a base"), "{error}");
    assert!(error.ends_with("did you mean build?"), "{error}");
}

#[test]
fn a_dockerfile_may_be_written_small() {
    let kitchen = Kitchen::new();
    let image = os(&kitchen.store);
    kitchen.write("dockerfile", "FROM os");
    assert_eq!(kitchen.bake_as_it_is().unwrap().image.tree, image.tree);
    kitchen.write("Dockerfile", "FROM scratch");
    assert_ne!(kitchen.bake_as_it_is().unwrap().image.tree, image.tree);
}

#[test]
fn what_grows_without_measure_is_refused() {
    let kitchen = Kitchen::new();
    let doubling = |what: &str| -> String {
        let line = |at: usize| format!("{what} A{}=$A{at}$A{at}\n", at + 1);
        (0..40).map(line).collect()
    };
    for (dockerfile, what) in [
        (format!("FROM os\nENV A0=0123456789\n{}", doubling("ENV")), "variables take more"),
        (format!("FROM os\nARG A0=0123456789\n{}", doubling("ARG")), "variables take more"),
        (format!("ARG A0=0123456789\n{}FROM os", doubling("ARG")), "variables take more"),
        (
            format!("FROM os\n{}", (0..2001).map(|n| format!("ARG A{n}=\n")).collect::<String>()),
            "more than 2000 variables",
        ),
        (
            format!("FROM os\nARG A={}\nLABEL {}", "x".repeat(60_000), "a=$A$A$A b=$A ".repeat(9)),
            "",
        ),
        (
            format!(
                "FROM os\nARG A={}\n{}",
                "x".repeat(60_000),
                (0..20).map(|n| format!("LABEL l{n}=$A\n")).collect::<String>(),
            ),
            "the configuration takes more",
        ),
        (
            format!(
                "FROM os\nARG A={}\n{}",
                "x".repeat(60_000),
                format!("USER {}\n", "$A".repeat(200)).repeat(6),
            ),
            "expanding variables comes to more",
        ),
    ] {
        match (kitchen.bake(&dockerfile), what) {
            (Ok(_), "") => {}
            (Err(error), what) if !what.is_empty() => {
                assert!(error.is_usage() && error.to_string().contains(what), "{error}");
            }
            (other, _) => panic!("{what}: {other:?}"),
        }
    }
}
