//! What is accepted is a tree whose own listing reads back as the same tree.
#![no_main]

use kiln_core::tree::Tree;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(tree) = Tree::parse(text) {
        let listing = tree.listing();
        let again = Tree::parse(&listing).expect("the listing of a tree is one");
        assert_eq!(again.listing(), listing);
    }
});
