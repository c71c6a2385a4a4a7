//! `fsck`: everything that is stored is looked at, and healed where it can be made again.

use kiln_core::Digest;
use kiln_core::exit::Exit;
use kiln_store::{Damage, Findings};
use serde_json::json;

use super::Answer;
use crate::agent::session::Session;
use crate::agent::stage::Stage;
use crate::agent::{Agent, commands, needs, record, released, restore};
use crate::report::{Because, Report};
use crate::words::{count, count_of};

/// Damage that the ledger names one by one.
const TOLD: usize = 20;

/// `kiln fsck`.
pub(super) fn fsck(agent: &Agent, session: &Session, repair: bool) -> Result<Answer, Report> {
    let _lease = agent.lease()?;
    let node = session.begin("fsck", "store", "reading everything");
    let mut written = Vec::new();
    if repair {
        put_again(agent);
        written = needs::write_again(agent)?;
    }
    let found = agent.store.fsck(repair).because(|| "looking at the store".into());
    let words = found.as_ref().map(words).unwrap_or_default();
    node.end(&found, &words);
    let mut found = found?;
    found.damage.extend(written.into_iter().map(|((kind, name), lock)| Damage {
        path: format!("refs/{kind}/{name}"),
        what: "it could not be believed".to_owned(),
        needed_by: Vec::new(),
        healed: Some(format!("written again from {}", lock.display())),
        cure: None,
    }));
    run_files(agent, repair, &mut found);
    if repair {
        read_pointers(agent)?;
        forget_lost(agent, &mut found)?;
        commands::forget_old(&agent.root).because(|| "forgetting old command lines".into())?;
    }
    if !found.damage.is_empty() {
        let told: Vec<&Damage> = found.damage.iter().take(TOLD).collect();
        let data = json!({ "repair": repair, "damage": found.damage.len(), "first": told });
        record::root_note(agent, "fsck", data);
    }
    let whole = found.damage.iter().all(|damage| damage.healed.is_some());
    let exit = match found.damage.is_empty() || repair && whole {
        true => Exit::Done,
        false => Exit::Difference,
    };
    Ok(Answer { exit, ..Answer::of(&found) })
}

fn words(found: &Findings) -> String {
    let (objects, images) = (count(found.objects, "object"), count(found.images, "image"));
    format!("{objects}, {images}, {}", count_of(found.entries, "entry", "entries"))
}

/// Releases that this process has read are as good as a second copy.
fn put_again(agent: &Agent) {
    for release in agent.read_releases() {
        if let Err(report) = agent.put_release(&release) {
            agent.log(&report.to_string());
        }
    }
}

/// A ledger that was mended counts on from there.
fn read_pointers(agent: &Agent) -> Result<(), Report> {
    let mut pointers = agent.store.pointers().because(|| "reading where stages point".into())?;
    for stage in agent.stages() {
        let key = (stage.id.project.clone(), stage.id.stage.clone());
        if let Some(pointer) = pointers.remove(&key) {
            stage.update(|state| state.mended(pointer));
        }
    }
    Ok(())
}

/// The state of stages is written from memory.
fn run_files(agent: &Agent, repair: bool, found: &mut Findings) {
    for stage in agent.stages() {
        let path = restore::run_path(&agent.root, &stage.id);
        if restore::read_run_file(&path).is_ok() {
            continue;
        }
        if repair {
            agent.save(&stage);
        }
        found.damage.push(Damage {
            path: format!("run/{}/{}.json", stage.id.project, stage.id.stage),
            what: "it cannot be read".to_owned(),
            needed_by: vec![format!("stage {}", stage.id)],
            healed: repair.then(|| "written again".to_owned()),
            cure: (!repair).then(|| "kiln fsck --repair".to_owned()),
        });
    }
}

/// Releases that could be gone back to and that nothing makes again: they are no longer promised,
/// for else nothing could ever be collected. What serves or stands by is never among them.
fn forget_lost(agent: &Agent, found: &mut Findings) -> Result<(), Report> {
    let restorable = |digest: &Digest| {
        agent.store.get_release(digest).is_ok_and(|release| {
            release.trees().into_iter().all(|tree| agent.store.get_tree(&tree).is_ok())
        })
    };
    let mut lost = Vec::new();
    for stage in agent.stages() {
        lost.extend(forget_previous(agent, &stage, &restorable)?);
    }
    lost.extend(released::forget_lost(agent, &restorable)?);
    for digest in lost {
        let hex = digest.hex();
        found.damage.push(Damage {
            path: format!("objects/{}/{}", &hex[..2], &hex[2..]),
            what: format!("release {} cannot be restored", digest.short()),
            needed_by: Vec::new(),
            healed: Some("no longer listed; cut it again: kiln release".to_owned()),
            cure: None,
        });
    }
    Ok(())
}

fn forget_previous(
    agent: &Agent,
    stage: &Stage,
    restorable: &dyn Fn(&Digest) -> bool,
) -> Result<Vec<Digest>, Report> {
    // While something is delivered, what is before that is not settled.
    let Some(_turn) = stage.try_turn("kiln fsck") else { return Ok(Vec::new()) };
    let mut pointer = stage.state().pointer.clone();
    let needed = [pointer.active, pointer.standby];
    let (kept, lost): (Vec<Digest>, Vec<Digest>) = pointer
        .previous
        .iter()
        .partition(|digest| needed.contains(&Some(**digest)) || restorable(digest));
    if lost.is_empty() {
        return Ok(lost);
    }
    pointer.previous = kept;
    let entry = json!({ "releases": lost });
    record::move_pointer(agent, stage, pointer, &[("release.lost", entry)])?;
    Ok(lost)
}
