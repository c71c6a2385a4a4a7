//! `--json`: every verb prints one document on standard output and nothing else there, or one object a
//! line where it tells of many things; also when it fails.

mod common;

use std::collections::BTreeSet;

use common::web;
use kiln_testkit::Output;
use serde_json::Value;

/// What a verb prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Prints {
    One,
    Lines,
}

#[track_caller]
fn check(said: &Output, prints: Prints) {
    let documents: Vec<Value> = serde_json::Deserializer::from_str(&said.stdout)
        .into_iter()
        .collect::<Result<_, _>>()
        .unwrap_or_else(|error| panic!("{error} in {said}"));
    match prints {
        Prints::One => assert_eq!(documents.len(), 1, "{said}"),
        Prints::Lines => assert_eq!(said.stdout.lines().count(), documents.len(), "{said}"),
    }
    assert!(prints == Prints::One || documents.iter().all(Value::is_object), "{said}");
    let failed = !matches!(said.code, Some(0 | 3));
    let errors = documents.iter().filter(|document| document["error"]["message"].is_string());
    assert_eq!(errors.count(), usize::from(failed), "{said}");
}

#[test]
fn every_verb_prints_documents() {
    use Prints::{Lines, One};
    let (world, project, _port) = web();
    project.write("data", "x");
    // In an order in which each finds something.
    let table: &[(&[&str], Prints)] = &[
        (&["config"], One),
        (&["config", "-q"], One),
        (&["config", "--services"], One),
        (&["config", "-o", "out.json"], One),
        (&["lock"], One),
        (&["pull"], One),
        (&["bake"], One),
        (&["plan"], One),
        (&["ps"], One),
        (&["ls"], One),
        (&["images"], One),
        (&["releases"], One),
        (&["status"], One),
        (&["stats", "--no-stream"], One),
        (&["history"], Lines),
        (&["logs"], Lines),
        (&["up"], One),
        (&["up", "--learn", "web", "--timeout", "1"], One),
        (&["up", "--nonsense"], One),
        (&["ps"], One),
        (&["status"], One),
        (&["stats", "--no-stream"], One),
        (&["ls", "-a"], One),
        (&["port", "web"], One),
        (&["port", "web", "9"], One),
        (&["cp", "web:/www", "copied"], One),
        (&["logs", "-n", "3"], Lines),
        (&["history", "-n", "3"], Lines),
        (&["plan"], One),
        (&["diff"], One),
        (&["verify"], One),
        (&["release"], One),
        (&["releases"], One),
        (&["restart"], One),
        (&["rollback"], One),
        (&["wait", "nobody"], One),
        (&["export", "-o", "layout"], One),
        (&["import", "layout", "--name", "it"], One),
        (&["import", "--remove", "it"], One),
        (&["images"], One),
        (&["login", "127.0.0.1:9", "-u", "me", "--password-stdin"], One),
        (&["logout", "127.0.0.1:9"], One),
        (&["fsck"], One),
        (&["gc", "--dry-run"], One),
        (&["completions", "bash"], One),
        (&["man", "pages"], One),
        (&["init"], One),
        (&["down", "--volumes"], One),
        (&["shutdown"], One),
        (&["shutdown"], One),
    ];
    for (args, prints) in table {
        let args = args.iter().copied().chain(["--json"]);
        let call = world.call(args).dir(project.dir()).env("HOME", project.dir()).stdin("secret\n");
        check(&call.run().unwrap(), *prints);
    }
    // What `exec` and `run` print is the command's, and `serve` stays.
    let tried: BTreeSet<&str> =
        table.iter().map(|(args, _)| args[0]).chain(["exec", "run", "serve"]).collect();
    let help = world.kiln(["--help"]).expect_done().stdout;
    let verbs = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    let verbs = verbs.take_while(|line| !line.is_empty());
    let verbs = verbs.filter_map(|line| line.split_whitespace().next());
    let verbs: BTreeSet<&str> = verbs.filter(|verb| *verb != "help").collect();
    assert_eq!(verbs, tried);
}
