//! A store of one's own, a tree with all kinds of entries, and layers made by hand.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use kiln_core::image::Healthcheck;
use kiln_core::tree::{Kind, Node, Tree};
use kiln_core::{Digest, ImageConfig, ImageId};
use kiln_oci::{Compression, Exported, Format, Item, Limits, Selector, Source};
use kiln_store::Store;
use serde_json::{Value, json};

/// Never set.
pub(crate) static GO_ON: AtomicBool = AtomicBool::new(false);

/// A store in a folder that goes with it.
pub(crate) struct Home {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: Store,
}

impl Home {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("kiln-oci-").tempdir().unwrap();
        let store = Store::open(dir.path().join("root")).unwrap();
        Self { dir, store }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file's kind, its content in the store.
    pub(crate) fn file(&self, content: &[u8]) -> Kind {
        let digest = self.store.put(content).unwrap();
        Kind::File { size: content.len() as u64, digest }
    }

    pub(crate) fn image(&self, tree: &Tree, config: &ImageConfig) -> ImageId {
        ImageId {
            tree: self.store.put_tree(tree).unwrap(),
            config: self.store.put_config(config).unwrap(),
        }
    }

    /// Writes one image as a layout folder under the name `app`.
    pub(crate) fn layout(&self, name: &str, image: ImageId, how: Compression) -> Exported {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        let dir = fs::File::open(&path).unwrap().into();
        let items = [item("app", image)];
        kiln_oci::to_layout(&self.store, &items, how, &dir, None, &GO_ON).unwrap().remove(0)
    }

    /// Writes one image as an archive.
    pub(crate) fn archive(&self, name: &str, image: ImageId, format: Format) -> Exported {
        let mut file = fs::File::create(self.path(name)).unwrap();
        let items = [item("app", image)];
        let how = Compression::Gzip;
        kiln_oci::to_archive(&self.store, &items, format, how, &mut file, &GO_ON).unwrap().remove(0)
    }

    pub(crate) fn read(&self, name: &str) -> kiln_oci::Result<ImageId> {
        kiln_oci::read(&self.path(name), &Selector::Any, &self.store)
    }

    /// Reads with at most `unpacked` bytes.
    pub(crate) fn read_bounded(&self, name: &str, unpacked: u64) -> kiln_oci::Result<ImageId> {
        let limits = Limits { unpacked, ..Limits::default() };
        let source = Source::open(&self.path(name), &self.store, &limits)?;
        Ok(source.find(&Selector::Any)?.load(&self.store, &limits)?.image)
    }

    pub(crate) fn tree(&self, image: &ImageId) -> Tree {
        Tree::clone(&self.store.get_tree(&image.tree).unwrap())
    }

    /// The paths of an image, as text, in order.
    pub(crate) fn paths(&self, image: &ImageId) -> Vec<String> {
        let tree = self.tree(image);
        let paths = tree.entries.keys().filter(|path| !path.is_empty());
        paths.map(|path| path.escape_ascii().to_string()).collect()
    }
}

pub(crate) fn item(name: &str, image: ImageId) -> Item {
    Item { name: name.to_owned(), tag: format!("kiln-test-{name}:latest"), image }
}

/// A tree with all kinds of entries. Without `odd`, of those that every tool can unpack.
pub(crate) fn everything(home: &Home, odd: bool) -> Tree {
    let mut tree = Tree::new();
    let mut put = |path: &[u8], kind: Kind, mode: u16, owner: (u32, u32)| {
        let mut node = Node::new(kind, mode);
        (node.uid, node.gid) = owner;
        tree.insert(path, node);
    };
    put(b"bin", Kind::Symlink { target: b"usr/bin".to_vec() }, 0, (0, 0));
    put(b"etc/app.conf", home.file(b"key = value\n"), 0o640, (0, 42));
    put(b"etc/empty", home.file(b""), 0o644, (0, 0));
    put(b"usr/bin/sudo", home.file(b"#!/bin/sh\n"), 0o4755, (0, 0));
    put(b"usr/bin/wall", home.file(b"#!/bin/sh\n"), 0o2755, (0, 5));
    put(b"usr/bin/zz-again", Kind::Hardlink { to: b"usr/bin/sudo".to_vec() }, 0o4755, (0, 0));
    put(b"tmp", Kind::Dir, 0o1777, (0, 0));
    put(b"srv/large", home.file(&pattern(3_000_000)), 0o644, (1000, 1000));
    put(b"srv/a", Kind::Dir, 0o755, (1000, 1000));
    put(b"srv/a/b", home.file(b"b"), 0o600, (1000, 1000));
    // Sorts between `a` and `a/b`.
    put(b"srv/a-b", home.file(b"a-b"), 0o644, (1000, 1000));
    put(b"srv/dangling", Kind::Symlink { target: b"../no/where".to_vec() }, 0, (7, 7));
    put(b"run/pipe", Kind::Fifo, 0o620, (0, 5));
    put("srv/grüße".as_bytes(), home.file(b"utf-8"), 0o644, (0, 0));
    put(b"srv/with space", home.file(b"space"), 0o644, (0, 0));
    let long = [b'l'; 200];
    let longer = [&b"srv/"[..], &long, b"/", &[b'm'; 60], b"/file"].concat();
    put(&longer, home.file(b"long"), 0o644, (3_000_000, 0));
    put(b"srv/far", Kind::Symlink { target: longer.clone() }, 0, (0, 0));
    if odd {
        put(b"dev/null", Kind::CharDevice { major: 1, minor: 3 }, 0o666, (0, 0));
        put(b"dev/loop9", Kind::BlockDevice { major: 7, minor: 9 }, 0o660, (0, 6));
        put(b"srv/latin-\xe9\xff", home.file(b"latin"), 0o644, (0, 0));
        put(b"srv/line\nfeed \\ *?[#=\t", home.file(b"odd"), 0o644, (0, 0));
        put(b"srv/-rf", home.file(b"dash"), 0o644, (0, 0));
        put(b"srv/trailing ", home.file(b"blank"), 0o644, (0, 0));
        put(b"srv/trailing-newline\n", home.file(b"newline"), 0o644, (0, 0));
        put(b"srv/odd-link", Kind::Symlink { target: b"\xff\n=x y".to_vec() }, 0, (0, 0));
        put(
            b"srv/\xfe-again",
            Kind::Hardlink { to: b"srv/line\nfeed \\ *?[#=\t".to_vec() },
            0o644,
            (0, 0),
        );
        let ping = tree.entries.get_mut(&b"usr/bin/wall"[..]).unwrap();
        // cap_net_raw+ep, revision 2.
        let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        ping.xattrs.insert(b"security.capability".to_vec(), capability.to_vec());
        ping.xattrs.insert(b"user.note".to_vec(), b"a\n\0\xff".to_vec());
    }
    tree
}

/// A configuration with everything in it.
pub(crate) fn full_config() -> ImageConfig {
    ImageConfig {
        user: Some("1000:1000".into()),
        exposed_ports: ["8080/tcp".to_owned(), "53/udp".to_owned()].into(),
        env: vec!["PATH=/usr/bin".into(), "EMPTY=".into(), "X=<&>\u{2028}".into()],
        entrypoint: Some(vec!["/usr/bin/app".into()]),
        cmd: Some(vec![]),
        volumes: ["/data".to_owned()].into(),
        working_dir: Some("/srv".into()),
        labels: BTreeMap::from([("a".into(), "1".into()), ("b".into(), String::new())]),
        stop_signal: Some("SIGINT".into()),
        healthcheck: Some(Healthcheck {
            test: vec!["CMD".into(), "true".into()],
            interval: Some(5_000_000_000),
            retries: Some(2),
            ..Healthcheck::default()
        }),
        shell: Some(vec!["/bin/bash".into(), "-c".into()]),
        on_build: vec!["RUN true".into()],
        author: Some("somebody".into()),
    }
}

/// Bytes that compress somewhat, and are the same everywhere.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    let mut state: u32 = 0x9e37_79b9;
    let mut out = Vec::with_capacity(length + 64);
    while out.len() < length {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let word = state >> 20;
        out.extend_from_slice(format!("{word} {:x}\n", word % 97).as_bytes());
    }
    out.truncate(length);
    out
}

/// A layout folder made by hand: what others write, and what nobody should.
pub(crate) struct Layout {
    pub(crate) path: PathBuf,
}

impl Layout {
    pub(crate) fn new(home: &Home, name: &str) -> Self {
        let path = home.path(name);
        fs::create_dir_all(path.join("blobs/sha256")).unwrap();
        fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
        Self { path }
    }

    /// Writes a blob; gives its descriptor.
    pub(crate) fn blob(&self, media_type: &str, content: &[u8]) -> Value {
        let digest = Digest::of(content);
        fs::write(self.path.join("blobs/sha256").join(digest.hex()), content).unwrap();
        json!({ "mediaType": media_type, "digest": digest, "size": content.len() })
    }

    /// Writes configuration and manifest over layers that are there.
    pub(crate) fn manifest(&self, config: Value, diff_ids: &[Digest], layers: &[Value]) -> Value {
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config_type = "application/vnd.oci.image.config.v1+json";
        let config = self.blob(config_type, &serde_json::to_vec(&config).unwrap());
        let manifest_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({ "schemaVersion": 2, "mediaType": manifest_type,
                               "config": config, "layers": layers });
        self.blob(manifest_type, &serde_json::to_vec(&manifest).unwrap())
    }

    pub(crate) fn index(&self, manifests: &[Value]) {
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        fs::write(self.path.join("index.json"), index.to_string()).unwrap();
    }

    /// An image of these layers, uncompressed, with everything right.
    pub(crate) fn image(&self, layers: &[Vec<u8>]) {
        let diff_ids: Vec<Digest> = layers.iter().map(Digest::of).collect();
        let media_type = "application/vnd.oci.image.layer.v1.tar";
        let layers: Vec<Value> = layers.iter().map(|layer| self.blob(media_type, layer)).collect();
        let manifest = self.manifest(json!({}), &diff_ids, &layers);
        self.index(&[manifest]);
    }
}

/// A layer under construction, by somebody else's tar writer.
pub(crate) struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    pub(crate) fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub(crate) fn entry(mut self, kind: u8, path: &[u8], link: &[u8], content: &[u8]) -> Self {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path);
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
        header.as_mut_bytes()[156] = kind;
        header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
        header.set_size(content.len() as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(99);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    pub(crate) fn file(self, path: &str, content: &str) -> Self {
        self.entry(b'0', path.as_bytes(), b"", content.as_bytes())
    }

    pub(crate) fn dir(self, path: &str) -> Self {
        self.entry(b'5', path.as_bytes(), b"", b"")
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(b'2', path.as_bytes(), target.as_bytes(), b"")
    }

    pub(crate) fn hardlink(self, path: &str, target: &str) -> Self {
        self.entry(b'1', path.as_bytes(), target.as_bytes(), b"")
    }

    /// PAX records for the next entry.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length =
                (rest..).find(|length| length.to_string().len() + rest == *length).unwrap();
            write!(body, "{length} {key}=").unwrap();
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.entry(b'x', b"pax", b"", &body)
    }

    pub(crate) fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// Everything in a folder, by relative path.
pub(crate) fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                files.insert(path.strip_prefix(dir).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    files
}
