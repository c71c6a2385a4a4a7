//! A tiny HTTP server as a static program, for images that hold nothing else.
//!
//! `server PORT FILE` answers every request with the file's content, keeps connections alive, and
//! ends on SIGTERM. It stands thousands of requests a second, which busybox's httpd does not.

use std::sync::OnceLock;

use anyhow::{Context, Result};

use crate::call::Call;

const SOURCE: &str = include_str!("server.c");

/// The program's bytes, compiled by the machine's C compiler once in this process.
///
/// # Panics
/// If there is no working C compiler.
pub fn program() -> &'static [u8] {
    static PROGRAM: OnceLock<Vec<u8>> = OnceLock::new();
    PROGRAM.get_or_init(|| compile(SOURCE).unwrap_or_else(|error| panic!("{error:#}")))
}

/// A static program from the text of a C file.
pub(crate) fn compile(source: &str) -> Result<Vec<u8>> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("program");
    Call::new("cc")
        .args(["-std=c17", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-s", "-x", "c", "-"])
        .arg("-o")
        .arg(&path)
        .stdin(source)
        .run_ok()
        .context("compiling a test program")?;
    Ok(std::fs::read(&path)?)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::process::Signal;

    use super::*;
    use crate::{Client, Port, Probe, Project, wait_until};

    #[test]
    fn stands_the_probers_rate_and_ends_on_sigterm() {
        let dir = tempfile::tempdir().unwrap();
        let project = Project::new(dir.path().join("server"), "");
        project.write_program("server", program()).write("index.html", "hello\n");
        let port = Port::claim();
        let running = Call::new(project.path("server"))
            .arg(port.to_string())
            .arg(project.path("index.html"))
            .spawn()
            .unwrap();
        let mut client = Client::local(port.number());
        wait_until(Duration::from_secs(5), "an answer", || client.get("/").ok());
        assert!(client.is_connected());
        let probing = Probe::local(port.number(), 2_000).start();
        std::thread::sleep(Duration::from_millis(300));
        let report = probing.stop().unwrap().expect_no_loss();
        assert!(report.requests() > 300 && report.answers[0].label == "hello", "{report}");
        running.signal(Signal::TERM).unwrap();
        assert_eq!(running.wait().unwrap().code, Some(0));
    }
}
