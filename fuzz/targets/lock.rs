//! A lock that is accepted is written so that it reads the same.
#![no_main]

use kiln_bake::base::Lock;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(lock) = Lock::parse(text) {
        assert_eq!(Lock::parse(&lock.text()).as_ref(), Ok(&lock));
    }
});
