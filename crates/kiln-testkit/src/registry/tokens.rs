//! The server that hands out tokens for a registry, as Docker's specification has it: by GET with
//! name and password (or without), and by POST with a password or a refresh token.
//!
//! Tokens are signed by `openssl` with a key of its own.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::{PASSWORD, USER};
use crate::call::Call;

/// Whom tokens are for.
pub const SERVICE: &str = "a-registry-of-tests";
/// Who hands them out.
pub const ISSUER: &str = "tokens-of-tests";
/// The refresh token that it takes.
pub const REFRESH: &str = "an-identity-token";

/// Longest request body, in bytes.
const BODY: u64 = 64 << 10;

/// A running token server. It ends with the value.
#[derive(Debug)]
pub struct Tokens {
    port: u16,
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    folder: tempfile::TempDir,
    anonymous: AtomicBool,
    seconds: AtomicU64,
    given: AtomicUsize,
    asked: Mutex<Vec<String>>,
    end: AtomicBool,
}

impl Tokens {
    /// Starts one, which gives everybody the right to pull, and [`USER`] all that is asked for.
    ///
    /// # Panics
    /// If it cannot listen, or make its key.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("tokens: {error}"));
        let made = Call::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650"])
            .args(["-subj", "/CN=tokens of tests", "-keyout", "key.pem", "-out", "cert.pem"])
            .dir(folder.path())
            .run_ok();
        made.unwrap_or_else(|error| panic!("{error:#}"));
        let listener = TcpListener::bind("127.0.0.1:0");
        let listener = listener.unwrap_or_else(|error| panic!("tokens: {error}"));
        let port = listener.local_addr().map(|address| address.port()).unwrap_or_default();
        let shared = Arc::new(Shared {
            folder,
            anonymous: AtomicBool::new(true),
            seconds: AtomicU64::new(300),
            given: AtomicUsize::new(0),
            asked: Mutex::default(),
            end: AtomicBool::new(false),
        });
        let own = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if own.end.load(Ordering::Acquire) {
                    return;
                }
                // Whoever hangs up early is none of the server's business.
                let _ = own.serve(stream);
            }
        });
        Self { port, shared, thread: Some(thread) }
    }

    /// Nobody gets anything without name and password from now on.
    #[must_use]
    pub fn private(self) -> Self {
        self.shared.anonymous.store(false, Ordering::Release);
        self
    }

    /// How long its tokens hold, in seconds, from now on.
    pub fn hold(&self, seconds: u64) {
        self.shared.seconds.store(seconds, Ordering::Release);
    }

    /// Its address.
    pub fn realm(&self) -> String {
        format!("http://127.0.0.1:{}/token", self.port)
    }

    /// The certificate that its tokens are signed with.
    pub fn bundle(&self) -> PathBuf {
        self.shared.folder.path().join("cert.pem")
    }

    /// How many tokens it has given.
    pub fn given(&self) -> usize {
        self.shared.given.load(Ordering::Acquire)
    }

    /// What it was asked: method, address and form of each request. Passwords are not in it.
    pub fn asked(&self) -> Vec<String> {
        self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Tokens {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Release);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut first = String::new();
        reader.read_line(&mut first)?;
        let (mut length, mut authorization) = (0, None);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? <= 2 {
                break;
            }
            let Some((name, value)) = line.trim().split_once(':') else { continue };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse().unwrap_or(0),
                "authorization" => authorization = Some(value.trim().to_owned()),
                _ => {}
            }
        }
        let mut body = String::new();
        reader.take(u64::min(length, BODY)).read_to_string(&mut body)?;
        let (status, answer) = self.answer(&first, &body, authorization.as_deref());
        let answer = answer.to_string();
        let mut stream = stream;
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{answer}",
            answer.len()
        )
    }

    fn answer(
        &self,
        first: &str,
        body: &str,
        authorization: Option<&str>,
    ) -> (&'static str, Value) {
        let mut words = first.split(' ');
        let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let form = fields(if method == "POST" {
            body
        } else {
            target.split_once('?').unwrap_or(("", "")).1
        });
        let text = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
        let shown: Vec<String> = form
            .iter()
            .filter(|(name, _)| !["password", "refresh_token"].contains(&name.as_str()))
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let asked = format!("{method} {}", shown.join(" "));
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(asked);
        let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}")));
        let known = match method {
            "POST" if text("grant_type") == "refresh_token" => text("refresh_token") == REFRESH,
            "POST" => text("username") == USER && text("password") == PASSWORD,
            _ => authorization == Some(&basic),
        };
        let anonymous = method == "GET" && authorization.is_none();
        let open = anonymous && self.anonymous.load(Ordering::Acquire);
        if !(known || open) {
            return ("401 Unauthorized", json!({ "details": "incorrect username or password" }));
        }
        let scope = text("scope").to_owned();
        let seconds = self.seconds.load(Ordering::Acquire);
        let token = self.token(&scope, known, seconds);
        self.given.fetch_add(1, Ordering::AcqRel);
        ("200 OK", json!({ "token": token, "access_token": token, "expires_in": seconds }))
    }

    /// A token for what `scope` asks; whoever is not known may pull only.
    fn token(&self, scope: &str, known: bool, seconds: u64) -> String {
        let access: Vec<Value> = scope
            .split(' ')
            .filter_map(|one| {
                let (kind, rest) = one.split_once(':')?;
                let (name, actions) = rest.rsplit_once(':')?;
                let actions = actions.split(',').filter(|action| known || *action == "pull");
                Some(json!({ "type": kind, "name": name, "actions": actions.collect::<Vec<_>>() }))
            })
            .collect();
        let certificate = fs::read_to_string(self.folder.path().join("cert.pem"));
        let certificate: String =
            certificate.unwrap_or_default().lines().filter(|line| !line.contains("----")).collect();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap_or_default().as_secs();
        let header = json!({ "typ": "JWT", "alg": "RS256", "x5c": [certificate] });
        let claims = json!({
            "iss": ISSUER, "sub": USER, "aud": SERVICE, "access": access,
            "iat": now, "nbf": now - 5, "exp": now + seconds, "jti": now.to_string(),
        });
        let encode = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(self.signature(&signed)))
    }

    fn signature(&self, signed: &str) -> Vec<u8> {
        let dir = self.folder.path();
        let name = format!("signature-{}", self.given.load(Ordering::Acquire));
        let call =
            Call::new("openssl").args(["dgst", "-sha256", "-sign", "key.pem", "-out", &name]);
        let made = call.dir(dir).stdin(signed).run_ok();
        made.unwrap_or_else(|error| panic!("{error:#}"));
        fs::read(dir.join(name)).unwrap_or_default()
    }
}

/// The fields of a query or form; of a name that is there twice, the values with a space between.
fn fields(text: &str) -> BTreeMap<String, String> {
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let entry = found.entry(decoded(name)).or_default();
        if !entry.is_empty() {
            entry.push(' ');
        }
        entry.push_str(&decoded(value));
    }
    found
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        rest = more;
        let hex = more.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        match (first, hex.and_then(|two| u8::from_str_radix(two, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &more[2..];
            }
            (b'+', _) => bytes.push(b' '),
            (other, _) => bytes.push(*other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
