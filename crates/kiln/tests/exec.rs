//! `kiln exec`: what goes in and out, what does not, and how it ends.

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::process::{Child, Command, Stdio};

use common::{PATIENCE, project, web, world};
use kiln_testkit::{Project, World, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

/// A service whose program takes hold of descriptors of others: standard input, output and error
/// of every process that writes its number to `/tmp/victim`.
fn thieving() -> (World, Project) {
    let world = world();
    let project = project(
        &world,
        "thieving",
        "services:
  web:
    build: .
    command: [sh, /thief]
    expose: ['80']
    restart: 'no'
",
    );
    project.write(
        "thief",
        "busybox httpd -p 80
while :; do
  if [ -s /tmp/victim ]; then
    pid=$(cat /tmp/victim); rm /tmp/victim
    for n in 0 1 2; do
      (exec 2>/dev/null; chmod 777 /proc/$pid/fd/$n; chown 7:7 /proc/$pid/fd/$n)
      (exec 2>/dev/null; echo stolen-$n >> /proc/$pid/fd/$n) &
      (exec 2>/dev/null; cat < /proc/$pid/fd/$n >> /tmp/stolen) &
    done
    sleep 0.2; echo $pid > /tmp/held
  fi
  sleep 0.02
done
",
    );
    project.write("Dockerfile", "FROM busybox\nCOPY thief /thief\n");
    world.kiln_in(&project, ["up"]).expect_done();
    (world, project)
}

/// A command that lets itself be robbed, and ends when that is done.
const VICTIM: &str =
    "echo $$ > /tmp/victim; until [ -e /tmp/held ]; do sleep 0.02; done; rm /tmp/held";

fn command(world: &World, project: &Project, args: &[&str]) -> Command {
    let mut command = Command::new(common::KILN);
    command.arg("--root").arg(world.root()).arg("exec").args(args).current_dir(project.dir());
    command
}

fn within_patience(mut child: Child) -> Option<i32> {
    wait_until(PATIENCE, "the end of `kiln exec`", || child.try_wait().unwrap()).code()
}

#[test]
fn nothing_of_the_callers_goes_into_an_instance() {
    let (world, project) = thieving();
    let (letter, taken, pipe) =
        (world.home().join("letter"), world.home().join("taken"), world.home().join("pipe"));
    fs::write(&letter, "only to be read\n").unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::from(0o600)).unwrap();
    let read_only = File::open(&letter).unwrap();
    let pipe_end = File::options().read(true).write(true).open(&pipe).unwrap();
    let output = File::create(&taken).unwrap();
    let before = [&letter, &taken, &pipe].map(|path| fs::metadata(path).unwrap());
    let child = command(&world, &project, &["web", "sh", "-c", VICTIM])
        .stdin(read_only)
        .stdout(output.try_clone().unwrap())
        .stderr(pipe_end)
        .spawn()
        .unwrap();
    assert_eq!(within_patience(child), Some(0));
    let after = [&letter, &taken, &pipe].map(|path| fs::metadata(path).unwrap());
    for (before, after) in before.iter().zip(&after) {
        let of = |meta: &fs::Metadata| (meta.uid(), meta.gid(), meta.mode());
        assert_eq!(of(before), of(after));
    }
    assert!(after[2].file_type().is_fifo());
    assert_eq!(fs::read_to_string(&letter).unwrap(), "only to be read\n", "not written to");
    // What the instance's own programs do to its own pipes is theirs.
    let child = command(&world, &project, &["web", "sh", "-c", "ls -l /proc/self/fd; echo 1 >&2"])
        .stdin(File::open(&letter).unwrap())
        .stdout(output)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    assert_eq!(within_patience(child), Some(0));
    let listed = fs::read_to_string(&taken).unwrap();
    for number in 0..3 {
        assert!(listed.contains(&format!("{number} -> pipe:[")), "{listed}");
    }
    assert!(!listed.contains("/letter") && !listed.contains("4 -> "), "{listed}");
}

#[test]
fn a_device_that_all_programs_share_is_not_theirs_to_change() {
    let (world, project, _port) = web();
    world.kiln_in(&project, ["up"]).expect_done();
    let of = || {
        let meta = fs::metadata("/dev/null").unwrap();
        (meta.mode(), meta.uid(), meta.gid())
    };
    let before = of();
    // What they ask for is what is there already, so that nothing breaks if they get it.
    let mode = format!("chmod {:o}", before.0 & 0o7777);
    let own = format!("{mode} /dev/null");
    let said = world.kiln_in(&project, ["exec", "web", "sh", "-c", &own]);
    assert_ne!(said.code, Some(0), "{said}");
    let through_input = format!("{mode} /proc/1/fd/0");
    let said = world.kiln_in(&project, ["exec", "web", "sh", "-c", &through_input]);
    assert_ne!(said.code, Some(0), "{said}");
    world.kiln_in(&project, ["exec", "web", "sh", "-c", "echo x > /dev/null"]).expect_done();
    assert_eq!(of(), before);
}

#[test]
fn what_goes_in_comes_out_whole_and_statuses_are_those_of_a_shell() {
    let (world, project, _port) = web();
    world.kiln_in(&project, ["up"]).expect_done();
    let exec =
        |args: &[&str]| world.call([&["exec", "-T", "web"], args].concat()).dir(project.dir());
    let text: String = (0..200_000).map(|n| format!("{n}\n")).collect();
    let said = exec(&["cat"]).stdin(text.as_str()).run().unwrap();
    assert!(said.stdout == text, "{} of {} bytes", said.stdout.len(), text.len());
    // A command that does not read all of it is not waited for.
    let said = exec(&["sh", "-c", "read line; echo $line; echo err >&2"]);
    let said = said.stdin(text.as_str()).run().unwrap();
    assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("0\n", "err\n"));
    for (command, code) in [
        (&["sh", "-c", "exit 9"][..], 9),
        (&["sh", "-c", "kill -TERM $$"], 143),
        (&["no-such-thing"], 127),
        (&["/no/such/thing"], 127),
        (&["/etc/passwd"], 126),
        (&["/www/index.html"], 126),
    ] {
        exec(command).run().unwrap().expect_code(code);
    }
    let verdict = || {
        world.kiln_in(&project, ["ps", "--json"]).expect_done().json()["instances"][0]["tainted"]
            .clone()
    };
    let before = verdict();
    let said = exec(&["no-such-thing"]).run().unwrap();
    assert!(said.stderr.contains("no-such-thing"), "{said}");
    // Nothing ran, so nothing has changed.
    assert_eq!((&verdict(), before.as_str()), (&before, Some("exec sh")));
    let said = world.kiln_in(
        &project,
        ["exec", "-e", "A=b c", "-w", "/www", "web", "sh", "-c", "echo $A; pwd"],
    );
    assert_eq!(said.stdout, "b c\n/www\n");
    // Arguments are not kept, the program is.
    exec(&["sh", "-c", ": password-of-mine"]).run_ok().unwrap();
    let kept = world.kiln_in(&project, ["history", "--json"]).expect_done().stdout;
    let shown = world.kiln_in(&project, ["ps", "--json"]).expect_done().stdout;
    assert!(!kept.contains("password-of-mine") && !shown.contains("password-of-mine"));
    assert!(kept.contains("\"program\":\"sh\"") && shown.contains("exec sh"), "{kept}\n{shown}");
}

/// Whether any process on the machine has this in its command line.
fn runs(word: &str) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes.filter(|entry| entry.file_name().to_string_lossy().parse::<i32>().is_ok()).any(
        |entry| {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            // The shell that starts it names it too, as does this test's own client.
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            words.first().is_some_and(|first| first.ends_with(b"sleep"))
                && words.get(1) == Some(&word.as_bytes())
        },
    )
}

#[test]
fn who_goes_away_takes_the_command_along() {
    let (world, project, _port) = web();
    world.kiln_in(&project, ["up"]).expect_done();
    let begin = |script: &str| {
        let args = ["-T", "web", "sh", "-c", script];
        command(&world, &project, &args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let number = format!("{}01", std::process::id());
    let mut client = begin(&format!("sleep {number} & setsid sleep {number} & wait"));
    wait_until(PATIENCE, "the command", || runs(&number).then_some(()));
    client.kill().unwrap();
    client.wait().unwrap();
    wait_until(PATIENCE, "the end of the command", || (!runs(&number)).then_some(()));

    // A reader that has seen enough, of a command that would never stop.
    let mut client = begin("yes");
    let mut some = [0; 10];
    client.stdout.take().unwrap().read_exact(&mut some).unwrap();
    assert_eq!(within_patience(client), Some(141));

    // What it leaves running does not keep it from ending, and ends with it.
    let number = format!("{}02", std::process::id());
    let client = begin(&format!("sleep {number} & echo done"));
    assert_eq!(within_patience(client), Some(0));
    wait_until(PATIENCE, "the end of what it left", || (!runs(&number)).then_some(()));
}

/// A terminal with `kiln exec` in its foreground.
struct Terminal {
    master: File,
    slave: OwnedFd,
    before: Termios,
    client: Child,
}

impl Terminal {
    fn start(world: &World, project: &Project, script: &str) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let slave = File::options().read(true).write(true).open(name).unwrap();
        resize(&master, 30, 90);
        let end = || Stdio::from(slave.try_clone().unwrap());
        let before = tcgetattr(&slave).unwrap();
        let client = Command::new("setsid")
            .args(["--ctty", common::KILN, "--root"])
            .arg(world.root())
            .args(["exec", "web", "sh", "-c", script])
            .current_dir(project.dir())
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        Self { master: File::from(master), slave: slave.into(), before, client }
    }

    /// Reads until `text` has come.
    fn wait_for(&mut self, text: &str) -> String {
        let mut said = Vec::new();
        let found = |said: &[u8]| String::from_utf8_lossy(said).contains(text);
        wait_until(PATIENCE, &format!("{text:?} on the terminal"), || {
            let mut fds = [rustix::event::PollFd::new(&self.master, rustix::event::PollFlags::IN)];
            let pause = rustix::event::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
            if rustix::event::poll(&mut fds, Some(&pause)).unwrap() > 0 {
                let mut buffer = [0; 1000];
                let length = (&self.master).read(&mut buffer).unwrap();
                said.extend_from_slice(&buffer[..length]);
            }
            found(&said).then_some(())
        });
        String::from_utf8_lossy(&said).into_owned()
    }

    fn raw(&self) -> bool {
        let now = tcgetattr(&self.slave).unwrap();
        now.local_modes != self.before.local_modes
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.client)
    }
}

fn resize(terminal: impl std::os::fd::AsFd, rows: u16, columns: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).unwrap();
}

#[test]
fn a_terminal_is_relayed_with_its_size_and_put_back() {
    let (world, project, _port) = web();
    world.kiln_in(&project, ["up"]).expect_done();
    let script = "trap 'stty size' WINCH; stty size; tty; while :; do read -r line && echo got $line; \
                  [ \"$line\" = end ] && exit 5; done";
    let mut terminal = Terminal::start(&world, &project, script);
    let said = terminal.wait_for("/dev/pts/");
    assert!(said.contains("30 90"), "{said}");
    wait_until(PATIENCE, "raw mode", || terminal.raw().then_some(()));
    terminal.master.write_all(b"hello\r").unwrap();
    terminal.wait_for("got hello");
    resize(&terminal.master, 40, 120);
    terminal.master.write_all(b"\r").unwrap();
    terminal.wait_for("40 120");
    terminal.master.write_all(b"end\r").unwrap();
    terminal.wait_for("got end");
    let raw = Terminal { client: terminal.client, ..terminal };
    let (slave, before) = (raw.slave, raw.before);
    assert_eq!(within_patience(raw.client), Some(5));
    assert_eq!(tcgetattr(&slave).unwrap().local_modes, before.local_modes);

    for signal in [Signal::TERM, Signal::HUP, Signal::QUIT] {
        let mut terminal = Terminal::start(&world, &project, "echo begun; exec sleep 1000");
        terminal.wait_for("begun");
        wait_until(PATIENCE, "raw mode", || terminal.raw().then_some(()));
        kill_process(terminal.pid(), signal).unwrap();
        let pid = terminal.pid();
        wait_until(PATIENCE, "the end of the client", || terminal.client.try_wait().unwrap());
        assert!(!terminal.raw(), "{pid:?} left it raw after {signal:?}");
    }
}

#[test]
fn what_is_typed_after_the_end_is_not_for_the_instance() {
    let (world, project) = thieving();
    let mut terminal = Terminal::start(&world, &project, &format!("{VICTIM}; echo robbed"));
    terminal.wait_for("robbed");
    wait_until(PATIENCE, "the end of the client", || terminal.client.try_wait().unwrap());
    terminal.master.write_all(b"secret-word\n").unwrap();
    let mut line = [0; 100];
    let mut reader = File::from(terminal.slave.try_clone().unwrap());
    let length = reader.read(&mut line).unwrap();
    assert_eq!(&line[..length], b"secret-word\n");
    let stolen =
        world.kiln_in(&project, ["exec", "-T", "web", "sh", "-c", "cat /tmp/stolen; true"]);
    assert!(!stolen.stdout.contains("secret-word"), "{stolen}");
}
