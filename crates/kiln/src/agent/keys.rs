//! What the agent asks of the user's own process: what the host's files say about registries, and
//! names and passwords for them.
//!
//! The files are those of whoever gave the command (`~/.docker/config.json`, a helper's safe), and
//! the agent is root. So it opens none of them, follows none of their links and runs none of their
//! programs: the client does, as the user and in the user's environment, and only for what is
//! needed. What the agent does by itself has no client, and logs in nowhere.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kiln_remote::registry::{Credential, Error, Keychain, Registries, Watch};

use super::session::Session;
use crate::protocol::{Question, Reply};

/// How long a client may take: a credential helper may have to ask its user.
const PATIENCE: Duration = Duration::from_secs(150);

impl Session {
    /// What the host's files say about registries, for whoever gave the command.
    ///
    /// # Errors
    /// What the client could not read.
    pub(crate) fn registries(&self) -> Result<Arc<Registries>, Error> {
        match self.question(Question::Registries, PATIENCE) {
            Some(Reply::Registries(registries)) => Ok(Arc::new(registries)),
            Some(reply) => Err(failed(reply)),
            None if self.is_own() => Registries::of_host(&BTreeMap::new()).map(Arc::new),
            None => Err(silent(self)),
        }
    }
}

impl Keychain for Session {
    fn credential(&self, registry: &str, repository: &str) -> Result<Option<Credential>, Error> {
        let (registry, repository) = (registry.to_owned(), repository.to_owned());
        match self.question(Question::Credential { registry, repository }, PATIENCE) {
            Some(Reply::Credential(credential)) => Ok(credential),
            Some(reply) => Err(failed(reply)),
            None if self.is_own() => Ok(None),
            None => Err(silent(self)),
        }
    }
}

impl Watch for Session {
    fn told(&self, text: &str) {
        self.notice(text);
    }
}

fn failed(reply: Reply) -> Error {
    match reply {
        Reply::Failed { what, usage } => Error::Told { what, usage },
        _ => Error::Host("the client answered something else than it was asked".into()),
    }
}

/// A client that has gone wants nothing any more.
fn silent(session: &Session) -> Error {
    match session.check() {
        Err(_) => Error::Cancelled,
        Ok(()) => Error::Host(format!(
            "the client did not say within {} s which credentials it has",
            PATIENCE.as_secs()
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;

    use super::*;
    use crate::protocol::{Event, Order};

    /// A session with a client that answers each question with the lines that `answer` gives.
    fn asked(answer: impl Fn(u64, Question) -> Vec<String> + Send + 'static) -> Session {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let session = Session::new(&ours, BTreeMap::new(), PathBuf::from("/")).unwrap();
        std::thread::spawn(move || {
            let mut writer = theirs.try_clone().unwrap();
            for line in BufReader::new(theirs).lines() {
                let Ok(event) = serde_json::from_str(&line.unwrap()) else { return };
                let Event::Ask { number, question } = event else { continue };
                for line in answer(number, question) {
                    // A session that has heard enough hangs up.
                    let _ = writeln!(writer, "{line}");
                }
            }
        });
        session
    }

    fn reply(number: u64, reply: Reply) -> String {
        serde_json::to_string(&Order::Reply { number, reply: Box::new(reply) }).unwrap()
    }

    fn password(username: &str) -> Credential {
        Credential::Password { username: username.to_owned(), password: "pw".to_owned() }
    }

    #[test]
    fn the_answer_to_the_very_question_counts() {
        let session = asked(|number, question| {
            let Question::Credential { registry, repository } = question else {
                let what = "/etc/x.conf: no".to_owned();
                return vec![reply(number, Reply::Failed { what, usage: true })];
            };
            let wrong = reply(number + 1, Reply::Credential(None));
            let noise = "x".repeat(200_000);
            let right = password(&format!("{registry}/{repository}"));
            vec!["rubbish".to_owned(), wrong, noise, reply(number, Reply::Credential(Some(right)))]
        });
        // Several threads may ask at once.
        std::thread::scope(|scope| {
            for repository in ["a", "b", "c"] {
                let session = &session;
                scope.spawn(move || {
                    let found = session.credential("r.example", repository).unwrap();
                    assert_eq!(found, Some(password(&format!("r.example/{repository}"))));
                });
            }
        });
        let error = session.registries().unwrap_err();
        assert!(error.is_usage() && error.to_string() == "/etc/x.conf: no", "{error}");
    }

    #[test]
    fn a_client_that_goes_is_not_waited_for() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let session = Session::new(&ours, BTreeMap::new(), PathBuf::from("/")).unwrap();
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| session.credential("r.example", "a"));
            let mut line = String::new();
            let mut reader = BufReader::new(theirs.try_clone().unwrap());
            reader.read_line(&mut line).unwrap();
            assert!(line.contains("r.example"), "{line}");
            drop(reader);
            theirs.shutdown(std::net::Shutdown::Both).unwrap();
            assert!(matches!(asking.join().unwrap(), Err(Error::Cancelled)));
        });
    }

    #[test]
    fn what_the_agent_does_by_itself_logs_in_nowhere() {
        assert_eq!(Session::own().credential("r.example", "a").unwrap(), None);
    }
}
