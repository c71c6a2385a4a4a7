//! A reference that is accepted is written so that it reads the same; so is its familiar form.
#![no_main]

use kiln_remote::registry::Reference;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(reference) = Reference::parse(text) {
        let whole = reference.to_string();
        assert_eq!(Reference::parse(&whole).expect("its own text"), reference);
        assert_eq!(Reference::parse(&reference.familiar()).expect("its familiar form"), reference);
        assert!(!whole.contains(char::is_control) && !whole.contains(".."), "{whole:?}");
    }
});
