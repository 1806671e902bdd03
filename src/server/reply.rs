//! Replies: the one place that builds them.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;

/// A reply, whole in memory.
pub type Reply = Response<Full<Bytes>>;

/// A reply with this body.
pub fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
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
