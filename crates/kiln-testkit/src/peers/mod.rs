//! Other programs that build and run images, to be compared with and measured against: from the
//! distribution's packages, without a network, and without a trace on the machine.
//!
//! | module | noun |
//! |---|---|
//! | [`cell`] | folder and namespaces that go with whoever made them |
//! | [`engine`] | Docker Engine: its own builder, and BuildKit inside it |
//! | [`buildah`] | buildah |

pub mod buildah;
pub mod cell;
pub mod engine;

pub use buildah::Buildah;
pub use cell::{Cell, Keep};
pub use engine::{Engine, Network};

use std::path::Path;

/// Those of these programs that the distribution's packages would bring and that are not there.
pub fn missing<'a>(programs: &[&'a str]) -> Vec<&'a str> {
    let there =
        |program: &str| cell::PATH.split(':').any(|dir| Path::new(dir).join(program).is_file());
    programs.iter().copied().filter(|program| !there(program)).collect()
}

/// Whether a test has to be passed over because the machine lacks programs, which it says.
///
/// # Panics
/// If they are missing although `KILN_TEST_REQUIRE=1` says that they must be there.
#[track_caller]
pub fn lacks(programs: &[&str]) -> bool {
    let missing = missing(programs);
    if missing.is_empty() {
        return false;
    }
    let require = std::env::var_os("KILN_TEST_REQUIRE").is_some_and(|value| value == "1");
    assert!(!require, "not installed, and KILN_TEST_REQUIRE=1: {missing:?}");
    eprintln!("passed over, for these are not installed: {missing:?}");
    true
}
