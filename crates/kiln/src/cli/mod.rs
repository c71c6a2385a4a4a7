//! The verbs: arguments in, a request to the agent, what a person or a script sees out.

mod args;
mod carrier;
mod client;
mod config;
mod copy;
mod exec;
mod init;
mod keys;
mod live;
mod login;
mod moment;
mod pages;
mod show;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser};
use kiln_core::exit::Exit;
use serde_json::{Value, json};

use crate::agent;
use crate::answers;
use crate::protocol::{Event, Verb};
use crate::report::{Because as _, Report};
use crate::terminal;
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
            let wrong = error.use_stderr();
            if wrong && std::env::args_os().any(|arg| arg == "--json") {
                complain(&misused(&error), true);
            } else if error.kind() == ErrorKind::MissingSubcommand {
                // What it would list has what nobody is to call.
                let _ = write!(std::io::stderr(), "{}", Cli::command().render_help());
            } else {
                let _ = error.print();
            }
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

/// What is wrong with the command line, as a report.
fn misused(error: &clap::Error) -> Report {
    let text = error.render().to_string();
    let what = text.split("\n\n").next().unwrap_or_default();
    let what = what.trim_start_matches("error: ").split_whitespace().collect::<Vec<_>>().join(" ");
    Report::usage(what).hint("kiln --help, or --help behind a verb")
}

/// So many bytes fit into the address of a socket (`sun_path`, with a zero at its end).
const SOCKET: usize = 107;

/// Agent and clients meet at a socket in the root folder.
fn root_is_short(root: &std::path::Path) -> Result<(), Report> {
    let length = root.as_os_str().len();
    let most = SOCKET - (agent::socket_path(root).as_os_str().len() - length);
    if length <= most {
        return Ok(());
    }
    let what = format!(
        "the root folder {} has a name of {length} bytes; {most} are the most, for there is a \
         socket in it",
        root.display()
    );
    Err(Report::usage(what).hint("choose a shorter one by --root"))
}

fn dispatch(cli: Cli) -> Result<u8, Report> {
    let exit = match cli.command {
        Command::Init => init::init(&std::env::current_dir().unwrap_or_default(), cli.json),
        Command::Config(args) => config::config(args, cli.project, cli.json),
        Command::Login { registry, username, password_stdin } => {
            login::login(registry.as_deref(), username, password_stdin, cli.json)
        }
        Command::Logout { registry } => login::logout(registry.as_deref(), cli.json),
        Command::Serve => {
            root_is_short(&cli.root).and_then(|()| agent::serve(&cli.root, agent::Leave::Never))
        }
        Command::Agent => agent::serve(&cli.root, agent::Leave::WhenIdle),
        Command::Cp { project, from, to, stage } => {
            copy::copy(&cli.root, cli.project.and(project), stage, &from, &to, cli.json)
        }
        Command::Completions { shell } => pages::completions(shell, cli.json),
        Command::Man { dir } => pages::man(&dir, cli.json),
        Command::Port { target: Some((port, Some(word))), protocol: Some(other), .. }
            if word != other =>
        {
            let (word, other) = (answers::protocol_word(word), answers::protocol_word(other));
            let what = format!("`{port}/{word}` and `--protocol {other}` contradict each other");
            Err(Report::usage(what).hint("leave one of the two out"))
        }
        Command::Shutdown if !client::agent_is_there(&cli.root) => {
            let remains = agent::collect_remains(&cli.root)?;
            let none = answers::Shutdown::NoAgent { agent: false, collected: remains };
            finish(&Verb::Shutdown, &serde_json::to_value(none).unwrap_or_default(), cli.json);
            Ok(Exit::Done)
        }
        command => return ask(&cli.root, command.verb(cli.project), cli.json),
    };
    exit.map(Exit::code)
}

/// Sends `verb` and shows what comes back until it ends. Gives the exit code: of `exec`, the
/// command's own.
fn ask(root: &std::path::Path, verb: Verb, json: bool) -> Result<u8, Report> {
    root_is_short(root)?;
    if let Verb::Exec { .. } | Verb::Run { .. } = verb {
        return exec::exec(root, verb);
    }
    let hand = carrier::Hand::of(&verb, json)?;
    let mut answers = client::send(root, verb.clone(), &hand.fds())?;
    if matches!(
        verb,
        Verb::Up { .. }
            | Verb::Learn { .. }
            | Verb::Rollback { .. }
            | Verb::Restart { .. }
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
    let mut items = 0;
    let mut keys = keys::Keys::default();
    let mut live = live::Live::new(!json && std::io::stderr().is_terminal(), !json);
    loop {
        match answers.next()? {
            Event::Progress(progress) => live.progress(&progress),
            Event::Notice { text } => live.notice(&text),
            Event::Ask { number, question } => {
                let stream = answers.stream().because(|| "answering the agent".into())?;
                keys.answer(number, &question, &stream);
            }
            Event::Item { item } => {
                items += 1;
                if json {
                    print_json(&item);
                } else {
                    begin_anew(&verb);
                    print_line(&shown(&verb, show::item(&verb, &item).trim_end_matches('\n')));
                }
            }
            Event::Done { exit, data } => {
                live.finish();
                hand.keep()?;
                finish(&verb, &data, json);
                if let (false, Some(none)) = (json, show::none(&verb, &data, items)) {
                    let _ = writeln!(std::io::stderr(), "{none}");
                }
                return Ok(code_of(&verb, &data).unwrap_or(exit.code()));
            }
            Event::Failed(report) => {
                live.finish();
                return Err(report);
            }
        }
    }
}

/// A table that is shown again takes the place of the one before, on a terminal.
fn begin_anew(verb: &Verb) {
    let again = matches!(verb, Verb::Stats { .. }) && !terminal::is_dumb();
    if again && std::io::stdout().is_terminal() {
        let _ = write!(std::io::stdout(), "\x1b[H\x1b[J");
    }
}

/// The exit code of verbs that end as a program of an instance did.
fn code_of(verb: &Verb, data: &Value) -> Option<u8> {
    let waited = matches!(verb, Verb::Wait { .. });
    waited.then(|| data["code"].as_u64().and_then(|code| u8::try_from(code).ok())).flatten()
}

fn finish(verb: &Verb, data: &Value, json: bool) {
    if json {
        // A stream has said everything as items already.
        if !data.is_null() {
            print_json(data);
        }
    } else {
        let text = show::done(verb, data);
        if !text.is_empty() {
            print_line(&shown(verb, text.trim_end_matches('\n')));
        }
    }
}

/// Logs that go to a program are what the service wrote, byte for byte; on a terminal their colours
/// stay. All else holds names and words of strangers that nobody wants to be obeyed.
fn shown<'a>(verb: &Verb, text: &'a str) -> std::borrow::Cow<'a, str> {
    match (verb, std::io::stdout().is_terminal()) {
        (Verb::Logs { .. }, false) => text.into(),
        // A diff has colours of its own there.
        (Verb::Logs { .. } | Verb::Diff { .. }, true) => terminal::clean_but_colours(text),
        _ => terminal::clean(text),
    }
}

fn print_json(document: &Value) {
    print_line(&terminal::clean_json(&document.to_string()));
}

/// A reader that has gone away (`kiln logs | head`) ends the process quietly; any other failure is
/// one, for what was asked for did not arrive.
fn print_line(line: &str) {
    let Err(error) = write_out(&format!("{line}\n")) else { return };
    let exit = if error.kind() == io::ErrorKind::BrokenPipe {
        Exit::Done
    } else {
        let _ = writeln!(std::io::stderr(), "kiln: writing to standard output: {error}");
        Exit::Failed
    };
    std::process::exit(i32::from(exit.code()));
}

fn write_out(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn complain(report: &Report, json: bool) {
    if json {
        // The exit code says that it failed, whoever reads.
        let document = json!({ "error": report }).to_string();
        let _ = write_out(&format!("{}\n", terminal::clean_json(&document)));
    } else {
        let _ = writeln!(std::io::stderr(), "kiln: {}", terminal::clean(&report.to_string()));
    }
}
