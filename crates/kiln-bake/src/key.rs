//! Keys of the step cache: a digest over length-prefixed parts, so that no two different lists of
//! parts have the same bytes.

use kiln_core::Digest;
use kiln_core::digest::Hasher;

/// Version of everything that decides what a step makes of its inputs. Raise it when the result of
/// a step for the same inputs changes.
const FORMAT: &[u8] = b"kiln bake step 1";

/// A key under construction.
pub(crate) struct Key(Hasher);

impl Key {
    /// Starts a key of its own `kind`.
    pub(crate) fn new(kind: &str) -> Self {
        Self(Hasher::new()).bytes(FORMAT).bytes(kind.as_bytes())
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    pub(crate) fn text(self, text: &str) -> Self {
        self.bytes(text.as_bytes())
    }

    pub(crate) fn digest(self, digest: &Digest) -> Self {
        self.bytes(digest.as_bytes())
    }

    pub(crate) fn number(self, number: u64) -> Self {
        self.bytes(&number.to_le_bytes())
    }

    pub(crate) fn option(self, text: Option<&str>) -> Self {
        match text {
            Some(text) => self.number(1).text(text),
            None => self.number(0),
        }
    }

    pub(crate) fn list<T: AsRef<str>>(self, list: &[T]) -> Self {
        let head = self.number(list.len() as u64);
        list.iter().fold(head, |key, text| key.text(text.as_ref()))
    }

    pub(crate) fn finish(self) -> Digest {
        self.0.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::Key;

    #[test]
    fn parts_do_not_run_together() {
        assert_ne!(
            Key::new("x").text("ab").text("c").finish(),
            Key::new("x").text("a").text("bc").finish()
        );
        assert_ne!(Key::new("x").option(None).finish(), Key::new("x").option(Some("")).finish());
        assert_ne!(
            Key::new("x").list(&["a"]).list::<&str>(&[]).finish(),
            Key::new("x").list::<&str>(&[]).list(&["a"]).finish()
        );
    }
}
