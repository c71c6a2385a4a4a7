//! Package files made here, decoded and put together.

use std::io::Write;
use std::sync::Arc;

use kiln_core::tree::{Kind, Node};
use kiln_core::{Digest, Tree};
use kiln_store::Store;
use tar::EntryType;

use super::mirror::{File, deb, dir, file, link};
use crate::base::accounts::Numbers;
use crate::base::assemble::{Unpacked, assemble};
use crate::base::deb::{MD5, OWNER, read};
use crate::base::dpkg_db;
use crate::base::lock::{LockedBase, LockedPackage};
use crate::base::order::{Action, plan};

fn plain(bytes: Vec<u8>) -> Vec<u8> {
    bytes
}

fn decode(store: &Store, bytes: &[u8]) -> std::io::Result<Tree> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    read(store, file)
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

fn content(node: &Node) -> Digest {
    match node.kind {
        Kind::File { digest, .. } => digest,
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn every_compression_gives_the_same_tree() {
    let (_dir, store) = store();
    let control = [file("./control", "Package: a\nVersion: 1\n")];
    let data = [dir("./"), dir("./etc/"), file("./etc/a", "x")];
    let gzip = |bytes: Vec<u8>| {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(&bytes).unwrap();
        out.finish().unwrap()
    };
    let xz = |bytes: Vec<u8>| {
        let mut out = liblzma::write::XzEncoder::new(Vec::new(), 6);
        out.write_all(&bytes).unwrap();
        out.finish().unwrap()
    };
    let zstd = |bytes: Vec<u8>| zstd::encode_all(bytes.as_slice(), 3).unwrap();
    let expected = decode(&store, &deb(&control, &data, "", &plain)).unwrap();
    assert_eq!(content(expected.get(b"data/etc/a").unwrap()), Digest::of("x"));
    for (form, bytes) in [
        (".gz", deb(&control, &data, ".gz", &gzip)),
        (".xz", deb(&control, &data, ".xz", &xz)),
        (".zst", deb(&control, &data, ".zst", &zstd)),
    ] {
        assert_eq!(decode(&store, &bytes).unwrap(), expected, "{form}");
    }
    assert!(decode(&store, &deb(&control, &data, ".lzo", &plain)).is_err());
}

#[test]
fn notes_owners_and_md5_of_configuration_files() {
    let (_dir, store) = store();
    let control = [
        file("./control", "Package: a\nVersion: 1\n"),
        file("./conffiles", "/etc/a\nremove-on-upgrade /etc/b\n"),
    ];
    let mut owned = file("./usr/x", "y");
    owned.owner = ("root", "shadow");
    let data = [file("./etc/a", "abc"), file("./etc/b", "abc"), owned];
    let tree = decode(&store, &deb(&control, &data, "", &plain)).unwrap();
    let attributes = |path: &[u8]| tree.get(path).unwrap().xattrs.clone();
    assert_eq!(attributes(b"data/etc/a")[MD5], b"900150983cd24fb0d6963f7d28e17f72");
    assert!(attributes(b"data/etc/b").is_empty());
    assert_eq!(attributes(b"data/usr/x")[OWNER], b"root:shadow");
}

#[test]
fn refuses_what_could_leave_the_tree_or_is_torn() {
    let (_dir, store) = store();
    let control = [file("./control", "Package: a\nVersion: 1\n")];
    let with = |bad: File<'_>| decode(&store, &deb(&control, &[bad], "", &plain));
    for path in ["../x", "./a/../../x", "/../x"] {
        assert!(with(file(path, "")).unwrap_err().to_string().contains("not allowed"), "{path}");
    }
    assert!(with(link("./a", EntryType::Link, "../../etc/passwd")).is_err());
    assert!(with(link("./a", EntryType::Link, "./nothing")).is_err());
    assert!(with(file("/etc/absolute", "")).unwrap().get(b"data/etc/absolute").is_some());
    let whole = deb(&control, &[file("./a", "content")], "", &plain);
    for cut in [4, 70, 200, whole.len() - 1600] {
        assert!(decode(&store, &whole[..cut]).is_err(), "cut at {cut}");
    }
}

#[test]
fn hard_links_end_up_at_the_name_that_sorts_first() {
    let (_dir, store) = store();
    let control = [file("./control", "Package: a\nVersion: 1\n")];
    let data = [
        file("./m", "abc"),
        link("./z", EntryType::Link, "./m"),
        link("./b", EntryType::Link, "m"),
        link("./c", EntryType::Link, "./z"),
    ];
    let tree = decode(&store, &deb(&control, &data, "", &plain)).unwrap();
    assert_eq!(content(tree.get(b"data/b").unwrap()), Digest::of("abc"));
    for name in [b"data/c", b"data/m", b"data/z"] {
        let kind = &tree.get(name).unwrap().kind;
        assert_eq!(*kind, Kind::Hardlink { to: b"data/b".to_vec() });
    }
}

/// A package with these further control fields, control files and data.
fn made(store: &Store, name: &str, fields: &str, more: &[File<'_>], data: &[File<'_>]) -> Unpacked {
    let text = format!("Package: {name}\nVersion: 1\nArchitecture: amd64\n{fields}");
    let mut control = vec![file("./control", &text)];
    control.extend(more.iter().map(|each| file(each.path, each.content)));
    let tree = decode(store, &deb(&control, data, "", &plain)).unwrap();
    let locked = LockedPackage {
        name: name.into(),
        version: "1".into(),
        arch: "amd64".into(),
        filename: String::new(),
        size: 0,
        sha256: Digest::of(name),
    };
    Unpacked::new(store, locked, Arc::new(tree)).unwrap()
}

fn base(diversions: &[&str]) -> LockedBase {
    LockedBase {
        suite: "test".into(),
        arch: "amd64".into(),
        minimal: false,
        packages: Vec::new(),
        epoch: "2020-01-01".into(),
        unpack: Vec::new(),
        configure: Vec::new(),
        users: vec!["daemon:x:1:1::/:/bin/sh".into()],
        groups: vec!["shadow:x:42:".into()],
        diversions: diversions.iter().map(|line| (*line).to_owned()).collect(),
    }
}

fn together(store: &Store, base: &LockedBase, packages: &mut [Unpacked]) -> Tree {
    let numbers = Numbers::new(store, base, &[]).unwrap();
    assemble(base, &numbers, packages).unwrap()
}

#[test]
fn merges_usr_and_follows_links_of_other_packages() {
    let (_dir, store) = store();
    let mut owned = file("./bin/tool", "x");
    owned.owner = ("daemon", "shadow");
    let one = made(&store, "one", "", &[], &[dir("./bin/"), owned, dir("./lib64/")]);
    let two = made(
        &store,
        "two",
        "",
        &[],
        &[dir("./usr/real/"), link("./usr/alias", EntryType::Symlink, "real")],
    );
    let three = made(&store, "three", "", &[], &[dir("./usr/alias/"), file("./usr/alias/f", "f")]);
    let tree = together(&store, &base(&[]), &mut [one, two, three]);
    let link = |to: &str| Kind::Symlink { target: to.as_bytes().to_vec() };
    assert_eq!(tree.get(b"bin").unwrap().kind, link("usr/bin"));
    assert_eq!(tree.get(b"lib64").unwrap().kind, link("usr/lib64"));
    assert!(tree.get(b"lib32").is_none());
    let tool = tree.get(b"usr/bin/tool").unwrap();
    assert_eq!((tool.uid, tool.gid, tool.xattrs.len()), (1, 42, 0));
    assert_eq!(tree.get(b"usr/alias").unwrap().kind, link("real"));
    assert!(tree.get(b"usr/real/f").is_some());
}

#[test]
fn later_package_wins_unless_the_earlier_replaces_it() {
    let (_dir, store) = store();
    let replacing = "Replaces: old (<< 2)\n";
    let both = |fields: &str, name: &str, text: &str| {
        made(&store, name, fields, &[], &[dir("./usr/"), file("./usr/f", text)])
    };
    let mut packages = [both("", "old", "old"), both(replacing, "new", "new")];
    let tree = together(&store, &base(&[]), &mut packages);
    assert_eq!(content(tree.get(b"usr/f").unwrap()), Digest::of("new"));
    assert!(packages[0].paths.is_empty() && packages[1].paths == [b"usr/f".to_vec()]);
    let tree =
        together(&store, &base(&[]), &mut [both(replacing, "new", "new"), both("", "old", "old")]);
    assert_eq!(content(tree.get(b"usr/f").unwrap()), Digest::of("new"));
}

#[test]
fn diversions_move_everybody_elses_file() {
    let (_dir, store) = store();
    let of = |name: &str| made(&store, name, "", &[], &[dir("./bin/"), file("./bin/f", name)]);
    for order in [["owner", "diverter"], ["diverter", "owner"]] {
        let mut packages = order.map(of);
        let tree = together(&store, &base(&["/bin/f /bin/f.real diverter"]), &mut packages);
        assert_eq!(content(tree.get(b"usr/bin/f").unwrap()), Digest::of("diverter"));
        assert_eq!(content(tree.get(b"usr/bin/f.real").unwrap()), Digest::of("owner"));
    }
}

#[test]
fn hard_links_survive_where_the_package_keeps_its_names() {
    let (_dir, store) = store();
    let one = made(
        &store,
        "one",
        "",
        &[],
        &[
            file("./usr/a", "abc"),
            link("./bin/b", EntryType::Link, "./usr/a"),
            link("./usr/c", EntryType::Link, "./usr/a"),
        ],
    );
    let two = made(&store, "two", "Replaces: one\n", &[], &[file("./usr/a", "other")]);
    let tree = together(&store, &base(&[]), &mut [one, two]);
    assert_eq!(content(tree.get(b"usr/a").unwrap()), Digest::of("other"));
    assert_eq!(content(tree.get(b"usr/bin/b").unwrap()), Digest::of("abc"));
    assert_eq!(tree.get(b"usr/c").unwrap().kind, Kind::Hardlink { to: b"usr/bin/b".to_vec() });
}

#[test]
fn database_says_what_dpkg_would() {
    let (_dir, store) = store();
    let one = made(
        &store,
        "one",
        "Multi-Arch: same\nDescription: x\n y\n",
        &[
            file("./conffiles", "/etc/one\n"),
            file("./preinst", "#!/bin/sh\n"),
            file("./triggers", "interest-noawait ldconfig\ninterest /usr/share/x\n"),
        ],
        &[dir("./"), dir("./etc/"), file("./etc/one", "abc")],
    );
    let mut packages = [one];
    let base = base(&["/a /b one"]);
    let mut tree = together(&store, &base, &mut packages);
    dpkg_db::write(&store, &base, &packages, &mut tree).unwrap();
    let text = |path: &str| {
        let path = format!("var/lib/dpkg/{path}");
        let node = tree.get(path.as_bytes()).unwrap_or_else(|| panic!("{path}"));
        String::from_utf8(store.get(&content(node)).unwrap()).unwrap()
    };
    assert_eq!(
        text("status"),
        "Package: one\nStatus: install ok unpacked\nVersion: 1\nArchitecture: amd64\n\
         Multi-Arch: same\nDescription: x\n y\nConffiles:\n \
         /etc/one 900150983cd24fb0d6963f7d28e17f72\n\n"
    );
    assert_eq!(text("info/one:amd64.list"), "/.\n/etc\n/etc/one\n");
    assert_eq!(text("triggers/ldconfig"), "one:amd64/noawait\n");
    assert_eq!(text("triggers/File"), "/usr/share/x one:amd64\n");
    assert_eq!(text("diversions"), "/a\n/b\none\n");
    assert_eq!(dpkg_db::read_diversions(&text("diversions")), base.diversions);
    assert!(tree.get(b"var/lib/dpkg/kiln/one:amd64/control").is_some());
    assert!(tree.get(b"var/lib/dpkg/info/one:amd64.control").is_none());
}

#[test]
fn packages_that_a_preinst_leans_on_are_configured_before_it() {
    let (_dir, store) = store();
    let script = [file("./preinst", "#!/bin/sh\n")];
    let of = |name: &str, fields: &str, more: &[File<'_>]| made(&store, name, fields, more, &[]);
    let packages = [
        of("libc", "Essential: yes\nPre-Depends: passwd\n", &script),
        of("passwd", "Provides: accounts\n", &[]),
        of("tool", "Depends: accounts (>= 1) | other\n", &script),
        of("server", "Pre-Depends: tool:any, nothing\nDepends: late\n", &script),
        of("late", "", &[]),
    ];
    let mut base = base(&[]);
    base.configure = ["libc", "tool", "passwd", "late", "server"].map(str::to_owned).to_vec();
    let preinst = |name: &str| Action::Preinst(name.to_owned());
    let configure =
        |names: &[&str]| Action::Configure(names.iter().map(|name| (*name).to_owned()).collect());
    assert_eq!(
        plan(&base, &packages),
        [
            preinst("libc"),
            preinst("tool"),
            configure(&["libc", "tool", "passwd"]),
            preinst("server"),
            configure(&["late", "server"]),
        ]
    );
}
