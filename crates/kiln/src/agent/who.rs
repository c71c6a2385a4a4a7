//! Who gave a command: as the kernel says, and as the client claims.

use std::cell::RefCell;
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

/// What the kernel gives to a process that nobody logged in for.
const NOBODY: u32 = u32::MAX;

/// The longest name that a client may claim.
const NAME: usize = 64;

thread_local! {
    static CURRENT: RefCell<Option<Who>> = const { RefCell::new(None) };
}

/// Who gave the command that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Who {
    /// User of the process at the other end of the socket.
    uid: u32,
    /// Its group.
    gid: u32,
    /// The user that its session was logged in as, which `sudo` and `su` do not change.
    login: Option<u32>,
    /// Who `sudo` ran it for, if what the client says is so.
    claimed: Option<String>,
}

impl Who {
    /// Asks the kernel about the other end of `stream`.
    pub(crate) fn at(stream: &UnixStream, claimed: Option<&String>) -> Option<Self> {
        let peer = rustix::net::sockopt::socket_peercred(stream).ok()?;
        let login = std::fs::read_to_string(format!("/proc/{}/loginuid", peer.pid)).ok();
        let login = login.and_then(|text| text.trim().parse().ok()).filter(|uid| *uid != NOBODY);
        let claimed = claimed.map(|name| name.chars().take(NAME).collect());
        Some(Self { uid: peer.uid.as_raw(), gid: peer.gid.as_raw(), login, claimed })
    }

    fn entry(&self) -> Value {
        json!({ "uid": self.uid, "login": self.login, "sudo_user": self.claimed })
    }
}

/// To whom belongs what is made for the command under way: for whom `sudo` ran it, if what the client
/// says in `env` is so, else the user of the client.
pub(crate) fn owner(env: &std::collections::BTreeMap<String, String>) -> (u32, u32) {
    let uid = current().map_or(0, |who| who.uid);
    let claimed = |name: &str| env.get(name)?.parse::<u32>().ok().filter(|id| *id != NOBODY);
    match (uid, claimed("SUDO_UID")) {
        (0, Some(sudo)) => (sudo, claimed("SUDO_GID").unwrap_or(sudo)),
        _ => (uid, current().map_or(0, |who| who.gid)),
    }
}

/// While it lives, what this thread records is somebody's.
#[derive(Debug)]
pub(crate) struct Acting;

impl Drop for Acting {
    fn drop(&mut self) {
        CURRENT.with_borrow_mut(|current| *current = None);
    }
}

/// From now on this thread acts for `who`.
#[must_use]
pub(crate) fn act_for(who: Option<Who>) -> Acting {
    CURRENT.with_borrow_mut(|current| *current = who);
    Acting
}

/// For whom this thread acts; `None` for what the agent does by itself. A thread that is started to
/// do a part of a command has to be told.
pub(crate) fn current() -> Option<Who> {
    CURRENT.with_borrow(Clone::clone)
}

/// Adds to an entry who gave the command that it is about.
pub(crate) fn sign(data: &mut Value) {
    if let (Some(who), Value::Object(members)) = (current(), data) {
        members.insert("by".to_owned(), who.entry());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_signed_while_somebody_acts_and_only_in_that_thread() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let who = Who::at(&ours, Some(&"x".repeat(1000))).unwrap();
        assert_eq!(who.uid, rustix::process::getuid().as_raw());
        let mut data = json!({});
        {
            let _acting = act_for(Some(who));
            std::thread::spawn(|| assert_eq!(current(), None)).join().unwrap();
            sign(&mut data);
        }
        assert_eq!(data["by"]["sudo_user"].as_str().map(str::len), Some(NAME));
        let mut data = json!({});
        sign(&mut data);
        assert_eq!(data, json!({}));
    }
}
