//! A strict stand-in for the sandbox: it mounts the layer as the real one does and understands a
//! few commands, one a line. Whatever it does not understand is an error of the test.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use kiln_core::tree::{Kind, Node, Tree};
use kiln_core::{Digest, ImageConfig, ImageId};
use kiln_store::mount::mount_image;
use kiln_store::{Store, Upper};

use crate::BakeError;
use crate::bake::{Baked, Baker, BuildRequest, Progress};
use crate::runner::{StepExit, StepRunner, StepSpec};

/// See the module.
#[derive(Default)]
pub(super) struct Fake {
    pub(super) ran: AtomicUsize,
    pub(super) specs: Mutex<Vec<StepSpec>>,
}

impl StepRunner for Fake {
    fn run(&self, spec: &StepSpec, output: &mut dyn FnMut(&[u8])) -> Result<StepExit, String> {
        self.ran.fetch_add(1, Ordering::Relaxed);
        assert!(spec.upper_dir.is_absolute() && !spec.upper_dir.exists(), "the layer is fresh");
        assert!(spec.cwd.starts_with('/') && !spec.argv.is_empty());
        self.specs.lock().unwrap().push(spec.clone());
        let upper = Upper { dir: spec.upper_dir.clone() };
        let mount = mount_image(&spec.lower, Some(&upper)).map_err(|error| error.to_string())?;
        let root = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
        // As the real one: a place to mount on is made where the image has none.
        for dir in ["proc", "dev"] {
            if !root.join(dir).exists() {
                fs::create_dir(root.join(dir)).map_err(|error| error.to_string())?;
            }
        }
        let script = match spec.argv.as_slice() {
            [sh, dash_c, script] if sh == "/bin/sh" && dash_c == "-c" => script.clone(),
            [path] if path.starts_with("/dev/pipes/") => {
                assert_eq!(spec.mounts[0].target, *path);
                let text = fs::read_to_string(&spec.mounts[0].source).unwrap();
                text.lines().skip(1).collect::<Vec<_>>().join("\n")
            }
            other => return Err(format!("cannot start {other:?}")),
        };
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let exit = command(&root, line, output).map_err(|e| format!("`{line}`: {e}"))?;
            if exit != 0 {
                return Ok(StepExit { code: exit, signal: None });
            }
        }
        Ok(StepExit { code: 0, signal: None })
    }
}

fn command(root: &Path, line: &str, output: &mut dyn FnMut(&[u8])) -> std::io::Result<i32> {
    let words: Vec<&str> = line.split(' ').collect();
    let at = |word: &str| root.join(word.trim_start_matches('/'));
    match words.as_slice() {
        ["write", path, rest @ ..] => fs::write(at(path), rest.join(" "))?,
        ["cp", from, to] => fs::write(at(to), fs::read(at(from))?)?,
        ["rm", path] => fs::remove_file(at(path))?,
        ["rmdir", path] => fs::remove_dir_all(at(path))?,
        ["mkdir", path] => fs::create_dir_all(at(path))?,
        ["mv", from, to] => fs::rename(at(from), at(to))?,
        ["ln", from, to] => fs::hard_link(at(from), at(to))?,
        ["symlink", target, path] => symlink(target, at(path))?,
        ["chmod", mode, path] => {
            let mode = u32::from_str_radix(mode, 8).map_err(std::io::Error::other)?;
            fs::set_permissions(at(path), fs::Permissions::from_mode(mode))?;
        }
        ["chown", uid, gid, path] => {
            let id = |text: &str| text.parse().map_err(std::io::Error::other);
            chown(at(path), Some(id(uid)?), Some(id(gid)?))?;
        }
        ["setxattr", name, value, path] => {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(at(path), *name, value.as_bytes(), flags)?;
        }
        ["socket", path] => {
            std::os::unix::net::UnixListener::bind(at(path))?;
        }
        ["echo", rest @ ..] => output(format!("{}\n", rest.join(" ")).as_bytes()),
        ["exit", code] => return code.parse().map_err(std::io::Error::other),
        _ => return Err(std::io::Error::other("the fake does not know it")),
    }
    Ok(0)
}

/// A store, a context and a fake.
pub(super) struct Kitchen {
    pub(super) dir: tempfile::TempDir,
    pub(super) store: Store,
    pub(super) fake: Fake,
    pub(super) args: BTreeMap<String, Option<String>>,
    pub(super) target: Option<String>,
    pub(super) contexts: BTreeMap<String, PathBuf>,
    pub(super) progress: Mutex<Vec<Progress>>,
    pub(super) cancel: AtomicBool,
}

impl Kitchen {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("root")).unwrap();
        fs::create_dir(dir.path().join("app")).unwrap();
        Self {
            dir,
            store,
            fake: Fake::default(),
            args: BTreeMap::new(),
            target: None,
            contexts: BTreeMap::new(),
            progress: Mutex::default(),
            cancel: AtomicBool::new(false),
        }
    }

    /// The context directory.
    pub(super) fn context(&self) -> PathBuf {
        self.dir.path().join("app")
    }

    /// Writes a file of the context.
    pub(super) fn write(&self, path: &str, content: &str) -> &Self {
        let file = self.context().join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, content).unwrap();
        self
    }

    pub(super) fn ran(&self) -> usize {
        self.fake.ran.load(Ordering::Relaxed)
    }

    /// Bakes a Dockerfile whose bases are `os` (see [`os`]) and nothing else.
    pub(super) fn bake(&self, dockerfile: &str) -> Result<Baked, BakeError> {
        self.write("Dockerfile", dockerfile);
        let bases = |name: &str| match name {
            "os" => Some(Ok(os(&self.store))),
            "broken" => Some(Err(BakeError::Failed("the base is broken".into()))),
            _ => None,
        };
        let progress = |event| self.progress.lock().unwrap().push(event);
        let baker = Baker {
            store: &self.store,
            runner: &self.fake,
            progress: &progress,
            cancel: &self.cancel,
        };
        baker.bake(&BuildRequest {
            name: "web".into(),
            context: self.context(),
            dockerfile: "Dockerfile".into(),
            inline: None,
            args: self.args.clone(),
            target: self.target.clone(),
            contexts: self.contexts.clone(),
            bases: &bases,
        })
    }

    /// Bakes and returns the tree.
    pub(super) fn tree(&self, dockerfile: &str) -> Tree {
        let baked = self.bake(dockerfile).unwrap_or_else(|error| panic!("{error}"));
        (*self.store.get_tree(&baked.image.tree).unwrap()).clone()
    }

    /// Bakes and returns the configuration.
    pub(super) fn config(&self, dockerfile: &str) -> ImageConfig {
        let baked = self.bake(dockerfile).unwrap_or_else(|error| panic!("{error}"));
        self.store.get_config(&baked.image.config).unwrap()
    }

    /// Bakes and expects a message.
    pub(super) fn error(&self, dockerfile: &str) -> BakeError {
        match self.bake(dockerfile) {
            Ok(_) => panic!("{dockerfile} was baked"),
            Err(error) => error,
        }
    }

    /// The content of a file of a tree.
    pub(super) fn content(&self, tree: &Tree, path: &str) -> String {
        match &tree.get(path.as_bytes()).unwrap_or_else(|| panic!("no {path}")).kind {
            Kind::File { digest, .. } => {
                String::from_utf8(self.store.get(digest).unwrap()).unwrap()
            }
            other => panic!("{path} is {other:?}"),
        }
    }
}

/// The listing of a tree, one line a path: `path mode uid:gid kind`.
pub(super) fn summary(tree: &Tree) -> Vec<String> {
    let line = |(path, node): (&Vec<u8>, &Node)| {
        let kind = match &node.kind {
            Kind::Dir => "dir".to_owned(),
            Kind::File { size, .. } => format!("file {size}"),
            Kind::Hardlink { to } => format!("= {}", String::from_utf8_lossy(to)),
            Kind::Symlink { target } => format!("-> {}", String::from_utf8_lossy(target)),
            other => format!("{other:?}"),
        };
        let path = String::from_utf8_lossy(path);
        format!("{path} {:o} {}:{} {kind}", node.mode, node.uid, node.gid)
    };
    tree.entries.iter().skip(1).map(line).collect()
}

/// A small operating system.
pub(super) fn os(store: &Store) -> ImageId {
    let mut tree = Tree::new();
    let mut file = |path: &str, content: &str, mode: u16| {
        let digest: Digest = store.put(content.as_bytes()).unwrap();
        let kind = Kind::File { size: content.len() as u64, digest };
        tree.insert(path.as_bytes(), Node::new(kind, mode));
    };
    file("etc/passwd", "root:x:0:0::/root:/bin/sh\napp:x:100:101::/home/app:/bin/sh\n", 0o644);
    file("etc/group", "root:x:0:\nstaff:x:50:\n", 0o644);
    file("usr/bin/sh", "a shell", 0o755);
    file("var/lib/data", "data", 0o600);
    let link = |target: &[u8]| Node::new(Kind::Symlink { target: target.to_vec() }, 0);
    tree.insert(b"bin", link(b"usr/bin"));
    tree.insert(b"usr/bin/zsh", Node::new(Kind::Hardlink { to: b"usr/bin/sh".to_vec() }, 0o755));
    tree.insert(b"tmp", Node::new(Kind::Dir, 0o1777));
    let mut config = ImageConfig { cmd: Some(vec!["sh".into()]), ..ImageConfig::default() };
    config.env_set("LANG", "C");
    ImageId { tree: store.put_tree(&tree).unwrap(), config: store.put_config(&config).unwrap() }
}
