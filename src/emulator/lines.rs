//! Many messages as NDJSON, made a chunk at a time as the reader takes them.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::vec::IntoIter;

use bytes::Bytes;
use hyper::body::{Body, Frame};

use super::report::Accepted;

/// Bytes after which a chunk goes out.
const CHUNK: usize = 64 << 10;

/// A body of one JSON object a line.
pub(super) struct Lines(IntoIter<Arc<Accepted>>);

impl Lines {
    pub(super) fn new(messages: Vec<Arc<Accepted>>) -> Self {
        Self(messages.into_iter())
    }
}

impl Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let mut chunk = Vec::new();
        while chunk.len() < CHUNK
            && let Some(message) = self.0.next()
        {
            // writing to memory does not fail
            if serde_json::to_writer(&mut chunk, message.as_ref()).is_ok() {
                chunk.push(b'\n');
            }
        }
        Poll::Ready((!chunk.is_empty()).then(|| Ok(Frame::data(chunk.into()))))
    }
}
