//! `GET /messages/<Id>`: what became of a message that was accepted.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;
use jiff::Timestamp;
use serde::Serialize;

use crate::delivery::Delivery;
use crate::message::MessageId;
use crate::server::{Problem, Reply};
use crate::spool::{Brief, Reason, State};
use crate::upstream::Upstream;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Shown<'a> {
    id: String,
    status: &'static str,
    topic: &'a str,
    attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    msg_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    accepted_at: Timestamp,
}

/// The answer for an id as it stands in the path.
pub(super) fn answer<U: Upstream>(id: &str, delivery: &Delivery<U>) -> Reply {
    let known = id.parse().ok().and_then(|id: MessageId| delivery.find(id));
    let Some(brief) = known else {
        let detail = "No message of this id is kept: it was never accepted here, or was dropped, \
                      or was delivered longer ago than receipts are kept (spool.keep_receipts).";
        let status = StatusCode::NOT_FOUND;
        let problem = Problem::new(status, "no-such-message", "No such message", detail.to_owned());
        return problem.into_response();
    };
    // Strings, numbers and a time: there is nothing that could not be serialised.
    let body = serde_json::to_vec(&shown(&brief)).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from(body)));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

fn shown(brief: &Brief) -> Shown<'_> {
    let (status, msg_id, reason) = match &brief.state {
        State::Queued { .. } => ("queued", None, None),
        State::Delivered(receipt) => ("delivered", Some(&*receipt.msg_id), None),
        State::Dropped(_) => ("dropped", None, None),
        State::Dead(death) => match death.reason {
            Reason::Unknown => ("unknown", None, Some("unknown")),
            Reason::Expired => ("dead", None, Some("expired")),
            Reason::Refused => ("dead", None, Some(death.code.as_deref().unwrap_or("refused"))),
        },
    };
    let (id, attempts, accepted_at) = (brief.id.to_string(), brief.attempts, brief.kept_at);
    let topic = brief.topic.as_str();
    Shown { id, status, topic, attempts, msg_id, reason, accepted_at }
}
