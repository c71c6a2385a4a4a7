//! The verbs: arguments in, a request to the agent, what a person or a script sees out.

mod args;
mod carrier;
mod client;
mod init;
mod live;
mod show;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use kiln_core::exit::Exit;
use serde_json::{Value, json};

use crate::agent;
use crate::protocol::{Event, Verb};
use crate::report::Report;
use args::{Cli, Command};

/// Runs the command line and gives the exit code.
pub(crate) fn run() -> ExitCode {
    std::panic::set_hook(Box::new(|info| {
        let _ = writeln!(std::io::stderr(), "kiln: a bug in Kiln: {info}");
    }));
    let cli = match Cli::try_parse() {
        // The agent has a working directory of its own.
        Ok(cli) => Cli { root: std::path::absolute(&cli.root).unwrap_or(cli.root), ..cli },
        Err(error) => {
            let _ = error.print();
            let wrong = error.use_stderr();
            return ExitCode::from(if wrong { Exit::Usage } else { Exit::Done }.code());
        }
    };
    let json = cli.json;
    match std::panic::catch_unwind(|| dispatch(cli)) {
        Ok(Ok(code)) => ExitCode::from(code),
        Ok(Err(report)) => {
            complain(&report, json);
            ExitCode::from(report.exit.code())
        }
        Err(_) => ExitCode::from(Exit::Bug.code()),
    }
}

fn dispatch(cli: Cli) -> Result<u8, Report> {
    let exit = match cli.command {
        Command::Init => init::init(&std::env::current_dir().unwrap_or_default(), cli.json),
        Command::Serve => agent::serve(&cli.root, agent::Leave::Never),
        Command::Agent => agent::serve(&cli.root, agent::Leave::WhenIdle),
        Command::Shutdown if !client::agent_is_there(&cli.root) => {
            let remains = agent::collect_remains(&cli.root)?;
            finish(&Verb::Shutdown, &json!({ "agent": false, "collected": remains }), cli.json);
            Ok(Exit::Done)
        }
        command => return ask(&cli.root, command.verb(cli.project), cli.json),
    };
    exit.map(Exit::code)
}

/// Sends `verb` and shows what comes back until it ends. Gives the exit code: of `exec`, the
/// command's own.
fn ask(root: &std::path::Path, verb: Verb, json: bool) -> Result<u8, Report> {
    let hand = carrier::Hand::of(&verb, json)?;
    let mut answers = client::send(root, verb.clone(), &hand.fds())?;
    if matches!(
        verb,
        Verb::Up { .. }
            | Verb::Rollback { .. }
            | Verb::Bake { .. }
            | Verb::Lock { .. }
            | Verb::Release { .. }
            | Verb::Diff { .. }
            | Verb::Verify { .. }
            | Verb::Export { .. }
            | Verb::Import { .. }
    ) {
        answers.cancel_on_interrupt();
    }
    let _raw = matches!(verb, Verb::Exec { tty: true, .. }).then(RawTerminal::new);
    let mut live = live::Live::new(!json && std::io::stderr().is_terminal(), !json);
    loop {
        match answers.next()? {
            Event::Progress(progress) => live.progress(&progress),
            Event::Notice { text } => live.notice(&text),
            Event::Item { item } => {
                if json {
                    print_line(&item.to_string());
                } else {
                    print_line(&show::item(&verb, &item));
                }
            }
            Event::Done { exit, data } => {
                live.finish();
                if let Verb::Exec { .. } = verb {
                    let code = data["code"].as_i64().unwrap_or(0);
                    return Ok(u8::try_from(code).unwrap_or(Exit::Failed.code()));
                }
                hand.keep()?;
                finish(&verb, &data, json);
                return Ok(exit.code());
            }
            Event::Failed(report) => {
                live.finish();
                return Err(report);
            }
        }
    }
}

/// The terminal in raw mode: every key goes to the command in the instance. Put back when dropped.
struct RawTerminal(Option<rustix::termios::Termios>);

impl RawTerminal {
    fn new() -> Self {
        let stdin = rustix::stdio::stdin();
        let Ok(before) = rustix::termios::tcgetattr(stdin) else { return Self(None) };
        let mut raw = before.clone();
        raw.make_raw();
        let now = rustix::termios::OptionalActions::Now;
        let _ = rustix::termios::tcsetattr(stdin, now, &raw);
        Self(Some(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let now = rustix::termios::OptionalActions::Now;
            let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), now, before);
        }
    }
}

fn finish(verb: &Verb, data: &Value, json: bool) {
    if json {
        // A stream has said everything as items already.
        if !data.is_null() {
            print_line(&data.to_string());
        }
    } else {
        let text = show::done(verb, data);
        if !text.is_empty() {
            print_line(text.trim_end_matches('\n'));
        }
    }
}

/// A reader that has gone away (`kiln logs | head`) ends the process quietly.
fn print_line(line: &str) {
    if writeln!(std::io::stdout().lock(), "{line}").is_err() {
        std::process::exit(i32::from(Exit::Done.code()));
    }
}

fn complain(report: &Report, json: bool) {
    if json {
        print_line(&json!({ "error": report }).to_string());
    } else {
        let _ = writeln!(std::io::stderr(), "kiln: {report}");
    }
}
