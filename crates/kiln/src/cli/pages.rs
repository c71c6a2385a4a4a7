//! Completions for shells and pages for `man`, from the same source as the help.

use std::io::{self, Write as _};
use std::path::Path;

use clap::CommandFactory as _;
use clap_complete::Shell;
use kiln_core::exit::Exit;

use super::args::Cli;
use crate::report::{Because, Report};

/// `kiln completions SHELL`, to standard output.
pub(super) fn completions(shell: Shell) -> Result<Exit, Report> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "kiln", &mut text);
    // A reader that has gone away wants no more.
    match io::stdout().lock().write_all(&text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).because(|| "writing the completions".into())
        }
        _ => Ok(Exit::Done),
    }
}

/// `kiln man DIR`: `kiln.1`, and one page for each verb.
pub(super) fn man(dir: &Path) -> Result<Exit, Report> {
    let doing = || format!("writing pages to {}", dir.display());
    std::fs::create_dir_all(dir).because(doing)?;
    clap_mangen::generate_to(Cli::command(), dir).because(doing)?;
    Ok(Exit::Done)
}
