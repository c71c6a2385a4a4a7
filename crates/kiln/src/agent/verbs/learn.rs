//! `kiln up --learn SERVICE`: one instance with a layer, in no slot and without traffic, to see what it
//! writes. It finds its neighbours where they serve now. Volumes are folders of its own, so it meets
//! nobody's data. What is bound from the host it shares with others, and it is refused if somebody
//! writes that now.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use kiln_core::Digest;
use kiln_core::compose::MountSource;
use kiln_core::exit::Exit;
use kiln_core::release::Settings;
use kiln_run::{End, Known, Running};

use super::build::known_services;
use super::{Answer, load_and_tell, with_turn};
use crate::agent::hooks::Starting;
use crate::agent::provision::Patience;
use crate::agent::session::Session;
use crate::agent::stage::{Instance, Life, Stage, StageId, Wish};
use crate::agent::supervise::Word;
use crate::agent::watch::Prober;
use crate::agent::{Agent, binds, folder, instances, layer, policy};
use crate::answers;
use crate::deliver::assemble;
use crate::protocol::ProjectArgs;
use crate::report::Report;

/// How often the instance and the client are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// What is written soon after getting ready is seen, too.
const AFTERWARDS: Duration = Duration::from_secs(2);

/// `kiln up --learn`.
pub(super) fn learn(
    agent: &Arc<Agent>,
    session: &Session,
    args: &ProjectArgs,
    service: &str,
    timeout: Option<u64>,
) -> Result<Answer, Report> {
    let project = load_and_tell(session, args)?;
    known_services(&project, &[service.to_owned()])?;
    let id = StageId { project: project.name.clone(), stage: "dev".into() };
    let stage = agent.stage(&id);
    with_turn(session, &stage, "kiln up --learn", || {
        agent.ledger_is_whole("nothing is started")?;
        // Nothing names what is made here, so it is collected some time after.
        let _lease = agent.lease()?;
        let folder = Some(folder::of(&project.dir).to_string_lossy().into_owned());
        let _wishing = stage.wish(Wish { folder, ..Wish::default() });
        let target = assemble(agent, session, &stage, &project)?.for_stage(&stage.id.stage);
        let mut release = target.release.as_ref().clone();
        release.services.retain(|name, _| name == service);
        let Some(released) = release.services.get_mut(service) else {
            return Err(Report::failed(format!("the release has no `{service}`")));
        };
        loosen(&mut released.settings);
        let settings = released.settings.clone();
        let patience = Patience { limit: timeout.map(Duration::from_secs) };
        let limit = patience.of(&release, service);
        policy::judge(agent, session, &id, &release)?;
        binds::make(agent, session, &stage, &release)?;
        let digest = agent.put_release(&release)?;
        let lone = Lone::start(agent, &stage, digest, service)?;
        let node = session.begin("learn", service, "without traffic");
        let ended = lone.watch(session, settings, limit);
        node.end(&ended.as_ref().map(|_| ()).map_err(Clone::clone), "looked at");
        let ended = ended?;
        Ok(lone.answer(service, &ended))
    })
}

/// The settings with a layer, and nothing of anybody else's data.
fn loosen(settings: &mut Settings) {
    settings.tmpfs = settings.all_tmpfs();
    settings.read_only = Some(false);
    settings.depends_on.clear();
    settings.ports.clear();
    for mount in &mut settings.mounts {
        if !matches!(mount.source, MountSource::Bind(_)) {
            mount.source = MountSource::Volatile;
            (mount.subpath, mount.known_as) = (None, None);
        }
    }
}

/// How it stood when it was looked at.
#[derive(Debug)]
enum Stood {
    Ready,
    Ended(End),
    Late,
}

/// An instance that is in no slot. Dropped, on whatever path, it is killed, and what it leaves is
/// cleared away once it has certainly ended.
pub(super) struct Lone<'a> {
    agent: &'a Arc<Agent>,
    stage: &'a Stage,
    instance: Instance,
    running: Arc<Running>,
}

impl<'a> Lone<'a> {
    fn start(
        agent: &'a Arc<Agent>,
        stage: &'a Stage,
        release: Digest,
        service: &str,
    ) -> Result<Self, Report> {
        Self::of(agent, stage, instances::launch(agent, stage, release, service, 0, None)?)
    }

    /// Of an instance that was just launched.
    pub(super) fn of(
        agent: &'a Arc<Agent>,
        stage: &'a Stage,
        instance: Instance,
    ) -> Result<Self, Report> {
        match instance.running.clone() {
            Some(running) => Ok(Self { agent, stage, instance, running }),
            None => Err(Report::failed(format!("`{}` does not run", instance.service))),
        }
    }

    /// What runs.
    pub(super) fn running(&self) -> &Running {
        &self.running
    }

    /// Until it is ready and has been so for a moment, has ended, or has taken too long.
    fn watch(
        &self,
        session: &Session,
        settings: Settings,
        limit: Duration,
    ) -> Result<Stood, Report> {
        let (to, words) = channel();
        let (wanted, closed) = channel::<()>();
        let prober = Prober {
            agent: Arc::clone(self.agent),
            running: Arc::clone(&self.running),
            settings,
            stage: self.stage.id.stage.clone(),
            before: self.instance.before.clone(),
            address: self.instance.address,
            to,
            wanted: closed,
        };
        let hooks = Starting {
            agent: Arc::clone(self.agent),
            running: Arc::clone(&self.running),
            hooks: prober.settings.post_start.clone(),
            to: prober.to.clone(),
        };
        std::thread::spawn(move || {
            if hooks.run() {
                prober.run(&Life::Starting, None);
            }
        });
        let mut deadline = Instant::now() + limit;
        let mut ready = false;
        let stood = loop {
            session.check()?;
            if let Known::Ended(end) = self.running.wait_for(LOOK) {
                break Stood::Ended(end);
            }
            if !ready && words.try_iter().any(|word| matches!(word, Word::Ready(_))) {
                ready = true;
                deadline = Instant::now() + AFTERWARDS;
            }
            if Instant::now() > deadline {
                break if ready { Stood::Ready } else { Stood::Late };
            }
        };
        drop(wanted);
        Ok(stood)
    }

    fn answer(&self, service: &str, stood: &Stood) -> Answer {
        let id = &self.instance.id;
        let written = layer::written(self.agent, id, service).unwrap_or_default();
        let (ended, good) = match stood {
            Stood::Ready => ("it got ready".to_owned(), true),
            Stood::Late => ("it was not ready in time".to_owned(), false),
            Stood::Ended(End::Exited(exit)) => {
                (format!("it ended with status {}", exit.code), exit.code == 0)
            }
            Stood::Ended(End::Lost) => ("it was lost".to_owned(), false),
        };
        let log = match good {
            true => Vec::new(),
            false => instances::last_lines(id, Some(&self.running), 10),
        };
        let service = service.to_owned();
        let learnt = answers::Learnt { service, ended, good, log, written };
        let exit = if good { Exit::Done } else { Exit::Failed };
        Answer { exit, ..Answer::of(&learnt) }
    }
}

impl Drop for Lone<'_> {
    fn drop(&mut self) {
        let id = &self.instance.id;
        let deadline = Instant::now() + Duration::from_secs(30);
        while !matches!(self.running.kill(), Known::Ended(_)) {
            if Instant::now() > deadline {
                // The next agent ends it: a card leads to no release that serves, or there is none.
                return self.agent.log(&format!("{id}: whether it has ended is not known"));
            }
            std::thread::sleep(LOOK);
        }
        instances::clear_away(self.agent, self.stage, &self.instance);
    }
}
