//! Commands inside a running instance.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use kiln_run::{ExecSpec, ExecStdio};

use crate::kit::{Kit, fields};

const LONG: Duration = Duration::from_secs(20);

fn sh(script: &str) -> ExecSpec {
    ExecSpec { argv: ["sh", "-c", script].map(str::to_owned).to_vec(), ..ExecSpec::default() }
}

#[test]
fn a_command_sees_what_the_instance_sees() {
    let kit = Kit::new();
    let mut spec = kit.spec("echo ready; sleep 100");
    spec.sandbox.hostname = "inside".into();
    spec.sandbox.env.push("FROM=spec".into());
    spec.sandbox.user = "app".into();
    let running = kit.start_ready(&spec);
    let mut exec =
        sh("hostname; echo $FROM $MORE; ps | grep -c '[s]leep 100'; id -u; ip -o link | \
        wc -l; cat /proc/self/status; exit 3");
    exec.env.push("MORE=env".into());
    let outcome = kit.runtime.exec_capture(&running, &exec, LONG).unwrap();
    assert_eq!((outcome.code, outcome.signal, outcome.timed_out), (3, None, false));
    let lines: Vec<String> =
        String::from_utf8(outcome.output).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(lines[..5], ["inside", "spec env", "1", "100", "1"]);
    let status = fields(&lines);
    assert_eq!((status["Seccomp"].as_str(), status["NoNewPrivs"].as_str()), ("2", "1"));
    assert_eq!(status["CapBnd"], "00000000a80425fb");
    exec = sh("id -u");
    exec.user = Some("root".into());
    assert_eq!(kit.runtime.exec_capture(&running, &exec, LONG).unwrap().output, b"0\n");
    running.kill();
    let gone = kit.runtime.exec_capture(&running, &sh("true"), LONG).unwrap_err().to_string();
    assert!(gone.contains("not running"), "{gone}");
    kit.assert_clean();
}

#[test]
fn a_command_that_is_not_there_or_too_slow() {
    let kit = Kit::new();
    let running = kit.start_ready(&kit.spec("echo ready; sleep 100"));
    let none = ExecSpec { argv: vec!["curl".into()], ..ExecSpec::default() };
    let error = kit.runtime.exec_capture(&running, &none, LONG).unwrap_err().to_string();
    assert!(error.contains("exec `curl`: not found in PATH"), "{error}");
    let slow = sh("echo begun; setsid sleep 77 & sleep 77");
    let begun = Instant::now();
    let limit = Duration::from_millis(300);
    let outcome = kit.runtime.exec_capture(&running, &slow, limit).unwrap();
    assert!(outcome.timed_out);
    assert_eq!(outcome.output, b"begun\n");
    assert!(begun.elapsed() < LONG);
    // All of it was killed, and nothing else.
    let left = kit.runtime.exec_capture(&running, &sh("ps | grep '[s]leep'"), LONG).unwrap();
    let left = String::from_utf8(left.output).unwrap();
    assert!(left.contains("sleep 100") && !left.contains("sleep 77"), "{left}");
    running.kill();
    kit.assert_clean();
}

#[test]
fn attached_streams_and_signals() {
    let kit = Kit::new();
    let running = kit.start_ready(&kit.spec("echo ready; sleep 100"));
    let (stdin, mut input) = pipe();
    let (mut output, stdout) = pipe();
    let (mut errors, stderr) = pipe();
    let stdio = ExecStdio { stdin: stdin.into(), stdout: stdout.into(), stderr: stderr.into() };
    let mut executing = kit.runtime.exec(&running, &sh("cat; echo e >&2; exit 6"), stdio).unwrap();
    input.write_all(b"through\n").unwrap();
    drop(input);
    assert_eq!(executing.wait().unwrap(), 6);
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    errors.read_to_string(&mut text).unwrap();
    assert_eq!(text, "through\ne\n");
    let null = || File::options().read(true).write(true).open("/dev/null").unwrap().into();
    let stdio = ExecStdio { stdin: null(), stdout: null(), stderr: null() };
    let mut executing = kit.runtime.exec(&running, &sh("exec sleep 50"), stdio).unwrap();
    executing.signal(15).unwrap();
    assert_eq!(executing.wait().unwrap(), 143);
    running.kill();
    kit.assert_clean();
}

#[test]
fn a_terminal() {
    let kit = Kit::new();
    let running = kit.start_ready(&kit.spec("echo ready; sleep 100"));
    let (stdin, mut input) = pipe();
    let (mut output, stdout) = pipe();
    let copy = stdout.try_clone().unwrap();
    let stdio = ExecStdio { stdin: stdin.into(), stdout: stdout.into(), stderr: copy.into() };
    let mut exec = sh("tty; stty size; read line; echo got $line; exit 2");
    exec.terminal = Some((30, 100));
    let mut executing = kit.runtime.exec(&running, &exec, stdio).unwrap();
    input.write_all(b"word\n").unwrap();
    assert_eq!(executing.wait().unwrap(), 2);
    drop(executing);
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    for expected in ["/dev/pts/0\r\n", "30 100\r\n", "got word\r\n"] {
        assert!(text.contains(expected), "{expected:?} in {text:?}");
    }
    running.kill();
    kit.assert_clean();
}

#[test]
fn a_limited_instance_limits_its_commands() {
    let kit = Kit::new();
    let mut spec = kit.spec("echo ready; sleep 100");
    spec.sandbox.limits.pids = Some(4);
    let running = kit.start_ready(&spec);
    let many = sh("for n in 1 2 3 4 5 6; do sleep 30 & done");
    let outcome = kit.runtime.exec_capture(&running, &many, LONG).unwrap();
    let text = String::from_utf8(outcome.output).unwrap();
    assert!(text.contains("can't fork"), "{text}");
    running.kill();
    kit.assert_clean();
}

fn pipe() -> (File, File) {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    (read.into(), write.into())
}
