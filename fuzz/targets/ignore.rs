//! An ignore file, asked as a walk asks it: what is left out and cannot be taken back below is left
//! out with all that lies below.
#![no_main]

use std::path::Path;

use kiln_bake::ignore::Ignore;

libfuzzer_sys::fuzz_target!(|input: &str| {
    let (path, patterns) = input.split_once('\n').unwrap_or((input, ""));
    let Ok(ignore) = Ignore::parse(patterns, Path::new("ignore")) else { return };
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let mut matched = Vec::new();
    let mut gone = false;
    for length in 1..=parts.len().min(16) {
        let path = parts[..length].join("/");
        let (left_out, next) = ignore.matches(&path, &matched);
        assert!(left_out || !gone, "{path} came back: {:?}", ignore.patterns());
        gone = gone || left_out && !ignore.may_take_back_below(&path);
        matched = next;
    }
});
