//! `POST /publish`: many messages in one request, one per line; the reply has one line for each.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::key;
use super::outcome::Answered;
use super::prefer::Prefer;
use super::request::{RequestReader, bad_key, invalid};
use crate::delivery::PublishOptions;
use crate::message::{Message, MessageId, TraceId};
use crate::server::Problem;

/// The most messages in one request.
const MAX_LINES: usize = 1_000;
/// The most bytes in one request.
pub(super) const MAX_BODY: usize = 8 << 20;
pub(super) const CONTENT_TYPE: &str = "application/x-ndjson";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchItem {
    topic: String,
    payload: Option<String>,
    #[serde(rename = "payloadBase64")]
    payload_base64: Option<String>,
    key: Option<String>,
}

/// A line's message and options, or what is wrong with it.
pub(super) type LineRead = Result<(Message, PublishOptions), Problem>;

/// Splits a body into its lines, numbered from 1; blank ones are skipped.
///
/// # Errors
/// Too many of them, or none.
pub(super) fn lines(body: &Bytes) -> Result<Vec<(usize, Bytes)>, Problem> {
    let lines: Vec<_> = body
        .split(|byte| *byte == b'\n')
        .zip(1..)
        .filter(|(line, _)| !line.trim_ascii().is_empty())
        .map(|(line, number)| (number, body.slice_ref(line)))
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
            format!("At most {MAX_LINES} lines are allowed in a request. Nothing was sent."),
        )),
        _ => Ok(lines),
    }
}

/// Reads line `number` as if it were a request of its own.
pub(super) fn read(
    reader: &RequestReader,
    number: usize,
    line: &[u8],
    prefer: Prefer,
    trace: Option<TraceId>,
) -> LineRead {
    let malformed = |why: String| {
        let detail = format!(
            "Line {number} is not a valid message: {why}. It was not sent. A line looks like \
             {{\"topic\":\"TopicA\",\"payload\":\"hello\"}}; it may have payloadBase64 instead of \
             payload, and a key."
        );
        invalid(StatusCode::BAD_REQUEST, "malformed-line", "Malformed line", detail)
    };
    let item: BatchItem = serde_json::from_slice(line).map_err(|e| malformed(json_error(&e)))?;
    let body = match (item.payload, item.payload_base64) {
        (Some(text), None) => Bytes::from(text),
        (None, Some(encoded)) => match STANDARD.decode(encoded) {
            Ok(bytes) => Bytes::from(bytes),
            Err(error) => {
                return Err(malformed(format!("payloadBase64 cannot be decoded: {error}")));
            }
        },
        _ => {
            let why = "it needs either payload or payloadBase64";
            return Err(malformed(why.to_owned()));
        }
    };
    let (topic, instance) = reader.place(&item.topic)?;
    let claim = item.key.map(|key| key::of(&key, &topic, &body).map_err(bad_key)).transpose()?;
    let payload = reader.payload(body)?;
    let (options, _) = reader.options(prefer, claim);
    let id = MessageId::new();
    Ok((Message { id, instance, topic, payload, trace }, options))
}

/// Only the column of serde's position: its line is always 1.
fn json_error(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or_default();
    format!("{what} at column {}", error.column())
}

/// Whether a request's body is NDJSON.
pub(super) fn is_lines(headers: &HeaderMap) -> bool {
    let kind = headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default();
    kind.trim().eq_ignore_ascii_case(CONTENT_TYPE)
}

/// The reply's line for one message: the body that a request of its own would get, with the status.
pub(super) fn line(answered: &Answered, body: &[u8]) -> Vec<u8> {
    let mut fields: Map<String, Value> = serde_json::from_slice(body).unwrap_or_default();
    fields.insert("status".to_owned(), answered.reply.status().as_u16().into());
    let mut line = Value::Object(fields).to_string().into_bytes();
    line.push(b'\n');
    line
}

/// The status of a batch: that of its messages where all were delivered or all were kept, else 207.
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
