//! Memory, cpu, pids, ulimits.

use kiln_core::compose::Limits;
use kiln_run::{End, Known};

use crate::kit::Kit;

#[test]
fn too_much_memory_is_an_oom_kill() {
    let kit = Kit::new();
    // tail keeps an endless line.
    let mut spec = kit.spec("exec tail -n 1 /dev/zero");
    spec.sandbox.limits = Limits { memory: Some(24 << 20), ..Limits::default() };
    let running = kit.runtime.start(&spec).unwrap();
    let Known::Ended(End::Exited(exit)) = running.wait() else { panic!() };
    assert_eq!((exit.signal, exit.oom), (Some(9), true), "{exit:?}");
    kit.assert_clean();
}

#[test]
fn too_many_processes_are_refused() {
    let kit = Kit::new();
    let mut spec = kit.spec("for n in $(seq 20); do sleep 30 & done; echo no");
    spec.sandbox.limits = Limits { pids: Some(5), ..Limits::default() };
    let (code, lines) = kit.run_spec(&spec);
    assert_ne!(code, 0);
    assert!(lines.iter().any(|line| line.contains("can't fork")), "{lines:?}");
    kit.assert_clean();
}

#[test]
fn cpu_is_shared_out() {
    let kit = Kit::new();
    let mut spec = kit.spec("echo ready; while :; do :; done");
    spec.sandbox.limits = Limits { nano_cpus: Some(100_000_000), ..Limits::default() };
    let running = kit.start_ready(&spec);
    let ticks = || -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", running.pid())).unwrap();
        let after = stat.rsplit_once(") ").unwrap().1.to_owned();
        let field = |at: usize| after.split(' ').nth(at).unwrap().parse::<u64>().unwrap();
        field(11) + field(12)
    };
    let begun = std::time::Instant::now();
    // Until it has had two hundredths of a second, five times: that takes a second at a tenth.
    let goal = ticks() + 10;
    crate::kit::until("the program has run", || ticks() >= goal);
    let share = 0.1 / begun.elapsed().as_secs_f64();
    assert!(share < 0.5, "it had {share} of a cpu");
    running.kill();
    kit.assert_clean();
}

#[test]
fn ulimits_are_set_and_a_raise_that_is_refused_is_told() {
    let kit = Kit::new();
    let mut spec = kit.spec("ulimit -n; ulimit -c");
    spec.sandbox.ulimits.insert("nofile".into(), (123, 123));
    spec.sandbox.ulimits.insert("core".into(), (0, 0));
    assert_eq!(kit.run_spec(&spec).1, ["123", "0"]);
    let mut spec = kit.spec("true");
    let most = rustix::process::getrlimit(rustix::process::Resource::Memlock).maximum;
    let may_raise = rustix::thread::capabilities(None)
        .unwrap()
        .effective
        .contains(rustix::thread::CapabilitySet::SYS_RESOURCE);
    spec.sandbox.ulimits.insert("memlock".into(), (-1, -1));
    let running = kit.runtime.start(&spec).unwrap();
    let told = running.warnings().iter().any(|line| line.contains("`memlock`"));
    assert_eq!(told, most.is_some() && !may_raise, "{:?}", running.warnings());
    running.wait();
}

#[test]
fn weights_and_sets_reach_the_group_or_are_told() {
    let kit = Kit::new();
    let mut spec = kit.spec("echo ready; grep Cpus_allowed_list /proc/self/status; sleep 30");
    spec.sandbox.limits = Limits {
        memory: Some(64 << 20),
        reservation: Some(32 << 20),
        swap: Some(64 << 20),
        shares: Some(512),
        cpuset: Some("0".into()),
        ..Limits::default()
    };
    let running = kit.start_ready(&spec);
    let told = running.warnings().join("\n");
    let read = |file: &str| {
        let found = kit.groups().into_iter().map(|group| group.join(file));
        found
            .filter_map(|path| std::fs::read_to_string(path).ok())
            .map(|text| text.trim().to_owned())
            .collect::<Vec<_>>()
    };
    for (v1, v2, name) in [
        (("cpu.shares", "512"), ("cpu.weight", "20"), "cpu.shares"),
        (("cpuset.cpus", "0"), ("cpuset.cpus", "0"), "cpuset"),
        (("memory.soft_limit_in_bytes", "33554432"), ("memory.low", "33554432"), "memory"),
    ] {
        let set = [v1, v2].iter().any(|(file, value)| read(file).iter().any(|text| text == value));
        assert!(set || told.contains(name), "{name}: {told}");
    }
    running.kill();
    kit.assert_clean();
}

#[test]
fn more_processes_than_any_machine_has_are_no_limit_and_no_error() {
    let kit = Kit::new();
    for (most, expected) in [(4 << 20, "4194304"), ((4 << 20) + 1, "max"), (u64::MAX, "max")] {
        let mut spec = kit.spec("echo ready; exec sleep 1000");
        spec.sandbox.limits.pids = Some(most);
        let running = kit.start_ready(&spec);
        let limits: Vec<String> = kit
            .groups()
            .iter()
            .filter_map(|group| std::fs::read_to_string(group.join("pids.max")).ok())
            .map(|text| text.trim().to_owned())
            .collect();
        // Without a limit a group of its own is not needed for it.
        assert!(limits.iter().any(|limit| limit == expected), "{most}: {limits:?}");
        running.kill();
        kit.runtime.remove(&spec.id).unwrap();
    }
    kit.assert_clean();
}
