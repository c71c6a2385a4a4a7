//! Files of a step's layer: large ones become objects themselves, Java's trust store loses times.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use kiln_core::Digest;
use kiln_core::tree::Kind;

use super::fake::Kitchen;
use crate::keystore;

#[test]
fn large_files_are_captured_as_they_are() {
    let kitchen = Kitchen::new();
    let text = |letter: char| letter.to_string().repeat((2 << 20) + 7);
    kitchen.write("a", &text('a')).write("b", &text('b'));
    let tree = kitchen.tree(
        "FROM os\nCOPY a b /d/\nRUN <<E\n\
         cp /d/a /copy\nappend /copy z\nchown 3 4 /copy\nchmod 4711 /copy\n\
         setxattr user.note x /copy\nln /copy /also\n\
         mkdir /moved\nchmod 600 /d/a\nmv /d/a /moved/a\nmv /d/b /moved/b\nappend /moved/b z\nE",
    );
    let content = |letter: char| format!("{}z", text(letter));
    let large = |path: &str, expected: &str, mode: u16, owner: (u32, u32)| {
        let node = tree.get(path.as_bytes()).unwrap();
        let digest = Digest::of(expected);
        assert_eq!(node.kind, Kind::File { size: expected.len() as u64, digest }, "{path}");
        assert_eq!((node.mode, (node.uid, node.gid)), (mode, owner), "{path}");
        assert!(kitchen.store.get(&digest).unwrap() == expected.as_bytes(), "{path}");
        let object = fs::metadata(kitchen.store.object_path(&digest)).unwrap();
        assert_eq!((object.mode() & 0o7777, object.uid(), object.nlink()), (0o644, 0, 1), "{path}");
    };
    large("also", &content('a'), 0o4711, (3, 4));
    large("moved/a", &text('a'), 0o600, (0, 0));
    large("moved/b", &content('b'), 0o644, (0, 0));
    let also = tree.get(b"copy").unwrap();
    assert_eq!(also.kind, Kind::Hardlink { to: b"also".to_vec() });
    assert_eq!(also.xattrs[b"user.note".as_slice()], b"x");
    assert!(kitchen.store.check().unwrap().corrupt.is_empty());
}

#[test]
fn the_trust_store_of_java_has_no_times() {
    let kitchen = Kitchen::new();
    for (name, time) in [("one", 1), ("two", 2)] {
        fs::write(kitchen.context().join(name), keystore::tests::store(time)).unwrap();
    }
    let path = "etc/ssl/certs/java/cacerts";
    let made = |from: &str| {
        kitchen.tree(&format!(
            "FROM os\nCOPY one two /\nRUN <<E\nmkdir /etc/ssl/certs/java\n\
             cp /{from} /{path}\nchmod 600 /{path}\nE"
        ))
    };
    let (one, two) = (made("one"), made("two"));
    let node = one.get(path.as_bytes()).unwrap();
    assert_eq!(Some(node), two.get(path.as_bytes()));
    assert_eq!(node.mode, 0o600);
    // What was copied is what somebody else wrote, and stays.
    assert_ne!(one.get(b"one").unwrap().kind, one.get(b"two").unwrap().kind);
    let expected = keystore::timeless(&keystore::tests::store(3)).unwrap();
    let digest = Digest::of(&expected);
    assert_eq!(node.kind, Kind::File { size: expected.len() as u64, digest });
    assert!(kitchen.store.get(&digest).unwrap() == expected);
}
