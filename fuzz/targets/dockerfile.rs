//! Any text is a Dockerfile or a named refusal with a line of that text.
#![no_main]

use std::collections::BTreeMap;

use kiln_bake::dockerfile;
use kiln_bake::plan::{Outside, plan};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let lines = text.lines().count().max(1);
    match dockerfile::parse(text) {
        Ok(file) => {
            let args = BTreeMap::from([("ARG".to_owned(), Some("value".to_owned()))]);
            // The first line as a trigger of a base, too.
            let first = text.lines().next().unwrap_or_default().to_owned();
            let triggers = BTreeMap::from([("base".to_owned(), vec![first])]);
            let outside = Outside { triggers, ..Outside::default() };
            let _ = plan(&file, "Dockerfile", &args, None, &outside);
        }
        Err(error) => assert!((1..=lines).contains(&error.line), "{error:?}"),
    }
});
