//! What is changed in heads on their way. RFC 9110 7.6.1 (hop-by-hop fields), RFC 9112 3.2 (Host
//! and request target), 6.1–6.3 (framing).

use std::net::IpAddr;

use hyper::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use hyper::http::uri::{PathAndQuery, Uri};
use hyper::http::{request, response};
use hyper::{Method, StatusCode, Version};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Who asks, as the upstream is told.
#[derive(Debug)]
pub(super) struct Client {
    address: HeaderValue,
    /// A proxy on this host, such as one that ends TLS: what it says of its client is kept.
    trusted: bool,
}

impl Client {
    pub(super) fn new(ip: IpAddr) -> Self {
        let text = ip.to_string();
        let address = HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("unknown"));
        Self { address, trusted: ip.is_loopback() }
    }
}

/// Refuses what two parties could read differently, and makes the request fit to be sent on.
/// Says whether the client asks for another protocol.
pub(super) fn forward(head: &mut request::Parts, client: &Client) -> Result<bool, StatusCode> {
    if head.method == Method::CONNECT {
        return Err(StatusCode::METHOD_NOT_ALLOWED);
    }
    let chunked = framing(&head.headers)?;
    host(head)?;
    let upgrade = asks_upgrade(&head.headers, head.version);
    let protocol = if upgrade { head.headers.get(UPGRADE).cloned() } else { None };
    let trailers = head.headers.get(TE).is_some_and(|te| has_token(te, "trailers"));
    strip(&mut head.headers);
    head.headers.remove(TE);
    // The front says "continue" itself, once the upstream's connection is there.
    head.headers.remove(EXPECT);
    if chunked {
        head.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    match protocol {
        Some(protocol) => {
            head.headers.insert(UPGRADE, protocol);
            head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        }
        None if trailers => {
            head.headers.insert(TE, HeaderValue::from_static("trailers"));
            head.headers.insert(CONNECTION, HeaderValue::from_static("te"));
        }
        None => {}
    }
    tell_client(&mut head.headers, client);
    head.version = Version::HTTP_11;
    Ok(upgrade)
}

/// Whether the body is chunked; refuses a body with two lengths, or of a coding that would be
/// lost.
fn framing(headers: &HeaderMap) -> Result<bool, StatusCode> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let Some(coding) = codings.next() else { return Ok(false) };
    if headers.contains_key(CONTENT_LENGTH) || codings.next().is_some() {
        return Err(StatusCode::BAD_REQUEST);
    }
    if !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") {
        return Err(StatusCode::NOT_IMPLEMENTED);
    }
    Ok(true)
}

/// Exactly one Host, and the same in the target if that names one. The target becomes a path.
fn host(head: &mut request::Parts) -> Result<(), StatusCode> {
    let mut hosts = head.headers.get_all(HOST).iter();
    let first = hosts.next();
    let invalid = first.is_some_and(|host| !host.as_bytes().iter().all(is_host_byte));
    if hosts.next().is_some() || invalid || (first.is_none() && head.version == Version::HTTP_11) {
        return Err(StatusCode::BAD_REQUEST);
    }
    let absent = first.is_none();
    if let Some(authority) = head.uri.authority() {
        let host = HeaderValue::from_str(authority.as_str().rsplit('@').next().unwrap_or_default());
        head.headers.insert(HOST, host.map_err(|_| StatusCode::BAD_REQUEST)?);
        let path = head.uri.path_and_query().cloned();
        head.uri = Uri::from(path.unwrap_or(PathAndQuery::from_static("/")));
    } else if absent {
        head.headers.insert(HOST, HeaderValue::from_static("localhost"));
    }
    Ok(())
}

fn is_host_byte(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:[]%!$&'()*+,;=".contains(byte)
}

fn asks_upgrade(headers: &HeaderMap, version: Version) -> bool {
    version == Version::HTTP_11
        && headers.contains_key(UPGRADE)
        && headers.get_all(CONNECTION).iter().any(|value| has_token(value, "upgrade"))
}

fn tell_client(headers: &mut HeaderMap, client: &Client) {
    let address = match headers.get(FORWARDED_FOR) {
        Some(before) if client.trusted => {
            let both = [before.as_bytes(), b", ", client.address.as_bytes()].concat();
            HeaderValue::from_bytes(&both).unwrap_or_else(|_| client.address.clone())
        }
        _ => client.address.clone(),
    };
    headers.insert(FORWARDED_FOR, address);
    if !(client.trusted && headers.contains_key(FORWARDED_PROTO)) {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    if !(client.trusted && headers.contains_key(FORWARDED_HOST))
        && let Some(host) = headers.get(HOST).cloned()
    {
        headers.insert(FORWARDED_HOST, host);
    }
}

/// Makes a response fit to be sent on.
pub(super) fn backward(head: &mut response::Parts) {
    let status = head.status;
    let keeps = status == StatusCode::SWITCHING_PROTOCOLS || status == StatusCode::UPGRADE_REQUIRED;
    let protocol = if keeps { head.headers.get(UPGRADE).cloned() } else { None };
    strip(&mut head.headers);
    if let Some(protocol) = protocol {
        head.headers.insert(UPGRADE, protocol);
        head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    head.version = Version::HTTP_11;
}

/// Removes what concerns one connection only, and what `Connection` names; never what frames the
/// message or says whom it is for.
fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let values: Vec<HeaderValue> = headers.get_all(CONNECTION).iter().cloned().collect();
        let names = values.iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        for name in names {
            match HeaderName::from_bytes(name.trim_ascii()) {
                Ok(name) if name != CONTENT_LENGTH && name != HOST => {
                    headers.remove(name);
                }
                _ => {}
            }
        }
        headers.remove(CONNECTION);
    }
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    headers.remove(TRANSFER_ENCODING);
    headers.remove(UPGRADE);
}

fn has_token(value: &HeaderValue, token: &str) -> bool {
    let mut words = value.as_bytes().split(|byte| *byte == b',');
    words.any(|word| word.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Request;

    fn head(uri: &str, headers: &[(&str, &str)]) -> request::Parts {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn sent(uri: &str, headers: &[(&str, &str)], peer: &str) -> Result<Vec<String>, u16> {
        let mut head = head(uri, headers);
        forward(&mut head, &Client::new(peer.parse().unwrap())).map_err(|code| code.as_u16())?;
        let mut lines: Vec<String> = head
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        lines.push(head.uri.to_string());
        lines.sort();
        Ok(lines)
    }

    #[test]
    fn hop_by_hop_fields_go() {
        let got = sent(
            "/a?b",
            &[
                ("host", "shop"),
                ("connection", "close, X-Mine, host"),
                ("x-mine", "1"),
                ("keep-alive", "5"),
                ("proxy-connection", "keep-alive"),
                ("te", "gzip, trailers"),
                ("expect", "100-continue"),
                ("upgrade", "h2c"),
                ("x-forwarded-for", "6.6.6.6"),
                ("x-forwarded-host", "evil"),
                ("cookie", "a"),
            ],
            "10.0.0.9",
        );
        let expected = [
            "/a?b",
            "connection: te",
            "cookie: a",
            "host: shop",
            "te: trailers",
            "x-forwarded-for: 10.0.0.9",
            "x-forwarded-host: shop",
            "x-forwarded-proto: http",
        ];
        assert_eq!(got.unwrap(), expected);
    }

    #[test]
    fn a_proxy_on_this_host_is_believed() {
        let forwarded =
            [("host", "a"), ("x-forwarded-for", "1.2.3.4"), ("x-forwarded-proto", "https")];
        let got = sent("http://b:8/", &forwarded, "127.0.0.1").unwrap();
        let expected = [
            "/",
            "host: b:8",
            "x-forwarded-for: 1.2.3.4, 127.0.0.1",
            "x-forwarded-host: b:8",
            "x-forwarded-proto: https",
        ];
        assert_eq!(got, expected);
    }

    #[test]
    fn ambiguous_requests_are_refused() {
        let host = ("host", "a");
        let refused = |headers: &[(&str, &str)]| sent("/", headers, "127.0.0.1").unwrap_err();
        let chunked = ("transfer-encoding", "chunked");
        assert_eq!(refused(&[]), 400);
        assert_eq!(refused(&[host, host]), 400);
        assert_eq!(refused(&[("host", "a b")]), 400);
        assert_eq!(refused(&[host, chunked, ("content-length", "3")]), 400);
        assert_eq!(refused(&[host, chunked, chunked]), 400);
        assert_eq!(refused(&[host, ("transfer-encoding", "gzip, chunked")]), 501);
        assert!(sent("/", &[host, chunked], "::1").is_ok());
    }

    #[test]
    fn upgrades_pass() {
        let asked =
            [("host", "a"), ("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")];
        let got = sent("/", &asked, "::1").unwrap();
        assert!(got.contains(&"connection: upgrade".to_owned()));
        assert!(got.contains(&"upgrade: websocket".to_owned()));
    }
}
