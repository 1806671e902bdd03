//! One line a message that was not delivered, and not more of them than a log can bear.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::Request;
use tokio::time::Instant;

use super::outcome::Failure;
use super::request::trace;
use crate::message::TraceId;
use crate::meter::Published;

/// Lines in one second; the rest is counted.
const MAX_LINES: u64 = 50;
const SECOND: Duration = Duration::from_secs(1);
/// Of a path that may be no topic.
const MAX_TOPIC: usize = 80;

/// Who asked for what.
pub(super) struct Context {
    request_id: Option<String>,
    trace: Option<TraceId>,
    topic: String,
}

impl Context {
    pub(super) fn of<B>(request: &Request<B>, topic: &str) -> Self {
        let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
        Self {
            request_id: header("x-request-id").map(str::to_owned),
            trace: trace(request.headers()),
            topic: topic.chars().take(MAX_TOPIC).collect(),
        }
    }
}

/// How many lines may still be written in this second.
#[derive(Default)]
pub(super) struct Budget(Mutex<Spent>);

#[derive(Default)]
struct Spent {
    second: Option<Instant>,
    lines: u64,
    suppressed: u64,
}

impl Budget {
    pub(super) fn failure(&self, context: &Context, published: Published, failure: &Failure) {
        let Some(suppressed) = self.line() else { return };
        if suppressed > 0 {
            tracing::warn!(suppressed, "more messages were not delivered than lines are logged");
        }
        let Context { request_id, trace, topic } = context;
        let trace_id = trace.map(tracing::field::display);
        tracing::warn!(
            request_id,
            trace_id,
            topic,
            outcome = published.word(),
            status = failure.status,
            problem = failure.problem,
            attempts = failure.calls,
            code = failure.code,
            upstream_request_id = failure.upstream_request_id.as_deref(),
            "message not delivered"
        );
    }

    /// Whether one more line may be written, and how many were not since the last.
    fn line(&self) -> Option<u64> {
        let mut spent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if spent.second.is_none_or(|second| now - second >= SECOND) {
            *spent = Spent { second: Some(now), lines: 0, suppressed: spent.suppressed };
        }
        if spent.lines >= MAX_LINES {
            spent.suppressed += 1;
            return None;
        }
        spent.lines += 1;
        Some(std::mem::take(&mut spent.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_second_has_so_many_lines() {
        let budget = Budget::default();
        let written = (0..1_000).filter(|_| budget.line().is_some()).count();
        assert_eq!(written as u64, MAX_LINES);
        tokio::time::advance(SECOND).await;
        assert_eq!(budget.line(), Some(1_000 - MAX_LINES));
        assert_eq!(budget.line(), Some(0));
    }
}
