//! A mirror on loopback with package files made here.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use kiln_core::Digest;
use tar::{EntryType, Header};

use crate::base::sources::{HostApt, Source};

/// One entry of a package's data.
pub(crate) struct File<'a> {
    pub(crate) path: &'a str,
    pub(crate) kind: EntryType,
    pub(crate) mode: u32,
    pub(crate) owner: (&'a str, &'a str),
    /// Content, or target of a link.
    pub(crate) content: &'a str,
}

pub(crate) fn dir(path: &str) -> File<'_> {
    File { path, kind: EntryType::Directory, mode: 0o755, owner: ("root", "root"), content: "" }
}

pub(crate) fn file<'a>(path: &'a str, content: &'a str) -> File<'a> {
    File { path, kind: EntryType::Regular, mode: 0o644, owner: ("root", "root"), content }
}

pub(crate) fn link<'a>(path: &'a str, kind: EntryType, content: &'a str) -> File<'a> {
    File { path, kind, mode: 0o777, owner: ("root", "root"), content }
}

/// A tar archive. Paths are written as they are, `..` and all.
pub(crate) fn tar(files: &[File<'_>]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for each in files {
        let mut header = Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..each.path.len()].copy_from_slice(each.path.as_bytes());
        header.set_entry_type(each.kind);
        header.set_mode(each.mode);
        header.set_uid(1234);
        header.set_gid(1234);
        header.set_username(each.owner.0).unwrap();
        header.set_groupname(each.owner.1).unwrap();
        let regular = each.kind == EntryType::Regular;
        let content = if regular { each.content } else { "" };
        if !regular {
            header.set_link_name_literal(each.content).unwrap();
        }
        header.set_size(content.len() as u64);
        header.set_cksum();
        archive.append(&header, content.as_bytes()).unwrap();
    }
    archive.into_inner().unwrap()
}

/// A package file with both archives packed by `pack` and called `.tar` and `form`.
pub(crate) fn deb(
    control: &[File<'_>],
    data: &[File<'_>],
    form: &str,
    pack: &dyn Fn(Vec<u8>) -> Vec<u8>,
) -> Vec<u8> {
    let mut out = b"!<arch>\n".to_vec();
    let mut member = |name: &str, content: &[u8]| {
        let head =
            format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100_644, content.len());
        out.extend(head.as_bytes());
        out.extend(content);
        if content.len() % 2 == 1 {
            out.push(b'\n');
        }
    };
    member("debian-binary", b"2.0\n");
    member(&format!("control.tar{form}"), &pack(tar(control)));
    member(&format!("data.tar{form}"), &pack(tar(data)));
    out
}

/// A package of one file, and its control file.
pub(crate) fn package(name: &str, version: &str) -> (String, Vec<u8>) {
    let control = format!(
        "Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: x <x@x>\n\
         Description: test\n"
    );
    let path = format!("./usr/share/{name}");
    let data = [dir("./usr/"), dir("./usr/share/"), file(&path, name)];
    let bytes = deb(&[file("./control", &control)], &data, "", &|bytes| bytes);
    (control, bytes)
}

/// Serves files over HTTP until it is dropped.
pub(crate) struct Mirror {
    files: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    asked: Arc<Mutex<Vec<String>>>,
    address: std::net::SocketAddr,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Mirror {
    /// A flat, trusted archive of the suite `test` with these packages.
    pub(crate) fn new(packages: &[(String, Vec<u8>)]) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let files = Arc::new(Mutex::new(BTreeMap::new()));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (shared, log) = (Arc::clone(&files), Arc::clone(&asked));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                if !serve(stream, &shared, &log) {
                    break;
                }
            }
        });
        let mirror = Self { files, asked, address, thread: Some(thread) };
        mirror.publish(packages);
        mirror
    }

    /// Replaces the packages on offer.
    pub(crate) fn publish(&self, packages: &[(String, Vec<u8>)]) {
        let mut files = self.files.lock().unwrap();
        files.clear();
        let mut index = String::new();
        for (control, bytes) in packages {
            let (size, hash) = (bytes.len(), Digest::of(bytes).hex());
            let path = format!("pool/+{}.deb", &hash[..8]);
            index += &format!("{control}Filename: {path}\nSize: {size}\nSHA256: {hash}\n\n");
            files.insert(format!("/{path}"), bytes.clone());
        }
        let of = Digest::of(&index).hex();
        let release = format!(
            "Origin: test\nSuite: test\nCodename: test\nArchitectures: amd64 arm64 all\n\
             Components: main\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n {of} {} \
             main/binary-amd64/Packages\n {of} {} main/binary-arm64/Packages\n",
            index.len(),
            index.len()
        );
        files.insert("/dists/test/Release".into(), release.into_bytes());
        for arch in ["amd64", "arm64"] {
            let path = format!("/dists/test/main/binary-{arch}/Packages");
            files.insert(path, index.clone().into_bytes());
        }
    }

    /// Changes the bytes of every package file, not the index.
    pub(crate) fn corrupt(&self) {
        for (path, bytes) in self.files.lock().unwrap().iter_mut() {
            if path.ends_with(".deb") {
                *bytes.last_mut().unwrap() ^= 1;
            }
        }
    }

    /// Takes every package file away, not the index.
    pub(crate) fn withdraw(&self) {
        self.files.lock().unwrap().retain(|path, _| !path.ends_with(".deb"));
    }

    /// How often anything was asked of it.
    pub(crate) fn questions(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    /// An apt that knows this mirror alone.
    pub(crate) fn host(&self) -> HostApt {
        host(self.address.port())
    }
}

/// An apt whose only mirror is that port of loopback.
pub(crate) fn host(port: u16) -> HostApt {
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let line = format!("deb [trusted=yes] http://127.0.0.1:{port}/ test main");
    let settings =
        vec!["Acquire::http::Proxy \"DIRECT\";".into(), "Acquire::Retries \"0\";".into()];
    HostApt { arch: arch.into(), settings, sources: vec![Source::of_line(&line).unwrap()] }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        if let Ok(mut stream) = TcpStream::connect(self.address) {
            let _ = stream.write_all(b"STOP\r\n\r\n");
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Answers the requests of one connection; returns whether to go on.
fn serve(
    mut stream: TcpStream,
    files: &Mutex<BTreeMap<String, Vec<u8>>>,
    asked: &Mutex<Vec<String>>,
) -> bool {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            match reader.read_line(&mut line) {
                Ok(0) | Err(_) => return true,
                Ok(_) if line == "\r\n" => break,
                Ok(_) => head.push(line),
            }
        }
        let request = head.first().cloned().unwrap_or_default();
        if request.starts_with("STOP") {
            return false;
        }
        let path = request.split(' ').nth(1).unwrap_or_default().replace("%2b", "+");
        asked.lock().unwrap().push(path.clone());
        let content = files.lock().unwrap().get(&path).cloned();
        let (status, body) = content.map_or(("404 Not Found", Vec::new()), |body| ("200 OK", body));
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
        if stream.write_all(head.as_bytes()).is_err() || stream.write_all(&body).is_err() {
            return true;
        }
    }
}
