//! `POST /publish`: many messages in one request, a line each, and a line of answer for each.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::key;
use super::outcome::Answered;
use super::prefer::Prefer;
use super::request::{Reader, bad_key, invalid};
use crate::delivery::PublishOptions;
use crate::message::{Message, MessageId, TraceId};
use crate::server::Problem;

/// Messages of one request.
const MAX_LINES: usize = 1_000;
/// Bytes of one request.
pub(super) const MAX_BODY: usize = 8 << 20;
pub(super) const CONTENT_TYPE: &str = "application/x-ndjson";

/// One line.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    topic: String,
    payload: Option<String>,
    #[serde(rename = "payloadBase64")]
    payload_base64: Option<String>,
    key: Option<String>,
}

/// A line as it was understood.
pub(super) type Read = Result<(Message, PublishOptions), Problem>;

/// Splits a body into its lines; blank ones count for nothing.
///
/// # Errors
/// Too many of them, or none.
pub(super) fn lines(body: &Bytes) -> Result<Vec<Bytes>, Problem> {
    let lines: Vec<_> = body
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.trim_ascii().is_empty())
        .map(|line| body.slice_ref(line))
        .take(MAX_LINES + 1)
        .collect();
    match lines.len() {
        0 => Err(invalid(
            StatusCode::BAD_REQUEST,
            "empty-batch",
            "No message",
            "The body has no line. A line looks like {\"topic\":\"TopicA\",\"payload\":\"hello\"}."
                .to_owned(),
        )),
        n if n > MAX_LINES => Err(invalid(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too-many-messages",
            "Too many messages",
            format!("A request may have {MAX_LINES} lines. Nothing was sent."),
        )),
        _ => Ok(lines),
    }
}

/// Reads one line as if it were a request of its own.
pub(super) fn read(reader: &Reader, line: &[u8], prefer: Prefer, trace: Option<TraceId>) -> Read {
    let malformed = |why: String| {
        let detail = format!(
            "{why}. This message was not sent. A line looks like {{\"topic\":\"TopicA\",\
             \"payload\":\"hello\"}}, or has payloadBase64; it may have a key."
        );
        invalid(StatusCode::BAD_REQUEST, "malformed-line", "Malformed line", detail)
    };
    let line: Line =
        serde_json::from_slice(line).map_err(|e| malformed(format!("The line is none: {e}")))?;
    let body = match (line.payload, line.payload_base64) {
        (Some(text), None) => Bytes::from(text),
        (None, Some(encoded)) => match STANDARD.decode(encoded) {
            Ok(bytes) => Bytes::from(bytes),
            Err(error) => return Err(malformed(format!("payloadBase64 is no Base64: {error}"))),
        },
        _ => {
            let why = "A line has either payload or payloadBase64";
            return Err(malformed(why.to_owned()));
        }
    };
    let (topic, instance) = reader.place(&line.topic)?;
    let claim = line.key.map(|key| key::of(&key, &topic, &body).map_err(bad_key)).transpose()?;
    let payload = reader.payload(body)?;
    let (wanted, _) = reader.wanted(prefer, claim);
    let id = MessageId::new();
    Ok((Message { id, instance, topic, payload, trace }, wanted))
}

/// Whether a request's body is lines.
pub(super) fn is_lines(headers: &HeaderMap) -> bool {
    let kind = headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default();
    kind.trim().eq_ignore_ascii_case(CONTENT_TYPE)
}

/// An answer as a line: what it would say alone, with its status.
pub(super) fn line(answered: &Answered, body: &[u8]) -> Vec<u8> {
    let mut fields: Map<String, Value> = serde_json::from_slice(body).unwrap_or_default();
    fields.insert("status".to_owned(), answered.reply.status().as_u16().into());
    let mut line = Value::Object(fields).to_string().into_bytes();
    line.push(b'\n');
    line
}

/// The status of them all.
pub(super) fn status(all: &[StatusCode]) -> StatusCode {
    match all.first() {
        Some(&first @ (StatusCode::OK | StatusCode::ACCEPTED))
            if all.iter().all(|status| *status == first) =>
        {
            first
        }
        _ => StatusCode::MULTI_STATUS,
    }
}
