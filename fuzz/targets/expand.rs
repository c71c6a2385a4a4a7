//! Words with variables end in bounded text or in a refusal, whatever they nest.
#![no_main]

use kiln_bake::dockerfile::expand::Lex;

libfuzzer_sys::fuzz_target!(|word: &str| {
    let lookup = |name: &str| match name {
        "empty" => Some(String::new()),
        "long" => Some("ab/c*".repeat(20)),
        name if name.starts_with('s') => Some(name.to_owned()),
        _ => None,
    };
    for escape in ['\\', '`'] {
        for raw in [false, true] {
            let lex =
                Lex { raw_quotes: raw, raw_escapes: raw, skip_unset: raw, ..Lex::new(escape) };
            let whole = lex.word(word, &lookup);
            let split = lex.words(word, &lookup);
            assert_eq!(whole.is_err(), split.is_err());
        }
    }
});
