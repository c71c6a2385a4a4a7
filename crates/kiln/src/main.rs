//! `kiln`: one binary, four roles.
//!
//! | module | what |
//! |---|---|
//! | [`deliver`] | **the flow**: source → image → release → running → switched → watched |
//! | [`cli`] | the verbs: arguments, the client of the agent, what a person sees |
//! | [`protocol`] | what client and agent say to each other |
//! | [`answers`] | what a verb answers, for both of them and for `--json` |
//! | [`terminal`] | text of strangers, made safe to be shown |
//! | [`words`] | numbers with their nouns |
//! | [`agent`] | `kiln serve`: stages, slots, instances, and who looks after them |
//!
//! The other roles, the front and the shims, live in `kiln-front` and `kiln-run`; they are
//! dispatched here, before any thread exists.
// A log that is full or closed must not end what writes to it, as `eprintln!` would.
#![cfg_attr(not(test), warn(clippy::print_stderr))]

mod agent;
mod answers;
mod cli;
mod compose;
mod deliver;
mod protocol;
mod report;
mod terminal;
mod words;

use std::process::ExitCode;

fn main() -> ExitCode {
    kiln_run::dispatch(std::env::args_os());
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|role| role == "front") {
        kiln_run::own::begin();
    }
    if let Some(code) = kiln_front::dispatch(&args) {
        return ExitCode::from(code);
    }
    cli::run()
}
