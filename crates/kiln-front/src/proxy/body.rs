//! Bodies on their way: streamed frame by frame, so a slow reader slows its writer.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use crate::pool::{self, Sender};
use crate::upstream::Active;

/// From client to upstream.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// As it comes in.
    Streamed(Incoming),
    /// None: a request that is sent again has none.
    Empty,
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Streamed(body) => Pin::new(body).poll_frame(cx),
            Self::Empty => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Streamed(body) => body.is_end_stream(),
            Self::Empty => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Streamed(body) => body.size_hint(),
            Self::Empty => SizeHint::with_exact(0),
        }
    }
}

/// From upstream, or from the front itself, to the client.
#[derive(Debug)]
pub(crate) enum ResponseBody {
    /// As it comes in; at its end the upstream connection goes back to the pool.
    Streamed(Incoming, Option<Lease>),
    /// A short page of the front's own.
    Page(Option<&'static str>),
}

/// What a response holds until its last byte has gone out.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) sender: Sender,
    pub(crate) active: Active,
    /// Keeps the client's connection counted.
    pub(crate) _conn: Arc<super::Conn>,
}

impl Lease {
    fn give_back(self) {
        pool::put(self.active.upstream(), self.sender);
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Page(page) => Poll::Ready(
                page.take().map(|page| Ok(Frame::data(Bytes::from_static(page.as_bytes())))),
            ),
            Self::Streamed(body, lease) => {
                let frame = Pin::new(body).poll_frame(cx);
                if let Poll::Ready(None) = frame
                    && let Some(lease) = lease.take()
                {
                    lease.give_back();
                }
                frame
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Streamed(body, _) => body.is_end_stream(),
            Self::Page(page) => page.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Streamed(body, _) => body.size_hint(),
            Self::Page(page) => SizeHint::with_exact(page.map_or(0, |page| page.len() as u64)),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        // A body of known length ends without a last poll. One that did not end takes the
        // upstream connection with it: the rest of it is of no use to anybody.
        if let Self::Streamed(body, lease) = self
            && body.is_end_stream()
            && let Some(lease) = lease.take()
        {
            lease.give_back();
        }
    }
}
