//! A file behind `http:` or `https:`, into the store.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use kiln_core::Digest;
use kiln_store::Store;
use ureq::config::ConfigBuilder;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};
use ureq::typestate::AgentScope;
use ureq::{Agent, Proxy};

use crate::error::RemoteError;

/// How long a server may say nothing.
const STALL: Duration = Duration::from_secs(60);
/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(30);
/// Redirects that are followed, as by Go's client.
const REDIRECTS: u32 = 10;
/// How often it is looked whether the user wants to stop.
const LOOK: Duration = Duration::from_millis(50);

/// Proxies by the names that every program knows: `http_proxy`, `https_proxy`, `all_proxy`,
/// `no_proxy`, in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Proxies(BTreeMap<String, String>);

impl Proxies {
    /// Those of `args`, the build arguments; where they name none, those of this process.
    pub fn of(args: &BTreeMap<String, Option<String>>) -> Self {
        let mut found = BTreeMap::new();
        for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
            let upper = name.to_ascii_uppercase();
            let given = [name, &upper].iter().find_map(|name| args.get(*name).cloned().flatten());
            let own = || [name, &upper].iter().find_map(|name| std::env::var(name).ok());
            if let Some(value) = given.or_else(own).filter(|value| !value.is_empty()) {
                found.insert(name.to_owned(), value);
            }
        }
        Self(found)
    }

    /// Those of an environment.
    pub fn of_env(env: &BTreeMap<String, String>) -> Self {
        let mut found = BTreeMap::new();
        for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
            let given = env.get(name).or_else(|| env.get(&name.to_ascii_uppercase()));
            if let Some(value) = given.filter(|value| !value.is_empty()) {
                found.insert(name.to_owned(), value.clone());
            }
        }
        Self(found)
    }

    /// Whether a host is asked without a proxy, by the rules of Go's programs, which most clients of
    /// registries are: `NO_PROXY` names hosts (and what is below them), addresses and networks, each
    /// with a port or without; and this machine is never asked through one.
    pub(crate) fn bypassed(&self, host: &str, port: u16) -> bool {
        let address: Option<IpAddr> = host.parse().ok();
        if host.eq_ignore_ascii_case("localhost") || address.is_some_and(|ip| ip.is_loopback()) {
            return true;
        }
        let host = host.to_ascii_lowercase();
        let list = self.0.get("no_proxy").map(String::as_str).unwrap_or_default();
        list.split(',').map(str::trim).any(|entry| no_proxy(entry, &host, address, port))
    }

    /// For a program's environment: each name in both spellings.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (String, &str)> {
        self.0.iter().flat_map(|(name, value)| {
            [(name.clone(), value.as_str()), (name.to_ascii_uppercase(), value.as_str())]
        })
    }

    pub(crate) fn for_url(&self, url: &str) -> Result<Option<Proxy>, RemoteError> {
        let scheme = url.split(':').next().unwrap_or_default().to_ascii_lowercase();
        let own = self.0.get(&format!("{scheme}_proxy"));
        let Some(text) = own.or_else(|| self.0.get("all_proxy")) else { return Ok(None) };
        let wrong = |error: ureq::Error| {
            RemoteError::fetch(
                url,
                format!("the proxy `{}` cannot be used: {error}", crate::reference::redacted(text)),
            )
        };
        let plain = Proxy::new(text).map_err(wrong)?;
        let mut proxy = Proxy::builder(plain.protocol()).host(plain.host()).port(plain.port());
        if let Some(name) = plain.username() {
            proxy = proxy.username(name);
        }
        if let Some(password) = plain.password() {
            proxy = proxy.password(password);
        }
        let none = self.0.get("no_proxy").map(String::as_str).unwrap_or_default();
        for entry in none.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            proxy = proxy.no_proxy(entry);
        }
        proxy.build().map(Some).map_err(wrong)
    }
}

/// Fetches `url` into the store; gives digest and length. Nothing is asked of a cache in between
/// and nothing is unpacked: what is pinned is what the server has.
///
/// # Errors
/// [`RemoteError::Fetch`] says what was answered; [`RemoteError::Cancelled`].
pub fn fetch(
    store: &Store,
    url: &str,
    proxies: &Proxies,
    limit: u64,
    cancel: &AtomicBool,
) -> Result<(Digest, u64), RemoteError> {
    let agent = agent(proxies.for_url(url)?);
    let (done, over) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let stopper = agent.clone();
        // Ends a transfer that the user no longer wants, also one that waits for the server.
        scope.spawn(move || {
            while let Err(mpsc::RecvTimeoutError::Timeout) = over.recv_timeout(LOOK) {
                if cancel.load(Ordering::Acquire) {
                    stopper.shutdown();
                    return;
                }
            }
        });
        let result = get(store, &agent, url, limit, cancel);
        drop(done);
        if cancel.load(Ordering::Acquire) { Err(RemoteError::Cancelled) } else { result }
    })
}

fn get(
    store: &Store,
    agent: &Agent,
    url: &str,
    limit: u64,
    cancel: &AtomicBool,
) -> Result<(Digest, u64), RemoteError> {
    let failed = |error: ureq::Error| RemoteError::fetch(url, words(&error));
    let response = agent.get(url).call().map_err(failed)?;
    let status = response.status();
    if !status.is_success() {
        return Err(RemoteError::fetch(url, format!("the server answered {status}")));
    }
    let body = response.into_body();
    if body.content_length().is_some_and(|length| length > limit) {
        return Err(too_large(url, limit));
    }
    let body = body.into_with_config().limit(u64::MAX).reader();
    let mut bounded = Bounded { from: body, left: limit, over: false, cancel };
    match store.put_reader(&mut bounded) {
        Ok(found) => Ok(found),
        Err(_) if bounded.over => Err(too_large(url, limit)),
        Err(kiln_store::Error::Io { source, .. })
            if source.get_ref().is_some_and(|inner| inner.is::<ureq::Error>())
                || source.kind() == io::ErrorKind::UnexpectedEof =>
        {
            Err(RemoteError::fetch(url, source.to_string()))
        }
        Err(error) => Err(error.into()),
    }
}

fn too_large(url: &str, limit: u64) -> RemoteError {
    RemoteError::TooLarge { url: crate::reference::redacted(url), limit }
}

pub(crate) fn words(error: &ureq::Error) -> String {
    match error {
        ureq::Error::HostNotFound => "the host is not known".into(),
        ureq::Error::Timeout(_) => format!("the server was silent for too long ({error})"),
        ureq::Error::Io(error) => known(error.to_string()),
        other => known(other.to_string()),
    }
}

/// Says what to do about an authority that this machine does not know.
fn known(error: String) -> String {
    match error.contains("UnknownIssuer") {
        true => format!(
            "{error}; if its authority is your own, start the agent with SSL_CERT_FILE=its.pem \
             (`kiln shutdown` ends the one that runs)"
        ),
        false => error,
    }
}

/// At most so many bytes.
struct Bounded<'a, R> {
    from: R,
    left: u64,
    over: bool,
    cancel: &'a AtomicBool,
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.load(Ordering::Acquire) {
            return Err(io::Error::other("interrupted"));
        }
        let count = self.from.read(buffer)?;
        match self.left.checked_sub(count as u64) {
            Some(left) => self.left = left,
            None => {
                self.over = true;
                return Err(io::Error::other("too large"));
            }
        }
        Ok(count)
    }
}

fn agent(proxy: Option<Proxy>) -> Agent {
    let tls = TlsConfig::builder().root_certs(RootCerts::new_with_certs(roots()));
    builder(with_provider(tls), proxy).max_redirects(REDIRECTS).build().new_agent()
}

/// By the one implementation of TLS that is here.
pub(crate) fn with_provider(tls: ureq::tls::TlsConfigBuilder) -> TlsConfig {
    tls.provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build()
}

/// What every client here has in common.
pub(crate) fn builder(tls: TlsConfig, proxy: Option<Proxy>) -> ConfigBuilder<AgentScope> {
    Agent::config_builder()
        .tls_config(tls)
        .proxy(proxy)
        .http_status_as_error(false)
        .timeout_connect(Some(CONNECT))
        .timeout_per_read(Some(STALL))
        .timeout_per_write(Some(STALL))
        .user_agent(concat!("kiln/", env!("CARGO_PKG_VERSION")))
        .accept("*/*")
        .accept_encoding("identity")
}

/// Whether an entry of `NO_PROXY` means a host.
fn no_proxy(entry: &str, host: &str, address: Option<IpAddr>, port: u16) -> bool {
    let entry = entry.to_ascii_lowercase();
    if entry == "*" {
        return true;
    }
    if let (Some(address), Some((network, bits))) = (address, entry.split_once('/')) {
        let (Ok(network), Ok(bits)) = (network.parse::<IpAddr>(), bits.parse::<u32>()) else {
            return false;
        };
        return in_network(address, network, bits);
    }
    if let (Some(address), Ok(named)) = (address, entry.parse::<IpAddr>()) {
        return address == named;
    }
    let (name, named_port) = match entry.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => (name, port.parse().ok()),
        _ => (entry.as_str(), None),
    };
    if name.is_empty() || named_port.is_some_and(|named: u16| named != port) {
        return false;
    }
    let name = name.strip_prefix('*').unwrap_or(name);
    match name.strip_prefix('.') {
        Some(_) => host.ends_with(name),
        None => host.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
    }
}

pub(crate) fn in_network(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    let number = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => (u128::from(ip.to_bits()), 32),
        IpAddr::V6(ip) => (ip.to_bits(), 128),
    };
    let ((address, width), (network, other)) = (number(address), number(network));
    let differ = address ^ network;
    width == other && bits <= width && (bits == 0 || differ >> (width - bits) == 0)
}

/// Who is trusted on this machine: the files that `SSL_CERT_FILE` and `SSL_CERT_DIR` name, else the
/// system's. Read once.
pub(crate) fn roots() -> &'static [Certificate<'static>] {
    static ROOTS: OnceLock<Vec<Certificate<'static>>> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let found = rustls_native_certs::load_native_certs();
        found.certs.iter().map(|cert| Certificate::from_der(cert).to_owned()).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_proxy_is_read_as_by_go() {
        for (entry, host, port, bypassed) in [
            ("example.org", "example.org", 443, true),
            ("example.org", "a.example.org", 443, true),
            ("example.org", "anexample.org", 443, false),
            (".example.org", "a.example.org", 443, true),
            (".example.org", "example.org", 443, false),
            ("*.example.org", "a.example.org", 443, true),
            ("example.org:5000", "example.org", 5000, true),
            ("example.org:5000", "example.org", 443, false),
            ("10.0.0.0/8", "10.200.3.4", 443, true),
            ("10.0.0.0/8", "11.0.0.1", 443, false),
            ("10.0.0.7", "10.0.0.7", 443, true),
            ("fd00::/8", "fd12::1", 443, true),
            ("0.0.0.0/0", "8.8.8.8", 443, true),
            ("10.0.0.0/99", "10.0.0.1", 443, false),
            ("a, EXAMPLE.org ,b", "example.ORG", 443, true),
            ("*", "anything", 1, true),
            ("", "localhost", 1, true),
            ("", "127.0.0.1", 1, true),
            ("", "example.org", 1, false),
        ] {
            let env = BTreeMap::from([("NO_PROXY".to_owned(), entry.to_owned())]);
            assert_eq!(
                Proxies::of_env(&env).bypassed(host, port),
                bypassed,
                "{entry} {host}:{port}"
            );
        }
    }
}
