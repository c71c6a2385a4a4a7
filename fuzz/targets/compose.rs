//! Any text is a project or a named refusal.
#![no_main]

use std::collections::BTreeMap;
use std::io;

use kiln_core::compose::{self, LoadRequest};

libfuzzer_sys::fuzz_target!(|text: &[u8]| {
    let read = |path: &std::path::Path| match path.file_name().and_then(|name| name.to_str()) {
        Some("compose.yaml") => Ok(text.to_owned()),
        // The same bytes as an environment file: its reader has its own rules.
        Some(".env") => Ok(text.to_owned()),
        _ => Err(io::Error::from(io::ErrorKind::NotFound)),
    };
    let request = LoadRequest {
        files: vec!["/project/compose.yaml".into()],
        dir: "/project".into(),
        env: BTreeMap::from([("HOME".to_owned(), "/root".to_owned())]),
        profiles: vec!["*".to_owned()],
        named: Vec::new(),
        project_name: None,
        read: &read,
        project_dir: None,
        env_files: Vec::new(),
        real_dir: &|dir| dir.to_owned(),
    };
    if let Err(error) = compose::load(&request) {
        assert!(!error.to_string().is_empty());
    }
});
