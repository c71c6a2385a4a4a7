//! Any bytes are a Debian package or a refusal.
#![no_main]

use kiln_fuzz::{assert_whole, file, store};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(tree) = kiln_bake::fuzz::package(store(), file(bytes)) {
        assert_whole(&tree);
    }
});
