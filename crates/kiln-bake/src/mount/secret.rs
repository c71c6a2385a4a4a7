//! Secrets of a build: read when a step needs them, and left out of what it writes to its output.
//! What it writes into the image is its own affair.

use std::fs::File;
use std::io::Read as _;

use crate::error::BakeError;
use crate::key::Key;
use crate::options::{Secret, SecretSource};

/// The most that BuildKit takes.
const LONGEST: u64 = 500 << 10;

/// Shorter ones are in too many innocent words.
const SHORTEST: usize = 6;

/// A secret as one step wants it.
#[derive(Debug, Clone)]
pub struct SecretMount {
    /// Its id.
    pub id: String,
    /// What the build has of that id.
    pub secret: Option<Secret>,
    /// Absolute path of the file, if there is to be one.
    pub target: Option<String>,
    /// Name of the variable, if there is to be one.
    pub env: Option<String>,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

impl SecretMount {
    /// What it is and where it goes, never what is in it.
    pub(crate) fn key(&self, key: Key) -> Key {
        key.text("secret")
            .text(&self.id)
            .option(self.target.as_deref())
            .option(self.env.as_deref())
            .number(u64::from(self.uid) << 32 | u64::from(self.gid))
            .number(u64::from(self.mode))
    }

    /// The content; `None` if the build has no such secret.
    pub(crate) fn read(&self) -> Result<Option<Vec<u8>>, BakeError> {
        let Some(secret) = &self.secret else { return Ok(None) };
        let content = match &secret.source {
            SecretSource::Text(text) => text.clone().into_bytes(),
            SecretSource::File(path) => {
                let failed = |error| BakeError::io("cannot read the secret", path, error);
                // A pipe would be waited for, a device may never end.
                if !std::fs::metadata(path).map_err(failed)?.is_file() {
                    let what = format!("the secret `{}` is no file: {}", self.id, path.display());
                    return Err(BakeError::usage(what, "name a regular file"));
                }
                let mut content = Vec::new();
                let file = File::open(path).map_err(failed)?;
                file.take(LONGEST + 1).read_to_end(&mut content).map_err(failed)?;
                if content.len() as u64 > LONGEST {
                    let what = format!("the secret `{}` has more than {LONGEST} bytes", self.id);
                    return Err(BakeError::usage(what, "a secret is a key or a password"));
                }
                content
            }
        };
        Ok(Some(content))
    }
}

/// What of a secret must not be shown: all of it, and of several lines each long one.
pub(crate) fn worth_hiding(content: &[u8], hidden: &mut Vec<Vec<u8>>) {
    let lines = content.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    hidden.extend(lines.filter(|line| line.len() >= SHORTEST).map(<[u8]>::to_vec));
    // The longest first, for one may be a part of another.
    hidden.sort_by_key(|text| std::cmp::Reverse(text.len()));
    hidden.dedup();
}

/// Puts stars in the place of secrets in a stream of bytes.
#[derive(Debug)]
pub(crate) struct Hide {
    hidden: Vec<Vec<u8>>,
    /// What may be the beginning of a secret.
    held: Vec<u8>,
}

impl Hide {
    pub(crate) fn new(hidden: Vec<Vec<u8>>) -> Self {
        Self { hidden, held: Vec::new() }
    }

    /// Takes more of the stream; what may be shown of it goes to `output`.
    pub(crate) fn pass(&mut self, bytes: &[u8], output: &mut dyn FnMut(&[u8])) {
        if self.hidden.is_empty() {
            output(bytes);
            return;
        }
        self.held.extend_from_slice(bytes);
        let mut shown = Vec::with_capacity(self.held.len());
        let mut at = 0;
        while at < self.held.len() {
            let rest = &self.held[at..];
            if let Some(secret) = self.hidden.iter().find(|secret| rest.starts_with(secret)) {
                shown.extend_from_slice(b"****");
                at += secret.len();
            } else if self.hidden.iter().any(|secret| secret.starts_with(rest)) {
                break;
            } else {
                shown.push(rest[0]);
                at += 1;
            }
        }
        self.held.drain(..at);
        if !shown.is_empty() {
            output(&shown);
        }
    }

    /// The end of the stream.
    pub(crate) fn end(self, output: &mut dyn FnMut(&[u8])) {
        if !self.held.is_empty() {
            output(&self.held);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_show_however_they_come() {
        let mut hidden = Vec::new();
        worth_hiding(b"swordfish\nabc\nsword-longer\n", &mut hidden);
        assert_eq!(hidden, [b"sword-longer".to_vec(), b"swordfish".to_vec()]);
        let text = b"a swordfish, sword-longer; swordswordfish sword";
        for size in 1..=text.len() {
            let mut hide = Hide::new(hidden.clone());
            let mut shown = Vec::new();
            for chunk in text.chunks(size) {
                hide.pass(chunk, &mut |bytes| shown.extend_from_slice(bytes));
            }
            hide.end(&mut |bytes| shown.extend_from_slice(bytes));
            assert_eq!(
                String::from_utf8(shown).unwrap(),
                "a ****, ****; sword**** sword",
                "{size}"
            );
        }
    }

    #[test]
    fn content_is_in_no_message() {
        let secret = Secret {
            source: SecretSource::Text("swordfish".into()),
            uid: None,
            gid: None,
            mode: None,
        };
        assert!(!format!("{secret:?}").contains("swordfish"));
    }
}
