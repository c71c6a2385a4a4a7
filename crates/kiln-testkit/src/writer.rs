//! A program that is never to run twice on the same data, and cries if it does.
//!
//! `writer DIR TEXT [PORT]` locks `DIR/lock`, adds `TEXT` to `DIR/log` every 20 ms, and leaves
//! `SECOND WRITER` in `DIR/cries` if somebody else has the lock. It ends 300 ms after SIGTERM.

use std::sync::OnceLock;

/// The program's bytes, compiled by the machine's C compiler once in this process.
///
/// # Panics
/// If there is no working C compiler.
pub fn program() -> &'static [u8] {
    static PROGRAM: OnceLock<Vec<u8>> = OnceLock::new();
    let source = include_str!("writer.c");
    PROGRAM
        .get_or_init(|| crate::server::compile(source).unwrap_or_else(|error| panic!("{error:#}")))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::{Call, Project, wait_until};

    #[test]
    fn the_second_one_cries() {
        let dir = tempfile::tempdir().unwrap();
        let project = Project::new(dir.path().join("writer"), "");
        project.write_program("writer", super::program());
        let start = |text: &str| {
            Call::new(project.path("writer")).arg(project.dir()).arg(text).spawn().unwrap()
        };
        let patience = Duration::from_secs(5);
        let log = || std::fs::read_to_string(project.path("log")).unwrap_or_default();
        let first = start("one");
        wait_until(patience, "the first one", || log().contains("one").then_some(()));
        assert!(!project.path("cries").exists());
        let second = start("two");
        wait_until(patience, "a cry", || project.path("cries").exists().then_some(()));
        for running in [first, second] {
            running.signal(rustix::process::Signal::TERM).unwrap();
            assert!(running.wait_within(patience).unwrap().success());
        }
    }
}
