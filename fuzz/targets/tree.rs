//! A listing that is accepted is the canonical one of its tree.
#![no_main]

use kiln_core::tree::Tree;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(tree) = Tree::parse(text) {
        assert_eq!(tree.listing(), text);
    }
});
