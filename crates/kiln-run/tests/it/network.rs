//! An instance with a routed address, in a network namespace of the test's own.

use kiln_run::Network;
use kiln_run::net::NetSpec;

use crate::kit::{Kit, until};

#[test]
fn an_address_is_there_before_the_program() {
    // Namespaces belong to threads: the test's own thread takes a fresh one, and what it starts
    // begins there.
    // SAFETY: only this thread's view of the network changes; descriptors stay as they are.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
    let kit = Kit::new();
    let mut spec = kit.spec(
        "ip -o -4 addr | grep -c 'inet 10.9.8.7/32'; ip route | grep -c default; echo ready; \
        sleep 100",
    );
    spec.sandbox.network = Network::Routed(NetSpec {
        host_ifname: "kilntest0".into(),
        address: [10, 9, 8, 7].into(),
        group: 7,
        mtu: None,
    });
    let running = kit.start_ready(&spec);
    assert_eq!(kit.lines(&spec), ["1", "1", "ready"]);
    let interfaces = || std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    assert!(interfaces().contains("kilntest0"), "{}", interfaces());
    // A second one with the same name cannot be attached, says so, and leaves nothing.
    let mut again = kit.spec("true");
    again.sandbox.network = spec.sandbox.network.clone();
    let error = kit.runtime.start(&again).unwrap_err().to_string();
    assert!(error.contains("attach the network") && error.contains("kilntest0"), "{error}");
    assert!(interfaces().contains("kilntest0"), "{}", interfaces());
    running.kill();
    until("the interface has gone", || !interfaces().contains("kilntest0"));
    kit.assert_clean();
}
