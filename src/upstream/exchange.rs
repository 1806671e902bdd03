//! One request over one connection, and its answer.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;

use super::pool::PooledConnection;
use crate::answer::{Answer, TransportError};
use crate::ceiling::Read;

/// How connections lead to the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Path {
    Direct,
    /// Through `upstream.proxy`: what ends a connection may be the proxy's doing, and it may still
    /// pass on what it has got.
    Proxied,
}

/// An answer, and its body as it came.
#[derive(Clone)]
pub struct RawAnswer {
    /// What was read in it.
    pub answer: Answer,
    /// Empty where there was no answer.
    pub body: Bytes,
}

impl From<TransportError> for RawAnswer {
    fn from(lost: TransportError) -> Self {
        Self { answer: Answer::TransportError(lost), body: Bytes::new() }
    }
}

/// What became of a request: its answer, or why there is none and whether the provider may still read
/// it.
pub(super) type Exchanged = (PooledConnection, Result<RawAnswer, (TransportError, Read)>);

/// Sends a request and reads the whole answer.
pub(super) async fn exchange(
    mut connection: PooledConnection,
    request: Request<Full<Bytes>>,
    path: Path,
    max_answer: usize,
) -> Exchanged {
    let response = connection.sender().try_send_request(request).await;
    let ended = match response {
        Ok(response) => answer(response, max_answer).await,
        Err(mut error) => {
            // hyper hands a request back of which it has written nothing.
            Err(match error.take_message() {
                Some(_) => (TransportError::Unwritten, Read::Never),
                None if error.error().is_parse() => (TransportError::Garbled, Read::Possible),
                None => (TransportError::Closed, read(error.error(), path)),
            })
        }
    };
    (connection, ended)
}

async fn answer(
    response: Response<Incoming>,
    most: usize,
) -> Result<RawAnswer, (TransportError, Read)> {
    let (head, body) = response.into_parts();
    // Its head has come: the provider has read the call.
    match Limited::new(body, most).collect().await {
        Ok(body) => {
            let body = body.to_bytes();
            let answer = Answer::read(head.status.as_u16(), &head.headers, &body);
            Ok(RawAnswer { answer, body })
        }
        Err(error) if error.is::<LengthLimitError>() => Err((TransportError::Garbled, Read::Over)),
        Err(_) => Err((TransportError::Closed, Read::Over)),
    }
}

/// Whether the provider may still read the call of a connection that ended with this error.
fn read(error: &hyper::Error, path: Path) -> Read {
    // Its end in order. A reset may be the way's doing, and any end a proxy's.
    let is_over = error.is_incomplete_message() && path == Path::Direct;
    if is_over { Read::Over } else { Read::Possible }
}
