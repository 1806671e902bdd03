//! From an outcome to an answer: the one place that chooses statuses.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use http::{HeaderName, Response, StatusCode};
use http_body_util::Full;
use jiff::Timestamp;
use serde::Serialize;

use crate::answer::{AccessDenied, Answer, HttpAnswer, TransportError, Verdict};
use crate::ceiling::Refused;
use crate::delivery::{Disposition, Outcome, Settled};
use crate::message::MessageId;
use crate::meter::{OverBudget, Published};
use crate::server::{Problem, Reply};
use crate::spool::{Durability, KeepError};

/// What a caller waits at least when the provider names no time.
const THROTTLE_RETRY: Duration = Duration::from_secs(1);

/// What a caller waits whose message found no room in the spool.
const FULL_RETRY: Duration = Duration::from_secs(5);

/// An answer, and what is noted about it.
pub(super) struct Answered {
    pub(super) reply: Reply,
    pub(super) published: Published,
    /// For the log; nothing is said of a message that was delivered.
    pub(super) failure: Option<Failure>,
}

/// What the log says of a message that was not delivered.
pub(super) struct Failure {
    pub(super) status: u16,
    pub(super) problem: String,
    pub(super) calls: u32,
    pub(super) code: Option<String>,
    pub(super) upstream_request_id: Option<Box<str>>,
}

impl Answered {
    pub(super) fn problem(published: Published, problem: Problem) -> Self {
        let failure = Failure {
            status: problem.status(),
            problem: problem.slug().to_owned(),
            calls: 0,
            code: None,
            upstream_request_id: None,
        };
        Self { published, failure: Some(failure), reply: problem.into_response() }
    }

    /// With the calls that were made, for the log.
    fn with_calls(mut self, calls: u32) -> Self {
        if let Some(failure) = &mut self.failure {
            failure.calls = calls;
        }
        self
    }
}

/// The title of a call whose outcome is unknown.
const UNKNOWN: &str = "Nobody knows whether it was delivered";

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Receipt<'a> {
    msg_id: &'a str,
    request_id: &'a str,
    attempts: u32,
}

/// The answer to a caller who waited. `durability`: of what is kept; `applied`: what became of its
/// preference.
pub(super) fn answer(
    outcome: Outcome,
    durability: Durability,
    applied: Option<String>,
) -> Answered {
    let Outcome { calls, ended, replayed } = outcome;
    let mut answered = match ended {
        Disposition::Answered(answer) => answer_of(&answer, calls),
        Disposition::NoPermit(refused) => no_permit(refused),
        Disposition::OverBudget(over) => over_budget(&over, calls),
        Disposition::Unanswered => unanswered(calls),
        Disposition::Kept(id) => accepted(id, "queued", Published::Queued, durability),
        Disposition::Settled(id, settled) => {
            let (status, published) = match settled {
                Settled::Delivered => ("delivered", Published::Delivered),
                Settled::Dead => ("dead", Published::Queued),
                Settled::Unknown => ("unknown", Published::Queued),
            };
            accepted(id, status, published, durability)
        }
        Disposition::Unresolved(id) => unresolved(id, calls),
        Disposition::Dropped { id, doubt } => dropped(id, doubt, calls),
        Disposition::NotKept(error) => not_kept(&error, calls),
        Disposition::Denied(bar) => barred_before(bar),
        Disposition::OtherRequest => key_problem(
            StatusCode::UNPROCESSABLE_ENTITY,
            "key-reused",
            "The key was used for another message",
            "A message with this Idempotency-Key and another topic or body was published before. \
             Nothing was sent; every message needs a key of its own.",
            false,
        ),
        Disposition::SameUnderWay => key_problem(
            StatusCode::CONFLICT,
            "key-in-flight",
            "The same request is being answered",
            "A request with this Idempotency-Key is still being answered. This one was not sent \
             again; ask once more after Retry-After.",
            true,
        ),
        Disposition::TooManyKeys => {
            let answered = key_problem(
                StatusCode::SERVICE_UNAVAILABLE,
                "keys-full",
                "Too many keys",
                "As many keys are remembered as may be (idempotency.max_keys). Nothing was sent.",
                true,
            );
            Answered { published: Published::Full, ..answered }
        }
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
    let said = said(answer);
    let (published, problem) = match verdict {
        Verdict::Delivered | Verdict::Unknown => {
            (Published::Unknown, unknown(&format!("The call was sent to the upstream, and {said}")))
        }
        Verdict::Refused => (Published::Refused, refused(&said)),
        Verdict::Denied(bar) => (Published::Failed, barred(bar, &said)),
        Verdict::Throttled { retry_after } => {
            (Published::OverCeiling, throttled(retry_after, &said))
        }
        Verdict::Failed if *answer == Answer::TransportError(TransportError::TooLate) => {
            (Published::Failed, timeout())
        }
        Verdict::Failed => (Published::Failed, failed(answer, &said)),
    };
    let mut problem = problem.attempts(calls);
    if let Some(HttpAnswer { status, request_id, code, .. }) = answer.http() {
        problem = problem.upstream(code.clone(), request_id.clone(), Some(*status));
    }
    let mut answered = Answered::problem(published, problem);
    if let Some(failure) = &mut answered.failure {
        failure.calls = calls;
        failure.code = Some(answer.label().into_owned());
        failure.upstream_request_id = answer.http().and_then(|http| http.request_id.clone());
    }
    answered
}

fn receipt(http: &HttpAnswer, attempts: u32) -> Reply {
    let receipt = Receipt {
        msg_id: http.msg_id.as_deref().unwrap_or_default(),
        request_id: http.request_id.as_deref().unwrap_or_default(),
        attempts,
    };
    // Two strings and a number: there is nothing that could not be serialised.
    let body = serde_json::to_vec(&receipt).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from(body)));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// It is ours, and this is its `status` now.
fn accepted(id: MessageId, status: &str, published: Published, durability: Durability) -> Answered {
    let durability = durability.as_str();
    let body =
        format!("{{\"Id\":\"{id}\",\"Status\":\"{status}\",\"Durability\":\"{durability}\"}}");
    let mut reply = Response::new(Full::new(Bytes::from(body)));
    *reply.status_mut() = StatusCode::ACCEPTED;
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(location) = HeaderValue::try_from(format!("/messages/{id}")) {
        headers.insert(LOCATION, location);
    }
    Answered { reply, published, failure: None }
}

/// It is a dead letter, since a call may have delivered it.
fn unresolved(id: MessageId, calls: u32) -> Answered {
    let detail = format!(
        "A call was sent to the upstream, and its outcome is unknown: the message may have been \
         delivered and billed. It is kept as a dead letter, and not sent again by itself \
         (retry.unknown, retry.park, retry.unknown_tries). Ask the receiver; an operator can replay \
         or drop it (tollgate messages), and /messages/{id} shows it. The same Idempotency-Key \
         gets this answer again."
    );
    let problem = problem(StatusCode::GATEWAY_TIMEOUT, "unknown", UNKNOWN, detail)
        .outcome("unknown")
        .message(id.to_string(), "unknown")
        .attempts(calls);
    Answered::problem(Published::Unknown, problem).with_calls(calls)
}

/// An operator dropped it.
fn dropped(id: MessageId, doubt: bool, calls: u32) -> Answered {
    let (done, outcome, published) = if doubt {
        let done = "A call for it may have delivered it, and no other will be made";
        (done, "unknown", Published::Unknown)
    } else {
        ("It was not delivered, and will not be", "not-sent", Published::Failed)
    };
    let detail = format!(
        "The message was kept, and an operator dropped it. {done}. Ask the operator why; to have \
         it delivered after all, send it with a new Idempotency-Key."
    );
    let problem = problem(StatusCode::GONE, "dropped", "The message was dropped", detail)
        .outcome(outcome)
        .message(id.to_string(), "dropped")
        .attempts(calls);
    Answered::problem(published, problem).with_calls(calls)
}

fn not_kept(error: &KeepError, calls: u32) -> Answered {
    let (slug, title, detail) = match error {
        KeepError::Full => (
            "spool-full",
            "The spool is full",
            "As much is kept as may be (spool.max_bytes, spool.max_messages). The message was not \
             accepted and nothing was sent.",
        ),
        KeepError::Disk(_) | KeepError::Unsure(_) => (
            "spool-unavailable",
            "The spool does not take it",
            "The spool's disk is full or does not write. The message was not accepted and nothing \
             was sent.",
        ),
        KeepError::Redis(_) | KeepError::Already => (
            "spool-unavailable",
            "The spool does not take it",
            "Redis, which holds the spool, is full, does not write or does not answer. The message \
             was not accepted and nothing was sent.",
        ),
    };
    let problem = problem(StatusCode::SERVICE_UNAVAILABLE, slug, title, detail.to_owned())
        .outcome("not-sent")
        .attempts(calls)
        .retry_after(FULL_RETRY);
    Answered::problem(Published::Full, problem)
}

/// No call is made while a probe finds out whether we are let in.
fn barred_before(bar: AccessDenied) -> Answered {
    let problem = barred(bar, "it refused the last call for this topic").outcome("not-sent");
    Answered::problem(Published::Failed, problem)
}

fn key_problem(
    status: StatusCode,
    slug: &str,
    title: &'static str,
    detail: &str,
    again: bool,
) -> Answered {
    let mut problem = problem(status, slug, title, detail.to_owned()).outcome("not-sent");
    if again {
        problem = problem.retry_after(THROTTLE_RETRY);
    }
    Answered::problem(Published::Invalid, problem)
}

fn problem(status: StatusCode, slug: &str, title: &'static str, detail: String) -> Problem {
    Problem::new(status, slug, title, detail)
}

/// What the upstream said, in words.
fn said(answer: &Answer) -> String {
    match answer {
        Answer::TransportError(lost) => match lost {
            TransportError::Resolve => "its name did not resolve".to_owned(),
            TransportError::NoConnection => "all connections to it are in use".to_owned(),
            TransportError::Connect => "it refused the connection".to_owned(),
            TransportError::ConnectTimeout => "it did not take the connection in time".to_owned(),
            TransportError::Tls => "the TLS handshake with it failed".to_owned(),
            TransportError::Unwritten => "it closed the connection".to_owned(),
            TransportError::NoKey => "there is no access key to sign with".to_owned(),
            TransportError::TooLate => {
                "the wait ended before a connection to it was ready".to_owned()
            }
            TransportError::NotText => {
                "bodies are sent as text (upstream.payload), which it is not".to_owned()
            }
            TransportError::Closed => "it closed the connection without an answer".to_owned(),
            TransportError::Timeout => "it did not answer in time".to_owned(),
            TransportError::Garbled => "its answer is not HTTP".to_owned(),
        },
        Answer::Http(http) => match &http.code {
            Some(code) => format!("it answered {} ({})", code, http.status),
            None if http.status < 300 => "it answered without a MsgId".to_owned(),
            None => format!("it answered {}", http.status),
        },
    }
}

fn unknown(why: &str) -> Problem {
    problem(
        StatusCode::GATEWAY_TIMEOUT,
        "unknown",
        UNKNOWN,
        format!(
            "{why}. The message may have been, or may yet be, delivered and billed. It was not \
             accepted here: sending it again may deliver it twice."
        ),
    )
    .outcome("unknown")
    .retryable()
}

fn refused(said: &str) -> Problem {
    problem(
        StatusCode::UNPROCESSABLE_ENTITY,
        "refused",
        "The upstream refuses this message",
        format!(
            "The upstream refuses this message: {said}. It was not delivered, and would not be if \
             it were sent again. Look at its topic and body."
        ),
    )
    .outcome("refused")
}

fn barred(bar: AccessDenied, said: &str) -> Problem {
    let remedy = match bar {
        AccessDenied::Key => "Check the access key that tollgate is given.",
        AccessDenied::Clock => "Check this machine's clock.",
        AccessDenied::Permission => {
            "Check what the access key's owner may do (mq:SendMessage, the instance, the topic)."
        }
        AccessDenied::Endpoint => "Check upstream.endpoint and upstream.signature.",
    };
    problem(
        StatusCode::BAD_GATEWAY,
        "barred",
        "The upstream does not let us in",
        format!("The upstream refuses tollgate, not this message: {said}. It was not delivered. {remedy}"),
    )
    .outcome("refused")
    .retryable()
}

fn throttled(retry_after: Option<Duration>, said: &str) -> Problem {
    problem(
        StatusCode::TOO_MANY_REQUESTS,
        "throttled",
        "The upstream throttles the account",
        format!(
            "The upstream takes fewer calls than it is sent: {said}. The message was not \
             delivered; send it again after Retry-After."
        ),
    )
    .outcome("refused")
    .retry_after(retry_after.unwrap_or(THROTTLE_RETRY))
}

fn failed(answer: &Answer, said: &str) -> Problem {
    let sent = !matches!(answer, Answer::TransportError(lost) if lost.nothing_sent());
    problem(
        StatusCode::BAD_GATEWAY,
        "failed",
        "The upstream failed",
        format!(
            "The upstream could not take the message: {said}. It was not delivered; send it again."
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
                "over-ceiling",
                "Over the ceiling",
                format!(
                    "As many messages wait as the {} ceiling lets through in {:.1} s, which is \
                     longer than this request waits. Nothing was sent.",
                    ceiling.as_str(),
                    wait.as_secs_f64()
                ),
            )
            .retry_after(retry_after),
        ),
        Refused::RoomFull { retry_after } => (
            Published::Full,
            problem(
                StatusCode::SERVICE_UNAVAILABLE,
                "full",
                "The waiting room is full",
                "As many messages wait as may (publish.max_waiting). Nothing was sent.".to_owned(),
            )
            .retry_after(retry_after),
        ),
        Refused::TimedOut => (Published::Failed, timeout()),
    };
    Answered::problem(published, problem.outcome("not-sent"))
}

fn over_budget(over: &OverBudget, calls: u32) -> Answered {
    // A call that was made has failed for certain, or there would be no second.
    let (done, outcome) = match calls {
        0 => ("Nothing was sent", "not-sent"),
        _ => ("It was not delivered, and is not tried again", "refused"),
    };
    let detail = format!(
        "The budget {:?} (billing.budgets) is used up until {}. {done}. Send the message again \
         then, or raise the budget.",
        over.budget, over.until
    );
    let left = over.until.duration_since(Timestamp::now());
    let problem = problem(StatusCode::TOO_MANY_REQUESTS, "budget", "Over the budget", detail)
        .outcome(outcome)
        .attempts(calls)
        .retry_after(Duration::try_from(left).unwrap_or_default());
    Answered::problem(Published::OverCeiling, problem)
}

fn timeout() -> Problem {
    let detail = "The wait ended before the message could be sent. Nothing was sent; send it again, \
                  or wait longer (Prefer: wait=<seconds>).";
    problem(StatusCode::GATEWAY_TIMEOUT, "timeout", "Not sent in time", detail.to_owned())
        .outcome("not-sent")
        .retryable()
}

fn unanswered(calls: u32) -> Answered {
    let why = match calls {
        // What the spool has not said to have may still be in it after a crash.
        0 => "The spool does not say whether it has the message",
        _ => "The call was sent to the upstream, and the wait ended before its answer",
    };
    let problem = unknown(why).attempts(calls);
    Answered::problem(Published::Unknown, problem).with_calls(calls)
}
