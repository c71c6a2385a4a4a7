//! Short answers of the front's own. They name nothing of what is inside.

use super::answer::put_date;
use super::head::{put, put_length};

/// A whole answer; after `close` the connection ends.
pub(super) fn page(status: u16, to_head: bool, close: bool) -> Vec<u8> {
    let (reason, text) = words(status);
    let body = format!("{status} {reason}: {text}\n");
    let mut out = Vec::with_capacity(256);
    put(&mut out, &[b"HTTP/1.1 ", status.to_string().as_bytes(), b" ", reason.as_bytes(), b"\r\n"]);
    put(&mut out, &[b"Content-Type: text/plain; charset=utf-8\r\n"]);
    put_length(&mut out, body.len() as u64);
    put_date(&mut out);
    if status == 503 {
        put(&mut out, &[b"Retry-After: 1\r\n"]);
    }
    if close {
        put(&mut out, &[b"Connection: close\r\n"]);
    }
    put(&mut out, &[b"\r\n"]);
    if !to_head {
        put(&mut out, &[body.as_bytes()]);
    }
    out
}

fn words(status: u16) -> (&'static str, &'static str) {
    match status {
        405 => ("Method Not Allowed", "this is not a forward proxy."),
        408 => ("Request Timeout", "the request did not come to its end."),
        431 => ("Request Header Fields Too Large", "the head is longer than 64 KiB."),
        501 => ("Not Implemented", "this transfer coding is not known."),
        502 => ("Bad Gateway", "the service did not answer."),
        503 => ("Service Unavailable", "the service is not ready. Try again in a moment."),
        504 => ("Gateway Timeout", "the service has not answered for ten minutes."),
        _ => ("Bad Request", "this is not HTTP/1, or can be read in two ways."),
    }
}
