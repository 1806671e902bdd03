//! `GET /messages/<Id>`: what became of a message that was accepted.

use http::StatusCode;
use jiff::Timestamp;
use serde::Serialize;

use crate::server::{Problem, Reply, Slug, json_reply};
use crate::spool::{Brief, Reason, State};

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

/// The reply to a reader of this message.
pub(super) fn answer(found: Option<Brief>) -> Reply {
    found.map_or_else(none, |brief| json_reply(StatusCode::OK, &status_of(&brief)))
}

/// The reply where no message is found.
pub(super) fn none() -> Reply {
    let detail = "No message with this id is kept. It was never accepted here, or it was delivered, \
                  dropped or expired longer ago than receipts are kept (spool.keep_receipts).";
    let status = StatusCode::NOT_FOUND;
    Problem::new(status, Slug::NoSuchMessage, "No such message", detail.to_owned()).into_response()
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
