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

/// What came in an archive keeps its time through a step that leaves its content alone.
#[test]
fn times_of_an_archive_survive_what_changes_no_content() {
    let kitchen = Kitchen::new();
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in [("same", "1"), ("owned", "2"), ("changed", "3"), ("gone", "4")] {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_mtime(1_000);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, format!("in/{name}"), content.as_bytes()).unwrap();
    }
    let archive = kitchen.context().join("a.tar");
    fs::write(&archive, tar.into_inner().unwrap()).unwrap();
    let tree = kitchen.tree(
        "FROM os\nADD a.tar /\nRUN <<E\nchown 3 4 /in/owned\nappend /in/changed z\n\
         mv /in/gone /in/moved\nmkdir /in/new\nE",
    );
    let time = |path: &str| tree.get(path.as_bytes()).unwrap().time;
    assert_eq!((time("in/same"), time("in/owned")), (1_000, 1_000));
    assert_eq!(tree.get(b"in/owned").unwrap().uid, 3);
    let constant = kiln_store::EPOCH;
    // The archive has no entry of its folder.
    for path in ["in", "in/changed", "in/moved", "in/new"] {
        assert_eq!(time(path), constant, "{path}");
    }
    // A copy out of an image with times has them; of the context, the constant one.
    let copied = kitchen.tree(
        "FROM os AS from\nADD a.tar /\nFROM os\nCOPY --from=from /in/same /copy\nCOPY a.tar /",
    );
    assert_eq!(copied.get(b"copy").unwrap().time, 1_000);
    assert_eq!(copied.get(b"a.tar").unwrap().time, constant);
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
