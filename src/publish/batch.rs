//! `POST /publish`: many messages in one request, one per line; the reply has one line for each.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::callers;
use super::key;
use super::prefer::Prefer;
use super::refusal::{RefusedRequest, invalid};
use super::request::{RequestReader, bad_key};
use super::terms::AskedTerms;
use crate::callers::Caller;
use crate::delivery::PublishOptions;
use crate::message::{Message, MessageId, Trace, Urgency};
use crate::server::{Problem, Reply, Slug};

/// The most messages in one request.
const MAX_LINES: usize = 1_000;
/// The most characters of what is wrong with a line.
const MAX_REASON: usize = 200;
pub(super) const CONTENT_TYPE: &str = "application/x-ndjson";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchItem {
    topic: String,
    payload: Option<String>,
    #[serde(rename = "payloadBase64")]
    payload_base64: Option<String>,
    key: Option<String>,
    ttl: Option<u64>,
    urgency: Option<Urgency>,
}

/// A line that was read.
pub(super) struct Line {
    /// Its place in the body, from 1. Blank lines count.
    pub(super) number: usize,
    /// Its key, as far as the line can be read.
    pub(super) key: Option<String>,
    /// Its message and options, or what is wrong with it.
    pub(super) message: Result<(Message, PublishOptions), RefusedRequest>,
}

/// What all lines of a request have.
#[derive(Clone, Copy)]
pub(super) struct LineTerms<'a> {
    pub(super) caller: Option<&'a Caller>,
    pub(super) prefer: Prefer,
    pub(super) asked: AskedTerms,
    pub(super) trace: Option<Trace>,
}

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
            Slug::EmptyBatch,
            "No message",
            "The body has no line. A line looks like {\"topic\":\"TopicA\",\"payload\":\"hello\"}."
                .to_owned(),
        )),
        n if n > MAX_LINES => Err(invalid(
            StatusCode::PAYLOAD_TOO_LARGE,
            Slug::TooManyMessages,
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
    terms: LineTerms<'_>,
) -> Line {
    let LineTerms { caller, prefer, asked, trace } = terms;
    let mut key = None;
    let message = item(line).and_then(|mut item| {
        key = item.key.take();
        let body = body(item.payload, item.payload_base64)?;
        Ok((item.topic, body, asked.of_line(item.ttl, item.urgency)))
    });
    let message = message.map_err(|why| malformed(number, &why).into());
    let message = message.and_then(|(topic, body, asked)| {
        let (topic, instance) = reader.place(&topic)?;
        callers::check(caller, &topic)?;
        let claim = key.as_deref().map(|key| key::of(key, caller, &topic, &body).map_err(bad_key));
        let claim = claim.transpose()?;
        let payload = reader.line_payload(&topic, body)?;
        let terms = reader.terms(asked, &topic);
        let (options, _) = reader.options(prefer, claim, &terms)?;
        let (id, caller) = (MessageId::new(), caller.map(|caller| Arc::clone(caller.name())));
        Ok((Message { id, instance, topic, payload, caller, trace, terms }, options))
    });
    // One that is too long is not repeated to its sender.
    let key = key.filter(|key| key.len() <= key::MAX_KEY);
    Line { number, key, message }
}

/// serde would take the members from a list, too.
fn item(line: &[u8]) -> Result<BatchItem, String> {
    if line.trim_ascii_start().first() != Some(&b'{') {
        return Err("it is not a JSON object".to_owned());
    }
    serde_json::from_slice(line).map_err(|error| json_error(&error))
}

fn body(text: Option<String>, encoded: Option<String>) -> Result<Bytes, String> {
    match (text, encoded) {
        (Some(text), None) => Ok(Bytes::from(text)),
        (None, Some(encoded)) => STANDARD
            .decode(encoded)
            .map(Bytes::from)
            .map_err(|error| format!("payloadBase64 cannot be decoded: {error}")),
        _ => Err("it needs either payload or payloadBase64".to_owned()),
    }
}

fn malformed(number: usize, why: &str) -> Problem {
    let detail = format!(
        "Line {number} is not a valid message: {why}. It was not sent. A line looks like \
         {{\"topic\":\"TopicA\",\"payload\":\"hello\"}}; it may have payloadBase64 instead of payload, \
         a key, a ttl in whole seconds, and an urgency (very-low, low, normal, high)."
    );
    invalid(StatusCode::BAD_REQUEST, Slug::MalformedLine, "Malformed line", detail)
}

/// A key for all messages of a request would make all but the first repetitions of it.
pub(super) fn whole_key() -> Problem {
    let detail = "An Idempotency-Key is for one message, and this request has many. Nothing was sent. \
                  Give each line a \"key\" of its own.";
    let (status, title) = (StatusCode::BAD_REQUEST, "Idempotency-Key of a batch");
    invalid(status, Slug::BatchKey, title, detail.to_owned())
}

/// Only the column of serde's position: its line is always 1.
fn json_error(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or_default();
    // It repeats names of the line, of any length.
    let what: String = what.chars().take(MAX_REASON).collect();
    format!("{what} at column {}", error.column())
}

/// Whether a request's body is NDJSON.
pub(super) fn is_lines(headers: &HeaderMap) -> bool {
    let kind = headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default();
    kind.trim().eq_ignore_ascii_case(CONTENT_TYPE)
}

/// The result of one line: the body that a request of its own would get, its status, and what its
/// headers would say. No two members differ in their case only.
pub(super) fn result(number: usize, key: Option<String>, reply: &Reply, body: &[u8]) -> Vec<u8> {
    let mut fields: Map<String, Value> = serde_json::from_slice(body).unwrap_or_default();
    // A problem's: the same as httpStatus.
    fields.remove("status");
    let header = |name: &str| reply.headers().get(name).and_then(|value| value.to_str().ok());
    let wait = header("retry-after").and_then(|wait| wait.parse::<u64>().ok());
    let members = [
        ("line", Some(number.into())),
        ("key", key.map(Value::from)),
        ("httpStatus", Some(reply.status().as_u16().into())),
        ("retryAfter", wait.map(Value::from)),
        ("location", header("location").map(Value::from)),
        ("replayed", header("idempotency-replayed").map(|_| true.into())),
    ];
    for (name, value) in members {
        fields.extend(value.map(|value| (name.to_owned(), value)));
    }
    let mut line = Value::Object(fields).to_string().into_bytes();
    line.push(b'\n');
    line
}

/// The status of a batch: that of its messages where all have the same; else 207, or 422 if none was
/// accepted.
pub(super) fn status(all: &[StatusCode]) -> StatusCode {
    match all.first() {
        Some(&first) if all.iter().all(|status| *status == first) => first,
        _ if all.iter().any(StatusCode::is_success) => StatusCode::MULTI_STATUS,
        _ => StatusCode::UNPROCESSABLE_ENTITY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_objects_are_lines() {
        for line in [
            r#"["TopicA","x",null,null]"#,
            r#"[{"topic":"TopicA","payload":"x"}]"#,
            "null",
            "1",
            r#""TopicA""#,
            "",
            "\u{feff}{\"topic\":\"TopicA\",\"payload\":\"x\"}",
            r#"{"topic":"TopicA","topic":"TopicB","payload":"x"}"#,
            r#"{"topic":["TopicA"],"payload":"x"}"#,
            r#"{"topic":"TopicA","payload":"x"} {}"#,
        ] {
            assert!(item(line.as_bytes()).is_err(), "{line}");
        }
        assert!(item(br#"  {"topic":"TopicA","payload":"x"} "#).is_ok());
    }

    #[test]
    fn a_reason_is_short() {
        let name = "n".repeat(1 << 20);
        let why = item(format!("{{\"{name}\":1}}").as_bytes()).err().unwrap();
        assert!(why.contains("unknown field") && why.len() < 300, "{}", why.len());
    }

    #[test]
    fn the_status_of_all() {
        for (all, status) in [
            (&[200, 200][..], 200),
            (&[202], 202),
            (&[200, 202], 207),
            (&[400, 200], 207),
            (&[202, 504], 207),
            (&[400, 400], 400),
            (&[429, 429], 429),
            (&[503], 503),
            (&[400, 403], 422),
            (&[400, 503], 422),
        ] {
            let all: Vec<_> = all.iter().map(|s| StatusCode::from_u16(*s).unwrap()).collect();
            assert_eq!(super::status(&all).as_u16(), status, "{all:?}");
        }
    }
}
