//! Start, end, stop, kill, and what is left.

use std::time::{Duration, Instant};

use kiln_run::{End, Known, RunError, Watch};

use crate::kit::{Kit, shim_of, until_or};

fn exit(known: Known) -> kiln_run::ExitInfo {
    match known {
        Known::Ended(End::Exited(exit)) => exit,
        other => panic!("{other:?}"),
    }
}

#[test]
fn exit_codes_and_signals_are_kept() {
    let kit = Kit::new();
    for (script, code, signal) in [
        ("exit 0", 0, None),
        ("exit 7", 7, None),
        // The first process of a pid namespace ignores what it has no handler for, so a child
        // dies here and the shell tells.
        ("sh -c 'kill -9 $$'; exit $?", 137, None),
    ] {
        let spec = kit.spec(script);
        let running = kit.runtime.start(&spec).unwrap();
        let exit = exit(running.wait());
        assert_eq!((exit.code, exit.signal, exit.oom), (code, signal, false), "{script}");
        // Whoever comes later is told the same.
        assert_eq!(kit.attach(&spec).known, Known::Ended(End::Exited(exit)));
        assert!(!running.is_alive());
    }
    kit.assert_clean();
}

#[test]
fn stop_is_heard() {
    let kit = Kit::new();
    let spec = kit.spec("trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done");
    let running = kit.start_ready(&spec);
    let state = running.stop(15, Duration::from_secs(20));
    assert_eq!(exit(state).code, 3);
    assert_eq!(kit.lines(&spec), ["ready", "bye"]);
    kit.assert_clean();
}

#[test]
fn a_signal_that_cannot_be_heard_is_not_waited_for() {
    let kit = Kit::new();
    // The first process of a namespace gets no signal that it has no reaction to.
    let running = kit.start_ready(&kit.spec("echo ready; exec sleep 1000"));
    let begun = Instant::now();
    assert_eq!(exit(running.stop(15, Duration::from_secs(60))).signal, Some(9));
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    kit.assert_clean();
}

#[test]
fn a_shim_that_is_asked_to_end_stops_its_program_in_order() {
    let kit = Kit::new();
    let mut spec =
        kit.spec("trap 'echo bye; exit 3' USR1; echo ready; while :; do sleep 0.05; done");
    spec.stop_signal = "SIGUSR1".into();
    spec.stop_grace = 20_000_000_000;
    let running = kit.start_ready(&spec);
    let shim = shim_of(running.pid());
    rustix::process::kill_process(shim, rustix::process::Signal::TERM).unwrap();
    assert_eq!(exit(running.wait()).code, 3);
    assert_eq!(kit.lines(&spec), ["ready", "bye"]);
    kit.assert_clean();
}

#[test]
fn stop_kills_after_the_grace() {
    let kit = Kit::new();
    let spec = kit.spec("trap '' TERM; echo ready; while :; do sleep 60; done");
    let running = kit.start_ready(&spec);
    let begun = Instant::now();
    let exit = exit(running.stop(15, Duration::from_millis(200)));
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    assert!(begun.elapsed() >= Duration::from_millis(200));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    kit.assert_clean();
}

#[test]
fn a_waiting_descriptor_wakes() {
    let kit = Kit::new();
    let running = kit.runtime.start(&kit.spec("echo ready; sleep 60")).unwrap();
    let mut watch = running.watch().unwrap();
    let ready = |watch: &Watch, limit| {
        let mut fds = [rustix::event::PollFd::new(watch, rustix::event::PollFlags::IN)];
        let limit = rustix::event::Timespec { tv_sec: limit, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&limit)).unwrap() == 1
    };
    assert!(!ready(&watch, 0));
    let state = running.kill();
    assert_eq!(exit(state.clone()).signal, Some(9));
    assert!(ready(&watch, 20));
    assert_eq!((watch.known(), running.status()), (state.clone(), state));
}

#[test]
fn an_instance_is_found_again_and_outlives_its_handle() {
    let kit = Kit::new();
    let spec = kit.spec("echo ready; sleep 60");
    let pid = kit.start_ready(&spec).pid();
    let found = kit.attach(&spec).running;
    assert_eq!((found.pid(), found.id()), (pid, spec.id.as_str()));
    found.signal(9).unwrap();
    assert_eq!(exit(found.wait()).signal, Some(9));
    assert!(matches!(found.signal(9), Err(RunError::NotRunning { .. })));
}

/// Whether a process has ended, or is past the point from which it never comes back to its program:
/// it has given its memory and files back, and has left its control group. What is left of it may
/// take the kernel a moment, and waits to be reaped then.
fn executes_no_more(pid: i32) -> bool {
    // proc_pid_stat(5); include/linux/sched.h.
    const PF_EXITING: u64 = 0x4;
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    let words: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    words[0] == "Z" || words[6].parse::<u64>().unwrap() & PF_EXITING != 0
}

#[test]
fn the_program_dies_with_its_shim() {
    let kit = Kit::new();
    for init in [false, true] {
        let mut spec = kit.spec("trap '' TERM HUP; echo ready; sleep 1000");
        spec.sandbox.init = init;
        let running = kit.start_ready(&spec);
        let shim = shim_of(running.pid());
        rustix::process::kill_process(shim, rustix::process::Signal::KILL).unwrap();
        // It is not told so before it is certain, and until then it is unknown.
        until_or(
            "the program has died with its shim",
            || match running.settled() {
                Known::Ended(end) => end == End::Lost,
                Known::Unknown(_) => false,
                Known::Runs(alive) => panic!("{alive:?}"),
            },
            || running.status(),
        );
        assert!(executes_no_more(running.pid()), "{:?}", running.status());
        assert_eq!(running.wait(), Known::Ended(End::Lost));
    }
    kit.runtime.sweep(&Default::default()).unwrap();
    kit.assert_clean();
    assert!(kit.runtime.list().unwrap().is_empty());
}

#[test]
fn what_cannot_start_says_why_and_leaves_nothing() {
    let kit = Kit::new();
    for (argv, expected) in [
        (&["no-such-program"][..], "exec `no-such-program`: not found in PATH"),
        (&["/bin/no"][..], "there is no /bin/no in the image"),
        (&["/bin/plain"][..], "/bin/plain is not executable"),
        (&["plain"][..], "not executable"),
    ] {
        let mut spec = kit.spec("");
        spec.sandbox.argv = argv.iter().map(|&word| word.to_owned()).collect();
        let error = kit.runtime.start(&spec).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(error.contains(&spec.id), "{error}");
    }
    let mut spec = kit.spec("true");
    spec.sandbox.user = "nobody".to_owned();
    let error = kit.runtime.start(&spec).unwrap_err().to_string();
    assert!(error.contains("user `nobody`") && error.contains("/etc/passwd"), "{error}");
    let mut spec = kit.spec("true");
    let source = kit.dir.path().join("missing");
    spec.sandbox.mounts.push(kiln_run::BindMount {
        source,
        target: "/x".into(),
        read_only: true,
        node: None,
    });
    let error = kit.runtime.start(&spec).unwrap_err().to_string();
    assert!(error.contains("missing over `/x`"), "{error}");
    kit.assert_clean();
}

#[test]
fn specifications_are_checked() {
    let kit = Kit::new();
    let mut empty = kit.spec("true");
    empty.sandbox.argv.clear();
    let mut signal = kit.spec("true");
    signal.stop_signal = "SIGNONE".to_owned();
    let mut id = kit.spec("true");
    id.id = "../x".to_owned();
    for spec in [empty, signal, id] {
        assert!(matches!(kit.runtime.start(&spec), Err(RunError::Spec { .. })), "{spec:?}");
    }
}

#[test]
fn many_at_once_leave_nothing() {
    let kit = Kit::new();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let spec = kit.spec("exit 5");
                    let running = kit.runtime.start(&spec).unwrap();
                    assert_eq!(exit(running.wait()).code, 5);
                    kit.runtime.remove(&spec.id).unwrap();
                }
            });
        }
    });
    kit.assert_clean();
    assert!(kit.runtime.list().unwrap().is_empty());
}

#[test]
fn an_init_reaps_and_forwards() {
    let kit = Kit::new();
    // The grandchild outlives its parent and becomes a child of pid 1.
    let script = "trap 'exit 9' TERM; (sleep 0.01 & ); sleep 0.2; \
        ps | grep -c '\\[sleep\\]'; echo ready; while :; do sleep 0.05; done";
    let mut spec = kit.spec(script);
    spec.sandbox.init = true;
    let running = kit.start_ready(&spec);
    assert_eq!(kit.lines(&spec), ["0", "ready"]);
    assert_eq!(exit(running.stop(15, Duration::from_secs(20))).code, 9);
    let mut spec = kit.spec("kill -9 $$");
    spec.sandbox.init = true;
    assert_eq!(kit.run_spec(&spec).0, 137);
    kit.assert_clean();
}
