//! Beside Docker, firewalld, old iptables and whoever flushes the ruleset.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::world::{Instance, Namespace, OUTSIDE, Server, World, have, on_a_host, outside, sh};
use crate::net::RuleWatch;

struct Scene {
    _outside: Namespace,
    _servers: [Server; 2],
    world: World,
    web: Instance,
    db: Instance,
    address: Ipv4Addr,
}

fn scene() -> Scene {
    let outside = outside();
    let world = World::new();
    let (web, db) = (world.instance(1), world.instance(2));
    let servers = [outside.run(|| Server::start("outside", 80)), db.serve("db", 80)];
    world.map(0, &db);
    let address = world.virtual_address(0);
    Scene { _outside: outside, _servers: servers, world, web, db, address }
}

impl Scene {
    fn works(&self, when: &str) {
        for (to, what) in
            [(self.address, "virtual"), (OUTSIDE, "outside"), (self.db.spec.address, "direct")]
        {
            let said = self.web.ask(to, 80);
            assert!(said.is_ok(), "{when}, {what}: {said:?}");
        }
    }

    fn is_cut_off(&self, when: &str) {
        assert!(self.web.ask(self.address, 80).is_err(), "{when}: the test shows nothing");
    }
}

#[test]
fn with_bridge_filtering_on_and_off() {
    on_a_host(|| {
        let scene = scene();
        let setting = "/proc/sys/net/bridge/bridge-nf-call-iptables";
        if !fs::exists(setting).unwrap() {
            eprintln!("skipped: this kernel has no br_netfilter");
            return;
        }
        for value in ["0", "1"] {
            fs::write(setting, value).unwrap();
            scene.works(value);
        }
        scene.world.host.teardown().unwrap();
    });
}

#[test]
fn a_forward_policy_of_drop() {
    if !have("iptables") {
        return;
    }
    on_a_host(|| {
        let scene = scene();
        sh("iptables -P FORWARD DROP; iptables -A FORWARD -i docker0 -j ACCEPT");
        let before = sh("iptables -S");
        scene.is_cut_off("policy drop");
        let did = scene.world.host.ensure().unwrap();
        assert!(did.len() == 1 && did[0].contains("ip filter FORWARD"), "{did:?}");
        scene.works("policy drop");
        assert!(scene.world.host.ensure().unwrap().is_empty());

        // iptables understands what we wrote, and what it restores is still ours.
        let prefix = scene.world.host.range().interface_prefix();
        let listed = sh("iptables -S");
        for direction in ["-i", "-o"] {
            let rule = format!("-A FORWARD {direction} {prefix}+ -m comment --comment kiln-");
            assert!(listed.contains(&rule), "{listed}");
        }
        sh("saved=$(iptables-save); echo \"$saved\" | iptables-restore");
        assert_eq!(sh("iptables -S"), listed);
        assert!(scene.world.host.ensure().unwrap().is_empty());
        scene.works("restored");
        scene.world.host.teardown().unwrap();
        assert_eq!(sh("iptables -S"), before);
    });
}

#[test]
fn beside_docker_its_own_chain_is_used() {
    if !have("iptables") {
        return;
    }
    on_a_host(|| {
        sh("iptables -P FORWARD DROP; iptables -N DOCKER-USER; iptables -N DOCKER-ISOLATION
            iptables -A FORWARD -j DOCKER-USER; iptables -A FORWARD -j DOCKER-ISOLATION
            iptables -A DOCKER-USER -j RETURN; iptables -A DOCKER-ISOLATION -o docker0 -j DROP");
        let before = sh("iptables -S");
        let scene = scene();
        scene.works("Docker was first");
        assert!(sh("iptables -S DOCKER-USER").lines().nth(1).unwrap().contains("kiln-"));
        assert!(!sh("iptables -S FORWARD").contains("kiln-"));
        scene.world.host.teardown().unwrap();
        assert_eq!(sh("iptables -S"), before);
    });
}

#[test]
fn firewalls_that_reject_at_the_end() {
    if !have("nft") {
        return;
    }
    on_a_host(|| {
        sh("nft 'table inet firewalld {
            chain filter_FORWARD {
                type filter hook forward priority filter + 10; policy accept;
                ct state established,related accept
                reject with icmpx type admin-prohibited
            }
        }'");
        let before = sh("nft list ruleset");
        let scene = scene();
        scene.works("firewalld");
        let listed = sh("nft list table inet firewalld");
        assert!(listed.contains("iifname \"kl") && listed.contains("comment \"kiln-"), "{listed}");
        scene.world.host.teardown().unwrap();
        assert_eq!(sh("nft list ruleset"), before);
    });
}

#[test]
fn tables_of_the_old_iptables() {
    if !have("iptables-legacy") {
        return;
    }
    on_a_host(|| {
        let scene = scene();
        sh("iptables-legacy -P FORWARD DROP");
        let before = sh("iptables-legacy -S");
        scene.is_cut_off("legacy drop");
        assert_eq!(scene.world.host.ensure().unwrap().len(), 1);
        scene.works("legacy drop");
        assert!(scene.world.host.ensure().unwrap().is_empty());
        scene.world.host.teardown().unwrap();
        assert_eq!(sh("iptables-legacy -S"), before);
    });
}

#[test]
fn a_flushed_ruleset_is_noticed_and_put_back() {
    if !have("nft") {
        return;
    }
    on_a_host(|| {
        let scene = scene();
        assert!(scene.world.host.ensure().unwrap().is_empty());
        let mut watch = RuleWatch::new().unwrap();
        assert!(!watch.wait(Some(Duration::from_millis(20))).unwrap());
        let listed = sh("nft list ruleset");
        sh("nft flush ruleset");
        assert!(watch.wait(Some(Duration::from_secs(5))).unwrap());
        scene.is_cut_off("flushed");
        let did = scene.world.host.ensure().unwrap();
        assert!(did.len() == 1 && did[0].contains("put back"), "{did:?}");
        assert_eq!(sh("nft list ruleset"), listed);
        scene.works("put back");
        assert!(scene.world.host.ensure().unwrap().is_empty());
        scene.world.host.teardown().unwrap();
    });
}

#[test]
fn the_table_reads_as_documented() {
    if !have("nft") {
        return;
    }
    on_a_host(|| {
        let scene = scene();
        let listed = sh("nft list ruleset");
        let range = scene.world.host.range();
        for part in [
            format!("table ip {}", range.table()),
            format!("elements = {{ {} : {} }}", scene.address, scene.db.spec.address),
            format!("iifname \"{}*\" dnat to ip daddr map @virtual", range.interface_prefix()),
            format!("ip daddr {}/22 reject with tcp reset", range.blocks()[0].virtual_network()),
            format!(
                "oifname \"{}*\" ct state established,related accept",
                range.interface_prefix()
            ),
            "iifgroup . ip daddr @member accept".to_owned(),
            format!("iifname \"{}*\" iifname . ip saddr != @source drop", range.interface_prefix()),
            format!("iifname \"{}*\" ip daddr 127.0.0.0/8 drop", range.interface_prefix()),
            "ip saddr . ip daddr @hairpin snat to 169.254.1.1".to_owned(),
            format!(
                "ip saddr {} oifname != \"{}*\" masquerade",
                range.cidr(),
                range.interface_prefix()
            ),
        ] {
            assert!(listed.contains(&part), "no `{part}` in\n{listed}");
        }
        scene.world.host.teardown().unwrap();
    });
}
