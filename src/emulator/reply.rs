//! Answers in the provider's form.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, DATE, HeaderName};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::{Either, Full};
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use super::lines::Lines;
use super::report::Accepted;
use crate::verification::Refusal;

/// All of it at once, or messages line by line.
pub(super) type Body = Either<Full<Bytes>, Lines>;

const JSON: HeaderValue = HeaderValue::from_static("application/json;charset=utf-8");
const PLAIN: HeaderValue = HeaderValue::from_static("text/plain");
const HTML: HeaderValue = HeaderValue::from_static("text/html");
const NDJSON: HeaderValue = HeaderValue::from_static("application/x-ndjson");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-acs-request-id");
const RETRY_AFTER: HeaderName = HeaderName::from_static("x-acs-retry-after");

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Taken<'a> {
    msg_id: &'a str,
    request_id: &'a str,
}

/// 200; with an empty id it is the provider's way to say that something went wrong after all.
pub(super) fn taken(msg_id: &str) -> Response<Body> {
    let request_id = request_id();
    let reply = json(StatusCode::OK, &Taken { msg_id, request_id: &request_id });
    with_request_id(reply, &request_id)
}

pub(super) fn refused(refusal: &Refusal, request: &HeaderMap) -> Response<Body> {
    let request_id = request_id();
    let host = request.get(http::header::HOST).and_then(|host| host.to_str().ok());
    let body = refusal.to_json(&request_id, host.unwrap_or_default());
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::BAD_REQUEST);
    let mut reply = with_request_id(whole(status, JSON, body.into()), &request_id);
    if let Some(milliseconds) = refusal.retry_after {
        reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from(milliseconds));
    }
    reply
}

/// The answer of a load balancer on the way that has no backend.
pub(super) fn html_503() -> Response<Body> {
    const PAGE: &[u8] =
        b"<html>\r\n<head><title>503 Service Temporarily Unavailable</title></head>\
        \r\n<body><h1>503 Service Temporarily Unavailable</h1></body>\r\n</html>\r\n";
    whole(StatusCode::SERVICE_UNAVAILABLE, HTML, Bytes::from_static(PAGE))
}

pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    // these values have nothing that JSON cannot say
    let text = serde_json::to_vec(value).unwrap_or_default();
    whole(status, JSON, text.into())
}

pub(super) fn text(status: StatusCode, text: Bytes) -> Response<Body> {
    whole(status, PLAIN, text)
}

pub(super) fn messages(messages: Vec<Arc<Accepted>>) -> Response<Body> {
    let mut reply = Response::new(Either::Right(Lines::new(messages)));
    reply.headers_mut().insert(CONTENT_TYPE, NDJSON);
    reply
}

/// Without it hyper writes the machine's own time.
pub(super) fn set_date(reply: &mut Response<Body>, time: Timestamp) {
    let printer = jiff::fmt::rfc2822::DateTimePrinter::new();
    let date = printer.timestamp_to_rfc9110_string(&time).ok();
    if let Some(date) = date.and_then(|date| HeaderValue::try_from(date).ok()) {
        reply.headers_mut().insert(DATE, date);
    }
}

fn whole(status: StatusCode, kind: HeaderValue, body: Bytes) -> Response<Body> {
    let mut reply = Response::new(Either::Left(Full::new(body)));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, kind);
    reply
}

pub(super) fn request_id() -> String {
    Uuid::new_v4().hyphenated().encode_upper(&mut Uuid::encode_buffer()).to_owned()
}

pub(super) fn with_request_id(mut reply: Response<Body>, id: &str) -> Response<Body> {
    if let Ok(id) = HeaderValue::from_str(id) {
        reply.headers_mut().insert(REQUEST_ID, id);
    }
    reply
}
