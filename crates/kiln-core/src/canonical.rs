//! Canonical JSON: one text for one value, so that a digest over it is an identity.
//!
//! Compact; members sorted by the bytes of their names; whole numbers only; strings escaped no
//! further than JSON demands. For names in ASCII that is RFC 8785.
//!
//! Whoever writes a value says for each member what it is called and when it is left out
//! ([`Members::unless`]). So nothing that is done to a structure in the program (a member added,
//! renamed or moved) changes a byte by itself: a new member that has its default is not there.

use std::collections::BTreeMap;

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Json {
    /// `true`, `false`.
    Truth(bool),
    /// A whole number.
    Number(i128),
    /// A string.
    Text(String),
    /// An array.
    List(Vec<Json>),
    /// An object.
    Members(Members),
}

/// The members of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members(BTreeMap<String, Json>);

impl Members {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// With one more that is always there.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Json>) -> Self {
        self.0.insert(name.to_owned(), value.into());
        self
    }

    /// With one more, unless it has its default.
    #[must_use]
    pub fn unless(self, default: bool, name: &str, value: impl Into<Json>) -> Self {
        if default { self } else { self.with(name, value) }
    }

    /// With one more, if it was stated.
    #[must_use]
    pub fn stated(self, name: &str, value: Option<impl Into<Json>>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// With one more for each of `entries`, if there are any: a map of the domain.
    pub fn of(entries: impl IntoIterator<Item = (String, Json)>) -> Self {
        Self(entries.into_iter().collect())
    }

    /// The canonical bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.push(b'{');
        for (nth, (name, value)) in self.0.iter().enumerate() {
            if nth > 0 {
                out.push(b',');
            }
            text(name, out);
            out.push(b':');
            value.write(out);
        }
        out.push(b'}');
    }
}

impl Json {
    /// An array of what `items` make.
    pub fn list<T: Into<Self>>(items: impl IntoIterator<Item = T>) -> Self {
        Self::List(items.into_iter().map(Into::into).collect())
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Truth(true) => out.extend_from_slice(b"true"),
            Self::Truth(false) => out.extend_from_slice(b"false"),
            Self::Number(number) => out.extend_from_slice(number.to_string().as_bytes()),
            Self::Text(string) => text(string, out),
            Self::List(items) => {
                out.push(b'[');
                for (nth, item) in items.iter().enumerate() {
                    if nth > 0 {
                        out.push(b',');
                    }
                    item.write(out);
                }
                out.push(b']');
            }
            Self::Members(members) => members.write(out),
        }
    }
}

/// RFC 8785, 3.2.2.2.
fn text(string: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in string.bytes() {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            0x08 => out.extend_from_slice(b"\\b"),
            b'\t' => out.extend_from_slice(b"\\t"),
            b'\n' => out.extend_from_slice(b"\\n"),
            0x0c => out.extend_from_slice(b"\\f"),
            b'\r' => out.extend_from_slice(b"\\r"),
            0..0x20 => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

impl From<bool> for Json {
    fn from(value: bool) -> Self {
        Self::Truth(value)
    }
}

macro_rules! numbers {
    ($($kind:ty),*) => {$(
        impl From<$kind> for Json {
            fn from(value: $kind) -> Self {
                Self::Number(value.into())
            }
        }
    )*};
}
numbers!(u16, u32, u64, i64);

impl From<&str> for Json {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<&String> for Json {
    fn from(value: &String) -> Self {
        Self::Text(value.clone())
    }
}

impl From<String> for Json {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl From<crate::Digest> for Json {
    fn from(value: crate::Digest) -> Self {
        Self::Text(value.to_string())
    }
}

impl From<Members> for Json {
    fn from(value: Members) -> Self {
        Self::Members(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_text_for_one_value() {
        let inner = Members::new().with("z", 1_u64).with("a", i64::MIN).unless(true, "gone", true);
        let members = Members::new()
            .with("list", Json::list(["\u{1}\u{8}\t\n\u{c}\r\"\\/é\u{10348}"]))
            .with("B", inner)
            .stated("unstated", None::<bool>)
            .stated("big", Some(u64::MAX));
        let text = String::from_utf8(members.bytes()).unwrap();
        let expected = "{\"B\":{\"a\":-9223372036854775808,\"z\":1},\
            \"big\":18446744073709551615,\
            \"list\":[\"\\u0001\\b\\t\\n\\f\\r\\\"\\\\/é\u{10348}\"]}";
        assert_eq!(text, expected);
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["list"][0], "\u{1}\u{8}\t\n\u{c}\r\"\\/é\u{10348}");
    }
}
