//! The distribution's own registry (`docker-registry`), on a port and in a folder of its own.
//!
//! ```no_run
//! # use kiln_testkit::registry::{Image, Registry};
//! let registry = Registry::start();
//! let image = Image::new().file("hello.txt", b"hello\n");
//! registry.push(&image, "team/app:1"); // by skopeo
//! let name = format!("{}/team/app:1", registry.host()); // 127.0.0.1:23456/team/app:1
//! ```
//! It goes with whoever made it, also when that is killed: a keeper, which is a shell, waits for the
//! end of a pipe, ends the registry and removes its folder.
//!
//! | module | noun |
//! |---|---|
//! | [`image`] | a small image, as an OCI layout |
//! | [`tokens`] | the server that hands out tokens for a registry |

pub mod image;
pub mod tokens;

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub use image::Image;
pub use tokens::Tokens;

use crate::call::Call;
use crate::peers::cell::PATH;
use crate::ports::Port;
use crate::wait::poll_until;

/// Who may use a registry with passwords.
pub const USER: &str = "kiln";
/// With which password.
pub const PASSWORD: &str = "open sesame";
/// Both as `htpasswd -B` writes them.
const HTPASSWD: &str = "kiln:$2y$05$N7DkywBAagG.t3Phys4fX.Jt405gwpD3yUeOlvom6i/JBVSHxefK.\n";

/// How long it may take to listen.
const PATIENCE: Duration = Duration::from_secs(30);

/// Run outside: `$1` is the folder. The registry listens until the pipe ends.
const KEEPER: &str = r#"
docker-registry serve "$1/config.yml" < /dev/null > "$1/log" 2>&1 &
inner=$!
cat > /dev/null
kill -KILL $inner; wait $inner 2> /dev/null
rm -rf -- "$1"
"#;

/// How a registry is to be.
#[derive(Debug, Default, Clone)]
pub struct Options {
    tls: bool,
    clients: bool,
    basic: bool,
    tokens: Option<TokenAuth>,
    no_delete: bool,
}

#[derive(Debug, Clone)]
struct TokenAuth {
    realm: String,
    bundle: PathBuf,
}

impl Options {
    /// With TLS, by an authority of its own: [`Registry::authority`].
    #[must_use]
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// With TLS, and only for who shows the certificate [`Registry::client`].
    #[must_use]
    pub fn clients(mut self) -> Self {
        self.clients = true;
        self.tls()
    }

    /// For [`USER`] with [`PASSWORD`] only.
    #[must_use]
    pub fn basic(mut self) -> Self {
        self.basic = true;
        self
    }

    /// For who has a token of `tokens` only.
    #[must_use]
    pub fn tokens(mut self, tokens: &Tokens) -> Self {
        self.tokens = Some(TokenAuth { realm: tokens.realm(), bundle: tokens.bundle() });
        self
    }

    /// Nothing can be deleted.
    #[must_use]
    pub fn no_delete(mut self) -> Self {
        self.no_delete = true;
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// If it does not listen in time; with what it printed.
    #[track_caller]
    pub fn start(&self) -> Registry {
        let port = Port::claim();
        let made = tempfile::Builder::new().prefix("kiln-registry-").tempdir();
        let folder = made.unwrap_or_else(|error| panic!("a registry's folder: {error}")).keep();
        if self.tls {
            certificates(&folder);
        }
        let write = |name: &str, text: &str| {
            fs::write(folder.join(name), text).unwrap_or_else(|error| panic!("{name}: {error}"));
        };
        write("htpasswd", HTPASSWD);
        write("config.yml", &self.configuration(&folder, port.number()));
        let mut keeper = Command::new("/bin/sh");
        keeper.args(["-c", KEEPER, "sh"]).arg(&folder).env_clear().env("PATH", PATH);
        keeper.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // Ctrl-C is for whoever made the registry; the keeper has work left then.
        let keeper = keeper.process_group(0).spawn();
        let keeper = keeper.unwrap_or_else(|error| panic!("a registry's keeper: {error}"));
        let registry = Registry { folder, port, keeper, options: self.clone() };
        let address = (Ipv4Addr::LOCALHOST, registry.port.number());
        let listens = poll_until(PATIENCE, || TcpStream::connect(address).ok());
        assert!(
            listens.is_some(),
            "docker-registry does not listen (`cargo xtask test` installs it)\n{}",
            registry.log()
        );
        registry
    }

    fn configuration(&self, folder: &Path, port: u16) -> String {
        let folder = folder.display();
        let mut text = format!(
            "version: 0.1\nlog: {{ level: info, accesslog: {{ disabled: false }} }}\n\
             storage:\n  filesystem: {{ rootdirectory: {folder}/data }}\n  \
             delete: {{ enabled: {} }}\n\
             http:\n  addr: 127.0.0.1:{port}\n  secret: s\n",
            !self.no_delete
        );
        if self.tls {
            let clients = match self.clients {
                true => format!(", clientcas: [{folder}/ca.pem]"),
                false => String::new(),
            };
            text += &format!(
                "  tls: {{ certificate: {folder}/server.pem, key: {folder}/server.key{clients} }}\n"
            );
        }
        if self.basic {
            text += &format!("auth:\n  htpasswd: {{ realm: test, path: {folder}/htpasswd }}\n");
        }
        if let Some(TokenAuth { realm, bundle }) = &self.tokens {
            text += &format!(
                "auth:\n  token: {{ realm: {realm:?}, service: {}, issuer: {}, \
                 rootcertbundle: {} }}\n",
                tokens::SERVICE,
                tokens::ISSUER,
                bundle.display()
            );
        }
        text
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct Registry {
    folder: PathBuf,
    port: Port,
    keeper: Child,
    options: Options,
}

impl Registry {
    /// A plain one, open to everybody.
    ///
    /// # Panics
    /// If it does not listen in time.
    #[track_caller]
    pub fn start() -> Self {
        Options::default().start()
    }

    /// One that is to be otherwise.
    pub fn options() -> Options {
        Options::default()
    }

    /// As it stands in a reference: `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The certificate of its authority, if it speaks TLS.
    pub fn authority(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// A client's certificate and key by its authority, if it speaks TLS.
    pub fn client(&self) -> (PathBuf, PathBuf) {
        (self.folder.join("client.pem"), self.folder.join("client.key"))
    }

    /// Where it keeps what it has.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// What it printed: one line for each request, among others.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.join("log")).unwrap_or_default()).into()
    }

    /// How many requests it has answered whose line holds `text`, for example `GET /v2/a/blobs`.
    pub fn asked(&self, text: &str) -> usize {
        let log = self.log();
        log.lines().filter(|line| line.contains(" \"") && line.contains(text)).count()
    }

    /// Copies an image into it by skopeo. `name` is `REPOSITORY:TAG`.
    ///
    /// # Panics
    /// With what skopeo printed, if that fails.
    #[track_caller]
    pub fn push(&self, image: &Image, name: &str) {
        let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("a layout: {error}"));
        image.write(folder.path());
        self.copy(&format!("oci:{}:image", folder.path().display()), name, &[]);
    }

    /// Copies what skopeo calls `source` (`oci:…`, `docker-archive:…`, `docker-daemon:…`), with more
    /// of its options, for example `["--format", "v2s2"]`.
    ///
    /// # Panics
    /// With what skopeo printed, if that fails.
    #[track_caller]
    pub fn copy(&self, source: &str, name: &str, options: &[&str]) {
        let mut call = Call::new("skopeo").args(["copy", "--insecure-policy"]).args(options);
        call = call.arg("--dest-tls-verify=false");
        call = match self.options.basic || self.options.tokens.is_some() {
            true => call.arg(format!("--dest-creds={USER}:{PASSWORD}")),
            false => call.arg("--dest-no-creds"),
        };
        let target = format!("docker://{}/{name}", self.host());
        let done = call.args([source, &target]).patience(Duration::from_secs(300)).run_ok();
        done.unwrap_or_else(|error| panic!("{error:#}\n{}", self.log()));
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        if !matches!(self.keeper.wait(), Ok(status) if status.success()) {
            eprintln!("warning: {} stays behind", self.folder.display());
        }
    }
}

/// Writes an authority, `ca.pem`, into a folder, and by it `server.pem` with `server.key` for
/// 127.0.0.1, localhost and registry.test, and `client.pem` with `client.key`.
///
/// # Panics
/// With what openssl printed, if that fails.
pub fn certificates(folder: &Path) {
    let openssl = |args: &[&str]| {
        let call = Call::new("openssl").args(args).dir(folder).run_ok();
        call.unwrap_or_else(|error| panic!("{error:#}"));
    };
    let new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let authority = ["req", "-x509", "-days", "3650", "-subj", "/CN=an authority of tests"];
    openssl(&[&authority[..], &new, &["-keyout", "ca.key", "-out", "ca.pem"]].concat());
    for (number, name, says) in [
        ("2", "server", "subjectAltName=IP:127.0.0.1,DNS:localhost,DNS:registry.test\n"),
        ("3", "client", "extendedKeyUsage=clientAuth\n"),
    ] {
        let [key, csr, pem, more] = ["key", "csr", "pem", "ext"].map(|end| format!("{name}.{end}"));
        let subject = format!("/CN={name}");
        let request = ["req", "-subj", &subject, "-keyout", &key, "-out", &csr];
        openssl(&[&request[..], &new].concat());
        fs::write(folder.join(&more), says).unwrap_or_else(|error| panic!("{more}: {error}"));
        let sign = ["x509", "-req", "-in", &csr, "-CA", "ca.pem", "-CAkey", "ca.key"];
        let what = ["-days", "3650", "-set_serial", number, "-extfile", &more, "-out", &pem];
        openssl(&[sign, what].concat());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Client, wait_until};

    #[test]
    fn has_what_was_pushed_and_leaves_nothing() {
        let registry = Registry::start();
        let image = Image::new().file("hello.txt", b"hello\n");
        registry.push(&image, "team/app:1");
        let mut client = Client::local(registry.port());
        let answer = client.get("/v2/team/app/tags/list").unwrap();
        assert_eq!(answer.text().trim(), r#"{"name":"team/app","tags":["1"]}"#);
        assert_eq!(registry.asked("GET /v2/team/app/tags/list"), 1, "{}", registry.log());
        let (folder, address) = (registry.folder.clone(), (Ipv4Addr::LOCALHOST, registry.port()));
        assert!(folder.exists());
        drop(registry);
        assert!(!folder.exists());
        let gone = || TcpStream::connect(address).is_err().then_some(());
        wait_until(Duration::from_secs(10), "a registry that is gone", gone);
    }

    #[test]
    fn takes_a_password_over_tls() {
        let registry = Registry::options().tls().basic().start();
        registry.push(&Image::new().file("a", b"a"), "a:1");
        assert!(fs::read_to_string(registry.authority()).unwrap().contains("BEGIN CERTIFICATE"));
    }

    #[test]
    fn takes_tokens() {
        let tokens = Tokens::start();
        let registry = Registry::options().tokens(&tokens).start();
        registry.push(&Image::new().file("a", b"a"), "a:1");
        let mut client = Client::local(registry.port());
        let answer = client.get("/v2/a/tags/list").unwrap();
        assert_eq!(answer.status, 401);
        let challenge = answer.header("www-authenticate").unwrap();
        assert!(challenge.contains(&tokens.realm()), "{challenge}");
        assert!(tokens.given() >= 1);
    }
}
