//! Completions for shells and pages for `man`, from the same source as the help.

use std::io;
use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::Man;
use kiln_core::exit::Exit;
use serde_json::json;

use super::args::Cli;
use super::{print_json, print_line, write_out};
use crate::report::{Because, Report};
use crate::words::count;

/// `kiln completions SHELL`, to standard output.
pub(super) fn completions(shell: Shell, json: bool) -> Result<Exit, Report> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut shown(), "kiln", &mut text);
    let text = String::from_utf8_lossy(&text);
    if json {
        print_json(&json!({ "shell": shell.to_string(), "script": text }));
        return Ok(Exit::Done);
    }
    // A reader that has gone away wants no more.
    match write_out(&text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).because(|| "writing to standard output".into())
        }
        _ => Ok(Exit::Done),
    }
}

/// The command line without the verbs that nobody is to call.
fn shown() -> clap::Command {
    let all = Cli::command();
    let verbs = all.get_subcommands().filter(|verb| !verb.is_hide_set()).cloned();
    let shown = clap::Command::new("kiln").version(env!("CARGO_PKG_VERSION"));
    shown.args(all.get_arguments().cloned()).subcommands(verbs)
}

/// `kiln man DIR`: `kiln.1`, and one page for each verb.
pub(super) fn man(dir: &Path, json: bool) -> Result<Exit, Report> {
    let doing = || format!("writing pages to {}", dir.display());
    std::fs::create_dir_all(dir).because(doing)?;
    let mut whole = Cli::command().disable_help_subcommand(true);
    whole.build();
    let verbs = whole.get_subcommands().filter(|verb| !verb.is_hide_set());
    let pages: io::Result<Vec<PathBuf>> = verbs.chain([&whole]).map(|it| page(it, dir)).collect();
    let pages = pages.because(doing)?;
    match json {
        true => print_json(&json!({ "written": pages })),
        false => {
            let first = dir.join("kiln.1");
            let (pages, dir) = (count(pages.len(), "page"), dir.display());
            print_line(&format!("wrote {pages} to {dir}; to read one: man -l {}", first.display()));
        }
    }
    Ok(Exit::Done)
}

/// One page, at whose foot stands what it is a page of.
fn page(command: &clap::Command, dir: &Path) -> io::Result<PathBuf> {
    let of = format!("kiln {}", env!("CARGO_PKG_VERSION"));
    Man::new(command.clone()).source(of).manual("Kiln").generate_to(dir)
}
