//! Set up, found again, side by side, and gone.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsFd as _;

use super::world::{Namespace, World, eventually, on_a_host, outside, snapshot};
use crate::net::attach::attach_to;
use crate::net::{Host, NetError, loopback_only};

#[test]
fn teardown_leaves_nothing() {
    on_a_host(|| {
        let _outside = outside();
        let before = snapshot();
        let world = World::new();
        let (web, db) = (world.instance(1), world.instance(2));
        world.map(0, &web);
        world.map(1, &db);
        assert_ne!(snapshot(), before);
        world.host.teardown().unwrap();
        assert_eq!(snapshot(), before);
        assert_eq!(fs::read_to_string(world.run.path().join("ranges")).unwrap(), "");
    });
}

#[test]
fn a_killed_agents_network_is_found_again() {
    on_a_host(|| {
        let world = World::new();
        let (web, db) = (world.instance(1), world.instance(2));
        let _server = db.serve("db", 80);
        world.map(3, &db);
        let before = snapshot();
        let World { run, root, host } = world;
        let range = host.range();
        drop(host);
        let host = Host::setup_in(run.path(), root.path()).unwrap();
        assert_eq!(host.range(), range);
        assert_eq!(snapshot(), before);
        let address = range.virtual_address(3).unwrap();
        assert_eq!(
            host.translation().into_iter().collect::<Vec<_>>(),
            [(address, db.spec.address)]
        );
        assert!(web.ask(address, 80).is_ok());

        // What should be there is not what is there: an instance died meanwhile.
        let other = range.virtual_address(4).unwrap();
        host.translate_all(&[(other, db.spec.address)]).unwrap();
        assert!(web.ask(other, 80).is_ok());
        assert_eq!(web.ask(address, 80).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(host.sweep(std::slice::from_ref(&db.spec)).unwrap(), 1);
        assert_eq!(host.sweep(&[db.spec]).unwrap(), 0);
        host.teardown().unwrap();
    });
}

#[test]
fn two_roots_do_not_touch_each_other() {
    on_a_host(|| {
        let _outside = outside();
        let first = World::new();
        let second_root = tempfile::tempdir().unwrap();
        let second = Host::setup_in(first.run.path(), second_root.path()).unwrap();
        assert_ne!(second.range().blocks(), first.host.range().blocks());

        let (a, c) = (first.instance(1), first.instance(2));
        let b = Namespace::new();
        let b_spec = second
            .admit(second.range().instance(1).unwrap(), Some(&crate::net::Networks::one("all")))
            .unwrap();
        attach_to(b.fd(), &b_spec).unwrap();
        let server = b.run(|| super::world::Server::start("b", 80));
        let _own = c.serve("c", 80);
        let b_virtual = second.range().virtual_address(0).unwrap();
        second.translate(&[(b_virtual, Some(b_spec.address))]).unwrap();
        first.map(0, &c);

        let refused = a.ask(b_spec.address, 80).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::TimedOut, "{refused}");
        let refused = a.ask(b_virtual, 80).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::HostUnreachable, "{refused}");
        assert!(b.run(|| super::world::ask(b_virtual, 80)).is_ok());

        drop(server);
        second.teardown().unwrap();
        assert!(a.ask(first.virtual_address(0), 80).is_ok());
        assert!(first.host.ensure().unwrap().is_empty());
        first.host.teardown().unwrap();
    });
}

#[test]
fn two_hundred_instances_leave_nothing() {
    on_a_host(|| {
        let world = World::new();
        let before = snapshot();
        for n in 1..=200 {
            drop(world.instance(n));
        }
        eventually("the end of all interfaces", || snapshot() == before);
        world.host.teardown().unwrap();
    });
}

#[test]
fn a_failed_attach_leaves_nothing_and_names_what_failed() {
    on_a_host(|| {
        let world = World::new();
        let first = world.instance(1);
        let before = snapshot();
        let namespace = Namespace::new();
        let refused = attach_to(namespace.fd(), &first.spec).unwrap_err();
        let text = refused.to_string();
        assert!(text.contains(&first.spec.host_ifname) && text.contains("exists"), "{text}");
        // The pair can be made, but the name inside is taken.
        let second = world.host.net_spec(2).unwrap();
        let refused = attach_to(first.namespace.fd(), &second).unwrap_err();
        assert!(matches!(refused, NetError::Attach { .. }), "{refused}");
        assert_eq!(snapshot(), before);
        world.host.teardown().unwrap();
    });
}

#[test]
fn loopback_only_is_loopback_only() {
    on_a_host(|| {
        let namespace = Namespace::new();
        loopback_only(namespace.fd().as_fd()).unwrap();
        namespace.run(|| {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            assert_eq!(snapshot().iter().filter(|line| !line.contains("Route")).count(), 1);
        });
    });
}

#[test]
fn the_claim_of_a_vanished_root_is_cleaned_up() {
    on_a_host(|| {
        let world = World::new();
        let old = world.instance(1);
        let World { run, root, host } = world;
        let (table, prefix) = (host.range().table(), host.range().interface_prefix());
        drop(host);
        drop(root);
        let root = tempfile::tempdir().unwrap();
        let host = Host::setup_in(run.path(), root.path()).unwrap();
        let now = snapshot();
        assert!(!now.iter().any(|line| line.contains(&table) || line.contains(&prefix)), "{now:?}");
        host.teardown().unwrap();
        drop(old);
    });
}

/// A root that has grown serves from its further blocks as from its first; what was open stays
/// open; it is found again and gone as a whole.
#[test]
fn a_root_grows_under_traffic() {
    on_a_host(|| {
        let outside = outside();
        let before = snapshot();
        let world = World::new();
        let (client, old) = (world.instance(1), world.instance(2));
        let _old = old.serve("old", 80);
        world.map(0, &old);
        let first = world.virtual_address(0);
        let mut open = client.namespace.run(|| std::net::TcpStream::connect((first, 80)).unwrap());
        open.set_read_timeout(Some(super::world::PATIENCE)).unwrap();

        let block = world.host.grow().unwrap();
        let at = block.instances().last().unwrap();
        let new = world.instance(world.host.range().number_of(at).unwrap());
        assert_eq!(new.spec.address, at);
        let _new = new.serve("new", 80);
        let second = block.virtuals().last().unwrap();
        assert_eq!(client.ask(second, 80).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        world.host.translate(&[(second, Some(at))]).unwrap();
        assert!(client.ask(second, 80).unwrap().starts_with("new "));
        assert!(new.ask(second, 80).unwrap().starts_with("new 169.254.1.1"), "itself");
        assert!(new.ask(first, 80).unwrap().starts_with("old "));
        let server = outside.run(|| super::world::Server::start("far", 80));
        let said = new.ask(super::world::OUTSIDE, 80).unwrap();
        assert_eq!(
            said,
            format!("far {}", super::world::UPLINK),
            "it is translated on its way out"
        );
        drop(server);

        use std::io::{BufRead as _, Write as _};
        writeln!(open, "still here").unwrap();
        let mut lines = std::io::BufReader::new(open).lines();
        assert!(lines.next().unwrap().unwrap().starts_with("old "));
        assert_eq!(lines.next().unwrap().unwrap(), "old still here");

        let World { run, root, host } = world;
        let (range, map) = (host.range(), host.translation());
        drop(host);
        let host = Host::setup_in(run.path(), root.path()).unwrap();
        assert_eq!((host.range(), host.translation()), (range, map));
        assert_eq!(host.ensure().unwrap(), [""; 0]);
        assert!(client.ask(second, 80).unwrap().starts_with("new "));
        host.teardown().unwrap();
        assert_eq!(snapshot(), before);
    });
}
