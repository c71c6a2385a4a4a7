use std::fs::{self, File};
use std::io::{self, Cursor, Read};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::thread;

use kiln_core::Digest;

use super::{small, store};
use crate::{Backing, Error, Store};

#[test]
fn a_content_is_kept_once_and_read_back() {
    let (dir, store) = store(Backing::Links);
    let digest = store.put(b"abc").unwrap();
    assert_eq!(digest, Digest::of(b"abc"));
    assert_eq!(store.put_reader(&mut Cursor::new(b"abc")).unwrap(), (digest, 3));
    let path = dir.path().join("abc");
    fs::write(&path, "abc").unwrap();
    assert_eq!(store.put_file(&path).unwrap(), (digest, 3));
    assert_eq!(store.get(&digest).unwrap(), b"abc");
    assert_eq!(store.object_size(&digest).unwrap(), Some(3));
    let meta = fs::metadata(store.object_path(&digest)).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.mtime(), meta.nlink()), (0o644, crate::EPOCH, 1));
    assert_eq!(store.check().unwrap().objects, 1);
}

#[test]
fn large_contents_by_every_door() {
    let (dir, store) = store(Backing::Links);
    let content: Vec<u8> = (0..3_000_001_u32).map(|at| (at % 251) as u8).collect();
    let expected = (Digest::of(&content), content.len() as u64);
    assert_eq!(store.put_reader(&mut content.as_slice()).unwrap(), expected);
    fs::remove_file(store.object_path(&expected.0)).unwrap();
    let path = dir.path().join("large");
    fs::write(&path, &content).unwrap();
    assert_eq!(store.put_file(&path).unwrap(), expected);
    assert_eq!(store.put_file(&path).unwrap(), expected);
    assert_eq!(store.get(&expected.0).unwrap(), content);
    // The offset of a descriptor that is lent stays where it was.
    let mut lent = File::open(&path).unwrap();
    lent.read_exact(&mut [0; 7]).unwrap();
    assert_eq!(store.put_open_file(&lent).unwrap(), expected);
    let mut next = [0];
    lent.read_exact(&mut next).unwrap();
    assert_eq!(next, [7]);
    nothing_is_left_over(&store);
}

#[test]
fn a_file_becomes_an_object_itself() {
    let (dir, store) = store(Backing::Links);
    let path = dir.path().join("root/tmp/large");
    let mut content: Vec<u8> = (0..2_000_003_u32).map(|at| (at % 251) as u8).collect();
    let put = |content: &[u8]| {
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4711)).unwrap();
        let file = File::open(&path).unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::fsetxattr(&file, "user.note", b"x", flags).unwrap();
        file
    };
    let file = put(&content);
    let expected = (Digest::of(&content), content.len() as u64);
    assert_eq!(store.adopt_file(&file).unwrap(), Some(expected));
    let object = store.object_path(&expected.0);
    let meta = fs::metadata(&object).unwrap();
    assert_eq!(meta.ino(), file.metadata().unwrap().ino());
    assert_eq!((meta.mode() & 0o7777, meta.mtime(), meta.nlink()), (0o644, crate::EPOCH, 2));
    assert!(rustix::fs::lgetxattr(&object, "user.note", &mut [0_u8; 0]).is_err());
    fs::remove_file(&path).unwrap();
    assert_eq!(store.get(&expected.0).unwrap(), content);
    // What is there already stays, and so does the file.
    let again = put(&content);
    assert_eq!(store.adopt_file(&again).unwrap(), Some(expected));
    assert_eq!(again.metadata().unwrap().mode() & 0o7777, 0o4711);
    // A small one is left to `put_open_file`.
    content.truncate(1000);
    assert_eq!(store.adopt_file(&put(&content)).unwrap(), None);
    assert_eq!(fs::read_dir(store.root().join("tmp")).unwrap().count(), 1);
}

#[test]
fn zeros_take_no_room() {
    let (dir, store) = store(Backing::Links);
    let mut content = vec![0; 40 << 20];
    content[17 << 20] = 1;
    let path = dir.path().join("sparse");
    fs::write(&path, &content).unwrap();
    let (digest, size) = store.put_file(&path).unwrap();
    assert_eq!((digest, size), (Digest::of(&content), content.len() as u64));
    assert!(store.get(&digest).unwrap() == content);
    assert!(fs::metadata(store.object_path(&digest)).unwrap().blocks() * 512 < 1 << 20);
}

#[test]
fn what_is_absent_or_damaged_is_said() {
    let (dir, store) = store(Backing::Links);
    let absent = Digest::of(b"absent");
    assert!(matches!(store.get(&absent), Err(Error::Missing(digest)) if digest == absent));
    assert!(!store.contains(&absent));
    let digest = store.put(b"right").unwrap();
    fs::write(store.object_path(&digest), "wrong").unwrap();
    assert!(matches!(store.get(&digest), Err(Error::Corrupt { .. })));
    let report = store.check().unwrap();
    assert_eq!(report.corrupt.len(), 1);
    assert_eq!(report.corrupt[0].digest, digest);
    assert_eq!(report.corrupt[0].found, Some(Digest::of(b"wrong")));
    // One of another length is replaced by the next put.
    fs::write(store.object_path(&digest), "").unwrap();
    store.put(b"right").unwrap();
    assert_eq!(store.get(&digest).unwrap(), b"right");
    let message = store.put_file(dir.path().join("nowhere")).unwrap_err().to_string();
    assert!(message.contains("nowhere"), "{message}");
    let config = store.put(b"{\"Env\":3}").unwrap();
    assert!(matches!(store.get_config(&config), Err(Error::Kind { .. })));
    assert!(matches!(store.get_tree(&config), Err(Error::Kind { .. })));
}

#[test]
fn puts_race_safely_across_threads_and_stores() {
    let (_dir, first) = store(Backing::Links);
    let second = Store::open_with(first.root(), Some(Backing::Links)).unwrap();
    thread::scope(|scope| {
        for nth in 0..8 {
            let store = if nth % 2 == 0 { &first } else { &second };
            scope.spawn(move || {
                for content in 0..200_u32 {
                    let digest = store.put(&content.to_le_bytes()).unwrap();
                    assert_eq!(store.get(&digest).unwrap(), content.to_le_bytes());
                    if content % 50 == 0 {
                        store.flush().unwrap();
                    }
                }
            });
        }
    });
    let report = first.check().unwrap();
    assert_eq!((report.objects, report.corrupt.len()), (200, 0));
}

#[test]
fn a_reader_that_fails_leaves_nothing() {
    struct Broken(usize);
    impl Read for Broken {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(io::Error::other("the line broke"));
            }
            self.0 -= 1;
            buffer.fill(7);
            Ok(buffer.len())
        }
    }
    let (_dir, store) = store(Backing::Links);
    for reads in [0, 1, 200] {
        let message = store.put_reader(&mut Broken(reads)).unwrap_err().to_string();
        assert!(message.contains("the line broke"), "{message}");
    }
    assert_eq!(store.check().unwrap().objects, 0);
    nothing_is_left_over(&store);
}

/// What stays is the folder that new ones are made in.
fn nothing_is_left_over(store: &Store) {
    let left = fs::read_dir(store.root().join("tmp")).unwrap().map(|entry| entry.unwrap().path());
    assert!(left.into_iter().all(|path| path == store.inner.nursery));
    assert_eq!(fs::read_dir(&store.inner.nursery).unwrap().count(), 0);
}

#[test]
fn flush_syncs_only_after_something_was_put() {
    let (_dir, store) = store(Backing::Links);
    // What each process's marker says: `+` while something is not flushed.
    let markers = || {
        let entries = fs::read_dir(store.root().join("unsynced")).unwrap();
        let texts = entries.map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap());
        let mut signs: Vec<_> = texts.map(|text| text.trim_end().chars().last()).collect();
        signs.sort();
        signs.into_iter().flatten().collect::<String>()
    };
    assert!(!store.inner.unsynced.is_dirty());
    store.put(b"one").unwrap();
    assert_eq!((store.inner.unsynced.is_dirty(), markers().as_str()), (true, "+"));
    store.flush().unwrap();
    assert_eq!((store.inner.unsynced.is_dirty(), markers().as_str()), (false, "-"));
    // Another process may have put it and never flushed, so finding it is not enough.
    let other = Store::open_with(store.root(), Some(Backing::Links)).unwrap();
    other.put(b"two").unwrap();
    store.put(b"two").unwrap();
    assert!(store.inner.unsynced.is_dirty());
    store.flush().unwrap();
    other.flush().unwrap();
    assert_eq!(markers(), "--");
    drop(other);
    assert_eq!(markers(), "-", "who leaves nothing behind leaves no marker");
}

#[test]
fn trees_configs_and_releases_round_trip() {
    let (_dir, store) = store(Backing::Links);
    let tree = small(&store, "hello");
    let digest = store.put_tree(&tree).unwrap();
    assert_eq!(digest, tree.digest());
    assert_eq!(*store.get_tree(&digest).unwrap(), tree);
    assert!(std::sync::Arc::ptr_eq(
        &store.get_tree(&digest).unwrap(),
        &store.get_tree(&digest).unwrap()
    ));
    let mut config = kiln_core::ImageConfig::default();
    config.env_set("PATH", "/bin");
    let digest = store.put_config(&config).unwrap();
    assert_eq!((digest, store.get_config(&digest).unwrap()), (config.digest(), config));
    let release = super::collect::release(&[]);
    let digest = store.put_release(&release).unwrap();
    assert_eq!((digest, store.get_release(&digest).unwrap()), (release.digest(), release.clone()));
    let newer = String::from_utf8(release.canonical()).unwrap();
    let newer = newer.replacen("\"format\":2", "\"format\":999", 1);
    let digest = store.put(newer.as_bytes()).unwrap();
    assert!(store.get_release(&digest).unwrap_err().to_string().contains("newer kiln"));
}

#[test]
fn step_results_count_only_with_their_image() {
    let (_dir, store) = store(Backing::Links);
    let tree = store.put_tree(&small(&store, "x")).unwrap();
    let config = store.put_config(&kiln_core::ImageConfig::default()).unwrap();
    let image = kiln_core::ImageId { tree, config };
    let key = Digest::of(b"RUN true");
    assert_eq!(store.step_result(&key), None);
    store.set_step_result(&key, &image).unwrap();
    assert_eq!(store.step_result(&key), Some(image));
    fs::remove_file(store.object_path(&config)).unwrap();
    assert_eq!(store.step_result(&key), None);
}

#[test]
fn a_newer_root_is_refused_and_names_are_checked() {
    let (_dir, store) = store(Backing::Links);
    fs::write(store.root().join("format"), "kiln-store 99\n").unwrap();
    let message = Store::open(store.root()).unwrap_err().to_string();
    assert!(message.contains("kiln-store 99") && message.contains("newer kiln"), "{message}");
    for name in ["", "..", "a/b", ".hidden", "line\nbreak"] {
        let error = store.set_ref("locks", name, &Default::default()).unwrap_err();
        assert!(matches!(error, Error::Name { .. }), "{name}");
    }
}

/// The page that specifies the tree digest says what the code does.
#[test]
fn the_documented_golden_vector_holds() {
    let page = include_str!("../../../../docs/tree-digest.md");
    let (_dir, store) = store(Backing::Links);
    for head in ["```\n#mtree\n", "```\n#mtree 2\n"] {
        let start = page.find(head).unwrap() + 4;
        let listing = &page[start..start + page[start..].find("```").unwrap()];
        let tree = kiln_core::Tree::parse(listing).unwrap();
        let digest = store.put_tree(&tree).unwrap();
        assert_eq!(store.get(&digest).unwrap(), listing.as_bytes());
        assert!(page.contains(&format!("`{digest}`")), "{digest}");
    }
}

/// What a few syncs say of an object depends on whether somebody else has any that are not synced.
#[test]
fn found_objects_are_durable_when_nobody_else_has_put_any() {
    let (_dir, store) = store(Backing::Links);
    let dirty = || store.inner.unsynced.is_dirty();
    let later = || {
        // Files may be dated by the exact clock, a flush goes by the coarse one, which lags.
        let exact = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        while rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse) <= exact {
            std::thread::yield_now();
        }
    };
    store.put(b"one").unwrap();
    later();
    store.flush().unwrap();
    store.put(b"one").unwrap();
    assert!(!dirty());

    let other = Store::open_with(store.root(), Some(Backing::Links)).unwrap();
    other.put(b"two").unwrap();
    store.put(b"three").unwrap();
    later();
    store.flush().unwrap();
    store.put(b"two").unwrap();
    assert!(dirty());

    // More than are worth a sync each are synced with all that anybody has.
    for number in 0..=u8::MAX {
        store.put(&[number]).unwrap();
    }
    later();
    store.flush().unwrap();
    store.put(b"two").unwrap();
    assert!(!dirty());
    other.flush().unwrap();
}

#[test]
fn the_folder_of_new_objects_may_go() {
    let (_dir, store) = store(Backing::Links);
    store.put(b"one").unwrap();
    fs::remove_dir(&store.inner.nursery).unwrap();
    store.put(b"two").unwrap();
    let nursery = store.inner.nursery.clone();
    assert!(nursery.exists());
    drop(store);
    assert!(!nursery.exists());
}

/// Writes to an object in place, as a disk or an editor would; the length stays.
fn damage(store: &Store, digest: &Digest) {
    let path = store.object_path(digest);
    let mut bytes = fs::read(&path).unwrap();
    bytes[0] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn putting_a_content_again_heals_it_by_every_door() {
    let (dir, store) = store(Backing::Links);
    for length in [3, 3_000_001] {
        let content: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
        let digest = store.put(&content).unwrap();
        let path = dir.path().join("source");
        fs::write(&path, &content).unwrap();
        let doors: [&dyn Fn(); 4] = [
            &|| assert_eq!(store.put(&content).unwrap(), digest),
            &|| assert_eq!(store.put_reader(&mut content.as_slice()).unwrap().0, digest),
            &|| assert_eq!(store.put_file(&path).unwrap().0, digest),
            &|| assert_eq!(store.copy_open_file(&File::open(&path).unwrap()).unwrap().0, digest),
        ];
        for (nth, put) in doors.iter().enumerate() {
            damage(&store, &digest);
            assert!(!store.seems_whole(&digest).unwrap());
            put();
            assert_eq!(store.get(&digest).unwrap(), content, "door {nth}, {length} bytes");
            assert!(store.seems_whole(&digest).unwrap());
            let meta = fs::metadata(store.object_path(&digest)).unwrap();
            assert_eq!((meta.mode() & 0o7777, meta.mtime()), (0o644, crate::EPOCH));
        }
    }
}

#[test]
fn what_was_found_to_be_wrong_is_not_believed_for_its_looks() {
    let (_dir, store) = store(Backing::Links);
    let digest = store.put(b"content").unwrap();
    damage(&store, &digest);
    // As if the disk itself had forgotten: nothing of the file tells.
    let file = File::open(store.object_path(&digest)).unwrap();
    rustix::fs::futimens(&file, &crate::mount::times(crate::EPOCH)).unwrap();
    assert!(matches!(store.get(&digest), Err(Error::Corrupt { .. })));
    store.put(b"content").unwrap();
    assert_eq!(store.get(&digest).unwrap(), b"content");
}

#[test]
fn a_step_whose_image_was_damaged_is_done_again() {
    let (_dir, store) = store(Backing::Links);
    let tree = store.put_tree(&small(&store, "x")).unwrap();
    let config = store.put_config(&kiln_core::ImageConfig::default()).unwrap();
    let (key, image) = (Digest::of("key"), kiln_core::ImageId { tree, config });
    store.set_step_result(&key, &image).unwrap();
    for digest in [tree, config] {
        assert_eq!(store.step_result(&key), Some(image));
        damage(&store, &digest);
        assert_eq!(store.step_result(&key), None);
        store.put_tree(&small(&store, "x")).unwrap();
        store.put_config(&kiln_core::ImageConfig::default()).unwrap();
    }
    assert_eq!(store.step_result(&key), Some(image));
}
