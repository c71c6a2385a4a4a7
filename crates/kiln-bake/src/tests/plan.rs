//! Plans: where FROMs and `--from`s lead, what is refused, and what comes before the first FROM.

use std::collections::{BTreeMap, BTreeSet};

use crate::BakeError;
use crate::dockerfile;
use crate::plan::{self, Outside, Plan, Source, lookup};

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn planned(
    text: &str,
    args: &[(&str, &str)],
    target: Option<&str>,
    outside: &Outside,
) -> Result<Plan, BakeError> {
    let file = dockerfile::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    let args: BTreeMap<String, Option<String>> =
        args.iter().map(|(name, value)| ((*name).into(), Some((*value).into()))).collect();
    plan::plan(&file, "Dockerfile", &args, target, outside)
}

/// The stages in short: `0:os[stage 1]` is stage 0 from base `os`, taking something from stage 1.
fn shape(text: &str, target: Option<&str>, outside: &Outside) -> String {
    let name = |source: &Source| match source {
        Source::Stage(index) => format!("stage {index}"),
        Source::Scratch => "scratch".into(),
        Source::Context(name) => format!("./{name}"),
        Source::Base(name) => name.clone(),
    };
    let plan = planned(text, &[], target, outside).unwrap_or_else(|e| panic!("{text}: {e}"));
    let stage = |stage: &plan::PlannedStage| {
        let from: Vec<String> =
            stage.steps.iter().flat_map(|step| &step.sources).map(name).collect();
        format!("{}:{}[{}]", stage.index, name(&stage.base), from.join(","))
    };
    plan.stages.iter().map(stage).collect::<Vec<_>>().join(" ")
}

fn error(text: &str) -> (usize, String) {
    match planned(text, &[], None, &Outside::default()) {
        Err(BakeError::Dockerfile { line, what, .. }) => (line, what),
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn names_lead_to_stages() {
    let none = Outside::default();
    for (text, target, expected) in [
        ("FROM os", None, "0:os[]"),
        ("FROM scratch", None, "0:scratch[]"),
        ("FROM a AS b\nFROM b", None, "0:a[] 1:stage 0[]"),
        ("FROM b\nFROM a AS b", Some("0"), "0:b[]"),
        ("FROM a AS b\nFROM c\nCOPY --from=B x y", None, "0:a[] 1:c[stage 0]"),
        ("FROM a\nFROM c\nCOPY --from=0 x y", None, "0:a[] 1:c[stage 0]"),
        ("FROM a\nCOPY --from=os x y", None, "0:a[os]"),
        ("FROM a\nCOPY --from= x y", None, "0:a[]"),
        ("FROM a\nRUN --mount=from=0,target=/x y", None, "0:a[0]"),
        // A name that is taken again leads to the stage before for a FROM, to the last for a COPY.
        ("FROM a AS s\nFROM s AS s\nFROM s", None, "0:a[] 1:stage 0[] 2:stage 1[]"),
        ("FROM a AS s\nFROM b AS s\nFROM c\nCOPY --from=s x y", None, "1:b[] 2:c[stage 1]"),
        ("FROM a AS s\nFROM b AS s", Some("S"), "1:b[]"),
        // A stage may hide `scratch` and any base.
        ("FROM a AS scratch\nFROM scratch", None, "0:a[] 1:stage 0[]"),
        ("FROM a AS os\nFROM b\nCOPY --from=os x y", None, "0:a[] 1:b[stage 0]"),
        // What the target does not need is left out, whatever it is.
        ("FROM nowhere AS x\nFROM a\nFROM b", Some("1"), "1:a[]"),
        ("FROM a\nCOPY --from=late x y\nFROM b AS late\nFROM c", None, "2:c[]"),
    ] {
        assert_eq!(shape(text, target, &none), expected, "{text}");
    }
}

#[test]
fn named_contexts_stand_in_for_everything_of_their_name() {
    let outside = Outside {
        contexts: set(&["dir", "debian", "scratch"]),
        images: set(&["image"]),
        ..Outside::default()
    };
    for (text, target, expected) in [
        ("FROM dir", None, "0:./dir[]"),
        ("FROM a AS dir\nFROM dir\nCOPY --from=dir x y", None, "1:./dir[./dir]"),
        ("FROM a AS dir\nRUN x\nFROM b\nCOPY --from=0 x y", None, "0:./dir[] 1:b[stage 0]"),
        ("FROM a AS image\nRUN x", None, "0:image[]"),
        ("FROM a AS image\nRUN x\nFROM image", Some("image"), "0:image[]"),
        ("FROM debian:latest", None, "0:./debian[]"),
        ("FROM docker.io/library/debian", None, "0:./debian[]"),
        ("FROM debian:bookworm", None, "0:debian:bookworm[]"),
        ("FROM scratch", None, "0:scratch[]"),
    ] {
        assert_eq!(shape(text, target, &outside), expected, "{text}");
    }
}

#[test]
fn what_leads_nowhere_is_told() {
    for (text, line, what) in [
        ("FROM \"\" AS foo", 1, "base name (\"\") should not be blank"),
        ("FROM x\nFROM ${BLANK} AS foo\nFROM y", 2, "base name (${BLANK}) should not be blank"),
        ("FROM ${A?}", 1, "A: is not allowed to be unset"),
        ("ARG A=${A:?\"own words\"}\nFROM x", 1, "A: own words"),
        ("FROM x\nCOPY --from=1 a b", 2, "invalid stage index 1"),
        ("FROM x\nCOPY --from=-1 a b", 2, "invalid stage index -1"),
        ("ARG A=s\nFROM x AS s\nFROM y\nCOPY --from=$A a b", 4, "is not supported for --from"),
        ("FROM x AS s\nCOPY --from=s a b", 2, "circular dependency detected on stage: s"),
        (
            "FROM x AS s0\nCOPY --from=s2 a b\nFROM x AS s1\nCOPY --from=s0 a b\nFROM x AS s2\n\
             COPY --from=s1 a b\nFROM y",
            4,
            "circular dependency detected on stage: s0",
        ),
        (
            "FROM x AS target\nCOPY --from=build / /out\nFROM y AS build\nFROM target",
            2,
            "cannot copy from stage \"build\", it needs to be defined before current stage \
             \"target\"",
        ),
        ("FROM --platform=$NONE x", 1, "empty platform value from expression $NONE"),
        ("FROM --platform=$BULIDPLATFORM x", 1, "did you mean BUILDPLATFORM?"),
        ("ARG MY_ARCH=amd64\nFROM --platform=linux/$MYARCH x", 2, "did you mean MY_ARCH?"),
        (
            "FROM x AS a\nRUN --mount=from=b,target=/b c\nFROM y AS b\nFROM a",
            2,
            "cannot mount from stage \"b\", stage needs to be defined before current command",
        ),
        ("FROM --platform=toaster x", 1, "`toaster` is not a platform"),
        ("FROM --platform=linux/mips x", 1, "`x` for linux/mips: bases are for"),
    ] {
        let (found, words) = error(text);
        assert!(found == line && words.contains(what), "{text}: {found}: {words}");
    }
}

#[test]
fn platforms_that_fit_are_taken() {
    let none = Outside::default();
    for text in [
        "FROM --platform=$BUILDPLATFORM os",
        "FROM --platform=$TARGETPLATFORM os",
        "FROM --platform=linux os",
        "FROM --platform= os",
        // Nothing of these has a platform.
        "FROM --platform=windows/amd64 scratch",
        "FROM os AS a\nFROM --platform=linux/mips a",
        "FROM --platform=linux/mips os AS a\nFROM os",
    ] {
        assert!(planned(text, &[], None, &none).is_ok(), "{text}");
    }
    let plan = planned("FROM os-$TARGETOS-$TARGETARCH", &[("TARGETARCH", "toaster")], None, &none);
    assert_eq!(plan.unwrap().stages[0].base, Source::Base("os-linux-toaster".into()));
}

#[test]
fn targets_are_found_or_suggested() {
    let text = "FROM a AS build\nFROM b AS Test\nFROM c";
    let none = Outside::default();
    for (target, index) in [("build", 0), ("TEST", 1), ("2", 2)] {
        let plan = planned(text, &[], Some(target), &none).unwrap();
        assert_eq!(plan.stages.last().unwrap().index, index, "{target}");
        assert_eq!(lookup(&plan.globals.values, "TARGETSTAGE").as_deref(), Some(target));
    }
    let plan = planned(text, &[], None, &none).unwrap();
    assert_eq!(lookup(&plan.globals.values, "TARGETSTAGE").as_deref(), Some("default"));
    let error = planned(text, &[], Some("bulid"), &none).unwrap_err().to_string();
    let words = "target stage \"bulid\" could not be found (did you mean build?)";
    assert!(error.starts_with(words), "{error}");
    let error = planned(text, &[], Some("3"), &none).unwrap_err().to_string();
    assert!(error.contains("Dockerfile has build, test"), "{error}");
}

#[test]
fn triggers_are_steps_of_who_is_built_from_them() {
    let mut outside = Outside::default();
    let text = "FROM os\nENV A=b\nFROM x AS src\nFROM os AS p\nONBUILD COPY --from=src a b\n\
                ONBUILD RUN c\nFROM p AS q\nRUN d\nFROM q";
    assert_eq!(shape(text, Some("q"), &outside), "1:x[] 2:os[] 3:stage 2[stage 1]");
    let plan = planned(text, &[], None, &outside).unwrap();
    let texts = |plan: &Plan, at: usize| -> Vec<String> {
        plan.stages[at].steps.iter().map(|step| step.step.text.clone()).collect()
    };
    assert_eq!(texts(&plan, 2), ["ONBUILD COPY --from=src a b", "ONBUILD RUN c", "RUN d"]);
    // They go no further.
    assert!(texts(&plan, 3).is_empty());
    assert_eq!(plan.steps, 9);
    assert_eq!(plan.bases(), ["os", "x"].into());

    let triggers = vec!["ADD a /a".to_owned(), "COPY --from=other b /b".to_owned()];
    outside.triggers.insert("os".into(), triggers);
    let plan = planned(text, &[], Some("0"), &outside).unwrap();
    assert_eq!(texts(&plan, 0), ["ONBUILD ADD a /a", "ONBUILD COPY --from=other b /b", "ENV A=b"]);
    assert_eq!(plan.stages[0].steps[0].step.line, 1);
    assert!(plan.needs_context);
    assert_eq!(plan.stages[0].steps[1].sources, [Source::Base("other".into())]);

    outside.triggers.insert("os".into(), vec!["COPY --from=p a b".to_owned()]);
    let error = planned("FROM y\nFROM os\nFROM x AS p", &[], Some("1"), &outside).unwrap_err();
    assert!(error.to_string().contains("Dockerfile:2: cannot copy from stage \"p\""), "{error}");
}

#[test]
fn arguments_before_the_first_from() {
    let none = Outside::default();
    let value = |text: &str, args: &[(&str, &str)], name: &str| {
        let plan = planned(text, args, None, &none).unwrap_or_else(|e| panic!("{text}: {e}"));
        lookup(&plan.globals.values, name)
    };
    let text = "ARG a1=\"foo bar\" a2=box\nARG a3=\"$a2-foo\" a4\nFROM x";
    assert_eq!(value(text, &[], "a1").as_deref(), Some("foo bar"));
    assert_eq!(value(text, &[], "a3").as_deref(), Some("box-foo"));
    assert_eq!(value(text, &[("a2", "$a1")], "a3").as_deref(), Some("$a1-foo"));
    assert_eq!(value(text, &[], "a4"), None);
    assert_eq!(value("ARG TARGETOS\nFROM x", &[], "TARGETOS").as_deref(), Some("linux"));
    let image = planned("ARG i=idlebox\nFROM busy${i#idle}", &[], None, &none).unwrap();
    assert_eq!(image.stages[0].base, Source::Base("busybox".into()));
}

#[test]
fn the_epoch_is_a_number() {
    let none = Outside::default();
    let epoch =
        |text: &str, args: &[(&str, &str)]| planned(text, args, None, &none).map(|p| p.globals);
    let own = "ARG SOURCE_DATE_EPOCH=1700000501\nFROM x";
    assert_eq!(epoch("FROM x", &[]).unwrap().epoch, None);
    assert_eq!(epoch(own, &[]).unwrap().epoch, Some(1_700_000_501));
    let given = epoch(own, &[("SOURCE_DATE_EPOCH", "+7")]).unwrap();
    assert_eq!(given.epoch, Some(7));
    assert_eq!(lookup(&given.values, "SOURCE_DATE_EPOCH").as_deref(), Some("7"));
    // A local context has no commit; an empty value takes the default back.
    for value in ["", "context"] {
        let globals = epoch(own, &[("SOURCE_DATE_EPOCH", value)]).unwrap();
        assert_eq!((globals.epoch, lookup(&globals.values, "SOURCE_DATE_EPOCH")), (None, None));
        assert!(globals.args.is_empty());
    }
    let error = epoch("ARG SOURCE_DATE_EPOCH=noon\nFROM x", &[]).unwrap_err().to_string();
    assert!(error.starts_with("Dockerfile:1: invalid SOURCE_DATE_EPOCH: noon"), "{error}");
    let error = epoch("FROM x AS src", &[("SOURCE_DATE_EPOCH", "src")]).unwrap_err().to_string();
    assert!(error.contains("is not supported"), "{error}");
}

#[test]
fn arguments_that_nobody_takes_are_known() {
    let args = [
        ("USED", "1"),
        ("GLOBAL", "1"),
        ("TARGETARCH", "1"),
        ("http_proxy", "1"),
        ("BUILDKIT_INLINE_CACHE", "1"),
        ("SOURCE_DATE_EPOCH", "1"),
        ("LONE", "1"),
        ("ELSEWHERE", "1"),
    ];
    let text = "ARG GLOBAL\nFROM x\nARG ELSEWHERE\nFROM y\nARG USED\nRUN z";
    let plan = planned(text, &args, None, &Outside::default()).unwrap();
    assert_eq!(plan.unused, ["ELSEWHERE", "LONE"]);
}
