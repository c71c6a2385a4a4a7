//! Addresses on the web: just enough to follow a redirect, and to tell who is asked.

/// An absolute address by `http` or `https`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// Whether it is `https`.
    pub(super) secure: bool,
    /// Host, and port where it is stated; in lower case.
    pub(super) authority: String,
    /// Path and query, beginning with a slash.
    pub(super) target: String,
}

impl Address {
    /// Reads an absolute address. One with a user in it is none: it would be a password that goes
    /// where somebody else says.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        let odd = |letter: char| letter.is_control() || letter.is_whitespace() || letter == '\\';
        if authority.is_empty() || authority.contains('@') || text.contains(odd) {
            return None;
        }
        let target = target.split('#').next().unwrap_or_default();
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        Some(Self::new(secure, authority, &target))
    }

    /// An address of a server that is known. The port that is meant anyway is left out, so that
    /// equal servers look equal.
    pub(super) fn new(secure: bool, authority: &str, target: &str) -> Self {
        let port = if secure { ":443" } else { ":80" };
        let authority = authority.to_ascii_lowercase();
        let authority = authority.strip_suffix(port).unwrap_or(&authority).to_owned();
        Self { secure, authority, target: target.to_owned() }
    }

    /// Where `location` leads from here.
    pub(super) fn join(&self, location: &str) -> Option<Self> {
        let scheme = if self.secure { "https" } else { "http" };
        if location.starts_with("//") {
            return Self::parse(&format!("{scheme}:{location}"));
        }
        let before = location.split(['/', '?', '#']).next().unwrap_or_default();
        if before.contains(':') {
            return Self::parse(location);
        }
        let path = self.target.split('?').next().unwrap_or_default();
        let folder = &path[..path.rfind('/').map_or(0, |slash| slash + 1)];
        let target = match location.chars().next() {
            Some('/') => location.to_owned(),
            Some('?') => format!("{path}{location}"),
            Some('#') | None => self.target.clone(),
            Some(_) => format!("{folder}{location}"),
        };
        Self::parse(&format!("{scheme}://{}{target}", self.authority))
    }

    /// Whether both are the same server.
    pub(super) fn same_origin(&self, other: &Self) -> bool {
        self.secure == other.secure && self.authority == other.authority
    }

    /// The host, without a port and without brackets.
    pub(super) fn host(&self) -> &str {
        host_of(&self.authority)
    }

    /// The port, stated or not.
    pub(super) fn port(&self) -> u16 {
        let after =
            self.authority.rsplit_once(']').map_or(self.authority.as_str(), |(_, rest)| rest);
        let stated = after.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        stated.unwrap_or(if self.secure { 443 } else { 80 })
    }

    /// Without the query, in which there may be a signature that gives access.
    pub(super) fn shown(&self) -> String {
        let text = self.to_string();
        super::error::clean(text.split('?').next().unwrap_or_default(), 300)
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.secure { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.target)
    }
}

/// The host of `host:port`, without brackets.
pub(super) fn host_of(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    authority.split(':').next().unwrap_or_default()
}

/// Whether a registry is on this very machine, where Docker allows what is not encrypted.
pub(super) fn is_loopback(authority: &str) -> bool {
    let host = host_of(authority);
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_browsers_go() {
        let here = Address::parse("https://a.example:8080/v2/x/blobs/y?z=1").unwrap();
        for (location, expected) in [
            ("https://b.example/c?d#e", Some("https://b.example/c?d")),
            ("HTTP://B.example", Some("http://b.example/")),
            ("https://b.example:443/c", Some("https://b.example/c")),
            ("//b.example/c", Some("https://b.example/c")),
            ("/c", Some("https://a.example:8080/c")),
            ("c", Some("https://a.example:8080/v2/x/blobs/c")),
            ("?c", Some("https://a.example:8080/v2/x/blobs/y?c")),
            ("ftp://b.example/c", None),
            ("file:///etc/passwd", None),
            ("https://user:pw@b.example/", None),
            ("https:///c", None),
            ("https://b.example\\@c.example/", None),
            ("https://b example/", None),
        ] {
            let led = here.join(location).map(|address| address.to_string());
            assert_eq!(led.as_deref(), expected, "{location}");
        }
    }

    #[test]
    fn the_loopback_is_known_by_every_name() {
        for (authority, loopback) in [
            ("127.0.0.1:5000", true),
            ("127.8.9.10", true),
            ("localhost:5000", true),
            ("[::1]:5000", true),
            ("128.0.0.1", false),
            ("127.0.0.1.example.org", false),
            ("localhost.example.org", false),
        ] {
            assert_eq!(is_loopback(authority), loopback, "{authority}");
        }
    }
}
