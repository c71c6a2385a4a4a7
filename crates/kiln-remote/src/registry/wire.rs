//! One request and its answer: over which connection, by how many redirects, after how many tries.
//!
//! Each exchange runs in a thread of its own, and whoever waits for it looks at the user's wish to
//! stop: a name that does not resolve or a server that says nothing holds up nobody.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant, SystemTime};

use ureq::http::{Request, Response};
use ureq::{Agent, Body};

use super::address::Address;
use super::error::{Error, clean};
use super::patience::{Patience, Watch};
use super::registries::Registries;
use crate::http;

/// How often it is looked whether the user wants to stop.
pub(super) const LOOK: Duration = Duration::from_millis(50);
/// Redirects that are followed, as by Go's client.
const REDIRECTS: usize = 10;
/// Most of an error's text that is read.
const ERROR_BYTES: u64 = 8 << 10;

/// What is asked.
#[derive(Debug, Clone)]
pub(super) struct Ask<'q> {
    /// For messages: the image.
    pub(super) name: &'q str,
    pub(super) address: Address,
    /// Without the one for credentials.
    pub(super) headers: Vec<(&'static str, String)>,
    /// Sent to the host of `address` only.
    pub(super) authorization: Option<String>,
    /// A form to be posted.
    pub(super) form: Option<String>,
    /// The registry whose certificates count, `host:port`.
    pub(super) registry: &'q str,
    /// Nothing of the registry's has to be verified, nor encrypted.
    pub(super) insecure: bool,
    /// Whether it is open if the server speaks TLS at all.
    pub(super) probing: bool,
    /// Whether the whole answer has to come within [`Patience::document`].
    pub(super) document: bool,
}

/// What was answered, at which address.
pub(super) struct Answer {
    pub(super) response: Response<Body>,
    pub(super) address: Address,
}

impl Answer {
    pub(super) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name).and_then(|value| value.to_str().ok())
    }

    pub(super) fn headers(&self, name: &str) -> impl Iterator<Item = &str> {
        self.response.headers().get_all(name).iter().filter_map(|value| value.to_str().ok())
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// There was no conversation: another scheme may do.
    Connect(Error),
    /// All else.
    Other(Error),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Connect(error) | Failure::Other(error) => error,
        }
    }
}

/// All connections of one client.
pub(super) struct Wire<'a> {
    pub(super) registries: Arc<Registries>,
    pub(super) cancel: &'a AtomicBool,
    pub(super) patience: Patience,
    pub(super) watch: &'a dyn Watch,
    agents: Mutex<BTreeMap<Channel, Agent>>,
}

/// Requests with equal ones may share connections.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Channel {
    /// Whose certificates count.
    registry: String,
    /// Whether client certificates of the registry may be shown.
    own: bool,
    insecure: bool,
    proxy: Option<String>,
}

impl<'a> Wire<'a> {
    pub(super) fn new(
        registries: Arc<Registries>,
        patience: Patience,
        cancel: &'a AtomicBool,
        watch: &'a dyn Watch,
    ) -> Self {
        Self { registries, cancel, patience, watch, agents: Mutex::default() }
    }

    /// Asks, follows redirects, and tries again what may go better the next time. Every answer
    /// below 500 is one, except the one that asks to come back later.
    pub(super) fn ask(&self, ask: &Ask<'_>) -> Result<Answer, Failure> {
        let mut pause = self.patience.pause;
        let mut tries = 0;
        loop {
            tries += 1;
            let last = tries >= self.patience.tries;
            let (wait, error) = match self.follow(ask) {
                Ok(answer) if !is_passing(answer.status()) => return Ok(answer),
                Ok(answer) => {
                    let asked = answer.header("retry-after").and_then(retry_after);
                    (asked, Failure::Other(self.refusal(ask, answer)))
                }
                Err(Trouble::Final(failure)) => return Err(failure),
                Err(Trouble::Passing(error)) => (None, Failure::Other(error)),
            };
            let wait = wait.unwrap_or(pause);
            if last || wait > self.patience.longest_pause {
                return Err(error);
            }
            self.sleep(wait)?;
            pause *= 2;
        }
    }

    /// Waits, unless the user wants to stop.
    pub(super) fn sleep(&self, pause: Duration) -> Result<(), Failure> {
        let until = Instant::now() + pause;
        if pause > Duration::from_secs(2) {
            let seconds = pause.as_secs();
            self.watch.told(&format!("the registry asks to be left alone for {seconds} s"));
        }
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            self.check().map_err(Failure::Other)?;
            std::thread::sleep(left.min(LOOK));
        }
        Ok(())
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        if !self.cancel.load(Ordering::Acquire) {
            return Ok(());
        }
        self.hang_up();
        Err(Error::Cancelled)
    }

    /// Ends every connection, so that no thread of this client waits for one any longer.
    fn hang_up(&self) {
        let agents =
            std::mem::take(&mut *self.agents.lock().unwrap_or_else(PoisonError::into_inner));
        agents.into_values().for_each(Agent::shutdown);
    }

    fn follow(&self, ask: &Ask<'_>) -> Result<Answer, Trouble> {
        let mut address = ask.address.clone();
        for _ in 0..=REDIRECTS {
            let answer = self.exchange(ask, &address)?;
            if !matches!(answer.status(), 301 | 302 | 303 | 307 | 308) {
                return Ok(answer);
            }
            let next = answer.header("location").and_then(|location| address.join(location));
            let Some(next) = next else {
                let what = "it leads elsewhere, and does not say where";
                return Err(answered(ask, &address, what));
            };
            if address.secure && !next.secure && !ask.insecure {
                let what = format!("it leads to {}, which is not encrypted", next.shown());
                return Err(answered(ask, &address, what));
            }
            address = next;
        }
        Err(answered(ask, &ask.address, format!("it leads on and on, more than {REDIRECTS} times")))
    }

    /// One request, one answer.
    fn exchange(&self, ask: &Ask<'_>, address: &Address) -> Result<Answer, Trouble> {
        let agent = self.agent(ask, address)?;
        let form = ask.form.as_deref();
        let method = if form.is_some() { "POST" } else { "GET" };
        let mut request = Request::builder().method(method).uri(address.to_string());
        for (name, value) in &ask.headers {
            request = request.header(*name, value);
        }
        if form.is_some() {
            request = request.header("content-type", "application/x-www-form-urlencoded");
        }
        // Whom a redirect leads to is none of those whom the user trusts with a password.
        if let Some(authorization) = &ask.authorization
            && address.same_origin(&ask.address)
        {
            request = request.header("authorization", authorization);
        }
        let whole = ask.document.then_some(self.patience.document);
        let body = form.map(|form| form.as_bytes().to_vec());
        let result = self.apart(&agent, move |agent| match body {
            Some(body) => agent
                .run(agent.configure_request(request.body(body)?).timeout_global(whole).build()),
            None => {
                agent.run(agent.configure_request(request.body(())?).timeout_global(whole).build())
            }
        })?;
        match result {
            Ok(response) => Ok(Answer { response, address: address.clone() }),
            Err(error) => Err(unreachable(ask, address, &error)),
        }
    }

    /// Does something in a thread of its own, until the user wants to stop.
    pub(super) fn apart<T: Send + 'static>(
        &self,
        agent: &Agent,
        work: impl FnOnce(&Agent) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let done = self.apart_until(agent, None, work)?;
        done.ok_or_else(|| Error::Host("a thread that has no deadline missed it".into()))
    }

    /// The same; `None` if it is not done by then. Its thread ends by itself later, for what else
    /// the agent has under way is not to be cut.
    fn apart_until<T: Send + 'static>(
        &self,
        agent: &Agent,
        until: Option<Instant>,
        work: impl FnOnce(&Agent) -> T + Send + 'static,
    ) -> Result<Option<T>, Error> {
        let (give, take) = mpsc::sync_channel(1);
        let own = agent.clone();
        let thread = std::thread::Builder::new().name("registry".into());
        let begun = thread.spawn(move || drop(give.send(work(&own))));
        begun.map_err(|error| Error::Host(format!("no thread can be started: {error}")))?;
        loop {
            match take.recv_timeout(LOOK) {
                Ok(done) => return Ok(Some(done)),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    if until.is_some_and(|until| Instant::now() >= until) {
                        return Ok(None);
                    }
                    if let Err(error) = self.check() {
                        // Nobody waits for the thread.
                        agent.clone().shutdown();
                        return Err(error);
                    }
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(Error::Cancelled),
            }
        }
    }

    fn agent(&self, ask: &Ask<'_>, address: &Address) -> Result<Agent, Trouble> {
        let proxies = &self.registries.proxies;
        let url = address.to_string();
        let proxy = match proxies.bypassed(address.host(), address.port()) {
            true => None,
            false => proxies.for_url(&url).map_err(|error| {
                Trouble::Final(Failure::Other(Error::Configuration {
                    path: "the environment".into(),
                    what: error.to_string(),
                }))
            })?,
        };
        let own = address.authority == ask.address.authority;
        let shown = proxy.as_ref().map(|proxy| format!("{:?} {}", proxy.protocol(), proxy.uri()));
        let channel = Channel {
            registry: ask.registry.to_owned(),
            own,
            insecure: ask.insecure,
            proxy: shown,
        };
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = agents.get(&channel) {
            return Ok(agent.clone());
        }
        let tls = self.registries.tls(ask.registry, own, ask.insecure);
        let tls = tls.map_err(|error| Trouble::Final(Failure::Other(error)))?;
        let agent = http::builder(tls, proxy)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(self.patience.connect))
            .timeout_connect(Some(self.patience.connect))
            .timeout_recv_response(Some(self.patience.document))
            .timeout_per_read(Some(self.patience.stall))
            .timeout_per_write(Some(self.patience.stall))
            .max_idle_connections_per_host(8)
            .build()
            .new_agent();
        agents.insert(channel, agent.clone());
        Ok(agent)
    }

    /// The agent by which an answer came: to go on with its body.
    pub(super) fn agent_of(&self, ask: &Ask<'_>, address: &Address) -> Result<Agent, Error> {
        self.agent(ask, address).map_err(|trouble| match trouble {
            Trouble::Final(failure) => failure.into(),
            Trouble::Passing(error) => error,
        })
    }

    /// The whole body of an answer, at most `limit` bytes; `None` if it has more.
    pub(super) fn body(
        &self,
        ask: &Ask<'_>,
        answer: Answer,
        limit: u64,
    ) -> Result<Option<Vec<u8>>, Error> {
        let Answer { response, address } = answer;
        let agent = self.agent_of(ask, &address)?;
        let read = self.apart(&agent, move |_| {
            let mut bytes = Vec::new();
            let body = response.into_body();
            let reader = body.into_with_config().limit(u64::MAX).reader();
            reader.take(limit + 1).read_to_end(&mut bytes).map(|_| bytes)
        })?;
        match read {
            Ok(bytes) if bytes.len() as u64 > limit => Ok(None),
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) => Err(Error::Broken {
                name: ask.name.to_owned(),
                url: address.shown(),
                what: clean(&error.to_string(), 200),
            }),
        }
    }

    /// The first words of a refusal: what has come of them within [`Patience::document`]. That of a
    /// blob has no deadline of its own, and a server may let each byte wait.
    fn words(&self, ask: &Ask<'_>, answer: Answer) -> Result<Vec<u8>, Error> {
        let Answer { response, address } = answer;
        let agent = self.agent_of(ask, &address)?;
        let until = Instant::now() + self.patience.document;
        let come = Arc::new(Mutex::new(Vec::new()));
        let theirs = Arc::clone(&come);
        let read = move |_: &Agent| {
            let body = response.into_body();
            let mut reader = body.into_with_config().limit(u64::MAX).reader().take(ERROR_BYTES);
            let mut piece = [0; 1024];
            while Instant::now() < until
                && let Ok(read) = reader.read(&mut piece)
                && read > 0
            {
                theirs
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend_from_slice(&piece[..read]);
            }
        };
        self.apart_until(&agent, Some(until), read)?;
        let words = std::mem::take(&mut *come.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(words)
    }

    /// What an answer without success means.
    pub(super) fn refusal(&self, ask: &Ask<'_>, answer: Answer) -> Error {
        let (status, url) = (answer.status(), answer.address.shown());
        let asked = answer.header("retry-after").and_then(retry_after);
        // What another server than the registry says, to which it led, is shown to nobody: it may
        // be one that only this machine can reach.
        let own = answer.address.same_origin(&ask.address);
        let text = match own {
            true => self.words(ask, answer),
            false => Ok(Vec::new()),
        };
        let text = match text {
            Err(Error::Cancelled) => return Error::Cancelled,
            text => text.unwrap_or_default(),
        };
        let mut said = own_words(&text);
        if !said.is_empty() {
            said.insert_str(0, ": ");
        }
        if let Some(asked) = asked.filter(|asked| *asked > self.patience.longest_pause) {
            said.push_str(&format!(" (it asks to wait {} s)", asked.as_secs()));
        }
        let (name, registry) = (ask.name.to_owned(), ask.registry.to_owned());
        match status {
            401 | 403 => Error::Denied {
                name,
                registry,
                said,
                with_credentials: ask.authorization.is_some(),
            },
            404 | 410 => Error::NotFound { name, registry, said },
            429 => Error::Limited { name, registry, said },
            status => Error::Answer { name, url, what: format!("it answered {status}{said}") },
        }
    }
}

impl Drop for Wire<'_> {
    fn drop(&mut self) {
        self.hang_up();
    }
}

enum Trouble {
    /// Another try may go better.
    Passing(Error),
    Final(Failure),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Final(Failure::Other(error))
    }
}

fn answered(ask: &Ask<'_>, address: &Address, what: impl Into<String>) -> Trouble {
    let (name, url) = (ask.name.to_owned(), address.shown());
    Trouble::Final(Failure::Other(Error::Answer { name, url, what: what.into() }))
}

fn unreachable(ask: &Ask<'_>, address: &Address, error: &ureq::Error) -> Trouble {
    let what = clean(&http::words(error), 300);
    let error_here = Error::Unreachable { name: ask.name.to_owned(), url: address.shown(), what };
    let passing = match error {
        ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => false,
        ureq::Error::Timeout(_) => true,
        ureq::Error::Io(error) => matches!(
            error.kind(),
            std::io::ErrorKind::ConnectionReset
                | std::io::ErrorKind::ConnectionAborted
                | std::io::ErrorKind::BrokenPipe
                | std::io::ErrorKind::UnexpectedEof
        ),
        _ => false,
    };
    // A server without TLS may also cut off what it does not understand.
    match passing && !ask.probing {
        true => Trouble::Passing(error_here),
        false => Trouble::Final(Failure::Connect(error_here)),
    }
}

fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
}

/// `Retry-After`: seconds, or a date.
fn retry_after(text: &str) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

/// The words of an error by the distribution's specification, else the first line of a text.
fn own_words(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(serde::Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    if let Ok(Errors { errors }) = serde_json::from_slice(body)
        && let Some(One { code, message }) = errors.first()
    {
        let text = if message.is_empty() { code } else { message };
        return clean(text, 200);
    }
    let text = String::from_utf8_lossy(body);
    let line = text.lines().next().unwrap_or_default();
    // A page for people tells them nothing here.
    if line.trim_start().starts_with('<') { String::new() } else { clean(line, 200) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_as_long_as_asked() {
        assert_eq!(retry_after(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        let later = SystemTime::now() + Duration::from_secs(100);
        let found = retry_after(&httpdate::fmt_http_date(later)).unwrap();
        assert!((97..=100).contains(&found.as_secs()), "{found:?}");
        assert_eq!(retry_after("soon"), None);
    }

    #[test]
    fn the_words_of_an_error_are_found_and_tamed() {
        let body =
            br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest\u001b[2J unknown"}]}"#;
        assert_eq!(own_words(body), "manifest [2J unknown");
        assert_eq!(own_words(br#"{"errors":[{"code":"DENIED"}]}"#), "DENIED");
        assert_eq!(own_words(b"<html>no</html>"), "");
        assert_eq!(own_words(b"plain\nwords"), "plain");
        assert!(own_words(&[b'x'; 5000]).chars().count() <= 201);
    }
}
