//! `gc`: what nothing names goes.

use std::time::Duration;

use kiln_core::exit::Exit;
use kiln_store::{Error, GcOptions, Roots};

use super::Answer;
use super::look::named;
use crate::agent::session::Session;
use crate::agent::{Agent, needs, record};
use crate::answers::stored::{Collected, Gc};
use crate::report::{Because, Report};

/// So long a cache of steps that nobody uses is kept, and what apt had.
const CACHE_AGE: Duration = Duration::from_secs(30 * 24 * 3600);

/// `kiln gc`. `unused`: for how many of the root's days what nothing needs any more stays.
pub(super) fn gc(
    agent: &Agent,
    session: &Session,
    dry_run: bool,
    unused: Option<u64>,
) -> Result<Answer, Report> {
    agent.ledger_is_whole("nothing is collected")?;
    // Read once, before bakes are held up. One that goes on meanwhile notes its needs itself.
    let (projects, unread) = needs::of_projects(agent).map_err(|error| told(&error))?;
    for lock in &unread {
        session.notice(format!("{lock}; so nothing that was locked or fetched is collected"));
    }
    let mut options = GcOptions { dry_run, ..GcOptions::default() };
    options.unused = unused.unwrap_or(options.unused);
    let roots = || Roots { digests: named(agent), ..projects.clone() };
    let report = agent.store.gc_with(&roots, &options).map_err(|error| told(&error))?;
    let room = kiln_bake::mount::caches::room(agent.store.root());
    let caches = kiln_bake::mount::caches::collect(&room, CACHE_AGE, dry_run)
        .because(|| "collecting the caches of steps".into())?;
    let package_lists = kiln_bake::base::collect_lists(agent.store.root(), CACHE_AGE, dry_run)
        .because(|| "collecting package lists".into())?;
    let collected = Collected {
        store: report,
        step_caches: caches.caches,
        step_cache_bytes: caches.bytes,
        package_lists,
    };
    if !dry_run {
        let data = serde_json::to_value(&collected).because(|| "recording what went".into())?;
        record::root_note(agent, "gc", data);
    }
    Ok(Answer::of(&Gc { dry_run, unread, collected }))
}

fn told(error: &Error) -> Report {
    let report = Report::from_error(Exit::Failed, error);
    match error {
        Error::Stops { .. } | Error::Held { .. } | Error::Reference { .. } => {
            Report { exit: Exit::Refused, ..report }.hint("kiln fsck")
        }
        _ => report,
    }
}
