//! How long and how often; and who hears of it.

use std::time::Duration;

/// How patient the client is. Tests are less so.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// How long a connection may take to come about, TLS and all.
    pub connect: Duration,
    /// How long a server may say nothing.
    pub stall: Duration,
    /// How long a document may take, from the first byte asked to the last.
    pub document: Duration,
    /// How often is tried what may go better the next time.
    pub tries: u32,
    /// The first pause; each is twice as long as the one before.
    pub pause: Duration,
    /// The longest pause that a server may ask for.
    pub longest_pause: Duration,
    /// The fewest bytes of a blob that have to come within [`Patience::window`].
    pub least: u64,
    /// See [`Patience::least`].
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

/// Who hears what a person may want to know while it takes long.
pub trait Watch: Sync {
    /// One sentence.
    fn told(&self, text: &str);
}

impl<F: Fn(&str) + Sync> Watch for F {
    fn told(&self, text: &str) {
        self(text);
    }
}
