//! Workers that were replaced and still have connections. Each can be asked at a socket of its own,
//! and is told of every table, so that what it has is held, let go of, drained and counted like
//! what the worker has that took its place.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::paths::{Paths, short};
use crate::table::Table;
use crate::wire::{LINE_LIMIT, Reply, Request};

/// How long one may take over an answer that has nothing to wait for. One that was stopped must not
/// hold up who asks.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// Whether there are any.
pub(crate) fn any(paths: &Paths) -> bool {
    !paths.all_finishing().is_empty()
}

/// Tells all of them which table is in force, and then asks `request` if there is one; `limit` is
/// for what that has to wait for. Gives the answers that came.
pub(crate) async fn ask(
    paths: &Paths,
    table: &Table,
    request: Option<&Request>,
    limit: Option<Duration>,
) -> Vec<Reply> {
    let mut asking = JoinSet::new();
    for path in paths.all_finishing() {
        let (table, request) = (table.clone(), request.cloned());
        asking.spawn(async move {
            let asked = one(&path, table, request.as_ref(), limit).await;
            if asked.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
                // It was killed before it could tidy up.
                let _ = std::fs::remove_file(&path);
            }
            asked.ok().flatten()
        });
    }
    asking.join_all().await.into_iter().flatten().collect()
}

async fn one(
    path: &Path,
    table: Table,
    request: Option<&Request>,
    limit: Option<Duration>,
) -> io::Result<Option<Reply>> {
    let stream = timeout(ANSWER_LIMIT, connect(path)).await??;
    let mut stream = BufReader::new(stream);
    let apply = Request::Apply { table, partial: true };
    timeout(ANSWER_LIMIT, say(&mut stream, &apply)).await??;
    let Some(request) = request else { return Ok(None) };
    let reply = match limit {
        Some(limit) => timeout(limit + ANSWER_LIMIT, say(&mut stream, request)).await??,
        None => say(&mut stream, request).await?,
    };
    if let Request::Stop { grace_ms } = request {
        // The line breaks when the process has ended.
        let grace = Duration::from_millis(*grace_ms) + ANSWER_LIMIT;
        let _ = timeout(grace, stream.read(&mut [0])).await;
    }
    Ok(Some(reply))
}

async fn connect(path: &Path) -> io::Result<UnixStream> {
    // A connect to a Unix socket waits only while its queue is full; this one is never full but of
    // a process that was stopped, and then there is nobody to ask.
    let stream = short(path, crate::client::connect_at_once)?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

async fn say(stream: &mut BufReader<UnixStream>, request: &Request) -> io::Result<Reply> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    line.clear();
    stream.take(LINE_LIMIT as u64).read_until(b'\n', &mut line).await?;
    Ok(serde_json::from_slice(&line)?)
}
