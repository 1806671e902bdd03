//! Log lines of messages that were not delivered: the first of its kind, and of a flood no more than one in ten minutes.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::Request;
use tokio::time::Instant;

use super::answered::NotDelivered;
use crate::callers::Caller;
use crate::message::{CallerName, Trace};
use crate::meter::Published;

/// Where so long none of a kind came, the next one has a line.
const QUIET: Duration = Duration::from_secs(10);
/// Else one of them has, in so long.
const FLOOD: Duration = Duration::from_mins(10);
/// Problems and callers are bounded, but may be many.
const MOST_KINDS: usize = 256;
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

/// What makes failures alike: the problem and the caller.
type Kind = (String, Option<CallerName>);

#[derive(Debug)]
struct KindLines {
    last: Instant,
    logged: Instant,
    /// Since the last line.
    without_line: u64,
}

/// Which failures have lines. What goes on, when it ends and how many messages it took is in the lines of the concerns.
#[derive(Debug, Default)]
pub(super) struct FailureLog {
    kinds: Mutex<HashMap<Kind, KindLines>>,
}

impl FailureLog {
    /// Whether one more failure of this kind has a line, and how many had none since the last.
    fn next(&self, kind: Kind, now: Instant) -> Option<u64> {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lines) = kinds.get_mut(&kind) {
            let is_due = now - lines.last >= QUIET || now - lines.logged >= FLOOD;
            lines.last = now;
            if is_due {
                lines.logged = now;
                return Some(std::mem::take(&mut lines.without_line));
            }
            lines.without_line += 1;
            return None;
        }
        if kinds.len() >= MOST_KINDS {
            kinds.retain(|_, lines| now - lines.last < QUIET);
        }
        if kinds.len() >= MOST_KINDS {
            return None;
        }
        kinds.insert(kind, KindLines { last: now, logged: now, without_line: 0 });
        Some(0)
    }

    pub(super) fn failed(
        &self,
        context: &LogContext,
        published: Published,
        failure: &NotDelivered,
    ) {
        let LogContext { request_id, trace, topic, caller } = context;
        let kind = (failure.problem.to_string(), caller.clone());
        let Some(without_line) = self.next(kind, Instant::now()) else { return };
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
            more_without_line = (without_line > 0).then_some(without_line),
            "message not delivered"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(problem: &str) -> Kind {
        (problem.to_owned(), None)
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_has_few_lines_and_a_rare_failure_has_its_own() {
        let log = FailureLog::default();
        let mut lines = Vec::new();
        // Three hundred a second, for 25 minutes.
        for second in 0..1_500 {
            for _ in 0..300 {
                if let Some(more) = log.next(kind("over-ceiling"), Instant::now()) {
                    lines.push((second, more));
                }
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(lines, [(0, 0), (600, 600 * 300 - 1), (1_200, 600 * 300 - 1)]);
        // Another kind has its own; and each that comes alone.
        for _ in 0..3 {
            assert_eq!(log.next(kind("invalid-topic"), Instant::now()), Some(0));
            tokio::time::advance(QUIET).await;
        }
        assert!(log.next(kind("over-ceiling"), Instant::now()).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn kinds_are_bounded() {
        let log = FailureLog::default();
        let lines = |from: usize| {
            let kinds = from..from + 2 * MOST_KINDS;
            kinds.filter(|n| log.next(kind(&n.to_string()), Instant::now()).is_some()).count()
        };
        assert_eq!(lines(0), MOST_KINDS);
        tokio::time::advance(QUIET).await;
        assert_eq!(lines(10_000), MOST_KINDS);
    }
}
