//! From an outcome to a reply: the one place that chooses HTTP statuses.

use std::time::Duration;

use http::header::{HeaderValue, LOCATION};
use http::{HeaderName, StatusCode};
use jiff::Timestamp;
use serde::Serialize;

use super::answered::Answered;
use super::over_budget;
use crate::answer::{AccessDenied, Answer, HttpAnswer, TransportError, Verdict};
use crate::ceiling::Refused;
use crate::delivery::{Disposition, Outcome, Settled};
use crate::message::MessageId;
use crate::meter::Published;
use crate::server::{Problem, Reply, Slug, json_reply};
use crate::spool::{Doubt, Durability, KeepError};

/// `Retry-After` where the provider names no time.
const THROTTLE_RETRY: Duration = Duration::from_secs(1);

/// `Retry-After` where the spool does not take a message.
const FULL_RETRY: Duration = Duration::from_secs(5);

/// The title of the problem `unknown`.
const UNKNOWN: &str = "It is not known whether the message was delivered";

/// The reply's body for a message that was delivered.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DeliveredBody<'a> {
    msg_id: &'a str,
    request_id: &'a str,
    attempts: u32,
}

/// The reply's body for a message that is kept.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct AcceptedBody<'a> {
    id: String,
    status: &'a str,
    durability: &'a str,
}

/// The reply to the caller. `durability`: of kept messages; `applied`: the value of
/// `Preference-Applied`.
pub(super) fn answer(
    outcome: Outcome,
    durability: Durability,
    applied: Option<String>,
) -> Answered {
    let Outcome { calls, ended, replayed } = outcome;
    let mut answered = match ended {
        Disposition::Answered(answer) => answer_of(&answer, calls),
        Disposition::NoPermit(refused) => no_permit(refused),
        // Only of a message that its caller would rather lose than have stored: none of this door's.
        Disposition::Paused => Answered::problem(Published::Failed, timeout()),
        Disposition::OverBudget(over) => over_budget::answer(&over, calls, Timestamp::now()),
        Disposition::Unanswered => unanswered(calls),
        Disposition::Kept(id) => accepted(id, "queued", Published::Queued, durability),
        Disposition::Settled(id, settled) => {
            let (status, published) = match settled {
                Settled::Delivered => ("delivered", Published::Delivered),
                Settled::Dead => ("dead", Published::Queued),
                Settled::Unknown => ("unknown", Published::Queued),
                Settled::Expired => ("expired", Published::Queued),
            };
            accepted(id, status, published, durability)
        }
        Disposition::Unresolved(id) => unresolved(id, calls),
        Disposition::Dropped { id, doubt } => dropped(id, doubt.into(), calls),
        Disposition::Expired { id, doubt } => expired(id, doubt.into(), calls),
        Disposition::NotKept(error) => not_kept(&error, calls),
        Disposition::Denied(denied) => denied_before(denied),
        Disposition::OtherRequest => Answered::problem(
            Published::Invalid,
            key_problem(
                StatusCode::UNPROCESSABLE_ENTITY,
                Slug::KeyReused,
                "The key was used for another message",
                "A message with this Idempotency-Key and another topic or body was published before. \
                 Nothing was sent; every message needs a key of its own.",
            ),
        ),
        Disposition::SameUnderWay => Answered::problem(
            Published::Invalid,
            key_problem(
                StatusCode::CONFLICT,
                Slug::KeyInFlight,
                "The same request is being answered",
                "A request with this Idempotency-Key is still being answered. This one was not sent \
                 again; repeat it after Retry-After.",
            )
            .retry_after(THROTTLE_RETRY),
        ),
        Disposition::TooManyKeys(free_after) => Answered::problem(
            Published::Full,
            key_problem(
                StatusCode::SERVICE_UNAVAILABLE,
                Slug::KeysFull,
                "Too many keys",
                "As many keys are reserved as may be (idempotency.max_keys). Nothing was sent. The first of \
                 them may be free after Retry-After; without a key the message can be sent now.",
            )
            .retry_after(free_after.max(THROTTLE_RETRY)),
        ),
        Disposition::Stopping => Answered::problem(Published::Draining, super::stopping()),
    };
    if replayed {
        let name = HeaderName::from_static("idempotency-replayed");
        answered.reply.headers_mut().insert(name, HeaderValue::from_static("true"));
    }
    if let Some(value) = applied.and_then(|applied| HeaderValue::try_from(applied).ok()) {
        let name = HeaderName::from_static("preference-applied");
        answered.reply.headers_mut().insert(name, value);
    }
    answered
}

fn answer_of(answer: &Answer, calls: u32) -> Answered {
    let verdict = answer.verdict();
    if let (Verdict::Delivered, Some(http)) = (&verdict, answer.http()) {
        return Answered {
            reply: receipt(http, calls),
            published: Published::Delivered,
            failure: None,
        };
    }
    let reason = reason(answer);
    let (published, problem) = match verdict {
        Verdict::Delivered | Verdict::Unknown => {
            (Published::Unknown, unknown(&format!("The call was sent. {reason}")))
        }
        Verdict::Refused => (Published::Refused, refused(&reason)),
        Verdict::Denied(denied) => (Published::Failed, access_denied(denied, &reason)),
        Verdict::Throttled { retry_after } => {
            (Published::OverCeiling, throttled(retry_after, &reason))
        }
        Verdict::Failed if *answer == Answer::TransportError(TransportError::TooLate) => {
            (Published::Failed, timeout())
        }
        Verdict::Failed => (Published::Failed, failed(answer, &reason)),
    };
    let mut problem = problem.attempts(calls);
    if let Some(HttpAnswer { status, request_id, code, .. }) = answer.http() {
        let (code, request_id) = (code.clone(), request_id.clone());
        problem = problem.upstream(code.map(Into::into), request_id.map(Into::into), Some(*status));
    }
    let mut answered = Answered::problem(published, problem);
    if let Some(failure) = &mut answered.failure {
        failure.calls = calls;
        failure.code = Some(answer.label().into_owned());
        let request_id = answer.http().and_then(|http| http.request_id.clone());
        failure.upstream_request_id = request_id.map(Into::into);
    }
    answered
}

fn receipt(http: &HttpAnswer, attempts: u32) -> Reply {
    let receipt = DeliveredBody {
        msg_id: http.msg_id.as_deref().unwrap_or_default(),
        request_id: http.request_id.as_deref().unwrap_or_default(),
        attempts,
    };
    json_reply(StatusCode::OK, &receipt)
}

/// The message is kept, and this is its `status` now.
fn accepted(id: MessageId, status: &str, published: Published, durability: Durability) -> Answered {
    let body = AcceptedBody { id: id.to_string(), status, durability: durability.as_str() };
    let mut reply = json_reply(StatusCode::ACCEPTED, &body);
    if let Ok(location) = HeaderValue::try_from(format!("/messages/{id}")) {
        reply.headers_mut().insert(LOCATION, location);
    }
    Answered { reply, published, failure: None }
}

/// The message is a dead letter, since a call may have delivered it.
fn unresolved(id: MessageId, calls: u32) -> Answered {
    let detail = format!(
        "A call was sent to the upstream, and its outcome is unknown: the message may have been \
         delivered and billed. It is kept as a dead letter, and not sent again by itself \
         (retry.unknown, retry.park, retry.unknown_tries). Ask the receiver; an operator can replay \
         or drop it (tollgate messages), and /messages/{id} shows it. The same Idempotency-Key \
         gets this answer again."
    );
    let problem = problem(StatusCode::GATEWAY_TIMEOUT, Slug::Unknown, UNKNOWN, detail)
        .outcome("unknown")
        .message(id.to_string(), "unknown")
        .attempts(calls);
    Answered::problem(Published::Unknown, problem).with_calls(calls)
}

/// The message was dropped. `doubt`: a call may have delivered it.
fn dropped(id: MessageId, doubt: Doubt, calls: u32) -> Answered {
    let (done, outcome, published) = if doubt == Doubt::Possible {
        let done = "A call may have delivered it before, and no other will be made";
        (done, "unknown", Published::Unknown)
    } else {
        ("It was not delivered, and will not be", "not-sent", Published::Failed)
    };
    let detail = format!(
        "The message was kept, and was dropped: by an operator, or as a dead letter that was older than \
         retry.keep_dead or that a new message needed the room of. {done}. The log of tollgate says \
         which; to have it delivered after all, send it with a new Idempotency-Key."
    );
    let problem = problem(StatusCode::GONE, Slug::Dropped, "The message was dropped", detail)
        .outcome(outcome)
        .message(id.to_string(), "dropped")
        .attempts(calls);
    Answered::problem(published, problem).with_calls(calls)
}

/// The message's time to live has ended. `doubt`: a call may have delivered it.
fn expired(id: Option<MessageId>, doubt: Doubt, calls: u32) -> Answered {
    let (done, outcome, published) = if doubt == Doubt::Possible {
        let done = "A call may have delivered it before, and no other will be made";
        (done, "unknown", Published::Unknown)
    } else {
        ("It was not delivered, and will not be", "not-sent", Published::Failed)
    };
    let detail = format!(
        "The message's time to live (TTL) ended before it was delivered; with TTL: 0, the topic is paused now. \
         {done}."
    );
    let title = "The message expired";
    let mut problem = problem(StatusCode::GATEWAY_TIMEOUT, Slug::Expired, title, detail)
        .outcome(outcome)
        .attempts(calls);
    if let Some(id) = id {
        problem = problem.message(id.to_string(), "expired");
    }
    Answered::problem(published, problem).with_calls(calls)
}

fn not_kept(error: &KeepError, calls: u32) -> Answered {
    let (slug, title, detail) = match error {
        KeepError::Full => (
            Slug::SpoolFull,
            "The spool is full",
            "The limit of kept messages is reached (spool.max_bytes, spool.max_messages). The message \
             was not accepted and nothing was sent.",
        ),
        KeepError::TopicShare => (
            Slug::SpoolFull,
            "The spool is full",
            "This topic holds as many kept messages and dead letters as it may while other topics are in \
             use: the rest of the spool (spool.max_bytes, spool.max_messages) is left to them. The \
             message was not accepted and nothing was sent.",
        ),
        KeepError::CallerShare => (
            Slug::SpoolFull,
            "The spool is full",
            "This caller holds as many kept messages and dead letters as it may (callers.spool_share). The \
             message was not accepted and nothing was sent.",
        ),
        KeepError::Disk(_) | KeepError::Unsure(_) => (
            Slug::SpoolUnavailable,
            "The spool cannot be written",
            "The spool's disk is full or cannot be written. The message was not accepted and nothing \
             was sent.",
        ),
        KeepError::Redis(_) | KeepError::Already => (
            Slug::SpoolUnavailable,
            "The spool cannot be written",
            "Redis, which holds the spool, is full, cannot be written or does not answer. The message \
             was not accepted and nothing was sent.",
        ),
    };
    let problem = problem(StatusCode::SERVICE_UNAVAILABLE, slug, title, detail.to_owned())
        .outcome("not-sent")
        .attempts(calls)
        .retry_after(FULL_RETRY);
    Answered::problem(Published::Full, problem)
}

/// No call was made: while access is denied, only probes are sent.
fn denied_before(denied: AccessDenied) -> Answered {
    let problem = access_denied(denied, "No call was made: the last one for this topic failed.")
        .outcome("not-sent");
    Answered::problem(Published::Failed, problem)
}

fn key_problem(status: StatusCode, slug: Slug, title: &'static str, detail: &str) -> Problem {
    problem(status, slug, title, detail.to_owned()).outcome("not-sent")
}

fn problem(status: StatusCode, slug: Slug, title: &'static str, detail: String) -> Problem {
    Problem::new(status, slug, title, detail)
}

/// Why the call did not deliver the message: one sentence.
fn reason(answer: &Answer) -> String {
    match answer {
        Answer::TransportError(error) => error.explanation().to_owned(),
        Answer::Http(http @ HttpAnswer { status, .. }) => match &http.code {
            Some(code) => format!("The upstream answered {code} ({status})."),
            None if (200..300).contains(status) => {
                format!("The upstream answered {status} {}.", http.body.explanation())
            }
            None => format!("The upstream answered {status}."),
        },
    }
}

fn unknown(why: &str) -> Problem {
    problem(
        StatusCode::GATEWAY_TIMEOUT,
        Slug::Unknown,
        UNKNOWN,
        format!(
            "{why} The message may have been, or may yet be, delivered and billed. It was not \
             accepted here: sending it again may deliver it twice."
        ),
    )
    .outcome("unknown")
    .retryable()
}

fn refused(reason: &str) -> Problem {
    problem(
        StatusCode::UNPROCESSABLE_ENTITY,
        Slug::Refused,
        "The upstream refuses this message",
        format!(
            "The upstream refuses this message. {reason} It was not delivered, and would not be if it \
             were sent again. Check its topic and body."
        ),
    )
    .outcome("refused")
}

fn access_denied(denied: AccessDenied, reason: &str) -> Problem {
    let (explanation, remedy) = (denied.explanation(), denied.remedy());
    problem(
        StatusCode::BAD_GATEWAY,
        Slug::Barred,
        "The upstream denies access",
        format!(
            "{explanation} {reason} That concerns tollgate, not this message, which was not \
             delivered. {remedy}"
        ),
    )
    .outcome("refused")
    .retryable()
}

fn throttled(retry_after: Option<Duration>, reason: &str) -> Problem {
    problem(
        StatusCode::TOO_MANY_REQUESTS,
        Slug::Throttled,
        "The upstream throttles the account",
        format!(
            "The upstream accepts fewer calls than it is sent. {reason} The message was not \
             delivered; send it again after Retry-After."
        ),
    )
    .outcome("refused")
    .retry_after(retry_after.unwrap_or(THROTTLE_RETRY))
}

fn failed(answer: &Answer, reason: &str) -> Problem {
    let sent = !matches!(answer, Answer::TransportError(error) if error.nothing_sent());
    problem(
        StatusCode::BAD_GATEWAY,
        Slug::Failed,
        "The upstream failed",
        format!(
            "The upstream did not take the message. {reason} It was not delivered; send it again."
        ),
    )
    .outcome(if sent { "refused" } else { "not-sent" })
    .retryable()
}

fn no_permit(refused: Refused) -> Answered {
    let (published, problem) = match refused {
        Refused::WaitTooLong { ceiling, wait, retry_after } => (
            Published::OverCeiling,
            problem(
                StatusCode::TOO_MANY_REQUESTS,
                Slug::OverCeiling,
                "Over the ceiling",
                format!(
                    "The queue for the {} ceiling is {:.1} s long, which is longer than this request \
                     waits. Nothing was sent.",
                    ceiling.as_str(),
                    wait.as_secs_f64()
                ),
            )
            .retry_after(retry_after),
        ),
        Refused::QueueFull { retry_after } => (
            Published::Full,
            problem(
                StatusCode::SERVICE_UNAVAILABLE,
                Slug::Full,
                "The queue is full",
                "The limit of waiting messages is reached (publish.max_waiting), or this caller's part of it. \
                 Nothing was sent."
                    .to_owned(),
            )
            .retry_after(retry_after),
        ),
        Refused::TimedOut => (Published::Failed, timeout()),
    };
    Answered::problem(published, problem.outcome("not-sent"))
}

fn timeout() -> Problem {
    let detail = "The caller's wait expired before the message could be sent. Nothing was sent; send \
                  it again, or wait longer (Prefer: wait=<seconds>).";
    problem(StatusCode::GATEWAY_TIMEOUT, Slug::Timeout, "Not sent in time", detail.to_owned())
        .outcome("not-sent")
        .retryable()
}

fn unanswered(calls: u32) -> Answered {
    let why = match calls {
        // A write that the spool has not confirmed may still be there after a crash.
        0 => "The spool has not confirmed whether it has the message.",
        _ => "The call was sent, and the caller's wait expired before its answer.",
    };
    let problem = unknown(why).attempts(calls);
    Answered::problem(Published::Unknown, problem).with_calls(calls)
}
