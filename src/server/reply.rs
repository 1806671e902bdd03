//! Replies: the one place that builds them.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};
use serde::Serialize;
use tokio::sync::mpsc;

/// A reply.
pub type Reply = Response<ReplyBody>;

/// The body of a reply.
#[derive(Debug)]
pub enum ReplyBody {
    /// It is whole in memory.
    Whole(Full<Bytes>),
    /// Its parts come as they are known.
    Parts(mpsc::Receiver<Bytes>),
}

impl Default for ReplyBody {
    fn default() -> Self {
        Self::Whole(Full::default())
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Whole(body) => Pin::new(body).poll_frame(cx),
            Self::Parts(parts) => parts.poll_recv(cx).map(|part| part.map(|p| Ok(Frame::data(p)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Parts(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Parts(_) => SizeHint::default(),
        }
    }
}

/// A reply with this body.
pub fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(ReplyBody::Whole(Full::new(body.into())));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

/// A reply whose body is this value as JSON.
pub fn json_reply(status: StatusCode, body: &impl Serialize) -> Reply {
    reply(status, "application/json", json(body))
}

/// Values of ours as JSON.
pub(super) fn json(body: &impl Serialize) -> Vec<u8> {
    // Strings, numbers, booleans and times: serialising them cannot fail.
    serde_json::to_vec(body).unwrap_or_default()
}
