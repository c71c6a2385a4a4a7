//! Logs of real programs.

use std::time::Duration;

use kiln_run::LogLimits;
use kiln_run::logs::{Follow, LogQuery, LogStream, Watch, read};

use crate::kit::{Kit, until};

#[test]
fn streams_are_told_apart_and_rotated() {
    let kit = Kit::new();
    let mut spec = kit.spec("echo oops >&2; for n in $(seq 2000); do echo line $n; done");
    spec.log = LogLimits { size: 8192, count: 3 };
    assert_eq!(kit.run_spec(&spec).0, 0);
    // Two pipes have no common order: the one line of the other may stand anywhere.
    let (errors, entries): (Vec<_>, Vec<_>) = read(&spec.dir, LogQuery::default())
        .unwrap()
        .into_iter()
        .partition(|entry| entry.stream == LogStream::Err);
    assert!(errors.iter().all(|entry| entry.message == "oops"), "{errors:?}");
    assert_eq!(entries.last().unwrap().message, "line 2000");
    assert!(entries.len() < 2000);
    assert!(entries.iter().all(|entry| entry.stream == LogStream::Out));
    let numbers: Vec<u32> =
        entries.iter().map(|entry| entry.message[5..].parse().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1));
    for name in ["log", "log.1", "log.2"] {
        assert!(std::fs::metadata(spec.dir.join(name)).unwrap().len() <= 8192, "{name}");
    }
    assert!(!spec.dir.join("log.3").exists());
    let spec = kit.spec("echo oops >&2; printf 'no newline'");
    kit.run_spec(&spec);
    let mut entries = read(&spec.dir, LogQuery::default()).unwrap();
    entries.sort_by_key(|entry| entry.stream == LogStream::Err);
    assert_eq!(entries[0].message, "no newline");
    assert_eq!((entries[1].stream, entries[1].message.as_str()), (LogStream::Err, "oops"));
}

#[test]
fn a_log_is_followed() {
    let kit = Kit::new();
    let spec = kit.spec("trap 'echo heard' USR1; echo ready; while :; do sleep 0.05; done");
    let running = kit.start_ready(&spec);
    let mut watch = Watch::new();
    watch.add(&spec.dir);
    let mut follow = Follow::begin(&spec.dir, Some(0)).unwrap();
    running.signal(10).unwrap();
    let mut heard = None;
    while heard.is_none() {
        let changed = watch.wait(Duration::from_secs(20)).unwrap().unwrap();
        assert!(changed.contains(&spec.dir), "it is woken");
        heard = follow.next().unwrap();
    }
    assert_eq!(heard.unwrap().message, "heard");
    running.kill();
}

/// Fields of `/proc/PID/stat`, from the third on.
fn stat(pid: i32) -> Vec<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after = text.rsplit_once(") ").unwrap().1;
    after.split(' ').map(str::to_owned).collect()
}

#[test]
fn a_flood_is_copied_within_a_share() {
    let kit = Kit::new();
    let mut spec = kit.spec("echo ready; sleep 0.5; exec yes");
    spec.log = LogLimits { size: 1 << 20, count: 2 };
    let running = kit.start_ready(&spec);
    let shim: i32 = stat(running.pid())[1].parse().unwrap();
    // Hundredths of a second, in the kernel and outside of it.
    let used = || stat(shim)[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum::<u64>();
    // The burst that it may have first.
    until("the flood has begun", || used() > 25);
    let (begun, before) = (std::time::Instant::now(), used());
    until("two seconds have passed", || begun.elapsed() > Duration::from_secs(2));
    let share = (used() - before) as f64 / 100.0 / begun.elapsed().as_secs_f64();
    assert!(share < 0.4, "{share} of a processor");
    running.kill();
    let entries = read(&spec.dir, LogQuery { tail: Some(3), since: None }).unwrap();
    assert!(entries.iter().all(|entry| entry.message == "y"), "{entries:?}");
}

#[test]
fn a_log_that_cannot_be_written_blocks_nobody() {
    let kit = Kit::new();
    let spec = kit.spec("for n in $(seq 20000); do echo line $n of something longer; done; exit 4");
    std::fs::create_dir_all(&spec.dir).unwrap();
    std::os::unix::fs::symlink("/dev/full", spec.dir.join("log")).unwrap();
    let running = kit.runtime.start(&spec).unwrap();
    let state = running.wait();
    assert!(
        matches!(state, kiln_run::Known::Ended(kiln_run::End::Exited(exit)) if exit.code == 4),
        "{state:?}"
    );
}
