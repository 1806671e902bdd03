//! `GET /messages/<Id>`: what became of a message that was accepted.

use http::StatusCode;
use jiff::Timestamp;
use serde::Serialize;

use crate::delivery::Delivery;
use crate::message::MessageId;
use crate::server::{Problem, Reply, json_reply};
use crate::spool::{Brief, Reason, State};
use crate::upstream::HttpUpstream;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct MessageStatus<'a> {
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

/// The reply for the id in the path, which may be none.
pub(super) fn answer(id: &str, delivery: &Delivery<HttpUpstream>) -> Reply {
    let known = id.parse().ok().and_then(|id: MessageId| delivery.find(id));
    let Some(brief) = known else {
        let detail = "No message with this id is kept. It was never accepted here, or it was \
                      delivered, dropped or expired longer ago than receipts are kept (spool.keep_receipts).";
        let status = StatusCode::NOT_FOUND;
        let problem = Problem::new(status, "no-such-message", "No such message", detail.to_owned());
        return problem.into_response();
    };
    json_reply(StatusCode::OK, &status_of(&brief))
}

fn status_of(brief: &Brief) -> MessageStatus<'_> {
    let (status, msg_id, reason) = match &brief.state {
        State::Queued { .. } => ("queued", None, None),
        State::Delivered(receipt) => ("delivered", Some(&*receipt.msg_id), None),
        State::Dropped(_) => ("dropped", None, None),
        // A call had an unknown outcome.
        State::Expired(_) if brief.unknown > 0 => ("unknown", None, Some("expired")),
        // A call may have been under way when its process ended.
        State::Expired(_) => ("expired", None, brief.doubt.then_some("unknown")),
        State::Dead(death) => match death.reason {
            Reason::Unknown => ("unknown", None, Some("unknown")),
            Reason::Expired => ("dead", None, Some("expired")),
            Reason::Refused => ("dead", None, Some(death.code.as_deref().unwrap_or("refused"))),
        },
    };
    let (id, attempts, accepted_at) = (brief.id.to_string(), brief.attempts, brief.kept_at);
    let topic = brief.topic.as_str();
    MessageStatus { id, status, topic, attempts, msg_id, reason, accepted_at }
}
