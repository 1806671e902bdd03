//! One log line per message that was not delivered, with a limit per second.

use http::Request;

use super::answered::NotDelivered;
use crate::callers::Caller;
use crate::log_limiter::LogLimiter;
use crate::message::{CallerName, Trace};
use crate::meter::Published;

/// The most log lines in one second.
pub(super) const MAX_LINES: u64 = 50;
/// Characters logged of a topic: the path may be anything.
const MAX_TOPIC: usize = 80;

/// What identifies a request in the log, and who has sent it.
pub(super) struct LogContext {
    request_id: Option<String>,
    trace: Option<Trace>,
    topic: String,
    caller: Option<CallerName>,
}

impl LogContext {
    pub(super) fn of<B>(request: &Request<B>, topic: &str, trace: Option<Trace>) -> Self {
        let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
        Self {
            request_id: header("x-request-id").map(str::to_owned),
            trace,
            topic: topic.chars().take(MAX_TOPIC).collect(),
            caller: None,
        }
    }

    /// It has proven to be of this caller; `None`: all are one.
    pub(super) fn proven(&mut self, caller: Option<&Caller>) {
        self.caller = caller.map(|caller| CallerName::clone(caller.name()));
    }

    /// The request's id, ours or its caller's.
    pub(super) fn request_id(&self) -> Option<&str> {
        self.request_id.as_deref()
    }

    /// Whose it is, as far as that is proven.
    pub(super) fn caller(&self) -> Option<&str> {
        self.caller.as_deref()
    }

    /// The topic, where that is known later than the head.
    pub(super) fn topic(&mut self, topic: &str) {
        topic.clone_into(&mut self.topic);
    }
}

pub(super) fn failure(
    limiter: &LogLimiter,
    context: &LogContext,
    published: Published,
    failure: &NotDelivered,
) {
    let Some(suppressed) = limiter.next() else { return };
    if suppressed > 0 {
        tracing::warn!(
            suppressed,
            "more messages were not delivered; their log lines were suppressed"
        );
    }
    let LogContext { request_id, trace, topic, caller } = context;
    let caller = caller.as_deref();
    let trace_id = trace.map(tracing::field::display);
    tracing::warn!(
        request_id,
        trace_id,
        topic,
        caller,
        outcome = published.as_str(),
        status = failure.status,
        problem = &*failure.problem,
        attempts = failure.calls,
        code = failure.code,
        upstream_request_id = failure.upstream_request_id.as_deref(),
        "message not delivered"
    );
}
