//! The body of a request, and what is done with the part of it that an answer did not need.
//!
//! HTTP lets a server answer before it has read a request. The rest of that request still stands before
//! the next one on the connection: it is read and discarded if it is short and comes soon, else the
//! answer closes the connection.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONNECTION, EXPECT, HeaderValue};
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::timeout;

use super::discard::BEFORE_AN_ANSWER;

/// The body of a request. Dropped, it leaves what was not read for [`Rest`].
#[derive(Debug)]
pub struct RequestBody {
    body: Option<Incoming>,
    was_read: bool,
    rest: Rest,
}

/// What is left of a request's body once its answer is known.
#[derive(Debug, Clone, Default)]
pub(super) struct Rest(Arc<Mutex<Option<UnreadBody>>>);

#[derive(Debug)]
struct UnreadBody {
    body: Incoming,
    was_read: bool,
}

impl RequestBody {
    /// The request with this body, and what will be left of it.
    pub(super) fn of(request: Request<Incoming>) -> (Request<Self>, Rest) {
        let rest = Rest::default();
        let own = rest.clone();
        let request = request.map(|body| Self { body: Some(body), was_read: false, rest: own });
        (request, rest)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) else { return };
        let left = UnreadBody { body, was_read: self.was_read };
        *self.rest.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(left);
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.was_read = true;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = std::task::ready!(Pin::new(body).poll_frame(cx));
        if matches!(frame, None | Some(Err(_))) {
            // Nothing more comes, in order or not.
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Rest {
    /// Discards the rest of the body of the request with these headers, or makes its answer close the
    /// connection.
    pub(super) async fn settle<B>(self, headers: Settling, response: &mut Response<B>) {
        let Some(left) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return;
        };
        if closes(response.headers()) {
            return;
        }
        // A client that waits for our 100 sends no body when it gets this answer instead.
        let may_come = left.was_read || headers == Settling::BodyComes;
        let short = left.body.size_hint().lower() <= BEFORE_AN_ANSWER.bytes as u64;
        if may_come && short && discarded(left.body).await {
            return;
        }
        close(response);
    }
}

/// Whether the body of a request comes unasked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settling {
    BodyComes,
    /// `Expect: 100-continue`
    BodyWaits,
}

impl Settling {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        if headers.contains_key(EXPECT) { Self::BodyWaits } else { Self::BodyComes }
    }
}

/// Makes an answer the last one of its connection.
pub(super) fn close<B>(response: &mut Response<B>) {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
}

fn closes(headers: &HeaderMap) -> bool {
    headers.get(CONNECTION).is_some_and(|value| value == "close")
}

/// Reads a body to its end. `false`: it is too long, too slow or broken.
async fn discarded(mut body: Incoming) -> bool {
    let discard = async {
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return false };
            bytes += frame.data_ref().map_or(0, Bytes::len);
            if bytes > BEFORE_AN_ANSWER.bytes {
                return false;
            }
        }
        true
    };
    timeout(BEFORE_AN_ANSWER.time, discard).await.unwrap_or(false)
}
