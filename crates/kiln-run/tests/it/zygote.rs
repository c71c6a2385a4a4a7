//! The process that shims are forked from may be gone, stopped or killed at any moment.

use std::fs;

use kiln_run::{End, Known};

use crate::kit::{Kit, shim_of, until};

/// The zygotes of the kit's runtime, zombies left out.
fn zygotes(kit: &Kit) -> Vec<i32> {
    let words = format!("kiln\0zygote\0kiln/{}/shims", kit.scope);
    let all = fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).trim_end_matches('\0') == words
    })
    .collect()
}

fn parent(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let rest = stat.rsplit_once(") ").unwrap().1;
    rest.split(' ').nth(1).unwrap().parse().unwrap()
}

fn signal(pid: i32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Starts one instance, and gives the pid of its shim.
fn started(kit: &Kit) -> i32 {
    let spec = kit.spec("echo ready; sleep 1000");
    let running = kit.start_ready(&spec);
    assert!(running.is_alive());
    shim_of(running.pid()).as_raw_nonzero().get()
}

#[test]
fn shims_are_forked_and_know_nothing_of_the_line_to_the_agent() {
    let kit = Kit::new();
    until("a zygote", || zygotes(&kit).len() == 1);
    let zygote = zygotes(&kit)[0];
    let shims = [started(&kit), started(&kit)];
    for shim in shims {
        assert_eq!(parent(shim), zygote);
        let exe = fs::read_link(format!("/proc/{shim}/exe")).unwrap();
        assert!(exe.to_string_lossy().starts_with("/memfd:kiln"), "{exe:?}");
        // Its own control socket, once whoever asked it has gone, and no other.
        until("one socket", || {
            let fds = fs::read_dir(format!("/proc/{shim}/fd")).unwrap().flatten();
            let links = fds.filter_map(|entry| fs::read_link(entry.path()).ok());
            links.filter(|link| link.to_string_lossy().starts_with("socket:")).count() == 1
        });
        let line = fs::read(format!("/proc/{shim}/cmdline")).unwrap();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let dir = kit.runtime.dir("").to_string_lossy().into_owned();
        assert!(line.starts_with(&format!("kiln shim {dir}")), "{line}");
    }
    // They do not need it: it ends, they go on and are stopped as ever.
    kit.runtime.leave();
    until("no zygote", || zygotes(&kit).is_empty());
    for id in kit.runtime.list().unwrap() {
        let found = kit.runtime.attach(&id, std::time::Duration::from_secs(20));
        assert!(matches!(found.known, Known::Runs(_)), "{:?}", found.known);
        assert!(matches!(found.running.kill(), Known::Ended(End::Exited(_))));
    }
    kit.assert_clean();
}

#[test]
fn an_instance_starts_also_when_the_zygote_was_killed_or_is_stopped() {
    let kit = Kit::new();
    until("a zygote", || zygotes(&kit).len() == 1);
    let first = zygotes(&kit)[0];
    signal(first, rustix::process::Signal::KILL);
    // The first may have been told just before the end.
    started(&kit);
    started(&kit);
    until("another zygote", || zygotes(&kit).first().is_some_and(|pid| *pid != first));
    let second = zygotes(&kit)[0];
    signal(second, rustix::process::Signal::STOP);
    let shim = started(&kit);
    assert_ne!(parent(shim), second, "it was executed");
    assert!(!zygotes(&kit).contains(&second), "what it was told, it will not begin with later");
    // And again from a fresh one.
    let shim = started(&kit);
    assert_eq!(zygotes(&kit), [parent(shim)]);
}

#[test]
fn the_zygote_ends_with_its_agent() {
    let kit = Kit::new();
    until("a zygote", || zygotes(&kit).len() == 1);
    let scope = kit.scope.clone();
    let again = kiln_run::Runtime::new(kit.dir.path(), env!("CARGO_BIN_EXE_kiln-run-shim"), &scope);
    until("two zygotes", || zygotes(&kit).len() == 2);
    drop(again);
    until("one zygote", || zygotes(&kit).len() == 1);
}
