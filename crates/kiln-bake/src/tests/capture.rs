//! Large files of a step's layer: they become objects themselves.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use kiln_core::Digest;
use kiln_core::tree::Kind;

use super::fake::Kitchen;

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
