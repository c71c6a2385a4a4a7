//! What Kiln makes of a Dockerfile beside what Docker Engine (BuildKit, and the classic builder) and
//! buildah make of the same input: file tree with owners, modes, links, attributes and content, and
//! image configuration.
//!
//! The cases are `peers/cases/*.txt`; [`case`] has their form. A difference fails the test unless the
//! case declares it, with the reason; so does a declared difference that is not there.
//! `KILN_PEERS_ONLY=TEXT` takes only the cases whose name holds the text.

#[path = "peers/builders.rs"]
mod builders;
#[path = "peers/case.rs"]
mod case;
mod common;
#[path = "peers/compare.rs"]
mod compare;
#[path = "peers/images.rs"]
mod images;
#[path = "peers/tree.rs"]
mod tree;

use std::path::{Path, PathBuf};

use builders::{Baked, build};
use case::Case;

/// All cases, in the order of their files' names.
fn cases() -> Vec<Case> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/cases");
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = files.collect();
    files.sort();
    let parse = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        Case::parse(&name, &std::fs::read_to_string(path).unwrap())
    };
    files.iter().flat_map(parse).collect()
}

#[test]
fn as_buildkit_in_docker_engine() {
    compare("buildkit", &["dockerd", "docker"]);
}

#[test]
fn as_the_classic_builder_of_docker_engine() {
    compare("classic", &["dockerd", "docker"]);
}

#[test]
fn as_buildah() {
    compare("buildah", &["buildah"]);
}

#[track_caller]
fn compare(peer: &str, programs: &[&str]) {
    if kiln_testkit::peers::lacks(programs) {
        return;
    }
    let baked = Baked::get();
    let outcomes = build(peer, &baked);
    let mut complaints = Vec::new();
    let mut same = 0;
    for ((case, _, kiln), theirs) in baked.iter().zip(&outcomes) {
        let complaint = judge(case, peer, kiln, theirs);
        if complaint.is_empty() {
            same += 1;
        } else {
            complaints.push(format!(
                "{} {}\n    {}",
                case.place,
                case.name,
                complaint.join("\n    ")
            ));
        }
    }
    assert!(
        complaints.is_empty(),
        "beside {peer}: {same} cases agree, these do not:\n{}",
        complaints.join("\n")
    );
    assert!(same > 0, "no case");
}

/// What is wrong about a case, one line each.
fn judge(
    case: &Case,
    peer: &str,
    kiln: &builders::Outcome,
    theirs: &builders::Outcome,
) -> Vec<String> {
    let refuses = |who: &str| Case::names(&case.fails, who);
    let last = |text: &str| {
        text.lines()
            .rev()
            .take(12)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .collect::<Vec<_>>()
            .join("\n      ")
    };
    let mut wrong = Vec::new();
    let mut check = |who: &str, outcome: &builders::Outcome| match outcome {
        Ok(_) if refuses(who) => wrong.push(format!("{who} does not refuse it")),
        Err(said) if !refuses(who) => {
            wrong.push(format!("{who} refuses it:\n      {}", last(said)))
        }
        _ => {}
    };
    check("kiln", kiln);
    if Case::names(&case.skip, peer) {
        return wrong;
    }
    check(peer, theirs);
    if let (Ok(kiln), Ok(theirs)) = (kiln, theirs) {
        wrong.extend(compare::undeclared(case, peer, kiln, theirs));
    }
    wrong
}
