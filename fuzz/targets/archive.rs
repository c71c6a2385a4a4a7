//! Any bytes given to ADD are a tree that holds together, or a named refusal; nothing lands beside
//! the destination.
#![no_main]

use kiln_fuzz::{assert_whole, store};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(tree) = kiln_bake::fuzz::unpack(store(), bytes) {
        assert_whole(&tree);
        let beside = tree.entries.keys().filter(|path| {
            let path: &[u8] = path;
            !path.is_empty() && path != b"out" && path != b"up" && path != b"d"
        });
        for path in beside {
            assert!(path.starts_with(b"d/"), "{:?}", String::from_utf8_lossy(path));
        }
    }
});
