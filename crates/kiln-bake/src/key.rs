//! Keys of the step cache: a digest over length-prefixed parts, so that no two different lists of
//! parts have the same bytes.

use kiln_core::Digest;
use kiln_core::digest::Hasher;
use kiln_core::tree::{EPOCH, Kind, Node, Path};

/// Version of everything that decides what a step makes of its inputs. Raise it when the result of
/// a step for the same inputs changes.
const FORMAT: &[u8] = b"kiln bake step 5";

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

    /// Everything of a tree's entries. Cheaper than the tree digest, and of no use outside keys.
    pub(crate) fn entries<'a>(
        self,
        entries: impl ExactSizeIterator<Item = (&'a Path, &'a Node)>,
    ) -> Self {
        let head = self.number(entries.len() as u64);
        entries.fold(head, |key, (path, node)| {
            // A time of its own is flagged beside the mode, which has only twelve bits.
            let timed = node.time != EPOCH;
            let key = key.bytes(path).number(u64::from(node.mode) | u64::from(timed) << 32);
            let key = if timed { key.number(node.time.cast_unsigned()) } else { key };
            let key = key.number(u64::from(node.uid) << 32 | u64::from(node.gid));
            let key = match &node.kind {
                Kind::Dir => key.number(0),
                Kind::File { size, digest } => key.number(1).number(*size).digest(digest),
                Kind::Hardlink { to } => key.number(2).bytes(to),
                Kind::Symlink { target } => key.number(3).bytes(target),
                Kind::Fifo => key.number(4),
                Kind::CharDevice { major, minor } => {
                    key.number(5).number(u64::from(*major) << 32 | u64::from(*minor))
                }
                Kind::BlockDevice { major, minor } => {
                    key.number(6).number(u64::from(*major) << 32 | u64::from(*minor))
                }
            };
            let key = key.number(node.xattrs.len() as u64);
            node.xattrs.iter().fold(key, |key, (name, value)| key.bytes(name).bytes(value))
        })
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
