//! A strict stand-in for the sandbox: it mounts the layer as the real one does and understands a
//! few commands, one a line. Whatever it does not understand is an error of the test.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use kiln_core::tree::{Kind, Node, Tree};
use kiln_core::{Digest, ImageConfig, ImageId};
use kiln_store::mount::mount_image;
use kiln_store::{Store, Upper};

use crate::bake::{Baked, Baker, BuildRequest, Progress};
use crate::remote::{Mode, Pins, Remotes};
use crate::runner::{StepExit, StepMount, StepRunner, StepSpec};
use crate::{BakeError, BuildOptions};

/// See the module.
#[derive(Default)]
pub(super) struct Fake {
    pub(super) ran: AtomicUsize,
    pub(super) specs: Mutex<Vec<StepSpec>>,
    /// How many steps have come to `meet`.
    pub(super) met: Mutex<usize>,
    pub(super) meeting: Condvar,
}

/// How long a step waits for another one or for its end.
const DEADLINE: Duration = Duration::from_secs(30);

impl Fake {
    /// Somebody has come so far.
    pub(super) fn come(&self) {
        *self.met.lock().unwrap() += 1;
        self.meeting.notify_all();
    }

    /// `meet N` goes on when N have come so far, itself among them, `await N` without itself;
    /// `linger` when the step is stopped.
    fn wait(&self, spec: &StepSpec, line: &str) -> Option<StepExit> {
        match line.split(' ').collect::<Vec<_>>().as_slice() {
            [how @ ("meet" | "await"), number] => {
                let number: usize = number.parse().unwrap();
                if *how == "meet" {
                    self.come();
                }
                let late = |met: &mut usize| *met < number;
                let met = self.met.lock().unwrap();
                let (_met, timeout) = self.meeting.wait_timeout_while(met, DEADLINE, late).unwrap();
                let code = if timeout.timed_out() { 9 } else { 0 };
                Some(StepExit { code, ..StepExit::default() })
            }
            ["linger"] => {
                let began = Instant::now();
                while !spec.stop.load(Ordering::Acquire) {
                    assert!(began.elapsed() < DEADLINE, "nobody stopped the step");
                    std::thread::yield_now();
                }
                Some(StepExit { code: 137, signal: Some(9), ..StepExit::default() })
            }
            _ => None,
        }
    }
}

impl StepRunner for Fake {
    fn run(&self, spec: &StepSpec, output: &mut dyn FnMut(&[u8])) -> Result<StepExit, String> {
        self.ran.fetch_add(1, Ordering::Relaxed);
        assert!(spec.upper_dir.is_absolute() && !spec.upper_dir.exists(), "the layer is fresh");
        assert!(spec.cwd.starts_with('/') && !spec.argv.is_empty());
        self.specs.lock().unwrap().push(spec.clone());
        let upper = Upper::whole(spec.upper_dir.clone());
        let mount = mount_image(&spec.lower, Some(&upper)).map_err(|error| error.to_string())?;
        let root = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
        // As the real one: a place to mount on is made where the image has none.
        for dir in ["proc", "dev"] {
            if !root.join(dir).exists() {
                fs::create_dir(root.join(dir)).map_err(|error| error.to_string())?;
            }
        }
        let mounted = Mounted::new(spec)?;
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
            match self.wait(spec, line) {
                Some(exit) if exit.success() => continue,
                Some(exit) => return Ok(exit),
                None => {}
            }
            let inside = Inside { root: &root, mounted: &mounted, env: &spec.env };
            let exit = inside.command(line, output).map_err(|e| format!("`{line}`: {e}"))?;
            if exit != 0 {
                return Ok(StepExit { code: exit, ..StepExit::default() });
            }
        }
        Ok(StepExit::default())
    }
}

/// What is mounted, by target: a place on the host for each.
struct Mounted {
    places: Vec<(String, PathBuf)>,
    _mounts: Vec<std::os::fd::OwnedFd>,
    _secrets: tempfile::TempDir,
}

impl Mounted {
    fn new(spec: &StepSpec) -> Result<Self, String> {
        let secrets = tempfile::tempdir().map_err(|error| error.to_string())?;
        let host = |mount: &StepMount| (mount.target.clone(), mount.source.clone());
        let mut places: Vec<(String, PathBuf)> = spec.mounts.iter().map(host).collect();
        let mut mounts = Vec::new();
        for image in &spec.around.images {
            let upper = image.upper_dir.clone().map(Upper::whole);
            let mount = mount_image(&image.lower, upper.as_ref()).map_err(|e| e.to_string())?;
            let place = format!("/proc/self/fd/{}", mount.as_raw_fd());
            places.push((image.target.clone(), Path::new(&place).join(&image.path)));
            mounts.push(mount);
        }
        for (number, secret) in spec.around.secrets.iter().enumerate() {
            let file = secrets.path().join(number.to_string());
            fs::write(&file, &secret.content).map_err(|error| error.to_string())?;
            places.push((secret.target.clone(), file));
        }
        for tmpfs in &spec.around.tmpfs {
            let dir = secrets.path().join("tmpfs");
            fs::create_dir(&dir).map_err(|error| error.to_string())?;
            places.push((tmpfs.target.clone(), dir));
        }
        Ok(Self { places, _mounts: mounts, _secrets: secrets })
    }
}

/// Where a command runs.
struct Inside<'a> {
    root: &'a Path,
    mounted: &'a Mounted,
    env: &'a [String],
}

impl Inside<'_> {
    fn at(&self, word: &str) -> PathBuf {
        let below = |(target, place): &(String, PathBuf)| {
            let rest = word.strip_prefix(target.as_str())?;
            match rest.strip_prefix('/') {
                Some(rest) => Some(place.join(rest)),
                None => rest.is_empty().then(|| place.clone()),
            }
        };
        let place = self.mounted.places.iter().find_map(below);
        place.unwrap_or_else(|| self.root.join(word.trim_start_matches('/')))
    }

    fn command(&self, line: &str, output: &mut dyn FnMut(&[u8])) -> std::io::Result<i32> {
        let words: Vec<&str> = line.split(' ').collect();
        let at = |word: &str| self.at(word);
        match words.as_slice() {
            ["cat", path] => output(&fs::read(at(path))?),
            ["env", name, path] => {
                let is_it = |pair: &&String| pair.split('=').next() == Some(name);
                let values: Vec<&String> = self.env.iter().filter(is_it).collect();
                assert!(values.len() < 2, "{name} stands twice");
                let value = values.first().and_then(|pair| pair.split_once('='));
                fs::write(at(path), value.map_or("", |(_, value)| value))?;
            }
            ["ping", socket, path] => {
                let mut stream = std::os::unix::net::UnixStream::connect(at(socket))?;
                stream.write_all(b"ping")?;
                let mut answer = [0; 4];
                stream.read_exact(&mut answer)?;
                fs::write(at(path), answer)?;
            }
            ["absent", path] => return Ok(i32::from(at(path).exists())),
            ["write", path, rest @ ..] => fs::write(at(path), rest.join(" "))?,
            ["cp", from, to] => fs::write(at(to), fs::read(at(from))?)?,
            ["rm", path] => fs::remove_file(at(path))?,
            ["clone", from, to] => drop(fs::copy(at(from), at(to))?),
            ["append", path, rest @ ..] => {
                let mut file = fs::File::options().append(true).open(at(path))?;
                file.write_all(rest.join(" ").as_bytes())?;
            }
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
}

/// A store, a context and a fake.
pub(super) struct Kitchen {
    pub(super) dir: tempfile::TempDir,
    pub(super) store: Store,
    pub(super) fake: Fake,
    pub(super) args: BTreeMap<String, Option<String>>,
    pub(super) target: Option<String>,
    pub(super) contexts: BTreeMap<String, PathBuf>,
    /// Named contexts that are images.
    pub(super) images: BTreeMap<String, ImageId>,
    pub(super) progress: Mutex<Vec<Progress>>,
    pub(super) cancel: AtomicBool,
    /// What the lock would pin.
    pub(super) pins: Mutex<Pins>,
    /// What may be done about pins.
    pub(super) pinning: Mode,
    pub(super) options: BuildOptions,
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
            images: BTreeMap::new(),
            progress: Mutex::default(),
            cancel: AtomicBool::new(false),
            pins: Mutex::default(),
            pinning: Mode::Pin,
            options: BuildOptions::default(),
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
        self.write("Dockerfile", dockerfile).bake_as_it_is()
    }

    /// Bakes the Dockerfile that is there.
    pub(super) fn bake_as_it_is(&self) -> Result<Baked, BakeError> {
        let bases = |name: &str| match name {
            _ if self.images.contains_key(name) => Some(Ok(self.images[name])),
            "os" => Some(Ok(os(&self.store))),
            "broken" => Some(Err(BakeError::Failed("the base is broken".into()))),
            _ => None,
        };
        let progress = |event| self.progress.lock().unwrap().push(event);
        let pins = self.pins.lock().unwrap().clone();
        let remotes = Remotes::new(&self.store, pins, self.pinning, &self.cancel);
        let baker = Baker {
            store: &self.store,
            runner: &self.fake,
            progress: &progress,
            cancel: &self.cancel,
            record: None,
            remotes: Some(&remotes),
        };
        let baked = baker.bake(&BuildRequest {
            name: "web".into(),
            context: self.context(),
            dockerfile: "Dockerfile".into(),
            inline: None,
            args: self.args.clone(),
            target: self.target.clone(),
            contexts: self.contexts.clone(),
            images: self.images.keys().cloned().collect(),
            bases: &bases,
            options: self.options.clone(),
        });
        *self.pins.lock().unwrap() = remotes.pins();
        baked
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
