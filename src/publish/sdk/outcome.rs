//! What became of an SDK's message, as the provider would say it. The SDKs read `Code`, the status and
//! `x-acs-retry-after`: what may be sent again is a 5xx or a throttling, what may not is a 4xx.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use super::RefusedCall;
use crate::answer::{Answer, HttpAnswer, Verdict};
use crate::ceiling::Refused;
use crate::delivery::{Disposition, Outcome};
use crate::message::MessageId;
use crate::meter::Published;
use crate::publish::answered::{Answered, NotDelivered};
use crate::server::{Reply, reply};
use crate::verification::Refusal;

const JSON: &str = "application/json;charset=utf-8";
const REQUEST_ID: HeaderName = HeaderName::from_static("x-acs-request-id");
const RETRY_AFTER: HeaderName = HeaderName::from_static("x-acs-retry-after");
/// Where the provider names no time.
const THROTTLE_RETRY: Duration = Duration::from_secs(1);
/// What the ids of messages begin with that are stored and not yet delivered.
const KEPT: &str = "TOLLGATE-";

/// The answer to an SDK.
pub(super) struct SdkAnswer {
    result: Result<Success, Refusal>,
    published: Published,
    calls: u32,
    /// The provider's, of the last call.
    request_id: Option<String>,
    code: Option<String>,
}

/// What is not ours to word.
enum Success {
    /// Its message was taken: `MsgId`.
    Taken(String),
    /// Another operation's answer, as the provider has given it, be it of success or not.
    Passed { status: u16, body: Bytes, retry_after: Option<Duration> },
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Sent<'a> {
    msg_id: &'a str,
    request_id: &'a str,
}

impl From<RefusedCall> for SdkAnswer {
    fn from(refused: RefusedCall) -> Self {
        let RefusedCall { refusal, published } = refused;
        Self { result: Err(refusal), published, calls: 0, request_id: None, code: None }
    }
}

impl SdkAnswer {
    pub(super) fn of(outcome: Outcome, now: Timestamp) -> Self {
        let Outcome { calls, ended, .. } = outcome;
        let (result, published) = match &ended {
            Disposition::Answered(answer) => answered(answer),
            Disposition::Kept(id) | Disposition::Settled(id, _) => {
                (Ok(kept(*id)), Published::Queued)
            }
            Disposition::NoPermit(refused) => no_permit(refused),
            Disposition::Paused => {
                let text = "The provider fails for this topic: the message was not sent.";
                (Err(unavailable(text)), Published::Failed)
            }
            Disposition::OverBudget(over) => {
                let left = Duration::try_from(over.until.duration_since(now)).unwrap_or_default();
                let text =
                    format!("The budget {:?} {} until {}.", over.budget, over.reason, over.until);
                (Err(throttled(&text, left)), Published::OverBudget)
            }
            Disposition::Unanswered
            | Disposition::Unresolved(_)
            | Disposition::Dropped { doubt: true, .. }
            | Disposition::Expired { doubt: true, .. } => (Err(unknown()), Published::Unknown),
            Disposition::Expired { doubt: false, .. } => {
                let text = "The message's time to live ended before it was delivered.";
                (Err(unavailable(text)), Published::Failed)
            }
            Disposition::Dropped { doubt: false, .. } => {
                (Err(unavailable("The message was dropped by an operator.")), Published::Failed)
            }
            Disposition::NotKept(_) => {
                let text = "The message was not delivered in time, and the spool does not take it.";
                (Err(unavailable(text)), Published::Full)
            }
            Disposition::Denied(denied) => {
                let text =
                    format!("The provider does not let tollgate in. {}", denied.explanation());
                (Err(unavailable(&text)), Published::Failed)
            }
            Disposition::Stopping => return super::stopping().into(),
            // No call of an SDK has a key of idempotency.
            Disposition::OtherRequest | Disposition::SameUnderWay | Disposition::TooManyKeys(_) => {
                (Err(unavailable("The message was not taken.")), Published::Invalid)
            }
        };
        let http = match &ended {
            Disposition::Answered(answer) => answer.http(),
            _ => None,
        };
        let request_id = http.and_then(|http| http.request_id.clone()).map(String::from);
        let code = match &ended {
            Disposition::Answered(answer) => Some(answer.label().into_owned()),
            _ => None,
        };
        Self { result: result.map(Success::Taken), published, calls, request_id, code }
    }

    /// The provider's answer to a call of another operation.
    pub(super) fn passed(http: &HttpAnswer, body: Bytes) -> Self {
        let HttpAnswer { status, retry_after, .. } = *http;
        let request_id = http.request_id.clone().map(String::from);
        let result = Ok(Success::Passed { status, body, retry_after });
        // Not a message: its counts are the passthrough's.
        Self { result, published: Published::Delivered, calls: 1, request_id, code: None }
    }

    /// What became of a call of another operation, where the provider's answer is not to be passed on.
    pub(super) fn of_action(answer: &Answer) -> Self {
        let refusal = match answer.verdict() {
            Verdict::Denied(denied) => {
                let text =
                    format!("The provider does not let tollgate in. {}", denied.explanation());
                unavailable(&text)
            }
            Verdict::Delivered | Verdict::Unknown => Refusal::new("InternalError").saying(
                "A call was sent, and no answer came that can be read: it may have been done.",
            ),
            Verdict::Throttled { retry_after } => {
                let text = "Request was denied due to user flow control.";
                throttled(text, retry_after.unwrap_or(THROTTLE_RETRY))
            }
            Verdict::Refused => as_the_provider(answer.http(), "ParameterCheckFailed"),
            Verdict::Failed => as_the_provider(answer.http(), "ServiceUnavailable"),
        };
        RefusedCall { refusal, published: Published::Failed }.into()
    }

    /// No permit was free in time for a call of another operation, of the ceiling for these calls.
    pub(super) fn without_permit(refused: &Refused, of: &str) -> Self {
        let wait = match refused {
            Refused::WaitTooLong { retry_after, .. } | Refused::QueueFull { retry_after } => {
                *retry_after
            }
            Refused::TimedOut => THROTTLE_RETRY,
        };
        let text = format!("Request was denied due to user flow control: the ceiling for {of}.");
        let refusal = throttled(&text, wait);
        RefusedCall { refusal, published: Published::OverCeiling }.into()
    }

    /// `host`: what the caller has called us.
    pub(super) fn answered(self, host: &str) -> Answered {
        let Self { result, published, calls, request_id, code } = self;
        let id = request_id.clone().unwrap_or_else(new_request_id);
        let (mut reply, failure) = match result {
            Ok(Success::Taken(msg_id)) => {
                (json(StatusCode::OK, &Sent { msg_id: &msg_id, request_id: &id }), None)
            }
            Ok(Success::Passed { status, body, retry_after }) => {
                let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
                let mut reply = reply(status, JSON, body);
                if let Some(wait) = retry_after {
                    let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                    reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from(millis));
                }
                (reply, None)
            }
            Err(refusal) => {
                let status =
                    StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::BAD_REQUEST);
                let mut reply = reply(status, JSON, refusal.to_json(&id, host));
                if let Some(wait) = refusal.retry_after {
                    reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from(wait.max(1)));
                }
                let failure = NotDelivered {
                    status: refusal.status,
                    problem: refusal.code,
                    calls,
                    code,
                    upstream_request_id: request_id.map(Into::into),
                };
                (reply, Some(failure))
            }
        };
        if let Ok(id) = HeaderValue::try_from(id) {
            reply.headers_mut().insert(REQUEST_ID, id);
        }
        Answered { reply, published, failure }
    }
}

fn answered(answer: &Answer) -> (Result<String, Refusal>, Published) {
    let http = answer.http();
    match answer.verdict() {
        Verdict::Delivered => {
            let id = http.and_then(|http| http.msg_id.as_deref()).unwrap_or_default();
            (Ok(id.to_owned()), Published::Delivered)
        }
        Verdict::Unknown => (Err(unknown()), Published::Unknown),
        Verdict::Throttled { retry_after } => {
            let text = "Request was denied due to user flow control.";
            let wait = retry_after.unwrap_or(THROTTLE_RETRY);
            (Err(throttled(text, wait)), Published::OverCeiling)
        }
        Verdict::Denied(denied) => {
            let text = format!("The provider does not let tollgate in. {}", denied.explanation());
            (Err(unavailable(&text)), Published::Failed)
        }
        Verdict::Refused => {
            (Err(as_the_provider(http, "ParameterCheckFailed")), Published::Refused)
        }
        Verdict::Failed => (Err(as_the_provider(http, "ServiceUnavailable")), Published::Failed),
    }
}

/// The provider's own code, or this one where it has said none.
fn as_the_provider(http: Option<&HttpAnswer>, otherwise: &'static str) -> Refusal {
    let code = http.and_then(|http| http.code.as_deref());
    let refusal =
        code.map_or_else(|| Refusal::new(otherwise), |code| Refusal::new(code.to_owned()));
    match http {
        Some(http) if code.is_some() && http.status >= 400 => {
            Refusal { status: http.status, ..refusal }
        }
        _ => refusal,
    }
}

fn no_permit(refused: &Refused) -> (Result<String, Refusal>, Published) {
    match refused {
        Refused::WaitTooLong { ceiling, wait, retry_after } => {
            let text = format!(
                "Request was denied due to user flow control: the queue for the {} ceiling is {:.1} s long.",
                ceiling.as_str(),
                wait.as_secs_f64()
            );
            (Err(throttled(&text, *retry_after)), Published::OverCeiling)
        }
        Refused::QueueFull { retry_after } => {
            let text = "Request was denied due to user flow control: too many messages wait.";
            (Err(throttled(text, *retry_after)), Published::Full)
        }
        Refused::TimedOut => {
            let text = "Request was denied due to user flow control: no permit was free in time.";
            (Err(throttled(text, THROTTLE_RETRY)), Published::OverCeiling)
        }
    }
}

fn throttled(text: &str, wait: Duration) -> Refusal {
    Refusal::new("Throttling.User").saying(text.to_owned()).after(wait)
}

fn unavailable(text: &str) -> Refusal {
    Refusal::new("ServiceUnavailable").saying(text.to_owned())
}

fn unknown() -> Refusal {
    Refusal::new("InternalError").saying(
        "It is not known whether the message was delivered: a call was sent, and its outcome did not come. \
         Sending it again may deliver it twice.",
    )
}

fn kept(id: MessageId) -> String {
    format!("{KEPT}{id}")
}

fn new_request_id() -> String {
    Uuid::new_v4().hyphenated().encode_upper(&mut Uuid::encode_buffer()).to_owned()
}

fn json(status: StatusCode, body: &impl Serialize) -> Reply {
    // Text: serialising it cannot fail.
    reply(status, JSON, serde_json::to_vec(body).unwrap_or_default())
}
