//! The folder that is exported to: added to when it is a layout, refused when it is not, and never
//! a way to anywhere else.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};

use kiln_core::tree::{Node, Tree};
use kiln_oci::{Compression, Error, Selector};

use crate::kit::{self, GO_ON, Home};

#[test]
fn a_second_image_is_added_and_a_name_moves() {
    let home = Home::new();
    let mut tree = Tree::new();
    let config = kiln_core::ImageConfig::default();
    let first = home.image(&tree, &config);
    tree.insert(b"a", Node::new(home.file(b"1"), 0o644));
    let second = home.image(&tree, &config);
    fs::create_dir(home.path("out")).unwrap();
    let dir = fs::File::open(home.path("out")).unwrap().into();
    let how = Compression::Gzip;
    let export = |items: &[kiln_oci::Item]| {
        kiln_oci::to_layout(&home.store, items, how, &dir, None, &GO_ON).unwrap()
    };
    let by = |name: &str| {
        kiln_oci::read(&home.path("out"), &Selector::Name(name.into()), &home.store).unwrap()
    };
    export(&[kit::item("b", first)]);
    export(&[kit::item("a", second)]);
    assert_eq!((by("a"), by("b")), (second, first));
    let two = export(&[kit::item("b", second), kit::item("a", second)]);
    assert_eq!((by("a"), by("b")), (second, second));
    assert_eq!(two[0].manifest, two[1].manifest);
}

#[test]
fn files_belong_to_whom_they_are_for() {
    let home = Home::new();
    let image = home.image(&Tree::new(), &kiln_core::ImageConfig::default());
    fs::create_dir(home.path("out")).unwrap();
    let dir = fs::File::open(home.path("out")).unwrap().into();
    let (items, how) = ([kit::item("app", image)], Compression::Gzip);
    kiln_oci::to_layout(&home.store, &items, how, &dir, Some((1234, 5678)), &GO_ON).unwrap();
    for name in ["index.json", "oci-layout", "blobs", "blobs/sha256"] {
        let meta = fs::metadata(home.path("out").join(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (1234, 5678), "{name}");
    }
}

#[test]
fn a_folder_of_something_else_is_left_alone() {
    let home = Home::new();
    let image = home.image(&Tree::new(), &kiln_core::ImageConfig::default());
    fs::create_dir(home.path("out")).unwrap();
    fs::write(home.path("out/precious"), "x").unwrap();
    let dir = fs::File::open(home.path("out")).unwrap().into();
    let items = [kit::item("app", image)];
    let export = || kiln_oci::to_layout(&home.store, &items, Compression::Gzip, &dir, None, &GO_ON);
    assert!(matches!(export(), Err(Error::Malformed { .. })));
    assert_eq!(kit::files(&home.path("out")).len(), 1);
}

#[test]
fn links_that_others_put_there_are_not_followed() {
    let home = Home::new();
    let image = home.image(&Tree::new(), &kiln_core::ImageConfig::default());
    let out = home.path("out");
    let export = || {
        let dir = fs::File::open(&out).unwrap().into();
        let items = [kit::item("app", image)];
        kiln_oci::to_layout(&home.store, &items, Compression::Gzip, &dir, None, &GO_ON)
    };
    fs::create_dir(&out).unwrap();
    fs::create_dir(home.path("elsewhere")).unwrap();
    symlink(home.path("elsewhere"), out.join("blobs")).unwrap();
    assert!(matches!(export(), Err(Error::Io { .. })));
    assert_eq!(fs::read_dir(home.path("elsewhere")).unwrap().count(), 0);
    fs::remove_file(out.join("blobs")).unwrap();
    // A file in the place of one that is written is replaced, not written through.
    fs::write(home.path("target"), "precious").unwrap();
    symlink(home.path("target"), out.join("oci-layout")).unwrap();
    export().unwrap();
    assert_eq!(fs::read_to_string(home.path("target")).unwrap(), "precious");
    assert!(fs::symlink_metadata(out.join("oci-layout")).unwrap().is_file());
}
