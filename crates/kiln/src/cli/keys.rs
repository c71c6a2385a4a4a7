//! What the agent asks of the user's own process, answered here: see `agent/keys.rs`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicBool;

use kiln_remote::registry::{Error, HostKeychain, Keychain as _, Registries};

use crate::protocol::{Order, Question, Reply};

/// Ctrl-C reaches a credential helper by itself.
static NEVER: AtomicBool = AtomicBool::new(false);

/// The environment, as text.
pub(super) fn environment() -> BTreeMap<String, String> {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text).collect()
}

/// What has been read for an earlier question.
#[derive(Default)]
pub(super) struct Keys {
    registries: Option<Registries>,
    keychain: Option<HostKeychain<'static>>,
}

impl Keys {
    /// Answers one question. An agent that has gone is for the next read to notice.
    pub(super) fn answer(&mut self, number: u64, question: &Question, stream: &UnixStream) {
        let reply = self.reply(question).unwrap_or_else(|error| Reply::Failed {
            what: match error.hint() {
                Some(hint) => format!("{error} ({hint})"),
                None => error.to_string(),
            },
            usage: error.is_usage(),
        });
        let order = Order::Reply { number, reply: Box::new(reply) };
        if let Ok(mut line) = serde_json::to_vec(&order) {
            line.push(b'\n');
            let mut stream = stream;
            let _ = stream.write_all(&line);
        }
    }

    fn reply(&mut self, question: &Question) -> Result<Reply, Error> {
        Ok(match question {
            Question::Registries => Reply::Registries(self.registries()?.clone()),
            Question::Credential { registry, repository } => {
                Reply::Credential(self.keychain()?.credential(registry, repository)?)
            }
        })
    }

    fn registries(&mut self) -> Result<&Registries, Error> {
        match &mut self.registries {
            Some(known) => Ok(known),
            none => Ok(none.insert(Registries::of_host(&environment())?)),
        }
    }

    fn keychain(&mut self) -> Result<&HostKeychain<'static>, Error> {
        let helpers = self.registries()?.helpers().to_vec();
        match &mut self.keychain {
            Some(known) => Ok(known),
            none => Ok(none.insert(HostKeychain::read(&environment(), &helpers, &NEVER)?)),
        }
    }
}
