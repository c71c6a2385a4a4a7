use super::*;

fn steps(text: &str) -> Vec<Instruction> {
    let file = parse(&format!("FROM scratch\n{text}")).unwrap_or_else(|e| panic!("{text}: {e}"));
    file.stages[0].steps.iter().map(|step| step.instruction.clone()).collect()
}

fn refused(text: &str) -> SyntaxError {
    parse(text).expect_err(text)
}

fn shell(text: &str) -> CommandLine {
    CommandLine::Shell(text.into())
}

fn exec(args: &[&str]) -> CommandLine {
    CommandLine::Exec(args.iter().map(|arg| (*arg).into()).collect())
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

fn run(command: CommandLine) -> Instruction {
    Instruction::Run(Run { command, heredocs: vec![], network: None, mounts: vec![] })
}

#[test]
fn lines_join_and_keep_their_numbers() {
    let text = "\u{feff}# a comment\n\nFROM scratch AS One\r\n  run a \\\n # inner\n\n  b \\  \n\tc\n\
                # between\nCMD x\\\\\nUSER u";
    let file = parse(text).unwrap();
    let stage = &file.stages[0];
    assert_eq!((stage.line, stage.name.as_deref()), (3, Some("one")));
    let found: Vec<_> = stage.steps.iter().map(|step| (step.line, step.text.as_str())).collect();
    assert_eq!(found, [(4, "run a   b \tc"), (10, "CMD x\\\\"), (11, "USER u")]);
}

#[test]
fn a_file_may_end_in_a_continuation() {
    assert_eq!(steps("RUN a \\\n"), [run(shell("a"))]);
    assert_eq!(steps("RUN a \\\n \\\n b"), [run(shell("a   b"))]);
}

#[test]
fn directives_stand_first() {
    let file =
        parse("# syntax=docker/dockerfile:1\n# Escape = `\nFROM scratch\nRUN a `\n b\\").unwrap();
    assert_eq!(file.escape, '`');
    assert_eq!(file.stages[0].steps[0].instruction, run(shell("a  b\\")));
    // After any other comment, and after an unknown one, they are comments.
    assert_eq!(parse("# hello\n# escape=`\nFROM x").unwrap().escape, '\\');
    assert_eq!(parse("# unknown=1\n# escape=`\nFROM x").unwrap().escape, '\\');
    assert_eq!(parse("# check=skip=all\n# escape=`\nFROM x").unwrap().escape, '`');
    assert_eq!(refused("# escape=x\nFROM x").line, 1);
    assert_eq!(refused("# escape=`\n# escape=`\nFROM x").line, 2);
    assert_eq!(refused("# syntax=example.org/own:1\nFROM x").line, 1);
    assert!(parse("# syntax=docker.io/docker/dockerfile:1.7@sha256:00\nFROM x").is_ok());
    assert!(parse("# syntax=docker/dockerfile:1-labs\nFROM x").is_ok());
    // Mirrors of it, and what only sounds like one.
    for (name, known) in [
        ("docker/dockerfile", true),
        ("docker.io/docker/dockerfile", true),
        ("registry-1.docker.io/docker/dockerfile:1.4", true),
        ("mirror.gcr.io/docker/dockerfile:1", true),
        ("registry.example.com:5000/proxy/docker.io/docker/dockerfile:1.7.0-labs", true),
        ("registry.example.com:5000/docker/dockerfile", true),
        ("example.com/tools/dockerfile:1.6", true),
        ("example.com/dockerfile-upstream:master-experimental", true),
        ("docker/dockerfile-upstream:pr-123", true),
        ("example.com/docker/dockerfile:own@sha256:00", true),
        ("dockerfile", false),
        ("tonistiigi/dockerfile:runmount20180618", false),
        ("example.com/own/dockerfile@sha256:00", false),
        ("docker/dockerfile-own:1", false),
        ("docker/own:1", false),
        ("example.com/docker/dockerfile/own:1", false),
        ("mydocker/dockerfile-x:1", false),
    ] {
        assert_eq!(parse(&format!("# syntax={name}\nFROM x")).is_ok(), known, "{name}");
    }
    // Clients look for `syntax` in more places than the parser looks for `escape`.
    assert_eq!(refused("#!/usr/bin/env x\n# syntax=own\nFROM x").line, 2);
    assert_eq!(refused("//syntax=own\nFROM x").line, 1);
    assert_eq!(parse("#!/usr/bin/env x\n# escape=`\nFROM x").unwrap().escape, '\\');
    assert!(parse("FROM x\n# syntax=own").is_ok());
}

#[test]
fn commands_have_two_forms() {
    for (text, expected) in [
        ("RUN echo \"a b\"", shell("echo \"a b\"")),
        ("RUN [\"a\", \"b c\"]", exec(&["a", "b c"])),
        ("RUN   [ \"a\" ]  ", exec(&["a"])),
        // What is no JSON is a shell command, as BuildKit has it.
        ("RUN ['a', 'b']", shell("['a', 'b']")),
        ("RUN [ -f /x ] && y", shell("[ -f /x ] && y")),
        ("RUN [\"a\"", shell("[\"a\"")),
        ("RUN [\"a\"] trailing", shell("[\"a\"] trailing")),
        ("RUN [\"\\u00e9\\n\"]", exec(&["é\n"])),
    ] {
        assert_eq!(steps(text), [run(expected)], "{text}");
    }
    assert_eq!(steps("CMD []"), [Instruction::Cmd(exec(&[]))]);
    assert_eq!(steps("ENTRYPOINT a b"), [Instruction::Entrypoint(shell("a b"))]);
    assert!(refused("FROM x\nRUN [\"a\", 1]").what.contains("not a string"));
    assert!(refused("FROM x\nRUN [[\"a\"]]").what.contains("not a string"));
    assert_eq!(refused("FROM x\n\nRUN []").line, 3);
    // The shell has nothing to do then.
    assert_eq!(steps("RUN"), [run(shell(""))]);
}

#[test]
fn pairs_have_two_forms() {
    for (text, expected) in [
        ("ENV a=b", pairs(&[("a", "b")])),
        ("ENV a b c  d", pairs(&[("a", "b c  d")])),
        (
            "ENV a=\"b c\" d='e f' g=h\\ i",
            pairs(&[("a", "\"b c\""), ("d", "'e f'"), ("g", "h\\ i")]),
        ),
        ("ENV a=b \\\n c=d", pairs(&[("a", "b"), ("c", "d")])),
        ("ENV a=", pairs(&[("a", "")])),
        ("ENV a \"b=c\"", pairs(&[("a", "\"b=c\"")])),
        ("ENV a='it\\' b=c", pairs(&[("a", "'it\\'"), ("b", "c")])),
        ("ENV a=\"x\\\"y z\"", pairs(&[("a", "\"x\\\"y z\"")])),
    ] {
        assert_eq!(steps(text), [Instruction::Env(expected)], "{text}");
    }
    for bad in ["ENV", "ENV a", "ENV a=b c", "ENV =b", "LABEL a"] {
        assert_eq!(refused(&format!("FROM x\n{bad}")).line, 2, "{bad}");
    }
}

#[test]
fn args_may_lack_values() {
    let file = parse("ARG A\nARG B=1 C=\"x y\"\nFROM $A\nARG A B=2").unwrap();
    assert_eq!(file.args[0].args, [("A".to_owned(), None)]);
    assert_eq!(file.args[1].args[1], ("C".to_owned(), Some("\"x y\"".to_owned())));
    let expected = vec![("A".to_owned(), None), ("B".to_owned(), Some("2".to_owned()))];
    assert_eq!(file.stages[0].steps[0].instruction, Instruction::Arg(expected));
}

#[test]
fn copies() {
    let Instruction::Copy(copy) = &steps("COPY --from=b --chown=1:2 --chmod=0755 a b  c/")[0]
    else {
        panic!("no copy");
    };
    assert_eq!((copy.from.as_deref(), copy.chown.as_deref()), (Some("b"), Some("1:2")));
    assert_eq!((copy.chmod.as_deref(), copy.dest.as_str()), (Some("0755"), "c/"));
    assert_eq!(copy.sources, ["a", "b"]);
    let Instruction::Copy(copy) = &steps("ADD [\"a b\", \"/c d\"]")[0] else { panic!("no add") };
    assert!(copy.add);
    assert_eq!((copy.sources.as_slice(), copy.dest.as_str()), (&["a b".to_owned()][..], "/c d"));
    for bad in [
        "COPY a",
        "COPY",
        "COPY --link=maybe a b",
        "COPY --exclude a b",
        "COPY --what=x a b",
        "COPY --from a b",
        "COPY --chown=1 --chown=2 a b",
        "ADD --from=x a b",
        "ADD --parents a b",
        "COPY --checksum=x a b",
        "COPY a <<EOF\nEOF",
    ] {
        assert_eq!(refused(&format!("FROM x\n{bad}")).line, 2, "{bad}");
    }
}

#[test]
fn here_documents() {
    let text = "COPY <<EOF <<-'two' /dest/\nhello $A\nEOF\n\tx\n\t y\n\ttwo\nRUN <<EOF\nset -e\nEOF\n\
                RUN python3 <<A - <<\"B\"\n1\nA\n2\nB\nUSER end";
    let found = steps(text);
    let Instruction::Copy(copy) = &found[0] else { panic!("no copy") };
    let document = |name: &str, content: &str, expand| Document {
        name: name.into(),
        content: content.into(),
        expand,
    };
    let expected = [document("EOF", "hello $A\n", true), document("two", "x\n y\n", false)];
    assert_eq!(copy.documents, expected);
    assert!(copy.sources.is_empty());
    let Instruction::Run(run) = &found[1] else { panic!("no run") };
    assert_eq!(run.command, shell("<<EOF"));
    assert_eq!(run.heredocs[0].content, "set -e\n");
    let Instruction::Run(run) = &found[2] else { panic!("no run") };
    let names: Vec<_> = run.heredocs.iter().map(|doc| (doc.name.as_str(), doc.expand)).collect();
    assert_eq!(names, [("A", true), ("B", false)]);
    assert_eq!(found[3], Instruction::User("end".into()));
    // What the shell knows and Dockerfiles do not is left to the shell.
    let Instruction::Run(run) = &steps("RUN x ${V:0:3} <<EOF\n1\nEOF")[0] else { panic!("no run") };
    assert_eq!(run.heredocs[0].content, "1\n");
    let open = refused("FROM x\nRUN <<EOF\nnever");
    assert_eq!(open.line, 2);
    assert!(open.what.contains("EOF"));
}

#[test]
fn what_looks_like_a_here_document_and_is_none() {
    for text in [
        "RUN echo \"<<EOF\" x",
        "RUN [\"cat\", \"<<EOF\"]",
        "RUN cat <<<EOF",
        "RUN echo '<<EOF'",
        "RUN echo it's <<EOF",
        "RUN echo $((1 << 2))x<<",
        "ENV A=<<EOF",
    ] {
        let found = steps(text);
        assert_eq!(found.len(), 1, "{text}");
        if let Instruction::Run(run) = &found[0] {
            assert!(run.heredocs.is_empty(), "{text}");
        }
    }
}

#[test]
fn networks() {
    for (flag, expected) in
        [("", None), ("--network=none ", Some(false)), ("--network=default ", Some(true))]
    {
        let Instruction::Run(run) = &steps(&format!("RUN {flag}x"))[0] else { panic!("no run") };
        assert_eq!(run.network, expected, "{flag}");
    }
    for bad in ["RUN --network=host x", "RUN --network=x y", "RUN --security=x y", "RUN --what x"] {
        assert_eq!(refused(&format!("FROM x\n{bad}")).line, 2, "{bad}");
    }
    // A device that need not be there is not there.
    assert_eq!(steps("RUN --device=vendor.com/device=a x"), [run(shell("x"))]);
    // After the command has begun there are no flags.
    assert_eq!(steps("RUN -- --network=x"), [run(shell("--network=x"))]);
    assert_eq!(steps("RUN a --network=x"), [run(shell("a --network=x"))]);
}

#[test]
fn healthchecks() {
    let text = "HEALTHCHECK --interval=5s --timeout=1m30s --retries=4 --start-period=0s CMD curl x";
    let Instruction::Healthcheck(check) = &steps(text)[0] else { panic!("no check") };
    assert_eq!(check.test, ["CMD-SHELL", "curl x"]);
    assert_eq!((check.interval, check.timeout), (Some(5_000_000_000), Some(90_000_000_000)));
    assert_eq!((check.retries, check.start_period), (Some(4), None));
    let Instruction::Healthcheck(check) = &steps("HEALTHCHECK CMD [\"a\", \"b\"]")[0] else {
        panic!("no check")
    };
    assert_eq!(check.test, ["CMD", "a", "b"]);
    let Instruction::Healthcheck(check) = &steps("HEALTHCHECK none")[0] else { panic!("no check") };
    assert_eq!(check.test, ["NONE"]);
    for bad in [
        "HEALTHCHECK",
        "HEALTHCHECK CMD",
        "HEALTHCHECK NONE x",
        "HEALTHCHECK x",
        "HEALTHCHECK --interval=1us CMD x",
        "HEALTHCHECK --interval=x CMD x",
        "HEALTHCHECK --retries=-1 CMD x",
        "HEALTHCHECK --what=1 CMD x",
    ] {
        assert_eq!(refused(&format!("FROM x\n{bad}")).line, 2, "{bad}");
    }
}

#[test]
fn the_small_ones() {
    assert_eq!(steps("VOLUME [\"/a b\"]"), [Instruction::Volume(vec!["/a b".into()])]);
    assert_eq!(steps("VOLUME /a /b"), [Instruction::Volume(vec!["/a".into(), "/b".into()])]);
    assert_eq!(steps("SHELL [\"/bin/bash\", \"-c\"]").len(), 1);
    assert_eq!(steps("WORKDIR /a b"), [Instruction::Workdir("/a b".into())]);
    assert_eq!(steps("expose 80 90/udp").len(), 1);
    for bad in ["SHELL bash -c", "SHELL []", "WORKDIR", "USER", "EXPOSE", "VOLUME [\"\"]", "VOLUME"]
    {
        assert_eq!(refused(&format!("FROM x\n{bad}")).line, 2, "{bad}");
    }
}

#[test]
fn stages() {
    let file = parse("FROM a as b\nFROM c\nFROM b AS D.e-1").unwrap();
    let names: Vec<_> = file.stages.iter().map(|stage| stage.name.as_deref()).collect();
    assert_eq!(names, [Some("b"), None, Some("d.e-1")]);
    for (bad, line) in [
        ("", 1),
        ("# only\n\n", 2),
        ("ARG x", 1),
        ("RUN x\nFROM y", 1),
        ("FROM", 1),
        ("FROM a b", 1),
        ("FROM a AS 1x", 1),
        ("FROM a AS", 1),
        ("FROM a IS b", 1),
        ("FROM --what=x a", 1),
        ("FROM --platform a", 1),
        ("FROM a\n\\", 2),
    ] {
        assert_eq!(refused(bad).line, line, "{bad}");
    }
}

#[test]
fn unknown_flags_are_refused_with_a_hint() {
    for (text, what, hint) in [
        ("RUN --mont=target=/x a", "unknown flag: --mont", "did you mean mount?"),
        ("COPY --unpack a b", "unknown flag: --unpack", "COPY takes --from, --chown"),
        ("MAINTAINER --boo a", "unknown flag: --boo", "MAINTAINER takes none"),
        ("COPY --chown a b", "missing a value on flag: --chown", "--chown=…"),
        ("COPY --chown=1 --chown=1 a b", "duplicate flag specified: --chown", ""),
        ("COPY --link=x a b", "expecting boolean value for flag --link, not: x", "--link=false"),
    ] {
        let error = refused(&format!("FROM x\n{text}"));
        assert_eq!(error.what, what, "{text}");
        assert!(error.hint.unwrap_or_default().contains(hint), "{text}");
    }
}

#[test]
fn unknown_instructions_are_refused_with_a_hint() {
    assert_eq!(refused("FROM x\nCOPPY a b").hint.as_deref(), Some("did you mean COPY?"));
    assert_eq!(refused("FROM x\n\nFOOBAR").hint, None);
    assert_eq!(refused("FROM x\nfntrypoint a").hint.as_deref(), Some("did you mean ENTRYPOINT?"));
    assert_eq!(refused("FROM x\nFNTRYPOINT a").what, "unknown instruction: FNTRYPOINT");
}

#[test]
fn a_name_may_be_taken_again() {
    let file = parse("FROM --platform=$BUILDPLATFORM a AS b\nFROM c AS B").unwrap();
    assert_eq!(file.stages[0].platform.as_deref(), Some("$BUILDPLATFORM"));
    assert_eq!(file.stages[1].name.as_deref(), Some("b"));
}

#[test]
fn triggers() {
    let onbuild = |text: &str| match steps(text).pop() {
        Some(Instruction::OnBuild(text)) => text,
        other => panic!("{text}: {other:?}"),
    };
    assert_eq!(onbuild("onbuild  RUN a \\\n  b"), "RUN a   b");
    let text = onbuild("ONBUILD RUN <<A cat - <<-'B'\n1\nA\n\t2\n\tB");
    assert_eq!(text, "RUN <<A cat - <<-'B'\n1\nA\n\t2\nB");
    let step = parse_trigger(&text, 7).unwrap();
    assert_eq!(step.line, 7);
    let Instruction::Run(run) = &step.instruction else { panic!("no run") };
    assert_eq!(
        (run.heredocs[0].content.as_str(), run.heredocs[1].content.as_str()),
        ("1\n", "\t2\n")
    );
    for bad in [
        "ONBUILD",
        "ONBUILD ONBUILD RUN x",
        "ONBUILD from x",
        "ONBUILD MAINTAINER x",
        "ONBUILD --x RUN y",
        "ONBUILD COPY --what=x a b",
        "ONBUILD ENV x",
        "ONBUILD WHAT x",
    ] {
        assert_eq!(refused(&format!("FROM x\n{bad}")).line, 2, "{bad}");
    }
    for bad in ["", "RUN x\nRUN y", "FROM x", "WHAT"] {
        let error = parse_trigger(bad, 3).unwrap_err();
        assert!(error.line == 3 && error.what.starts_with("ONBUILD trigger"), "{bad}: {error}");
    }
}

#[test]
fn what_is_beyond_measure_is_refused() {
    let long = "x".repeat(65_535);
    assert!(parse(&format!("FROM x\nRUN {}", &long[4..])).is_ok());
    let error = refused(&format!("FROM x\nRUN {long}"));
    assert_eq!(error.what, "dockerfile line greater than max allowed size of 65535");
    assert_eq!(error.line, 2);
    assert_eq!(refused(&format!("FROM x\n{long}")).hint, None);
    assert!(refused(&"FROM x\n".repeat(1001)).what.contains("1000 stages"));
    assert!(refused(&"#\n".repeat(3 << 20)).what.contains("4 MiB"));
}
