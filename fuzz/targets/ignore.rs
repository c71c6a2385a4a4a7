//! An ignore file: what one asks step by step from the top is what one gets for a path, and the
//! patterns as they are understood mean the same when they are read again.
#![no_main]

use std::path::Path;

use kiln_bake::ignore::Ignore;

libfuzzer_sys::fuzz_target!(|input: &str| {
    let (path, patterns) = input.split_once('\n').unwrap_or((input, ""));
    let Ok(ignore) = Ignore::parse(patterns, Path::new("ignore")) else { return };
    let again = ignore.patterns().join("\n");
    let again = Ignore::parse(&again, Path::new("again")).expect("own patterns are understood");
    assert_eq!(ask(&ignore, path), ask(&again, path), "{:?}", ignore.patterns());
});

fn ask(ignore: &Ignore, path: &str) -> Vec<bool> {
    let mut matched = Vec::new();
    let mut answers = Vec::new();
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    for length in 1..=parts.len().min(16) {
        let (answer, next) = ignore.matches(&parts[..length].join("/"), &matched);
        answers.push(answer);
        matched = next;
    }
    answers
}
