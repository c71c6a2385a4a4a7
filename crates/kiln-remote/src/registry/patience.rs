//! How long the client waits for a registry and how often it tries, and who is told meanwhile.

use std::time::Duration;

/// The deadlines of a client, and how often it tries again. Tests set shorter ones.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// The longest time that a name may take to resolve, and a connection to be made, TLS included.
    pub connect: Duration,
    /// The longest time that a server may send nothing, and take nothing.
    pub stall: Duration,
    /// The longest time from the request of a document to its last byte. Of a blob, the longest
    /// time to the beginning of the answer; the words of a refusal may take as long again.
    pub document: Duration,
    /// How often a request is sent in all, if it failed in a way that may pass.
    pub tries: u32,
    /// The pause before the second request; each further one is twice as long.
    pub pause: Duration,
    /// The longest pause that a server may ask for. If it asks for more, the client gives up.
    pub longest_pause: Duration,
    /// A blob of which fewer bytes than this come within [`Patience::window`] is given up.
    pub least: u64,
    /// The time in which [`Patience::least`] bytes have to come.
    pub window: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            stall: Duration::from_secs(60),
            document: Duration::from_secs(120),
            tries: 5,
            pause: Duration::from_millis(250),
            longest_pause: Duration::from_secs(60),
            least: 16 << 10,
            window: Duration::from_secs(60),
        }
    }
}

/// Whoever shows a person why it takes so long: that a connection broke, that a registry asks to wait.
pub trait Watch: Sync {
    /// Shows one sentence.
    fn told(&self, text: &str);
}

impl<F: Fn(&str) + Sync> Watch for F {
    fn told(&self, text: &str) {
        self(text);
    }
}
