//! `WWW-Authenticate` of anybody: a challenge for a token has a realm.
#![no_main]

use kiln_remote::registry::challenge::Challenge;

libfuzzer_sys::fuzz_target!(|text: &str| {
    for challenge in Challenge::read(text) {
        if let Challenge::Bearer(bearer) = challenge {
            assert!(!bearer.realm.is_empty());
        }
    }
});
