//! The trust store of Java programs: without the times at which its certificates were put in.
//!
//! ca-certificates-java makes it anew when certificates or Java are installed, and its form (JKS)
//! records the time of each entry. Nothing asks for these times. The order of the entries follows
//! from their names and is left as it is.
//!
//! | bytes | what |
//! |---|---|
//! | 4 × 3 | `FEEDFEED`, version 2, number of entries; all numbers are big-endian |
//! | | each entry: kind (4), alias, milliseconds since 1970 (8), then |
//! | | kind 1, a private key: length (4) and key; number (4) of certificates, and these |
//! | | kind 2: a certificate |
//! | | a certificate: type, length (4), bytes. An alias or type: length (2) and bytes |
//! | 20 | SHA-1 over the password in UTF-16, `Mighty Aphrodite` and all before |
//!
//! Source: `sun.security.provider.JavaKeyStore` of OpenJDK.

use sha1::{Digest as _, Sha1};

/// Where Debian's Java has it; `lib/security/cacerts` of each JRE is a link to this.
pub(crate) const PATH: &[u8] = b"etc/ssl/certs/java/cacerts";

/// Longest file that is looked at, in bytes. Debian's has 165,000.
pub(crate) const LONGEST: u64 = 16 << 20;

/// The password that everybody knows, in the bytes that count.
const PASSWORD: &[u8] = b"\0c\0h\0a\0n\0g\0e\0i\0t";
const SALT: &[u8] = b"Mighty Aphrodite";
const MAGIC: u32 = 0xfeed_feed;
const VERSION: u32 = 2;
const PRIVATE_KEY: u32 = 1;
const CERTIFICATE: u32 = 2;
/// Length of a SHA-1.
const TRAILER: usize = 20;

/// `content` with [`crate::EPOCH`] as the time of each entry. `None` for what is not a sound key
/// store of that form, and for one with another password: it cannot be sealed again.
pub(crate) fn timeless(content: &[u8]) -> Option<Vec<u8>> {
    let (entries, seal) = content.split_at_checked(content.len().checked_sub(TRAILER)?)?;
    if sealed(entries).as_slice() != seal {
        return None;
    }
    let mut out = entries.to_vec();
    for at in times(entries)? {
        out[at..at + 8].copy_from_slice(&(crate::EPOCH * 1000).to_be_bytes());
    }
    let seal = sealed(&out);
    out.extend_from_slice(&seal);
    Some(out)
}

fn sealed(entries: &[u8]) -> [u8; TRAILER] {
    Sha1::new().chain_update(PASSWORD).chain_update(SALT).chain_update(entries).finalize().into()
}

/// Where the entries have their times.
fn times(entries: &[u8]) -> Option<Vec<usize>> {
    let mut rest = Rest { bytes: entries, at: 0 };
    if rest.number()? != MAGIC || rest.number()? != VERSION {
        return None;
    }
    let mut times = Vec::new();
    for _ in 0..rest.number()? {
        let kind = rest.number()?;
        rest.text()?;
        times.push(rest.at);
        rest.skip(8)?;
        match kind {
            PRIVATE_KEY => {
                rest.blob()?;
                for _ in 0..rest.number()? {
                    rest.certificate()?;
                }
            }
            CERTIFICATE => rest.certificate()?,
            _ => return None,
        }
    }
    (rest.at == entries.len()).then_some(times)
}

/// What is not read yet.
struct Rest<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Rest<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.take(count).map(drop)
    }

    fn number(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_be_bytes)
    }

    fn text(&mut self) -> Option<()> {
        let length = self.take(2)?.try_into().ok().map(u16::from_be_bytes)?;
        self.skip(usize::from(length))
    }

    fn blob(&mut self) -> Option<()> {
        let length = self.number()?;
        self.skip(usize::try_from(length).ok()?)
    }

    fn certificate(&mut self) -> Option<()> {
        self.text()?;
        self.blob()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn text(out: &mut Vec<u8>, text: &str) {
        out.extend_from_slice(&u16::try_from(text.len()).unwrap().to_be_bytes());
        out.extend_from_slice(text.as_bytes());
    }

    fn certificate(out: &mut Vec<u8>, content: &[u8]) {
        text(out, "X.509");
        out.extend_from_slice(&u32::try_from(content.len()).unwrap().to_be_bytes());
        out.extend_from_slice(content);
    }

    /// Two certificates and a private key with a chain of two, all put in at `time`; not sealed.
    fn entries(time: u64) -> Vec<u8> {
        let mut out = b"\xfe\xed\xfe\xed\0\0\0\x02\0\0\0\x03".to_vec();
        for (kind, alias) in [(2_u8, "debian:one.pem"), (1, "own"), (2, "")] {
            out.extend_from_slice(&[0, 0, 0, kind]);
            text(&mut out, alias);
            out.extend_from_slice(&time.to_be_bytes());
            if kind == 1 {
                out.extend_from_slice(b"\0\0\0\x03key\0\0\0\x02");
                certificate(&mut out, b"first");
            }
            certificate(&mut out, alias.as_bytes());
        }
        out
    }

    fn seal(mut entries: Vec<u8>) -> Vec<u8> {
        let seal = sealed(&entries);
        entries.extend_from_slice(&seal);
        entries
    }

    /// A sound key store whose entries were put in at `time`, in milliseconds since 1970.
    pub(crate) fn store(time: u64) -> Vec<u8> {
        seal(entries(time))
    }

    #[test]
    fn times_go_and_nothing_else() {
        let expected = store(1_577_836_800_000);
        for time in [0, 1_763_849_496_123, u64::MAX] {
            assert_eq!(timeless(&store(time)).unwrap(), expected);
        }
        assert_eq!(timeless(&expected).unwrap(), expected);
    }

    /// The seal of an empty store, as `keytool` of OpenJDK 17 leaves it.
    #[test]
    fn the_seal_is_that_of_java() {
        let empty = b"\xfe\xed\xfe\xed\0\0\0\x02\0\0\0\0".to_vec();
        let seal: String = sealed(&empty).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(seal, "e2686e45fb43dfa4d992dd41ceb6b21c6330d792");
        let whole = self::seal(empty);
        assert_eq!(timeless(&whole), Some(whole));
    }

    #[test]
    fn what_is_not_sound_stays() {
        let whole = entries(7);
        let last = whole.len() - 1;
        let changed = |at: usize, byte: u8| {
            let mut out = whole.clone();
            out[at] = byte;
            seal(out)
        };
        let cases = [
            ("nothing", vec![]),
            ("only a seal", seal(vec![])),
            ("another password", [whole.clone(), vec![0; 20]].concat()),
            ("JCEKS", changed(0, 0xce)),
            ("version 1", changed(7, 1)),
            ("an entry too many", changed(11, 4)),
            ("an entry too few", changed(11, 2)),
            ("an unknown kind", changed(15, 3)),
            ("a length beyond the end", changed(16, 0xff)),
            ("cut off", seal(whole[..last].to_vec())),
            ("something behind", seal([whole.clone(), vec![0]].concat())),
        ];
        for (what, content) in cases {
            assert_eq!(timeless(&content), None, "{what}");
        }
    }
}
