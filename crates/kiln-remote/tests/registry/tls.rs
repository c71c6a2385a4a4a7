//! Registries that are not on the loopback: by TLS or not at all, through a proxy, with certificates
//! of the registry's own and of the client.

use std::fs;
use std::io::{BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use kiln_testkit::Registry;
use kiln_testkit::registry::{Image, certificates};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::server::{Server, send};
use super::*;

/// The registry that only the proxy knows.
const NAME: &str = "registry.test:5000";

/// A proxy that leads every host to one address.
struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct Shared {
    to: String,
    /// Speaks TLS itself, as the host that is asked for; what is behind it hears plain HTTP.
    ends: Option<Arc<ServerConfig>>,
    heard: Mutex<Vec<String>>,
    end: AtomicBool,
}

impl Proxy {
    fn start(to: &str, ends: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let end = AtomicBool::new(false);
        let shared = Arc::new(Shared { to: to.to_owned(), ends, heard: Mutex::default(), end });
        let own = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if own.end.load(Ordering::Acquire) {
                    return;
                }
                let own = Arc::clone(&own);
                // Whoever hangs up early is none of the proxy's business.
                std::thread::spawn(move || drop(own.serve(stream)));
            }
        });
        Self { port, shared, thread: Some(thread) }
    }

    fn url(&self) -> String {
        format!("http://user:pw@127.0.0.1:{}", self.port)
    }

    /// Heads of all requests.
    fn heard(&self) -> Vec<String> {
        self.shared.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Proxy {
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
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let head = head(&mut BufReader::with_capacity(1, stream.try_clone()?))?;
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).push(head.clone());
        let target = TcpStream::connect(&self.to)?;
        match head.starts_with("CONNECT ") {
            true => (&stream).write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?,
            false => (&target).write_all(head.as_bytes())?,
        }
        let Some(ends) = &self.ends else {
            let (mut from, mut to) = (stream.try_clone()?, target.try_clone()?);
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(std::net::Shutdown::Write);
            });
            std::io::copy(&mut &target, &mut &stream)?;
            return stream.shutdown(std::net::Shutdown::Both);
        };
        let session = ServerConnection::new(Arc::clone(ends)).map_err(std::io::Error::other)?;
        let mut secret = BufReader::with_capacity(1, StreamOwned::new(session, stream));
        (&target).write_all(self::head(&mut secret)?.as_bytes())?;
        let mut secret = secret.into_inner();
        std::io::copy(&mut &target, &mut secret)?;
        secret.conn.send_close_notify();
        secret.flush()
    }
}

/// A request's head, with the empty line.
fn head(reader: &mut impl std::io::BufRead) -> std::io::Result<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(head)
}

/// What a server has that is `registry.test`.
fn identity(folder: &Path) -> Arc<ServerConfig> {
    let chain = vec![CertificateDer::from_pem_file(folder.join("server.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(folder.join("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Arc::new(config.unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap())
}

/// A host that knows the proxy, and the authority of [`NAME`].
fn host_with(proxy: &Proxy, authority: &Path) -> Arc<Registries> {
    let authority = fs::read_to_string(authority).unwrap();
    host(
        &[("containers/certs.d/registry.test:5000/ca.crt", &authority)],
        &[("HTTPS_PROXY", &proxy.url())],
    )
}

#[test]
fn a_proxy_leads_to_a_registry_with_an_authority_of_its_own() {
    let registry = Registry::options().tls().start();
    let bytes = noise(200_000);
    let image = Image::new().file("noise", &bytes);
    registry.push(&image, "app:1");
    let proxy = Proxy::start(&registry.host(), None);
    let name = reference(&format!("{NAME}/app:1"));
    let known = host_with(&proxy, &registry.authority());
    client(&known, &Anonymous).resolve(&name).unwrap();
    let heard = proxy.heard();
    assert!(heard[0].starts_with("CONNECT registry.test:5000 HTTP/1.1\r\n"), "{heard:?}");
    assert!(
        heard[0].to_lowercase().contains("proxy-authorization: basic dxnlcjpwdw=="),
        "{heard:?}"
    );

    let stranger = host(&[], &[("https_proxy", &proxy.url())]);
    let error = client(&stranger, &Anonymous).resolve(&name).unwrap_err();
    assert!(error.hint().unwrap().contains("certs.d"), "{error}");
    let file = registry.authority().display().to_string();
    let named = host(&[], &[("https_proxy", &proxy.url()), ("SSL_CERT_FILE", &file)]);
    client(&named, &Anonymous).resolve(&name).unwrap();
    let none = host(&[], &[("https_proxy", &proxy.url()), ("SSL_CERT_FILE", "/nonexistent")]);
    let error = client(&none, &Anonymous).resolve(&name).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("SSL_CERT_FILE"), "{error}");
    // Where the host says so, nothing is verified.
    let conf = format!("[[registry]]\nlocation = '{NAME}'\ninsecure = true\n");
    let lax = host(&[("containers/registries.conf", &conf)], &[("https_proxy", &proxy.url())]);
    client(&lax, &Anonymous).resolve(&name).unwrap();
}

#[test]
fn a_proxy_leads_to_a_registry_without_encryption_where_that_is_allowed() {
    let registry = Registry::start();
    registry.push(&Image::new().file("a", b"a"), "app:1");
    let proxy = Proxy::start(&registry.host(), None);
    let conf = format!("[[registry]]\nlocation = '{NAME}'\ninsecure = true\n");
    let url = proxy.url();
    let env = [("HTTP_PROXY", &*url), ("HTTPS_PROXY", &*url)];
    let files = [("containers/registries.conf", &*conf)];
    let name = reference(&format!("{NAME}/app:1"));
    client(&host(&files, &env), &Anonymous).resolve(&name).unwrap();
    assert!(registry.asked("GET ") > 0, "{}", registry.log());
    let error = client(&host(&[], &env), &Anonymous).resolve(&name).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
}

#[test]
fn a_client_shows_its_certificate_where_it_has_one() {
    let registry = Registry::options().clients().start();
    let (certificate, key) = registry.client();
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    let (authority, certificate, key) =
        (read(&registry.authority()), read(&certificate), read(&key));
    let proxy = Proxy::start(&registry.host(), None);
    let folder = "docker/certs.d/registry.test:5000";
    let [ca, cert, secret] =
        ["ca.crt", "client.cert", "client.key"].map(|n| format!("{folder}/{n}"));
    let files = [(ca.as_str(), authority.as_str()), (&cert, &certificate), (&secret, &key)];
    let env = [("HTTPS_PROXY", &*proxy.url())];
    let name = reference(&format!("{NAME}/app:1"));
    let error = client(&host(&files, &env), &Anonymous).resolve(&name).unwrap_err();
    // It is empty, but it answers.
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    let error = client(&host(&files[..1], &env), &Anonymous).resolve(&name).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let lonely = dir.path().join("etc").join(&cert);
    fs::create_dir_all(lonely.parent().unwrap()).unwrap();
    fs::write(&lonely, &certificate).unwrap();
    let error = read_error(dir.path());
    assert!(error.contains("there is no key"), "{error}");
}

fn read_error(dir: &Path) -> String {
    super::read(dir, BTreeMap::new()).unwrap_err().to_string()
}

#[test]
fn what_began_encrypted_stays_so() {
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let plain = Server::start(|_, stream| send(stream, "200 OK", &[], b"{}"));
    let known = Known::password("user", "secret");
    let name = reference(&format!("{NAME}/app:1"));
    let through = |server: &Server| {
        let proxy = Proxy::start(&server.host(), Some(identity(folder.path())));
        let host = host_with(&proxy, &folder.path().join("ca.pem"));
        client(&host, &known).resolve(&name).unwrap_err().to_string()
    };
    let location = format!("Location: http://{}/x", plain.host());
    let server = Server::start(move |_, stream| send(stream, "307 There", &[&location], b""));
    let error = through(&server);
    assert!(error.contains("which is not encrypted"), "{error}");

    let header = format!("WWW-Authenticate: Bearer realm=\"http://{}/token\"", plain.host());
    let server = Server::start(move |_, stream| send(stream, "401 No", &[&header], b""));
    let error = through(&server);
    assert!(
        error.contains("tokens are to be had at") && error.contains("not encrypted"),
        "{error}"
    );
    assert!(plain.asked().is_empty(), "{:?}", plain.asked());
}
