//! Requests on their way: what is refused, what is changed, what frames the body. RFC 9110 7.6
//! (hop-by-hop fields, forwarding), RFC 9112 3 (request line, Host), 6 (framing).

use std::borrow::Cow;
use std::cmp::Ordering;
use std::net::IpAddr;

use super::fields::{self, Field, Head, Malformed, elements, has_token};

/// Where a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    None,
    Length(u64),
    Chunked,
    /// Only of answers.
    UntilClose,
}

/// Why a request is not passed on: the status that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused(pub(super) u16);

const BAD: Refused = Refused(400);

impl From<Malformed> for Refused {
    fn from(_: Malformed) -> Self {
        BAD
    }
}

/// Who asks, as the upstream is told.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) address: String,
    /// A proxy on this host, such as one that ends TLS: what it says of its client is kept.
    pub(super) trusted: bool,
}

impl Client {
    pub(super) fn new(ip: IpAddr) -> Self {
        Self { address: ip.to_string(), trusted: ip.is_loopback() }
    }
}

/// A request, fit to be sent on.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) head: Vec<u8>,
    pub(super) body: Framing,
    pub(super) is_head: bool,
    /// RFC 9110 9.2.2: repeating it does no harm.
    pub(super) idempotent: bool,
    /// HTTP/1.0.
    pub(super) old: bool,
    /// The client means to send another one on this connection.
    pub(super) keep_alive: bool,
    /// It asks for another protocol.
    pub(super) upgrade: bool,
    /// That protocol is WebSocket.
    pub(super) websocket: bool,
}

/// What the fields of a request say that is not just passed on.
#[derive(Debug, Default)]
struct Said<'a> {
    host: Option<&'a [u8]>,
    connection: Vec<&'a [u8]>,
    chunked: bool,
    lengths: Vec<&'a [u8]>,
    upgrade: Option<&'a [u8]>,
    trailers: bool,
    forwarded_for: Vec<&'a [u8]>,
    forwarded_proto: bool,
    forwarded_host: bool,
}

impl Said<'_> {
    fn connection_has(&self, token: &[u8]) -> bool {
        self.connection.iter().any(|word| word.eq_ignore_ascii_case(token))
    }
}

/// Refuses what two parties could read differently, and makes the request fit to be sent on.
pub(super) fn request(head: &[u8], client: &Client) -> Result<Request, Refused> {
    const IDEMPOTENT: [&[u8]; 6] = [b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"];
    let head = fields::parse(head, false)?;
    let (method, target, old) = request_line(head.line)?;
    let said = said(&head, old)?;
    let length = fields::length(said.lengths.iter().copied())?;
    let body = match (said.chunked, length) {
        // One says where the body ends, the other too: RFC 9112 6.3 lets a server refuse that.
        (true, Some(_)) => return Err(BAD),
        (true, None) => Framing::Chunked,
        (false, Some(0) | None) => Framing::None,
        (false, Some(length)) => Framing::Length(length),
    };
    let (target, host) = resource(method, target, &said, old)?;
    let upgrade = protocol(&said, old);

    let mut out = Vec::with_capacity(head.line.len() + 48 * head.fields.len() + 256);
    put(&mut out, &[method, b" ", &target, b" HTTP/1.1\r\nHost: ", host, b"\r\n"]);
    for field in &head.fields {
        let dropped = is_own(field.name, old)
            || names_hop(field.name, &said.connection)
            || (fields::is_forwarded(field.name) && !believed(field.name, client));
        if !dropped {
            put(&mut out, &[field.name, b": ", field.value, b"\r\n"]);
        }
    }
    forwarded(&mut out, &said, host, client);
    match body {
        Framing::Chunked => put(&mut out, &[b"Transfer-Encoding: chunked\r\n"]),
        _ if let Some(length) = length => put_length(&mut out, length),
        _ => {}
    }
    match upgrade {
        Some(name) => put(&mut out, &[b"Connection: Upgrade\r\nUpgrade: ", name, b"\r\n"]),
        None if said.trailers => put(&mut out, &[b"Connection: TE\r\nTE: trailers\r\n"]),
        None => {}
    }
    put(&mut out, &[b"\r\n"]);
    Ok(Request {
        head: out,
        body,
        is_head: method == b"HEAD",
        idempotent: IDEMPOTENT.contains(&method),
        old,
        keep_alive: !said.connection_has(b"close") && (!old || said.connection_has(b"keep-alive")),
        upgrade: upgrade.is_some(),
        websocket: upgrade.is_some_and(|name| has_token(name, b"websocket")),
    })
}

/// Method, target, and whether it is HTTP/1.0.
fn request_line(line: &[u8]) -> Result<(&[u8], &[u8], bool), Refused> {
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(BAD);
    };
    let method_fits = !method.is_empty() && method.iter().all(|byte| fields::is_token(*byte));
    // Beyond ASCII is not right, but common, and all take it the same way.
    let fits = |byte: &u8| *byte > b' ' && *byte != 0x7f && *byte != b'#';
    let target_fits = !target.is_empty() && target.iter().all(fits);
    let old = match version {
        b"HTTP/1.0" => true,
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', minor] if minor.is_ascii_digit() => false,
        _ => return Err(BAD),
    };
    if method_fits && target_fits { Ok((method, target, old)) } else { Err(BAD) }
}

fn said<'a>(head: &Head<'a>, old: bool) -> Result<Said<'a>, Refused> {
    let mut said = Said::default();
    let mut codings = 0;
    for Field { name, value } in &head.fields {
        match kind(name) {
            Kind::Host => {
                let another = said.host.replace(value).is_some();
                if another || !value.iter().all(is_host_byte) {
                    return Err(BAD);
                }
            }
            Kind::Connection => said.connection.extend(elements(value)),
            Kind::Coding => {
                codings += 1;
                match coding(value) {
                    Some(true) if codings == 1 && !old => said.chunked = true,
                    Some(false) => return Err(Refused(501)),
                    _ => return Err(BAD),
                }
            }
            Kind::Length => said.lengths.push(value),
            Kind::Upgrade => {
                said.upgrade.get_or_insert(value);
            }
            Kind::Te => said.trailers |= has_token(value, b"trailers"),
            Kind::Disguised => return Err(BAD),
            _ if name.eq_ignore_ascii_case(b"x-forwarded-for") => said.forwarded_for.push(value),
            _ if name.eq_ignore_ascii_case(b"x-forwarded-proto") => said.forwarded_proto = true,
            _ if name.eq_ignore_ascii_case(b"x-forwarded-host") => said.forwarded_host = true,
            _ => {}
        }
    }
    sort_hops(&mut said.connection);
    Ok(said)
}

/// `Some(true)`: chunked and nothing else. `Some(false)`: chunked at last, after codings that the
/// front does not know. `None`: nobody can say where the body ends.
pub(super) fn coding(value: &[u8]) -> Option<bool> {
    let is_chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
    let mut codings: Vec<&[u8]> = elements(value).collect();
    let last = codings.pop()?;
    if !is_chunked(last) || codings.iter().any(|coding| is_chunked(coding)) {
        return None;
    }
    Some(codings.is_empty())
}

/// The protocol that a request asks for instead of this one. `h2c` would lead past the front,
/// into a connection whose requests nobody looks at: it is left out.
fn protocol<'a>(said: &Said<'a>, old: bool) -> Option<&'a [u8]> {
    const NOT: [&[u8]; 4] = [b"h2c", b"h2", b"http", b"tls"];
    let leads_past = |name: &[u8]| {
        let name = name.split(|byte| *byte == b'/').next().unwrap_or_default();
        NOT.iter().any(|not| name.eq_ignore_ascii_case(not))
    };
    let asked = said.upgrade.filter(|_| !old && said.connection_has(b"upgrade"))?;
    (!elements(asked).any(leads_past)).then_some(asked)
}

/// The target as a path, and the host: exactly one, and that of the target if that names one.
fn resource<'a>(
    method: &[u8],
    target: &'a [u8],
    said: &Said<'a>,
    old: bool,
) -> Result<(Cow<'a, [u8]>, &'a [u8]), Refused> {
    if method == b"CONNECT" {
        return Err(Refused(405));
    }
    if said.host.is_none() && !old {
        return Err(BAD);
    }
    let host = said.host.unwrap_or(b"localhost");
    if target[0] == b'/' || (target == b"*" && method == b"OPTIONS") {
        return Ok((target.into(), host));
    }
    let scheme = [b"http://".as_slice(), b"https://"].into_iter().find(|scheme| {
        target.len() >= scheme.len() && target[..scheme.len()].eq_ignore_ascii_case(scheme)
    });
    let rest = &target[scheme.ok_or(BAD)?.len()..];
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    let (host, path) = rest.split_at(end);
    if host.is_empty() || !host.iter().all(is_host_byte) {
        return Err(BAD);
    }
    let path = match path {
        [] if method == b"OPTIONS" => b"*".as_slice().into(),
        [] => b"/".as_slice().into(),
        [b'/', ..] => path.into(),
        query => [b"/", query].concat().into(),
    };
    Ok((path, host))
}

fn is_host_byte(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:[]%!$&'()*+;=".contains(byte)
}

/// What a field is to the front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Host,
    Connection,
    Coding,
    Length,
    Upgrade,
    Te,
    Expect,
    /// Concerns one connection only.
    Hop,
    /// Reads like one that frames the message, for programs that fold names together.
    Disguised,
    Other,
}

pub(super) fn kind(name: &[u8]) -> Kind {
    let is = |expected: &[u8]| name.eq_ignore_ascii_case(expected);
    match name.len() {
        2 if is(b"te") => Kind::Te,
        4 if is(b"host") => Kind::Host,
        6 if is(b"expect") => Kind::Expect,
        7 if is(b"upgrade") => Kind::Upgrade,
        10 if is(b"connection") => Kind::Connection,
        10 if is(b"keep-alive") => Kind::Hop,
        14 if is(b"content-length") => Kind::Length,
        14 if is(b"http2-settings") => Kind::Hop,
        16 if is(b"proxy-connection") => Kind::Hop,
        17 if is(b"transfer-encoding") => Kind::Coding,
        14 if fields::folds_to(name, b"content-length") => Kind::Disguised,
        17 if fields::folds_to(name, b"transfer-encoding") => Kind::Disguised,
        _ => Kind::Other,
    }
}

/// Whether the front says it itself, or leaves it out.
fn is_own(name: &[u8], old: bool) -> bool {
    match kind(name) {
        // RFC 9110 10.1.1: HTTP/1.0 does not know it.
        Kind::Expect => old,
        kind => kind != Kind::Other,
    }
}

/// Makes what `Connection` names fit for [`names_hop`].
pub(super) fn sort_hops(connection: &mut [&[u8]]) {
    connection.sort_unstable_by(|one, other| in_order(one, other));
}

/// Whether `Connection`, sorted, names a field: it is for the front alone. Looking at each word for
/// each field would cost a core seconds for one head that is made for it.
pub(super) fn names_hop(name: &[u8], connection: &[&[u8]]) -> bool {
    connection.binary_search_by(|word| in_order(word, name)).is_ok()
}

fn in_order(one: &[u8], other: &[u8]) -> Ordering {
    let lower = |byte: &u8| byte.to_ascii_lowercase();
    one.iter().map(lower).cmp(other.iter().map(lower))
}

/// Whether a client may say so of itself: only a proxy on this host, and only in the one spelling
/// that all know.
pub(super) fn believed(name: &[u8], client: &Client) -> bool {
    let plain = name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-');
    client.trusted && plain && !name.eq_ignore_ascii_case(b"x-forwarded-for")
}

fn forwarded(out: &mut Vec<u8>, said: &Said<'_>, host: &[u8], client: &Client) {
    put(out, &[b"X-Forwarded-For: "]);
    if client.trusted {
        for before in &said.forwarded_for {
            put(out, &[before, b", "]);
        }
    }
    put(out, &[client.address.as_bytes(), b"\r\n"]);
    if !(client.trusted && said.forwarded_proto) {
        put(out, &[b"X-Forwarded-Proto: http\r\n"]);
    }
    if !(client.trusted && said.forwarded_host) {
        put(out, &[b"X-Forwarded-Host: ", host, b"\r\n"]);
    }
}

/// Whether a trailer field may pass: none that frames, routes, authenticates or says who asks.
/// RFC 9110 6.5.1.
pub(super) fn trailer_passes(name: &[u8]) -> bool {
    const NOT: [&[u8]; 21] = [
        b"age",
        b"authorization",
        b"cache-control",
        b"content-encoding",
        b"content-range",
        b"content-type",
        b"cookie",
        b"date",
        b"expires",
        b"host",
        b"location",
        b"max-forwards",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"range",
        b"retry-after",
        b"set-cookie",
        b"trailer",
        b"vary",
        b"www-authenticate",
        b"x-kiln-release",
    ];
    kind(name) == Kind::Other
        && !fields::is_forwarded(name)
        && !NOT.iter().any(|not| fields::folds_to(name, not))
}

pub(super) fn put(out: &mut Vec<u8>, parts: &[&[u8]]) {
    for part in parts {
        out.extend_from_slice(part);
    }
}

pub(super) fn put_length(out: &mut Vec<u8>, length: u64) {
    put(out, &[b"Content-Length: ", length.to_string().as_bytes(), b"\r\n"]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is sent on, as lines in their order; or the status.
    fn sent(text: &str, peer: &str) -> Result<Vec<String>, u16> {
        let client = Client::new(peer.parse().unwrap());
        let request = request(text.as_bytes(), &client).map_err(|refused| refused.0)?;
        let text = String::from_utf8_lossy(&request.head).into_owned();
        let lines = text.strip_suffix("\r\n\r\n").unwrap().split("\r\n");
        Ok(lines.map(str::to_owned).collect())
    }

    #[test]
    fn hop_by_hop_fields_go_and_nobody_says_who_he_is() {
        let text = "GET /a?b HTTP/1.1\r\nhost: shop\r\nConnection: close, X-Mine, host\r\n\
                    X-Mine: 1\r\nKeep-Alive: 5\r\nProxy-Connection: keep-alive\r\n\
                    TE: gzip, trailers\r\nExpect: 100-continue\r\nUpgrade: h2c\r\n\
                    HTTP2-Settings: AAA\r\nX-Forwarded-For: 6.6.6.6\r\nx_forwarded_host: evil\r\n\
                    X.Forwarded.Proto: https\r\nForwarded: for=6.6.6.6\r\nX_REAL_IP: 6.6.6.6\r\n\
                    Cookie: a\r\n\r\n";
        let expected = [
            "GET /a?b HTTP/1.1",
            "Host: shop",
            "Expect: 100-continue",
            "Cookie: a",
            "X-Forwarded-For: 10.0.0.9",
            "X-Forwarded-Proto: http",
            "X-Forwarded-Host: shop",
            "Connection: TE",
            "TE: trailers",
        ];
        assert_eq!(sent(text, "10.0.0.9").unwrap(), expected);
    }

    #[test]
    fn a_proxy_on_this_host_is_believed() {
        let text = "GET http://b:8/ HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4\r\n\
                    X-Forwarded-Proto: https\r\nX-Real-IP: 1.2.3.4\r\nX_Real_IP: 6\r\n\r\n";
        let expected = [
            "GET / HTTP/1.1",
            "Host: b:8",
            "X-Forwarded-Proto: https",
            "X-Real-IP: 1.2.3.4",
            "X-Forwarded-For: 1.2.3.4, 127.0.0.1",
            "X-Forwarded-Host: b:8",
        ];
        assert_eq!(sent(text, "127.0.0.1").unwrap(), expected);
    }

    #[test]
    fn requests_that_can_be_read_in_two_ways_are_refused() {
        let host = "Host: a\r\n";
        let rows: &[(&str, u16)] = &[
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400),
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
            (" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET / http/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/1.10\r\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 400),
            ("GET /\r\nHost: a\r\n\r\n", 400),
            ("G(T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET /#a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET http:/// HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        ];
        for (text, status) in rows {
            assert_eq!(sent(text, "10.0.0.1").unwrap_err(), *status, "{text:?}");
        }
        let rows: &[(&str, u16)] = &[
            ("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", 400),
            ("Transfer-Encoding: chunked\r\nContent-Length: 1\r\n", 400),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400),
            ("Transfer-Encoding: chunked, chunked\r\n", 400),
            ("Transfer-Encoding: gzip\r\n", 400),
            ("Transfer-Encoding: gzip, chunked\r\n", 501),
            ("Transfer-Encoding: chunked, gzip\r\n", 400),
            ("Transfer-Encoding: \x0bchunked\r\n", 400),
            ("Transfer-Encoding: xchunked\r\n", 400),
            ("Transfer-Encoding: identity\r\n", 400),
            ("Transfer-Encoding:\r\n", 400),
            ("Transfer_Encoding: chunked\r\n", 400),
            ("Content_Length: 5\r\n", 400),
            ("Content-Length: 1\r\nContent-Length: 2\r\n", 400),
            ("Content-Length: 1, 2\r\n", 400),
            ("Content-Length: -1\r\n", 400),
            ("Content-Length: +1\r\n", 400),
            ("Content-Length: 1e1\r\n", 400),
            ("Content-Length : 1\r\n", 400),
            (" Content-Length: 1\r\n", 400),
            ("A: b\r\n Content-Length: 1\r\n", 400),
            ("Content-Length: 18446744073709551616\r\n", 400),
        ];
        for (fields, status) in rows {
            let text = format!("POST / HTTP/1.1\r\n{host}{fields}\r\n");
            assert_eq!(sent(&text, "10.0.0.1").unwrap_err(), *status, "{fields:?}");
        }
        let old = "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(sent(old, "10.0.0.1").unwrap_err(), 400);
    }

    #[test]
    fn what_is_unusual_and_clear_passes() {
        let first = |text: &str| sent(text, "10.0.0.1").unwrap();
        assert_eq!(first("get / HTTP/1.1\nHost: a\n\n")[0], "get / HTTP/1.1");
        assert_eq!(first("GET / HTTP/1.0\r\n\r\n")[..2], ["GET / HTTP/1.1", "Host: localhost"]);
        assert_eq!(first("GET HTTP://b?x HTTP/1.1\r\nHost: a\r\n\r\n")[0], "GET /?x HTTP/1.1");
        assert_eq!(first("OPTIONS http://b HTTP/1.1\r\nHost: a\r\n\r\n")[0], "OPTIONS * HTTP/1.1");
        let length = first("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\n");
        assert_eq!(length.last().unwrap(), "Content-Length: 5");
        let none = first("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(none.last().unwrap(), "Content-Length: 0");
        let sent = first(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n",
        );
        assert_eq!(sent[sent.len() - 2..], ["Connection: Upgrade", "Upgrade: websocket"]);
    }

    #[test]
    fn trailers_that_frame_route_or_claim_do_not_pass() {
        for name in ["X-Sum", "grpc-status", "Server-Timing", "ETag"] {
            assert!(trailer_passes(name.as_bytes()), "{name}");
        }
        for name in
            ["Content-Length", "transfer_encoding", "Host", "X-Forwarded-For", "x_real_ip", "TE"]
        {
            assert!(!trailer_passes(name.as_bytes()), "{name}");
        }
    }
}
