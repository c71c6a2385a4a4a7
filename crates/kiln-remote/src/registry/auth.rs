//! Who asks: what a registry has to be shown, and the tokens that were had for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;

use super::address::Address;
use super::challenge::{Bearer, Challenge};
use super::credentials::{Credential, Keychain};
use super::error::Error;
use super::registries::Place;
use super::wire::{Answer, Ask, Wire};

/// Largest answer of a token server, in bytes.
const TOKEN_BYTES: u64 = 1 << 20;
/// How long a token holds that does not say so, by the specification.
const HOLDS: u64 = 60;
/// A token that is over within this time is not used again.
const MARGIN: Duration = Duration::from_secs(10);

/// What is known about each registry and repository.
#[derive(Default)]
pub(super) struct Auth {
    slots: Mutex<BTreeMap<(String, String), SharedSlot>>,
    credentials: Mutex<BTreeMap<(String, String), Option<Credential>>>,
}

/// Held while a token is fetched, so that of all who need one only the first fetches it.
type SharedSlot = Arc<Mutex<Slot>>;

/// How one repository is asked.
#[derive(Default)]
struct Slot {
    way: Option<Way>,
}

#[derive(Clone)]
enum Way {
    Basic(String),
    Token { header: String, over: Instant, bearer: Bearer },
}

impl Way {
    fn header(&self) -> &str {
        match self {
            Self::Basic(header) | Self::Token { header, .. } => header,
        }
    }
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    expires_in: Option<u64>,
}

/// One user's requests at one place.
pub(super) struct Asker<'q, 'a> {
    pub(super) wire: &'q Wire<'a>,
    pub(super) auth: &'q Auth,
    pub(super) keychain: &'q dyn Keychain,
    /// For messages.
    pub(super) name: &'q str,
    pub(super) place: &'q Place,
    /// What a token has to allow.
    pub(super) scope: String,
}

impl Asker<'_, '_> {
    /// What the registry is to be shown now; nothing while it has not asked. A token that is nearly
    /// over is replaced first.
    pub(super) fn ready(&self) -> Result<Option<String>, Error> {
        let slot = self.slot();
        let mut slot = locked(&slot);
        let way = match &slot.way {
            Some(Way::Token { over, bearer, .. }) if *over < Instant::now() + MARGIN => {
                Some(self.fetch(&bearer.clone())?)
            }
            _ => return Ok(slot.way.as_ref().map(|way| way.header().to_owned())),
        };
        slot.way = way;
        Ok(slot.way.as_ref().map(|way| way.header().to_owned()))
    }

    /// What the registry is to be shown after it has answered 401 to `shown`; `None` if there is
    /// nothing else to show.
    pub(super) fn after(
        &self,
        answer: &Answer,
        shown: Option<&str>,
    ) -> Result<Option<String>, Error> {
        let slot = self.slot();
        // Whoever comes second waits here, and finds the token that the first has got.
        let mut slot = locked(&slot);
        if let Some(way) = &slot.way
            && Some(way.header()) != shown
        {
            return Ok(Some(way.header().to_owned()));
        }
        let challenges: Vec<Challenge> =
            answer.headers("www-authenticate").flat_map(Challenge::read).take(16).collect();
        let bearer = challenges.iter().find_map(|challenge| match challenge {
            Challenge::Bearer(bearer) => Some(bearer),
            Challenge::Basic => None,
        });
        let way = match bearer {
            Some(bearer) => Some(self.fetch(bearer)?),
            None if challenges.contains(&Challenge::Basic) => self.basic()?,
            None => None,
        };
        let header = way.as_ref().map(|way| way.header().to_owned());
        slot.way = way;
        Ok(header.filter(|header| Some(header.as_str()) != shown))
    }

    fn slot(&self) -> SharedSlot {
        let key = (self.place.host.clone(), self.scope.clone());
        Arc::clone(locked(&self.auth.slots).entry(key).or_default())
    }

    /// Whether a name and a password, or what stands for them, were shown.
    pub(super) fn is_known(&self) -> bool {
        let key = (self.place.registry.clone(), self.place.repository.clone());
        matches!(locked(&self.auth.credentials).get(&key), Some(Some(_)))
    }

    fn credential(&self) -> Result<Option<Credential>, Error> {
        let key = (self.place.registry.clone(), self.place.repository.clone());
        if let Some(known) = locked(&self.auth.credentials).get(&key) {
            return Ok(known.clone());
        }
        let found = self.keychain.credential(&key.0, &key.1)?;
        locked(&self.auth.credentials).insert(key, found.clone());
        Ok(found)
    }

    fn basic(&self) -> Result<Option<Way>, Error> {
        match self.credential()? {
            Some(Credential::Password { username, password }) => {
                Ok(Some(Way::Basic(basic(&username, &password))))
            }
            Some(Credential::Identity(_)) => Err(Error::Credentials {
                registry: self.place.registry.clone(),
                what: "they are an identity token, and the registry wants a name and a password"
                    .into(),
            }),
            None => Ok(None),
        }
    }

    /// Fetches a token.
    fn fetch(&self, bearer: &Bearer) -> Result<Way, Error> {
        let odd = |what: String| Error::Answer {
            name: self.name.to_owned(),
            url: self.place.host.clone(),
            what,
        };
        let Some(mut address) = Address::parse(&bearer.realm) else {
            let realm = super::error::clean(&bearer.realm, 100);
            return Err(odd(format!("tokens are to be had at `{realm}`, which is no address")));
        };
        if !address.secure && !self.place.insecure {
            let what =
                format!("tokens are to be had at {}, which is not encrypted", address.shown());
            return Err(odd(what));
        }
        let mut scopes = vec![self.scope.as_str()];
        scopes.retain(|scope| !scope.is_empty());
        if !bearer.scope.is_empty() && bearer.scope != self.scope {
            scopes.push(&bearer.scope);
        }
        let (authorization, form) = match self.credential()? {
            Some(Credential::Identity(token)) => (None, Some(self.form(bearer, &scopes, &token))),
            Some(Credential::Password { username, password }) => {
                (Some((basic(&username, &password), username)), None)
            }
            None => (None, None),
        };
        if form.is_none() {
            let account = authorization.as_ref().map(|(_, username)| username.as_str());
            let mut query = vec![("service", bearer.service.as_str())];
            query.extend(scopes.iter().map(|scope| ("scope", *scope)));
            query.extend(account.map(|account| ("account", account)));
            let joint = if address.target.contains('?') { '&' } else { '?' };
            address.target = format!("{}{joint}{}", address.target, encoded(&query));
        }
        let ask = Ask {
            name: self.name,
            address,
            headers: vec![("accept", "application/json".to_owned())],
            authorization: authorization.map(|(header, _)| header),
            form,
            registry: &self.place.registry,
            insecure: self.place.insecure,
            probing: false,
            document: true,
        };
        let answer = self.wire.ask(&ask)?;
        if answer.status() != 200 {
            return Err(self.refused(&ask, answer));
        }
        let shown = answer.address.shown();
        let begun = Instant::now();
        let rubbish = |what: &str| Error::Answer {
            name: self.name.to_owned(),
            url: shown.clone(),
            what: format!("the answer is no token: {what}"),
        };
        let body = self.wire.body(&ask, answer, TOKEN_BYTES)?;
        let body = body.ok_or_else(|| rubbish("it is too long"))?;
        let token: Token =
            serde_json::from_slice(&body).map_err(|_| rubbish("it cannot be read"))?;
        let text = if token.token.is_empty() { token.access_token } else { token.token };
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(rubbish("there is none in it"));
        }
        // A day is enough for what pulls an image, and no clock runs over.
        let holds = token.expires_in.unwrap_or(HOLDS).clamp(HOLDS.min(1), 86_400);
        let over = begun + Duration::from_secs(holds);
        Ok(Way::Token { header: format!("Bearer {text}"), over, bearer: bearer.clone() })
    }

    /// For an identity token, by OAuth2.
    fn form(&self, bearer: &Bearer, scopes: &[&str], token: &str) -> String {
        encoded(&[
            ("grant_type", "refresh_token"),
            ("refresh_token", token),
            ("service", &bearer.service),
            ("client_id", "kiln"),
            ("scope", &scopes.join(" ")),
        ])
    }

    /// The token server is not the registry, but its no is the registry's.
    fn refused(&self, ask: &Ask<'_>, answer: Answer) -> Error {
        let given = ask.authorization.is_some() || ask.form.is_some();
        let status = answer.status();
        let mut error = self.wire.refusal(ask, answer);
        if let Error::Denied { with_credentials, said, .. } = &mut error {
            *with_credentials = given;
            if said.is_empty() {
                *said = format!(": its token server answered {status}");
            }
        }
        error
    }
}

fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{username}:{password}")))
}

/// A query or a form.
fn encoded(fields: &[(&str, &str)]) -> String {
    let encode = |text: &str| {
        let mut out = String::with_capacity(text.len());
        for byte in text.bytes() {
            match byte {
                b'A'..=b'Z'
                | b'a'..=b'z'
                | b'0'..=b'9'
                | b'-'
                | b'_'
                | b'.'
                | b'~'
                | b':'
                | b'/' => {
                    out.push(char::from(byte));
                }
                other => out.push_str(&format!("%{other:02X}")),
            }
        }
        out
    };
    let pairs: Vec<String> =
        fields.iter().map(|(name, value)| format!("{name}={}", encode(value))).collect();
    pairs.join("&")
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_encoded() {
        let fields = [("scope", "repository:a/b:pull"), ("password", "a b&c=d%ü")];
        assert_eq!(encoded(&fields), "scope=repository:a/b:pull&password=a%20b%26c%3Dd%25%C3%BC");
    }
}
