//! The measurements. Each gives one value a round: seconds, or a count.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kiln_testkit::wait::poll_until;
use kiln_testkit::{Call, Client, Probe, Project, Report, server};

use super::peer::{PATIENCE, Peer};

/// One row of the table.
pub(super) struct Work {
    pub(super) name: &'static str,
    /// What its values count.
    pub(super) unit: Unit,
    /// What is aimed at, in the unit.
    pub(super) aim: Option<f64>,
    /// One round; `None` if the peer has no such thing.
    pub(super) measure: fn(&mut Workplace<'_>) -> Result<Option<f64>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Unit {
    Milliseconds,
    Requests,
    Mebibytes,
}

/// All of them, in the order in which they are run.
pub(super) const WORKS: &[Work] = &[
    Work {
        name: "up of six baked services (after down) to all answering",
        unit: Unit::Milliseconds,
        aim: Some(60.0),
        measure: up_after_down,
    },
    Work {
        name: "up again, nothing changed",
        unit: Unit::Milliseconds,
        aim: Some(8.0),
        measure: up_unchanged,
    },
    Work {
        name: "one service changed: edit to new answer, bake included",
        unit: Unit::Milliseconds,
        aim: Some(45.0),
        measure: one_changed,
    },
    Work {
        name: "requests lost during that change, prober at 1,000/s",
        unit: Unit::Requests,
        aim: Some(0.0),
        measure: |place| place.lost(1_000).map(Some),
    },
    Work {
        name: "requests lost during that change, prober at 2,000/s",
        unit: Unit::Requests,
        aim: Some(0.0),
        measure: |place| place.lost(2_000).map(Some),
    },
    Work {
        name: "rollback to the standby, command to first answer",
        unit: Unit::Milliseconds,
        aim: Some(20.0),
        measure: rollback,
    },
    Work { name: "down", unit: Unit::Milliseconds, aim: Some(60.0), measure: down },
    Work {
        name: "one instance, request to its program's exec, warm",
        unit: Unit::Milliseconds,
        aim: Some(8.0),
        measure: |place| place.exec_one(Duration::ZERO),
    },
    Work {
        name: "one instance, request to its program's exec, cold",
        unit: Unit::Milliseconds,
        aim: Some(15.0),
        measure: |place| place.exec_one(REST),
    },
    Work {
        name: "one instance, whole command to its program's first word, warm",
        unit: Unit::Milliseconds,
        aim: None,
        measure: |place| place.start_one(Duration::ZERO).map(Some),
    },
    Work {
        name: "one instance, whole command to its program's first word, cold",
        unit: Unit::Milliseconds,
        aim: None,
        measure: |place| place.start_one(REST).map(Some),
    },
];

/// What busybox's httpd is started by. It loses requests at the probers' rates, on a machine where
/// nothing changes at all, so another server takes its place.
const HTTPD: &str = "CMD [\"busybox\", \"httpd\", \"-f\", \"-p\", \"8080\", \"-h\", \"/www\"]";
/// The service that is edited, and its place among the ports.
const CHANGED: (&str, usize) = ("s3", 2);
/// How long a prober asks before and after a change.
const LEAD: Duration = Duration::from_millis(500);
/// What makes a start a cold one.
const REST: Duration = Duration::from_millis(150);
/// A look at a port that has to be quick: a lost SYN would cost it a second.
const GLANCE: Duration = Duration::from_millis(100);

/// A peer with its copies of the projects.
pub(super) struct Workplace<'a> {
    pub(super) peer: &'a dyn Peer,
    six: Project,
    one: Project,
    /// What the edited service shows.
    version: u32,
    /// Whether the six are up.
    is_up: bool,
}

impl<'a> Workplace<'a> {
    /// Writes the project of the single service too: its program tells over a FIFO that it runs.
    pub(super) fn new(peer: &'a dyn Peer, six: Project, one: PathBuf) -> Result<Self> {
        let compose = format!(
            "name: one\nservices:\n  one:\n    build: .\n    stop_signal: SIGKILL\n    \
             ports: [\"${{PORT7}}:8080\"]\n    volumes: [\"{}:/probe\"]\n\
             x-kiln:\n  bases:\n    busybox: {{ debian: bookworm, packages: [busybox-static], minimal: true }}\n",
            one.join("probe").display()
        );
        let one = Project::new(one, &compose);
        one.write(
            "Dockerfile",
            "FROM busybox\nEXPOSE 8080\nCMD [\"busybox\", \"sh\", \"-c\", \
             \"echo started > /probe/fifo; exec busybox httpd -f -p 8080 -h /probe\"]\n",
        );
        one.write(".dockerignore", "probe\n").write("probe/index.html", "one\n");
        for index in 1..=6 {
            let dockerfile = format!("s{index}/Dockerfile");
            six.edit(&dockerfile, HTTPD, "CMD [\"/www/server\", \"8080\", \"/www/index.html\"]");
            six.edit(&dockerfile, "COPY index.html", "COPY index.html server");
            six.write_program(&format!("s{index}/server"), server::program());
        }
        Call::new("mkfifo").arg(one.path("probe/fifo")).run_ok()?;
        Ok(Self { peer, six, one, version: 1, is_up: false })
    }

    /// Bakes everything, and leaves the six up.
    pub(super) fn warm_up(&mut self) -> Result<()> {
        self.peer.prepare_one(&self.one)?;
        self.start_one(Duration::ZERO)?;
        self.ensure_up()
    }

    fn ensure_up(&mut self) -> Result<()> {
        if !self.is_up {
            self.up_and_answering()?;
        }
        Ok(())
    }

    fn ensure_down(&mut self) -> Result<()> {
        if self.is_up {
            self.run(&self.peer.down(&self.six))?;
            self.is_up = false;
        }
        Ok(())
    }

    fn up_and_answering(&mut self) -> Result<()> {
        self.run(&self.peer.up(&self.six, None))?;
        for index in 0..6 {
            self.await_answer(index, PATIENCE)?;
        }
        self.is_up = true;
        Ok(())
    }

    fn run(&self, call: &Call) -> Result<Duration> {
        let mut took = Duration::ZERO;
        self.peer.inside(&mut || {
            took = call.run_ok()?.took;
            Ok(())
        })?;
        Ok(took)
    }

    /// What a service has to show now.
    fn expected(&self, index: usize) -> String {
        let version = if index == CHANGED.1 { self.version } else { 1 };
        format!("service {}, version {version}", index + 1)
    }

    fn await_answer(&self, index: usize, patience: Duration) -> Result<()> {
        let (port, expected) = (self.peer.ports().number(index), self.expected(index));
        self.peer.inside(&mut || await_answer(port, &expected, patience))
    }

    /// Edits the service that changes.
    fn edit(&mut self) {
        self.version += 1;
        let text = format!("{}\n", self.expected(CHANGED.1));
        self.six.write(&format!("{}/index.html", CHANGED.0), text);
    }

    /// Runs a command and says when the edited service's answer was there, counted from `start`.
    fn until_answer(&self, start: Instant, call: &Call) -> Result<Duration> {
        let (port, expected) = (self.peer.ports().number(CHANGED.1), self.expected(CHANGED.1));
        let mut answered = Duration::ZERO;
        self.peer.inside(&mut || {
            let running = call.spawn()?;
            let seen = await_answer(port, &expected, PATIENCE);
            answered = start.elapsed();
            let output = running.wait()?;
            if !output.success() {
                bail!("failed\n{output}");
            }
            seen
        })?;
        Ok(answered)
    }

    /// Requests that a prober loses while one service is changed.
    fn lost(&mut self, rate: u32) -> Result<f64> {
        self.ensure_up()?;
        let port = self.peer.ports().number(CHANGED.1);
        let old = self.expected(CHANGED.1);
        self.edit();
        let new = self.expected(CHANGED.1);
        let call = self.peer.up(&self.six, Some(CHANGED.0));
        let known = [old.clone(), new.clone()];
        let mut report = Report::default();
        self.peer.inside(&mut || {
            let known = known.clone();
            let probe = Probe::local(port, rate).judge(move |response| {
                let text = response.text().trim_end().to_owned();
                let right = response.status == 200 && known.contains(&text);
                if right { Ok(text) } else { Err(format!("a wrong answer, {}", response.status)) }
            });
            let probing = probe.start();
            // These two waits are what is measured: traffic before, and traffic after.
            std::thread::sleep(LEAD);
            call.run_ok()?;
            await_answer(port, &new, PATIENCE)?;
            std::thread::sleep(LEAD);
            report = probing.stop()?;
            Ok(())
        })?;
        if report.first(&old).is_none() || report.first(&new).is_none() {
            bail!("the prober did not see the change\n{report}");
        }
        if !report.losses.is_empty() {
            print!("  {}: {report}", self.peer.name());
        }
        Ok(report.losses.len() as f64)
    }

    /// From the request to the program's exec, after a rest, where the peer tells.
    fn exec_one(&mut self, rest: Duration) -> Result<Option<f64>> {
        if !self.peer.tells_exec_time() {
            return Ok(None);
        }
        self.start_one(rest)?;
        self.peer.exec_time(&self.one).map(Some)
    }

    /// From the command to the first sign of the program, after a rest.
    fn start_one(&mut self, rest: Duration) -> Result<f64> {
        let probe = self.one.path("probe/fifo");
        let call = self.peer.start_one(&self.one);
        let mut took = Duration::ZERO;
        std::thread::sleep(rest);
        self.peer.inside(&mut || {
            use rustix::event::{PollFd, PollFlags, Timespec, poll};
            use rustix::fs::{Mode, OFlags};
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let fifo = rustix::fs::open(&probe, flags, Mode::empty())?;
            let start = Instant::now();
            let running = call.spawn()?;
            let timeout = Timespec::try_from(PATIENCE)?;
            let signs = poll(&mut [PollFd::new(&fifo, PollFlags::IN)], Some(&timeout))?;
            took = start.elapsed();
            let output = running.wait()?;
            if signs == 0 || !output.success() {
                bail!("the program did not start\n{output}");
            }
            Ok(())
        })?;
        self.run(&self.peer.stop_one(&self.one))?;
        Ok(milliseconds(took))
    }
}

fn up_after_down(place: &mut Workplace<'_>) -> Result<Option<f64>> {
    place.ensure_down()?;
    let start = Instant::now();
    place.up_and_answering()?;
    Ok(Some(milliseconds(start.elapsed())))
}

fn up_unchanged(place: &mut Workplace<'_>) -> Result<Option<f64>> {
    place.ensure_up()?;
    Ok(Some(milliseconds(place.run(&place.peer.up(&place.six, None))?)))
}

fn one_changed(place: &mut Workplace<'_>) -> Result<Option<f64>> {
    place.ensure_up()?;
    let start = Instant::now();
    place.edit();
    let call = place.peer.up(&place.six, Some(CHANGED.0));
    Ok(Some(milliseconds(place.until_answer(start, &call)?)))
}

fn rollback(place: &mut Workplace<'_>) -> Result<Option<f64>> {
    let Some(call) = place.peer.rollback(&place.six) else { return Ok(None) };
    one_changed(place)?;
    let newest = place.version;
    place.version -= 1;
    let took = place.until_answer(Instant::now(), &call)?;
    // The source is still the newest, and the next edit has to be newer.
    place.version = newest;
    place.run(&place.peer.up(&place.six, Some(CHANGED.0)))?;
    place.await_answer(CHANGED.1, PATIENCE)?;
    Ok(Some(milliseconds(took)))
}

fn down(place: &mut Workplace<'_>) -> Result<Option<f64>> {
    place.ensure_up()?;
    let took = place.run(&place.peer.down(&place.six))?;
    place.is_up = false;
    Ok(Some(milliseconds(took)))
}

/// Asks a port until it gives the expected answer.
fn await_answer(port: u16, expected: &str, patience: Duration) -> Result<()> {
    let mut last = String::from("nothing");
    let look = || {
        match Client::local(port).patience(GLANCE).get("/") {
            Ok(response) if response.text().trim_end() == expected => return Some(()),
            Ok(response) => last = response.text(),
            Err(error) => last = format!("{error:#}"),
        }
        None
    };
    poll_until(patience, look)
        .with_context(|| format!("port {port} does not answer {expected:?}, but: {last}"))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}
