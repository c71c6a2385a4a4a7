//! Coming up, taking requests, leaving.

use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kiln_core::exit::Exit;
use kiln_run::Runtime;
use kiln_run::net::Host;
use kiln_store::Store;

use super::door::{Door, no_thread};
use super::line::Line;
use super::restore::Remains;
use super::session::Session;
use super::who::{self, Who};
use super::{Agent, build_id, lock, privacy, restore, socket_path, verbs};
use crate::protocol::{Event, Request, VERSION, Verb};
use crate::report::{Because, Report};

/// When an agent leaves by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leave {
    /// `kiln serve`: when it is told to.
    Never,
    /// Started by a verb: when nothing is left to look after.
    WhenIdle,
}

/// How long an agent with nothing to look after stays, in case the next verb follows soon.
const IDLE: Duration = Duration::from_secs(60);

/// How long an agent that is to come up waits for the one before to be gone.
const LEAVING: Duration = Duration::from_secs(20);

/// How often the agent looks whether front and minder are there: one ping, well below a millisecond.
const FRONT_PULSE: Duration = Duration::from_millis(500);

/// How long a client may take to say what it wants: less than a request is waited for where the agent
/// is to be replaced.
const HELLO: Duration = Duration::from_secs(10);

/// How long a client may take to take what it is told.
const CLIENT: Duration = Duration::from_secs(30);

/// Bytes of a request: an environment may have two MiB.
const LONGEST_REQUEST: usize = 16 << 20;

/// Set in the environment of the agent that a verb started, once it is in the background.
const DETACHED: &str = "KILN_AGENT_DETACHED";

/// Runs the agent of `root` until it is told to leave.
pub(crate) fn serve(root: &Path, leave: Leave) -> Result<Exit, Report> {
    kiln_run::own::begin_agent(leave == Leave::WhenIdle);
    if leave == Leave::WhenIdle && std::env::var_os(DETACHED).is_none() {
        return detach(root);
    }
    if leave == Leave::WhenIdle {
        // A session of its own: the terminal's end is not the agent's.
        let _ = rustix::process::setsid();
    }
    let result = run(root, leave);
    if let Err(report) = &result
        && leave == Leave::WhenIdle
        && let Ok(text) = serde_json::to_vec(report)
    {
        // The verb that started it is waiting to hear why.
        let _ = tell_starter(root, &text);
    }
    result
}

/// Leaves word of why the agent did not come up, for whoever wanted it.
fn tell_starter(root: &Path, text: &[u8]) -> std::io::Result<()> {
    let path = root.join("agent.failed");
    let _ = std::fs::remove_file(&path);
    let mut file = privacy::private_file().write(true).open(&path)?;
    std::os::unix::fs::fchown(&file, privacy::invited(), None)?;
    std::io::Write::write_all(&mut file, text)
}

/// Starts the agent in the background and comes back at once.
fn detach(root: &Path) -> Result<Exit, Report> {
    privacy::make_root(root).because(|| format!("creating {}", root.display()))?;
    let path = root.join("agent.log");
    let log = privacy::private_file()
        .append(true)
        .open(&path)
        .because(|| format!("opening {}", path.display()))?;
    let exe = std::env::current_exe().because(|| "finding kiln's own binary".into())?;
    Command::new(exe)
        .arg("--root")
        .arg(root)
        .arg("agent")
        .env(DETACHED, "1")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .because(|| "starting the agent".into())?;
    Ok(Exit::Done)
}

fn run(root: &Path, leave: Leave) -> Result<Exit, Report> {
    if !rustix::process::geteuid().is_root() {
        return Err(Report::failed(
            "the agent mounts, makes networks and runs services: it has to \
                                   be root",
        )
        .hint("sudo kiln serve"));
    }
    let spare = super::door::spare();
    if !claim(root)? {
        return match leave {
            // Somebody else was faster: theirs is the agent.
            Leave::WhenIdle => Ok(Exit::Done),
            Leave::Never => {
                Err(Report::failed(format!("an agent of {} runs already", root.display())).hint(
                    "to put it under systemd, end it first: SIGTERM ends the agent and nothing that runs",
                ))
            }
        };
    }
    let (agent, remains) = open(root)?;
    let listener = listen(&agent.root)?;
    restore::restore(&agent, remains);
    for notice in agent.host.notices() {
        agent.log(notice);
    }
    agent.log(&format!("{} serves {}", build_id(), agent.root.display()));
    watch_signals(&agent);
    watch_rules(&agent);
    watch_front(&agent);
    super::mend::keep_whole(&agent);
    super::layer::keep_small(&agent);
    if leave == Leave::WhenIdle {
        watch_idleness(&agent);
    }
    Door { agent, listener, spare }.attend()
}

fn open(root: &Path) -> Result<(Arc<Agent>, Remains), Report> {
    let store =
        Store::open(root).because(|| format!("opening the root folder {}", root.display()))?;
    let root = store.root().to_owned();
    // What the store has just made.
    privacy::close(&root)?;
    let exe = std::env::current_exe().because(|| "finding kiln's own binary".into())?;
    let host = Host::setup(&root).because(|| "setting up the network".into())?;
    // What runs goes on reaching its own, also when the table had to be made anew. Addresses of
    // another boot or range are nobody's.
    let range = host.range();
    let mut remains = Remains::read(&root);
    let places = remains.places().into_iter();
    let places: Vec<_> =
        places.filter(|(address, _)| range.number_of(*address).is_some()).collect();
    host.admit_all(&places).because(|| "letting instances into their networks".into())?;
    let runtime = Runtime::new(&root, exe.clone(), host.range().scope())
        .because(|| "setting up the runtime".into())?;
    let (addresses, joined) = remains.settle(&root, &host.range());
    let resolv_conf = kiln_run::net::resolv_conf().because(|| "reading resolv.conf".into())?;
    let agent = Agent {
        routes: Line::new(root.clone(), exe.clone()),
        addresses,
        claims: Default::default(),
        layers: Default::default(),
        joined,
        root,
        store,
        runtime,
        host,
        troubles: super::mend::Troubles::default(),
        stages: Mutex::default(),
        releases: Mutex::default(),
        in_stages: Mutex::default(),
        keys: Mutex::default(),
        mapped: Mutex::default(),
        resolv_conf: resolv_conf.text,
        steps: super::bake::Permits::of_machine(),
        working: AtomicUsize::new(0),
        said: Default::default(),
        leaving: AtomicBool::new(false),
        network: Mutex::default(),
        last_use: Mutex::new(Instant::now()),
    };
    Ok((Arc::new(agent), remains))
}

/// Makes this process the agent of `root`, before it touches anything that is the agent's; false
/// when another one is. One that is on its way out is waited for.
fn claim(root: &Path) -> Result<bool, Report> {
    let path = root.join("agent.lock");
    let doing = || format!("locking {}", path.display());
    privacy::close(root)?;
    let lock = privacy::private_file().write(true).truncate(true).open(&path).because(doing)?;
    let exclusive = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    let deadline = Instant::now() + LEAVING;
    while rustix::fs::flock(&lock, exclusive).is_err() {
        if greets(root) || Instant::now() > deadline {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    // Held until the process ends.
    std::mem::forget(lock);
    Ok(true)
}

/// Whether an agent answers that means to stay.
fn greets(root: &Path) -> bool {
    use std::io::Read;
    let Ok(mut stream) = UnixStream::connect(socket_path(root)) else { return false };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
    matches!(stream.read(&mut [0]), Ok(1))
}

/// Binds the socket. Who may connect may do everything, so it belongs to root, or to whoever
/// called `sudo`.
fn listen(root: &Path) -> Result<UnixListener, Report> {
    let path = socket_path(root);
    let doing = || format!("listening on {}", path.display());
    // Where nobody else gets to before it has its mode. Its name may not be longer than the other.
    let hidden = root.join("run").join("s");
    let _ = std::fs::remove_file(&hidden);
    let listener = UnixListener::bind(&hidden).because(doing)?;
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600)).because(doing)?;
    if let Some(uid) = privacy::invited() {
        std::os::unix::fs::chown(&hidden, Some(uid), None).because(doing)?;
    }
    std::fs::rename(&hidden, &path).because(doing)?;
    Ok(listener)
}

/// SIGTERM and SIGINT end the agent and nothing else: what runs goes on, and is found again.
fn watch_signals(agent: &Arc<Agent>) {
    let agent = Arc::clone(agent);
    let wait = signal_hook::iterator::Signals::new([libc::SIGTERM, libc::SIGINT]);
    std::thread::spawn(move || match wait {
        Ok(mut signals) => {
            if signals.forever().next().is_some() {
                agent.log("told to leave; what runs goes on");
                agent.leave();
            }
        }
        Err(error) => agent.log(&format!("watching signals: {error}")),
    });
}

/// Other programs' firewalls come and go: what instances need is put back when it is gone.
fn watch_rules(agent: &Arc<Agent>) {
    let agent = Arc::clone(agent);
    std::thread::spawn(move || {
        let Err(error) = kiln_run::net::RuleWatch::new().and_then(|mut rules| {
            loop {
                rules.wait(None)?;
                agent.ensure_network();
            }
        }) as Result<std::convert::Infallible, _>;
        agent.log(&format!("watching the firewall: {error}"));
    });
}

/// A killed front is back in a moment, by its minder. This is for when both were killed.
fn watch_front(agent: &Arc<Agent>) {
    let agent = Arc::clone(agent);
    std::thread::spawn(move || {
        while !agent.leaving() {
            std::thread::sleep(FRONT_PULSE);
            super::record::folded(&agent, super::now_ms());
            agent.mind_front();
        }
    });
}

fn watch_idleness(agent: &Arc<Agent>) {
    let agent = Arc::clone(agent);
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let idle = agent.working.load(Ordering::Acquire) == 0
                && lock(&agent.last_use).elapsed() > IDLE
                && agent.stages().iter().all(|stage| {
                    let state = stage.state();
                    state.instances.is_empty() && state.pointer.active.is_none()
                });
            if idle && agent.closes() {
                agent.log("nothing is left to look after");
                agent.stop_front();
                agent.teardown_network();
                agent.leave();
            }
        }
    });
}

impl Agent {
    /// Takes no more requests, unless one has come meanwhile.
    fn closes(&self) -> bool {
        self.leaving.store(true, Ordering::SeqCst);
        let nobody = self.working.load(Ordering::SeqCst) == 0;
        self.leaving.store(nobody, Ordering::SeqCst);
        nobody
    }

    /// Ends the agent; what runs goes on.
    pub(crate) fn leave(&self) -> ! {
        self.leaving.store(true, Ordering::Release);
        super::record::folded(self, u64::MAX);
        if let Err(error) = self.store.ledger().sync() {
            self.log(&format!("ledger: {error}"));
        }
        let _ = std::fs::remove_file(socket_path(&self.root));
        std::process::exit(0)
    }

    /// Ends the agent once the answer of the request at work has gone out.
    pub(crate) fn leave_soon(self: &Arc<Self>) {
        self.leaving.store(true, Ordering::Release);
        let agent = Arc::clone(self);
        std::thread::spawn(move || {
            let deadline = Instant::now() + Duration::from_secs(10);
            while agent.working.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            agent.leave()
        });
    }

    /// Puts back what others took from the kernel's rules, and says so.
    pub(crate) fn ensure_network(&self) {
        let _alone = lock(&self.network);
        if self.leaving() {
            return;
        }
        match self.host.ensure() {
            Ok(did) => did.iter().for_each(|line| self.log(line)),
            Err(error) => self.log(&format!("keeping the network in order: {error}")),
        }
    }

    /// Takes network and control groups of this root away.
    pub(crate) fn teardown_network(&self) {
        self.leaving.store(true, Ordering::Release);
        let _alone = lock(&self.network);
        if let Err(error) = self.runtime.sweep(&Default::default()) {
            self.log(&format!("clearing away what killed shims left: {error}"));
        }
        if !self.runtime.close(Duration::from_secs(5)) {
            self.log("some control groups of this root are still in use");
        }
        if let Err(error) = Host::setup(&self.root).and_then(Host::teardown) {
            self.log(&format!("taking the network down: {error}"));
        }
    }

    /// Becomes the client's binary. Instances and front go on and are found again.
    fn replace(&self, exe: &Path) -> Report {
        self.log(&format!("replaced by {}", exe.display()));
        let deadline = Instant::now() + Duration::from_secs(25);
        // This request is one of those at work.
        while self.working.load(Ordering::Acquire) > 1 {
            if Instant::now() > deadline {
                return Report::failed("a request is under way");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.store.ledger().sync();
        self.runtime.leave();
        let error = Command::new(exe).args(std::env::args_os().skip(1)).exec();
        Report::failed(format!("becoming {}: {error}", exe.display()))
    }
}

/// Counts requests at work, so that the agent does not leave or replace itself under them.
struct Working<'a>(&'a Agent);

impl<'a> Working<'a> {
    fn begin(agent: &'a Agent) -> Self {
        agent.working.fetch_add(1, Ordering::SeqCst);
        Self(agent)
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        *lock(&self.0.last_use) = Instant::now();
        self.0.working.fetch_sub(1, Ordering::AcqRel);
    }
}

pub(super) fn answer(agent: &Arc<Agent>, mut stream: &UnixStream) {
    use std::io::Write;
    let working = Working::begin(agent);
    if agent.leaving() {
        // Without a greeting: the client waits for the next agent.
        return;
    }
    let mut greeting = build_id();
    greeting.push('\n');
    if stream.write_all(greeting.as_bytes()).is_err() {
        return;
    }
    // A client that says nothing keeps the agent neither from leaving nor from being replaced.
    let limits = stream.set_write_timeout(Some(CLIENT)).and(stream.set_read_timeout(Some(HELLO)));
    let received = limits.ok().and_then(|()| receive(stream));
    let Some((request, fds)) = received else { return };
    if stream.set_read_timeout(None).is_err() {
        return;
    }
    // Who only looks on keeps the agent neither from leaving nor from being replaced.
    let looks = matches!(request.verb, Verb::Logs { .. } | Verb::Stats { .. } | Verb::Wait { .. });
    let _working = (!looks).then_some(working);
    let session = match Session::new(stream, request.env.clone(), request.cwd.clone()) {
        Ok(session) => session,
        Err(error) => {
            let event = serde_json::to_string(&Event::Failed(no_thread(&error)));
            let _ = writeln!(stream, "{}", event.unwrap_or_default());
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return;
        }
    };
    let _acting = who::act_for(Who::at(stream, request.env.get("SUDO_USER")));
    // A newer client that speaks another protocol still knows how to say this.
    let result = if let Verb::Replace = request.verb {
        Err(agent.replace(&request.exe))
    } else if request.version != VERSION {
        Err(Report::failed(format!("the client speaks protocol {}", request.version)))
    } else {
        guarded(|| verbs::run(agent, &session, request.verb, fds))
    };
    let session = session.unstoppable();
    session.event(&match result {
        Ok(verbs::Answer { exit, data }) => Event::Done { exit, data },
        Err(mut report) => {
            if report.message.is_empty() {
                report.message = "given up".into();
            }
            Event::Failed(report)
        }
    });
    let _ = stream.shutdown(std::net::Shutdown::Both);
}

/// What a request comes to, also when it meets a bug: its client hears so, and nobody else does.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, Report>) -> Result<T, Report> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no words");
        Err(Report::new(Exit::Bug, format!("a bug in Kiln: {said}"))
            .hint("where is in the agent's log; please report it"))
    })
}

/// Reads the request and the file descriptors that follow it.
fn receive(stream: &UnixStream) -> Option<(Request, Vec<OwnedFd>)> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut bytes = Vec::new();
    let mut fds = Vec::new();
    let mut request: Option<Request> = None;
    loop {
        let mut chunk = [0_u8; 16 * 1024];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [std::io::IoSliceMut::new(&mut chunk)];
        let read = recvmsg(stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?.bytes;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(more) = message {
                fds.extend(more);
            }
        }
        if read == 0 {
            return None;
        }
        bytes.extend_from_slice(&chunk[..read]);
        if bytes.len() > LONGEST_REQUEST {
            return None;
        }
        if request.is_none() && bytes.contains(&b'\n') {
            request = serde_json::from_slice(bytes.split(|byte| *byte == b'\n').next()?).ok();
            request.as_ref()?;
        }
        match request.take() {
            Some(waiting) if fds.len() < waiting.verb.descriptors() => request = Some(waiting),
            Some(request) => return Some((request, fds)),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told_as_a_bug_and_goes_no_further() {
        let report = guarded(|| -> Result<(), Report> { panic!("seven of {}", 6) }).unwrap_err();
        assert_eq!(report.exit, Exit::Bug);
        assert!(report.message.contains("seven of 6"), "{report}");
        assert_eq!(guarded(|| Ok(7)), Ok(7));
    }
}
