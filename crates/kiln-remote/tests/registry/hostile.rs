//! Registries that lie, hang, cut off, lead in circles and never end.

use std::io::Write as _;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use kiln_remote::registry::{Document, Resolved};

use super::server::{Request, Server, send};
use super::*;

const MANIFEST: &str = "Content-Type: application/vnd.oci.image.manifest.v1+json";
const NOTHING: &[u8] = br#"{"schemaVersion":2,"config":{},"layers":[]}"#;

/// A registry that answers every request in the same way.
fn always(status: &'static str, headers: &[&str], body: &'static [u8]) -> Server {
    let headers: Vec<String> = headers.iter().map(|header| (*header).to_owned()).collect();
    Server::start(move |_, stream| {
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        send(stream, status, &headers, body)
    })
}

fn resolve(server: &Server) -> Result<Resolved, Error> {
    let host = host(&[], &[]);
    client(&host, &Anonymous).resolve(&reference(&format!("{}/app:1", server.host())))
}

/// Gets `bytes` as a blob; the server has what it wants.
fn fetch(server: &Server, bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let host = host(&[], &[]);
    blob(&client(&host, &Anonymous), &reference(&format!("{}/app:1", server.host())), bytes)
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Error>, what: &str) -> Error {
    let error = result.unwrap_err();
    assert!(error.to_string().contains(what), "{error}");
    error
}

#[test]
fn another_content_than_the_digests_is_refused() {
    let server = always("200 OK", &[MANIFEST], NOTHING);
    let host = host(&[], &[]);
    let client = client(&host, &Anonymous);
    let wanted = reference(&format!("{}/app:1", server.host())).at(Digest::of("else"));
    refused(client.resolve(&wanted), "gave something else");
    let digest = Digest::of("else");
    for kind in [Document::Manifest, Document::Blob] {
        refused(client.document(&wanted, &digest, kind, None), "gave something else");
    }
    let size = Some(NOTHING.len() as u64 + 1);
    let found = client.document(&wanted, &Digest::of(NOTHING), Document::Blob, size);
    refused(found, "bytes, not");
    let same_length = vec![b'x'; NOTHING.len()];
    let error = refused(blob(&client, &wanted, &same_length), "gave something else");
    assert!(error.to_string().contains(&Digest::of(NOTHING).to_string()), "{error}");
    refused(
        blob(&client, &wanted, b"longer than nothing, which is what it says it has"),
        "bytes, not",
    );
}

#[test]
fn what_a_manifest_says_of_itself_has_to_be_so() {
    let lies = "Docker-Content-Digest: \
        sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    refused(resolve(&always("200 OK", &[MANIFEST, lies], NOTHING)), "says that it is sha256:e3b0");
    let lists: &[u8] = br#"{"schemaVersion":2,"manifests":[]}"#;
    refused(resolve(&always("200 OK", &[MANIFEST], lists)), "is something else");
    refused(resolve(&always("200 OK", &[MANIFEST], b"<html>welcome</html>")), "no manifest");
    let old = ["Content-Type: application/vnd.docker.distribution.manifest.v1+prettyjws"];
    let error = refused(resolve(&always("200 OK", &old, br#"{"schemaVersion":1}"#)), "schema 1");
    assert!(error.hint().unwrap().contains("skopeo"), "{error:?}");
    let unknown = resolve(&always("200 OK", &["Content-Type: application/x"], b"{}")).unwrap();
    assert_eq!(unknown.media_type, "application/x");
}

/// Sends without end, until nobody listens.
fn endless(stream: &mut TcpStream, header: &str, piece: &[u8]) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 200 OK\r\n{header}")?;
    loop {
        stream.write_all(piece)?;
    }
}

#[test]
fn what_never_ends_is_cut_off() {
    let body = |stream: &mut TcpStream| {
        endless(stream, &format!("{MANIFEST}\r\nConnection: close\r\n\r\n"), &[b' '; 4096])
    };
    refused(resolve(&Server::start(move |_, stream| body(stream))), "larger than 4194304 bytes");
    let error = fetch(&Server::start(move |_, stream| body(stream)), &[b' '; 100_000]);
    refused(error, "more bytes than it has");
    let headers = |stream: &mut TcpStream| endless(stream, "", b"X-Header: and so on\r\n");
    refused(resolve(&Server::start(move |_, stream| headers(stream))), "header");
    let one = |stream: &mut TcpStream| endless(stream, "X: ", &[b'x'; 4096]);
    refused(resolve(&Server::start(move |_, stream| one(stream))), "header");
    let status = |stream: &mut TcpStream| {
        loop {
            stream.write_all(&[b'x'; 4096])?;
        }
    };
    resolve(&Server::start(move |_, stream| status(stream))).unwrap_err();
}

#[test]
fn circles_and_ways_to_nowhere_end() {
    let server = always("302 Found", &["Location: /v2/round/and/round"], b"");
    refused(resolve(&server), "on and on");
    assert!(server.asked().len() <= 11, "{}", server.asked().len());
    for location in [
        "Location: file:///etc/passwd",
        "Location: https://user:password@example.invalid/",
        "Location: http://",
        "X: no location",
    ] {
        let error =
            refused(resolve(&always("307 Temporary Redirect", &[location], b"")), "elsewhere");
        assert!(!error.to_string().contains("password"), "{error}");
    }
}

#[test]
fn whom_a_redirect_leads_to_gets_no_password() {
    let bytes: &'static [u8] = b"a blob";
    let other = always("200 OK", &[], bytes);
    let target = other.host();
    let server = Server::start(move |request, stream| match request.header("authorization") {
        None => send(stream, "401 Unauthorized", &["WWW-Authenticate: Basic realm=\"x\""], b""),
        Some(_) => send(
            stream,
            "307 Temporary Redirect",
            &[&format!("Location: http://{target}/x?signature=y")],
            b"",
        ),
    });
    let host = host(&[], &[]);
    let known = Known::password("user", "secret");
    let name = reference(&format!("{}/app:1", server.host()));
    assert_eq!(blob(&client(&host, &known), &name, bytes).unwrap(), bytes);
    let asked = other.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].header("authorization"), None, "{asked:?}");
    assert!(server.asked().iter().any(|request| request.header("authorization").is_some()));
    // What another server says is shown to nobody, nor the signature in its address.
    let inner = always("500 Oh", &[], b"the inner workings");
    let location = format!("Location: http://{}/x?signature=y", inner.host());
    let error = refused(resolve(&always("302 Found", &[&location], b"")), "it answered 500");
    let text = error.to_string();
    assert!(!text.contains("inner workings") && !text.contains("signature"), "{text}");
}

#[test]
fn silence_has_an_end_and_the_user_need_not_wait_for_it() {
    let hang = || {
        Server::start(|_, stream| {
            let mut nothing = [0; 1];
            std::io::Read::read(stream, &mut nothing).map(|_| ())
        })
    };
    let host = host(&[], &[]);
    let server = hang();
    let few = Patience { tries: 2, stall: Duration::from_millis(300), ..patience() };
    let impatient = Client::patient(Arc::clone(&host), &Anonymous, &|_: &str| {}, &NEVER, few);
    let name = reference(&format!("{}/app:1", server.host()));
    refused(impatient.resolve(&name), "silent for too long");

    let server = hang();
    let name = reference(&format!("{}/app:1", server.host()));
    let cancel = AtomicBool::new(false);
    let patient = Client::new(Arc::clone(&host), &Anonymous, &|_: &str| {}, &cancel);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| patient.resolve(&name));
        kiln_testkit::wait_until(Duration::from_secs(30), "a request", || {
            (!server.asked().is_empty()).then_some(())
        });
        cancel.store(true, Ordering::Release);
        let begun = Instant::now();
        assert!(matches!(waiting.join().unwrap(), Err(Error::Cancelled)));
        assert!(begun.elapsed() < Duration::from_secs(30));
    });
}

#[test]
fn a_blob_that_hangs_ends_when_the_user_wants() {
    let server = Server::start(|_, stream| {
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nbegin")?;
        let mut nothing = [0; 1];
        std::io::Read::read(stream, &mut nothing).map(|_| ())
    });
    let host = host(&[], &[]);
    let cancel = AtomicBool::new(false);
    let client = Client::new(Arc::clone(&host), &Anonymous, &|_: &str| {}, &cancel);
    let name = reference(&format!("{}/app:1", server.host()));
    let mut reader = client.blob(&name, &Digest::of("x"), 1_000_000, &|_| {}).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).map_err(inside)
        });
        cancel.store(true, Ordering::Release);
        assert!(matches!(waiting.join().unwrap(), Err(Error::Cancelled)));
    });
}

#[test]
fn a_trickle_is_no_answer() {
    let server = Server::start(|_, stream| {
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")?;
        loop {
            stream.write_all(b"x")?;
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let host = host(&[], &[]);
    let window = Patience { window: Duration::from_millis(700), ..patience() };
    let client = Client::patient(Arc::clone(&host), &Anonymous, &|_: &str| {}, &NEVER, window);
    let name = reference(&format!("{}/app:1", server.host()));
    refused(blob(&client, &name, &noise(1_000_000)), "bytes have come in");
}

#[test]
fn a_refusal_that_trickles_in_is_not_waited_for() {
    let server = Server::start(|_, stream| {
        write!(stream, "HTTP/1.1 403 No\r\nContent-Length: 8000\r\n\r\nnot for you\n")?;
        loop {
            stream.write_all(b"x")?;
            std::thread::sleep(Duration::from_millis(300));
        }
    });
    let host = host(&[], &[]);
    let few = Patience { document: Duration::from_secs(1), ..patience() };
    let client = Client::patient(Arc::clone(&host), &Anonymous, &|_: &str| {}, &NEVER, few);
    let name = reference(&format!("{}/app:1", server.host()));
    let (give, take) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| give.send(blob(&client, &name, &noise(1000))));
        // It would take 40 minutes.
        let error = take.recv_timeout(Duration::from_secs(60));
        drop(server);
        refused(error.expect("an end within the deadline"), "not for you");
    });
}

/// The number of the first byte that is asked for.
fn from(request: &Request) -> usize {
    let range = request.header("range").and_then(|range| range.strip_prefix("bytes="));
    range.and_then(|range| range.strip_suffix('-')).map_or(0, |from| from.parse().unwrap())
}

/// Gives `bytes`, but only `most` of them in one answer. `ranges` says whether it can go on.
fn cuts(bytes: Vec<u8>, most: usize, ranges: bool) -> Server {
    Server::start(move |request, stream| {
        let from = if ranges { from(request) } else { 0 };
        let left = bytes.len() - from;
        let head = match from {
            0 => "200 OK".to_owned(),
            _ => format!("206 Partial\r\nContent-Range: bytes {from}-{}/*", bytes.len() - 1),
        };
        write!(stream, "HTTP/1.1 {head}\r\nContent-Length: {left}\r\nConnection: close\r\n\r\n")?;
        stream.write_all(&bytes[from..from + left.min(most)])
    })
}

#[test]
fn a_blob_that_breaks_is_taken_up_where_it_broke() {
    let bytes = noise(5_000_000);
    let server = cuts(bytes.clone(), 1_900_000, true);
    assert_eq!(fetch(&server, &bytes).unwrap(), bytes);
    let asked: Vec<usize> = server.asked().iter().map(from).collect();
    assert_eq!(asked, [0, 1_900_000, 3_800_000]);
    // One that always breaks in the same place ends with an error that says so.
    let error = fetch(&cuts(bytes.clone(), 1_900_000, false), &bytes);
    refused(error, "breaks off after 1900000 of 5000000 bytes");
    // One that gives a few bytes each time is no better.
    let server = cuts(bytes.clone(), 10, true);
    refused(fetch(&server, &bytes), "again and again");
    assert!(server.asked().len() < 20, "{}", server.asked().len());
}

#[test]
fn a_blob_that_was_begun_before_is_gone_on_with() {
    let bytes = noise(3_000_000);
    let host = host(&[], &[]);
    let client = client(&host, &Anonymous);
    let seen = |bytes: &[u8]| {
        let mut hasher = kiln_core::digest::Hasher::new();
        hasher.update(bytes);
        (bytes.len() as u64, hasher)
    };
    let rest = |server: &Server, begun: &[u8]| -> Result<Vec<u8>, Error> {
        let name = reference(&format!("{}/app:1", server.host()));
        let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
        let mut read = Vec::new();
        let mut blob = client.blob_from(&name, &digest, size, seen(begun), &|_| {})?;
        blob.read_to_end(&mut read).map_err(inside)?;
        Ok(read)
    };
    for ranges in [true, false] {
        let server = cuts(bytes.clone(), 3_000_000, ranges);
        assert_eq!(rest(&server, &bytes[..1_234_567]).unwrap(), bytes[1_234_567..]);
        assert_eq!(from(&server.asked()[0]), 1_234_567);
    }
    let server = cuts(bytes.clone(), 3_000_000, true);
    let mut torn = bytes[..1_234_567].to_vec();
    torn[7] ^= 1;
    refused(rest(&server, &torn), "gave something else");
}

#[test]
fn a_server_that_cannot_go_on_begins_again() {
    let bytes = noise(3_000_000);
    let (own, times) = (bytes.clone(), AtomicUsize::new(0));
    let server = Server::start(move |_, stream| {
        let most = if times.fetch_add(1, Ordering::Relaxed) == 0 { 1_500_000 } else { own.len() };
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", own.len())?;
        stream.write_all(&own[..most])
    });
    assert_eq!(fetch(&server, &bytes).unwrap(), bytes);
    assert_eq!(server.asked().len(), 2);
}

#[test]
fn another_part_than_the_one_asked_for_is_refused() {
    let bytes = noise(2_000_000);
    let own = bytes.clone();
    let server = Server::start(move |request, stream| {
        if from(request) == 0 {
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", own.len())?;
            return stream.write_all(&own[..1_000_000]);
        }
        send(stream, "206 Partial", &["Content-Range: bytes 0-9/10"], b"0123456789")
    });
    refused(fetch(&server, &bytes), "the part `bytes 0-9/10`");
    refused(fetch(&always("206 Partial", &[], b"0123456789"), b"0123456789"), "a part, where");
}

#[test]
fn a_registry_that_is_busy_is_asked_again_when_it_says_and_not_for_ever() {
    let times = AtomicUsize::new(0);
    let server = Server::start(move |_, stream| match times.fetch_add(1, Ordering::Relaxed) {
        0 => send(stream, "429 Too Many", &["Retry-After: 1"], b""),
        1 => send(stream, "503 Later", &[], b""),
        _ => send(stream, "200 OK", &[MANIFEST], NOTHING),
    });
    let begun = Instant::now();
    resolve(&server).unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));

    let server =
        always("429 Too Many", &["Retry-After: 86400"], br#"{"errors":[{"message":"slow down"}]}"#);
    let error = refused(resolve(&server), "slow down (it asks to wait 86400 s)");
    assert!(matches!(error, Error::Limited { .. }));
    assert_eq!(server.asked().len(), 1);
    let server = always("500 Oh", &[], b"dear");
    refused(resolve(&server), "it answered 500: dear");
    assert_eq!(server.asked().len(), 5);
}

#[test]
fn challenges_that_are_rubbish_give_no_access() {
    for header in [
        "X: no challenge",
        "WWW-Authenticate: ",
        "WWW-Authenticate: Negotiate",
        "WWW-Authenticate: Bearer",
        "WWW-Authenticate: Bearer realm=\"",
        "WWW-Authenticate: ,=,\"\\",
    ] {
        let server = always("401 Unauthorized", &[header], b"");
        let error = resolve(&server).unwrap_err();
        assert!(matches!(error, Error::Denied { .. }), "{header}: {error}");
    }
    for realm in ["ftp://example.invalid/", "http://user:pw@example.invalid/", "relative"] {
        let header = format!("WWW-Authenticate: Bearer realm=\"{realm}\"");
        let server = Server::start(move |_, stream| send(stream, "401 No", &[&header], b""));
        refused(resolve(&server), "which is no address");
    }
}

/// A registry that wants a token from `tokens`, and with it gives what it is asked for.
fn wants_token(tokens: &Server, token: &'static str) -> Server {
    let header =
        format!("WWW-Authenticate: Bearer realm=\"http://{}/t\",service=\"s\"", tokens.host());
    let wanted = format!("Bearer {token}");
    Server::start(move |request, stream| match request.header("authorization") {
        Some(given) if given == wanted => send(stream, "200 OK", &[MANIFEST], NOTHING),
        _ => send(stream, "401 Unauthorized", &[&header], b""),
    })
}

#[test]
fn a_token_server_elsewhere_gets_the_password_and_the_registry_only_the_token() {
    let tokens = always("200 OK", &[], br#"{"access_token":"good"}"#);
    let server = wants_token(&tokens, "good");
    let host = host(&[], &[]);
    let known = Known::password("user", "secret");
    let name = reference(&format!("{}/app:1", server.host()));
    client(&host, &known).resolve(&name).unwrap();
    let shown: Vec<Option<String>> = server
        .asked()
        .iter()
        .map(|request| request.header("authorization").map(str::to_owned))
        .collect();
    assert_eq!(shown, [None, Some("Bearer good".to_owned())]);
    let asked = tokens.asked();
    assert!(asked[0].header("authorization").unwrap().starts_with("Basic "), "{asked:?}");
    assert!(asked[0].target.contains("scope=repository:app:pull"), "{asked:?}");
    assert!(asked[0].target.contains("account=user"), "{asked:?}");
}

#[test]
fn token_servers_that_answer_rubbish_are_named() {
    for (body, what) in [
        (&b"<html>"[..], "cannot be read"),
        (b"{}", "there is none in it"),
        (br#"{"token":"with space"}"#, "there is none in it"),
        (br#"{"token":"with\r\nnewline"}"#, "there is none in it"),
        (br#"{"token":7}"#, "cannot be read"),
    ] {
        let tokens = always("200 OK", &[], body);
        refused(resolve(&wants_token(&tokens, "good")), what);
    }
    let tokens = Server::start(|_, stream| {
        endless(stream, "Connection: close\r\n\r\n{\"token\":\"", &[b'x'; 4096])
    });
    refused(resolve(&wants_token(&tokens, "good")), "too long");
    let tokens = always("302 Found", &["Location: /t"], b"");
    refused(resolve(&wants_token(&tokens, "good")), "on and on");
    let tokens = always("403 No", &[], b"");
    refused(resolve(&wants_token(&tokens, "good")), "its token server answered 403");
    // A token that the registry does not take is fetched again at most once.
    let tokens = always("200 OK", &[], br#"{"token":"bad"}"#);
    let server = wants_token(&tokens, "good");
    let error = resolve(&server).unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error}");
    assert!(server.asked().len() <= 3 && tokens.asked().len() <= 2, "{}", server.asked().len());
}

#[test]
fn a_token_that_is_over_in_the_middle_of_a_blob_is_replaced() {
    let bytes = noise(2_000_000);
    let tokens = {
        let times = AtomicUsize::new(0);
        Server::start(move |_, stream| {
            let number = times.fetch_add(1, Ordering::Relaxed);
            send(
                stream,
                "200 OK",
                &[],
                format!(r#"{{"token":"t{number}","expires_in":3600}}"#).as_bytes(),
            )
        })
    };
    let header =
        format!("WWW-Authenticate: Bearer realm=\"http://{}/t\",service=\"s\"", tokens.host());
    let own = bytes.clone();
    let server = Server::start(move |request, stream| {
        let from = from(request);
        // From the middle on, only the second token does.
        let wanted = if from == 0 { "Bearer t0" } else { "Bearer t1" };
        if request.header("authorization") != Some(wanted) {
            return send(stream, "401 Unauthorized", &[&header], b"");
        }
        let head = if from == 0 { "200 OK" } else { "206 Partial" };
        let most = if from == 0 { 1_000_000 } else { own.len() - from };
        write!(
            stream,
            "HTTP/1.1 {head}\r\nContent-Length: {}\r\nContent-Range: bytes {from}-\r\n\r\n",
            own.len() - from
        )?;
        stream.write_all(&own[from..from + most])
    });
    assert_eq!(fetch(&server, &bytes).unwrap(), bytes);
    assert_eq!(tokens.asked().len(), 2);
}

#[test]
fn what_a_registry_says_controls_no_terminal() {
    let server = always("403 No", &[], br#"{"errors":[{"message":"\u001b[2Jgone\r\nx"}]}"#);
    let error = resolve(&server).unwrap_err().to_string();
    assert!(error.contains("[2Jgone") && !error.contains(char::is_control), "{error:?}");
}

#[test]
fn a_web_site_is_no_registry_to_log_in_to() {
    let known = Known::password("user", "secret");
    let host = host(&[], &[]);
    let server = always("200 OK", &["Content-Type: text/html; charset=utf-8"], b"<html>");
    refused(client(&host, &known).check(&server.host()), "a page for people");
    assert!(server.asked().iter().all(|request| request.header("authorization").is_none()));
    let server = always("200 OK", &["Content-Type: application/json"], b"{}");
    client(&host, &known).check(&server.host()).unwrap();
}

#[test]
fn a_document_that_breaks_off_is_asked_for_again() {
    let times = AtomicUsize::new(0);
    let server = Server::start(move |_, stream| {
        if times.fetch_add(1, Ordering::Relaxed) > 0 {
            return send(stream, "200 OK", &[MANIFEST], NOTHING);
        }
        let length = NOTHING.len();
        write!(stream, "HTTP/1.1 200 OK\r\n{MANIFEST}\r\nContent-Length: {length}\r\n\r\n{{")
    });
    resolve(&server).unwrap();
    assert_eq!(server.asked().len(), 2);
    let server = Server::start(|_, stream| {
        write!(stream, "HTTP/1.1 200 OK\r\n{MANIFEST}\r\nContent-Length: 100\r\n\r\n{{")
    });
    refused(resolve(&server), "breaks off");
    assert_eq!(server.asked().len(), 5);
}
