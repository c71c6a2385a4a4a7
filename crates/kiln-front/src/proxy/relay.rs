//! Bytes both ways until both sides have said all. An idle connection holds no buffer.

use std::cell::RefCell;
use std::io;

use bytes::Bytes;
use rustix::net::{Shutdown, shutdown};
use tokio::net::TcpStream;

use super::Rewound;
use crate::upstream::Active;

/// What is read at once.
const BUFFER: usize = 64 << 10;

thread_local! {
    static SHARED: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER]);
}

/// Relays until both directions have ended, one has failed, or the upstream is cut.
pub(super) async fn run(client: Rewound, upstream: Rewound, active: Active) {
    let mut cut = active.upstream().when_cut();
    let up = pump(&client.stream, &upstream.stream, client.bytes);
    let down = pump(&upstream.stream, &client.stream, upstream.bytes);
    tokio::select! {
        // An error ends both: the sockets are closed by their drop.
        _ = async { tokio::try_join!(up, down) } => {}
        _ = cut.pinned() => {}
    }
}

async fn pump(from: &TcpStream, to: &TcpStream, first: Bytes) -> io::Result<()> {
    write_all(to, &first).await?;
    drop(first);
    loop {
        from.readable().await?;
        match step(from, to) {
            Ok(Step::End) => break,
            Ok(Step::Moved) => {}
            Ok(Step::Left(rest)) => write_all(to, &rest).await?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        tokio::task::consume_budget().await;
    }
    // Half-close: the other direction may go on. It fails if the other side is gone already.
    match shutdown(to, Shutdown::Write) {
        Ok(()) | Err(rustix::io::Errno::NOTCONN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

enum Step {
    End,
    Moved,
    /// What the receiver did not take.
    Left(Vec<u8>),
}

fn step(from: &TcpStream, to: &TcpStream) -> io::Result<Step> {
    SHARED.with_borrow_mut(|buffer| {
        let count = from.try_read(buffer)?;
        if count == 0 {
            return Ok(Step::End);
        }
        let bytes = &buffer[..count];
        match to.try_write(bytes) {
            Ok(taken) if taken == count => Ok(Step::Moved),
            Ok(taken) => Ok(Step::Left(bytes[taken..].to_vec())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Ok(Step::Left(bytes.to_vec()))
            }
            Err(error) => Err(error),
        }
    })
}

async fn write_all(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
