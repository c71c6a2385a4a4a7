//! A small HTTP server and Git repositories, both on the loopback.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Answers with what it was given, and with the files below a folder. `/to/X` leads to `/X`; of
/// `/short/X` the end is missing; `/silent` begins and says no more.
pub(super) struct Web {
    port: u16,
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    files: Mutex<BTreeMap<String, Vec<u8>>>,
    folder: Mutex<Option<PathBuf>>,
    asked: Mutex<Vec<String>>,
    silent: Mutex<Vec<TcpStream>>,
    end: AtomicBool,
}

impl Web {
    pub(super) fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let own = shared.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if own.end.load(Ordering::Acquire) {
                    return;
                }
                // Whoever hangs up early is none of the server's business.
                let _ = own.serve(stream.unwrap());
            }
        });
        Self { port, shared, thread: Some(thread) }
    }

    /// Serves the files below `folder`.
    pub(super) fn folder(folder: &Path) -> Self {
        let web = Self::new();
        *web.shared.folder.lock().unwrap() = Some(folder.to_owned());
        web
    }

    pub(super) fn put(&self, path: &str, content: &[u8]) {
        self.shared.files.lock().unwrap().insert(path.to_owned(), content.to_vec());
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// How often it was asked since the last time.
    pub(super) fn asked(&self) -> usize {
        std::mem::take(&mut *self.shared.asked.lock().unwrap()).len()
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let mut rest = String::new();
        while reader.read_line(&mut rest)? > 2 {
            rest.clear();
        }
        let path = line.split(' ').nth(1).unwrap_or("/");
        let path = path.split('?').next().unwrap_or(path).to_owned();
        self.asked.lock().unwrap().push(path.clone());
        let mut stream = stream;
        if let Some(target) = path.strip_prefix("/to") {
            return write!(
                stream,
                "HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\
                Connection: close\r\n\r\n"
            );
        }
        if path == "/silent" {
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegin")?;
            self.silent.lock().unwrap().push(stream);
            return Ok(());
        }
        let short = path.strip_prefix("/short").unwrap_or(&path);
        let found = self.files.lock().unwrap().get(short).cloned();
        let folder = self.folder.lock().unwrap().clone();
        let found = found.or_else(|| fs::read(folder?.join(short.trim_start_matches('/'))).ok());
        let (status, body) = match found {
            Some(body) => ("200 OK", body),
            None => ("404 Not Found", b"nothing here".to_vec()),
        };
        let length = body.len() + if short == path { 0 } else { 10 };
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        )?;
        stream.write_all(&body)
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Release);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Runs Git in `dir`, as somebody with a name.
pub(super) fn git(dir: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .current_dir(dir)
        .args(["-c", "user.name=test", "-c", "user.email=test@example.org"])
        .args(["-c", "init.defaultBranch=master", "-c", "commit.gpgsign=false"])
        .args(["-c", "protocol.file.allow=always"])
        .args(args)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Writes `content` into `foo` and commits it with the tag `name`.
pub(super) fn commit(dir: &Path, name: &str) -> String {
    fs::write(dir.join("foo"), format!("foo of {name}\n")).unwrap();
    git(dir, &["add", "."]);
    git(dir, &["commit", "-q", "-m", name]);
    git(dir, &["tag", name]);
    git(dir, &["update-server-info"]);
    git(dir, &["rev-parse", "HEAD"])
}

/// `git daemon` for all below a folder.
pub(super) struct Daemon {
    child: Child,
    port: u16,
}

impl Daemon {
    pub(super) fn new(folder: &Path) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let child = Command::new("git")
            .args(["daemon", "--listen=127.0.0.1", "--export-all", "--reuseaddr"])
            .arg(format!("--port={port}"))
            .arg(format!("--base-path={}", folder.display()))
            .env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", "safe.directory")
            .env("GIT_CONFIG_VALUE_0", "*")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "git daemon does not listen");
            std::thread::yield_now();
        }
        Self { child, port }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("git://127.0.0.1:{}/{path}", self.port)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
